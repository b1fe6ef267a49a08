// The "few rows" family: against f64 on the same dequantised weights, against the CPU's plain loops
// through the operations, and the bits: a row alone and among others, again and again.
// --bench: times of a 7B layer's shapes instead (linear_bench.h).
#include "tests/gpu/util.h"

#ifndef LV_HAVE_CUDA

int main(void) {
    return check_skip("built without CUDA");
}

#else

#include "tests/gpu/linear_bench.h"
#include "tests/gpu/linear_util.h"

#define MOST 100 // rows of x

static const int row_counts[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, MOST};
#define N_ROW_COUNTS (int)(sizeof row_counts / sizeof *row_counts)

static const char *const formats[] = {"f16", "int4", "int8"};

// --- weights and f64 -----------------------------------------------------------------------------

// [n_out, n_in] as the device has them, in natural order.
static double *weights_of(const lv_linear_source *s, lv_format format) {
    const size_t n = (size_t)s->n_in;
    double *w = malloc((size_t)s->n_out * n * sizeof *w);
    for (int row = 0; row < s->n_out; row++) {
        double *to = w + (size_t)row * n;
        float max = 0;
        for (int k = 0; k < s->n_in; k++) {
            to[k] = format == LV_W_INT4
                        ? awq_weight(s, row, k)
                        : (double)lv_f16_to_f32(
                              ((const uint16_t *)s->weight.data)[(size_t)row * n + (size_t)k]);
            max = fmaxf(max, fabsf((float)to[k]));
        }
        for (int k = 0; k < s->n_in && format == LV_W_INT8; k++) {
            const float scale = max / 127.0f;
            to[k] = (double)rintf((float)to[k] / scale) * (double)scale;
        }
    }
    return w;
}

static lv_linear_source source_of(lv_format format, int n_out, int n_in, bool bias) {
    return format == LV_W_INT4 ? awq_source(n_out, n_in, LV_RECORD_K, bias)
                               : dense_source(n_out, n_in, LV_F16, 0, bias);
}

static float half(double x) {
    return lv_f16_to_f32(lv_f32_to_f16((float)x));
}

// One row of x after its norm (or none).
static void normed(const float *x, const float *norm, int n_in, double *out) {
    double sum = 0;
    for (int k = 0; k < n_in; k++) {
        sum += (double)x[k] * (double)x[k];
    }
    const double factor = 1 / sqrt(sum / n_in + 1e-5);
    for (int k = 0; k < n_in; k++) {
        out[k] = norm ? (double)half((double)x[k] * factor * (double)norm[k]) : (double)x[k];
    }
}

static double dot(const double *a, const double *b, int n) {
    double sums[8] = {0}, sum = 0;
    for (int i = 0; i < n; i++) {
        sums[i % 8] += a[i] * b[i];
    }
    for (int i = 0; i < 8; i++) {
        sum += sums[i];
    }
    return sum;
}

// --- bits and f64 --------------------------------------------------------------------------------

typedef struct subject {
    lv_cuda *cuda;
    lv_linear *w;
    const char *name; // of the format
    const float *x;   // [MOST, n_in], halves
    const float *norm_host;
    float *norm; // dev, or NULL
    void *x_dev;
    float *out_dev; // [MOST, n_out]
} subject;

static float *run_rows(const subject *s, int first, int m, const int32_t *rows) {
    const lv_linear *w = s->w;
    const lv_small args = {.w = w,
                           .x = (const uint8_t *)s->x_dev + (size_t)first * (size_t)w->n_in * 2,
                           .rows = rows,
                           .m = m,
                           .norm = s->norm,
                           .eps = 1e-5f,
                           .epilogue = LV_STORE_F32,
                           .out = s->out_dev};
    const size_t n = (size_t)m * (size_t)w->n_out;
    poison(s->cuda, s->out_dev, (size_t)MOST * (size_t)w->n_out * sizeof(float));
    CHECK_OK(lv_cuda_small(s->cuda, &args));
    return host_f32(&s->cuda->base, s->out_dev, n);
}

