// Attention over packed segments on matrix units, in bf16 with sums in f32: for what cuDNN does not take. A block has a
// tile of tokens of one head, and each of its warps some of the tile's rows, for which it walks over the tiles of the
// segment in order, so every sum has one order. The next tile is on its way while one is worked on. Scores never leave
// registers: what one product leaves there is what the next one takes as its left factor. Heads narrower than a tile's
// columns are filled up with zeros.
//
// Only what a token may not see is hidden, keys behind it; what lies behind a segment's end is behind all of its tokens.
// Rows of tiles without a token are zeros, and what is made of them is not written.
#include "squares.cuh"

constexpr u32 WARPS = 4;
constexpr u32 THREADS = 32 * WARPS;
// Tokens of a tile, as on the host: of queries, 32 for each warp; of keys, 16 for each warp.
constexpr u32 QUERIES = 128;
constexpr u32 KEYS = 64;
// Keys that are looked at together where queries have 32 rows in a warp and two scores are kept of each pair.
constexpr u32 FEW_KEYS = 32;
constexpr f32 LOG2_E = 1.44269504f;

// Tiles are told apart by the higher bits of an address alone.
extern __shared__ __align__(1024) u8 shared_memory[];

struct Shape {
    u32 num_tokens, num_query, num_kv, size;
    f32 scale;
};

// First token and end of a tile, beginning and end of its segment.
struct Tile {
    u32 first, end, segment_first, segment_end;
};

__device__ __forceinline__ Tile tile_at(const uint4* tiles, u32 index) {
    const uint4 tile = tiles[index];
    return {tile.x, tile.y, tile.z, tile.w};
}

// One head of a `[tokens, num_heads, size]` tensor.
struct Head {
    u32 num_heads, head, size;
    bool aligned;

    __device__ __forceinline__ u64 place(u32 token) const { return (u64(token) * num_heads + head) * size; }
};

__device__ __forceinline__ u32 rows_from(u32 first, u32 end) { return first < end ? end - first : 0; }

__device__ __forceinline__ u32 lane() { return threadIdx.x % 32; }

__device__ __forceinline__ u32 warp() { return threadIdx.x / 32; }

__device__ __forceinline__ f32 minus_infinity() { return __uint_as_float(0xff800000u); }

// 2 to the power of `x`; 0 for minus infinity.
__device__ __forceinline__ f32 power_of_two(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ void copy_8(u32 to, const void* from, bool is_there) {
    const u32 bytes = is_there ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Waits for all that this thread began to copy.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ void store_shared(u32 to, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void store_shared(u32 to, uint4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

__device__ __forceinline__ uint4 load_shared(u32 from) {
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(from)
                 : "memory");
    return value;
}

// Where a piece of 8 elements is in a tile. Pieces change places within their row, so that the same piece of 8 rows, from
// a multiple of 8 on, lies at 8 different groups of banks.
template <int D>
__device__ __forceinline__ u32 place(u32 row, u32 piece) {
    const u32 swap = D >= 64 ? row % 8 : row / 4 % 2;
    return row * (2 * D) + (piece ^ swap) * 16;
}

// What this lane names of 16 rows and 2 pieces, so that squares come as the left factor has them, or as a right factor
// has them whose rows these are. Another pair of pieces is found by turning bits of the address: `at ^ 32 * pair`.
template <int D>
__device__ __forceinline__ u32 place_down() {
    return place<D>(lane() % 16, lane() / 16);
}

// The same for a right factor whose columns these rows are.
template <int D>
__device__ __forceinline__ u32 place_across() {
    return place<D>(lane() / 16 * 8 + lane() % 8, lane() / 8 % 2);
}

// Begins to copy `count` rows of a head from `token` on, then zeros.
template <int D, u32 ROWS>
__device__ __forceinline__ void load_tile(u32 tile, const bf16* x, const Head& head, u32 token, u32 count) {
    constexpr u32 PIECES = D / 8, STEP = THREADS / PIECES;
    const u32 piece = threadIdx.x % PIECES, first = threadIdx.x / PIECES;
    if (head.aligned) {
        const bf16* const from = x + head.place(token + first) + piece * 8;
        const u32 to = tile + place<D>(first, piece), end = piece * 8 < head.size ? count : 0;
#pragma unroll
        for (u32 row = 0; row < ROWS; row += STEP) {
            if (ROWS % STEP == 0 || first + row < ROWS) {
                // Rows a step apart are equal modulo 8.
                copy_16(to + row * (2 * D), from + u64(row) * (head.num_heads * head.size), first + row < end);
            }
        }
        return;
    }
#pragma unroll 1
    for (u32 row = first; row < ROWS; row += STEP) {
        u32 words[4] = {0, 0, 0, 0};
        const bf16* const from = x + head.place(token + row);
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            if (row < count && piece * 8 + i < head.size) {
                words[i / 2] |= u32(from[piece * 8 + i].bits) << (i % 2 * 16);
            }
        }
        store_shared(tile + place<D>(row, piece), make_uint4(words[0], words[1], words[2], words[3]));
    }
}

// Writes this warp's rows of a head from `token` on, of which there are `count`. They pass through rows of a tile that
// no other warp reads any more.
template <int D, int M>
__device__ __forceinline__ void store_rows(
    bf16* x, const Head& head, u32 token, u32 count, const f32 (&y)[M][D / 8][4], u32 rows) {
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const u32 at = rows + place<D>(16 * m + lane() / 4, n) + lane() % 4 * 4;
            store_shared(at, pack(y[m][n][0], y[m][n][1]));
            store_shared(at + 8 * 2 * D, pack(y[m][n][2], y[m][n][3]));
        }
    }
    __syncwarp();
    constexpr u32 PIECES = D / 8;
#pragma unroll 4
    for (u32 i = lane(); i < 16 * M * PIECES; i += 32) {
        const u32 row = i / PIECES, first = i % PIECES * 8;
        if (row >= count || first >= head.size) {
            continue;
        }
        const uint4 raw = load_shared(rows + place<D>(row, i % PIECES));
        bf16* const at = x + head.place(token + row) + first;
        if (head.aligned) {
            *reinterpret_cast<uint4*>(at) = raw;
            continue;
        }
        const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
            if (first + j < head.size) {
                at[j].bits = u16(words[j / 2] >> (j % 2 * 16));
            }
        }
    }
}

