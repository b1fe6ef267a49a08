// The config files of released models.
#include "core/config.h"
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
    return check_done();
}
