// What adapters need beside products: an addition and dropout, with one block for each row; and the product of a narrow
// factor with a wide one, whose time is that of writing it. bf16 does that on the matrix units.
#include "prelude.cuh"

// The finalizer of splitmix64.
__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// `names` are three numbers for each row: the low and the high half of the sample, and the position. `module` is the
// hash of seed, step and module.
template <typename E>
__device__ __forceinline__ void dropout(
    const E* __restrict__ x, const u32* __restrict__ names, E* __restrict__ y, u32 width, u64 module, u32 threshold,
    f32 scale) {
    names += u64(blockIdx.x) * 3;
    const u64 row = mix(mix(module ^ (u64(names[1]) << 32 | names[0])) ^ names[2]);
    x += u64(blockIdx.x) * width;
    y += u64(blockIdx.x) * width;
    for_each_part<E>(width, is_aligned(x, 0) && is_aligned(y, 0), [&](auto count, u32 at) {
        constexpr int COUNT = decltype(count)::VALUE;
        Part<E, COUNT> part = load_part<COUNT>(x + at);
        u64 hash = 0;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const u32 feature = at + i;
            // Two features share a hash: the even one takes its low half, the odd one its high half.
            if (COUNT == 1 || i % 2 == 0) {
                hash = mix(row + (u64(feature / 2) + 1) * 0x9e3779b97f4a7c15ull);
            }
            const u32 half = u32(feature % 2 == 0 ? hash : hash >> 32);
            part.at[i] = half >= threshold ? part.at[i] * scale : 0.0f;
        }
        store_part<COUNT>(y + at, part);
    });
}

template <typename E>
__device__ __forceinline__ void add_delta(E* __restrict__ y, const E* __restrict__ delta, u32 width, f32 scale) {
    y += u64(blockIdx.x) * width;
    delta += u64(blockIdx.x) * width;
    for_each_part<E>(width, is_aligned(y, 0) && is_aligned(delta, 0), [&](auto size, u32 at) {
        constexpr int COUNT = decltype(size)::VALUE;
        Part<E, COUNT> sum = load_part<COUNT>(static_cast<const E*>(y) + at);
        const Part<E, COUNT> more = load_part<COUNT>(delta + at);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            sum.at[i] += scale * more.at[i];
        }
        store_part<COUNT>(y + at, sum);
    });
}

// Columns of a matrix: element `[row, column]` lies `row * width + start + column` elements behind its address.
struct Window {
    u32 width, start;
};

// Rows of a block that writes a product.
constexpr u32 ROWS = 128;

extern __shared__ float4 shared[];

// y = scale · narrow·wide, for `count` columns of `y` and `rank` of `narrow`; beside it those of `residual`, which lies
// like `y` and is null where there is none. `wide` is stored [rank, count], or transposed. Each block has 128 columns, one
// vector for each thread of a warp, and each warp works on four rows at a time.
__device__ __forceinline__ void product(
    f32* __restrict__ y, const f32* __restrict__ narrow, const f32* __restrict__ wide, const f32* __restrict__ residual,
    u32 num_rows, Window of_y, u32 count, Window of_narrow, u32 rank, u32 transposed, f32 scale) {
    constexpr u32 COLUMNS = 128, AT_ONCE = 4;
    // Blocks of the same rows are neighbours.
    const u32 blocks_of_row = (count + COLUMNS - 1) / COLUMNS;
    const u32 first_column = blockIdx.x % blocks_of_row * COLUMNS, num_columns = min(COLUMNS, count - first_column);
    const u64 first_row = u64(blockIdx.x / blocks_of_row) * ROWS;
    const u32 rows_here = u32(min(u64(ROWS), num_rows - first_row));
    f32* wide_here = reinterpret_cast<f32*>(shared);
    f32* narrow_here = wide_here + rank * COLUMNS;
    for (u32 i = threadIdx.x; i < rank * COLUMNS; i += blockDim.x) {
        const u32 r = transposed ? i % rank : i / COLUMNS, column = transposed ? i / rank : i % COLUMNS;
        const u64 from = first_column + column;
        const bool exists = column < num_columns;
        wide_here[r * COLUMNS + column] = exists ? wide[transposed ? from * rank + r : u64(r) * count + from] : 0.0f;
    }
    narrow += first_row * of_narrow.width + of_narrow.start;
    for (u32 i = threadIdx.x; i < rows_here * rank; i += blockDim.x) {
        narrow_here[i] = narrow[u64(i / rank) * of_narrow.width + i % rank];
    }
    __syncthreads();
    const u32 own = threadIdx.x % 32 * 4;
    const u64 start = first_row * of_y.width + of_y.start + first_column + own;
    const bool has_residual = residual != nullptr;
    y += start;
    residual += has_residual ? start : 0;
    const bool is_vector = is_aligned(y, of_y.width) && is_aligned(residual, 0) && own + 4 <= num_columns;
    for (u32 row = threadIdx.x / 32 * AT_ONCE; row < rows_here; row += blockDim.x / 32 * AT_ONCE) {
        f32 sums[AT_ONCE][4] = {};
        for (u32 r = 0; r < rank; ++r) {
            const float4 four = *reinterpret_cast<const float4*>(wide_here + r * COLUMNS + own);
            const f32 factors[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i) {
                // Behind the last row are other numbers of this memory; their sums are used by nobody.
                const f32 of_row = narrow_here[(row + i) * rank + r];
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    sums[i][j] += of_row * factors[j];
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            if (row + i >= rows_here) {
                break;
            }
            const u64 at = u64(row + i) * of_y.width;
            if (is_vector) {
                Lanes<f32> total = has_residual ? load(residual + at) : Lanes<f32>{};
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    total.at[j] += scale * sums[i][j];
                }
                store(y + at, total);
            } else {
                for (u32 j = 0; j < 4 && own + j < num_columns; ++j) {
                    y[at + j] = (has_residual ? residual[at + j] : 0.0f) + scale * sums[i][j];
                }
            }
        }
    }
}