template <int M, int N>
__device__ __forceinline__ void clear(f32 (&y)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                y[m][n][i] = 0.0f;
            }
        }
    }
}

template <int M, int N>
__device__ __forceinline__ void scale_all(f32 (&y)[M][N][4], f32 factor) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                y[m][n][i] *= factor;
            }
        }
    }
}

// Products of `16 M` rows of one tile, named down, with `8 N` rows of another, named across.
template <int D, int M, int N>
__device__ __forceinline__ void products(f32 (&y)[M][N][4], u32 a, u32 b) {
    clear(y);
    // Half of the columns for 128: more is read ahead than there are registers for.
#pragma unroll 4
    for (u32 pair = 0; pair < D / 16; ++pair) {
        u32 of_a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            load_squares(of_a[m], (a ^ 32 * pair) + m * 16 * 2 * D);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 of_b[4];
            load_squares(of_b, (b ^ 32 * pair) + n * 8 * 2 * D);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                multiply(y[m][n], of_a[m], of_b[0], of_b[1]);
                multiply(y[m][n + 1], of_a[m], of_b[2], of_b[3]);
            }
        }
    }
}

// Adds `square · tile`, whose `8 N` rows are named down. The square is rounded.
template <int D, int M, int N>
__device__ __forceinline__ void add_products(f32 (&y)[M][D / 8][4], const f32 (&square)[M][N][4], u32 tile) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        u32 factors[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const f32(&left)[4] = square[m][n], (&right)[4] = square[m][n + 1];
            factors[m][0] = pack(left[0], left[1]);
            factors[m][1] = pack(left[2], left[3]);
            factors[m][2] = pack(right[0], right[1]);
            factors[m][3] = pack(right[2], right[3]);
        }
#pragma unroll
        for (u32 pair = 0; pair < D / 16; ++pair) {
            u32 of_tile[4];
            load_squares_across(of_tile, (tile ^ 32 * pair) + n * 8 * 2 * D);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                multiply(y[m][2 * pair], factors[m], of_tile[0], of_tile[1]);
                multiply(y[m][2 * pair + 1], factors[m], of_tile[2], of_tile[3]);
            }
        }
    }
}

// Hides from each query, a row, the keys behind it; the first query is `ahead` tokens ahead of the first key.
template <int M, int N>
__device__ __forceinline__ void hide_keys(f32 (&scores)[M][N][4], u32 ahead) {
    const int bound = int(ahead + lane() / 4) - int(lane() % 4 * 2);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (8 * n + i % 2 - 16 * m - i / 2 * 8 > bound) {
                    scores[m][n][i] = minus_infinity();
                }
            }
        }
    }
}

