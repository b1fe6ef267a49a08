// Attention of many query rows: new tokens over the paged cache, causal, and images, full.
//
//   out[i] = sum_t softmax_t(q[i] k[t] / sqrt(head_dim)) v[t]
//
// Paged: q, out f16 [n_tokens, n_heads head_dim]; pages as in attention.cuh. Images: qkv f16 [n,
// n_rows, 3 n_heads head_dim], out f16 [n, n_rows, n_heads head_dim]. A block is a tile of 4 x 16 R
// query rows (R = 1 or 2) of one head; a warp has 16 R rows, which must be 32 where the tensor
// cores are to bind: with 16, each 16 x 8 x 16 product waits two cycles for its operand from shared
// memory and computes for one and a half.
//
//   for each page of 64 tokens, from the first that a row may see to the last:
//     values of this page  ->  shared memory, on the way during
//     scores [16 R, 64] = Q K^T; softmax with the running maximum; P as f16
//     keys of the next page -> shared memory, on the way during
//     out [16 R, head_dim] += P V
//
// Rows in shared memory are padded to an odd number of 16-byte chunks, so that ldmatrix meets no
// bank conflict and all addresses are a base and constants. i8 pages come as they are and are
// unpacked to whole halves once a block; the keys' scale meets the scores, the values' P. Tokens
// beyond the last are zeros in shared memory, for what a page held before may be NaN. Maxima are
// rounded up to whole powers of two: most pages then rescale nothing. A page that shows a row
// nothing leaves it bit by bit, so that a row does not depend on the tile it is in. On Hopper
// prefill_wgmma.cu takes the paged ones whose heads are 128 wide, and images whose heads are 64.
//
// 7B, 2,204 new tokens: 40 GFLOP a layer (causal half), 36 MB from L2. CLIP, 5 tiles: 6.8 GFLOP.
// The roof is the tensor cores as mma.sync reaches them (about 60% of wgmma's rate), and the
// special function unit: 78 and 27 million exponentials. Shared memory with R = 2, 128 wide: 68
// KiB, i8 84. measured (H200): 2,204 tokens f16 213 us a layer (187 TFLOP/s), i8 233; CLIP, 5
// tiles: 52 us (132), cuDNN 33.
#include "kernels/cuda/prefill_tile.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)

template <int HD, int R, bool I8> struct tile_shared {
    __half q[WARPS * 16 * R][tile_shape<HD, I8>::STRIDE]; // then the block's output
    __half keys[PAGE][tile_shape<HD, I8>::STRIDE], values[PAGE][tile_shape<HD, I8>::STRIDE];
    uint8_t raw[I8 ? tile_shape<HD, I8>::RAW : 16]; // an i8 page on its way
    float key_scale[I8 ? PAGE : 4];
    float value_scale[I8 ? PAGE : 4]; // boosted; 0 beyond the last token
};

// --- shared memory ------------------------------------------------------------------------------

// Begins to copy 64 rows of halves, zeros from n_valid on.
template <int HD>
__device__ static inline void copy_rows(__half *to, int stride, const uint8_t *from, int row_bytes,
                                        int n_rows, int n_valid) {
    constexpr int CHUNKS = HD / 8;
#pragma unroll 8
    for (int i = threadIdx.x; i < n_rows * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool zero = row >= n_valid;
        lv_copy_chunk(to + row * stride + chunk * 8,
                      from + (size_t)(zero ? 0 : row) * row_bytes + chunk * 16, zero);
    }
}

__device__ static inline void copy_raw(uint8_t *to, const uint8_t *from, int n_bytes) {
    for (int i = threadIdx.x * 16; i < n_bytes; i += THREADS * 16) {
        lv_copy_chunk(to + i, from + i, false);
    }
}

