// Rows that are sorted by expert times the matrix of their expert, or its transpose, in one launch over all experts: on
// the matrix units of 9.0 and nowhere else, in bf16 with sums in f32.
//
// Two blocks stand in a cluster and work on two tiles of the result at a time: two tiles of rows with the same columns,
// which share the part of the matrix, or, where an expert has one tile of rows left over, two tiles of columns, which
// share the rows. What is shared is read by halves, and each half is sent to both. In a block one thread asks for what
// the next stages hold, and two warpgroups multiply, each 64 of the tile's rows; clusters walk over the work with the
// same stride, neighbours side by side, so that what two of them read comes once from memory.
//
// Rows of a tile behind the end of the expert are those of the next one, or zeros. They are multiplied and not written.
//
// Neighbouring experts may have their matrices elsewhere than the others: those that a rank keeps itself.
#include "prelude.cuh"

// What the driver makes of a matrix for the copy engine.
struct alignas(64) TensorMap {
    u64 words[16];
};

// Where the matrices of all experts lie: those of `num_own` experts from `first_own` on in `own`, one behind the other, and in
// `others` those behind them, then those before them.
struct Matrices {
    const TensorMap &others, &own;
    u32 first_own, num_own, num_experts;
};

// Rows `at[e]..at[e + 1]` are those of expert `e`. As many as the host passes.
struct Offsets {
    u32 at[129];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rows of a tile, half of them for each warpgroup that multiplies.
constexpr u32 ROWS = 128;
constexpr u32 HALF_ROWS = ROWS / 2;
// Elements of the summed extent in a stage: 128 bytes, over which one swizzle goes.
constexpr u32 INNER = 64;
constexpr u32 BYTES_OF_INNER = 128;
// The summed extent of one instruction.
constexpr u32 DEPTH = 16;
// Eight lines of 128 bytes, after which a swizzle begins again.
constexpr u32 PATTERN = 1024;
constexpr u32 WARPS_OF_GROUP = 4;
constexpr u32 GROUP = 32 * WARPS_OF_GROUP;
constexpr u32 MULTIPLYING_GROUPS = 2;
// Of the blocks of a cluster.
constexpr u32 BLOCKS = 2;

extern __shared__ __align__(1024) u8 shared_memory[];

// A tile of the matrix has so many columns of the result. `BY_COLUMNS` says that elements of one line in memory belong
// to neighbouring columns, and not to neighbouring places of the summed extent.
template <u32 COLUMNS_, u32 STAGES_, bool BY_COLUMNS_>
struct Form {
    static constexpr u32 COLUMNS = COLUMNS_;
    static constexpr u32 STAGES = STAGES_;
    static constexpr bool BY_COLUMNS = BY_COLUMNS_;
    static constexpr u32 BYTES_OF_ROWS = ROWS * BYTES_OF_INNER;
    static constexpr u32 BYTES_OF_MATRIX = COLUMNS * BYTES_OF_INNER;
    static constexpr u32 BYTES_OF_STAGE = BYTES_OF_ROWS + BYTES_OF_MATRIX;
    // What lies at once in shared memory where lines are of columns: 64 of them, for all of the stage's summed extent.
    static constexpr u32 BOX = INNER * BYTES_OF_INNER;
};

__device__ __forceinline__ u32 shared_address(const void* of) {
    u64 address;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(of));
    return u32(address);
}

__device__ __forceinline__ u32 rank_in_cluster() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of both blocks.
__device__ __forceinline__ void wait_for_cluster() {
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ void make_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Arrives, and says how many bytes the copy engine will write before the barrier's phase ends.
__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// At the barrier of the block `rank` that is where this block has `barrier`. Orders no memory: what is handed over was
// read by matrix units, which are waited for, and is written next by the copy engine. To order memory for the whole
// cluster at every stage took longer than the products.
__device__ __forceinline__ void arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
        "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier), "r"(rank)
        : "memory");
}

