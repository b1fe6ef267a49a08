// libmicrohttpd's side: requests in, responses out.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "apps/image_chat/chat.h"
#include "core/json.h"

#define CONNECTION_BYTES ((size_t)32 << 10) // what a request's head may take
#define STREAM_BLOCK_BYTES 4096
#define MAX_REPLY_BYTES ((size_t)512 << 20)
#define MAX_JSON_VALUES 65536 // a parsed value costs up to 100 bytes of memory
#define HELD_BODIES 16        // so many requests of the greatest size may be held at once
#define DRAINED_BODIES 4      // a refused body is read to its end up to so many times the limit

static const char page_policy[] =
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static const char *header(const exchange *x, const char *name) {
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

// --- requests ------------------------------------------------------------------------------------

static exchange *exchange_open(server *s, struct MHD_Connection *connection, const char *path,
                               const char *method) {
    exchange *x = calloc(1, sizeof *x);
    if (x) {
        x->server = s;
        x->connection = connection;
        x->path = strdup(path);
        x->id = atomic_fetch_add(&s->next_id, 1) + 1;
        x->start_ms = now_ms();
        x->client =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
        x->body = OUT_TEXT(s->options->max_body_bytes);
        x->reply = OUT_TEXT(MAX_REPLY_BYTES);
        x->status = 200;
        x->type = "application/json";
        snprintf(x->method, sizeof x->method, "%s", method);
    }
    if (x && !x->path) {
        free(x);
        return NULL;
    }
    if (x) {
        atomic_fetch_add(&s->n_exchanges, 1);
    }
    return x;
}

static void drop_body(exchange *x) {
    out_free(&x->body);
    atomic_fetch_sub(&x->server->body_bytes, x->n_reserved);
    x->n_reserved = 0;
}

static void exchange_free(exchange *x) {
    if (x->job) {
        job_leave(x->job);
    }
    drop_body(x);
    out_free(&x->reply);
    atomic_fetch_sub(&x->server->n_exchanges, 1);
    free(x->path);
    free(x);
}

static bool is_json_type(const char *type) {
    static const char json[] = "application/json";
    size_t n = sizeof json - 1;
    return type && strncasecmp(type, json, n) == 0 && (!type[n] || strchr("; \t", type[n]));
}

static bool check_method(exchange *x) {
    const char *wanted = x->route->method;
    if (strcmp(x->method, wanted) == 0 ||
        (strcmp(x->method, MHD_HTTP_METHOD_HEAD) == 0 && strcmp(wanted, "GET") == 0)) {
        return true;
    }
    fail_with(&x->error, 405, "method_not_allowed", NULL, "Only %s is understood here.", wanted);
    x->error.allow = strcmp(wanted, "GET") == 0 ? "GET, HEAD" : wanted;
    return false;
}

static bool check_state(exchange *x) {
    switch (atomic_load(&x->server->state)) {
    case SERVER_READY:
        return true;
    case SERVER_LOADING:
        return fail_with(&x->error, 503, "loading", NULL, "The model is still being loaded.");
    case SERVER_FAILED:
        return fail_with(&x->error, 503, "device_lost", NULL,
                         "The device has failed; the server must be started anew.");
    case SERVER_DRAINING:
        break;
    }
    return fail_with(&x->error, 503, "shutting_down", NULL, "The server is shutting down.");
}

static bool check_body_head(exchange *x) {
    const char *encoding = header(x, MHD_HTTP_HEADER_CONTENT_ENCODING);
    const char *length = header(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    size_t limit = x->server->options->max_body_bytes;
    if (!is_json_type(header(x, MHD_HTTP_HEADER_CONTENT_TYPE)) ||
        (encoding && strcasecmp(encoding, "identity") != 0)) {
        return fail_with(&x->error, 415, "unsupported_media_type", NULL,
                         "The request's body must be application/json, not compressed.");
    }
    if (length && strtoull(length, NULL, 10) > limit) {
        return fail_with(&x->error, 413, "body_too_large", NULL,
                         "The request is larger than %zu bytes.", limit);
    }
    if (atomic_load(&x->server->n_jobs) >= x->server->options->max_requests) {
        return fail_with(&x->error, 429, "queue_full", NULL,
                         "Too many requests are waiting; try again later.");
    }
    return true;
}

// All that can be said before the body is there.
static void check_head(exchange *x) {
    route_find(x);
    gate_check(x);
    if (x->error.status || gate_is_preflight(x)) {
        return;
    }
    if (!x->route) {
        fail_with(&x->error, 404, "not_found", NULL, "There is nothing at this path.");
    } else if (check_method(x) && (!x->route->needs_model || check_state(x)) &&
               x->route->takes_body) {
        check_body_head(x);
    }
}

// A refused request whose body is not worth the reading: its client is told at once, and the
// connection ends. Other clients first get to send theirs, as many read nothing before.
static bool answers_at_once(const exchange *x) {
    const char *length = header(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    unsigned long long n = length ? strtoull(length, NULL, 10) : 0;
    return x->error.status && (n > DRAINED_BODIES * x->server->options->max_body_bytes ||
                               header(x, MHD_HTTP_HEADER_EXPECT));
}

static void take_body(exchange *x, const char *data, size_t n) {
    size_t limit = x->server->options->max_body_bytes;
    if (x->error.status || !x->route || !x->route->takes_body) {
        return; // read, and thrown away
    }
    atomic_fetch_add(&x->server->body_bytes, n);
    x->n_reserved += n;
    if (atomic_load(&x->server->body_bytes) > HELD_BODIES * limit) {
        fail_with(&x->error, 429, "queue_full", NULL,
                  "Too many large requests are waiting; try again later.");
    } else if (x->body.buffer.n_bytes + n > limit) {
        fail_with(&x->error, 413, "body_too_large", NULL, "The request is larger than %zu bytes.",
                  limit);
    } else {
        out_bytes(&x->body, data, n);
        if (x->body.failed) {
            fail_with(&x->error, 503, "out_of_memory", NULL, "The server is out of memory.");
        }
    }
    if (x->error.status) {
        drop_body(x);
    }
}

static bool has_few_values(const char *text, size_t n_bytes) {
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        n += text[i] == ',' || text[i] == '[' || text[i] == '{';
    }
    return n <= MAX_JSON_VALUES || n_bytes <= MAX_JSON_VALUES;
}

json_t *exchange_json(exchange *x, lift *uris) {
    json_t *root = NULL;
    out_text rest = OUT_TEXT(x->server->options->max_body_bytes + MAX_JSON_VALUES);
    const char *text = (const char *)x->body.buffer.data;
    size_t n = x->body.buffer.n_bytes;
    lv_status status = text && n > 0 ? LV_OK : lv_fail(LV_EFORMAT, "the body is empty");
    if (status == LV_OK && uris) {
        lift_uris(text, n, uris, &rest);
        text = (const char *)rest.buffer.data;
        n = rest.buffer.n_bytes;
        status = rest.failed ? lv_fail(LV_ENOMEM, "out of memory") : LV_OK;
    }
    if (status == LV_OK && !has_few_values(text, n)) {
        status = lv_fail(LV_ELIMIT, "the body: JSON of more than %d values", MAX_JSON_VALUES);
    }
    if (status == LV_OK) {
        status = lv_json_parse(text, n, "the body", &root);
    }
    out_free(&rest);
    if (status == LV_ENOMEM) {
        fail_with(&x->error, 503, "out_of_memory", NULL, "The server is out of memory.");
    } else if (status != LV_OK) {
        fail_with(&x->error, 400, "invalid_json", NULL, "%s", lv_error());
    }
    return root;
}

// --- responses -----------------------------------------------------------------------------------

static void add(struct MHD_Response *response, const char *name, const char *value) {
    if (value && *value) {
        (void)MHD_add_response_header(response, name, value);
    }
}

static void add_cors(const exchange *x, struct MHD_Response *response) {
    if (x->server->options->origins.n > 0) {
        add(response, MHD_HTTP_HEADER_VARY, "Origin");
    }
    if (x->origin) {
        add(response, "Access-Control-Allow-Origin", x->origin);
        add(response, "Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
    }
    if (gate_is_preflight(x)) {
        const char *wanted = header(x, "Access-Control-Request-Headers");
        add(response, "Access-Control-Allow-Methods", "GET, POST");
        add(response, "Access-Control-Allow-Headers", wanted);
        add(response, "Access-Control-Max-Age", "600");
    }
}

static enum MHD_Result queue(exchange *x, struct MHD_Response *response, int status) {
    char text[32];
    if (!response) {
        return MHD_NO;
    }
    x->status = status;
    snprintf(text, sizeof text, "%llu", (unsigned long long)x->id);
    add(response, "X-Request-Id", text);
    add(response, "X-Content-Type-Options", "nosniff");
    add(response, "Referrer-Policy", "no-referrer");
    add_cors(x, response);
    if (atomic_load(&x->server->state) == SERVER_DRAINING) {
        add(response, MHD_HTTP_HEADER_CONNECTION, "close");
    }
    enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

static struct MHD_Response *of_text(exchange *x, out_text *text) {
    size_t n = text->buffer.n_bytes;
    struct MHD_Response *response = NULL;
    if (!text->failed) {
        response =
            MHD_create_response_from_buffer(n, n ? text->buffer.data : (void *)"",
                                            n ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
    }
    x->n_sent = n;
    if (response && n) {
        *text = (out_text){0};
    }
    return response;
}

static enum MHD_Result reply_error(exchange *x) {
    char text[16];
    const api_error *error = &x->error;
    out_free(&x->reply);
    x->reply = OUT_TEXT(MAX_REPLY_BYTES);
    error_json(error, &x->reply);
    struct MHD_Response *response = of_text(x, &x->reply);
    if (response) {
        add(response, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
        add(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
        add(response, MHD_HTTP_HEADER_ALLOW, error->allow);
        add(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, error->challenge);
        if (error->retry_after_s) {
            snprintf(text, sizeof text, "%d", error->retry_after_s);
            add(response, MHD_HTTP_HEADER_RETRY_AFTER, text);
        }
    }
    return queue(x, response, error->status);
}

static enum MHD_Result reply_static(exchange *x) {
    const char *known = header(x, MHD_HTTP_HEADER_IF_NONE_MATCH);
    bool is_known = known && x->etag && strstr(known, x->etag);
    x->n_sent = is_known ? 0 : x->static_bytes;
    struct MHD_Response *response =
        MHD_create_response_from_buffer(x->n_sent, (void *)x->static_data, MHD_RESPMEM_PERSISTENT);
    if (response) {
        add(response, MHD_HTTP_HEADER_CONTENT_TYPE, is_known ? NULL : x->type);
        add(response, MHD_HTTP_HEADER_ETAG, x->etag);
        add(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache"); // asked for anew, by the ETag
        add(response, "Content-Security-Policy", x->page ? page_policy : NULL);
    }
    return queue(x, response, is_known ? 304 : x->status);
}

static enum MHD_Result reply_text(exchange *x) {
    struct MHD_Response *response = of_text(x, &x->reply);
    if (!response) {
        fail_with(&x->error, 503, "out_of_memory", NULL, "The server is out of memory.");
        return reply_error(x);
    }
    add(response, MHD_HTTP_HEADER_CONTENT_TYPE, x->type);
    add(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    return queue(x, response, x->status);
}

static void release_job(void *job) {
    job_release(job);
}

static enum MHD_Result reply_job(exchange *x) {
    if (job_is_stream(x->job)) {
        struct MHD_Response *response = MHD_create_response_from_callback(
            MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, job_read, x->job, release_job);
        if (response) {
            job_hold(x->job);
            add(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream; charset=utf-8");
            add(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache, no-store");
            add(response, "X-Accel-Buffering", "no"); // proxies pass each word on
        }
        return queue(x, response, 200);
    }
    x->reply = job_take_text(x->job, &x->error);
    if (x->error.status == 499) { // there is nobody to tell
        x->status = 499;
        return MHD_NO;
    }
    return x->error.status ? reply_error(x) : reply_text(x);
}

static enum MHD_Result reply(exchange *x) {
    if (x->error.status) {
        return reply_error(x);
    }
    return x->static_data ? reply_static(x) : reply_text(x);
}

// --- libmicrohttpd's callbacks -------------------------------------------------------------------

// All of the request is there.
static enum MHD_Result run(exchange *x) {
    if (x->handled) {
        return reply_job(x);
    }
    x->handled = true;
    if (!client_enter(x->server->clients, x->client, CLIENT_BUSY)) {
        return MHD_NO;
    }
    if (gate_is_preflight(x) && !x->error.status) {
        x->status = 204;
        return reply(x);
    }
    if (!x->error.status) {
        x->route->handle(x);
    }
    if (!x->job) {
        return reply(x);
    }
    client_watch(x->server->clients, x->client, x->job);
    job_start(x->job, x->connection);
    return MHD_YES;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data,
                                  size_t *n_data, void **state) {
    exchange *x = *state;
    (void)version;
    if (!x) {
        *state = x = exchange_open(user, connection, path, method);
        if (!x || !x->client || !client_enter(x->server->clients, x->client, CLIENT_BODY)) {
            return MHD_NO;
        }
        check_head(x);
        if (answers_at_once(x)) {
            x->handled = true;
            return client_enter(x->server->clients, x->client, CLIENT_BUSY) ? reply(x) : MHD_NO;
        }
        return MHD_YES;
    }
    if (*n_data > 0) {
        take_body(x, data, *n_data);
        *n_data = 0;
        return MHD_YES;
    }
    return run(x);
}

static void log_exchange(const exchange *x, bool aborted) {
    char address[INET6_ADDRSTRLEN] = "?", when[32], path[128], *to = path;
    const struct sockaddr *peer =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr;
    time_t now = time(NULL);
    struct tm utc;
    if (peer->sa_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)peer)->sin_addr, address,
                  sizeof address);
    } else if (peer->sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)(const void *)peer)->sin6_addr, address,
                  sizeof address);
    }
    for (const char *at = x->path; *at && to < path + sizeof path - 1; at++) {
        *to++ = *at > 0x20 && *at < 0x7f && *at != '"' ? *at : '?';
    }
    *to = 0;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    log_line("%s %s \"%s %s\" %d %zu bytes %.1f ms%s%s (request %llu)", when, address, x->method,
             path, x->status, x->n_sent, now_ms() - x->start_ms, x->error.code ? " " : "",
             x->error.code ? x->error.code
             : aborted     ? " aborted"
                           : "",
             (unsigned long long)x->id);
}

static void on_completed(void *user, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode code) {
    server *s = user;
    exchange *x = *state;
    (void)connection;
    if (!x) {
        return;
    }
    bool aborted = code != MHD_REQUEST_TERMINATED_COMPLETED_OK;
    if (x->client) {
        client_watch(s->clients, x->client, NULL);
        (void)client_enter(s->clients, x->client, CLIENT_IDLE);
    }
    if (x->job) {
        x->n_sent = x->n_sent ? x->n_sent : job_bytes_sent(x->job);
    }
    if (aborted && !x->handled) {
        x->status = 408; // or the client went away: nothing was said
    }
    metrics_request(s->metrics, route_name(x), aborted && x->job ? 499 : x->status,
                    now_ms() - x->start_ms);
    if (!s->options->quiet) {
        log_exchange(x, aborted);
    }
    *state = NULL;
    exchange_free(x);
}

static void on_connection(void *user, struct MHD_Connection *connection, void **state,
                          enum MHD_ConnectionNotificationCode code) {
    server *s = user;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *state = client_open(
            s->clients,
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd);
        atomic_fetch_sub(&s->n_arriving, 1);
    } else if (*state) {
        client_close(s->clients, *state);
        *state = NULL;
    }
}

static void on_log(void *user, const char *format, va_list args) {
    char text[512];
    server *s = user;
    if (s->options->verbose) {
        vsnprintf(text, sizeof text, format, args);
        text[strcspn(text, "\r\n")] = 0;
        log_line("image-chat: libmicrohttpd: %s", text);
    }
}

// --- the daemon ----------------------------------------------------------------------------------

bool http_start(server *s) {
    const server_options *o = s->options;
    // Requests have their own deadlines (clients.c); this one is for responses that nobody reads.
    // The threads share the connections by number, not evenly. listen.c keeps to the limit: at its
    // own, 0.9.75 leaves a mutex locked, so that it must never get there.
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME |
            MHD_USE_ERROR_LOG,
        0, NULL, NULL, on_request, s, MHD_OPTION_EXTERNAL_LOGGER, on_log, s,
        MHD_OPTION_THREAD_POOL_SIZE, (unsigned)o->n_http_threads, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)(o->n_http_threads * (o->max_connections + 1)),
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_BYTES, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)(o->idle_timeout_s + 1), MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, s, MHD_OPTION_END);
    if (!s->daemon) {
        log_line("image-chat: libmicrohttpd cannot start");
    }
    return s->daemon != NULL;
}

void http_stop(server *s) {
    MHD_stop_daemon(s->daemon);
    s->daemon = NULL;
}
