// From the logits of rows to their losses and, in place, to the gradient of the weighted losses. Where there are clusters
// (9.0 and later) eight blocks share a row: together their shared memory holds all of it, so that it is read once and
// written once, and they tell each other their sums. Elsewhere one block has the row and reads what does not fit
// again. Each cluster has one row: with several, one after the other, clusters ended too far apart to be faster.
#include "prelude.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr u32 PARTS = 1;
#define IN_CLUSTERS
#else
constexpr u32 PARTS = 8;
#define IN_CLUSTERS __cluster_dims__(8, 1, 1)
#endif

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;
// Vectors that a thread works on at a time, and those of a block.
constexpr u32 AT_ONCE = 4;
constexpr u32 CHUNK = THREADS * AT_ONCE;

extern __shared__ uint4 shared_memory[];

// Two halves of a barrier of all threads of a cluster.
__device__ __forceinline__ void arrive() {
    if constexpr (PARTS > 1) {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    }
}

__device__ __forceinline__ void wait() {
    if constexpr (PARTS > 1) {
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    } else {
        __syncthreads();
    }
}

// Writes to where `to` is in the shared memory of block `part` of the cluster.
__device__ __forceinline__ void store_in_part(f32* to, u32 part, f32 value) {
    if constexpr (PARTS > 1) {
        asm volatile(
            "{\n\t.reg .u64 address;\n\t.reg .u32 here, there;\n\t"
            "cvta.to.shared.u64 address, %0;\n\tcvt.u32.u64 here, address;\n\t"
            "mapa.shared::cluster.u32 there, here, %1;\n\tst.shared::cluster.f32 [there], %2;\n\t}" ::"l"(to),
            "r"(part), "f"(value)
            : "memory");
    } else {
        *to = value;
    }
}

// Where the dynamic shared memory begins, as instructions that copy to it count.
__device__ __forceinline__ u32 address_of_shared() {
    u32 address;
    asm("{\n\t.reg .u64 address;\n\tcvta.to.shared.u64 address, %1;\n\tcvt.u32.u64 %0, address;\n\t}"
        : "=r"(address)
        : "l"(shared_memory));
    return address;
}

// Sixteen bytes from global to shared memory.
__device__ __forceinline__ void begin_copy(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// What this thread began to copy since the last call is a group.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's groups but for the last `count`, or for more.
__device__ __forceinline__ void wait_for_all_but(u32 count) {
    switch (count) {
        case 0:
            asm volatile("cp.async.wait_group 0;" ::: "memory");
            break;
        case 1:
            asm volatile("cp.async.wait_group 1;" ::: "memory");
            break;
        case 2:
            asm volatile("cp.async.wait_group 2;" ::: "memory");
            break;
        default:
            asm volatile("cp.async.wait_group 3;" ::: "memory");
    }
}

// Where the search for the largest logit begins: so far down that its power counts for nothing, and finite.
constexpr u32 LOWEST = 0xf149f149u;

// The largest of many logits.
template <typename E>
struct Largest;

template <>
struct Largest<f32> {
    f32 so_far = __uint_as_float(LOWEST);

    __device__ __forceinline__ void see(const Packed<f32>& packed) {
        const Lanes<f32> x = unpack(packed);
        so_far = fmaxf(so_far, fmaxf(fmaxf(x.at[0], x.at[1]), fmaxf(x.at[2], x.at[3])));
    }

    __device__ __forceinline__ f32 value() const { return so_far; }
};

// Two at a time, as they are.
template <>
struct Largest<bf16> {
    u32 so_far = LOWEST;

    __device__ __forceinline__ void see(const Packed<bf16>& packed) {
        const u32 words[4] = {packed.raw.x, packed.raw.y, packed.raw.z, packed.raw.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            asm("max.bf16x2 %0, %0, %1;" : "+r"(so_far) : "r"(words[i]));
        }
    }

    __device__ __forceinline__ f32 value() const {
        return fmaxf(__uint_as_float(so_far << 16), __uint_as_float(so_far & 0xffff0000u));
    }
};

// e to the power of `x - largest`. Logits that were rounded to bf16 do not see the last bits of it.
template <typename E>
__device__ __forceinline__ f32 power(f32 x, f32 largest);

template <>
__device__ __forceinline__ f32 power<f32>(f32 x, f32 largest) {
    return expf(x - largest);
}

template <>
__device__ __forceinline__ f32 power<bf16>(f32 x, f32 largest) {
    constexpr f32 LOG2_E = 1.4426950408889634f;
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaf(x, LOG2_E, -largest * LOG2_E)));
    return y;
}

// Σ e to the power of `x - largest` over some logits.
struct Powers {
    f32 largest, sum;
};

