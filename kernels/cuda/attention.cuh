// What the attention kernels share: pages of the cache, and how a token is stored in them.
//
// A page is 64 tokens of one layer, block and head: rows f16 [64, head_dim]; or bytes 128 + q
// [64, head_dim], then f32 [64] scales, x = scale q. A head's keys and values lie side by side.
#ifndef LV_KERNELS_CUDA_ATTENTION_CUH
#define LV_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"

#define LV_MAX_HEAD_DIM 256
#define LV_LOG2E 1.4426950408889634f
#define LV_ALL_LANES 0xffffffffu

// Times probability times value scale, so that small values stay normal halves: scales are at most
// 65504 / 127 = 516, probabilities at most 1.
#define LV_I8_BOOST 64.0f

extern __shared__ __align__(16) uint8_t lv_shared[];

// One layer of the cache.
typedef struct lv_kv_layer {
    uint8_t *data; // [n_blocks, n_kv_heads, 2] pages
    size_t page_bytes;
    int n_kv_heads, head_dim;
    bool is_i8;
} lv_kv_layer;

static inline lv_kv_layer lv_kv_at(const lv_kv *kv, int layer) {
    const size_t layer_bytes = (size_t)kv->n_blocks * (size_t)kv->n_kv_heads * 2 * kv->page_bytes;
    lv_kv_layer at = {kv->data + (size_t)layer * layer_bytes, kv->page_bytes, kv->n_kv_heads,
                      kv->head_dim, kv->dtype == LV_I8};
    return at;
}

// The page of keys; the page of values is page_bytes further.
__host__ __device__ static inline uint8_t *lv_kv_page(const lv_kv_layer *kv, int block, int head) {
    return kv->data + ((size_t)block * (size_t)kv->n_kv_heads + (size_t)head) * 2 * kv->page_bytes;
}

__device__ static inline float lv_warp_max(float x) {
    for (int offset = 16; offset; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(LV_ALL_LANES, x, offset));
    }
    return x;
}

__device__ static inline float lv_warp_sum(float x) {
    for (int offset = 16; offset; offset /= 2) {
        x += __shfl_xor_sync(LV_ALL_LANES, x, offset);
    }
    return x;
}

// A key or value of one token and head in a warp: pair i of lane l is elements 2 (l + 32 i) and the
// next, zeros beyond head_dim.
template <int PAIRS>
__device__ static inline void lv_read_pairs(const __half *x, int lane, int head_dim,
                                            float2 pair[PAIRS]) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int at = lane + 32 * i;
        pair[i] = make_float2(0, 0);
        if (at < head_dim / 2) {
            pair[i] = __half22float2(((const __half2 *)x)[at]);
        }
    }
}

// x -> whole numbers q; returns the scale: max|x| / 127, or NaN where x has a NaN or an infinity,
// as the CPU's quantise_i8. x is in `lanes` lanes in a row, a power of two.
template <int PAIRS>
__device__ static inline float lv_quantise_among(float2 pair[PAIRS], int lanes) {
    float most = 0;
    bool bad = false;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        most = fmaxf(most, fmaxf(fabsf(pair[i].x), fabsf(pair[i].y)));
        bad = bad || !isfinite(pair[i].x) || !isfinite(pair[i].y);
    }
    most = bad ? INFINITY : most;
    for (int offset = lanes / 2; offset; offset /= 2) {
        most = fmaxf(most, __shfl_xor_sync(LV_ALL_LANES, most, offset));
    }
    bad = most == INFINITY;
    const float inverse = most > 1e-30f && !bad ? 127.0f / most : 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        pair[i].x = bad ? 0.0f : rintf(pair[i].x * inverse);
        pair[i].y = bad ? 0.0f : rintf(pair[i].y * inverse);
    }
    return bad ? __int_as_float(0x7fffffff) : most / 127.0f;
}

template <int PAIRS> __device__ static inline float lv_quantise(float2 pair[PAIRS]) {
    return lv_quantise_among<PAIRS>(pair, 32);
}

// A warp's pairs -> row `slot` of a page; those of an i8 page are what lv_quantise left.
template <int PAIRS>
__device__ static inline void lv_store_pairs(uint8_t *page, int slot, int lane, int head_dim,
                                             bool is_i8, const float2 pair[PAIRS], float scale) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int at = lane + 32 * i;
        if (at < head_dim / 2) {
            const size_t place = (size_t)slot * (size_t)(head_dim / 2) + (size_t)at;
            if (is_i8) {
                const int low = 128 + (int)pair[i].x, high = 128 + (int)pair[i].y;
                ((uint16_t *)page)[place] = (uint16_t)(low | high << 8);
            } else {
                ((__half2 *)page)[place] = __floats2half2_rn(pair[i].x, pair[i].y);
            }
        }
    }
    if (is_i8 && lane == 0) {
        ((float *)(page + LV_KV_BLOCK * head_dim))[slot] = scale;
    }
}

// The first of the tokens that one at `position` sees.
__device__ static inline int lv_first_seen(int position, int window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}

// kv_new of all sequences with one new token (`single`), or of all others -> the cache.
lv_status lv_kv_store(lv_cuda *cuda, const lv_device_batch *batch, const void *kv_new,
                      const lv_kv *kv, int layer, bool single);

// Any even head_dim up to 256, slow; see any_attention.cu. The new tokens are in the cache.
lv_status lv_any_attention(lv_cuda *cuda, const lv_device_batch *batch,
                           const lv_attention_shape *shape, const void *q, const lv_kv *kv,
                           int layer, bool single, void *out);
lv_status lv_any_image_attention(lv_cuda *cuda, const void *qkv, int n, int n_rows, int n_heads,
                                 int head_dim, void *out);

// head_dim that the fast kernels take: 64, 80, 96, 128.
static inline bool lv_fast_head_dim(int head_dim) {
    return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128;
}

#endif
