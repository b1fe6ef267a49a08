// Inside of the CUDA backend: its structures and launchers. Included by C and by .cu files.
//
// Activations are f16, row-major. Everything runs in order on one stream. A launcher enqueues,
// never synchronises, and allocates only through lv_cuda_scratch; it returns LV_EUNSUPPORTED for
// shapes that it does not take.
//
// Two families of kernels multiply by weights, and a row's bits depend on the family only, never on
// what else is in the batch:
//   few rows    small.cu: mma.sync on the weights as stored; the split of K is fixed by n_in
//   many rows   dense.c: cuBLASLt with one algorithm pinned a shape; int4 is dequantised first
// In a pass each sequence's own number of new tokens decides (lv_cuda_run), outside always "many".
#ifndef LV_KERNELS_CUDA_H
#define LV_KERNELS_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/checks.h"

#define LV_TILE 16           // rows of weights in an mma tile
#define LV_RECORD_K 128      // k in a record of int4 weights: one quantisation group
#define LV_RECORD_BYTES 1072 // 16 x 128 nibbles, 16 f16 scales, 16 u8 zeros
#define LV_FEW_ROWS 128      // a sequence with more new tokens goes to the "many rows" family
#define LV_Q_TILE 128        // query rows of a tile of prefill attention

typedef enum lv_format { LV_W_F16, LV_W_INT4, LV_W_INT8 } lv_format;

// Rows are stored in tile order: tile t is rows b .. b + 7 and b + pair .. b + pair + 7 of the
// source, where pair is 8 for rows in their natural order (lv_tile_row). n_out is then a multiple
// of 16; a linear whose shape forbids that (pair 0) is stored in natural order.
struct lv_linear {
    int n_out, n_in;
    int pair; // 0, or a multiple of 8
    lv_format format;
    // f16 [n_out, n_in]; int8 [n_out, n_in]; or int4 records [n_out / 16, n_in / 128]: see small.cu
    void *data;
    float *scales;  // int8: [n_out] in tile order
    float *bias;    // f32 [n_out] in natural order, or NULL
    void *bias_f16; // the same in f16, which cuBLASLt adds to f16 rows
    size_t n_bytes;
};

// The source row that place i of the tile order holds.
#ifdef __CUDACC__
__host__ __device__
#endif
    static inline int
    lv_tile_row(int i, int pair) {
    if (pair == 0) {
        return i;
    }
    const int tile = i / LV_TILE, in_tile = i % LV_TILE, tiles_per_block = pair / 8;
    return tile / tiles_per_block * 2 * pair + tile % tiles_per_block * 8 + in_tile % 8 +
           in_tile / 8 * pair;
}

// How decode attention splits a sequence: pages of a split, by the number of pages to read.
#define LV_SPLIT_TABLE 128
#define LV_MAX_SPLITS 16
typedef struct lv_splits {
    uint8_t pages[LV_SPLIT_TABLE + 1];
    uint8_t long_ones; // splits of a sequence beyond the table
    uint8_t most;      // splits that any sequence has
} lv_splits;

// Keys and values of all layers, in blocks of LV_KV_BLOCK tokens (attention.cuh says the layout).
struct lv_kv {
    int n_layers, n_kv_heads, head_dim, n_blocks;
    lv_dtype dtype; // f16 or i8 (a scale for each token and head)
    size_t page_bytes, n_bytes;
    uint8_t *data; // dev [n_layers, n_blocks, n_kv_heads, 2] pages
    lv_splits splits;
    int32_t *arrived; // dev [3 n_sms], zeros between kernels: see decode_attention.cu
};

// A batch on the device; see lv_batch. Arrays are dev.
typedef struct lv_device_batch {
    int n_seqs, n_tokens, n_logits;
    int n_single;               // sequences with one new token
    int n_tiles;                // of LV_Q_TILE query rows, of all other sequences
    int head_dim;               // width of inv_freq / 2; 0 where the batch has none
    int table_stride;           // block numbers a sequence in block_table
    const int32_t *ids;         // [n_tokens]
    const int32_t *logit_rows;  // [n_logits]
    const int32_t *token_seq;   // [n_tokens]
    const int32_t *token_pos;   // [n_tokens] place in its sequence
    const int32_t *token_start; // [n_seqs + 1]
    const int32_t *kv_length;   // [n_seqs]
    const int32_t *single;      // [n_single] their numbers
    const int32_t *tile_seq;    // [n_tiles]
    const int32_t *tile_first;  // [n_tiles] first query row of the tile, counted in its sequence
    const float *inv_freq;      // [n_seqs, head_dim / 2]
    const float *rope_scale;    // [n_seqs]
    const void *turns;          // f32 [n_tokens, head_dim / 2, 2] cos and sin; NULL: no angles
    const int32_t *block_table; // [n_seqs, table_stride]
} lv_device_batch;