__device__ __forceinline__ f32 largest_of_warp(f32 value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

// What is behind the vocabulary becomes minus infinity, which counts for nothing.
template <typename E>
__device__ __forceinline__ Packed<E> without_rest(Packed<E> packed, u32 vector, u32 vocabulary);

template <>
__device__ __forceinline__ Packed<f32> without_rest(Packed<f32> packed, u32 vector, u32 vocabulary) {
    u32* const words[4] = {&packed.raw.x, &packed.raw.y, &packed.raw.z, &packed.raw.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        *words[i] = vector * 4 + i < vocabulary ? *words[i] : 0xff800000u;
    }
    return packed;
}

template <>
__device__ __forceinline__ Packed<bf16> without_rest(Packed<bf16> packed, u32 vector, u32 vocabulary) {
    u32* const words[4] = {&packed.raw.x, &packed.raw.y, &packed.raw.z, &packed.raw.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 low = vector * 8 + 2 * i < vocabulary ? *words[i] & 0xffffu : 0xff80u;
        const u32 high = vector * 8 + 2 * i + 1 < vocabulary ? *words[i] & 0xffff0000u : 0xff800000u;
        *words[i] = low | high;
    }
    return packed;
}

template <typename E, u32 COUNT>
struct Some {
    Packed<E> at[COUNT];
};

// This block's part of each row, in vectors: `kept` of them are in shared memory, where a thread finds those that it
// copied. They are worked on in chunks, and each chunk is a group of copies.
template <typename E>
struct Share {
    static constexpr u32 COUNT = Lanes<E>::COUNT;
    u32 first, kept, end, vocabulary, num_chunks, here;

    __device__ __forceinline__ Share(u32 place, u32 vocabulary, u32 most) : vocabulary(vocabulary) {
        const u32 num_vectors = (vocabulary + COUNT - 1) / COUNT, share = (num_vectors + PARTS - 1) / PARTS;
        first = min(place * share, num_vectors);
        end = min(first + share, num_vectors);
        kept = min(most, end - first);
        num_chunks = (kept + CHUNK - 1) / CHUNK;
        here = address_of_shared() + threadIdx.x * sizeof(uint4);
    }

    // Whether this thread works on `vector`, which is one of `first..end`.
    __device__ __forceinline__ bool is_of_thread(u32 vector) const {
        return (vector - first - (vector - first < kept ? 0 : kept)) % THREADS == threadIdx.x;
    }

    // Copies this thread's vectors of `chunk`.
    __device__ __forceinline__ void begin(const E* row, u32 chunk) const {
        const u32 begin = chunk * CHUNK + threadIdx.x;
        const E* from = row + u64(first + begin) * COUNT;
        const u32 to = here + chunk * CHUNK * u32(sizeof(uint4));
        if ((chunk + 1) * CHUNK <= kept) {
#pragma unroll
            for (u32 i = 0; i < CHUNK; i += THREADS) {
                begin_copy(to + i * u32(sizeof(uint4)), from + i * COUNT);
            }
        } else {
#pragma unroll 1
            for (u32 i = 0; begin + i < kept; i += THREADS) {
                begin_copy(to + i * u32(sizeof(uint4)), from + i * COUNT);
            }
        }
        end_group();
    }

    // Calls `each(some vectors, the first of them)` for this thread's vectors of a chunk, `THREADS` apart.
    template <typename F>
    __device__ __forceinline__ void for_each(u32 chunk, F each) const {
        const u32 begin = chunk * CHUNK + threadIdx.x;
        if ((chunk + 1) * CHUNK <= kept && (first + (chunk + 1) * CHUNK) * COUNT <= vocabulary) {
            Some<E, AT_ONCE> some;
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i) {
                some.at[i] = {shared_memory[begin + i * THREADS]};
            }
            each(some, first + begin);
            return;
        }
#pragma unroll 1
        for (u32 i = begin; i < min((chunk + 1) * CHUNK, kept); i += THREADS) {
            each(Some<E, 1>{{without_rest<E>({shared_memory[i]}, first + i, vocabulary)}}, first + i);
        }
    }

    // The same for its vectors that are not kept.
    template <typename F>
    __device__ __forceinline__ void for_each_of_others(const E* row, F each) const {
        for (u32 at = first + kept + threadIdx.x; at < end; at += THREADS) {
            each(Some<E, 1>{{without_rest<E>(load_packed(row + u64(at) * COUNT), at, vocabulary)}}, at);
        }
    }
};

// Sums powers as logits come along.
template <typename E>
struct Summer {
    Powers powers = {__uint_as_float(LOWEST), 0.0f};

