// Which addresses may be fetched from, and strict data: URIs.
#include <arpa/inet.h>

#include "apps/image_chat/guard.h"
#include "apps/image_chat/lift.h"
#include "tests/check.h"

static bool is_public(const char *text) {
    struct sockaddr_storage address = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
    } else {
        CHECK(inet_pton(AF_INET6, text, &v6->sin6_addr) == 1, "%s", text);
        v6->sin6_family = AF_INET6;
    }
    return guard_is_public((const struct sockaddr *)&address);
}

static void test_addresses(void) {
    // The first and last address of each range, and their neighbours outside.
    static const char *const inside[] = {
        "0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255",
        "127.0.0.0", "127.0.0.1", "127.255.255.255", "169.254.0.0", "169.254.169.254",
        "169.254.255.255", "172.16.0.0", "172.31.255.255", "192.0.0.0", "192.0.0.255", "192.0.2.0",
        "192.0.2.255", "192.88.99.0", "192.88.99.255", "192.168.0.0", "192.168.255.255",
        "198.18.0.0", "198.19.255.255", "198.51.100.0", "198.51.100.255", "203.0.113.0",
        "203.0.113.255", "224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.255",
        // IPv6, and IPv4 in it
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::10.1.2.3",
        "64:ff9b:1::8.8.8.8", "100::1", "1fff:ffff::1", "2001::1", "2001:0:4136:e378::1",
        "2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff:ffff::1", "2001:db8::1",
        "2001:db8:ffff::1", "2002::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1",
        "3fff:fff:ffff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1",
        "ff02::1", "ffff::1"};
    static const char *const outside[] = {"1.0.0.0",
                                          "9.255.255.255",
                                          "11.0.0.0",
                                          "100.63.255.255",
                                          "100.128.0.0",
                                          "126.255.255.255",
                                          "128.0.0.0",
                                          "169.253.255.255",
                                          "169.255.0.0",
                                          "172.15.255.255",
                                          "172.32.0.0",
                                          "191.255.255.255",
                                          "192.0.1.0",
                                          "192.0.3.0",
                                          "192.88.98.255",
                                          "192.88.100.0",
                                          "192.167.255.255",
                                          "192.169.0.0",
                                          "198.17.255.255",
                                          "198.20.0.0",
                                          "198.51.99.255",
                                          "198.51.101.0",
                                          "203.0.112.255",
                                          "203.0.114.0",
                                          "223.255.255.255",
                                          "8.8.8.8",
                                          "::ffff:8.8.8.8",
                                          "64:ff9b::8.8.8.8",
                                          "2000::1",
                                          "2001:200::1",
                                          "2001:4860:4860::8888",
                                          "2001:db7:ffff::1",
                                          "2001:db9::1",
                                          "2003::1",
                                          "2a00:1450::1",
                                          "3ffe:ffff::1",
                                          "3fff:1000::1"};
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
        CHECK(!is_public(inside[i]), "%s", inside[i]);
    }
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        CHECK(is_public(outside[i]), "%s", outside[i]);
    }
    const struct sockaddr local = {.sa_family = AF_UNIX};
    CHECK(!guard_is_public(&local), "a socket of this machine");
}

static void check_uri(const char *uri, const char *want) {
    lv_buffer out = {0};
    CHECK_OK(data_uri_decode(uri, strlen(uri), 100, &out));
    CHECK(out.n_bytes == strlen(want) && memcmp(out.data, want, out.n_bytes) == 0, "%s", uri);
    lv_buffer_free(&out);
}

static void test_data_uris(void) {
    static const char *const bad[] = {"",
                                      "data:",
                                      "data:,",
                                      "data:;base64,",
                                      "data:image/png,AAAA",
                                      "data:image/png;base64,A",
                                      "data:image/png;base64,AA",
                                      "data:image/png;base64,AAA",
                                      "data:image/png;base64,=",
                                      "data:image/png;base64,====",
                                      "data:image/png;base64,A===",
                                      "data:image/png;base64,AB==",
                                      "data:image/png;base64,AAB=",
                                      "data:image/png;base64,AA=A",
                                      "data:image/png;base64,AAAA=",
                                      "data:image/png;base64,AA-_",
                                      "data:image/png;base64,AA A",
                                      "data:image/png;base64, AAA",
                                      "data:image/png;base64,AAA\n",
                                      "data:image/png;base64,%41AAA",
                                      "data:image/png;base64,AAA\xff",
                                      "data:image/png;base65,AAAA",
                                      "base64,AAAA",
                                      "http://x/;base64,AAAA"};
    lv_buffer out = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_STATUS(data_uri_decode(bad[i], strlen(bad[i]), 100, &out), LV_EFORMAT);
        CHECK(!out.data, "%s", bad[i]);
    }
    check_uri("data:;base64,aA==", "h");
    check_uri("data:image/png;base64,aGU=", "he");
    check_uri("DATA:image/png;x=y;BASE64,aGVsbG8=", "hello");
    check_uri("data:image/png;base64,fn5+Pz8/", "~~~???");
    char long_one[200] = "data:;base64,";
    memset(long_one + 13, 'A', 136);
    CHECK_STATUS(data_uri_decode(long_one, strlen(long_one), 101, &out), LV_ELIMIT);
    CHECK_OK(data_uri_decode(long_one, strlen(long_one), 102, &out));
    CHECK(out.n_bytes == 102, "%zu", out.n_bytes);
    lv_buffer_free(&out);
}

