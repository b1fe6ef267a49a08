// Bytes from http(s) URLs and data: URIs, by libcurl, with caps on bytes, time and redirects.
#ifndef LV_CORE_FETCH_H
#define LV_CORE_FETCH_H

#include <stdbool.h>
#include <sys/socket.h>

#include "core/files.h"

typedef struct lv_fetch_options {
    size_t max_bytes;       // 0: 64 MiB
    long connect_timeout_s; // 0: 10
    long total_timeout_s;   // 0: 60
    int max_redirects;      // 0: 3; negative: none
    bool (*progress)(void *user, size_t n_bytes,
                     size_t total_bytes); // total 0: unknown; false cancels
    // Asked about each address that is about to be dialled, those of redirects too; false refuses
    // it. What is asked about is what is dialled: no name is looked up again, no proxy is used.
    bool (*allow_address)(void *user, const struct sockaddr *address);
    void *user; // of both
} lv_fetch_options;

// True for http://, https:// and data: (any letter case).
bool lv_is_url(const char *text);

// Fetches into *out. data: URIs are decoded here (base64 and percent-encoding). LV_ENETWORK names
// host and cause, LV_ELIMIT the cap, LV_ENOTFOUND a 404, LV_ECANCELLED a stop by `progress`.
lv_status lv_fetch(const char *url, const lv_fetch_options *options, lv_buffer *out) LV_MUST_CHECK;

#endif
