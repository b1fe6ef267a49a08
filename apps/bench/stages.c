// The stages of one answer, each timed through the same functions that answer real questions.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/bench/bench.h"
#include "llm/llm.h"
#include "preprocess/preprocess.h"
#include "vision/vision.h"

#define MAX_RUNS 512

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static bench_row *add_row(bench_report *report, const char *name, double seconds, double count,
                          const char *unit) {
    bench_row *row = &report->rows[report->n_rows++];
    *row = (bench_row){.name = name, .ms = seconds * 1e3, .rate = count / seconds, .unit = unit};
    return row;
}

static lv_status run_preprocess(const lv_config *config, bench_report *report) {
    lv_image image = {1024, 899, malloc((size_t)1024 * 899 * 3)};
    lv_status status = image.rgb ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    double seconds[5];
    int n_tiles = 0;
    for (int i = 0; status == LV_OK && i < image.width * image.height * 3; i++) {
        image.rgb[i] = (uint8_t)(i * 7 % 251);
    }
    for (int run = 0; run < 5 && status == LV_OK; run++) {
        lv_tiles tiles = {0};
        double start = bench_now();
        status = lv_tiles_make(&image, &config->image, &tiles);
        if (status == LV_OK) {
            size_t n = (size_t)tiles.n_tiles * 3 * (size_t)tiles.size * (size_t)tiles.size;
            float *pixels = malloc(n * sizeof *pixels);
            if (pixels) {
                lv_tiles_normalize(&tiles, &config->image, pixels);
            }
            free(pixels);
        }
        seconds[run] = bench_now() - start;
        n_tiles = tiles.n_tiles;
        lv_tiles_free(&tiles);
    }
    if (status == LV_OK) {
        bench_row *row = add_row(report, "preprocess", median(seconds, 5), 1, "pictures/s");
        snprintf(row->detail, sizeof row->detail, "1024x899 -> %d tile%s", n_tiles,
                 n_tiles == 1 ? "" : "s");
    }
    free(image.rgb);
    return status;
}

// Multiplications and additions of the tower, n tiles.
static double vision_flops(const lv_vision_config *c, int n_tiles) {
    double side = c->image_size / c->patch_size, rows = side * side + 1, d = c->d_model;
    double linears = 2 * rows * (4 * d * d + 2 * d * c->d_ff);
    double attention = 4 * rows * rows * d;
    return n_tiles * (c->n_run_layers * (linears + attention) +
                      2 * rows * d * 3 * c->patch_size * c->patch_size);
}

static lv_status run_vision(const lv_checkpoint *checkpoint, lv_backend *be, int n_tiles,
                            bench_report *report) {
    const lv_vision_config *c = &lv_checkpoint_config(checkpoint)->vision;
    size_t n = (size_t)n_tiles * 3 * (size_t)c->image_size * (size_t)c->image_size;
    float *pixels = calloc(n, sizeof *pixels);
    lv_vision *vision = NULL;
    double seconds[3];
    lv_status status = pixels ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    if (status == LV_OK) {
        status = lv_vision_load(checkpoint, be, &vision);
    }
    for (int run = -1; run < 3 && status == LV_OK; run++) {
        const void *features;
        double start = bench_now();
        status = lv_vision_encode(vision, pixels, n_tiles, &features);
        if (status == LV_OK) {
            status = be->ops->sync(be);
        }
        if (run >= 0) {
            seconds[run] = bench_now() - start;
        }
    }
    if (status == LV_OK) {
        bench_row *row = add_row(report, "CLIP encode", median(seconds, 3), n_tiles, "tiles/s");
        snprintf(row->detail, sizeof row->detail, "%d tile%s", n_tiles, n_tiles == 1 ? "" : "s");
        row->flops = vision_flops(c, n_tiles);
    }
    lv_vision_free(vision);
    free(pixels);
    return status;
}

typedef struct decoder {
    lv_llm *llm;
    lv_cache *cache;
    lv_sequence *sequences; // [batch]
    lv_chunk *chunks;       // [batch]
    int32_t *ids;           // [prompt or batch]
    int n_open;
} decoder;

// Floating-point operations of the linears for one token, without lm_head.
static double token_flops(const lv_text_config *c) {
    double q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    return 2.0 * c->n_layers *
           (c->d_model * (q + 2 * kv) + q * c->d_model + 3.0 * c->d_model * c->d_ff);
}

// Feeds n tokens to sequence s; logits of the last one.
static lv_status feed(decoder *d, int s, int n) {
    float *logits;
    int chunk = lv_llm_max_tokens(d->llm);
    for (int done = 0; done < n; done += chunk) {
        int now = n - done < chunk ? n - done : chunk;
        lv_chunk piece = {&d->sequences[s], d->ids, NULL, now, done + now == n};
        LV_TRY(lv_llm_forward(d->llm, d->cache, &piece, 1, &logits));
    }
    return LV_OK;
}

