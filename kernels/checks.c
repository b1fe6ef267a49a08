// The checks that every backend makes, once.
#include "kernels/checks.h"

#include "core/files.h"

static bool is_float(lv_dtype dtype) {
    return dtype == LV_F32 || dtype == LV_F16 || dtype == LV_BF16;
}

static bool has_shape(const lv_tensor *t, int64_t d0, int64_t d1) {
    return t->data && t->n_dims == 2 && t->dims[0] == d0 && t->dims[1] == d1;
}

static lv_status check_awq(const lv_linear_source *s) {
    if (s->group_size <= 0 || s->group_size % 8 || s->n_in % s->group_size || s->n_out % 8) {
        return lv_fail(LV_EUNSUPPORTED,
                       "int4 linear [%d, %d]: group size %d: expected a multiple of 8 that divides "
                       "n_in, and n_out a multiple of 8",
                       s->n_out, s->n_in, s->group_size);
    }
    int n_groups = s->n_in / s->group_size;
    if (!has_shape(&s->qweight, s->n_in, s->n_out / 8) || s->qweight.dtype != LV_I32 ||
        !has_shape(&s->qzeros, n_groups, s->n_out / 8) || s->qzeros.dtype != LV_I32 ||
        !has_shape(&s->scales, n_groups, s->n_out) || s->scales.dtype != LV_F16) {
        return lv_fail(LV_EFORMAT,
                       "int4 linear [%d, %d]: qweight, qzeros or scales of another shape "
                       "or type",
                       s->n_out, s->n_in);
    }
    return LV_OK;
}

static lv_status check_source(const lv_linear_source *s, const lv_linear_source *first) {
    if (s->n_out <= 0 || s->n_in <= 0 || s->n_in != first->n_in || s->quant != first->quant ||
        (s->quant == LV_QUANT_AWQ ? s->group_size != first->group_size
                                  : s->weight.dtype != first->weight.dtype)) {
        return lv_fail(LV_EINVAL, "linear [%d, %d]: parts must share n_in, kind and type", s->n_out,
                       s->n_in);
    }
    if (s->bias.data && (!is_float(s->bias.dtype) || lv_tensor_count(&s->bias) != s->n_out)) {
        return lv_fail(LV_EFORMAT, "linear [%d, %d]: bias has another shape or type", s->n_out,
                       s->n_in);
    }
    if (s->quant == LV_QUANT_AWQ) {
        return check_awq(s);
    }
    if (!s->weight.data || !is_float(s->weight.dtype) ||
        lv_tensor_count(&s->weight) != (int64_t)s->n_out * s->n_in) {
        return lv_fail(LV_EFORMAT, "linear [%d, %d]: weight has another shape or type", s->n_out,
                       s->n_in);
    }
    return LV_OK;
}

lv_status lv_check_sources(const lv_linear_source *parts, int n_parts, int *out_n_out) {
    *out_n_out = 0;
    if (n_parts < 1 || n_parts > 3) {
        return lv_fail(LV_EINVAL, "linear of %d parts: expected 1 to 3", n_parts);
    }
    for (int i = 0; i < n_parts; i++) {
        LV_TRY(check_source(&parts[i], &parts[0]));
        if (!lv_add(*out_n_out, parts[i].n_out, out_n_out)) {
            return lv_fail(LV_EFORMAT, "linear: too many outputs");
        }
    }
    return LV_OK;
}

lv_status lv_check_tensor(const lv_tensor *source) {
    const int64_t n = lv_tensor_count(source);
    if (!source->data || n <= 0 || !is_float(source->dtype)) {
        return lv_fail(LV_EINVAL, "tensor of %lld %s: expected f32, f16 or bf16", (long long)n,
                       lv_dtype_name(source->dtype));
    }
    return LV_OK;
}

lv_status lv_check_attention(const lv_batch *batch, const lv_attention_shape *shape,
                             lv_cache_shape cache, int layer) {
    if (layer < 0 || layer >= cache.n_layers || shape->n_kv_heads != cache.n_kv_heads ||
        shape->head_dim != cache.head_dim || shape->n_heads % shape->n_kv_heads) {
        return lv_fail(LV_EINVAL,
                       "attention of layer %d, %d/%d heads of %d: the cache has %d, %d, %d", layer,
                       shape->n_heads, shape->n_kv_heads, shape->head_dim, cache.n_layers,
                       cache.n_kv_heads, cache.head_dim);
    }
    for (int s = 0; s < batch->n_seqs; s++) {
        int n_new = batch->token_start[s + 1] - batch->token_start[s];
        int n_blocks = (batch->kv_length[s] + LV_KV_BLOCK - 1) / LV_KV_BLOCK;
        if (n_new < 0 || n_new > batch->kv_length[s] || n_blocks > batch->max_blocks) {
            return lv_fail(LV_EINVAL, "sequence %d: %d new of %d cached tokens in %d blocks", s,
                           n_new, batch->kv_length[s], batch->max_blocks);
        }
        for (int b = 0; b < n_blocks; b++) {
            int block = batch->block_table[(ptrdiff_t)s * batch->max_blocks + b];
            if (block < 0 || block >= cache.n_blocks) {
                return lv_fail(LV_EINVAL, "sequence %d: block %d of %d", s, block, cache.n_blocks);
            }
        }
    }
    return LV_OK;
}

lv_status lv_share_alone(lv_backend *be, int n, lv_share_body *body, void *user, void *out,
                         size_t unit_bytes) {
    (void)be, (void)out, (void)unit_bytes;
    return body(user, 0, n);
}

lv_status lv_check_kv_copy(lv_cache_shape cache, int from, int to) {
    if (from < 0 || from >= cache.n_blocks || to < 0 || to >= cache.n_blocks) {
        return lv_fail(LV_EINVAL, "block %d to block %d of a cache of %d", from, to,
                       cache.n_blocks);
    }
    return LV_OK;
}
