// One conversation: a timeline of tokens and picture rows in the KV cache, and the loop that
// answers.
#include "pipeline/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MAX_TOKENS 512
#define MAX_CHUNKS 64

// What stands at one place of the timeline: a token id, or row `offset` of a picture. Two prompts
// share a prefix exactly where these agree.
typedef struct timeline_key {
    int64_t picture; // serial + 1; 0: a token
    int32_t value;   // token id, or the row
} timeline_key;

struct lv_session {
    lv_model *model;
    lv_cache *cache;
    lv_sequence sequence;
    bool is_open;       // the sequence
    timeline_key *keys; // [session_len]; the first sequence.length are in the cache
    // The prompt at hand
    timeline_key *prompt;     // [session_len]
    const void **prompt_rows; // [session_len] dev, a picture's embedding row; NULL for a token
    int n_prompt;
    // What the sampler's penalties look at: distinct ids so far and how often each is in the answer
    int32_t *seen_ids, *seen_counts; // [vocab]
    int32_t *seen_index;             // [vocab] 1 + place in seen_ids; 0: not seen
    int n_seen;
    int32_t *ids; // [max_tokens of a pass] scratch
    // For answers bound to a grammar; made for the first of them
    lv_matcher *matcher;
    float *raw_logits; // [vocab] host
};

const char *lv_finish_name(lv_finish finish) {
    static const char *const names[] = {"stop", "length", "context", "cancelled"};
    return names[finish];
}

lv_status lv_session_open(lv_model *model, lv_session **out) {
    lv_status status = LV_OK;
    lv_session *session = calloc(1, sizeof *session);
    *out = NULL;
    if (!session) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    const size_t n = (size_t)model->session_len, vocab = (size_t)model->config->text.vocab_size;
    session->model = model;
    session->keys = calloc(n, sizeof *session->keys);
    session->prompt = calloc(n, sizeof *session->prompt);
    session->prompt_rows = calloc(n, sizeof *session->prompt_rows);
    session->seen_ids = calloc(vocab, sizeof *session->seen_ids);
    session->seen_counts = calloc(vocab, sizeof *session->seen_counts);
    session->seen_index = calloc(vocab, sizeof *session->seen_index);
    session->ids = calloc((size_t)lv_llm_max_tokens(model->llm), sizeof *session->ids);
    if (!session->keys || !session->prompt || !session->prompt_rows || !session->seen_ids ||
        !session->seen_counts || !session->seen_index || !session->ids) {
        status = lv_fail(LV_ENOMEM, "out of memory for a session of %d tokens", model->session_len);
        goto done;
    }
    LV_TRY_DONE(lv_cache_create(model->llm, (model->session_len + LV_KV_BLOCK - 1) / LV_KV_BLOCK,
                                model->kv_dtype, &session->cache));
    *out = session;
    session = NULL;
done:
    lv_session_free(session);
    return status;
}

void lv_session_free(lv_session *session) {
    if (!session) {
        return;
    }
    if (session->is_open) {
        lv_sequence_close(session->cache, &session->sequence);
    }
    lv_cache_free(session->cache);
    free(session->keys);
    free(session->prompt);
    free(session->prompt_rows);
    free(session->seen_ids);
    free(session->seen_counts);
    free(session->seen_index);
    free(session->ids);
    lv_matcher_free(session->matcher);
    free(session->raw_logits);
    free(session);
}

// --- the prompt ----------------------------------------------------------------------------------

// What the session has no room for is left out: lay_out_prompt refuses such a prompt by its length.
static void push_key(lv_session *session, timeline_key key, const void *row) {
    if (session->n_prompt < session->model->session_len) {
        session->prompt[session->n_prompt] = key;
        session->prompt_rows[session->n_prompt++] = row;
    }
}

static const lv_picture *nth_picture(const lv_message *messages, int n_messages, int n) {
    for (int i = 0; i < n_messages; i++) {
        if (n < messages[i].n_pictures) {
            return messages[i].pictures[n];
        }
        n -= messages[i].n_pictures;
    }
    return NULL;
}

