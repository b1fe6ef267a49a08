// Products of many rows: every kind of weights against sums in double over the same weights, and
// rows whose bits do not depend on how many there are.
// --bench: LLaVA's shapes, and a large product as the ceiling.
#include "tests/gpu/bench.h"

static lv_backend *be;

// n halves that repeat after a prime: rows differ, and are made quickly.
static float *quick_halves(size_t n) {
    enum { PERIOD = 65537 };
    float *some = random_halves(PERIOD), *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = some[i % PERIOD];
    }
    free(some);
    return x;
}

// --- weights as the device has them, in double
// ------------------------------------------------------

static void weight_row(const lv_linear_source *s, lv_keep keep, int out, double *w) {
    float *row = malloc((size_t)s->n_in * sizeof *row), largest = 0;
    for (int k = 0; s->quant == LV_QUANT_AWQ && k < s->n_in; k++) {
        w[k] = awq_weight(s, out, k);
    }
    if (s->quant == LV_QUANT_NONE) {
        const size_t row_bytes = (size_t)s->n_in * lv_dtype_bytes(s->weight.dtype);
        lv_to_f32(s->weight.dtype, (const uint8_t *)s->weight.data + (size_t)out * row_bytes,
                  (size_t)s->n_in, row);
        for (int k = 0; k < s->n_in; k++) {
            row[k] = lv_f16_to_f32(lv_f32_to_f16(row[k]));
            largest = fmaxf(largest, fabsf(row[k]));
        }
        const float scale = largest / 127;
        for (int k = 0; k < s->n_in; k++) {
            w[k] =
                keep == LV_AS_INT8 ? (double)rintf(row[k] / scale) * (double)scale : (double)row[k];
        }
    }
    free(row);
}

static double activated(lv_activation activation, double x) {
    switch (activation) {
    case LV_ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    case LV_ACT_GELU:
        return 0.5 * x * (1 + erf(x * 0.70710678118654752));
    case LV_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case LV_ACT_SILU:
        return x / (1 + exp(-x));
    default:
        return x;
    }
}

// --- one product against double
// ---------------------------------------------------------------------

typedef struct product {
    int m, n_out, n_in;
    const char *name;
    lv_linear_source source;
    lv_keep keep;
    lv_activation activation;
    bool residual, in_place;
} product;

// The error over some N_ROWS columns, evenly spread, of all rows or of every few.
#define N_ROWS 48
static void check_outputs(const product *p, const float *x, const float *residual, const float *got,
                          double bar) {
    double *w = malloc((size_t)p->n_in * sizeof *w), difference = 0, norm = 1e-30, worst = 0;
    int worst_row = 0, worst_column = 0;
    const int step = p->n_out > N_ROWS ? p->n_out / N_ROWS : 1;
    const int row_step = p->m > 200 ? p->m / 100 : 1;
    for (int n = 0; n * step < p->n_out + step - 1; n++) { // ends with the last column
        const int j = n * step < p->n_out ? n * step : p->n_out - 1;
        weight_row(&p->source, p->keep, j, w);
        for (int i = n % row_step; i < p->m; i += row_step) {
            double sum = p->source.bias.data ? (double)((const float *)p->source.bias.data)[j] : 0;
            for (int k = 0; k < p->n_in; k++) {
                sum += w[k] * (double)x[(size_t)i * (size_t)p->n_in + (size_t)k];
            }
            const size_t at = (size_t)i * (size_t)p->n_out + (size_t)j;
            const double want =
                activated(p->activation, sum) + (residual ? (double)residual[at] : 0);
            const double error = fabs((double)got[at] - want);
            difference += error;
            norm += fabs(want);
            if (!(error <= worst)) {
                worst = error;
                worst_row = i;
                worst_column = j;
            }
        }
    }
    CHECK(
        difference / norm < bar,
        "%s, %d x %d -> %d, activation %d, residual %d: mean error %g; worst %g at row %d, column "
        "%d: %g",
        p->name, p->m, p->n_in, p->n_out, (int)p->activation, p->residual, difference / norm, worst,
        worst_row, worst_column,
        (double)got[(size_t)worst_row * (size_t)p->n_out + (size_t)worst_column]);
    free(w);
}

