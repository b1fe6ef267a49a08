#include "llm/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llm/utf8.h"

#define MAX_TEXT_BYTES ((size_t)4 << 20)
#define MAX_IDS (1 << 28)

void lv_ids_free(lv_ids *list) {
    free(list->ids);
    *list = (lv_ids){0};
}

lv_status lv_ids_push(lv_ids *list, int32_t id) {
    if (list->n == list->capacity) {
        int capacity = list->capacity ? 2 * list->capacity : 64;
        int32_t *ids =
            capacity > MAX_IDS ? NULL : realloc(list->ids, (size_t)capacity * sizeof *ids);
        if (!ids) {
            return lv_fail(LV_ENOMEM, "out of memory for %d token ids", capacity);
        }
        list->ids = ids;
        list->capacity = capacity;
    }
    list->ids[list->n++] = id;
    return LV_OK;
}

// --- opening ------------------------------------------------------------------------------------

static lv_status find_model(const char *dir, char *out_path, size_t n_bytes) {
    int n = snprintf(out_path, n_bytes, "%s/tokenizer.model", dir);
    if (n < 0 || (size_t)n >= n_bytes) {
        return lv_fail(LV_EINVAL, "%s: the path is too long", dir);
    }
    if (access(out_path, F_OK) == 0) {
        return LV_OK;
    }
    char json[4096];
    snprintf(json, sizeof json, "%s/tokenizer.json", dir);
    bool has_json = access(json, F_OK) == 0;
    return lv_fail(LV_ENOTFOUND,
                   "%s: no tokenizer.model%s; download tokenizer.model from the model's page or "
                   "from that of its language model (lmsys/vicuna-7b-v1.5 for LLaVA-1.5 and "
                   "1.6-vicuna) and put it there",
                   dir, has_json ? " (only tokenizer.json, which is not read)" : "");
}

// SentencePiece's own control tokens are cut out of text too, listed or not.
static lv_status add_control_pieces(lv_tokenizer *t) {
    for (int id = 0; id < lv_spm_size(t->spm); id++) {
        lv_piece_kind kind = lv_spm_kind(t->spm, id);
        if (kind == LV_PIECE_CONTROL || kind == LV_PIECE_UNKNOWN) {
            LV_TRY(lv_added_push(t, lv_spm_piece(t->spm, id), id, true, false, false));
        }
    }
    return LV_OK;
}

static int longest_first(const void *a, const void *b) {
    const lv_added_token *x = a, *y = b;
    if (x->n_bytes != y->n_bytes) {
        return x->n_bytes < y->n_bytes ? 1 : -1;
    }
    return strcmp(x->text, y->text);
}

// Whether SentencePiece itself puts a space in front of a text.
static lv_status probe_prefix(lv_tokenizer *t) {
    lv_ids ids = {0};
    lv_status status = lv_spm_encode(t->spm, "a", 1, &ids);
    t->strips_space = t->prefix_first || (ids.n > 0 && strncmp(lv_spm_piece(t->spm, ids.ids[0]),
                                                               LV_SPACE, strlen(LV_SPACE)) == 0);
    lv_ids_free(&ids);
    return status;
}

static lv_status open_in(const char *dir, const lv_config *config, lv_tokenizer *t) {
    char path[4096];
    bool legacy = true;
    LV_TRY(find_model(dir, path, sizeof path));
    t->adds_bos = true;
    t->bos_id = config->text.bos_id;
    LV_TRY(lv_added_load(dir, t, &legacy));
    // The original code uses the slow tokenizer, which obeys `legacy`; llava-hf's tokenizer.json
    // puts the space in front of every stretch whatever it says.
    t->prefix_first = config->family == LV_FAMILY_ORIGINAL && !legacy;
    LV_TRY(lv_spm_open(path, !t->prefix_first, &t->spm));
    LV_TRY(add_control_pieces(t));
    if (t->size < lv_spm_size(t->spm)) {
        t->size = lv_spm_size(t->spm);
    }
    if (t->n_added > 0) {
        qsort(t->added, (size_t)t->n_added, sizeof *t->added, longest_first);
    }
    for (int i = 0; i < t->n_added; i++) {
        t->added_starts[(uint8_t)t->added[i].text[0]] = true;
    }
    return probe_prefix(t);
}

lv_status lv_tokenizer_open(const char *dir, const lv_config *config, lv_tokenizer **out) {
    *out = NULL;
    lv_tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        return lv_fail(LV_ENOMEM, "out of memory for the tokenizer");
    }
    lv_status status = open_in(dir, config, t);
    if (status != LV_OK) {
        lv_tokenizer_free(t);
        return status;
    }
    *out = t;
    return LV_OK;
}

void lv_tokenizer_free(lv_tokenizer *t) {
    if (!t) {
        return;
    }
    for (int i = 0; i < t->n_added; i++) {
        free(t->added[i].text);
    }
    free(t->added);
    lv_spm_free(t->spm);
    free(t);
}

int lv_tokenizer_size(const lv_tokenizer *t) {
    return t->size;
}