// An i8 page in shared memory -> halves q, and its scales times `boost`, 0 from n_valid on.
template <int HD, int R, bool I8>
__device__ static inline void unpack_page(tile_shared<HD, R, I8> *shared, bool values,
                                          int n_valid) {
    constexpr int CHUNKS = HD / 16;
    const float *scale = (const float *)(shared->raw + PAGE * HD);
#pragma unroll 1
    for (int i = threadIdx.x; i < PAGE * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const lv_chunk bytes = *(const lv_chunk *)(shared->raw + row * HD + chunk * 16);
        lv_chunk halves[2];
#pragma unroll
        for (int w = 0; w < 4; w++) {
            halves[w / 2].word[w % 2 * 2] = lv_unpack_i8(bytes.word[w], false);
            halves[w / 2].word[w % 2 * 2 + 1] = lv_unpack_i8(bytes.word[w], true);
        }
        __half *to = &(values ? shared->values : shared->keys)[row][chunk * 16];
        *(lv_chunk *)to = halves[0];
        *(lv_chunk *)(to + 8) = halves[1];
    }
    if (threadIdx.x < PAGE && values) {
        shared->value_scale[threadIdx.x] =
            (int)threadIdx.x < n_valid ? scale[threadIdx.x] * LV_I8_BOOST : 0.0f;
    } else if (threadIdx.x < PAGE) {
        shared->key_scale[threadIdx.x] = scale[threadIdx.x];
    }
}

// Begins to fetch a page's keys or values.
template <int HD, int R, bool I8>
__device__ static inline void fetch_page(const tile_args *a, const tile *b, int page, bool values,
                                         tile_shared<HD, R, I8> *shared) {
    const uint8_t *from = page_of(a, b, page) + (values ? a->value_bytes : 0);
    if constexpr (I8) {
        copy_raw(shared->raw, from, tile_shape<HD, I8>::RAW);
    } else {
        copy_rows<HD>((__half *)(values ? shared->values : shared->keys),
                      tile_shape<HD, I8>::STRIDE, from, a->row_bytes, PAGE,
                      b->length - page * PAGE);
    }
}

// What fetch_page began is in shared memory, and the whole block is done with what came before.
template <int HD, int R, bool I8>
__device__ static inline void arrive_page(const tile *b, int page, bool values,
                                          tile_shared<HD, R, I8> *shared) {
    lv_copies_wait();
    __syncthreads();
    if constexpr (I8) {
        unpack_page<HD, R, I8>(shared, values, b->length - page * PAGE);
        __syncthreads();
    }
}

// --- one page of a warp -------------------------------------------------------------------------

// score[m][n] = rows 16 m .. of Q times tokens 8 n .. of K.
template <int HD, int R, bool I8>
__device__ static inline void scores_of(float score[R][PAGE / 8][4], const tile *b,
                                        const tile_shared<HD, R, I8> *shared) {
    const int i = b->lane % 8, matrix = b->lane / 8;
    const __half *q = &shared->q[b->warp * 16 * R + matrix % 2 * 8 + i][matrix / 2 * 8];
    const __half *k = &shared->keys[matrix / 2 * 8 + i][matrix % 2 * 8];
    constexpr int STRIDE = tile_shape<HD, I8>::STRIDE;
#pragma unroll
    for (int m = 0; m < R; m++) {
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) {
            score[m][n][0] = score[m][n][1] = score[m][n][2] = score[m][n][3] = 0;
        }
    }
#pragma unroll
    for (int d = 0; d < HD; d += 16) {
        uint32_t rows[R][4];
#pragma unroll
        for (int m = 0; m < R; m++) {
            lv_ldmatrix(rows[m], q + m * 16 * STRIDE + d);
        }
#pragma unroll
        for (int n = 0; n < PAGE / 8; n += 2) {
            uint32_t tokens[4];
            lv_ldmatrix(tokens, k + n * 8 * STRIDE + d);
#pragma unroll
            for (int m = 0; m < R; m++) {
                lv_mma(score[m][n], rows[m], tokens[0], tokens[1]);
                lv_mma(score[m][n + 1], rows[m], tokens[2], tokens[3]);
            }
        }
    }
}

