// The operations of a group's passes: batches, the cache, attention, logits and tokens.
#include <stdlib.h>

#include "kernels/group/parts.h"

// --- decoder ------------------------------------------------------------------------------------

typedef struct pass_call {
    const lv_batch *batch;
    lv_pass_body *body;
    void *user;
} pass_call;

static lv_status pass_one(lv_group *g, int i, const void *call) {
    const pass_call *c = call;
    lv_copies_free(&g->members[i].copies); // what loading needed
    return member_of(g, i)->ops->pass(member_of(g, i), c->batch, c->body, c->user);
}

static lv_status group_pass(lv_backend *be, const lv_batch *batch, lv_pass_body *body, void *user) {
    lv_group *g = (lv_group *)be;
    const pass_call call = {batch, body, user};
    const lv_status status = lv_team_run(g, pass_one, &call);
    // A member that replays its recording does not meet the others: where one of those fails, it
    // waits on its device.
    for (int i = 0; be->is_gpu && status != LV_OK && i < g->n; i++) {
        if (g->members[i].status == LV_OK) {
            lv_team_break(g, g->members[g->first_failed].message);
        }
    }
    return status;
}

typedef struct embed_call {
    const lv_batch *batch;
    const lv_linear *table;
    void *out;
} embed_call;

static lv_status embed_one(lv_group *g, int i, const void *call) {
    const embed_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->embed(be, c->batch, linear_of(c->table, i), lv_group_at(g, i, c->out));
}

static lv_status group_embed(lv_backend *be, const lv_batch *batch, const lv_linear *table,
                             void *out) {
    const embed_call call = {batch, table, out};
    return lv_team_run((lv_group *)be, embed_one, &call);
}

typedef struct kv_call {
    int n_layers, n_kv_heads, head_dim, n_blocks;
    lv_dtype dtype;
    shared_kv *kv;
} kv_call;

static lv_status kv_create_one(lv_group *g, int i, const void *call) {
    const kv_call *c = call;
    lv_backend *be = member_of(g, i);
    int first[LV_MAX_MEMBERS + 1];
    LV_TRY(lv_units_share((lv_units){c->n_kv_heads, c->head_dim}, g->n, first));
    return be->ops->kv_create(be, c->n_layers, first[i + 1] - first[i], c->head_dim, c->n_blocks,
                              c->dtype, &c->kv->of[i]);
}

static void group_kv_free(lv_backend *be, lv_kv *kv) {
    const lv_group *g = (const lv_group *)be;
    for (int i = 0; kv && i < g->n; i++) {
        if (kv_of(kv, i)) {
            member_of(g, i)->ops->kv_free(member_of(g, i), kv_of(kv, i));
        }
    }
    free(kv);
}

static lv_status group_kv_create(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                                 int n_blocks, lv_dtype kv_dtype, lv_kv **out) {
    lv_group *g = (lv_group *)be;
    *out = NULL;
    shared_kv *kv = calloc(1, sizeof *kv);
    if (!kv) {
        return lv_fail(LV_ENOMEM, "KV cache: out of memory");
    }
    const kv_call call = {n_layers, n_kv_heads, head_dim, n_blocks, kv_dtype, kv};
    const lv_status status = lv_team_run(g, kv_create_one, &call);
    if (status != LV_OK) {
        group_kv_free(be, (lv_kv *)(void *)kv);
        return status;
    }
    *out = (lv_kv *)(void *)kv;
    return LV_OK;
}

static size_t group_kv_block_bytes(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                                   lv_dtype kv_dtype) {
    const lv_group *g = (const lv_group *)be;
    int first[LV_MAX_MEMBERS + 1];
    if (lv_units_share((lv_units){n_kv_heads, head_dim}, g->n, first) != LV_OK) {
        return 0; // kv_create says why
    }
    lv_backend *one = member_of(g, 0);
    return (size_t)g->n *
           one->ops->kv_block_bytes(one, n_layers, first[1] - first[0], head_dim, kv_dtype);
}

typedef struct kv_copy_call {
    lv_kv *kv;
    int from, to;
} kv_copy_call;

static lv_status kv_copy_one(lv_group *g, int i, const void *call) {
    const kv_copy_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->kv_copy(be, kv_of(c->kv, i), c->from, c->to);
}

static lv_status group_kv_copy(lv_backend *be, lv_kv *kv, int from, int to) {
    const kv_copy_call call = {kv, from, to};
    return lv_team_run((lv_group *)be, kv_copy_one, &call);
}

typedef struct attention_call {
    const lv_batch *batch;
    const lv_attention_shape *shape;
    const void *x; // or q
    const float *norm;
    float eps;
    const lv_linear *qkv;
    const lv_kv *kv;
    int layer;
    void *out;
} attention_call;

static lv_status share_of(const lv_group *g, int i, const lv_attention_shape *shape,
                          lv_attention_shape *out) {
    int first[LV_MAX_MEMBERS + 1];
    *out = *shape;
    LV_TRY(lv_units_share((lv_units){shape->n_kv_heads, shape->head_dim}, g->n, first));
    out->n_kv_heads = first[i + 1] - first[i];
    out->n_heads = shape->n_heads / shape->n_kv_heads * out->n_kv_heads;
    return LV_OK;
}

static lv_status qkv_one(lv_group *g, int i, const void *call) {
    const attention_call *c = call;
    lv_backend *be = member_of(g, i);
    lv_attention_shape share;
    LV_TRY(share_of(g, i, c->shape, &share));
    return be->ops->norm_qkv_rope_append(be, c->batch, &share, lv_group_at(g, i, c->x),
                                         lv_group_at(g, i, c->norm), c->eps, linear_of(c->qkv, i),
                                         kv_of(c->kv, i), c->layer, lv_group_at(g, i, c->out));
}

