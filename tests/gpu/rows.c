// Row-wise operations against the CPU's plain loops: norms, activations, gathering, embedding,
// patches, rotation and SwiGLU outside of a pass, over widths with and without 16-byte units.
// --bench: times at LLaVA's shapes.
#include "tests/gpu/bench.h"

static lv_backend *ref, *be;

static const int widths[] = {1, 3, 8, 24, 384, 1000, 1024, 4096, 5120, 8200};
static const int heights[] = {1, 2, 7, 64, 577, 1000};
#define N_WIDTHS 10
#define N_HEIGHTS 6

static bool too_large(int m, int d) { // for the plain loops
    return (int64_t)m * d > 1200000;
}

// Each value within `relative` of the wanted one or `absolute`.
static void check_close(const float *got, const float *want, size_t n, double relative,
                        double absolute, const char *what, int m, int d) {
    size_t n_bad = 0, first = 0;
    for (size_t i = 0; i < n; i++) {
        const double error = fabs((double)got[i] - (double)want[i]);
        if (!(error <= relative * fabs((double)want[i]) + absolute)) {
            first = n_bad ? first : i;
            n_bad++;
        }
    }
    CHECK(n_bad == 0, "%s %d x %d: %zu of %zu wrong, first at %zu (row %zu, %zu): %g, wanted %g",
          what, m, d, n_bad, n, first, first / (size_t)d, first % (size_t)d, (double)got[first],
          (double)want[first]);
}

#define HALF_ULP 5e-4 // of f16, and a little for sums in another order

// --- norms and activations
// ------------------------------------------------------------------------

static void test_layer_norm(int m, int d) {
    const size_t n = (size_t)m * (size_t)d;
    float *x = random_halves(n), *w = random_floats((size_t)d), *b = random_floats((size_t)d);
    float *want = poisoned(n);
    for (size_t i = 0; i < n; i++) {
        x[i] = lv_f16_to_f32(lv_f32_to_f16(x[i] + 3.0f));
    }
    CHECK_OK(ref->ops->layer_norm(ref, x, m, d, w, b, 1e-5f, want));
    void *dev_x = dev_act(be, x, n), *out = dev_act(be, NULL, n);
    float *dev_w = dev_f32(be, w, (size_t)d), *dev_b = dev_f32(be, b, (size_t)d);
    CHECK_OK(be->ops->layer_norm(be, dev_x, m, d, dev_w, dev_b, 1e-5f, out));
    float *got = host_act(be, out, n);
    check_close(got, want, n, HALF_ULP, 1e-4, "layer_norm", m, d);
    be->ops->free(be, dev_x), be->ops->free(be, out);
    be->ops->free(be, dev_w), be->ops->free(be, dev_b);
    free(x), free(w), free(b), free(want), free(got);
}

// Through a linear of the identity, which f16 products keep exactly. width 1: values one by one.
static void test_activation(lv_activation activation, int width) {
    enum { M = 500 };
    const size_t n = (size_t)M * (size_t)width;
    float *identity = calloc((size_t)(width * width), sizeof *identity), *x = poisoned(n);
    for (int i = 0; i < width; i++) {
        identity[i * width + i] = 1.0f;
    }
    for (size_t i = 0; i < n; i++) { // -125 to 125, and the ends of the range
        x[i] =
            lv_f16_to_f32(lv_f32_to_f16(((float)(i % 500) - 250.0f) * 0.5f + rng_float() * 0.01f));
    }
    x[0] = -65504.0f;
    x[n - 1] = 65504.0f;
    lv_linear_source source = {
        .n_out = width, .n_in = width, .weight = {identity, LV_F32, 2, {width, width}}};
    lv_linear *w[2] = {NULL, NULL};
    float *want = poisoned(n);
    CHECK_OK(ref->ops->linear_load(ref, &source, 1, NULL, &w[0]));
    CHECK_OK(be->ops->linear_load(be, &source, 1, NULL, &w[1]));
    CHECK_OK(ref->ops->linear(ref, x, M, w[0], activation, NULL, want));
    void *dev_x = dev_act(be, x, n), *out = dev_act(be, NULL, n);
    CHECK_OK(be->ops->linear(be, dev_x, M, w[1], activation, NULL, out));
    float *got = host_act(be, out, n);
    char what[32];
    snprintf(what, sizeof what, "activation %d", (int)activation);
    // The smallest f16 is 6e-8. GELU's 1 + erf(x) vanishes in steps of 6e-8 on either side, which
    // 0.5 x makes 1.7e-7 where f16 still holds the product, at -5.6.
    const double absolute = activation == LV_ACT_GELU ? 3.4e-7 : 1e-7;
    check_close(got, want, n, HALF_ULP, absolute, what, M, width);
    ref->ops->linear_free(ref, w[0]);
    be->ops->linear_free(be, w[1]);
    be->ops->free(be, dev_x), be->ops->free(be, out);
    free(identity), free(x), free(want), free(got);
}

