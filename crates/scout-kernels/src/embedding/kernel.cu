// The gradient of the embedding. Tokens of one id form a chain in the order of the batch; the first of each chain sums
// the rows of all of it, so that every sum has an order and every row of the result one writer.
#include "prelude.cuh"

constexpr u32 TILE = 256;
constexpr u32 NONE = 0xffffffffu;

// `next[t]` is the next token of the same id. `has_earlier` begins with zeros and becomes 1 where there is one before.
// Each block walks over the batch from its own tokens on, until all of them have found their successors.
extern "C" __global__ void embedding_chain(
    const u32* __restrict__ ids, u32* __restrict__ next, u32* __restrict__ has_earlier, u32 num_tokens) {
    __shared__ uint4 tile[TILE / 4];
    u32* of_tile = reinterpret_cast<u32*>(tile);
    const u64 token = u64(blockIdx.x) * TILE + threadIdx.x;
    bool searching = token < num_tokens;
    const u32 id = searching ? ids[token] : 0;
    u32 found = NONE;
    for (u64 start = u64(blockIdx.x) * TILE; start < num_tokens; start += TILE) {
        __syncthreads();
        if (start + threadIdx.x < num_tokens) {
            of_tile[threadIdx.x] = ids[start + threadIdx.x];
        }
        __syncthreads();
        const u32 len = u32(min(u64(TILE), num_tokens - start));
        if (searching) {
            // From behind, so that the first match is the last to be noted.
            for (u32 i = (len + 3) / 4; i-- > 0;) {
                const uint4 four = tile[i];
                const u32 each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int j = 3; j >= 0; --j) {
                    const u64 other = start + 4 * i + j;
                    if (each[j] == id && other > token && other < num_tokens) {
                        found = u32(other);
                    }
                }
            }
            searching = found == NONE;
        }
        if (!__syncthreads_or(searching)) {
            break;
        }
    }
    if (token < num_tokens) {
        next[token] = found;
        if (found != NONE) {
            has_earlier[found] = 1;
        }
    }
}

// Block `t` sums the chain that begins with token `t`, if one does, in f64. `dweight` begins with zeros.
template <typename E>
__device__ __forceinline__ void weight_gradient(
    const E* __restrict__ dx, const u32* __restrict__ ids, const u32* __restrict__ next,
    const u32* __restrict__ has_earlier, f32* __restrict__ dweight, u32 width, u32 vocabulary) {
    const u32 first = blockIdx.x, id = ids[first];
    if (has_earlier[first] != 0 || id >= vocabulary) {
        return;
    }
    dweight += u64(id) * width;
    for_each_part<E>(width, is_aligned(dx, width), [&](auto count, u32 at) {
        constexpr int COUNT = decltype(count)::VALUE;
        double sums[COUNT] = {};
        Part<E, COUNT> part = load_part<COUNT>(dx + u64(first) * width + at);
        // The next row is on its way while this one is added.
        for (u32 token = next[first]; token != NONE; token = next[token]) {
            const Part<E, COUNT> coming = load_part<COUNT>(dx + u64(token) * width + at);
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                sums[i] += part.at[i];
            }
            part = coming;
        }
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            dweight[at + i] = f32(sums[i] + part.at[i]);
        }
    });
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void embedding_weight_gradient_##E(                                                          \
        const E* __restrict__ dx, const u32* __restrict__ ids, const u32* __restrict__ next,                           \
        const u32* __restrict__ has_earlier, f32* __restrict__ dweight, u32 width, u32 vocabulary) {                   \
        weight_gradient<E>(dx, ids, next, has_earlier, dweight, width, vocabulary);                                    \
    }

KERNELS(f32)
KERNELS(bf16)
