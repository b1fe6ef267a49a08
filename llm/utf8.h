// UTF-8, one character at a time.
#ifndef LV_LLM_UTF8_H
#define LV_LLM_UTF8_H

#include "core/files.h"

typedef enum lv_utf8 {
    LV_UTF8_VALID,     // a whole character
    LV_UTF8_INVALID,   // bytes that no continuation can repair
    LV_UTF8_INCOMPLETE // the text ends inside a character
} lv_utf8;

// Looks at the start of bytes[n], n > 0. *out_length: bytes of the character, or of the longest
// prefix that a character could have begun with (Unicode's "maximal subpart", at least 1).
lv_utf8 lv_utf8_next(const uint8_t *bytes, size_t n, size_t *out_length);

// Appends text[n] with each maximal ill-formed subpart replaced by one U+FFFD, as Python's
// bytes.decode(errors="replace") does.
lv_status lv_utf8_append(lv_buffer *out, const void *text, size_t n) LV_MUST_CHECK;

#endif