static lv_status group_norm_qkv_rope_append(lv_backend *be, const lv_batch *batch,
                                            const lv_attention_shape *shape, const void *x,
                                            const float *norm, float eps, const lv_linear *qkv,
                                            lv_kv *kv, int layer, void *out_q) {
    const attention_call call = {batch, shape, x, norm, eps, qkv, kv, layer, out_q};
    return lv_team_run((lv_group *)be, qkv_one, &call);
}

static lv_status attention_one(lv_group *g, int i, const void *call) {
    const attention_call *c = call;
    lv_backend *be = member_of(g, i);
    lv_attention_shape share;
    LV_TRY(share_of(g, i, c->shape, &share));
    return be->ops->attention(be, c->batch, &share, lv_group_at(g, i, c->x), kv_of(c->kv, i),
                              c->layer, lv_group_at(g, i, c->out));
}

static lv_status group_attention(lv_backend *be, const lv_batch *batch,
                                 const lv_attention_shape *shape, const void *q, const lv_kv *kv,
                                 int layer, void *out) {
    const attention_call call = {batch, shape, q, NULL, 0, NULL, kv, layer, out};
    return lv_team_run((lv_group *)be, attention_one, &call);
}

// --- logits and tokens --------------------------------------------------------------------------

typedef struct logits_call {
    const lv_batch *batch;
    const void *x;
    const float *norm;
    float eps;
    const lv_linear *head;
    float *logits;
} logits_call;

// Where a member's logits lie until they are joined: memory for the most rows, since recordings
// keep its address.
static lv_status reserve_parts(lv_group *g, int i, size_t row_bytes) {
    lv_backend *be = member_of(g, i);
    if (g->parts[i]) {
        return row_bytes <= g->part_row_bytes[i]
                   ? LV_OK
                   : lv_fail(LV_EUNSUPPORTED, "a second, wider head on one group of devices");
    }
    g->part_row_bytes[i] = row_bytes;
    return be->ops->alloc(be, LV_MAX_ROWS * (size_t)g->n * row_bytes, &g->parts[i]);
}

static lv_status logits_one(lv_group *g, int i, const void *call) {
    const logits_call *c = call;
    lv_backend *be = member_of(g, i);
    const lv_linear *head = linear_of(c->head, i);
    const size_t row_bytes = (size_t)be->ops->linear_shape(head).n_out * sizeof(float);
    const int n_rows = c->batch->n_logits;
    void *out = lv_group_at(g, i, c->logits), *parts = out; // one row's parts lie as they shall
    if (split_of(c->head) == LV_SPLIT_NONE || n_rows == 0) {
        return be->ops->norm_logits(be, c->batch, lv_group_at(g, i, c->x),
                                    lv_group_at(g, i, c->norm), c->eps, head, out);
    }
    if (n_rows > 1) {
        LV_TRY(reserve_parts(g, i, row_bytes));
        parts = g->parts[i];
    }
    float *mine = (float *)((uint8_t *)parts + (size_t)i * (size_t)n_rows * row_bytes);
    LV_TRY(be->ops->norm_logits(be, c->batch, lv_group_at(g, i, c->x), lv_group_at(g, i, c->norm),
                                c->eps, head, mine));
    return lv_group_exchange(
        g, i, parts, &(exchange){.kind = JOIN, .n = row_bytes, .n_rows = n_rows, .out = out});
}

static lv_status group_norm_logits(lv_backend *be, const lv_batch *batch, const void *x,
                                   const float *norm, float eps, const lv_linear *head,
                                   float *logits) {
    const logits_call call = {batch, x, norm, eps, head, logits};
    return lv_team_run((lv_group *)be, logits_one, &call);
}

typedef struct sample_call {
    float *logits;
    int n_rows, vocab;
    const lv_sampling *rows;
    int32_t *tokens;
    float *logprobs;
} sample_call;

// All draw, from the same logits the same tokens, which the next pass looks for on each device;
// the host takes member 0's.
static lv_status sample_one(lv_group *g, int i, const void *call) {
    const sample_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->sample(be, lv_group_at(g, i, c->logits), c->n_rows, c->vocab, c->rows,
                           i == 0 ? c->tokens : NULL, i == 0 ? c->logprobs : NULL);
}

static lv_status group_sample(lv_backend *be, float *logits, int n_rows, int vocab,
                              const lv_sampling *rows, int32_t *tokens, float *logprobs) {
    const sample_call call = {logits, n_rows, vocab, rows, tokens, logprobs};
    return lv_team_run((lv_group *)be, sample_one, &call);
}

static lv_status collect_one(lv_group *g, int i, const void *call) {
    const sample_call *c = call;
    lv_backend *be = member_of(g, i);
    int32_t others[LV_MAX_ROWS];
    return be->ops->collect(be, i == 0 ? c->tokens : others, i == 0 ? c->logprobs : NULL);
}

static lv_status group_collect(lv_backend *be, int32_t *tokens, float *logprobs) {
    const sample_call call = {.tokens = tokens, .logprobs = logprobs};
    return lv_team_run((lv_group *)be, collect_one, &call);
}

void lv_group_decoder_ops(lv_ops *ops) {
    ops->pass = group_pass;
    ops->embed = group_embed;
    ops->kv_create = group_kv_create;
    ops->kv_free = group_kv_free;
    ops->kv_copy = group_kv_copy;
    ops->kv_block_bytes = group_kv_block_bytes;
    ops->norm_qkv_rope_append = group_norm_qkv_rope_append;
    ops->attention = group_attention;
    ops->norm_logits = group_norm_logits;
    ops->sample = group_sample;
    ops->collect = group_collect;
}
