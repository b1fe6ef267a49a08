#include "apps/image_chat/json_out.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void out_bytes(out_text *out, const char *text, size_t n) {
    out->failed = out->failed || lv_buffer_append(&out->buffer, text, n) != LV_OK;
}

void out_put(out_text *out, const char *text) {
    out_bytes(out, text, strlen(text));
}

void out_format(out_text *out, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text) {
        out->failed = true;
        return;
    }
    out_bytes(out, text, (size_t)n);
}

void out_number(out_text *out, double value) {
    out_format(out, "%.3f", value);
}

// Table 3-7 of the Unicode standard.
size_t utf8_length(const char *text, size_t n) {
    const unsigned char *s = (const unsigned char *)text;
    if (n == 0 || s[0] < 0x80) {
        return n != 0;
    }
    size_t length = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || length > n) {
        return 0;
    }
    unsigned char low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < low || s[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return length;
}

static void put_escaped(out_text *out, unsigned char c) {
    static const char plain[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    const char *at = c ? strchr(plain, c) : NULL;
    if (at) {
        out_format(out, "\\%c", names[at - plain]);
    } else {
        out_format(out, "\\u%04x", c);
    }
}

void out_string_n(out_text *out, const char *text, size_t n) {
    size_t start = 0, i = 0;
    out_put(out, "\"");
    while (i < n) {
        unsigned char c = (unsigned char)text[i];
        size_t length = utf8_length(text + i, n - i);
        if (length > 0 && c >= 0x20 && c != '"' && c != '\\') {
            i += length;
            continue;
        }
        out_bytes(out, text + start, i - start);
        if (length > 0) {
            put_escaped(out, c);
        } else {
            out_put(out, "\xEF\xBF\xBD");
        }
        start = ++i;
    }
    out_bytes(out, text + start, n - start);
    out_put(out, "\"");
}

void out_string(out_text *out, const char *text) {
    out_string_n(out, text, strlen(text));
}

void out_free(out_text *out) {
    lv_buffer_free(&out->buffer);
}
