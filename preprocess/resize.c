// Pillow's 8-bit bicubic resampling with antialiasing, bit for bit.
//
// Output pixel i of an axis of n_in samples resized to n_out, with scale = n_in / n_out,
// stretch = max(scale, 1), centre = (i + 0.5) * scale, support = 2 * stretch:
//   first = max(0, trunc(centre - support + 0.5)), end = min(n_in, trunc(centre + support + 0.5))
//   w[j]  = cubic((first + j - centre + 0.5) / stretch), divided by their sum, in f64
//   k[j]  = round(w[j] * 2^22), halves away from zero
//   pixel = clip((2^21 + sum k[j] * in[first + j]) >> 22, 0, 255)
// The horizontal pass comes first and stores bytes; each pass is skipped where its size stays.
// Source: Pillow's documented filter, and its behaviour (tests/golden/pillow_goldens.py).
//
// A dot product of bytes with 23-bit weights is made from two of 16 bits (k = hi * 2^11 + lo), the
// form that compilers turn into one multiply-and-add instruction for 8 or 16 products.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { BITS = 22, LOW_BITS = 11, CHUNK = 2048, MAX_SIDE = 1 << 24 };

#if defined(__x86_64__) && defined(__GNUC__)
#define FAST_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FAST_CLONES
#endif

// One axis: for each output of the window, which inputs it needs and their weights.
typedef struct lv_axis {
    int n_out, stride;  // stride: room for the most weights of an output
    int begin, end;     // the inputs that any output needs
    int *first, *count; // [n_out]
    int32_t *weight;    // [n_out, stride], 22 fractional bits
    int16_t *hi, *lo;   // [n_out, stride], weight = hi * 2^11 + lo, 0 <= lo < 2^11
    bool same;          // the size stays: output i is input begin + i
} lv_axis;

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

static int32_t to_fixed(double w) {
    double scaled = w * (1 << BITS);
    return (int32_t)(w < 0 ? scaled - 0.5 : scaled + 0.5);
}

static void weigh(lv_axis *axis, int i, int out_index, int n_in, double scale, double *w) {
    double stretch = scale < 1.0 ? 1.0 : scale, inverse = 1.0 / stretch, support = 2.0 * stretch;
    double centre = (out_index + 0.5) * scale, sum = 0.0;
    double low = centre - support + 0.5, high = centre + support + 0.5;
    int first = low < 0 ? 0 : (int)low;
    int count = (high > n_in ? n_in : (int)high) - first;
    for (int j = 0; j < count; j++) {
        w[j] = cubic((j + first - centre + 0.5) * inverse);
        sum += w[j];
    }
    int32_t *weight = axis->weight + (size_t)i * (size_t)axis->stride;
    for (int j = 0; j < count; j++) {
        weight[j] = to_fixed(sum != 0.0 ? w[j] / sum : w[j]);
        axis->hi[weight - axis->weight + j] = (int16_t)(weight[j] >> LOW_BITS);
        axis->lo[weight - axis->weight + j] = (int16_t)(weight[j] & ((1 << LOW_BITS) - 1));
    }
    axis->first[i] = first;
    axis->count[i] = count;
}

static void axis_free(lv_axis *axis) {
    free(axis->first);
    free(axis->count);
    free(axis->weight);
    free(axis->hi);
    free(axis->lo);
}

// Outputs [from, from + n) of an axis resized from n_in to n_out.
static lv_status axis_make(int n_in, int64_t n_out, int64_t from, int n, lv_axis *axis) {
    *axis = (lv_axis){.n_out = n, .same = n_in == n_out};
    if (axis->same) {
        axis->begin = (int)from;
        axis->end = (int)from + n;
        return LV_OK;
    }
    double scale = (double)n_in / (double)n_out;
    axis->stride = (int)ceil(2.0 * (scale < 1.0 ? 1.0 : scale)) * 2 + 1;
    size_t n_weights;
    if (!lv_mul((size_t)n, (size_t)axis->stride, &n_weights)) {
        return lv_fail(LV_ELIMIT, "resize: %d pixels to %lld need too many weights", n_in,
                       (long long)n_out);
    }
    axis->first = calloc((size_t)n, sizeof(int));
    axis->count = calloc((size_t)n, sizeof(int));
    axis->weight = calloc(n_weights, sizeof(int32_t));
    axis->hi = calloc(n_weights, sizeof(int16_t));
    axis->lo = calloc(n_weights, sizeof(int16_t));
    double *w = calloc((size_t)axis->stride, sizeof(double));
    if (!axis->first || !axis->count || !axis->weight || !axis->hi || !axis->lo || !w) {
        free(w);
        axis_free(axis);
        return lv_fail(LV_ENOMEM, "resize: no memory for %zu weights", n_weights);
    }
    for (int i = 0; i < n; i++) {
        weigh(axis, i, (int)(from + i), n_in, scale, w);
    }
    axis->begin = axis->first[0];
    axis->end = axis->first[n - 1] + axis->count[n - 1];
    free(w);
    return LV_OK;
}

