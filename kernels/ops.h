// The one table of operations. A backend fills it; model code calls nothing else of a backend.
//
// Pointers marked `dev` are the backend's own memory (host memory on the CPU). `act` is the
// backend's activation type: f32 on the CPU, f16 on CUDA. Matrices are row-major. Operations of one
// backend run in order; only download, upload and sync make the host wait. A fused slot's meaning
// is the composition written beside it; kernels/cpu/ref.c is that composition in plain loops.
#ifndef LV_KERNELS_OPS_H
#define LV_KERNELS_OPS_H

#include "core/checkpoint.h"
#include "core/status.h"
#include "core/tensor.h"
#include "kernels/batch.h"

#define LV_KV_BLOCK 64 // tokens in a block of the KV cache

typedef struct lv_backend lv_backend;
typedef struct lv_linear lv_linear; // weights [n_out, n_in] and bias in the backend's own layout
typedef struct lv_kv lv_kv; // keys and values of all layers, in blocks of LV_KV_BLOCK tokens

// What linear_load makes of dense weights. Quantised ones stay as they are, and so do weights whose
// shape does not allow it (n_in not a multiple of 128, n_out not of 16).
typedef enum lv_keep {
    LV_AS_STORED,
    LV_AS_INT4, // rounded to int4, groups of 128 along n_in (kernels/rtn.h)
    LV_AS_INT8  // rounded to int8, one scale a row; the CPU keeps them as stored
} lv_keep;

// How a group of devices shares a linear (lv_backend_options.tp); one device alone ignores it.
typedef enum lv_split {
    LV_SPLIT_NONE, // every member has all of it
    LV_SPLIT_OUT,  // each part's rows are split: a member has its heads, its columns of d_ff
    LV_SPLIT_IN,   // columns are split: x is what LV_SPLIT_OUT leaves, and results are added up
    LV_SPLIT_HEAD  // of norm_logits: as LV_SPLIT_OUT where the rows can be, else as LV_SPLIT_NONE
} lv_split;

// What stays on one member: rows or columns of a split linear are n units, alike.
typedef struct lv_units {
    int n;     // KV heads with their queries; values of d_ff; rows of the head
    int width; // head_dim, or 1
} lv_units;

typedef struct lv_linear_options {
    // Rows r and r + pair of every 2 pair rows are used together (the halves that RoPE rotates,
    // gate and up): a backend may store them side by side. 0: none are.
    int pair;
    lv_keep keep;
    lv_split split;
    lv_units units; // where it is split
} lv_linear_options;

typedef struct lv_linear_shape {
    int n_out, n_in;
    size_t n_bytes; // of weights, scales and zeros: what one pass over the layer must read
} lv_linear_shape;

typedef struct lv_memory {
    size_t total_bytes, free_bytes; // of the device (CPU: of the machine)
    size_t used_bytes;              // by this backend's weights, caches and work space
} lv_memory;

typedef struct lv_ceilings {         // of a device, measured now; all per second
    double read_bytes, copied_bytes; // of its memory; a copied byte is read and written: 2
    double f16_flops;                // of an f16 matrix product of 8192 x 8192 x 8192
} lv_ceilings;

typedef lv_status lv_pass_body(void *user, const lv_batch *batch);
typedef lv_status lv_share_body(void *user, int first, int count);

