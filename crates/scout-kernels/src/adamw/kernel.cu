// One step of AdamW in place. Every operation is rounded by itself, in the order of the host version, so both give the
// same bits: no multiplication is fused with an addition.
#include "prelude.cuh"

struct Scalars {
    f32 gradient_scale, decay, lerp, beta2, one_minus_beta2, correction2_sqrt, epsilon, negative_step_size;
};

__device__ __forceinline__ void update(f32& p, f32 g, f32& m, f32& v, const Scalars& s) {
    g = __fmul_rn(g, s.gradient_scale);
    p = __fmul_rn(p, s.decay);
    const f32 apart = __fsub_rn(g, m);
    m = s.lerp < 0.5f ? __fadd_rn(m, __fmul_rn(s.lerp, apart))
                      : __fsub_rn(g, __fmul_rn(apart, __fsub_rn(1.0f, s.lerp)));
    v = __fadd_rn(__fmul_rn(v, s.beta2), __fmul_rn(__fmul_rn(s.one_minus_beta2, g), g));
    const f32 denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), s.correction2_sqrt), s.epsilon);
    p = __fadd_rn(p, __fdiv_rn(__fmul_rn(s.negative_step_size, m), denominator));
}

// Four bf16 at a multiple of 8 bytes.
__device__ __forceinline__ void store_rounded(bf16* to, const Lanes<f32>& lanes) {
    uint2 raw;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(raw.x) : "f"(lanes.at[1]), "f"(lanes.at[0]));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(raw.y) : "f"(lanes.at[3]), "f"(lanes.at[2]));
    *reinterpret_cast<uint2*>(to) = raw;
}

// Elements `start` to `start + len` of each run; `rounded`, where there is one, gets the new parameters in bf16.
extern "C" __global__ void adamw_update(
    f32* parameters, const f32* __restrict__ gradients, f32* first_moment, f32* second_moment, bf16* rounded, u64 start,
    u64 len, f32 gradient_scale, f32 decay, f32 lerp, f32 beta2, f32 one_minus_beta2, f32 correction2_sqrt, f32 epsilon,
    f32 negative_step_size) {
    const Scalars s = {gradient_scale, decay, lerp, beta2, one_minus_beta2, correction2_sqrt, epsilon,
                       negative_step_size};
    parameters += start;
    gradients += start;
    first_moment += start;
    second_moment += start;
    if (rounded != nullptr) {
        rounded += start;
    }
    const u64 thread = u64(blockIdx.x) * blockDim.x + threadIdx.x, num_threads = u64(gridDim.x) * blockDim.x;
    constexpr u64 COUNT = Lanes<f32>::COUNT;
    const bool aligned = is_aligned(parameters, 0) && is_aligned(gradients, 0) && is_aligned(first_moment, 0) &&
                         is_aligned(second_moment, 0) && reinterpret_cast<u64>(rounded) % 8 == 0;
    const u64 num_vectors = aligned ? len / COUNT : 0;
    for (u64 at = thread; at < num_vectors; at += num_threads) {
        Lanes<f32> p = load(parameters + at * COUNT), m = load(first_moment + at * COUNT);
        Lanes<f32> v = load(second_moment + at * COUNT);
        const Lanes<f32> g = load(gradients + at * COUNT);
#pragma unroll
        for (int i = 0; i < int(COUNT); ++i) {
            update(p.at[i], g.at[i], m.at[i], v.at[i], s);
        }
        store(parameters + at * COUNT, p);
        store(first_moment + at * COUNT, m);
        store(second_moment + at * COUNT, v);
        if (rounded != nullptr) {
            store_rounded(rounded + at * COUNT, p);
        }
    }
    for (u64 at = num_vectors * COUNT + thread; at < len; at += num_threads) {
        f32 p = parameters[at];
        update(p, gradients[at], first_moment[at], second_moment[at], s);
        parameters[at] = p;
        if (rounded != nullptr) {
            rounded[at] = from_f32<bf16>(p);
        }
    }
}
