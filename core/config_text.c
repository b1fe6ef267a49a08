// The decoder's and the vision tower's numbers, with the defaults that transformers' LlamaConfig,
// MistralConfig and CLIPVisionConfig take for keys that a file leaves out.
#include "core/config_parts.h"

#include <string.h>
#include <strings.h>

lv_status lv_config_activation(const lv_json *json, const char *key, lv_activation *out) {
    static const struct {
        const char *name;
        lv_activation activation;
    } names[] = {{"quick_gelu", LV_ACT_QUICK_GELU},
                 {"gelu", LV_ACT_GELU},
                 {"gelu_new", LV_ACT_GELU_TANH},
                 {"gelu_pytorch_tanh", LV_ACT_GELU_TANH},
                 {"silu", LV_ACT_SILU},
                 {"swish", LV_ACT_SILU}};
    char name[64] = "";
    LV_TRY(lv_json_string(json, key, name, sizeof name));
    if (!*name) {
        return LV_OK;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i].name) == 0) {
            *out = names[i].activation;
            return LV_OK;
        }
    }
    return lv_fail(LV_EUNSUPPORTED, "%s: %s: the activation \"%s\" is not supported", json->where,
                   key, name);
}

lv_status lv_config_token_ids(const lv_json *json, lv_text_config *out) {
    LV_TRY(lv_json_int(json, "bos_token_id", -1, LV_MAX_VOCAB, &out->bos_id));
    const json_t *eos = lv_json_get(json, "eos_token_id");
    if (!eos) {
        return LV_OK;
    }
    if (!json_is_array(eos)) {
        LV_TRY(lv_json_int(json, "eos_token_id", 0, LV_MAX_VOCAB, &out->eos_ids[0]));
        out->n_eos = 1;
        return LV_OK;
    }
    size_t n = json_array_size(eos);
    if (n > LV_MAX_EOS) {
        return lv_json_wrong(json, "eos_token_id", "at most 8 ids");
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(eos, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > LV_MAX_VOCAB) {
            return lv_json_wrong(json, "eos_token_id", "an id or a list of ids");
        }
        out->eos_ids[i] = (int)value;
    }
    out->n_eos = (int)n;
    return LV_OK;
}

static lv_status read_rope_type(const lv_json *json, lv_rope_type *out) {
    static const struct {
        const char *name;
        lv_rope_type type;
    } names[] = {{"", LV_ROPE_PLAIN},        {"default", LV_ROPE_PLAIN},
                 {"linear", LV_ROPE_LINEAR}, {"dynamic", LV_ROPE_DYNAMIC},
                 {"yarn", LV_ROPE_YARN},     {"llama3", LV_ROPE_LLAMA3}};
    char name[64] = "";
    LV_TRY(lv_json_string(json, "type", name, sizeof name));
    LV_TRY(lv_json_string(json, "rope_type", name, sizeof name));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i].name) == 0) {
            *out = names[i].type;
            return LV_OK;
        }
    }
    return lv_fail(LV_EUNSUPPORTED, "%s: the RoPE scaling \"%s\" is not supported", json->where,
                   name);
}

// Keys that would change the numbers and that nothing here obeys.
static lv_status refuse_rope_extras(const lv_json *json) {
    static const char *const keys[] = {"mscale", "mscale_all_dim", "full_attention",
                                       "sliding_attention", "partial_rotary_factor"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *value = lv_json_get(json, keys[i]);
        bool whole = strcmp(keys[i], "partial_rotary_factor") == 0 && json_number_value(value) == 1;
        if (value && !whole) {
            return lv_fail(LV_EUNSUPPORTED, "%s: %s is not supported", json->where, keys[i]);
        }
    }
    return LV_OK;
}

