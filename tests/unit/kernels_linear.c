// The operation `linear` of every instruction set: dense against the reference, int4 against f64 on
// the same dequantised weights, and the bits: the same for every instruction set (int4), number of
// threads and number of rows.
#include "tests/unit/kernels_util.h"

typedef struct shape {
    int m, n_out, n_in;
} shape;

static lv_linear *load_linear(lv_backend *be, const lv_linear_source *parts, int n_parts) {
    lv_linear *linear = NULL;
    CHECK_OK(be->ops->linear_load(be, parts, n_parts, NULL, &linear));
    return linear;
}

static float *run_linear(lv_backend *be, const lv_linear_source *parts, int n_parts, const float *x,
                         int m, lv_activation activation, const float *residual) {
    lv_linear *linear = load_linear(be, parts, n_parts);
    int n_out = be->ops->linear_shape(linear).n_out;
    float *out = poisoned((size_t)m * (size_t)n_out);
    CHECK_OK(be->ops->linear(be, x, m, linear, activation, residual, out));
    be->ops->linear_free(be, linear);
    return out;
}

static void test_dense(lv_backend *ref, lv_backend *be, const char *name, shape s, lv_dtype dtype,
                       size_t offset, lv_activation activation) {
    bool extras = activation != LV_ACT_NONE;
    lv_linear_source source = dense_source(s.n_out, s.n_in, dtype, offset, extras);
    size_t n = (size_t)s.m * (size_t)s.n_out;
    float *x = random_floats((size_t)s.m * (size_t)s.n_in);
    float *residual = extras ? random_floats(n) : NULL;
    float *want = run_linear(ref, &source, 1, x, s.m, activation, residual);
    float *got = run_linear(be, &source, 1, x, s.m, activation, residual);
    double error = relative_error(got, want, n);
    CHECK(error < 2e-6, "%s %s [%d, %d] m %d activation %d: %g", name, lv_dtype_name(dtype),
          s.n_out, s.n_in, s.m, activation, error);
    free(x);
    free(residual);
    free(want);
    free(got);
    free_source(&source, offset);
}

static void test_dense_shapes(lv_backend *ref, lv_backend *be, const char *name) {
    static const lv_dtype dtypes[] = {LV_F32, LV_F16, LV_BF16};
    static const shape shapes[] = {{1, 1, 1},    {1, 65, 129},  {2, 17, 588}, {3, 200, 33},
                                   {5, 64, 128}, {7, 130, 257}, {37, 63, 48}, {200, 96, 64}};
    for (int d = 0; d < 3; d++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            test_dense(ref, be, name, shapes[i], dtypes[d], (size_t)d + 1, LV_ACT_NONE);
        }
        for (int m = 1; m <= 37; m++) {
            test_dense(ref, be, name, (shape){m, 33, 40}, dtypes[d], 0,
                       (lv_activation)(m % (LV_ACT_SILU + 1)));
        }
    }
}

// Parts that do not end on a multiple of the kernels' 64 and 16 outputs: stacked, each must give
// what it gives alone.
static void test_parts(lv_backend *ref, lv_backend *be, const char *name, bool awq) {
    lv_linear_source parts[3];
    int widths[3] = {72, 8, 40}, m = 9, n_in = 64;
    for (int i = 0; i < 3; i++) {
        parts[i] = awq ? awq_source(widths[i], n_in, 32, i != 1)
                       : dense_source(widths[i], n_in, LV_F16, 0, i != 1);
    }
    float *x = random_floats((size_t)(m * n_in));
    float *got = run_linear(be, parts, 3, x, m, LV_ACT_NONE, NULL), *column = got;
    for (int i = 0; i < 3; i++) {
        float *want = run_linear(ref, &parts[i], 1, x, m, LV_ACT_NONE, NULL);
        for (int row = 0; row < m; row++) {
            double error = relative_error(column + row * (72 + 8 + 40), want + row * widths[i],
                                          (size_t)widths[i]);
            CHECK(error < 3e-4, "%s, part %d, row %d, awq %d: %g", name, i, row, awq, error);
        }
        column += widths[i];
        free(want);
        free_source(&parts[i], 0);
    }
    free(x);
    free(got);
}

