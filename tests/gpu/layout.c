// Weights on the device, byte for byte: int4 records packed from AWQ and rounded from dense rows,
// int8 rows, f16 rows in tile order, and what expanding makes of them.
#include "tests/gpu/util.h"

#ifndef LV_HAVE_CUDA

int main(void) {
    return check_skip("built without CUDA");
}

#else

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/records.h"
#include "kernels/rtn.h"

typedef struct parts {
    lv_linear_source at[3];
    int n, n_out, n_in;
} parts;

// Where row `row` of the stacked parts lies.
static const lv_linear_source *part_of(const parts *p, int *row) {
    const lv_linear_source *s = p->at;
    for (; *row >= s->n_out; s++) {
        *row -= s->n_out;
    }
    return s;
}

static int awq_nibble(const lv_tensor *t, int64_t row, int column) {
    const uint32_t word = ((const uint32_t *)t->data)[row * t->dims[1] + column / 8];
    return (int)(word >> lv_awq_shift(column % 8) & 15);
}

static uint16_t awq_scale(const lv_linear_source *s, int row, int group) {
    return ((const uint16_t *)s->scales.data)[(int64_t)group * s->n_out + row];
}

static uint16_t awq_half(const lv_linear_source *s, int row, int k) {
    const int group = k / s->group_size;
    const int q = awq_nibble(&s->qweight, k, row) - awq_nibble(&s->qzeros, group, row);
    return lv_f32_to_f16((float)q * lv_f16_to_f32(awq_scale(s, row, group)));
}

static uint16_t dense_half(const lv_linear_source *s, int row, int k) {
    float w;
    const size_t at = (size_t)row * (size_t)s->n_in + (size_t)k;
    lv_to_f32(s->weight.dtype,
              (const uint8_t *)s->weight.data + at * lv_dtype_bytes(s->weight.dtype), 1, &w);
    return lv_f32_to_f16(w);
}

static uint16_t weight_half(const parts *p, int row, int k) {
    const lv_linear_source *s = part_of(p, &row);
    return s->quant == LV_QUANT_AWQ ? awq_half(s, row, k) : dense_half(s, row, k);
}

static void *bytes_of(lv_backend *be, const void *dev, size_t n_bytes) {
    void *host = malloc(n_bytes);
    memset(host, 0xA5, n_bytes);
    CHECK_OK(be->ops->download(be, host, dev, n_bytes));
    return host;
}

static lv_linear *load(lv_backend *be, const parts *p, int pair, lv_keep keep, lv_format want) {
    const lv_linear_options options = {.pair = pair, .keep = keep};
    lv_linear *w = NULL;
    CHECK_OK(be->ops->linear_load(be, p->at, p->n, &options, &w));
    CHECK(w->format == want, "[%d, %d]: format %d, wanted %d", p->n_out, p->n_in, w->format, want);
    return w;
}

// The first byte that differs, in words of the layout; prints nothing where none does.
static void check_records(const uint8_t *got, const uint8_t *want, const lv_linear *w,
                          const char *what) {
    const size_t n_records = (size_t)w->n_in / LV_RECORD_K;
    size_t n = (size_t)w->n_out / LV_TILE * n_records * LV_RECORD_BYTES, i = 0;
    while (i < n && got[i] == want[i]) {
        i++;
    }
    const size_t record = i / LV_RECORD_BYTES, byte = i % LV_RECORD_BYTES;
    CHECK(i == n, "%s [%d, %d] pair %d: tile %zu record %zu byte %zu: %02x, wanted %02x", what,
          w->n_out, w->n_in, w->pair, record / n_records, record % n_records, byte,
          i < n ? got[i] : 0, i < n ? want[i] : 0);
}

static uint8_t *expected_records(const parts *p, int pair) {
    const int n_records = p->n_in / LV_RECORD_K;
    uint8_t *records = calloc((size_t)(p->n_out / LV_TILE) * (size_t)n_records, LV_RECORD_BYTES);
    for (int place = 0; place < p->n_out; place++) {
        int row = lv_tile_row(place, pair);
        const lv_linear_source *s = part_of(p, &row);
        const int in_tile = place % LV_TILE, at = lv_record_scale(in_tile);
        for (int r = 0; r < n_records; r++) {
            uint8_t *record =
                records + ((ptrdiff_t)(place / LV_TILE) * n_records + r) * LV_RECORD_BYTES;
            const uint16_t scale = awq_scale(s, row, r);
            memcpy(record + LV_RECORD_SCALES + 2 * at, &scale, 2);
            record[LV_RECORD_ZEROS + at] = (uint8_t)awq_nibble(&s->qzeros, r, row);
            for (int k = 0; k < LV_RECORD_K; k++) {
                const int nibble = lv_record_nibble(in_tile, k);
                const int byte =
                    lv_record_byte(lv_record_lane(in_tile, k), lv_record_word(k)) + nibble / 2;
                const int q = awq_nibble(&s->qweight, (int64_t)r * LV_RECORD_K + k, row);
                record[byte] = (uint8_t)(record[byte] | q << (4 * (nibble % 2)));
            }
        }
    }
    return records;
}

