// The engine's queue and threads: requests come from anywhere, workers make them ready, one thread
// answers them.
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/engine.h"

enum { MAX_SEQUENCES = 256, MAX_QUEUE = 1 << 20, MAX_WORKERS = 64 };

// --- memory --------------------------------------------------------------------------------------

// How many blocks the options grant.
static lv_status count_blocks(const lv_engine *e, int *out) {
    const lv_engine_options *o = &e->options;
    lv_backend *be = e->model->be;
    const size_t session = (size_t)lv_kv_blocks(e->model->session_len);
    const size_t most = session * (size_t)o->max_sequences;
    size_t n = o->kv_bytes / e->block_bytes;
    if (!o->kv_bytes) {
        lv_memory memory;
        LV_TRY(be->ops->memory(be, &memory));
        const double share = o->cache_max_entry_count > 0 ? o->cache_max_entry_count
                             : be->is_gpu                 ? 0.8
                                                          : 0.2;
        const double granted = (double)memory.free_bytes / (double)e->block_bytes;
        n = (size_t)(granted * share);
        if (o->cache_max_entry_count <= 0 && n < session) { // one conversation, if at all possible
            n = granted * 0.8 < (double)session ? (size_t)(granted * 0.8) : session;
        }
        n = n < most ? n : most;
    }
    if (n < 1) {
        return lv_fail(LV_ELIMIT,
                       "the cache of keys and values gets less than one block of %d "
                       "tokens (%zu bytes): give it more memory",
                       LV_KV_BLOCK, e->block_bytes);
    }
    *out = n < 1 << 24 ? (int)n : 1 << 24;
    return LV_OK;
}

// --- options -------------------------------------------------------------------------------------

static lv_status check_options(const lv_engine_options *o) {
    const struct {
        const char *name;
        double value, max;
    } numbers[] = {{"max_sequences", o->max_sequences, MAX_SEQUENCES},
                   {"queue_length", o->queue_length, MAX_QUEUE},
                   {"n_workers", o->n_workers, MAX_WORKERS},
                   {"cache_max_entry_count", o->cache_max_entry_count, 1},
                   {"chunk_tokens", o->chunk_tokens, 1 << 24},
                   {"pass_tokens", o->pass_tokens, 1 << 24}};
    if (o->kv_dtype != LV_NONE && o->kv_dtype != LV_F32 && o->kv_dtype != LV_F16 &&
        o->kv_dtype != LV_I8) {
        return lv_fail(LV_EINVAL, "engine: kv_dtype is %d; expected LV_F32, LV_F16 or LV_I8",
                       (int)o->kv_dtype);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (!(numbers[i].value >= 0 && numbers[i].value <= numbers[i].max)) {
            return lv_fail(LV_EINVAL, "engine: %s is %g; expected 0 (the default) to %g",
                           numbers[i].name, numbers[i].value, numbers[i].max);
        }
    }
    return LV_OK;
}

static int or_default(int value, int by_default) {
    return value > 0 ? value : by_default;
}

static int default_workers(void) {
    cpu_set_t cores;
    const int n = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) / 2 : 2;
    return n < 2 ? 2 : n > 8 ? 8 : n;
}

static void fill_options(lv_engine *e) {
    lv_engine_options *o = &e->options;
    const bool is_gpu = e->model->be->is_gpu;
    e->max_pass_tokens = lv_llm_max_tokens(e->model->llm);
    o->max_sequences = or_default(o->max_sequences, is_gpu ? 64 : 16);
    o->queue_length = or_default(o->queue_length, 256);
    o->n_workers = or_default(o->n_workers, default_workers());
    // A chunk has room beside a token of every sequence; its ends are ends of blocks.
    const int most = (e->max_pass_tokens - o->max_sequences) / LV_KV_BLOCK * LV_KV_BLOCK;
    o->chunk_tokens = or_default(o->chunk_tokens, is_gpu ? most : 512);
    o->chunk_tokens = o->chunk_tokens < most ? o->chunk_tokens : most;
    o->chunk_tokens = lv_kv_blocks(o->chunk_tokens) * LV_KV_BLOCK;
    o->pass_tokens = or_default(o->pass_tokens, o->chunk_tokens);
    e->tiles_per_step = is_gpu ? 16 : 4;
    e->max_jobs = o->max_sequences + o->queue_length;
}

// --- counts --------------------------------------------------------------------------------------

// Called under the lock, by the engine's thread.
static void publish(lv_engine *e) {
    lv_engine_stats *s = &e->stats;
    s->n_kv_kept = lv_prefix_kept(e->prefix);
    s->n_kv_used = e->n_blocks - lv_cache_free_blocks(e->cache) - s->n_kv_kept;
    s->image_cache_bytes = lv_images_bytes(e->images);
    e->shown = *s;
}

