// The operations that multiply by weights: each run of rows goes to its family of kernels.
#include "kernels/cuda/cuda.h"

typedef struct runs {
    const lv_run *runs;
    int n;
    lv_run all; // outside of a pass
} runs;

// Those of the pass under way where the operation covers all of its rows.
static void find_runs(const lv_cuda *cuda, int m, runs *out) {
    out->all = (lv_run){0, m, false};
    out->runs = &out->all;
    out->n = 1;
    if (cuda->current && cuda->batch.n_tokens == m) {
        out->runs = cuda->runs;
        out->n = cuda->n_runs;
    }
}

static const void *rows_from(const void *base, int row, int width) {
    return (const uint8_t *)base + (size_t)row * (size_t)width * 2;
}

static void *out_from(void *base, int row, int width) {
    return (uint8_t *)base + (size_t)row * (size_t)width * 2;
}

static size_t row_bytes(int m, int width) {
    return (size_t)m * (size_t)width * 2;
}

// --- linear -------------------------------------------------------------------------------------

static lv_status linear_run(lv_cuda *cuda, const lv_small *s, bool few) {
    if (few && lv_cuda_small_takes(cuda, s->w)) {
        return lv_cuda_small(cuda, s);
    }
    const bool activates = s->activation != LV_ACT_NONE;
    if (activates && s->residual) {
        return lv_fail(LV_EUNSUPPORTED, "linear with an activation and a residual");
    }
    LV_TRY(lv_cuda_dense(cuda, s->x, s->m, s->w, s->residual, s->out));
    return activates
               ? lv_cuda_activate(cuda, s->activation, s->out, (size_t)s->m * (size_t)s->w->n_out)
               : LV_OK;
}

lv_status lv_cuda_linear(lv_backend *be, const void *x, int m, const lv_linear *w,
                         lv_activation activation, const void *residual, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    runs r;
    if (w->pair != 0 && w->pair != 8) {
        return lv_fail(LV_EUNSUPPORTED, "linear: its rows are stored in pairs for another use");
    }
    find_runs(cuda, m, &r);
    for (int i = 0; i < r.n; i++) {
        const int first = r.runs[i].first;
        const lv_small s = {.w = w,
                            .x = rows_from(x, first, w->n_in),
                            .m = r.runs[i].n,
                            .epilogue = LV_STORE,
                            .activation = activation,
                            .residual = residual ? rows_from(residual, first, w->n_out) : NULL,
                            .out = out_from(out, first, w->n_out)};
        LV_TRY(linear_run(cuda, &s, r.runs[i].few));
    }
    return LV_OK;
}

// --- the fused ones -----------------------------------------------------------------------------

// rms_norm(x) W^T -> f16 [m, n_out] in the order of the weights' rows, in scratch memory.
static lv_status norm_dense(lv_cuda *cuda, const lv_small *s, void **out) {
    void *normed;
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_NORMED, row_bytes(s->m, s->w->n_in), &normed));
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_WIDE, row_bytes(s->m, s->w->n_out), out));
    LV_TRY(lv_cuda_rms_norm(cuda, s->x, NULL, s->m, s->w->n_in, s->norm, s->eps, normed));
    return lv_cuda_dense(cuda, normed, s->m, s->w, NULL, *out);
}

static lv_status qkv_run(lv_cuda *cuda, const lv_small *s, bool few) {
    if (few && lv_cuda_small_takes(cuda, s->w) && s->w->pair == s->head_dim / 2) {
        return lv_cuda_small(cuda, s);
    }
    void *wide;
    LV_TRY(norm_dense(cuda, s, &wide));
    return lv_cuda_rotate(cuda, s, wide);
}

