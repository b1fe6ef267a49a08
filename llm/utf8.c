#include "llm/utf8.h"

// Table 3-7 of the Unicode standard: the lead byte decides the length and the range of the second
// byte; later bytes are 80..BF.
static size_t lead(uint8_t byte, uint8_t *out_low, uint8_t *out_high) {
    *out_low = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
    *out_high = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
    if (byte < 0x80) {
        return 1;
    }
    if (byte >= 0xC2 && byte <= 0xDF) {
        return 2;
    }
    if (byte >= 0xE0 && byte <= 0xEF) {
        return 3;
    }
    return byte >= 0xF0 && byte <= 0xF4 ? 4 : 0;
}

lv_utf8 lv_utf8_next(const uint8_t *bytes, size_t n, size_t *out_length) {
    uint8_t low, high;
    size_t length = lead(bytes[0], &low, &high);
    *out_length = 1;
    if (length == 0) {
        return LV_UTF8_INVALID;
    }
    for (size_t i = 1; i < length; i++) {
        if (i == n) {
            return LV_UTF8_INCOMPLETE;
        }
        if (bytes[i] < low || bytes[i] > high) {
            return LV_UTF8_INVALID;
        }
        *out_length = i + 1;
        low = 0x80, high = 0xBF;
    }
    return LV_UTF8_VALID;
}

lv_status lv_utf8_append(lv_buffer *out, const void *text, size_t n) {
    const uint8_t *bytes = text;
    size_t start = 0; // of the stretch of valid text not yet copied
    for (size_t i = 0, length; i < n; i += length) {
        if (lv_utf8_next(bytes + i, n - i, &length) != LV_UTF8_VALID) {
            LV_TRY(lv_buffer_append(out, bytes + start, i - start));
            LV_TRY(lv_buffer_append(out, "\xEF\xBF\xBD", 3));
            start = i + length;
        }
    }
    return lv_buffer_append(out, bytes + start, n - start);
}
