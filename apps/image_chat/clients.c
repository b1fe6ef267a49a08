// Connections: a deadline for each request's head and body, and a watch for clients that go away
// while their answer is made.
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "apps/image_chat/chat.h"

enum { TICK_MS = 200, MAX_EVENTS = 64 };

struct client {
    client *next, **link;
    uint64_t serial; // what the watch knows it by: descriptors and addresses are used again
    int fd;
    client_phase phase;
    double deadline_ms; // of the phase
    bool had_request, expired;
    chat_job *job; // a reference; NULL: none
    bool watched;  // fd is in the epoll set
};

struct clients {
    const server_options *options;
    pthread_mutex_t mutex; // no other is taken while it is held
    client *first;
    int n;
    uint64_t next_serial;
    int epoll_fd, stop_fd;
    pthread_t thread;
};

static double patience_ms(const clients *all, client_phase phase, bool is_first) {
    const server_options *o = all->options;
    switch (phase) {
    case CLIENT_IDLE:
        return 1e3 * (is_first ? o->header_timeout_s : o->idle_timeout_s);
    case CLIENT_BODY:
        return 1e3 * o->body_timeout_s;
    case CLIENT_BUSY:
        break;
    }
    return 1e15;
}

// A peer that is gone without a word is found out by what it does not acknowledge.
static void set_socket(int fd) {
    int on = 1, idle_s = 15, interval_s = 5, unanswered_ms = 30000;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
}

client *client_open(clients *all, int fd) {
    client *c = calloc(1, sizeof *c);
    if (!c) {
        return NULL;
    }
    set_socket(fd);
    c->fd = fd;
    c->phase = CLIENT_IDLE;
    c->deadline_ms = now_ms() + patience_ms(all, CLIENT_IDLE, true);
    pthread_mutex_lock(&all->mutex);
    c->serial = ++all->next_serial;
    c->next = all->first;
    c->link = &all->first;
    if (c->next) {
        c->next->link = &c->next;
    }
    all->first = c;
    all->n++;
    pthread_mutex_unlock(&all->mutex);
    return c;
}

