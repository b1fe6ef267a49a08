// A chat request's life: its pictures fetched, its choices at the engine, their answers on the way
// to the exchange.
//
// Three threads meet here: libmicrohttpd's (reads the response), the engine's (brings text), and
// the watch (pings, clients gone). The job's mutex is never held over a call of the engine.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "apps/image_chat/chat.h"
#include "apps/image_chat/guard.h"

enum { MAX_FETCHING = 16 };

#define MAX_STREAM_BACKLOG ((size_t)16 << 20) // what a slow reader may leave unread
#define MAX_WHOLE_BYTES ((size_t)256 << 20)

chat_job *job_create(server *s, uint64_t request_id, chat_request *request) {
    chat_job *job = calloc(1, sizeof *job);
    uint64_t name[2] = {0};
    if (!job || getrandom(name, sizeof name, 0) != sizeof name) {
        free(job);
        return NULL;
    }
    job->refs = 1;
    job->server = s;
    job->request_id = request_id;
    job->created = time(NULL);
    job->start_ms = job->last_out_ms = now_ms();
    job->request = *request;
    *request = (chat_request){0};
    job->n_left = job->request.n_choices;
    job->out = OUT_TEXT(job->request.stream ? MAX_STREAM_BACKLOG : MAX_WHOLE_BYTES);
    snprintf(job->id, sizeof job->id, "chatcmpl-%016llx%08x", (unsigned long long)name[0],
             (unsigned)name[1]);
    for (int i = 0; i < job->request.n_choices; i++) {
        job->choices[i].job = job;
        job->choices[i].index = i;
    }
    pthread_mutex_init(&job->mutex, NULL);
    atomic_fetch_add(&s->n_jobs, 1);
    return job;
}

chat_job *job_hold(chat_job *job) {
    if (job) {
        atomic_fetch_add(&job->refs, 1);
    }
    return job;
}

void job_release(chat_job *job) {
    if (!job || atomic_fetch_sub(&job->refs, 1) > 1) {
        return;
    }
    for (int i = 0; i < job->request.n_choices; i++) {
        lv_answer_free(&job->choices[i].answer);
    }
    atomic_fetch_sub(&job->server->n_jobs, 1);
    chat_request_free(&job->request);
    out_free(&job->out);
    pthread_mutex_destroy(&job->mutex);
    free(job);
}

// --- with the mutex held -------------------------------------------------------------------------

static void wake(chat_job *job) {
    bool has_news = job->request.stream ? job->committed || job->gone : job->ended;
    if (job->suspended && job->connection && has_news) {
        job->suspended = false;
        MHD_resume_connection(job->connection);
    }
}

// Room for more output, and the time of the last.
static void before_output(chat_job *job) {
    lv_buffer *buffer = &job->out.buffer;
    if (job->n_read > 4096 && job->n_read > buffer->n_bytes / 2) {
        buffer->n_bytes -= job->n_read;
        memmove(buffer->data, buffer->data + job->n_read, buffer->n_bytes);
        job->n_read = 0;
    }
    job->last_out_ms = now_ms();
}

// The first failure is the one that is told.
static void fail_job(chat_job *job, const api_error *error) {
    if (job->failed || job->ended) {
        return;
    }
    job->failed = true;
    job->error = *error;
    if (job->request.stream && job->committed) {
        before_output(job);
        write_stream_error(job);
    }
    job->committed = job->ended = true;
    wake(job);
}

// A reader too slow for its stream, or no memory: nothing more can be told.
static void give_up_if_full(chat_job *job) {
    if (job->out.failed && !job->gone) {
        log_line("image-chat: request %llu: %s", (unsigned long long)job->request_id,
                 job->request.stream ? "its client reads too slowly" : "its answer is too long");
        job->gone = job->ended = true;
    }
}

// The choices that are still at the engine, to be cancelled without the mutex.
typedef struct id_list {
    uint64_t ids[MAX_CHOICES];
    int n;
} id_list;

static id_list open_ids(const chat_job *job) {
    id_list list = {0};
    for (int i = 0; i < job->request.n_choices; i++) {
        const choice *c = &job->choices[i];
        if (c->id && !c->ended) {
            list.ids[list.n++] = c->id;
        }
    }
    return list;
}

// --- without it ----------------------------------------------------------------------------------

