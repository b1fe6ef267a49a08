// The config files and tensor names of released models.
#include <jansson.h>

#include "core/checkpoint.h"
#include "core_util.h"

#define CONFIGS LV_SHARED_DIR "/data/configs/"

static lv_config load(const char *name) {
    char dir[512];
    snprintf(dir, sizeof dir, "%s%s", CONFIGS, name);
    lv_config config;
    CHECK_OK(lv_config_load(dir, NULL, &config));
    return config;
}

static void check_common(const lv_config *c) {
    CHECK(c->vision.image_size == 336 && c->vision.patch_size == 14 && c->vision.n_heads == 16);
    CHECK(c->vision.d_model == 1024 && c->vision.n_run_layers == 23 && c->vision.drop_cls);
    CHECK(c->text.d_model == 4096 && c->text.n_layers == 32 && c->text.n_heads == 32);
    CHECK(c->text.head_dim == 128 && c->text.rms_norm_eps == 1e-5f && !c->text.tie_embeddings);
    CHECK(c->text.sliding_window == 0 && c->text.rope.type == LV_ROPE_PLAIN);
    CHECK(c->text.bos_id == 1 && c->text.n_eos == 1 && c->text.eos_ids[0] == 2);
    CHECK(c->image.size == 336 && c->image.mean[0] == 0.48145466f && c->image.family == c->family);
    CHECK(c->projector_bias && c->projector_activation == LV_ACT_GELU && c->quant.bits == 0);
}

// --- names --------------------------------------------------------------------------------------

// A checkpoint of empty tensors with every name of a released model's index, and its config.json.
static void make_named(const char *name, const char *index) {
    char path[512];
    snprintf(path, sizeof path, "%s%s/%s", CONFIGS, name, index);
    json_t *root = json_load_file(path, 0, NULL);
    const char *tensor;
    json_t *file;
    static builder b;
    json_object_foreach(json_object_get(root, "weight_map"), tensor, file) {
        builder_add(&b, tensor, "F16", 2, "[0]", 0);
    }
    CHECK(b.n_header > 1000, "%s", path);
    json_decref(root);
    builder_write(&b, "model.safetensors");
    snprintf(path, sizeof path, "%s%s/config.json", CONFIGS, name);
    lv_buffer config;
    CHECK_OK(lv_file_read(path, 1 << 20, &config));
    write_bytes("config.json", config.data, config.n_bytes);
    lv_buffer_free(&config);
}

static void has_layers(const lv_checkpoint *checkpoint, const char *prefix, int n_layers,
                       const char *const *parts) {
    char name[256];
    for (int i = 0; i < n_layers; i++) {
        for (const char *const *part = parts; *part; part++) {
            snprintf(name, sizeof name, "%s.%d.%s", prefix, i, *part);
            CHECK(lv_checkpoint_has(checkpoint, name), "%s", name);
        }
    }
}

static void has_all(const lv_checkpoint *checkpoint, const char *const *names) {
    for (; *names; names++) {
        CHECK(lv_checkpoint_has(checkpoint, *names), "%s", *names);
    }
}

static void check_decoder(const lv_checkpoint *checkpoint) {
    has_layers(checkpoint, "language_model.layers", 32,
               (const char *const[]){"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                     "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
                                     "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
                                     NULL});
    has_all(checkpoint, (const char *const[]){"language_model.embed_tokens", "language_model.norm",
                                              "lm_head", "multi_modal_projector.linear_1.weight",
                                              "multi_modal_projector.linear_1.bias",
                                              "multi_modal_projector.linear_2.weight",
                                              "multi_modal_projector.linear_2.bias", NULL});
}

static void check_tower(const lv_checkpoint *checkpoint) {
    has_layers(checkpoint, "vision_tower.encoder.layers", 24,
               (const char *const[]){"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                     "self_attn.out_proj.bias", "layer_norm1.bias", "layer_norm2",
                                     "mlp.fc1", "mlp.fc2.bias", NULL});
    has_all(checkpoint, (const char *const[]){"vision_tower.embeddings.class_embedding",
                                              "vision_tower.embeddings.patch_embedding",
                                              "vision_tower.embeddings.position_embedding",
                                              "vision_tower.pre_layrnorm",
                                              "vision_tower.post_layernorm.bias", NULL});
}

static void test_names(void) {
    lv_checkpoint *checkpoint = NULL;
    make_named("llava-1.5-7b-hf", "model.safetensors.index.json");
    CHECK_OK(lv_checkpoint_open(scratch_dir, NULL, &checkpoint));
    if (checkpoint) {
        check_decoder(checkpoint);
        check_tower(checkpoint);
    }
    lv_checkpoint_free(checkpoint);

    make_named("llava-v1.5-7b", "pytorch_model.bin.index.json");
    make_folder("tower");
    write_text("tower/config.json",
               "{\"model_type\":\"clip_vision_model\",\"image_size\":336,\"patch_size\":14}");
    builder b = {0};
    builder_add_f16(&b, "vision_model.pre_layrnorm.weight", "[8]");
    builder_write(&b, "tower/model.safetensors");
    CHECK_OK(lv_checkpoint_open(scratch_dir, scratch("tower"), &checkpoint));
    if (checkpoint) {
        check_decoder(checkpoint);
        CHECK(lv_checkpoint_has(checkpoint, "vision_tower.pre_layrnorm"));
    }
    lv_checkpoint_free(checkpoint);
}

int main(void) {
    if (access(CONFIGS, R_OK) != 0) {
        return check_skip("no " CONFIGS);
    }
    scratch_open();
    setenv("HF_HUB_CACHE", scratch_dir, 1); // nobody's real cache

    lv_config c = load("llava-1.5-7b-hf");
    check_common(&c);
    CHECK(c.family == LV_FAMILY_HF && !c.is_next && c.image.layout == LV_LAYOUT_CROP);
    CHECK(c.text.vocab_size == 32064 && c.text.n_kv_heads == 32 && c.text.d_ff == 11008);
    CHECK(c.text.max_position == 4096 && c.image_token_id == 32000);

    c = load("llava-v1.5-7b");
    check_common(&c);
    CHECK(c.family == LV_FAMILY_ORIGINAL && !c.is_next && c.image.layout == LV_LAYOUT_PAD);
    CHECK(c.text.vocab_size == 32000 && c.text.max_position == 4096 && c.image_token_id == -1);

    c = load("llava-v1.6-vicuna-7b");
    check_common(&c);
    CHECK(c.family == LV_FAMILY_ORIGINAL && c.is_next && c.spatial_unpad);
    CHECK(c.image.layout == LV_LAYOUT_ANYRES && c.image.n_pinpoints == 5);
    CHECK(c.image.pinpoints[0][0] == 336 && c.image.pinpoints[0][1] == 672);

    c = load("llava-v1.6-mistral-7b-hf");
    check_common(&c);
    CHECK(c.family == LV_FAMILY_HF && c.is_next && c.spatial_unpad);
    CHECK(strcmp(c.text_model_type, "mistral") == 0 && c.text.n_kv_heads == 8);
    CHECK(c.text.d_ff == 14336 && c.text.rope.theta == 1e6f && c.text.max_position == 32768);
    CHECK(c.image.pinpoints[0][0] == 672 && c.image.pinpoints[0][1] == 336);
    test_names();
    return check_done();
}
