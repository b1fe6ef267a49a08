// A picture to its description: what a user waits for once the picture is decoded and the model
// loaded; and what memory that takes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/bench/bench.h"
#include "preprocess/preprocess.h"

#define N_BEFORE 35 // tokens of text before the picture and after it: LLaVA's usual prompt
#define N_AFTER 25
#define N_ANSWER 256
#define SESSION 8192 // tokens
#define MAX_RUNS 3

typedef struct scene {
    bench *b;
    lv_image image;
    int32_t ids[N_BEFORE + N_AFTER];
    void *embeddings; // dev act [n_image, d_model]
    int n_tiles, n_image;
    lv_cache *cache;
} scene;

// Milestones of one run, in seconds from its start.
typedef struct times {
    double encoded, first, last;
} times;

// Image embeddings of the scene's picture; allocates them the first time.
static lv_status see(scene *s) {
    bench *b = s->b;
    lv_tiles tiles = {0};
    const void *features;
    lv_status status;
    LV_TRY_DONE(lv_tiles_make(&s->image, &b->config->image, &tiles));
    LV_TRY_DONE(lv_vision_encode(b->vision, tiles.rgb, tiles.n_tiles, &features));
    const lv_picture_shape shape = {tiles.n_tiles,        lv_vision_rows(b->vision),
                                    tiles.grid_width,     tiles.grid_height,
                                    tiles.original_width, tiles.original_height};
    s->n_tiles = tiles.n_tiles;
    s->n_image = lv_projector_tokens(b->projector, &shape);
    if (!s->embeddings) {
        LV_TRY_DONE(b->be->ops->alloc(b->be,
                                      (size_t)s->n_image * (size_t)b->config->text.d_model *
                                          lv_dtype_bytes(b->be->act),
                                      &s->embeddings));
    }
    status = lv_projector_run(b->projector, features, &shape, s->embeddings);
done:
    lv_tiles_free(&tiles);
    return status;
}

static lv_status answer_once(scene *s, times *out) {
    bench *b = s->b;
    bench_group group = {0};
    lv_status status;
    const double start = bench_now();
    LV_TRY_DONE(see(s));
    out->encoded = bench_now() - start;
    if (!s->cache) {
        LV_TRY_DONE(lv_cache_create(b->llm, SESSION / LV_KV_BLOCK,
                                    (lv_dtype)b->options->kv.values[0], &s->cache));
    }
    LV_TRY_DONE(
        bench_group_open(b, s->cache, 1, N_BEFORE + s->n_image + N_AFTER + N_ANSWER + 1, &group));
    const lv_chunk prompt[] = {
        {.sequence = group.sequences, .ids = s->ids, .n = N_BEFORE},
        {.sequence = group.sequences, .embeddings = s->embeddings, .n = s->n_image},
        {group.sequences, s->ids + N_BEFORE, NULL, N_AFTER, true}};
    LV_TRY_DONE(lv_llm_forward(b->llm, s->cache, prompt, 3, &group.logits));
    for (int i = 0; i < N_ANSWER; i++) {
        LV_TRY_DONE(bench_group_step(&group));
        if (i == 0) {
            out->first = bench_now() - start;
        }
    }
    out->last = bench_now() - start;
done:
    bench_group_close(&group);
    return status;
}

static void report(scene *s, const times *runs, int n) {
    bench *b = s->b;
    double first[MAX_RUNS], last[MAX_RUNS];
    for (int i = 0; i < n; i++) {
        first[i] = runs[i].first;
        last[i] = runs[i].last;
    }
    const int n_prompt = N_BEFORE + s->n_image + N_AFTER;
    bench_add_row(b, "first token", bench_median(first, n), 1, "answers/s",
                  "1024x899, %d tile%s, %d tokens read", s->n_tiles, s->n_tiles == 1 ? "" : "s",
                  n_prompt);
    bench_add_row(b, "answer", bench_median(last, n), N_ANSWER, "tok/s",
                  "the same and %d tokens said", N_ANSWER);
    // What is used now, with a cache of the first kind, and the same with each kind.
    const double used = bench_used_bytes(b), blocks = SESSION / LV_KV_BLOCK;
    const double held =
        blocks * (double)lv_cache_block_bytes(b->llm, (lv_dtype)b->options->kv.values[0]);
    for (int i = 0; used > 0 && i < b->options->kv.n; i++) {
        const lv_dtype kv = (lv_dtype)b->options->kv.values[i];
        bench_row *row = bench_add_row(b, "memory", 0, 0, "", "session of %d tokens, %s KV",
                                       SESSION, bench_kv_name(kv));
        row->memory_bytes = used - held + blocks * (double)lv_cache_block_bytes(b->llm, kv);
    }
}

lv_status bench_run_answer(bench *b) {
    scene s = {.b = b, .image = {BENCH_WIDTH, BENCH_HEIGHT, NULL}};
    const int n_runs = b->be->is_gpu ? MAX_RUNS : 1;
    times runs[MAX_RUNS + 1];
    lv_status status = bench_make_picture(&s.image.rgb);
    for (int i = 0; i < N_BEFORE + N_AFTER; i++) {
        s.ids[i] = i * 61 % b->config->text.vocab_size;
    }
    // On a GPU the first run plans and records what the others use.
    for (int i = b->be->is_gpu ? -1 : 0; i < n_runs && status == LV_OK; i++) {
        status = answer_once(&s, &runs[i < 0 ? MAX_RUNS : i]);
    }
    if (status == LV_OK) {
        report(&s, runs, n_runs);
    }
    lv_cache_free(s.cache);
    b->be->ops->free(b->be, s.embeddings);
    free(s.image.rgb);
    return status;
}
