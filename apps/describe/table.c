// --output: a file that only grows by whole records, and what it holds already.
//
// A record is one write, so that a killed run leaves at most its last one torn, which the next run
// cuts off. Shards write a file each and read all of them: no lock is waited for, and a run in
// another number of parts goes on where the last one stopped.
#include "folders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/files.h"

#define TABLE_MAX_BYTES ((size_t)4 << 30)
enum { SYNC_SECONDS = 5 };

struct table {
    char *path;
    bool is_csv;
    int fd;        // locked; -1: none
    off_t n_bytes; // all of whole records
    time_t synced;
    name_set done;
};

static bool is_csv_name(const char *path) {
    size_t n = strlen(path);
    return n >= 4 && !strcasecmp(path + n - 4, ".csv");
}

// Opens the file and locks it; -1 after complaining.
static int open_locked(const char *path) {
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        struct stat mine = {0}, named = {0};
        if (fd < 0 || fstat(fd, &mine) != 0) {
            complain(path, "%s", strerror(errno));
        } else if (!S_ISREG(mine.st_mode)) {
            complain(path, "not a regular file");
        } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            complain(path, "%s",
                     errno == EWOULDBLOCK ? "another run is writing it" : strerror(errno));
        } else if (stat(path, &named) == 0 && named.st_ino == mine.st_ino &&
                   named.st_dev == mine.st_dev) {
            return fd;
        } else { // replaced between open and lock
            close(fd);
            continue;
        }
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
}

// Calls `each` (may be NULL) with every whole record; *out_whole is where they end. False after
// complaining of what is no record of ours.
static bool scan(const char *path, bool is_csv, const lv_buffer *file, size_t *out_whole,
                 void (*each)(void *user, const char *source, const char *data, size_t n_bytes),
                 void *user) {
    const char *data = (const char *)file->data;
    size_t at = 0, n_header = is_csv ? strlen(csv_header) : 0;
    *out_whole = 0;
    if (file->n_bytes < n_header && (!data || !strncmp(data, csv_header, file->n_bytes))) {
        return true; // torn within its header
    }
    if (n_header && strncmp(data, csv_header, n_header) != 0) {
        complain(path, "its columns are not those of describe; name another file");
        return false;
    }
    for (at = n_header; at < file->n_bytes;) {
        char *source = NULL;
        bool bad = false;
        size_t n = record_next(data + at, file->n_bytes - at, is_csv, &source, &bad);
        if (bad) {
            complain(path, "no line of JSON at byte %zu; name another file", at);
            return false;
        }
        if (n == 0) {
            break;
        }
        if (each) {
            each(user, source, data + at, n);
        }
        free(source);
        at += n;
    }
    *out_whole = at;
    return true;
}

static void add_done(void *user, const char *source, const char *data, size_t n_bytes) {
    (void)data;
    (void)n_bytes;
    if (source) {
        names_add(user, source, "");
    }
}

static bool read_file(const char *path, lv_buffer *out) {
    if (lv_file_read(path, TABLE_MAX_BYTES, out) != LV_OK) {
        complain(path, "%s", last_reason(path));
        return false;
    }
    return true;
}

static bool read_done(table *t, const char *path) {
    lv_buffer file = {0};
    size_t whole = 0;
    bool ok = read_file(path, &file) && scan(path, t->is_csv, &file, &whole, add_done, &t->done);
    lv_buffer_free(&file);
    return ok;
}

static bool set_size(table *t, off_t n_bytes) {
    t->n_bytes = n_bytes;
    return ftruncate(t->fd, n_bytes) == 0;
}

static bool append(table *t, const char *text) {
    size_t n = strlen(text);
    ssize_t written = write(t->fd, text, n);
    if (written == (ssize_t)n) {
        t->n_bytes += written;
        return true;
    }
    int error = written < 0 ? errno : ENOSPC; // cut short: the next byte would have failed
    if (!set_size(t, t->n_bytes)) {
        error = errno;
    }
    errno = error;
    return false;
}

// Cuts off what is torn, and begins an empty file.
static bool repair(table *t) {
    lv_buffer file = {0};
    size_t whole = 0;
    bool ok = read_file(t->path, &file) && scan(t->path, t->is_csv, &file, &whole, NULL, NULL);
    if (ok) {
        ok = set_size(t, (off_t)whole) &&
             (whole == 0 || file.data[whole - 1] == '\n' || append(t, "\n")) &&
             (whole > 0 || !t->is_csv || append(t, csv_header));
        if (!ok) {
            complain(t->path, "%s", strerror(errno));
        }
    }
    lv_buffer_free(&file);
    return ok;
}

// "captions.2-of-3.jsonl" among the parts of "captions.jsonl": 3, the whole file itself: 1, any
// other name: 0.
static int parts_of(const char *base, const char *name) {
    const char *dot = strrchr(base, '.');
    size_t n = (size_t)(dot - base);
    int part = 0, count = 0, n_read = 0;
    if (!strcmp(base, name)) {
        return 1;
    }
    return !strncmp(base, name, n) &&
                   sscanf(name + n, ".%6d-of-%6d%n", &part, &count, &n_read) == 2 &&
                   !strcmp(name + n + n_read, dot)
               ? count
               : 0;
}

