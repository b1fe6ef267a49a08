// The paged cache of keys and values, and attention's way through the kernels.
//
//   append: row `position % 64` of page block_table[position / 64] = kv_new's row, or rounded to i8
//
// kv_new f16 [n_tokens, 2 n_kv_heads head_dim], keys then values; pages as in attention.cuh, rows
// of a token contiguous: the kernels permute the sums instead of the data (decode_attention.cu). A
// block is a token; where the width of heads is no power of two, a warp is a token and head. 7B:
// 16,384 B read and as much written (i8: 8,448) a token and layer; 2,204 tokens: 72 MB, 17 us at
// 4.2 TB/s (i8: 13). The roof is memory. measured (H200): f16 20 us, i8 25; a warp a token and
// head with 4 bytes a lane: 32 and 46.
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention.cuh"

#define APPEND_WARPS 8
#define APPEND_THREADS 256
#define APPEND_CHUNKS 4 // loads of a thread on their way at once
#define COPY_THREADS 256

// --- the cache ----------------------------------------------------------------------------------

static lv_dtype kv_type(lv_dtype dtype) {
    return dtype == LV_NONE ? LV_F16 : dtype;
}

static size_t page_bytes(int head_dim, lv_dtype dtype) {
    const size_t scale_bytes = dtype == LV_I8 ? sizeof(float) : 0;
    return LV_KV_BLOCK * ((size_t)head_dim * lv_dtype_bytes(dtype) + scale_bytes);
}

size_t lv_cuda_kv_block_bytes(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                              lv_dtype kv_dtype) {
    (void)be;
    return (size_t)n_layers * 2 * (size_t)n_kv_heads * page_bytes(head_dim, kv_type(kv_dtype));
}

// Pages a split: the fewest on the busiest multiprocessor where n_kv_heads x splits blocks spread
// over all of them, at least two on each at a time for the sake of bytes in flight. It knows
// nothing of the batch, so a sequence's bits do not depend on that.
static lv_splits make_splits(int n_kv_heads, int n_sms) {
    lv_splits splits;
    memset(&splits, 0, sizeof splits);
    int most = 4 * n_sms / n_kv_heads, few = 2 * n_sms / n_kv_heads;
    most = most < 1 ? 1 : most > LV_MAX_SPLITS ? LV_MAX_SPLITS : most;
    few = few < 1 ? 1 : few > most ? most : few;
    splits.long_ones = splits.most = (uint8_t)few;
    for (int n = 1; n <= LV_SPLIT_TABLE; n++) {
        int best = -1;
        for (int pages = 1; pages <= n; pages++) {
            const int n_splits = (n + pages - 1) / pages;
            const int busiest = (n_splits * n_kv_heads + n_sms - 1) / n_sms;
            const int cost = (busiest < 2 ? 2 : busiest) * pages;
            if (n_splits <= most && (best < 0 || cost <= best)) {
                best = cost;
                splits.pages[n] = (uint8_t)pages;
            }
        }
        const int n_splits = (n + splits.pages[n] - 1) / splits.pages[n];
        splits.most = n_splits > splits.most ? (uint8_t)n_splits : splits.most;
    }
    return splits;
}

lv_status lv_cuda_kv_create(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                            int n_blocks, lv_dtype kv_dtype, lv_kv **out) {
    lv_cuda *cuda = (lv_cuda *)be;
    const lv_dtype dtype = kv_type(kv_dtype);
    lv_status status = LV_OK;
    size_t n_bytes = 0;
    void *data = NULL, *arrived = NULL;
    lv_kv *kv = NULL;
    *out = NULL;
    if (dtype != LV_F16 && dtype != LV_I8) {
        return lv_fail(LV_EUNSUPPORTED, "KV cache of %s: CUDA keeps f16 or i8",
                       lv_dtype_name(dtype));
    }
    if (n_layers <= 0 || n_kv_heads <= 0 || head_dim <= 0 || n_blocks <= 0) {
        return lv_fail(LV_EINVAL, "KV cache of %d layers, %d heads, %d wide, %d blocks", n_layers,
                       n_kv_heads, head_dim, n_blocks);
    }
    if (head_dim % 2 || head_dim > LV_MAX_HEAD_DIM) {
        return lv_fail(LV_EUNSUPPORTED, "KV cache: heads of %d, even ones up to %d are wanted",
                       head_dim, LV_MAX_HEAD_DIM);
    }
    if (__builtin_mul_overflow(lv_cuda_kv_block_bytes(be, n_layers, n_kv_heads, head_dim, dtype),
                               (size_t)n_blocks, &n_bytes)) {
        return lv_fail(LV_ENOMEM, "KV cache of %d blocks: too large", n_blocks);
    }
    const int n_arrived = 3 * cuda->n_sms;
    kv = (lv_kv *)calloc(1, sizeof *kv);
    if (!kv) {
        return lv_fail(LV_ENOMEM, "KV cache: out of memory");
    }
    LV_TRY_DONE(lv_cuda_alloc(be, n_bytes, &data));
    LV_TRY_DONE(lv_cuda_alloc(be, (size_t)n_arrived * sizeof(int32_t), &arrived));
    LV_TRY_DONE(lv_cuda_check(
        cuda, cudaMemsetAsync(arrived, 0, (size_t)n_arrived * sizeof(int32_t), cuda->stream),
        "KV cache"));
    kv->n_layers = n_layers;
    kv->n_kv_heads = n_kv_heads;
    kv->head_dim = head_dim;
    kv->n_blocks = n_blocks;
    kv->dtype = dtype;
    kv->page_bytes = page_bytes(head_dim, dtype);
    kv->n_bytes = n_bytes;
    kv->data = (uint8_t *)data;
    kv->splits = make_splits(n_kv_heads, cuda->n_sms);
    kv->arrived = (int32_t *)arrived;
    *out = kv;
done:
    if (status != LV_OK) {
        lv_cuda_free(be, data);
        lv_cuda_free(be, arrived);
        free(kv);
    }
    return status;
}

