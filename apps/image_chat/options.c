// The command line: one table says what every option is called, means and takes.
#include "apps/image_chat/options.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/files.h"

#define KEY_ENVIRONMENT "IMAGE_CHAT_API_KEY"
#define MAX_KEY_FILE_BYTES ((size_t)64 << 10)

typedef enum option_kind {
    FLAG,
    NAME,
    NAMES,
    INTEGER,
    NUMBER,
    SIZE,
    ROPE,
    QUANT_POLICY
} option_kind;

typedef struct option_spec {
    const char *group; // opens a group in the help
    char letter;       // 0: none
    const char *name;
    const char *value; // what it takes, NULL for a flag
    option_kind kind;
    size_t offset; // of its field in options
    double min, max;
    const char *help;
} option_spec;

#define AT(field) offsetof(server_options, field)
#define SIZE_TOP 1e15

static const option_spec specs[] = {
    {"Model", 'm', "model", "DIR|ORG/NAME", NAME, AT(model.model), 0, 0,
     "a folder or a name in the Hugging Face cache (default: demo model)"},
    {NULL, 0, "vision-model", "DIR|ORG/NAME", NAME, AT(model.vision_model), 0, 0,
     "CLIP, where the model comes without it"},
    {NULL, 0, "template", "NAME", NAME, AT(model.template_name), 0, 0,
     "prompt template (default: by the model)"},
    {NULL, 0, "device", "DEVICE", NAME, AT(model.device), 0, 0, "auto, cpu, cuda or cuda:N"},
    {NULL, 0, "tp", "N", INTEGER, AT(model.tp), 1, 8,
     "tensor parallelism: N GPUs from that one on hold the model together"},
    {NULL, 0, "threads", "N", INTEGER, AT(model.n_threads), 1, 1024, "CPU threads (default: all)"},
    {NULL, 0, "session-len", "N", INTEGER, AT(model.session_len), 16, 4194304,
     "tokens a conversation may hold (default: as trained)"},
    {NULL, 0, "rope-scaling", "TYPE[:FACTOR]", ROPE, AT(rope), 0, 0,
     "beyond the trained length: dynamic, linear or yarn (yarn:4)"},
    {NULL, 0, "max-batch-size", "N", INTEGER, AT(engine.max_sequences), 1, 256,
     "requests answered at once (default: 64 on a GPU, 16 on the CPU)"},
    {NULL, 0, "quant-policy", "0|8", QUANT_POLICY, AT(engine.kv_dtype), 0, 0,
     "8 keeps keys and values in int8, in less memory (default 0)"},
    {NULL, 0, "cache-max-entry-count", "SHARE", NUMBER, AT(engine.cache_max_entry_count), 0.001,
     0.99, "share of the free memory for keys and values"},
    {NULL, 0, "kv-memory", "BYTES", SIZE, AT(engine.kv_bytes), 1 << 16, SIZE_TOP,
     "the same in bytes (K, M and G are understood)"},
    {NULL, 0, "image-cache", "BYTES", SIZE, AT(engine.image_cache_bytes), 1, SIZE_TOP,
     "embeddings kept of pictures asked about before"},
    {NULL, 0, "no-prefix-cache", NULL, FLAG, AT(engine.no_reuse), 0, 0,
     "read each prompt anew, also its beginning"},

    {"Server", 0, "server-name", "ADDRESS", NAME, AT(name), 0, 0,
     "address to listen on (default 127.0.0.1)"},
    {NULL, 'p', "server-port", "PORT", INTEGER, AT(port), 0, 65535,
     "port (default 23333; 0: a free one, which is said)"},
    {NULL, 0, "api-key", "KEY", NAMES, AT(api_keys), 0, 0,
     "what clients must bring; may be repeated, any of them opens"},
    {NULL, 0, "api-key-file", "FILE", NAME, AT(api_key_file), 0, 0, "keys in FILE, one a line"},
    {NULL, 0, "insecure", NULL, FLAG, AT(insecure), 0, 0,
     "other machines may ask without a key: know what you do"},
    {NULL, 0, "allow-origin", "ORIGIN", NAMES, AT(origins), 0, 0,
     "web pages from there may ask too, as https://example.org; may be repeated"},
    {NULL, 0, "allow-host", "NAME", NAMES, AT(hosts), 0, 0,
     "a host name that clients may use for this server; may be repeated"},
    {NULL, 0, "allow-url-fetch", NULL, FLAG, AT(allow_url_fetch), 0, 0,
     "fetch pictures by http(s) URL, from public addresses only (default: refused)"},

    {"Limits", 0, "max-queue", "N", INTEGER, AT(engine.queue_length), 1, 100000,
     "requests that wait besides those answered (default 512), then 429"},
    {NULL, 0, "max-requests", "N", INTEGER, AT(max_requests), 1, 100000,
     "chat requests at once, read or answered (default 1024), then 429"},
    {NULL, 0, "max-connections", "N", INTEGER, AT(max_connections), 8, 100000,
     "connections at once (default 2048); further ones wait"},
    {NULL, 0, "max-body-bytes", "BYTES", SIZE, AT(max_body_bytes), 1024, 1 << 30,
     "of a request (default 32M), then 413"},
    {NULL, 0, "max-image-bytes", "BYTES", SIZE, AT(max_image_bytes), 1024, 1 << 30,
     "of a picture's file (default 20M), then 413"},
    {NULL, 0, "max-pixels", "N", SIZE, AT(max_pixels), 1, SIZE_TOP,
     "of a picture (default 64M), then 413"},
    {NULL, 0, "max-images", "N", INTEGER, AT(max_images), 1, 1024,
     "pictures in a request (default 16)"},
    {NULL, 0, "max-tokens", "N", INTEGER, AT(max_tokens), 1, 16777216,
     "of an answer where the request says nothing (default 512)"},
    {NULL, 0, "header-timeout", "S", INTEGER, AT(header_timeout_s), 1, 3600,
     "seconds for a request's head (default 10)"},
    {NULL, 0, "body-timeout", "S", INTEGER, AT(body_timeout_s), 1, 3600,
     "seconds for its body (default 60)"},
    {NULL, 0, "idle-timeout", "S", INTEGER, AT(idle_timeout_s), 1, 3600,
     "seconds between requests, or of a client that reads nothing (default 60)"},
    {NULL, 0, "fetch-timeout", "S", INTEGER, AT(fetch_timeout_s), 1, 600,
     "seconds for a picture's URL (default 15)"},
    {NULL, 0, "drain-timeout", "S", INTEGER, AT(drain_timeout_s), 0, 86400,
     "seconds for requests to end after SIGTERM (default 30)"},
    {NULL, 0, "ping-interval", "S", INTEGER, AT(ping_interval_s), 1, 3600,
     "a silent stream gets a comment every S seconds (default 5)"},
    {NULL, 0, "http-threads", "N", INTEGER, AT(n_http_threads), 1, 64,
     "threads that read and write requests (default 2)"},

    {"Output", 'q', "quiet", NULL, FLAG, AT(quiet), 0, 0, "no line for each request"},
    {NULL, 'v', "verbose", NULL, FLAG, AT(verbose), 0, 0,
     "also questions, answers and details of failures"},
    {NULL, 'h', "help", NULL, FLAG, AT(help), 0, 0, "this text"},
    {NULL, 0, "version", NULL, FLAG, AT(version), 0, 0, "the version"},
};