// --- gathering
// ------------------------------------------------------------------------------------

static void test_gather(int n, int d) {
    enum { ROWS = 37, CALLS = 3 };
    float *source = random_halves((size_t)(ROWS * d)), *extra = random_halves((size_t)d);
    const size_t n_out = (size_t)n * (size_t)d;
    int32_t *index = malloc((size_t)(n + 1) * CALLS * sizeof *index);
    int32_t *given = malloc((size_t)(n + 1) * sizeof *given);
    void *dev = dev_act(be, source, (size_t)(ROWS * d)), *out[CALLS];
    float *dev_extra = dev_f32(be, extra, (size_t)d), *want = poisoned(n_out);
    for (int i = 0; i < n * CALLS; i++) {
        index[i] = (int32_t)(rng() % (ROWS + 3)) - 3;
        index[i] = index[i] < 0 ? -1 : index[i];
    }
    for (int c = 0; c < CALLS; c++) { // the index may change as soon as the call returns
        out[c] = dev_act(be, NULL, n_out);
        memcpy(given, index + c * n, (size_t)n * sizeof *given);
        CHECK_OK(be->ops->gather_rows(be, dev, dev_extra, given, n, d, out[c]));
        memset(given, 0x11, (size_t)n * sizeof *given);
    }
    for (int c = 0; c < CALLS; c++) {
        CHECK_OK(ref->ops->gather_rows(ref, source, extra, index + c * n, n, d, want));
        float *got = host_act(be, out[c], n_out);
        check_close(got, want, n_out, 0, 0, "gather_rows", n, d);
        be->ops->free(be, out[c]);
        free(got);
    }
    const int32_t wants_extra[1] = {-1};
    CHECK_STATUS(be->ops->gather_rows(be, dev, NULL, wants_extra, 1, d, dev), LV_EINVAL);
    be->ops->free(be, dev), be->ops->free(be, dev_extra);
    free(source), free(extra), free(index), free(given), free(want);
}