// Until the phase of this parity is over. A new barrier is as if one of parity 1 had just ended. What the copy engine
// wrote in that phase is there.
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    u32 is_over = 0;
    while (is_over == 0) {
        asm volatile(
            "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; "
            "selp.u32 %0, 1, 0, over; }"
            : "=r"(is_over)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

// A ring of stages, seen from one of its two ends.
template <u32 STAGES>
struct Ring {
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Where the stages and the barriers of a block lie.
template <typename F>
struct Place {
    u32 stages;

    // The dynamic shared memory begins where it likes; the host asks for as much more.
    __device__ __forceinline__ Place() : stages((shared_address(shared_memory) + PATTERN - 1) / PATTERN * PATTERN) {}

    __device__ __forceinline__ u32 rows(u32 stage) const { return stages + stage * F::BYTES_OF_STAGE; }
    __device__ __forceinline__ u32 matrix(u32 stage) const { return rows(stage) + F::BYTES_OF_ROWS; }
    __device__ __forceinline__ u32 full(u32 stage) const { return rows(F::STAGES) + 8 * stage; }
    __device__ __forceinline__ u32 empty(u32 stage) const { return full(F::STAGES + stage); }
};

// A tile for this block, and what its cluster shares.
struct Item {
    u32 expert, first_row, end_row, first_column;
    bool shares_matrix;
};

// The work of a cluster: every `stride`th pair of tiles from `next` on. Those of an expert stand together, and among
// them those that read the same columns of its matrix.
struct Walk {
    u32 next, stride, rank, num_experts, columns, num_column_tiles;
    u32 expert = 0, before = 0;

    __device__ __forceinline__ bool take(const Offsets& offsets, Item& item) {
        while (expert < num_experts) {
            const u32 first_row = offsets.at[expert], end_row = offsets.at[expert + 1];
            const u32 row_tiles = (end_row - first_row + ROWS - 1) / ROWS;
            const u32 row_pairs = row_tiles / 2, single = row_tiles % 2;
            const u32 of_expert = row_pairs * num_column_tiles + single * ((num_column_tiles + 1) / 2);
            if (next - before < of_expert) {
                const u32 for_two_columns = 2 * row_pairs + single;
                const u32 at = next - before, first_tile = at / for_two_columns * 2, place = at % for_two_columns;
                const u32 tiles_left = num_column_tiles - first_tile;
                item.expert = expert;
                item.end_row = end_row;
                item.shares_matrix = place < row_pairs * (tiles_left < 2 ? 1 : 2);
                u32 row_tile, column_tile;
                if (item.shares_matrix) {
                    column_tile = first_tile + place / row_pairs;
                    row_tile = place % row_pairs * 2 + rank;
                } else {
                    column_tile = first_tile + rank;
                    row_tile = row_tiles - 1;
                }
                item.first_row = first_row + row_tile * ROWS;
                item.first_column = column_tile * columns;
                next += stride;
                return true;
            }
            before += of_expert;
            ++expert;
        }
        return false;
    }
};

// Rows and matrices are read by several clusters, of which some come later than others: what they read stays in the
// second-level cache before all else. With matrices that went first, as what passes once would, the clusters that came late
// read most of them from memory again.
__device__ __forceinline__ u64 last_to_go() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Begins to copy a box of a matrix; with `TO_BOTH` to the same place in both blocks, whose barriers both hear of it.
template <bool TO_BOTH>
__device__ __forceinline__ void copy_rows(
    u32 to, const TensorMap& from, u32 barrier, u32 inner, u32 row, u64 policy) {
    if constexpr (TO_BOTH) {
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
            ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to),
            "l"(&from), "r"(barrier), "r"(inner), "r"(row), "h"(u16(3)), "l"(policy)
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
            ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
            "l"(&from), "r"(barrier), "r"(inner), "r"(row), "l"(policy)
            : "memory");
    }
}

template <bool TO_BOTH>
__device__ __forceinline__ void copy_matrix(
    u32 to, const TensorMap& from, u32 barrier, u32 along_line, u32 line, u32 expert, u64 policy) {
    if constexpr (TO_BOTH) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
            ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(to),
            "l"(&from), "r"(barrier), "r"(along_line), "r"(line), "r"(expert), "h"(u16(3)), "l"(policy)
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
            ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
            "l"(&from), "r"(barrier), "r"(along_line), "r"(line), "r"(expert), "l"(policy)
            : "memory");
    }
}

