// What a warp feeds to the tensor cores: mma.sync m16n8k16 with f16 operands and f32 sums, and the
// instructions that bring operands into its fragments.
//
// Lane 4 g + t (g < 8, t < 4) holds, in 32-bit words of two halves:
//   a[0] A[g][2t, 2t+1]   a[1] A[g+8][2t, 2t+1]   a[2] A[g][2t+8, 2t+9]   a[3] A[g+8][2t+8, 2t+9]
//   b0   B[2t, 2t+1][g]   b1   B[2t+8, 2t+9][g]
//   c[0] C[g][2t]         c[1] C[g][2t+1]         c[2] C[g+8][2t]         c[3] C[g+8][2t+1]
// The sum over k may run in any order of k as long as A and B agree on it.
#ifndef LV_KERNELS_CUDA_FRAGMENTS_CUH
#define LV_KERNELS_CUDA_FRAGMENTS_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

// 16 bytes of memory in four registers.
typedef struct __align__(16) lv_chunk {
    uint32_t word[4];
}
lv_chunk;

// c += a b. sm_75 has only the half-deep form: k 0 .. 7, then k 8 .. 15.
__device__ static inline void lv_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// Four 8 x 8 matrices of halves from shared memory: lane l gives the address of row l % 8 (16
// bytes) of matrix l / 8; word i is matrix i's row g, columns 2t and 2t+1.
__device__ static inline void lv_ldmatrix(uint32_t word[4], const void *row) {
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(address)
                 : "memory");
}

// The same, transposed: word i is column g, rows 2t and 2t+1.
__device__ static inline void lv_ldmatrix_transposed(uint32_t word[4], const void *row) {
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(address)
                 : "memory");
}

// An 8 x 8 matrix of halves, lane 4 g + t holding [g][2t, 2t+1], transposed.
__device__ static inline uint32_t lv_transpose(uint32_t word) {
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word));
    return out;
}

// 16 bytes that are read once: not kept in L1.
__device__ static inline lv_chunk lv_load_once(const void *from) {
    lv_chunk c;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(c.word[0]), "=r"(c.word[1]), "=r"(c.word[2]), "=r"(c.word[3])
                 : "l"(from)
                 : "memory");
    return c;
}

// 16 bytes from global to shared memory, or zeros. Complete after lv_copies_wait and a barrier.
__device__ static inline void lv_copy_chunk(void *shared, const void *global, bool zero) {
#if __CUDA_ARCH__ >= 800
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    const int n_bytes = zero ? 0 : 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(n_bytes)
                 : "memory");
#else
    *(uint4 *)shared = zero ? make_uint4(0, 0, 0, 0) : *(const uint4 *)global;
#endif
}

// Waits for all copies that this thread began.
__device__ static inline void lv_copies_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// 2^x by the special function unit; 0 below the normal numbers.
__device__ static inline float lv_exp2(float x) {
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 2^x, exactly, for a whole x <= 0; 0 below 2^-126. -inf gives 0, NaN gives 1.
__device__ static inline float lv_exp2_whole(float x) {
    return __int_as_float(max(__float2int_rn(x) + 127, 0) << 23);
}

__device__ static inline uint32_t lv_pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *(const uint32_t *)&pair;
}

// Bytes 0 and 1 (`upper`: 2 and 3) of `bytes`, each 128 + q, as the halves q: 0x6400 + u is 1024 +
// u.
__device__ static inline uint32_t lv_unpack_i8(uint32_t bytes, bool upper) {
    const uint32_t biased = __byte_perm(bytes, 0x64646464u, upper ? 0x4342 : 0x4140);
    const __half2 q = __hsub2(*(const __half2 *)&biased, __half2half2(__ushort_as_half(0x6480)));
    return *(const uint32_t *)&q;
}

#endif