// Reads what the other parts hold. With `overwrite` they hold nothing that counts, but parts of
// another number would keep captions that are replaced here.
static bool read_others(table *t, const char *path, lv_shard shard, bool overwrite) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const char *own = strrchr(t->path, '/') ? strrchr(t->path, '/') + 1 : t->path;
    char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup("./");
    DIR *dir = folder ? opendir(folder) : NULL;
    bool ok = dir != NULL;
    if (!dir) {
        complain(path, "%s", folder ? strerror(errno) : "out of memory");
    }
    for (struct dirent *entry = ok ? readdir(dir) : NULL; entry && ok; entry = readdir(dir)) {
        int count = parts_of(base, entry->d_name);
        char *other = NULL;
        if (count == 0 || !strcmp(entry->d_name, own)) {
            continue;
        }
        if (asprintf(&other, "%s%s", slash ? folder : "", entry->d_name) < 0) {
            complain(path, "out of memory");
            ok = false;
        } else if (!overwrite) {
            ok = read_done(t, other);
        } else if (count != shard.count) {
            complain(other,
                     "is of a run in %d part%s, which --overwrite would leave beside the "
                     "new captions: move it away first",
                     count, count > 1 ? "s" : "");
            ok = false;
        }
        free(other);
    }
    if (dir) {
        closedir(dir);
    }
    free(folder);
    return ok;
}

table *table_open(const char *path, lv_shard shard, bool overwrite) {
    table *t = calloc(1, sizeof *t);
    if (!t) {
        complain(path, "out of memory");
        return NULL;
    }
    *t = (table){.path = shard_path(path, shard), .is_csv = is_csv_name(path), .fd = -1};
    t->synced = time(NULL);
    t->fd = t->path ? open_locked(t->path) : -1;
    if (t->fd < 0 || !repair(t) || !read_others(t, path, shard, overwrite) ||
        (!overwrite && !read_done(t, t->path))) {
        table_close(t);
        return NULL;
    }
    return t;
}

bool table_has(const table *t, const char *source) {
    return names_have(&t->done, source);
}

typedef struct keeper {
    const name_set *sources;
    lv_buffer kept;
    lv_status status;
} keeper;

static void keep(void *user, const char *source, const char *data, size_t n_bytes) {
    keeper *k = user;
    if (k->status == LV_OK && !(source && names_have(k->sources, source))) {
        k->status = lv_buffer_append(&k->kept, data, n_bytes);
    }
}

bool table_drop(table *t, const name_set *sources) {
    keeper k = {.sources = sources, .kept = {.max_bytes = TABLE_MAX_BYTES}};
    lv_buffer file = {0};
    size_t whole = 0;
    if (t->is_csv) {
        k.status = lv_buffer_append(&k.kept, csv_header, strlen(csv_header));
    }
    bool ok = read_file(t->path, &file) && scan(t->path, t->is_csv, &file, &whole, keep, &k);
    if (ok && k.status == LV_OK && k.kept.n_bytes < file.n_bytes) {
        k.status =
            lv_file_write_atomic(t->path, k.kept.data ? (char *)k.kept.data : "", k.kept.n_bytes);
        if (k.status == LV_OK) { // a new file, locked before the old one is let go
            int fd = open_locked(t->path);
            ok = fd >= 0;
            close(t->fd);
            t->fd = fd;
            t->n_bytes = (off_t)k.kept.n_bytes;
        }
    }
    if (k.status != LV_OK) {
        complain(t->path, "%s", last_reason(t->path));
    }
    lv_buffer_free(&file);
    lv_buffer_free(&k.kept);
    return ok && k.status == LV_OK;
}

static char *json_record(const describe_input *input, const lv_picture_info *info,
                         const lv_answer *answer) {
    const describe_input named = {.source = input->source, .label = input->source}; // in full
    char *json = answer_json(&named, info, 1, answer), *line = NULL;
    if (json && asprintf(&line, "%s\n", json) < 0) {
        line = NULL;
    }
    free(json);
    return line;
}

lv_status table_put(table *t, const describe_input *input, const lv_picture_info *info,
                    const lv_answer *answer) {
    char *line = t->is_csv ? csv_record(input, info, answer) : json_record(input, info, answer);
    if (!line) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    bool ok = append(t, line);
    free(line);
    time_t now = time(NULL);
    if (ok && now - t->synced >= SYNC_SECONDS) { // more would wait for the disk, not for the model
        t->synced = now;
        ok = fsync(t->fd) == 0;
    }
    return ok ? LV_OK : lv_fail(LV_EIO, "%s: %s", t->path, strerror(errno));
}

bool table_close(table *t) {
    bool ok = true;
    if (t && t->fd >= 0) {
        ok = fsync(t->fd) == 0;
        ok = close(t->fd) == 0 && ok;
        if (!ok) {
            complain(t->path, "%s", strerror(errno));
        }
    }
    if (t) {
        names_free(&t->done);
        free(t->path);
        free(t);
    }
    return ok;
}
