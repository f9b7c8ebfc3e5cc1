// Shared memory and the matrix units that all of 8.0 and later have: copies that go on by themselves, squares of 8 by 8
// elements as a warp takes them, and their product.
#pragma once
#include "prelude.cuh"

__device__ __forceinline__ u32 shared_address(const void* of) {
    u64 address;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(of));
    return u32(address);
}

// Begins to copy 16 bytes to shared memory; zeros, and nothing is read, where `is_there` is false.
__device__ __forceinline__ void copy_16(u32 to, const void* from, bool is_there) {
    const u32 bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Four squares of 8 by 8 elements: lane `8 i + r` names row `r` of square `i`; of each, lane `4 r + c` gets the columns
// `2 c` and `2 c + 1` of row `r`.
__device__ __forceinline__ void load_squares(u32 (&of)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(of[0]), "=r"(of[1]), "=r"(of[2]), "=r"(of[3])
                 : "r"(from)
                 : "memory");
}

// The same with rows and columns exchanged: lane `4 r + c` gets the rows `2 c` and `2 c + 1` of column `r`.
__device__ __forceinline__ void load_squares_across(u32 (&of)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(of[0]), "=r"(of[1]), "=r"(of[2]), "=r"(of[3])
                 : "r"(from)
                 : "memory");
}

// Two squares, named by the first 16 lanes.
__device__ __forceinline__ void load_squares_across(u32 (&of)[2], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(of[0]), "=r"(of[1])
                 : "r"(from)
                 : "memory");
}

// y[16, 8] += a[16, 16] · b[16, 8]. Lane `4 r + c` has, of the left factor, the columns `2 c` and `2 c + 1` of row `r` in
// squares (0, 0), (1, 0), (0, 1), (1, 1); of the right one, the rows `2 c` and `2 c + 1` of column `r` in the upper and the
// lower square; of the sum, the columns `2 c` and `2 c + 1` of rows `r` and `r + 8`.
__device__ __forceinline__ void multiply(f32 (&y)[4], const u32 (&a)[4], u32 upper, u32 lower) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(y[0]), "+f"(y[1]), "+f"(y[2]), "+f"(y[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(upper), "r"(lower));
}
