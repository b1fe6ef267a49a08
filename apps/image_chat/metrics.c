// Numbers for Prometheus (its text format, version 0.0.4).
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "apps/image_chat/server.h"

enum { MAX_ROWS = 128, N_BUCKETS = 16 };

// Upper bounds in seconds.
static const double bounds[N_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                         0.5,   1,      2.5,   5,    10,    30,   60,  120};

typedef struct histogram {
    uint64_t counts[N_BUCKETS + 1];
    double sum;
} histogram;

typedef struct row {
    const char *path;
    int status;
    uint64_t n;
} row;

struct metrics {
    pthread_mutex_t mutex;
    row rows[MAX_ROWS]; // routes and statuses are few
    int n_rows;
    histogram request, first_token, next_token;
    uint64_t n_prompt, n_image, n_cached, n_tokens, n_answers, n_dropped;
};

metrics *metrics_create(void) {
    metrics *m = calloc(1, sizeof *m);
    if (m) {
        pthread_mutex_init(&m->mutex, NULL);
    }
    return m;
}

void metrics_free(metrics *m) {
    if (m) {
        pthread_mutex_destroy(&m->mutex);
        free(m);
    }
}

static void observe(histogram *h, double ms) {
    int i = 0;
    while (i < N_BUCKETS && ms / 1e3 > bounds[i]) {
        i++;
    }
    h->counts[i]++;
    h->sum += ms / 1e3;
}

void metrics_request(metrics *m, const char *path, int status, double ms) {
    pthread_mutex_lock(&m->mutex);
    row *r = m->rows;
    while (r < m->rows + m->n_rows && (r->status != status || strcmp(r->path, path) != 0)) {
        r++;
    }
    if (r == m->rows + m->n_rows && m->n_rows < MAX_ROWS) {
        *r = (row){.path = path, .status = status};
        m->n_rows++;
    }
    if (r < m->rows + m->n_rows) {
        r->n++;
    }
    observe(&m->request, ms);
    pthread_mutex_unlock(&m->mutex);
}

void metrics_first_token(metrics *m, double ms) {
    pthread_mutex_lock(&m->mutex);
    observe(&m->first_token, ms);
    pthread_mutex_unlock(&m->mutex);
}

void metrics_next_token(metrics *m, double ms) {
    pthread_mutex_lock(&m->mutex);
    observe(&m->next_token, ms);
    pthread_mutex_unlock(&m->mutex);
}

void metrics_answer(metrics *m, const lv_answer *answer, bool is_dropped) {
    pthread_mutex_lock(&m->mutex);
    m->n_answers += !is_dropped;
    m->n_dropped += is_dropped;
    if (answer) {
        m->n_prompt += (uint64_t)answer->n_prompt_tokens;
        m->n_image += (uint64_t)answer->n_image_tokens;
        m->n_cached += (uint64_t)answer->n_reused_tokens;
        m->n_tokens += (uint64_t)answer->n_tokens;
    }
    pthread_mutex_unlock(&m->mutex);
}

// --- the text ------------------------------------------------------------------------------------

static void put_head(out_text *out, const char *name, const char *type, const char *help) {
    out_format(out, "# HELP image_chat_%s %s\n# TYPE image_chat_%s %s\n", name, help, name, type);
}

static void put_value(out_text *out, const char *name, const char *type, const char *help,
                      double value) {
    put_head(out, name, type, help);
    out_format(out, "image_chat_%s %.15g\n", name, value);
}