// Tokens, with each picture's mark replaced by the rows of its embeddings.
static lv_status lay_out_prompt(lv_session *session, const lv_ids *ids, const lv_message *messages,
                                int n_messages, lv_answer *answer) {
    const lv_model *model = session->model;
    const size_t row_bytes = (size_t)model->config->text.d_model * lv_dtype_bytes(model->be->act);
    int n_pictures = 0, n_total = 0;
    session->n_prompt = 0;
    for (int i = 0; i < ids->n; i++) {
        if (ids->ids[i] != LV_IMAGE_TOKEN) {
            push_key(session, (timeline_key){0, ids->ids[i]}, NULL);
            n_total++;
            continue;
        }
        const lv_picture *picture = nth_picture(messages, n_messages, n_pictures++);
        if (!picture) {
            return lv_fail(LV_EINVAL, "the prompt marks more pictures than it has");
        }
        for (int row = 0; row < picture->n_tokens; row++) {
            const timeline_key key = {(int64_t)picture->serial + 1, row};
            push_key(session, key, (const char *)picture->embeddings + (size_t)row * row_bytes);
        }
        n_total += picture->n_tokens;
        answer->n_image_tokens += picture->n_tokens;
    }
    answer->n_prompt_tokens = n_total;
    if (n_total >= model->session_len) {
        return lv_fail(
            LV_ELIMIT,
            "the prompt is %d tokens (%d of them pictures), but a session holds %d: shorten "
            "the conversation or raise the session length",
            n_total, answer->n_image_tokens, model->session_len);
    }
    return LV_OK;
}

// The ids as the reference's processor gives them: llava-hf repeats <image> for each row, the
// original family has one mark a picture.
static lv_status dump_ids(const lv_session *session, const lv_ids *ids, const char *dump_dir) {
    const int image_id = session->model->config->image_token_id;
    const int n = image_id >= 0 ? session->n_prompt : ids->n;
    int64_t *out = calloc((size_t)n, sizeof *out);
    if (!out) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    for (int i = 0; i < n; i++) {
        if (image_id < 0) {
            out[i] = ids->ids[i];
        } else {
            out[i] = session->prompt[i].picture ? image_id : session->prompt[i].value;
        }
    }
    const lv_status status =
        lv_dump(dump_dir, "input_ids", 0, LV_I64, out, 1, (const int64_t[]){n});
    free(out);
    return status;
}

static lv_status build_prompt(lv_session *session, const lv_message *messages, int n_messages,
                              const char *dump_dir, lv_answer *answer) {
    lv_status status = LV_OK;
    lv_ids ids = {0};
    int n_encoded = 0;
    lv_turn *turns = calloc((size_t)n_messages, sizeof *turns);
    if (!turns) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    const double start = lv_now_ms();
    for (int i = 0; i < n_messages; i++) {
        turns[i] = (lv_turn){messages[i].role, messages[i].text, messages[i].n_pictures};
        for (int j = 0; j < messages[i].n_pictures; j++) {
            LV_TRY_DONE(lv_picture_encode(messages[i].pictures[j], dump_dir, n_encoded++));
        }
    }
    answer->encode_ms = lv_now_ms() - start;
    LV_TRY_DONE(lv_prompt_build(session->model->tokenizer, session->model->template_id, turns,
                                n_messages, &ids));
    LV_TRY_DONE(lay_out_prompt(session, &ids, messages, n_messages, answer));
    if (dump_dir) {
        LV_TRY_DONE(dump_ids(session, &ids, dump_dir));
    }
done:
    free(turns);
    lv_ids_free(&ids);
    return status;
}

// --- the cache -----------------------------------------------------------------------------------

