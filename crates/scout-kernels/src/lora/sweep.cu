// What the way back through adapters takes out of the gradients of their outputs, in one sweep over each: its product
// with factor B, and that of its transpose with what factor A made of the input. The time is that of reading them, in
// bf16.
//
// Up to three adapters read one input; their gradients stand beside each other, in groups of columns. A block sweeps
// over some rows of 1024 columns, 16 rows at a time, of which several times as many are on their way. What a row's
// columns make of the first product, and a column's rows of the second, are parts of sums: a second kernel adds them
// up, always in the same order.
#include "squares.cuh"

// Of a tile.
constexpr u32 ROWS = 16, COLUMNS = 1024;
// Tiles in shared memory: one that is worked on, and those on their way.
constexpr u32 STAGES = 4;
constexpr u32 WARPS = 8, THREADS = 32 * WARPS;
// Elements of 16 bytes, which is what moves at once and what the matrix units take of a line.
constexpr u32 VECTOR = 8, VECTORS_OF_ROW = COLUMNS / VECTOR;
constexpr u32 BYTES_OF_ROW = COLUMNS * 2, BYTES_OF_TILE = ROWS * BYTES_OF_ROW;
// Of a warp: a share of the columns, for both products.
constexpr u32 COLUMNS_OF_WARP = COLUMNS / WARPS, STEPS = COLUMNS_OF_WARP / 16;

// Columns of the gradient of each adapter's output: element `[row, column]` of them lies `row * width + start + column`
// elements behind the gradient's address, and there are `count`; none behind the last adapter.
constexpr u32 MOST_ADAPTERS = 3;
struct Windows {
    u32 width[MOST_ADAPTERS], start[MOST_ADAPTERS], count[MOST_ADAPTERS];

    __device__ __forceinline__ u32 groups(u32 adapter) const { return (count[adapter] + COLUMNS - 1) / COLUMNS; }
};

extern __shared__ __align__(16) u8 shared[];

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than so many groups of this thread's copies are on their way.
template <u32 COUNT>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory");
}

// A warp's share of factor B, [count, rank], which it keeps: of each 16 columns of the gradient, those of each 8 of the
// rank.
template <u32 TILES>
struct Share {
    u32 of_step[STEPS][TILES][2];

    // Zeros behind `count`.
    __device__ __forceinline__ void load(const bf16* b, u32 first_column, u32 count) {
        const u32 lane = threadIdx.x % 32, r = lane / 4;
        const auto element = [&](u32 column, u32 r) {
            return column < count ? u32(b[u64(column) * 8 * TILES + r].bits) : 0;
        };
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
#pragma unroll
            for (u32 tile = 0; tile < TILES; ++tile) {
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    const u32 column = first_column + 16 * step + 8 * half + lane % 4 * 2, of_tile = 8 * tile + r;
                    of_step[step][tile][half] = element(column + 1, of_tile) << 16 | element(column, of_tile);
                }
            }
        }
    }
};

// A block's part of the sweep. The rank is `8 * TILES`.
template <u32 TILES>
struct Sweep {
    static constexpr u32 RANK = 8 * TILES;
    static constexpr u32 BYTES_OF_STAGE = BYTES_OF_TILE + ROWS * RANK * 2;
    // Of one tile's parts of the first product, of which each warp has one.
    static constexpr u32 PARTS = WARPS * ROWS * RANK;

    // Both from this adapter's first column on.
    const bf16 *dy, *narrow;
    u32 dy_width, narrow_width;
    u32 first_column, count, first_row, end_row;

    static __device__ __forceinline__ f32* parts(u32 tile) {
        return reinterpret_cast<f32*>(shared + STAGES * BYTES_OF_STAGE) + tile % 2 * PARTS;
    }

    static __device__ __forceinline__ u32 stage(u32 tile) {
        return shared_address(shared) + tile % STAGES * BYTES_OF_STAGE;
    }

    // Neighbouring lines of a column lie in other banks.
    static __device__ __forceinline__ u32 place(u32 stage, u32 row, u32 vector) {
        return stage + row * BYTES_OF_ROW + (vector ^ row % VECTOR) * 16;
    }

    // Where this warp's columns begin, in vectors.
    static __device__ __forceinline__ u32 first_vector() { return threadIdx.x / 32 * (COLUMNS_OF_WARP / VECTOR); }

