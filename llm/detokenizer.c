#include <stdlib.h>
#include <string.h>

#include "llm/tokenizer.h"
#include "llm/utf8.h"

#define MAX_PIECE_BYTES ((size_t)1 << 20)
#define REPLACEMENT "\xEF\xBF\xBD" // U+FFFD

struct lv_detokenizer {
    const lv_tokenizer *tokenizer;
    lv_buffer text;     // what the last call gave out
    uint8_t pending[4]; // bytes of a character not yet whole, from byte pieces
    size_t n_pending;   // at most 3 between calls
    bool at_start;      // the next character is the answer's first
};

lv_status lv_detokenizer_open(const lv_tokenizer *tokenizer, lv_detokenizer **out) {
    lv_detokenizer *d = *out = calloc(1, sizeof *d);
    if (!d) {
        return lv_fail(LV_ENOMEM, "out of memory for a detokeniser");
    }
    d->tokenizer = tokenizer;
    d->text.max_bytes = MAX_PIECE_BYTES;
    d->at_start = tokenizer->strips_space;
    return LV_OK;
}

void lv_detokenizer_free(lv_detokenizer *d) {
    if (d) {
        lv_buffer_free(&d->text);
        free(d);
    }
}

static lv_status emit(lv_detokenizer *d, const void *text, size_t n) {
    const char *c = text;
    if (n > 0 && d->at_start) {
        d->at_start = false;
        if (*c == ' ') {
            c++, n--;
        }
    }
    return lv_utf8_append(&d->text, c, n);
}

// Gives out the whole characters among the pending bytes. A byte that cannot begin one becomes
// U+FFFD by itself, as in SentencePiece's decoder; so does an incomplete rest where `last`.
static lv_status emit_pending(lv_detokenizer *d, bool last) {
    while (d->n_pending > 0) {
        size_t length;
        lv_utf8 what = lv_utf8_next(d->pending, d->n_pending, &length);
        if (what == LV_UTF8_INCOMPLETE && !last) {
            return LV_OK;
        }
        if (what == LV_UTF8_VALID) {
            bool is_nul = d->pending[0] == 0; // has no place in a C string: left out
            LV_TRY(emit(d, d->pending, is_nul ? 0 : length));
        } else {
            length = 1;
            LV_TRY(emit(d, REPLACEMENT, strlen(REPLACEMENT)));
        }
        d->n_pending -= length;
        memmove(d->pending, d->pending + length, d->n_pending);
    }
    return LV_OK;
}

static lv_status emit_piece(lv_detokenizer *d, const char *piece) {
    for (const char *space; (space = strstr(piece, LV_SPACE)) != NULL;
         piece = space + strlen(LV_SPACE)) {
        LV_TRY(emit(d, piece, (size_t)(space - piece)));
        LV_TRY(emit(d, " ", 1));
    }
    return emit(d, piece, strlen(piece));
}

static const lv_added_token *added_by_id(const lv_tokenizer *t, int32_t id) {
    for (int i = 0; i < t->n_added; i++) {
        if (t->added[i].id == id) {
            return &t->added[i];
        }
    }
    return NULL;
}

static lv_status push(lv_detokenizer *d, int32_t id) {
    const lv_tokenizer *t = d->tokenizer;
    const lv_added_token *added = added_by_id(t, id);
    if (added || id >= lv_spm_size(t->spm)) {
        if (!added || added->is_special) {
            return LV_OK; // never shown, like rows that only pad the embedding
        }
        LV_TRY(emit_pending(d, true));
        return emit(d, added->text, added->n_bytes);
    }
    const char *piece = lv_spm_piece(t->spm, id);
    switch (lv_spm_kind(t->spm, id)) {
    case LV_PIECE_CONTROL:
    case LV_PIECE_UNKNOWN:
        return LV_OK;
    case LV_PIECE_BYTE:
        d->pending[d->n_pending++] = (uint8_t)strtoul(piece + 1, NULL, 16); // "<0x0A>"
        return emit_pending(d, false);
    case LV_PIECE_NORMAL:
        break;
    }
    LV_TRY(emit_pending(d, true));
    return emit_piece(d, piece);
}

static lv_status finish(lv_detokenizer *d, lv_status status, const char **out) {
    *out = status == LV_OK && d->text.data ? (const char *)d->text.data : "";
    return status;
}

lv_status lv_detokenizer_push(lv_detokenizer *d, int32_t id, const char **out) {
    d->text.n_bytes = 0;
    if (d->text.data) {
        d->text.data[0] = 0;
    }
    if (id < 0) {
        return finish(d, lv_fail(LV_EINVAL, "token id %d is negative", id), out);
    }
    return finish(d, push(d, id), out);
}

lv_status lv_detokenizer_flush(lv_detokenizer *d, const char **out) {
    d->text.n_bytes = 0;
    if (d->text.data) {
        d->text.data[0] = 0;
    }
    return finish(d, emit_pending(d, true), out);
}

// Adds n bytes at place *n_all of out[size], as far as there is room.
static void put_bytes(const char *bytes, size_t n, char *out, size_t size, size_t *n_all) {
    for (size_t i = 0; i < n; i++, ++*n_all) {
        if (*n_all < size) {
            out[*n_all] = bytes[i];
        }
    }
}

size_t lv_token_bytes(const lv_tokenizer *tokenizer, int32_t id, char *out, size_t size) {
    const lv_added_token *added = added_by_id(tokenizer, id);
    size_t n = 0;
    if (added || id < 0 || id >= lv_spm_size(tokenizer->spm)) {
        if (added && !added->is_special) {
            put_bytes(added->text, added->n_bytes, out, size, &n);
        }
        return n;
    }
    const char *piece = lv_spm_piece(tokenizer->spm, id);
    const lv_piece_kind kind = lv_spm_kind(tokenizer->spm, id);
    if (kind == LV_PIECE_BYTE) {
        const char byte = (char)strtoul(piece + 1, NULL, 16);
        put_bytes(&byte, 1, out, size, &n);
    }
    while (kind == LV_PIECE_NORMAL && *piece) {
        const bool is_space = strncmp(piece, LV_SPACE, strlen(LV_SPACE)) == 0;
        put_bytes(is_space ? " " : piece, 1, out, size, &n);
        piece += is_space ? strlen(LV_SPACE) : 1;
    }
    return n;
}
