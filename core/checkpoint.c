#include "core/checkpoint.h"

#include "core/config_parts.h"
#include "core/files.h"
#include "core/path.h"
#include "core/shards.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct entry {
    char *name;                    // canonical
    const lv_named_tensor *source; // the shard's own
    const char *path;              // of the shard
} entry;

struct lv_checkpoint {
    char *dir;
    lv_config config;
    lv_shards model, tower; // tower: the second checkpoint, where there is one
    entry *entries;         // sorted by name
    size_t n_entries;
    size_t n_bytes;
};

// What each family puts in front of a canonical name; the first match wins. The last five are a
// CLIP checkpoint's.
static const struct {
    const char *prefix, *canonical;
} renames[] = {
    {"language_model.model.", "language_model."},
    {"language_model.lm_head.", "lm_head."},
    {"model.language_model.", "language_model."},
    {"model.embed_tokens.", "language_model.embed_tokens."},
    {"model.layers.", "language_model.layers."},
    {"model.norm.", "language_model.norm."},
    {"model.vision_tower.vision_tower.vision_model.", "vision_tower."},
    {"model.vision_tower.vision_tower.", "vision_tower."},
    {"model.vision_tower.vision_model.", "vision_tower."},
    {"model.vision_tower.", "vision_tower."},
    {"vision_tower.vision_model.", "vision_tower."},
    {"model.mm_projector.0.", "multi_modal_projector.linear_1."},
    {"model.mm_projector.2.", "multi_modal_projector.linear_2."},
    {"model.multi_modal_projector.", "multi_modal_projector."},
    {"model.image_newline", "image_newline"},
    {"vision_model.", "vision_tower."},
    {"embeddings.", "vision_tower.embeddings."},
    {"pre_layrnorm.", "vision_tower.pre_layrnorm."},
    {"encoder.", "vision_tower.encoder."},
    {"post_layernorm.", "vision_tower.post_layernorm."},
};