static void test_product(const product *p) {
    const size_t n_x = (size_t)p->m * (size_t)p->n_in, n_out = (size_t)p->m * (size_t)p->n_out;
    const lv_linear_options options = {.keep = p->keep};
    float *x = quick_halves(n_x), *residual = p->residual ? quick_halves(n_out) : NULL;
    lv_linear *w = NULL;
    CHECK_OK(be->ops->linear_load(be, &p->source, 1, &options, &w));
    void *dev_x = dev_act(be, x, n_x), *out = dev_act(be, p->in_place ? residual : NULL, n_out);
    void *dev_residual = p->residual && !p->in_place ? dev_act(be, residual, n_out) : NULL;
    CHECK_OK(
        be->ops->linear(be, dev_x, p->m, w, p->activation, p->in_place ? out : dev_residual, out));
    float *got = host_act(be, out, n_out);
    // f16 results: half a ulp is 1.8e-4 on average, and 4.9e-4 at most for each of two roundings,
    // which a handful of values may come near to.
    check_outputs(p, x, residual, got, n_out < 64 ? 1e-3 : 5e-4);
    be->ops->linear_free(be, w);
    be->ops->free(be, dev_x), be->ops->free(be, out), be->ops->free(be, dev_residual);
    free(x), free(residual), free(got);
}

typedef enum weight_kind { F16, BF16, F32, AWQ, INT8, N_KINDS } weight_kind;

static void test_kind(weight_kind kind, int m, int n_out, int n_in) {
    static const char *const names[] = {"f16", "bf16", "f32", "awq", "int8"};
    static const lv_dtype dtypes[] = {LV_F16, LV_BF16, LV_F32, LV_NONE, LV_F16};
    const bool bias = rng() % 2, residual = rng() % 2;
    if ((kind == AWQ && (n_out % 8 || n_in % 128)) ||
        (kind == INT8 && (n_out % 16 || n_in % 128))) {
        return; // not stored so
    }
    product p = {.m = m,
                 .n_out = n_out,
                 .n_in = n_in,
                 .name = names[kind],
                 .keep = kind == INT8 ? LV_AS_INT8 : LV_AS_STORED,
                 .residual = residual,
                 .in_place = residual && rng() % 2,
                 .activation = residual ? LV_ACT_NONE : (lv_activation)(rng() % 5)};
    p.source = kind == AWQ ? awq_source(n_out, n_in, 128, bias)
                           : dense_source(n_out, n_in, dtypes[kind], 0, bias);
    test_product(&p);
    free_source(&p.source, 0);
}

// f32 sums, which logits are, against double over the same f16 rows. The norm leaves rows of +-1 as
// they are, so that nothing but the product is rounded. Widths that the family for few rows leaves
// to this one.
static void test_f32(int vocab, int d) {
    enum { M = 5 };
    static const int32_t rows[M] = {0, 1, 2, 3, 4};
    const lv_batch batch = {.n_tokens = M, .n_logits = M, .logit_rows = rows};
    product p = {.m = M, .n_out = vocab, .n_in = d, .name = "f32 sums"};
    float *x = poisoned((size_t)(M * d)), *norm = poisoned((size_t)d);
    for (int i = 0; i < M * d; i++) {
        x[i] = rng() % 2 ? 1.0f : -1.0f;
        norm[i % d] = 1.0f;
    }
    p.source = dense_source(vocab, d, LV_F16, 0, true);
    lv_linear *w = NULL;
    CHECK_OK(be->ops->linear_load(be, &p.source, 1, NULL, &w));
    void *dev_x = dev_act(be, x, (size_t)(M * d));
    float *dev_norm = dev_f32(be, norm, (size_t)d), *out = dev_f32(be, NULL, (size_t)(M * vocab));
    CHECK_OK(be->ops->norm_logits(be, &batch, dev_x, dev_norm, 0, w, out));
    float *got = host_f32(be, out, (size_t)(M * vocab));
    check_outputs(&p, x, NULL, got, 3e-6);
    be->ops->linear_free(be, w);
    be->ops->free(be, dev_x), be->ops->free(be, dev_norm), be->ops->free(be, out);
    free(x), free(norm), free(got);
    free_source(&p.source, 0);
}