static lv_status run_prefill(decoder *d, lv_backend *be, const bench_options *o,
                             bench_report *report) {
    const lv_text_config *c = lv_llm_config(d->llm);
    double seconds[3];
    for (int run = 0; run < 3; run++) {
        lv_sequence_truncate(d->cache, &d->sequences[0], 0);
        double start = bench_now();
        LV_TRY(feed(d, 0, o->n_prompt));
        LV_TRY(be->ops->sync(be));
        seconds[run] = bench_now() - start;
    }
    bench_row *row = add_row(report, "prefill", median(seconds, 3), o->n_prompt, "tok/s");
    snprintf(row->detail, sizeof row->detail, "%d tokens", o->n_prompt);
    row->flops = token_flops(c) * o->n_prompt +
                 2.0 * c->n_layers * c->n_heads * c->head_dim * o->n_prompt * (double)o->n_prompt;
    return LV_OK;
}

static lv_status run_decode(decoder *d, lv_backend *be, const bench_options *o,
                            bench_report *report) {
    const lv_text_config *c = lv_llm_config(d->llm);
    double *seconds = malloc((size_t)o->n_decode * sizeof *seconds);
    int32_t *tokens = calloc((size_t)o->batch, sizeof *tokens);
    lv_sampling *greedy = calloc((size_t)o->batch, sizeof *greedy);
    lv_status status = seconds && tokens && greedy ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    for (int s = 0; s < o->batch && status == LV_OK; s++) {
        lv_sequence_truncate(d->cache, &d->sequences[s], 0);
        status = feed(d, s, o->context);
    }
    for (int step = 0; step < o->n_decode && status == LV_OK; step++) {
        float *logits;
        double start = bench_now();
        for (int s = 0; s < o->batch; s++) {
            d->chunks[s] = (lv_chunk){&d->sequences[s], &tokens[s], NULL, 1, true};
        }
        LV_TRY_DONE(lv_llm_forward(d->llm, d->cache, d->chunks, o->batch, &logits));
        LV_TRY_DONE(be->ops->sample(be, logits, o->batch, c->vocab_size, greedy, tokens, NULL));
        seconds[step] = bench_now() - start;
    }
    if (status == LV_OK) {
        double context = o->context + 0.5 * o->n_decode;
        double kv = (double)lv_cache_block_bytes(d->llm, o->kv_dtype) / LV_KV_BLOCK;
        bench_row *row = add_row(report, "decode", median(seconds, o->n_decode), o->batch, "tok/s");
        snprintf(row->detail, sizeof row->detail, "batch %d, context %d", o->batch, o->context);
        row->bytes = (double)report->weight_bytes + kv * context * o->batch;
        row->flops = token_flops(c) * o->batch;
    }
done:
    free(seconds);
    free(tokens);
    free(greedy);
    return status;
}

static lv_status run_llm(const lv_checkpoint *checkpoint, lv_backend *be, const bench_options *o,
                         bench_report *report) {
    decoder d = {0};
    lv_status status = LV_OK;
    int longest = (o->context > o->n_prompt ? o->context : o->n_prompt) + o->n_decode;
    int n_blocks = o->batch * (longest / LV_KV_BLOCK + 1);
    double start = bench_now();
    LV_TRY_DONE(lv_llm_load(checkpoint, be, NULL, &d.llm));
    report->load_ms = (bench_now() - start) * 1e3;
    report->weight_bytes = lv_llm_bytes_per_token(d.llm);
    LV_TRY_DONE(lv_cache_create(d.llm, n_blocks, o->kv_dtype, &d.cache));
    d.sequences = calloc((size_t)o->batch, sizeof *d.sequences);
    d.chunks = calloc((size_t)o->batch, sizeof *d.chunks);
    d.ids = calloc((size_t)lv_llm_max_tokens(d.llm), sizeof *d.ids);
    if (!d.sequences || !d.chunks || !d.ids) {
        status = lv_fail(LV_ENOMEM, "out of memory");
        goto done;
    }
    for (int i = 0; i < lv_llm_max_tokens(d.llm); i++) {
        d.ids[i] = i * 37 % lv_llm_config(d.llm)->vocab_size;
    }
    for (; d.n_open < o->batch; d.n_open++) {
        LV_TRY_DONE(lv_sequence_open(d.llm, longest, NULL, &d.sequences[d.n_open]));
    }
    LV_TRY_DONE(run_prefill(&d, be, o, report));
    status = run_decode(&d, be, o, report);
done:
    for (int i = 0; i < d.n_open; i++) {
        lv_sequence_close(d.cache, &d.sequences[i]);
    }
    free(d.sequences);
    free(d.chunks);
    free(d.ids);
    lv_cache_free(d.cache);
    lv_llm_free(d.llm);
    return status;
}

lv_status bench_run_stages(const bench_options *options, const lv_checkpoint *checkpoint,
                           lv_backend *be, bench_report *report) {
    const lv_config *config = lv_checkpoint_config(checkpoint);
    int n_tiles = options->n_tiles ? options->n_tiles : config->is_next ? 5 : 1;
    LV_TRY(run_preprocess(config, report));
    LV_TRY(run_vision(checkpoint, be, n_tiles, report));
    return run_llm(checkpoint, be, options, report);
}
