// What becomes of the sums in the "few rows" family (small.cu): how parts of K join, the epilogues.
#ifndef LV_KERNELS_CUDA_SMALL_FINISH_CUH
#define LV_KERNELS_CUDA_SMALL_FINISH_CUH

#include "kernels/cuda/small.cuh"

// The sums of 1, 2, 4 or 8 parts of K, in the order that slices have within a part.
__device__ static inline float lv_join(float part[LV_SLICES], int n_parts) {
#pragma unroll
    for (int half = LV_SLICES / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; i++) {
            part[i] = n_parts >= 2 * half ? __fadd_rn(part[2 * i], part[2 * i + 1]) : part[i];
        }
    }
    return part[0];
}

__device__ static inline float lv_sigmoid(float x) {
    return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-x)));
}

__device__ static inline float lv_activated(lv_activation activation, float x) {
    switch (activation) {
    case LV_ACT_QUICK_GELU:
        return __fmul_rn(x, lv_sigmoid(__fmul_rn(1.702f, x)));
    case LV_ACT_GELU:
        return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, erff(__fmul_rn(x, 0.70710678f))));
    case LV_ACT_GELU_TANH: {
        const float cube = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, x), x), x);
        const float t = tanhf(__fmul_rn(0.79788456f, __fadd_rn(x, cube)));
        return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, t));
    }
    case LV_ACT_SILU:
        return __fmul_rn(x, lv_sigmoid(x));
    default:
        return x;
    }
}

// Where the sums of places `place` and place + 8 (place % 16 < 8) of one row of x go, and what
// their epilogue reads besides: wanted as early as it may be read.
typedef struct lv_ahead {
    int r0, r1;
    float2 residual; // at rows r0 and r1
    float2 turn;     // cos and sin
} lv_ahead;

__device__ static inline lv_ahead lv_look_ahead(const lv_small_job &job, int place, int token) {
    lv_ahead ahead = {};
    const bool natural = job.pair == 8 || job.pair == 0, halves = 2 * job.pair == job.n_out;
    ahead.r0 = natural  ? place
               : halves ? place / LV_TILE * 8 + place % LV_TILE
                        : lv_tile_row(place, job.pair);
    ahead.r1 = ahead.r0 + (natural ? 8 : job.pair);
    if (job.residual) {
        const unsigned short *from = (const unsigned short *)job.residual;
        const size_t at = (size_t)token * job.n_out;
        ahead.residual.x = __half2float(__ushort_as_half(__ldcg(from + at + ahead.r0)));
        ahead.residual.y = __half2float(__ushort_as_half(__ldcg(from + at + ahead.r1)));
    }
    if (job.epilogue == LV_ROTATE && ahead.r0 < (job.n_heads + job.n_kv_heads) * job.head_dim) {
        ahead.turn = job.turns[(size_t)token * (job.head_dim / 2) + ahead.r0 % job.head_dim];
    }
    return ahead;
}

// Rows r and r + head_dim / 2 of [q; k; v].
__device__ static inline void lv_store_rotated(const lv_small_job &job, int row, int token,
                                               float y0, float y1, float2 turn) {
    const int half = job.head_dim / 2, head = row / job.head_dim, i = row % job.head_dim;
    if (head < job.n_heads + job.n_kv_heads) {
        const float a = y0, b = y1;
        y0 = __fsub_rn(__fmul_rn(a, turn.x), __fmul_rn(b, turn.y));
        y1 = __fadd_rn(__fmul_rn(b, turn.x), __fmul_rn(a, turn.y));
    }
    __half *to =
        head < job.n_heads
            ? (__half *)job.out + ((size_t)token * job.n_heads + head) * job.head_dim + i
            : job.kv_new +
                  ((size_t)token * 2 * job.n_kv_heads + head - job.n_heads) * job.head_dim + i;
    to[0] = __float2half_rn(y0);
    to[half] = __float2half_rn(y1);
}

// The sums y0 and y1 of places `place` and place + 8. No multiplication here may be fused into an
// addition differently in the two kernels.
template <int FORMAT>
__device__ static inline void lv_small_finish(const lv_small_job &job, int place, int token,
                                              float y0, float y1, const lv_ahead &ahead) {
    const int r0 = ahead.r0, r1 = ahead.r1;
    if (FORMAT == LV_W_INT4) {
        y0 = __fmul_rn(y0, 1 / LV_SUM_UNIT);
        y1 = __fmul_rn(y1, 1 / LV_SUM_UNIT);
    } else if (FORMAT == LV_W_INT8) {
        y0 = __fmul_rn(__fmul_rn(y0, 1 / LV_SUM_UNIT), job.row_scales[place]);
        y1 = __fmul_rn(__fmul_rn(y1, 1 / LV_SUM_UNIT), job.row_scales[place + 8]);
    }
    if (job.bias) {
        y0 = __fadd_rn(y0, job.bias[r0]);
        y1 = __fadd_rn(y1, job.bias[r1]);
    }
    const size_t at = (size_t)token * job.n_out;
    switch (job.epilogue) {
    case LV_STORE:
        y0 = lv_activated(job.activation, y0);
        y1 = lv_activated(job.activation, y1);
        if (job.residual) {
            y0 = __fadd_rn(y0, ahead.residual.x);
            y1 = __fadd_rn(y1, ahead.residual.y);
        }
        ((__half *)job.out)[at + r0] = __float2half_rn(y0);
        ((__half *)job.out)[at + r1] = __float2half_rn(y1);
        break;
    case LV_STORE_F32:
        ((float *)job.out)[at + r0] = y0;
        ((float *)job.out)[at + r1] = y1;
        break;
    case LV_ROTATE:
        lv_store_rotated(job, r0, token, y0, y1, ahead.turn);
        break;
    case LV_GATE:
        ((__half *)job.out)[at / 2 + r0] =
            __float2half_rn(__fmul_rn(lv_activated(LV_ACT_SILU, y0), y1));
        break;
    }
}

// The end of a tile whose slices' sums are f32 [slice][row / 8][row % 8][column] in shared memory:
// thread `reader` of 64 has a row below 8, the one eight further, and a column.
template <int FORMAT>
__device__ static inline void lv_finish_slices(const lv_small_job &job, const float *sums, int tile,
                                               int reader, const lv_ahead &ahead) {
    float y[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float s[LV_SLICES];
#pragma unroll
        for (int i = 0; i < LV_SLICES; i++) {
            s[i] = sums[i * 128 + half * 64 + reader];
        }
        y[half] = __fadd_rn(__fadd_rn(__fadd_rn(s[0], s[1]), __fadd_rn(s[2], s[3])),
                            __fadd_rn(__fadd_rn(s[4], s[5]), __fadd_rn(s[6], s[7])));
    }
    lv_small_finish<FORMAT>(job, tile * LV_TILE + reader / 8, reader % 8, y[0], y[1], ahead);
}

#endif