static void test_embed(int d, lv_dtype dtype) {
    enum { VOCAB = 50, N = 9 };
    lv_linear_source source = dense_source(VOCAB, d, dtype, 1, false);
    lv_linear *table = NULL;
    const size_t n = (size_t)(N * d);
    float *before = random_halves(n), *row = malloc((size_t)d * sizeof *row);
    float logits[3 * VOCAB];
    for (int i = 0; i < 3 * VOCAB; i++) {
        logits[i] = rng_float();
    }
    logits[7] = logits[VOCAB + 49] = logits[2 * VOCAB] = 100.0f;
    static const lv_sampling greedy[3];
    float *dev_logits = dev_f32(be, logits, 3 * VOCAB);
    CHECK_OK(be->ops->linear_load(be, &source, 1, NULL, &table));
    CHECK_OK(be->ops->sample(be, dev_logits, 3, VOCAB, greedy, NULL, NULL));
    const int32_t ids[N] = {49, 0, LV_ID_ROW, -1, -3, 12, -2, LV_ID_ROW, 12};
    const int32_t means[N] = {49, 0, -1, 7, 0, 12, 49, -1, 12};
    const lv_batch batch = {.n_tokens = N, .ids = ids};
    void *out = dev_act(be, before, n);
    CHECK_OK(be->ops->embed(be, &batch, table, out)); // before the host knows the tokens
    int32_t tokens[3] = {0};
    CHECK_OK(be->ops->collect(be, tokens, NULL));
    CHECK(tokens[0] == 7 && tokens[1] == 49 && tokens[2] == 0, "sampled %d %d %d", tokens[0],
          tokens[1], tokens[2]);
    float *got = host_act(be, out, n);
    for (int i = 0; i < N; i++) {
        const float *want = before + i * d;
        if (means[i] >= 0) {
            const size_t size = lv_dtype_bytes(dtype);
            lv_to_f32(dtype, (const uint8_t *)source.weight.data + (size_t)(means[i] * d) * size,
                      (size_t)d, row);
            want = row;
        }
        check_close(got + i * d, want, (size_t)d, HALF_ULP, 1e-7, "embed", i, d);
    }
    const int32_t beyond[1] = {VOCAB}, no_row[1] = {-1000};
    const lv_batch bad[2] = {{.n_tokens = 1, .ids = beyond}, {.n_tokens = 1, .ids = no_row}};
    CHECK_STATUS(be->ops->embed(be, &bad[0], table, out), LV_EINVAL);
    CHECK_STATUS(be->ops->embed(be, &bad[1], table, out), LV_EINVAL);
    be->ops->linear_free(be, table);
    be->ops->free(be, out), be->ops->free(be, dev_logits);
    free(before), free(row), free(got);
    free_source(&source, 1);
}

static void test_patch_embed(int n, int side, int patch, int d, bool bias) {
    const int grid = side / patch, n_rows = grid * grid + 1;
    const size_t n_out = (size_t)n * (size_t)n_rows * (size_t)d,
                 n_bytes = (size_t)(n * 3) * (size_t)(side * side);
    lv_linear_source source = dense_source(d, 3 * patch * patch, LV_F16, 0, bias);
    float *levels = random_halves(3 * 256), *cls = random_floats((size_t)d);
    uint8_t *rgb = malloc(n_bytes);
    void *dev_rgb = dev_bytes(be, n_bytes);
    for (size_t i = 0; i < n_bytes; i++) {
        rgb[i] = (uint8_t)(i * 7919 % 257);
    }
    CHECK_OK(be->ops->upload(be, dev_rgb, rgb, n_bytes));
    float *positions = random_floats((size_t)(n_rows * d)), *want = poisoned(n_out);
    lv_linear *w[2] = {NULL, NULL};
    CHECK_OK(ref->ops->linear_load(ref, &source, 1, NULL, &w[0]));
    CHECK_OK(be->ops->linear_load(be, &source, 1, NULL, &w[1]));
    CHECK_OK(ref->ops->patch_embed(ref, rgb, levels, n, side, patch, w[0], cls, positions, want));
    float *dev_levels = dev_f32(be, levels, 3 * 256), *dev_cls = dev_f32(be, cls, (size_t)d);
    float *dev_positions = dev_f32(be, positions, (size_t)(n_rows * d));
    void *out = dev_act(be, NULL, n_out);
    CHECK_OK(be->ops->patch_embed(be, dev_rgb, dev_levels, n, side, patch, w[1], dev_cls,
                                  dev_positions, out));
    float *got = host_act(be, out, n_out);
    check_close(got, want, n_out, 1e-3, 2e-3, "patch_embed", n * n_rows, d);
    const double error = mean_error(got, want, n_out);
    CHECK(error < 5e-4, "patch_embed of %d, side %d, patch %d, d %d: mean error %g", n, side, patch,
          d, error);
    CHECK_STATUS(be->ops->patch_embed(be, dev_rgb, dev_levels, n, side, patch + 1, w[1], dev_cls,
                                      dev_positions, out),
                 LV_EINVAL);
    ref->ops->linear_free(ref, w[0]);
    be->ops->linear_free(be, w[1]);
    be->ops->free(be, dev_rgb), be->ops->free(be, dev_levels), be->ops->free(be, dev_cls),
        be->ops->free(be, dev_positions);
    be->ops->free(be, out);
    free(rgb), free(levels), free(cls), free(positions), free(want), free(got);
    free_source(&source, 0);
}

