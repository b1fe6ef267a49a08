// The operations of a group: each member does its own with its own addresses, and what a split
// linear leaves to be added up or put together is exchanged.
#include <stdlib.h>
#include <string.h>

#include "kernels/checks.h"
#include "kernels/group/group.h"

// Weights of all members.
typedef struct shared_linear {
    lv_linear *of[LV_MAX_MEMBERS];
    lv_copies copies[LV_MAX_MEMBERS]; // of the CPU, which reads weights where they lie
    lv_split split;
    lv_linear_shape shape; // of the whole
} shared_linear;

typedef struct shared_kv {
    lv_kv *of[LV_MAX_MEMBERS];
} shared_kv;

static lv_backend *member_of(const lv_group *g, int i) {
    return g->members[i].be;
}

static const lv_linear *linear_of(const lv_linear *w, int i) {
    return ((const shared_linear *)(const void *)w)->of[i];
}

static lv_split split_of(const lv_linear *w) {
    return ((const shared_linear *)(const void *)w)->split;
}

static lv_kv *kv_of(const lv_kv *kv, int i) {
    return ((const shared_kv *)(const void *)kv)->of[i];
}

// --- exchange -----------------------------------------------------------------------------------

typedef enum exchange_kind { SUM, JOIN, SPREAD } exchange_kind;

typedef struct exchange {
    exchange_kind kind;
    size_t n; // SUM: values; JOIN: bytes of a row of a part
    int n_rows;
    void *out;           // JOIN: this member's
    const size_t *first; // SPREAD
} exchange;

// `mine`: this member's address. Nobody begins before all have come that far, and nobody goes on
// before all have begun: so no device ever waits for a member that fails, or whose host waits for
// that device.
static lv_status exchange_with_all(lv_group *g, int i, void *mine, const exchange *e) {
    lv_collectives *c = g->collectives;
    if (g->is_broken) {
        return lv_fail(LV_EDEVICE, "the devices are out of step since a failure (%s); start again",
                       g->broken_by);
    }
    g->where[i] = mine;
    LV_TRY(lv_team_meet(g));
    const lv_status status = e->kind == SUM    ? c->sum(c, i, g->where, e->n)
                             : e->kind == JOIN ? c->join(c, i, g->where, e->n_rows, e->n, e->out)
                                               : c->spread(c, i, g->where, e->first);
    if (status != LV_OK) {
        lv_team_break(g, lv_error());
        return status;
    }
    return lv_team_meet(g);
}

// --- memory and copies --------------------------------------------------------------------------

typedef struct copy_call {
    void *dev;
    const void *host;
    size_t n;
    bool is_act;
} copy_call;

static lv_status upload_one(lv_group *g, int i, const void *call) {
    const copy_call *c = call;
    lv_backend *be = member_of(g, i);
    void *dev = lv_group_at(g, i, c->dev);
    return c->is_act ? be->ops->upload_act(be, dev, c->host, c->n)
                     : be->ops->upload(be, dev, c->host, c->n);
}

static lv_status group_upload(lv_backend *be, void *dev, const void *host, size_t n_bytes) {
    const copy_call call = {dev, host, n_bytes, false};
    return lv_team_run((lv_group *)be, upload_one, &call);
}

static lv_status group_upload_act(lv_backend *be, void *dev, const float *host, size_t n) {
    const copy_call call = {dev, host, n, true};
    return lv_team_run((lv_group *)be, upload_one, &call);
}

typedef struct fetch_call {
    void *host;
    const void *dev;
    size_t n;
    bool is_act;
} fetch_call;

// All wait for what they have begun, member 0 brings it: a failure anywhere is seen.
static lv_status download_one(lv_group *g, int i, const void *call) {
    const fetch_call *c = call;
    lv_backend *be = member_of(g, i);
    if (i > 0) {
        return be->ops->sync(be);
    }
    return c->is_act ? be->ops->download_act(be, c->host, c->dev, c->n)
                     : be->ops->download(be, c->host, c->dev, c->n);
}

static lv_status group_download(lv_backend *be, void *host, const void *dev, size_t n_bytes) {
    const fetch_call call = {host, dev, n_bytes, false};
    return lv_team_run((lv_group *)be, download_one, &call);
}

