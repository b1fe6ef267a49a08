#include "apps/image_chat/options.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/command_line.h"
#include "core/files.h"

#define KEY_ENVIRONMENT "IMAGE_CHAT_API_KEY"
#define MAX_KEY_FILE_BYTES ((size_t)64 << 10)

static lv_status add_name(const char *text, name_list *list) {
    if (list->n == MAX_NAMES) {
        return lv_fail(LV_ELIMIT, "more than %d", MAX_NAMES);
    }
    list->items[list->n++] = text;
    return LV_OK;
}

static lv_status take_names(const option_spec *spec, const char *text, void *field) {
    const char *name = NULL;
    LV_TRY(take_name(spec, text, &name));
    lv_status status = add_name(name, field);
    return status == LV_OK ? LV_OK : lv_fail_in(status, "--%s", spec->name);
}

#define AT(field) offsetof(server_options, field)

static const option_spec specs[] = {
    {"Model", 'm', "model", "DIR|ORG/NAME", take_name, AT(model.model), 0, 0,
     "a folder or a name in the Hugging Face cache (default: demo model)"},
    MODEL_OPTIONS(server_options),
    {NULL, 0, "kv-memory", "BYTES", take_size, AT(engine.kv_bytes), 1 << 16, OPTION_SIZE_TOP,
     "the same in bytes (K, M and G are understood)"},
    {NULL, 0, "max-batch-size", "N", take_int, AT(engine.max_sequences), 1, 256,
     "requests answered at once (default: 64 on a GPU, 16 on the CPU)"},
    {NULL, 0, "image-cache", "BYTES", take_size, AT(engine.image_cache_bytes), 1, OPTION_SIZE_TOP,
     "embeddings kept of pictures asked about before"},
    {NULL, 0, "no-prefix-cache", NULL, take_flag, AT(engine.no_reuse), 0, 0,
     "read each prompt anew, also its beginning"},

    {"Server", 0, "server-name", "ADDRESS", take_name, AT(name), 0, 0,
     "address to listen on (default 127.0.0.1)"},
    {NULL, 'p', "server-port", "PORT", take_int, AT(port), 0, 65535,
     "port (default 23333; 0: a free one, which is said)"},
    {NULL, 0, "api-key", "KEY", take_names, AT(api_keys), 0, 0,
     "what clients must bring; may be repeated, any of them opens"},
    {NULL, 0, "api-key-file", "FILE", take_name, AT(api_key_file), 0, 0,
     "keys in FILE, one a line"},
    {NULL, 0, "insecure", NULL, take_flag, AT(insecure), 0, 0,
     "other machines may ask without a key: know what you do"},
    {NULL, 0, "allow-origin", "ORIGIN", take_names, AT(origins), 0, 0,
     "web pages from there may ask too, as https://example.org; may be repeated"},
    {NULL, 0, "allow-host", "NAME", take_names, AT(hosts), 0, 0,
     "a host name that clients may use for this server; may be repeated"},
    {NULL, 0, "allow-url-fetch", NULL, take_flag, AT(allow_url_fetch), 0, 0,
     "fetch pictures by http(s) URL, from public addresses only (default: refused)"},

    {"Limits", 0, "max-queue", "N", take_int, AT(engine.queue_length), 1, 100000,
     "requests that wait besides those answered (default 512), then 429"},
    {NULL, 0, "max-requests", "N", take_int, AT(max_requests), 1, 100000,
     "chat requests at once, read or answered (default 1024), then 429"},
    {NULL, 0, "max-connections", "N", take_int, AT(max_connections), 8, 100000,
     "connections at once (default 2048); further ones wait"},
    {NULL, 0, "max-body-bytes", "BYTES", take_size, AT(max_body_bytes), 1024, 1 << 30,
     "of a request (default 32M), then 413"},
    {NULL, 0, "max-image-bytes", "BYTES", take_size, AT(max_image_bytes), 1024, 1 << 30,
     "of a picture's file (default 20M), then 413"},
    {NULL, 0, "max-pixels", "N", take_size, AT(max_pixels), 1, OPTION_SIZE_TOP,
     "of a picture (default 64M), then 413"},
    {NULL, 0, "max-images", "N", take_int, AT(max_images), 1, 1024,
     "pictures in a request (default 16)"},
    {NULL, 0, "max-tokens", "N", take_int, AT(max_tokens), 1, 16777216,
     "of an answer where the request says nothing (default 512)"},
    {NULL, 0, "header-timeout", "S", take_int, AT(header_timeout_s), 1, 3600,
     "seconds for a request's head (default 10)"},
    {NULL, 0, "body-timeout", "S", take_int, AT(body_timeout_s), 1, 3600,
     "seconds for its body (default 60)"},
    {NULL, 0, "idle-timeout", "S", take_int, AT(idle_timeout_s), 1, 3600,
     "seconds between requests, or of a client that reads nothing (default 60)"},
    {NULL, 0, "fetch-timeout", "S", take_int, AT(fetch_timeout_s), 1, 600,
     "seconds for a picture's URL (default 15)"},
    {NULL, 0, "drain-timeout", "S", take_int, AT(drain_timeout_s), 0, 86400,
     "seconds for requests to end after SIGTERM (default 30)"},
    {NULL, 0, "ping-interval", "S", take_int, AT(ping_interval_s), 1, 3600,
     "a silent stream gets a comment every S seconds (default 5)"},
    {NULL, 0, "http-threads", "N", take_int, AT(n_http_threads), 1, 64,
     "threads that read and write requests (default 2)"},

    {"Output", 'q', "quiet", NULL, take_flag, AT(quiet), 0, 0, "no line for each request"},
    {NULL, 'v', "verbose", NULL, take_flag, AT(verbose), 0, 0,
     "also questions, answers and details of failures"},
    {NULL, 'h', "help", NULL, take_flag, AT(help), 0, 0, "this text"},
    {NULL, 0, "version", NULL, take_flag, AT(version), 0, 0, "the version"},
};