static void cancel_all(const chat_job *job, const id_list *list) {
    for (int i = 0; i < list->n; i++) {
        lv_engine_cancel(job->server->engine, list->ids[i]);
    }
}

static void fail_and_cancel(chat_job *job, const api_error *error) {
    pthread_mutex_lock(&job->mutex);
    fail_job(job, error);
    id_list open = open_ids(job);
    pthread_mutex_unlock(&job->mutex);
    cancel_all(job, &open);
}

static void leave(chat_job *job, bool detach) {
    pthread_mutex_lock(&job->mutex);
    if (!job->ended) {
        job->gone = job->ended = true;
    }
    id_list open = open_ids(job);
    if (detach) {
        job->connection = NULL;
    } else {
        wake(job);
    }
    pthread_mutex_unlock(&job->mutex);
    cancel_all(job, &open);
}

void job_client_gone(chat_job *job) {
    leave(job, false);
}

void job_leave(chat_job *job) {
    leave(job, true);
    job_release(job);
}

void job_end(chat_job *job) {
    api_error error;
    fail_with(&error, 503, "shutting_down", NULL, "The server is shutting down.");
    fail_and_cancel(job, &error);
}

void job_tick(chat_job *job) {
    pthread_mutex_lock(&job->mutex);
    double silence_ms = now_ms() - job->last_out_ms;
    if (job->request.stream && !job->ended &&
        silence_ms >= 1e3 * job->server->options->ping_interval_s) {
        before_output(job);
        job->committed = true;
        out_put(&job->out, ": ping\n\n");
        give_up_if_full(job);
        wake(job);
    }
    pthread_mutex_unlock(&job->mutex);
}

// --- the engine's callbacks ----------------------------------------------------------------------

static void count_text(choice *c) {
    double now = now_ms();
    metrics *m = c->job->server->metrics;
    if (c->last_text_ms == 0) {
        metrics_first_token(m, now - c->job->start_ms);
    } else {
        metrics_next_token(m, now - c->last_text_ms);
    }
    c->last_text_ms = now;
}

static void begin_choice(chat_job *job, choice *c) {
    job->committed = true;
    if (!c->begun) {
        c->begun = true;
        write_first_chunk(job, c);
    }
}

// Pictures that have been seen are large, and the engine holds those that it needs.
static void let_pictures_go(chat_job *job) {
    for (int i = 0; job->submitted && i < job->request.n_pictures; i++) {
        chat_picture *picture = &job->request.pictures[i];
        if (picture->picture) {
            picture->info = lv_picture_describe(picture->picture);
            lv_picture_free(picture->picture);
            picture->picture = NULL;
        }
    }
}

static bool on_text(void *user, const lv_piece *piece) {
    choice *c = user;
    chat_job *job = c->job;
    pthread_mutex_lock(&job->mutex);
    bool goes_on = !job->gone && !job->failed;
    let_pictures_go(job);
    if (goes_on && *piece->text) {
        count_text(c);
    }
    if (goes_on && job->request.stream) {
        before_output(job);
        begin_choice(job, c);
        if (*piece->text || piece->n_tokens > 0) {
            write_piece_chunk(job, c, piece);
        }
        give_up_if_full(job);
        goes_on = !job->gone;
        wake(job);
    }
    pthread_mutex_unlock(&job->mutex);
    return goes_on;
}

// Whether a picture is the cause: those of a request that got further are all there.
static bool reads_pictures(const chat_job *job) {
    for (int i = 0; i < job->request.n_pictures; i++) {
        if (chat_picture_info(&job->request.pictures[i]).n_tokens == 0) {
            return true;
        }
    }
    return false;
}

static void log_failure(const chat_job *job, lv_status status, const char *message) {
    log_line("image-chat: request %llu: %s: %s", (unsigned long long)job->request_id,
             lv_status_name(status), message);
}

// Without the mutex.
static void explain(chat_job *job, lv_status status, const char *message, api_error *out) {
    bool is_ours;
    pthread_mutex_lock(&job->mutex);
    bool reading = reads_pictures(job);
    pthread_mutex_unlock(&job->mutex);
    fail_with_status(out, status, message, reading, &is_ours);
    if (is_ours || job->server->options->verbose) {
        log_failure(job, status, message);
    }
    if (status == LV_EDEVICE) {
        server_state ready = SERVER_READY;
        atomic_compare_exchange_strong(&job->server->state, &ready, SERVER_FAILED);
    }
}