static void check_f64(const subject *s, const double *weights, const float *alone, int row) {
    const lv_linear *w = s->w;
    double *h = malloc((size_t)w->n_in * sizeof *h), error = 0, norm = 0, worst = 0;
    int worst_at = 0;
    normed(s->x + (size_t)row * (size_t)w->n_in, s->norm_host, w->n_in, h);
    for (int j = 0; j < w->n_out; j++) {
        const double want = dot(h, weights + (size_t)j * (size_t)w->n_in, w->n_in);
        const double d = fabs((double)alone[(size_t)row * (size_t)w->n_out + (size_t)j] - want);
        error += d;
        norm += fabs(want);
        if (!(d <= worst)) {
            worst = d;
            worst_at = j;
        }
    }
    // A norm's rounding to f16 may fall the other way here and there.
    CHECK(error <= (s->norm ? 3e-4 : 5e-5) * norm,
          "%s [%d, %d] norm %d row %d: error %g of %g, worst %g at output %d", s->name, w->n_out,
          w->n_in, s->norm != NULL, row, error, norm, worst, worst_at);
    free(h);
}

static void check_bits(const subject *s, const float *got, const float *alone, int m,
                       const char *what) {
    const size_t n_out = (size_t)s->w->n_out;
    size_t i = 0;
    while (i < (size_t)m * n_out && memcmp(got + i, alone + i, sizeof *got) == 0) {
        i++;
    }
    CHECK(i == (size_t)m * n_out,
          "%s [%d, %d] norm %d m %d, %s: row %zu output %zu: %.9g, alone %.9g", s->name,
          s->w->n_out, s->w->n_in, s->norm != NULL, m, what, i / n_out, i % n_out, (double)got[i],
          (double)alone[i]);
}

static void test_gather(const subject *s, const float *alone, int m) {
    const size_t n_out = (size_t)s->w->n_out;
    int32_t rows[MOST];
    float *want = malloc((size_t)m * n_out * sizeof *want);
    for (int i = 0; i < m; i++) {
        rows[i] = (i * 37 + 5) % MOST;
        memcpy(want + (size_t)i * n_out, alone + (size_t)rows[i] * n_out, n_out * sizeof *want);
    }
    int32_t *dev = dev_bytes(&s->cuda->base, sizeof rows);
    CHECK_OK(s->cuda->base.ops->upload(&s->cuda->base, dev, rows, sizeof rows));
    float *got = run_rows(s, 0, m, dev);
    check_bits(s, got, want, m, "gathered");
    s->cuda->base.ops->free(&s->cuda->base, dev);
    free(got);
    free(want);
}

static void test_subject(const subject *s, const double *weights) {
    static const int checked[] = {0, 1, 57, MOST - 1};
    const size_t n_out = (size_t)s->w->n_out;
    float *alone = malloc(MOST * n_out * sizeof *alone);
    for (int i = 0; i < MOST; i++) {
        float *row = run_rows(s, i, 1, NULL);
        memcpy(alone + (size_t)i * n_out, row, n_out * sizeof *row);
        free(row);
    }
    for (int i = 0; i < 4; i++) {
        check_f64(s, weights, alone, checked[i]);
    }
    for (int i = 0; i < N_ROW_COUNTS; i++) {
        for (int again = 0; again < (gpu_small(3) ? 1 : 2); again++) {
            float *got = run_rows(s, 0, row_counts[i], NULL);
            check_bits(s, got, alone, row_counts[i], again ? "again" : "first");
            free(got);
        }
    }
    test_gather(s, alone, 3);
    test_gather(s, alone, 21);
    free(alone);
}

static void test_shape(lv_backend *be, lv_format format, int n_out, int n_in) {
    lv_linear_source source = source_of(format, n_out, n_in, false);
    double *weights = weights_of(&source, format);
    float *x = random_halves((size_t)MOST * (size_t)n_in), *norm = random_floats((size_t)n_in);
    subject s = {.cuda = (lv_cuda *)be,
                 .w = load(be, &source, 1, 0, format),
                 .name = formats[format],
                 .x = x,
                 .x_dev = dev_act(be, x, (size_t)MOST * (size_t)n_in),
                 .out_dev = dev_bytes(be, (size_t)MOST * (size_t)n_out * sizeof(float))};
    CHECK(lv_cuda_small_takes(s.cuda, s.w), "[%d, %d]: taken", n_out, n_in);
    test_subject(&s, weights);
    s.norm_host = norm;
    s.norm = dev_f32(be, norm, (size_t)n_in);
    test_subject(&s, weights);
    be->ops->linear_free(be, s.w);
    be->ops->free(be, s.norm);
    be->ops->free(be, s.x_dev);
    be->ops->free(be, s.out_dev);
    free(x);
    free(norm);
    free(weights);
    free_source(&source, 0);
}

// --- operations ----------------------------------------------------------------------------------

