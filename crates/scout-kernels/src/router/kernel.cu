// Top-1 routing: the choice, a stable counting sort by expert, moves between token order and expert order, gradients.
// Tokens are cut into tiles of one block; counts of whole numbers are the only thing that atomics add up.
#include "prelude.cuh"

constexpr u32 TILE = 256, WARPS = TILE / 32;
constexpr u32 NO_EXPERT = 0xffffffffu;
// Vectors of a row that a thread keeps between the score's gradient and its use.
constexpr int KEPT = 2;

extern __shared__ u32 shared[];

// The expert of each token of a tile with its score, and how many tokens of the tile each expert gets. A token that was
// given an expert which does not exist goes to the first one with a score that is not a number.
extern "C" __global__ void router_choose(
    const f32* __restrict__ logits, const u32* __restrict__ given, u32* __restrict__ experts, f32* __restrict__ scores,
    u32* __restrict__ counts, u32 num_tokens, u32 num_experts) {
    for (u32 e = threadIdx.x; e < num_experts; e += TILE) {
        shared[e] = 0;
    }
    __syncthreads();
    const u64 token = u64(blockIdx.x) * TILE + threadIdx.x;
    if (token < num_tokens) {
        logits += token * num_experts;
        u32 expert = 0;
        f32 best = logits[0];
        if (given != nullptr) {
            expert = given[token];
            best = expert < num_experts ? logits[expert] : not_a_number();
            expert = expert < num_experts ? expert : 0;
        } else {
#pragma unroll 8
            for (u32 e = 1; e < num_experts; ++e) {
                const f32 logit = logits[e];
                if (logit > best || (isnan(logit) && !isnan(best))) {
                    best = logit;
                    expert = e;
                }
            }
        }
        experts[token] = expert;
        scores[token] = 1.0f / (1.0f + expf(-best));
        atomicAdd(&shared[expert], 1u);
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < num_experts; e += TILE) {
        counts[u64(blockIdx.x) * num_experts + e] = shared[e];
    }
}

// The sorted position of each token: behind all tokens of smaller experts, those of its own in earlier tiles, in
// earlier warps of the tile, and in earlier threads of the warp.
extern "C" __global__ void router_sort(
    const u32* __restrict__ experts, const u32* __restrict__ counts, u32* __restrict__ positions,
    u32* __restrict__ order, u32* __restrict__ offsets, u32 num_tokens, u32 num_experts) {
    u32* offset = shared;
    u32* before = offset + num_experts + 1;
    u32* of_warp = before + num_experts;
    for (u32 i = threadIdx.x; i < (2 + WARPS) * num_experts + 1; i += TILE) {
        shared[i] = 0;
    }
    __syncthreads();
    const u64 num_counts = u64(gridDim.x) * num_experts;
#pragma unroll 4
    for (u64 i = threadIdx.x; i < num_counts; i += TILE) {
        const u32 tile = u32(i / num_experts), expert = u32(i % num_experts), count = counts[i];
        if (count > 0) {
            atomicAdd(&offset[expert], count);
            if (tile < blockIdx.x) {
                atomicAdd(&before[expert], count);
            }
        }
    }
    const u64 token = u64(blockIdx.x) * TILE + threadIdx.x;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 expert = token < num_tokens ? experts[token] : NO_EXPERT;
    const u32 peers = __match_any_sync(0xffffffffu, expert);
    const u32 rank = __popc(peers & ((1u << lane) - 1));
    if (expert != NO_EXPERT && rank == 0) {
        of_warp[warp * num_experts + expert] = __popc(peers);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 sum = 0;
        for (u32 e = 0; e <= num_experts; ++e) {
            const u32 count = offset[e];
            offset[e] = sum;
            sum += count;
        }
    }
    __syncthreads();
    if (expert != NO_EXPERT) {
        u32 position = offset[expert] + before[expert] + rank;
        for (u32 w = 0; w < warp; ++w) {
            position += of_warp[w * num_experts + expert];
        }
        positions[token] = position;
        order[position] = u32(token);
    }
    if (blockIdx.x == 0) {
        for (u32 e = threadIdx.x; e <= num_experts; e += TILE) {
            offsets[e] = offset[e];
        }
    }
}

