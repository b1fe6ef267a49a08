// One step of the engine: draw, admit, encode, run a pass.
//
// A pass holds one token of each request that is answering, then chunks of prompts. A prompt's
// chunks end at multiples of chunk_tokens counted from its own beginning, and a pass holds at most
// one of a request, so how many new tokens a request has in a pass never depends on the others; no
// backend's row depends on anything else. A request that had to make room reads its prompt again in
// the same chunks and then its own answer token by token, so it goes on as if nothing had happened.
//
// Where the backend runs ahead, the next pass is begun before the tokens that it starts from are
// known to the host; what is computed for a request that turns out to have ended is dropped.
#include <stdlib.h>
#include <string.h>

#include "pipeline/engine.h"

static lv_timeline timeline_of(const lv_job *job) {
    return (lv_timeline){job->places, job->pictures};
}

// Places that are in the cache and known to the host.
static int n_sure(const lv_job *job) {
    return job->sequence.length < job->n_known ? job->sequence.length : job->n_known;
}

static bool reads_prompt(const lv_job *job) {
    return job->sequence.length < job->n_prompt;
}

static bool reuses(const lv_job *job) {
    return !job->params.dump_dir;
}

// --- leaving -------------------------------------------------------------------------------------

static void release_picture(lv_engine *e, lv_job *job, int index) {
    if (job->slots[index] >= 0) {
        lv_images_release(e->images, job->slots[index]);
        job->slots[index] = LV_SLOT_LEFT;
    }
}

static void release_pictures(lv_engine *e, lv_job *job) {
    for (int i = 0; i < job->n_pictures; i++) {
        release_picture(e, job, i);
    }
}

// Leaves what the cache holds of the first n places to others.
static void close_sequence(lv_engine *e, lv_job *job, int n) {
    const lv_timeline timeline = timeline_of(job);
    if (job->path.nodes && e->options.no_reuse) {
        lv_prefix_forget(e->prefix, 0, &job->path);
        lv_prefix_make_room(e->prefix, INT32_MAX); // nothing is kept that nobody uses
    } else if (job->path.nodes && reuses(job)) {
        lv_prefix_leave(e->prefix, &timeline, n, &job->sequence, &job->path);
    }
    lv_path_close(&job->path);
    lv_sequence_close(e->cache, &job->sequence);
}

// Takes a job out of the decoder.
static void retire(lv_engine *e, lv_job *job) {
    if (!job->is_admitted) {
        return;
    }
    int at = 0;
    while (e->running[at] != job) {
        at++;
    }
    memmove(e->running + at, e->running + at + 1,
            (size_t)(--e->n_running - at) * sizeof *e->running);
    close_sequence(e, job, n_sure(job));
    release_pictures(e, job);
    job->is_admitted = false;
    for (int i = 0; i < e->n_next_rows; i++) {
        e->next_rows[i] = e->next_rows[i] == job ? NULL : e->next_rows[i];
    }
}

void lv_engine_end(lv_engine *e, lv_job *job) {
    retire(e, job);
    for (int i = 0; i < e->n_rows; i++) {
        e->rows[i] = e->rows[i] == job ? NULL : e->rows[i];
    }
    lv_engine_hand_over(e, job);
}

// The reason stays in lv_error for the next one, whatever this one's callback does.
static void fail(lv_engine *e, lv_job *job, lv_status status) {
    char *reason = strdup(lv_error());
    lv_job_fail(job, status);
    lv_engine_end(e, job);
    (void)!lv_fail(status, "%s", reason ? reason : "out of memory");
    free(reason);
}

// All that run: a pass has failed, and nobody knows for whom it was good.
static void fail_running(lv_engine *e, lv_status status) {
    if (status == LV_EDEVICE && !e->broken) { // before callbacks that ask anew
        pthread_mutex_lock(&e->lock);
        e->broken = status;
        e->broken_reason = strdup(lv_error());
        pthread_mutex_unlock(&e->lock);
    }
    for (int i = 0; i < e->n_rows; i++) {
        if (e->rows[i]) {
            e->rows[i]->row = -1; // one that has made room draws it again
        }
    }
    e->n_rows = e->n_next_rows = 0;
    while (e->n_running > 0) {
        fail(e, e->running[e->n_running - 1], status);
    }
}

// Takes the youngest out of the decoder until n blocks are free. False where that was `job` itself.
static bool make_room(lv_engine *e, const lv_job *job, int n) {
    while (!lv_prefix_make_room(e->prefix, n)) {
        lv_job *youngest = e->running[e->n_running - 1];
        retire(e, youngest);
        pthread_mutex_lock(&e->lock);
        youngest->stage = LV_STAGE_READY;
        pthread_mutex_unlock(&e->lock);
        e->stats.n_preempted++;
        if (youngest == job) {
            return false;
        }
    }
    return true;
}