typedef struct call {
    lv_backend *be;
    enum { CALL_LINEAR, CALL_GATE_UP, CALL_LOGITS } what;
    const void *x;
    const lv_linear *w;
    const float *norm;
    lv_activation activation;
    const void *residual;
    void *out;
} call;

static lv_status body(void *user, const lv_batch *batch) {
    const call *c = user;
    switch (c->what) {
    case CALL_LINEAR:
        return c->be->ops->linear(c->be, c->x, batch->n_tokens, c->w, c->activation, c->residual,
                                  c->out);
    case CALL_GATE_UP:
        return c->be->ops->norm_gate_up_silu(c->be, c->x, batch->n_tokens, c->norm, 1e-5f, c->w,
                                             c->out);
    default:
        return c->be->ops->norm_logits(c->be, batch, c->x, c->norm, 1e-5f, c->w, c->out);
    }
}

// One sequence of m new tokens.
static void pass(call *c, int m, const int32_t *logit_rows, int n_logits) {
    const int32_t starts[2] = {0, m}, length = m;
    const lv_batch batch = {.n_seqs = 1,
                            .n_tokens = m,
                            .n_logits = n_logits,
                            .logit_rows = logit_rows,
                            .token_start = starts,
                            .kv_length = &length};
    CHECK_OK(c->be->ops->pass(c->be, &batch, body, c));
}

// Halves of ours against f32 of the reference: its rounding is not our error.
static void check_close(const float *got, float *want, size_t n, bool halves, double most,
                        const char *what, const lv_linear *w, int m) {
    for (size_t i = 0; halves && i < n; i++) {
        want[i] = half((double)want[i]);
    }
    size_t worst = 0;
    for (size_t i = 0; i < n; i++) {
        worst = !(fabsf(got[i] - want[i]) <= fabsf(got[worst] - want[worst])) ? i : worst;
    }
    const double error = mean_error(got, want, n);
    CHECK(error <= most, "%s %s [%d, %d] m %d: error %g; at %zu: %g, wanted %g", what,
          formats[w->format], w->n_out, w->n_in, m, error, worst, (double)got[worst],
          (double)want[worst]);
}

typedef struct pair_of {
    lv_backend *be, *ref;
    lv_linear *w, *w_ref;
    float *x; // [MOST, n_in]
    void *x_dev;
} pair_of;

// int8 exists on the device only: its reference is given the rounded weights as f32.
static pair_of open_pair(lv_backend *be, lv_backend *ref, lv_linear_source *parts, int n, int pair,
                         lv_format format, float **rounded) {
    const int n_in = parts[0].n_in;
    pair_of p = {.be = be, .ref = ref, .w = load(be, parts, n, pair, format)};
    lv_linear_source of_ref[3];
    for (int i = 0; i < n; i++) {
        of_ref[i] = parts[i];
        rounded[i] = NULL;
        if (format == LV_W_INT8) {
            const size_t count = (size_t)parts[i].n_out * (size_t)n_in;
            double *w = weights_of(&parts[i], format);
            rounded[i] = malloc(count * sizeof(float));
            for (size_t k = 0; k < count; k++) {
                rounded[i][k] = (float)w[k];
            }
            free(w);
            of_ref[i].weight = (lv_tensor){rounded[i], LV_F32, 2, {parts[i].n_out, n_in}};
        }
    }
    CHECK_OK(ref->ops->linear_load(ref, of_ref, n, NULL, &p.w_ref));
    p.x = random_halves((size_t)MOST * (size_t)n_in);
    p.x_dev = dev_act(be, p.x, (size_t)MOST * (size_t)n_in);
    return p;
}

static void close_pair(pair_of *p, lv_linear_source *parts, int n, float **rounded) {
    p->be->ops->linear_free(p->be, p->w);
    p->ref->ops->linear_free(p->ref, p->w_ref);
    p->be->ops->free(p->be, p->x_dev);
    free(p->x);
    for (int i = 0; i < n; i++) {
        free(rounded[i]);
        free_source(&parts[i], 0);
    }
}