// Longer than what is decoded at once, with every byte value.
static void test_long_uri(void) {
    enum { N = 10000 };
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static uint8_t data[N];
    static char uri[N * 2] = "data:;base64,";
    char *to = uri + 13;
    lv_buffer out = {0};
    for (int i = 0; i < N; i++) {
        data[i] = (uint8_t)(i * 7 + i / 256);
    }
    for (int i = 0; i < N; i += 3) {
        uint32_t bits = (uint32_t)data[i] << 16 | (i + 1 < N ? (uint32_t)data[i + 1] << 8 : 0) |
                        (i + 2 < N ? data[i + 2] : 0);
        for (int j = 0; j < 4; j++) {
            *to++ = i + j <= N ? digits[bits >> (18 - 6 * j) & 63] : '=';
        }
    }
    CHECK_OK(data_uri_decode(uri, strlen(uri), N, &out));
    CHECK(out.n_bytes == N && memcmp(out.data, data, N) == 0, "%zu bytes", out.n_bytes);
    lv_buffer_free(&out);
}

// Lifts the text's URIs; what is left must be `want`.
static void check_lift(const char *text, const char *want, int n_wanted) {
    static lift found;
    out_text out = OUT_TEXT(1 << 20);
    lift_uris(text, strlen(text), &found, &out);
    CHECK(found.n == n_wanted && !out.failed && strcmp((char *)out.buffer.data, want) == 0,
          "%d: %.200s", found.n, (char *)out.buffer.data);
    out_free(&out);
}

static void test_lift(void) {
    enum { N = MIN_LIFTED_BYTES };
    static char uri[N + 1], text[4 * N], same[4 * N];
    static lift found;
    memset(uri, 'A', N);
    memcpy(uri, "data:;base64,", 13);
    snprintf(text, sizeof text, "{\"url\":\"%s\",\"x\" : [{\"url\" :\n \"%s\"}]}", uri, uri);
    check_lift(text,
               "{\"url\":\"data:\x7f"
               "0\",\"x\" : [{\"url\" :\n \"data:\x7f"
               "1\"}]}",
               2);
    // Not under that key, too short, with an escape, not ended, in another string.
    static const char *const kept[] = {"{\"text\":\"%s\"}",
                                       "[\"%s\"]",
                                       "{\"curl\":\"%s\"}",
                                       "{\"x\\\"url\":\"%s\"}",
                                       "{\"url\"::\"%s\"}",
                                       "{\"url\":\"%s",
                                       "{\"url\":\"%s\\\"}",
                                       "{\"url\":\"%s\\n\"}",
                                       "{\"url\":\"x%s\"}",
                                       "\"\\\"url\\\":\\\"%s\\\"\"",
                                       "%s",
                                       "\"url\":\"%s\""};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        snprintf(text, sizeof text, kept[i], uri);
        check_lift(text, text, 0);
    }
    uri[N - 1] = 0;
    snprintf(text, sizeof text, "{\"url\":\"%s\"}", uri);
    check_lift(text, text, 0);
    uri[N - 1] = 'A';
    snprintf(same, sizeof same, "{\"url\":\"%s\"}", uri);
    out_text out = OUT_TEXT(1 << 20);
    lift_uris(same, strlen(same), &found, &out);
    lifted item = lift_find(&found, "data:\x7f"
                                    "0");
    CHECK(item.n_bytes == N && memcmp(item.uri, uri, N) == 0, "%zu bytes", item.n_bytes);
    static const char *const forged[] = {"data:\x7f"
                                         "1",
                                         "data:\x7f"
                                         "-1",
                                         "data:\x7f"
                                         "99999999999999",
                                         "data:,x"};
    for (size_t i = 0; i < sizeof forged / sizeof *forged; i++) {
        item = lift_find(&found, forged[i]);
        CHECK(item.uri == forged[i] && item.n_bytes == strlen(forged[i]), "%zu", i);
    }
    out_free(&out);
}

int main(void) {
    test_addresses();
    test_data_uris();
    test_long_uri();
    test_lift();
    return check_done();
}
