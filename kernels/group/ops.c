// The operations of a group: each member does its own with its own addresses, and what a split
// linear leaves to be added up or put together is exchanged. Those of a pass are in decoder.c.
#include <stdlib.h>
#include <string.h>

#include "kernels/checks.h"
#include "kernels/group/parts.h"

// --- exchange -----------------------------------------------------------------------------------

lv_status lv_group_exchange(lv_group *g, int i, void *mine, const exchange *e) {
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
    return lv_group_exchange(g, i, out, &(exchange){.kind = SUM, .n = n});
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
    return lv_group_exchange(g, i, lv_group_at(g, i, c->out),
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
                    .norm_gate_up_silu = group_norm_gate_up_silu};
    lv_group_decoder_ops(ops);
}