// sums += P V.
template <int HD, int R, bool I8>
__device__ static inline void add_values(tile_sums<HD, R> *sums, float score[R][PAGE / 8][4],
                                         const tile *b, const tile_shared<HD, R, I8> *shared) {
    const int i = b->lane % 8, matrix = b->lane / 8;
    const __half *v = &shared->values[matrix % 2 * 8 + i][matrix / 2 * 8];
    constexpr int STRIDE = tile_shape<HD, I8>::STRIDE;
#pragma unroll
    for (int n = 0; n < PAGE / 8; n += 2) {
        uint32_t p[R][4];
        float2 scale[2] = {make_float2(1, 1), make_float2(1, 1)};
        if (I8) {
            scale[0] = *(const float2 *)&shared->value_scale[8 * n + 2 * b->t];
            scale[1] = *(const float2 *)&shared->value_scale[8 * n + 8 + 2 * b->t];
        }
#pragma unroll
        for (int m = 0; m < R; m++) {
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const float *pair = &score[m][n + w / 2][w % 2 * 2];
                p[m][w] = lv_pack(pair[0] * scale[w / 2].x, pair[1] * scale[w / 2].y);
            }
        }
#pragma unroll
        for (int d = 0; d < HD / 8; d += 2) {
            uint32_t tokens[4];
            lv_ldmatrix_transposed(tokens, v + n * 8 * STRIDE + d * 8);
#pragma unroll
            for (int m = 0; m < R; m++) {
                lv_mma(sums->out[m][d], p[m], tokens[0], tokens[1]);
                lv_mma(sums->out[m][d + 1], p[m], tokens[2], tokens[3]);
            }
        }
    }
}

// --- the kernel ---------------------------------------------------------------------------------

// Blocks of a multiprocessor that registers are allotted for: as many as run without spilling.
constexpr int blocks_of(int head_dim, int r, bool i8) {
    return r == 2 || i8 ? 2 : head_dim == 64 ? 4 : 3;
}

template <int HD, int R, bool I8>
__global__ void __launch_bounds__(THREADS, blocks_of(HD, R, I8))
    attend_tile(const __grid_constant__ tile_args a) {
    tile_shared<HD, R, I8> *shared = (tile_shared<HD, R, I8> *)lv_shared;
    tile_sums<HD, R> sums = {};
    tile b;
    lv_launch_next();
    lv_wait_previous();
    if (!find_tile<WARPS * 16 * R>(&a, &b)) {
        return;
    }
#pragma unroll
    for (int m = 0; m < R; m++) {
        sums.max[m][0] = sums.max[m][1] = -INFINITY;
    }
    const int last = (b.last0 + (b.n_rows - 1) * b.causal) / PAGE;
    int page = lv_first_seen(b.last0, b.window) / PAGE;
    copy_rows<HD>((__half *)shared->q, tile_shape<HD, I8>::STRIDE,
                  (const uint8_t *)(a.q + (size_t)b.row0 * a.q_stride + b.head * HD),
                  a.q_stride * (int)sizeof(__half), WARPS * 16 * R, b.n_rows);
    fetch_page<HD, R, I8>(&a, &b, page, false, shared);
    for (; page <= last; page++) {
        float score[R][PAGE / 8][4], factor[R][2];
        const bool seen = is_seen<R>(&b, page);
        arrive_page<HD, R, I8>(&b, page, false, shared);
        fetch_page<HD, R, I8>(&a, &b, page, true, shared);
        if (seen) {
            scores_of<HD, R, I8>(score, &b, shared);
            scale_and_mask<R, I8>(score, &b, page, shared->key_scale);
            if (softmax_page<HD, R>(score, &sums, a.scale, factor)) {
                rescale<HD, R>(&sums, factor);
            }
        }
        arrive_page<HD, R, I8>(&b, page, true, shared);
        if (page < last) {
            fetch_page<HD, R, I8>(&a, &b, page + 1, false, shared);
        }
        if (seen) {
            add_values<HD, R, I8>(&sums, score, &b, shared);
        }
    }
    write_rows<HD, R, I8>(&a, &b, &sums, shared->q[0]);
}

// --- launchers ----------------------------------------------------------------------------------

template <int HD, int R, bool I8>
static lv_status launch(lv_cuda *cuda, const tile_args *args, int n_heads, int n_tiles,
                        int n_images) {
    return lv_launch(cuda, "attention", attend_tile<HD, R, I8>,
                     dim3((unsigned)n_heads, (unsigned)n_tiles, (unsigned)n_images), dim3(THREADS),
                     sizeof(tile_shared<HD, R, I8>), *args);
}