// Half of the columns of a tile of the matrix.
template <typename F, bool TO_BOTH>
__device__ __forceinline__ void copy_half(
    u32 to, const Matrices& matrices, u32 barrier, const Item& item, u32 half, u32 inner, u64 policy) {
    constexpr u32 HALF = F::COLUMNS / 2;
    const u32 place = item.expert - matrices.first_own;
    const bool is_own = place < matrices.num_own;
    const TensorMap& from = is_own ? matrices.own : matrices.others;
    const u32 behind = place - matrices.num_own;
    const u32 expert = is_own ? place : behind < matrices.num_experts ? behind : behind + matrices.num_experts;
    const u32 column = item.first_column + half * HALF;
    to += half * (F::BYTES_OF_MATRIX / 2);
    if constexpr (F::BY_COLUMNS) {
#pragma unroll
        for (u32 i = 0; i < HALF / INNER; ++i) {
            copy_matrix<TO_BOTH>(to + i * F::BOX, from, barrier, column + i * INNER, inner, expert, policy);
        }
    } else {
        copy_matrix<TO_BOTH>(to, from, barrier, inner, column, expert, policy);
    }
}

// One thread fills the stages, as soon as both blocks are done with what was there.
template <typename F>
__device__ __forceinline__ void read_all(
    const Place<F>& place, Walk walk, const TensorMap& rows, const Matrices& matrices, const Offsets& offsets,
    u32 num_steps) {
    const u64 policy = last_to_go();
    Ring<F::STAGES> ring;
    Item item;
    while (walk.take(offsets, item)) {
        for (u32 step = 0; step < num_steps; ++step) {
            const u32 full = place.full(ring.stage), inner = step * INNER;
            const u32 to_rows = place.rows(ring.stage), to_matrix = place.matrix(ring.stage);
            wait(place.empty(ring.stage), ring.parity ^ 1);
            expect(full, F::BYTES_OF_STAGE);
            if (item.shares_matrix) {
                copy_half<F, true>(to_matrix, matrices, full, item, walk.rank, inner, policy);
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    const u32 to = to_rows + half * (F::BYTES_OF_ROWS / 2);
                    copy_rows<false>(to, rows, full, inner, item.first_row + half * HALF_ROWS, policy);
                }
            } else {
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    copy_half<F, false>(to_matrix, matrices, full, item, half, inner, policy);
                }
                const u32 to = to_rows + walk.rank * (F::BYTES_OF_ROWS / 2);
                copy_rows<true>(to, rows, full, inner, item.first_row + walk.rank * HALF_ROWS, policy);
            }
            ring.advance();
        }
    }
}

// A thread's part of 64 rows of sums, as the instruction leaves it: pairs of neighbouring columns, each eight columns
// after the one before, of row `lane / 4` of the warp and of the eighth row after it.
template <u32 COLUMNS>
struct Sums {
    f32 at[COLUMNS / 2];
};

#define EIGHT(FIRST)                                                                                  \
    "+f"(sums.at[FIRST]), "+f"(sums.at[FIRST + 1]), "+f"(sums.at[FIRST + 2]), "+f"(sums.at[FIRST + 3]), \
        "+f"(sums.at[FIRST + 4]), "+f"(sums.at[FIRST + 5]), "+f"(sums.at[FIRST + 6]), "+f"(sums.at[FIRST + 7])

// Begins to add `a·b`, or to put it in the place of the sums.
template <bool BY_COLUMNS>
__device__ __forceinline__ void multiply(Sums<128>& sums, u64 a, u64 b, bool adds) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.b32 adds, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63} "
        ", %64, %65, adds, 1, 1, 0, %67; }"
        : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
        : "l"(a), "l"(b), "r"(u32(adds)), "n"(BY_COLUMNS ? 1 : 0));
}

template <bool BY_COLUMNS>
__device__ __forceinline__ void multiply(Sums<256>& sums, u64 a, u64 b, bool adds) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.b32 adds, %130, 0; "
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127} "
        ", %128, %129, adds, 1, 1, 0, %131; }"
        : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56),
        EIGHT(64), EIGHT(72), EIGHT(80), EIGHT(88), EIGHT(96), EIGHT(104), EIGHT(112), EIGHT(120)
        : "l"(a), "l"(b), "r"(u32(adds)), "n"(BY_COLUMNS ? 1 : 0));
}