// Rows [first, first + n) of a pass that take the same family.
typedef struct lv_run {
    int first, n;
    bool few;
} lv_run;

typedef struct lv_cuda_graph {
    void *user;
    lv_device_batch batch; // sizes and addresses that it was recorded for
    int n_uses;            // recorded at the second one
    cudaGraphExec_t exec;
} lv_cuda_graph;

typedef struct lv_cuda_block {
    void *dev;
    size_t n_bytes;
} lv_cuda_block;

enum {
    LV_SCRATCH_NORMED,  // f16 [n, d] rows after a norm, or their slabs (small_wide.h)
    LV_SCRATCH_WIDE,    // f16 [n, n_out] before an element-wise step
    LV_SCRATCH_WEIGHTS, // f16 slice of dequantised weights
    LV_SCRATCH_KV_NEW, // f16 [n, 2 n_kv_heads head_dim] rotated keys, then values of the new tokens
    LV_SCRATCH_SPLITS, // partial results of split attention
    LV_SCRATCH_PARTS,  // f32 sums of parts of K (small.cu)
    LV_SCRATCH_PATCHES, // f16 rows of patches
    LV_SCRATCH_SAMPLE,
    LV_SCRATCH_TURNS, // lv_device_batch.turns
    LV_SCRATCH_LOAD,  // a tensor as stored, while it is converted
    LV_CUDA_N_SCRATCH
};

typedef struct lv_cuda {
    lv_backend base;
    int device, sm, n_sms; // sm: 75, 80, 86, 89, 90
    size_t shared_bytes;   // most dynamic shared memory of a block
    bool has_wgmma;        // lv_wgmma_present, asked once
    int wide_resident[4];  // lv_small_wide_resident of 1, 2, 4, 8 parts; 0: not asked yet
    cudaStream_t stream;
    int n_threads;         // of the host, for copying weights; 0: those this process may use
    lv_cuda_block *blocks; // [n_blocks] every allocation
    int n_blocks, blocks_capacity;
    size_t used_bytes;
    lv_status broken; // LV_EDEVICE after a sticky error: every further call is refused
    char broken_by[96];
    struct {
        void *data;
        size_t n_bytes;
    } scratch[LV_CUDA_N_SCRATCH];
    struct lv_loader *loader; // pinned ring (load.c)
    struct lv_blas *blas;     // cuBLASLt (dense.c)
    struct lv_dnn *dnn;       // cuDNN (sdpa.c); NULL until used
    // The pass under way (pass.c)
    const lv_batch *current;
    lv_device_batch batch;
    uint8_t *batch_dev;
    size_t batch_bytes;
    struct {
        uint8_t *host; // pinned
        size_t n_bytes;
        cudaEvent_t copied;
    } batch_slots[2];
    int batch_slot;
    lv_run *runs;
    int n_runs, runs_capacity;
    lv_cuda_graph *graphs;
    int n_graphs, graphs_capacity;
    // Sampling (sample.c)
    int32_t *tokens; // dev [LV_MAX_ROWS] of the last call
    struct lv_sampler *sampler;
    struct lv_chain *chain; // operations put off (small_chain.cu); NULL until used
} lv_cuda;

// --- device.c ------------------------------------------------------------------------------------

// LV_ENOMEM for an allocation that failed, LV_EDEVICE else, which stays where the error is sticky.
lv_status lv_cuda_check(lv_cuda *cuda, cudaError_t error, const char *what) LV_MUST_CHECK;
#define LV_CUDA_TRY(cuda, call) LV_TRY(lv_cuda_check(cuda, call, #call))

// Makes the device this thread's; refuses where it is broken. First thing in every operation that
// may be a thread's first.
lv_status lv_cuda_enter(lv_cuda *cuda) LV_MUST_CHECK;

// At least n_bytes of device memory, kept until the next call with the same slot.
lv_status lv_cuda_scratch(lv_cuda *cuda, int slot, size_t n_bytes, void **out) LV_MUST_CHECK;
lv_status lv_cuda_alloc(lv_backend *be, size_t n_bytes, void **out) LV_MUST_CHECK;
void lv_cuda_free(lv_backend *be, void *dev);