void lv_cuda_kv_free(lv_backend *be, lv_kv *kv) {
    if (kv) {
        lv_cuda_forget_graphs((lv_cuda *)be);
        lv_cuda_free(be, kv->data);
        lv_cuda_free(be, kv->arrived);
        free(kv);
    }
}

// --- copies -------------------------------------------------------------------------------------

// A block of every layer: layers across y. 7B in i8: 17 MB read and as much written, 8 us.
__global__ void __launch_bounds__(COPY_THREADS)
    copy_block(uint4 *data, const size_t layer_stride, const int n, const size_t from,
               const size_t to) {
    uint4 *layer = data + blockIdx.y * layer_stride;
    const int i = (int)(blockIdx.x * COPY_THREADS + threadIdx.x);
    lv_launch_next();
    lv_wait_previous();
    if (i < n) {
        layer[to * (size_t)n + (size_t)i] = layer[from * (size_t)n + (size_t)i];
    }
}

lv_status lv_cuda_kv_copy(lv_backend *be, lv_kv *kv, int from, int to) {
    const lv_cache_shape cache = {kv->n_layers, kv->n_kv_heads, kv->head_dim, kv->n_blocks};
    LV_TRY(lv_check_kv_copy(cache, from, to));
    LV_TRY(lv_cuda_enter((lv_cuda *)be));
    // A page is 64 rows of an even number of bytes: whole words of 16.
    const size_t n = 2 * (size_t)kv->n_kv_heads * kv->page_bytes / sizeof(uint4);
    return lv_launch(
        (lv_cuda *)be, "copy a block of the KV cache", copy_block,
        dim3((unsigned)((n + COPY_THREADS - 1) / COPY_THREADS), (unsigned)kv->n_layers),
        dim3(COPY_THREADS), 0, (uint4 *)kv->data, (size_t)kv->n_blocks * n, (int)n, (size_t)from,
        (size_t)to);
}

// --- append -------------------------------------------------------------------------------------

typedef struct append_args {
    const __half *kv_new;
    lv_kv_layer kv;
    int n_tokens, table_stride;
    bool single; // sequences with one new token, or all others
    const int32_t *token_seq, *token_start, *kv_length, *block_table;
} append_args;

// Where a new token goes: its slot, and the block of the cache; false where it is not this call's.
__device__ static inline bool find_slot(const append_args *a, int token, int *slot, int *block) {
    const int seq = a->token_seq[token], start = a->token_start[seq];
    const int n_new = a->token_start[seq + 1] - start;
    const int position = a->kv_length[seq] - n_new + token - start;
    *slot = position % LV_KV_BLOCK;
    *block = a->block_table[(size_t)seq * a->table_stride + position / LV_KV_BLOCK];
    return (n_new == 1) == a->single;
}

// Four whole numbers as i8 pages hold them.
__device__ static inline uint32_t i8_word(const float2 q[2]) {
    return (uint32_t)(128 + (int)q[0].x) | (uint32_t)(128 + (int)q[0].y) << 8 |
           (uint32_t)(128 + (int)q[1].x) << 16 | (uint32_t)(128 + (int)q[1].y) << 24;
}

