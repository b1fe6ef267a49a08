#include "apps/image_chat/lift.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MARK "data:\x7f" // no URI has that

// Where the string that begins at text[at] ends: at its closing quote, or n.
static size_t string_end(const char *text, size_t n, size_t at) {
    for (size_t start = at; at < n; at++) {
        const char *quote = memchr(text + at, '"', n - at);
        if (!quote) {
            return n;
        }
        at = (size_t)(quote - text);
        size_t n_escapes = 0;
        while (at - n_escapes > start && text[at - n_escapes - 1] == '\\') {
            n_escapes++;
        }
        if (n_escapes % 2 == 0) {
            return at;
        }
    }
    return n;
}

static size_t skip_space_back(const char *text, size_t at) {
    while (at > 0 && strchr(" \t\r\n", text[at - 1]) && text[at - 1]) {
        at--;
    }
    return at;
}

// Whether "url": stands in front of text[at].
static bool follows_url_key(const char *text, size_t at) {
    static const char key[] = "\"url\"";
    size_t n_key = sizeof key - 1;
    at = skip_space_back(text, at);
    if (at == 0 || text[at - 1] != ':') {
        return false;
    }
    at = skip_space_back(text, at - 1);
    return at > n_key && memcmp(text + at - n_key, key, n_key) == 0 && text[at - n_key - 1] != '\\';
}

void lift_uris(const char *text, size_t n_bytes, lift *found, out_text *out) {
    size_t kept = 0, at = 0;
    found->n = 0;
    while (at < n_bytes && found->n < MAX_LIFTED) {
        const char *quote = memchr(text + at, '"', n_bytes - at);
        if (!quote) {
            break;
        }
        size_t start = (size_t)(quote - text) + 1, end = string_end(text, n_bytes, start);
        size_t n = end - start;
        if (end < n_bytes && n >= MIN_LIFTED_BYTES && strncasecmp(text + start, "data:", 5) == 0 &&
            follows_url_key(text, start - 1) && !memchr(text + start, '\\', n)) {
            out_bytes(out, text + kept, start - kept);
            out_format(out, MARK "%d", found->n);
            found->items[found->n++] = (lifted){text + start, n};
            kept = end;
        }
        at = end + 1;
    }
    out_bytes(out, text + kept, n_bytes - kept);
}

bool lift_is_mark(const char *text) {
    return strstr(text, MARK) != NULL;
}

lifted lift_find(const lift *found, const char *text) {
    size_t n_mark = sizeof MARK - 1;
    if (strncmp(text, MARK, n_mark) == 0) {
        long i = strtol(text + n_mark, NULL, 10);
        if (i >= 0 && i < found->n) {
            return found->items[i];
        }
    }
    return (lifted){text, strlen(text)};
}
