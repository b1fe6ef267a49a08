// What the kernels of attention over many query rows share: what a block works on, one page's
// softmax, and the way out.
#ifndef LV_KERNELS_CUDA_PREFILL_TILE_CUH
#define LV_KERNELS_CUDA_PREFILL_TILE_CUH

#include "kernels/cuda/attention.cuh"

#define PAGE LV_KV_BLOCK

// Rows of the keys of a head, 64 tokens a page: in the cache, or where `table` is NULL in images,
// pages following one another. Values are value_bytes further.
typedef struct tile_args {
    const __half *q;
    __half *out;
    int q_stride, out_stride;                     // elements between rows
    const uint8_t *keys;                          // of the layer, or of the first image
    size_t page_stride, head_stride, value_bytes; // bytes
    int row_bytes;
    int group, window;
    float scale; // log2(e) / sqrt(head_dim)
    const int32_t *table, *tile_seq, *tile_first, *token_start, *kv_length;
    int table_stride, n_tiles;
    int n_rows; // of an image
} tile_args;

// What a block works on: rows [row0, row0 + n_rows) of q and out; row r sees tokens up to
// last0 + r * causal.
typedef struct tile {
    int lane, warp, g, t;
    int row0, n_rows, head, kv_head;
    int length; // tokens in the cache
    int last0, causal;
    int window;
    const uint8_t *keys;
    const int32_t *table; // of the sequence, or NULL
} tile;

template <int HD, bool I8> struct tile_shape {
    static constexpr int CHUNKS = HD / 8;                           // of a row of halves
    static constexpr int STRIDE = (CHUNKS + (CHUNKS % 2 == 0)) * 8; // halves
    static constexpr int RAW = I8 ? PAGE * (HD + 4) : 0;            // bytes of an i8 page
};

// A lane's part of its warp's rows: row 16 m + g + 8 h has state [m][h].
template <int HD, int R> struct tile_sums {
    float out[R][HD / 8][4];
    float max[R][2], sum[R][2];
};

// --- one page of a warp -------------------------------------------------------------------------

__device__ static inline const uint8_t *page_of(const tile_args *a, const tile *b, int page) {
    return b->keys + (size_t)(b->table ? b->table[page] : page) * a->page_stride;
}

// i8: times the keys' scales. Then -inf where a row does not see a token.
template <int R, bool I8>
__device__ static inline void scale_and_mask(float score[R][PAGE / 8][4], const tile *b, int page,
                                             const float *key_scale) {
    const int row0 = b->warp * 16 * R, token0 = page * PAGE;
    const int last_of_last = b->last0 + (row0 + 16 * R - 1) * b->causal;
    if (I8) {
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) {
            const float2 scale = *(const float2 *)&key_scale[8 * n + 2 * b->t];
#pragma unroll
            for (int m = 0; m < R; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    score[m][n][i] *= i % 2 ? scale.y : scale.x;
                }
            }
        }
    }
    if (token0 + PAGE - 1 <= b->last0 + row0 * b->causal &&
        token0 >= lv_first_seen(last_of_last, b->window)) {
        return; // all rows see all of the page
    }
#pragma unroll
    for (int m = 0; m < R; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int last = b->last0 + (row0 + 16 * m + b->g + 8 * h) * b->causal;
            const int first = lv_first_seen(last, b->window) - token0 - 2 * b->t;
            const int end = last + 1 - token0 - 2 * b->t;
#pragma unroll
            for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if (8 * n + i < first || 8 * n + i >= end) {
                        score[m][n][2 * h + i] = -INFINITY;
                    }
                }
            }
        }
    }
}

// Scores -> probabilities in place. True where a row's maximum grew: what was summed so far is then
// to be rescaled by `factor` (rescale), before the page's values join.
template <int HD, int R>
__device__ static inline bool softmax_page(float score[R][PAGE / 8][4], tile_sums<HD, R> *sums,
                                           float scale, float factor[R][2]) {
    bool grew = false;
#pragma unroll
    for (int m = 0; m < R; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}; // two chains
#pragma unroll
            for (int n = 0; n < PAGE / 8; n++) {
                most[n % 2] = fmaxf(most[n % 2], fmaxf(score[m][n][2 * h], score[m][n][2 * h + 1]));
            }
            most[0] = fmaxf(most[0], most[1]);
            most[0] = fmaxf(most[0], __shfl_xor_sync(LV_ALL_LANES, most[0], 1));
            most[0] = fmaxf(most[0], __shfl_xor_sync(LV_ALL_LANES, most[0], 2));
            const float before = sums->max[m][h], now = fmaxf(before, ceilf(most[0] * scale));
            const float base = now == -INFINITY ? 0.0f : now;
            factor[m][h] = lv_exp2_whole(before - now);
            grew = grew || now != before;
            sums->max[m][h] = now;
#pragma unroll
            for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float *x = &score[m][n][2 * h + i];
                    *x = lv_exp2(fmaf(*x, scale, -base));
                    sum[i] += *x;
                }
            }
            sums->sum[m][h] = fmaf(sums->sum[m][h], factor[m][h], sum[0] + sum[1]);
        }
    }
    return __any_sync(LV_ALL_LANES, grew);
}

