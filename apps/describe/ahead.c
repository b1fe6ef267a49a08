// Pictures read and decoded by worker threads while the model is busy with earlier ones.
#include "folders.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_WORKERS = 8 };

typedef struct slot {
    lv_picture *picture;
    char *reason;
    bool ready;
} slot;

// A ring of slots: picture i goes to slots[i % n_slots], and a worker takes i only once the picture
// n_slots before it has left.
struct ahead {
    const lv_model *model;
    const describe_input *inputs;
    int n;
    int n_taken;  // by workers
    int n_handed; // out, in order
    slot *slots;
    int n_slots, n_workers;
    bool stops;
    pthread_t workers[MAX_WORKERS];
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static bool stopping(ahead *a) {
    pthread_mutex_lock(&a->lock);
    bool stops = a->stops;
    pthread_mutex_unlock(&a->lock);
    return stops;
}

static bool fetch_goes_on(void *user, size_t n_bytes, size_t total_bytes) {
    (void)n_bytes;
    (void)total_bytes;
    return !stopping(user) && !interrupted();
}

static void *work(void *user) {
    ahead *a = user;
    lv_fetch_options fetch = {.progress = fetch_goes_on, .user = a};
    pthread_mutex_lock(&a->lock);
    while (!a->stops && a->n_taken < a->n) {
        if (a->n_taken >= a->n_handed + a->n_slots) {
            pthread_cond_wait(&a->changed, &a->lock);
            continue;
        }
        int i = a->n_taken++;
        pthread_mutex_unlock(&a->lock);
        slot done = {.ready = true};
        const char *source = a->inputs[i].source;
        if (lv_picture_load(a->model, source, NULL, &fetch, &done.picture) != LV_OK) {
            done.reason = strdup(last_reason(source)); // this thread's own message
        }
        pthread_mutex_lock(&a->lock);
        a->slots[i % a->n_slots] = done;
        pthread_cond_broadcast(&a->changed);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

ahead *ahead_start(const lv_model *model, const describe_input *inputs, int n, int n_threads) {
    int wanted = n_threads / 2 < 1 ? 1 : n_threads / 2 > MAX_WORKERS ? MAX_WORKERS : n_threads / 2;
    ahead *a = calloc(1, sizeof *a);
    slot *slots = calloc((size_t)(2 * wanted), sizeof *slots);
    if (!a || !slots) {
        free(a);
        free(slots);
        return NULL;
    }
    *a = (ahead){.model = model, .inputs = inputs, .n = n, .slots = slots, .n_slots = 2 * wanted};
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
    while (a->n_workers < wanted && pthread_create(&a->workers[a->n_workers], NULL, work, a) == 0) {
        a->n_workers++;
    }
    if (a->n_workers == 0) {
        ahead_free(a);
        return NULL;
    }
    return a;
}

bool ahead_next(ahead *a, lv_picture **out_picture, char **out_reason) {
    pthread_mutex_lock(&a->lock);
    bool is_there = a->n_handed < a->n;
    slot *next = &a->slots[a->n_handed % a->n_slots];
    while (is_there && !next->ready && !interrupted()) {
        struct timespec until; // a signal wakes no thread that waits: looked for now and then
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100 * 1000 * 1000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&a->changed, &a->lock, &until);
    }
    is_there = is_there && next->ready && !interrupted();
    if (is_there) {
        *out_picture = next->picture;
        *out_reason = next->reason;
        *next = (slot){0};
        a->n_handed++;
        pthread_cond_broadcast(&a->changed);
    }
    pthread_mutex_unlock(&a->lock);
    return is_there;
}

void ahead_free(ahead *a) {
    if (!a) {
        return;
    }
    pthread_mutex_lock(&a->lock);
    a->stops = true;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
    for (int i = 0; i < a->n_workers; i++) {
        pthread_join(a->workers[i], NULL);
    }
    for (int i = 0; i < a->n_slots; i++) {
        lv_picture_free(a->slots[i].picture);
        free(a->slots[i].reason);
    }
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    free(a->slots);
    free(a);
}
