#include "core/fetch.h"

#include "core/http.h"

#include <string.h>
#include <strings.h>

#define DEFAULT_MAX_BYTES ((size_t)64 << 20)
#define DEFAULT_TOTAL_S 60L
#define DEFAULT_REDIRECTS 3
#define DATA_CHUNK_BYTES 4096

static bool begins_with(const char *text, const char *prefix) {
    return strncasecmp(text, prefix, strlen(prefix)) == 0;
}

bool lv_is_url(const char *text) {
    return begins_with(text, "http://") || begins_with(text, "https://") ||
           begins_with(text, "data:");
}

// --- data: URIs (RFC 2397) ----------------------------------------------------------------------

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The next byte of `*text` with %XX decoded; a lone % stands for itself.
static uint8_t next_byte(const char **text) {
    const char *at = *text;
    if (at[0] == '%' && hex_digit(at[1]) >= 0 && hex_digit(at[2]) >= 0) {
        *text = at + 3;
        return (uint8_t)(hex_digit(at[1]) << 4 | hex_digit(at[2]));
    }
    *text = at + 1;
    return (uint8_t)at[0];
}

// The six bits of a base64 digit of either alphabet (RFC 4648), or -1.
static int base64_digit(uint8_t c) {
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' || c == '-' ? 62 : c == '/' || c == '_' ? 63 : -1;
}

static lv_status decode_base64(const char *text, lv_buffer *out) {
    uint8_t chunk[DATA_CHUNK_BYTES];
    size_t n = 0;
    uint32_t bits = 0;
    int n_bits = 0, n_digits = 0;
    bool padded = false;
    while (*text) {
        uint8_t c = next_byte(&text);
        if (c && strchr(" \t\r\n\f", c)) {
            continue;
        }
        padded |= c == '=';
        int digit = base64_digit(c);
        if (c != '=' && (digit < 0 || padded)) {
            return lv_fail(LV_EFORMAT, "not valid base64");
        }
        if (padded) {
            continue;
        }
        bits = bits << 6 | (uint32_t)digit;
        n_bits += 6;
        n_digits++;
        if (n_bits >= 8) {
            n_bits -= 8;
            chunk[n++] = (uint8_t)(bits >> n_bits);
        }
        if (n == sizeof chunk) {
            LV_TRY(lv_buffer_append(out, chunk, n));
            n = 0;
        }
    }
    if (n_digits % 4 == 1) {
        return lv_fail(LV_EFORMAT, "the base64 text is cut off");
    }
    return lv_buffer_append(out, chunk, n);
}

static lv_status decode_percent(const char *text, lv_buffer *out) {
    uint8_t chunk[DATA_CHUNK_BYTES];
    size_t n = 0;
    while (*text) {
        chunk[n++] = next_byte(&text);
        if (n == sizeof chunk) {
            LV_TRY(lv_buffer_append(out, chunk, n));
            n = 0;
        }
    }
    return lv_buffer_append(out, chunk, n);
}

static lv_status decode_data_uri(const char *uri, lv_buffer *out) {
    const char *type = uri + strlen("data:");
    const char *comma = strchr(type, ',');
    if (!comma) {
        return lv_fail(LV_EFORMAT, "no comma before the data");
    }
    static const char mark[] = ";base64";
    size_t n_mark = sizeof mark - 1;
    bool base64 = (size_t)(comma - type) >= n_mark && begins_with(comma - n_mark, mark);
    return base64 ? decode_base64(comma + 1, out) : decode_percent(comma + 1, out);
}

// --- http and https -----------------------------------------------------------------------------

typedef struct transfer {
    const lv_fetch_options *options;
    lv_buffer *out;
    bool too_long, no_memory, refused;
} transfer;

// The signatures of these three are libcurl's.
static size_t on_data(char *data, size_t size, size_t n, void *user) {
    transfer *t = user;
    lv_status status = lv_buffer_append(t->out, data, size * n);
    t->too_long = status == LV_ELIMIT;
    t->no_memory = status == LV_ENOMEM;
    return status == LV_OK ? size * n : 0;
}

