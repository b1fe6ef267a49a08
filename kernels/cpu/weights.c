// Weights and tables: sources are checked and kept; dense weights are used where they lie, int4
// weights are repacked (int4.c) but for the reference, which reads them as stored. Dense weights
// that are to be int4 are rounded to what AWQ would store, and go the same way.
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "kernels/cpu/cpu.h"
#include "kernels/rtn.h"

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

static bool rounds(const lv_linear_source *parts, const lv_linear_options *options,
                   const lv_linear *linear) {
    bool fits = options && options->keep == LV_AS_INT4 && parts[0].quant == LV_QUANT_NONE &&
                linear->n_in % LV_RTN_GROUP == 0 && linear->n_out % 16 == 0;
    for (int i = 0; i < linear->n_parts; i++) {
        fits = fits && parts[i].n_out % 8 == 0;
    }
    return fits;
}

static void free_parts(lv_linear *linear) {
    for (int i = 0; linear->owns_parts && i < linear->n_parts; i++) {
        lv_rtn_free(&linear->parts[i]);
    }
    linear->owns_parts = false;
}

// The linear's parts, as given or rounded.
static lv_status take_parts(const lv_cpu *cpu, const lv_linear_source *parts,
                            const lv_linear_options *options, lv_linear *linear) {
    if (rounds(parts, options, linear)) {
        linear->owns_parts = true;
        for (int i = 0; i < linear->n_parts; i++) {
            LV_TRY(lv_rtn_int4(&parts[i], cpu->n_threads, &linear->parts[i]));
        }
    } else {
        memcpy(linear->parts, parts, (size_t)linear->n_parts * sizeof *parts);
    }
    for (int i = 0; i < linear->n_parts; i++) {
        linear->n_bytes += source_bytes(&linear->parts[i]);
    }
    return LV_OK;
}

lv_status lv_cpu_linear_load(lv_backend *be, const lv_linear_source *parts, int n_parts,
                             const lv_linear_options *options, lv_linear **out) {
    lv_cpu *cpu = (lv_cpu *)be;
    lv_status status = LV_OK;
    *out = NULL;
    int n_out;
    LV_TRY(lv_check_sources(parts, n_parts, &n_out));
    lv_linear *linear = calloc(1, sizeof *linear);
    if (!linear) {
        return lv_fail(LV_ENOMEM, "linear: out of memory");
    }
    linear->n_out = n_out;
    linear->n_in = parts[0].n_in;
    linear->n_parts = n_parts;
    LV_TRY_DONE(take_parts(cpu, parts, options, linear));
    LV_TRY_DONE(load_bias(linear));
    if (linear->parts[0].quant == LV_QUANT_AWQ && !cpu->reference) {
        LV_TRY_DONE(lv_int4_pack(linear->parts, n_parts, cpu->n_threads, &linear->int4));
        linear->n_bytes = linear->int4.map_bytes;
        free_parts(linear); // int4 has it all
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
        free_parts(linear);
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
    LV_TRY(lv_check_tensor(source));
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