// --- coming in -----------------------------------------------------------------------------------

static lv_status open_sequence(lv_engine *e, lv_job *job) {
    lv_model *model = e->model;
    LV_TRY(lv_sequence_open(model->llm, job->limit,
                            model->has_rope_scaling ? &model->rope_scaling : NULL, &job->sequence));
    return lv_path_open(&job->sequence, model->config->text.head_dim, &job->path);
}

// What earlier timelines have left. The last place is always read: its logits are wanted. One that
// goes on after making room reads the same chunks as before, or none of them.
static void reuse(lv_engine *e, lv_job *job) {
    const lv_timeline timeline = timeline_of(job);
    lv_prefix_match(e->prefix, &timeline, job->n_known - 1, &job->sequence, &job->path);
    const int n = job->sequence.length, chunk = e->options.chunk_tokens;
    if (job->was_admitted && n < job->n_prompt && n % chunk != 0) {
        lv_prefix_forget(e->prefix, n / chunk * chunk, &job->path);
        lv_sequence_truncate(e->cache, &job->sequence, n / chunk * chunk);
    }
}

static void note_admitted(lv_engine *e, lv_job *job) {
    if (!job->was_admitted) {
        job->answer.n_reused_tokens = job->sequence.length;
        job->answer.queue_ms = lv_now_ms() - job->submit_ms;
        e->stats.n_prompt_tokens += (uint64_t)job->n_prompt;
        e->stats.n_reused_tokens += (uint64_t)job->sequence.length;
    }
    job->is_admitted = true;
    job->n_read = job->sequence.length;
    int at = e->n_running++;
    for (; at > 0 && e->running[at - 1]->id > job->id; at--) {
        e->running[at] = e->running[at - 1];
    }
    e->running[at] = job;
    pthread_mutex_lock(&e->lock);
    job->stage = LV_STAGE_RUNNING;
    job->was_admitted = true;
    pthread_cond_broadcast(&e->changed); // a worker may make the next one ready
    pthread_mutex_unlock(&e->lock);
}

// False where the cache has no room for it yet: beside its own places a block for each of the
// others, so that it does not have to leave at once.
static bool admit_one(lv_engine *e, lv_job *job) {
    if (lv_cache_free_blocks(e->cache) + lv_prefix_kept(e->prefix) <= e->n_running) {
        return false; // plain without looking what it could reuse
    }
    lv_status status = open_sequence(e, job);
    if (status == LV_OK && reuses(job)) {
        reuse(e, job);
    }
    const int n_places = job->n_known < job->limit ? job->n_known + 1 : job->limit;
    const int n_blocks = lv_kv_blocks(n_places) - job->sequence.n_blocks;
    const bool has_room =
        status != LV_OK || lv_prefix_make_room(e->prefix, n_blocks + e->n_running);
    if (status == LV_OK && has_room && reuses(job) && !job->was_admitted) {
        const lv_timeline timeline = timeline_of(job);
        status = lv_prefix_copy(e->prefix, &timeline, job->n_known - 1, &job->sequence, &job->path);
    }
    if (status == LV_OK && has_room) {
        status = lv_sequence_reserve(e->cache, &job->sequence, n_places);
    }
    if (status == LV_OK && has_room && !job->was_admitted) {
        status = lv_job_open_answer(e, job);
    }
    if (status == LV_OK && has_room) {
        note_admitted(e, job);
        return true;
    }
    close_sequence(e, job, job->sequence.length);
    if (status != LV_OK) {
        fail(e, job, status);
    }
    return has_room;
}

static void admit(lv_engine *e) {
    for (int i = 0; i < e->n_ready && e->n_running < e->options.max_sequences; i++) {
        if (!admit_one(e, e->ready[i])) {
            return; // nobody overtakes
        }
    }
}

// --- seeing --------------------------------------------------------------------------------------

typedef struct wanted {
    lv_job *job;
    int index; // of the picture in the job
} wanted;

enum { MAX_WANTED = 64 };

// Holds a picture's embeddings where they are in the cache. What is to be dumped is made anew.
static bool find_image(lv_engine *e, lv_job *job, int index) {
    if (job->params.dump_dir) {
        return false;
    }
    const int slot = lv_images_find(e->images, &job->pictures[index]->id);
    if (slot < 0) {
        return false;
    }
    if (job->slots[index] == LV_SLOT_NONE) {
        job->answer.n_reused_images++;
        e->stats.n_reused_images++;
    }
    job->slots[index] = slot;
    return true;
}