static lv_status canonical_name(const char *name, char **out) {
    for (size_t i = 0; i < sizeof renames / sizeof *renames; i++) {
        size_t n = strlen(renames[i].prefix);
        if (strncmp(name, renames[i].prefix, n) == 0) {
            return lv_text_format(out, "%s%s", renames[i].canonical, name + n);
        }
    }
    return lv_text_format(out, "%s", name);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static const entry *find(const lv_checkpoint *checkpoint, const char *name) {
    entry key = {.name = (char *)name};
    return checkpoint->n_entries
               ? bsearch(&key, checkpoint->entries, checkpoint->n_entries, sizeof key, by_name)
               : NULL;
}

// Adds the shards' tensors whose canonical names begin with `prefix`.
static lv_status add_entries(lv_checkpoint *checkpoint, const lv_shards *shards,
                             const char *prefix) {
    size_t n_added = 0, n;
    for (size_t i = 0; i < shards->n; i++) {
        lv_safetensors_list(shards->files[i], &n);
        n_added += n;
    }
    entry *entries =
        realloc(checkpoint->entries, (checkpoint->n_entries + n_added + 1) * sizeof *entries);
    if (!entries) {
        return lv_fail(LV_ENOMEM, "%s: out of memory for %zu tensors", checkpoint->dir, n_added);
    }
    checkpoint->entries = entries;
    for (size_t i = 0; i < shards->n; i++) {
        const lv_named_tensor *list = lv_safetensors_list(shards->files[i], &n);
        for (size_t j = 0; j < n; j++) {
            char *name;
            LV_TRY(canonical_name(list[j].name, &name));
            if (strncmp(name, prefix, strlen(prefix)) != 0) {
                free(name);
                continue;
            }
            entries[checkpoint->n_entries++] = (entry){name, &list[j], shards->paths[i]};
            checkpoint->n_bytes += lv_tensor_bytes(&list[j].tensor);
        }
    }
    qsort(entries, checkpoint->n_entries, sizeof *entries, by_name);
    for (size_t i = 1; i < checkpoint->n_entries; i++) {
        if (strcmp(entries[i - 1].name, entries[i].name) == 0) {
            return lv_fail(LV_EFORMAT, "%s and %s both hold the tensor %s", entries[i - 1].path,
                           entries[i].path, entries[i].name);
        }
    }
    return LV_OK;
}

static lv_status open_tower(lv_checkpoint *checkpoint, const char *vision_model) {
    lv_config *config = &checkpoint->config;
    if (lv_checkpoint_has(checkpoint, "vision_tower.embeddings.class_embedding")) {
        config->vision_tower[0] = 0;
        return LV_OK;
    }
    if (!*config->vision_tower) {
        return LV_OK; // the tower's loader names the tensor that is missing
    }
    char *dir;
    lv_status status = lv_tower_find(checkpoint->dir, vision_model, config->vision_tower, &dir);
    if (status != LV_OK) {
        return lv_fail_in(status, "%s has no vision tower inside and needs a second checkpoint",
                          checkpoint->dir);
    }
    status = lv_shards_open(dir, &checkpoint->tower);
    free(dir);
    LV_TRY(status);
    return add_entries(checkpoint, &checkpoint->tower, "vision_tower.");
}

lv_status lv_checkpoint_open(const char *model, const char *vision_model, lv_checkpoint **out) {
    *out = NULL;
    lv_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_status status;
    LV_TRY_DONE(lv_model_find(model, &checkpoint->dir));
    LV_TRY_DONE(lv_config_load(checkpoint->dir, vision_model, &checkpoint->config));
    LV_TRY_DONE(lv_shards_open(checkpoint->dir, &checkpoint->model));
    LV_TRY_DONE(add_entries(checkpoint, &checkpoint->model, ""));
    LV_TRY_DONE(open_tower(checkpoint, vision_model));
    // The two levels of a config may disagree on tying; a head of its own in the file decides.
    if (lv_checkpoint_has(checkpoint, "lm_head")) {
        checkpoint->config.text.tie_embeddings = false;
    }
    *out = checkpoint;
    checkpoint = NULL;
done:
    lv_checkpoint_free(checkpoint);
    return status;
}

void lv_checkpoint_free(lv_checkpoint *checkpoint) {
    if (!checkpoint) {
        return;
    }
    for (size_t i = 0; i < checkpoint->n_entries; i++) {
        free(checkpoint->entries[i].name);
    }
    free(checkpoint->entries);
    lv_shards_close(&checkpoint->model);
    lv_shards_close(&checkpoint->tower);
    free(checkpoint->dir);
    free(checkpoint);
}

const lv_config *lv_checkpoint_config(const lv_checkpoint *checkpoint) {
    return &checkpoint->config;
}

const char *lv_checkpoint_dir(const lv_checkpoint *checkpoint) {
    return checkpoint->dir;
}

size_t lv_checkpoint_bytes(const lv_checkpoint *checkpoint) {
    return checkpoint->n_bytes;
}

// "[4096, 1024]"
static const char *shape_text(int n_dims, const int64_t *dims, char *out, size_t n_bytes) {
    int n = snprintf(out, n_bytes, "[");
    for (int i = 0; i < n_dims; i++) {
        n += snprintf(out + n, n_bytes - (size_t)n, "%s%" PRId64, i ? ", " : "", dims[i]);
    }
    snprintf(out + n, n_bytes - (size_t)n, "]");
    return out;
}

// The tensor `name` with exactly these dims. `type` is what the message expects; dtype 0 stands
// for any of f32, f16 and bf16.
static lv_status take(const lv_checkpoint *checkpoint, const char *name, lv_dtype dtype,
                      const char *type, int n_dims, const int64_t *dims, lv_tensor *out) {
    *out = (lv_tensor){0};
    const entry *found = find(checkpoint, name);
    if (!found && checkpoint->config.text.tie_embeddings && strcmp(name, "lm_head.weight") == 0) {
        found = find(checkpoint, "language_model.embed_tokens.weight");
    }
    if (!found) {
        bool hf = checkpoint->config.family == LV_FAMILY_HF;
        return lv_fail(LV_ENOTFOUND, "%s: the tensor %s is missing (%s layout, %zu tensors)",
                       checkpoint->dir, name, hf ? "llava-hf" : "original", checkpoint->n_entries);
    }
    const lv_tensor *tensor = &found->source->tensor;
    lv_dtype actual = tensor->dtype;
    bool right_type =
        dtype ? actual == dtype : actual == LV_F32 || actual == LV_F16 || actual == LV_BF16;
    bool right_shape = tensor->n_dims == n_dims;
    for (int i = 0; right_shape && i < n_dims; i++) {
        right_shape = tensor->dims[i] == dims[i];
    }
    if (!right_type || !right_shape) {
        char want[LV_MAX_DIMS * 24], have[LV_MAX_DIMS * 24];
        return lv_fail(LV_EFORMAT, "%s: tensor %s: expected %s %s, found %s %s", found->path,
                       found->source->name, type, shape_text(n_dims, dims, want, sizeof want),
                       found->source->type,
                       shape_text(tensor->n_dims, tensor->dims, have, sizeof have));
    }
    *out = *tensor;
    return LV_OK;
}

lv_status lv_checkpoint_tensor(const lv_checkpoint *checkpoint, const char *name, int n_dims,
                               const int64_t *dims, lv_tensor *out) {
    return take(checkpoint, name, LV_NONE, "F32, F16 or BF16", n_dims, dims, out);
}

#define MAX_NAME_BYTES 512

static lv_status part_name(const char *name, const char *part, char *out) {
    int n = snprintf(out, MAX_NAME_BYTES, "%s.%s", name, part);
    return n < MAX_NAME_BYTES ? LV_OK : lv_fail(LV_EINVAL, "%.40s...: too long a name", name);
}

static bool has_part(const lv_checkpoint *checkpoint, const char *name, const char *part) {
    char full[MAX_NAME_BYTES];
    return part_name(name, part, full) == LV_OK && find(checkpoint, full);
}

bool lv_checkpoint_has(const lv_checkpoint *checkpoint, const char *name) {
    return find(checkpoint, name) || has_part(checkpoint, name, "weight") ||
           has_part(checkpoint, name, "qweight");
}

static lv_status take_awq(const lv_checkpoint *checkpoint, const char *name,
                          lv_linear_source *out) {
    const lv_quant_config *quant = &checkpoint->config.quant;
    char full[MAX_NAME_BYTES];
    if (has_part(checkpoint, name, "g_idx")) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: %s is quantised by GPTQ, which is not supported; use an AutoAWQ (GEMM, "
                       "4 bits) or an unquantised version of the model",
                       checkpoint->dir, name);
    }
    if (!quant->bits) {
        return lv_fail(LV_EFORMAT,
                       "%s: %s.qweight exists, but config.json has no quantization_config",
                       checkpoint->dir, name);
    }
    if (out->n_in % quant->group_size != 0 || out->n_out % 8 != 0) {
        return lv_fail(LV_EFORMAT,
                       "%s: %s: %d x %d does not divide into groups of %d and words of "
                       "8",
                       checkpoint->dir, name, out->n_in, out->n_out, quant->group_size);
    }
    int64_t n_groups = out->n_in / quant->group_size, n_words = out->n_out / 8;
    out->quant = LV_QUANT_AWQ;
    out->group_size = quant->group_size;
    LV_TRY(part_name(name, "qweight", full));
    LV_TRY(
        take(checkpoint, full, LV_I32, "I32", 2, (int64_t[]){out->n_in, n_words}, &out->qweight));
    LV_TRY(part_name(name, "qzeros", full));
    LV_TRY(take(checkpoint, full, LV_I32, "I32", 2, (int64_t[]){n_groups, n_words}, &out->qzeros));
    LV_TRY(part_name(name, "scales", full));
    return take(checkpoint, full, LV_F16, "F16", 2, (int64_t[]){n_groups, out->n_out},
                &out->scales);
}

lv_status lv_checkpoint_linear(const lv_checkpoint *checkpoint, const char *name, int n_out,
                               int n_in, lv_linear_source *out) {
    char full[MAX_NAME_BYTES];
    *out = (lv_linear_source){.n_out = n_out, .n_in = n_in};
    if (has_part(checkpoint, name, "qweight")) {
        LV_TRY(take_awq(checkpoint, name, out));
    } else {
        LV_TRY(part_name(name, "weight", full));
        LV_TRY(lv_checkpoint_tensor(checkpoint, full, 2, (int64_t[]){n_out, n_in}, &out->weight));
    }
    if (has_part(checkpoint, name, "bias")) {
        LV_TRY(part_name(name, "bias", full));
        LV_TRY(lv_checkpoint_tensor(checkpoint, full, 1, (int64_t[]){n_out}, &out->bias));
    }
    return LV_OK;
}
