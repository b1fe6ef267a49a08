// The server's pieces:
//
//   server      one process: options, model, engine, numbers
//   client      a connection: its deadlines, and a watch for its going away      (clients.c)
//   exchange    a request and its response on a connection                       (http.c)
//   chat_job    the answers to a chat request, on their way to an exchange       (chat.h)
//
// libmicrohttpd's threads read requests and write responses; the engine's thread brings answers;
// one more thread takes connections, and one keeps deadlines. An exchange that waits for answers is
// suspended meanwhile.
#ifndef LV_CHAT_SERVER_H
#define LV_CHAT_SERVER_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "apps/image_chat/errors.h"
#include "apps/image_chat/lift.h"
#include "apps/image_chat/options.h"
#include "apps/image_chat/pages.h"

typedef struct metrics metrics;
typedef struct clients clients;
typedef struct client client;
typedef struct chat_job chat_job;

typedef enum server_state {
    SERVER_LOADING,
    SERVER_READY,
    SERVER_FAILED,  // the device is lost
    SERVER_DRAINING // no new requests
} server_state;

typedef struct listener {
    int fd, stop_fd;
    pthread_t thread;
} listener;

typedef struct server {
    const server_options *options;
    _Atomic server_state state;
    // Set before SERVER_READY, constant from then on.
    lv_model *model;
    lv_model_info info;
    lv_engine *engine;
    time_t created;

    metrics *metrics;
    clients *clients;
    struct MHD_Daemon *daemon;
    listener listener;
    int port; // that it listens on
    char own_host[256];
    char *openapi; // as served
    size_t openapi_bytes;
    char openapi_etag[40];
    atomic_int n_exchanges, n_jobs, n_fetching;
    atomic_int n_arriving;    // connections that are taken, and not among the clients yet
    atomic_size_t body_bytes; // of requests that are not answered yet
    atomic_uint_fast64_t next_id;
} server;

double now_ms(void);                                    // monotonic
void log_line(const char *format, ...) LV_PRINTF(1, 2); // one line on standard error, in one write

// --- exchanges -----------------------------------------------------------------------------------

typedef struct exchange exchange;

typedef struct route {
    const char *path;   // ends in "/*": anything below
    const char *method; // "GET" is good for HEAD as well
    void (*handle)(exchange *x);
    bool is_open;     // no key wanted
    bool takes_body;  // JSON
    bool needs_model; // 503 until it is loaded
} route;

struct exchange {
    server *server;
    struct MHD_Connection *connection;
    client *client;
    const route *route;
    const page *page; // shown at this path, where there is no route
    char *path;       // as asked for, without the query; owned
    char method[16];
    const char *origin; // another origin that may read the response; NULL: none
    uint64_t id;
    double start_ms;

    out_text body;     // of the request
    size_t n_reserved; // of server.body_bytes
    api_error error;

    bool handled;
    chat_job *job;           // answers, a reference
    int status;              // of the response
    const char *type, *etag; // constant, or as long as the server lives
    const char *static_data; // the same; the response's body, or else `reply`
    size_t static_bytes;
    out_text reply;
    size_t n_sent; // bytes of the response's body
};

// The route or page of a path: 404 and 405 in *error.
void route_find(exchange *x);
const char *route_name(const exchange *x); // for the numbers: one of a fixed few

// The request's body as a JSON object, which the caller frees; NULL after filling x->error. With
// `uris` (may be NULL) its long data: URIs are there, and live as long as x->body.
struct json_t *exchange_json(exchange *x, lift *uris);

// Where a handler sets neither x->error nor x->job nor x->static_data, x->reply is the response's
// body: JSON of status 200, unless x->status and x->type say otherwise.
void handle_chat(exchange *x);
void handle_models(exchange *x);
void handle_model(exchange *x);
void handle_tokenize(exchange *x);
void handle_health(exchange *x);
void handle_metrics(exchange *x);
void handle_openapi(exchange *x);
void handle_page(exchange *x);

// Lays out /openapi.json. False without memory.
bool openapi_build(server *s);

// --- HTTP ----------------------------------------------------------------------------------------

// False after saying why not.
bool http_start(server *s);
void http_stop(server *s); // no connection may be left

// --- listening -----------------------------------------------------------------------------------

// Takes an address; clients may connect, and wait. False after saying why not.
bool listen_open(server *s);
// Connections are taken from now on. False after saying why not.
bool listen_start(server *s);
void listen_stop(server *s); // who comes later is refused

// --- gate ----------------------------------------------------------------------------------------

// Whether this client may do this: fills x->error where not (400, 401, 403).
void gate_check(exchange *x);
bool gate_is_preflight(const exchange *x); // CORS, by an origin that may

// --- clients -------------------------------------------------------------------------------------

typedef enum client_phase {
    CLIENT_IDLE, // no request, or its head is on the way
    CLIENT_BODY, // its body is on the way
    CLIENT_BUSY  // answered
} client_phase;

clients *clients_start(const server_options *options); // NULL after saying why not
void clients_stop(clients *all);
client *client_open(clients *all, int fd); // NULL without memory
void client_close(clients *all, client *c);
// False: the deadline of the phase before has passed, and the connection is over.
bool client_enter(clients *all, client *c, client_phase phase);
// While a job is set, it is told when the client goes away, and from time to time.
void client_watch(clients *all, client *c, chat_job *job);
void clients_end_all_jobs(clients *all); // the server's time is over
bool clients_hang_up(clients *all);      // of what is not answered; whether none is left
int clients_count(clients *all);

// --- numbers -------------------------------------------------------------------------------------

metrics *metrics_create(void);
void metrics_free(metrics *m);
void metrics_request(metrics *m, const char *path, int status, double ms);
void metrics_first_token(metrics *m, double ms);
void metrics_next_token(metrics *m, double ms);
// `answer` may be NULL; dropped: nobody got it.
void metrics_answer(metrics *m, const lv_answer *answer, bool is_dropped);

#endif