typedef struct lv_ops {
    // Memory. alloc gives 64-byte (CPU) or 256-byte (CUDA) alignment; LV_ENOMEM says how much was
    // asked.
    lv_status (*alloc)(lv_backend *be, size_t n_bytes, void **out_dev);
    void (*free)(lv_backend *be, void *dev);
    lv_status (*upload)(lv_backend *be, void *dev, const void *host, size_t n_bytes);
    lv_status (*download)(lv_backend *be, void *host, const void *dev, size_t n_bytes);
    lv_status (*sync)(lv_backend *be);
    lv_status (*memory)(lv_backend *be, lv_memory *out);
    // LV_EUNSUPPORTED on the CPU, whose ceilings depend on what else the machine does.
    lv_status (*ceilings)(lv_backend *be, lv_ceilings *out);

    // f32 host <-> act dev, n elements.
    lv_status (*upload_act)(lv_backend *be, void *dev, const float *host, size_t n);
    lv_status (*download_act)(lv_backend *be, float *host, const void *dev, size_t n);

    // Weights. `parts` (1 to 3 sources of equal n_in and kind) are stacked along n_out: [q; k; v],
    // [gate; up]. The sources' mapped bytes must stay valid as long as the linear (the CPU may use
    // them in place). options may be NULL.
    lv_status (*linear_load)(lv_backend *be, const lv_linear_source *parts, int n_parts,
                             const lv_linear_options *options, lv_linear **out);
    void (*linear_free)(lv_backend *be, lv_linear *linear);
    lv_linear_shape (*linear_shape)(const lv_linear *linear);
    // A vector or small tensor as f32 dev memory (norm weights, positions, image_newline).
    lv_status (*tensor_load)(lv_backend *be, const lv_tensor *source, float **out_dev);

    // out[m, n_out] = activation(x[m, n_in] W^T + bias) + residual. residual may be NULL or `out`
    // itself.
    lv_status (*linear)(lv_backend *be, const void *x, int m, const lv_linear *w,
                        lv_activation activation, const void *residual, void *out);
    // out[m, d] = (x - mean) / sqrt(var + eps) * weight + bias, over the last dimension.
    lv_status (*layer_norm)(lv_backend *be, const void *x, int m, int d, const float *weight,
                            const float *bias, float eps, void *out);

    // --- vision
    // -----------------------------------------------------------------------------------------
    // Runs body(user, first, count) for units first .. first + count - 1 of n, which write
    // unit_bytes each of `out`, one behind the other. One device does all of them at once; the
    // members of a group do some each, and then all have all of `out`.
    lv_status (*share)(lv_backend *be, int n, lv_share_body *body, void *user, void *out,
                       size_t unit_bytes);
    // rgb dev u8 [n, side, side, 3], of which level v of channel c stands for levels[c][v] (dev f32
    // [3, 256]) -> out act [n, 1 + (side/patch)^2, d]: row 0 is class_embedding, row 1 + i is patch
    // i (row-major) through w [d, 3 patch^2]; `positions` [1 + n_patches, d] is added.
    lv_status (*patch_embed)(lv_backend *be, const uint8_t *rgb, const float *levels, int n,
                             int side, int patch, const lv_linear *w, const float *class_embedding,
                             const float *positions, void *out);
    // Full attention inside each of n images: qkv act [n, n_rows, 3 n_heads head_dim] (q | k | v in
    // a row), scale 1/sqrt(head_dim) -> out act [n, n_rows, n_heads head_dim].
    lv_status (*image_attention)(lv_backend *be, const void *qkv, int n, int n_rows, int n_heads,
                                 int head_dim, void *out);
    // out[i] = source[index[i]], or `extra` (f32 [d]) where index[i] is -1. source, out act [*, d];
    // index host.
    lv_status (*gather_rows)(lv_backend *be, const void *source, const float *extra,
                             const int32_t *index, int n, int d, void *out);

    // --- decoder
    // ----------------------------------------------------------------------------------------
    // Runs body(user), whose operations up to norm_logits are given this same `batch`. A backend
    // uploads the batch once, and may record what a steady batch's body does and replay that for
    // the next one with the same user and sizes. Outside of a pass the operations work as well.
    lv_status (*pass)(lv_backend *be, const lv_batch *batch, lv_pass_body *body, void *user);
    // out[i] = row ids[i] of the table [vocab, d] where that is not LV_ID_ROW.
    lv_status (*embed)(lv_backend *be, const lv_batch *batch, const lv_linear *table, void *out);
    // One cache for all layers. kv_dtype: LV_NONE: the backend's default, LV_F32, LV_F16, or LV_I8
    // (int8 per token and head).
    lv_status (*kv_create)(lv_backend *be, int n_layers, int n_kv_heads, int head_dim, int n_blocks,
                           lv_dtype kv_dtype, lv_kv **out);
    void (*kv_free)(lv_backend *be, lv_kv *kv);
    size_t (*kv_block_bytes)(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                             lv_dtype kv_dtype);
    // Block `to` of all layers becomes what block `from` is.
    lv_status (*kv_copy)(lv_backend *be, lv_kv *kv, int from, int to);
    // h = rms_norm(x) * norm; (q | k | v) = linear(h); rotate q and k (halves, as transformers);
    // append k and v to layer `layer` of the cache; q -> out_q act [n_tokens, n_heads head_dim].
    lv_status (*norm_qkv_rope_append)(lv_backend *be, const lv_batch *batch,
                                      const lv_attention_shape *shape, const void *x,
                                      const float *norm, float eps, const lv_linear *qkv, lv_kv *kv,
                                      int layer, void *out_q);
    // Causal attention of each new token over its sequence's cache, scale 1/sqrt(head_dim). Follows
    // norm_qkv_rope_append of the same batch and layer, and may finish what that began.
    lv_status (*attention)(lv_backend *be, const lv_batch *batch, const lv_attention_shape *shape,
                           const void *q, const lv_kv *kv, int layer, void *out);
    // out[m, d_ff] = silu(g) * u with (g | u) = linear(rms_norm(x) * norm), gate_up [2 d_ff, d].
    lv_status (*norm_gate_up_silu)(lv_backend *be, const void *x, int m, const float *norm,
                                   float eps, const lv_linear *gate_up, void *out);
    // logits f32 dev [n_logits, vocab] = linear(rms_norm(x[logit_rows[i]]) * norm).
    lv_status (*norm_logits)(lv_backend *be, const lv_batch *batch, const void *x,
                             const float *norm, float eps, const lv_linear *head, float *logits);
    // One token a row of logits f32 dev [n_rows, vocab]; tokens and logprobs host [n_rows], the
    // latter (log-softmax of the raw logits at the token) may be NULL. Where tokens is NULL the
    // host does not wait: `collect` gives them. rows' arrays are read before the call returns.
    lv_status (*sample)(lv_backend *be, float *logits, int n_rows, int vocab,
                        const lv_sampling *rows, int32_t *tokens, float *logprobs);
    // Waits for the last `sample`; its rows' tokens, and logprobs unless NULL.
    lv_status (*collect)(lv_backend *be, int32_t *tokens, float *logprobs);

    void (*close)(lv_backend *be);
} lv_ops;