enum { N_SPECS = sizeof specs / sizeof *specs };

void options_help(void) {
    bool bold = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
    const char *on = bold ? "\033[1m" : "", *off = bold ? "\033[0m" : "";
    printf("%simage-chat%s - chat about pictures in the browser, and an OpenAI-compatible API\n\n"
           "%susage:%s image-chat [OPTIONS]\n\n"
           "Serves the web chat at /, the API under /v1, its description at /docs and\n"
           "/openapi.json, /health and /metrics. Only this machine can ask, unless --server-name\n"
           "names another address; then clients bring a key (--api-key), or --insecure is given.\n",
           on, off, on, off);
    for (const option_spec *spec = specs; spec < specs + N_SPECS; spec++) {
        if (spec->group) {
            printf("\n%s%s%s\n", on, spec->group, off);
        }
        char names[64];
        snprintf(names, sizeof names, "%c%c%c --%s%s%s", spec->letter ? '-' : ' ',
                 spec->letter ? spec->letter : ' ', spec->letter ? ',' : ' ', spec->name,
                 spec->value ? " " : "", spec->value ? spec->value : "");
        if (strlen(names) > 30) {
            printf("  %s\n  %-30s  %s\n", names, "", spec->help);
        } else {
            printf("  %-30s  %s\n", names, spec->help);
        }
    }
    printf("\n%sExamples%s\n"
           "  image-chat                            then open http://127.0.0.1:23333\n"
           "  image-chat --model llava-hf/llava-1.5-7b-hf\n"
           "  image-chat --server-name 0.0.0.0 --api-key-file keys.txt\n"
           "\n%sEnvironment%s\n"
           "  " KEY_ENVIRONMENT "  keys, separated by commas, as --api-key gives them\n"
           "  LLAVA_MODEL         the model where --model names none\n"
           "\n%sExit status%s\n"
           "  0 ended by SIGTERM or SIGINT   1 the address cannot be used   2 wrong usage\n"
           "  3 the model or device cannot be used\n",
           on, off, on, off, on, off);
}

