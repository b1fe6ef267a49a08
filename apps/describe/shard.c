// Which part of all pictures this process describes.
#include "folders.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SHARDS = 100000 };

// A whole number of at most `max`; -1 for anything else.
static int whole(const char *text, size_t n_bytes, int max) {
    char digits[8] = "";
    if (n_bytes == 0 || n_bytes >= sizeof digits || strspn(text, "0123456789") < n_bytes) {
        return -1;
    }
    memcpy(digits, text, n_bytes);
    int value = atoi(digits);
    return value <= max ? value : -1;
}

bool shard_parse(const char *text, lv_shard *out) {
    size_t n = strcspn(text, "/");
    int part = whole(text, n, MAX_SHARDS);
    int count = text[n] ? whole(text + n + 1, strlen(text + n + 1), MAX_SHARDS) : -1;
    if (part < 1 || part > count) {
        return false;
    }
    *out = (lv_shard){.index = part - 1, .count = count};
    return true;
}

static bool read_ranks(const char *rank_name, const char *size_name, lv_shard *out) {
    const char *rank = getenv(rank_name), *size = getenv(size_name);
    int index = rank ? whole(rank, strlen(rank), MAX_SHARDS) : -1;
    int count = size ? whole(size, strlen(size), MAX_SHARDS) : -1;
    if (index < 0 || index >= count) {
        return false;
    }
    *out = (lv_shard){.index = index, .count = count};
    return true;
}

lv_shard shard_of_ranks(void) {
    lv_shard shard = {.index = 0, .count = 1};
    if (read_ranks("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", &shard) ||
        read_ranks("PMI_RANK", "PMI_SIZE", &shard) ||
        read_ranks("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", &shard)) {
        return shard;
    }
    // A batch script itself, before any srun, also has a rank and the job's size, and is alone: of
    // the two only srun counts the step's tasks.
    if (!getenv("SLURM_JOB_ID")) {
        read_ranks("SLURM_PROCID", "SLURM_NTASKS", &shard);
    }
    return shard;
}

char *shard_path(const char *path, lv_shard shard) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const char *dot = strrchr(base, '.');
    int n_stem = (int)(dot && dot > base ? dot - path : (ptrdiff_t)strlen(path));
    char *out = NULL;
    int n = shard.count > 1 ? asprintf(&out, "%.*s.%d-of-%d%s", n_stem, path, shard.index + 1,
                                       shard.count, path + n_stem)
                            : asprintf(&out, "%s", path);
    return n < 0 ? NULL : out;
}