// A block is a token, a thread APPEND_CHUNKS times 8 elements: heads whose width is a power of two
// from 8 on, so that lanes in a row share a head.
template <bool I8>
__global__ void __launch_bounds__(APPEND_THREADS) append_chunks(const append_args a) {
    const int lanes = a.kv.head_dim / 8, n_heads = a.kv.n_kv_heads, n = 2 * n_heads * lanes;
    const int token = blockIdx.x, warp0 = threadIdx.x & ~31;
    const __half *from = a.kv_new + (size_t)token * (size_t)n * 8;
    int slot, block;
    lv_launch_next();
    lv_wait_previous();
    if (!find_slot(&a, token, &slot, &block)) {
        return;
    }
    for (int first = 0; first + warp0 < n; first += APPEND_CHUNKS * APPEND_THREADS) {
        lv_chunk chunk[APPEND_CHUNKS];
#pragma unroll
        for (int i = 0; i < APPEND_CHUNKS; i++) {
            const int at = first + i * APPEND_THREADS + threadIdx.x;
            chunk[i] = at < n ? lv_load_once(from + (size_t)at * 8) : lv_chunk{};
        }
#pragma unroll
        for (int i = 0; i < APPEND_CHUNKS; i++) {
            const int at = first + i * APPEND_THREADS + threadIdx.x;
            const int part = at / lanes, place = slot * lanes + at % lanes;
            uint8_t *page = lv_kv_page(&a.kv, block, part % n_heads) +
                            (size_t)(part / n_heads) * a.kv.page_bytes;
            if constexpr (I8) {
                float2 pair[4];
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    pair[w] = __half22float2(*(const __half2 *)&chunk[i].word[w]);
                }
                const float scale = lv_quantise_among<4>(pair, lanes);
                if (at < n) {
                    ((uint2 *)page)[place] = make_uint2(i8_word(pair), i8_word(pair + 2));
                }
                if (at < n && at % lanes == 0) {
                    ((float *)(page + LV_KV_BLOCK * a.kv.head_dim))[slot] = scale;
                }
            } else if (at < n) {
                ((lv_chunk *)page)[place] = chunk[i];
            }
        }
    }
}

// Any head: a warp is a token and head.
__global__ void __launch_bounds__(APPEND_WARPS * 32) append(const append_args a) {
    constexpr int PAIRS = LV_MAX_HEAD_DIM / 64;
    const int lane = threadIdx.x % 32, item = blockIdx.x * APPEND_WARPS + threadIdx.x / 32;
    const int n_heads = a.kv.n_kv_heads, token = item / (2 * n_heads), part = item % (2 * n_heads);
    int slot, block;
    lv_launch_next();
    lv_wait_previous();
    if (token >= a.n_tokens || !find_slot(&a, token, &slot, &block)) {
        return;
    }
    uint8_t *page = lv_kv_page(&a.kv, block, part % n_heads) + part / n_heads * a.kv.page_bytes;
    float2 pair[PAIRS];
    lv_read_pairs<PAIRS>(a.kv_new + (size_t)item * a.kv.head_dim, lane, a.kv.head_dim, pair);
    const float scale = a.kv.is_i8 ? lv_quantise<PAIRS>(pair) : 0.0f;
    lv_store_pairs<PAIRS>(page, slot, lane, a.kv.head_dim, a.kv.is_i8, pair, scale);
}

lv_status lv_kv_store(lv_cuda *cuda, const lv_device_batch *batch, const void *kv_new,
                      const lv_kv *kv, int layer, bool single) {
    const append_args args = {
        (const __half *)kv_new, lv_kv_at(kv, layer), batch->n_tokens,  batch->table_stride, single,
        batch->token_seq,       batch->token_start,  batch->kv_length, batch->block_table};
    const int hd = kv->head_dim, n_items = batch->n_tokens * 2 * kv->n_kv_heads;
    if (hd >= 8 && (hd & (hd - 1)) == 0) {
        return lv_launch(cuda, "append to the KV cache",
                         kv->dtype == LV_I8 ? append_chunks<true> : append_chunks<false>,
                         dim3((unsigned)batch->n_tokens), dim3(APPEND_THREADS), 0, args);
    }
    return lv_launch(cuda, "append to the KV cache", append,
                     dim3((unsigned)((n_items + APPEND_WARPS - 1) / APPEND_WARPS)),
                     dim3(APPEND_WARPS * 32), 0, args);
}

lv_status lv_cuda_kv_append(lv_cuda *cuda, const lv_device_batch *batch, const void *kv_new,
                            const lv_kv *kv, int layer) {
    return batch->n_tiles > 0 ? lv_kv_store(cuda, batch, kv_new, kv, layer, false) : LV_OK;
}

// --- attention ----------------------------------------------------------------------------------

lv_status lv_cuda_attention(lv_backend *be, const lv_batch *batch, const lv_attention_shape *shape,
                            const void *q, const lv_kv *kv, int layer, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    const lv_device_batch *on_device;
    const void *kv_new = cuda->scratch[LV_SCRATCH_KV_NEW].data;
    const lv_cache_shape cache = {kv->n_layers, kv->n_kv_heads, kv->head_dim, kv->n_blocks};
    LV_TRY(lv_check_attention(batch, shape, cache, layer));
    LV_TRY(lv_cuda_batch(cuda, batch, &on_device));
    if (on_device->n_tiles > 0) {
        LV_TRY(lv_cuda_kv_append(cuda, on_device, kv_new, kv, layer));
        LV_TRY(lv_cuda_prefill_attention(cuda, on_device, shape, q, kv, layer, out));
    }
    if (on_device->n_single > 0) {
        LV_TRY(lv_cuda_decode_attention(cuda, on_device, shape, q, kv_new, kv, layer, out));
    }
    return LV_OK;
}
