// Element types on their way in: f32, f16, bf16 -> f16 rows in tile order, or f32.
//
//   to[place(row0 + r), k] = f16(from[r, k]), rounded to nearest
//
// Streams: bytes in plus bytes out over the memory's speed (lm_head of a 7B model, 262 MB each way:
// 0.12 ms at 4.3 TB/s), behind the host's copy of the same bytes. Eight elements a thread where
// rows allow 16-byte stores, one where they do not.
#include <cuda_bf16.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/records.h"

#define BLOCK 256

__device__ static inline float as_f32(float x) {
    return x;
}

__device__ static inline float as_f32(__half x) {
    return __half2float(x);
}

__device__ static inline float as_f32(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

__device__ static inline void store(float *to, float x) {
    *to = x;
}

__device__ static inline void store(__half *to, float x) {
    *to = __float2half_rn(x);
}

// What a thread reads at once.
template <class From, int WIDTH> struct __align__(WIDTH == 8 ? 16 : sizeof(From)) run {
    From at[WIDTH];
};

// WIDTH elements a thread: 8 (n_in a multiple of 8) or 1.
template <class From, int WIDTH>
static __global__ void __launch_bounds__(BLOCK)
    convert_rows(const From *__restrict__ from, int row0, int n_in, int pair, __half *to) {
    const int k = (blockIdx.y * BLOCK + threadIdx.x) * WIDTH, row = blockIdx.x;
    lv_wait_previous();
    if (k >= n_in) {
        return;
    }
    const run<From, WIDTH> in = *(const run<From, WIDTH> *)(from + (size_t)row * n_in + k);
    __half *place = to + (size_t)lv_tile_place(row0 + row, pair) * n_in + k;
    __align__(16) __half out[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        store(out + i, as_f32(in.at[i]));
    }
    if (WIDTH == 8) {
        *(uint4 *)place = *(const uint4 *)out;
    } else {
        *place = out[0];
    }
}

template <class From, class To>
static __global__ void __launch_bounds__(BLOCK)
    convert(const From *__restrict__ from, size_t n, To *to) {
    lv_wait_previous();
    for (size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x; i < n;
         i += (size_t)gridDim.x * BLOCK) {
        store(to + i, as_f32(from[i]));
    }
}

template <class From>
static lv_status launch_rows(lv_cuda *cuda, const void *from, int row0, int n_out, int n_in,
                             int pair, void *to) {
    if (n_in % 8 == 0 && (size_t)from % 16 == 0 && (size_t)to % 16 == 0) {
        return lv_launch(cuda, "convert_rows", convert_rows<From, 8>,
                         dim3(n_out, (n_in / 8 + BLOCK - 1) / BLOCK), BLOCK, 0, (const From *)from,
                         row0, n_in, pair, (__half *)to);
    }
    return lv_launch(cuda, "convert_rows", convert_rows<From, 1>,
                     dim3(n_out, (n_in + BLOCK - 1) / BLOCK), BLOCK, 0, (const From *)from, row0,
                     n_in, pair, (__half *)to);
}

template <class From, class To>
static lv_status launch_convert(lv_cuda *cuda, const void *from, size_t n, To *to) {
    const size_t n_blocks = (n + BLOCK * 4 - 1) / (BLOCK * 4);
    if (n == 0) {
        return LV_OK;
    }
    return lv_launch(cuda, "convert", convert<From, To>, (int)(n_blocks < 65535 ? n_blocks : 65535),
                     BLOCK, 0, (const From *)from, n, to);
}

static lv_status refuse(lv_dtype dtype) {
    return lv_fail(LV_EUNSUPPORTED, "convert: %s, expected f32, f16 or bf16", lv_dtype_name(dtype));
}

lv_status lv_cuda_convert_rows(lv_cuda *cuda, lv_dtype dtype, const void *from, int row0, int n_out,
                               int n_in, int pair, int n_out_all, void *to) {
    if (row0 < 0 || row0 + n_out > n_out_all || (pair && n_out_all % (2 * pair))) {
        return lv_fail(LV_EINVAL, "convert: rows %d + %d of %d, pairs %d apart", row0, n_out,
                       n_out_all, pair);
    }
    switch (dtype) {
    case LV_F32:
        return launch_rows<float>(cuda, from, row0, n_out, n_in, pair, to);
    case LV_F16:
        return launch_rows<__half>(cuda, from, row0, n_out, n_in, pair, to);
    case LV_BF16:
        return launch_rows<__nv_bfloat16>(cuda, from, row0, n_out, n_in, pair, to);
    default:
        return refuse(dtype);
    }
}

lv_status lv_cuda_convert_f32(lv_cuda *cuda, lv_dtype dtype, const void *from, size_t n,
                              float *to) {
    switch (dtype) {
    case LV_F32:
        return launch_convert<float>(cuda, from, n, to);
    case LV_F16:
        return launch_convert<__half>(cuda, from, n, to);
    case LV_BF16:
        return launch_convert<__nv_bfloat16>(cuda, from, n, to);
    default:
        return refuse(dtype);
    }
}

lv_status lv_cuda_f32_to_f16(lv_cuda *cuda, const float *from, size_t n, void *to) {
    return launch_convert<float>(cuda, from, n, (__half *)to);
}

lv_status lv_cuda_f16_to_f32(lv_cuda *cuda, const void *from, size_t n, float *to) {
    return launch_convert<__half>(cuda, from, n, to);
}