static void put_histogram(out_text *out, const char *name, const char *help, const histogram *h) {
    uint64_t n = 0;
    put_head(out, name, "histogram", help);
    for (int i = 0; i < N_BUCKETS; i++) {
        n += h->counts[i];
        out_format(out, "image_chat_%s_bucket{le=\"%g\"} %llu\n", name, bounds[i],
                   (unsigned long long)n);
    }
    n += h->counts[N_BUCKETS];
    out_format(out, "image_chat_%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)n);
    out_format(out, "image_chat_%s_sum %.9g\nimage_chat_%s_count %llu\n", name, h->sum, name,
               (unsigned long long)n);
}

static void put_engine(out_text *out, const lv_engine_stats *s) {
    put_value(out, "queue_length", "gauge", "Requests that wait for the engine.", s->n_waiting);
    put_value(out, "running", "gauge", "Requests that are being answered.", s->n_running);
    put_value(out, "kv_blocks", "gauge", "Blocks of the KV cache.", s->n_kv_blocks);
    put_value(out, "kv_blocks_used", "gauge", "Blocks that requests hold.", s->n_kv_used);
    put_value(out, "kv_blocks_kept", "gauge", "Blocks kept for prompts with the same beginning.",
              s->n_kv_kept);
    put_value(out, "kv_bytes", "gauge", "Memory of the KV cache.", (double)s->kv_bytes);
    put_value(out, "image_cache_bytes", "gauge", "Memory of the embeddings kept.",
              (double)s->image_cache_bytes);
    put_value(out, "images_encoded_total", "counter", "Pictures seen.", (double)s->n_images);
    put_value(out, "images_cached_total", "counter", "Pictures found in the cache.",
              (double)s->n_reused_images);
    put_value(out, "image_encode_seconds_total", "counter", "Time spent seeing pictures.",
              s->encode_ms / 1e3);
    put_value(out, "preempted_total", "counter", "Requests set back for want of KV memory.",
              (double)s->n_preempted);
    put_value(out, "passes_total", "counter", "Passes of the decoder.", (double)s->n_passes);
    put_value(out, "pass_tokens_total", "counter", "Tokens in them.", (double)s->n_pass_tokens);
    put_value(out, "pass_seconds_total", "counter", "Time spent in them.", s->pass_ms / 1e3);
}

static void put_own(out_text *out, const metrics *m) {
    put_head(out, "requests_total", "counter", "HTTP requests by path and status.");
    for (const row *r = m->rows; r < m->rows + m->n_rows; r++) {
        out_format(out, "image_chat_requests_total{path=\"%s\",status=\"%d\"} %llu\n", r->path,
                   r->status, (unsigned long long)r->n);
    }
    put_histogram(out, "request_seconds", "From a request's head to its response's end.",
                  &m->request);
    put_histogram(out, "time_to_first_token_seconds", "From a chat request to its first text.",
                  &m->first_token);
    put_histogram(out, "inter_token_seconds", "Between texts of an answer.", &m->next_token);
    put_value(out, "answers_total", "counter", "Answers finished.", (double)m->n_answers);
    put_value(out, "answers_dropped_total", "counter", "Answers failed or cancelled.",
              (double)m->n_dropped);
    put_value(out, "prompt_tokens_total", "counter", "Tokens of prompts, pictures included.",
              (double)m->n_prompt);
    put_value(out, "image_tokens_total", "counter", "Tokens of pictures.", (double)m->n_image);
    put_value(out, "cached_tokens_total", "counter", "Prompt tokens found in the KV cache.",
              (double)m->n_cached);
    put_value(out, "generated_tokens_total", "counter", "Tokens of answers.", (double)m->n_tokens);
}

void handle_metrics(exchange *x) {
    server *s = x->server;
    server_state state = atomic_load(&s->state);
    x->type = "text/plain; version=0.0.4; charset=utf-8";
    x->reply.buffer.max_bytes = (size_t)1 << 20;
    pthread_mutex_lock(&s->metrics->mutex);
    put_own(&x->reply, s->metrics);
    pthread_mutex_unlock(&s->metrics->mutex);
    put_value(&x->reply, "ready", "gauge", "1 while requests are answered.", state == SERVER_READY);
    put_value(&x->reply, "connections", "gauge", "Connections open.", clients_count(s->clients));
    put_value(&x->reply, "chat_requests", "gauge", "Chat requests held.", atomic_load(&s->n_jobs));
    put_value(&x->reply, "held_body_bytes", "gauge", "Bytes of requests not answered yet.",
              (double)atomic_load(&s->body_bytes));
    if (state != SERVER_LOADING && s->engine) {
        lv_engine_stats stats;
        lv_engine_snapshot(s->engine, &stats);
        put_engine(&x->reply, &stats);
    }
}