lv_status lv_cuda_norm_qkv_rope_append(lv_backend *be, const lv_batch *batch,
                                       const lv_attention_shape *shape, const void *x,
                                       const float *norm, float eps, const lv_linear *qkv,
                                       lv_kv *kv, int layer, void *out_q) {
    lv_cuda *cuda = (lv_cuda *)be;
    const lv_device_batch *device;
    runs r;
    void *kv_new;
    const int q_width = shape->n_heads * shape->head_dim;
    const int kv_width = 2 * shape->n_kv_heads * shape->head_dim;
    if (qkv->n_out != q_width + kv_width || layer < 0 || layer >= kv->n_layers) {
        return lv_fail(LV_EINVAL, "qkv of %d rows for %d + %d, layer %d of %d", qkv->n_out, q_width,
                       kv_width, layer, kv->n_layers);
    }
    LV_TRY(lv_cuda_batch(cuda, batch, &device));
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_KV_NEW, row_bytes(batch->n_tokens, kv_width), &kv_new));
    find_runs(cuda, batch->n_tokens, &r);
    for (int i = 0; i < r.n; i++) {
        const int first = r.runs[i].first;
        const lv_small s = {.w = qkv,
                            .x = rows_from(x, first, qkv->n_in),
                            .m = r.runs[i].n,
                            .norm = norm,
                            .eps = eps,
                            .epilogue = LV_ROTATE,
                            .out = out_from(out_q, first, q_width),
                            .batch = device,
                            .first_row = first,
                            .n_heads = shape->n_heads,
                            .n_kv_heads = shape->n_kv_heads,
                            .head_dim = shape->head_dim,
                            .kv_new = out_from(kv_new, first, kv_width)};
        LV_TRY(qkv_run(cuda, &s, r.runs[i].few));
    }
    return LV_OK;
}

static lv_status gate_up_run(lv_cuda *cuda, const lv_small *s, bool few) {
    const int d_ff = s->w->n_out / 2;
    if (few && lv_cuda_small_takes(cuda, s->w) && s->w->pair == d_ff) {
        return lv_cuda_small(cuda, s);
    }
    void *wide;
    LV_TRY(norm_dense(cuda, s, &wide));
    const float *bias = s->w->pair == d_ff ? s->w->bias : NULL; // else lv_cuda_dense has added it
    return lv_cuda_silu_mul(cuda, wide, s->m, d_ff, s->w->pair, bias, s->out);
}

lv_status lv_cuda_norm_gate_up_silu(lv_backend *be, const void *x, int m, const float *norm,
                                    float eps, const lv_linear *gate_up, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    runs r;
    find_runs(cuda, m, &r);
    for (int i = 0; i < r.n; i++) {
        const int first = r.runs[i].first;
        const lv_small s = {.w = gate_up,
                            .x = rows_from(x, first, gate_up->n_in),
                            .m = r.runs[i].n,
                            .norm = norm,
                            .eps = eps,
                            .epilogue = LV_GATE,
                            .out = out_from(out, first, gate_up->n_out / 2)};
        LV_TRY(gate_up_run(cuda, &s, r.runs[i].few));
    }
    return LV_OK;
}

// Always the family for few rows, where it takes the head: one row's bits whatever their number.
lv_status lv_cuda_norm_logits(lv_backend *be, const lv_batch *batch, const void *x,
                              const float *norm, float eps, const lv_linear *head, float *logits) {
    lv_cuda *cuda = (lv_cuda *)be;
    const lv_device_batch *device;
    const int m = batch->n_logits;
    void *normed;
    LV_TRY(lv_cuda_batch(cuda, batch, &device));
    if (lv_cuda_small_takes(cuda, head)) {
        const lv_small s = {.w = head,
                            .x = x,
                            .rows = device->logit_rows,
                            .m = m,
                            .norm = norm,
                            .eps = eps,
                            .epilogue = LV_STORE_F32,
                            .out = logits};
        return lv_cuda_small(cuda, &s);
    }
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_NORMED, row_bytes(m, head->n_in), &normed));
    LV_TRY(lv_cuda_rms_norm(cuda, x, device->logit_rows, m, head->n_in, norm, eps, normed));
    return lv_cuda_dense_f32(cuda, normed, m, head, logits);
}
