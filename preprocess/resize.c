// Pillow's 8-bit bicubic resampling with antialiasing, bit for bit.
//
// Output pixel i of an axis of n_in samples resized to n_out, with scale = n_in / n_out,
// stretch = max(scale, 1), centre = (i + 0.5) * scale, support = 2 * stretch:
//   first = max(0, trunc(centre - support + 0.5)), end = min(n_in, trunc(centre + support + 0.5))
//   w[j]  = cubic((first + j - centre + 0.5) / stretch), divided by their sum, in f64
//   k[j]  = round(w[j] * 2^22), halves away from zero
//   pixel = clip((2^21 + sum k[j] * in[first + j]) >> 22, 0, 255)
// The horizontal pass comes first and stores bytes; where a size stays, its bytes stay.
// What a canvas shows around its picture has one colour, so its weights are added up once: a strip
// on a large square costs what the strip costs, and integers make it exact. Source: Pillow's
// documented filter, and its behaviour (tests/golden/pillow_goldens.py).
//
// Both passes add a weight times many bytes that lie side by side, which compilers turn into
// vectors: the vertical one a row's, the horizontal one a column's of ROWS rows, turned first.
// Sums fit 32 bits: an output's weights add up to 2^22, and cubic's negative lobes to under a
// quarter of that.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { BITS = 22, ROWS = 16, LANES = 3 * ROWS, MAX_SIDE = 1 << 24 };

// Not under ThreadSanitizer: which clone is taken is decided by code that runs, with its calls,
// before the sanitizer is set up.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__)
#define FAST_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FAST_CLONES
#endif