    // Begins to read a tile, and the rows of `narrow` beside it.
    __device__ __forceinline__ void read(u32 tile) const {
        const u32 to = stage(tile), row = first_row + tile * ROWS;
        const u32 vector = threadIdx.x % VECTORS_OF_ROW, column = first_column + vector * VECTOR;
#pragma unroll
        for (u32 i = 0; i < ROWS; i += THREADS / VECTORS_OF_ROW) {
            const u32 here = i + threadIdx.x / VECTORS_OF_ROW;
            const bool exists = row + here < end_row && column < count;
            copy_16(place(to, here, vector), dy + (exists ? u64(row + here) * dy_width + column : 0), exists);
        }
        if (threadIdx.x < ROWS * TILES) {
            const u32 here = threadIdx.x / TILES, r = threadIdx.x % TILES * VECTOR;
            const bool exists = row + here < end_row;
            const bf16* from = narrow + (exists ? u64(row + here) * narrow_width + r : 0);
            copy_16(to + BYTES_OF_TILE + threadIdx.x * 16, from, exists);
        }
    }

    // What this warp's columns make of the first product.
    __device__ __forceinline__ void across(u32 tile, const Share<TILES>& share) const {
        const u32 lane = threadIdx.x % 32, from = stage(tile);
        f32 sums[TILES][4] = {};
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            u32 rows[4];
            load_squares(rows, place(from, lane % 16, first_vector() + lane / 16 + 2 * step));
#pragma unroll
            for (u32 i = 0; i < TILES; ++i) {
                multiply(sums[i], rows, share.of_step[step][i][0], share.of_step[step][i][1]);
            }
        }
        f32* to = parts(tile) + (threadIdx.x / 32 * ROWS + lane / 4) * RANK + lane % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            *reinterpret_cast<float2*>(to + 8 * i) = make_float2(sums[i][0], sums[i][1]);
            *reinterpret_cast<float2*>(to + 8 * RANK + 8 * i) = make_float2(sums[i][2], sums[i][3]);
        }
    }

    // Adds what a tile's rows make of the second product, for this warp's columns.
    __device__ __forceinline__ void down(u32 tile, f32 (&sums)[STEPS][TILES][4]) const {
        const u32 lane = threadIdx.x % 32, from = stage(tile);
        u32 narrow_here[TILES][2];
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            load_squares_across(narrow_here[i], from + BYTES_OF_TILE + lane % 16 * RANK * 2 + i * 16);
        }
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            u32 columns[4];
            load_squares_across(columns, place(from, lane % 8 + lane / 16 * 8, first_vector() + lane / 8 % 2 + 2 * step));
#pragma unroll
            for (u32 i = 0; i < TILES; ++i) {
                multiply(sums[step][i], columns, narrow_here[i][0], narrow_here[i][1]);
            }
        }
    }

    // Adds up what the warps made of a tile's rows, into this block's part: `[num_rows, RANK]` from `to` on.
    __device__ __forceinline__ void write_across(u32 tile, f32* to) const {
        const f32* from = parts(tile);
        const u32 row = first_row + tile * ROWS;
#pragma unroll
        for (u32 i = threadIdx.x; i < ROWS * RANK; i += THREADS) {
            f32 sum = 0.0f;
#pragma unroll
            for (u32 warp = 0; warp < WARPS; ++warp) {
                sum += from[warp * ROWS * RANK + i];
            }
            if (row + i / RANK < end_row) {
                to[u64(row) * RANK + i] = sum;
            }
        }
    }

    // Into this block's part: `[count, RANK]` from `to` on.
    __device__ __forceinline__ void write_down(const f32 (&sums)[STEPS][TILES][4], f32* to) const {
        const u32 lane = threadIdx.x % 32, first = first_column + first_vector() * VECTOR + lane / 4, r = lane % 4 * 2;
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 column = first + 16 * step + 8 * half;
#pragma unroll
                for (u32 i = 0; i < TILES && column < count; ++i) {
                    const f32* pair = sums[step][i] + 2 * half;
                    *reinterpret_cast<float2*>(to + u64(column) * RANK + 8 * i + r) = make_float2(pair[0], pair[1]);
                }
            }
        }
    }
};

