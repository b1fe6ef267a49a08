// The operations that multiply by weights: each run of rows goes to its family of kernels.
#include "kernels/cuda/cuda.h"

// Does some rows of an operation, by the family for few rows or for many.
typedef lv_status run_function(lv_cuda *cuda, const lv_small *args, bool few);

static const void *rows_from(const void *base, int row, int width) {
    return base ? (const uint8_t *)base + (size_t)row * (size_t)width * 2 : NULL;
}

// `whole` in runs of one family each: those of the pass under way where it covers all of its rows,
// else all rows as many. out_width, kv_width: f16 values of a row of out and residual, of kv_new.
static lv_status in_runs(lv_cuda *cuda, const lv_small *whole, int out_width, int kv_width,
                         run_function *run) {
    const lv_run all = {0, whole->m, false};
    const bool in_pass = cuda->current && cuda->batch.n_tokens == whole->m;
    const lv_run *runs = in_pass ? cuda->runs : &all;
    const int n_runs = in_pass ? cuda->n_runs : 1;
    for (int i = 0; i < n_runs; i++) {
        const int first = runs[i].first;
        lv_small part = *whole;
        part.m = runs[i].n;
        part.may_wait = in_pass && n_runs == 1;
        part.first_row = first;
        part.x = rows_from(whole->x, first, whole->w->n_in);
        part.residual = rows_from(whole->residual, first, out_width);
        part.out = (void *)(uintptr_t)rows_from(whole->out, first, out_width);
        part.kv_new = (void *)(uintptr_t)rows_from(whole->kv_new, first, kv_width);
        LV_TRY(run(cuda, &part, runs[i].few));
    }
    return LV_OK;
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
    if (w->pair != 0 && w->pair != 8) {
        return lv_fail(LV_EUNSUPPORTED, "linear: its rows are stored in pairs for another use");
    }
    const lv_small s = {.w = w,
                        .x = x,
                        .m = m,
                        .epilogue = LV_STORE,
                        .activation = activation,
                        .residual = residual,
                        .out = out};
    return in_runs((lv_cuda *)be, &s, w->n_out, 0, linear_run);
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
    void *kv_new;
    const int q_width = shape->n_heads * shape->head_dim;
    const int kv_width = 2 * shape->n_kv_heads * shape->head_dim;
    if (qkv->n_out != q_width + kv_width || layer < 0 || layer >= kv->n_layers) {
        return lv_fail(LV_EINVAL, "qkv of %d rows for %d + %d, layer %d of %d", qkv->n_out, q_width,
                       kv_width, layer, kv->n_layers);
    }
    LV_TRY(lv_cuda_batch(cuda, batch, &device));
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_KV_NEW, row_bytes(batch->n_tokens, kv_width), &kv_new));
    const lv_small s = {.w = qkv,
                        .x = x,
                        .m = batch->n_tokens,
                        .norm = norm,
                        .eps = eps,
                        .epilogue = LV_ROTATE,
                        .out = out_q,
                        .batch = device,
                        .n_heads = shape->n_heads,
                        .n_kv_heads = shape->n_kv_heads,
                        .head_dim = shape->head_dim,
                        .kv_new = kv_new};
    return in_runs(cuda, &s, q_width, kv_width, qkv_run);
}

static lv_status gate_up_run(lv_cuda *cuda, const lv_small *s, bool few) {
    const int d_ff = s->w->n_out / 2;
    if (few && lv_cuda_small_takes(cuda, s->w) && s->w->pair == d_ff) {
        return lv_cuda_small(cuda, s);
    }
    void *wide;
    LV_TRY(norm_dense(cuda, s, &wide));
    const bool is_plain = s->w->pair == 0 || s->w->pair == 8; // lv_cuda_dense has added it
    const float *bias = is_plain ? NULL : s->w->bias;
    return lv_cuda_silu_mul(cuda, wide, s->m, d_ff, s->w->pair, bias, s->out);
}

lv_status lv_cuda_norm_gate_up_silu(lv_backend *be, const void *x, int m, const float *norm,
                                    float eps, const lv_linear *gate_up, void *out) {
    const lv_small s = {
        .w = gate_up, .x = x, .m = m, .norm = norm, .eps = eps, .epilogue = LV_GATE, .out = out};
    return in_runs((lv_cuda *)be, &s, gate_up->n_out / 2, 0, gate_up_run);
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
