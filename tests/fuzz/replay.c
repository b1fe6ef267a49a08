// Drives a fuzz target without a fuzzer: replay [-n MUTATIONS] FILE|FOLDER...
//
// Runs every file as it is, then MUTATIONS random changes of them (the same ones each time). A
// crash, a failed assertion or a sanitizer's report is the failure.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_FILES = 4096, MAX_BYTES = 1 << 20 };

typedef struct sample {
    uint8_t *data;
    size_t n;
} sample;

static sample samples[MAX_FILES];
static size_t n_samples;

static uint64_t next_random(uint64_t *state) { // xorshift64
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// The input in memory of exactly its size, so that reading past it is seen.
static void run(const uint8_t *data, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    if (copy) {
        memcpy(copy, data, n);
        LLVMFuzzerTestOneInput(copy, n);
    }
    free(copy);
}

static void add_file(const char *path) {
    FILE *file = fopen(path, "rb");
    uint8_t *data = malloc(MAX_BYTES);
    if (file && data && n_samples < MAX_FILES) {
        samples[n_samples++] = (sample){data, fread(data, 1, MAX_BYTES, file)};
        data = NULL;
    }
    free(data);
    if (file) {
        fclose(file);
    }
}

static void add_path(const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        exit(2);
    }
    if (!S_ISDIR(info.st_mode)) {
        add_file(path);
        return;
    }
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char inner[4096];
        snprintf(inner, sizeof(inner), "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.') {
            add_path(inner);
        }
    }
    if (folder) {
        closedir(folder);
    }
}

// A few changed bytes, a cut, a repeated piece, or a piece of another sample.
static size_t mutate(uint8_t *data, size_t n, uint64_t *state) {
    for (uint64_t i = 0, n_changes = 1 + next_random(state) % 6; i < n_changes && n > 0; i++) {
        size_t at = next_random(state) % n, length = 1 + next_random(state) % 16;
        length = at + length > n ? n - at : length;
        const sample *other = &samples[next_random(state) % n_samples];
        switch (next_random(state) % 5) {
        case 0:
            data[at] = (uint8_t)next_random(state);
            break;
        case 1:
            data[at] ^= (uint8_t)(1u << next_random(state) % 8);
            break;
        case 2:
            memset(data + at, next_random(state) % 2 ? 255 : 0, length);
            break;
        case 3:
            n = next_random(state) % 4 ? n : at;
            break;
        default:
            length = length < other->n ? length : other->n;
            memcpy(data + at, other->data + next_random(state) % (other->n - length + 1), length);
        }
    }
    return n;
}

int main(int argc, char **argv) {
    size_t n_mutations = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-n") && i + 1 < argc) {
            n_mutations = strtoul(argv[++i], NULL, 10);
        } else {
            add_path(argv[i]);
        }
    }
    for (size_t i = 0; i < n_samples; i++) {
        run(samples[i].data, samples[i].n);
    }
    uint64_t state = 88172645463325252u;
    uint8_t *data = malloc(MAX_BYTES);
    for (size_t i = 0; data && i < n_mutations && n_samples > 0; i++) {
        const sample *from = &samples[next_random(&state) % n_samples];
        memcpy(data, from->data, from->n);
        run(data, mutate(data, from->n, &state));
    }
    free(data);
    printf("%zu samples, %zu mutations\n", n_samples, n_mutations);
    for (size_t i = 0; i < n_samples; i++) {
        free(samples[i].data);
    }
    return n_samples > 0 ? 0 : 1;
}
