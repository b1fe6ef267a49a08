// What core's tests share: a scratch folder, and files written into it.
#ifndef LV_TESTS_CORE_UTIL_H
#define LV_TESTS_CORE_UTIL_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/files.h"
#include "core/tensor.h"
#include "tests/check.h"

// The test's own folder, removed when it ends.
static char scratch_dir[64];

static void scratch_remove(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch_dir);
    if (system(command) != 0) {
        fprintf(stderr, "cannot remove %s\n", scratch_dir);
    }
}

static inline void scratch_open(void) {
    snprintf(scratch_dir, sizeof scratch_dir, "/tmp/lv_core_XXXXXX");
    if (!mkdtemp(scratch_dir)) {
        perror("mkdtemp");
        exit(1);
    }
    atexit(scratch_remove);
}

// The full name of a file in it; holds until the fourth call from here.
static inline const char *scratch(const char *name) {
    static char paths[4][512];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_dir, name);
    return path;
}

static inline void make_folder(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s", scratch(name));
    for (char *at = path + strlen(scratch_dir) + 1; *at; at++) {
        if (*at == '/') {
            *at = 0;
            mkdir(path, 0777);
            *at = '/';
        }
    }
    mkdir(path, 0777);
}

static inline void write_bytes(const char *name, const void *data, size_t n_bytes) {
    FILE *file = fopen(scratch(name), "wb");
    if (!file || fwrite(data, 1, n_bytes, file) != n_bytes || fclose(file) != 0) {
        perror(name);
        exit(1);
    }
}

static inline void write_text(const char *name, const char *text) {
    write_bytes(name, text, strlen(text));
}

// True where the last failure's message holds every one of the words.
static inline bool error_names(const char *first, ...) {
    va_list words;
    va_start(words, first);
    bool all = true;
    for (const char *word = first; word; word = va_arg(words, const char *)) {
        all &= strstr(lv_error(), word) != NULL;
    }
    va_end(words);
    return all;
}

// --- safetensors files, built in memory ---------------------------------------------------------

typedef struct builder {
    char header[1 << 18];
    size_t n_header, n_data;
} builder;

static inline void builder_add(builder *b, const char *name, const char *type, int element_bytes,
                               const char *shape, size_t n_elements) {
    size_t n_bytes = n_elements * (size_t)element_bytes;
    b->n_header += (size_t)snprintf(
        b->header + b->n_header, sizeof b->header - b->n_header,
        "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
        b->n_header ? "," : "{", name, type, shape, b->n_data, b->n_data + n_bytes);
    b->n_data += n_bytes;
}

// An f16 tensor of `shape`, such as "[2, 3]".
static inline void builder_add_f16(builder *b, const char *name, const char *shape) {
    size_t n = 1;
    for (const char *at = shape; *at;) {
        at += strcspn(at, "0123456789");
        if (*at) {
            n *= (size_t)strtol(at, (char **)&at, 10);
        }
    }
    builder_add(b, name, "F16", 2, shape, n);
}

static inline void put_u64(uint8_t *out, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        out[i] = (uint8_t)(value >> (8 * i));
    }
}

// Data byte i is (uint8_t)i.
static inline uint8_t *safetensors_bytes(const char *header, size_t n_data, size_t *out_n_bytes) {
    size_t n_header = strlen(header);
    uint8_t *bytes = malloc(8 + n_header + n_data);
    if (!bytes) {
        exit(1);
    }
    put_u64(bytes, n_header);
    memcpy(bytes + 8, header, n_header);
    for (size_t i = 0; i < n_data; i++) {
        bytes[8 + n_header + i] = (uint8_t)i;
    }
    *out_n_bytes = 8 + n_header + n_data;
    return bytes;
}

static inline void builder_write(builder *b, const char *name) {
    size_t n_bytes;
    snprintf(b->header + b->n_header, sizeof b->header - b->n_header, "}");
    uint8_t *bytes = safetensors_bytes(b->header, b->n_data, &n_bytes);
    write_bytes(name, bytes, n_bytes);
    free(bytes);
    *b = (builder){0};
}

#endif