static bool is_wanted(const wanted *list, int n, const lv_picture *picture) {
    for (int i = 0; i < n; i++) {
        const lv_picture *other = list[i].job->pictures[list[i].index];
        if (memcmp(other->id.bytes, picture->id.bytes, LV_HASH_BYTES) == 0) {
            return true;
        }
    }
    return false;
}

// The pictures of a prompt that are still to be read and not at hand, until the batch has its tiles
// or every slot has its picture: older requests come first, so that they cannot wait for younger.
static int want_pictures(lv_engine *e, lv_job *job, wanted *list, int n, int *n_tiles) {
    int at = job->sequence.length;
    while (at < job->n_prompt && n < MAX_WANTED && n < lv_images_unheld(e->images) &&
           (n == 0 || *n_tiles < e->tiles_per_step)) {
        const int index = job->places[at].picture - 1;
        if (index < 0) {
            at++;
            continue;
        }
        const lv_picture *picture = job->pictures[index];
        if (job->slots[index] < 0 && !is_wanted(list, n, picture) && !find_image(e, job, index)) {
            list[n++] = (wanted){job, index};
            *n_tiles += picture->tiles.n_tiles;
        }
        at += picture->n_tokens - job->places[at].value;
    }
    return n;
}

// Where the next chunk of a prompt ends.
static int chunk_end(const lv_engine *e, const lv_job *job) {
    const int end = (job->sequence.length / e->options.chunk_tokens + 1) * e->options.chunk_tokens;
    return end < job->n_prompt ? end : job->n_prompt;
}

// The first place from the next one on that waits for its picture, or the prompt's end.
static int end_at_hand(const lv_job *job) {
    int at = job->sequence.length;
    while (at < job->n_prompt) {
        const int index = job->places[at].picture - 1;
        if (index >= 0 && job->slots[index] < 0) {
            return at;
        }
        at += index >= 0 ? job->pictures[index]->n_tokens - job->places[at].value : 1;
    }
    return job->n_prompt;
}

// Prompt tokens that the next passes can take.
static int n_at_hand(const lv_engine *e, const lv_job *job) {
    const int end = end_at_hand(job);
    return reads_prompt(job) && end >= chunk_end(e, job) ? end - job->sequence.length : 0;
}

static void note_encoded(lv_engine *e, const wanted *list, const int *slots, int n, double ms) {
    for (int i = 0; i < n; i++) {
        lv_job *job = list[i].job;
        job->slots[list[i].index] = slots[i];
        bool is_first = true;
        for (int j = 0; j < i; j++) {
            is_first = is_first && list[j].job != job;
        }
        job->answer.encode_ms += is_first ? ms : 0;
    }
    e->stats.n_images += (uint64_t)n;
    e->stats.encode_ms += ms;
}

// Fails one who wants pictures, alone.
static void fail_wanted(lv_engine *e, wanted *list, int n, lv_job *job, lv_status status) {
    for (int i = 0; i < n; i++) {
        list[i].job = list[i].job == job ? NULL : list[i].job;
    }
    fail(e, job, status);
}

// Encodes a batch once who is older than the first that waits for one has less than a pass at hand.
static void encode(lv_engine *e) {
    wanted list[MAX_WANTED];
    lv_picture *pictures[MAX_WANTED];
    int slots[MAX_WANTED], n = 0, n_tiles = 0, n_tokens = 0;
    for (int i = 0; i < e->n_running; i++) {
        const int n_new = n_at_hand(e, e->running[i]);
        if (n_new == 0 && reads_prompt(e->running[i])) {
            break;
        }
        n_tokens += n_new;
    }
    for (int i = 0; i < e->n_running && n_tokens < e->options.pass_tokens; i++) {
        n = want_pictures(e, e->running[i], list, n, &n_tiles);
    }
    if (n == 0) {
        return;
    }
    lv_status status;
    const double start = lv_now_ms();
    for (int i = 0; i < n; i++) {
        pictures[i] = list[i].job->pictures[list[i].index];
    }
    const int n_done = lv_images_encode(e->images, pictures, n, slots, &status);
    note_encoded(e, list, slots, n_done, lv_now_ms() - start);
    for (int i = 0; i < n; i++) {
        lv_job *job = list[i].job; // NULL: it has failed
        lv_status of_job = status;
        if (job && i < n_done && job->params.dump_dir) {
            of_job = lv_images_dump(e->images, pictures[i], list[i].index, slots[i],
                                    job->params.dump_dir);
        }
        if (of_job == LV_EDEVICE) {
            fail_running(e, of_job);
            return;
        }
        if (job && of_job != LV_OK) {
            fail_wanted(e, list, n, job, of_job);
        }
    }
}