static void finish_choice(chat_job *job, choice *c) {
    if (job->request.stream) {
        before_output(job);
        begin_choice(job, c);
        write_finish_chunk(job, c);
    }
    if (job->n_left == 0) {
        if (job->request.stream) {
            write_stream_end(job);
        } else {
            write_whole(job);
        }
    }
    give_up_if_full(job);
    if (job->n_left == 0) {
        job->committed = job->ended = true;
    }
    wake(job);
}

static void on_done(void *user, lv_status status, const char *message, lv_answer *answer) {
    choice *c = user;
    chat_job *job = c->job;
    api_error error = {0};
    if (status != LV_OK) {
        explain(job, status, message, &error);
    } else if (answer->finish == LV_FINISH_CANCELLED) { // told to nobody where the client is gone
        fail_with(&error, 503, "cancelled", NULL, "The server is shutting down.");
    }
    metrics_answer(job->server->metrics, answer, status != LV_OK || error.status != 0);
    pthread_mutex_lock(&job->mutex);
    c->ended = true;
    job->n_left--;
    let_pictures_go(job);
    if (error.status) {
        fail_job(job, &error);
    } else {
        c->answer = *answer;
        *answer = (lv_answer){0};
        if (!job->ended) {
            finish_choice(job, c);
        }
    }
    id_list open = job->failed ? open_ids(job) : (id_list){0};
    pthread_mutex_unlock(&job->mutex);
    cancel_all(job, &open);
    if (job->server->options->verbose && !error.status) {
        log_line("image-chat: request %llu: answer %d: %s", (unsigned long long)job->request_id,
                 c->index, c->answer.text);
    }
    job_release(job);
}

// --- starting ------------------------------------------------------------------------------------

static lv_status submit_choice(chat_job *job, choice *c) {
    uint64_t id = 0;
    lv_request request = {.messages = job->request.messages,
                          .n_messages = job->request.n_messages,
                          .params = job->request.params,
                          .on_text = on_text,
                          .on_done = on_done,
                          .user = c};
    request.params.seed += (uint64_t)c->index;
    request.params.stop = (const char *const *)job->request.stops;
    job_hold(job);
    lv_status status = lv_engine_submit(job->server->engine, &request, &id);
    if (status != LV_OK) {
        job_release(job);
        return status;
    }
    pthread_mutex_lock(&job->mutex);
    c->id = id;
    bool unwanted = job->gone || job->failed;
    pthread_mutex_unlock(&job->mutex);
    if (unwanted) {
        lv_engine_cancel(job->server->engine, id);
    }
    return LV_OK;
}

static void submit(chat_job *job) {
    for (int i = 0; i < job->request.n_pictures; i++) {
        job->request.shown[i] = job->request.pictures[i].picture;
    }
    for (int i = 0; i < job->request.n_choices; i++) {
        lv_status status = submit_choice(job, &job->choices[i]);
        api_error error;
        if (status == LV_ELIMIT) {
            fail_with(&error, 429, "queue_full", NULL,
                      "Too many requests are waiting; try again later.");
        } else if (status != LV_OK) {
            explain(job, status, lv_error(), &error);
        }
        if (status != LV_OK) {
            fail_and_cancel(job, &error);
            return;
        }
    }
    pthread_mutex_lock(&job->mutex);
    job->submitted = true;
    pthread_mutex_unlock(&job->mutex);
}

// lv_fetch_options.progress
static bool is_wanted(void *user, size_t n_bytes, size_t total_bytes) {
    chat_job *job = user;
    (void)n_bytes, (void)total_bytes;
    pthread_mutex_lock(&job->mutex);
    bool wanted = !job->gone && !job->failed;
    pthread_mutex_unlock(&job->mutex);
    return wanted;
}

static lv_status fetch_picture(chat_job *job, chat_picture *picture) {
    const server_options *o = job->server->options;
    const lv_fetch_options fetch = {.max_bytes = o->max_image_bytes,
                                    .connect_timeout_s = 5,
                                    .total_timeout_s = o->fetch_timeout_s,
                                    .max_redirects = 3,
                                    .progress = is_wanted,
                                    .allow_address = guard_allows,
                                    .user = job};
    const lv_picture_limits limits = {.max_bytes = o->max_image_bytes, .max_pixels = o->max_pixels};
    lv_buffer bytes = {0};
    lv_status status = lv_fetch(picture->url, &fetch, &bytes);
    if (status == LV_OK) {
        status = lv_picture_bytes_later(job->server->model, bytes.data, bytes.n_bytes, &limits,
                                        &picture->picture);
    }
    lv_buffer_free(&bytes);
    return status;
}