// --- load.c --------------------------------------------------------------------------------------

lv_status lv_cuda_linear_load(lv_backend *be, const lv_linear_source *parts, int n_parts,
                              const lv_linear_options *options, lv_linear **out);
void lv_cuda_linear_free(lv_backend *be, lv_linear *linear);
lv_linear_shape lv_cuda_linear_shape(const lv_linear *linear);
lv_status lv_cuda_tensor_load(lv_backend *be, const lv_tensor *source, float **out);
// Any host memory -> device, through the pinned ring; the host memory may change after the call.
lv_status lv_cuda_copy_in(lv_cuda *cuda, void *dev, const void *host, size_t n_bytes) LV_MUST_CHECK;
void lv_cuda_loader_free(lv_cuda *cuda);

// --- pass.c --------------------------------------------------------------------------------------

lv_status lv_cuda_pass(lv_backend *be, const lv_batch *batch, lv_pass_body *body, void *user);
// The batch on the device: that of the pass under way, or uploaded now. *out holds until the next
// call outside of that pass.
lv_status lv_cuda_batch(lv_cuda *cuda, const lv_batch *batch,
                        const lv_device_batch **out) LV_MUST_CHECK;
void lv_cuda_forget_graphs(lv_cuda *cuda); // whenever memory that they may use is freed
void lv_cuda_pass_free(lv_cuda *cuda);

// --- convert.cu: weights on their way in ---------------------------------------------------------

// dtype [n_out, n_in] dev (natural rows) -> f16 rows of `to` in tile order, from place `first` of
// the linear on: place i of the linear is source row lv_tile_row(i, pair) - row0 where that lies in
// this source of n_out rows. row0: the linear's first row that this source holds.
lv_status lv_cuda_convert_rows(lv_cuda *cuda, lv_dtype dtype, const void *from, int row0, int n_out,
                               int n_in, int pair, int n_out_all, void *to) LV_MUST_CHECK;
lv_status lv_cuda_convert_f32(lv_cuda *cuda, lv_dtype dtype, const void *from, size_t n,
                              float *to) LV_MUST_CHECK;
lv_status lv_cuda_f32_to_f16(lv_cuda *cuda, const float *from, size_t n, void *to) LV_MUST_CHECK;
lv_status lv_cuda_f16_to_f32(lv_cuda *cuda, const void *from, size_t n, float *to) LV_MUST_CHECK;

// --- int4.cu: the layout of int4 weights ---------------------------------------------------------

// AWQ arrays (dev, as stored) of a source of n_out rows that are the linear's rows from row0 on ->
// records. n_in a multiple of 128, groups of 128.
lv_status lv_cuda_int4_pack(lv_cuda *cuda, const uint32_t *qweight, const uint32_t *qzeros,
                            const uint16_t *scales, int row0, int n_out, int n_in, int pair,
                            int n_out_all, void *records) LV_MUST_CHECK;
// The same arrays -> f16 rows in tile order, any group size: for shapes without records.
lv_status lv_cuda_awq_to_f16(lv_cuda *cuda, const uint32_t *qweight, const uint32_t *qzeros,
                             const uint16_t *scales, int group_size, int row0, int n_out, int n_in,
                             int pair, int n_out_all, void *to) LV_MUST_CHECK;
// f16 [n_out, n_in] in tile order -> records, rounded to nearest as kernels/rtn.h.
lv_status lv_cuda_int4_round(lv_cuda *cuda, const void *f16, int n_out, int n_in,
                             void *records) LV_MUST_CHECK;
// f16 [n_out, n_in] -> int8 with scale max|w| / 127 a row.
lv_status lv_cuda_int8_round(lv_cuda *cuda, const void *f16, int n_out, int n_in, void *int8,
                             float *scales) LV_MUST_CHECK;
// Places [first, first + n) of the tile order (multiples of 16) -> f16 [n, n_in].
lv_status lv_cuda_int4_expand(lv_cuda *cuda, const lv_linear *w, int first, int n,
                              void *f16) LV_MUST_CHECK;
lv_status lv_cuda_int8_expand(lv_cuda *cuda, const lv_linear *w, int first, int n,
                              void *f16) LV_MUST_CHECK;

// --- small.cu: few rows --------------------------------------------------------------------------

