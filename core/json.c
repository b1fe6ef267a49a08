#include "core/json.h"

#include "core/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Nesting and the number of values are bounded before a parser spends stack and memory on them.
static lv_status check_size(const char *text, size_t n_bytes, const char *name) {
    int depth = 0;
    size_t n_values = 0;
    bool in_string = false;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = text[i];
        if (in_string) {
            i += c == '\\';
            in_string = c != '"';
            continue;
        }
        in_string = c == '"';
        if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            depth--;
        }
        n_values += c == ',' || c == '{' || c == '[';
        if (depth > LV_JSON_MAX_DEPTH) {
            return lv_fail(LV_ELIMIT, "%s: JSON nested deeper than %d", name, LV_JSON_MAX_DEPTH);
        }
        if (n_values > LV_JSON_MAX_VALUES) {
            return lv_fail(LV_ELIMIT, "%s: JSON of more than %d values", name, LV_JSON_MAX_VALUES);
        }
    }
    return LV_OK;
}

lv_status lv_json_parse(const char *text, size_t n_bytes, const char *name, json_t **out) {
    *out = NULL;
    LV_TRY(check_size(text, n_bytes, name));
    json_error_t error;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        return lv_fail(LV_EFORMAT, "%s: not valid JSON at line %d: %s", name, error.line,
                       error.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return lv_fail(LV_EFORMAT, "%s: expected a JSON object", name);
    }
    *out = root;
    return LV_OK;
}

lv_status lv_json_load(const char *path, size_t max_bytes, json_t **out) {
    *out = NULL;
    lv_buffer file = {0};
    lv_status status = lv_file_read(path, max_bytes, &file);
    if (status == LV_OK) {
        status = lv_json_parse((const char *)file.data, file.n_bytes, path, out);
    }
    lv_buffer_free(&file);
    return status;
}

lv_json lv_json_at(const json_t *object, const char *where) {
    lv_json at = {.object = object};
    snprintf(at.where, sizeof at.where, "%s", where);
    return at;
}

const json_t *lv_json_get(const lv_json *at, const char *key) {
    const json_t *value = at->object ? json_object_get(at->object, key) : NULL;
    return json_is_null(value) ? NULL : value;
}

lv_status lv_json_wrong(const lv_json *at, const char *key, const char *expected) {
    const json_t *value = lv_json_get(at, key);
    char *found = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    lv_status status =
        lv_fail(LV_EFORMAT, "%s: %s: expected %s, found %.60s%s", at->where, key, expected,
                found ? found : "nothing", found && strlen(found) > 60 ? "..." : "");
    free(found);
    return status;
}

lv_status lv_json_child(const lv_json *at, const char *key, lv_json *out) {
    const json_t *value = lv_json_get(at, key);
    if (value && !json_is_object(value)) {
        return lv_json_wrong(at, key, "an object");
    }
    lv_json child = {.object = value};
    int n = snprintf(child.where, sizeof child.where, "%.400s: %s", at->where, key);
    (void)n; // a longer name is cut, which only shortens messages
    *out = child;
    return LV_OK;
}

lv_status lv_json_int(const lv_json *at, const char *key, int min, int max, int *out) {
    const json_t *value = lv_json_get(at, key);
    if (!value) {
        return LV_OK;
    }
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < min || number > max) {
        char expected[64];
        snprintf(expected, sizeof expected, "an integer from %d to %d", min, max);
        return lv_json_wrong(at, key, expected);
    }
    *out = (int)number;
    return LV_OK;
}

lv_status lv_json_double(const lv_json *at, const char *key, double min, double max, double *out) {
    const json_t *value = lv_json_get(at, key);
    if (!value) {
        return LV_OK;
    }
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number >= min && number <= max)) {
        char expected[64];
        snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
        return lv_json_wrong(at, key, expected);
    }
    *out = number;
    return LV_OK;
}

lv_status lv_json_float(const lv_json *at, const char *key, double min, double max, float *out) {
    double number = (double)*out;
    LV_TRY(lv_json_double(at, key, min, max, &number));
    *out = (float)number;
    return LV_OK;
}

lv_status lv_json_bool(const lv_json *at, const char *key, bool *out) {
    const json_t *value = lv_json_get(at, key);
    if (!value) {
        return LV_OK;
    }
    if (!json_is_boolean(value)) {
        return lv_json_wrong(at, key, "true or false");
    }
    *out = json_is_true(value);
    return LV_OK;
}

lv_status lv_json_string(const lv_json *at, const char *key, char *out, size_t n_bytes) {
    const json_t *value = lv_json_get(at, key);
    if (!value) {
        return LV_OK;
    }
    if (!json_is_string(value) || json_string_length(value) >= n_bytes) {
        char expected[64];
        snprintf(expected, sizeof expected, "a string shorter than %zu bytes", n_bytes);
        return lv_json_wrong(at, key, expected);
    }
    memcpy(out, json_string_value(value), json_string_length(value) + 1);
    return LV_OK;
}