int32_t lv_tokenizer_special(const lv_tokenizer *t, const char *text) {
    for (int i = 0; i < t->n_added; i++) {
        if (strcmp(t->added[i].text, text) == 0) {
            return t->added[i].id;
        }
    }
    return lv_spm_find(t->spm, text);
}

// --- text to ids --------------------------------------------------------------------------------

lv_status lv_tokenize_stretch(const lv_tokenizer *t, const char *text, size_t n_bytes, bool first,
                              lv_ids *out) {
    if (n_bytes == 0) {
        return LV_OK;
    }
    if (!t->prefix_first || !first) {
        return lv_spm_encode(t->spm, text, n_bytes, out);
    }
    lv_buffer spaced = {.max_bytes = n_bytes + sizeof LV_SPACE};
    lv_status status = LV_OK;
    LV_TRY_DONE(lv_buffer_append(&spaced, LV_SPACE, strlen(LV_SPACE)));
    LV_TRY_DONE(lv_buffer_append(&spaced, text, n_bytes));
    status = lv_spm_encode(t->spm, (const char *)spaced.data, spaced.n_bytes, out);
done:
    lv_buffer_free(&spaced);
    return status;
}

static bool steers_model(const lv_tokenizer *t, int32_t id) {
    static const char *const markers[] = {"<image>", "<|im_start|>", "<|im_end|>", "<pad>"};
    for (int i = 0; i < t->n_added; i++) {
        if (t->added[i].id == id && t->added[i].is_special) {
            return lv_spm_kind(t->spm, id) != LV_PIECE_UNKNOWN;
        }
    }
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        if (strcmp(lv_spm_piece(t->spm, id), markers[i]) == 0) {
            return true;
        }
    }
    return false;
}

// A SentencePiece model may hold "<image>" as a piece that it finds in any text. In quoted text
// such a piece is spelt out in bytes, which read the same and mean nothing.
static lv_status push_spelt(const lv_tokenizer *t, int32_t id, lv_ids *out) {
    for (const char *c = lv_spm_piece(t->spm, id); *c; c++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)(uint8_t)*c);
        int32_t byte = lv_spm_find(t->spm, name);
        if (byte >= 0) {
            LV_TRY(lv_ids_push(out, byte));
        }
    }
    return LV_OK;
}

lv_status lv_tokenize_quoted(const lv_tokenizer *t, const char *text, size_t n_bytes, bool first,
                             lv_ids *out) {
    lv_ids raw = {0};
    lv_status status = LV_OK;
    LV_TRY_DONE(lv_tokenize_stretch(t, text, n_bytes, first, &raw));
    for (int i = 0; i < raw.n; i++) {
        if (steers_model(t, raw.ids[i])) {
            LV_TRY_DONE(push_spelt(t, raw.ids[i], out));
        } else {
            LV_TRY_DONE(lv_ids_push(out, raw.ids[i]));
        }
    }
done:
    lv_ids_free(&raw);
    return status;
}

// The longest added token that text[n] begins with, or NULL.
static const lv_added_token *added_at(const lv_tokenizer *t, const char *text, size_t n) {
    if (!t->added_starts[(uint8_t)text[0]]) {
        return NULL;
    }
    for (int i = 0; i < t->n_added; i++) {
        const lv_added_token *token = &t->added[i];
        if (token->n_bytes <= n && memcmp(text, token->text, token->n_bytes) == 0) {
            return token;
        }
    }
    return NULL;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static lv_status tokenize_valid(const lv_tokenizer *t, const char *text, size_t n, lv_ids *out) {
    size_t start = 0; // of the stretch that ends at the next added token
    for (size_t i = 0; i < n;) {
        const lv_added_token *token = added_at(t, text + i, n - i);
        if (!token) {
            i++;
            continue;
        }
        size_t end = i;
        while (token->lstrip && end > start && is_space(text[end - 1])) {
            end--;
        }
        LV_TRY(lv_tokenize_stretch(t, text + start, end - start, start == 0, out));
        LV_TRY(lv_ids_push(out, token->id));
        i += token->n_bytes;
        while (token->rstrip && i < n && is_space(text[i])) {
            i++;
        }
        start = i;
    }
    return lv_tokenize_stretch(t, text + start, n - start, start == 0, out);
}

lv_status lv_tokenize(const lv_tokenizer *t, const char *text, size_t n_bytes, lv_ids *out) {
    if (n_bytes > MAX_TEXT_BYTES) {
        return lv_fail(LV_ELIMIT, "text of %zu bytes; at most %zu are tokenised", n_bytes,
                       MAX_TEXT_BYTES);
    }
    int n_before = out->n;
    lv_buffer valid = {.max_bytes = 3 * MAX_TEXT_BYTES};
    lv_status status = LV_OK;
    LV_TRY_DONE(lv_utf8_append(&valid, text, n_bytes));
    if (valid.n_bytes > 0) {
        status = tokenize_valid(t, (const char *)valid.data, valid.n_bytes, out);
    }
done:
    lv_buffer_free(&valid);
    if (status != LV_OK) {
        out->n = n_before;
    }
    return status;
}
