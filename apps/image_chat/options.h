// image-chat's command line.
#ifndef LV_CHAT_OPTIONS_H
#define LV_CHAT_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "pipeline/llava.h"

enum { MAX_NAMES = 64 };

typedef struct name_list {
    const char *items[MAX_NAMES];
    int n;
} name_list;

typedef struct server_options {
    lv_model_options model;
    lv_engine_options engine;
    lv_rope_config rope; // of a plain type: not given

    const char *name; // address to bind
    int port;         // 0: any free one
    name_list api_keys, origins, hosts;
    const char *api_key_file;
    bool insecure, allow_url_fetch;

    size_t max_body_bytes, max_image_bytes, max_pixels;
    int max_images, max_requests, max_connections;
    int header_timeout_s, body_timeout_s, idle_timeout_s, fetch_timeout_s, drain_timeout_s;
    int ping_interval_s, n_http_threads, max_tokens;

    bool quiet, verbose, help, version;
    char *key_text; // owned: keys of the environment and of --api-key-file
} server_options;

// Reads command line and environment; borrows from argv. False after saying on stderr what is
// wrong.
bool options_parse(int argc, char **argv, server_options *out);
void options_free(server_options *options);
void options_help(void); // to standard output

bool is_loopback_name(const char *name); // "localhost", 127.0.0.0/8, ::1

#endif