static lv_status group_download_act(lv_backend *be, float *host, const void *dev, size_t n) {
    const fetch_call call = {host, dev, n, true};
    return lv_team_run((lv_group *)be, download_one, &call);
}

static lv_status sync_one(lv_group *g, int i, const void *call) {
    (void)call;
    return member_of(g, i)->ops->sync(member_of(g, i));
}

static lv_status group_sync(lv_backend *be) {
    return lv_team_run((lv_group *)be, sync_one, NULL);
}

// Of GPUs: as one with all their memory, of which the fullest one sets the measure. The CPU's
// members have the machine's memory in common.
static lv_status group_memory(lv_backend *be, lv_memory *out) {
    const lv_group *g = (const lv_group *)be;
    *out = (lv_memory){.total_bytes = SIZE_MAX, .free_bytes = SIZE_MAX};
    for (int i = 0; i < g->n; i++) {
        lv_memory one;
        LV_TRY(member_of(g, i)->ops->memory(member_of(g, i), &one));
        out->total_bytes = one.total_bytes < out->total_bytes ? one.total_bytes : out->total_bytes;
        out->free_bytes = one.free_bytes < out->free_bytes ? one.free_bytes : out->free_bytes;
        out->used_bytes += one.used_bytes;
    }
    if (be->is_gpu) {
        out->total_bytes *= (size_t)g->n;
        out->free_bytes *= (size_t)g->n;
    }
    return LV_OK;
}

static lv_status ceilings_one(lv_group *g, int i, const void *call) {
    lv_ceilings *all = *(lv_ceilings *const *)call;
    return member_of(g, i)->ops->ceilings(member_of(g, i), &all[i]);
}

static lv_status group_ceilings(lv_backend *be, lv_ceilings *out) {
    lv_group *g = (lv_group *)be;
    lv_ceilings all[LV_MAX_MEMBERS] = {{0}}, *call = all;
    *out = (lv_ceilings){0};
    LV_TRY(lv_team_run(g, ceilings_one, &call));
    for (int i = 0; i < g->n; i++) {
        out->read_bytes += all[i].read_bytes;
        out->copied_bytes += all[i].copied_bytes;
        out->f16_flops += all[i].f16_flops;
    }
    return LV_OK;
}

// --- weights ------------------------------------------------------------------------------------

typedef struct load_call {
    const lv_linear_source *parts;
    int n_parts;
    const lv_linear_options *options;
    shared_linear *w;
} load_call;

static lv_status load_one(lv_group *g, int i, const void *call) {
    const load_call *c = call;
    lv_backend *be = member_of(g, i);
    lv_copies *copies = be->is_gpu ? &g->members[i].copies : &c->w->copies[i];
    lv_slices slices = {.copies = *copies};
    lv_status status =
        lv_slices_make(c->parts, c->n_parts, c->options, c->w->split, i, g->n, &slices);
    *copies = slices.copies;
    if (status == LV_OK) {
        status = be->ops->linear_load(be, slices.parts, c->n_parts, &slices.options, &c->w->of[i]);
    }
    return status;
}

static void group_linear_free(lv_backend *be, lv_linear *linear) {
    const lv_group *g = (const lv_group *)be;
    shared_linear *w = (shared_linear *)(void *)linear;
    for (int i = 0; w && i < g->n; i++) {
        if (w->of[i]) {
            member_of(g, i)->ops->linear_free(member_of(g, i), w->of[i]);
        }
        lv_copies_free(&w->copies[i]);
    }
    free(w);
}

static lv_status group_linear_load(lv_backend *be, const lv_linear_source *parts, int n_parts,
                                   const lv_linear_options *options, lv_linear **out) {
    static const lv_linear_options defaults = {0};
    lv_group *g = (lv_group *)be;
    lv_status status;
    *out = NULL;
    int n_out;
    LV_TRY(lv_check_sources(parts, n_parts, &n_out));
    shared_linear *w = calloc(1, sizeof *w);
    if (!w) {
        return lv_fail(LV_ENOMEM, "linear: out of memory");
    }
    const load_call call = {parts, n_parts, options ? options : &defaults, w};
    LV_TRY_DONE(lv_slices_check(parts, n_parts, call.options, g->n, &w->split));
    LV_TRY_DONE(lv_team_run(g, load_one, &call));
    w->shape = (lv_linear_shape){.n_out = n_out, .n_in = parts[0].n_in};
    for (int i = 0; i < (w->split == LV_SPLIT_NONE ? 1 : g->n); i++) {
        w->shape.n_bytes += member_of(g, i)->ops->linear_shape(w->of[i]).n_bytes;
    }
    *out = (lv_linear *)(void *)w;
    return LV_OK;
done:
    group_linear_free(be, (lv_linear *)(void *)w);
    return status;
}