// Keeps what the cache and the new prompt share. A limit that changes the rotary frequencies makes
// all cached keys useless, so the timeline starts anew then.
static lv_status reuse_prefix(lv_session *session, int limit, lv_answer *answer) {
    lv_model *model = session->model;
    lv_sequence *old = &session->sequence, fresh;
    LV_TRY(lv_sequence_open(model->llm, limit,
                            model->has_rope_scaling ? &model->rope_scaling : NULL, &fresh));
    const size_t freq_bytes = (size_t)model->config->text.head_dim / 2 * sizeof(float);
    // The last token is always run: its logits are wanted.
    int shared = 0;
    if (session->is_open && old->rope_scale == fresh.rope_scale &&
        memcmp(old->inv_freq, fresh.inv_freq, freq_bytes) == 0) {
        while (shared < old->length && shared < session->n_prompt - 1 &&
               session->keys[shared].picture == session->prompt[shared].picture &&
               session->keys[shared].value == session->prompt[shared].value) {
            shared++;
        }
        // Its blocks move: a sequence has room for as many as its own limit needs.
        lv_sequence_truncate(session->cache, old, shared);
        memcpy(fresh.blocks, old->blocks, (size_t)old->n_blocks * sizeof *fresh.blocks);
        fresh.n_blocks = old->n_blocks;
        fresh.length = old->length;
        old->n_blocks = old->length = 0;
    }
    if (session->is_open) {
        lv_sequence_close(session->cache, old);
    }
    session->sequence = fresh;
    session->is_open = true;
    answer->n_reused_tokens = shared;
    return LV_OK;
}

// One pass over the prompt's places [first, first + n), as runs of ids and of picture rows.
static lv_status prefill_pass(lv_session *session, int first, int *n, bool is_last,
                              float **out_logits) {
    lv_chunk chunks[MAX_CHUNKS];
    int n_chunks = 0, i = first;
    const int end = first + *n;
    while (i < end && n_chunks < MAX_CHUNKS) {
        const int start = i;
        const int64_t picture = session->prompt[i].picture;
        // A picture may stand twice with nothing between: its rows start anew there.
        while (i < end && session->prompt[i].picture == picture &&
               (!picture || session->prompt[i].value == session->prompt[start].value + i - start)) {
            session->ids[i - first] = session->prompt[i].value;
            i++;
        }
        chunks[n_chunks++] = (lv_chunk){.sequence = &session->sequence,
                                        .ids = picture ? NULL : session->ids + (start - first),
                                        .embeddings = picture ? session->prompt_rows[start] : NULL,
                                        .n = i - start};
    }
    chunks[n_chunks - 1].want_logits = is_last && i == end;
    *n = i - first;
    return lv_llm_forward(session->model->llm, session->cache, chunks, n_chunks, out_logits);
}

// LV_ECANCELLED where the callback says stop between two passes.
static lv_status prefill(lv_session *session, lv_text_callback on_text, void *user,
                         float **out_logits) {
    const int max_tokens = lv_llm_max_tokens(session->model->llm);
    for (int first = session->sequence.length; first < session->n_prompt;) {
        if (on_text && !on_text(user, "")) {
            return LV_ECANCELLED;
        }
        int n = session->n_prompt - first < max_tokens ? session->n_prompt - first : max_tokens;
        LV_TRY(prefill_pass(session, first, &n, first + n == session->n_prompt, out_logits));
        memcpy(session->keys + first, session->prompt + first, (size_t)n * sizeof *session->keys);
        first += n;
    }
    return LV_OK;
}

// --- the answer ----------------------------------------------------------------------------------

static void see(lv_session *session, int32_t id, int in_answer) {
    if (!session->seen_index[id]) {
        session->seen_ids[session->n_seen] = id;
        session->seen_counts[session->n_seen] = 0;
        session->seen_index[id] = ++session->n_seen;
    }
    session->seen_counts[session->seen_index[id] - 1] += in_answer;
}

static void see_prompt(lv_session *session) {
    for (int i = 0; i < session->n_seen; i++) {
        session->seen_index[session->seen_ids[i]] = 0;
    }
    session->n_seen = 0;
    for (int i = 0; i < session->n_prompt; i++) {
        if (!session->prompt[i].picture) {
            see(session, session->prompt[i].value, 0);
        }
    }
}

static bool is_eos(const lv_text_config *text, int32_t id) {
    for (int i = 0; i < text->n_eos; i++) {
        if (text->eos_ids[i] == id) {
            return true;
        }
    }
    return false;
}

static lv_status start_grammar(lv_session *session, const lv_grammar *grammar) {
    if (!session->matcher) {
        LV_TRY(lv_matcher_open(session->model->vocabulary, &session->matcher));
    }
    if (!session->raw_logits) {
        const size_t vocab = (size_t)session->model->config->text.vocab_size;
        session->raw_logits = calloc(vocab, sizeof *session->raw_logits);
        if (!session->raw_logits) {
            return lv_fail(LV_ENOMEM, "out of memory");
        }
    }
    return lv_matcher_start(session->matcher, grammar);
}