// pair_option: 0 or 8, which the operation `linear` takes. Bias, activation, residual in place.
static void test_linear(lv_backend *be, lv_backend *ref, lv_format format, int n_out, int n_in,
                        int pair_option, lv_activation activation) {
    lv_linear_source source = source_of(format, n_out, n_in, activation != LV_ACT_GELU);
    float *rounded[3];
    pair_of p = open_pair(be, ref, &source, 1, pair_option, format, rounded);
    for (int i = 0; i < N_ROW_COUNTS; i++) {
        const int m = row_counts[i];
        const size_t n = (size_t)m * (size_t)n_out;
        float *residual = activation == LV_ACT_SILU ? NULL : random_halves(n), *want = poisoned(n);
        void *out = dev_act(be, residual, n);
        call ours = {.be = be,
                     .x = p.x_dev,
                     .w = p.w,
                     .activation = activation,
                     .residual = residual ? out : NULL,
                     .out = out};
        call theirs = {.be = ref,
                       .x = p.x,
                       .w = p.w_ref,
                       .activation = activation,
                       .residual = residual,
                       .out = want};
        pass(&ours, m, NULL, 0);
        pass(&theirs, m, NULL, 0);
        float *got = host_act(be, out, n);
        check_close(got, want, n, true, 2e-4, "linear", p.w, m);
        be->ops->free(be, out);
        free(residual);
        free(got);
        free(want);
    }
    close_pair(&p, &source, 1, rounded);
}

static void test_gate_up(lv_backend *be, lv_backend *ref, lv_format format, int d_ff, int n_in) {
    lv_linear_source parts[2] = {source_of(format, d_ff, n_in, true),
                                 source_of(format, d_ff, n_in, false)};
    float *norm = random_floats((size_t)n_in), *rounded[3];
    pair_of p = open_pair(be, ref, parts, 2, d_ff, format, rounded);
    float *norm_dev = dev_f32(be, norm, (size_t)n_in);
    CHECK(p.w->pair == d_ff, "gate, up: pair %d", p.w->pair);
    for (int i = 0; i < N_ROW_COUNTS; i++) {
        const int m = row_counts[i];
        const size_t n = (size_t)m * (size_t)d_ff;
        float *want = poisoned(n);
        void *out = dev_act(be, NULL, n);
        call ours = {
            .be = be, .what = CALL_GATE_UP, .x = p.x_dev, .w = p.w, .norm = norm_dev, .out = out};
        call theirs = {
            .be = ref, .what = CALL_GATE_UP, .x = p.x, .w = p.w_ref, .norm = norm, .out = want};
        pass(&ours, m, NULL, 0);
        pass(&theirs, m, NULL, 0);
        float *got = host_act(be, out, n);
        check_close(got, want, n, true, 1e-3, "gate, up", p.w, m); // x is rounded after its norm
        be->ops->free(be, out);
        free(got);
        free(want);
    }
    be->ops->free(be, norm_dev);
    free(norm);
    close_pair(&p, parts, 2, rounded);
}

static void test_logits(lv_backend *be, lv_backend *ref, lv_format format, int vocab, int n_in) {
    lv_linear_source source = source_of(format, vocab, n_in, false);
    float *norm = random_floats((size_t)n_in), *rounded[3];
    pair_of p = open_pair(be, ref, &source, 1, 0, format, rounded);
    float *norm_dev = dev_f32(be, norm, (size_t)n_in);
    for (int i = 0; i < N_ROW_COUNTS; i++) {
        const int m = row_counts[i];
        const size_t n = (size_t)m * (size_t)vocab;
        int32_t rows[MOST];
        for (int r = 0; r < m; r++) {
            rows[r] = MOST - 1 - r;
        }
        float *want = poisoned(n), *out = dev_f32(be, NULL, n);
        call ours = {
            .be = be, .what = CALL_LOGITS, .x = p.x_dev, .w = p.w, .norm = norm_dev, .out = out};
        call theirs = {
            .be = ref, .what = CALL_LOGITS, .x = p.x, .w = p.w_ref, .norm = norm, .out = want};
        pass(&ours, MOST, rows, m);
        pass(&theirs, MOST, rows, m);
        float *got = host_f32(be, out, n);
        check_close(got, want, n, false, 1e-3, "logits", p.w, m);
        be->ops->free(be, out);
        free(got);
        free(want);
    }
    be->ops->free(be, norm_dev);
    free(norm);
    close_pair(&p, &source, 1, rounded);
}

// --- q, k, v -------------------------------------------------------------------------------------

typedef struct heads {
    int n, n_kv, dim;
} heads;

// Two sequences with tokens at positions from `first` on; row i of x is row i of the batch.
typedef struct places {
    lv_batch batch;
    int32_t starts[3], lengths[2];
    float *inv_freq;
    float scales[2];
} places;

