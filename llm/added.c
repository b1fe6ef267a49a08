#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llm/tokenizer.h"

#define MAX_JSON_BYTES ((size_t)4 << 20)
#define MAX_ADDED 16384
#define MAX_TOKEN_BYTES 1024
#define MAX_TOKEN_ID (1 << 24)

lv_status lv_added_push(lv_tokenizer *t, const char *text, int64_t id, bool is_special, bool lstrip,
                        bool rstrip) {
    size_t n_bytes = strlen(text);
    if (n_bytes == 0) {
        return LV_OK; // an unused slot of the vocabulary
    }
    if (n_bytes > MAX_TOKEN_BYTES || id < 0 || id >= MAX_TOKEN_ID) {
        return lv_fail(LV_EFORMAT, "added token \"%.40s\": id %lld, %zu bytes; at most %d, %d",
                       text, (long long)id, n_bytes, MAX_TOKEN_ID - 1, MAX_TOKEN_BYTES);
    }
    for (int i = 0; i < t->n_added; i++) {
        if (t->added[i].n_bytes == n_bytes && memcmp(t->added[i].text, text, n_bytes) == 0) {
            return LV_OK; // tokenizer_config.json is read first and says more
        }
    }
    if (t->n_added == MAX_ADDED) {
        return lv_fail(LV_ELIMIT, "more than %d added tokens", MAX_ADDED);
    }
    if (t->n_added == t->added_capacity) {
        int capacity = t->added_capacity ? 2 * t->added_capacity : 16;
        lv_added_token *added = realloc(t->added, (size_t)capacity * sizeof *added);
        if (!added) {
            return lv_fail(LV_ENOMEM, "out of memory for %d added tokens", capacity);
        }
        t->added = added;
        t->added_capacity = capacity;
    }
    char *copy = strdup(text);
    if (!copy) {
        return lv_fail(LV_ENOMEM, "out of memory for an added token");
    }
    t->added[t->n_added++] = (lv_added_token){.text = copy,
                                              .n_bytes = n_bytes,
                                              .id = (int32_t)id,
                                              .is_special = is_special,
                                              .lstrip = lstrip,
                                              .rstrip = rstrip};
    if (t->size <= id) {
        t->size = (int)id + 1;
    }
    return LV_OK;
}

lv_status lv_text_json(const char *dir, const char *name, json_t **out) {
    char path[4096];
    *out = NULL;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (access(path, F_OK) != 0) {
        return LV_OK;
    }
    lv_buffer file = {0};
    json_error_t error;
    lv_status status = LV_OK;
    LV_TRY_DONE(lv_file_read(path, MAX_JSON_BYTES, &file));
    // transformers writes model_max_length as 10^30, which no integer holds.
    *out = json_loadb((const char *)file.data, file.n_bytes,
                      JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &error);
    if (!json_is_object(*out)) {
        status = lv_fail(LV_EFORMAT, "%s: line %d: %s", path, *out ? 1 : error.line,
                         *out ? "not a JSON object" : error.text);
        json_decref(*out);
        *out = NULL;
    }
done:
    lv_buffer_free(&file);
    return status;
}

static lv_status push_decoder(lv_tokenizer *t, json_t *decoder) {
    const char *key;
    json_t *entry;
    json_object_foreach(decoder, key, entry) {
        char *end;
        long id = strtol(key, &end, 10);
        const char *text = json_string_value(json_object_get(entry, "content"));
        if (*end || end == key || !text) {
            return lv_fail(
                LV_EFORMAT,
                "tokenizer_config.json: added_tokens_decoder: \"%.40s\" is not an id with content",
                key);
        }
        json_t *special = json_object_get(entry, "special");
        LV_TRY(lv_added_push(t, text, id, !json_is_false(special),
                             json_is_true(json_object_get(entry, "lstrip")),
                             json_is_true(json_object_get(entry, "rstrip"))));
    }
    return LV_OK;
}

static lv_status push_plain(lv_tokenizer *t, json_t *tokens) {
    const char *text;
    json_t *id;
    json_object_foreach(tokens, text, id) {
        double value = json_is_number(id) ? json_number_value(id) : -1;
        if (!(value >= 0 && value < MAX_TOKEN_ID)) {
            return lv_fail(LV_EFORMAT, "added_tokens.json: \"%.40s\" has no id", text);
        }
        LV_TRY(lv_added_push(t, text, (int64_t)value, true, false, false));
    }
    return LV_OK;
}

lv_status lv_added_load(const char *dir, lv_tokenizer *t, bool *out_legacy) {
    json_t *config = NULL, *added = NULL;
    lv_status status = LV_OK;
    LV_TRY_DONE(lv_text_json(dir, "tokenizer_config.json", &config));
    LV_TRY_DONE(lv_text_json(dir, "added_tokens.json", &added));
    LV_TRY_DONE(push_decoder(t, json_object_get(config, "added_tokens_decoder")));
    LV_TRY_DONE(push_plain(t, added));
    *out_legacy = !json_is_false(json_object_get(config, "legacy"));
    t->adds_bos = !json_is_false(json_object_get(config, "add_bos_token"));
done:
    json_decref(config);
    json_decref(added);
    return status;
}