// --- bits
// -------------------------------------------------------------------------------------------

// Rows alone, among 17 and 300, and at another place, are those among 2048; and once more the same.
static void test_bits(const char *name, const lv_linear_source *source, bool residual) {
    enum { M = 2048 };
    static const int counts[] = {1, 17, 300, 636, M};
    static const int firsts[] = {5, 0, 1000, 3, 0};
    const size_t d = (size_t)source->n_in, n_out = (size_t)source->n_out;
    float *x = quick_halves(M * d), *r = quick_halves(M * n_out);
    uint16_t *all = malloc(M * n_out * 2), *some = malloc(M * n_out * 2);
    lv_linear *w = NULL;
    CHECK_OK(be->ops->linear_load(be, source, 1, NULL, &w));
    uint8_t *dev_x = dev_act(be, x, M * d), *dev_r = dev_act(be, r, M * n_out);
    uint8_t *out = dev_bytes(be, M * n_out * 2);
    CHECK_OK(be->ops->linear(be, dev_x, M, w, LV_ACT_NONE, residual ? dev_r : NULL, out));
    CHECK_OK(be->ops->download(be, all, out, M * n_out * 2));
    for (int i = 0; i < 5; i++) {
        const size_t n = (size_t)counts[i], first = (size_t)firsts[i];
        size_t bad = 0;
        memset(some, 0xFF, n * n_out * 2);
        CHECK_OK(be->ops->upload(be, out, some, n * n_out * 2));
        CHECK_OK(be->ops->linear(be, dev_x + first * d * 2, counts[i], w, LV_ACT_NONE,
                                 residual ? dev_r + first * n_out * 2 : NULL, out));
        CHECK_OK(be->ops->download(be, some, out, n * n_out * 2));
        for (size_t k = 0; k < n * n_out; k++) {
            bad += some[k] != all[first * n_out + k];
        }
        CHECK(bad == 0,
              "%s %zu -> %zu, residual %d: %zu of %zu values differ between %zu rows and %d", name,
              d, n_out, residual, bad, n * n_out, n, M);
    }
    be->ops->linear_free(be, w);
    be->ops->free(be, dev_x), be->ops->free(be, dev_r), be->ops->free(be, out);
    free(x), free(r), free(all), free(some);
}

static void test_all_bits(void) {
    static const struct {
        int n_out, n_in;
        bool awq, bias, residual;
    } shapes[] = {
        {4096, 4096, true, false, true},  {12288, 4096, true, false, false},
        {4096, 11008, true, false, true}, {3072, 1024, false, true, false},
        {4096, 1024, false, true, false}, {1024, 4096, false, true, true},
        {4096, 4096, false, true, false}, {1024, 1024, false, true, true},
        {96, 24, false, true, true},
    };
    // The last shapes are small; the kernels that expand int4 are reached by test_kind as well.
    for (size_t i = gpu_small(2) ? 7 : 0; i < sizeof shapes / sizeof *shapes; i++) {
        lv_linear_source s =
            shapes[i].awq
                ? awq_source(shapes[i].n_out, shapes[i].n_in, 128, shapes[i].bias)
                : dense_source(shapes[i].n_out, shapes[i].n_in, LV_F16, 0, shapes[i].bias);
        test_bits(shapes[i].awq ? "awq" : "f16", &s, shapes[i].residual);
        free_source(&s, 0);
    }
}

static void test_all(void) {
    static const int heights[] = {1, 2, 7, 64, 577, 1000};
    static const int shapes[][2] = {{1, 1},       {3, 8},      {8, 3},      {24, 24},
                                    {48, 588},    {130, 37},   {384, 384},  {1000, 512},
                                    {1024, 1024}, {352, 1000}, {2048, 640}, {5120, 256}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int h = 0; h < 6; h += gpu_small(2) ? 2 : 1) {
            for (weight_kind k = F16; k < N_KINDS; k++) {
                test_kind(k, heights[h], shapes[s][0], shapes[s][1]);
            }
        }
    }
    test_kind(AWQ, 65, 4096, 4096);
    test_kind(AWQ, 300, 12288, 4096); // several slices
    if (!gpu_small(2)) {
        test_kind(AWQ, 129, 4096, 11008);
        test_kind(INT8, 129, 8192, 4096);
    }
    test_f32(7, 24);
    test_f32(130, 37);
    test_f32(33, 300);
    test_f32(1001, 4096);
    test_all_bits();
}

