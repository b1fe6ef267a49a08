// Sets of names, and the pictures in folders.
#include "folders.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// --- sets: a hash table of the JSON library, whose keys may be any bytes but 0

const char *names_add(name_set *set, const char *name, const char *owner) {
    set->table = set->table ? set->table : json_object();
    json_t *there = json_object_get(set->table, name);
    if (there) {
        return json_string_value(there);
    }
    if (json_object_set_new_nocheck(set->table, name, json_string_nocheck(owner)) != 0) {
        complain(NULL, "out of memory");
        exit(EXIT_SOME_FAILED);
    }
    return NULL;
}

bool names_have(const name_set *set, const char *name) {
    return json_object_get(set->table, name) != NULL;
}

int names_count(const name_set *set) {
    return (int)json_object_size(set->table);
}

void names_free(name_set *set) {
    json_decref(set->table);
    set->table = NULL;
}

// --- folders

bool is_picture_name(const char *name) {
    static const char *const extensions[] = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp",
                                             "dib", "gif",  "pnm", "ppm",  "pgm", "pbm"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof extensions / sizeof *extensions; i++) {
        if (!strcasecmp(dot + 1, extensions[i])) {
            return true;
        }
    }
    return false;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int read_names(const char *folder, text_list *out) {
    DIR *dir = opendir(folder);
    if (!dir) {
        return errno;
    }
    errno = 0;
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        if (entry->d_name[0] != '.') {
            list_add(out, entry->d_name, strlen(entry->d_name));
        }
        errno = 0;
    }
    int error = errno;
    closedir(dir);
    if (out->n > 1) {
        qsort(out->items, (size_t)out->n, sizeof *out->items, by_name);
    }
    return error;
}

// Links are followed; a folder is entered once, by whichever name comes first, so that links in a
// circle end.
void folder_walk(const char *folder, bool recursive, name_set *seen,
                 const folder_visitor *visitor) {
    struct stat info = {0};
    char identity[64];
    text_list names = {0};
    int error = stat(folder, &info) != 0 ? errno : 0;
    snprintf(identity, sizeof identity, "%ju:%ju", (uintmax_t)info.st_dev, (uintmax_t)info.st_ino);
    if (!error && names_add(seen, identity, "")) {
        return;
    }
    error = error ? error : read_names(folder, &names);
    if (error) {
        visitor->fail(visitor->user, folder, strerror(error));
    }
    const char *slash = folder[strlen(folder) - 1] == '/' ? "" : "/";
    for (int i = 0; i < names.n; i++) {
        char *path = NULL;
        if (asprintf(&path, "%s%s%s", folder, slash, names.items[i]) < 0) {
            visitor->fail(visitor->user, folder, "out of memory");
            break;
        }
        error = stat(path, &info) == 0 ? 0 : errno;
        if (!error && S_ISDIR(info.st_mode)) {
            if (recursive) {
                folder_walk(path, recursive, seen, visitor);
            }
        } else if (is_picture_name(path) && (error || S_ISREG(info.st_mode))) {
            visitor->take(visitor->user, path); // a link to nothing too: the user is told of it
        } else if (error && recursive && error != ENOENT && error != ELOOP) {
            visitor->fail(visitor->user, path, strerror(error)); // perhaps a folder
        }
        free(path);
    }
    list_free(&names);
}
