// What all kernels share: element types, 16-byte accesses, sums over a block. It includes nothing, so that kernels
// compile without CUDA's headers too.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;

// Sixteen bits of a float; arithmetic is done in f32.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ f32 to_f32(f32 x) { return x; }
__device__ __forceinline__ f32 to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

template <typename E>
__device__ __forceinline__ E from_f32(f32 x);

template <>
__device__ __forceinline__ f32 from_f32<f32>(f32 x) {
    return x;
}

// To the nearest, to even between two; not-a-number stays one.
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two elements as they lie in memory, `first` in the lower half.
__device__ __forceinline__ u32 pack(f32 first, f32 second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

// As many elements as one 16-byte access moves.
template <typename E>
struct Lanes {
    static constexpr int COUNT = 16 / sizeof(E);
    f32 at[COUNT];
};

// The same elements as they lie in memory: what to keep in registers between two uses.
template <typename E>
struct Packed {
    uint4 raw;
};

// Reads `Lanes<E>::COUNT` elements; `from` is a multiple of 16.
template <typename E>
__device__ __forceinline__ Packed<E> load_packed(const E* from) {
    return {*reinterpret_cast<const uint4*>(from)};
}

__device__ __forceinline__ Lanes<f32> unpack(const Packed<f32>& packed) {
    const uint4 raw = packed.raw;
    return {{__uint_as_float(raw.x), __uint_as_float(raw.y), __uint_as_float(raw.z), __uint_as_float(raw.w)}};
}

__device__ __forceinline__ Lanes<bf16> unpack(const Packed<bf16>& packed) {
    const uint4 raw = packed.raw;
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    Lanes<bf16> lanes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        lanes.at[2 * i] = __uint_as_float(words[i] << 16);
        lanes.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return lanes;
}

template <typename E>
__device__ __forceinline__ Lanes<E> load(const E* from) {
    return unpack(load_packed(from));
}

// Writes `Lanes<E>::COUNT` elements; `to` is a multiple of 16.
__device__ __forceinline__ void store(f32* to, const Lanes<f32>& lanes) {
    uint4 raw;
    raw.x = __float_as_uint(lanes.at[0]);
    raw.y = __float_as_uint(lanes.at[1]);
    raw.z = __float_as_uint(lanes.at[2]);
    raw.w = __float_as_uint(lanes.at[3]);
    *reinterpret_cast<uint4*>(to) = raw;
}

__device__ __forceinline__ void store(bf16* to, const Lanes<bf16>& lanes) {
    uint4 raw;
    raw.x = pack(lanes.at[0], lanes.at[1]);
    raw.y = pack(lanes.at[2], lanes.at[3]);
    raw.z = pack(lanes.at[4], lanes.at[5]);
    raw.w = pack(lanes.at[6], lanes.at[7]);
    *reinterpret_cast<uint4*>(to) = raw;
}

// Whether rows of `width` elements, the first of them at `address`, all begin at multiples of 16.
template <typename E>
__device__ __forceinline__ bool is_aligned(const E* address, u64 width) {
    return (reinterpret_cast<u64>(address) | (width * sizeof(E))) % 16 == 0;
}

// A few elements of a row, as many as one access moves: 16 bytes where rows begin at multiples of 16, else one element.
template <typename E, int COUNT>
struct Part {
    f32 at[COUNT];
};

template <int COUNT, typename E>
__device__ __forceinline__ Part<E, COUNT> load_part(const E* from) {
    Part<E, COUNT> part;
    if constexpr (COUNT == 1) {
        part.at[0] = to_f32(*from);
    } else {
        const Lanes<E> lanes = load(from);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            part.at[i] = lanes.at[i];
        }
    }
    return part;
}

template <int COUNT, typename E>
__device__ __forceinline__ void store_part(E* to, const Part<E, COUNT>& part) {
    if constexpr (COUNT == 1) {
        *to = from_f32<E>(part.at[0]);
    } else {
        Lanes<E> lanes;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            lanes.at[i] = part.at[i];
        }
        store(to, lanes);
    }
}

template <int COUNT>
struct Count {
    static constexpr int VALUE = COUNT;
};

// Calls `each(Count<elements>, first element)` for this thread's parts of a row that the whole block works on. `aligned`
// says whether the row begins at a multiple of 16 wherever it is read or written.
template <typename E, typename F>
__device__ __forceinline__ void for_each_part(u32 width, bool aligned, F each) {
    constexpr u32 COUNT = Lanes<E>::COUNT;
    if (aligned && width % COUNT == 0) {
#pragma unroll 4
        for (u32 at = threadIdx.x * COUNT; at < width; at += blockDim.x * COUNT) {
            each(Count<COUNT>{}, at);
        }
    } else {
        for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
            each(Count<1>{}, at);
        }
    }
}

__device__ __forceinline__ f32 not_a_number() { return __uint_as_float(0x7fc00000u); }

__device__ __forceinline__ f32 sum_of_warp(f32 value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// The sum of `value` over all threads, which all get; blocks are whole warps. May be called again and again.
__device__ __forceinline__ f32 sum_of_block(f32 value) {
    __shared__ f32 of_warp[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
    value = sum_of_warp(value);
    __syncthreads();
    if (lane == 0) {
        of_warp[warp] = value;
    }
    __syncthreads();
    return sum_of_warp(lane < num_warps ? of_warp[lane] : 0.0f);
}