// `rope_theta` and `rope_scaling` up to transformers 4; both in `rope_parameters` from 5 on.
static lv_status read_rope(const lv_json *text, int max_position, lv_rope_config *out) {
    lv_json json;
    LV_TRY(lv_json_child(text, "rope_parameters", &json));
    if (!json.object) {
        LV_TRY(lv_json_child(text, "rope_scaling", &json));
    }
    *out = (lv_rope_config){.theta = 10000,
                            .factor = 1,
                            .original_max_position = max_position,
                            .beta_fast = 32,
                            .beta_slow = 1,
                            .low_freq_factor = 1,
                            .high_freq_factor = 4};
    LV_TRY(lv_json_float(text, "rope_theta", 1, 1e12, &out->theta));
    LV_TRY(lv_json_float(&json, "rope_theta", 1, 1e12, &out->theta));
    LV_TRY(refuse_rope_extras(text));
    LV_TRY(refuse_rope_extras(&json));
    LV_TRY(read_rope_type(&json, &out->type));
    if (out->type == LV_ROPE_PLAIN) {
        return LV_OK;
    }
    LV_TRY(lv_json_int(&json, "original_max_position_embeddings", 1, LV_MAX_POSITION,
                       &out->original_max_position));
    float factor = 0;
    LV_TRY(lv_json_float(&json, "factor", 1, 65536, &factor));
    if (factor == 0 && out->type != LV_ROPE_YARN) {
        return lv_json_wrong(&json, "factor", "a number from 1 to 65536");
    }
    // YaRN: transformers takes the ratio of the two lengths where no factor is given.
    out->factor = factor != 0 ? factor : (float)max_position / (float)out->original_max_position;
    LV_TRY(lv_json_float(&json, "beta_fast", 0.001, 1e6, &out->beta_fast));
    LV_TRY(lv_json_float(&json, "beta_slow", 0.001, 1e6, &out->beta_slow));
    LV_TRY(lv_json_float(&json, "attention_factor", 0, 1e3, &out->attention_factor));
    LV_TRY(lv_json_float(&json, "low_freq_factor", 0.001, 1e6, &out->low_freq_factor));
    return lv_json_float(&json, "high_freq_factor", 0.001, 1e6, &out->high_freq_factor);
}

static lv_status check_heads(const lv_json *json, int n_heads, int d_model) {
    if (d_model % n_heads != 0) {
        return lv_fail(LV_EFORMAT, "%s: hidden_size %d is not a multiple of num_attention_heads %d",
                       json->where, d_model, n_heads);
    }
    return LV_OK;
}

static lv_status read_attention(const lv_json *json, lv_text_config *out) {
    const int max_head = 1024;
    LV_TRY(lv_json_int(json, "num_attention_heads", 1, LV_MAX_DIM, &out->n_heads));
    if (!out->n_kv_heads) {
        out->n_kv_heads = out->n_heads;
    }
    LV_TRY(lv_json_int(json, "num_key_value_heads", 1, out->n_heads, &out->n_kv_heads));
    LV_TRY(lv_json_int(json, "head_dim", 2, max_head, &out->head_dim));
    if (!out->head_dim) {
        LV_TRY(check_heads(json, out->n_heads, out->d_model));
        out->head_dim = out->d_model / out->n_heads;
    }
    if (out->n_heads % out->n_kv_heads != 0) {
        return lv_fail(LV_EFORMAT,
                       "%s: num_attention_heads %d is not a multiple of num_key_value_heads %d",
                       json->where, out->n_heads, out->n_kv_heads);
    }
    if (out->head_dim % 2 != 0 || out->head_dim > max_head ||
        out->n_heads > 4 * LV_MAX_DIM / out->head_dim) {
        return lv_fail(LV_EFORMAT, "%s: %d heads of %d: expected an even head_dim up to %d",
                       json->where, out->n_heads, out->head_dim, max_head);
    }
    return LV_OK;
}

lv_status lv_config_text(const lv_json *json, const char *type, lv_text_config *out) {
    bool mistral = strcmp(type, "mistral") == 0;
    if (!mistral && strcmp(type, "llama") != 0) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: the decoder \"%s\" is not supported; llama and mistral are",
                       json->where, type);
    }
    *out = (lv_text_config){.vocab_size = 32000,
                            .d_model = 4096,
                            .d_ff = mistral ? 14336 : 11008,
                            .n_layers = 32,
                            .n_heads = 32,
                            .n_kv_heads = mistral ? 8 : 0,
                            .max_position = mistral ? 131072 : 2048,
                            .rms_norm_eps = 1e-6f,
                            .bos_id = 1,
                            .eos_ids = {2},
                            .n_eos = 1};
    LV_TRY(lv_json_int(json, "vocab_size", 1, LV_MAX_VOCAB, &out->vocab_size));
    LV_TRY(lv_json_int(json, "hidden_size", 1, LV_MAX_DIM, &out->d_model));
    LV_TRY(lv_json_int(json, "intermediate_size", 1, 4 * LV_MAX_DIM, &out->d_ff));
    LV_TRY(lv_json_int(json, "num_hidden_layers", 1, LV_MAX_LAYERS, &out->n_layers));
    LV_TRY(lv_json_int(json, "max_position_embeddings", 1, LV_MAX_POSITION, &out->max_position));
    LV_TRY(lv_json_float(json, "rms_norm_eps", 1e-12, 1, &out->rms_norm_eps));
    LV_TRY(lv_json_bool(json, "tie_word_embeddings", &out->tie_embeddings));
    LV_TRY(read_attention(json, out));
    // MistralConfig slides over 4096 tokens where the key is absent; null switches that off.
    if (mistral && !(json->object && json_object_get(json->object, "sliding_window"))) {
        out->sliding_window = 4096;
    }
    LV_TRY(lv_json_int(json, "sliding_window", 1, LV_MAX_POSITION, &out->sliding_window));
    lv_activation activation = LV_ACT_SILU;
    LV_TRY(lv_config_activation(json, "hidden_act", &activation));
    if (activation != LV_ACT_SILU) {
        return lv_fail(LV_EUNSUPPORTED, "%s: hidden_act: only silu is supported", json->where);
    }
    LV_TRY(read_rope(json, out->max_position, &out->rope));
    // Vicuna's 16k models keep the base length in max_position_embeddings and say here how far
    // their linear scaling was trained.
    if (out->rope.type == LV_ROPE_LINEAR) {
        LV_TRY(lv_json_int(json, "max_sequence_length", 1, LV_MAX_POSITION, &out->max_position));
    }
    return lv_config_token_ids(json, out);
}

