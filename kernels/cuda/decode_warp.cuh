// One warp's part of decode attention (decode_attention.cu): its 16 tokens of a page in fragments,
// their scores, softmax and sums.
#ifndef LV_KERNELS_CUDA_DECODE_WARP_CUH
#define LV_KERNELS_CUDA_DECODE_WARP_CUH

#include "kernels/cuda/attention.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)
#define HEADS 8 // query heads of a block: the n8 of mma

// What a block works on.
typedef struct job {
    int lane, warp, g, t;
    int seq, kv_head, head0, n_heads; // query heads head0 .. head0 + n_heads - 1
    int unit, length;                 // tokens with the new one
    int first_seen, n_old;            // old tokens [first_seen, n_old) are seen
    int page0, n_pages;               // that hold them
    int n_splits, split_pages, n_workers;
    int split0, split1; // this worker's
} job;

template <int HD, bool I8> struct shape_of {
    static constexpr int E = I8 ? 16 : 8;         // elements of a chunk
    static constexpr int CHUNKS = HD / E;         // of a row
    static constexpr int KB = (CHUNKS + 3) / 4;   // chunks of a key's row and lane
    static constexpr int VB = (CHUNKS + 7) / 8;   // of a value's row and lane
    static constexpr int STEPS = E / 4;           // mma along k of a chunk of keys
    static constexpr int TILES = E / 2;           // mma along dimensions of a chunk of values
    static constexpr int PAGES = I8 ? 2 : 1;      // of a step
    static constexpr int ROW = HD * (I8 ? 1 : 2); // bytes
    static constexpr int PAIRS = (HD + 63) / 64;  // of the new token, see lv_read_pairs
};

// One lane's part of its warp's 16 tokens of a page.
template <int HD, bool I8> struct lane_keys {
    lv_chunk chunk[2][shape_of<HD, I8>::KB];
    float scale[2];
};
template <int HD, bool I8> struct lane_values {
    lv_chunk chunk[4][shape_of<HD, I8>::VB];
    float scale[2];
};

// Sums of a warp: heads 2 t and 2 t + 1, dimensions (8 j + g) E + 2 i and the next.
template <int HD, bool I8> struct lane_sums {
    float out[shape_of<HD, I8>::VB][shape_of<HD, I8>::TILES][4];
    float max[2], sum[2];
};

// The token, of a warp's 16, that row r of the scores is: P transposed then pairs tokens 4 t, 4 t +
// 1 and 4 t + 2, 4 t + 3 in lane t. Row r + 8 is two tokens further.
__host__ __device__ static inline int row_token(int r) {
    return r / 2 * 4 + r % 2;
}

template <int HD, bool I8>
__device__ static inline void load_keys(lane_keys<HD, I8> *keys, const uint8_t *page,
                                        const job *j) {
    using S = shape_of<HD, I8>;
    const int row = j->warp * 16 + row_token(j->g);
    const uint8_t *from = page + row * S::ROW + j->t * 16;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int b = 0; b < S::KB; b++) {
            if (4 * b + 3 < S::CHUNKS || 4 * b + j->t < S::CHUNKS) {
                keys->chunk[r][b] = lv_load_once(from + r * 2 * S::ROW + b * 64);
            } else {
                keys->chunk[r][b] = {};
            }
        }
        keys->scale[r] = I8 ? ((const float *)(page + LV_KV_BLOCK * HD))[row + 2 * r] : 1.0f;
    }
}