#undef EIGHT

// Products that follow see the registers as they are now.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until no more than so many groups of products are under way.
template <int COUNT>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory");
}

// Where a factor lies in shared memory, in units of 16 bytes. `along` is from one piece of 64 columns to the next, and has
// no meaning where lines are of the summed extent.
__device__ __forceinline__ u32 place_of_factor(u32 address, u32 along) {
    // The bits above say which block of the cluster it is.
    constexpr u32 IN_BLOCK = (1 << 18) - 1;
    return (address & IN_BLOCK) >> 4 | along >> 4 << 16;
}

// The factor as the instruction wants it: swizzled over 128 bytes, eight lines of which are a pattern. Only the lower half
// differs from one to the next.
__device__ __forceinline__ u64 factor_at(u32 place) {
    constexpr u64 SWIZZLE_128 = 1;
    return u64(place) | u64(PATTERN >> 4) << 32 | SWIZZLE_128 << 62;
}

// Queues the products of a stage for 64 rows.
template <typename F>
__device__ __forceinline__ void multiply_stage(Sums<F::COLUMNS>& sums, u32 rows, u32 matrix, bool adds) {
    // In units of 16 bytes, as factors have it: `DEPTH` elements on in a line, or `DEPTH` lines on.
    constexpr u32 IN_LINE = DEPTH * 2 / 16, OF_LINES = DEPTH * BYTES_OF_INNER / 16;
    const u32 a = place_of_factor(rows, 16), b = place_of_factor(matrix, F::BY_COLUMNS ? F::BOX : 16);
    begin_products();
#pragma unroll
    for (u32 i = 0; i < INNER / DEPTH; ++i) {
        const u32 of_b = b + i * (F::BY_COLUMNS ? OF_LINES : IN_LINE);
        multiply<F::BY_COLUMNS>(sums, factor_at(a + i * IN_LINE), factor_at(of_b), adds || i > 0);
    }
    end_products();
}

// Four words of each of four neighbouring lanes change places: lane `i` gets everybody's word `i`.
__device__ __forceinline__ void exchange(u32 (&words)[4], u32 lane) {
    const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
        const u32 other = __shfl_xor_sync(0xffffffffu, odd ? words[i] : words[i + 1], 1);
        words[i] = odd ? other : words[i];
        words[i + 1] = odd ? words[i + 1] : other;
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 other = __shfl_xor_sync(0xffffffffu, upper ? words[i] : words[i + 2], 2);
        words[i] = upper ? other : words[i];
        words[i + 2] = upper ? words[i + 2] : other;
    }
}

// Writes a warpgroup's sums: rows from `first_row` to `end_row`, columns from `first_column` to `width`.
template <u32 COLUMNS>
__device__ __forceinline__ void write(
    bf16* y, const Sums<COLUMNS>& sums, u32 first_row, u32 end_row, u32 first_column, u32 width) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS_OF_GROUP;
#pragma unroll
    for (u32 below = 0; below < 2; ++below) {
        const u32 row = first_row + 16 * warp + 8 * below + lane / 4;
        bf16* line = y + u64(row) * width;
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 8; i += 4) {
            u32 words[4];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const f32* pair = sums.at + 4 * (i + j) + 2 * below;
                words[j] = pack(pair[0], pair[1]);
            }
            exchange(words, lane);
            const u32 column = first_column + 8 * (i + lane % 4);
            if (row < end_row && column < width) {
                *reinterpret_cast<uint4*>(line + column) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
}