// A warp's share of the columns, and the groups of 32 in it. In a group each thread owns a vector of 8 columns for two of
// 16 rows: those that the accumulators of four tiles of the matrix units have, when their columns are counted so.
constexpr u32 GROUPS = 2, COLUMNS_OF_WARP = 32 * GROUPS, TILES = 4 * GROUPS;

// Whether rows of `width` elements, the first of them at `address`, consist of pairs of the first `rank` elements.
__device__ __forceinline__ bool are_pairs(const bf16* address, u64 width, u32 rank) {
    return (reinterpret_cast<u64>(address) | width * 2 | rank * 2) % 4 == 0;
}

// c += a·b for 16 rows, 8 columns and an inner extent of 8.
__device__ __forceinline__ void multiply_add(f32 (&c)[4], const u32 (&a)[2], u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Of each step of the inner extent two neighbours, as the matrix units take them from this thread: those of element `k` of
// the step, `step` apart in memory. Zeros behind `rank`.
template <u32 STEPS>
struct Pairs {
    u32 of_step[STEPS];

    // They lie side by side where a number of 4 bytes could, and the rank is even.
    __device__ __forceinline__ void load_in_pairs(const bf16* from, u32 k, u32 rank) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            of_step[i] = 8 * i + k < rank ? *reinterpret_cast<const u32*>(from + 8 * i + k) : 0;
        }
    }

    __device__ __forceinline__ void load_singly(const bf16* from, u64 step, u32 k, u32 rank) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            const u32 low = 8 * i + k < rank ? from[(8 * i + k) * step].bits : 0;
            const u32 high = 8 * i + k + 1 < rank ? from[(8 * i + k + 1) * step].bits : 0;
            of_step[i] = high << 16 | low;
        }
    }
};

// What a warp has of a product: a share of the columns.
template <u32 STEPS>
struct Columns {
    // Of each tile.
    Pairs<STEPS> factors[TILES];

    __device__ __forceinline__ void load(const bf16* wide, u32 first, u32 count, u32 rank, u32 transposed) {
        const u32 n = threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 2;
        const auto for_each_tile = [&](auto load) {
#pragma unroll
            for (u32 tile = 0; tile < TILES; ++tile) {
                const u32 column = first + tile / 4 * 32 + n / 2 * 8 + tile % 4 * 2 + n % 2;
                load(factors[tile], column, column < count ? rank : 0);
            }
        };
        if (!transposed && is_aligned(wide, count) && first + COLUMNS_OF_WARP <= count) {
            load_in_vectors(wide + first + n / 2 * 8, count, rank);
        } else if (!transposed) {
            for_each_tile([&](auto& tile, u32 column, u32 up_to) { tile.load_singly(wide + column, count, k, up_to); });
        } else if (are_pairs(wide, rank, rank)) {
            for_each_tile([&](auto& tile, u32 column, u32 up_to) {
                tile.load_in_pairs(wide + u64(column) * rank, k, up_to);
            });
        } else {
            for_each_tile([&](auto& tile, u32 column, u32 up_to) {
                tile.load_singly(wide + u64(column) * rank, 1, k, up_to);
            });
        }
    }

