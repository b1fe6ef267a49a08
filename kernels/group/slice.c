// A member's share of a linear's weights: rows of each part (LV_SPLIT_OUT), or columns
// (LV_SPLIT_IN). Runs of whole rows are borrowed where they lie; shorter ones are copied together.
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/group/group.h"

#define RECORD_ROWS 16 // what int4 and int8 weights are packed by, on both kinds of device
#define RECORD_K 128
#define LARGE (1 << 20) // values that are worth waking threads for
#define MAX_THREADS 8

// --- units --------------------------------------------------------------------------------------

lv_status lv_units_share(lv_units units, int n, int *first) {
    int run = RECORD_K;
    while (run > 1 && run / 2 * units.width % RECORD_K == 0) {
        run /= 2; // units that make RECORD_K values, or a multiple
    }
    if (units.n % run || units.n / run < n) {
        run = 1;
    }
    if (units.n < n || units.width < 1) {
        return lv_fail(LV_EUNSUPPORTED, "%d KV heads of %d cannot be split over %d devices",
                       units.n, units.width, n);
    }
    for (int j = 0; j <= n; j++) {
        first[j] = (int)(((int64_t)units.n / run * j + n - 1) / n) * run;
    }
    return LV_OK;
}

// --- checks -------------------------------------------------------------------------------------

// Of one member's share: n_rows, n_columns.
static lv_status check_awq(const lv_linear_source *s, int n_rows, int n_columns, int n) {
    if (n_columns % s->group_size) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%d int4 columns over %d devices: %d on one, which is no multiple of their "
                       "groups of %d",
                       s->n_in, n, n_columns, s->group_size);
    }
    if (n_rows % 8) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%d int4 rows over %d devices: %d on one, which is no multiple of 8",
                       s->n_out, n, n_rows);
    }
    return LV_OK;
}

static bool can_pack(int n_out, int n_in) {
    return n_out % RECORD_ROWS == 0 && n_in % RECORD_K == 0;
}

// Weights that would be packed as a whole must be so in shares: silently they would take four times
// the memory, or be rounded elsewhere.
static lv_status check_packing(const lv_linear_source *first, lv_keep keep, const int whole[2],
                               const int share[2], int n) {
    const bool packs =
        first->quant == LV_QUANT_AWQ ? first->group_size == RECORD_K : keep != LV_AS_STORED;
    if (packs && can_pack(whole[0], whole[1]) && !can_pack(share[0], share[1])) {
        return lv_fail(LV_EUNSUPPORTED,
                       "quantised weights [%d, %d] over %d devices: [%d, %d] on one; expected "
                       "multiples of %d rows and %d columns",
                       whole[0], whole[1], n, share[0], share[1], RECORD_ROWS, RECORD_K);
    }
    return LV_OK;
}

// `count` of the units.
static lv_status check_share(const lv_linear_source *parts, int n_parts,
                             const lv_linear_options *options, int count, int n) {
    const bool by_columns = options->split == LV_SPLIT_IN;
    const int n_units = options->units.n;
    int whole[2] = {0, parts[0].n_in}, share[2] = {0, parts[0].n_in};
    if (by_columns) {
        share[1] = parts[0].n_in / n_units * count;
    }
    for (int i = 0; i < n_parts; i++) {
        const int side = by_columns ? parts[i].n_in : parts[i].n_out;
        if (side % n_units) {
            return lv_fail(LV_EINVAL, "linear [%d, %d] of %d units", parts[i].n_out, parts[i].n_in,
                           n_units);
        }
        const int rows = by_columns ? parts[i].n_out : parts[i].n_out / n_units * count;
        if (parts[i].quant == LV_QUANT_AWQ) {
            LV_TRY(check_awq(&parts[i], rows, share[1], n));
        }
        whole[0] += parts[i].n_out;
        share[0] += rows;
    }
    return check_packing(&parts[0], options->keep, whole, share, n);
}

lv_status lv_slices_check(const lv_linear_source *parts, int n_parts,
                          const lv_linear_options *options, int n, lv_split *out) {
    int first[LV_MAX_MEMBERS + 1];
    *out = options->split;
    if (options->split == LV_SPLIT_NONE) {
        return LV_OK;
    }
    lv_status status = lv_units_share(options->units, n, first);
    for (int j = 0; j < n && status == LV_OK; j++) {
        status = check_share(parts, n_parts, options, first[j + 1] - first[j], n);
    }
    if (options->split == LV_SPLIT_HEAD) { // every member can do all of it; parts must be alike
        const int rows = parts[0].n_out;
        *out = status == LV_OK && rows % (RECORD_ROWS * n) == 0 && options->units.n == rows
                   ? LV_SPLIT_OUT
                   : LV_SPLIT_NONE;
        return LV_OK;
    }
    return status;
}