static uint8_t to_byte(int64_t sum) {
    int64_t value = (sum + (1 << (BITS - 1))) >> BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

// A row's columns [axis->begin, axis->end) as three planes of 16-bit samples.
static void fill_background(const lv_canvas *canvas, const lv_axis *axis, int16_t *planes) {
    int width = axis->end - axis->begin;
    for (int c = 0; c < 3; c++, planes += width) {
        for (int x = 0; x < width; x++) {
            planes[x] = canvas->background[c];
        }
    }
}

// The columns that the picture covers, [left, right), of row y of the canvas.
static void load_row(const lv_canvas *canvas, const lv_axis *axis, int y, int left, int right,
                     int16_t *planes) {
    const lv_image *image = canvas->image;
    size_t at = (size_t)(y - canvas->y) * (size_t)image->width + (size_t)(left - canvas->x);
    const uint8_t *restrict rgb = image->rgb + at * 3;
    int16_t *restrict red = planes + (left - axis->begin);
    int16_t *restrict green = red + (axis->end - axis->begin);
    int16_t *restrict blue = green + (axis->end - axis->begin);
    for (int i = 0; i < right - left; i++) {
        red[i] = rgb[3 * i];
        green[i] = rgb[3 * i + 1];
        blue[i] = rgb[3 * i + 2];
    }
}

FAST_CLONES
static void resample_row(const lv_axis *axis, const int16_t *planes, int from_out, int to_out,
                         uint8_t *out) {
    int width = axis->end - axis->begin;
    for (int i = from_out; i < to_out; i++) {
        const int16_t *hi = axis->hi + (size_t)i * (size_t)axis->stride;
        const int16_t *lo = axis->lo + (size_t)i * (size_t)axis->stride;
        const int16_t *in = planes + (axis->first[i] - axis->begin);
        for (int c = 0; c < 3; c++, in += width) {
            int64_t sum = 0;
            for (int from = 0; from < axis->count[i]; from += CHUNK) { // so that 32 bits suffice
                int end = axis->count[i] - from < CHUNK ? axis->count[i] : from + CHUNK;
                int32_t high = 0, low = 0;
                for (int j = from; j < end; j++) {
                    high += in[j] * hi[j];
                    low += in[j] * lo[j];
                }
                sum += (int64_t)high * (1 << LOW_BITS) + low;
            }
            out[3 * i + c] = to_byte(sum);
        }
    }
}

static void make_row(const lv_axis *axis, const int16_t *planes, int from, int to, uint8_t *out) {
    if (!axis->same) {
        resample_row(axis, planes, from, to, out);
        return;
    }
    for (int c = 0; c < 3; c++) {
        for (int i = from; i < to; i++) {
            out[3 * i + c] = (uint8_t)planes[c * axis->n_out + i];
        }
    }
}

// Outputs [*from, *to) of the axis are those that see any of the inputs [left, right).
static void find_outputs(const lv_axis *axis, int left, int right, int *from, int *to) {
    *from = 0;
    *to = axis->n_out;
    if (axis->same) {
        *from = left - axis->begin;
        *to = right - axis->begin;
        return;
    }
    while (*from < *to && axis->first[*from] + axis->count[*from] <= left) {
        ++*from;
    }
    while (*to > *from && axis->first[*to - 1] >= right) {
        --*to;
    }
}

// rows [vertical->end - begin, horizontal->n_out, 3]: what the vertical pass reads. What sees only
// the background is computed once, so a strip on a large square costs what the strip costs.
static lv_status horizontal_pass(const lv_canvas *canvas, const lv_axis *horizontal,
                                 const lv_axis *vertical, uint8_t *rows) {
    size_t width = (size_t)(horizontal->end - horizontal->begin);
    size_t row_bytes = (size_t)horizontal->n_out * 3;
    int16_t *planes = malloc(width * 3 * sizeof(int16_t));
    uint8_t *blank = malloc(row_bytes);
    if (!planes || !blank) {
        free(planes);
        free(blank);
        return lv_fail(LV_ENOMEM, "resize: no memory for a row of %zu pixels", width);
    }
    int left = canvas->x, right = canvas->x + canvas->image->width, from, to;
    left = left < horizontal->begin ? horizontal->begin : left;
    right = right > horizontal->end ? horizontal->end : right;
    right = right < left ? left : right;
    find_outputs(horizontal, left, right, &from, &to);
    fill_background(canvas, horizontal, planes);
    make_row(horizontal, planes, 0, horizontal->n_out, blank);
    for (int y = vertical->begin; y < vertical->end; y++, rows += row_bytes) {
        memcpy(rows, blank, row_bytes);
        if (y >= canvas->y && y - canvas->y < canvas->image->height) {
            load_row(canvas, horizontal, y, left, right, planes);
            make_row(horizontal, planes, from, to, rows);
        }
    }
    free(planes);
    free(blank);
    return LV_OK;
}

FAST_CLONES
static void add_row(int32_t *restrict sums, const uint8_t *restrict row, int32_t weight, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sums[i] += row[i] * weight;
    }
}

