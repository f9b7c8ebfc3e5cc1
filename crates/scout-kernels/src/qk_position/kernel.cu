// Rotation of pairs by position, division by the root mean square of a head, and their way back: one warp for each
// token, whose threads keep sine and cosine of the pairs they own for all heads. The temperature has one block a token.
// Local memory: 32 bytes, because the sine of a large angle is reduced in an array of words.
#include "prelude.cuh"

constexpr u32 WARPS = 4;
// Heads, or groups of them, that a warp has in flight.
constexpr u32 AT_ONCE = 4;

// What a thread does with the elements of a head that are its own.
template <typename E>
struct Turn {
    static constexpr int PAIRS = Lanes<E>::COUNT / 2;
    f32 sin[PAIRS], cos[PAIRS];
};

// `direction` is 1 on the way forward and −1 on the way back. The angle is rounded before its sine is taken.
__device__ __forceinline__ void turn_of(u32 position, f32 frequency, f32 direction, f32& sin, f32& cos) {
    sincosf(__fmul_rn(f32(position), frequency), &sin, &cos);
    sin *= direction;
}

template <typename E>
__device__ __forceinline__ Turn<E> turn_of(u32 position, const f32* __restrict__ frequencies, f32 direction) {
    Turn<E> turn;
#pragma unroll
    for (int pair = 0; pair < Turn<E>::PAIRS; ++pair) {
        turn_of(position, frequencies[pair], direction, turn.sin[pair], turn.cos[pair]);
    }
    return turn;
}

template <typename E>
__device__ __forceinline__ void apply(const Turn<E>& turn, Lanes<E>& x) {
#pragma unroll
    for (int pair = 0; pair < Turn<E>::PAIRS; ++pair) {
        const f32 a = x.at[2 * pair], b = x.at[2 * pair + 1];
        x.at[2 * pair] = a * turn.cos[pair] - b * turn.sin[pair];
        x.at[2 * pair + 1] = a * turn.sin[pair] + b * turn.cos[pair];
    }
}

// Sums over runs of `lanes` threads, a power of two.
__device__ __forceinline__ f32 sum_of_lanes(f32 value, u32 lanes) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) {
        const f32 other = __shfl_xor_sync(0xffffffffu, value, distance);
        if (distance < lanes) {
            value += other;
        }
    }
    return value;
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
__device__ __forceinline__ void scale(Lanes<E>& x, f32 factor) {
#pragma unroll
    for (int i = 0; i < Lanes<E>::COUNT; ++i) {
        x.at[i] *= factor;
    }
}

// How many threads own a head, if they fill a warp evenly; 0 for heads that are worked on element by element.
template <typename E>
__device__ __forceinline__ u32 lanes_of_head(u32 head_size) {
    const u32 lanes = head_size / Lanes<E>::COUNT;
    const bool is_even = head_size % Lanes<E>::COUNT == 0 && lanes > 0 && lanes <= 32 && (lanes & (lanes - 1)) == 0;
    return is_even ? lanes : 0;
}

template <typename E>
__device__ __forceinline__ void forward(
    const E* __restrict__ x, const u32* __restrict__ positions, const f32* __restrict__ frequencies,
    E* __restrict__ y, f32* __restrict__ inverse_rms, u32 num_tokens, u32 num_heads, u32 head_size, f32 epsilon,
    f32 direction) {
    const u64 token = u64(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (token >= num_tokens) {
        return;
    }
    const u32 thread = threadIdx.x % 32, position = positions[token];
    x += token * num_heads * head_size;
    y += token * num_heads * head_size;
    if (inverse_rms != nullptr) {
        inverse_rms += token * num_heads;
    }
    const u32 lanes = lanes_of_head<E>(head_size);
    if (lanes == 0 || !is_aligned(x, 0) || !is_aligned(y, 0)) {
        for (u32 head = 0; head < num_heads; ++head, x += head_size, y += head_size) {
            f32 r = 1.0f;
            if (inverse_rms != nullptr) {
                f32 sum = 0.0f;
                // Turning changes no norm.
                for (u32 i = thread; i < head_size; i += 32) {
                    sum += to_f32(x[i]) * to_f32(x[i]);
                }
                r = 1.0f / sqrtf(sum_of_warp(sum) / f32(head_size) + epsilon);
                if (thread == 0) {
                    inverse_rms[head] = r;
                }
            }
            for (u32 pair = thread; 2 * pair < head_size; pair += 32) {
                f32 sin, cos;
                turn_of(position, frequencies[pair], direction, sin, cos);
                const f32 a = to_f32(x[2 * pair]), b = to_f32(x[2 * pair + 1]);
                y[2 * pair] = from_f32<E>((a * cos - b * sin) * r);
                y[2 * pair + 1] = from_f32<E>((a * sin + b * cos) * r);
            }
        }
        return;
    }
    const u32 own = thread % lanes * Lanes<E>::COUNT, together = 32 / lanes;
    const Turn<E> turn = turn_of<E>(position, frequencies + own / 2, direction);
    for (u32 first = thread / lanes; first - thread / lanes < num_heads; first += AT_ONCE * together) {
        Packed<E> kept[AT_ONCE] = {};
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 head = first + i * together;
            if (head < num_heads) {
                kept[i] = load_packed(x + u64(head) * head_size + own);
            }
        }
        // All threads of the warp take part in the sums, those without a head too.
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 head = first + i * together;
            Lanes<E> v = unpack(kept[i]);
            apply<E>(turn, v);
            if (inverse_rms != nullptr) {
                const f32 r = 1.0f / sqrtf(sum_of_lanes(dot<E>(v, v), lanes) / f32(head_size) + epsilon);
                scale<E>(v, r);
                if (head < num_heads && own == 0) {
                    inverse_rms[head] = r;
                }
            }
            if (head < num_heads) {
                store(y + u64(head) * head_size + own, v);
            }
        }
    }
}