// --- bench
// ------------------------------------------------------------------------------------------

#define N_COPIES 3 // of the weights, in turn: together more than the L2 cache

typedef struct job {
    int m, repeats;
    const void *x;
    void *out;
    lv_linear *w[N_COPIES];
    const void *residual;
} job;

static lv_status run_job(void *user, const lv_batch *batch) {
    const job *j = user;
    (void)batch;
    for (int i = 0; i < j->repeats; i++) {
        LV_TRY(
            be->ops->linear(be, j->x, j->m, j->w[i % N_COPIES], LV_ACT_NONE, j->residual, j->out));
    }
    return LV_OK;
}

static double bench_shape(const char *name, const lv_linear_source *s, int m, bool residual) {
    job j = {.m = m, .repeats = 6};
    const size_t n_x = (size_t)m * (size_t)s->n_in, n_out = (size_t)m * (size_t)s->n_out;
    float *x = quick_halves(n_x);
    j.x = dev_act(be, x, n_x);
    j.out = dev_bytes(be, n_out * 2);
    CHECK_OK(be->ops->upload_act(be, j.out, x, n_out < n_x ? n_out : n_x));
    j.residual = residual ? j.out : NULL;
    for (int i = 0; i < N_COPIES; i++) {
        CHECK_OK(be->ops->linear_load(be, s, 1, NULL, &j.w[i]));
    }
    // Slices on a stream of their own are not recorded: int4 products are called directly.
    const double us = bench_us(be, run_job, &j, s->quant == LV_QUANT_NONE) / j.repeats;
    printf("%-12s %5d x %5d -> %5d: %9.1f us, %6.1f TFLOP/s\n", name, m, s->n_in, s->n_out, us,
           2e-6 * m * s->n_in * s->n_out / us);
    for (int i = 0; i < N_COPIES; i++) {
        be->ops->linear_free(be, j.w[i]);
    }
    be->ops->free(be, (void *)(uintptr_t)j.x), be->ops->free(be, j.out);
    free(x);
    return us;
}

static void bench(void) {
    static const int heights[] = {129, 636, 2204, 2940}, tiles[] = {577, 2885};
    static const int decoder[][2] = {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}};
    static const int clip[][2] = {{3072, 1024}, {1024, 1024}, {4096, 1024}, {1024, 4096}};
    double layer[4] = {0};
    for (int s = 0; s < 4; s++) {
        lv_linear_source awq = awq_source(decoder[s][0], decoder[s][1], 128, false);
        lv_linear_source f16 = dense_source(decoder[s][0], decoder[s][1], LV_F16, 0, false);
        for (int h = 0; h < 4; h++) {
            layer[h] += bench_shape("int4", &awq, heights[h], s % 2);
        }
        bench_shape("f16", &f16, 2204, s % 2);
        free_source(&awq, 0), free_source(&f16, 0);
    }
    for (int h = 0; h < 4; h++) {
        printf("linears of a 7B layer, %d rows: %.1f us, 32 of them %.2f ms\n", heights[h],
               layer[h], layer[h] * 32e-3);
    }
    double tower[2] = {0};
    for (int s = 0; s < 4; s++) {
        lv_linear_source f16 = dense_source(clip[s][0], clip[s][1], LV_F16, 0, true);
        for (int h = 0; h < 2; h++) {
            tower[h] += bench_shape("CLIP", &f16, tiles[h], s % 2);
        }
        free_source(&f16, 0);
    }
    printf("linears of 23 CLIP layers: %.2f ms for 577 rows, %.2f ms for 2885\n", tower[0] * 23e-3,
           tower[1] * 23e-3);
    lv_linear_source square = dense_source(8192, 8192, LV_F16, 0, false);
    bench_shape("ceiling", &square, 8192, false);
    free_source(&square, 0);
}

int main(int argc, char **argv) {
    be = open_cuda();
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench();
    } else {
        test_all();
    }
    lv_backend_close(be);
    return check_done();
}