// Rows from n_valid on hold what was there before, perhaps NaN: the last valid row stands for them.
template <int HD, bool I8>
__device__ static inline void load_values(lane_values<HD, I8> *values, const uint8_t *page,
                                          int n_valid, const job *j) {
    using S = shape_of<HD, I8>;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int row = min(j->warp * 16 + 4 * j->t + k, n_valid - 1);
        const uint8_t *from = page + row * S::ROW + j->g * 16;
#pragma unroll
        for (int b = 0; b < S::VB; b++) {
            if (8 * b + 7 < S::CHUNKS || 8 * b + j->g < S::CHUNKS) {
                values->chunk[k][b] = lv_load_once(from + b * 128);
            } else {
                values->chunk[k][b] = {};
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = j->warp * 16 + row_token(j->g) + 2 * r;
        values->scale[r] = I8 ? ((const float *)(page + LV_KV_BLOCK * HD))[row] : 1.0f;
    }
}

template <int HD, bool I8> __device__ static inline void clear_sums(lane_sums<HD, I8> *sums) {
    using S = shape_of<HD, I8>;
#pragma unroll
    for (int b = 0; b < S::VB; b++) {
#pragma unroll
        for (int i = 0; i < S::TILES * 4; i++) {
            sums->out[b][i / 4][i % 4] = 0;
        }
    }
    sums->max[0] = sums->max[1] = -INFINITY;
    sums->sum[0] = sums->sum[1] = 0;
}

template <int HD, bool I8>
__device__ static inline void scores_of(float score[4], const lane_keys<HD, I8> *keys,
                                        const lv_chunk q[][32], float scale, int lane) {
    using S = shape_of<HD, I8>;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        score[i] = 0;
    }
#pragma unroll
    for (int b = 0; b < S::KB; b++) {
        lv_chunk heads[S::E / 8];
#pragma unroll
        for (int c = 0; c < S::E / 8; c++) {
            heads[c] = q[b * (S::E / 8) + c][lane];
        }
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            const uint32_t *x = keys->chunk[0][b].word, *y = keys->chunk[1][b].word;
            uint32_t k[4];
            if (I8) {
                k[0] = lv_unpack_i8(x[s], false);
                k[1] = lv_unpack_i8(y[s], false);
                k[2] = lv_unpack_i8(x[s], true);
                k[3] = lv_unpack_i8(y[s], true);
            } else {
                k[0] = x[2 * s];
                k[1] = y[2 * s];
                k[2] = x[2 * s + 1];
                k[3] = y[2 * s + 1];
            }
            lv_mma(score, k, heads[s / 2].word[s % 2 * 2], heads[s / 2].word[s % 2 * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        score[i] *= keys->scale[i / 2] * scale;
    }
}

// Scores of PAGES pages from token0 on -> probabilities in place; what was summed is rescaled.
template <int HD, bool I8>
__device__ static inline void softmax_step(float score[][4], lane_sums<HD, I8> *sums, int token0,
                                           int n_tokens, const job *j) {
    using S = shape_of<HD, I8>;
    float max[2] = {sums->max[0], sums->max[1]}, base[2];
#pragma unroll
    for (int p = 0; p < S::PAGES; p++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int in_step = p * LV_KV_BLOCK + j->warp * 16 + row_token(j->g) + (i < 2 ? 0 : 2);
            const int token = token0 + in_step;
            if (in_step >= n_tokens || token < j->first_seen) {
                score[p][i] = -INFINITY;
            }
        }
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float most = fmaxf(score[0][c], score[0][c + 2]);
        if (S::PAGES == 2) {
            most = fmaxf(most, fmaxf(score[S::PAGES - 1][c], score[S::PAGES - 1][c + 2]));
        }
        for (int offset = 4; offset < 32; offset *= 2) {
            most = fmaxf(most, __shfl_xor_sync(LV_ALL_LANES, most, offset));
        }
        max[c] = fmaxf(max[c], ceilf(most));
        base[c] = max[c] == -INFINITY ? 0.0f : max[c];
    }
    if (__any_sync(LV_ALL_LANES, max[0] != sums->max[0] || max[1] != sums->max[1])) {
        const float factor[2] = {lv_exp2_whole(sums->max[0] - max[0]),
                                 lv_exp2_whole(sums->max[1] - max[1])};
#pragma unroll
        for (int b = 0; b < S::VB; b++) {
#pragma unroll
            for (int i = 0; i < S::TILES * 4; i++) {
                sums->out[b][i / 4][i % 4] *= factor[i % 2];
            }
        }
        sums->sum[0] *= factor[0];
        sums->sum[1] *= factor[1];
        sums->max[0] = max[0];
        sums->max[1] = max[1];
    }
#pragma unroll
    for (int p = 0; p < S::PAGES; p++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            score[p][i] = lv_exp2(score[p][i] - base[i % 2]);
            sums->sum[i % 2] += score[p][i];
        }
    }
}

// sums += V^T P for one page, P = probabilities (times the values' scales).
template <int HD, bool I8>
__device__ static inline void add_values(lane_sums<HD, I8> *sums, float p[4],
                                         const lane_values<HD, I8> *values) {
    using S = shape_of<HD, I8>;
    if (I8) {
#pragma unroll
        for (int i = 0; i < 4; i++) { // a scale of no token may be NaN
            p[i] = p[i] == 0 ? 0.0f : p[i] * (values->scale[i / 2] * LV_I8_BOOST);
        }
    }
    const uint32_t p0 = lv_transpose(lv_pack(p[0], p[1])), p1 = lv_transpose(lv_pack(p[2], p[3]));
#pragma unroll
    for (int b = 0; b < S::VB; b++) {
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const uint32_t x0 = values->chunk[0][b].word[w], x1 = values->chunk[1][b].word[w];
            const uint32_t x2 = values->chunk[2][b].word[w], x3 = values->chunk[3][b].word[w];
            const uint32_t low01 = __byte_perm(x0, x1, I8 ? 0x5140 : 0x5410);
            const uint32_t high01 = __byte_perm(x0, x1, I8 ? 0x7362 : 0x7632);
            const uint32_t low23 = __byte_perm(x2, x3, I8 ? 0x5140 : 0x5410);
            const uint32_t high23 = __byte_perm(x2, x3, I8 ? 0x7362 : 0x7632);
            if (I8) { // low: dimensions 4 w, 4 w + 1 of two tokens; high: 4 w + 2, 4 w + 3
                const uint32_t v[2][4] = {{lv_unpack_i8(low01, false), lv_unpack_i8(low01, true),
                                           lv_unpack_i8(low23, false), lv_unpack_i8(low23, true)},
                                          {lv_unpack_i8(high01, false), lv_unpack_i8(high01, true),
                                           lv_unpack_i8(high23, false),
                                           lv_unpack_i8(high23, true)}};
                lv_mma(sums->out[b][(2 * w) % S::TILES], v[0], p0, p1);
                lv_mma(sums->out[b][(2 * w + 1) % S::TILES], v[1], p0, p1);
            } else { // low: dimension 2 w of two tokens; high: 2 w + 1
                const uint32_t v[4] = {low01, high01, low23, high23};
                lv_mma(sums->out[b][w], v, p0, p1);
            }
        }
    }
}

#endif
