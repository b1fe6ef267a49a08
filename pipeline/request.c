// A request: copied, checked, made ready for the decoder, and ended.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/engine.h"

#define MAX_MESSAGES 65536

// --- parameters ----------------------------------------------------------------------------------

static lv_status check_params(const lv_params *p) {
    const struct {
        const char *name;
        double value, min, max;
    } numbers[] = {{"max_tokens", p->max_tokens, 0, 1 << 24},
                   {"temperature", (double)p->temperature, 0, 10},
                   {"top_p", (double)p->top_p, 0, 1},
                   {"min_p", (double)p->min_p, 0, 1},
                   {"top_k", p->top_k, 0, INT32_MAX},
                   {"repetition_penalty", (double)p->repetition_penalty, 0, 10},
                   {"presence_penalty", (double)p->presence_penalty, -2, 2},
                   {"frequency_penalty", (double)p->frequency_penalty, -2, 2},
                   {"top_logprobs", p->top_logprobs, 0, LV_MAX_TOP_LOGPROBS},
                   {"number of stop strings", p->n_stop, 0, LV_MAX_STOPS}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (!(numbers[i].value >= numbers[i].min && numbers[i].value <= numbers[i].max)) {
            return lv_fail(LV_EINVAL, "%s is %g; expected %g to %g", numbers[i].name,
                           numbers[i].value, numbers[i].min, numbers[i].max);
        }
    }
    if (p->repetition_penalty > 0 && p->repetition_penalty < 0.01f) {
        return lv_fail(LV_EINVAL, "repetition_penalty is %g; expected 0.01 to 10",
                       (double)p->repetition_penalty);
    }
    if (p->ignore_eos && p->grammar) {
        return lv_fail(LV_EINVAL, "ignore_eos does not go with a grammar, which says where to end");
    }
    for (int i = 0; i < p->n_stop; i++) {
        if (strlen(p->stop[i]) > LV_MAX_STOP_BYTES) {
            return lv_fail(LV_EINVAL, "a stop string of %zu bytes; at most %d", strlen(p->stop[i]),
                           LV_MAX_STOP_BYTES);
        }
    }
    return LV_OK;
}

static lv_status copy_text(const char *text, const char **out) {
    *out = strdup(text);
    return *out ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
}

// The copy's strings are freed by free_params, also after a failure.
static lv_status copy_params(const lv_params *from, lv_params *out) {
    *out = *from;
    out->stop = NULL;
    out->n_stop = 0;
    out->dump_dir = NULL;
    out->max_tokens = from->max_tokens ? from->max_tokens : LV_DEFAULT_MAX_TOKENS;
    if (from->dump_dir) {
        LV_TRY(copy_text(from->dump_dir, &out->dump_dir));
    }
    const char **stop = calloc((size_t)from->n_stop + 1, sizeof *stop);
    out->stop = stop;
    if (!stop) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    for (; out->n_stop < from->n_stop; out->n_stop++) {
        LV_TRY(copy_text(from->stop[out->n_stop], &stop[out->n_stop]));
    }
    return LV_OK;
}

static void free_params(lv_params *params) {
    for (int i = 0; i < params->n_stop; i++) {
        free((char *)(uintptr_t)params->stop[i]);
    }
    free((void *)(uintptr_t)params->stop);
    free((char *)(uintptr_t)params->dump_dir);
}

// --- copying -------------------------------------------------------------------------------------

static lv_status copy_messages(const lv_request *request, lv_job *job) {
    const size_t n_messages = (size_t)request->n_messages;
    size_t n_pictures = 0;
    for (size_t i = 0; i < n_messages; i++) {
        n_pictures += (size_t)request->messages[i].n_pictures;
    }
    job->turns = calloc(n_messages, sizeof *job->turns);
    job->pictures = calloc(n_pictures + 1, sizeof(lv_picture *));
    job->slots = calloc(n_pictures + 1, sizeof *job->slots);
    if (!job->turns || !job->pictures || !job->slots) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < n_messages; i++) {
        const lv_message *message = &request->messages[i];
        lv_turn *turn = &job->turns[job->n_turns++];
        turn->n_images = message->n_pictures;
        LV_TRY(copy_text(message->role, &turn->role));
        LV_TRY(copy_text(message->text, &turn->text));
        for (int j = 0; j < message->n_pictures; j++) {
            job->slots[job->n_pictures] = LV_SLOT_NONE;
            job->pictures[job->n_pictures++] = lv_picture_hold(message->pictures[j]);
        }
    }
    return LV_OK;
}

lv_status lv_job_create(const lv_request *request, lv_job **out) {
    lv_status status = LV_OK;
    lv_job *job = NULL;
    *out = NULL;
    if (request->n_messages < 1 || request->n_messages > MAX_MESSAGES || !request->on_done) {
        return lv_fail(LV_EINVAL, "a request of %d messages; it takes 1 to %d, and on_done",
                       request->n_messages, MAX_MESSAGES);
    }
    for (int i = 0; i < request->n_messages; i++) {
        if (!request->messages[i].role || !request->messages[i].text ||
            request->messages[i].n_pictures < 0) {
            return lv_fail(LV_EINVAL, "message %d has no role, no text, or %d pictures", i + 1,
                           request->messages[i].n_pictures);
        }
    }
    LV_TRY(check_params(&request->params));
    job = calloc(1, sizeof *job);
    if (!job) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    atomic_init(&job->cancelled, false);
    job->submit_ms = lv_now_ms();
    job->row = -1;
    job->on_text = request->on_text;
    job->on_done = request->on_done;
    job->user = request->user;
    LV_TRY_DONE(copy_params(&request->params, &job->params));
    LV_TRY_DONE(copy_messages(request, job));
    *out = job;
    job = NULL;
done:
    lv_job_free(job);
    return status;
}

