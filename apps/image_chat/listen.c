// The address, and the thread that takes connections from it for libmicrohttpd's. Its own threads
// could take them, but cannot be told to stop: MHD_quiesce_daemon removes the socket from an epoll
// set that they remove it from at the same time, and the second one to do so aborts (0.9.75).
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "apps/image_chat/server.h"

enum { BACKLOG = 1024, FULL_MS = 10 }; // how long no place is waited for at a time

// --- the address ---------------------------------------------------------------------------------

static int bound_port(int fd) {
    struct sockaddr_storage address = {0};
    socklen_t n = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &n) != 0) {
        return 0;
    }
    in_port_t port = address.ss_family == AF_INET6
                         ? ((struct sockaddr_in6 *)(void *)&address)->sin6_port
                         : ((struct sockaddr_in *)(void *)&address)->sin_port;
    return ntohs(port);
}

static int listen_on(const struct addrinfo *address) {
    int on = 1, off = 0;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ai_family == AF_INET6) { // "::" is for IPv4 too
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    }
    if (bind(fd, address->ai_addr, address->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        int reason = errno;
        close(fd);
        errno = reason;
        return -1;
    }
    return fd;
}

bool listen_open(server *s) {
    char port[16];
    const server_options *o = s->options;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int fd = -1;
    snprintf(port, sizeof port, "%d", o->port);
    int code = getaddrinfo(o->name, port, &hints, &found);
    if (code != 0) {
        log_line("image-chat: --server-name %s: %s", o->name, gai_strerror(code));
        return false;
    }
    for (const struct addrinfo *at = found; at && fd < 0; at = at->ai_next) {
        fd = listen_on(at);
    }
    if (fd < 0) {
        log_line("image-chat: cannot listen on %s port %d: %s", o->name, o->port, strerror(errno));
    } else {
        s->port = bound_port(fd);
    }
    freeaddrinfo(found);
    if (gethostname(s->own_host, sizeof s->own_host - 1) != 0) {
        s->own_host[0] = 0;
    }
    s->listener.fd = fd;
    return fd >= 0;
}

// --- the thread ----------------------------------------------------------------------------------

static bool is_full(server *s) {
    return atomic_load(&s->n_arriving) + clients_count(s->clients) >= s->options->max_connections;
}

static void take_connection(server *s) {
    struct sockaddr_storage peer;
    socklen_t n = sizeof peer;
    int fd = accept4(s->listener.fd, (struct sockaddr *)&peer, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            usleep(FULL_MS * 1000); // it goes on waiting, and others may end
        }
        return;
    }
    atomic_fetch_add(&s->n_arriving, 1);
    if (MHD_add_connection(s->daemon, fd, (struct sockaddr *)&peer, n) != MHD_YES) { // closed it
        atomic_fetch_sub(&s->n_arriving, 1);
    }
}

static void *take_connections(void *user) {
    server *s = user;
    struct pollfd fds[] = {{.fd = s->listener.stop_fd, .events = POLLIN},
                           {.fd = s->listener.fd, .events = POLLIN}};
    for (;;) {
        bool full = is_full(s);
        int n = poll(fds, full ? 1 : 2, full ? FULL_MS : -1);
        if (n > 0 && fds[0].revents) {
            return NULL;
        }
        if (n > 0 && !full) {
            take_connection(s);
        }
    }
}

bool listen_start(server *s) {
    listener *l = &s->listener;
    l->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (l->stop_fd < 0 || pthread_create(&l->thread, NULL, take_connections, s) != 0) {
        log_line("image-chat: cannot take connections: %s", strerror(errno));
        return false;
    }
    return true;
}

void listen_stop(server *s) {
    uint64_t one = 1;
    if (write(s->listener.stop_fd, &one, sizeof one) == sizeof one) {
        pthread_join(s->listener.thread, NULL);
    }
    close(s->listener.fd);
    close(s->listener.stop_fd);
}
