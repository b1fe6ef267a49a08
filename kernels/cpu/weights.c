// Weights and tables: sources are checked and kept; dense weights are used where they lie, int4
// weights are repacked (int4.c) but for the reference, which reads them as stored.
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "kernels/cpu/cpu.h"

static bool is_float(lv_dtype dtype) {
    return dtype == LV_F32 || dtype == LV_F16 || dtype == LV_BF16;
}

static bool has_shape(const lv_tensor *t, int64_t d0, int64_t d1) {
    return t->data && t->n_dims == 2 && t->dims[0] == d0 && t->dims[1] == d1;
}

static lv_status check_awq(const lv_linear_source *s) {
    if (s->group_size <= 0 || s->group_size % 8 || s->n_in % s->group_size || s->n_out % 8) {
        return lv_fail(LV_EUNSUPPORTED,
                       "int4 linear [%d, %d]: group size %d: expected a multiple of 8 that divides "
                       "n_in, and n_out a multiple of 8",
                       s->n_out, s->n_in, s->group_size);
    }
    int n_groups = s->n_in / s->group_size;
    if (!has_shape(&s->qweight, s->n_in, s->n_out / 8) || s->qweight.dtype != LV_I32 ||
        !has_shape(&s->qzeros, n_groups, s->n_out / 8) || s->qzeros.dtype != LV_I32 ||
        !has_shape(&s->scales, n_groups, s->n_out) || s->scales.dtype != LV_F16) {
        return lv_fail(LV_EFORMAT,
                       "int4 linear [%d, %d]: qweight, qzeros or scales of another shape "
                       "or type",
                       s->n_out, s->n_in);
    }
    return LV_OK;
}

static lv_status check_source(const lv_linear_source *s, const lv_linear_source *first) {
    if (s->n_out <= 0 || s->n_in <= 0 || s->n_in != first->n_in || s->quant != first->quant ||
        (s->quant == LV_QUANT_AWQ ? s->group_size != first->group_size
                                  : s->weight.dtype != first->weight.dtype)) {
        return lv_fail(LV_EINVAL, "linear [%d, %d]: parts must share n_in, kind and type", s->n_out,
                       s->n_in);
    }
    if (s->bias.data && (!is_float(s->bias.dtype) || lv_tensor_count(&s->bias) != s->n_out)) {
        return lv_fail(LV_EFORMAT, "linear [%d, %d]: bias has another shape or type", s->n_out,
                       s->n_in);
    }
    if (s->quant == LV_QUANT_AWQ) {
        return check_awq(s);
    }
    if (!s->weight.data || !is_float(s->weight.dtype) ||
        lv_tensor_count(&s->weight) != (int64_t)s->n_out * s->n_in) {
        return lv_fail(LV_EFORMAT, "linear [%d, %d]: weight has another shape or type", s->n_out,
                       s->n_in);
    }
    return LV_OK;
}

// Biases of all parts in one row; parts without one count as 0.
static lv_status load_bias(lv_linear *linear) {
    bool any = false;
    for (int i = 0; i < linear->n_parts; i++) {
        any = any || linear->parts[i].bias.data;
    }
    if (!any) {
        return LV_OK;
    }
    linear->bias = calloc((size_t)linear->n_out, sizeof(float));
    if (!linear->bias) {
        return lv_fail(LV_ENOMEM, "bias: no memory for %d values", linear->n_out);
    }
    float *to = linear->bias;
    for (int i = 0; i < linear->n_parts; i++) {
        const lv_linear_source *s = &linear->parts[i];
        if (s->bias.data) {
            lv_to_f32(s->bias.dtype, s->bias.data, (size_t)s->n_out, to);
        }
        to += s->n_out;
    }
    return LV_OK;
}

static size_t source_bytes(const lv_linear_source *s) {
    return s->quant == LV_QUANT_AWQ ? lv_tensor_bytes(&s->qweight) + lv_tensor_bytes(&s->qzeros) +
                                          lv_tensor_bytes(&s->scales)
                                    : lv_tensor_bytes(&s->weight);
}