template <int HD, int R>
__device__ static inline void rescale(tile_sums<HD, R> *sums, const float factor[R][2]) {
#pragma unroll
    for (int m = 0; m < R; m++) {
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums->out[m][n][i] *= factor[m][i / 2];
            }
        }
    }
}

// --- the tile -----------------------------------------------------------------------------------

// The block's tile; false where it has no row.
template <int ROWS> __device__ static inline bool find_tile(const tile_args *a, tile *b) {
    b->lane = threadIdx.x % 32;
    b->warp = threadIdx.x / 32;
    b->g = b->lane / 4;
    b->t = b->lane % 4;
    b->head = blockIdx.x;
    b->kv_head = b->head / a->group;
    b->window = a->window;
    b->keys = a->keys + b->kv_head * a->head_stride;
    b->causal = a->table != NULL;
    if (!a->table) {
        const int first = blockIdx.y * ROWS;
        b->row0 = blockIdx.z * a->n_rows + first;
        b->n_rows = min(ROWS, a->n_rows - first);
        b->length = a->n_rows;
        b->last0 = a->n_rows - 1;
        b->keys += (size_t)blockIdx.z * a->n_rows * a->row_bytes;
        b->table = NULL;
        return true;
    }
    // The last tiles see the most: they begin first.
    constexpr int PARTS = ROWS < LV_Q_TILE ? LV_Q_TILE / ROWS : 1;
    const int part = gridDim.y - 1 - blockIdx.y, i = part / PARTS, seq = a->tile_seq[i];
    const int start = a->token_start[seq], n_new = a->token_start[seq + 1] - start;
    const int first = a->tile_first[i] + part % PARTS * ROWS;
    b->row0 = start + first;
    b->n_rows = min(ROWS, n_new - first);
    b->length = a->kv_length[seq];
    b->last0 = b->length - n_new + first;
    b->table = a->table + (size_t)seq * a->table_stride;
    return b->n_rows > 0;
}

// The warp's rows -> f16, by way of its own rows of Q (`rows`), which it needs no more.
template <int HD, int R, bool I8>
__device__ static inline void write_rows(const tile_args *a, const tile *b, tile_sums<HD, R> *sums,
                                         __half *rows) {
    constexpr int STRIDE = tile_shape<HD, I8>::STRIDE;
    const int row0 = b->warp * 16 * R;
#pragma unroll
    for (int m = 0; m < R; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = sums->sum[m][h];
            sum += __shfl_xor_sync(LV_ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(LV_ALL_LANES, sum, 2);
            const float inverse = (I8 ? 1.0f / LV_I8_BOOST : 1.0f) / sum;
            __half *row = rows + (row0 + 16 * m + b->g + 8 * h) * STRIDE;
#pragma unroll
            for (int n = 0; n < HD / 8; n++) {
                *(uint32_t *)(row + 8 * n + 2 * b->t) =
                    lv_pack(sums->out[m][n][2 * h] * inverse, sums->out[m][n][2 * h + 1] * inverse);
            }
        }
    }
    __syncwarp();
    constexpr int CHUNKS = HD / 8;
    for (int i = b->lane; i < 16 * R * CHUNKS; i += 32) {
        const int row = row0 + i / CHUNKS, chunk = i % CHUNKS;
        if (row < b->n_rows) {
            *(lv_chunk *)(a->out + (size_t)(b->row0 + row) * a->out_stride + b->head * HD +
                          chunk * 8) = *(const lv_chunk *)(rows + row * STRIDE + chunk * 8);
        }
    }
}

// Rows that this warp has and tokens of the page that they see: else the page changes nothing.
template <int R> __device__ static inline bool is_seen(const tile *b, int page) {
    const int row0 = b->warp * 16 * R, end = min(row0 + 16 * R, b->n_rows);
    return row0 < b->n_rows && page * PAGE <= b->last0 + (end - 1) * b->causal &&
           page * PAGE + PAGE > lv_first_seen(b->last0 + row0 * b->causal, b->window);
}

// Attention by wgmma (prefill_wgmma.cu), where this build and device have it: paged with heads of
// 128, of images with heads of 64.
lv_status lv_wgmma_attention(lv_cuda *cuda, const tile_args *args, int n_heads, bool is_i8);
lv_status lv_wgmma_image_attention(lv_cuda *cuda, const tile_args *args, int n_heads, int n_images);

#endif