// --- int4 ----------------------------------------------------------------------------------------

static int nibble(const lv_tensor *t, int64_t row, int64_t column) {
    static const int shifts[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    uint32_t word = ((const uint32_t *)t->data)[row * t->dims[1] + column / 8];
    return (int)(word >> shifts[column % 8] & 15);
}

// x W^T in f64, W dequantised by the definition in checkpoint.h.
static double *int4_f64(const lv_linear_source *s, const float *x, int m) {
    double *out = calloc((size_t)m * (size_t)s->n_out, sizeof *out);
    for (int j = 0; j < s->n_out; j++) {
        for (int k = 0; k < s->n_in; k++) {
            int group = k / s->group_size;
            uint16_t half = ((const uint16_t *)s->scales.data)[(int64_t)group * s->n_out + j];
            double w = (double)(nibble(&s->qweight, k, j) - nibble(&s->qzeros, group, j)) *
                       (double)lv_f16_to_f32(half);
            for (int i = 0; i < m; i++) {
                out[(int64_t)i * s->n_out + j] += w * (double)x[(int64_t)i * s->n_in + k];
            }
        }
    }
    return out;
}

static void check_int4(const lv_linear_source *s, const float *x, int m, const float *got,
                       const char *name) {
    double *want = int4_f64(s, x, m), difference = 0, norm = 0;
    for (int i = 0; i < m * s->n_out; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += want[i] * want[i];
    }
    double error = sqrt(difference / norm);
    CHECK(error < 1e-4, "%s int4 [%d, %d] group %d m %d: %g", name, s->n_out, s->n_in,
          s->group_size, m, error);
    free(want);
}

// All instruction sets, with 1 and 3 threads, give the bits of the first, and rows alone give the
// bits of rows in a batch.
static void test_int4(lv_backend *be[N_ISAS][2], int m, int n_out, int n_in, int group) {
    lv_linear_source source = awq_source(n_out, n_in, group, false);
    size_t n = (size_t)m * (size_t)n_out;
    float *x = random_floats((size_t)m * (size_t)n_in), *first = NULL;
    x[0] = 8.0f; // an outlier
    for (int isa = 0; isa < N_ISAS; isa++) {
        for (int t = 0; t < 2 && be[isa][t]; t++) {
            float *got = run_linear(be[isa][t], &source, 1, x, m, LV_ACT_NONE, NULL);
            if (!first) {
                check_int4(&source, x, m, got, isas[isa]);
                first = got;
                continue;
            }
            CHECK(memcmp(first, got, n * sizeof *got) == 0, "%s, [%d, %d] group %d m %d: bits",
                  isas[isa], n_out, n_in, group, m);
            free(got);
        }
        if (be[isa][0] && m > 1) {
            int row = m / 2;
            float *alone =
                run_linear(be[isa][0], &source, 1, x + (ptrdiff_t)row * n_in, 1, LV_ACT_NONE, NULL);
            CHECK(memcmp(first + (ptrdiff_t)row * n_out, alone, (size_t)n_out * 4) == 0,
                  "%s, [%d, %d] group %d: a row alone and among %d", isas[isa], n_out, n_in, group,
                  m);
            free(alone);
        }
    }
    free(first);
    free(x);
    free_source(&source, 0);
}

static void test_int4_shapes(lv_backend *be[N_ISAS][2]) {
    static const int groups[][2] = {{128, 384}, {64, 192},   {32, 96},
                                    {8, 40},    {512, 1024}, {24, 72}};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        test_int4(be, 1, 72, groups[g][1], groups[g][0]);
        test_int4(be, 2, 8, groups[g][1], groups[g][0]);
        test_int4(be, 5, 136, groups[g][1], groups[g][0]);
    }
    for (int m = 1; m <= 37; m++) {
        test_int4(be, m, 88, 128, 128);
    }
    test_int4(be, 400, 48, 128, 64);
}