lv_status lv_cpu_linear_load(lv_backend *be, const lv_linear_source *parts, int n_parts,
                             const lv_linear_options *options, lv_linear **out) {
    (void)options;
    lv_cpu *cpu = (lv_cpu *)be;
    lv_status status = LV_OK;
    *out = NULL;
    if (n_parts < 1 || n_parts > 3) {
        return lv_fail(LV_EINVAL, "linear of %d parts: expected 1 to 3", n_parts);
    }
    lv_linear *linear = calloc(1, sizeof *linear);
    if (!linear) {
        return lv_fail(LV_ENOMEM, "linear: out of memory");
    }
    linear->n_in = parts[0].n_in;
    linear->n_parts = n_parts;
    for (int i = 0; i < n_parts; i++) {
        LV_TRY_DONE(check_source(&parts[i], &parts[0]));
        linear->parts[i] = parts[i];
        linear->n_bytes += source_bytes(&parts[i]);
        if (!lv_add(linear->n_out, parts[i].n_out, &linear->n_out)) {
            status = lv_fail(LV_EFORMAT, "linear: too many outputs");
            goto done;
        }
    }
    LV_TRY_DONE(load_bias(linear));
    if (parts[0].quant == LV_QUANT_AWQ && !cpu->reference) {
        LV_TRY_DONE(lv_int4_pack(parts, n_parts, cpu->n_threads, &linear->int4));
        linear->n_bytes = linear->int4.map_bytes;
    }
    *out = linear;
    linear = NULL;
done:
    lv_cpu_linear_free(be, linear);
    return status;
}

void lv_cpu_linear_free(lv_backend *be, lv_linear *linear) {
    (void)be;
    if (linear) {
        lv_cpu_unmap(linear->int4.q, linear->int4.map_bytes);
        free(linear->bias);
        free(linear);
    }
}

lv_linear_shape lv_cpu_linear_shape(const lv_linear *linear) {
    return (lv_linear_shape){linear->n_out, linear->n_in, linear->n_bytes};
}

lv_status lv_cpu_tensor_load(lv_backend *be, const lv_tensor *source, float **out) {
    int64_t n = lv_tensor_count(source);
    void *data;
    *out = NULL;
    if (!source->data || n <= 0 || !is_float(source->dtype)) {
        return lv_fail(LV_EINVAL, "tensor of %lld %s: expected f32, f16 or bf16", (long long)n,
                       lv_dtype_name(source->dtype));
    }
    LV_TRY(lv_cpu_alloc(be, (size_t)n * sizeof(float), &data));
    lv_to_f32(source->dtype, source->data, (size_t)n, data);
    *out = data;
    return LV_OK;
}

lv_status lv_cpu_embed(lv_backend *be, const lv_batch *batch, const lv_linear *table, void *out) {
    const lv_cpu *cpu = (const lv_cpu *)be;
    const lv_linear_source *s = &table->parts[0];
    if (table->n_parts != 1 || s->quant != LV_QUANT_NONE) {
        return lv_fail(LV_EUNSUPPORTED, "embedding table: expected one dense tensor");
    }
    size_t d = (size_t)s->n_in, row_bytes = d * lv_dtype_bytes(s->weight.dtype);
    for (int i = 0; i < batch->n_tokens; i++) {
        int64_t id = batch->ids[i];
        if (id == LV_ID_ROW) {
            continue;
        }
        id = id < 0 && -1 - id < cpu->n_sampled ? cpu->tokens[-1 - id] : id;
        if (id < 0 || id >= s->n_out) {
            return lv_fail(LV_EINVAL, "token %lld: the vocabulary has %d", (long long)id, s->n_out);
        }
        lv_to_f32(s->weight.dtype, (const uint8_t *)s->weight.data + (size_t)id * row_bytes, d,
                  (float *)out + (size_t)i * d);
    }
    return LV_OK;
}

lv_status lv_cpu_gather_rows(lv_backend *be, const void *source, const float *extra,
                             const int32_t *index, int n, int d, void *out) {
    (void)be;
    for (int i = 0; i < n; i++) {
        const float *row = index[i] < 0 ? extra : (const float *)source + (ptrdiff_t)index[i] * d;
        if (!row) {
            return lv_fail(LV_EINVAL, "gather_rows: row %d wants `extra`, which is absent", i);
        }
        memcpy((float *)out + (ptrdiff_t)i * d, row, (size_t)d * sizeof(float));
    }
    return LV_OK;
}