lv_status lv_config_vision(const lv_json *json, lv_vision_config *out) {
    char type[64] = "clip_vision_model";
    LV_TRY(lv_json_string(json, "model_type", type, sizeof type));
    if (strcmp(type, "clip_vision_model") != 0) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: the vision tower \"%s\" is not supported; clip_vision_model is",
                       json->where, type);
    }
    *out = (lv_vision_config){.image_size = 224,
                              .patch_size = 32,
                              .d_model = 768,
                              .d_ff = 3072,
                              .n_layers = 12,
                              .n_heads = 12,
                              .drop_cls = true,
                              .layer_norm_eps = 1e-5f,
                              .activation = LV_ACT_QUICK_GELU};
    int n_channels = 3;
    LV_TRY(lv_json_int(json, "image_size", 1, 16384, &out->image_size));
    LV_TRY(lv_json_int(json, "patch_size", 1, 1024, &out->patch_size));
    LV_TRY(lv_json_int(json, "hidden_size", 1, LV_MAX_DIM, &out->d_model));
    LV_TRY(lv_json_int(json, "intermediate_size", 1, 4 * LV_MAX_DIM, &out->d_ff));
    LV_TRY(lv_json_int(json, "num_hidden_layers", 1, LV_MAX_LAYERS, &out->n_layers));
    LV_TRY(lv_json_int(json, "num_attention_heads", 1, LV_MAX_DIM, &out->n_heads));
    LV_TRY(lv_json_float(json, "layer_norm_eps", 1e-12, 1, &out->layer_norm_eps));
    LV_TRY(lv_config_activation(json, "hidden_act", &out->activation));
    LV_TRY(lv_json_int(json, "num_channels", 3, 3, &n_channels));
    LV_TRY(check_heads(json, out->n_heads, out->d_model));
    if (out->image_size % out->patch_size != 0) {
        return lv_fail(LV_EUNSUPPORTED, "%s: image_size %d is not a multiple of patch_size %d",
                       json->where, out->image_size, out->patch_size);
    }
    int side = out->image_size / out->patch_size;
    if (side > 1024) {
        return lv_fail(LV_ELIMIT, "%s: %d x %d patches; the limit is 1024 x 1024", json->where,
                       side, side);
    }
    return LV_OK;
}

lv_status lv_config_quant(const lv_json *json, lv_quant_config *out) {
    *out = (lv_quant_config){0};
    if (!json->object) {
        return LV_OK;
    }
    char method[64] = "", version[64] = "gemm";
    int bits = 4, group_size = 128;
    bool zero_point = true;
    LV_TRY(lv_json_string(json, "quant_method", method, sizeof method));
    if (strcmp(method, "awq") != 0) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: quant_method \"%s\" is not supported; use an AutoAWQ (GEMM, 4 bits) "
                       "or an unquantised version of the model",
                       json->where, method);
    }
    LV_TRY(lv_json_string(json, "format", version, sizeof version));
    LV_TRY(lv_json_string(json, "version", version, sizeof version));
    if (strcasecmp(version, "gemm") != 0) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: AWQ version \"%s\" packs weights in another order and is not "
                       "supported; quantise again with AutoAWQ and version \"GEMM\"",
                       json->where, version);
    }
    LV_TRY(lv_json_int(json, "w_bit", 1, 16, &bits));
    LV_TRY(lv_json_int(json, "bits", 1, 16, &bits));
    LV_TRY(lv_json_int(json, "q_group_size", -1, LV_MAX_DIM, &group_size));
    LV_TRY(lv_json_int(json, "group_size", -1, LV_MAX_DIM, &group_size));
    LV_TRY(lv_json_bool(json, "zero_point", &zero_point));
    if (bits != 4 || group_size < 8 || !zero_point) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: AWQ with bits %d, group_size %d, zero_point %s is not supported; 4 "
                       "bits, groups of 8 or more and zero points are",
                       json->where, bits, group_size, zero_point ? "true" : "false");
    }
    *out = (lv_quant_config){.bits = bits, .group_size = group_size};
    return LV_OK;
}