    // Of a factor that is not transposed: a vector of 8 columns has those of four tiles, for this thread and its neighbour.
    __device__ __forceinline__ void load_in_vectors(const bf16* from, u64 count, u32 rank) {
        const u32 k = threadIdx.x % 4 * 2, halves = threadIdx.x / 4 % 2 == 0 ? 0x5410 : 0x7632;
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
#pragma unroll
            for (u32 group = 0; group < GROUPS; ++group) {
                uint4 rows[2] = {};
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    const u32 row = 8 * step + k + i;
                    if (row < rank) {
                        rows[i] = load_packed(from + row * count + group * 32).raw;
                    }
                }
                factors[4 * group].of_step[step] = __byte_perm(rows[0].x, rows[1].x, halves);
                factors[4 * group + 1].of_step[step] = __byte_perm(rows[0].y, rows[1].y, halves);
                factors[4 * group + 2].of_step[step] = __byte_perm(rows[0].z, rows[1].z, halves);
                factors[4 * group + 3].of_step[step] = __byte_perm(rows[0].w, rows[1].w, halves);
            }
        }
    }

    __device__ __forceinline__ void multiply(const Pairs<STEPS> (&rows)[2], f32 (&sums)[TILES][4]) const {
#pragma unroll
        for (u32 tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                sums[tile][i] = 0.0f;
            }
        }
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            const u32 of_rows[2] = {rows[0].of_step[step], rows[1].of_step[step]};
#pragma unroll
            for (u32 tile = 0; tile < TILES; ++tile) {
                multiply_add(sums[tile], of_rows, factors[tile].of_step[step]);
            }
        }
    }
};

// Writes a thread's sums of 16 rows and 64 columns, all of which exist, in whole vectors; `residual` lies like `y`.
template <bool HAS_RESIDUAL>
__device__ __forceinline__ void store_vectors(
    bf16* y, const bf16* residual, u64 eight_rows, const f32 (&sums)[TILES][4], f32 scale) {
    Packed<bf16> beside[2][GROUPS];
#pragma unroll
    for (u32 i = 0; HAS_RESIDUAL && i < 2 * GROUPS; ++i) {
        beside[i / GROUPS][i % GROUPS] = load_packed(residual + i / GROUPS * eight_rows + i % GROUPS * 32);
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#pragma unroll
        for (u32 group = 0; group < GROUPS; ++group) {
            Lanes<bf16> total = HAS_RESIDUAL ? unpack(beside[half][group]) : Lanes<bf16>{};
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                total.at[i] += scale * sums[4 * group + i / 2][2 * half + i % 2];
            }
            store(y + half * eight_rows + group * 32, total);
        }
    }
}

// The same element by element, for the first `rows` rows and `columns` columns of those behind this thread's first.
__device__ __forceinline__ void store_elements(
    bf16* y, const bf16* residual, u64 eight_rows, const f32 (&sums)[TILES][4], f32 scale, u32 rows, u32 columns) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#pragma unroll
        for (u32 group = 0; group < GROUPS; ++group) {
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                const u64 at = half * eight_rows + group * 32 + i;
                if (8 * half < rows && group * 32 + i < columns) {
                    const f32 more = scale * sums[4 * group + i / 2][2 * half + i % 2];
                    y[at] = from_f32<bf16>((residual == nullptr ? 0.0f : to_f32(residual[at])) + more);
                }
            }
        }
    }
}

// Rows of a matrix that a block works on: at `address` the first of this thread, `width` elements apart, `count` of them.
struct Rows {
    const bf16* address;
    u64 width;
    u32 count, rank;

    // Of 16 rows the two that the matrix units take from this thread.
    template <u32 STEPS>
    __device__ __forceinline__ void load(u32 sixteen, bool in_pairs, Pairs<STEPS> (&rows)[2]) const {
        const u32 lane = threadIdx.x % 32, k = lane % 4 * 2;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = 16 * sixteen + 8 * half, up_to = row + lane / 4 < count ? rank : 0;
            if (in_pairs) {
                rows[half].load_in_pairs(address + row * width, k, up_to);
            } else {
                rows[half].load_singly(address + row * width, 1, k, up_to);
            }
        }
    }
};

// Writes a warp's part of a block, all of whose rows and columns exist and are made of whole vectors. What the next rows
// need is on its way while these are written.
template <u32 STEPS, bool HAS_RESIDUAL>
__device__ __forceinline__ void write_vectors(
    bf16* y, const bf16* residual, u64 width, const Columns<STEPS>& columns, const Rows& narrow, bool in_pairs,
    f32 scale) {
    constexpr u32 AT_ONCE = STEPS <= 3 ? 2 : 1;
    Pairs<STEPS> rows[AT_ONCE][2];
#pragma unroll
    for (u32 i = 0; i < AT_ONCE; ++i) {
        narrow.load(i, in_pairs, rows[i]);
    }
#pragma unroll 1
    for (u32 sixteen = 0; sixteen < ROWS / 16; sixteen += AT_ONCE) {
        Pairs<STEPS> next[AT_ONCE][2];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            // Behind the last row there are zeros.
            narrow.load(sixteen + AT_ONCE + i, in_pairs, next[i]);
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            f32 sums[TILES][4];
            columns.multiply(rows[i], sums);
            store_vectors<HAS_RESIDUAL>(y, residual, 8 * width, sums, scale);
            y += 16 * width;
            residual += HAS_RESIDUAL ? 16 * width : 0;
            rows[i][0] = next[i][0];
            rows[i][1] = next[i][1];
        }
    }
}