// Over the four lanes that share a row.
__device__ __forceinline__ f32 sum_of_row(f32 value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

__device__ __forceinline__ f32 max_of_row(f32 value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// Rows of a softmax under way: the score that is subtracted from all others, and this lane's part of the sum of powers.
template <int M>
struct Softmax {
    f32 base[M][2], sum[M][2];
};

// Makes powers of scores. `scale` is that of scores, which are not scaled yet, times that of powers of two; it is
// positive. What was summed up shrinks when a row's largest score has left its base far enough behind, which is seldom
// after the first tile; until then powers are at most 2 to the power of `FAR`.
template <int M, int N, int C>
__device__ __forceinline__ void soften(Softmax<M>& rows, f32 (&scores)[M][N][4], f32 (&sums)[M][C][4], f32 scale) {
    constexpr f32 FAR = 8.0f;
    f32 shrink[M][2];
    bool is_any_far = false;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            f32 largest = minus_infinity(), base = rows.base[m][half];
#pragma unroll
            for (int n = 0; n < N; ++n) {
                largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            }
            largest = max_of_row(largest);
            const bool is_far = (largest - base) * scale > FAR;
            shrink[m][half] = is_far ? power_of_two((base - largest) * scale) : 1.0f;
            base = is_far ? largest : base;
            is_any_far |= is_far;
            rows.base[m][half] = base;
            rows.sum[m][half] *= shrink[m][half];
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[m][n][i] = power_of_two(scores[m][n][i] * scale - base * scale);
                    rows.sum[m][half] += scores[m][n][i];
                }
            }
            // None is, as the largest power is at least 1. Asked before the branch, so that powers are made and summed
            // up there: the compiler would keep all of them to the end of the products that come next, and has no room.
            is_any_far |= rows.sum[m][half] == 0.0f;
        }
    }
    if (__any_sync(0xffffffffu, is_any_far)) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int c = 0; c < C; ++c) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[m][c][i] *= shrink[m][i / 2];
                }
            }
        }
    }
}

template <int D>
__device__ __forceinline__ void forward(
    const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
    const uint4* __restrict__ tiles, bf16* __restrict__ context, f32* __restrict__ log_sum_exp, const Shape& shape) {
    constexpr u32 ROW = 2 * D;
    // The last tiles of a segment have most to do, and come first.
    const u32 head = blockIdx.x % shape.num_query, num_tiles = gridDim.x / shape.num_query;
    const Tile tile = tile_at(tiles, num_tiles - 1 - blockIdx.x / shape.num_query);
    const u32 kv_head = head / (shape.num_query / shape.num_kv), size = shape.size;
    const bool aligned = is_aligned(q, size) && is_aligned(k, size) && is_aligned(v, size) && is_aligned(context, size);
    const Head of_query{shape.num_query, head, size, aligned}, of_key{shape.num_kv, kv_head, size, aligned};
    const u32 q_tile = shared_address(shared_memory), kv_tiles = q_tile + QUERIES * ROW, begin = tile.segment_first;
    load_tile<D, QUERIES>(q_tile, q, of_query, tile.first, tile.end - tile.first);
    load_tile<D, KEYS>(kv_tiles, k, of_key, begin, tile.end - begin);
    load_tile<D, KEYS>(kv_tiles + KEYS * ROW, v, of_key, begin, tile.end - begin);

    const u32 first = tile.first + 32 * warp(), q_rows = q_tile + 32 * warp() * ROW;
    const f32 scale = shape.scale * LOG2_E;
    f32 sums[2][D / 8][4];
    clear(sums);
    Softmax<2> rows;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        rows.base[i / 2][i % 2] = minus_infinity();
        rows.sum[i / 2][i % 2] = 0.0f;
    }
    u32 turn = 0;
    for (u32 key = begin; key < tile.end; key += KEYS) {
        wait_for_copies();
        __syncthreads();
        const u32 k_tile = kv_tiles + turn * (2 * KEYS * ROW), v_tile = k_tile + KEYS * ROW;
        turn ^= 1;
        if (key + KEYS < tile.end) {
            const u32 next = kv_tiles + turn * (2 * KEYS * ROW), count = tile.end - key - KEYS;
            load_tile<D, KEYS>(next, k, of_key, key + KEYS, count);
            load_tile<D, KEYS>(next + KEYS * ROW, v, of_key, key + KEYS, count);
        }
        // Tiles of keys begin where rows of warps do, so a warp's rows all see the first key, or none sees any.
        if (first >= tile.end || key > first) {
            continue;
        }
        f32 scores[2][KEYS / 8][4];
        products<D>(scores, q_rows + place_down<D>(), k_tile + place_across<D>());
        if (key + KEYS > first + 1) {
            hide_keys(scores, first - key);
        }
        soften(rows, scores, sums, scale);
        add_products<D>(sums, scores, v_tile + place_down<D>());
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 token = first + 8 * i + lane() / 4;
        const f32 sum = sum_of_row(rows.sum[i / 2][i % 2]), factor = 1.0f / sum;
#pragma unroll
        for (int c = 0; c < D / 8; ++c) {
            sums[i / 2][c][i % 2 * 2] *= factor;
            sums[i / 2][c][i % 2 * 2 + 1] *= factor;
        }
        if (token < tile.end && lane() % 4 == 0) {
            log_sum_exp[u64(token) * shape.num_query + head] = rows.base[i / 2][i % 2] * shape.scale + logf(sum);
        }
    }
    store_rows<D>(context, of_query, first, rows_from(first, tile.end), sums, q_rows);
}

