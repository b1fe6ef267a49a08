// Which pictures: the command line's and those of --files-from, seen before the model is loaded.
#include "folders.h"

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

static void refuse(input_list *list, const char *source, const char *reason) {
    char *label = label_of(source);
    complain(*source ? label : "''", "%s", reason);
    free(label);
    list->n_refused++;
    list_add(&list->refusals, source, strlen(source));
    list_add(&list->refusals, reason, strlen(reason));
}

// Why a file cannot be a picture, before minutes go into loading a model. NULL: perhaps it is one.
static const char *refusal(const char *source) {
    struct stat info;
    if (!strcmp(source, "-") || lv_is_url(source)) {
        return NULL;
    }
    if (!*source) {
        return "an empty name";
    }
    if (stat(source, &info) != 0 || access(source, R_OK) != 0) {
        return strerror(errno);
    }
    return S_ISDIR(info.st_mode) ? "is a folder, and one picture is wanted" : NULL;
}

bool input_add(input_list *list, const char *source, size_t n_bytes) {
    describe_input input = {.source = need(strndup(source, n_bytes))};
    const char *reason = refusal(input.source);
    if (reason) {
        refuse(list, input.source, reason);
        free(input.source);
        return false;
    }
    input.label = label_of(input.source);
    list->items = need(realloc(list->items, (size_t)(list->n + 1) * sizeof *list->items));
    list->items[list->n++] = input;
    return true;
}

// All inputs on their way into the list.
typedef struct gathering {
    const describe_options *options;
    input_list *out;
    int n_found; // named or in folders, of all shards
    int n_seen;  // of them, each once where captions are recorded
    name_set sources, targets, folders;
} gathering;

// Captions that are recorded are so once: a picture named again is left out, and one whose caption
// would replace another picture's is refused.
static void take(void *user, const char *source) {
    gathering *g = user;
    const describe_options *o = g->options;
    char reason[512] = "";
    g->n_found++;
    if (*source && records(o)) {
        if (names_add(&g->sources, source, "")) {
            return;
        }
        char *target = record_target(o, source);
        const char *owner = target ? names_add(&g->targets, target, source) : NULL;
        if (!target) {
            snprintf(reason, sizeof reason, "%s", lv_error());
        } else if (owner) {
            snprintf(reason, sizeof reason,
                     "its caption would be under the same name as that of %s", owner);
        }
        free(target);
    }
    if (g->n_seen++ % o->shard.count != o->shard.index) {
        return;
    }
    if (*reason) {
        refuse(g->out, source, reason);
    } else {
        input_add(g->out, source, strlen(source));
    }
}

static void refuse_folder(void *user, const char *path, const char *reason) {
    gathering *g = user;
    refuse(g->out, path, reason);
}

static void take_folder(gathering *g, const char *folder) {
    const folder_visitor visitor = {take, refuse_folder, g};
    bool recursive = g->options->recursive;
    int n_found = g->n_found, n_refused = g->out->n_refused, n_folders = names_count(&g->folders);
    folder_walk(folder, recursive, &g->folders, &visitor);
    if (g->n_found == n_found && g->out->n_refused == n_refused &&
        names_count(&g->folders) > n_folders) {
        refuse(g->out, folder,
               recursive ? "no picture in this folder or below it"
                         : "no picture in this folder; --recursive looks below it");
    }
}

static void take_named(gathering *g, const char *name, size_t n_bytes) {
    struct stat info;
    char *source = need(strndup(name, n_bytes));
    if (*source && !lv_is_url(source) && stat(source, &info) == 0 && S_ISDIR(info.st_mode)) {
        take_folder(g, source);
    } else {
        take(g, source);
    }
    free(source);
}

static int take_list(gathering *g) {
    const describe_options *options = g->options;
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
    if (end == '\n' && buffer.n_bytes && memchr(at, 0, buffer.n_bytes)) {
        complain("--files-from",
                 "%s holds NUL bytes: names that end so want --null (-0), and text "
                 "has to be UTF-8",
                 path);
        lv_buffer_free(&buffer);
        return EXIT_USAGE;
    }
    at += end == '\n' ? mark_length(at, buffer.n_bytes) : 0;
    while (at < last) {
        const char *stop = memchr(at, end, (size_t)(last - at));
        stop = stop ? stop : last;
        const char *cut = stop; // lines may come from Windows
        if (end == '\n' && cut > at && cut[-1] == '\r') {
            cut--;
        }
        if (cut > at) {
            take_named(g, at, (size_t)(cut - at));
        }
        at = stop + 1;
    }
    lv_buffer_free(&buffer);
    return EXIT_DONE;
}

int inputs_gather(const describe_options *options, input_list *out) {
    gathering g = {.options = options, .out = out};
    for (int i = 0; i < options->inputs.n; i++) {
        take_named(&g, options->inputs.items[i], strlen(options->inputs.items[i]));
    }
    int result = options->files_from ? take_list(&g) : EXIT_DONE;
    names_free(&g.sources);
    names_free(&g.targets);
    names_free(&g.folders);
    return result;
}

void inputs_free(input_list *list) {
    for (int i = 0; i < list->n; i++) {
        free(list->items[i].source);
        free(list->items[i].label);
    }
    free(list->items);
    list_free(&list->refusals);
    *list = (input_list){0};
}
