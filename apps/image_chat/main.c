// image-chat: the web chat and an OpenAI-compatible API over one engine.
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "apps/image_chat/server.h"
#include "apps/polite.h"

enum { EXIT_ADDRESS = 1, EXIT_USAGE = 2, EXIT_MODEL = 3 };

// What the main thread waits for.
typedef enum event { NOTHING, END_WANTED, LOADED, LOAD_FAILED } event;

typedef struct program {
    server server;
    sigset_t signals;
    atomic_int load_result; // an event; told by SIGUSR1
} program;

// --- set-up --------------------------------------------------------------------------------------

static void open_standard_files(void) {
    int fd = -1; // a closed descriptor would be given to a socket, and a message written into it
    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) {
        close(fd);
    }
}

static void set_up_process(sigset_t *signals) {
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGHUP);
    sigaddset(signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, signals, NULL); // of all threads: main waits for them
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    // Bodies and pictures go back to the system at once: they come and go by the megabyte, in
    // several threads.
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
}

static void say_address(const server *s) {
    const char *name = s->options->name;
    bool is_v6 = strchr(name, ':') != NULL;
    log_line("image-chat: listening on http://%s%s%s:%d", is_v6 ? "[" : "", name, is_v6 ? "]" : "",
             s->port);
    if (!is_loopback_name(name) && s->options->api_keys.n == 0) {
        log_line("image-chat: --insecure: every machine that reaches this one may ask");
    }
}

static void *load(void *user) {
    program *p = user;
    server *s = &p->server;
    const server_options *o = s->options;
    lv_status status = lv_model_open(&o->model, &s->model);
    if (status == LV_OK) {
        s->info = lv_model_describe(s->model);
        status = lv_engine_open(s->model, &o->engine, &s->engine);
    }
    if (status == LV_OK) {
        server_state loading = SERVER_LOADING;
        if (s->info.is_demo) {
            log_line("image-chat: using the small embedded demo model; --model names a real one");
        }
        log_line("image-chat: %s on %s, sessions of %d tokens, ready after %.0f ms", s->info.name,
                 s->info.device, s->info.session_len, s->info.load_ms);
        atomic_compare_exchange_strong(&s->state, &loading, SERVER_READY);
    } else {
        log_line("image-chat: cannot load %s: %s", o->model.model ? o->model.model : "the model",
                 lv_error());
    }
    atomic_store(&p->load_result, status == LV_OK ? LOADED : LOAD_FAILED);
    kill(getpid(), SIGUSR1);
    return NULL;
}

// --- the end -------------------------------------------------------------------------------------

// Waits for a signal; a second wish to end is granted at once.
static event wait_for_event(program *p, int timeout_ms) {
    struct timespec timeout = {.tv_sec = timeout_ms / 1000,
                               .tv_nsec = timeout_ms % 1000 * 1000000L};
    int number =
        timeout_ms < 0 ? sigwaitinfo(&p->signals, NULL) : sigtimedwait(&p->signals, NULL, &timeout);
    if (number < 0) {
        return NOTHING;
    }
    if (number == SIGUSR1) {
        return (event)atomic_load(&p->load_result);
    }
    if (atomic_load(&p->server.state) == SERVER_DRAINING) {
        _exit(128 + number);
    }
    return END_WANTED;
}

static bool is_idle(server *s) {
    return atomic_load(&s->n_exchanges) == 0;
}

// No new requests, and those there are may end in peace; then they are ended.
static void drain(program *p) {
    server *s = &p->server;
    double deadline = now_ms() + 1e3 * s->options->drain_timeout_s;
    atomic_store(&s->state, SERVER_DRAINING);
    listen_stop(s);
    log_line("image-chat: ending; %d request%s to answer", atomic_load(&s->n_exchanges),
             atomic_load(&s->n_exchanges) == 1 ? "" : "s");
    while (!is_idle(s) && now_ms() < deadline) {
        wait_for_event(p, 20);
    }
    deadline = now_ms() + 2000;
    while (atomic_load(&s->n_jobs) + atomic_load(&s->n_fetching) > 0 && now_ms() < deadline) {
        clients_end_all_jobs(s->clients);
        wait_for_event(p, 20);
    }
    // libmicrohttpd is not stopped while it reads: 0.9.75 then answers what is no HTTP with a
    // response that it has not got.
    while ((atomic_load(&s->n_arriving) > 0 || !clients_hang_up(s->clients)) &&
           now_ms() < deadline) {
        wait_for_event(p, 5);
    }
}

static void close_all(program *p, bool is_loading) {
    server *s = &p->server;
    // A thread that loads, fetches, computes or writes without end is nobody's to wait for.
    if (is_loading || atomic_load(&s->n_jobs) + atomic_load(&s->n_fetching) > 0 ||
        atomic_load(&s->n_arriving) + clients_count(s->clients) > 0) {
        _exit(0);
    }
    http_stop(s);
    clients_stop(s->clients);
    lv_engine_close(s->engine);
    lv_model_free(s->model);
    metrics_free(s->metrics);
    free(s->openapi);
}

static int serve(program *p) {
    server *s = &p->server;
    pthread_t loader;
    s->created = time(NULL);
    s->metrics = metrics_create();
    if (!s->metrics || !openapi_build(s)) {
        return EXIT_ADDRESS;
    }
    s->clients = clients_start(s->options);
    if (!s->clients || !listen_open(s) || !http_start(s) || !listen_start(s)) {
        return EXIT_ADDRESS;
    }
    say_address(s);
    if (pthread_create(&loader, NULL, load, p) != 0) {
        log_line("image-chat: no thread can be started");
        return EXIT_ADDRESS;
    }
    pthread_detach(loader);
    bool is_loading = true;
    for (;;) {
        switch (wait_for_event(p, -1)) {
        case NOTHING:
            break;
        case LOADED:
            is_loading = false;
            break;
        case LOAD_FAILED:
            _exit(EXIT_MODEL);
        case END_WANTED:
            drain(p);
            is_loading = is_loading && atomic_load(&p->load_result) == NOTHING;
            close_all(p, is_loading);
            return 0;
        }
    }
}

int main(int argc, char **argv) {
    static program p;
    server_options options;
    int result = EXIT_USAGE;
    open_standard_files();
    if (!options_parse(argc, argv, &options)) {
        goto done;
    }
    if (options.help || options.version) {
        if (options.help) {
            options_help();
        } else {
            printf("image-chat %s (llava.c)\n", LV_VERSION);
        }
        result = fflush(stdout) == 0 ? 0 : EXIT_ADDRESS;
        goto done;
    }
    wait_politely(argv);
    set_up_process(&p.signals);
    p.server.options = &options;
    result = serve(&p);
done:
    options_free(&options);
    return result;
}
