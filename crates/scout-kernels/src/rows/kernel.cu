// Sums of two runs of elements, as long as they are: a grid of fixed size walks over them.
#include "prelude.cuh"

template <typename E>
__device__ __forceinline__ void add(const E* __restrict__ a, const E* __restrict__ b, E* __restrict__ sum, u64 len) {
    const u64 first = u64(blockIdx.x) * blockDim.x + threadIdx.x, step = u64(gridDim.x) * blockDim.x;
    u64 done = 0;
    if (is_aligned(a, 0) && is_aligned(b, 0) && is_aligned(sum, 0)) {
        constexpr u64 COUNT = Lanes<E>::COUNT;
#pragma unroll 4
        for (u64 at = first * COUNT; at + COUNT <= len; at += step * COUNT) {
            Lanes<E> x = load(a + at);
            const Lanes<E> y = load(b + at);
#pragma unroll
            for (int i = 0; i < int(COUNT); ++i) {
                x.at[i] += y.at[i];
            }
            store(sum + at, x);
        }
        done = len / COUNT * COUNT;
    }
    for (u64 at = done + first; at < len; at += step) {
        sum[at] = from_f32<E>(to_f32(a[at]) + to_f32(b[at]));
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void rows_add_##E(const E* a, const E* b, E* sum, u64 len) { add<E>(a, b, sum, len); }

KERNELS(f32)
KERNELS(bf16)