// --- the decoder's fused operations, outside of a pass
// ----------------------------------------------

typedef struct sequences {
    lv_batch batch;
    int32_t start[4], length[4], table[16];
    float inv_freq[3 * 128], scale[3];
} sequences;

// Three sequences of `each` new tokens and more, the second behind `cached` tokens.
static void make_sequences(int each, int cached, int head_dim, sequences *s) {
    memset(s, 0, sizeof *s);
    for (int i = 0; i < 3; i++) {
        s->start[i + 1] = s->start[i] + each + i;
        s->length[i] = each + i + (i == 1 ? cached : 0);
        s->scale[i] = i == 2 ? 1.25f : 1.0f;
        for (int k = 0; k < head_dim / 2; k++) {
            s->inv_freq[i * (head_dim / 2) + k] =
                powf(10000.0f * (float)(i + 1), -2.0f * (float)k / (float)head_dim);
        }
    }
    for (int b = 0; b < 12; b++) {
        s->table[b] = (b * 5 + 2) % 12;
    }
    s->batch = (lv_batch){.n_seqs = 3,
                          .n_tokens = s->start[3],
                          .token_start = s->start,
                          .kv_length = s->length,
                          .block_table = s->table,
                          .max_blocks = 4,
                          .head_dim = head_dim,
                          .inv_freq = s->inv_freq,
                          .rope_scale = s->scale};
}

// q, and for fresh sequences what attention makes of the keys and values too.
static void test_rotate(int n_heads, int n_kv, int head_dim, bool pairs, bool bias, int cached) {
    const lv_attention_shape shape = {n_heads, n_kv, head_dim, 0};
    const int d = 48, n_out = (n_heads + 2 * n_kv) * head_dim;
    const lv_linear_options options = {.pair = pairs ? head_dim / 2 : 0};
    sequences s;
    make_sequences(23, cached, head_dim, &s);
    const int m = s.batch.n_tokens;
    const size_t n_x = (size_t)(m * d), n_q = (size_t)(m * n_heads * head_dim);
    lv_linear_source source = dense_source(n_out, d, LV_F16, 0, bias);
    float *x = random_halves(n_x), *norm = random_floats((size_t)d);
    lv_backend *both[2] = {ref, be};
    float *got[2], *attended[2] = {NULL, NULL};
    char what[96];
    snprintf(what, sizeof what, "%d + %d heads of %d, pairs %d, bias %d, cached %d:", n_heads, n_kv,
             head_dim, pairs, bias, cached);
    for (int i = 0; i < 2; i++) {
        lv_backend *b = both[i];
        lv_linear *w = NULL;
        lv_kv *kv = NULL;
        void *dev_x = dev_act(b, x, n_x), *q = dev_act(b, NULL, n_q), *out = dev_act(b, NULL, n_q);
        float *dev_norm = dev_f32(b, norm, (size_t)d);
        CHECK_OK(b->ops->linear_load(b, &source, 1, &options, &w));
        CHECK_OK(b->ops->kv_create(b, 1, n_kv, head_dim, 12, LV_F16, &kv));
        CHECK_OK(
            b->ops->norm_qkv_rope_append(b, &s.batch, &shape, dev_x, dev_norm, 1e-5f, w, kv, 0, q));
        got[i] = host_act(b, q, n_q);
        if (cached == 0 && head_dim % 16 == 0) {
            CHECK_OK(b->ops->attention(b, &s.batch, &shape, q, kv, 0, out));
            attended[i] = host_act(b, out, n_q);
        }
        b->ops->linear_free(b, w);
        b->ops->kv_free(b, kv);
        b->ops->free(b, dev_x), b->ops->free(b, q), b->ops->free(b, out);
        b->ops->free(b, dev_norm);
    }
    // x, norms and products are rounded to f16 each: their errors add up.
    check_close(got[1], got[0], n_q, 3e-3, 5e-3, what, m, n_heads * head_dim);
    const double error = mean_error(got[1], got[0], n_q);
    CHECK(error < 5e-4, "%s q: mean error %g", what, error);
    if (attended[0]) {
        const double attention_error = mean_error(attended[1], attended[0], n_q);
        CHECK(attention_error < 1.5e-3, "%s attention: mean error %g", what, attention_error);
    }
    for (int i = 0; i < 2; i++) {
        free(got[i]), free(attended[i]);
    }
    free(x), free(norm);
    free_source(&source, 0);
}

