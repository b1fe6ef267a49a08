#include "apps/image_chat/guard.h"

#include <netinet/in.h>
#include <string.h>
#include <strings.h>

typedef struct range_v4 {
    uint32_t address;
    int bits;
} range_v4;

static const range_v4 special_v4[] = {
    {0x00000000, 8},  // this network
    {0x0A000000, 8},  // private
    {0x64400000, 10}, // shared by carriers
    {0x7F000000, 8},  // this machine
    {0xA9FE0000, 16}, // link-local, cloud metadata
    {0xAC100000, 12}, // private
    {0xC0000000, 24}, // protocol assignments
    {0xC0000200, 24}, // documentation
    {0xC0586300, 24}, // 6to4 relays
    {0xC0A80000, 16}, // private
    {0xC6120000, 15}, // benchmarks
    {0xC6336400, 24}, // documentation
    {0xCB007100, 24}, // documentation
    {0xE0000000, 3},  // multicast, reserved, broadcast
};

static bool is_public_v4(uint32_t address) {
    for (size_t i = 0; i < sizeof special_v4 / sizeof *special_v4; i++) {
        if (!((address ^ special_v4[i].address) >> (32 - special_v4[i].bits))) {
            return false;
        }
    }
    return true;
}

static bool has_prefix(const uint8_t address[16], const uint8_t *prefix, int bits) {
    int whole = bits / 8, rest = bits % 8;
    if (memcmp(address, prefix, (size_t)whole) != 0) {
        return false;
    }
    return rest == 0 || !((address[whole] ^ prefix[whole]) >> (8 - rest));
}

// The IPv4 address in the last four bytes.
static uint32_t tail_v4(const uint8_t address[16]) {
    return (uint32_t)address[12] << 24 | (uint32_t)address[13] << 16 | (uint32_t)address[14] << 8 |
           address[15];
}

static bool is_public_v6(const uint8_t address[16]) {
    static const uint8_t mapped[12] = {[10] = 0xFF, [11] = 0xFF};
    static const uint8_t nat64[12] = {0x00, 0x64, 0xFF, 0x9B};
    static const struct {
        uint8_t prefix[4];
        int bits;
    } special[] = {
        {{0x20, 0x01, 0x00, 0x00}, 23}, // protocol assignments, Teredo, ORCHID, benchmarks
        {{0x20, 0x01, 0x0D, 0xB8}, 32}, // documentation
        {{0x20, 0x02}, 16},             // 6to4
        {{0x3F, 0xFF, 0x00}, 20},       // documentation
    };
    static const uint8_t global[1] = {0x20};
    if (has_prefix(address, mapped, 96) || has_prefix(address, nat64, 96)) {
        return is_public_v4(tail_v4(address));
    }
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        if (has_prefix(address, special[i].prefix, special[i].bits)) {
            return false;
        }
    }
    return has_prefix(address, global, 3); // 2000::/3: all that is given out so far
}

bool guard_is_public(const struct sockaddr *address) {
    if (address->sa_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, address, sizeof v4);
        return is_public_v4(ntohl(v4.sin_addr.s_addr));
    }
    if (address->sa_family == AF_INET6) {
        struct sockaddr_in6 v6;
        memcpy(&v6, address, sizeof v6);
        return is_public_v6(v6.sin6_addr.s6_addr);
    }
    return false;
}

bool guard_allows(void *user, const struct sockaddr *address) {
    (void)user;
    return guard_is_public(address);
}

// --- data: URIs ----------------------------------------------------------------------------------

