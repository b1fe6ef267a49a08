#include "core/files.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_CHUNK_BYTES ((size_t)64 << 10)

// Makes room for n_bytes more and the closing 0 byte.
static lv_status buffer_reserve(lv_buffer *buffer, size_t n_bytes) {
    size_t wanted;
    if (!lv_add(buffer->n_bytes, n_bytes, &wanted) || wanted > buffer->max_bytes) {
        return lv_fail(LV_ELIMIT, "more than the limit of %zu bytes", buffer->max_bytes);
    }
    if (!lv_add(wanted, (size_t)1, &wanted)) {
        return lv_fail(LV_ELIMIT, "more bytes than memory can hold");
    }
    if (wanted <= buffer->capacity) {
        return LV_OK;
    }
    size_t capacity = buffer->capacity < 256 ? 256 : buffer->capacity;
    while (capacity < wanted) {
        capacity = capacity <= SIZE_MAX / 2 ? capacity * 2 : wanted;
    }
    uint8_t *data = realloc(buffer->data, capacity);
    if (!data) {
        return lv_fail(LV_ENOMEM, "out of memory for a buffer of %zu bytes", capacity);
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return LV_OK;
}

lv_status lv_buffer_append(lv_buffer *buffer, const void *data, size_t n_bytes) {
    LV_TRY(buffer_reserve(buffer, n_bytes));
    if (n_bytes) {
        memcpy(buffer->data + buffer->n_bytes, data, n_bytes);
    }
    buffer->n_bytes += n_bytes;
    buffer->data[buffer->n_bytes] = 0;
    return LV_OK;
}

void lv_buffer_free(lv_buffer *buffer) {
    free(buffer->data);
    buffer->data = NULL;
    buffer->n_bytes = buffer->capacity = 0;
}

static lv_status fail_errno(const char *what, const char *path) {
    const lv_status code = errno == ENOENT || errno == ENOTDIR  ? LV_ENOTFOUND
                           : errno == ENOSPC || errno == EDQUOT ? LV_EFULL
                                                                : LV_EIO;
    return lv_fail(code, "%s: %s: %s", path, what, strerror(errno));
}

lv_status lv_stream_read(int fd, const char *name, size_t max_bytes, lv_buffer *out) {
    *out = (lv_buffer){.max_bytes = max_bytes};
    lv_status status = LV_OK;
    for (;;) {
        // One byte beyond the cap tells "exactly full" from "too long".
        size_t room = max_bytes - out->n_bytes;
        size_t n_wanted = room < READ_CHUNK_BYTES ? room : READ_CHUNK_BYTES;
        uint8_t beyond;
        if (n_wanted) {
            LV_TRY_DONE(buffer_reserve(out, n_wanted));
        }
        ssize_t n =
            read(fd, n_wanted ? out->data + out->n_bytes : &beyond, n_wanted ? n_wanted : 1);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            status = fail_errno("cannot read", name);
            goto done;
        }
        if (n == 0) {
            break;
        }
        if (!n_wanted) {
            status = lv_fail(LV_ELIMIT, "%s: more than the limit of %zu bytes", name, max_bytes);
            goto done;
        }
        out->n_bytes += (size_t)n;
    }
    status = lv_buffer_append(out, NULL, 0);
done:
    if (status != LV_OK) {
        lv_buffer_free(out);
    }
    return status;
}

lv_status lv_file_read(const char *path, size_t max_bytes, lv_buffer *out) {
    *out = (lv_buffer){.max_bytes = max_bytes};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return fail_errno("cannot open", path);
    }
    lv_status status;
    struct stat info;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && (uint64_t)info.st_size > max_bytes) {
        status = lv_fail(LV_ELIMIT, "%s: %lld bytes, more than the limit of %zu", path,
                         (long long)info.st_size, max_bytes);
    } else {
        status = lv_stream_read(fd, path, max_bytes, out);
    }
    close(fd);
    return status;
}

static lv_status write_all(int fd, const char *path, const void *data, size_t n_bytes) {
    const uint8_t *at = data;
    while (n_bytes) {
        ssize_t n = write(fd, at, n_bytes);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return fail_errno("cannot write", path);
        }
        at += n;
        n_bytes -= (size_t)n;
    }
    return LV_OK;
}

// A rename is only sure to survive a power cut once the folder itself is on the disk.
static lv_status sync_folder_of(const char *path) {
    char *copy = strdup(path);
    if (!copy) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_status status = LV_OK;
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        status = fail_errno("cannot open the folder", path);
        // Some file systems cannot sync a folder: EINVAL is not a failure of the write.
    } else if (fsync(fd) != 0 && errno != EINVAL) {
        status = fail_errno("cannot sync the folder", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    free(copy);
    return status;
}

// A new file beside `path`, under a name that nothing has: what a killed process left may have its
// number, and a name of its own may be as long as names can be.
static lv_status create_beside(const char *path, char **out_name, int *out_fd) {
    static _Atomic unsigned counter;
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t n = strlen(base), most = NAME_MAX - sizeof ".4194304.4294967295.tmp";
    n = n < most ? n : most;
    while (n > 0 && n < strlen(base) && ((unsigned char)base[n] & 0xC0) == 0x80) {
        n--; // not within a character
    }
    do {
        free(*out_name);
        if (asprintf(out_name, "%.*s.%ld.%u.tmp", (int)(base - path + (ptrdiff_t)n), path,
                     (long)getpid(), counter++) < 0) {
            *out_name = NULL;
            return lv_fail(LV_ENOMEM, "out of memory");
        }
        *out_fd = open(*out_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (*out_fd < 0 && errno == EEXIST);
    if (*out_fd >= 0) {
        return LV_OK;
    }
    lv_status status = fail_errno("cannot create", *out_name);
    free(*out_name);
    *out_name = NULL;
    return status;
}

lv_status lv_file_write_atomic(const char *link, const void *data, size_t n_bytes) {
    char *there = realpath(link, NULL), *temporary = NULL;
    const char *path = there ? there : link;
    struct stat old;
    int fd = -1;
    lv_status status = create_beside(path, &temporary, &fd);
    if (status != LV_OK) {
        goto done;
    }
    if (stat(path, &old) == 0) {
        (void)!fchmod(fd, old.st_mode & 07777); // some file systems have no modes
    }
    LV_TRY_DONE(write_all(fd, temporary, data, n_bytes));
    if (fsync(fd) != 0) {
        status = fail_errno("cannot sync", temporary);
        goto done;
    }
    int closed = close(fd);
    fd = -1;
    if (closed != 0) {
        status = fail_errno("cannot close", temporary);
    } else if (rename(temporary, path) != 0) {
        status = fail_errno("cannot replace", path);
    } else {
        status = sync_folder_of(path);
    }
done:
    if (fd >= 0) {
        close(fd);
    }
    if (status != LV_OK && temporary) {
        unlink(temporary);
    }
    free(temporary);
    free(there);
    return status;
}
