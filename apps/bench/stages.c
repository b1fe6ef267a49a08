// The stages of one answer, each timed through the same functions that answer real questions: here
// loading, preprocessing and encoding.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/bench/bench.h"
#include "preprocess/preprocess.h"

#define MAX_RUNS 9

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double bench_used_bytes(const bench *b) {
    lv_memory memory;
    return b->be->ops->memory(b->be, &memory) == LV_OK ? (double)memory.used_bytes : 0;
}

const char *bench_kv_name(lv_dtype kv) {
    return kv == LV_NONE ? "default" : lv_dtype_name(kv);
}

bench_row *bench_add_row(bench *b, const char *name, double seconds, double count, const char *unit,
                         const char *detail, ...) {
    bench_report *report = b->report;
    bench_row *row = &report->rows[report->n_rows];
    report->n_rows += report->n_rows < BENCH_MAX_ROWS - 1;
    *row = (bench_row){.name = name, .ms = seconds * 1e3, .unit = unit};
    row->rate = seconds > 0 ? count / seconds : 0;
    va_list args;
    va_start(args, detail);
    vsnprintf(row->detail, sizeof row->detail, detail, args);
    va_end(args);
    fprintf(stderr, "%s, %s: %.3f ms\n", name, row->detail, row->ms);
    return row;
}

lv_status bench_make_picture(uint8_t **out_rgb) {
    const size_t n = (size_t)BENCH_WIDTH * BENCH_HEIGHT * 3;
    *out_rgb = malloc(n);
    for (size_t i = 0; *out_rgb && i < n; i++) {
        (*out_rgb)[i] = (uint8_t)(i * 7 % 251);
    }
    return *out_rgb ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
}

static const char *plural(int n) {
    return n == 1 ? "" : "s";
}

// --- preprocessing ------------------------------------------------------------------------------

static lv_status run_preprocess(bench *b) {
    lv_image image = {BENCH_WIDTH, BENCH_HEIGHT, NULL};
    double seconds[5];
    int n_tiles = 0;
    lv_status status = bench_make_picture(&image.rgb);
    for (int run = 0; run < 5 && status == LV_OK; run++) {
        lv_tiles tiles = {0};
        double start = bench_now();
        status = lv_tiles_make(&image, &b->config->image, &tiles);
        seconds[run] = bench_now() - start;
        n_tiles = tiles.n_tiles;
        lv_tiles_free(&tiles);
    }
    if (status == LV_OK) {
        bench_add_row(b, "preprocess", bench_median(seconds, 5), 1, "pictures/s",
                      "1024x899 -> %d tile%s", n_tiles, plural(n_tiles));
    }
    free(image.rgb);
    return status;
}

// --- encoding -----------------------------------------------------------------------------------

lv_picture_shape bench_shape(const bench *b, int n_tiles) {
    const int size = b->config->vision.image_size, grid = n_tiles - 1;
    lv_picture_shape shape = {n_tiles, lv_vision_rows(b->vision), 1, 1, size, size};
    if (n_tiles == 5) { // as a picture of 1024 x 899 is cut
        shape.grid_width = shape.grid_height = 2;
        shape.original_width = BENCH_WIDTH;
        shape.original_height = BENCH_HEIGHT;
    } else if (n_tiles > 1) {
        shape.grid_width = grid;
        shape.original_width = grid * size;
    }
    return shape;
}

// Multiplications and additions of the tower, n tiles.
static double vision_flops(const lv_vision_config *c, int n_tiles) {
    double side = c->image_size / c->patch_size, rows = side * side + 1, d = c->d_model;
    double linears = 2 * rows * (4 * d * d + 2 * d * c->d_ff);
    double attention = 4 * rows * rows * d;
    return n_tiles * (c->n_run_layers * (linears + attention) +
                      2 * rows * d * 3 * c->patch_size * c->patch_size);
}

static double projector_flops(const bench *b, int n_rows) {
    const lv_config *c = b->config;
    return 2.0 * n_rows * c->projector_hidden * (c->vision.d_model + c->text.d_model);
}

// What feeding the pixels alone takes: part of the tower's time, and a matter of the bus.
static lv_status time_upload(bench *b, const uint8_t *rgb, size_t n_bytes, double *out) {
    const lv_ops *ops = b->be->ops;
    void *dev = NULL;
    double seconds[5];
    LV_TRY(ops->alloc(b->be, n_bytes, &dev));
    lv_status status = LV_OK;
    for (int run = 0; run < 5 && status == LV_OK; run++) {
        const double start = bench_now();
        status = ops->upload(b->be, dev, rgb, n_bytes);
        status = status == LV_OK ? ops->sync(b->be) : status;
        seconds[run] = bench_now() - start;
    }
    ops->free(b->be, dev);
    *out = bench_median(seconds, 5);
    return status;
}

