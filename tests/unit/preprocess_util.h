// Inputs and checksums that tests/golden/pillow_goldens.py computes in the same way.
#ifndef LV_TESTS_PREPROCESS_UTIL_H
#define LV_TESTS_PREPROCESS_UTIL_H

#include "preprocess/preprocess.h"
#include "tests/check.h"

static inline uint64_t splitmix64(uint64_t index) {
    uint64_t z = (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint64_t checksum(const void *data, size_t n) {
    const uint8_t *bytes = data;
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (bytes[i] + 1u) * splitmix64(i);
    }
    return sum;
}

static inline size_t rgb_bytes(const lv_image *image) {
    return (size_t)image->width * (size_t)image->height * 3;
}

// Random bytes; odd seeds have only 0 and 255, which drives the filter past both ends.
static inline lv_image noise(int width, int height, uint64_t seed) {
    lv_image image = {.width = width, .height = height};
    image.rgb = malloc(rgb_bytes(&image));
    for (size_t i = 0; i < rgb_bytes(&image); i++) {
        uint8_t value = (uint8_t)(splitmix64(i + (seed << 32)) >> 56);
        image.rgb[i] = seed % 2 == 0 ? value : value & 1 ? 255 : 0;
    }
    return image;
}

// Gives each line of tests/golden/`name` to check_line; there must be more than `least`.
static inline void check_lines(const char *name, int least, void (*check_line)(const char *line)) {
    char path[512], line[256];
    int n_lines = 0;
    snprintf(path, sizeof path, "%s/tests/golden/%s", LV_SOURCE_DIR, name);
    FILE *goldens = fopen(path, "r");
    CHECK(goldens, "%s", path);
    while (goldens && fgets(line, sizeof line, goldens)) {
        check_line(line);
        n_lines++;
    }
    CHECK(n_lines > least, "%s: %d lines", name, n_lines);
    if (goldens) {
        fclose(goldens);
    }
}

typedef struct file_bytes {
    uint8_t *data;
    size_t n;
} file_bytes;

// A whole file in exactly its own number of bytes, so that reading past them is seen.
static inline file_bytes read_file(const char *path) {
    file_bytes file = {0};
    FILE *stream = fopen(path, "rb");
    if (!stream) {
        return file;
    }
    fseek(stream, 0, SEEK_END);
    file.n = (size_t)ftell(stream);
    rewind(stream);
    file.data = malloc(file.n ? file.n : 1);
    if (fread(file.data, 1, file.n, stream) != file.n) {
        file.n = 0;
    }
    fclose(stream);
    return file;
}

#endif