// One axis of a canvas: for each output of the window, the weights of the inputs that the picture
// covers, and the sum of those of the background.
typedef struct lv_axis {
    int n_out, stride;  // stride: room for the most weights of an output
    int begin, end;     // the picture's inputs that any output needs
    int *first, *count; // [n_out]
    int32_t *weight;    // [n_out, stride], 22 fractional bits
    int32_t *outside;   // [n_out] the background's weight
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

// The weights of output `out_index` as w[count], from input *first on. A size that stays is one
// weight of 1, which gives the very byte.
static int weigh(int out_index, int n_in, int64_t n_out, double *w, int *first) {
    if (n_in == n_out) {
        *first = out_index;
        w[0] = 1.0;
        return 1;
    }
    double scale = (double)n_in / (double)n_out, stretch = scale < 1.0 ? 1.0 : scale;
    double inverse = 1.0 / stretch, support = 2.0 * stretch, sum = 0.0;
    double centre = (out_index + 0.5) * scale;
    double low = centre - support + 0.5, high = centre + support + 0.5;
    *first = low < 0 ? 0 : (int)low;
    int count = (high > n_in ? n_in : (int)high) - *first;
    for (int j = 0; j < count; j++) {
        w[j] = cubic((j + *first - centre + 0.5) * inverse);
        sum += w[j];
    }
    for (int j = 0; j < count && sum != 0.0; j++) {
        w[j] /= sum;
    }
    return count;
}

// Keeps what lies in the picture's inputs [left, right).
static void axis_put(lv_axis *axis, int i, const double *w, int first, int count, int left,
                     int right) {
    int32_t *weight = axis->weight + (size_t)i * (size_t)axis->stride;
    axis->first[i] = first < left ? left : first;
    for (int j = 0; j < count; j++) {
        int32_t fixed = to_fixed(w[j]);
        if (first + j < left || first + j >= right) {
            axis->outside[i] += fixed;
            continue;
        }
        weight[axis->count[i]++] = fixed;
    }
    if (axis->count[i] > 0) {
        int end = axis->first[i] + axis->count[i];
        bool none = axis->begin == axis->end;
        axis->begin = none || axis->first[i] < axis->begin ? axis->first[i] : axis->begin;
        axis->end = none || end > axis->end ? end : axis->end;
    }
}

static void axis_free(lv_axis *axis) {
    free(axis->first);
    free(axis->count);
    free(axis->weight);
    free(axis->outside);
}

// Outputs [from, from + n) of an axis of n_in inputs resized to n_out; the picture covers [left,
// right) of the inputs. The caller frees the axis, also where this fails.
static lv_status axis_make(int n_in, int64_t n_out, int from, int n, int left, int right,
                           lv_axis *axis) {
    double scale = (double)n_in / (double)n_out;
    size_t n_taps = (size_t)ceil(2.0 * (scale < 1.0 ? 1.0 : scale)) * 2 + 1, n_weights;
    size_t stride = n_taps < (size_t)(right - left) ? n_taps : (size_t)(right - left);
    *axis = (lv_axis){.n_out = n, .stride = (int)stride};
    if (!lv_mul((size_t)n, stride, &n_weights)) {
        return lv_fail(LV_ELIMIT, "resize: %d pixels to %lld need too many weights", n_in,
                       (long long)n_out);
    }
    axis->first = calloc((size_t)n, sizeof(int));
    axis->count = calloc((size_t)n, sizeof(int));
    axis->outside = calloc((size_t)n, sizeof(int32_t));
    axis->weight = calloc(n_weights, sizeof(int32_t));
    double *w = calloc(n_taps, sizeof(double));
    bool enough = axis->first && axis->count && axis->outside && axis->weight && w;
    for (int i = 0; enough && i < n; i++) {
        int first, count = weigh(from + i, n_in, n_out, w, &first);
        axis_put(axis, i, w, first, count, left, right);
    }
    free(w);
    if (!enough) {
        return lv_fail(LV_ENOMEM, "resize: no memory for %zu weights", n_weights);
    }
    return LV_OK;
}

static inline uint8_t to_byte(int32_t sum) {
    int32_t value = (sum + (1 << (BITS - 1))) >> BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

// The needed columns [axis->begin, axis->end) of n <= ROWS rows, row_bytes apart, turned: [column,
// LANES], of which row r has 3 r and the two after.
static void turn_rows(const lv_axis *axis, const uint8_t *rgb, size_t row_bytes, int n,
                      uint8_t *turned) {
    int width = axis->end - axis->begin;
    for (int r = 0; r < n; r++) {
        const uint8_t *from = rgb + (size_t)r * row_bytes;
        uint8_t *to = turned + 3 * r;
        for (int i = 0; i < width; i++, from += 3, to += LANES) {
            memcpy(to, from, 3);
        }
    }
}

// One output's column of ROWS rows.
FAST_CLONES
static void resample_column(const uint8_t *restrict turned, const int32_t *restrict weight,
                            int count, const int32_t *restrict outside, uint8_t *restrict out) {
    int32_t sums[LANES];
    for (int k = 0; k < LANES; k++) {
        sums[k] = outside[k];
    }
    for (int j = 0; j < count; j++, turned += LANES) {
        for (int k = 0; k < LANES; k++) {
            sums[k] += turned[k] * weight[j];
        }
    }
    for (int k = 0; k < LANES; k++) {
        out[k] = to_byte(sums[k]);
    }
}

// Turned rows -> out [n, axis->n_out, 3].
static void resample_rows(const lv_axis *axis, const uint8_t *turned, const uint8_t *background,
                          int n, uint8_t *out) {
    const size_t row_bytes = (size_t)axis->n_out * 3;
    for (int i = 0; i < axis->n_out; i++) {
        const ptrdiff_t first = axis->count[i] > 0 ? axis->first[i] - axis->begin : 0;
        int32_t outside[LANES] = {0};
        uint8_t column[LANES];
        for (int k = 0; axis->outside[i] && k < LANES; k++) {
            outside[k] = axis->outside[i] * background[k % 3];
        }
        resample_column(turned + first * LANES, axis->weight + (size_t)i * (size_t)axis->stride,
                        axis->count[i], outside, column);
        uint8_t *to = out + (size_t)i * 3;
        for (int r = 0; r < n; r++, to += row_bytes) {
            memcpy(to, column + 3 * r, 3);
        }
    }
}

// A row without the picture, as the horizontal pass makes it.
static void make_blank(const lv_axis *axis, const uint8_t *background, uint8_t *out) {
    for (int i = 0; i < axis->n_out; i++) {
        int32_t sum = axis->outside[i];
        for (int j = 0; j < axis->count[i]; j++) {
            sum += axis->weight[(size_t)i * (size_t)axis->stride + (size_t)j];
        }
        for (int c = 0; c < 3; c++) {
            out[3 * i + c] = to_byte(sum * background[c]);
        }
    }
}

// rows [vertical->end - begin, horizontal->n_out, 3]: the picture's rows that the vertical pass
// needs.
static lv_status horizontal_pass(const lv_canvas *canvas, const lv_axis *horizontal,
                                 const lv_axis *vertical, uint8_t *rows) {
    const size_t width = (size_t)(horizontal->end - horizontal->begin);
    const size_t row_bytes = (size_t)canvas->image->width * 3;
    uint8_t *turned = calloc(width * LANES + 1, 1);
    if (!turned) {
        return lv_fail(LV_ENOMEM, "resize: no memory for rows of %zu pixels", width);
    }
    for (int y = vertical->begin; y < vertical->end; y += ROWS) {
        const int n = vertical->end - y < ROWS ? vertical->end - y : ROWS;
        const size_t left = width > 0 ? (size_t)(horizontal->begin - canvas->x) : 0;
        const uint8_t *from = canvas->image->rgb + (size_t)(y - canvas->y) * row_bytes + left * 3;
        turn_rows(horizontal, from, row_bytes, n, turned);
        resample_rows(horizontal, turned, canvas->background, n, rows);
        rows += (size_t)n * (size_t)horizontal->n_out * 3;
    }
    free(turned);
    return LV_OK;
}

FAST_CLONES
static void add_row(int32_t *restrict sums, const uint8_t *restrict row, int32_t weight, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sums[i] += row[i] * weight;
    }
}

FAST_CLONES
static void store_row(const int32_t *restrict sums, uint8_t *restrict out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = to_byte(sums[i]);
    }
}