// Whether the model, left alone, would likeliest end the answer here.
static lv_status wants_end(lv_session *session, const float *logits, bool *out) {
    const lv_backend *be = session->model->be;
    const lv_text_config *text = &session->model->config->text;
    const float *raw = session->raw_logits;
    int32_t best = 0;
    LV_TRY(be->ops->download(session->model->be, session->raw_logits, logits,
                             (size_t)text->vocab_size * sizeof *raw));
    for (int32_t id = 1; id < text->vocab_size; id++) {
        best = raw[id] > raw[best] ? id : best;
    }
    *out = is_eos(text, best);
    return LV_OK;
}

// The tokens that the grammar allows next, of n_left that the answer may still have. *is_cut is set
// where these are so few that they rule some out.
static lv_status allow(lv_session *session, int n_left, const float *logits, const uint32_t **out,
                       bool *is_cut) {
    bool is_short = false;
    lv_matcher_wish wish = {.n_left = n_left};
    if (!lv_matcher_is_complete(session->matcher)) {
        LV_TRY(wants_end(session, logits, &wish.closing));
    }
    LV_TRY(lv_matcher_allowed(session->matcher, wish, out, &is_short));
    *is_cut = *is_cut || is_short;
    return LV_OK;
}

// Begins to draw the next token; lv_ops.collect gives it.
static lv_status sample(lv_session *session, const lv_params *params, int step,
                        const uint32_t *allowed, float *logits) {
    lv_backend *be = session->model->be;
    const lv_sampling row = {.temperature = params->temperature,
                             .top_k = params->top_k,
                             .top_p = params->top_p,
                             .min_p = params->min_p,
                             .repetition_penalty = params->repetition_penalty,
                             .presence_penalty = params->presence_penalty,
                             .frequency_penalty = params->frequency_penalty,
                             .seed = params->seed,
                             .step = (uint64_t)step,
                             .seen_ids = session->seen_ids,
                             .seen_counts = session->seen_counts,
                             .n_seen = session->n_seen,
                             .allowed = allowed};
    return be->ops->sample(be, logits, 1, session->model->config->text.vocab_size, &row, NULL,
                           NULL);
}

// Feeds the token drawn last, or -1 for the one that is still being drawn.
static lv_status step(lv_session *session, int32_t id, float **out_logits) {
    const lv_chunk chunk = {
        .sequence = &session->sequence, .ids = &id, .n = 1, .want_logits = true};
    return lv_llm_forward(session->model->llm, session->cache, &chunk, 1, out_logits);
}

// Draws, shows and feeds back tokens until something ends the answer. A device that runs ahead is
// given the next step before the host looks at the token it starts from; the caller takes that step
// back where the answer has ended.
static lv_status decode(lv_session *session, const lv_params *params, int max_tokens, double start,
                        float *logits, lv_answer_stream *stream, lv_answer *answer) {
    lv_model *model = session->model;
    const lv_text_config *text = &model->config->text;
    bool is_cut = false; // to be whole in time
    for (;;) {
        int32_t id;
        bool is_stopped = false;
        const int n_cached = session->n_prompt + answer->n_tokens;
        const int n_room = model->session_len - n_cached + 1;
        const int n_left = max_tokens - answer->n_tokens;
        const lv_finish full = n_left <= n_room ? LV_FINISH_LENGTH : LV_FINISH_CONTEXT;
        const bool runs_ahead = model->be->runs_ahead && n_left > 1 && n_room > 1;
        const uint32_t *allowed = NULL;
        if (params->grammar) {
            LV_TRY(allow(session, n_left < n_room ? n_left : n_room, logits, &allowed, &is_cut));
        }
        LV_TRY(sample(session, params, answer->n_tokens, allowed, logits));
        if (runs_ahead) {
            LV_TRY(step(session, -1, &logits));
        }
        LV_TRY(model->be->ops->collect(model->be, &id, NULL));
        if (answer->n_tokens == 0) {
            answer->first_token_ms = lv_now_ms() - start;
        }
        answer->n_tokens++;
        answer->finish = is_cut ? full : LV_FINISH_STOP;
        if (is_eos(text, id)) {
            return LV_OK;
        }
        see(session, id, 1);
        const lv_status status = lv_answer_stream_push(stream, id, &is_stopped);
        if (status == LV_ECANCELLED) {
            answer->finish = LV_FINISH_CANCELLED;
            return LV_OK;
        }
        LV_TRY(status);
        if (is_stopped) {
            return LV_OK;
        }
        if (params->grammar) {
            LV_TRY(lv_matcher_push(session->matcher, id));
            if (lv_matcher_is_final(session->matcher)) {
                return LV_OK;
            }
        }
        if (n_left == 1 || n_room == 1) {
            answer->finish = n_left == 1 ? LV_FINISH_LENGTH : LV_FINISH_CONTEXT;
            return LV_OK;
        }
        session->keys[n_cached] = (timeline_key){0, id};
        if (!runs_ahead) {
            LV_TRY(step(session, id, &logits));
        }
    }
}

