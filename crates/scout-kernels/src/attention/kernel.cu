// Attention over packed segments by plain multiplications and additions, in f32: no product is rounded to fewer bits on
// the way. A block has a tile of 32 tokens of one head, and walks over the tiles of its segment in order, so every sum
// has one order. Scores are made in shared memory and never leave it. Heads narrower than a tile's columns are filled
// up with zeros.
// Local memory: 48 bytes, because the assembler would rather have more blocks at once than all values in registers.
#include "prelude.cuh"

// Tokens of a tile, as on the host.
constexpr int ROWS = 32;
// Threads stand in a square; each has every `SIDE`th row and column of a tile.
constexpr int SIDE = 16;
constexpr int THREADS = SIDE * SIDE;
constexpr int EACH = ROWS / SIDE;
// Rows of a tile begin at different banks, and at multiples of 16 bytes.
constexpr int GAP = 4;
// Rows of a square of scores likewise, but are read one element at a time.
constexpr int SQUARE_ROW = ROWS + 1;

extern __shared__ uint4 shared_memory[];

struct Shape {
    u32 num_query, num_kv, size;
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

__device__ __forceinline__ u32 fewer(u32 a, u32 b) { return a < b ? a : b; }

// Where an element of a `[tokens, heads, size]` tensor is.
__device__ __forceinline__ u64 place(u32 token, u32 num_heads, u32 head, u32 size) {
    return (u64(token) * num_heads + head) * size;
}

// `count` tokens of one head, times `factor`; zeros where there are none.
template <int D>
__device__ __forceinline__ void load_tile(
    f32* tile, const f32* __restrict__ x, u32 first, u32 count, u32 num_heads, u32 head, u32 size, f32 factor) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * D; i += THREADS) {
        const u32 row = i / D, column = i % D;
        f32 value = 0.0f;
        if (row < count && column < size) {
            value = x[place(first + row, num_heads, head, size) + column] * factor;
        }
        tile[row * (D + GAP) + column] = value;
    }
}

// Products of rows of `a` with rows of `b`.
template <int D>
__device__ __forceinline__ void products(const f32* a, const f32* b, f32 (&y)[EACH][EACH]) {
    const u32 down = threadIdx.x / SIDE, across = threadIdx.x % SIDE;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            y[i][j] = 0.0f;
        }
    }
#pragma unroll 4
    for (int at = 0; at < D; at += 4) {
        float4 of_a[EACH], of_b[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            of_a[i] = *reinterpret_cast<const float4*>(a + (down + SIDE * i) * (D + GAP) + at);
            of_b[i] = *reinterpret_cast<const float4*>(b + (across + SIDE * i) * (D + GAP) + at);
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                y[i][j] += of_a[i].x * of_b[j].x;
                y[i][j] += of_a[i].y * of_b[j].y;
                y[i][j] += of_a[i].z * of_b[j].z;
                y[i][j] += of_a[i].w * of_b[j].w;
            }
        }
    }
}

// Adds `square · tile` to this thread's rows and columns.
template <int D>
__device__ __forceinline__ void add_products(const f32* square, const f32* tile, f32 (&sums)[EACH][D / SIDE]) {
    const u32 down = threadIdx.x / SIDE, across = threadIdx.x % SIDE;
#pragma unroll 4
    for (int at = 0; at < ROWS; ++at) {
        f32 factors[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            factors[i] = square[(down + SIDE * i) * SQUARE_ROW + at];
        }
#pragma unroll
        for (int c = 0; c < D / SIDE; ++c) {
            const f32 value = tile[at * (D + GAP) + across + SIDE * c];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                sums[i][c] += factors[i] * value;
            }
        }
    }
}

template <int D>
__device__ __forceinline__ void clear(f32 (&sums)[EACH][D / SIDE]) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int c = 0; c < D / SIDE; ++c) {
            sums[i][c] = 0.0f;
        }
    }
}