// --- a pass --------------------------------------------------------------------------------------

static lv_chunk *add_chunk(lv_engine *e, lv_job *job, int n) {
    lv_chunk *chunk = &e->chunks[e->n_chunks++];
    *chunk = (lv_chunk){.sequence = &job->sequence, .n = n};
    return chunk;
}

static void add_row(lv_engine *e, lv_job *job) {
    e->next_rows[e->n_next_rows++] = job;
}

// The next token of a request that is answering, or of one that reads its own answer again.
static void add_decode(lv_engine *e, lv_job *job, int *n_rows) {
    const int at = job->sequence.length;
    if (at >= job->n_known && !(job->row >= 0 && lv_job_may_go_on(job))) {
        return; // its next token is not drawn yet, or needs no reading
    }
    // The block is taken at once: the next one of this pass looks for another.
    if (job->sequence.n_blocks * LV_KV_BLOCK == at &&
        (!make_room(e, job, 1) || lv_sequence_reserve(e->cache, &job->sequence, at + 1) != LV_OK)) {
        return;
    }
    lv_chunk *chunk = add_chunk(e, job, 1);
    e->ids[*n_rows] = at < job->n_known ? job->places[at].value : -1 - job->row;
    chunk->ids = &e->ids[(*n_rows)++];
    if (at + 1 >= job->n_known) {
        chunk->want_logits = true;
        add_row(e, job);
    }
}

// A chunk of a prompt, as runs of ids and of picture rows.
static void add_prompt(lv_engine *e, lv_job *job, int end, int *n_rows) {
    lv_chunk *chunk = NULL;
    for (int i = job->sequence.length; i < end;) {
        const int first = i, index = job->places[i].picture - 1;
        const int row = job->places[i].value;
        while (i < end && job->places[i].picture - 1 == index &&
               (index < 0 || job->places[i].value == row + i - first)) {
            e->ids[*n_rows + i - first] = job->places[i].value;
            i++;
        }
        chunk = add_chunk(e, job, i - first);
        chunk->ids = index < 0 ? &e->ids[*n_rows] : NULL;
        chunk->embeddings = index < 0 ? NULL : lv_images_row(e->images, job->slots[index], row);
        *n_rows += i - first;
    }
    if (end == job->n_known) {
        chunk->want_logits = true;
        add_row(e, job);
    }
}

// Tells who streams that the prompt is being read, and hears whether the answer is still wanted.
static bool is_still_wanted(lv_job *job) {
    const lv_piece piece = {.text = ""};
    if (job->on_text && !job->on_text(job->user, &piece)) {
        atomic_store(&job->cancelled, true);
    }
    return !atomic_load(&job->cancelled);
}

static void add_prompts(lv_engine *e, int *n_rows) {
    const int n_decode = *n_rows;
    const int most = n_decode > 0 ? n_decode + e->options.pass_tokens : e->max_pass_tokens;
    for (int i = 0; i < e->n_running; i++) {
        lv_job *job = e->running[i];
        if (!reads_prompt(job)) {
            continue;
        }
        const int end = chunk_end(e, job), n_all = *n_rows + end - job->sequence.length;
        const bool fits = n_all <= e->max_pass_tokens && (*n_rows == n_decode || n_all <= most);
        if (fits && end_at_hand(job) >= end && is_still_wanted(job)) {
            if (job->prefill_start_ms <= 0) {
                job->prefill_start_ms = lv_now_ms();
            }
            add_prompt(e, job, end, n_rows);
        }
    }
}

// After a pass: what it has put in the cache can be found, and pictures read to the end are let go.
static void note_read(lv_engine *e, lv_job *job) {
    const lv_timeline timeline = timeline_of(job);
    const int n = job->sequence.length < job->n_prompt ? job->sequence.length : job->n_prompt;
    for (; job->n_read < n; job->n_read++) {
        const lv_place place = job->places[job->n_read];
        const int index = place.picture - 1;
        if (index >= 0 && place.value + 1 == job->pictures[index]->n_tokens) {
            release_picture(e, job, index);
        }
    }
    if (reuses(job)) {
        lv_prefix_keep(e->prefix, &timeline, n_sure(job), &job->sequence, &job->path);
    }
}

