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

template <typename E>
__device__ __forceinline__ void slopes(f32 dh, f32 gate, f32 up, f32& d_gate, f32& d_up) {
    const f32 s = sigmoid<E>(gate);
    d_gate = dh * up * (s * (1.0f + gate * (1.0f - s)));
    d_up = dh * (gate * s);
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

template <typename E>
__device__ __forceinline__ void backward(
    const E* __restrict__ dh, const E* __restrict__ gate_up, E* __restrict__ d_gate_up, u32 width) {
    const E* gate = gate_up + u64(blockIdx.x) * 2 * width;
    const E* up = gate + width;
    E* d_gate = d_gate_up + u64(blockIdx.x) * 2 * width;
    E* d_up = d_gate + width;
    dh += u64(blockIdx.x) * width;
    if (!is_aligned(gate, width) || !is_aligned(d_gate, width) || !is_aligned(dh, width)) {
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            f32 dg, du;
            slopes<E>(to_f32(dh[i]), to_f32(gate[i]), to_f32(up[i]), dg, du);
            d_gate[i] = from_f32<E>(dg);
            d_up[i] = from_f32<E>(du);
        }
        return;
    }
    constexpr u32 COUNT = Lanes<E>::COUNT;
#pragma unroll 2
    for (u32 at = threadIdx.x * COUNT; at < width; at += blockDim.x * COUNT) {
        const Lanes<E> d = load(dh + at), g = load(gate + at), u = load(up + at);
        Lanes<E> dg, du;
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            slopes<E>(d.at[i], g.at[i], u.at[i], dg.at[i], du.at[i]);
        }
        store(d_gate + at, dg);
        store(d_up + at, du);
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void swiglu_forward_##E(const E* gate_up, E* h, u32 width) {                                 \
        forward<E>(gate_up, h, width);                                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void swiglu_backward_##E(const E* dh, const E* gate_up, E* d_gate_up, u32 width) {           \
        backward<E>(dh, gate_up, d_gate_up, width);                                                                    \
    }

KERNELS(f32)
KERNELS(bf16)