// --- the end of a request ------------------------------------------------------------------------

void lv_engine_hand_over(lv_engine *e, lv_job *job) {
    pthread_mutex_lock(&e->lock);
    int at = 0;
    while (e->jobs[at] != job) {
        at++;
    }
    memmove(e->jobs + at, e->jobs + at + 1, (size_t)(--e->n_jobs - at) * sizeof *e->jobs);
    if (atomic_load(&job->cancelled)) {
        e->stats.n_cancelled++;
    } else if (job->status != LV_OK) {
        e->stats.n_failed++;
    } else {
        e->stats.n_finished++;
    }
    publish(e);
    pthread_cond_broadcast(&e->changed); // there is room
    pthread_mutex_unlock(&e->lock);
    lv_job_end(job);
}

// --- the engine's thread -------------------------------------------------------------------------

// Whether a job has to end before the next step. Called under the lock.
static bool has_to_end(const lv_engine *e, lv_job *job) {
    if (e->closes) {
        atomic_store(&job->cancelled, true);
    }
    if (job->stage == LV_STAGE_PREPARING) {
        return false; // a worker still has it
    }
    if (e->broken && job->stage != LV_STAGE_RUNNING && job->status == LV_OK) {
        lv_job_fail(job, lv_fail(e->broken, "%s", e->broken_reason ? e->broken_reason : ""));
    }
    return atomic_load(&job->cancelled) || job->status != LV_OK;
}

// Looks through the queue: who is ready, and the first who has to end.
static lv_job *survey(lv_engine *e) {
    lv_job *ending = NULL;
    e->n_ready = 0;
    for (int i = 0; i < e->n_jobs; i++) {
        lv_job *job = e->jobs[i];
        if (has_to_end(e, job)) {
            ending = ending ? ending : job;
        } else if (job->stage == LV_STAGE_READY) {
            e->ready[e->n_ready++] = job;
        }
    }
    return ending;
}