// With the mutex held: takes the job away from the client; the caller releases it.
static chat_job *take_job(clients *all, client *c) {
    chat_job *job = c->job;
    if (c->watched) {
        epoll_ctl(all->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    }
    c->watched = false;
    c->job = NULL;
    return job;
}

void client_close(clients *all, client *c) {
    pthread_mutex_lock(&all->mutex);
    chat_job *job = take_job(all, c);
    *c->link = c->next;
    if (c->next) {
        c->next->link = c->link;
    }
    all->n--;
    pthread_mutex_unlock(&all->mutex);
    job_release(job);
    free(c);
}

bool client_enter(clients *all, client *c, client_phase phase) {
    pthread_mutex_lock(&all->mutex);
    bool ok = !c->expired;
    c->phase = phase;
    c->had_request = true;
    c->deadline_ms = now_ms() + patience_ms(all, phase, false);
    pthread_mutex_unlock(&all->mutex);
    return ok;
}

void client_watch(clients *all, client *c, chat_job *job) {
    chat_job *before;
    pthread_mutex_lock(&all->mutex);
    before = take_job(all, c);
    c->job = job_hold(job);
    if (job) {
        struct epoll_event event = {.events = EPOLLRDHUP, .data.u64 = c->serial};
        c->watched = epoll_ctl(all->epoll_fd, EPOLL_CTL_ADD, c->fd, &event) == 0;
    }
    pthread_mutex_unlock(&all->mutex);
    job_release(before);
}

int clients_count(clients *all) {
    pthread_mutex_lock(&all->mutex);
    int n = all->n;
    pthread_mutex_unlock(&all->mutex);
    return n;
}

// --- the thread ----------------------------------------------------------------------------------

// The client is not being answered: nothing else writes to its socket, and this ends it. One that
// was answered before and asks nothing more is told nothing.
static void expire(client *c) {
    static const char body[] =
        "{\"error\":{\"message\":\"The request took too long to arrive.\",\"type\":"
        "\"invalid_request_error\",\"param\":null,\"code\":\"request_timeout\"}}";
    char text[512];
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
                     "Connection: close\r\nContent-Length: %zu\r\n\r\n%s",
                     sizeof body - 1, body);
    c->expired = true;
    if (c->phase == CLIENT_BODY || !c->had_request) {
        (void)!send(c->fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    shutdown(c->fd, SHUT_RDWR);
}

typedef struct job_list {
    chat_job **items;
    int n, capacity;
} job_list;

// Of all clients, those whose serial is among serials[n]; of all where serials is NULL.
static void collect_jobs(clients *all, const uint64_t *serials, int n, job_list *out) {
    out->n = 0;
    pthread_mutex_lock(&all->mutex);
    if (all->n > out->capacity) {
        chat_job **grown = realloc(out->items, (size_t)all->n * sizeof(chat_job *));
        out->items = grown ? grown : out->items;
        out->capacity = grown ? all->n : out->capacity;
    }
    for (client *c = all->first; c && out->n < out->capacity; c = c->next) {
        bool wanted = c->job && !serials;
        for (int i = 0; i < n && c->job; i++) {
            wanted = wanted || serials[i] == c->serial;
        }
        if (wanted) {
            out->items[out->n++] = job_hold(c->job);
        }
        if (wanted && serials && c->watched) { // told once
            epoll_ctl(all->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
            c->watched = false;
        }
    }
    pthread_mutex_unlock(&all->mutex);
}

static void check_deadlines(clients *all) {
    double now = now_ms();
    pthread_mutex_lock(&all->mutex);
    for (client *c = all->first; c; c = c->next) {
        if (!c->expired && now > c->deadline_ms) {
            expire(c);
        }
    }
    pthread_mutex_unlock(&all->mutex);
}

static void *keep_watch(void *user) {
    clients *all = user;
    struct epoll_event events[MAX_EVENTS];
    uint64_t serials[MAX_EVENTS];
    job_list jobs = {0};
    double next_tick_ms = now_ms() + TICK_MS;
    for (;;) {
        double left = next_tick_ms - now_ms();
        int n = epoll_wait(all->epoll_fd, events, MAX_EVENTS, left > 0 ? (int)left + 1 : 0);
        int n_serials = 0;
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == 0) { // stop_fd
                free(jobs.items);
                return NULL;
            }
            serials[n_serials++] = events[i].data.u64;
        }
        if (n_serials > 0) {
            collect_jobs(all, serials, n_serials, &jobs);
            for (int i = 0; i < jobs.n; i++) {
                job_client_gone(jobs.items[i]);
                job_release(jobs.items[i]);
            }
        }
        if (now_ms() >= next_tick_ms) {
            next_tick_ms = now_ms() + TICK_MS;
            check_deadlines(all);
            collect_jobs(all, NULL, 0, &jobs);
            for (int i = 0; i < jobs.n; i++) {
                job_tick(jobs.items[i]);
                job_release(jobs.items[i]);
            }
        }
    }
}

void clients_end_all_jobs(clients *all) {
    job_list jobs = {0};
    collect_jobs(all, NULL, 0, &jobs);
    for (int i = 0; i < jobs.n; i++) {
        job_end(jobs.items[i]);
        job_release(jobs.items[i]);
    }
    free(jobs.items);
}

bool clients_hang_up(clients *all) {
    pthread_mutex_lock(&all->mutex);
    for (client *c = all->first; c; c = c->next) {
        shutdown(c->fd, SHUT_RDWR);
    }
    bool none = all->n == 0;
    pthread_mutex_unlock(&all->mutex);
    return none;
}

clients *clients_start(const server_options *options) {
    clients *all = calloc(1, sizeof *all);
    if (!all) {
        return NULL;
    }
    all->options = options;
    pthread_mutex_init(&all->mutex, NULL);
    all->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    all->stop_fd = eventfd(0, EFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    if (all->epoll_fd < 0 || all->stop_fd < 0 ||
        epoll_ctl(all->epoll_fd, EPOLL_CTL_ADD, all->stop_fd, &event) != 0 ||
        pthread_create(&all->thread, NULL, keep_watch, all) != 0) {
        log_line("image-chat: cannot watch clients: %s", strerror(errno));
        free(all);
        return NULL;
    }
    return all;
}

void clients_stop(clients *all) {
    uint64_t one = 1;
    if (write(all->stop_fd, &one, sizeof one) == sizeof one) {
        pthread_join(all->thread, NULL);
    }
    close(all->stop_fd);
    close(all->epoll_fd);
    pthread_mutex_destroy(&all->mutex);
    free(all);
}
