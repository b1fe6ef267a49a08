// Where captions go: --output, or a file beside each picture; and the list of failures.
#include "folders.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/files.h"

enum { SIDECAR_MAX_BYTES = 1 << 20 };

bool records(const describe_options *options) {
    return options->output || options->sidecar;
}

// photos/a.b.jpg -> photos/a.b.txt
static char *sidecar_path(const describe_options *options, const char *source) {
    const char *slash = strrchr(source, '/'), *base = slash ? slash + 1 : source;
    const char *dot = strrchr(base, '.'), *extension = options->sidecar;
    int n_stem = (int)(dot && dot > base ? dot - source : (ptrdiff_t)strlen(source));
    char *path = NULL;
    int n = asprintf(&path, "%.*s.%s", n_stem, source, extension + (extension[0] == '.'));
    return n < 0 ? NULL : path;
}

char *record_target(const describe_options *options, const char *source) {
    char *target = NULL;
    if (!options->sidecar) {
        target = clean_utf8(source);
    } else if (!strcmp(source, "-") || lv_is_url(source)) {
        (void)!lv_fail(LV_EINVAL, "not a file beside which a caption could lie");
        return NULL;
    } else {
        target = sidecar_path(options, source);
        if (target && !strcmp(target, source)) {
            (void)!lv_fail(LV_EINVAL, "its caption would replace it");
            free(target);
            return NULL;
        }
    }
    if (!target) {
        (void)!lv_fail(LV_ENOMEM, "out of memory");
    }
    return target;
}

// Begins the list of failures anew; -1 after complaining.
static int open_failures(const describe_options *options) {
    char *output = options->output ? shard_path(options->output, options->shard) : NULL;
    const char *const others[] = {output, options->files_from, options->json_schema};
    char *path = shard_path(options->failures, options->shard);
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    const char *reason = NULL;
    if (fd < 0) {
        reason = strerror(path ? errno : ENOMEM);
    }
    for (int i = 0; i < 3 && !reason; i++) { // by whatever name
        reason = others[i] && is_file(fd, others[i]) ? "is what another option names" : NULL;
    }
    if (!reason && ftruncate(fd, 0) != 0 && errno != EINVAL) { // a pipe or a terminal has no size
        reason = strerror(errno);
    }
    if (reason) {
        complain(path ? path : options->failures, "%s", reason);
        if (fd >= 0) {
            close(fd);
        }
    }
    free(output);
    free(path);
    return reason ? -1 : fd;
}

int recorder_open(const describe_options *options, recorder *out) {
    *out = (recorder){.options = options, .failures = -1};
    if (options->output) {
        out->table = table_open(options->output, options->shard, options->overwrite);
        if (!out->table) {
            return EXIT_USAGE;
        }
    }
    out->failures = options->failures ? open_failures(options) : -1;
    if (options->failures && out->failures < 0) {
        recorder_close(out);
        return EXIT_USAGE;
    }
    return EXIT_DONE;
}