static int on_progress(void *user, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now) {
    (void)up_total, (void)up_now;
    transfer *t = user;
    return !t->options->progress(t->options->user, (size_t)now, (size_t)total);
}

static curl_socket_t on_open_socket(void *user, curlsocktype purpose,
                                    struct curl_sockaddr *address) {
    transfer *t = user;
    if (purpose != CURLSOCKTYPE_IPCXN ||
        !t->options->allow_address(t->options->user, &address->addr)) {
        t->refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static void set_options(CURL *curl, transfer *t) {
    const lv_fetch_options *o = t->options;
    long n_redirects = o->max_redirects ? o->max_redirects : DEFAULT_REDIRECTS;
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, n_redirects > 0 ? 1L : 0L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, n_redirects > 0 ? n_redirects : 0L);
    curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, ""); // whatever libcurl can decode
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    if (o->connect_timeout_s) {
        curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, o->connect_timeout_s);
    }
    curl_easy_setopt(curl, CURLOPT_TIMEOUT,
                     o->total_timeout_s ? o->total_timeout_s : DEFAULT_TOTAL_S);
    curl_easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)t->out->max_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, t);
    if (o->progress) {
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, t);
    }
    if (o->allow_address) {
        curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
        curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, t);
        curl_easy_setopt(curl, CURLOPT_PROXY, ""); // not even one of the environment
    }
}

static lv_status status_of(const transfer *t, const lv_http *http, CURLcode code) {
    long http_status = 0;
    curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &http_status);
    if (t->too_long || code == CURLE_FILESIZE_EXCEEDED) {
        return lv_fail(LV_ELIMIT, "%s: the answer is longer than the limit of %zu bytes",
                       http->host, t->out->max_bytes);
    }
    if (t->refused && code == CURLE_COULDNT_CONNECT) {
        return lv_fail(LV_ENETWORK, "%s: its address is not one that may be fetched from",
                       http->host);
    }
    if (code == CURLE_HTTP_RETURNED_ERROR || (code == CURLE_OK && http_status / 100 != 2)) {
        return lv_fail(http_status == 404 ? LV_ENOTFOUND : LV_ENETWORK, "%s: HTTP status %ld%s",
                       http->host, http_status, http_status == 404 ? " (not found)" : "");
    }
    return lv_http_result(http, t->no_memory ? CURLE_OUT_OF_MEMORY : code);
}

static lv_status fetch_http(const char *url, const lv_fetch_options *options, lv_buffer *out) {
    transfer t = {.options = options, .out = out};
    lv_http http;
    LV_TRY(lv_http_open(&http));
    lv_http_begin(&http, url, "http,https");
    set_options(http.curl, &t);
    lv_status status = status_of(&t, &http, curl_easy_perform(http.curl));
    lv_http_close(&http);
    LV_TRY(status);
    return lv_buffer_append(out, NULL, 0); // an empty answer is an empty buffer, not NULL
}

lv_status lv_fetch(const char *url, const lv_fetch_options *options, lv_buffer *out) {
    static const lv_fetch_options defaults;
    options = options ? options : &defaults;
    *out = (lv_buffer){.max_bytes = options->max_bytes ? options->max_bytes : DEFAULT_MAX_BYTES};
    lv_status status;
    if (begins_with(url, "data:")) {
        status = decode_data_uri(url, out);
        status = status == LV_OK ? LV_OK : lv_fail_in(status, "data: URI");
    } else if (lv_is_url(url)) {
        status = fetch_http(url, options, out);
    } else {
        status = lv_fail(LV_EINVAL, "%.80s: not an http, https or data URL", url);
    }
    if (status != LV_OK) {
        lv_buffer_free(out);
    }
    return status;
}
