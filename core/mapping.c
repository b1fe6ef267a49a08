// Mapped files, and copies of their bytes that leave no page mapped.
#include "core/files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_OPEN 256 // files that lv_mapped_copy reads; it copies from further ones' pages

// The mappings whose files are open.
static struct {
    pthread_rwlock_t lock;
    struct {
        lv_mapping mapping;
        int fd;
    } files[MAX_OPEN];
    int n;
} opened = {.lock = PTHREAD_RWLOCK_INITIALIZER};

static lv_status fail_errno(const char *what, const char *path) {
    lv_status code = errno == ENOENT || errno == ENOTDIR ? LV_ENOTFOUND : LV_EIO;
    return lv_fail(code, "%s: %s: %s", path, what, strerror(errno));
}

static void keep_open(const lv_mapping *mapping, int fd) {
    pthread_rwlock_wrlock(&opened.lock);
    if (opened.n < MAX_OPEN) {
        opened.files[opened.n].mapping = *mapping;
        opened.files[opened.n++].fd = fd;
        fd = -1;
    }
    pthread_rwlock_unlock(&opened.lock);
    if (fd >= 0) {
        close(fd);
    }
}

lv_status lv_file_map(const char *path, lv_mapping *out) {
    *out = (lv_mapping){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return fail_errno("cannot open", path);
    }
    lv_status status = LV_OK;
    struct stat info;
    void *data = NULL;
    if (fstat(fd, &info) != 0) {
        status = fail_errno("cannot stat", path);
    } else if (!S_ISREG(info.st_mode)) {
        status = lv_fail(LV_EIO, "%s: not a regular file", path);
    } else if (info.st_size == 0) {
        status = lv_fail(LV_EFORMAT, "%s: the file is empty", path);
    } else {
        data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            status = fail_errno("cannot map", path);
        }
    }
    if (status != LV_OK) {
        close(fd);
        return status;
    }
    *out = (lv_mapping){data, (size_t)info.st_size};
    keep_open(out, fd);
    return LV_OK;
}

void lv_file_unmap(lv_mapping *mapping) {
    if (mapping->data) {
        pthread_rwlock_wrlock(&opened.lock);
        for (int i = 0; i < opened.n; i++) {
            if (opened.files[i].mapping.data == mapping->data) {
                close(opened.files[i].fd);
                opened.files[i] = opened.files[--opened.n];
                break;
            }
        }
        pthread_rwlock_unlock(&opened.lock);
        munmap((void *)mapping->data, mapping->n_bytes);
    }
    *mapping = (lv_mapping){0};
}

// Reads bytes of a file that lies mapped at `from`; returns how many.
static size_t read_mapped(uint8_t *to, const uint8_t *from, size_t n_bytes) {
    size_t n_read = 0;
    pthread_rwlock_rdlock(&opened.lock);
    for (int i = 0; i < opened.n; i++) {
        const lv_mapping *m = &opened.files[i].mapping;
        const size_t at = (size_t)((uintptr_t)from - (uintptr_t)m->data);
        if ((uintptr_t)from < (uintptr_t)m->data || at >= m->n_bytes || n_bytes > m->n_bytes - at) {
            continue;
        }
        ssize_t n = 1;
        while (n > 0 && n_read < n_bytes) {
            n = pread(opened.files[i].fd, to + n_read, n_bytes - n_read, (off_t)(at + n_read));
            n_read += n > 0 ? (size_t)n : 0;
        }
        break;
    }
    pthread_rwlock_unlock(&opened.lock);
    return n_read;
}

void lv_mapped_copy(void *to, const void *from, size_t n_bytes) {
    const size_t n_read = read_mapped(to, from, n_bytes);
    memcpy((uint8_t *)to + n_read, (const uint8_t *)from + n_read, n_bytes - n_read);
}