// f16 rows [first, first + n) of the tile order against the definition.
static void check_halves(lv_backend *be, const void *dev, const parts *p, int pair, int first,
                         int n, const char *what) {
    uint16_t *got = bytes_of(be, dev, (size_t)n * (size_t)p->n_in * 2);
    int n_wrong = 0, at = -1;
    for (int i = 0; i < n * p->n_in; i++) {
        const int row = lv_tile_row(first + i / p->n_in, pair);
        if (got[i] != weight_half(p, row, i % p->n_in) && n_wrong++ == 0) {
            at = i;
        }
    }
    CHECK(n_wrong == 0, "%s [%d, %d] pair %d: %d wrong, first: place %d k %d: %g", what, p->n_out,
          p->n_in, pair, n_wrong, first + at / p->n_in, at % p->n_in,
          (double)lv_f16_to_f32(got[at < 0 ? 0 : at]));
    free(got);
}

static void free_parts(parts *p) {
    for (int i = 0; i < p->n; i++) {
        free_source(&p->at[i], 0);
    }
}

static parts awq_parts(int n, const int *widths, int n_in, int group) {
    parts p = {.n = n, .n_in = n_in};
    for (int i = 0; i < n; i++) {
        p.at[i] = awq_source(widths[i], n_in, group, false);
        p.n_out += widths[i];
    }
    return p;
}

static parts dense_parts(int n, const int *widths, int n_in, lv_dtype dtype) {
    parts p = {.n = n, .n_in = n_in};
    for (int i = 0; i < n; i++) {
        p.at[i] = dense_source(widths[i], n_in, dtype, 0, false);
        p.n_out += widths[i];
    }
    return p;
}

// AWQ -> records -> f16.
static void test_int4(lv_backend *be, int n, const int *widths, int n_in, int pair) {
    lv_cuda *cuda = (lv_cuda *)be;
    parts p = awq_parts(n, widths, n_in, LV_RECORD_K);
    lv_linear *w = load(be, &p, pair, LV_AS_STORED, LV_W_INT4);
    uint8_t *got = bytes_of(be, w->data, w->n_bytes), *want = expected_records(&p, w->pair);
    check_records(got, want, w, "AWQ -> records");
    void *halves = dev_bytes(be, (size_t)w->n_out * (size_t)n_in * 2);
    for (int first = 0; first < w->n_out; first += w->n_out / 2 / LV_TILE * LV_TILE) {
        const int rows = first ? w->n_out - first : w->n_out;
        CHECK_OK(lv_cuda_int4_expand(cuda, w, first, rows, halves));
        check_halves(be, halves, &p, w->pair, first, rows, "records -> f16");
        if (w->n_out == LV_TILE || first) {
            break;
        }
    }
    be->ops->free(be, halves);
    be->ops->linear_free(be, w);
    free(got);
    free(want);
    free_parts(&p);
}

// Dense -> records on the device are the records of what the host rounds.
static void test_round(lv_backend *be, int n, const int *widths, int n_in, int pair,
                       lv_dtype dtype) {
    parts p = dense_parts(n, widths, n_in, dtype), rounded = p;
    memset((void *)(uintptr_t)p.at[0].weight.data, 0, lv_dtype_bytes(dtype) * (size_t)n_in);
    for (int i = 0; i < n; i++) {
        CHECK_OK(lv_rtn_int4(&p.at[i], 2, &rounded.at[i]));
    }
    lv_linear *w = load(be, &p, pair, LV_AS_INT4, LV_W_INT4);
    uint8_t *got = bytes_of(be, w->data, w->n_bytes), *want = expected_records(&rounded, w->pair);
    check_records(got, want, w, lv_dtype_name(dtype));
    be->ops->linear_free(be, w);
    free(got);
    free(want);
    for (int i = 0; i < n; i++) {
        lv_rtn_free(&rounded.at[i]);
    }
    free_parts(&p);
}

