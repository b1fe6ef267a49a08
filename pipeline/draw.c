// One request's tokens: how the next one is drawn, and what becomes of it.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/engine.h"

// --- penalties -----------------------------------------------------------------------------------

static bool has_penalties(const lv_params *p) {
    return (p->repetition_penalty > 0 && p->repetition_penalty != 1) || p->presence_penalty != 0 ||
           p->frequency_penalty != 0;
}

static void see(lv_job *job, int32_t id, int in_answer) {
    if (!job->seen_index) {
        return;
    }
    if (!job->seen_index[id]) {
        job->seen_ids[job->n_seen] = id;
        job->seen_counts[job->n_seen] = 0;
        job->seen_index[id] = ++job->n_seen;
    }
    job->seen_counts[job->seen_index[id] - 1] += in_answer;
}

static lv_status open_penalties(lv_job *job, size_t vocab) {
    job->seen_ids = calloc(vocab, sizeof *job->seen_ids);
    job->seen_counts = calloc(vocab, sizeof *job->seen_counts);
    job->seen_index = calloc(vocab, sizeof *job->seen_index);
    if (!job->seen_ids || !job->seen_counts || !job->seen_index) {
        return lv_fail(LV_ENOMEM, "out of memory for penalties");
    }
    for (int i = 0; i < job->n_prompt; i++) {
        if (!job->places[i].picture) {
            see(job, job->places[i].value, 0);
        }
    }
    return LV_OK;
}

lv_status lv_job_open_answer(lv_engine *engine, lv_job *job) {
    const lv_model *model = engine->model;
    const lv_params *params = &job->params;
    if (has_penalties(params)) {
        LV_TRY(open_penalties(job, (size_t)model->config->text.vocab_size));
    }
    if (params->grammar) {
        LV_TRY(lv_matcher_open(model->vocabulary, &job->matcher));
        LV_TRY(lv_matcher_start(job->matcher, params->grammar));
    }
    // A template's stop word may stand in a string of a bound answer, which knows its own end.
    return lv_answer_stream_open(model->tokenizer, params->stop, params->n_stop,
                                 params->grammar ? NULL : lv_template_stops(model->template_id),
                                 job->on_text, job->user, &job->stream);
}

// --- before the draw -----------------------------------------------------------------------------

static bool is_eos(const lv_text_config *text, int32_t id) {
    for (int i = 0; i < text->n_eos; i++) {
        if (text->eos_ids[i] == id) {
            return true;
        }
    }
    return false;
}

// The tokens that the grammar allows next.
static lv_status allow(const lv_engine *engine, lv_job *job, const uint32_t **out) {
    const lv_text_config *text = &engine->model->config->text;
    const float *raw = engine->raw;
    lv_matcher_wish wish = {.n_left = job->max_draws - job->answer.n_tokens};
    bool is_short = false;
    if (!lv_matcher_is_complete(job->matcher)) { // whether the model would end here, left alone
        int32_t best = 0;
        for (int32_t id = 1; id < text->vocab_size; id++) {
            best = raw[id] > raw[best] ? id : best;
        }
        wish.closing = is_eos(text, best);
    }
    LV_TRY(lv_matcher_allowed(job->matcher, wish, out, &is_short));
    job->is_cut = job->is_cut || is_short;
    return LV_OK;
}

// The likeliest tokens by an insertion sort: most of a row fail the first comparison.
static void find_top(const float *raw, int vocab, int n, lv_token *out) {
    int n_found = 0;
    double sum = 0;
    float max = raw[0];
    for (int id = 0; id < vocab; id++) {
        max = raw[id] > max ? raw[id] : max;
        if (n_found == n && (n == 0 || raw[id] <= out->top[n - 1].logprob)) {
            continue;
        }
        int at = n_found < n ? n_found++ : n - 1;
        for (; at > 0 && out->top[at - 1].logprob < raw[id]; at--) {
            out->top[at] = out->top[at - 1];
        }
        out->top[at].id = id;
        out->top[at].logprob = raw[id];
    }
    for (int id = 0; id < vocab; id++) {
        sum += exp((double)(raw[id] - max));
    }
    for (int i = 0; i < n_found; i++) {
        out->top[i].logprob = (float)((double)(out->top[i].logprob - max) - log(sum));
    }
}