static void place_rows(places *p, int m, int dim) {
    *p = (places){.starts = {0, m / 3, m}, .lengths = {m / 3 + 4000, m - m / 3 + 17}};
    p->scales[0] = 1.0f;
    p->scales[1] = 1.25f;
    p->inv_freq = malloc((size_t)dim * sizeof(float));
    for (int i = 0; i < dim; i++) {
        p->inv_freq[i] =
            powf(10000, -2.0f * (float)(i % (dim / 2)) / (float)dim) / (i < dim / 2 ? 1 : 4);
    }
    p->batch = (lv_batch){.n_seqs = 2,
                          .n_tokens = m,
                          .token_start = p->starts,
                          .kv_length = p->lengths,
                          .head_dim = dim,
                          .inv_freq = p->inv_freq,
                          .rope_scale = p->scales};
}

// y: [q; k; v] of row `row` of the batch, rotated in place.
static void rotate(const places *p, int row, heads h, double *y) {
    const int seq = row >= p->starts[1], n = p->starts[seq + 1] - p->starts[seq];
    const int position = p->lengths[seq] - n + row - p->starts[seq];
    for (int head = 0; head < h.n + h.n_kv; head++) {
        for (int i = 0; i < h.dim / 2; i++) {
            const float angle = (float)position * p->inv_freq[seq * (h.dim / 2) + i];
            const double c = cos((double)angle) * (double)p->scales[seq];
            const double s = sin((double)angle) * (double)p->scales[seq];
            double *a = y + head * h.dim + i, *b = a + h.dim / 2, old = *a;
            *a = old * c - *b * s;
            *b = *b * c + old * s;
        }
    }
}

static void run_rotate(lv_cuda *cuda, const lv_linear *w, heads h, const void *x,
                       const lv_device_batch *batch, int first, int m, float **q, float **kv) {
    const size_t n_q = (size_t)(m * h.n * h.dim), n_kv = (size_t)(2 * m * h.n_kv * h.dim);
    void *q_dev = dev_act(&cuda->base, NULL, n_q), *kv_dev = dev_act(&cuda->base, NULL, n_kv);
    const lv_small args = {.w = w,
                           .x = (const uint8_t *)x + (size_t)first * (size_t)w->n_in * 2,
                           .m = m,
                           .epilogue = LV_ROTATE,
                           .out = q_dev,
                           .batch = batch,
                           .first_row = first,
                           .n_heads = h.n,
                           .n_kv_heads = h.n_kv,
                           .head_dim = h.dim,
                           .kv_new = kv_dev};
    CHECK_OK(lv_cuda_small(cuda, &args));
    *q = host_act(&cuda->base, q_dev, n_q);
    *kv = host_act(&cuda->base, kv_dev, n_kv);
    cuda->base.ops->free(&cuda->base, q_dev);
    cuda->base.ops->free(&cuda->base, kv_dev);
}

static void check_rotated(const places *p, const lv_linear *w, heads h, const double *weights,
                          const float *bias, const float *x, int first, int m, const float *q,
                          const float *kv) {
    const int q_width = h.n * h.dim, kv_width = 2 * h.n_kv * h.dim;
    double *y = malloc((size_t)w->n_out * sizeof *y), *row = malloc((size_t)w->n_in * sizeof *row);
    double error = 0, norm = 0;
    for (int i = 0; i < m; i++) {
        normed(x + (size_t)(first + i) * (size_t)w->n_in, NULL, w->n_in, row);
        for (int j = 0; j < w->n_out; j++) {
            y[j] = dot(row, weights + (size_t)j * (size_t)w->n_in, w->n_in) + (double)bias[j];
        }
        rotate(p, first + i, h, y);
        for (int j = 0; j < w->n_out; j++) {
            const float got = j < q_width ? q[i * q_width + j] : kv[i * kv_width + j - q_width];
            const double d = fabs((double)got - (double)half(y[j]));
            error += d;
            norm += fabs(y[j]);
            CHECK(d <= 4e-3 * (1 + fabs(y[j])),
                  "%s heads %d/%d of %d, row %d + %d, output %d: %g, wanted %g", formats[w->format],
                  h.n, h.n_kv, h.dim, first, i, j, (double)got, y[j]);
        }
    }
    CHECK(error <= 2e-4 * norm, "%s heads %d/%d of %d, rows %d + %d: %g of %g", formats[w->format],
          h.n, h.n_kv, h.dim, first, m, error, norm);
    free(y);
    free(row);
}