static lv_linear_shape group_linear_shape(const lv_linear *linear) {
    return ((const shared_linear *)(const void *)linear)->shape;
}

// --- rows ---------------------------------------------------------------------------------------

typedef struct linear_call {
    const void *x;
    int m;
    const lv_linear *w;
    lv_activation activation;
    const void *residual;
    void *out;
} linear_call;

static lv_status linear_one(lv_group *g, int i, const void *call) {
    const linear_call *c = call;
    lv_backend *be = member_of(g, i);
    const bool adds_up = split_of(c->w) == LV_SPLIT_IN;
    const void *residual = adds_up && i > 0 ? NULL : c->residual; // the sum has it once
    void *out = lv_group_at(g, i, c->out);
    if (adds_up && c->activation != LV_ACT_NONE) {
        return lv_fail(LV_EUNSUPPORTED, "a linear split by columns with an activation");
    }
    LV_TRY(be->ops->linear(be, lv_group_at(g, i, c->x), c->m, linear_of(c->w, i), c->activation,
                           lv_group_at(g, i, residual), out));
    if (!adds_up || c->m == 0) {
        return LV_OK;
    }
    const size_t n = (size_t)c->m * (size_t)group_linear_shape(c->w).n_out;
    return exchange_with_all(g, i, out, &(exchange){.kind = SUM, .n = n});
}

static lv_status group_linear(lv_backend *be, const void *x, int m, const lv_linear *w,
                              lv_activation activation, const void *residual, void *out) {
    const linear_call call = {x, m, w, activation, residual, out};
    return lv_team_run((lv_group *)be, linear_one, &call);
}

typedef struct norm_call {
    const void *x;
    int m, d;
    const float *weight, *bias;
    float eps;
    const lv_linear *w; // gate_up
    void *out;
} norm_call;

static lv_status layer_norm_one(lv_group *g, int i, const void *call) {
    const norm_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->layer_norm(be, lv_group_at(g, i, c->x), c->m, c->d,
                               lv_group_at(g, i, c->weight), lv_group_at(g, i, c->bias), c->eps,
                               lv_group_at(g, i, c->out));
}

static lv_status group_layer_norm(lv_backend *be, const void *x, int m, int d, const float *weight,
                                  const float *bias, float eps, void *out) {
    const norm_call call = {x, m, d, weight, bias, eps, NULL, out};
    return lv_team_run((lv_group *)be, layer_norm_one, &call);
}

static lv_status gate_up_one(lv_group *g, int i, const void *call) {
    const norm_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->norm_gate_up_silu(be, lv_group_at(g, i, c->x), c->m,
                                      lv_group_at(g, i, c->weight), c->eps, linear_of(c->w, i),
                                      lv_group_at(g, i, c->out));
}

static lv_status group_norm_gate_up_silu(lv_backend *be, const void *x, int m, const float *norm,
                                         float eps, const lv_linear *gate_up, void *out) {
    const norm_call call = {x, m, 0, norm, NULL, eps, gate_up, out};
    return lv_team_run((lv_group *)be, gate_up_one, &call);
}

// --- vision -------------------------------------------------------------------------------------

typedef struct share_call {
    int n;
    lv_share_body *body;
    void *user, *out;
    size_t unit_bytes;
} share_call;

static lv_status share_one(lv_group *g, int i, const void *call) {
    const share_call *c = call;
    size_t first_bytes[LV_MAX_MEMBERS + 1];
    int first[LV_MAX_MEMBERS + 1];
    for (int j = 0; j <= g->n; j++) { // the first ones have one more where they are not alike
        first[j] = c->n / g->n * j + (j < c->n % g->n ? j : c->n % g->n);
        first_bytes[j] = (size_t)first[j] * c->unit_bytes;
    }
    if (first[i + 1] > first[i]) {
        LV_TRY(c->body(c->user, first[i], first[i + 1] - first[i]));
    }
    return exchange_with_all(g, i, lv_group_at(g, i, c->out),
                             &(exchange){.kind = SPREAD, .first = first_bytes});
}

