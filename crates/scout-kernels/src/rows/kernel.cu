// Rows moved by index: one block for each row of the result.
#include "prelude.cuh"

// No row of the source goes here; several do.
constexpr u32 NONE = 0, SEVERAL = 0xffffffffu;

template <typename E>
__device__ __forceinline__ void copy(const E* __restrict__ x, E* __restrict__ y, u32 width) {
    for_each_part<E>(width, is_aligned(x, 0) && is_aligned(y, 0), [&](auto count, u32 at) {
        constexpr int COUNT = decltype(count)::VALUE;
        store_part<COUNT>(y + at, load_part<COUNT>(x + at));
    });
}

template <typename E>
__device__ __forceinline__ void fill(E* __restrict__ y, u32 width, f32 value) {
    for_each_part<E>(width, is_aligned(y, 0), [&](auto count, u32 at) {
        constexpr int COUNT = decltype(count)::VALUE;
        Part<E, COUNT> part;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            part.at[i] = value;
        }
        store_part<COUNT>(y + at, part);
    });
}

template <typename E>
__device__ __forceinline__ void gather(
    const E* __restrict__ x, const u32* __restrict__ index, E* __restrict__ y, u32 width, u32 num_rows) {
    const u32 row = index[blockIdx.x];
    y += u64(blockIdx.x) * width;
    if (row < num_rows) {
        copy(x + u64(row) * width, y, width);
    } else {
        fill(y, width, not_a_number());
    }
}

// `source[row]` is one more than the row of `dx` that belongs there.
template <typename E>
__device__ __forceinline__ void scatter(
    const E* __restrict__ dx, const u32* __restrict__ source, E* __restrict__ y, u32 width) {
    const u32 from = source[blockIdx.x];
    y += u64(blockIdx.x) * width;
    if (from == NONE || from == SEVERAL) {
        fill(y, width, from == NONE ? 0.0f : not_a_number());
    } else {
        copy(dx + u64(from - 1) * width, y, width);
    }
}

// Turns an index of targets around. `source` begins as `NONE`; an index outside of `num_rows` has no place in it. Which
// of several rows comes first depends on chance, that there are several does not.
extern "C" __global__ void rows_turn_index(const u32* index, u32* source, u32 count, u32 num_rows) {
    const u64 row = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row < count && index[row] < num_rows && atomicCAS(&source[index[row]], NONE, u32(row) + 1) != NONE) {
        atomicExch(&source[index[row]], SEVERAL);
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void rows_gather_##E(                                                                        \
        const E* __restrict__ x, const u32* __restrict__ index, E* __restrict__ y, u32 width, u32 num_rows) {          \
        gather<E>(x, index, y, width, num_rows);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void rows_scatter_##E(                                                                       \
        const E* __restrict__ dx, const u32* __restrict__ source, E* __restrict__ y, u32 width) {                      \
        scatter<E>(dx, source, y, width);                                                                              \
    }

KERNELS(f32)
KERNELS(bf16)
