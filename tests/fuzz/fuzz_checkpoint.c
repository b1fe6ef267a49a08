// Any bytes as a safetensors file, as each JSON file of a model's folder, and as a shard index.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/checkpoint.h"
#include "core/safetensors.h"

#define MUST(condition) ((condition) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char good_config[] =
    "{\"model_type\":\"llava\",\"text_config\":{},\"vision_config\":{\"image_size\":336,"
    "\"patch_size\":14}}";

static char folder[64];

static void path_of(const char *name, char *out, size_t n_bytes) {
    snprintf(out, n_bytes, "%s/%s", folder, name);
}

static void write_file(const char *name, const void *data, size_t size) {
    char path[128];
    path_of(name, path, sizeof path);
    FILE *file = fopen(path, "wb");
    MUST(file && fwrite(data, 1, size, file) == size);
    fclose(file);
}

static void remove_file(const char *name) {
    char path[128];
    path_of(name, path, sizeof path);
    unlink(path);
}

static void remove_folder(void) {
    remove_file("config.json");
    rmdir(folder);
}

// Reads every byte that a tensor claims to have.
static void use_safetensors(const uint8_t *data, size_t size) {
    static volatile uint8_t sum;
    lv_safetensors *file = NULL;
    size_t n;
    if (lv_safetensors_parse(data, size, "fuzz", &file) != LV_OK) {
        MUST(!file && *lv_error());
        return;
    }
    const lv_named_tensor *list = lv_safetensors_list(file, &n);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *bytes = list[i].tensor.data;
        size_t n_bytes = lv_tensor_bytes(&list[i].tensor);
        MUST(bytes >= data && n_bytes <= size && bytes <= data + size - n_bytes);
        for (size_t j = 0; j < n_bytes; j++) {
            sum = (uint8_t)(sum + bytes[j]);
        }
        MUST(lv_safetensors_find(file, list[i].name) == &list[i]);
    }
    lv_safetensors_free(file);
}

// What the other folders rely on without checking again.
static void use_config(void) {
    lv_config c;
    if (lv_config_load(folder, NULL, &c) != LV_OK) {
        MUST(*lv_error());
        return;
    }
    MUST(c.text.d_model > 0 && c.text.n_layers > 0 && c.text.head_dim % 2 == 0);
    MUST(c.text.n_kv_heads > 0 && c.text.n_heads % c.text.n_kv_heads == 0);
    MUST(c.text.max_position > 0 && c.text.rms_norm_eps > 0 && c.text.rope.theta >= 1);
    MUST(c.text.n_eos >= 0 && c.text.n_eos <= LV_MAX_EOS && c.projector_hidden > 0);
    MUST(c.vision.image_size % c.vision.patch_size == 0);
    MUST(c.vision.d_model % c.vision.n_heads == 0);
    MUST(c.vision.n_run_layers >= 0 && c.vision.n_run_layers <= c.vision.n_layers);
    MUST(c.image.size == c.vision.image_size && c.image.std[0] > 0 && c.image.rescale > 0);
    MUST(c.image.layout != LV_LAYOUT_ANYRES || c.image.n_pinpoints > 0);
    for (int i = 0; i < c.image.n_pinpoints; i++) {
        MUST(c.image.pinpoints[i][0] >= c.image.size && c.image.pinpoints[i][1] >= c.image.size);
    }
}

static void use_checkpoint(void) {
    lv_checkpoint *checkpoint;
    lv_linear_source linear;
    lv_tensor tensor;
    if (lv_checkpoint_open(folder, NULL, &checkpoint) != LV_OK) {
        MUST(!checkpoint && *lv_error());
        return;
    }
    (void)!lv_checkpoint_tensor(checkpoint, "image_newline", 1, (int64_t[]){4}, &tensor);
    (void)!lv_checkpoint_linear(checkpoint, "lm_head", 8, 4, &linear);
    (void)!lv_checkpoint_linear(checkpoint, "language_model.layers.0.q_proj", 8, 8, &linear);
    lv_checkpoint_free(checkpoint);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!*folder) {
        // In memory where that exists: tens of thousands of small files wait long for a disk.
        snprintf(folder, sizeof folder, "%s/lv_fuzz_XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        MUST(mkdtemp(folder));
        atexit(remove_folder);
        setenv("HF_HUB_CACHE", folder, 1); // no second checkpoint is anywhere
    }
    use_safetensors(data, size);
    write_file("config.json", data, size);
    use_config();
    write_file("config.json", good_config, sizeof good_config - 1);
    static const char *const others[] = {"preprocessor_config.json", "processor_config.json",
                                         "generation_config.json"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        write_file(others[i], data, size);
        use_config();
        remove_file(others[i]);
    }
    static const char *const weights[] = {"model.safetensors", "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        write_file(weights[i], data, size);
        use_checkpoint();
        remove_file(weights[i]);
    }
    return 0;
}