// Through the norm, r·(dy − y·mean(dy ⊙ y)), then back through the rotation.
template <typename E>
__device__ __forceinline__ void backward(
    const E* __restrict__ dy, const E* __restrict__ y, const f32* __restrict__ inverse_rms,
    const u32* __restrict__ positions, const f32* __restrict__ frequencies, E* __restrict__ dx, u32 num_tokens,
    u32 num_heads, u32 head_size) {
    const u64 token = u64(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (token >= num_tokens) {
        return;
    }
    const u32 thread = threadIdx.x % 32, position = positions[token];
    dy += token * num_heads * head_size;
    y += token * num_heads * head_size;
    dx += token * num_heads * head_size;
    inverse_rms += token * num_heads;
    const u32 lanes = lanes_of_head<E>(head_size);
    if (lanes == 0 || !is_aligned(dy, 0) || !is_aligned(y, 0) || !is_aligned(dx, 0)) {
        for (u32 head = 0; head < num_heads; ++head, dy += head_size, y += head_size, dx += head_size) {
            f32 sum = 0.0f;
            for (u32 i = thread; i < head_size; i += 32) {
                sum += to_f32(dy[i]) * to_f32(y[i]);
            }
            const f32 mean = sum_of_warp(sum) / f32(head_size), r = inverse_rms[head];
            for (u32 pair = thread; 2 * pair < head_size; pair += 32) {
                f32 sin, cos;
                turn_of(position, frequencies[pair], -1.0f, sin, cos);
                const f32 a = r * (to_f32(dy[2 * pair]) - to_f32(y[2 * pair]) * mean);
                const f32 b = r * (to_f32(dy[2 * pair + 1]) - to_f32(y[2 * pair + 1]) * mean);
                dx[2 * pair] = from_f32<E>(a * cos - b * sin);
                dx[2 * pair + 1] = from_f32<E>(a * sin + b * cos);
            }
        }
        return;
    }
    const u32 own = thread % lanes * Lanes<E>::COUNT, together = 32 / lanes;
    const Turn<E> turn = turn_of<E>(position, frequencies + own / 2, -1.0f);
    for (u32 first = thread / lanes; first - thread / lanes < num_heads; first += AT_ONCE * together) {
        Packed<E> kept_dy[AT_ONCE] = {}, kept_y[AT_ONCE] = {};
        f32 r[AT_ONCE] = {};
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 head = first + i * together;
            if (head < num_heads) {
                kept_dy[i] = load_packed(dy + u64(head) * head_size + own);
                kept_y[i] = load_packed(y + u64(head) * head_size + own);
                r[i] = inverse_rms[head];
            }
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 head = first + i * together;
            Lanes<E> g = unpack(kept_dy[i]);
            const Lanes<E> v = unpack(kept_y[i]);
            const f32 mean = sum_of_lanes(dot<E>(g, v), lanes) / f32(head_size);
#pragma unroll
            for (int j = 0; j < Lanes<E>::COUNT; ++j) {
                g.at[j] = r[i] * (g.at[j] - v.at[j] * mean);
            }
            apply<E>(turn, g);
            if (head < num_heads) {
                store(dx + u64(head) * head_size + own, g);
            }
        }
    }
}

template <typename E>
__device__ __forceinline__ void temper(
    const E* __restrict__ x, const u32* __restrict__ positions, E* __restrict__ y, u32 width, f32 attn_scale,
    f32 floor_scale) {
    const f32 steps = floorf((f32(positions[blockIdx.x]) + 1.0f) / floor_scale);
    const f32 factor = log1pf(steps) * attn_scale + 1.0f;
    x += u64(blockIdx.x) * width;
    y += u64(blockIdx.x) * width;
    for_each_part<E>(width, is_aligned(x, 0) && is_aligned(y, 0), [&](auto count, u32 at) {
        constexpr int COUNT = decltype(count)::VALUE;
        Part<E, COUNT> part = load_part<COUNT>(x + at);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            part.at[i] *= factor;
        }
        store_part<COUNT>(y + at, part);
    });
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void qk_position_turn_##E(                                                                   \
        const E* x, const u32* positions, const f32* frequencies, E* y, f32* inverse_rms, u32 num_tokens,              \
        u32 num_heads, u32 head_size, f32 epsilon, f32 direction) {                                                    \
        forward<E>(                                                                                                    \
            x, positions, frequencies, y, inverse_rms, num_tokens, num_heads, head_size, epsilon, direction);          \
    }                                                                                                                  \
    extern "C" __global__ void qk_position_backward_##E(                                                               \
        const E* dy, const E* y, const f32* inverse_rms, const u32* positions, const f32* frequencies, E* dx,          \
        u32 num_tokens, u32 num_heads, u32 head_size) {                                                                \
        backward<E>(dy, y, inverse_rms, positions, frequencies, dx, num_tokens, num_heads, head_size);                 \
    }                                                                                                                  \
    extern "C" __global__ void qk_position_temper_##E(                                                                 \
        const E* __restrict__ x, const u32* __restrict__ positions, E* __restrict__ y, u32 width, f32 attn_scale,      \
        f32 floor_scale) {                                                                                             \
        temper<E>(x, positions, y, width, attn_scale, floor_scale);                                                    \
    }

KERNELS(f32)
KERNELS(bf16)