static lv_status group_share(lv_backend *be, int n, lv_share_body *body, void *user, void *out,
                             size_t unit_bytes) {
    const share_call call = {n, body, user, out, unit_bytes};
    return lv_team_run((lv_group *)be, share_one, &call);
}

typedef struct patch_call {
    const uint8_t *rgb;
    const float *levels;
    int n, side, patch;
    const lv_linear *w;
    const float *class_embedding, *positions;
    void *out;
} patch_call;

static lv_status patch_embed_one(lv_group *g, int i, const void *call) {
    const patch_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->patch_embed(be, lv_group_at(g, i, c->rgb), lv_group_at(g, i, c->levels), c->n,
                                c->side, c->patch, linear_of(c->w, i),
                                lv_group_at(g, i, c->class_embedding),
                                lv_group_at(g, i, c->positions), lv_group_at(g, i, c->out));
}

static lv_status group_patch_embed(lv_backend *be, const uint8_t *rgb, const float *levels, int n,
                                   int side, int patch, const lv_linear *w,
                                   const float *class_embedding, const float *positions,
                                   void *out) {
    const patch_call call = {rgb, levels, n, side, patch, w, class_embedding, positions, out};
    return lv_team_run((lv_group *)be, patch_embed_one, &call);
}

typedef struct images_call {
    const void *qkv;
    int n, n_rows, n_heads, head_dim;
    void *out;
} images_call;

static lv_status image_attention_one(lv_group *g, int i, const void *call) {
    const images_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->image_attention(be, lv_group_at(g, i, c->qkv), c->n, c->n_rows, c->n_heads,
                                    c->head_dim, lv_group_at(g, i, c->out));
}

static lv_status group_image_attention(lv_backend *be, const void *qkv, int n, int n_rows,
                                       int n_heads, int head_dim, void *out) {
    const images_call call = {qkv, n, n_rows, n_heads, head_dim, out};
    return lv_team_run((lv_group *)be, image_attention_one, &call);
}

typedef struct gather_call {
    const void *source;
    const float *extra;
    const int32_t *index;
    int n, d;
    void *out;
} gather_call;

static lv_status gather_rows_one(lv_group *g, int i, const void *call) {
    const gather_call *c = call;
    lv_backend *be = member_of(g, i);
    return be->ops->gather_rows(be, lv_group_at(g, i, c->source), lv_group_at(g, i, c->extra),
                                c->index, c->n, c->d, lv_group_at(g, i, c->out));
}

static lv_status group_gather_rows(lv_backend *be, const void *source, const float *extra,
                                   const int32_t *index, int n, int d, void *out) {
    const gather_call call = {source, extra, index, n, d, out};
    return lv_team_run((lv_group *)be, gather_rows_one, &call);
}

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
    return exchange_with_all(
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

void lv_group_ops(lv_ops *ops) {
    *ops = (lv_ops){.alloc = lv_group_alloc,
                    .free = lv_group_free,
                    .upload = group_upload,
                    .download = group_download,
                    .sync = group_sync,
                    .memory = group_memory,
                    .ceilings = group_ceilings,
                    .upload_act = group_upload_act,
                    .download_act = group_download_act,
                    .linear_load = group_linear_load,
                    .linear_free = group_linear_free,
                    .linear_shape = group_linear_shape,
                    .tensor_load = lv_group_tensor_load,
                    .linear = group_linear,
                    .layer_norm = group_layer_norm,
                    .share = group_share,
                    .patch_embed = group_patch_embed,
                    .image_attention = group_image_attention,
                    .gather_rows = group_gather_rows,
                    .pass = group_pass,
                    .embed = group_embed,
                    .kv_create = group_kv_create,
                    .kv_free = group_kv_free,
                    .kv_copy = group_kv_copy,
                    .kv_block_bytes = group_kv_block_bytes,
                    .norm_qkv_rope_append = group_norm_qkv_rope_append,
                    .attention = group_attention,
                    .norm_gate_up_silu = group_norm_gate_up_silu,
                    .norm_logits = group_norm_logits,
                    .sample = group_sample,
                    .collect = group_collect};
}
