// Reading JSON from outside: capped, depth-limited, and every complaint names file and key.
#ifndef LV_CORE_JSON_H
#define LV_CORE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

#define LV_JSON_MAX_DEPTH 64
#define LV_JSON_MAX_VALUES 4000000 // a parsed value costs up to 100 bytes of memory

// Parses UTF-8 `text` of one object (duplicate keys refused); `name` is what messages call it.
// Caller frees *out with json_decref. LV_EFORMAT with line and reason; LV_ELIMIT over a cap.
lv_status lv_json_parse(const char *text, size_t n_bytes, const char *name,
                        json_t **out) LV_MUST_CHECK;

// The same from a file of at most max_bytes. LV_ENOTFOUND where there is none.
lv_status lv_json_load(const char *path, size_t max_bytes, json_t **out) LV_MUST_CHECK;

// An object and what to call it in messages ("dir/config.json", "dir/config.json: text_config").
typedef struct lv_json {
    const json_t *object; // borrowed; NULL reads as an empty object
    char where[512];
} lv_json;

lv_json lv_json_at(const json_t *object, const char *where);

// The value of `key`; NULL where it is absent or null. Borrowed.
const json_t *lv_json_get(const lv_json *at, const char *key);

// LV_EFORMAT "where: key: expected ..., found ...".
lv_status lv_json_wrong(const lv_json *at, const char *key, const char *expected);

// Each getter leaves *out as it was where the key is absent or null, so that the caller's default
// stays; a value of another type or outside min..max is LV_EFORMAT.
lv_status lv_json_child(const lv_json *at, const char *key, lv_json *out) LV_MUST_CHECK;
lv_status lv_json_int(const lv_json *at, const char *key, int min, int max, int *out) LV_MUST_CHECK;
lv_status lv_json_float(const lv_json *at, const char *key, double min, double max,
                        float *out) LV_MUST_CHECK;
lv_status lv_json_double(const lv_json *at, const char *key, double min, double max,
                         double *out) LV_MUST_CHECK;
lv_status lv_json_bool(const lv_json *at, const char *key, bool *out) LV_MUST_CHECK;
lv_status lv_json_string(const lv_json *at, const char *key, char *out,
                         size_t n_bytes) LV_MUST_CHECK;

#endif