static void test_swiglu(int m, int d, int d_ff, bool pairs, bool bias) {
    const lv_linear_options options = {.pair = pairs ? d_ff : 0};
    const size_t n_x = (size_t)m * (size_t)d, n_out = (size_t)m * (size_t)d_ff;
    lv_linear_source parts[2] = {dense_source(d_ff, d, LV_F16, 0, bias),
                                 dense_source(d_ff, d, LV_F16, 0, bias)};
    float *x = random_halves(n_x), *norm = random_floats((size_t)d), *got[2];
    lv_backend *both[2] = {ref, be};
    for (int i = 0; i < 2; i++) {
        lv_backend *b = both[i];
        lv_linear *w = NULL;
        void *dev_x = dev_act(b, x, n_x), *out = dev_act(b, NULL, n_out);
        float *dev_norm = dev_f32(b, norm, (size_t)d);
        CHECK_OK(b->ops->linear_load(b, parts, 2, &options, &w));
        CHECK_OK(b->ops->norm_gate_up_silu(b, dev_x, m, dev_norm, 1e-5f, w, out));
        got[i] = host_act(b, out, n_out);
        b->ops->linear_free(b, w);
        b->ops->free(b, dev_x), b->ops->free(b, out), b->ops->free(b, dev_norm);
    }
    const double error = mean_error(got[1], got[0], n_out);
    CHECK(error < 1e-3, "swiglu %d x %d -> %d, pairs %d, bias %d: mean error %g", m, d, d_ff, pairs,
          bias, error);
    check_close(got[1], got[0], n_out, 5e-3, 1e-2, "swiglu", m, d_ff);
    free(x), free(norm), free(got[0]), free(got[1]);
    free_source(&parts[0], 0), free_source(&parts[1], 0);
}

// A width that the family for few rows does not take: rms_norm of chosen rows, and f32 sums.
static void test_logits(int vocab, int d) {
    enum { M = 9, N = 4 };
    static const int32_t rows[N] = {8, 0, 3, 3};
    const lv_batch batch = {.n_tokens = M, .n_logits = N, .logit_rows = rows};
    lv_linear_source head = dense_source(vocab, d, LV_F16, 0, true);
    float *x = random_halves((size_t)(M * d)), *norm = random_floats((size_t)d), *got[2];
    lv_backend *both[2] = {ref, be};
    for (int i = 0; i < 2; i++) {
        lv_backend *b = both[i];
        lv_linear *w = NULL;
        void *dev_x = dev_act(b, x, (size_t)(M * d));
        float *dev_norm = dev_f32(b, norm, (size_t)d);
        float *logits = dev_f32(b, NULL, (size_t)(N * vocab));
        CHECK_OK(b->ops->linear_load(b, &head, 1, NULL, &w));
        CHECK_OK(b->ops->norm_logits(b, &batch, dev_x, dev_norm, 1e-6f, w, logits));
        got[i] = host_f32(b, logits, (size_t)(N * vocab));
        b->ops->linear_free(b, w);
        b->ops->free(b, dev_x), b->ops->free(b, dev_norm), b->ops->free(b, logits);
    }
    const double error = mean_error(got[1], got[0], (size_t)(N * vocab));
    CHECK(error < 3e-4, "norm_logits %d x %d: mean error %g", vocab, d, error);
    free(x), free(norm), free(got[0]), free(got[1]);
    free_source(&head, 0);
}

