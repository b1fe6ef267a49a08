// An answer's text as it grows. Held back until sure: bytes of an unfinished character (the
// detokeniser), anything that may become a stop string, and white space that may be the answer's
// end.
#include "pipeline/internal.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STOPS 64
#define MAX_ANSWER_BYTES ((size_t)16 << 20)

struct lv_answer_stream {
    lv_detokenizer *detokenizer;
    const char *stops[MAX_STOPS];
    int n_stops;
    lv_text_callback on_text;
    void *user;
    lv_buffer text;   // the whole answer so far, its leading white space dropped
    size_t n_sent;    // bytes of it that the callback has seen
    bool is_cut;      // a stop string ended it
    bool is_unwanted; // the callback has said so: the answer is what it saw
    lv_token *tokens; // [n_tokens], where they are wanted
    size_t *ends;     // [n_tokens] bytes of the text up to the token's own last one
    int n_tokens, capacity;
    int n_tokens_sent;
};

lv_status lv_answer_stream_open(const lv_tokenizer *tokenizer, const char *const *stops,
                                int n_stops, const char *const *more_stops,
                                lv_text_callback on_text, void *user, lv_answer_stream **out) {
    lv_answer_stream *stream = calloc(1, sizeof *stream);
    *out = NULL;
    if (!stream) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    stream->on_text = on_text;
    stream->user = user;
    stream->text.max_bytes = MAX_ANSWER_BYTES;
    for (int i = 0; i < n_stops && stream->n_stops < MAX_STOPS; i++) {
        if (*stops[i]) {
            stream->stops[stream->n_stops++] = stops[i];
        }
    }
    for (int i = 0; more_stops && more_stops[i] && stream->n_stops < MAX_STOPS; i++) {
        stream->stops[stream->n_stops++] = more_stops[i];
    }
    lv_status status = lv_detokenizer_open(tokenizer, &stream->detokenizer);
    if (status == LV_OK) {
        status = lv_buffer_append(&stream->text, "", 0);
    }
    if (status != LV_OK) {
        lv_answer_stream_free(stream);
        return status;
    }
    *out = stream;
    return LV_OK;
}

void lv_answer_stream_free(lv_answer_stream *stream) {
    if (stream) {
        lv_detokenizer_free(stream->detokenizer);
        lv_buffer_free(&stream->text);
        free(stream->tokens);
        free(stream->ends);
        free(stream);
    }
}

// Cuts the text at the first stop string that begins at or after `from`.
static bool cut_at_stop(lv_answer_stream *stream, size_t from) {
    char *text = (char *)stream->text.data;
    char *first = NULL;
    for (int i = 0; i < stream->n_stops; i++) {
        char *found = strstr(text + from, stream->stops[i]);
        if (found && (!first || found < first)) {
            first = found;
        }
    }
    if (first) {
        *first = 0;
        stream->is_cut = true;
        stream->text.n_bytes = (size_t)(first - text);
    }
    return first != NULL;
}

// How many bytes at the end of the text may be the beginning of a stop string.
static size_t pending_stop_bytes(const lv_answer_stream *stream) {
    const char *text = (const char *)stream->text.data;
    const size_t n = stream->text.n_bytes;
    size_t longest = 0;
    for (int i = 0; i < stream->n_stops; i++) {
        const size_t stop_bytes = strlen(stream->stops[i]);
        for (size_t k = stop_bytes - 1 < n ? stop_bytes - 1 : n; k > longest; k--) {
            if (memcmp(text + n - k, stream->stops[i], k) == 0) {
                longest = k;
            }
        }
    }
    return longest;
}

static size_t trimmed_length(const char *text, size_t n) {
    while (n > 0 && isspace((unsigned char)text[n - 1])) {
        n--;
    }
    return n;
}

// How many tokens lie wholly within the first n bytes.
static int tokens_within(const lv_answer_stream *stream, size_t n) {
    int i = stream->n_tokens_sent;
    while (i < stream->n_tokens && stream->ends[i] <= n) {
        i++;
    }
    return i;
}

// Shows the callback the text up to byte `end`, less white space at its end.
static lv_status send_up_to(lv_answer_stream *stream, size_t end) {
    char *text = (char *)stream->text.data;
    end = trimmed_length(text, end);
    if (end <= stream->n_sent) {
        return LV_OK;
    }
    bool go_on = true;
    const int n_tokens = tokens_within(stream, end);
    if (stream->on_text) {
        const char kept = text[end];
        text[end] = 0;
        const lv_piece piece = {.text = text + stream->n_sent,
                                .tokens = stream->tokens + stream->n_tokens_sent,
                                .n_tokens = n_tokens - stream->n_tokens_sent};
        go_on = stream->on_text(stream->user, &piece);
        text[end] = kept;
    }
    stream->n_sent = end;
    stream->n_tokens_sent = n_tokens;
    stream->is_unwanted = !go_on;
    return go_on ? LV_OK : LV_ECANCELLED;
}

static lv_status append(lv_answer_stream *stream, const char *text) {
    if (stream->text.n_bytes == 0) {
        while (isspace((unsigned char)*text)) {
            text++;
        }
    }
    return lv_buffer_append(&stream->text, text, strlen(text));
}

// Notes a token whose text has just been appended.
static lv_status note_token(lv_answer_stream *stream, const lv_token *token) {
    if (stream->n_tokens == stream->capacity) {
        const int capacity = stream->capacity ? 2 * stream->capacity : 64;
        lv_token *tokens = realloc(stream->tokens, (size_t)capacity * sizeof *tokens);
        stream->tokens = tokens ? tokens : stream->tokens;
        size_t *ends = realloc(stream->ends, (size_t)capacity * sizeof *ends);
        stream->ends = ends ? ends : stream->ends;
        if (!tokens || !ends) {
            return lv_fail(LV_ENOMEM, "out of memory for the tokens of an answer");
        }
        stream->capacity = capacity;
    }
    stream->tokens[stream->n_tokens] = *token;
    stream->ends[stream->n_tokens++] = stream->text.n_bytes;
    return LV_OK;
}

lv_status lv_answer_stream_push(lv_answer_stream *stream, int32_t id, const lv_token *token,
                                bool *is_done) {
    const char *text = NULL;
    *is_done = false;
    LV_TRY(lv_detokenizer_push(stream->detokenizer, id, &text));
    LV_TRY(append(stream, text));
    if (token) {
        LV_TRY(note_token(stream, token));
    }
    *is_done = cut_at_stop(stream, stream->n_sent);
    const size_t held = *is_done ? 0 : pending_stop_bytes(stream);
    return send_up_to(stream, stream->text.n_bytes - held);
}

lv_status lv_answer_stream_finish(lv_answer_stream *stream, lv_answer *out) {
    const char *text = NULL;
    if (!stream->is_cut && !stream->is_unwanted) {
        LV_TRY(lv_detokenizer_flush(stream->detokenizer, &text));
        LV_TRY(append(stream, text));
        cut_at_stop(stream, stream->n_sent);
    }
    if (!stream->is_unwanted) {
        (void)!send_up_to(stream, stream->text.n_bytes); // a stop comes too late
    }
    stream->text.data[stream->n_sent] = 0;
    out->text = (char *)stream->text.data;
    out->tokens = stream->tokens;
    out->n_logprobs = stream->n_tokens_sent;
    stream->text = (lv_buffer){0};
    stream->tokens = NULL;
    stream->n_tokens = stream->n_tokens_sent = 0;
    return LV_OK;
}