typedef enum lv_epilogue {
    LV_STORE,     // out f16 [m, n_out] = activation(y + bias) + residual
    LV_STORE_F32, // out f32 [m, n_out] = y + bias
    LV_ROTATE,    // q -> out f16 [m, n_heads head_dim], keys and values -> kv_new; q and k rotated
    LV_GATE       // out f16 [m, n_out / 2] = silu(g) u
} lv_epilogue;

typedef struct lv_small {
    const lv_linear *w;
    const void *x;       // f16 [*, n_in]
    const int32_t *rows; // dev [m] rows of x; NULL: 0 .. m - 1
    int m;
    const float *norm; // f32 [n_in]: y = W (rms_norm(x) * norm), rounded to f16 before W; or NULL
    float eps;
    lv_epilogue epilogue;
    lv_activation activation; // LV_STORE
    const void *residual;     // LV_STORE: f16 [m, n_out], may be `out`; or NULL
    void *out;
    // LV_ROTATE. Row i of x is row first_row + i of the batch.
    const lv_device_batch *batch;
    int first_row, n_heads, n_kv_heads, head_dim;
    void *kv_new; // f16 [m, 2 n_kv_heads head_dim]: keys, then values
    // May be put off until lv_cuda_flush: it is all of a pass's operation, others may follow.
    bool may_wait;
} lv_small;

bool lv_cuda_small_takes(const lv_cuda *cuda, const lv_linear *w); // shape and format
lv_status lv_cuda_small(lv_cuda *cuda, const lv_small *args) LV_MUST_CHECK;

// --- small_chain.cu: few rows, several operations in one kernel ----------------------------------

// Enqueues the operations that lv_cuda_small put off. Whatever enqueues work calls it first.
lv_status lv_cuda_flush(lv_cuda *cuda) LV_MUST_CHECK;
void lv_cuda_chain_drop(lv_cuda *cuda); // forgets them
void lv_cuda_chain_free(lv_cuda *cuda);

// Whether this build and device have wgmma (prefill_wgmma.cu).
bool lv_wgmma_present(const lv_cuda *cuda);

// --- dense.c: many rows --------------------------------------------------------------------------

// out [m, n_out] = x f16 [m, n_in] W^T + bias + residual, rows of out ld_out apart.
typedef struct lv_product {
    const void *x, *w;    // w: f16 [n_out, n_in]
    const float *bias;    // [n_out], or NULL
    const void *bias_f16; // the same
    const void *residual; // laid out as out, may be `out`; or NULL
    void *out;            // f16, or f32
    int m, n_out, n_in, ld_out;
    bool f32;
} lv_product;

// out f16 [m, n_out] (tile order) = x f16 [m, n_in] W^T + bias + residual, any format. Bias is
// added only where pair is 0 or 8. residual may be NULL or `out`.
lv_status lv_cuda_dense(lv_cuda *cuda, const void *x, int m, const lv_linear *w,
                        const void *residual, void *out) LV_MUST_CHECK;
// The same, f32 out, without residual.
lv_status lv_cuda_dense_f32(lv_cuda *cuda, const void *x, int m, const lv_linear *w,
                            float *out) LV_MUST_CHECK;
void lv_cuda_blas_begin(lv_cuda *cuda); // opens cuBLASLt on a thread beside
void lv_cuda_blas_free(lv_cuda *cuda);

// --- plain.cu: the same without cuBLASLt, any shape ---------------------------------------------

lv_status lv_cuda_plain(lv_cuda *cuda, const lv_product *product) LV_MUST_CHECK;

// --- rows.cu and embed.cu: element-wise and row-wise steps, f16 ----------------------------------

lv_status lv_cuda_layer_norm(lv_backend *be, const void *x, int m, int d, const float *weight,
                             const float *bias, float eps, void *out);
lv_status lv_cuda_patch_embed(lv_backend *be, const uint8_t *rgb, const float *levels, int n,
                              int side, int patch, const lv_linear *w, const float *class_embedding,
                              const float *positions, void *out);
lv_status lv_cuda_gather_rows(lv_backend *be, const void *source, const float *extra,
                              const int32_t *index, int n, int d, void *out);
lv_status lv_cuda_embed(lv_backend *be, const lv_batch *batch, const lv_linear *table, void *out);
// rms_norm of rows x[rows[i]] (NULL: x[i]) times norm. The same bits as inside small.cu.
lv_status lv_cuda_rms_norm(lv_cuda *cuda, const void *x, const int32_t *rows, int m, int d,
                           const float *norm, float eps, void *out) LV_MUST_CHECK;
