// Rounding to int4: levels by the definition, errors within half a step, refusals; and the option
// of linear_load that uses it.
#include "kernels/rtn.h"
#include "tests/unit/kernels_util.h"

static int nibble(const lv_tensor *t, int64_t row, int64_t column) {
    static const int shifts[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    uint32_t word = ((const uint32_t *)t->data)[row * t->dims[1] + column / 8];
    return (int)(word >> shifts[column % 8] & 15);
}

static float weight(const lv_linear_source *s, int row, int k) {
    float w;
    size_t at = ((size_t)row * (size_t)s->n_in + (size_t)k) * lv_dtype_bytes(s->weight.dtype);
    lv_to_f32(s->weight.dtype, (const uint8_t *)s->weight.data + at, 1, &w);
    return lv_f16_to_f32(lv_f32_to_f16(w));
}

static int level(double x) {
    return x < 0 ? 0 : x > 15 ? 15 : (int)x;
}

// One group against the definition in f64; a weight on the edge of two levels may fall either way.
static void check_group(const lv_linear_source *s, const lv_linear_source *q, int row, int group) {
    double min = 0, max = 0;
    for (int k = group * 128; k < group * 128 + 128; k++) {
        min = fmin(min, weight(s, row, k));
        max = fmax(max, weight(s, row, k));
    }
    uint16_t half = ((const uint16_t *)q->scales.data)[group * s->n_out + row];
    double scale = lv_f16_to_f32(half), zero = nibble(&q->qzeros, group, row);
    CHECK(fabs(scale - (max - min) / 15) <= scale / 2048 + 3e-8, "row %d group %d: scale %g of %g",
          row, group, scale, max - min);
    CHECK(scale == 0 || fabs(zero - level(rint(-min / scale))) <= 0, "row %d group %d: zero %g",
          row, group, zero);
    for (int k = group * 128; k < group * 128 + 128; k++) {
        double w = weight(s, row, k), exact = scale > 0 ? w / scale + zero : 0;
        int got = nibble(&q->qweight, k, row);
        CHECK(fabs(got - fmin(fmax(exact, 0), 15)) <= 0.5001, "row %d k %d: %d of %g", row, k, got,
              exact);
        CHECK(fabs((got - zero) * scale - w) <= scale * 1.01 + 1e-7, "row %d k %d: %g of %g", row,
              k, (got - zero) * scale, w);
    }
}

static void test_levels(lv_dtype dtype, int n_out, int n_in, size_t offset) {
    lv_linear_source s = dense_source(n_out, n_in, dtype, offset, true), q;
    CHECK_OK(lv_rtn_int4(&s, 2, &q));
    CHECK(q.bias.data == s.bias.data && q.group_size == 128 && q.quant == LV_QUANT_AWQ, "fields");
    for (int row = 0; row < n_out; row++) {
        for (int group = 0; group < n_in / 128; group++) {
            check_group(&s, &q, row, group);
        }
    }
    lv_rtn_free(&q);
    lv_rtn_free(&q);
    free_source(&s, offset);
}

// Zeros, one sign only, a value too small for f16, one outlier.
static void test_edges(void) {
    float w[8 * 128] = {0};
    for (int k = 0; k < 128; k++) {
        w[128 + k] = 1 + (float)k / 128;
        w[256 + k] = -2 - (float)k / 128;
        w[384 + k] = 1e-30f;
        w[512 + k] = k == 5 ? 100 : 0.01f;
    }
    lv_linear_source s = {.n_out = 8, .n_in = 128}, q;
    s.weight = (lv_tensor){w, LV_F32, 2, {8, 128}};
    CHECK_OK(lv_rtn_int4(&s, 1, &q));
    for (int row = 0; row < 5; row++) {
        check_group(&s, &q, row, 0);
    }
    CHECK(nibble(&q.qzeros, 0, 1) == 0 && nibble(&q.qzeros, 0, 2) == 15, "zeros at the ends");
    CHECK(nibble(&q.qweight, 5, 4) == 15 && nibble(&q.qweight, 6, 4) == 0, "outlier");
    CHECK(((const uint16_t *)q.scales.data)[3] == 0, "scale of nothing");
    lv_rtn_free(&q);
    s.n_in = 120;
    CHECK_STATUS(lv_rtn_int4(&s, 1, &q), LV_EUNSUPPORTED);
    s = (lv_linear_source){.n_out = 4, .n_in = 128, .weight = s.weight};
    CHECK_STATUS(lv_rtn_int4(&s, 1, &q), LV_EUNSUPPORTED);
}

static float *run(lv_backend *be, const lv_linear_source *parts, int n_parts, lv_keep keep,
                  const float *x, int m, size_t *n_bytes) {
    const lv_linear_options options = {.keep = keep};
    lv_linear *linear = NULL;
    CHECK_OK(be->ops->linear_load(be, parts, n_parts, &options, &linear));
    const lv_linear_shape shape = be->ops->linear_shape(linear);
    float *out = poisoned((size_t)m * (size_t)shape.n_out);
    *n_bytes = shape.n_bytes;
    CHECK_OK(be->ops->linear(be, x, m, linear, LV_ACT_NONE, NULL, out));
    be->ops->linear_free(be, linear);
    return out;
}

// linear_load's LV_AS_INT4 is lv_rtn_int4 where the shape allows it, nothing where it does not;
// LV_AS_INT8 is nothing on the CPU.
static void test_keep(lv_backend *be, const char *name, int n_in) {
    enum { M = 3, N = 48 };
    const int widths[2] = {32, 16};
    lv_linear_source parts[2], rounded[2] = {{0}};
    for (int i = 0; i < 2; i++) {
        parts[i] = dense_source(widths[i], n_in, LV_F16, 0, i == 1);
        rounded[i] = parts[i];
        if (n_in % 128 == 0) {
            CHECK_OK(lv_rtn_int4(&parts[i], 1, &rounded[i]));
        }
    }
    size_t n_bytes[4];
    float *x = random_floats((size_t)(M * n_in));
    float *want = run(be, rounded, 2, LV_AS_STORED, x, M, &n_bytes[0]);
    float *got = run(be, parts, 2, LV_AS_INT4, x, M, &n_bytes[1]);
    float *stored = run(be, parts, 2, LV_AS_STORED, x, M, &n_bytes[2]);
    float *int8 = run(be, parts, 2, LV_AS_INT8, x, M, &n_bytes[3]);
    CHECK(memcmp(want, got, sizeof(float[M * N])) == 0, "%s, n_in %d: int4", name, n_in);
    CHECK(n_bytes[0] == n_bytes[1], "%s, n_in %d: %zu and %zu bytes", name, n_in, n_bytes[0],
          n_bytes[1]);
    CHECK(memcmp(stored, int8, sizeof(float[M * N])) == 0, "%s, n_in %d: int8", name, n_in);
    if (n_in % 128 == 0) {
        CHECK(memcmp(stored, got, sizeof(float[M * N])) != 0, "%s: not rounded", name);
        CHECK(n_bytes[1] < n_bytes[2] / 3, "%s: %zu bytes of %zu", name, n_bytes[1], n_bytes[2]);
        CHECK(relative_error(got, stored, M * N) < 0.15, "%s: %g", name,
              relative_error(got, stored, M * N));
    }
    for (int i = 0; i < 2; i++) {
        if (n_in % 128 == 0) {
            lv_rtn_free(&rounded[i]);
        }
        free_source(&parts[i], 0);
    }
    free(x);
    free(want);
    free(got);
    free(stored);
    free(int8);
}

int main(void) {
    static const lv_dtype dtypes[] = {LV_F32, LV_F16, LV_BF16};
    for (int d = 0; d < 3; d++) {
        test_levels(dtypes[d], 8, 128, (size_t)d);
        test_levels(dtypes[d], 136, 384, 0);
    }
    test_edges();
    lv_backend *ref = open_reference(), *be = open_isa(0, 2);
    for (int n_in = 192; n_in <= 256; n_in += 64) {
        test_keep(ref, "reference", n_in);
        test_keep(be, "portable", n_in);
    }
    lv_backend_close(ref);
    lv_backend_close(be);
    return check_done();
}