// The same for bf16 and ranks up to 8·STEPS: a block of four warps has as many rows and four shares of the columns. A warp
// keeps its part of `wide` and walks down the rows.
template <u32 STEPS>
__device__ __forceinline__ void product_on_units(
    bf16* __restrict__ y, const bf16* __restrict__ narrow, const bf16* __restrict__ wide,
    const bf16* __restrict__ residual, u32 num_rows, Window of_y, u32 count, Window of_narrow, u32 rank, u32 transposed,
    f32 scale) {
    // Blocks of the same rows are neighbours.
    const u32 blocks_of_row = (count + 4 * COLUMNS_OF_WARP - 1) / (4 * COLUMNS_OF_WARP), lane = threadIdx.x % 32;
    const u32 first_column = (blockIdx.x % blocks_of_row * 4 + threadIdx.x / 32) * COLUMNS_OF_WARP;
    const u64 first_row = u64(blockIdx.x / blocks_of_row) * ROWS;
    if (first_column >= count) {
        return;
    }
    Columns<STEPS> columns;
    columns.load(wide, first_column, count, rank, transposed);
    narrow += first_row * of_narrow.width + of_narrow.start;
    const bool in_pairs = are_pairs(narrow, of_narrow.width, rank);
    const Rows rows = {
        narrow + lane / 4 * of_narrow.width, of_narrow.width, u32(min(u64(ROWS), num_rows - first_row)), rank};
    const u32 own = lane % 4 * 8;
    const u64 start = (first_row + lane / 4) * of_y.width + of_y.start + first_column + own;
    const bool has_residual = residual != nullptr;
    y += start;
    residual += has_residual ? start : 0;
    const bool is_aligned_there = is_aligned(y, of_y.width) && is_aligned(residual, 0);
    if (rows.count == ROWS && first_column + COLUMNS_OF_WARP <= count && is_aligned_there) {
        if (has_residual) {
            write_vectors<STEPS, true>(y, residual, of_y.width, columns, rows, in_pairs, scale);
        } else {
            write_vectors<STEPS, false>(y, residual, of_y.width, columns, rows, in_pairs, scale);
        }
        return;
    }
#pragma unroll 1
    for (u32 sixteen = 0; 16 * sixteen < rows.count; ++sixteen) {
        Pairs<STEPS> pairs[2];
        rows.load(sixteen, in_pairs, pairs);
        f32 sums[TILES][4];
        columns.multiply(pairs, sums);
        const u32 behind = 16 * sixteen + lane / 4, last_column = first_column + own;
        store_elements(
            y, residual, 8 * u64(of_y.width), sums, scale, behind < rows.count ? rows.count - behind : 0,
            last_column < count ? count - last_column : 0);
        y += 16 * u64(of_y.width);
        residual += has_residual ? 16 * u64(of_y.width) : 0;
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void lora_dropout_##E(                                                                       \
        const E* __restrict__ x, const u32* __restrict__ names, E* __restrict__ y, u32 width, u64 module,              \
        u32 threshold, f32 scale) {                                                                                    \
        dropout<E>(x, names, y, width, module, threshold, scale);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void lora_add_delta_##E(                                                                     \
        E* __restrict__ y, const E* __restrict__ delta, u32 width, f32 scale) {                                        \
        add_delta<E>(y, delta, width, scale);                                                                          \
    }

KERNELS(f32)
KERNELS(bf16)

extern "C" __global__ void lora_product_f32(
    f32* y, const f32* narrow, const f32* wide, const f32* residual, u32 num_rows, u32 width, u32 start, u32 count,
    u32 narrow_width, u32 narrow_start, u32 rank, u32 transposed, f32 scale) {
    product(
        y, narrow, wide, residual, num_rows, {width, start}, count, {narrow_width, narrow_start}, rank, transposed,
        scale);
}

#define PRODUCT(STEPS)                                                                                                 \
    extern "C" __global__ void lora_product_##STEPS##_bf16(                                                            \
        bf16* y, const bf16* narrow, const bf16* wide, const bf16* residual, u32 num_rows, u32 width, u32 start,       \
        u32 count, u32 narrow_width, u32 narrow_start, u32 rank, u32 transposed, f32 scale) {                          \
        product_on_units<STEPS>(                                                                                       \
            y, narrow, wide, residual, num_rows, {width, start}, count, {narrow_width, narrow_start}, rank,            \
            transposed, scale);                                                                                        \
    }

PRODUCT(1)
PRODUCT(2)
PRODUCT(3)
PRODUCT(4)
PRODUCT(6)
PRODUCT(8)