// --- shares -------------------------------------------------------------------------------------

// Columns [first, first + n) of a matrix [dims[0], dims[1]].
static lv_status copy_columns(lv_slices *to, const lv_tensor *t, int64_t first, int64_t n,
                              lv_tensor *out) {
    const size_t size = lv_dtype_bytes(t->dtype), from_bytes = (size_t)t->dims[1] * size;
    const size_t row_bytes = (size_t)n * size;
    const size_t n_bytes = (size_t)t->dims[0] * row_bytes;
    const int slot = to->n_copies++;
    if (!to->copies.data[slot] || n_bytes > to->copies.n_bytes[slot]) {
        free(to->copies.data[slot]);
        to->copies.data[slot] = malloc(n_bytes + 1);
        to->copies.n_bytes[slot] = n_bytes;
    }
    uint8_t *copy = to->copies.data[slot];
    if (!copy) {
        return lv_fail(LV_ENOMEM, "out of memory for a share of weights");
    }
    const uint8_t *from = (const uint8_t *)t->data + (size_t)first * size;
#pragma omp parallel for num_threads(to->n_threads) if (t->dims[0] * n > LARGE)
    for (int64_t i = 0; i < t->dims[0]; i++) {
        memcpy(copy + (size_t)i * row_bytes, from + (size_t)i * from_bytes, row_bytes);
    }
    *out = *t;
    out->data = copy;
    out->dims[1] = n;
    return LV_OK;
}

// Rows [first, first + n) of a tensor, where they lie.
static lv_tensor take_rows(const lv_tensor *t, int64_t first, int64_t n) {
    lv_tensor out = *t;
    if (t->data) {
        const size_t row_bytes = lv_tensor_bytes(t) / (size_t)t->dims[0];
        out.data = (const uint8_t *)t->data + (size_t)first * row_bytes;
        out.dims[0] = n;
    }
    return out;
}

static lv_status slice_rows(lv_slices *to, const lv_linear_source *s, int first, int n,
                            lv_linear_source *out) {
    out->n_out = n;
    out->bias = take_rows(&s->bias, first, n);
    if (s->quant == LV_QUANT_NONE) {
        out->weight = take_rows(&s->weight, first, n);
        return LV_OK;
    }
    LV_TRY(copy_columns(to, &s->qweight, first / 8, n / 8, &out->qweight));
    LV_TRY(copy_columns(to, &s->qzeros, first / 8, n / 8, &out->qzeros));
    return copy_columns(to, &s->scales, first, n, &out->scales);
}

static lv_status slice_columns(lv_slices *to, const lv_linear_source *s, int first, int n,
                               lv_linear_source *out) {
    out->n_in = n;
    if (first > 0) { // the sum has it once
        out->bias = (lv_tensor){0};
    }
    if (s->quant == LV_QUANT_NONE) {
        return copy_columns(to, &s->weight, first, n, &out->weight);
    }
    const int group = s->group_size;
    out->qweight = take_rows(&s->qweight, first, n);
    out->qzeros = take_rows(&s->qzeros, first / group, n / group);
    out->scales = take_rows(&s->scales, first / group, n / group);
    return LV_OK;
}

lv_status lv_slices_make(const lv_linear_source *parts, int n_parts,
                         const lv_linear_options *options, lv_split split, int member, int n,
                         lv_slices *out) {
    int first[LV_MAX_MEMBERS + 1] = {0};
    lv_status status = LV_OK;
    const int threads = lv_cpu_cores() / n;
    *out = (lv_slices){.options = *options,
                       .copies = out->copies,
                       .n_threads = threads < 1             ? 1
                                    : threads > MAX_THREADS ? MAX_THREADS
                                                            : threads};
    out->options.split = LV_SPLIT_NONE;
    memcpy(out->parts, parts, (size_t)n_parts * sizeof *parts);
    if (split != LV_SPLIT_NONE) {
        LV_TRY(lv_units_share(options->units, n, first));
    }
    const int from = first[member], count = first[member + 1] - from;
    for (int i = 0; split != LV_SPLIT_NONE && i < n_parts && status == LV_OK; i++) {
        const lv_linear_source *s = &parts[i];
        const int each = (split == LV_SPLIT_IN ? s->n_in : s->n_out) / options->units.n;
        status = (split == LV_SPLIT_IN ? slice_columns : slice_rows)(out, s, from * each,
                                                                     count * each, &out->parts[i]);
    }
    if (split == LV_SPLIT_OUT && options->pair == parts[0].n_out) { // pairs across two parts
        out->options.pair = out->parts[0].n_out;
    }
    return status;
}

void lv_copies_free(lv_copies *copies) {
    for (int i = 0; i < LV_MAX_COPIES; i++) {
        free(copies->data[i]);
    }
    *copies = (lv_copies){0};
}
