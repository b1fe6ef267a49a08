// The vector kernels, compiled once for each instruction set by vector_*.c, which define
//   LV_W          f32 lanes of a vector
//   LV_MR, LV_NV  register block of the matrix product: LV_MR rows x LV_NV vectors of columns
//   LV_KERNELS    name of the table defined here
//   lv_load_f16(p), lv_load_i8(p): LV_W f16 or int8 at p (unaligned) -> vf
// Measured fractions stand in linear.c and attention.c. LV_MR x LV_NV is what fits the registers:
// 6 x 4 of 32 (AVX-512), 6 x 2 of 16 (AVX2).
// Vectors are GCC's (also clang's); loops over rows of plain floats are left to the vectoriser.
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define DOT_OUTPUTS 4  // rows of weights that a dot product reads side by side
#define DOT_AHEAD 2048 // bytes that are fetched ahead in each

// What lv_dtype_bytes says, but a constant here.
static inline __attribute__((always_inline)) ptrdiff_t element_bytes(lv_dtype dtype) {
    return dtype == LV_F32 ? 4 : dtype == LV_I8 ? 1 : 2;
}

static inline __attribute__((always_inline)) vf load_as_f32(lv_dtype dtype, const uint8_t *p) {
    if (dtype == LV_F32) {
        vf value;
        memcpy(&value, p, sizeof value);
        return value;
    }
    if (dtype == LV_F16) {
        return lv_load_f16(p);
    }
    if (dtype == LV_I8) {
        return lv_load_i8(p);
    }
    vh half;
    memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

static inline __attribute__((always_inline)) float scalar_as_f32(lv_dtype dtype, const uint8_t *p) {
    float value = *(const int8_t *)p;
    if (dtype != LV_I8) {
        lv_to_f32(dtype, p, 1, &value);
    }
    return value;
}

// c[LV_MR, LV_NV LV_W] += a[LV_MR, k] b[k, LV_NV LV_W]: the sums stay in registers, a is broadcast.
// Bound by the two FMA pipes: LV_MR LV_NV FMAs to LV_NV loads of b and LV_MR broadcasts.
static inline __attribute__((always_inline)) void gemm_tile(int mr, int nv, int k, const float *a,
                                                            ptrdiff_t lda, lv_dtype b_type,
                                                            const uint8_t *b, ptrdiff_t ldb,
                                                            float *c, ptrdiff_t ldc) {
    const ptrdiff_t size = element_bytes(b_type);
    vf sum[LV_MR][LV_NV];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) {
            sum[r][v] = load(c + r * ldc + v * LV_W);
        }
    }
    for (int p = 0; p < k; p++) {
        vf bv[LV_NV];
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) {
            bv[v] = load_as_f32(b_type, b + (p * ldb + v * LV_W) * size);
        }
#pragma GCC unroll 16
        for (int r = 0; r < mr; r++) {
            float x = a[r * lda + p];
#pragma GCC unroll 16
            for (int v = 0; v < nv; v++) {
                sum[r][v] += x * bv[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) {
            store(c + r * ldc + v * LV_W, sum[r][v]);
        }
    }
}

// nv vectors of columns, all rows.
static inline __attribute__((always_inline)) void gemm_columns(int nv, int m, int k, const float *a,
                                                               ptrdiff_t lda, lv_dtype b_type,
                                                               const uint8_t *b, ptrdiff_t ldb,
                                                               float *c, ptrdiff_t ldc) {
    int i = 0;
    for (; i + LV_MR <= m; i += LV_MR) {
        gemm_tile(LV_MR, nv, k, a + i * lda, lda, b_type, b, ldb, c + i * ldc, ldc);
    }
    for (; i + 2 <= m; i += 2) {
        gemm_tile(2, nv, k, a + i * lda, lda, b_type, b, ldb, c + i * ldc, ldc);
    }
    if (i < m) {
        gemm_tile(1, nv, k, a + i * lda, lda, b_type, b, ldb, c + i * ldc, ldc);
    }
}

