#include "core/config.h"

#include "core/config_parts.h"
#include "core/files.h"
#include "core/path.h"

#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONFIG_BYTES ((size_t)16 << 20)

lv_status lv_config_file(const char *dir, const char *name, json_t **out) {
    char *path;
    *out = NULL;
    LV_TRY(lv_path_join(dir, name, &path));
    lv_status status = lv_json_load(path, MAX_CONFIG_BYTES, out);
    free(path);
    return status == LV_ENOTFOUND ? LV_OK : status;
}

// --- the vision tower of the original family: a second checkpoint -------------------------------

lv_status lv_tower_find(const char *dir, const char *vision_dir, const char *name, char **out_dir) {
    *out_dir = NULL;
    if (vision_dir) {
        return lv_model_find(vision_dir, out_dir);
    }
    char *parent = strdup(dir), *last = strdup(name), *sibling = NULL;
    lv_status status = LV_OK;
    if (!parent || !last) {
        status = lv_fail(LV_ENOMEM, "out of memory");
        goto done;
    }
    LV_TRY_DONE(lv_path_join(dirname(parent), basename(last), &sibling));
    json_t *config = NULL;
    LV_TRY_DONE(lv_config_file(sibling, "config.json", &config));
    if (config) {
        json_decref(config);
        *out_dir = sibling;
        sibling = NULL;
    } else {
        status = lv_model_find(name, out_dir);
    }
done:
    free(parent);
    free(last);
    free(sibling);
    return status;
}

// The two towers that released models name. Where CLIP's tensors lie inside the checkpoint (1.6),
// its config.json does not: these numbers are what openai's own files say.
static bool known_tower(const char *name, lv_vision_config *out) {
    const char *slash = strrchr(name, '/');
    const char *last = slash ? slash + 1 : name;
    bool large_336 = strcmp(last, "clip-vit-large-patch14-336") == 0;
    if (!large_336 && strcmp(last, "clip-vit-large-patch14") != 0) {
        return false;
    }
    *out = (lv_vision_config){.image_size = large_336 ? 336 : 224,
                              .patch_size = 14,
                              .d_model = 1024,
                              .d_ff = 4096,
                              .n_layers = 24,
                              .n_heads = 16,
                              .layer_norm_eps = 1e-5f,
                              .activation = LV_ACT_QUICK_GELU};
    return true;
}

// A CLIP checkpoint's config.json: the whole model's, with vision_config inside, or the tower's.
static lv_status read_tower_config(const char *tower_dir, lv_vision_config *out) {
    json_t *root = NULL;
    char where[512];
    LV_TRY(lv_config_file(tower_dir, "config.json", &root));
    if (!root) {
        return lv_fail(LV_ENOTFOUND, "%s/config.json: no such file", tower_dir);
    }
    snprintf(where, sizeof where, "%.400s/config.json", tower_dir);
    lv_json json = lv_json_at(root, where);
    lv_json vision;
    lv_status status = lv_json_child(&json, "vision_config", &vision);
    if (status == LV_OK) {
        status = lv_config_vision(vision.object ? &vision : &json, out);
    }
    json_decref(root);
    return status;
}

static lv_status read_second_tower(const char *dir, const char *vision_dir, lv_config *out) {
    char *tower_dir = NULL;
    lv_status status = lv_tower_find(dir, vision_dir, out->vision_tower, &tower_dir);
    if (status == LV_OK) {
        status = read_tower_config(tower_dir, &out->vision);
        if (status == LV_OK) {
            status = lv_config_image(tower_dir, out);
        }
    } else if (status == LV_ENOTFOUND && !vision_dir &&
               known_tower(out->vision_tower, &out->vision)) {
        status = lv_config_image(dir, out);
    } else {
        status = lv_fail_in(status, "vision tower");
    }
    free(tower_dir);
    return status;
}

// --- the two families' config.json --------------------------------------------------------------

// hidden_states has n_layers + 1 entries, the embeddings first; `layer` counts from either end.
static lv_status set_feature_layer(const lv_json *json, const char *key, lv_vision_config *vision) {
    int layer = -2;
    if (json_is_array(lv_json_get(json, key))) {
        return lv_fail(LV_EUNSUPPORTED, "%s: %s: features of several layers are not supported",
                       json->where, key);
    }
    LV_TRY(lv_json_int(json, key, -LV_MAX_LAYERS, LV_MAX_LAYERS, &layer));
    int n_run = layer < 0 ? vision->n_layers + 1 + layer : layer;
    if (n_run < 0 || n_run > vision->n_layers) {
        return lv_json_wrong(json, key, "a layer that the vision tower has");
    }
    vision->n_run_layers = n_run;
    return LV_OK;
}