// Writes this thread's part of a row of one head.
template <int D>
__device__ __forceinline__ void store_row(f32* row, const f32 (&values)[D / SIDE], u32 size, f32 factor) {
#pragma unroll
    for (int c = 0; c < D / SIDE; ++c) {
        const u32 column = threadIdx.x % SIDE + SIDE * c;
        if (column < size) {
            row[column] = values[c] * factor;
        }
    }
}

// Over the threads that share a row: half of a warp.
__device__ __forceinline__ f32 sum_of_row(f32 value) {
#pragma unroll
    for (int distance = SIDE / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

__device__ __forceinline__ f32 max_of_row(f32 value) {
#pragma unroll
    for (int distance = SIDE / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

__device__ __forceinline__ f32 minus_infinity() { return __uint_as_float(0xff800000u); }

template <int D>
__device__ __forceinline__ void forward(
    const f32* __restrict__ q, const f32* __restrict__ k, const f32* __restrict__ v, const uint4* __restrict__ tiles,
    f32* __restrict__ context, f32* __restrict__ log_sum_exp, Shape shape) {
    f32* const q_tile = reinterpret_cast<f32*>(shared_memory);
    f32* const k_tile = q_tile + ROWS * (D + GAP);
    f32* const v_tile = k_tile + ROWS * (D + GAP);
    f32* const square = v_tile + ROWS * (D + GAP);
    const Tile tile = tile_at(tiles, blockIdx.x);
    const u32 count = tile.end - tile.first, head = blockIdx.y, kv_head = head / (shape.num_query / shape.num_kv);
    const u32 down = threadIdx.x / SIDE, across = threadIdx.x % SIDE;
    load_tile<D>(q_tile, q, tile.first, count, shape.num_query, head, shape.size, shape.scale);
    f32 largest[EACH], sum[EACH], sums[EACH][D / SIDE];
    clear<D>(sums);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        largest[i] = minus_infinity();
        sum[i] = 0.0f;
    }
    for (u32 key = tile.segment_first; key < tile.end; key += ROWS) {
        const u32 num_keys = fewer(ROWS, tile.end - key);
        __syncthreads();
        load_tile<D>(k_tile, k, key, num_keys, shape.num_kv, kv_head, shape.size, 1.0f);
        load_tile<D>(v_tile, v, key, num_keys, shape.num_kv, kv_head, shape.size, 1.0f);
        __syncthreads();
        f32 scores[EACH][EACH];
        products<D>(q_tile, k_tile, scores);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            // Tiles of keys begin where tiles of queries do, so every row sees at least the first key of each.
            const u32 row = down + SIDE * i, token = tile.first + row;
            f32 largest_here = minus_infinity();
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const u32 column = across + SIDE * j;
                if (column >= num_keys || key + column > token) {
                    scores[i][j] = minus_infinity();
                }
                largest_here = fmaxf(largest_here, scores[i][j]);
            }
            largest_here = fmaxf(largest[i], max_of_row(largest_here));
            f32 sum_here = 0.0f;
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const f32 power = expf(scores[i][j] - largest_here);
                square[row * SQUARE_ROW + across + SIDE * j] = power;
                sum_here += power;
            }
            const f32 shrink = expf(largest[i] - largest_here);
            sum[i] = sum[i] * shrink + sum_of_row(sum_here);
            largest[i] = largest_here;
#pragma unroll
            for (int c = 0; c < D / SIDE; ++c) {
                sums[i][c] *= shrink;
            }
        }
        __syncthreads();
        add_products<D>(square, v_tile, sums);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const u32 row = down + SIDE * i;
        if (row < count) {
            const u64 at = place(tile.first + row, shape.num_query, head, 1);
            store_row<D>(context + at * shape.size, sums[i], shape.size, 1.0f / sum[i]);
            if (across == 0) {
                log_sum_exp[at] = largest[i] + logf(sum[i]);
            }
        }
    }
}

// The part of each row's gradient that lies along its result: a warp for each row.
__device__ __forceinline__ void along(
    const f32* __restrict__ dcontext, const f32* __restrict__ context, f32* __restrict__ along, u64 num_rows, u32 size) {
    const u64 row = u64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= num_rows) {
        return;
    }
    f32 sum = 0.0f;
    for (u32 i = threadIdx.x % 32; i < size; i += 32) {
        sum += dcontext[row * size + i] * context[row * size + i];
    }
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) {
        along[row] = sum;
    }
}