static lv_status vertical_pass(const lv_axis *axis, const uint8_t *rows, size_t row_bytes,
                               uint8_t *out) {
    int32_t *sums = malloc(row_bytes * sizeof(int32_t));
    if (!sums) {
        return lv_fail(LV_ENOMEM, "resize: no memory for a row of %zu bytes", row_bytes);
    }
    for (int i = 0; i < axis->n_out; i++, out += row_bytes) {
        const int32_t *weight = axis->weight + (size_t)i * (size_t)axis->stride;
        const uint8_t *in = rows + (size_t)(axis->first[i] - axis->begin) * row_bytes;
        memset(sums, 0, row_bytes * sizeof(int32_t));
        for (int j = 0; j < axis->count[i]; j++) {
            add_row(sums, in + (size_t)j * row_bytes, weight[j], row_bytes);
        }
        for (size_t x = 0; x < row_bytes; x++) {
            out[x] = to_byte(sums[x]);
        }
    }
    free(sums);
    return LV_OK;
}

lv_status lv_canvas_resize(const lv_canvas *canvas, int64_t width, int64_t height, lv_window window,
                           uint8_t *out) {
    if (canvas->width > MAX_SIDE || canvas->height > MAX_SIDE || width > INT32_MAX ||
        height > INT32_MAX) {
        return lv_fail(LV_ELIMIT, "resize: %d x %d to %lld x %lld passes the greatest side",
                       canvas->width, canvas->height, (long long)width, (long long)height);
    }
    lv_axis horizontal = {0}, vertical = {0};
    uint8_t *rows = NULL;
    size_t row_bytes = (size_t)window.width * 3, n_bytes;
    lv_status status = axis_make(canvas->width, width, window.x, window.width, &horizontal);
    if (status != LV_OK) {
        return status;
    }
    LV_TRY_DONE(axis_make(canvas->height, height, window.y, window.height, &vertical));
    if (vertical.same) {
        status = horizontal_pass(canvas, &horizontal, &vertical, out);
        goto done;
    }
    rows = lv_mul((size_t)(vertical.end - vertical.begin), row_bytes, &n_bytes) ? malloc(n_bytes)
                                                                                : NULL;
    if (!rows) {
        status = lv_fail(LV_ENOMEM, "resize: no memory for %d rows of %d pixels",
                         vertical.end - vertical.begin, window.width);
        goto done;
    }
    LV_TRY_DONE(horizontal_pass(canvas, &horizontal, &vertical, rows));
    status = vertical_pass(&vertical, rows, row_bytes, out);
done:
    free(rows);
    axis_free(&horizontal);
    axis_free(&vertical);
    return status;
}

lv_status lv_image_resize(const lv_image *image, int width, int height, lv_image *out) {
    *out = (lv_image){0};
    if (width < 1 || height < 1 || image->width < 1 || image->height < 1) {
        return lv_fail(LV_EINVAL, "resize: %d x %d to %d x %d: every side must be 1 or more",
                       image->width, image->height, width, height);
    }
    LV_TRY(lv_image_new(width, height, out));
    lv_canvas canvas = {.image = image, .width = image->width, .height = image->height};
    lv_status status =
        lv_canvas_resize(&canvas, width, height, (lv_window){0, 0, width, height}, out->rgb);
    if (status != LV_OK) {
        lv_image_free(out);
    }
    return status;
}
