#include "core/http.h"

#include <pthread.h>
#include <stdio.h>

#define CONNECT_S 10L
#define LOW_SPEED_BYTES 100L // a second, over LOW_SPEED_S seconds: a server that only drips
#define LOW_SPEED_S 20L

static CURLcode global_code;
static pthread_once_t global_once = PTHREAD_ONCE_INIT;

static void init_curl(void) {
    global_code = curl_global_init(CURL_GLOBAL_DEFAULT);
}

lv_status lv_http_open(lv_http *out) {
    *out = (lv_http){0};
    pthread_once(&global_once, init_curl);
    out->curl = global_code == CURLE_OK ? curl_easy_init() : NULL;
    return out->curl ? LV_OK : lv_fail(LV_ENETWORK, "libcurl cannot start");
}

void lv_http_close(lv_http *http) {
    curl_easy_cleanup(http->curl);
    http->curl = NULL;
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

void lv_http_begin(lv_http *http, const char *url, const char *schemes) {
    CURL *curl = http->curl;
    find_host(url, http->host, sizeof http->host);
    *http->detail = 0;
    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, schemes);
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, schemes);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "llava.c/" LV_VERSION);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L); // time-outs without signals: threads fetch too
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CONNECT_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, LOW_SPEED_BYTES);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, LOW_SPEED_S);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, http->detail);
}

lv_status lv_http_result(const lv_http *http, CURLcode code) {
    const char *detail = *http->detail ? http->detail : curl_easy_strerror(code);
    switch (code) {
    case CURLE_OK:
        return LV_OK;
    case CURLE_OUT_OF_MEMORY:
        return lv_fail(LV_ENOMEM, "%s: out of memory", http->host);
    case CURLE_ABORTED_BY_CALLBACK:
        return lv_fail(LV_ECANCELLED, "%s: cancelled", http->host);
    case CURLE_URL_MALFORMAT:
        return lv_fail(LV_EINVAL, "%s: %s", http->host, detail);
    default:
        return lv_fail(LV_ENETWORK, "%s: %s", http->host, detail);
    }
}