// Block `t` moves token `t` to its sorted position.
template <typename E>
__device__ __forceinline__ void gather_scaled(
    const E* __restrict__ x, const f32* __restrict__ scores, const u32* __restrict__ positions, E* __restrict__ u,
    u32 width) {
    const u32 position = positions[blockIdx.x];
    const f32 score = scores[blockIdx.x];
    if (position >= gridDim.x) {
        return;
    }
    x += u64(blockIdx.x) * width;
    u += u64(position) * width;
    for_each_part<E>(width, is_aligned(x, 0) && is_aligned(u, 0), [&](auto count, u32 at) {
        constexpr int COUNT = decltype(count)::VALUE;
        Part<E, COUNT> part = load_part<COUNT>(x + at);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            part.at[i] *= score;
        }
        store_part<COUNT>(u + at, part);
    });
}

// Block `t` makes row `t` of the sum, out of a row that is found by its sorted position.
template <typename E>
__device__ __forceinline__ void combine(
    const E* __restrict__ routed, const u32* __restrict__ positions, const E* __restrict__ shared_rows,
    const E* __restrict__ residual, E* __restrict__ y, u32 width) {
    const u32 position = positions[blockIdx.x];
    if (position >= gridDim.x) {
        return;
    }
    const u64 start = u64(blockIdx.x) * width;
    routed += u64(position) * width;
    shared_rows += start;
    y += start;
    const bool has_residual = residual != nullptr;
    residual += has_residual ? start : 0;
    const bool aligned = is_aligned(routed, 0) && is_aligned(shared_rows, 0) && is_aligned(residual, 0);
    for_each_part<E>(width, aligned && is_aligned(y, 0), [&](auto count, u32 at) {
        constexpr int COUNT = decltype(count)::VALUE;
        Part<E, COUNT> sum = load_part<COUNT>(shared_rows + at);
        const Part<E, COUNT> of_expert = load_part<COUNT>(routed + at);
        Part<E, COUNT> rest = {};
        if (has_residual) {
            rest = load_part<COUNT>(residual + at);
        }
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            sum.at[i] = rest.at[i] + (sum.at[i] + of_expert.at[i]);
        }
        store_part<COUNT>(y + at, sum);
    });
}

template <typename E>
__device__ __forceinline__ f32 dot(const Lanes<E>& a, const Lanes<E>& b) {
    f32 sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        sum += a.at[i] * b.at[i];
    }
    return sum;
}

template <typename E>
__device__ __forceinline__ Lanes<E> gradient(
    const Lanes<E>& other, f32 score, const Lanes<E>& du, f32 dz, const Lanes<E>& weight) {
    Lanes<E> dx;
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        dx.at[i] = other.at[i] + score * du.at[i] + dz * weight.at[i];
    }
    return dx;
}

// Block `t` works on token `t`: dz = ⟨x, du⟩·s·(1 − s), then dx = other + s·du + dz·weight[e].
template <typename E>
__device__ __forceinline__ void backward(
    const E* __restrict__ du, const E* __restrict__ x, const u32* __restrict__ positions,
    const u32* __restrict__ experts, const f32* __restrict__ scores, const E* __restrict__ weight,
    const E* __restrict__ other, E* __restrict__ dx, f32* __restrict__ dlogit, u32 width, u32 num_experts) {
    const u32 position = positions[blockIdx.x], expert = experts[blockIdx.x];
    const f32 score = scores[blockIdx.x];
    if (position >= gridDim.x || expert >= num_experts) {
        return;
    }
    const u64 start = u64(blockIdx.x) * width;
    du += u64(position) * width;
    weight += u64(expert) * width;
    x += start;
    other += start;
    dx += start;
    const u32 step = blockDim.x;
    f32 sum = 0.0f;
    const bool aligned = is_aligned(du, width) && is_aligned(x, 0) && is_aligned(weight, 0);
    if (!aligned || !is_aligned(other, 0) || !is_aligned(dx, 0)) {
        for (u32 i = threadIdx.x; i < width; i += step) {
            sum += to_f32(x[i]) * to_f32(du[i]);
        }
        const f32 dz = sum_of_block(sum) * (score * (1.0f - score));
        for (u32 i = threadIdx.x; i < width; i += step) {
            dx[i] = from_f32<E>(to_f32(other[i]) + score * to_f32(du[i]) + dz * to_f32(weight[i]));
        }
        if (threadIdx.x == 0) {
            dlogit[blockIdx.x] = dz;
        }
        return;
    }
    constexpr u32 COUNT = Lanes<E>::COUNT;
    const u32 num_vectors = width / COUNT;
    Packed<E> kept_du[KEPT] = {}, kept_x[KEPT] = {}, kept_other[KEPT] = {};
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const u32 at = threadIdx.x + i * step;
        if (at < num_vectors) {
            kept_du[i] = load_packed(du + at * COUNT);
            kept_x[i] = load_packed(x + at * COUNT);
            kept_other[i] = load_packed(other + at * COUNT);
        }
    }
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        sum += dot<E>(unpack(kept_x[i]), unpack(kept_du[i]));
    }
    for (u32 at = threadIdx.x + KEPT * step; at < num_vectors; at += step) {
        sum += dot<E>(load(x + at * COUNT), load(du + at * COUNT));
    }
    const f32 dz = sum_of_block(sum) * (score * (1.0f - score));
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const u32 at = threadIdx.x + i * step;
        if (at < num_vectors) {
            const Lanes<E> w = load(weight + at * COUNT);
            store(dx + at * COUNT, gradient<E>(unpack(kept_other[i]), score, unpack(kept_du[i]), dz, w));
        }
    }
    for (u32 at = threadIdx.x + KEPT * step; at < num_vectors; at += step) {
        const Lanes<E> o = load(other + at * COUNT), d = load(du + at * COUNT), w = load(weight + at * COUNT);
        store(dx + at * COUNT, gradient<E>(o, score, d, dz, w));
    }
    if (threadIdx.x == 0) {
        dlogit[blockIdx.x] = dz;
    }
}

