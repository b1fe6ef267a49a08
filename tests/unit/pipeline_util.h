// What the engine's tests share: the demo model, pictures drawn here, and requests with all that
// came of them.
#ifndef LV_TESTS_PIPELINE_UTIL_H
#define LV_TESTS_PIPELINE_UTIL_H

#include "tests/check.h"

#include <pthread.h>
#include <unistd.h>

#include "pipeline/engine.h"

#define MAX_CASES 64

// Sanitizers make the rest slow enough.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define IS_SANITIZED true
#else
#define IS_SANITIZED false
#endif

// One thread: libgomp's own synchronisation is invisible to ThreadSanitizer. `runs_ahead` makes the
// CPU backend take passes before their tokens are known, as a GPU's does.
static inline lv_model *open_model(int session_len, bool runs_ahead) {
    const lv_model_options options = {.model = LV_SOURCE_DIR "/assets/demo-model",
                                      .device = "cpu",
                                      .n_threads = 1,
                                      .session_len = session_len};
    lv_model *model = NULL;
    CHECK_OK(lv_model_open(&options, &model));
    if (model) {
        model->be->runs_ahead = runs_ahead;
    }
    return model;
}

static inline lv_engine *open_engine(lv_model *model, const lv_engine_options *options) {
    lv_engine *engine = NULL;
    CHECK_OK(lv_engine_open(model, options, &engine));
    return engine;
}

// A picture file of stripes: PPM.
static inline size_t draw_ppm(int seed, uint8_t *out) {
    enum { SIDE = 40 };
    size_t n = (size_t)sprintf((char *)out, "P6\n%d %d\n255\n", SIDE, SIDE);
    for (int i = 0; i < SIDE * SIDE; i++) {
        out[n++] = (uint8_t)(seed * 40 + i / SIDE * 3);
        out[n++] = (uint8_t)(255 - seed * 30);
        out[n++] = (uint8_t)(i % SIDE * 5 + seed);
    }
    return n;
}

static inline lv_picture *draw_picture(const lv_model *model, int seed) {
    uint8_t bytes[8192];
    lv_picture *picture = NULL;
    CHECK_OK(lv_picture_bytes_later(model, bytes, draw_ppm(seed, bytes), NULL, &picture));
    return picture;
}

// One request, and what came of it.
typedef struct outcome {
    lv_engine *engine;
    uint64_t id;
    int n_done, n_text, n_reading; // calls; n_reading: with no text
    int cancel_at;                 // this call of on_text cancels; 0: none does
    bool refuse_at;                // by its return value rather than by lv_engine_cancel
    int n_after_done;              // calls that came too late, or found no memory
    lv_buffer text;                // pieces joined
    int n_tokens;                  // that came with them
    lv_status status;
    char *message;
    lv_answer answer;
    void (*watch)(struct outcome *o); // on each piece
    void *watcher;
} outcome;

static pthread_mutex_t outcome_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t outcome_changed = PTHREAD_COND_INITIALIZER;

static inline bool outcome_text(void *user, const lv_piece *piece) {
    outcome *o = user;
    const size_t n = strlen(piece->text);
    o->n_after_done += o->n_done > 0;
    o->n_text += n > 0;
    o->n_reading += n == 0;
    o->n_tokens += piece->n_tokens;
    o->text.max_bytes = (size_t)1 << 24;
    o->n_after_done += lv_buffer_append(&o->text, piece->text, n) != LV_OK;
    if (o->watch) {
        o->watch(o);
    }
    const bool now = o->cancel_at && n > 0 && o->n_text == o->cancel_at;
    if (now && !o->refuse_at) {
        lv_engine_cancel(o->engine, o->id);
    }
    return !now || !o->refuse_at;
}

static inline void outcome_done(void *user, lv_status status, const char *message,
                                lv_answer *answer) {
    outcome *o = user;
    pthread_mutex_lock(&outcome_lock);
    o->status = status;
    o->message = message ? strdup(message) : NULL;
    if (answer) {
        o->answer = *answer;
        *answer = (lv_answer){0};
    }
    o->n_done++;
    pthread_cond_broadcast(&outcome_changed);
    pthread_mutex_unlock(&outcome_lock);
}

static inline void outcome_wait(outcome *o) {
    pthread_mutex_lock(&outcome_lock);
    while (!o->n_done) {
        pthread_cond_wait(&outcome_changed, &outcome_lock);
    }
    pthread_mutex_unlock(&outcome_lock);
}

static inline void outcome_free(outcome *o) {
    lv_buffer_free(&o->text);
    lv_answer_free(&o->answer);
    free(o->message);
    *o = (outcome){0};
}

static inline lv_status ask(lv_engine *engine, outcome *o, const char *question,
                            lv_picture *const *pictures, int n_pictures, const lv_params *params) {
    const lv_message message = {"user", question, pictures, n_pictures};
    const lv_request request = {.messages = &message,
                                .n_messages = 1,
                                .params = params ? *params : (lv_params){.max_tokens = 24},
                                .on_text = outcome_text,
                                .on_done = outcome_done,
                                .user = o};
    o->engine = engine;
    return lv_engine_submit(engine, &request, &o->id);
}

// The same, waited for.
static inline void ask_and_wait(lv_engine *engine, outcome *o, const char *question,
                                lv_picture *const *pictures, int n_pictures,
                                const lv_params *params) {
    *o = (outcome){0};
    const lv_status status = ask(engine, o, question, pictures, n_pictures, params);
    CHECK_OK(status);
    if (status == LV_OK) {
        outcome_wait(o);
    }
}

// A grammar whose answers are long, so that a request goes on until it is stopped.
static inline lv_grammar *long_grammar(int n_items) {
    char schema[128];
    lv_grammar *grammar = NULL;
    const int n = snprintf(schema, sizeof schema,
                           "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":%d,"
                           "\"maxItems\":%d}",
                           n_items, n_items);
    CHECK_OK(lv_grammar_compile(schema, (size_t)n, "long", &grammar));
    return grammar;
}

// As many words as make about n tokens.
static inline char *long_text(int n) {
    char *text = malloc((size_t)n * 8 + 1), *to = text;
    for (int i = 0; i < n / 2; i++) {
        to += sprintf(to, "%s ", i % 3 == 0 ? "tree" : i % 3 == 1 ? "house" : "dog");
    }
    return text;
}

static inline lv_engine_stats stats_of(lv_engine *engine) {
    lv_engine_stats stats;
    lv_engine_snapshot(engine, &stats);
    return stats;
}

#endif
