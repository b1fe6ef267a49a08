#include "apps/image_chat/pages.h"

#include <stdio.h>
#include <string.h>

const page *page_named(const char *name) {
    for (int i = 0; i < n_pages; i++) {
        if (strcmp(pages[i].name, name) == 0) {
            return &pages[i];
        }
    }
    return NULL;
}

const page *page_at(const char *path) {
    char name[256];
    int n;
    if (strcmp(path, "/") == 0) {
        return page_named("web/index.html");
    }
    if (strcmp(path, "/docs") == 0 || strcmp(path, "/docs/") == 0) {
        return page_named("docs/index.html");
    }
    n = snprintf(name, sizeof name, "%s%s", strncmp(path, "/docs/", 6) ? "web" : "", path);
    if (n < 0 || (size_t)n >= sizeof name) {
        return NULL;
    }
    return page_named(*name == '/' ? name + 1 : name);
}
