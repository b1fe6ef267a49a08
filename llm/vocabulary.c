// A tokenizer's tokens as bytes, sorted.
#include <stdlib.h>
#include <string.h>

#include "llm/grammar_parts.h"
#include "llm/tokenizer.h"
#include "llm/utf8.h"

#define MAX_VOCABULARY_BYTES ((size_t)64 << 20)

static bool is_whole_utf8(const uint8_t *bytes, size_t n) {
    for (size_t i = 0, length; i < n; i += length) {
        if (lv_utf8_next(bytes + i, n - i, &length) != LV_UTF8_VALID) {
            return false;
        }
    }
    return true;
}

// What a piece adds to a text, as the detokeniser gives it: at most LV_TOKEN_MAX_BYTES into out, or
// 0 bytes for a piece that is never allowed.
static size_t spell(const lv_spm *spm, int32_t id, uint8_t *out) {
    const char *piece = lv_spm_piece(spm, id);
    const lv_piece_kind kind = lv_spm_kind(spm, id);
    size_t n = 0;
    if (kind == LV_PIECE_BYTE) {
        out[0] = (uint8_t)strtoul(piece + 1, NULL, 16); // "<0x0A>"
        return 1;
    }
    while (kind == LV_PIECE_NORMAL && *piece) {
        const bool is_space = strncmp(piece, LV_SPACE, strlen(LV_SPACE)) == 0;
        if (n == LV_TOKEN_MAX_BYTES) {
            return 0;
        }
        out[n++] = is_space ? ' ' : (uint8_t)*piece;
        piece += is_space ? strlen(LV_SPACE) : 1;
    }
    return is_whole_utf8(out, n) ? n : 0;
}

// While sorting, with the bytes at hand.
typedef struct sorted {
    lv_spelling spelling;
    const uint8_t *bytes;
} sorted;

static int compare(const void *a, const void *b) {
    const sorted *x = a, *y = b;
    const int n_x = x->spelling.n_bytes, n_y = y->spelling.n_bytes;
    const int order = memcmp(x->bytes, y->bytes, (size_t)(n_x < n_y ? n_x : n_y));
    return order ? order : n_x != n_y ? n_x - n_y : x->spelling.id - y->spelling.id;
}

static lv_status sort(lv_vocabulary *v) {
    const int n = v->n_spellings;
    sorted *list = calloc((size_t)n + 1, sizeof *list);
    if (!list) {
        return lv_fail(LV_ENOMEM, "out of memory for the vocabulary's bytes");
    }
    for (int i = 0; i < n; i++) {
        list[i] = (sorted){v->spellings[i], v->bytes + v->spellings[i].first};
    }
    qsort(list, (size_t)n, sizeof *list, compare);
    for (int i = 0; i < n; i++) {
        lv_spelling *s = &v->spellings[i];
        *s = list[i].spelling;
        v->place[s->id] = i;
        while (i > 0 && s->n_shared < s->n_bytes && s->n_shared < v->spellings[i - 1].n_bytes &&
               list[i].bytes[s->n_shared] == list[i - 1].bytes[s->n_shared]) {
            s->n_shared++;
        }
    }
    free(list);
    return LV_OK;
}

// A vocabulary without all 256 bytes could begin a character and never end it, so that then no
// bytes beyond ASCII are offered by themselves.
static void check_alphabet(lv_vocabulary *v) {
    bool single[256] = {false};
    for (int i = 0; i < v->n_spellings; i++) {
        const lv_spelling *s = &v->spellings[i];
        if (s->n_bytes == 1) {
            single[v->bytes[s->first]] = true;
        }
    }
    v->spells_ascii = v->spells_bytes = true;
    for (int byte = 0; byte < 256; byte++) {
        v->spells_ascii &= single[byte] || byte < 0x20 || byte > 0x7E;
        v->spells_bytes &= single[byte] || byte < 0x80;
    }
    int n = 0;
    for (int i = 0; i < v->n_spellings && !v->spells_bytes; i++) {
        const lv_spelling *s = &v->spellings[i];
        if (s->n_bytes > 1 || v->bytes[s->first] < 0x80) {
            v->spellings[n++] = *s;
        }
    }
    v->n_spellings = v->spells_bytes ? v->n_spellings : n;
}

static lv_status fill(const lv_tokenizer *tokenizer, lv_vocabulary *v) {
    const int n_pieces = lv_spm_size(tokenizer->spm);
    lv_buffer bytes = {.max_bytes = MAX_VOCABULARY_BYTES};
    lv_status status = LV_OK;
    for (int32_t id = 0; id < v->n_tokens; id++) {
        v->place[id] = -1;
    }
    for (int i = 0; i < tokenizer->n_added; i++) { // place -2: shown otherwise, or never
        const int32_t id = tokenizer->added[i].id;
        if (id >= 0 && id < v->n_tokens) {
            v->place[id] = -2;
        }
    }
    for (int i = 0; i < v->n_eos; i++) {
        v->place[v->eos_ids[i]] = -2;
    }
    for (int32_t id = 0; id < n_pieces && id < v->n_tokens; id++) {
        uint8_t text[LV_TOKEN_MAX_BYTES];
        const size_t n = v->place[id] == -2 ? 0 : spell(tokenizer->spm, id, text);
        v->place[id] = -1;
        if (n > 0) {
            v->spellings[v->n_spellings++] =
                (lv_spelling){.id = id, .first = (uint32_t)bytes.n_bytes, .n_bytes = (uint8_t)n};
            LV_TRY_DONE(lv_buffer_append(&bytes, text, n));
        }
    }
    for (int32_t id = n_pieces; id < v->n_tokens; id++) {
        v->place[id] = -1;
    }
    v->bytes = bytes.data;
    bytes = (lv_buffer){0};
    check_alphabet(v);
    status = sort(v);
done:
    lv_buffer_free(&bytes);
    return status;
}

lv_status lv_vocabulary_create(const lv_tokenizer *tokenizer, const lv_text_config *config,
                               int n_tokens, lv_vocabulary **out) {
    lv_status status = LV_OK;
    lv_vocabulary *v = calloc(1, sizeof *v);
    *out = NULL;
    if (!v || n_tokens <= 0) {
        free(v);
        return lv_fail(v ? LV_EINVAL : LV_ENOMEM, "no vocabulary of %d tokens", n_tokens);
    }
    v->n_tokens = n_tokens;
    for (int i = 0; i < config->n_eos; i++) {
        if (config->eos_ids[i] >= 0 && config->eos_ids[i] < n_tokens) {
            v->eos_ids[v->n_eos++] = config->eos_ids[i];
        }
    }
    v->spellings = calloc((size_t)n_tokens, sizeof *v->spellings);
    v->place = calloc((size_t)n_tokens, sizeof *v->place);
    if (!v->spellings || !v->place) {
        status = lv_fail(LV_ENOMEM, "out of memory for the vocabulary's bytes");
        goto done;
    }
    LV_TRY_DONE(fill(tokenizer, v));
    *out = v;
    v = NULL;
done:
    lv_vocabulary_free(v);
    return status;
}

void lv_vocabulary_free(lv_vocabulary *v) {
    if (v) {
        free(v->spellings);
        free(v->place);
        free(v->bytes);
        free(v);
    }
}
