// Questions to a server: the pictures are read here, a few at a time are under way.
#include "client.h"

#include <curl/curl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { N_THREADS = 16, N_TRIES = 120 };

#define MAX_PICTURE_BYTES ((size_t)64 << 20)

typedef struct question {
    struct question *next;
    const describe_input *input;
    lv_text_callback on_text;
    lv_done_callback on_done;
    void *user;
    lv_picture_info *info;
} question;

struct client {
    const describe_options *options;
    struct client_link link;
    char *model;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    question *first, **last; // that wait
    bool stops, closes;
    pthread_t threads[N_THREADS];
    int n_threads;
};

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static bool goes_on(void *user) {
    client *c = user;
    pthread_mutex_lock(&c->lock);
    bool stops = c->stops;
    pthread_mutex_unlock(&c->lock);
    return !stops && !interrupted();
}

static bool fetch_goes_on(void *user, size_t n_bytes, size_t total_bytes) {
    (void)n_bytes, (void)total_bytes;
    return goes_on(user);
}

static lv_status read_picture(client *c, const char *source, lv_buffer *out) {
    const lv_fetch_options fetch = {.progress = fetch_goes_on, .user = c};
    if (strcmp(source, "-") == 0) {
        return lv_stream_read(STDIN_FILENO, "standard input", MAX_PICTURE_BYTES, out);
    }
    return lv_is_url(source) ? lv_fetch(source, &fetch, out)
                             : lv_file_read(source, MAX_PICTURE_BYTES, out);
}

// --- one question --------------------------------------------------------------------------------

static lv_status post(client *c, const lv_buffer *body, client_reply *reply) {
    lv_status status = LV_OK;
    bool again = true;
    for (int i = 0; again && i < N_TRIES; i++) { // a server that is busy is asked again
        if (i > 0) {
            sleep(1);
        }
        reply->error.n_bytes = 0;
        if (!goes_on(c)) {
            reply->is_cancelled = true;
            return LV_OK;
        }
        status = client_post(&c->link, body, reply, &again);
    }
    return status;
}

static lv_status finish(client_reply *reply, lv_answer *out) {
    if (reply->is_cancelled) {
        out->finish = LV_FINISH_CANCELLED;
    }
    LV_TRY(lv_buffer_append(&reply->text, "", 0));
    out->text = (char *)reply->text.data; // always ends in 0
    reply->text = (lv_buffer){0};
    return LV_OK;
}

lv_status client_ask(client *c, const describe_input *inputs, int n, lv_text_callback on_text,
                     void *user, lv_picture_info *out_infos, lv_answer *out) {
    client_reply reply = {.on_text = on_text,
                          .user = user,
                          .goes_on = goes_on,
                          .goes_on_user = c,
                          .answer = out,
                          .infos = out_infos,
                          .n_infos = n};
    lv_buffer body = {0}, *pictures = calloc((size_t)n + 1, sizeof *pictures);
    lv_status status = pictures ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    *out = (lv_answer){0};
    for (int i = 0; status == LV_OK && i < n; i++) {
        const double start = now_ms();
        out_infos[i] = (lv_picture_info){0};
        status = read_picture(c, inputs[i].source, &pictures[i]);
        out_infos[i].load_ms = now_ms() - start;
    }
    if (status == LV_OK) {
        status = client_body(c->options, c->model, pictures, n, &body);
    }
    if (status == LV_OK) {
        status = post(c, &body, &reply);
    } else if (status == LV_ECANCELLED) {
        reply.is_cancelled = true;
        status = LV_OK;
    }
    if (status == LV_OK) {
        status = finish(&reply, out);
    }
    for (int i = 0; pictures && i < n; i++) {
        lv_buffer_free(&pictures[i]);
    }
    free(pictures);
    lv_buffer_free(&body);
    lv_buffer_free(&reply.line);
    lv_buffer_free(&reply.text);
    lv_buffer_free(&reply.error);
    return status;
}

// --- many ----------------------------------------------------------------------------------------

static void answer_one(client *c, question *q) {
    lv_answer answer = {0};
    lv_status status = client_ask(c, q->input, 1, q->on_text, q->user, q->info, &answer);
    q->on_done(q->user, status, status == LV_OK ? NULL : lv_error(),
               status == LV_OK ? &answer : NULL);
    lv_answer_free(&answer);
    free(q);
}