// `b` has the factors of all adapters one under the other, `narrow` what their factors A made side by side.
// `across_parts` are [groups of columns, num_rows, rank], `down_parts` are [groups of rows, columns of all, rank].
template <u32 TILES>
__device__ __forceinline__ void sweep(
    const bf16* first, const bf16* second, const bf16* third, const Windows& windows, u32 num_rows, u32 num_columns,
    const bf16* b, const bf16* narrow, u32 num_adapters, f32* across_parts, f32* down_parts, u32 rows_of_block) {
    using Part = Sweep<TILES>;
    u32 adapter = 0, group = blockIdx.x, columns_before = 0;
    while (group >= windows.groups(adapter)) {
        group -= windows.groups(adapter);
        columns_before += windows.count[adapter];
        ++adapter;
    }
    const u32 first_row = blockIdx.y * rows_of_block, end_row = min(num_rows, first_row + rows_of_block);
    const u32 count = windows.count[adapter];
    const bf16* dy = adapter == 0 ? first : adapter == 1 ? second : third;
    const Part part = {
        dy + windows.start[adapter], narrow + adapter * Part::RANK, windows.width[adapter],
        num_adapters * Part::RANK, group * COLUMNS, count, first_row, end_row};
    const u32 num_tiles = (end_row - first_row + ROWS - 1) / ROWS;
#pragma unroll
    for (u32 tile = 0; tile < STAGES - 1; ++tile) {
        if (tile < num_tiles) {
            part.read(tile);
        }
        end_copies();
    }
    across_parts += u64(blockIdx.x) * num_rows * Part::RANK;
    down_parts += (u64(blockIdx.y) * num_columns + columns_before) * Part::RANK;
    Share<TILES> share;
    share.load(b + u64(columns_before) * Part::RANK, part.first_column + Part::first_vector() * VECTOR, count);
    f32 sums[STEPS][TILES][4] = {};
#pragma unroll 1
    for (u32 tile = 0; tile < num_tiles; ++tile) {
        wait_for_copies<STAGES - 2>();
        // This tile is there for all, and all are done with the one before, whose place is filled next.
        __syncthreads();
        if (tile + STAGES - 1 < num_tiles) {
            part.read(tile + STAGES - 1);
        }
        end_copies();
        if (tile > 0) {
            part.write_across(tile - 1, across_parts);
        }
        part.across(tile, share);
        part.down(tile, sums);
    }
    __syncthreads();
    part.write_across(num_tiles - 1, across_parts);
    part.write_down(sums, down_parts);
}

// Adds up four neighbours of parts `first..end`, each of which has `of_each` numbers; a warp has every eighth part. All
// threads of the block must call; those of the first warp get the sums.
__device__ __forceinline__ float4 sum_of_parts(const f32* parts, u32 first, u32 end, u64 of_each, u64 at) {
    __shared__ float4 of_warps[WARPS][32];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const auto add = [](float4& sum, const float4& more) {
        sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    };
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (u32 part = first + warp; part < end; part += WARPS) {
        add(sum, *reinterpret_cast<const float4*>(parts + part * of_each + at));
    }
    of_warps[warp][lane] = sum;
    __syncthreads();
#pragma unroll
    for (u32 other = 1; other < WARPS && warp == 0; ++other) {
        add(sum, of_warps[other][lane]);
    }
    return sum;
}

// The ends of a sweep, 128 numbers for each block. The first blocks write `dnarrow`, which lies like `narrow`; the
// others add to the gradients of all factors B, which lie like these from element `start` of `sums` on.
extern "C" __global__ void __launch_bounds__(THREADS) lora_sweep_ends_bf16(
    const f32* across_parts, const __attribute__((grid_constant)) Windows windows, bf16* dnarrow, u32 num_rows,
    u32 num_adapters, const f32* down_parts, u32 row_groups, f32* sums, u64 start, u32 num_columns, u32 rank,
    f32 scale) {
    const u64 of_narrow = u64(num_rows) * num_adapters * rank, of_b = u64(num_columns) * rank;
    const u32 blocks_of_narrow = u32((of_narrow + 127) / 128);
    const bool is_narrow = blockIdx.x < blocks_of_narrow;
    const u64 at = u64(is_narrow ? blockIdx.x : blockIdx.x - blocks_of_narrow) * 128 + threadIdx.x % 32 * 4;
    if (is_narrow) {
        // Behind the last number, those of the first are summed in vain.
        const u64 here = at < of_narrow ? at : 0;
        const u32 column = u32(here % (num_adapters * rank)), adapter = column / rank;
        u32 first_group = 0;
        for (u32 before = 0; before < adapter; ++before) {
            first_group += windows.groups(before);
        }
        const u64 in_part = here / (num_adapters * rank) * rank + column % rank;
        const float4 sum = sum_of_parts(
            across_parts, first_group, first_group + windows.groups(adapter), u64(num_rows) * rank, in_part);
        if (threadIdx.x < 32 && at < of_narrow) {
            *reinterpret_cast<uint2*>(dnarrow + at) = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
        }
        return;
    }
    const float4 sum = sum_of_parts(down_parts, 0, row_groups, of_b, at < of_b ? at : 0);
    if (threadIdx.x < 32 && at < of_b) {
        const f32 four[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            sums[start + at + i] += scale * four[i];
        }
    }
}

#define SWEEP(TILES)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) lora_sweep_##TILES##_bf16(                               \
        const bf16* first, const bf16* second, const bf16* third,                                                     \
        const __attribute__((grid_constant)) Windows windows, u32 num_rows, u32 num_columns, const bf16* b,           \
        const bf16* narrow, u32 num_adapters, f32* across_parts, f32* down_parts, u32 rows_of_block) {                \
        sweep<TILES>(                                                                                                 \
            first, second, third, windows, num_rows, num_columns, b, narrow, num_adapters, across_parts, down_parts,  \
            rows_of_block);                                                                                           \
    }

SWEEP(1)
SWEEP(2)
SWEEP(3)
SWEEP(4)
