// Who may ask: the Host header against DNS rebinding, the Origin header against hostile pages,
// keys.
#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "apps/image_chat/server.h"

static const char *header(const exchange *x, const char *name) {
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

// --- Host ----------------------------------------------------------------------------------------

static enum MHD_Result count_host(void *user, enum MHD_ValueKind kind, const char *key,
                                  const char *value) {
    (void)kind, (void)value;
    *(int *)user += strcasecmp(key, MHD_HTTP_HEADER_HOST) == 0;
    return MHD_YES;
}

// The name in "name:port" or "[::1]:port". False where it is malformed.
static bool split_host(const char *host, char *out, size_t size) {
    bool bracketed = *host == '[';
    const char *start = host + bracketed;
    size_t n = strcspn(start, bracketed ? "]" : ":");
    const char *rest = start + n + (bracketed && start[n]);
    if (n == 0 || n >= size || (bracketed && start[n] != ']') || (*rest && *rest != ':') ||
        (*rest && strspn(rest + 1, "0123456789") != strlen(rest + 1))) {
        return false;
    }
    memcpy(out, start, n);
    out[n] = 0;
    return true;
}

// A name that an attacker's DNS cannot lead here: an address, or one of this server's own names.
static bool is_own_name(const server *s, const char *name) {
    unsigned char address[sizeof(struct in6_addr)];
    const server_options *o = s->options;
    if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1 ||
        strcasecmp(name, "localhost") == 0 || strcasecmp(name, o->name) == 0) {
        return true;
    }
    if (!is_loopback_name(o->name) && *s->own_host && strcasecmp(name, s->own_host) == 0) {
        return true;
    }
    for (int i = 0; i < o->hosts.n; i++) {
        if (strcasecmp(name, o->hosts.items[i]) == 0) {
            return true;
        }
    }
    return false;
}

static bool check_host(exchange *x) {
    int n_hosts = 0;
    char name[256];
    const char *host = header(x, MHD_HTTP_HEADER_HOST);
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, count_host, &n_hosts);
    if (!host || n_hosts != 1 || !split_host(host, name, sizeof name)) {
        return fail_with(&x->error, 400, "invalid_host", NULL, "One Host header is needed.");
    }
    return is_own_name(x->server, name) ||
           fail_with(&x->error, 403, "host_not_allowed", NULL,
                     "This server does not go by that host name (--allow-host adds one).");
}

// --- Origin --------------------------------------------------------------------------------------

static bool check_origin(exchange *x) {
    const name_list *allowed = &x->server->options->origins;
    const char *origin = header(x, "Origin"), *host = header(x, MHD_HTTP_HEADER_HOST);
    const char *authority = origin ? strstr(origin, "://") : NULL;
    if (!origin || (authority && host && strcasecmp(authority + 3, host) == 0)) {
        return true;
    }
    for (int i = 0; i < allowed->n; i++) {
        if (strcasecmp(origin, allowed->items[i]) == 0) {
            x->origin = allowed->items[i];
            return true;
        }
    }
    return fail_with(&x->error, 403, "origin_not_allowed", NULL,
                     "Pages of that origin may not ask this server (--allow-origin adds one).");
}

bool gate_is_preflight(const exchange *x) {
    return strcmp(x->method, MHD_HTTP_METHOD_OPTIONS) == 0 && x->origin &&
           header(x, "Access-Control-Request-Method");
}

// --- keys ----------------------------------------------------------------------------------------

// In a time that depends neither on the keys nor on which of them fits.
static bool is_key(const name_list *keys, const char *given) {
    unsigned char wanted[SHA256_DIGEST_LENGTH], got[SHA256_DIGEST_LENGTH];
    int n_fit = 0;
    SHA256((const unsigned char *)given, strlen(given), got);
    for (int i = 0; i < keys->n; i++) {
        SHA256((const unsigned char *)keys->items[i], strlen(keys->items[i]), wanted);
        n_fit += CRYPTO_memcmp(wanted, got, sizeof got) == 0;
    }
    return n_fit > 0;
}

static bool check_key(exchange *x) {
    static const char scheme[] = "Bearer ";
    const name_list *keys = &x->server->options->api_keys;
    const char *given = header(x, MHD_HTTP_HEADER_AUTHORIZATION);
    if (keys->n == 0) {
        return true;
    }
    if (!given || strncasecmp(given, scheme, sizeof scheme - 1) != 0) {
        fail_with(&x->error, 401, "missing_api_key", NULL,
                  "This server wants a key: Authorization: Bearer KEY.");
    } else if (!is_key(keys, given + sizeof scheme - 1)) {
        fail_with(&x->error, 401, "invalid_api_key", NULL, "That is no key of this server.");
    } else {
        return true;
    }
    x->error.challenge = "Bearer";
    return false;
}

void gate_check(exchange *x) {
    bool is_open = x->page || (x->route && x->route->is_open);
    if (check_host(x) && check_origin(x) && !is_open && !gate_is_preflight(x)) {
        check_key(x);
    }
}
