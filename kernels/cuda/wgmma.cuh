// Hopper's wgmma with A in registers: f16 operands, f32 sums. Fragments of A and of the sums are
// those of mma.sync (fragments.cuh), 16 rows a warp. Only builds for sm_90a have it.
#ifndef LV_KERNELS_CUDA_WGMMA_CUH
#define LV_KERNELS_CUDA_WGMMA_CUH

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#include <stdint.h>

// Before the first lv_wgmma that reads registers written otherwise.
__device__ static inline void lv_wgmma_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static inline void lv_wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ static inline void lv_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Sums are what wgmma left, not what they were before lv_wgmma_wait.
template <int NT> __device__ static inline void lv_wgmma_settle(float c[NT][4]) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
        asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
    }
}

#define LV_SUM(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define LV_SUMS4(n) LV_SUM(n), LV_SUM(n + 1), LV_SUM(n + 2), LV_SUM(n + 3)
#define LV_WGMMA(n, sums, at_a, at_b, at_add, at_along, ...)                                       \
    asm volatile("{\n"                                                                             \
                 ".reg .pred p;\n"                                                                 \
                 "setp.ne.b32 p, " at_add ", 0;\n"                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.f16.f16 {" sums "}, {" at_a        \
                 "}, " at_b ", p, 1, 1, " at_along ";\n"                                           \
                 "}\n"                                                                             \
                 : __VA_ARGS__                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add),              \
                   "n"((int)ALONG))

// c [64, 8 NT] = a b^T, or added to it, b [8 NT, 16]; ALONG: a b, b [16, 8 NT]. b: its descriptor.
template <int NT, bool ALONG>
__device__ static inline void lv_wgmma(float c[NT][4], const uint32_t a[4], uint64_t b, bool add) {
    static_assert(NT == 4 || NT == 8 || NT == 16, "no such wgmma here");
    if constexpr (NT == 4) {
        LV_WGMMA("32", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15",
                 "%16, %17, %18, %19", "%20", "%21", "%22", LV_SUMS4(0));
    } else if constexpr (NT == 8) {
        LV_WGMMA("64",
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
                 "%30, %31",
                 "%32, %33, %34, %35", "%36", "%37", "%38", LV_SUMS4(0), LV_SUMS4(4));
    } else {
        LV_WGMMA("128",
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
                 "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
                 "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
                 "%58, %59, %60, %61, %62, %63",
                 "%64, %65, %66, %67", "%68", "%69", "%70", LV_SUMS4(0), LV_SUMS4(4), LV_SUMS4(8),
                 LV_SUMS4(12));
    }
}

#endif // wgmma
#endif
