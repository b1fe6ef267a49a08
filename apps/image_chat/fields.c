// Reading an object by a table of its fields: nothing is passed over in silence.
#include <stdio.h>
#include <string.h>

#include "apps/image_chat/chat.h"

json_t *field_get(const json_t *object, const char *name) {
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

// What an option without effect looks like: null, false, "none", "auto", {}, [].
static bool is_empty(const json_t *value) {
    const char *text = json_string_value(value);
    return json_is_null(value) || json_is_false(value) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (text && (!strcmp(text, "none") || !strcmp(text, "auto")));
}

static bool out_of_bounds(const field *f, const char *path, api_error *error) {
    return fail_with(error, 400, "invalid_value", path, "%s: expected a%s from %.10g to %.10g.",
                     path, f->kind == FIELD_NUMBER ? " number" : "n integer", f->min, f->max);
}

static bool wrong_kind(const char *path, const char *expected, api_error *error) {
    return fail_with(error, 400, "invalid_type", path, "%s: expected %s.", path, expected);
}

static bool read_integer(const field *f, const json_t *value, const char *path, void *to,
                         api_error *error) {
    if (!json_is_integer(value)) {
        return wrong_kind(path, "an integer", error);
    }
    json_int_t number = json_integer_value(value);
    if (f->kind == FIELD_INTEGER64) {
        *(int64_t *)to = number;
        return true;
    }
    if ((double)number < f->min || (double)number > f->max) {
        return out_of_bounds(f, path, error);
    }
    *(int *)to = (int)number;
    return true;
}

static bool read_value(const field *f, const json_t *value, const char *path, void *out,
                       api_error *error) {
    void *to = (char *)out + f->offset;
    switch (f->kind) {
    case FIELD_ANY:
    case FIELD_IGNORED:
        return true;
    case FIELD_REFUSED:
        return is_empty(value) ||
               fail_with(error, 400, "unsupported_parameter", path, "%s: %s.", path, f->why);
    case FIELD_INTEGER:
    case FIELD_INTEGER64:
        return read_integer(f, value, path, to, error);
    case FIELD_NUMBER:
        if (!json_is_number(value)) {
            return wrong_kind(path, "a number", error);
        }
        if (!(json_number_value(value) >= f->min && json_number_value(value) <= f->max)) {
            return out_of_bounds(f, path, error);
        }
        *(float *)to = (float)json_number_value(value);
        return true;
    case FIELD_BOOL:
        if (!json_is_boolean(value)) {
            return wrong_kind(path, "true or false", error);
        }
        *(bool *)to = json_is_true(value);
        return true;
    case FIELD_STRING:
        if (!json_is_string(value)) {
            return wrong_kind(path, "a string", error);
        }
        if ((double)json_string_length(value) > f->max) {
            return fail_with(error, 400, "string_too_long", path, "%s: longer than %.0f bytes.",
                             path, f->max);
        }
        *(const char **)to = json_string_value(value);
        return true;
    }
    return false;
}

bool fields_read(const json_t *object, const char *where, const field *fields, int n_fields,
                 void *out, api_error *error) {
    const char *key;
    json_t *value;
    char path[96];
    if (!json_is_object(object)) {
        return wrong_kind(*where ? where : ROOT_FIELD, "an object", error);
    }
    json_object_foreach((json_t *)object, key, value) {
        const field *f = fields;
        while (f < fields + n_fields && strcmp(f->name, key) != 0) {
            f++;
        }
        snprintf(path, sizeof path, "%.40s%s%.50s", where, *where ? "." : "", key);
        if (f == fields + n_fields) {
            return fail_with(error, 400, "unknown_parameter", path, "%s: no such field.", path);
        }
        if (!json_is_null(value) && !read_value(f, value, path, out, error)) {
            return false;
        }
    }
    return true;
}