// Backends embed this as their first member.
struct lv_backend {
    const lv_ops *ops;
    lv_dtype act;     // activation type
    char device[128]; // what it runs on, in words: "CPU, 2 threads, AVX-512 VNNI"
    char no_gpu[128]; // why "auto" did not take a GPU; "" where it did, or was not asked
    bool is_gpu;
    bool runs_ahead; // the next pass may be begun before the host knows the tokens it starts from
};

typedef struct lv_backend_options {
    const char *device; // NULL or "auto", "cpu", "cuda", "cuda:N"
    int n_threads;      // CPU threads; 0: the cores this process may use
    bool reference;     // CPU: plain loops only (the oracle)
    // Tensor parallelism: so many devices work as one, from the named one on; 0 and 1: one alone.
    // Members of the CPU share its threads.
    int tp;
} lv_backend_options;

// "auto" takes a usable GPU, else the CPU. A named device that cannot be used is LV_EDEVICE with
// the reason.
lv_status lv_backend_open(const lv_backend_options *options, lv_backend **out) LV_MUST_CHECK;
void lv_backend_close(lv_backend *be); // accepts NULL

// LV_CPU_ISA=portable|avx2|avx512|vnni in the environment takes a lesser instruction set than the
// CPU's best; one that it lacks is LV_EDEVICE. The backends themselves; without CUDA at build time
// the second says so (LV_EUNSUPPORTED).
lv_status lv_cpu_open(const lv_backend_options *options, lv_backend **out) LV_MUST_CHECK;
lv_status lv_cuda_open(const lv_backend_options *options, lv_backend **out) LV_MUST_CHECK;

#endif