static void *work(void *user) {
    client *c = user;
    for (;;) {
        pthread_mutex_lock(&c->lock);
        while (!c->first && !c->closes) {
            pthread_cond_wait(&c->changed, &c->lock);
        }
        question *q = c->first;
        if (q) {
            c->first = q->next;
            c->last = c->first ? c->last : &c->first;
        }
        pthread_mutex_unlock(&c->lock);
        if (!q) {
            return NULL;
        }
        answer_one(c, q);
    }
}

lv_status client_submit(client *c, const describe_input *input, lv_text_callback on_text,
                        lv_done_callback on_done, void *user, lv_picture_info *info) {
    question *q = malloc(sizeof *q);
    if (!q) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    *q = (question){
        .input = input, .on_text = on_text, .on_done = on_done, .user = user, .info = info};
    pthread_mutex_lock(&c->lock);
    if (c->n_threads < N_THREADS && pthread_create(&c->threads[c->n_threads], NULL, work, c) == 0) {
        c->n_threads++;
    }
    bool ok = c->n_threads > 0;
    if (ok) {
        *c->last = q;
        c->last = &q->next;
        pthread_cond_signal(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    if (!ok) {
        free(q);
        return lv_fail(LV_EDEVICE, "no thread can be started");
    }
    return LV_OK;
}

void client_stop(client *c) {
    pthread_mutex_lock(&c->lock);
    c->stops = true;
    pthread_mutex_unlock(&c->lock);
}

// --- opening -------------------------------------------------------------------------------------

// "http://host:port/" and "host:port" are good too; "/v1" at the end is what clients of OpenAI
// write.
static char *base_url(const char *server) {
    char *url = NULL;
    if (asprintf(&url, "%s%s", strstr(server, "://") ? "" : "http://", server) < 0) {
        return NULL;
    }
    for (size_t n = strlen(url); n > 0 && url[n - 1] == '/';) {
        url[--n] = 0;
    }
    size_t n = strlen(url);
    if (n > 3 && strcmp(url + n - 3, "/v1") == 0) {
        url[n - 3] = 0;
    }
    return url;
}

static lv_status find_model(client *c) {
    json_t *root = NULL;
    lv_status status = LV_OK;
    for (int i = 0; i < N_TRIES; i++) { // while it is loaded
        status = client_get(&c->link, "/v1/models", &root);
        if (status != LV_ELIMIT || interrupted()) {
            break;
        }
        sleep(1);
    }
    LV_TRY(status);
    const char *id =
        json_string_value(json_object_get(json_array_get(json_object_get(root, "data"), 0), "id"));
    if (c->options->model.model) {
        id = c->options->model.model;
    }
    c->model = id ? strdup(id) : NULL;
    json_decref(root);
    return c->model ? LV_OK : lv_fail(LV_EDEVICE, "%s: lists no model", c->link.url);
}

lv_status client_open(const describe_options *options, client **out) {
    const char *key = options->api_key ? options->api_key : getenv("IMAGE_CHAT_API_KEY");
    client *c = calloc(1, sizeof *c);
    lv_status status = LV_OK;
    *out = NULL;
    if (!c) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->options = options;
    c->last = &c->first;
    c->link.url = base_url(options->server);
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK || !c->link.url) {
        status = lv_fail(LV_ENOMEM, "out of memory");
    } else if (key && *key &&
               asprintf(&c->link.authorization, "Authorization: Bearer %.*s",
                        (int)strcspn(key, ",\r\n"), key) < 0) {
        c->link.authorization = NULL;
        status = lv_fail(LV_ENOMEM, "out of memory");
    } else {
        status = find_model(c);
    }
    if (status != LV_OK) {
        client_close(c);
        return status;
    }
    *out = c;
    return LV_OK;
}

void client_close(client *c) {
    if (!c) {
        return;
    }
    pthread_mutex_lock(&c->lock);
    c->stops = c->closes = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    for (int i = 0; i < c->n_threads; i++) {
        pthread_join(c->threads[i], NULL);
    }
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->link.url);
    free(c->link.authorization);
    free(c->model);
    free(c);
    curl_global_cleanup();
}

const char *client_model(const client *c) {
    return c->model;
}

int client_n_threads(const client *c) {
    (void)c;
    return N_THREADS;
}