static const help_note notes[] = {
    {"Examples", "  image-chat                            then open http://127.0.0.1:23333\n"
                 "  image-chat --model llava-hf/llava-1.5-7b-hf\n"
                 "  image-chat --server-name 0.0.0.0 --api-key-file keys.txt\n"},
    {"Environment", "  " KEY_ENVIRONMENT "  keys, separated by commas, as --api-key gives them\n"
                    "  LLAVA_MODEL         the model where --model names none\n"},
    {"Exit status",
     "  0 ended by SIGTERM or SIGINT   1 the address cannot be used   2 wrong usage\n"
     "  3 the model or device cannot be used\n"},
};

static const command_line line = {
    .program = "image-chat",
    .purpose = "chat about pictures in the browser, and an OpenAI-compatible API",
    .usage = "[OPTIONS]",
    .about =
        "Serves the web chat at /, the API under /v1, its description at /docs and\n"
        "/openapi.json, /health and /metrics. Only this machine can ask, unless --server-name\n"
        "names another address; then clients bring a key (--api-key), or --insecure is given.\n",
    .specs = specs,
    .n_specs = sizeof specs / sizeof *specs,
    .notes = notes,
    .n_notes = sizeof notes / sizeof *notes,
};

void options_help(void) {
    command_line_help(&line);
}

// --- keys, addresses -----------------------------------------------------------------------------

// Adds the keys that stand in key_text, which it cuts up.
static lv_status add_keys(char *text, name_list *keys) {
    char *rest = text;
    for (char *key; (key = strsep(&rest, ",\n"));) {
        while (isspace((unsigned char)*key)) {
            key++;
        }
        size_t n = strlen(key);
        while (n > 0 && isspace((unsigned char)key[n - 1])) {
            key[--n] = 0;
        }
        if (n > 0) {
            LV_TRY(add_name(key, keys));
        }
    }
    return LV_OK;
}

