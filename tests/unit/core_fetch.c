// Fetching from a loopback server that behaves in every way a server can, and data: URIs.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>

#include "core/fetch.h"
#include "core_util.h"

static int port;
static char user_agent[256];

// --- the server ---------------------------------------------------------------------------------

static void say(int client, const char *text) {
    (void)!write(client, text, strlen(text));
}

static void answer_redirect(int client, const char *path) {
    char text[256];
    int n = atoi(path);
    if (n > 0) {
        snprintf(text, sizeof text,
                 "HTTP/1.1 302 Found\r\nLocation: /redirect/%d\r\nContent-Length: 0\r\n\r\n",
                 n - 1);
        say(client, text);
    } else {
        say(client, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    }
}

// To another address of this machine.
static void answer_away(int client) {
    char text[256];
    snprintf(text, sizeof text,
             "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:%d/ok\r\n"
             "Content-Length: 0\r\n\r\n",
             port);
    say(client, text);
}

// Without a Content-Length, until the client goes away.
static void answer_endless(int client) {
    static char block[65536];
    say(client, "HTTP/1.1 200 OK\r\n\r\n");
    while (write(client, block, sizeof block) > 0) {
    }
}

// Headers, then nothing until the client goes away.
static void answer_slow(int client) {
    char byte;
    say(client, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe");
    while (read(client, &byte, 1) > 0) {
    }
}

static void answer_gzip(int client) {
    // "hello" in one stored deflate block, with CRC-32 and length.
    static const uint8_t body[] = {0x1f, 0x8b, 8,    0,    0,    0,   0,   0,   0,   3,
                                   1,    5,    0,    0xfa, 0xff, 'h', 'e', 'l', 'l', 'o',
                                   0x86, 0xa6, 0x10, 0x36, 5,    0,   0,   0};
    char head[128];
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n",
             sizeof body);
    say(client, head);
    (void)!write(client, body, sizeof body);
}

static const struct {
    const char *path, *answer;
} answers[] = {
    {"/ok", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"},
    {"/empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
    {"/chunked",
     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"},
    {"/cut-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n30\r\nllo"},
    {"/loop", "HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"},
    {"/to-file", "HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"},
    {"/to-data", "HTTP/1.1 302 Found\r\nLocation: data:,x\r\nContent-Length: 0\r\n\r\n"},
    {"/to-ftp", "HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\nContent-Length: 0\r\n\r\n"},
    {"/big", "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nx"},
    {"/short", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"},
    {"/long", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more"},
    {"/drop", ""},
    {"/garbage", "\x01\x02 this is no HTTP\r\n\r\n"},
    {"/404", "HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\nabsent"},
    {"/403", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"},
    {"/500", "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"},
    {"/304", "HTTP/1.1 304 Not Modified\r\n\r\n"},
};

static void answer(int client, const char *path) {
    if (strncmp(path, "/redirect/", 10) == 0) {
        answer_redirect(client, path + 10);
    } else if (strcmp(path, "/away") == 0) {
        answer_away(client);
    } else if (strcmp(path, "/endless") == 0) {
        answer_endless(client);
    } else if (strcmp(path, "/slow") == 0) {
        answer_slow(client);
    } else if (strcmp(path, "/gzip") == 0) {
        answer_gzip(client);
    }
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        if (strcmp(path, answers[i].path) == 0) {
            say(client, answers[i].answer);
        }
    }
}

static void *serve_client(void *arg) {
    int client = (int)(intptr_t)arg;
    char request[4096], path[256] = "";
    size_t n = 0;
    ssize_t got;
    while (n < sizeof request - 1 &&
           (got = read(client, request + n, sizeof request - 1 - n)) > 0) {
        n += (size_t)got;
        request[n] = 0;
        if (strstr(request, "\r\n\r\n")) {
            break;
        }
    }
    request[n] = 0;
    sscanf(request, "GET %255s", path);
    const char *agent = strstr(request, "User-Agent: ");
    if (agent && strcmp(path, "/ok") == 0) {
        snprintf(user_agent, sizeof user_agent, "%.*s", (int)strcspn(agent, "\r"), agent);
    }
    answer(client, path);
    shutdown(client, SHUT_WR);
    while (read(client, request, sizeof request) > 0) {
    }
    close(client);
    return NULL;
}

static void *serve(void *arg) {
    int listener = (int)(intptr_t)arg;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        pthread_t thread;
        if (client >= 0 &&
            pthread_create(&thread, NULL, serve_client, (void *)(intptr_t)client) == 0) {
            pthread_detach(thread);
        }
    }
    return NULL;
}

static int listen_somewhere(int *out_port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, n) != 0 ||
        listen(listener, 16) != 0 || getsockname(listener, (struct sockaddr *)&address, &n) != 0) {
        perror("listen");
        exit(1);
    }
    *out_port = ntohs(address.sin_port);
    return listener;
}

// --- http ---------------------------------------------------------------------------------------

static lv_status get(const char *path, const lv_fetch_options *options, lv_buffer *out) {
    char url[512];
    snprintf(url, sizeof url, "http://127.0.0.1:%d%s", port, path);
    return lv_fetch(url, options, out);
}

static void fetches(const char *path, const lv_fetch_options *options, const char *want) {
    lv_buffer out;
    lv_status status = get(path, options, &out);
    CHECK(status == LV_OK && out.n_bytes == strlen(want) && strcmp((char *)out.data, want) == 0,
          "%s: %s", path, lv_error());
    lv_buffer_free(&out);
}

static void fails(const char *path, const lv_fetch_options *options, lv_status want,
                  const char *named) {
    lv_buffer out;
    lv_status status = get(path, options, &out);
    CHECK(status == want, "%s: %s: %s", path, lv_status_name(status), lv_error());
    CHECK(!out.data && error_names("127.0.0.1", named, NULL), "%s: %s", path, lv_error());
    lv_buffer_free(&out);
}

static void test_answers(void) {
    fetches("/ok", NULL, "hello");
    CHECK(strcmp(user_agent, "User-Agent: llava.c/" LV_VERSION) == 0, "%s", user_agent);
    fetches("/empty", NULL, "");
    fetches("/chunked", NULL, "hello");
    fetches("/gzip", NULL, "hello");
    fetches("/long", NULL, "hello");
    fails("/404", NULL, LV_ENOTFOUND, "404");
    fails("/403", NULL, LV_ENETWORK, "403");
    fails("/500", NULL, LV_ENETWORK, "500");
    fails("/304", NULL, LV_ENETWORK, "304");
    fails("/short", NULL, LV_ENETWORK, NULL);
    fails("/cut-chunk", NULL, LV_ENETWORK, NULL);
    fails("/drop", NULL, LV_ENETWORK, NULL);
    fails("/garbage", NULL, LV_ENETWORK, NULL);
}

static void test_redirects(void) {
    fetches("/redirect/1", NULL, "hello");
    fetches("/redirect/3", NULL, "hello");
    fails("/redirect/4", NULL, LV_ENETWORK, "redirect");
    fails("/loop", NULL, LV_ENETWORK, "redirect");
    fails("/redirect/2", &(lv_fetch_options){.max_redirects = 1}, LV_ENETWORK, "redirect");
    fails("/redirect/1", &(lv_fetch_options){.max_redirects = -1}, LV_ENETWORK, "302");
    fetches("/ok", &(lv_fetch_options){.max_redirects = -1}, "hello");
    fails("/to-file", NULL, LV_ENETWORK, NULL);
    fails("/to-data", NULL, LV_ENETWORK, NULL);
    fails("/to-ftp", NULL, LV_ENETWORK, NULL);
}

// What was asked about last, and how often.
typedef struct asked {
    uint32_t only; // the address allowed
    int n;
} asked;

static bool allow_one(void *user, const struct sockaddr *address) {
    asked *a = user;
    struct sockaddr_in v4;
    memcpy(&v4, address, sizeof v4);
    a->n++;
    return address->sa_family == AF_INET && ntohl(v4.sin_addr.s_addr) == a->only;
}

static void test_addresses(void) {
    asked loopback = {.only = 0x7F000001}, other = {.only = 0x7F000002};
    lv_fetch_options options = {.allow_address = allow_one, .user = &loopback};
    fetches("/ok", &options, "hello");
    fetches("/redirect/2", &options, "hello");
    CHECK(loopback.n >= 2, "%d", loopback.n);
    lv_buffer out;
    CHECK_STATUS(get("/away", &options, &out), LV_ENETWORK);
    CHECK(error_names("may be fetched", NULL), "%s", lv_error());
    options.user = &other;
    fails("/ok", &options, LV_ENETWORK, "may be fetched");
    CHECK(other.n == 1, "%d", other.n);
    // A proxy would be asked to dial what is refused here.
    char proxy[64];
    snprintf(proxy, sizeof proxy, "http://127.0.0.1:%d", port);
    setenv("http_proxy", proxy, 1);
    options.user = &loopback;
    CHECK_STATUS(lv_fetch("http://10.0.0.1/ok", &options, &out), LV_ENETWORK);
    CHECK(error_names("may be fetched", NULL), "%s", lv_error());
    unsetenv("http_proxy");
}

static void test_caps(void) {
    fetches("/ok", &(lv_fetch_options){.max_bytes = 5}, "hello");
    fails("/ok", &(lv_fetch_options){.max_bytes = 4}, LV_ELIMIT, "4 bytes");
    fetches("/chunked", &(lv_fetch_options){.max_bytes = 5}, "hello");
    fails("/chunked", &(lv_fetch_options){.max_bytes = 4}, LV_ELIMIT, "4 bytes");
    fails("/big", NULL, LV_ELIMIT, "67108864");
    fails("/endless", &(lv_fetch_options){.max_bytes = 1 << 20}, LV_ELIMIT, "1048576");
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    fails("/slow", &(lv_fetch_options){.total_timeout_s = 1}, LV_ENETWORK, "timed out");
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK(after.tv_sec - before.tv_sec < 10);
}

static size_t seen_bytes, seen_total;

static bool watch(void *user, size_t n_bytes, size_t total_bytes) {
    seen_bytes = n_bytes;
    seen_total = total_bytes;
    return user == NULL;
}

static void test_progress(void) {
    lv_fetch_options options = {.progress = watch};
    fetches("/ok", &options, "hello");
    CHECK(seen_bytes == 5 && seen_total == 5, "%zu of %zu", seen_bytes, seen_total);
    fetches("/chunked", &options, "hello");
    CHECK(seen_total == 0);
    options.user = &options;
    fails("/slow", &options, LV_ECANCELLED, NULL);
}

static void test_unreachable(void) {
    int closed_port;
    char url[64];
    lv_buffer out;
    close(listen_somewhere(&closed_port));
    snprintf(url, sizeof url, "http://127.0.0.1:%d/", closed_port);
    CHECK_STATUS(lv_fetch(url, NULL, &out), LV_ENETWORK);
    CHECK(error_names("127.0.0.1", NULL) && !strchr(lv_error(), '\n'), "%s", lv_error());
    CHECK_STATUS(lv_fetch("http://no-such-host.invalid/x.jpg", NULL, &out), LV_ENETWORK);
    CHECK(error_names("no-such-host.invalid", NULL), "%s", lv_error());
    CHECK_STATUS(lv_fetch("http://", NULL, &out), LV_EINVAL);
    CHECK_STATUS(lv_fetch("http://a b/", NULL, &out), LV_EINVAL);
    CHECK_STATUS(lv_fetch("file:///etc/passwd", NULL, &out), LV_EINVAL);
    CHECK_STATUS(lv_fetch("", NULL, &out), LV_EINVAL);
}

static void *fetch_many(void *n_right) {
    for (int i = 0; i < 20; i++) {
        lv_buffer out;
        *(int *)n_right += get("/ok", NULL, &out) == LV_OK && out.n_bytes == 5;
        lv_buffer_free(&out);
    }
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[4];
    int n_right[4] = {0};
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, fetch_many, &n_right[i]) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK(n_right[i] == 20, "%d", n_right[i]);
    }
}

// --- data: URIs ---------------------------------------------------------------------------------

static void decodes(const char *uri, const char *want, size_t n_bytes) {
    lv_buffer out;
    lv_status status = lv_fetch(uri, NULL, &out);
    CHECK(status == LV_OK && out.n_bytes == n_bytes && memcmp(out.data, want, n_bytes) == 0,
          "%s: %s", uri, lv_error());
    lv_buffer_free(&out);
}

static void test_data(void) {
    decodes("data:,hello", "hello", 5);
    decodes("data:,", "", 0);
    decodes("data:text/plain;charset=utf-8,a%20b%00c%zz%4", "a b\0c%zz%4", 10);
    decodes("data:image/png;base64,aGVsbG8=", "hello", 5);
    decodes("DATA:;BASE64,aGVsbG8", "hello", 5);
    decodes("data:image/png;base64,aGVs\n bG8 =\r\n", "hello", 5);
    decodes("data:image/png;base64,%61GVsbG8%3D", "hello", 5);
    decodes("data:;base64,-_-_", "\xfb\xff\xbf", 3);
    decodes("data:;base64,+/+/", "\xfb\xff\xbf", 3);
    decodes("data:;base64,", "", 0);
    decodes("data:;base64x,YQ==", "YQ==", 4);
    static const char *const bad[] = {"data:",
                                      "data:text/plain;base64",
                                      "data:;base64,a",
                                      "data:;base64,aGVsb",
                                      "data:;base64,aG=Vs",
                                      "data:;base64,a*b",
                                      "data:;base64,aGVs%00"};
    lv_buffer out;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_STATUS(lv_fetch(bad[i], NULL, &out), LV_EFORMAT);
        CHECK(!out.data && error_names("data: URI", NULL), "%s: %s", bad[i], lv_error());
    }
    lv_fetch_options options = {.max_bytes = 4};
    CHECK_STATUS(lv_fetch("data:;base64,aGVsbG8=", &options, &out), LV_ELIMIT);
    CHECK_STATUS(lv_fetch("data:,hello", &options, &out), LV_ELIMIT);
    options.max_bytes = 5;
    CHECK_OK(lv_fetch("data:,hello", &options, &out));
    lv_buffer_free(&out);
}

