// The files that are part of the program: the web chat, the API's description and its page.
#ifndef LV_CHAT_PAGES_H
#define LV_CHAT_PAGES_H

#include <stddef.h>

typedef struct page {
    const char *name; // "web/index.html"
    const char *type; // Content-Type
    const char *etag; // with its quotes
    const unsigned char *data;
    size_t n_bytes;
} page;

extern const page pages[]; // made by embed.cmake
extern const int n_pages;

// The page shown at a URL's path: "/" is web/index.html, "/x" is web/x, "/docs" is docs/index.html,
// "/docs/x" is docs/x. NULL where there is none.
const page *page_at(const char *path);
const page *page_named(const char *name);

#endif
