// Sums of squares over a flat run, in f64, and how many of its numbers are not finite. Blocks of a fixed size have a
// sum each; then one block adds those up. Who adds what, and in which order, depends on the length of the run alone.
#include "prelude.cuh"

// Elements that one block of threads adds up, as on the host.
constexpr u32 BLOCK = 16384;
constexpr u32 THREADS = 256;
constexpr u32 LAST_THREADS = 1024;
constexpr u32 COUNT = 4;

struct Found {
    double squares;
    u64 num_not_finite;
};

// In a fixed order, for the first thread.
__device__ __forceinline__ Found found_by_block(Found found) {
    __shared__ double squares[32];
    __shared__ u64 not_finite[32];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        found.squares += __shfl_xor_sync(0xffffffffu, found.squares, distance);
        found.num_not_finite += __shfl_xor_sync(0xffffffffu, found.num_not_finite, distance);
    }
    if (threadIdx.x % 32 == 0) {
        squares[threadIdx.x / 32] = found.squares;
        not_finite[threadIdx.x / 32] = found.num_not_finite;
    }
    __syncthreads();
    for (u32 warp = 1; threadIdx.x == 0 && warp < blockDim.x / 32; ++warp) {
        found.squares += squares[warp];
        found.num_not_finite += not_finite[warp];
    }
    return found;
}

__device__ __forceinline__ void add(Found& found, f32 value) {
    found.squares += double(value) * double(value);
    found.num_not_finite += (__float_as_uint(value) & 0x7f800000u) == 0x7f800000u;
}

extern "C" __global__ void __launch_bounds__(THREADS) norms_of_blocks(
    const f32* __restrict__ values, double* __restrict__ squares, u64* __restrict__ not_finite, u64 len) {
    const bool aligned = is_aligned(values, 0);
    const u64 start = u64(blockIdx.x) * BLOCK;
    Found found = {0.0, 0};
#pragma unroll 4
    for (u32 i = threadIdx.x * COUNT; i < BLOCK; i += THREADS * COUNT) {
        const u64 at = start + i;
        if (aligned && at + COUNT <= len) {
            const Lanes<f32> x = load(values + at);
#pragma unroll
            for (u32 lane = 0; lane < COUNT; ++lane) {
                add(found, x.at[lane]);
            }
        } else {
            for (u64 one = at; one < at + COUNT && one < len; ++one) {
                add(found, values[one]);
            }
        }
    }
    found = found_by_block(found);
    if (threadIdx.x == 0) {
        squares[blockIdx.x] = found.squares;
        not_finite[blockIdx.x] = found.num_not_finite;
    }
}

// `result` is the sum and, behind it, the number.
extern "C" __global__ void __launch_bounds__(LAST_THREADS) norms_of_all(
    const double* __restrict__ squares, const u64* __restrict__ not_finite, u64* __restrict__ result, u32 num_blocks) {
    Found found = {0.0, 0};
    for (u32 i = threadIdx.x; i < num_blocks; i += LAST_THREADS) {
        found.squares += squares[i];
        found.num_not_finite += not_finite[i];
    }
    found = found_by_block(found);
    if (threadIdx.x == 0) {
        result[0] = u64(__double_as_longlong(found.squares));
        result[1] = found.num_not_finite;
    }
}
