// RMS norm, forward and backward: one block for each row. A row is read once: its first vectors stay in registers
// between the sum and the result; what does not fit there is read again, from the cache. It allocates nothing.
#include "prelude.cuh"

// Vectors of 16 bytes that a thread keeps.
constexpr int KEPT = 2;

template <typename E>
__device__ __forceinline__ f32 sum_of_squares(const Lanes<E>& x) {
    f32 sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        sum += x.at[i] * x.at[i];
    }
    return sum;
}

template <typename E>
__device__ __forceinline__ Lanes<E> scaled(const Lanes<E>& x, f32 r, const Lanes<E>& weight) {
    Lanes<E> y;
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        y.at[i] = x.at[i] * r * weight.at[i];
    }
    return y;
}

template <typename E>
__device__ __forceinline__ void forward(
    const E* __restrict__ x, const E* __restrict__ weight, E* __restrict__ y, f32* __restrict__ inverse_rms, u32 width,
    f32 epsilon) {
    const u64 start = u64(blockIdx.x) * width;
    x += start;
    y += start;
    const u32 step = blockDim.x;
    f32 sum = 0.0f;
    if (!is_aligned(x, width) || !is_aligned(y, width) || !is_aligned(weight, 0)) {
        for (u32 i = threadIdx.x; i < width; i += step) {
            sum += to_f32(x[i]) * to_f32(x[i]);
        }
        const f32 r = 1.0f / sqrtf(sum_of_block(sum) / f32(width) + epsilon);
        for (u32 i = threadIdx.x; i < width; i += step) {
            y[i] = from_f32<E>(to_f32(x[i]) * r * to_f32(weight[i]));
        }
        if (threadIdx.x == 0) {
            inverse_rms[blockIdx.x] = r;
        }
        return;
    }
    constexpr u32 COUNT = Lanes<E>::COUNT;
    const u32 num_vectors = width / COUNT;
    Packed<E> kept[KEPT];
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const u32 at = threadIdx.x + i * step;
        if (at < num_vectors) {
            kept[i] = load_packed(x + at * COUNT);
        }
    }
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        if (threadIdx.x + i * step < num_vectors) {
            sum += sum_of_squares<E>(unpack(kept[i]));
        }
    }
    for (u32 at = threadIdx.x + KEPT * step; at < num_vectors; at += step) {
        sum += sum_of_squares<E>(load(x + at * COUNT));
    }
    const f32 r = 1.0f / sqrtf(sum_of_block(sum) / f32(width) + epsilon);
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const u32 at = threadIdx.x + i * step;
        if (at < num_vectors) {
            store(y + at * COUNT, scaled<E>(unpack(kept[i]), r, load(weight + at * COUNT)));
        }
    }
    for (u32 at = threadIdx.x + KEPT * step; at < num_vectors; at += step) {
        store(y + at * COUNT, scaled<E>(load(x + at * COUNT), r, load(weight + at * COUNT)));
    }
    if (threadIdx.x == 0) {
        inverse_rms[blockIdx.x] = r;
    }
}

// g = dy ⊙ weight, and its product with x.
template <typename E>
__device__ __forceinline__ f32 weigh(Lanes<E>& dy, const Lanes<E>& x, const Lanes<E>& weight) {
    f32 sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        dy.at[i] *= weight.at[i];
        sum += dy.at[i] * x.at[i];
    }
    return sum;
}

template <typename E>
__device__ __forceinline__ Lanes<E> gradient(const Lanes<E>& g, const Lanes<E>& x, f32 r, f32 along) {
    Lanes<E> dx;
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        dx.at[i] = r * (g.at[i] - x.at[i] * along);
    }
    return dx;
}

template <typename E>
__device__ __forceinline__ void add(Lanes<E>& x, const Lanes<E>& y) {
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        x.at[i] += y.at[i];
    }
}

