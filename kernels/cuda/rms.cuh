// RMSNorm's arithmetic, shared by rows.cu and small.cu so that a row gets the same bits from both.
//
//   sum = sum of x_i^2, factor = 1 / sqrt(sum / d + eps), y_i = f16((x_i factor) norm_i), all f32
//
// The order of the sum is fixed by d alone. A row is cut into segments of 256 elements. One warp
// takes a segment: lane l squares and adds elements 8 l .. 8 l + 7 in order (those beyond d count
// as 0), and the lanes' sums meet in a butterfly of shuffles. The segments' sums are then added in
// order, through shared memory.
#ifndef LV_KERNELS_CUDA_RMS_CUH
#define LV_KERNELS_CUDA_RMS_CUH

#include <cuda_fp16.h>

#define LV_RMS_SEGMENT 256

__device__ static inline void lv_rms_unpack(uint4 bits, float v[8]) {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __half22float2(*(const __half2 *)&words[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

// Elements at .. at + 7 of a row of d, zeros beyond it. The row is 16-byte aligned where d is a
// multiple of 8.
__device__ static inline void lv_rms_load(const __half *row, int d, int at, float v[8]) {
    if (d % 8 == 0 && at < d) {
        lv_rms_unpack(*(const uint4 *)(row + at), v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = at + i < d ? __half2float(row[at + i]) : 0.0f;
    }
}

// The sum of squares of a segment of which each lane of the warp holds eight elements.
__device__ static inline float lv_rms_segment(const float v[8]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sum = __fmaf_rn(v[i], v[i], sum);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, step));
    }
    return sum;
}

__device__ static inline float lv_rms_factor(float sum, int d, float eps) {
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)d), eps)));
}

__device__ static inline __half lv_rms_apply(float x, float factor, float norm) {
    return __float2half_rn(__fmul_rn(__fmul_rn(x, factor), norm));
}

#endif
