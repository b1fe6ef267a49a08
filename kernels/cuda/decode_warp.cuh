// One warp's part of decode attention (decode_attention.cu): its ring of tokens in shared memory,
// their scores, softmax and sums.
#ifndef LV_KERNELS_CUDA_DECODE_WARP_CUH
#define LV_KERNELS_CUDA_DECODE_WARP_CUH

#include "kernels/cuda/attention.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)
#define HEADS 8                           // query heads of a block: the n8 of mma
#define WARP_TOKENS (LV_KV_BLOCK / WARPS) // of a page: the m16 or the k16 of mma

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
    static constexpr int E = I8 ? 16 : 8;                           // elements of a chunk
    static constexpr int CHUNKS = HD / E;                           // of a row
    static constexpr int ROW = HD * (I8 ? 1 : 2);                   // bytes in a page
    static constexpr int PAGE = LV_KV_BLOCK * (ROW + (I8 ? 4 : 0)); // bytes
    // Rows in shared memory meet no bank conflict: chunks change places (see place), or an odd
    // number of them makes a row.
    static constexpr bool MIXED = CHUNKS % 4 == 0 && CHUNKS != 12;
    static constexpr int STRIDE = (MIXED ? CHUNKS : CHUNKS | 1) * 16; // bytes
    static constexpr int ROWS = WARP_TOKENS * STRIDE;                 // bytes of keys or values
    static constexpr int STAGE = 2 * (ROWS + (I8 ? WARP_TOKENS * 4 : 0));
    static constexpr int TILES = HD / 16;        // of dimensions: k steps of scores, m16 of sums
    static constexpr int PAIRS = (HD + 63) / 64; // of the new token, see lv_read_pairs
};

// Stages of a warp's ring: where copies are not asynchronous, one.
template <bool I8> __host__ __device__ constexpr int stages_of(int sm) {
    return sm < 80 ? 1 : I8 ? 3 : 2;
}
#ifdef __CUDA_ARCH__
#define LV_ARCH (__CUDA_ARCH__ / 10)
#else
#define LV_ARCH 0
#endif

// Sums of a warp: heads 2 t (elements 0, 2 of a tile) and 2 t + 1, dimensions dim_of.
template <int HD> struct lane_sums {
    float out[HD / 16][4];
    float max[2], sum[2];
};

// The dimension of elements 0, 1 (h = 0) or 2, 3 (h = 1) of a tile.
template <bool I8> __device__ static inline int dim_of(int tile, int h, const job *j) {
    return 16 * tile + (I8 ? 2 * j->g + h : j->g + 8 * h);
}

// --- the ring -----------------------------------------------------------------------------------

// Where a chunk of a row is, in bytes.
template <int HD, bool I8> __device__ static inline int place(int row, int chunk) {
    using S = shape_of<HD, I8>;
    const int mixed = !S::MIXED        ? chunk
                      : S::CHUNKS == 4 ? chunk ^ (row / 2 & 3)
                                       : chunk ^ (row & 7);
    return row * S::STRIDE + mixed * 16;
}

__device__ static inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this lane's copies, but for the last N groups.
template <int N> __device__ static inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Begins to copy the warp's tokens of a page. n_valid: tokens in the page; what the rest holds is
// perhaps NaN, which values of f16 must not be.
template <int HD, bool I8>
__device__ static inline void fetch_tokens(uint8_t *stage, const uint8_t *page, int n_valid,
                                           const job *j) {
    using S = shape_of<HD, I8>;
    const int token0 = j->warp * WARP_TOKENS;
    const uint8_t *from = page + token0 * S::ROW + j->lane * 16;
#pragma unroll
    for (int i = 0; i < WARP_TOKENS * S::CHUNKS; i += 32) {
        const int row = (i + j->lane) / S::CHUNKS, chunk = (i + j->lane) % S::CHUNKS;
        if (row < WARP_TOKENS) {
            uint8_t *to = stage + place<HD, I8>(row, chunk);
            lv_copy_chunk(to, from + i * 16, false);
            lv_copy_chunk(to + S::ROWS, from + S::PAGE + i * 16, !I8 && token0 + row >= n_valid);
        }
    }
    if (I8 && j->lane < 8) { // scales of keys, then of values
        lv_copy_chunk(
            stage + 2 * S::ROWS + j->lane * 16,
            page + j->lane / 4 * S::PAGE + LV_KV_BLOCK * HD + token0 * 4 + j->lane % 4 * 16, false);
    }
}

// --- one page -----------------------------------------------------------------------------------

// q as the n8 operand of a step over 16 dimensions.
template <int HD> struct lane_query { uint32_t word[HD / 16][2]; };

// Head g's row of q, or zeros. i8: k 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of a step are dimensions 4 t ..
// 4 t + 3 of its 16, which is how a lane's bytes of keys come.
template <int HD, bool I8>
__device__ static inline void load_query(lane_query<HD> *query, const __half *row, const job *j) {
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
        query->word[i][0] = query->word[i][1] = 0;
        if (row) {
            query->word[i][0] = *(const uint32_t *)(row + 16 * i + (I8 ? 4 : 2) * j->t);
            query->word[i][1] =
                *(const uint32_t *)(row + 16 * i + (I8 ? 4 * j->t + 2 : 2 * j->t + 8));
        }
    }
}

// Bytes 0 and 2 (h = 0) or 1 and 3 of `bytes`, each 128 + q, as the halves q.
__device__ static inline uint32_t unpack_apart(uint32_t bytes, int h) {
    const uint32_t biased = __byte_perm(bytes, 0x64646464u, h ? 0x4341 : 0x4240);
    const __half2 q = __hsub2(*(const __half2 *)&biased, __half2half2(__ushort_as_half(0x6480)));
    return *(const uint32_t *)&q;
}