// Tiles of 128 rows where those fit and fill the device, else of 64: a row's bits are the same.
template <int HD, bool I8>
static lv_status launch_rows(lv_cuda *cuda, const tile_args *args, int n_heads, int n_images) {
    const int n_large = args->table ? args->n_tiles : (args->n_rows + 127) / 128;
    const int n_small = args->table ? args->n_tiles * 2 : (args->n_rows + 63) / 64;
    if (n_large * n_heads * n_images >= 2 * cuda->n_sms &&
        sizeof(tile_shared<HD, 2, I8>) <= cuda->shared_bytes) {
        return launch<HD, 2, I8>(cuda, args, n_heads, n_large, n_images);
    }
    return launch<HD, 1, I8>(cuda, args, n_heads, n_small, n_images);
}

template <bool I8>
static lv_status launch_width(lv_cuda *cuda, const tile_args *args, int n_heads, int head_dim,
                              int n_images) {
    switch (head_dim) {
    case 64:
        return launch_rows<64, I8>(cuda, args, n_heads, n_images);
    case 80:
        return launch_rows<80, I8>(cuda, args, n_heads, n_images);
    case 96:
        return launch_rows<96, I8>(cuda, args, n_heads, n_images);
    default:
        return launch_rows<128, I8>(cuda, args, n_heads, n_images);
    }
}

lv_status lv_cuda_prefill_attention(lv_cuda *cuda, const lv_device_batch *batch,
                                    const lv_attention_shape *shape, const void *q, const lv_kv *kv,
                                    int layer, void *out) {
    const int hd = shape->head_dim;
    if (batch->n_tiles == 0) {
        return LV_OK;
    }
    if (!lv_fast_head_dim(hd)) {
        return lv_any_attention(cuda, batch, shape, q, kv, layer, false, out);
    }
    const lv_kv_layer pages = lv_kv_at(kv, layer);
    tile_args args = {};
    args.q = (const __half *)q;
    args.out = (__half *)out;
    args.q_stride = args.out_stride = shape->n_heads * hd;
    args.keys = pages.data;
    args.page_stride = (size_t)shape->n_kv_heads * 2 * pages.page_bytes;
    args.head_stride = 2 * pages.page_bytes;
    args.value_bytes = pages.page_bytes;
    args.row_bytes = hd * (int)sizeof(__half);
    args.group = shape->n_heads / shape->n_kv_heads;
    args.window = shape->window;
    args.scale = LV_LOG2E / sqrtf((float)hd);
    args.table = batch->block_table;
    args.tile_seq = batch->tile_seq;
    args.tile_first = batch->tile_first;
    args.token_start = batch->token_start;
    args.kv_length = batch->kv_length;
    args.table_stride = batch->table_stride;
    args.n_tiles = batch->n_tiles;
    if (hd == 128 && cuda->has_wgmma) {
        return lv_wgmma_attention(cuda, &args, shape->n_heads, kv->dtype == LV_I8);
    }
    return kv->dtype == LV_I8 ? launch_width<true>(cuda, &args, shape->n_heads, hd, 1)
                              : launch_width<false>(cuda, &args, shape->n_heads, hd, 1);
}

lv_status lv_cuda_image_attention(lv_backend *be, const void *qkv, int n, int n_rows, int n_heads,
                                  int head_dim, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    const int d = n_heads * head_dim;
    if (!lv_fast_head_dim(head_dim)) {
        return lv_any_image_attention(cuda, qkv, n, n_rows, n_heads, head_dim, out);
    }
    tile_args args = {};
    args.q = (const __half *)qkv;
    args.out = (__half *)out;
    args.q_stride = 3 * d;
    args.out_stride = d;
    args.keys = (const uint8_t *)(args.q + d);
    args.row_bytes = 3 * d * (int)sizeof(__half);
    args.page_stride = (size_t)PAGE * (size_t)args.row_bytes;
    args.head_stride = (size_t)head_dim * sizeof(__half);
    args.value_bytes = (size_t)d * sizeof(__half);
    args.group = 1;
    args.scale = LV_LOG2E / sqrtf((float)head_dim);
    args.n_rows = n_rows;
    if (head_dim == 64 && cuda->has_wgmma) {
        return lv_wgmma_image_attention(cuda, &args, n_heads, n);
    }
    return launch_width<false>(cuda, &args, n_heads, head_dim, n);
}