// Each expert's tokens are cut into as many pieces as the grid is deep. Block (c, e, p) sums dz·x over piece `p` of
// expert `e` for its columns, in f64.
template <typename E>
__device__ __forceinline__ void sum_pieces(
    const f32* __restrict__ dlogit, const E* __restrict__ x, const u32* __restrict__ order,
    const u32* __restrict__ offsets, f32* __restrict__ pieces, u32 width) {
    const u32 expert = blockIdx.y, first = offsets[expert], last = offsets[expert + 1];
    const u32 each = (last - first + gridDim.z - 1) / gridDim.z;
    const u32 begin = min(last, first + blockIdx.z * each), end = min(last, begin + each);
    pieces += (u64(blockIdx.z) * gridDim.y + expert) * width;
    const bool aligned = is_aligned(x, width);
    constexpr u32 COUNT = Lanes<E>::COUNT;
    const u32 column = (blockIdx.x * blockDim.x + threadIdx.x) * COUNT;
    if (column >= width) {
        return;
    }
    const u32 count = min(COUNT, width - column);
    double sums[COUNT] = {};
#pragma unroll 8
    for (u32 at = begin; at < end; ++at) {
        const u32 token = order[at];
        const double dz = dlogit[token];
        const E* row = x + u64(token) * width + column;
        Lanes<E> lanes = {};
        if (aligned) {
            lanes = load(row);
        } else {
#pragma unroll
            for (u32 i = 0; i < COUNT; ++i) {
                lanes.at[i] = i < count ? to_f32(row[i]) : 0.0f;
            }
        }
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            sums[i] += dz * double(lanes.at[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
        if (i < count) {
            pieces[column + i] = f32(sums[i]);
        }
    }
}

// The sum of `num_pieces` runs of `len` numbers, in their order.
extern "C" __global__ void router_add_pieces(
    const f32* __restrict__ pieces, f32* __restrict__ dweight, u64 len, u32 num_pieces) {
    const u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= len) {
        return;
    }
    double sum = 0.0;
#pragma unroll 8
    for (u32 piece = 0; piece < num_pieces; ++piece) {
        sum += pieces[piece * len + at];
    }
    dweight[at] = f32(sum);
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void router_gather_scaled_##E(                                                               \
        const E* __restrict__ x, const f32* __restrict__ scores, const u32* __restrict__ positions,                    \
        E* __restrict__ u, u32 width) {                                                                                \
        gather_scaled<E>(x, scores, positions, u, width);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void router_combine_##E(                                                                     \
        const E* __restrict__ routed, const u32* __restrict__ positions, const E* __restrict__ shared_rows,            \
        const E* __restrict__ residual, E* __restrict__ y, u32 width) {                                                \
        combine<E>(routed, positions, shared_rows, residual, y, width);                                                \
    }                                                                                                                  \
    extern "C" __global__ void router_backward_##E(                                                                    \
        const E* du, const E* x, const u32* positions, const u32* experts, const f32* scores, const E* weight,         \
        const E* other, E* dx, f32* dlogit, u32 width, u32 num_experts) {                                              \
        backward<E>(du, x, positions, experts, scores, weight, other, dx, dlogit, width, num_experts);                 \
    }                                                                                                                  \
    extern "C" __global__ void router_sum_pieces_##E(                                                                  \
        const f32* dlogit, const E* x, const u32* order, const u32* offsets, f32* pieces, u32 width) {                 \
        sum_pieces<E>(dlogit, x, order, offsets, pieces, width);                                                       \
    }

KERNELS(f32)
KERNELS(bf16)