// A digit's value + 1, 0 for what is none.
static const uint8_t base64_values[256] = {
    ['A'] = 1,  ['B'] = 2,  ['C'] = 3,  ['D'] = 4,  ['E'] = 5,  ['F'] = 6,  ['G'] = 7,  ['H'] = 8,
    ['I'] = 9,  ['J'] = 10, ['K'] = 11, ['L'] = 12, ['M'] = 13, ['N'] = 14, ['O'] = 15, ['P'] = 16,
    ['Q'] = 17, ['R'] = 18, ['S'] = 19, ['T'] = 20, ['U'] = 21, ['V'] = 22, ['W'] = 23, ['X'] = 24,
    ['Y'] = 25, ['Z'] = 26, ['a'] = 27, ['b'] = 28, ['c'] = 29, ['d'] = 30, ['e'] = 31, ['f'] = 32,
    ['g'] = 33, ['h'] = 34, ['i'] = 35, ['j'] = 36, ['k'] = 37, ['l'] = 38, ['m'] = 39, ['n'] = 40,
    ['o'] = 41, ['p'] = 42, ['q'] = 43, ['r'] = 44, ['s'] = 45, ['t'] = 46, ['u'] = 47, ['v'] = 48,
    ['w'] = 49, ['x'] = 50, ['y'] = 51, ['z'] = 52, ['0'] = 53, ['1'] = 54, ['2'] = 55, ['3'] = 56,
    ['4'] = 57, ['5'] = 58, ['6'] = 59, ['7'] = 60, ['8'] = 61, ['9'] = 62, ['+'] = 63, ['/'] = 64};

// Appends what the n digits in front of the padding stand for, n % 4 != 1.
static lv_status decode_digits(const char *text, size_t n, lv_buffer *out) {
    uint8_t chunk[3 * 1024];
    size_t n_chunk = 0;
    for (size_t i = 0; i < n; i += 4) {
        uint32_t bits = 0;
        size_t n_digits = n - i < 4 ? n - i : 4;
        for (size_t j = 0; j < 4; j++) {
            uint8_t value = j < n_digits ? base64_values[(unsigned char)text[i + j]] : 1;
            if (value == 0) {
                return lv_fail(LV_EFORMAT, "data: URI: not valid base64");
            }
            bits = bits << 6 | (value - 1u);
        }
        size_t n_bytes = n_digits - 1;
        if (bits & ((1u << (24 - 8 * n_bytes)) - 1)) {
            return lv_fail(LV_EFORMAT, "data: URI: base64 that ends in the middle of a byte");
        }
        for (size_t j = 0; j < n_bytes; j++) {
            chunk[n_chunk++] = (uint8_t)(bits >> (16 - 8 * j));
        }
        if (n_chunk == sizeof chunk) {
            LV_TRY(lv_buffer_append(out, chunk, n_chunk));
            n_chunk = 0;
        }
    }
    return lv_buffer_append(out, chunk, n_chunk);
}

lv_status data_uri_decode(const char *uri, size_t n_bytes, size_t max_bytes, lv_buffer *out) {
    static const char mark[] = ";base64";
    const char *comma = memchr(uri, ',', n_bytes);
    size_t n_mark = sizeof mark - 1;
    *out = (lv_buffer){.max_bytes = max_bytes};
    if (!comma || (size_t)(comma - uri) < 5 + n_mark || strncasecmp(uri, "data:", 5) != 0 ||
        strncasecmp(comma - n_mark, mark, n_mark) != 0) {
        return lv_fail(LV_EFORMAT, "data: URI: expected data:image/...;base64,...");
    }
    const char *text = comma + 1;
    size_t n = n_bytes - (size_t)(text - uri), n_padding = 0;
    while (n_padding < 2 && n_padding < n && text[n - 1 - n_padding] == '=') {
        n_padding++;
    }
    if (n == 0 || n % 4 != 0) {
        return lv_fail(LV_EFORMAT,
                       n ? "data: URI: base64 of %zu characters, not a multiple of 4"
                         : "data: URI: no data (%zu characters)",
                       n);
    }
    if (n / 4 * 3 - n_padding > max_bytes) {
        return lv_fail(LV_ELIMIT, "a picture of %zu bytes, where %zu are allowed",
                       n / 4 * 3 - n_padding, max_bytes);
    }
    lv_status status = decode_digits(text, n - n_padding, out);
    if (status != LV_OK) {
        lv_buffer_free(out);
    }
    return status;
}