// Longer than any piece that is decoded at a time.
static void test_long_data(void) {
    size_t n = 100000;
    char *uri = malloc(n + 32);
    lv_buffer out;
    strcpy(uri, "data:;base64,");
    memset(uri + 13, 'A', n);
    uri[13 + n] = 0;
    CHECK_OK(lv_fetch(uri, NULL, &out));
    CHECK(out.n_bytes == n / 4 * 3);
    lv_buffer_free(&out);
    memcpy(uri, "data:text/ht,", 13);
    CHECK_OK(lv_fetch(uri, NULL, &out));
    CHECK(out.n_bytes == n && out.data[n - 1] == 'A');
    lv_buffer_free(&out);
    free(uri);
}

static void test_is_url(void) {
    CHECK(lv_is_url("http://x") && lv_is_url("HTTPS://x") && lv_is_url("Data:,x"));
    CHECK(!lv_is_url("file:///x") && !lv_is_url("photo.jpg") && !lv_is_url("httpx") &&
          !lv_is_url("") && !lv_is_url("./http://x"));
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    setenv("no_proxy", "*", 1);
    pthread_t thread;
    int listener = listen_somewhere(&port);
    CHECK(pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener) == 0);
    test_answers();
    test_redirects();
    test_addresses();
    test_caps();
    test_progress();
    test_unreachable();
    test_threads();
    test_data();
    test_long_data();
    test_is_url();
    return check_done();
}