static void test_int8(lv_backend *be, int n_out, int n_in, lv_dtype dtype) {
    parts p = dense_parts(1, &n_out, n_in, dtype);
    lv_linear *w = load(be, &p, 0, LV_AS_INT8, LV_W_INT8);
    int8_t *got = bytes_of(be, w->data, (size_t)n_out * (size_t)n_in);
    float *scales = host_f32(be, w->scales, (size_t)n_out);
    void *halves = dev_bytes(be, (size_t)n_out * (size_t)n_in * 2);
    CHECK_OK(lv_cuda_int8_expand((lv_cuda *)be, w, 16, n_out - 16, halves));
    uint16_t *expanded = bytes_of(be, halves, (size_t)(n_out - 16) * (size_t)n_in * 2);
    for (int row = 0; row < n_out; row++) {
        float max = 0;
        int n_wrong = 0;
        for (int k = 0; k < n_in; k++) {
            max = fmaxf(max, fabsf(lv_f16_to_f32(weight_half(&p, row, k))));
        }
        const float scale = max / 127.0f;
        for (int k = 0; k < n_in; k++) {
            const int q = (int)rintf(lv_f16_to_f32(weight_half(&p, row, k)) / scale);
            const ptrdiff_t at = (ptrdiff_t)row * n_in + k;
            n_wrong += got[at] != q;
            n_wrong += row >= 16 && expanded[at - 16 * n_in] != lv_f32_to_f16((float)q * scale);
        }
        CHECK(scales[row] == scale && n_wrong == 0,
              "int8 [%d, %d] row %d: scale %g of %g, %d wrong", n_out, n_in, row,
              (double)scales[row], (double)scale, n_wrong);
    }
    be->ops->free(be, halves);
    be->ops->linear_free(be, w);
    free(got);
    free(scales);
    free(expanded);
    free_parts(&p);
}

// Shapes that have no records, and dense rows: f16 in the order of the linear.
static void test_rows(lv_backend *be, parts p, int pair, const char *what) {
    lv_linear *w = load(be, &p, pair, LV_AS_STORED, LV_W_F16);
    check_halves(be, w->data, &p, w->pair, 0, w->n_out, what);
    be->ops->linear_free(be, w);
    free_parts(&p);
}

int main(void) {
    lv_backend *be = open_cuda();
    static const int qkv[] = {128, 64, 64}, gate_up[] = {40, 40}, wide_gate_up[] = {344, 344};
    static const int one[] = {16}, three[] = {48}, many[] = {2064}, odd[] = {24}, two[] = {40, 24};
    test_int4(be, 1, one, 128, 0);
    test_int4(be, 1, three, 384, 0);
    test_int4(be, 1, many, 256, 0);
    test_int4(be, 3, qkv, 512, 32);
    test_int4(be, 2, gate_up, 128, 40);
    test_int4(be, 2, wide_gate_up, 384, 344);
    static const lv_dtype dtypes[] = {LV_F32, LV_F16, LV_BF16};
    for (int d = 0; d < 3; d++) {
        test_round(be, 1, three, 384, 0, dtypes[d]);
        test_round(be, 3, qkv, 512, 32, dtypes[d]);
        test_round(be, 2, wide_gate_up, 128, 344, dtypes[d]);
        test_int8(be, 48, 384, dtypes[d]);
        test_int8(be, 32, 1280, dtypes[d]);
        test_rows(be, dense_parts(1, three, 588, dtypes[d]), 0, "rows of 588");
        test_rows(be, dense_parts(2, two, 33, dtypes[d]), 0, "rows of 33");
        test_rows(be, dense_parts(1, odd, 64, dtypes[d]), 0, "24 rows");
        test_rows(be, dense_parts(3, qkv, 72, dtypes[d]), 32, "q, k, v");
        test_rows(be, dense_parts(2, gate_up, 2056, dtypes[d]), 40, "gate, up");
    }
    test_rows(be, awq_parts(1, three, 96, 32), 0, "AWQ, groups of 32");
    test_rows(be, awq_parts(1, odd, 1024, 512), 0, "AWQ, 24 rows, groups of 512");
    test_rows(be, awq_parts(3, qkv, 128, 64), 32, "AWQ q, k, v, groups of 64");
    test_rows(be, awq_parts(2, wide_gate_up, 72, 8), 344, "AWQ gate, up, groups of 8");
    lv_backend_close(be);
    return check_done();
}

#endif
