// Which pictures: the command line's and those of --files-from, seen before the model is loaded.
#include "describe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/files.h"

enum { LIST_MAX_BYTES = 64 << 20, LABEL_MAX_BYTES = 48 };

static void *need(void *memory) {
    if (!memory) {
        complain(NULL, "out of memory");
        exit(EXIT_SOME_FAILED);
    }
    return memory;
}

void list_add(text_list *list, const char *text, size_t n_bytes) {
    if (list->n == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 16;
        list->items = need(realloc(list->items, (size_t)list->capacity * sizeof *list->items));
    }
    list->items[list->n++] = need(strndup(text, n_bytes));
}

void list_free(text_list *list) {
    for (int i = 0; i < list->n; i++) {
        free(list->items[i]);
    }
    free(list->items);
    *list = (text_list){0};
}

static char *label_of(const char *source) {
    if (strncasecmp(source, "data:", 5) != 0 || strlen(source) <= LABEL_MAX_BYTES) {
        return need(strdup(source));
    }
    char *label = need(malloc(LABEL_MAX_BYTES + 4));
    snprintf(label, LABEL_MAX_BYTES + 4, "%.*s...", LABEL_MAX_BYTES, source);
    return label;
}

// Says why a file cannot be a picture before minutes go into loading a model.
static bool is_refused(const char *source, const char *label) {
    struct stat info;
    if (!strcmp(source, "-") || lv_is_url(source)) {
        return false;
    }
    if (!*source) {
        complain("''", "an empty name");
    } else if (stat(source, &info) != 0 || access(source, R_OK) != 0) {
        complain(label, "%s", strerror(errno));
    } else if (S_ISDIR(info.st_mode)) {
        complain(label, "is a folder: name the pictures in it, such as %s/*.jpg", label);
    } else {
        return false;
    }
    return true;
}

bool input_add(input_list *list, const char *source, size_t n_bytes) {
    describe_input input = {.source = need(strndup(source, n_bytes))};
    input.label = label_of(input.source);
    if (is_refused(input.source, input.label)) {
        list->n_refused++;
        free(input.source);
        free(input.label);
        return false;
    }
    list->items = need(realloc(list->items, (size_t)(list->n + 1) * sizeof *list->items));
    list->items[list->n++] = input;
    return true;
}

static int add_from_list(const describe_options *options, input_list *out) {
    lv_buffer buffer = {0};
    const char *path = options->files_from;
    lv_status status = strcmp(path, "-") != 0 ? lv_file_read(path, LIST_MAX_BYTES, &buffer)
                                              : lv_stream_read(STDIN_FILENO, "standard input",
                                                               LIST_MAX_BYTES, &buffer);
    if (status != LV_OK) {
        complain("--files-from", "%s", lv_error());
        lv_buffer_free(&buffer);
        return EXIT_USAGE;
    }
    int end = options->nul_separated ? '\0' : '\n';
    const char *at = (const char *)buffer.data, *last = at + buffer.n_bytes;
    while (at < last) {
        const char *stop = memchr(at, end, (size_t)(last - at));
        stop = stop ? stop : last;
        const char *cut = stop; // lines may come from Windows
        if (end == '\n' && cut > at && cut[-1] == '\r') {
            cut--;
        }
        if (cut > at) {
            input_add(out, at, (size_t)(cut - at));
        }
        at = stop + 1;
    }
    lv_buffer_free(&buffer);
    return EXIT_DONE;
}

int inputs_gather(const describe_options *options, input_list *out) {
    for (int i = 0; i < options->inputs.n; i++) {
        input_add(out, options->inputs.items[i], strlen(options->inputs.items[i]));
    }
    return options->files_from ? add_from_list(options, out) : EXIT_DONE;
}

void inputs_free(input_list *list) {
    for (int i = 0; i < list->n; i++) {
        free(list->items[i].source);
        free(list->items[i].label);
    }
    free(list->items);
    *list = (input_list){0};
}