// An empty file is no caption: other programs leave such behind.
static bool has_caption(const recorder *r, const char *target) {
    struct stat info;
    return r->table ? table_has(r->table, target)
                    : stat(target, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
}

void recorder_skip_done(recorder *r, input_list *inputs) {
    const describe_options *o = r->options;
    if (!records(o) || o->overwrite || o->append || o->prepend) {
        return;
    }
    int n_left = 0;
    for (int i = 0; i < inputs->n; i++) {
        describe_input input = inputs->items[i];
        char *target = record_target(o, input.source);
        if (target && has_caption(r, target)) {
            free(input.source);
            free(input.label);
            r->n_skipped++;
        } else {
            inputs->items[n_left++] = input;
        }
        free(target);
    }
    inputs->n = n_left;
}

// The text without white space at its ends, between prefix and suffix. The caller frees it.
static char *caption_of(const describe_options *options, const char *text) {
    size_t n = strlen(text);
    char *caption = NULL;
    while (n > 0 && isspace((unsigned char)text[n - 1])) {
        n--;
    }
    while (n > 0 && isspace((unsigned char)*text)) {
        text++;
        n--;
    }
    int length = asprintf(&caption, "%s%.*s%s", options->prefix ? options->prefix : "", (int)n,
                          text, options->suffix ? options->suffix : "");
    return length < 0 ? NULL : caption;
}

// One line of both texts: a space between them, unless the second brings its own or a comma.
static char *join(const char *first, const char *second) {
    char *out = NULL;
    const char *space = *first && *second && !strchr(" ,", *second) ? " " : "";
    return asprintf(&out, "%s%s%s", first, space, second) < 0 ? NULL : out;
}

// Whether `old` ends (or begins) with the caption as join() would have put it there.
static bool has_already(const describe_options *options, const char *old, const char *caption) {
    size_t n = strlen(old), n_caption = strlen(caption);
    while (n_caption > 0 && isspace((unsigned char)caption[n_caption - 1])) {
        n_caption--; // as was done to `old`
    }
    if (n < n_caption) {
        return false;
    }
    const char *own = options->append ? old + n - n_caption : old, *next = own + n_caption;
    const bool is_apart = options->append ? own == old || strchr(" ,", *caption) || own[-1] == ' '
                                          : strchr(" ,", *next) != NULL;
    return is_apart && !strncmp(own, caption, n_caption);
}

// What the sidecar shall hold: `caption` with what it holds now. A run that goes on after an
// interrupted one finds its own caption there, and leaves it at that.
static char *merged(const describe_options *options, const lv_buffer *file, const char *caption) {
    size_t n = file->n_bytes;
    const char *old = (const char *)file->data;
    const size_t n_mark = mark_length(old, n);
    while (n > n_mark && isspace((unsigned char)old[n - 1])) {
        n--;
    }
    char *before = strndup(old + n_mark, n - n_mark), *out = NULL;
    if (before && has_already(options, before, caption)) {
        return before;
    }
    if (before) {
        out = options->append ? join(before, caption) : join(caption, before);
    }
    free(before);
    return out;
}

static lv_status put_sidecar(const describe_options *options, const char *path, char *caption) {
    lv_status status = LV_OK;
    lv_buffer file = {0};
    char *text = NULL, *line = NULL;
    for (char *at = caption; *at; at++) { // trainers read the first line only
        *at = *at == '\n' || *at == '\r' ? ' ' : *at;
    }
    if ((options->append || options->prepend) && access(path, F_OK) == 0) {
        LV_TRY_DONE(lv_file_read(path, SIDECAR_MAX_BYTES, &file));
        if (file.n_bytes > 1 &&
            (memchr(file.data, 0, file.n_bytes) || !memcmp(file.data, "\xFF\xFE", 2) ||
             !memcmp(file.data, "\xFE\xFF", 2))) { // UTF-16
            status = lv_fail(LV_EINVAL, "%s: is not UTF-8 text", path);
            goto done;
        }
    }
    text = file.n_bytes ? merged(options, &file, caption) : strdup(caption);
    if (!text || asprintf(&line, "%s\n", text) < 0) {
        line = NULL;
        status = lv_fail(LV_ENOMEM, "out of memory");
        goto done;
    }
    status = lv_file_write_atomic(path, line, strlen(line));
done:
    lv_buffer_free(&file);
    free(text);
    free(line);
    return status;
}

lv_status recorder_put(recorder *r, const describe_input *input, const lv_picture_info *info,
                       const lv_answer *answer) {
    char *caption = caption_of(r->options, answer->text);
    if (!caption) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_status status = LV_OK;
    if (r->table) {
        lv_answer captioned = *answer;
        captioned.text = caption;
        status = table_put(r->table, input, info, &captioned);
    } else {
        char *path = record_target(r->options, input->source);
        status = path ? put_sidecar(r->options, path, caption) : LV_EINVAL;
        free(path);
    }
    free(caption);
    return status;
}

bool recorder_fail(recorder *r, const char *source, const char *reason) {
    char *line = NULL;
    if (r->failures < 0) {
        return true;
    }
    int n = asprintf(&line, "%s\t%s\n", source, reason), n_source = (int)strlen(source);
    for (int i = 0; i < n - 1; i++) { // one line of two fields, whatever the name holds
        line[i] = i != n_source && strchr("\t\r\n", line[i]) ? ' ' : line[i];
    }
    bool ok = n >= 0 && write(r->failures, line, (size_t)n) == n;
    if (!ok) {
        complain(r->options->failures, "%s", strerror(errno));
        close(r->failures);
        r->failures = -1;
    }
    if (n >= 0) {
        free(line);
    }
    return ok;
}

bool recorder_close(recorder *r) {
    bool ok = table_close(r->table);
    if (r->failures >= 0) {
        close(r->failures);
    }
    *r = (recorder){.failures = -1};
    return ok;
}