static lv_status vertical_pass(const lv_axis *axis, const uint8_t *rows, const uint8_t *blank,
                               size_t row_bytes, uint8_t *out) {
    int32_t *sums = malloc(row_bytes * sizeof(int32_t));
    if (!sums) {
        return lv_fail(LV_ENOMEM, "resize: no memory for a row of %zu bytes", row_bytes);
    }
    for (int i = 0; i < axis->n_out; i++, out += row_bytes) {
        const int32_t *weight = axis->weight + (size_t)i * (size_t)axis->stride;
        memset(sums, 0, row_bytes * sizeof(int32_t));
        add_row(sums, blank, axis->outside[i], row_bytes);
        for (int j = 0; j < axis->count[i]; j++) {
            size_t row = (size_t)(axis->first[i] - axis->begin + j);
            add_row(sums, rows + row * row_bytes, weight[j], row_bytes);
        }
        store_row(sums, out, row_bytes);
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
    uint8_t *rows = NULL, *blank = NULL;
    size_t row_bytes = (size_t)window.width * 3, n_rows, n_bytes;
    int right = canvas->x + canvas->image->width, bottom = canvas->y + canvas->image->height;
    lv_status status;
    LV_TRY_DONE(
        axis_make(canvas->width, width, window.x, window.width, canvas->x, right, &horizontal));
    LV_TRY_DONE(
        axis_make(canvas->height, height, window.y, window.height, canvas->y, bottom, &vertical));
    n_rows = (size_t)(vertical.end - vertical.begin);
    blank = malloc(row_bytes);
    rows = lv_mul(n_rows + 1, row_bytes, &n_bytes) ? malloc(n_bytes) : NULL;
    if (!rows || !blank) {
        status =
            lv_fail(LV_ENOMEM, "resize: no memory for %zu rows of %d pixels", n_rows, window.width);
        goto done;
    }
    make_blank(&horizontal, canvas->background, blank);
    LV_TRY_DONE(horizontal_pass(canvas, &horizontal, &vertical, rows));
    status = vertical_pass(&vertical, rows, blank, row_bytes, out);
done:
    free(rows);
    free(blank);
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