// `residual` is null where there is none.
template <typename E>
__device__ __forceinline__ void backward(
    const E* __restrict__ dy, const E* __restrict__ x, const f32* __restrict__ inverse_rms,
    const E* __restrict__ weight, const E* __restrict__ residual, E* __restrict__ dx, u32 width) {
    const u64 start = u64(blockIdx.x) * width;
    const bool has_residual = residual != nullptr;
    dy += start;
    x += start;
    dx += start;
    residual += has_residual ? start : 0;
    const u32 step = blockDim.x;
    const f32 r = inverse_rms[blockIdx.x];
    f32 sum = 0.0f;
    // The null address is aligned.
    if (!is_aligned(dy, width) || !is_aligned(x, width) || !is_aligned(dx, width) || !is_aligned(weight, 0) ||
        !is_aligned(residual, 0)) {
        for (u32 i = threadIdx.x; i < width; i += step) {
            sum += to_f32(dy[i]) * to_f32(weight[i]) * to_f32(x[i]);
        }
        const f32 along = r * r * (sum_of_block(sum) / f32(width));
        for (u32 i = threadIdx.x; i < width; i += step) {
            const f32 value = r * (to_f32(dy[i]) * to_f32(weight[i]) - to_f32(x[i]) * along);
            dx[i] = from_f32<E>(value + (has_residual ? to_f32(residual[i]) : 0.0f));
        }
        return;
    }
    constexpr u32 COUNT = Lanes<E>::COUNT;
    const u32 num_vectors = width / COUNT;
    Packed<E> kept_dy[KEPT], kept_x[KEPT], kept_residual[KEPT];
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const u32 at = threadIdx.x + i * step;
        if (at < num_vectors) {
            kept_dy[i] = load_packed(dy + at * COUNT);
            kept_x[i] = load_packed(x + at * COUNT);
            kept_residual[i] = has_residual ? load_packed(residual + at * COUNT) : Packed<E>{};
        }
    }
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const u32 at = threadIdx.x + i * step;
        if (at < num_vectors) {
            Lanes<E> g = unpack(kept_dy[i]);
            sum += weigh<E>(g, unpack(kept_x[i]), load(weight + at * COUNT));
        }
    }
    for (u32 at = threadIdx.x + KEPT * step; at < num_vectors; at += step) {
        Lanes<E> other = load(dy + at * COUNT);
        sum += weigh<E>(other, load(x + at * COUNT), load(weight + at * COUNT));
    }
    const f32 along = r * r * (sum_of_block(sum) / f32(width));
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const u32 at = threadIdx.x + i * step;
        if (at < num_vectors) {
            Lanes<E> g = unpack(kept_dy[i]);
            const Lanes<E> x_here = unpack(kept_x[i]);
            weigh<E>(g, x_here, load(weight + at * COUNT));
            Lanes<E> sum = gradient<E>(g, x_here, r, along);
            add<E>(sum, unpack(kept_residual[i]));
            store(dx + at * COUNT, sum);
        }
    }
    for (u32 at = threadIdx.x + KEPT * step; at < num_vectors; at += step) {
        Lanes<E> other = load(dy + at * COUNT);
        const Lanes<E> x_here = load(x + at * COUNT);
        weigh<E>(other, x_here, load(weight + at * COUNT));
        Lanes<E> sum = gradient<E>(other, x_here, r, along);
        if (has_residual) {
            add<E>(sum, load(residual + at * COUNT));
        }
        store(dx + at * COUNT, sum);
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void rms_norm_forward_##E(                                                                   \
        const E* x, const E* weight, E* y, f32* inverse_rms, u32 width, f32 epsilon) {                                 \
        forward<E>(x, weight, y, inverse_rms, width, epsilon);                                                         \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_backward_##E(                                                                  \
        const E* dy, const E* x, const f32* inverse_rms, const E* weight, const E* residual, E* dx, u32 width) {       \
        backward<E>(dy, x, inverse_rms, weight, residual, dx, width);                                                  \
    }

KERNELS(f32)
KERNELS(bf16)