lv_status lv_cuda_activate(lv_cuda *cuda, lv_activation activation, void *x,
                           size_t n) LV_MUST_CHECK;
// The angles' cosines and sines of a batch -> turns.
lv_status lv_cuda_turn(lv_cuda *cuda, const lv_device_batch *batch) LV_MUST_CHECK;
// qkv f16 [m, n] in tile order of `pair` (+ bias of the linear) -> as LV_ROTATE.
lv_status lv_cuda_rotate(lv_cuda *cuda, const lv_small *args, const void *qkv) LV_MUST_CHECK;
// gate_up f16 [m, 2 d_ff] in tile order of `pair` -> out f16 [m, d_ff].
lv_status lv_cuda_silu_mul(lv_cuda *cuda, const void *gate_up, int m, int d_ff, int pair,
                           const float *bias, void *out) LV_MUST_CHECK;

// --- attention: kv.cu, decode_attention.cu, prefill_attention.cu, sdpa.c -------------------------

lv_status lv_cuda_kv_create(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                            int n_blocks, lv_dtype kv_dtype, lv_kv **out);
void lv_cuda_kv_free(lv_backend *be, lv_kv *kv);
size_t lv_cuda_kv_block_bytes(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                              lv_dtype kv_dtype);
lv_status lv_cuda_kv_copy(lv_backend *be, lv_kv *kv, int from, int to);
// kv_new of the sequences in tiles -> the cache.
lv_status lv_cuda_kv_append(lv_cuda *cuda, const lv_device_batch *batch, const void *kv_new,
                            const lv_kv *kv, int layer) LV_MUST_CHECK;
// Sequences with one new token: appends it and attends. q, out f16 [n_tokens, n_heads head_dim].
lv_status lv_cuda_decode_attention(lv_cuda *cuda, const lv_device_batch *batch,
                                   const lv_attention_shape *shape, const void *q,
                                   const void *kv_new, const lv_kv *kv, int layer,
                                   void *out) LV_MUST_CHECK;
// All others, after lv_cuda_kv_append.
lv_status lv_cuda_prefill_attention(lv_cuda *cuda, const lv_device_batch *batch,
                                    const lv_attention_shape *shape, const void *q, const lv_kv *kv,
                                    int layer, void *out) LV_MUST_CHECK;
lv_status lv_cuda_attention(lv_backend *be, const lv_batch *batch, const lv_attention_shape *shape,
                            const void *q, const lv_kv *kv, int layer, void *out);
lv_status lv_cuda_image_attention(lv_backend *be, const void *qkv, int n, int n_rows, int n_heads,
                                  int head_dim, void *out);
// The same by cuDNN's graph API. LV_EUNSUPPORTED where cuDNN is missing or refuses.
lv_status lv_cuda_dnn_attention(lv_cuda *cuda, const void *qkv, int n, int n_rows, int n_heads,
                                int head_dim, void *out) LV_MUST_CHECK;
void lv_cuda_dnn_free(lv_cuda *cuda);

// --- linear.c: the operations that multiply ------------------------------------------------------

lv_status lv_cuda_linear(lv_backend *be, const void *x, int m, const lv_linear *w,
                         lv_activation activation, const void *residual, void *out);
lv_status lv_cuda_norm_qkv_rope_append(lv_backend *be, const lv_batch *batch,
                                       const lv_attention_shape *shape, const void *x,
                                       const float *norm, float eps, const lv_linear *qkv,
                                       lv_kv *kv, int layer, void *out_q);
lv_status lv_cuda_norm_gate_up_silu(lv_backend *be, const void *x, int m, const float *norm,
                                    float eps, const lv_linear *gate_up, void *out);
lv_status lv_cuda_norm_logits(lv_backend *be, const lv_batch *batch, const void *x,
                              const float *norm, float eps, const lv_linear *head, float *logits);

// --- sample.c ------------------------------------------------------------------------------------

lv_status lv_cuda_sample(lv_backend *be, float *logits, int n_rows, int vocab,
                         const lv_sampling *rows, int32_t *tokens, float *logprobs);
lv_status lv_cuda_collect(lv_backend *be, int32_t *tokens, float *logprobs);
void lv_cuda_sampler_free(lv_cuda *cuda);

// --- ceilings.cu ------------------------------------------------------------------------------

lv_status lv_cuda_ceilings(lv_backend *be, lv_ceilings *out);

#ifdef __cplusplus
}
#endif
#endif
