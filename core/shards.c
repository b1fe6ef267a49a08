#include "core/shards.h"

#include "core/json.h"
#include "core/path.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_INDEX_BYTES ((size_t)64 << 20)
#define MAX_SHARDS 1024

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

static lv_status has_file(const char *dir, const char *name, bool *out) {
    char *path;
    LV_TRY(lv_path_join(dir, name, &path));
    *out = access(path, F_OK) == 0;
    free(path);
    return LV_OK;
}

// Opens dir/name as the next shard.
static lv_status add_shard(const char *dir, const char *name, lv_shards *out) {
    if (out->n == MAX_SHARDS) {
        return lv_fail(LV_ELIMIT, "%s: more than %d shards", dir, MAX_SHARDS);
    }
    if (!out->paths) {
        out->paths = calloc(MAX_SHARDS, sizeof *out->paths);
        out->files = calloc(MAX_SHARDS, sizeof *out->files);
        if (!out->paths || !out->files) {
            return lv_fail(LV_ENOMEM, "out of memory");
        }
    }
    char *path;
    LV_TRY(lv_path_join(dir, name, &path));
    lv_status status = lv_safetensors_open(path, &out->files[out->n]);
    if (status != LV_OK) {
        free(path);
        return status;
    }
    out->paths[out->n++] = path;
    return LV_OK;
}

static const lv_safetensors *shard_named(const lv_shards *shards, const char *dir,
                                         const char *name) {
    for (size_t i = 0; i < shards->n; i++) {
        if (strcmp(shards->paths[i] + strlen(dir) + 1, name) == 0) {
            return shards->files[i];
        }
    }
    return NULL;
}

// A shard's name comes from outside: only a plain name inside the folder is opened.
static bool is_plain_name(const char *name) {
    return *name && *name != '.' && !strchr(name, '/');
}

static lv_status open_index(const char *dir, const lv_json *index, lv_shards *out) {
    lv_json map;
    LV_TRY(lv_json_child(index, "weight_map", &map));
    if (!map.object || !json_object_size(map.object)) {
        return lv_json_wrong(index, "weight_map", "the tensors' files");
    }
    const char *tensor;
    json_t *value;
    const char *last_name = ""; // neighbours mostly share a shard
    const lv_safetensors *shard = NULL;
    json_object_foreach((json_t *)map.object, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || !is_plain_name(name)) {
            return lv_json_wrong(&map, tensor, "the name of a file in the same folder");
        }
        if (strcmp(name, last_name) != 0) {
            shard = shard_named(out, dir, name);
            last_name = name;
        }
        if (!shard) {
            LV_TRY(add_shard(dir, name, out));
            shard = out->files[out->n - 1];
        }
        if (!lv_safetensors_find(shard, tensor)) {
            return lv_fail(LV_EFORMAT, "%s: lists %s in %s, which does not hold it", index->where,
                           tensor, name);
        }
    }
    return LV_OK;
}

static lv_status fail_pickled(const char *dir) {
    return lv_fail(
        LV_EUNSUPPORTED,
        "%s: holds pickled weights (.bin), which can run code when opened and are refused; convert "
        "them once with: pip install torch safetensors && cd '%s' && python3 -c \"import glob, "
        "torch; from safetensors.torch import save_file; [save_file({k: v.contiguous().clone() for "
        "k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, f[:-3] + "
        "'safetensors') for f in glob.glob('pytorch_model*.bin')]\"",
        dir, dir);
}

// Without model.safetensors and index: every shard of the folder, in any order.
static lv_status open_all(const char *dir, lv_shards *out) {
    DIR *handle = opendir(dir);
    if (!handle) {
        return lv_fail(LV_EIO, "%s: cannot read the folder: %s", dir, strerror(errno));
    }
    bool pickled = false, gguf = false;
    lv_status status = LV_OK;
    for (struct dirent *item; (item = readdir(handle));) {
        pickled |= ends_with(item->d_name, ".bin") || ends_with(item->d_name, ".pth") ||
                   ends_with(item->d_name, ".pt") || ends_with(item->d_name, ".bin.index.json");
        gguf |= ends_with(item->d_name, ".gguf");
        if (ends_with(item->d_name, ".safetensors") && is_plain_name(item->d_name)) {
            LV_TRY_DONE(add_shard(dir, item->d_name, out));
        }
    }
    if (out->n) {
        goto done;
    }
    if (pickled) {
        status = fail_pickled(dir);
    } else if (gguf) {
        status = lv_fail(LV_EUNSUPPORTED,
                         "%s: holds GGUF weights, which are not read; use the safetensors version "
                         "of the model",
                         dir);
    } else {
        status = lv_fail(LV_ENOTFOUND,
                         "%s: no weights: neither model.safetensors nor "
                         "model.safetensors.index.json",
                         dir);
    }
done:
    closedir(handle);
    return status;
}

lv_status lv_shards_open(const char *dir, lv_shards *out) {
    bool single;
    LV_TRY(has_file(dir, "model.safetensors", &single));
    if (single) {
        return add_shard(dir, "model.safetensors", out);
    }
    char *path;
    json_t *root = NULL;
    LV_TRY(lv_path_join(dir, "model.safetensors.index.json", &path));
    lv_status status = lv_json_load(path, MAX_INDEX_BYTES, &root);
    if (status == LV_OK) {
        lv_json index = lv_json_at(root, path);
        status = open_index(dir, &index, out);
        json_decref(root);
    } else if (status == LV_ENOTFOUND) {
        status = open_all(dir, out);
    }
    free(path);
    return status;
}

void lv_shards_close(lv_shards *shards) {
    for (size_t i = 0; i < shards->n; i++) {
        lv_safetensors_free(shards->files[i]);
        free(shards->paths[i]);
    }
    free(shards->files);
    free(shards->paths);
    *shards = (lv_shards){0};
}