static lv_status set_select(const lv_json *json, const char *key, const char *drop,
                            const char *keep, lv_vision_config *vision) {
    char select[32];
    snprintf(select, sizeof select, "%s", drop);
    LV_TRY(lv_json_string(json, key, select, sizeof select));
    vision->drop_cls = strcmp(select, drop) == 0;
    if (!vision->drop_cls && strcmp(select, keep) != 0) {
        return lv_fail(LV_EUNSUPPORTED, "%s: %s \"%s\" is not supported; \"%s\" and \"%s\" are",
                       json->where, key, select, drop, keep);
    }
    return LV_OK;
}

static lv_status refuse_model_type(const lv_json *json, const char *type) {
    return lv_fail(LV_EUNSUPPORTED,
                   "%s: model_type \"%s\" is not supported; LLaVA-1.5 and 1.6 are, in the original "
                   "(liuhaotian) and the llava-hf layouts",
                   json->where, type);
}

// LlavaForConditionalGeneration and LlavaNextForConditionalGeneration.
static lv_status read_hf(const char *dir, const lv_json *json, const char *type, lv_config *out) {
    lv_json text, vision, quant;
    out->family = LV_FAMILY_HF;
    out->is_next = strcmp(type, "llava_next") == 0;
    if (!out->is_next && strcmp(type, "llava") != 0) {
        return refuse_model_type(json, type);
    }
    out->spatial_unpad = out->is_next;
    LV_TRY(lv_json_child(json, "text_config", &text));
    LV_TRY(lv_json_child(json, "vision_config", &vision));
    strcpy(out->text_model_type, "llama");
    LV_TRY(lv_json_string(&text, "model_type", out->text_model_type, sizeof out->text_model_type));
    LV_TRY(lv_config_text(&text, out->text_model_type, &out->text));
    LV_TRY(lv_config_token_ids(json, &out->text));
    LV_TRY(lv_config_token_ids(&text, &out->text)); // the inner keys win
    // transformers 4 read the decoder's own key, 5 reads the outer one.
    bool tie = false;
    LV_TRY(lv_json_bool(json, "tie_word_embeddings", &tie));
    out->text.tie_embeddings |= tie;

    LV_TRY(lv_config_vision(&vision, &out->vision));
    LV_TRY(set_feature_layer(json, "vision_feature_layer", &out->vision));
    LV_TRY(set_select(json, "vision_feature_select_strategy", "default", "full", &out->vision));

    out->image_token_id = 32000;
    LV_TRY(lv_json_int(json, "image_token_id", 0, LV_MAX_VOCAB, &out->image_token_id));
    LV_TRY(lv_json_int(json, "image_token_index", 0, LV_MAX_VOCAB, &out->image_token_id));
    out->projector_hidden = out->text.d_model;
    out->projector_activation = LV_ACT_GELU;
    out->projector_bias = true;
    LV_TRY(lv_config_activation(json, "projector_hidden_act", &out->projector_activation));
    LV_TRY(lv_json_bool(json, "multimodal_projector_bias", &out->projector_bias));

    LV_TRY(lv_json_child(json, "quantization_config", &quant));
    if (!quant.object) {
        LV_TRY(lv_json_child(&text, "quantization_config", &quant));
    }
    LV_TRY(lv_config_quant(&quant, &out->quant));
    LV_TRY(lv_config_image(dir, out));
    if (out->is_next && out->image.n_pinpoints == 0) {
        LV_TRY(lv_config_pinpoints(json, out, &out->image));
    }
    return LV_OK;
}

static lv_status check_original(const lv_json *json) {
    char projector[64] = "linear";
    bool start_end = false;
    LV_TRY(lv_json_string(json, "mm_projector_type", projector, sizeof projector));
    LV_TRY(lv_json_bool(json, "mm_use_im_start_end", &start_end));
    if (strcmp(projector, "mlp2x_gelu") != 0) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: mm_projector_type \"%s\" is not supported; mlp2x_gelu is", json->where,
                       projector);
    }
    if (start_end || lv_json_get(json, "mm_resampler_type")) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: mm_use_im_start_end and mm_resampler_type are not supported",
                       json->where);
    }
    return LV_OK;
}