static inline __attribute__((always_inline)) void gemm_as(int m, int n, int k, const float *a,
                                                          ptrdiff_t lda, lv_dtype b_type,
                                                          const uint8_t *b, ptrdiff_t ldb, float *c,
                                                          ptrdiff_t ldc) {
    const ptrdiff_t size = element_bytes(b_type);
    int j = 0;
    for (; j + LV_NV * LV_W <= n; j += LV_NV * LV_W) {
        gemm_columns(LV_NV, m, k, a, lda, b_type, b + j * size, ldb, c + j, ldc);
    }
    for (; j + LV_W <= n; j += LV_W) {
        gemm_columns(1, m, k, a, lda, b_type, b + j * size, ldb, c + j, ldc);
    }
    for (; j < n; j++) {
        for (int i = 0; i < m; i++) {
            float sum = c[i * ldc + j];
            for (int p = 0; p < k; p++) {
                sum += a[i * lda + p] * scalar_as_f32(b_type, b + (p * ldb + j) * size);
            }
            c[i * ldc + j] = sum;
        }
    }
}

static void gemm(int m, int n, int k, const float *a, ptrdiff_t lda, lv_dtype b_type, const void *b,
                 ptrdiff_t ldb, float *c, ptrdiff_t ldc) {
    if (b_type == LV_I8) {
        gemm_as(m, n, k, a, lda, LV_I8, b, ldb, c, ldc);
    } else if (b_type == LV_F16) {
        gemm_as(m, n, k, a, lda, LV_F16, b, ldb, c, ldc);
    } else {
        gemm_as(m, n, k, a, lda, LV_F32, b, ldb, c, ldc);
    }
}

// LV_W rows x LV_W columns -> their transpose: log2(LV_W) perfect shuffles of the row vectors.
static void transpose(vf *v) {
    for (int step = 1; step < LV_W; step *= 2) {
        vf t[LV_W];
#pragma GCC unroll 8
        for (int i = 0; i < LV_W / 2; i++) {
            t[2 * i] = interleave_low(v[i], v[i + LV_W / 2]);
            t[2 * i + 1] = interleave_high(v[i], v[i + LV_W / 2]);
        }
        memcpy(v, t, sizeof t);
    }
}

static inline __attribute__((always_inline)) void
pack_as(lv_dtype dtype, const uint8_t *const *rows, int n_j, int n_k, float *out) {
    const ptrdiff_t size = element_bytes(dtype);
    for (int j = 0; j < n_j; j += LV_W) {
        int k = 0;
        for (; k + LV_W <= n_k; k += LV_W) {
            vf v[LV_W];
#pragma GCC unroll 16
            for (int i = 0; i < LV_W; i++) {
                v[i] = load_as_f32(dtype, rows[j + i] + k * size);
                __builtin_prefetch(rows[j + i] + (k + n_k) * size, 0, 2); // for the next panel
            }
            transpose(v);
#pragma GCC unroll 16
            for (int i = 0; i < LV_W; i++) {
                store(out + (k + i) * LV_CPU_PANEL + j, v[i]);
            }
        }
        for (; k < n_k; k++) {
            for (int i = 0; i < LV_W; i++) {
                lv_to_f32(dtype, rows[j + i] + k * size, 1, out + k * LV_CPU_PANEL + j + i);
            }
        }
    }
}

static void pack(lv_dtype dtype, const uint8_t *const *rows, int n_j, int n_k, float *out) {
    if (dtype == LV_F16) {
        pack_as(LV_F16, rows, n_j, n_k, out);
    } else if (dtype == LV_BF16) {
        pack_as(LV_BF16, rows, n_j, n_k, out);
    } else {
        pack_as(LV_F32, rows, n_j, n_k, out);
    }
}

// c[mr, 4] of stride 64 = x w^T: lanes are k, so that weights are used as they lie.
static inline __attribute__((always_inline)) void
dot_tile(lv_dtype dtype, int mr, const uint8_t *const *rows, int n_k, const float *x, float *c) {
    const ptrdiff_t size = element_bytes(dtype);
    vf sum[LV_NV][DOT_OUTPUTS] = {{{0}}};
    int k = 0;
    for (; k + LV_W <= n_k; k += LV_W) {
        vf w[DOT_OUTPUTS];
#pragma GCC unroll 4
        for (int j = 0; j < DOT_OUTPUTS; j++) {
            w[j] = load_as_f32(dtype, rows[j] + k * size);
            __builtin_prefetch(rows[j] + k * size + DOT_AHEAD, 0, 2);
        }
#pragma GCC unroll 4
        for (int r = 0; r < mr; r++) {
            vf xr = load(x + (ptrdiff_t)r * n_k + k);
#pragma GCC unroll 4
            for (int j = 0; j < DOT_OUTPUTS; j++) {
                sum[r][j] += xr * w[j];
            }
        }
    }
    for (int r = 0; r < mr; r++) {
        for (int j = 0; j < DOT_OUTPUTS; j++) {
            float lanes[LV_W];
            store(lanes, sum[r][j]);
            for (int n = LV_W / 2; n > 0; n /= 2) {
                for (int i = 0; i < n; i++) {
                    lanes[i] += lanes[i + n];
                }
            }
            for (int i = k; i < n_k; i++) {
                lanes[0] += x[(ptrdiff_t)r * n_k + i] * scalar_as_f32(dtype, rows[j] + i * size);
            }
            c[r * LV_CPU_PANEL + j] = lanes[0];
        }
    }
}