    template <u32 COUNT>
    __device__ __forceinline__ void see(const Some<E, COUNT>& some) {
        Largest<E> seen;
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            seen.see(some.at[i]);
        }
        const f32 largest = fmaxf(powers.largest, seen.value());
        f32 sum = powers.sum * power<E>(powers.largest - largest, 0.0f);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const Lanes<E> x = unpack(some.at[i]);
#pragma unroll
            for (u32 j = 0; j < Lanes<E>::COUNT; j += 2) {
                sum += power<E>(x.at[j], largest) + power<E>(x.at[j + 1], largest);
            }
        }
        powers = {largest, sum};
    }
};

// What the blocks that share a row tell each other, of each of their warps.
struct Told {
    f32 largest[PARTS * WARPS], sum[PARTS * WARPS];

    // Those of all threads of all blocks.
    __device__ __forceinline__ Powers of_row(Powers powers, u32 place) {
        const f32 of_warp = largest_of_warp(powers.largest);
        const f32 sum_here = sum_of_warp(powers.sum * expf(powers.largest - of_warp));
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (lane < PARTS) {
            store_in_part(&largest[place * WARPS + warp], lane, of_warp);
            store_in_part(&sum[place * WARPS + warp], lane, sum_here);
        }
        arrive();
        wait();
        powers = {__uint_as_float(LOWEST), 0.0f};
        for (u32 i = lane; i < PARTS * WARPS; i += 32) {
            powers.largest = fmaxf(powers.largest, largest[i]);
        }
        powers.largest = largest_of_warp(powers.largest);
        for (u32 i = lane; i < PARTS * WARPS; i += 32) {
            powers.sum += sum[i] * expf(largest[i] - powers.largest);
        }
        powers.sum = sum_of_warp(powers.sum);
        return powers;
    }
};

// The gradient of the logits takes their place where `weights` are given. Rows begin at multiples of 16 bytes.
template <typename E>
__device__ __forceinline__ void loss_of_row(
    E* logits, const u32* __restrict__ targets, const f32* __restrict__ weights, f32* __restrict__ losses,
    u32 vocabulary, u32 leading, u32 kept) {
    constexpr u32 COUNT = Lanes<E>::COUNT;
    __shared__ Told told;
    // Nobody writes to a block that has not begun.
    arrive();
    const u32 place = blockIdx.x % PARTS, index = blockIdx.x / PARTS;
    const Share<E> part(place, vocabulary, kept);
    E* const row = logits + u64(index) * leading;
    for (u32 chunk = 0; chunk < part.num_chunks; ++chunk) {
        part.begin(row, chunk);
    }
    wait();
    const u32 target = targets[index], its_vector = target / COUNT;
    // The thread that reads and writes the target's logit.
    const bool has_target = target < vocabulary && its_vector >= part.first && its_vector < part.end &&
                            part.is_of_thread(its_vector);
    const f32 target_logit = has_target ? to_f32(row[target]) : not_a_number();
    const f32 weight = weights == nullptr ? 0.0f : weights[index];
    Summer<E> summer;
    const auto see = [&](const auto& some, u32) { summer.see(some); };
    for (u32 chunk = 0; chunk < part.num_chunks; ++chunk) {
        wait_for_all_but(part.num_chunks - 1 - chunk);
        part.for_each(chunk, see);
    }
    part.for_each_of_others(row, see);
    const Powers powers = told.of_row(summer.powers, place);
    if (has_target || (target >= vocabulary && place == 0 && threadIdx.x == 0)) {
        losses[index] = logf(powers.sum) + powers.largest - target_logit;
    }
    if (weights == nullptr) {
        return;
    }
    const f32 factor = weight / powers.sum;
    const auto write = [&](const auto& some, u32 first) {
#pragma unroll
        for (u32 i = 0; i < sizeof(some) / sizeof(uint4); ++i) {
            Lanes<E> x = unpack(some.at[i]);
#pragma unroll
            for (u32 j = 0; j < COUNT; ++j) {
                x.at[j] = factor * power<E>(x.at[j], powers.largest);
            }
            store(row + u64(first + i * THREADS) * COUNT, x);
        }
    };
    for (u32 chunk = 0; chunk < part.num_chunks; ++chunk) {
        part.for_each(chunk, write);
    }
    part.for_each_of_others(row, write);
    if (has_target) {
        row[target] = from_f32<E>(factor * power<E>(target_logit, powers.largest) - weight);
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void IN_CLUSTERS __launch_bounds__(THREADS, 4) cross_entropy_##E(                            \
        E* logits, const u32* targets, const f32* weights, f32* losses, u32 vocabulary, u32 leading, u32 kept) {       \
        loss_of_row<E>(logits, targets, weights, losses, vocabulary, leading, kept);                                   \
    }

KERNELS(f32)
KERNELS(bf16)
