// What every transfer by libcurl has in common; internal to core.
#ifndef LV_CORE_HTTP_H
#define LV_CORE_HTTP_H

#include <curl/curl.h>

#include "core/status.h"

// One connection's owner. libcurl writes into it: it stays where it is from open to close.
typedef struct lv_http {
    CURL *curl;
    char host[256];               // of the last URL, for messages
    char detail[CURL_ERROR_SIZE]; // why the last transfer failed, or ""
} lv_http;

lv_status lv_http_open(lv_http *out) LV_MUST_CHECK;
void lv_http_close(lv_http *http); // also a zeroed one

// Starts a request with the options that all have; those of the last one are forgotten, its
// connection is kept. `schemes`: "https" or "http,https", of redirects too. Follows none yet.
void lv_http_begin(lv_http *http, const char *url, const char *schemes);

// libcurl's result as a status whose message names the host. An HTTP status of 400 and more is
// the caller's to look at.
lv_status lv_http_result(const lv_http *http, CURLcode code) LV_MUST_CHECK;

#endif
