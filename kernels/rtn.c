#include "kernels/rtn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/files.h"

#define STRIP 128 // rows that are rounded together: 16 words of each row of qweight, a cache line

// Bit at which AWQ keeps a column of a word of eight.
static int shift_of(int column) {
    return 16 * (column & 1) + 4 * (column >> 1);
}

static float clamp_level(float x) {
    return fminf(fmaxf(x, 0), 15);
}

// One group w[128] -> q[128], *scale (f16) and *zero.
static void round_group(const float *w, uint8_t *q, uint16_t *scale, uint8_t *zero) {
    float min = 0, max = 0;
    for (int k = 0; k < LV_RTN_GROUP; k++) {
        min = fminf(min, w[k]);
        max = fmaxf(max, w[k]);
    }
    *scale = lv_f32_to_f16((max - min) / 15.0f);
    float s = lv_f16_to_f32(*scale);
    if (!(s > 0)) { // nothing but zeros, or too small for f16
        *scale = 0;
        *zero = 0;
        memset(q, 0, LV_RTN_GROUP);
        return;
    }
    float z = clamp_level(rintf(-min / s));
    for (int k = 0; k < LV_RTN_GROUP; k++) {
        q[k] = (uint8_t)clamp_level(rintf(w[k] / s) + z);
    }
    *zero = (uint8_t)z;
}

static void row_as_halves(const lv_linear_source *s, int64_t row, int k, float *w) {
    size_t at = ((size_t)row * (size_t)s->n_in + (size_t)k) * lv_dtype_bytes(s->weight.dtype);
    lv_to_f32(s->weight.dtype, (const uint8_t *)s->weight.data + at, LV_RTN_GROUP, w);
    for (int i = 0; i < LV_RTN_GROUP && s->weight.dtype != LV_F16; i++) {
        w[i] = lv_f16_to_f32(lv_f32_to_f16(w[i]));
    }
}

// Rows row0 .. row0 + n_rows - 1 of one group.
static void round_strip(const lv_linear_source *s, int row0, int n_rows, int group,
                        uint32_t *qweight, uint32_t *qzeros, uint16_t *scales) {
    uint8_t q[STRIP][LV_RTN_GROUP], zeros[STRIP];
    float w[LV_RTN_GROUP];
    const ptrdiff_t n_words = s->n_out / 8;
    for (int r = 0; r < n_rows; r++) {
        row_as_halves(s, row0 + r, group * LV_RTN_GROUP, w);
        round_group(w, q[r], &scales[(ptrdiff_t)group * s->n_out + row0 + r], &zeros[r]);
    }
    for (int word = 0; word < n_rows / 8; word++) {
        uint32_t bits = 0;
        for (int c = 0; c < 8; c++) {
            bits |= (uint32_t)zeros[word * 8 + c] << shift_of(c);
        }
        qzeros[group * n_words + row0 / 8 + word] = bits;
    }
    for (int k = 0; k < LV_RTN_GROUP; k++) {
        uint32_t *to = qweight + ((ptrdiff_t)group * LV_RTN_GROUP + k) * n_words + row0 / 8;
        for (int word = 0; word < n_rows / 8; word++) {
            uint32_t bits = 0;
            for (int c = 0; c < 8; c++) {
                bits |= (uint32_t)q[word * 8 + c][k] << shift_of(c);
            }
            to[word] = bits;
        }
    }
}

lv_status lv_rtn_int4(const lv_linear_source *source, int n_threads, lv_linear_source *out) {
    const int n_out = source->n_out, n_in = source->n_in;
    *out = (lv_linear_source){0};
    if (source->quant != LV_QUANT_NONE || n_in % LV_RTN_GROUP || n_out % 8) {
        return lv_fail(LV_EUNSUPPORTED,
                       "linear [%d, %d]: rounding to int4 wants dense weights, n_in a multiple of "
                       "%d and n_out of 8",
                       n_out, n_in, LV_RTN_GROUP);
    }
    const int n_groups = n_in / LV_RTN_GROUP, n_strips = (n_out + STRIP - 1) / STRIP;
    size_t n_words, n_scales = (size_t)n_groups * (size_t)n_out;
    if (!lv_mul((size_t)n_out / 8, (size_t)n_in, &n_words) || n_words > SIZE_MAX / 8) {
        return lv_fail(LV_EFORMAT, "linear [%d, %d]: too large", n_out, n_in);
    }
    uint32_t *qweight = malloc(n_words * 4 + n_scales / 2 + n_scales * 2);
    if (!qweight) {
        return lv_fail(LV_ENOMEM, "linear [%d, %d]: no memory to round it to int4", n_out, n_in);
    }
    uint32_t *qzeros = qweight + n_words;
    uint16_t *scales = (uint16_t *)(qzeros + n_scales / 8);
#pragma omp parallel for num_threads(n_threads)
    for (int strip = 0; strip < n_strips; strip++) {
        int row0 = strip * STRIP, n_rows = n_out - row0 < STRIP ? n_out - row0 : STRIP;
        for (int group = 0; group < n_groups; group++) {
            round_strip(source, row0, n_rows, group, qweight, qzeros, scales);
        }
    }
    *out = (lv_linear_source){.n_out = n_out,
                              .n_in = n_in,
                              .quant = LV_QUANT_AWQ,
                              .group_size = LV_RTN_GROUP,
                              .bias = source->bias};
    out->qweight = (lv_tensor){qweight, LV_I32, 2, {n_in, n_out / 8}};
    out->qzeros = (lv_tensor){qzeros, LV_I32, 2, {n_groups, n_out / 8}};
    out->scales = (lv_tensor){scales, LV_F16, 2, {n_groups, n_out}};
    return LV_OK;
}

void lv_rtn_free(lv_linear_source *source) {
    free((void *)(uintptr_t)source->qweight.data);
    *source = (lv_linear_source){0};
}