static lv_status dump_logits(const lv_session *session, const float *logits, const char *dump_dir) {
    lv_backend *be = session->model->be;
    const int64_t vocab = session->model->config->text.vocab_size;
    float *host = malloc((size_t)vocab * sizeof *host);
    if (!host) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_status status = be->ops->download(be, host, logits, (size_t)vocab * sizeof *host);
    if (status == LV_OK) {
        status = lv_dump(dump_dir, "logits", 0, LV_F32, host, 1, &vocab);
    }
    free(host);
    return status;
}

lv_status lv_session_answer(lv_session *session, const lv_message *messages, int n_messages,
                            const lv_params *params, lv_text_callback on_text, void *user,
                            lv_answer *out) {
    static const lv_params defaults = {0};
    lv_model *model = session->model;
    lv_status status = LV_OK;
    lv_answer_stream *stream = NULL;
    float *logits = NULL;
    const double start = lv_now_ms();
    memset(out, 0, sizeof *out);
    params = params ? params : &defaults;
    const int max_tokens = params->max_tokens > 0 ? params->max_tokens : DEFAULT_MAX_TOKENS;
    if (n_messages < 1) {
        return lv_fail(LV_EINVAL, "a conversation without messages");
    }

    if (params->grammar) {
        LV_TRY_DONE(start_grammar(session, params->grammar));
    }
    LV_TRY_DONE(build_prompt(session, messages, n_messages, params->dump_dir, out));
    const int room = model->session_len - session->n_prompt;
    const int limit = session->n_prompt + (max_tokens < room ? max_tokens : room);
    LV_TRY_DONE(reuse_prefix(session, limit, out));
    see_prompt(session);

    const double prefill_start = lv_now_ms();
    status = prefill(session, on_text, user, &logits);
    if (status == LV_ECANCELLED) {
        out->finish = LV_FINISH_CANCELLED;
        out->text = strdup("");
        status = out->text ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
        goto done;
    }
    LV_TRY_DONE(status);
    LV_TRY_DONE(model->be->ops->sync(model->be));
    if (params->dump_dir) {
        LV_TRY_DONE(dump_logits(session, logits, params->dump_dir));
    }
    const double decode_start = lv_now_ms();
    out->prefill_ms = decode_start - prefill_start;

    // A template's stop word may stand in a string of a bound answer, which knows its own end.
    LV_TRY_DONE(lv_answer_stream_open(
        model->tokenizer, params->stop, params->n_stop,
        params->grammar ? NULL : lv_template_stops(model->template_id), on_text, user, &stream));
    status = decode(session, params, max_tokens, start, logits, stream, out);
    lv_sequence_truncate(session->cache, &session->sequence,
                         session->n_prompt + (out->n_tokens > 0 ? out->n_tokens - 1 : 0));
    LV_TRY_DONE(status);
    LV_TRY_DONE(lv_answer_stream_finish(stream, &out->text));
    out->decode_ms = lv_now_ms() - decode_start;
done:
    lv_answer_stream_free(stream);
    return status;
}

void lv_answer_free(lv_answer *answer) {
    free(answer->text);
    answer->text = NULL;
}