template <int D>
__device__ __forceinline__ void backward_q(
    const f32* __restrict__ dcontext, const f32* __restrict__ q, const f32* __restrict__ k, const f32* __restrict__ v,
    const f32* __restrict__ log_sum_exp, const f32* __restrict__ along, const uint4* __restrict__ tiles,
    f32* __restrict__ dq, Shape shape) {
    f32* const q_tile = reinterpret_cast<f32*>(shared_memory);
    f32* const d_tile = q_tile + ROWS * (D + GAP);
    f32* const k_tile = d_tile + ROWS * (D + GAP);
    f32* const v_tile = k_tile + ROWS * (D + GAP);
    f32* const square = v_tile + ROWS * (D + GAP);
    const Tile tile = tile_at(tiles, blockIdx.x);
    const u32 count = tile.end - tile.first, head = blockIdx.y, kv_head = head / (shape.num_query / shape.num_kv);
    const u32 down = threadIdx.x / SIDE, across = threadIdx.x % SIDE;
    load_tile<D>(q_tile, q, tile.first, count, shape.num_query, head, shape.size, shape.scale);
    load_tile<D>(d_tile, dcontext, tile.first, count, shape.num_query, head, shape.size, 1.0f);
    f32 log_sum[EACH], less[EACH], sums[EACH][D / SIDE];
    clear<D>(sums);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const u32 row = down + SIDE * i;
        const u64 at = place(tile.first + row, shape.num_query, head, 1);
        log_sum[i] = row < count ? log_sum_exp[at] : 0.0f;
        less[i] = row < count ? along[at] : 0.0f;
    }
    for (u32 key = tile.segment_first; key < tile.end; key += ROWS) {
        const u32 num_keys = fewer(ROWS, tile.end - key);
        __syncthreads();
        load_tile<D>(k_tile, k, key, num_keys, shape.num_kv, kv_head, shape.size, 1.0f);
        load_tile<D>(v_tile, v, key, num_keys, shape.num_kv, kv_head, shape.size, 1.0f);
        __syncthreads();
        f32 scores[EACH][EACH], dpowers[EACH][EACH];
        products<D>(q_tile, k_tile, scores);
        products<D>(d_tile, v_tile, dpowers);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const u32 row = down + SIDE * i;
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const u32 column = across + SIDE * j;
                const bool seen = row < count && column < num_keys && key + column <= tile.first + row;
                const f32 dscore = expf(scores[i][j] - log_sum[i]) * (dpowers[i][j] - less[i]);
                square[row * SQUARE_ROW + column] = seen ? dscore : 0.0f;
            }
        }
        __syncthreads();
        add_products<D>(square, k_tile, sums);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const u32 row = down + SIDE * i;
        if (row < count) {
            f32* const to = dq + place(tile.first + row, shape.num_query, head, shape.size);
            store_row<D>(to, sums[i], shape.size, shape.scale);
        }
    }
}