static void *run(void *user) {
    lv_engine *e = user;
    pthread_mutex_lock(&e->lock);
    for (;;) {
        lv_job *ending = survey(e);
        publish(e);
        if (ending) {
            if (ending->stage == LV_STAGE_NEW) {
                ending->stage = LV_STAGE_READY; // no worker takes up what is about to be freed
            }
            pthread_mutex_unlock(&e->lock);
            lv_engine_end(e, ending);
            pthread_mutex_lock(&e->lock);
        } else if (e->n_ready > 0 || e->n_running > 0) {
            pthread_mutex_unlock(&e->lock);
            const double start = lv_now_ms(), encode_ms = e->stats.encode_ms;
            lv_engine_step(e);
            e->stats.pass_ms += lv_now_ms() - start - (e->stats.encode_ms - encode_ms);
            pthread_mutex_lock(&e->lock);
        } else if (e->closes && e->n_jobs == 0) {
            break;
        } else {
            pthread_cond_wait(&e->changed, &e->lock);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

// --- workers -------------------------------------------------------------------------------------

// The next request to make ready: as many wait for the decoder with their pictures decoded as it
// takes at once, no more, for pictures are large.
static lv_job *next_new(const lv_engine *e) {
    lv_job *next = NULL;
    int n_prepared = 0;
    for (int i = 0; i < e->n_jobs; i++) {
        lv_job *job = e->jobs[i];
        n_prepared += job->stage == LV_STAGE_PREPARING ||
                      (job->stage == LV_STAGE_READY && !job->was_admitted);
        next = !next && job->stage == LV_STAGE_NEW ? job : next;
    }
    return n_prepared < e->options.max_sequences ? next : NULL;
}

static void *work(void *user) {
    lv_engine *e = user;
    pthread_mutex_lock(&e->lock);
    while (!e->closes) {
        lv_job *job = next_new(e);
        if (!job) {
            pthread_cond_wait(&e->changed, &e->lock);
            continue;
        }
        job->stage = LV_STAGE_PREPARING;
        pthread_mutex_unlock(&e->lock);
        lv_job_prepare(job, e->model, e->n_blocks * LV_KV_BLOCK);
        pthread_mutex_lock(&e->lock);
        job->stage = LV_STAGE_READY;
        pthread_cond_broadcast(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

// --- opening and closing -------------------------------------------------------------------------

static lv_status allocate(lv_engine *e) {
    const lv_engine_options *o = &e->options;
    const size_t n = (size_t)o->max_sequences, n_pass = (size_t)e->max_pass_tokens;
    const size_t n_jobs = (size_t)e->max_jobs;
    LV_TRY(lv_images_create(e->model, o->image_cache_bytes, o->chunk_tokens, &e->images));
    e->block_bytes = lv_cache_block_bytes(e->model->llm, o->kv_dtype);
    LV_TRY(count_blocks(e, &e->n_blocks));
    LV_TRY(lv_cache_create(e->model->llm, e->n_blocks, o->kv_dtype, &e->cache));
    LV_TRY(lv_prefix_create(e->cache, e->n_blocks, &e->prefix));
    e->jobs = calloc(n_jobs, sizeof(lv_job *));
    e->ready = calloc(n_jobs, sizeof(lv_job *));
    e->running = calloc(n, sizeof(lv_job *));
    e->rows = calloc(n, sizeof(lv_job *));
    e->next_rows = calloc(n, sizeof(lv_job *));
    e->draws = calloc(n, sizeof *e->draws);
    e->tokens = calloc(n, sizeof *e->tokens);
    e->logprobs = calloc(n, sizeof *e->logprobs);
    e->raw = calloc((size_t)e->model->config->text.vocab_size, sizeof *e->raw);
    e->chunks = calloc(n_pass, sizeof *e->chunks);
    e->ids = calloc(n_pass, sizeof *e->ids);
    e->workers = calloc((size_t)o->n_workers, sizeof *e->workers);
    if (!e->jobs || !e->ready || !e->running || !e->rows || !e->next_rows || !e->draws ||
        !e->tokens || !e->logprobs || !e->raw || !e->chunks || !e->ids || !e->workers) {
        return lv_fail(LV_ENOMEM, "out of memory for an engine of %d sequences", o->max_sequences);
    }
    e->stats = (lv_engine_stats){.n_kv_blocks = e->n_blocks,
                                 .block_tokens = LV_KV_BLOCK,
                                 .kv_bytes = (size_t)e->n_blocks * e->block_bytes};
    lv_backend *be = e->model->be;
    lv_memory memory;
    if (be->is_gpu) {
        LV_TRY(be->ops->memory(be, &memory));
        e->stats.device_used_bytes = memory.used_bytes;
        e->stats.device_free_bytes = memory.free_bytes;
    }
    e->shown = e->stats;
    return LV_OK;
}

static void free_parts(lv_engine *e) {
    lv_prefix_free(e->prefix);
    lv_cache_free(e->cache);
    lv_images_free(e->images);
    void *all[] = {e->jobs,   e->ready,    e->running, e->rows,   e->next_rows, e->draws,
                   e->tokens, e->logprobs, e->raw,     e->chunks, e->ids,       e->workers};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
    free(e->broken_reason);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->lock);
    atomic_flag_clear(&e->model->has_engine);
    free(e);
}

// Ends all threads that have been started, the engine's own last.
static void join(lv_engine *e, bool with_thread) {
    pthread_mutex_lock(&e->lock);
    e->closes = true;
    for (int i = 0; i < e->n_jobs; i++) {
        atomic_store(&e->jobs[i]->cancelled, true); // also what a worker is fetching
    }
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    for (int i = 0; i < e->n_workers; i++) {
        pthread_join(e->workers[i], NULL);
    }
    if (with_thread) {
        pthread_join(e->thread, NULL);
    }
    pthread_mutex_lock(&e->lock);
    while (e->n_callers > 0) {
        pthread_cond_wait(&e->changed, &e->lock);
    }
    pthread_mutex_unlock(&e->lock);
}

lv_status lv_engine_open(lv_model *model, const lv_engine_options *options, lv_engine **out) {
    static const lv_engine_options defaults = {0};
    lv_status status = LV_OK;
    *out = NULL;
    options = options ? options : &defaults;
    LV_TRY(check_options(options));
    if (atomic_flag_test_and_set(&model->has_engine)) {
        return lv_fail(LV_EINVAL, "the model has an engine already");
    }
    lv_engine *e = calloc(1, sizeof *e);
    if (!e) {
        atomic_flag_clear(&model->has_engine);
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    e->model = model;
    e->options = *options;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    fill_options(e);
    LV_TRY_DONE(allocate(e));
    while (e->n_workers < e->options.n_workers &&
           pthread_create(&e->workers[e->n_workers], NULL, work, e) == 0) {
        e->n_workers++;
    }
    if (e->n_workers == 0 || pthread_create(&e->thread, NULL, run, e) != 0) {
        join(e, false);
        status = lv_fail(LV_ENOMEM, "no thread can be started");
        goto done;
    }
    *out = e;
    return LV_OK;
done:
    free_parts(e);
    return status;
}

void lv_engine_close(lv_engine *e) {
    if (e) {
        join(e, true);
        free_parts(e);
    }
}

// --- from any thread -----------------------------------------------------------------------------

// Puts a job into the queue, waiting for room where `waits`.
static lv_status enqueue(lv_engine *e, lv_job *job, bool waits, uint64_t *out_id) {
    lv_status status = LV_OK;
    pthread_mutex_lock(&e->lock);
    while (waits && e->n_jobs == e->max_jobs && !e->closes && !e->broken) {
        pthread_cond_wait(&e->changed, &e->lock);
    }
    if (e->closes) {
        status = lv_fail(LV_ECANCELLED, "the engine is being closed");
    } else if (e->broken) {
        status = lv_fail(e->broken, "%s", e->broken_reason ? e->broken_reason : "");
    } else if (e->n_jobs == e->max_jobs) {
        e->n_refused++;
        status = lv_fail(LV_ELIMIT, "the queue is full: %d requests are being answered or wait",
                         e->n_jobs);
    } else {
        job->id = *out_id = ++e->last_id;
        e->jobs[e->n_jobs++] = job;
        pthread_cond_broadcast(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

static lv_status submit(lv_engine *e, const lv_request *request, bool waits, uint64_t *out_id) {
    lv_job *job;
    uint64_t id;
    LV_TRY(lv_job_create(request, &job));
    const lv_status status = enqueue(e, job, waits, out_id ? out_id : &id);
    if (status != LV_OK) {
        lv_job_free(job);
    }
    return status;
}

lv_status lv_engine_submit(lv_engine *e, const lv_request *request, uint64_t *out_id) {
    return submit(e, request, false, out_id);
}

void lv_engine_cancel(lv_engine *e, uint64_t id) {
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < e->n_jobs; i++) {
        if (e->jobs[i]->id == id) {
            atomic_store(&e->jobs[i]->cancelled, true);
            pthread_cond_broadcast(&e->changed);
        }
    }
    pthread_mutex_unlock(&e->lock);
}

void lv_engine_snapshot(lv_engine *e, lv_engine_stats *out) {
    pthread_mutex_lock(&e->lock);
    *out = e->shown;
    for (int i = 0; i < e->n_jobs; i++) {
        out->n_running += e->jobs[i]->stage == LV_STAGE_RUNNING;
    }
    out->n_waiting = e->n_jobs - out->n_running;
    out->n_requests = e->last_id;
    out->n_refused = e->n_refused;
    pthread_mutex_unlock(&e->lock);
}

// --- one question, waited for --------------------------------------------------------------------

typedef struct waiter {
    lv_engine *engine;
    lv_text_callback on_text;
    void *user;
    bool is_done;
    lv_status status;
    char *reason;
    lv_answer answer;
} waiter;

static bool pass_text(void *user, const lv_piece *piece) {
    const waiter *w = user;
    return w->on_text(w->user, piece);
}

static void pass_done(void *user, lv_status status, const char *message, lv_answer *answer) {
    waiter *w = user;
    pthread_mutex_lock(&w->engine->lock);
    w->status = status;
    w->reason = message ? strdup(message) : NULL;
    if (answer) {
        w->answer = *answer;
        *answer = (lv_answer){0};
    }
    w->is_done = true;
    pthread_cond_broadcast(&w->engine->changed);
    pthread_mutex_unlock(&w->engine->lock);
}

lv_status lv_engine_answer(lv_engine *e, const lv_message *messages, int n_messages,
                           const lv_params *params, lv_text_callback on_text, void *user,
                           lv_answer *out) {
    waiter w = {.engine = e, .on_text = on_text, .user = user};
    const lv_request request = {.messages = messages,
                                .n_messages = n_messages,
                                .params = params ? *params : (lv_params){0},
                                .on_text = on_text ? pass_text : NULL,
                                .on_done = pass_done,
                                .user = &w};
    *out = (lv_answer){0};
    pthread_mutex_lock(&e->lock);
    e->n_callers++;
    pthread_mutex_unlock(&e->lock);
    const lv_status status = submit(e, &request, true, NULL);
    pthread_mutex_lock(&e->lock);
    while (status == LV_OK && !w.is_done) {
        pthread_cond_wait(&e->changed, &e->lock);
    }
    if (--e->n_callers == 0) {
        pthread_cond_broadcast(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    LV_TRY(status);
    *out = w.answer;
    if (w.status != LV_OK) {
        (void)!lv_fail(w.status, "%s", w.reason ? w.reason : "out of memory");
    }
    free(w.reason);
    return w.status;
}
