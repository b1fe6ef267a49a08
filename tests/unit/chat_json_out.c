// Text for clients: whatever comes in, what goes out is well-formed JSON.
#include <jansson.h>

#include "apps/image_chat/errors.h"
#include "tests/check.h"

static char *json_of(const char *text, size_t n) {
    static char copy[4096];
    out_text out = OUT_TEXT(4096);
    out_string_n(&out, text, n);
    CHECK(!out.failed, "%zu bytes", n);
    snprintf(copy, sizeof copy, "%s", out.buffer.data ? (char *)out.buffer.data : "");
    out_free(&out);
    return copy;
}

static void check_string(const char *text, const char *want) {
    char *got = json_of(text, strlen(text));
    CHECK(strcmp(got, want) == 0, "got %s, wanted %s", got, want);
}

static void test_strings(void) {
    check_string("", "\"\"");
    check_string("a\"b\\c/d", "\"a\\\"b\\\\c/d\"");
    check_string("\b\f\n\r\t\x01\x1f\x7f", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"");
    check_string("\xc3\xa9\xe2\x82\xac\xf0\x9f\xa6\x80",
                 "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\xa6\x80\"");
    // Cut off, overlong, surrogates, beyond U+10FFFF, stray.
    check_string("a\xc3", "\"a\xef\xbf\xbd\"");
    check_string("\xc0\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    check_string("\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    check_string("\xf4\x90\x80\x80!", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd!\"");
    check_string("\x80z", "\"\xef\xbf\xbdz\"");
    CHECK(strcmp(json_of("a\0b", 3), "\"a\\u0000b\"") == 0, "a zero byte");
}

static void test_all_bytes(void) {
    srand(4);
    for (int round = 0; round < 2000; round++) {
        char text[64];
        size_t n = (size_t)(rand() % 64);
        for (size_t i = 0; i < n; i++) {
            text[i] = (char)(rand() % 3 ? 0x80 + rand() % 0x80 : rand());
        }
        json_error_t error;
        json_t *value = json_loads(json_of(text, n), JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
        CHECK(value, "round %d: %s", round, error.text);
        json_decref(value);
    }
}

static void test_failures_are_remembered(void) {
    out_text out = OUT_TEXT(10);
    char long_one[600];
    memset(long_one, 'x', sizeof long_one - 1);
    long_one[sizeof long_one - 1] = 0;
    out_put(&out, "0123456789");
    CHECK(!out.failed, "ten bytes");
    out_put(&out, "x");
    CHECK(out.failed, "eleven");
    out_put(&out, "");
    CHECK(out.failed && out.buffer.n_bytes == 10, "dropped from then on");
    out_free(&out);
    out = OUT_TEXT(10000);
    out_format(&out, "%s", long_one);
    CHECK(out.failed, "a format longer than its buffer");
    out_free(&out);
}

static void test_errors(void) {
    api_error error;
    out_text out = OUT_TEXT(4096);
    bool is_ours;
    CHECK(!fail_with(&error, 429, "queue_full", NULL, "%s \"%d\"", "full", 3), "always false");
    CHECK(error.retry_after_s == 1, "a time to come back");
    error_json(&error, &out);
    CHECK(strcmp((char *)out.buffer.data, "{\"error\":{\"message\":\"full \\\"3\\\"\",\"type\":"
                                          "\"rate_limit_error\",\"param\":null,\"code\":"
                                          "\"queue_full\"}}") == 0,
          "%s", (char *)out.buffer.data);
    out_free(&out);
    // What is the server's own affair is told by a fixed text.
    static const lv_status ours[] = {LV_ENOMEM,   LV_EIO,     LV_ENOTFOUND,
                                     LV_ENETWORK, LV_EDEVICE, (lv_status)-99};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        fail_with_status(&error, ours[i], "10.0.0.1: /etc/secret", true, &is_ours);
        CHECK(is_ours && !strstr(error.message, "secret"), "%s", error.message);
    }
    fail_with_status(&error, LV_EFORMAT, "a truncated JPEG", true, &is_ours);
    CHECK(!is_ours && error.status == 400 && strstr(error.message, "JPEG"), "%s", error.message);
    fail_with_status(&error, LV_ELIMIT, "2500 tokens", false, &is_ours);
    CHECK(error.status == 413 && strcmp(error.code, "context_length_exceeded") == 0, "%s",
          error.code);
}

int main(void) {
    test_strings();
    test_all_bytes();
    test_failures_are_remembered();
    test_errors();
    return check_done();
}