// image_aspect_ratio: pad (1.5), anyres (1.6); without one the original code crops as CLIP does.
static lv_status read_original_layout(const lv_json *json, lv_config *out) {
    char ratio[64] = "square", merge[64] = "flat";
    LV_TRY(lv_json_string(json, "image_aspect_ratio", ratio, sizeof ratio));
    LV_TRY(lv_json_string(json, "mm_patch_merge_type", merge, sizeof merge));
    out->is_next = strcmp(ratio, "anyres") == 0;
    out->spatial_unpad = out->is_next && strcmp(merge, "spatial_unpad") == 0;
    if (out->is_next) {
        out->image.layout = LV_LAYOUT_ANYRES;
        LV_TRY(lv_config_pinpoints(json, out, &out->image));
    } else if (strcmp(ratio, "pad") == 0) {
        out->image.layout = LV_LAYOUT_PAD;
    } else if (strcmp(ratio, "square") == 0) {
        out->image.layout = LV_LAYOUT_CROP;
        out->image.shortest_edge = out->image.size;
    } else {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: image_aspect_ratio \"%s\" is not supported; pad, square and anyres are",
                       json->where, ratio);
    }
    if (out->is_next && !out->spatial_unpad && strcmp(merge, "flat") != 0) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: mm_patch_merge_type \"%s\" is not supported; spatial_unpad is",
                       json->where, merge);
    }
    return LV_OK;
}

// liuhaotian/*: a LLaMA or Mistral config with mm_* keys beside it.
static lv_status read_original(const char *dir, const char *vision_dir, const lv_json *json,
                               const char *type, lv_config *out) {
    lv_json quant;
    out->family = LV_FAMILY_ORIGINAL;
    bool mistral = strcmp(type, "llava_mistral") == 0;
    if (!mistral && strcmp(type, "llava") != 0 && strcmp(type, "llava_llama") != 0) {
        return refuse_model_type(json, type);
    }
    strcpy(out->text_model_type, mistral ? "mistral" : "llama");
    LV_TRY(check_original(json));
    LV_TRY(lv_config_text(json, out->text_model_type, &out->text));
    LV_TRY(lv_json_string(json, "mm_vision_tower", out->vision_tower, sizeof out->vision_tower));
    if (!*out->vision_tower) {
        return lv_json_wrong(json, "mm_vision_tower", "the name of a CLIP checkpoint");
    }
    out->image_token_id = -1;
    out->projector_hidden = out->text.d_model;
    out->projector_activation = LV_ACT_GELU;
    out->projector_bias = true;
    LV_TRY(lv_json_child(json, "quantization_config", &quant));
    LV_TRY(lv_config_quant(&quant, &out->quant));
    LV_TRY(read_second_tower(dir, vision_dir, out));
    LV_TRY(set_feature_layer(json, "mm_vision_select_layer", &out->vision));
    LV_TRY(set_select(json, "mm_vision_select_feature", "patch", "cls_patch", &out->vision));
    return read_original_layout(json, out);
}

static lv_status read_generation(const char *dir, lv_config *out) {
    json_t *root = NULL;
    char where[512];
    lv_generation_config *generation = &out->generation;
    lv_status status;
    LV_TRY_DONE(lv_config_file(dir, "generation_config.json", &root));
    snprintf(where, sizeof where, "%.400s/generation_config.json", dir);
    lv_json json = lv_json_at(root, where);
    LV_TRY_DONE(lv_config_token_ids(&json, &out->text));
    LV_TRY_DONE(lv_json_bool(&json, "do_sample", &generation->do_sample));
    LV_TRY_DONE(lv_json_float(&json, "temperature", 0, 100, &generation->temperature));
    LV_TRY_DONE(lv_json_float(&json, "top_p", 0, 1, &generation->top_p));
    LV_TRY_DONE(lv_json_int(&json, "top_k", 0, LV_MAX_VOCAB, &generation->top_k));
    LV_TRY_DONE(
        lv_json_float(&json, "repetition_penalty", 0, 100, &generation->repetition_penalty));
done:
    json_decref(root);
    return status;
}

static lv_status read_config(const char *dir, const char *vision_dir, const lv_json *json,
                             lv_config *out) {
    char type[64] = "";
    LV_TRY(lv_json_string(json, "model_type", type, sizeof type));
    bool nested = lv_json_get(json, "text_config") || lv_json_get(json, "vision_config");
    if (nested) {
        LV_TRY(read_hf(dir, json, type, out));
    } else if (lv_json_get(json, "mm_vision_tower") || lv_json_get(json, "mm_projector_type")) {
        LV_TRY(read_original(dir, vision_dir, json, type, out));
    } else {
        return refuse_model_type(json, type);
    }
    return read_generation(dir, out);
}

lv_status lv_config_load(const char *dir, const char *vision_dir, lv_config *out) {
    *out = (lv_config){0};
    json_t *root = NULL;
    char where[512];
    LV_TRY(lv_config_file(dir, "config.json", &root));
    if (!root) {
        return lv_fail(LV_ENOTFOUND, "%s: no config.json: not a model's folder", dir);
    }
    snprintf(where, sizeof where, "%.400s/config.json", dir);
    lv_json json = lv_json_at(root, where);
    lv_status status = read_config(dir, vision_dir, &json, out);
    json_decref(root);
    return status;
}
