// Text under construction, mostly JSON. A failure (no memory, too long) is remembered: what is
// added later is dropped, and the one who made the text looks at `failed` once.
#ifndef LV_CHAT_JSON_OUT_H
#define LV_CHAT_JSON_OUT_H

#include <stdbool.h>
#include <stddef.h>

#include "core/files.h"

typedef struct out_text {
    lv_buffer buffer;
    bool failed;
} out_text;

#define OUT_TEXT(limit)                                                                            \
    (out_text) {                                                                                   \
        .buffer = {.max_bytes = (limit) }                                                          \
    }

void out_bytes(out_text *out, const char *text, size_t n);
void out_put(out_text *out, const char *text);
void out_format(out_text *out, const char *format, ...) LV_PRINTF(2, 3); // up to 512 bytes
// A JSON string; malformed UTF-8 becomes U+FFFD.
void out_string(out_text *out, const char *text);
void out_string_n(out_text *out, const char *text, size_t n);
void out_number(out_text *out, double value); // finite; three places
void out_free(out_text *out);

// Bytes of the well-formed UTF-8 character at text[0..n), 0 where there is none.
size_t utf8_length(const char *text, size_t n);

#endif