static void test_rotate(lv_backend *be, lv_format format, heads h, int n_in) {
    lv_cuda *cuda = (lv_cuda *)be;
    lv_linear_source parts[3] = {source_of(format, h.n * h.dim, n_in, true),
                                 source_of(format, h.n_kv * h.dim, n_in, true),
                                 source_of(format, h.n_kv * h.dim, n_in, true)};
    lv_linear *w = load(be, parts, 3, h.dim / 2, format);
    double *weights = malloc((size_t)w->n_out * (size_t)n_in * sizeof *weights), *to = weights;
    float *bias = malloc((size_t)w->n_out * sizeof *bias), *bias_to = bias;
    for (int i = 0; i < 3; i++) {
        double *part = weights_of(&parts[i], format);
        memcpy(to, part, (size_t)parts[i].n_out * (size_t)n_in * sizeof *part);
        memcpy(bias_to, parts[i].bias.data, (size_t)parts[i].n_out * sizeof *bias);
        to += (size_t)parts[i].n_out * (size_t)n_in;
        bias_to += parts[i].n_out;
        free(part);
    }
    enum { M = 41 };
    float *x = random_halves((size_t)(M * n_in)), *q[2], *kv[2];
    void *x_dev = dev_act(be, x, (size_t)(M * n_in));
    places p;
    const lv_device_batch *batch = NULL;
    place_rows(&p, M, h.dim);
    CHECK_OK(lv_cuda_batch(cuda, &p.batch, &batch));
    run_rotate(cuda, w, h, x_dev, batch, 0, M, &q[0], &kv[0]);
    check_rotated(&p, w, h, weights, bias, x, 0, M, q[0], kv[0]);
    for (int first = 0; first + 5 <= M; first += 9) {
        run_rotate(cuda, w, h, x_dev, batch, first, 5, &q[1], &kv[1]);
        const size_t q_row = (size_t)(h.n * h.dim), kv_row = (size_t)(2 * h.n_kv * h.dim);
        CHECK(memcmp(q[1], q[0] + (size_t)first * q_row, 5 * q_row * 4) == 0 &&
                  memcmp(kv[1], kv[0] + (size_t)first * kv_row, 5 * kv_row * 4) == 0,
              "%s heads of %d: rows %d + 5 alone and among %d", formats[format], h.dim, first, M);
        free(q[1]);
        free(kv[1]);
    }
    free(q[0]);
    free(kv[0]);
    free(x);
    free(weights);
    free(bias);
    free(p.inv_freq);
    be->ops->free(be, x_dev);
    be->ops->linear_free(be, w);
    for (int i = 0; i < 3; i++) {
        free_source(&parts[i], 0);
    }
}

int main(int argc, char **argv) {
    lv_backend *be = open_cuda();
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench_linears((lv_cuda *)be);
        lv_backend_close(be);
        return 0;
    }
    lv_backend *ref = open_reference();
    for (int f = LV_W_F16; f <= LV_W_INT8; f++) {
        const lv_format format = (lv_format)f;
        test_shape(be, format, 16, 128);
        test_shape(be, format, 48, 384);
        test_shape(be, format, 2064, 640);
        if (!gpu_small(3)) {
            test_shape(be, format, 1024, 4096);
            test_shape(be, format, 48, 13824);
        }
        test_linear(be, ref, format, 48, 384, 8, LV_ACT_NONE);
        test_linear(be, ref, format, 2064, 128, 0, LV_ACT_GELU);
        test_linear(be, ref, format, 208, 384, 0, LV_ACT_QUICK_GELU);
        test_linear(be, ref, format, 48, 1152, 0, LV_ACT_SILU);
        test_linear(be, ref, format, 16, 4096, 0, LV_ACT_GELU_TANH);
        test_linear(be, ref, format, 544, 5120, 0, LV_ACT_NONE); // slabs that two warps read are
                                                                 // filled again
        test_gate_up(be, ref, format, 40, 384);
        test_gate_up(be, ref, format, 344, 128);
        test_logits(be, ref, format, 320, 384);
        test_logits(be, ref, format, 96, 1152);
        test_rotate(be, format, (heads){4, 2, 16}, 128);
        test_rotate(be, format, (heads){3, 1, 64}, 384);
        test_rotate(be, format, (heads){2, 2, 128}, 256);
    }
    if (!gpu_small(3)) {
        test_shape(be, LV_W_INT4, 4096, 4096);
        test_shape(be, LV_W_INT4, 4096, 11008);
        test_shape(be, LV_W_INT4, 8192, 256);
    }
    lv_backend_close(ref);
    lv_backend_close(be);
    return check_done();
}

#endif