static inline __attribute__((always_inline)) void dot_as(lv_dtype dtype, const uint8_t *const *rows,
                                                         int n_j, int n_k, const float *x, int m,
                                                         float *c) {
    for (int j = 0; j < n_j; j += DOT_OUTPUTS) {
        int i = 0;
        for (; i + LV_NV <= m; i += LV_NV) {
            dot_tile(dtype, LV_NV, rows + j, n_k, x + (ptrdiff_t)i * n_k, c + i * LV_CPU_PANEL + j);
        }
        for (; i + 2 <= m; i += 2) {
            dot_tile(dtype, 2, rows + j, n_k, x + (ptrdiff_t)i * n_k, c + i * LV_CPU_PANEL + j);
        }
        if (i < m) {
            dot_tile(dtype, 1, rows + j, n_k, x + (ptrdiff_t)i * n_k, c + i * LV_CPU_PANEL + j);
        }
    }
}

static void dot(lv_dtype dtype, const uint8_t *const *rows, int n_j, int n_k, const float *x, int m,
                float *c) {
    if (dtype == LV_F16) {
        dot_as(LV_F16, rows, n_j, n_k, x, m, c);
    } else if (dtype == LV_BF16) {
        dot_as(LV_BF16, rows, n_j, n_k, x, m, c);
    } else {
        dot_as(LV_F32, rows, n_j, n_k, x, m, c);
    }
}

static void layer_norm(const float *x, int d, const float *weight, const float *bias, float eps,
                       float *out) {
    float mean = 0, var = 0;
#pragma omp simd reduction(+ : mean)
    for (int i = 0; i < d; i++) {
        mean += x[i];
    }
    mean /= (float)d;
#pragma omp simd reduction(+ : var)
    for (int i = 0; i < d; i++) {
        var += (x[i] - mean) * (x[i] - mean);
    }
    float factor = 1.0f / sqrtf(var / (float)d + eps);
    for (int i = 0; i < d; i++) {
        out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
    }
}

static void rms_norm(const float *x, int d, const float *weight, float eps, float *out) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < d; i++) {
        sum += x[i] * x[i];
    }
    float factor = 1.0f / sqrtf(sum / (float)d + eps);
    for (int i = 0; i < d; i++) {
        out[i] = x[i] * factor * weight[i];
    }
}

// e^x within 2 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, expf); 0 below -87.3,
// NaN stays NaN. Without branches, so that loops over it become vectors.
static inline float exp_f32(float x) {
    float y = x < -87.3f ? -87.3f : x;
    y = y > 88.3f ? 88.3f : y;
    float shifted = y * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the integer part in the low bits
    float n = shifted - 12582912.0f;
    float r = y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        float f;
        uint32_t u;
    } bits = {.f = shifted};
    bits.u = (bits.u + 127) << 23;
    return x < -87.3f ? 0.0f : p * bits.f;
}

static float max_of(const float *x, int n, float max) {
#pragma omp simd reduction(max : max)
    for (int i = 0; i < n; i++) {
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

// x -> exp(x - max); returns their sum.
static float exp_row(float *x, int n, float max) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) {
        x[i] = exp_f32(x[i] - max);
        sum += x[i];
    }
    return sum;
}