void lv_job_free(lv_job *job) {
    if (!job) {
        return;
    }
    for (int i = 0; i < job->n_turns; i++) {
        free((char *)(uintptr_t)job->turns[i].role);
        free((char *)(uintptr_t)job->turns[i].text);
    }
    for (int i = 0; i < job->n_pictures; i++) {
        lv_picture_free(job->pictures[i]);
    }
    free_params(&job->params);
    free(job->turns);
    free(job->pictures);
    free(job->slots);
    free(job->places);
    free(job->reason);
    free(job->seen_ids);
    free(job->seen_counts);
    free(job->seen_index);
    lv_matcher_free(job->matcher);
    lv_answer_stream_free(job->stream);
    lv_answer_free(&job->answer);
    free(job);
}

// --- making ready --------------------------------------------------------------------------------

void lv_job_fail(lv_job *job, lv_status status) {
    if (job->status == LV_OK) {
        job->status = status;
        job->reason = strdup(lv_error());
    }
}

static bool goes_on(void *user) {
    return !atomic_load(&((lv_job *)user)->cancelled);
}

// How long the answer may get, and whether it can ever be given.
static lv_status set_limits(lv_job *job, const lv_model *model, int n_cache_tokens) {
    const int n = job->n_prompt, room = model->session_len - n;
    const int max_tokens = job->params.max_tokens;
    if (room <= 0) {
        return lv_fail(LV_ELIMIT,
                       "the prompt is %d tokens (%d of them pictures), but a session holds %d: "
                       "shorten the conversation or raise the session length",
                       n, job->answer.n_image_tokens, model->session_len);
    }
    job->limit = n + (max_tokens < room ? max_tokens : room);
    // The last token of an answer is not read again, so it needs no place.
    job->max_draws = max_tokens <= room + 1 ? max_tokens : room + 1;
    if (job->limit > n_cache_tokens) {
        return lv_fail(LV_ELIMIT,
                       "the prompt of %d tokens and an answer of %d need %d places, but the cache "
                       "has %d: ask for a shorter answer or give the cache more memory",
                       n, max_tokens, job->limit, n_cache_tokens);
    }
    lv_place *places = realloc(job->places, ((size_t)job->limit + 1) * sizeof *places);
    if (!places) {
        return lv_fail(LV_ENOMEM, "out of memory for %d tokens", job->limit);
    }
    job->places = places;
    return LV_OK;
}

static lv_status prepare(lv_job *job, const lv_model *model, int n_cache_tokens) {
    for (int i = 0; i < job->n_pictures; i++) {
        if (job->pictures[i]->model != model) {
            return lv_fail(LV_EINVAL, "a picture of another model");
        }
        LV_TRY(lv_picture_make(job->pictures[i], goes_on, job));
    }
    LV_TRY(lv_timeline_lay(model, job->turns, job->n_turns, job->pictures, job->n_pictures,
                           job->params.dump_dir, &job->places, &job->n_prompt,
                           &job->answer.n_image_tokens));
    job->n_known = job->answer.n_prompt_tokens = job->n_prompt;
    return set_limits(job, model, n_cache_tokens);
}

void lv_job_prepare(lv_job *job, const lv_model *model, int n_cache_tokens) {
    const lv_status status = prepare(job, model, n_cache_tokens);
    if (status != LV_OK) {
        lv_job_fail(job, status);
    }
}

// --- the end -------------------------------------------------------------------------------------

// What there is of the answer's text.
static lv_status finish(lv_job *job) {
    if (!job->stream) {
        job->answer.text = strdup("");
        return job->answer.text ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    }
    return lv_answer_stream_finish(job->stream, &job->answer);
}

void lv_job_end(lv_job *job) {
    const double now = lv_now_ms();
    lv_answer *answer = &job->answer;
    if (atomic_load(&job->cancelled)) { // a transfer that was stopped has failed for that only
        free(job->reason);
        job->reason = NULL;
        job->status = LV_OK;
        answer->finish = LV_FINISH_CANCELLED;
    }
    if (job->status == LV_OK) {
        const lv_status status = finish(job);
        if (status != LV_OK) {
            lv_job_fail(job, status);
        }
    }
    if (job->first_token_ms > 0) {
        answer->first_token_ms = job->first_token_ms - job->submit_ms;
        answer->prefill_ms = job->first_token_ms - job->prefill_start_ms;
        answer->decode_ms = now - job->first_token_ms;
    }
    if (job->status == LV_OK) {
        job->on_done(job->user, LV_OK, NULL, answer);
    } else {
        job->on_done(job->user, job->status, job->reason ? job->reason : "out of memory", NULL);
    }
    lv_job_free(job);
}

void lv_answer_free(lv_answer *answer) {
    free(answer->text);
    free(answer->tokens);
    *answer = (lv_answer){0};
}

const char *lv_finish_name(lv_finish finish_reason) {
    static const char *const names[] = {"stop", "length", "context", "cancelled"};
    return names[finish_reason];
}
