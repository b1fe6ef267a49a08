// f16 values in and out of registers, shared by the kernels that work on rows.
#ifndef LV_KERNELS_CUDA_ROWS_CUH
#define LV_KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rms.cuh"

#define THREADS 256

__device__ static inline void load8(const __half *from, float v[8]) {
    lv_rms_unpack(*(const uint4 *)from, v);
}

__device__ static inline void store8(__half *to, const float v[8]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        *(__half2 *)&words[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
    }
    *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
}

// N values, 8 or 1.
template <int N> __device__ static inline void load(const __half *from, float v[N]) {
    if (N == 8) {
        load8(from, v);
    } else {
        v[0] = __half2float(from[0]);
    }
}

template <int N> __device__ static inline void store(__half *to, const float v[N]) {
    if (N == 8) {
        store8(to, v);
    } else {
        to[0] = __float2half_rn(v[0]);
    }
}

static inline int blocks_for(size_t n) {
    return (int)((n + THREADS - 1) / THREADS);
}

#endif
