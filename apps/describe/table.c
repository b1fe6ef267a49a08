// --output: a file that only grows by whole records, and what it holds already.
//
// A record is one write, so that a killed run leaves at most its last one torn, which the next run
// cuts off. With --overwrite the old records go last of all, when the new ones are there. Shards
// write a file each and read all of them: no lock is waited for, and a run in another number of
// parts goes on where the last one stopped.
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

static const char replaced[] = "was replaced or removed while captions were written to it";

struct table {
    char *path;
    bool is_csv;
    int fd;        // locked; -1: none
    off_t n_bytes; // all of whole records
    time_t synced;
    bool overwrite, is_lost; // is_lost: what was written is not there, which was said
    off_t n_old;             // where this run's records begin
    name_set done;           // sources that had a record before
};

static bool is_csv_name(const char *path) {
    size_t n = strlen(path);
    return n >= 4 && !strcasecmp(path + n - 4, ".csv");
}

bool is_file(int fd, const char *path) {
    struct stat open = {0}, named = {0};
    return fstat(fd, &open) == 0 && stat(path, &named) == 0 && named.st_ino == open.st_ino &&
           named.st_dev == open.st_dev;
}

// Opens the file and locks it; -1 after complaining.
static int open_locked(const char *path) {
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        struct stat mine = {0};
        if (fd < 0 || fstat(fd, &mine) != 0) {
            complain(path, "%s", strerror(errno));
        } else if (!S_ISREG(mine.st_mode)) {
            complain(path, "not a regular file");
        } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            complain(path, "%s",
                     errno == EWOULDBLOCK ? "another run is writing it" : strerror(errno));
        } else if (is_file(fd, path)) {
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

// Bytes of what comes before the first record: a byte order mark, and a CSV's header, whose line
// may end as other programs end it. 0 where it is torn.
static size_t head_length(const char *data, size_t n_bytes, bool is_csv, bool *out_bad) {
    const size_t n_mark = mark_length(data, n_bytes);
    const size_t n_names = is_csv ? strlen(csv_header) - 2 : 0, n_there = n_bytes - n_mark;
    size_t end = n_mark + n_names;
    *out_bad = memcmp(data + n_mark, csv_header, n_there < n_names ? n_there : n_names) != 0;
    if (*out_bad || !is_csv) {
        return n_mark;
    }
    end += end < n_bytes && data[end] == '\r';
    if (end >= n_bytes) {
        return 0;
    }
    *out_bad = data[end] != '\n';
    return end + 1;
}

// Calls `each` (may be NULL) with every whole record, and with what comes before the first, without
// a source; *out_whole is where they end. False after complaining of what is no record of ours.
static bool scan(const char *path, bool is_csv, const lv_buffer *file, size_t *out_whole,
                 void (*each)(void *user, const char *source, const char *data, size_t n_bytes),
                 void *user) {
    const char *data = file->data ? (const char *)file->data : "";
    bool bad = false;
    size_t at = head_length(data, file->n_bytes, is_csv, &bad);
    *out_whole = 0;
    if (bad) {
        complain(path, "its columns are not those of describe; name another file");
        return false;
    }
    if (is_csv && at == 0) {
        return true; // torn within its header
    }
    if (each && at > 0) {
        each(user, NULL, data, at);
    }
    while (at < file->n_bytes) {
        char *source = NULL;
        size_t n = record_next(data + at, file->n_bytes - at, is_csv, &source, &bad);
        if (bad) {
            complain(path, "%s at byte %zu; name another file",
                     is_csv ? "no record with its columns" : "no line of JSON", at);
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
             (whole == 0 || file.data[whole - 1] == '\n' ||
              append(t, t->is_csv && file.data[whole - 1] != '\r' ? "\r\n" : "\n")) &&
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

static void table_free(table *t) {
    if (t->fd >= 0) {
        close(t->fd);
    }
    names_free(&t->done);
    free(t->path);
    free(t);
}

table *table_open(const char *path, lv_shard shard, bool overwrite) {
    table *t = calloc(1, sizeof *t);
    if (!t) {
        complain(path, "out of memory");
        return NULL;
    }
    *t = (table){.path = shard_path(path, shard),
                 .is_csv = is_csv_name(path),
                 .fd = -1,
                 .synced = time(NULL),
                 .overwrite = overwrite};
    t->fd = t->path ? open_locked(t->path) : -1;
    if (t->fd < 0 || !repair(t) || !read_others(t, path, shard, overwrite) ||
        (!overwrite && !read_done(t, t->path))) {
        table_free(t);
        return NULL;
    }
    t->n_old = t->n_bytes;
    return t;
}

bool table_has(const table *t, const char *source) {
    return names_have(&t->done, source);
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
        t->is_lost = !ok || !is_file(t->fd, t->path);
        if (ok && t->is_lost) {
            return lv_fail(LV_EIO, "%s: %s", t->path, replaced);
        }
    }
    return ok ? LV_OK : lv_fail(LV_EIO, "%s: %s", t->path, strerror(errno));
}

typedef struct keeper {
    off_t n_old, at; // of the record to come
    name_set renewed;
    lv_buffer kept;
    lv_status status;
} keeper;

// What the file holds counts, not what was written: others may have written in it meanwhile.
static void note_new(void *user, const char *source, const char *data, size_t n_bytes) {
    keeper *k = user;
    (void)data;
    if (source && k->at >= k->n_old) {
        names_add(&k->renewed, source, "");
    }
    k->at += (off_t)n_bytes;
}

static void keep(void *user, const char *source, const char *data, size_t n_bytes) {
    keeper *k = user;
    if (k->status == LV_OK && !(source && k->at < k->n_old && names_have(&k->renewed, source))) {
        k->status = lv_buffer_append(&k->kept, data, n_bytes);
    }
    k->at += (off_t)n_bytes;
}

// Takes out the old records of what this run described. False after complaining.
static bool drop_old(table *t) {
    keeper k = {.n_old = t->n_old, .kept = {.max_bytes = TABLE_MAX_BYTES}};
    lv_buffer file = {0};
    size_t whole = 0;
    bool ok = read_file(t->path, &file) && scan(t->path, t->is_csv, &file, &whole, note_new, &k);
    k.at = 0;
    ok = ok && scan(t->path, t->is_csv, &file, &whole, keep, &k);
    if (ok && k.status == LV_OK && k.kept.n_bytes < file.n_bytes) {
        k.status = lv_file_write_atomic(t->path, k.kept.data, k.kept.n_bytes);
    }
    if (k.status != LV_OK) {
        complain(t->path, "holds the captions of before as well: %s", last_reason(t->path));
    }
    lv_buffer_free(&file);
    lv_buffer_free(&k.kept);
    names_free(&k.renewed);
    return ok && k.status == LV_OK;
}

bool table_close(table *t) {
    bool ok = true;
    if (t) {
        ok = !t->is_lost && fsync(t->fd) == 0;
        if (!ok && !t->is_lost) {
            complain(t->path, "%s", strerror(errno));
        } else if (ok && !is_file(t->fd, t->path)) {
            complain(t->path, "%s", replaced);
            ok = false;
        } else if (ok && t->overwrite && t->n_bytes > t->n_old) {
            ok = drop_old(t);
        }
        table_free(t);
    }
    return ok;
}