// CLIP, and the projector unless the model's pictures cannot have that many tiles.
static lv_status encode_once(bench *b, const uint8_t *rgb, int n_tiles, void *out) {
    const lv_picture_shape shape = bench_shape(b, n_tiles);
    const void *features;
    LV_TRY(lv_vision_encode(b->vision, rgb, n_tiles, &features));
    if (out) {
        LV_TRY(lv_projector_run(b->projector, features, &shape, out));
    }
    return b->be->ops->sync(b->be);
}

static lv_status encode_tiles(bench *b, int n_tiles) {
    const lv_vision_config *c = &b->config->vision;
    const lv_picture_shape shape = bench_shape(b, n_tiles);
    const size_t n = (size_t)n_tiles * 3 * (size_t)c->image_size * (size_t)c->image_size;
    const bool projects = n_tiles > 1 || !b->config->is_next;
    const int n_runs = b->be->is_gpu ? MAX_RUNS : 3;
    uint8_t *rgb = malloc(n);
    void *out = NULL;
    double seconds[MAX_RUNS], upload = 0;
    lv_status status = rgb ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    for (size_t i = 0; rgb && i < n; i++) {
        rgb[i] = (uint8_t)(i * 7919 % 4001);
    }
    if (status == LV_OK && projects) {
        const size_t rows = (size_t)lv_projector_tokens(b->projector, &shape);
        status = b->be->ops->alloc(
            b->be, rows * (size_t)b->config->text.d_model * lv_dtype_bytes(b->be->act), &out);
    }
    if (status == LV_OK && b->be->is_gpu) {
        status = time_upload(b, rgb, n, &upload);
    }
    for (int run = -1; run < n_runs && status == LV_OK; run++) {
        const double start = bench_now();
        status = encode_once(b, rgb, n_tiles, out);
        if (run >= 0) {
            seconds[run] = bench_now() - start;
        }
    }
    if (status == LV_OK) {
        bench_row *row = bench_add_row(b, "encode", bench_median(seconds, n_runs), n_tiles,
                                       "tiles/s", "%d tile%s, CLIP%s", n_tiles, plural(n_tiles),
                                       projects ? " + projector" : " alone");
        row->flops = vision_flops(c, n_tiles) +
                     (projects ? projector_flops(b, n_tiles * shape.rows_per_tile) : 0);
        row->memory_bytes = bench_used_bytes(b);
    }
    if (status == LV_OK && upload > 0) {
        bench_add_row(b, "upload", upload, (double)n * 1e-9, "GB/s", "%d tile%s, part of encode",
                      n_tiles, plural(n_tiles));
    }
    b->be->ops->free(b->be, out);
    free(rgb);
    return status;
}

// --- loading ------------------------------------------------------------------------------------

static lv_status load(bench *b) {
    const unsigned stages = b->options->stages;
    const bool sees = stages & (BENCH_LOAD | BENCH_ENCODE | BENCH_ANSWER);
    const bool talks = stages & (BENCH_LOAD | BENCH_PREFILL | BENCH_DECODE | BENCH_ANSWER);
    const double start = bench_now();
    if (sees) {
        LV_TRY(lv_vision_load(b->checkpoint, b->be, &b->vision));
        LV_TRY(lv_projector_load(b->checkpoint, b->be, &b->projector));
    }
    if (talks) {
        LV_TRY(lv_llm_load(b->checkpoint, b->be, &b->options->llm, &b->llm));
        b->report->weight_bytes = lv_llm_bytes_per_token(b->llm);
    }
    LV_TRY(b->be->ops->sync(b->be));
    if (sees && talks) {
        bench_row *row = bench_add_row(b, "load", bench_now() - start,
                                       (double)lv_checkpoint_bytes(b->checkpoint) * 1e-9, "GB/s",
                                       "CLIP, projector, decoder");
        row->memory_bytes = bench_used_bytes(b);
    }
    return LV_OK;
}

lv_status bench_run_stages(bench *b) {
    const unsigned stages = b->options->stages;
    LV_TRY(load(b));
    if (stages & BENCH_PREPROCESS) {
        LV_TRY(run_preprocess(b));
    }
    for (int i = 0; (stages & BENCH_ENCODE) && i < b->options->tiles.n; i++) {
        LV_TRY(encode_tiles(b, b->options->tiles.values[i]));
    }
    if (stages & BENCH_PREFILL) {
        LV_TRY(bench_run_prefill(b));
    }
    if (stages & BENCH_ANSWER) {
        LV_TRY(bench_run_answer(b));
    }
    return stages & BENCH_DECODE ? bench_run_decode(b) : LV_OK;
}