lv_status lv_job_draw(lv_engine *engine, lv_job *job, int row, lv_sampling *out) {
    lv_backend *be = engine->model->be;
    const lv_params *params = &job->params;
    const int vocab = engine->model->config->text.vocab_size;
    const int n_top = params->logprobs ? params->top_logprobs : 0;
    const uint32_t *allowed = NULL;
    const bool is_first = job->answer.n_tokens == 0 && params->dump_dir;
    if (job->matcher || n_top > 0 || is_first) {
        const float *logits = engine->logits + (size_t)row * (size_t)vocab;
        LV_TRY(be->ops->download(be, engine->raw, logits, (size_t)vocab * sizeof *logits));
    }
    if (is_first) {
        LV_TRY(lv_dump(params->dump_dir, "logits", 0, LV_F32, engine->raw, 1,
                       (const int64_t[]){vocab}));
    }
    if (job->matcher) {
        LV_TRY(allow(engine, job, &allowed));
    }
    if (n_top > 0) {
        find_top(engine->raw, vocab, n_top, &job->token);
    }
    *out = (lv_sampling){.temperature = params->temperature,
                         .top_k = params->top_k,
                         .top_p = params->top_p,
                         .min_p = params->min_p,
                         .repetition_penalty = params->repetition_penalty,
                         .presence_penalty = params->presence_penalty,
                         .frequency_penalty = params->frequency_penalty,
                         .seed = params->seed,
                         .step = (uint64_t)job->answer.n_tokens,
                         .seen_ids = job->seen_ids,
                         .seen_counts = job->seen_counts,
                         .n_seen = job->n_seen,
                         .allowed = allowed,
                         .want_logprob = params->logprobs};
    return LV_OK;
}

// --- after the draw ------------------------------------------------------------------------------

bool lv_job_may_go_on(const lv_job *job) {
    return job->answer.n_tokens + 1 < job->max_draws;
}

lv_status lv_job_take(lv_engine *engine, lv_job *job, int32_t token, float logprob,
                      bool *out_ended) {
    const lv_text_config *text = &engine->model->config->text;
    const bool may_go_on = lv_job_may_go_on(job);
    const lv_finish full =
        job->max_draws == job->params.max_tokens ? LV_FINISH_LENGTH : LV_FINISH_CONTEXT;
    bool is_stopped = false;
    *out_ended = true;
    if (job->answer.n_tokens == 0) {
        job->first_token_ms = lv_now_ms();
    }
    job->answer.n_tokens++;
    job->answer.finish = job->is_cut ? full : LV_FINISH_STOP;
    if (is_eos(text, token) && !job->params.ignore_eos) {
        return LV_OK;
    }
    see(job, token, 1);
    job->token.id = token;
    job->token.logprob = logprob;
    const lv_status status = lv_answer_stream_push(
        job->stream, token, job->params.logprobs ? &job->token : NULL, &is_stopped);
    if (status == LV_ECANCELLED) {
        atomic_store(&job->cancelled, true);
        return LV_OK;
    }
    LV_TRY(status);
    if (is_stopped) {
        return LV_OK;
    }
    if (job->matcher) {
        LV_TRY(lv_matcher_push(job->matcher, token));
        if (lv_matcher_is_final(job->matcher)) {
            return LV_OK;
        }
    }
    if (!may_go_on) {
        job->answer.finish = full;
        return LV_OK;
    }
    job->places[job->n_known++] = (lv_place){0, token};
    *out_ended = false;
    return LV_OK;
}