static lv_status read_keys(server_options *o) {
    const char *named = getenv(KEY_ENVIRONMENT), *file_text = "";
    const char *what = o->api_key_file ? "--api-key-file" : KEY_ENVIRONMENT;
    const int n_before = o->api_keys.n;
    lv_buffer file = {0};
    lv_status status = LV_OK;
    if (o->api_key_file) {
        status = lv_file_read(o->api_key_file, MAX_KEY_FILE_BYTES, &file);
        if (status != LV_OK) {
            return lv_fail_in(status, "--api-key-file");
        }
        file_text = file.data ? (const char *)file.data : "";
    }
    if (asprintf(&o->key_text, "%s\n%s", named ? named : "", file_text) < 0) {
        o->key_text = NULL;
        status = lv_fail(LV_ENOMEM, "out of memory");
    } else {
        status = add_keys(o->key_text, &o->api_keys);
        status = status == LV_OK ? LV_OK : lv_fail_in(status, "%s", what);
    }
    if (status == LV_OK && o->api_key_file && o->api_keys.n == n_before) {
        status = lv_fail(LV_EINVAL, "--api-key-file: %s holds no key", o->api_key_file);
    }
    lv_buffer_free(&file);
    return status;
}

bool is_loopback_name(const char *name) {
    struct in_addr v4;
    struct in6_addr v6;
    if (strcasecmp(name, "localhost") == 0) {
        return true;
    }
    if (inet_pton(AF_INET, name, &v4) == 1) {
        return (ntohl(v4.s_addr) >> 24) == 127;
    }
    return inet_pton(AF_INET6, name, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

// As browsers write it: a scheme and a host, maybe a port, nothing behind.
static bool is_origin(const char *text) {
    const char *host = strstr(text, "://");
    return host && host[3] && !strpbrk(host + 3, "/*? ") &&
           (!strncmp(text, "http://", 7) || !strncmp(text, "https://", 8));
}

static lv_status check(const server_options *o) {
    for (int i = 0; i < o->origins.n; i++) {
        if (!is_origin(o->origins.items[i])) {
            return lv_fail(LV_EINVAL,
                           "--allow-origin %s: expected an origin as https://example.org or "
                           "http://localhost:8080; there is no wildcard",
                           o->origins.items[i]);
        }
    }
    if (o->quiet && o->verbose) {
        return lv_fail(LV_EINVAL, "-q and -v are opposites");
    }
    if (!is_loopback_name(o->name) && o->api_keys.n == 0 && !o->insecure) {
        return lv_fail(LV_EINVAL,
                       "--server-name %s lets other machines ask: give --api-key (or --insecure, "
                       "where all of them may)",
                       o->name);
    }
    return LV_OK;
}

bool options_parse(int argc, char **argv, server_options *out) {
    *out = (server_options){.name = "127.0.0.1",
                            .port = 23333,
                            .engine = {.queue_length = 512},
                            .max_body_bytes = (size_t)32 << 20,
                            .max_image_bytes = (size_t)20 << 20,
                            .max_pixels = (size_t)64 << 20,
                            .max_images = 16,
                            .max_requests = 1024,
                            .max_connections = 2048,
                            .max_tokens = 512,
                            .header_timeout_s = 10,
                            .body_timeout_s = 60,
                            .idle_timeout_s = 60,
                            .fetch_timeout_s = 15,
                            .drain_timeout_s = 30,
                            .ping_interval_s = 5,
                            .n_http_threads = 2};
    lv_status status = command_line_parse(&line, argc, argv, out);
    out->model.rope_scaling = out->rope.type ? &out->rope : NULL;
    if (status == LV_OK && !out->help && !out->version) {
        status = read_keys(out);
        status = status == LV_OK ? check(out) : status;
    }
    if (status != LV_OK) {
        fprintf(stderr, "image-chat: %s\n", lv_error());
    }
    return status == LV_OK;
}

void options_free(server_options *options) {
    free(options->key_text);
    options->key_text = NULL;
}