// Dense rows, too, do not depend on the batch or the threads.
static void test_dense_bits(lv_backend *be[2], const char *name) {
    enum { M = 215, N = 75, K = 300 };
    lv_linear_source source = dense_source(N, K, LV_F16, 1, true);
    float *x = random_floats(M * K);
    float *one = run_linear(be[0], &source, 1, x, M, LV_ACT_QUICK_GELU, NULL);
    float *three = run_linear(be[1], &source, 1, x, M, LV_ACT_QUICK_GELU, NULL);
    CHECK(memcmp(one, three, M * N * sizeof(float)) == 0, "%s: dense, threads change bits", name);
    for (int row = 0; row < M; row += 71) {
        float *alone = run_linear(be[0], &source, 1, x + row * K, 1, LV_ACT_QUICK_GELU, NULL);
        CHECK(memcmp(one + row * N, alone, N * sizeof(float)) == 0,
              "%s: dense row %d alone and in a batch", name, row);
        free(alone);
    }
    free(x);
    free(one);
    free(three);
    free_source(&source, 1);
}

// residual == out; zeros; a NaN in x must be seen in that row, and only there.
static void test_special(lv_backend *be, const char *name) {
    lv_linear_source source = awq_source(24, 64, 32, true);
    lv_linear *linear = load_linear(be, &source, 1);
    float *x = random_floats(3 * 64), *plain = poisoned(3 * 24), *inout = random_floats(3 * 24);
    float before = inout[30];
    memset(x, 0, 64 * sizeof(float));
    x[2 * 64 + 40] = NAN;
    CHECK_OK(be->ops->linear(be, x, 3, linear, LV_ACT_NONE, NULL, plain));
    CHECK_OK(be->ops->linear(be, x, 3, linear, LV_ACT_NONE, inout, inout));
    CHECK(plain[5] == ((const float *)source.bias.data)[5], "%s: a row of zeros", name);
    CHECK(inout[30] == plain[30] + before, "%s: residual in place", name);
    CHECK(isfinite(plain[47]) && isnan(plain[48]) && isnan(plain[71]), "%s: NaN", name);
    be->ops->linear_free(be, linear);
    free(x);
    free(plain);
    free(inout);
    free_source(&source, 0);
}

static void test_refusals(lv_backend *be) {
    lv_linear *linear;
    lv_linear_source a = dense_source(8, 16, LV_F32, 0, false), b = a;
    lv_linear_source parts[2] = {a, a};
    b.n_in = 24;
    parts[1] = b;
    CHECK_STATUS(be->ops->linear_load(be, parts, 2, NULL, &linear), LV_EINVAL);
    b = a;
    b.weight.dtype = LV_I32;
    CHECK_STATUS(be->ops->linear_load(be, &b, 1, NULL, &linear), LV_EFORMAT);
    lv_linear_source q = awq_source(16, 64, 32, false);
    q.group_size = 48;
    CHECK_STATUS(be->ops->linear_load(be, &q, 1, NULL, &linear), LV_EUNSUPPORTED);
    q.group_size = 64;
    CHECK_STATUS(be->ops->linear_load(be, &q, 1, NULL, &linear), LV_EFORMAT);
    free_source(&a, 0);
    free_source(&q, 0);
}

int main(void) {
    lv_backend *ref = open_reference(), *be[N_ISAS][2];
    for (int isa = 0; isa < N_ISAS; isa++) {
        be[isa][0] = open_isa(isa, 1);
        be[isa][1] = open_isa(isa, 3);
        if (be[isa][0]) {
            test_dense_shapes(ref, be[isa][1], isas[isa]);
            test_parts(ref, be[isa][1], isas[isa], false);
            test_parts(ref, be[isa][1], isas[isa], true);
            test_dense_bits(be[isa], isas[isa]);
            test_special(be[isa][0], isas[isa]);
        }
    }
    test_special(ref, "reference");
    test_parts(ref, ref, "reference", false);
    test_parts(ref, ref, "reference", true);
    test_int4_shapes(be);
    test_refusals(ref);
    for (int isa = 0; isa < N_ISAS; isa++) {
        lv_backend_close(be[isa][0]);
        lv_backend_close(be[isa][1]);
    }
    lv_backend_close(ref);
    return check_done();
}