// The lane's row of what ldmatrix reads: tokens 0-7 and 8-15 of chunk c, the same of chunk c + 1.
template <int HD, bool I8>
__device__ static inline const uint8_t *chunk_row(const uint8_t *rows, int c, const job *j) {
    using S = shape_of<HD, I8>;
    const int offset = place<HD, I8>(j->lane % 16, j->lane / 16);
    return rows + (S::MIXED ? offset ^ c * 16 : offset + c * 16);
}

// score: tokens g (elements 0, 1) and g + 8, heads 2 t and 2 t + 1.
template <int HD, bool I8>
__device__ static inline void scores_of(float score[4], const uint8_t *stage,
                                        const lane_query<HD> *q, float scale, const job *j) {
    using S = shape_of<HD, I8>;
    const float *key_scale = (const float *)(stage + 2 * S::ROWS);
    float sum[2][4] = {}; // two chains
#pragma unroll
    for (int c = 0; c < S::CHUNKS; c += 2) {
        uint32_t w[4];
        lv_ldmatrix(w, chunk_row<HD, I8>(stage, c, j));
        if (I8) {
#pragma unroll
            for (int s = 0; s < 2 && c + s < S::CHUNKS; s++) {
                const uint32_t k[4] = {
                    lv_unpack_i8(w[2 * s], false), lv_unpack_i8(w[2 * s + 1], false),
                    lv_unpack_i8(w[2 * s], true), lv_unpack_i8(w[2 * s + 1], true)};
                lv_mma(sum[s], k, q->word[c + s][0], q->word[c + s][1]);
            }
        } else {
            lv_mma(sum[c / 2 % 2], w, q->word[c / 2][0], q->word[c / 2][1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        score[i] = (sum[0][i] + sum[1][i]) * (I8 ? key_scale[j->g + i / 2 * 8] * scale : scale);
    }
}

template <int HD> __device__ static inline void clear_sums(lane_sums<HD> *sums) {
#pragma unroll
    for (int i = 0; i < HD / 4; i++) {
        sums->out[i / 4][i % 4] = 0;
    }
    sums->max[0] = sums->max[1] = -INFINITY;
    sums->sum[0] = sums->sum[1] = 0;
}

// The maximum grows to `max`: what was summed is rescaled.
template <int HD> __device__ static inline void raise_max(lane_sums<HD> *sums, const float max[2]) {
    const float factor[2] = {lv_exp2_whole(sums->max[0] - max[0]),
                             lv_exp2_whole(sums->max[1] - max[1])};
#pragma unroll
    for (int i = 0; i < HD / 4; i++) {
        sums->out[i / 4][i % 4] *= factor[i % 2];
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
        sums->sum[c] *= factor[c];
        sums->max[c] = max[c];
    }
}

// Scores of the warp's tokens, from token0 on -> probabilities in place.
template <int HD>
__device__ static inline void softmax_step(float score[4], lane_sums<HD> *sums, int token0,
                                           const job *j) {
    float max[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int token = token0 + j->g + 8 * h;
        if (token >= j->n_old || token < j->first_seen) {
            score[2 * h] = score[2 * h + 1] = -INFINITY;
        }
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float most = fmaxf(score[c], score[c + 2]);
        for (int offset = 4; offset < 32; offset *= 2) {
            most = fmaxf(most, __shfl_xor_sync(LV_ALL_LANES, most, offset));
        }
        max[c] = fmaxf(sums->max[c], ceilf(most));
    }
    if (__any_sync(LV_ALL_LANES, max[0] != sums->max[0] || max[1] != sums->max[1])) {
        raise_max<HD>(sums, max);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        score[i] = lv_exp2(score[i] - (max[i % 2] == -INFINITY ? 0.0f : max[i % 2]));
        sums->sum[i % 2] += score[i];
    }
}

// sums += V^T P, P = probabilities (times the values' scales).
template <int HD, bool I8>
__device__ static inline void add_values(lane_sums<HD> *sums, float p[4], const uint8_t *stage,
                                         const job *j) {
    using S = shape_of<HD, I8>;
    if (I8) {
        const float *scale = (const float *)(stage + 2 * S::ROWS) + WARP_TOKENS;
#pragma unroll
        for (int i = 0; i < 4; i++) { // a scale of no token may be NaN
            p[i] = p[i] == 0 ? 0.0f : p[i] * (scale[j->g + i / 2 * 8] * LV_I8_BOOST);
        }
    }
    const uint32_t p0 = lv_transpose(lv_pack(p[0], p[1])), p1 = lv_transpose(lv_pack(p[2], p[3]));
#pragma unroll
    for (int c = 0; c < S::CHUNKS; c += 2) {
        uint32_t w[4];
        lv_ldmatrix_transposed(w, chunk_row<HD, I8>(stage + S::ROWS, c, j));
        if (I8) {
#pragma unroll
            for (int s = 0; s < 2 && c + s < S::CHUNKS; s++) {
                const uint32_t v[4] = {unpack_apart(w[2 * s], 0), unpack_apart(w[2 * s], 1),
                                       unpack_apart(w[2 * s + 1], 0),
                                       unpack_apart(w[2 * s + 1], 1)};
                lv_mma(sums->out[c + s], v, p0, p1);
            }
        } else {
            const uint32_t v[4] = {w[0], w[2], w[1], w[3]};
            lv_mma(sums->out[c / 2], v, p0, p1);
        }
    }
}

#endif