// Of its own thread: the time that servers out there take is nobody else's.
static void *fetch_and_submit(void *user) {
    chat_job *job = user;
    server *s = job->server;
    lv_status status = LV_OK;
    for (int i = 0; status == LV_OK && i < job->request.n_pictures; i++) {
        if (job->request.pictures[i].url) {
            status = fetch_picture(job, &job->request.pictures[i]);
        }
    }
    if (status == LV_OK && is_wanted(job, 0, 0)) {
        submit(job);
    } else if (status != LV_OK) {
        api_error error;
        if (status == LV_EINVAL) {
            fail_with(&error, 400, "invalid_image_url", "messages",
                      "A picture's URL is malformed.");
        } else {
            explain(job, status, lv_error(), &error);
        }
        fail_and_cancel(job, &error);
    }
    job_release(job);
    atomic_fetch_sub(&s->n_fetching, 1);
    return NULL;
}

static void start_fetching(chat_job *job) {
    pthread_t thread;
    server *s = job->server;
    api_error error;
    if (atomic_fetch_add(&s->n_fetching, 1) < MAX_FETCHING) {
        job_hold(job);
        if (pthread_create(&thread, NULL, fetch_and_submit, job) == 0) {
            pthread_detach(thread);
            return;
        }
        job_release(job);
    }
    atomic_fetch_sub(&s->n_fetching, 1);
    fail_with(&error, 429, "queue_full", NULL,
              "Too many pictures are being fetched; try again later.");
    fail_and_cancel(job, &error);
}

void job_start(chat_job *job, struct MHD_Connection *connection) {
    pthread_mutex_lock(&job->mutex);
    job->connection = connection;
    job->suspended = true;
    MHD_suspend_connection(connection);
    wake(job); // where its client went away before
    pthread_mutex_unlock(&job->mutex);
    if (job->request.has_urls) {
        start_fetching(job);
    } else {
        submit(job);
    }
}

// --- the response --------------------------------------------------------------------------------

bool job_is_stream(chat_job *job) {
    pthread_mutex_lock(&job->mutex);
    // A failure before the first byte is told by the status.
    bool is_stream = job->request.stream && !(job->failed && job->out.buffer.n_bytes == 0);
    pthread_mutex_unlock(&job->mutex);
    return is_stream;
}

out_text job_take_text(chat_job *job, api_error *error) {
    pthread_mutex_lock(&job->mutex);
    out_text text = job->out;
    job->out = (out_text){0};
    *error = job->error;
    if (job->gone && !job->failed) {
        fail_with(error, 499, NULL, NULL, "The client went away.");
    }
    pthread_mutex_unlock(&job->mutex);
    return text;
}

ssize_t job_read(void *user, uint64_t at, char *to, size_t n) {
    chat_job *job = user;
    (void)at;
    pthread_mutex_lock(&job->mutex);
    size_t n_there = job->out.buffer.n_bytes - job->n_read;
    ssize_t n_given = 0;
    if (job->gone) {
        // MHD_CONTENT_READER_END_WITH_ERROR would leave the connection to a later event, which may
        // never come (0.9.75). A stream whose end cannot be sent breaks off as well, and at once.
        shutdown(
            MHD_get_connection_info(job->connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd,
            SHUT_RDWR);
        n_given = MHD_CONTENT_READER_END_OF_STREAM;
    } else if (n_there > 0) {
        n = n < n_there ? n : n_there;
        memcpy(to, job->out.buffer.data + job->n_read, n);
        job->n_read += n;
        job->n_sent += n;
        n_given = (ssize_t)n;
        if (n == n_there) {
            job->out.buffer.n_bytes = job->n_read = 0;
        }
    } else if (job->ended) {
        n_given = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        job->suspended = true;
        MHD_suspend_connection(job->connection);
    }
    pthread_mutex_unlock(&job->mutex);
    return n_given;
}

size_t job_bytes_sent(chat_job *job) {
    pthread_mutex_lock(&job->mutex);
    size_t n = job->n_sent;
    pthread_mutex_unlock(&job->mutex);
    return n;
}