// For each row `[nq, T]` of scores what the backward pass wants: its logarithm, in powers of two, and the part of its
// gradient that lies along its result. 16 threads for each row.
__device__ __forceinline__ void prepare(
    const bf16* __restrict__ dcontext, const bf16* __restrict__ context, const f32* __restrict__ log_sum_exp,
    float2* __restrict__ rows, u32 num_tokens, u32 num_query, u32 size) {
    constexpr u32 SHARE = 16;
    const u64 row = (u64(blockIdx.x) * THREADS + threadIdx.x) / SHARE, num_rows = u64(num_tokens) * num_query;
    const u32 part = threadIdx.x % SHARE;
    f32 along = 0.0f;
    if (row < num_rows) {
        const bf16 *const a = dcontext + row * size, *const b = context + row * size;
        if (is_aligned(dcontext, size) && is_aligned(context, size)) {
            for (u32 at = part * 8; at < size; at += SHARE * 8) {
                const Lanes<bf16> of_a = load(a + at), of_b = load(b + at);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    along += of_a.at[i] * of_b.at[i];
                }
            }
        } else {
            for (u32 at = part; at < size; at += SHARE) {
                along += to_f32(a[at]) * to_f32(b[at]);
            }
        }
    }
#pragma unroll
    for (int distance = SHARE / 2; distance > 0; distance /= 2) {
        along += __shfl_xor_sync(0xffffffffu, along, distance);
    }
    if (row < num_rows && part == 0) {
        rows[row % num_query * num_tokens + row / num_query] = make_float2(log_sum_exp[row] * LOG2_E, along);
    }
}