// A tile of keys of one key head: all queries behind it, of all heads that share it, in order.
template <int D>
__device__ __forceinline__ void backward_kv(
    const f32* __restrict__ dcontext, const f32* __restrict__ q, const f32* __restrict__ k, const f32* __restrict__ v,
    const f32* __restrict__ log_sum_exp, const f32* __restrict__ along, const uint4* __restrict__ tiles,
    f32* __restrict__ dk, f32* __restrict__ dv, Shape shape) {
    f32* const k_tile = reinterpret_cast<f32*>(shared_memory);
    f32* const v_tile = k_tile + ROWS * (D + GAP);
    f32* const q_tile = v_tile + ROWS * (D + GAP);
    f32* const d_tile = q_tile + ROWS * (D + GAP);
    f32* const square = d_tile + ROWS * (D + GAP);
    f32* const dsquare = square + ROWS * SQUARE_ROW;
    const Tile tile = tile_at(tiles, blockIdx.x);
    const u32 count = tile.end - tile.first, kv_head = blockIdx.y, group = shape.num_query / shape.num_kv;
    const u32 down = threadIdx.x / SIDE, across = threadIdx.x % SIDE;
    load_tile<D>(k_tile, k, tile.first, count, shape.num_kv, kv_head, shape.size, 1.0f);
    load_tile<D>(v_tile, v, tile.first, count, shape.num_kv, kv_head, shape.size, 1.0f);
    f32 dk_sums[EACH][D / SIDE], dv_sums[EACH][D / SIDE];
    clear<D>(dk_sums);
    clear<D>(dv_sums);
    for (u32 query = tile.first; query < tile.segment_end; query += ROWS) {
        const u32 num_queries = fewer(ROWS, tile.segment_end - query);
        for (u32 head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            __syncthreads();
            load_tile<D>(q_tile, q, query, num_queries, shape.num_query, head, shape.size, shape.scale);
            load_tile<D>(d_tile, dcontext, query, num_queries, shape.num_query, head, shape.size, 1.0f);
            __syncthreads();
            f32 scores[EACH][EACH], dpowers[EACH][EACH];
            products<D>(k_tile, q_tile, scores);
            products<D>(v_tile, d_tile, dpowers);
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const u32 column = across + SIDE * j;
                const u64 at = place(query + column, shape.num_query, head, 1);
                const f32 log_sum = column < num_queries ? log_sum_exp[at] : 0.0f;
                const f32 less = column < num_queries ? along[at] : 0.0f;
#pragma unroll
                for (int i = 0; i < EACH; ++i) {
                    const u32 row = down + SIDE * i;
                    const bool seen = row < count && column < num_queries && tile.first + row <= query + column;
                    const f32 power = seen ? expf(scores[i][j] - log_sum) : 0.0f;
                    square[row * SQUARE_ROW + column] = power;
                    dsquare[row * SQUARE_ROW + column] = seen ? power * (dpowers[i][j] - less) : 0.0f;
                }
            }
            __syncthreads();
            add_products<D>(square, d_tile, dv_sums);
            // The scale of the scores is in the queries already.
            add_products<D>(dsquare, q_tile, dk_sums);
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const u32 row = down + SIDE * i;
        if (row < count) {
            const u64 at = place(tile.first + row, shape.num_kv, kv_head, shape.size);
            store_row<D>(dk + at, dk_sums[i], shape.size, 1.0f);
            store_row<D>(dv + at, dv_sums[i], shape.size, 1.0f);
        }
    }
}

extern "C" __global__ void attention_along_f32(
    const f32* dcontext, const f32* context, f32* of_row, u64 num_rows, u32 size) {
    along(dcontext, context, of_row, num_rows, size);
}

#define SHAPE u32 num_query, u32 num_kv, u32 size, f32 scale
#define KERNELS(D)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_##D##_f32(                                 \
        const f32* q, const f32* k, const f32* v, const uint4* tiles, f32* context, f32* log_sum_exp, SHAPE) {         \
        forward<D>(q, k, v, tiles, context, log_sum_exp, {num_query, num_kv, size, scale});                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_##D##_f32(                              \
        const f32* dcontext, const f32* q, const f32* k, const f32* v, const f32* log_sum_exp, const f32* along,       \
        const uint4* tiles, f32* dq, SHAPE) {                                                                          \
        backward_q<D>(dcontext, q, k, v, log_sum_exp, along, tiles, dq, {num_query, num_kv, size, scale});             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_##D##_f32(                             \
        const f32* dcontext, const f32* q, const f32* k, const f32* v, const f32* log_sum_exp, const f32* along,       \
        const uint4* tiles, f32* dk, f32* dv, SHAPE) {                                                                 \
        backward_kv<D>(dcontext, q, k, v, log_sum_exp, along, tiles, dk, dv, {num_query, num_kv, size, scale});        \
    }

KERNELS(16)
KERNELS(64)
KERNELS(128)