static void scale(float *x, int n, float factor) {
    for (int i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

static void softmax(float *x, int n) {
    float sum = exp_row(x, n, max_of(x, n, -INFINITY));
    scale(x, n, 1.0f / sum);
}

static float softmax_page(float *s, int n, float *max, float *sum) {
    float new_max = max_of(s, n, *max);
    float factor = new_max == *max ? 1.0f : exp_f32(*max - new_max);
    *sum = *sum * factor + exp_row(s, n, new_max);
    *max = new_max;
    return factor;
}

static void activate(lv_activation activation, float *x, int n) {
    switch (activation) {
    case LV_ACT_QUICK_GELU:
        for (int i = 0; i < n; i++) {
            x[i] = x[i] / (1.0f + exp_f32(-1.702f * x[i]));
        }
        break;
    case LV_ACT_SILU:
        for (int i = 0; i < n; i++) {
            x[i] = x[i] / (1.0f + exp_f32(-x[i]));
        }
        break;
    case LV_ACT_GELU:
        for (int i = 0; i < n; i++) {
            x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
        }
        break;
    case LV_ACT_GELU_TANH:
        for (int i = 0; i < n; i++) {
            float t = tanhf(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
            x[i] = 0.5f * x[i] * (1.0f + t);
        }
        break;
    case LV_ACT_NONE:
        break;
    }
}

static void silu_mul(const float *gate, const float *up, int n, float *out) {
    for (int i = 0; i < n; i++) {
        out[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
    }
}

static void multiply(float *x, const float *factors, int n) {
    for (int i = 0; i < n; i++) {
        x[i] *= factors[i];
    }
}

static inline __attribute__((always_inline)) void convert_as(lv_dtype dtype, const uint8_t *source,
                                                             int n, float *out) {
    const ptrdiff_t size = element_bytes(dtype);
    int i = 0;
    for (; i + LV_W <= n; i += LV_W) {
        store(out + i, load_as_f32(dtype, source + i * size));
    }
    for (; i < n; i++) {
        out[i] = scalar_as_f32(dtype, source + i * size);
    }
}

static void convert(lv_dtype dtype, const void *source, int n, float *out) {
    if (dtype == LV_I8) {
        convert_as(LV_I8, source, n, out);
    } else {
        convert_as(LV_F16, source, n, out);
    }
}

// Rounds to nearest even. A block with a NaN or an infinity gets the scale NaN, so that the outputs
// say so. The bits must be the same everywhere: no contraction is possible in these expressions.
static void quantise(const float *x, int n_in, int block, int r, int n_r, int16_t *q, float *scales,
                     int32_t *sums) {
    for (int b = 0; b < n_in / block; b++) {
        const float *xb = x + (ptrdiff_t)b * block;
        int16_t *qb = q + ((ptrdiff_t)b * block / 2 * n_r + r) * 2;
        float max = 0, bad = 0; // exact in any order; bad is 0 or NaN
#pragma omp simd reduction(max : max) reduction(+ : bad)
        for (int i = 0; i < block; i++) {
            float a = fabsf(xb[i]);
            max = a > max ? a : max;
            bad += xb[i] * 0.0f;
        }
        // Below the smallest normal number 1 / scale could overflow: such a block is 0.
        float inverse = max > 1e-30f && bad == 0.0f ? 32767.0f / max : 0;
        int16_t rounded[LV_INT4_MAX_BLOCK] = {0};
        int32_t sum = 0, pairs[LV_INT4_MAX_BLOCK / 2];
        for (int i = 0; bad == 0.0f && i < block; i++) {
            int32_t whole = (int32_t)rintf(xb[i] * inverse);
            rounded[i] = (int16_t)whole;
            sum += whole;
        }
        memcpy(pairs, rounded, sizeof pairs);
        for (int i = 0; i < block / 2; i++, qb += 2 * (ptrdiff_t)n_r) {
            memcpy(qb, &pairs[i], sizeof *pairs);
        }
        scales[b * n_r + r] = bad == 0.0f ? max / 32767.0f : NAN;
        sums[b * n_r + r] = sum;
    }
}

// As above, with one scale for all and 8 bits.
static float quantise_i8(const float *x, int n, int8_t *q) {
    float max = 0, bad = 0;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        max = a > max ? a : max;
        bad += x[i] * 0.0f;
    }
    float inverse = max > 1e-30f ? 127.0f / max : 0;
    for (int i = 0; i < n; i++) {
        float t = x[i] * inverse;
        q[i] = bad == 0.0f ? (int8_t)rintf(t) : 0;
    }
    return bad == 0.0f ? max / 127.0f : NAN;
}

const lv_vector_kernels LV_KERNELS = {
    .gemm = gemm,
    .pack = pack,
    .dot = dot,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .softmax = softmax,
    .softmax_page = softmax_page,
    .activate = activate,
    .silu_mul = silu_mul,
    .scale = scale,
    .multiply = multiply,
    .convert = convert,
    .quantise = quantise,
    .quantise_i8 = quantise_i8,
};