template <int D>
__device__ __forceinline__ void backward_q(
    const bf16* __restrict__ dcontext, const bf16* __restrict__ q, const bf16* __restrict__ k,
    const bf16* __restrict__ v, const float2* __restrict__ rows, const uint4* __restrict__ tiles,
    bf16* __restrict__ dq, const Shape& shape) {
    constexpr u32 ROW = 2 * D;
    const u32 head = blockIdx.x % shape.num_query, num_tiles = gridDim.x / shape.num_query;
    const Tile tile = tile_at(tiles, num_tiles - 1 - blockIdx.x / shape.num_query);
    const u32 kv_head = head / (shape.num_query / shape.num_kv), size = shape.size;
    const bool aligned = is_aligned(q, size) && is_aligned(dcontext, size) && is_aligned(k, size) &&
                         is_aligned(v, size) && is_aligned(dq, size);
    const Head of_query{shape.num_query, head, size, aligned}, of_key{shape.num_kv, kv_head, size, aligned};
    const u32 q_tile = shared_address(shared_memory), d_tile = q_tile + QUERIES * ROW;
    const u32 kv_tiles = d_tile + QUERIES * ROW, begin = tile.segment_first;
    load_tile<D, QUERIES>(q_tile, q, of_query, tile.first, tile.end - tile.first);
    load_tile<D, QUERIES>(d_tile, dcontext, of_query, tile.first, tile.end - tile.first);
    load_tile<D, FEW_KEYS>(kv_tiles, k, of_key, begin, tile.end - begin);
    load_tile<D, FEW_KEYS>(kv_tiles + FEW_KEYS * ROW, v, of_key, begin, tile.end - begin);

    const u32 first = tile.first + 32 * warp(), own_rows = 32 * warp() * ROW;
    const f32 scale = shape.scale * LOG2_E;
    f32 sums[2][D / 8][4];
    clear(sums);
    float2 of_row[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 token = first + 8 * i + lane() / 4;
        const bool is_there = token < tile.end;
        of_row[i / 2][i % 2] = is_there ? rows[u64(head) * shape.num_tokens + token] : make_float2(0.0f, 0.0f);
    }
    u32 turn = 0;
    for (u32 key = begin; key < tile.end; key += FEW_KEYS) {
        wait_for_copies();
        __syncthreads();
        const u32 k_tile = kv_tiles + turn * (2 * FEW_KEYS * ROW), v_tile = k_tile + FEW_KEYS * ROW;
        turn ^= 1;
        if (key + FEW_KEYS < tile.end) {
            const u32 next = kv_tiles + turn * (2 * FEW_KEYS * ROW), count = tile.end - key - FEW_KEYS;
            load_tile<D, FEW_KEYS>(next, k, of_key, key + FEW_KEYS, count);
            load_tile<D, FEW_KEYS>(next + FEW_KEYS * ROW, v, of_key, key + FEW_KEYS, count);
        }
        if (first >= tile.end || key > first) {
            continue;
        }
        f32 scores[2][FEW_KEYS / 8][4], dpowers[2][FEW_KEYS / 8][4];
        products<D>(scores, q_tile + own_rows + place_down<D>(), k_tile + place_across<D>());
        products<D>(dpowers, d_tile + own_rows + place_down<D>(), v_tile + place_across<D>());
        if (key == first) {
            hide_keys(scores, 0);
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < int(FEW_KEYS / 8); ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 row = of_row[m][i / 2];
                    const f32 power = power_of_two(scores[m][n][i] * scale - row.x);
                    scores[m][n][i] = power * (dpowers[m][n][i] - row.y);
                }
            }
        }
        add_products<D>(sums, scores, k_tile + place_down<D>());
    }
    scale_all(sums, shape.scale);
    store_rows<D>(dq, of_query, first, rows_from(first, tile.end), sums, q_tile + own_rows);
}

// A tile of queries behind a tile of keys, and what is known of their rows.
template <int D>
__device__ __forceinline__ void load_queries(
    u32 to, const bf16* q, const bf16* dcontext, const float2* rows, const Head& head, u32 query, u32 count,
    u32 num_tokens) {
    load_tile<D, KEYS>(to, q, head, query, count);
    load_tile<D, KEYS>(to + KEYS * 2 * D, dcontext, head, query, count);
    if (threadIdx.x < KEYS) {
        const float2* const from = rows + u64(head.head) * num_tokens + query + threadIdx.x;
        copy_8(to + 2 * KEYS * 2 * D + threadIdx.x * 8, from, threadIdx.x < count);
    }
}