// A warpgroup's rows of every tile.
template <typename F>
__device__ __forceinline__ void multiply_all(
    const Place<F>& place, Walk walk, const Offsets& offsets, u32 num_steps, bf16* y, u32 width) {
    // Told by one lane to all, so that the compiler knows it to be the same for all of a warp: what follows from it is then
    // computed once for a warp and not in every lane, which costs power.
    const u32 group = __shfl_sync(0xffffffffu, threadIdx.x / GROUP, 0), lane = threadIdx.x % 32;
    // Each warp tells both blocks that it is done with a stage: both may have written to it.
    const auto give_back = [&](u32 stage) {
        if (lane < BLOCKS) {
            arrive_at(place.empty(stage), lane);
        }
    };
    Ring<F::STAGES> ring;
    Item item;
    while (walk.take(offsets, item)) {
        const u32 first_row = item.first_row + group * HALF_ROWS;
        if (first_row >= item.end_row || item.first_column >= width) {
            for (u32 step = 0; step < num_steps; ++step) {
                wait(place.full(ring.stage), ring.parity);
                give_back(ring.stage);
                ring.advance();
            }
            continue;
        }
        Sums<F::COLUMNS> sums;
        u32 last_stage = 0;
        for (u32 step = 0; step < num_steps; ++step) {
            wait(place.full(ring.stage), ring.parity);
            const u32 rows = place.rows(ring.stage) + group * (F::BYTES_OF_ROWS / 2);
            multiply_stage<F>(sums, rows, place.matrix(ring.stage), step > 0);
            // While these are under way, the ones before are done.
            wait_for_products<1>();
            if (step > 0) {
                give_back(last_stage);
            }
            last_stage = ring.stage;
            ring.advance();
        }
        wait_for_products<0>();
        give_back(last_stage);
        // The compiler may not read a sum before this.
#pragma unroll
        for (u32 i = 0; i < F::COLUMNS / 2; ++i) {
            asm volatile("" : "+f"(sums.at[i])::"memory");
        }
        write(y, sums, first_row, item.end_row, item.first_column, width);
    }
}

template <typename F>
__device__ __forceinline__ void multiply_groups(
    const TensorMap& rows, const Matrices& matrices, const Offsets& offsets, bf16* y, u32 num_experts, u32 width,
    u32 inner) {
    const Place<F> place;
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < F::STAGES; ++stage) {
            make_barrier(place.full(stage), 1);
            make_barrier(place.empty(stage), BLOCKS * MULTIPLYING_GROUPS * WARPS_OF_GROUP);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    wait_for_cluster();
    const Walk walk = {blockIdx.x / BLOCKS, gridDim.x / BLOCKS, rank_in_cluster(), num_experts, F::COLUMNS,
                       (width + F::COLUMNS - 1) / F::COLUMNS};
    const u32 num_steps = (inner + INNER - 1) / INNER;
    // Who asks for memory needs few registers, and who multiplies gets them.
    if (threadIdx.x / GROUP == MULTIPLYING_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == MULTIPLYING_GROUPS * GROUP) {
            read_all(place, walk, rows, matrices, offsets, num_steps);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        multiply_all(place, walk, offsets, num_steps, y, width);
    }
    // The other block may still tell this one that it is done with a stage.
    wait_for_cluster();
}

#define PAIRED __attribute__((cluster_dims(2, 1, 1)))
#define BODY(COLUMNS, STAGES, BY_COLUMNS)                                \
    const Matrices where_they_lie = {others, own, first_own, num_own, num_experts}; \
    multiply_groups<Form<COLUMNS, STAGES, BY_COLUMNS>>(rows, where_they_lie, offsets, y, num_experts, width, inner)

#else

// Elsewhere they are empty, and never launched.
#define PAIRED
#define BODY(COLUMNS, STAGES, BY_COLUMNS)

#endif

#define IN_PLACE const __attribute__((grid_constant))

// `y` has `width` columns, and `inner` is summed over. `nn` takes matrices as they are, `nt` transposed.
#define GROUPED_MATMUL(NAME, COLUMNS, STAGES, BY_COLUMNS)                                                     \
    extern "C" __global__ void PAIRED __launch_bounds__(384, 1)                                               \
        grouped_matmul_##NAME(IN_PLACE TensorMap rows, IN_PLACE TensorMap others, IN_PLACE TensorMap own,     \
                              u32 first_own, u32 num_own, IN_PLACE Offsets offsets, bf16* y, u32 num_experts, \
                              u32 width, u32 inner) {                                                         \
        BODY(COLUMNS, STAGES, BY_COLUMNS);                                                                    \
    }

GROUPED_MATMUL(nn_128, 128, 6, true)
GROUPED_MATMUL(nn_256, 256, 4, true)
GROUPED_MATMUL(nt_128, 128, 6, false)
GROUPED_MATMUL(nt_256, 256, 4, false)
