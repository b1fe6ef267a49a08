// What the kernel tests share: random sources, backends of each instruction set, comparisons.
#ifndef LV_TESTS_KERNELS_UTIL_H
#define LV_TESTS_KERNELS_UTIL_H

#include <math.h>

#include "kernels/ops.h"
#include "tests/check.h"

static const char *const isas[] = {"portable", "avx2", "avx512", "vnni"};
#define N_ISAS 4

static uint32_t rng_state = 12345;

static inline uint32_t rng(void) {
    rng_state = rng_state * 1664525u + 1013904223u;
    return rng_state >> 8;
}

static inline float rng_float(void) { // about normal, variance 1
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        sum += (float)(rng() & 0xFFFF) / 65536.0f;
    }
    return sum - 6.0f;
}

static inline float *random_floats(size_t n) {
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = rng_float();
    }
    return x;
}

static inline float *poisoned(size_t n) {
    float *x = malloc((n + 1) * sizeof *x);
    memset(x, 0xFF, (n + 1) * sizeof *x); // NaN
    return x;
}

// A dense source whose bytes start `offset` bytes beyond an aligned address. Freed by
// free_source.
static inline lv_linear_source dense_source(int n_out, int n_in, lv_dtype dtype, size_t offset,
                                            bool bias) {
    size_t n = (size_t)n_out * (size_t)n_in, size = lv_dtype_bytes(dtype);
    uint8_t *data = malloc(n * size + offset);
    for (size_t i = 0; i < n; i++) {
        float value = rng_float() / sqrtf((float)n_in);
        uint16_t half = dtype == LV_F16 ? lv_f32_to_f16(value) : lv_f32_to_bf16(value);
        memcpy(data + offset + i * size, dtype == LV_F32 ? (void *)&value : (void *)&half, size);
    }
    lv_linear_source s = {.n_out = n_out, .n_in = n_in};
    s.weight = (lv_tensor){data + offset, dtype, 2, {n_out, n_in}};
    if (bias) {
        s.bias = (lv_tensor){random_floats((size_t)n_out), LV_F32, 1, {n_out}};
    }
    return s;
}

static inline lv_linear_source awq_source(int n_out, int n_in, int group_size, bool bias) {
    size_t n_words = (size_t)n_in * (size_t)n_out / 8, n_groups = (size_t)(n_in / group_size);
    uint32_t *q = malloc(n_words * 4), *z = malloc(n_groups * (size_t)n_out / 2 + 4);
    uint16_t *scales = malloc(n_groups * (size_t)n_out * 2);
    for (size_t i = 0; i < n_words; i++) {
        q[i] = rng() << 16 ^ rng();
    }
    for (size_t i = 0; i < n_groups * (size_t)n_out / 8; i++) {
        z[i] = rng() << 16 ^ rng();
    }
    for (size_t i = 0; i < n_groups * (size_t)n_out; i++) {
        scales[i] = lv_f32_to_f16((0.5f + (float)(rng() & 255) / 256.0f) * 0.01f);
    }
    lv_linear_source s = {
        .n_out = n_out, .n_in = n_in, .quant = LV_QUANT_AWQ, .group_size = group_size};
    s.qweight = (lv_tensor){q, LV_I32, 2, {n_in, n_out / 8}};
    s.qzeros = (lv_tensor){z, LV_I32, 2, {(int64_t)n_groups, n_out / 8}};
    s.scales = (lv_tensor){scales, LV_F16, 2, {(int64_t)n_groups, n_out}};
    if (bias) {
        s.bias = (lv_tensor){random_floats((size_t)n_out), LV_F32, 1, {n_out}};
    }
    return s;
}

// The weight [out, in] of an AWQ source: lv_linear_source says the order of nibbles.
static inline double awq_weight(const lv_linear_source *s, int out, int in) {
    static const int shifts[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    const size_t words = (size_t)s->n_out / 8, group = (size_t)(in / s->group_size);
    const uint32_t *q = s->qweight.data, *z = s->qzeros.data;
    const uint16_t *scales = s->scales.data;
    const int shift = shifts[out % 8];
    const int difference = (int)(q[(size_t)in * words + (size_t)out / 8] >> shift & 15) -
                           (int)(z[group * words + (size_t)out / 8] >> shift & 15);
    return difference * (double)lv_f16_to_f32(scales[group * (size_t)s->n_out + (size_t)out]);
}

static inline void free_source(lv_linear_source *s, size_t offset) {
    if (s->weight.data) {
        free((uint8_t *)(uintptr_t)s->weight.data - offset);
    }
    free((void *)(uintptr_t)s->qweight.data);
    free((void *)(uintptr_t)s->qzeros.data);
    free((void *)(uintptr_t)s->scales.data);
    free((void *)(uintptr_t)s->bias.data);
}

static inline lv_backend *open_reference(void) {
    lv_backend_options options = {.device = "cpu", .reference = true};
    lv_backend *be = NULL;
    unsetenv("LV_CPU_ISA");
    CHECK_OK(lv_backend_open(&options, &be));
    return be;
}

// The fast backend with one instruction set; NULL where this CPU lacks it.
static inline lv_backend *open_isa(int isa, int n_threads) {
    lv_backend_options options = {.device = "cpu", .n_threads = n_threads};
    lv_backend *be = NULL;
    setenv("LV_CPU_ISA", isas[isa], 1);
    lv_status status = lv_backend_open(&options, &be);
    unsetenv("LV_CPU_ISA");
    CHECK(status == LV_OK || (status == LV_EDEVICE && isa > 0), "%s: %s", isas[isa], lv_error());
    return be;
}

// |a - b| / |b| over n values; a NaN anywhere gives NaN, which fails every comparison.
static inline double relative_error(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(difference) / (sqrt(norm) + 1e-30);
}

#endif