static void complain(const char *format, ...) LV_PRINTF(1, 2);
static void complain(const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *at = text; *at; at++) {
        *at = iscntrl((unsigned char)*at) ? ' ' : *at;
    }
    fprintf(stderr, "image-chat: %s\n", text);
}

// --- values --------------------------------------------------------------------------------------

static bool parse_number(const option_spec *spec, const char *text, double *out) {
    char *end = NULL;
    double value = strtod(text, &end);
    bool whole = spec->kind != NUMBER;
    if (spec->kind == SIZE && end != text && *end && !end[1]) {
        const char *units = "KMG", *unit = strchr(units, toupper((unsigned char)*end));
        for (long i = unit ? unit - units : -1; i >= 0; i--) {
            value *= 1024;
        }
        end += unit != NULL;
    }
    if (end == text || *end || strpbrk(text, "xX \t") || !isfinite(value) || value < spec->min ||
        value > spec->max || (whole && value != floor(value))) {
        complain("--%s %s: expected a %snumber from %.10g to %.10g", spec->name, text,
                 whole ? "whole " : "", spec->min, spec->max);
        return false;
    }
    *out = value;
    return true;
}

// "dynamic", "linear:2", "yarn:4": what is not given is left 0, which means as the model or the
// session's length says.
static bool parse_rope(const option_spec *spec, const char *text, lv_rope_config *out) {
    static const struct {
        const char *name;
        lv_rope_type type;
    } types[] = {{"linear", LV_ROPE_LINEAR}, {"dynamic", LV_ROPE_DYNAMIC}, {"yarn", LV_ROPE_YARN}};
    size_t n = strcspn(text, ":");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strlen(types[i].name) != n || strncmp(types[i].name, text, n) != 0) {
            continue;
        }
        char *end = NULL;
        *out = (lv_rope_config){.type = types[i].type};
        out->factor = text[n] ? strtof(text + n + 1, &end) : 0;
        if (!text[n] || (!*end && out->factor >= 1 && out->factor <= 1024)) {
            return true;
        }
    }
    complain("--%s %s: expected dynamic, linear or yarn, or with a factor from 1 to 1024 as in "
             "linear:2",
             spec->name, text);
    return false;
}

static bool add_name(const char *what, const char *text, name_list *list) {
    if (list->n == MAX_NAMES) {
        complain("%s: more than %d", what, MAX_NAMES);
        return false;
    }
    list->items[list->n++] = text;
    return true;
}

static bool store(const option_spec *spec, const char *text, server_options *out) {
    void *field = (char *)out + spec->offset;
    double number = 0;
    if (spec->value && !*text) {
        complain("--%s: the %s is empty", spec->name, spec->value);
        return false;
    }
    if (spec->kind == INTEGER || spec->kind == NUMBER || spec->kind == SIZE) {
        if (!parse_number(spec, text, &number)) {
            return false;
        }
    }
    switch (spec->kind) {
    case FLAG:
        *(bool *)field = true;
        return true;
    case NAME:
        *(const char **)field = text;
        return true;
    case NAMES:
        return add_name(spec->name, text, field);
    case INTEGER:
        *(int *)field = (int)number;
        return true;
    case NUMBER:
        *(double *)field = number;
        return true;
    case SIZE:
        *(size_t *)field = (size_t)number;
        return true;
    case ROPE:
        out->has_rope = true;
        return parse_rope(spec, text, field);
    case QUANT_POLICY:
        if (strcmp(text, "0") != 0 && strcmp(text, "8") != 0) {
            complain("--%s %s: expected 0 or 8", spec->name, text);
            return false;
        }
        *(lv_dtype *)field = *text == '8' ? LV_I8 : LV_NONE;
        return true;
    }
    return false;
}

