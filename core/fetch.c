#include "core/fetch.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define DEFAULT_MAX_BYTES ((size_t)64 << 20)
#define DEFAULT_CONNECT_S 10L
#define DEFAULT_TOTAL_S 60L
#define DEFAULT_REDIRECTS 3
#define LOW_SPEED_BYTES 100L // a second, over LOW_SPEED_S seconds: a server that only drips
#define LOW_SPEED_S 20L
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
    bool too_long, no_memory;
    char host[256];
    char detail[CURL_ERROR_SIZE];
} transfer;

static CURLcode global_code;
static pthread_once_t global_once = PTHREAD_ONCE_INIT;

static void init_curl(void) {
    global_code = curl_global_init(CURL_GLOBAL_DEFAULT);
}

// The signatures of these two are libcurl's.
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

static void find_host(const char *url, char *out, size_t n_bytes) {
    CURLU *parsed = curl_url();
    char *host = NULL;
    if (parsed && curl_url_set(parsed, CURLUPART_URL, url, 0) == CURLUE_OK) {
        (void)curl_url_get(parsed, CURLUPART_HOST, &host, 0);
    }
    snprintf(out, n_bytes, "%s", host ? host : "the URL");
    curl_free(host);
    curl_url_cleanup(parsed);
}

static void set_options(CURL *curl, const char *url, transfer *t) {
    const lv_fetch_options *o = t->options;
    long n_redirects = o->max_redirects ? o->max_redirects : DEFAULT_REDIRECTS;
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, n_redirects > 0 ? 1L : 0L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, n_redirects > 0 ? n_redirects : 0L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "llava.c/" LV_VERSION);
    curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, ""); // whatever libcurl can decode
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L); // time-outs without signals: threads fetch too
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT,
                     o->connect_timeout_s ? o->connect_timeout_s : DEFAULT_CONNECT_S);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT,
                     o->total_timeout_s ? o->total_timeout_s : DEFAULT_TOTAL_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, LOW_SPEED_BYTES);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, LOW_SPEED_S);
    curl_easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)t->out->max_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, t->detail);
    if (o->progress) {
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, t);
    }
}

static lv_status status_of(const transfer *t, CURLcode code, long http_status) {
    if (t->too_long || code == CURLE_FILESIZE_EXCEEDED) {
        return lv_fail(LV_ELIMIT, "%s: the answer is longer than the limit of %zu bytes", t->host,
                       t->out->max_bytes);
    }
    if (t->no_memory || code == CURLE_OUT_OF_MEMORY) {
        return lv_fail(LV_ENOMEM, "%s: out of memory", t->host);
    }
    if (code == CURLE_ABORTED_BY_CALLBACK) {
        return lv_fail(LV_ECANCELLED, "%s: cancelled", t->host);
    }
    if (code == CURLE_URL_MALFORMAT) {
        return lv_fail(LV_EINVAL, "%s: %s", t->host,
                       *t->detail ? t->detail : curl_easy_strerror(code));
    }
    if (code == CURLE_HTTP_RETURNED_ERROR || (code == CURLE_OK && http_status / 100 != 2)) {
        return lv_fail(http_status == 404 ? LV_ENOTFOUND : LV_ENETWORK, "%s: HTTP status %ld%s",
                       t->host, http_status, http_status == 404 ? " (not found)" : "");
    }
    if (code != CURLE_OK) {
        return lv_fail(LV_ENETWORK, "%s: %s", t->host,
                       *t->detail ? t->detail : curl_easy_strerror(code));
    }
    return LV_OK;
}

static lv_status fetch_http(const char *url, const lv_fetch_options *options, lv_buffer *out) {
    transfer t = {.options = options, .out = out};
    find_host(url, t.host, sizeof t.host);
    pthread_once(&global_once, init_curl);
    CURL *curl = global_code == CURLE_OK ? curl_easy_init() : NULL;
    if (!curl) {
        return lv_fail(LV_ENETWORK, "%s: libcurl cannot start", t.host);
    }
    set_options(curl, url, &t);
    CURLcode code = curl_easy_perform(curl);
    long http_status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http_status);
    curl_easy_cleanup(curl);
    LV_TRY(status_of(&t, code, http_status));
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
