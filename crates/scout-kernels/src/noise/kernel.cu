// Noise: every element is a pure function of the seed and its index, the same on the host and on the GPU.
#include "prelude.cuh"

__device__ __forceinline__ u64 hash(u64 seed, u64 index) {
    u64 z = seed * 0xd1342543de82ef95ull + ((index + 1) << 7);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        z = (z ^ (z >> 29)) * 0xff51afd7ed558ccdull;
    }
    return z ^ (z >> 32);
}

template <typename E>
__device__ __forceinline__ void fill(E* __restrict__ y, u64 len, u64 seed, f32 scale) {
    const u64 step = u64(gridDim.x) * blockDim.x;
    for (u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x; at < len; at += step) {
        // The 24 upper bits as a number from -1 to 1; the sum is exact, so fusing it changes nothing.
        const f32 value = f32(hash(seed, at) >> 40) * (1.0f / 8388608.0f) - 1.0f;
        y[at] = from_f32<E>(value * scale);
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void noise_fill_##E(E* y, u64 len, u64 seed, f32 scale) { fill<E>(y, len, seed, scale); }

KERNELS(f32)
KERNELS(bf16)
