// Sampling's arithmetic: an exponential in two floats, sums in two floats, logits as ordered keys,
// and the random numbers.
#ifndef LV_KERNELS_CUDA_SAMPLE_CUH
#define LV_KERNELS_CUDA_SAMPLE_CUH

#include <stdint.h>

#include "kernels/cuda/launch.cuh"

// exp of less than this counts as 0: nobody draws one in 10^37.
#define LV_EXP_LEAST (-87.0f)
#define LV_EXP_TABLE 64 // powers of two: 2^(j / 64) as high and low float

__device__ static inline float2 lv_exp_entry(int j) {
    const double power = exp2(j / (double)LV_EXP_TABLE);
    const float high = (float)power;
    return make_float2(high, (float)(power - high));
}

// exp(d), LV_EXP_LEAST <= d <= 0, as x + y: x is the float nearest to it, but for one in some
// hundred thousand, and x + y is off by less than 1e-11 of it. The CPU's sampler computes in
// double, which most GPUs do at 1/64 of their speed; its sums and comparisons must be met closely
// enough that a draw falls on the same side.
//
// d = n ln2 / 64 + r, |r| < 0.0055: n times the high part of ln2 / 64 is subtracted exactly, since
// both are multiples of 2^-30. exp(d) = 2^(n / 64) (1 + r + r^2 / 2 + ...), rounding errors of the
// large terms kept.
__device__ static inline float2 lv_exp_pair(float d, const float2 *table) {
    const float high = 0x1.62e43p-7f, low = -0x1.05c61p-35f; // of ln2 / 64
    const float n = rintf(d * 0x1.715476p+6f);
    const float exact = __fmaf_rn(n, -high, d), r = __fmaf_rn(n, -low, exact);
    const float rest = __fmaf_rn(n, -low, exact - r);
    const float curve = __fmaf_rn(__fmaf_rn(r, 1.0f / 24, 1.0f / 6), r, 0.5f);
    const float tail = __fmaf_rn(r * r, curve, rest);
    const int j = (int)n;
    const float2 t = table[j & (LV_EXP_TABLE - 1)];
    const float product = __fmul_rn(t.x, r), lost = __fmaf_rn(t.x, r, -product);
    const float sum = __fadd_rn(t.x, product);
    const float lost_too = __fsub_rn(product, __fsub_rn(sum, t.x));
    const float small = lost_too + lost + __fmaf_rn(t.x, tail, __fmaf_rn(t.y, r, t.y));
    const float x = __fadd_rn(sum, small), y = __fsub_rn(small, __fsub_rn(x, sum));
    const float power = __int_as_float(((j >> 6) + 127) << 23);
    return make_float2(x * power, y * power);
}

// A sum of non-negative floats that loses nothing to speak of: x + y.
typedef struct lv_sum {
    float x, y;
} lv_sum;

__device__ static inline void lv_add(lv_sum *s, float value) {
    const float sum = __fadd_rn(s->x, value), added = __fsub_rn(sum, s->x);
    const float lost = __fadd_rn(__fsub_rn(s->x, __fsub_rn(sum, added)), __fsub_rn(value, added));
    s->x = sum;
    s->y = __fadd_rn(s->y, lost);
}

// Keys order as the floats do; -0 is 0.
__device__ static inline uint32_t lv_key(float value) {
    const uint32_t bits = __float_as_uint(value + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ static inline float lv_key_value(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// A token's rank: greater for the larger logit, among equals for the lower id.
__device__ static inline uint64_t lv_rank(float value, int id, int id_bits) {
    return (uint64_t)lv_key(value) << id_bits | (uint32_t)((1 << id_bits) - 1 - id);
}

// A rank strictly between two that are at least 2 apart: half-way by value where that lies
// between, else half-way by rank.
__device__ static inline uint64_t lv_between(uint64_t low, uint64_t high, int id_bits) {
    const float a = lv_key_value((uint32_t)(low >> id_bits));
    const float b = lv_key_value((uint32_t)(high >> id_bits));
    const uint64_t middle = (uint64_t)lv_key(0.5f * a + 0.5f * b) << id_bits;
    return low < middle && middle < high ? middle : low + (high - low) / 2;
}

// Philox4x32-10, counter (step, 0), key seed -> [0, 1) with 53 bits, as kernels/cpu/sample.c.
__device__ static inline double lv_philox(uint64_t seed, uint64_t step) {
    uint32_t x[4] = {(uint32_t)step, (uint32_t)(step >> 32), 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * x[0], p1 = (uint64_t)0xCD9E8D57u * x[2];
        x[0] = (uint32_t)(p1 >> 32) ^ x[1] ^ k0;
        x[2] = (uint32_t)(p0 >> 32) ^ x[3] ^ k1;
        x[1] = (uint32_t)p1;
        x[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)(((uint64_t)x[0] << 32 | x[1]) >> 11) * 0x1p-53;
}

#endif
