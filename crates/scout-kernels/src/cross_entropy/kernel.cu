// From the logits of a row to its loss and, in place, to the gradient of its weighted loss. Where there are clusters
// (9.0 and later) eight blocks share a row: together their shared memory holds all of it, so that it is read once and
// written once, and they tell each other their sums. Elsewhere one block has the row and reads what does not fit
// again.
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

// Sixteen bytes from global to shared memory; the thread waits for all of its copies at once.
__device__ __forceinline__ void begin_copy(uint4* to, const void* from) {
    asm volatile(
        "{\n\t.reg .u64 address;\n\t.reg .u32 here;\n\tcvta.to.shared.u64 address, %0;\n\t"
        "cvt.u32.u64 here, address;\n\tcp.async.cg.shared.global [here], [%1], 16;\n\t}" ::"l"(to),
        "l"(from)
        : "memory");
}

__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

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

__device__ __forceinline__ Powers together(Powers a, Powers b) {
    const f32 largest = fmaxf(a.largest, b.largest);
    return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

// Those of all threads of a warp, which all get.
__device__ __forceinline__ Powers of_warp(Powers powers) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const f32 largest = __shfl_xor_sync(0xffffffffu, powers.largest, distance);
        powers = together(powers, {largest, __shfl_xor_sync(0xffffffffu, powers.sum, distance)});
    }
    return powers;
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

// This block's part of a row, in vectors: `kept` of them are in shared memory, where a thread finds those that it
// copied.
template <typename E>
struct Share {
    const E* row;
    u32 first, end, kept, vocabulary;

    __device__ __forceinline__ u32 end_of_kept() const { return first + kept < end ? first + kept : end; }

    __device__ __forceinline__ bool is_last(u32 at) const { return (at + 1) * Lanes<E>::COUNT > vocabulary; }

    // Copies this thread's vectors.
    __device__ __forceinline__ void keep() const {
        for (u32 at = first + threadIdx.x; at < end_of_kept(); at += THREADS) {
            begin_copy(shared_memory + (at - first), row + u64(at) * Lanes<E>::COUNT);
        }
        wait_for_copies();
        for (u32 at = first + threadIdx.x; at < end_of_kept(); at += THREADS) {
            if (is_last(at)) {
                const Packed<E> packed = {shared_memory[at - first]};
                shared_memory[at - first] = without_rest<E>(packed, at, vocabulary).raw;
            }
        }
    }

    // Calls `each(packed, vector)` for this thread's vectors.
    template <typename F>
    __device__ __forceinline__ void for_each(F each) const {
#pragma unroll 4
        for (u32 at = first + threadIdx.x; at < end_of_kept(); at += THREADS) {
            each(Packed<E>{shared_memory[at - first]}, at);
        }
        for (u32 at = first + kept + threadIdx.x; at < end; at += THREADS) {
            each(without_rest<E>(load_packed(row + u64(at) * Lanes<E>::COUNT), at, vocabulary), at);
        }
    }
};

// The gradient of the logits takes their place where `weights` are given. Rows begin at multiples of 16 bytes.
template <typename E>
__device__ __forceinline__ void loss_of_row(
    E* logits, const u32* __restrict__ targets, const f32* __restrict__ weights, f32* __restrict__ losses,
    u32 vocabulary, u32 leading, u32 kept) {
    constexpr u32 COUNT = Lanes<E>::COUNT;
    // Of every warp of every block that shares the row.
    __shared__ f32 largest_of[PARTS * WARPS], sum_of[PARTS * WARPS];
    const u32 index = blockIdx.x / PARTS, place = blockIdx.x % PARTS;
    // Nobody writes to a block that has not begun.
    arrive();
    E* const row = logits + u64(index) * leading;
    const u32 target = targets[index];
    const u32 num_vectors = (vocabulary + COUNT - 1) / COUNT, share = (num_vectors + PARTS - 1) / PARTS;
    const u32 first = place * share, end = first + share < num_vectors ? first + share : num_vectors;
    const Share<E> part = {row, first, end, kept, vocabulary};
    part.keep();
    // The thread that knows the target's logit before anybody writes.
    const bool has_target = threadIdx.x == 0 && target < vocabulary && target / COUNT >= first && target / COUNT < end;
    const f32 target_logit = has_target ? to_f32(row[target]) : not_a_number();
    Largest<E> largest_here;
    part.for_each([&](const Packed<E>& packed, u32) { largest_here.see(packed); });
    Powers powers = {largest_here.value(), 0.0f};
    part.for_each([&](const Packed<E>& packed, u32) {
        const Lanes<E> x = unpack(packed);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            powers.sum += power<E>(x.at[i], powers.largest);
        }
    });
    powers = of_warp(powers);
    wait();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane < PARTS) {
        store_in_part(&largest_of[place * WARPS + warp], lane, powers.largest);
        store_in_part(&sum_of[place * WARPS + warp], lane, powers.sum);
    }
    arrive();
    wait();
    powers = {__uint_as_float(LOWEST), 0.0f};
    for (u32 i = lane; i < PARTS * WARPS; i += 32) {
        powers = together(powers, {largest_of[i], sum_of[i]});
    }
    powers = of_warp(powers);
    const f32 largest = powers.largest, sum = powers.sum;
    if (has_target || (target >= vocabulary && place == 0 && threadIdx.x == 0)) {
        losses[index] = logf(sum) + largest - target_logit;
    }
    if (weights == nullptr) {
        return;
    }
    const f32 weight = weights[index], factor = weight / sum;
    part.for_each([&](const Packed<E>& packed, u32 at) {
        Lanes<E> x = unpack(packed);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            x.at[i] = factor * power<E>(x.at[i], largest);
        }
        store(row + u64(at) * COUNT, x);
    });
    __syncthreads();
    if (has_target) {
        row[target] = from_f32<E>(factor * power<E>(target_logit, largest) - weight);
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void IN_CLUSTERS __launch_bounds__(THREADS, 4) cross_entropy_##E(                            \
        E* logits, const u32* targets, const f32* weights, f32* losses, u32 vocabulary, u32 leading,                   \
        u32 kept) {                                                                                                    \
        loss_of_row<E>(logits, targets, weights, losses, vocabulary, leading, kept);                                   \
    }

KERNELS(f32)
KERNELS(bf16)