// False where there was nothing to run.
static bool launch(lv_engine *e) {
    int n_tokens = 0;
    e->n_chunks = e->n_next_rows = 0;
    for (int i = 0; i < e->n_running; i++) {
        if (!reads_prompt(e->running[i])) {
            add_decode(e, e->running[i], &n_tokens);
        }
    }
    add_prompts(e, &n_tokens);
    if (e->n_chunks == 0) {
        return false;
    }
    const lv_status status =
        lv_llm_forward(e->model->llm, e->cache, e->chunks, e->n_chunks, &e->logits);
    if (status != LV_OK) {
        fail_running(e, status);
        return true;
    }
    e->stats.n_passes++;
    e->stats.n_pass_tokens += (uint64_t)n_tokens;
    for (int i = 0; i < e->n_running; i++) {
        note_read(e, e->running[i]);
    }
    return true;
}

// --- drawing -------------------------------------------------------------------------------------

// Row by row, where all at once failed: the others shall not suffer from one bad row.
static void draw_each(lv_engine *e) {
    lv_backend *be = e->model->be;
    const int vocab = e->model->config->text.vocab_size;
    for (int i = 0; i < e->n_rows; i++) {
        float *logits = e->logits + (size_t)i * (size_t)vocab;
        lv_status status = LV_OK;
        if (e->rows[i]) {
            status =
                be->ops->sample(be, logits, 1, vocab, &e->draws[i], &e->tokens[i], &e->logprobs[i]);
        }
        if (status != LV_OK) {
            fail(e, e->rows[i], status);
        }
    }
}

// Begins to draw all rows' tokens. False where they are known already.
static bool draw(lv_engine *e) {
    lv_backend *be = e->model->be;
    for (int i = 0; i < e->n_rows; i++) {
        e->draws[i] = (lv_sampling){0};
        if (e->rows[i]) {
            const lv_status status = lv_job_draw(e, e->rows[i], i, &e->draws[i]);
            if (status != LV_OK) {
                e->draws[i] = (lv_sampling){0};
                fail(e, e->rows[i], status);
            }
        }
    }
    const lv_status status = be->ops->sample(
        be, e->logits, e->n_rows, e->model->config->text.vocab_size, e->draws, NULL, NULL);
    if (status != LV_OK && status != LV_EDEVICE) {
        draw_each(e);
        return false;
    }
    if (status != LV_OK) {
        fail_running(e, status);
    }
    return status == LV_OK;
}

// Waits for the tokens and gives each to its request.
static void take_tokens(lv_engine *e, bool is_drawing) {
    lv_backend *be = e->model->be;
    const lv_status drawn = is_drawing ? be->ops->collect(be, e->tokens, e->logprobs) : LV_OK;
    if (drawn == LV_EDEVICE) {
        fail_running(e, drawn);
    }
    for (int i = 0; i < e->n_rows; i++) {
        lv_job *job = e->rows[i];
        bool ended = false;
        if (!job) {
            continue;
        }
        job->row = -1;
        lv_status status = drawn;
        if (status == LV_OK) {
            e->stats.n_tokens++;
            status = lv_job_take(e, job, e->tokens[i], e->logprobs[i], &ended);
        }
        if (status != LV_OK) {
            fail(e, job, status);
        } else if (ended) {
            lv_engine_end(e, job);
        }
    }
    e->n_rows = 0;
}

// Nothing runs, for pictures wait for slots that others hold who wait too: the youngest lets go.
static void unlock_pictures(lv_engine *e) {
    for (int i = e->n_running - 1; i >= 0; i--) {
        lv_job *job = e->running[i];
        for (int j = 0; j < job->n_pictures; j++) {
            if (job->slots[j] >= 0) {
                release_pictures(e, job);
                return;
            }
        }
    }
}

void lv_engine_step(lv_engine *e) {
    bool is_launched = false;
    if (e->n_rows > 0) {
        const bool is_drawing = draw(e);
        if (is_drawing && e->model->be->runs_ahead) {
            is_launched = launch(e);
        }
        take_tokens(e, is_drawing);
    }
    if (e->broken) {
        return; // what is ready is refused
    }
    admit(e);
    encode(e);
    if (!is_launched && !launch(e) && e->n_running > 0) {
        unlock_pictures(e);
    }
    lv_job **rows = e->rows;
    e->rows = e->next_rows;
    e->n_rows = e->n_next_rows;
    e->next_rows = rows;
    e->n_next_rows = 0;
    for (int i = 0; i < e->n_rows; i++) {
        if (e->rows[i]) {
            e->rows[i]->row = i;
        }
    }
}