// "--name=value", "--name value", "-p value" or "-v"; *i is moved past what was taken.
static bool parse_one(int argc, char **argv, int *i, server_options *out) {
    const char *arg = argv[*i];
    bool is_long = arg[0] == '-' && arg[1] == '-';
    const char *name = arg + 2;
    size_t n = is_long ? strcspn(name, "=") : 0;
    for (const option_spec *spec = specs; spec < specs + N_SPECS; spec++) {
        if (is_long ? strlen(spec->name) != n || strncmp(spec->name, name, n) != 0
                    : arg[0] != '-' || !arg[1] || spec->letter != arg[1] || arg[2]) {
            continue;
        }
        const char *value = is_long && name[n] ? name + n + 1 : NULL;
        if (!spec->value && value) {
            complain("--%s takes no value", spec->name);
            return false;
        }
        if (spec->value && !value) {
            if (*i + 1 >= argc) {
                complain("--%s wants %s after it", spec->name, spec->value);
                return false;
            }
            value = argv[++*i];
        }
        return store(spec, value, out);
    }
    complain("%s: no such option; image-chat --help lists them", arg);
    return false;
}

// --- keys, addresses -----------------------------------------------------------------------------

// Adds the keys that stand in key_text, which it cuts up.
static bool add_keys(const char *what, char *text, name_list *keys) {
    char *rest = text;
    for (char *key; (key = strsep(&rest, ",\n"));) {
        while (isspace((unsigned char)*key)) {
            key++;
        }
        size_t n = strlen(key);
        while (n > 0 && isspace((unsigned char)key[n - 1])) {
            key[--n] = 0;
        }
        if (n > 0 && !add_name(what, key, keys)) {
            return false;
        }
    }
    return true;
}

static bool read_keys(server_options *o) {
    const char *named = getenv(KEY_ENVIRONMENT);
    lv_buffer file = {0};
    bool ok = true;
    if (o->api_key_file && lv_file_read(o->api_key_file, MAX_KEY_FILE_BYTES, &file) != LV_OK) {
        complain("--api-key-file: %s", lv_error());
        return false;
    }
    if (asprintf(&o->key_text, "%s\n%s", named ? named : "",
                 file.data ? (const char *)file.data : "") < 0) {
        o->key_text = NULL;
        complain("out of memory");
        ok = false;
    }
    int n_before = o->api_keys.n;
    ok = ok &&
         add_keys(o->api_key_file ? "--api-key-file" : KEY_ENVIRONMENT, o->key_text, &o->api_keys);
    if (ok && o->api_key_file && o->api_keys.n == n_before) {
        complain("--api-key-file: %s holds no key", o->api_key_file);
        ok = false;
    }
    lv_buffer_free(&file);
    return ok;
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

static bool is_device(const char *name) {
    if (!strcmp(name, "auto") || !strcmp(name, "cpu") || !strcmp(name, "cuda")) {
        return true;
    }
    return !strncmp(name, "cuda:", 5) && name[5] && strlen(name) <= 8 &&
           strspn(name + 5, "0123456789") == strlen(name + 5);
}

// As browsers write it: a scheme and a host, maybe a port, nothing behind.
static bool is_origin(const char *text) {
    const char *host = strstr(text, "://");
    return host && host[3] && !strpbrk(host + 3, "/*? ") &&
           (!strncmp(text, "http://", 7) || !strncmp(text, "https://", 8));
}

static bool check(const server_options *o) {
    for (int i = 0; i < o->origins.n; i++) {
        if (!is_origin(o->origins.items[i])) {
            complain("--allow-origin %s: expected an origin as https://example.org or "
                     "http://localhost:8080; there is no wildcard",
                     o->origins.items[i]);
            return false;
        }
    }
    if (o->model.device && !is_device(o->model.device)) {
        complain("--device %s: expected auto, cpu, cuda or cuda:N", o->model.device);
        return false;
    }
    if (o->quiet && o->verbose) {
        complain("-q and -v are opposites");
        return false;
    }
    if (!is_loopback_name(o->name) && o->api_keys.n == 0 && !o->insecure) {
        complain("--server-name %s lets other machines ask: give --api-key (or --insecure, where "
                 "all of them may)",
                 o->name);
        return false;
    }
    return true;
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
    for (int i = 1; i < argc; i++) {
        if (!parse_one(argc, argv, &i, out)) {
            return false;
        }
    }
    out->model.rope_scaling = out->has_rope ? &out->rope : NULL;
    return out->help || out->version || (read_keys(out) && check(out));
}

void options_free(server_options *options) {
    free(options->key_text);
    options->key_text = NULL;
}