static void test_all(void) {
    for (int i = 0; i < N_WIDTHS; i++) {
        for (int j = 0; j < N_HEIGHTS; j++) {
            if (!too_large(heights[j], widths[i])) {
                test_layer_norm(heights[j], widths[i]);
            }
        }
        test_gather(0, widths[i]);
        test_gather(1, widths[i]);
        test_gather(61, widths[i]);
        test_embed(widths[i], i % 2 ? LV_F16 : LV_F32);
    }
    test_gather(2500, 24);
    test_gather(1000, 3);
    for (int a = LV_ACT_NONE; a <= LV_ACT_SILU; a++) {
        test_activation((lv_activation)a, 1);
        test_activation((lv_activation)a, 7);
        test_activation((lv_activation)a, 64);
    }
    test_patch_embed(2, 29, 7, 20, false);
    test_patch_embed(1, 28, 14, 64, true);
    test_patch_embed(3, 58, 14, 128, false);
    test_patch_embed(2, 42, 6, 33, false);
    test_patch_embed(2, 32, 8, 48, true);
    for (int pairs = 0; pairs < 2; pairs++) {
        for (int bias = 0; bias < 2; bias++) {
            test_rotate(1, 1, 2, pairs, bias, 0);
            test_rotate(2, 1, 8, pairs, bias, 100);
            test_rotate(4, 2, 16, pairs, bias, 0);
            test_rotate(2, 2, 24, pairs, bias, 7);
            test_rotate(4, 4, 64, pairs, bias, 0);
            test_rotate(8, 2, 80, pairs, bias, 90);
            test_rotate(4, 1, 128, pairs, bias, 100);
            test_rotate(4, 1, 128, pairs, bias, 0);
            test_swiglu(1, 24, 16, pairs, bias);
            test_swiglu(7, 48, 5, pairs, bias);
            test_swiglu(64, 128, 176, pairs, bias);
            test_swiglu(33, 100, 88, pairs, bias);
        }
    }
    test_logits(130, 37);
    test_logits(33, 300);
    test_logits(7, 4096);
    test_logits(1000, 5120);
}

// --- bench
// ----------------------------------------------------------------------------------------

#define REPEATS 20

typedef enum job_kind { LAYER_NORM, LINEAR, LINEAR_QUICK_GELU, GATE_UP, QKV } job_kind;

typedef struct job {
    job_kind kind;
    int m, d;
    void *x, *out;
    float *weight, *bias;
    lv_linear *linear;
    sequences *s;
    lv_attention_shape shape;
    lv_kv *kv;
} job;

static lv_status run_once(const job *j) {
    switch (j->kind) {
    case LAYER_NORM:
        return be->ops->layer_norm(be, j->x, j->m, j->d, j->weight, j->bias, 1e-5f, j->out);
    case GATE_UP:
        return be->ops->norm_gate_up_silu(be, j->x, j->m, j->weight, 1e-5f, j->linear, j->out);
    case QKV:
        return be->ops->norm_qkv_rope_append(be, &j->s->batch, &j->shape, j->x, j->weight, 1e-5f,
                                             j->linear, j->kv, 0, j->out);
    default:
        return be->ops->linear(be, j->x, j->m, j->linear,
                               j->kind == LINEAR ? LV_ACT_NONE : LV_ACT_QUICK_GELU, NULL, j->out);
    }
}

static lv_status run_job(void *user, const lv_batch *batch) {
    (void)batch;
    for (int i = 0; i < REPEATS; i++) {
        LV_TRY(run_once(user));
    }
    return LV_OK;
}

static double time_of(job *j, job_kind kind, bool steady) {
    j->kind = kind;
    return bench_us(be, run_job, j, steady) / REPEATS;
}

