// SwiGLU, forward and backward: one block for each row, whose first half is the gate and whose second half is up. All
// arithmetic is f32.
#include "prelude.cuh"

// For results in bf16 the exponential and the division are the fast ones: their error is far below a rounding.
template <typename E>
__device__ __forceinline__ f32 sigmoid(f32 x);

template <>
__device__ __forceinline__ f32 sigmoid<f32>(f32 x) {
    return 1.0f / (1.0f + expf(-x));
}

template <>
__device__ __forceinline__ f32 sigmoid<bf16>(f32 x) {
    // Above 2^126 the fast division gives 0 where a quotient is due; e^80 is far below, and the sigmoid flat long before.
    return __fdividef(1.0f, 1.0f + __expf(fminf(-x, 80.0f)));
}

template <typename E>
__device__ __forceinline__ f32 value(f32 gate, f32 up) {
    return gate * sigmoid<E>(gate) * up;
}

// What one element of the forward pass and of the backward pass are.
struct Element {
    f32 h, d_gate, d_up;
};

template <typename E>
__device__ __forceinline__ Element element(f32 dh, f32 gate, f32 up) {
    const f32 s = sigmoid<E>(gate), of_gate = gate * s;
    return {of_gate * up, dh * up * (s * (1.0f + gate * (1.0f - s))), dh * of_gate};
}

template <typename E>
__device__ __forceinline__ void forward(const E* __restrict__ gate_up, E* __restrict__ h, u32 width) {
    const E* gate = gate_up + u64(blockIdx.x) * 2 * width;
    const E* up = gate + width;
    h += u64(blockIdx.x) * width;
    if (!is_aligned(gate, width) || !is_aligned(h, width)) {
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            h[i] = from_f32<E>(value<E>(to_f32(gate[i]), to_f32(up[i])));
        }
        return;
    }
    constexpr u32 COUNT = Lanes<E>::COUNT;
#pragma unroll 4
    for (u32 at = threadIdx.x * COUNT; at < width; at += blockDim.x * COUNT) {
        const Lanes<E> g = load(gate + at), u = load(up + at);
        Lanes<E> y;
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            y.at[i] = value<E>(g.at[i], u.at[i]);
        }
        store(h + at, y);
    }
}

// `h` is null where only the gradient is wanted.
template <typename E>
__device__ __forceinline__ void backward(
    const E* __restrict__ dh, const E* __restrict__ gate_up, E* __restrict__ d_gate_up, E* __restrict__ h, u32 width) {
    const E* gate = gate_up + u64(blockIdx.x) * 2 * width;
    const E* up = gate + width;
    E* d_gate = d_gate_up + u64(blockIdx.x) * 2 * width;
    E* d_up = d_gate + width;
    const bool wants_h = h != nullptr;
    h += wants_h ? u64(blockIdx.x) * width : 0;
    dh += u64(blockIdx.x) * width;
    // The null address is aligned.
    if (!is_aligned(gate, width) || !is_aligned(d_gate, width) || !is_aligned(dh, width) || !is_aligned(h, 0)) {
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            const Element found = element<E>(to_f32(dh[i]), to_f32(gate[i]), to_f32(up[i]));
            d_gate[i] = from_f32<E>(found.d_gate);
            d_up[i] = from_f32<E>(found.d_up);
            if (wants_h) {
                h[i] = from_f32<E>(found.h);
            }
        }
        return;
    }
    constexpr u32 COUNT = Lanes<E>::COUNT;
#pragma unroll 2
    for (u32 at = threadIdx.x * COUNT; at < width; at += blockDim.x * COUNT) {
        const Lanes<E> d = load(dh + at), g = load(gate + at), u = load(up + at);
        Lanes<E> dg, du, y;
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const Element found = element<E>(d.at[i], g.at[i], u.at[i]);
            dg.at[i] = found.d_gate;
            du.at[i] = found.d_up;
            y.at[i] = found.h;
        }
        store(d_gate + at, dg);
        store(d_up + at, du);
        if (wants_h) {
            store(h + at, y);
        }
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void swiglu_forward_##E(const E* gate_up, E* h, u32 width) {                                 \
        forward<E>(gate_up, h, width);                                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void swiglu_backward_##E(                                                                    \
        const E* dh, const E* gate_up, E* d_gate_up, E* h, u32 width) {                                                \
        backward<E>(dh, gate_up, d_gate_up, h, width);                                                                 \
    }

KERNELS(f32)
KERNELS(bf16)