// A tile of keys of one key head: all queries behind it, of all heads that share it, in order. Scores lie with keys
// as rows, queries as columns.
template <int D>
__device__ __forceinline__ void backward_kv(
    const bf16* __restrict__ dcontext, const bf16* __restrict__ q, const bf16* __restrict__ k,
    const bf16* __restrict__ v, const float2* __restrict__ rows, const uint4* __restrict__ tiles,
    bf16* __restrict__ dk, bf16* __restrict__ dv, const Shape& shape) {
    constexpr u32 ROW = 2 * D, STAGE = 2 * KEYS * ROW + KEYS * 8;
    const u32 kv_head = blockIdx.x % shape.num_kv, group = shape.num_query / shape.num_kv, size = shape.size;
    const Tile tile = tile_at(tiles, blockIdx.x / shape.num_kv);
    const bool aligned = is_aligned(q, size) && is_aligned(dcontext, size) && is_aligned(k, size) &&
                         is_aligned(v, size) && is_aligned(dk, size) && is_aligned(dv, size);
    const Head of_key{shape.num_kv, kv_head, size, aligned};
    Head of_query{shape.num_query, kv_head * group, size, aligned};
    const u32 k_tile = shared_address(shared_memory), v_tile = k_tile + KEYS * ROW, stages = v_tile + KEYS * ROW;
    load_tile<D, KEYS>(k_tile, k, of_key, tile.first, tile.end - tile.first);
    load_tile<D, KEYS>(v_tile, v, of_key, tile.first, tile.end - tile.first);
    u32 query = tile.first, turn = 0;
    load_queries<D>(stages, q, dcontext, rows, of_query, query, tile.segment_end - query, shape.num_tokens);

    const u32 own_rows = 16 * warp() * ROW, first = tile.first + 16 * warp();
    const f32 scale = shape.scale * LOG2_E;
    f32 dk_sums[1][D / 8][4], dv_sums[1][D / 8][4];
    clear(dk_sums);
    clear(dv_sums);
    while (of_query.head < (kv_head + 1) * group) {
        wait_for_copies();
        __syncthreads();
        const u32 q_tile = stages + turn * STAGE, d_tile = q_tile + KEYS * ROW, of_column = d_tile + KEYS * ROW;
        const bool is_diagonal = query == tile.first;
        turn ^= 1;
        query += KEYS;
        if (query >= tile.segment_end) {
            query = tile.first;
            ++of_query.head;
        }
        if (of_query.head < (kv_head + 1) * group) {
            const u32 next = stages + turn * STAGE, count = tile.segment_end - query;
            load_queries<D>(next, q, dcontext, rows, of_query, query, count, shape.num_tokens);
        }
        if (first >= tile.end) {
            continue;
        }
        f32 scores[1][KEYS / 8][4], dpowers[1][KEYS / 8][4];
        products<D>(scores, k_tile + own_rows + place_down<D>(), q_tile + place_across<D>());
        products<D>(dpowers, v_tile + own_rows + place_down<D>(), d_tile + place_across<D>());
        const int bound = is_diagonal ? int(16 * warp() + lane() / 4) - int(lane() % 4 * 2) : -int(KEYS);
#pragma unroll
        for (int n = 0; n < int(KEYS / 8); ++n) {
            const uint4 raw = load_shared(of_column + (8 * n + lane() % 4 * 2) * 8);
            const f32 log_sum[2] = {__uint_as_float(raw.x), __uint_as_float(raw.z)};
            const f32 along[2] = {__uint_as_float(raw.y), __uint_as_float(raw.w)};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                // A key is hidden from the queries before it.
                const bool is_seen = 8 * n + i % 2 - i / 2 * 8 >= bound;
                const f32 score = is_seen ? scores[0][n][i] * scale - log_sum[i % 2] : minus_infinity();
                const f32 power = power_of_two(score);
                scores[0][n][i] = power;
                dpowers[0][n][i] = power * (dpowers[0][n][i] - along[i % 2]);
            }
        }
        add_products<D>(dv_sums, scores, d_tile + place_down<D>());
        add_products<D>(dk_sums, dpowers, q_tile + place_down<D>());
    }
    scale_all(dk_sums, shape.scale);
    const u32 count = rows_from(first, tile.end);
    store_rows<D>(dk, of_key, first, count, dk_sums, k_tile + own_rows);
    store_rows<D>(dv, of_key, first, count, dv_sums, v_tile + own_rows);
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_prepare_bf16(
    const bf16* dcontext, const bf16* context, const f32* log_sum_exp, float2* rows, u32 num_tokens, u32 num_query,
    u32 size) {
    prepare(dcontext, context, log_sum_exp, rows, num_tokens, num_query, size);
}

#define SHAPE u32 num_tokens, u32 num_query, u32 num_kv, u32 size, f32 scale
#define KERNELS(D)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_##D##_bf16(                             \
        const bf16* q, const bf16* k, const bf16* v, const uint4* tiles, bf16* context, f32* log_sum_exp, SHAPE) {     \
        forward<D>(q, k, v, tiles, context, log_sum_exp, {num_tokens, num_query, num_kv, size, scale});                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_q_##D##_bf16(                          \
        const bf16* dcontext, const bf16* q, const bf16* k, const bf16* v, const float2* rows, const uint4* tiles,     \
        bf16* dq, SHAPE) {                                                                                             \
        backward_q<D>(dcontext, q, k, v, rows, tiles, dq, {num_tokens, num_query, num_kv, size, scale});               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_kv_##D##_bf16(                         \
        const bf16* dcontext, const bf16* q, const bf16* k, const bf16* v, const float2* rows, const uint4* tiles,     \
        bf16* dk, bf16* dv, SHAPE) {                                                                                   \
        backward_kv<D>(dcontext, q, k, v, rows, tiles, dk, dv, {num_tokens, num_query, num_kv, size, scale});          \
    }

KERNELS(16)
KERNELS(64)
KERNELS(128)