static void bench_clip(void) {
    enum { M = 2885, D = 1024, FF = 4096 };
    float *x = random_halves((size_t)M * D), *weight = random_floats(D);
    lv_linear_source source = dense_source(FF, D, LV_F16, 0, true);
    job j = {.m = M,
             .d = D,
             .x = dev_act(be, x, (size_t)M * D),
             .out = dev_bytes(be, (size_t)M * FF * 2),
             .weight = dev_f32(be, weight, D),
             .bias = dev_f32(be, weight, D)};
    CHECK_OK(be->ops->linear_load(be, &source, 1, NULL, &j.linear));
    const double norm = time_of(&j, LAYER_NORM, true), product = time_of(&j, LINEAR, true);
    const double gelu = time_of(&j, LINEAR_QUICK_GELU, true) - product;
    printf("layer_norm %d x %d: %.2f us, %.2f TB/s\n", M, D, norm, 4e-6 * M * D / norm);
    printf("quick_gelu %d x %d after a linear of %.2f us: %.2f us, %.2f TB/s\n", M, FF, product,
           gelu, 4e-6 * M * FF / gelu);
    be->ops->linear_free(be, j.linear);
    be->ops->free(be, j.x), be->ops->free(be, j.out);
    be->ops->free(be, j.weight), be->ops->free(be, j.bias);
    free(x), free(weight);
    free_source(&source, 0);
}

// With 64 inputs the product is little more than the writing of its rows, and what the fused
// operation takes beyond it is the norm (of 64 wide rows: little) and the step after.
static void bench_decoder(int m) {
    enum { D = 64, FF = 11008, HEADS = 32, HEAD = 128 };
    static sequences s;
    float *x = random_halves((size_t)m * D), *weight = random_floats(D);
    make_sequences((m - 3) / 3, 0, HEAD, &s);
    const lv_linear_options gate_pairs = {.pair = FF}, qkv_pairs = {.pair = HEAD / 2};
    lv_linear_source gate_up = dense_source(2 * FF, D, LV_F16, 0, false);
    lv_linear_source qkv = dense_source(3 * HEADS * HEAD, D, LV_F16, 0, false);
    job j = {.m = s.batch.n_tokens,
             .x = dev_act(be, x, (size_t)m * D),
             .out = dev_bytes(be, (size_t)m * 2 * FF * 2),
             .weight = dev_f32(be, weight, D),
             .s = &s,
             .shape = {HEADS, HEADS, HEAD, 0}};
    CHECK_OK(be->ops->kv_create(be, 1, HEADS, HEAD, 12, LV_F16, &j.kv));
    for (int is_qkv = 0; is_qkv < 2; is_qkv++) {
        lv_linear *plain = NULL, *paired = NULL;
        const double bytes = (is_qkv ? 4.0 * 3 * HEADS * HEAD : 6.0 * FF) * j.m;
        CHECK_OK(be->ops->linear_load(be, is_qkv ? &qkv : &gate_up, 1, NULL, &plain));
        CHECK_OK(be->ops->linear_load(be, is_qkv ? &qkv : &gate_up, 1,
                                      is_qkv ? &qkv_pairs : &gate_pairs, &paired));
        j.linear = plain;
        const double product = time_of(&j, LINEAR, false);
        j.linear = paired;
        const double step = time_of(&j, is_qkv ? QKV : GATE_UP, false) - product;
        printf("%s, %d rows, after a product of %.1f us: %.2f us, %.2f TB/s\n",
               is_qkv ? "rotate" : "silu_mul", j.m, product, step, bytes * 1e-6 / step);
        be->ops->linear_free(be, plain);
        be->ops->linear_free(be, paired);
    }
    be->ops->kv_free(be, j.kv);
    be->ops->free(be, j.x), be->ops->free(be, j.out), be->ops->free(be, j.weight);
    free(x), free(weight);
    free_source(&gate_up, 0), free_source(&qkv, 0);
}

int main(int argc, char **argv) {
    ref = open_reference();
    be = open_cuda();
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench_clip();
        bench_decoder(636);
        bench_decoder(2204);
    } else {
        test_all();
    }
    lv_backend_close(ref);
    lv_backend_close(be);
    return check_done();
}
