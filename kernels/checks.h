// What every backend asks of its arguments.
#ifndef LV_KERNELS_CHECKS_H
#define LV_KERNELS_CHECKS_H

#include "kernels/ops.h"

// Parts of one linear: 1 to 3, of equal n_in, kind and type, with tensors of the shapes that
// lv_linear_source says. *out_n_out: rows of all. LV_EINVAL, LV_EFORMAT or LV_EUNSUPPORTED.
lv_status lv_check_sources(const lv_linear_source *parts, int n_parts,
                           int *out_n_out) LV_MUST_CHECK;
lv_status lv_check_tensor(const lv_tensor *source) LV_MUST_CHECK; // f32, f16 or bf16

// Attention of `batch` in layer `layer` over a cache of these sizes: heads that fit, and sequences
// whose blocks are the cache's. LV_EINVAL.
typedef struct lv_cache_shape {
    int n_layers, n_kv_heads, head_dim, n_blocks;
} lv_cache_shape;
lv_status lv_check_attention(const lv_batch *batch, const lv_attention_shape *shape,
                             lv_cache_shape cache, int layer) LV_MUST_CHECK;
lv_status lv_check_kv_copy(lv_cache_shape cache, int from, int to) LV_MUST_CHECK; // LV_EINVAL

// lv_ops.share of one device.
lv_status lv_share_alone(lv_backend *be, int n, lv_share_body *body, void *user, void *out,
                         size_t unit_bytes);

#endif
