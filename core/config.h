// What a checkpoint folder's JSON files say, as plain numbers that the other folders read.
#ifndef LV_CORE_CONFIG_H
#define LV_CORE_CONFIG_H

#include <stdbool.h>

#include "core/status.h"

#define LV_MAX_PINPOINTS 64
#define LV_MAX_EOS 8

// Who wrote the checkpoint decides every numeric question where the two references differ.
typedef enum lv_family {
    LV_FAMILY_ORIGINAL, // liuhaotian/*: the original LLaVA code is right
    LV_FAMILY_HF        // llava-hf/*: transformers is right
} lv_family;

typedef enum lv_activation {
    LV_ACT_NONE = 0,
    LV_ACT_QUICK_GELU,
    LV_ACT_GELU,
    LV_ACT_GELU_TANH,
    LV_ACT_SILU
} lv_activation;

typedef struct lv_vision_config {
    int image_size, patch_size;
    int d_model, d_ff, n_layers, n_heads;
    int n_run_layers; // how many of n_layers lie below the features taken:
                      // hidden_states[n_run_layers]
    bool drop_cls; // "patch"/"default": the class token is dropped; "cls_patch"/"full": it is kept
    float layer_norm_eps;
    lv_activation activation;
} lv_vision_config;

typedef enum lv_rope_type {
    LV_ROPE_PLAIN = 0,
    LV_ROPE_LINEAR,
    LV_ROPE_DYNAMIC,
    LV_ROPE_YARN,
    LV_ROPE_LLAMA3
} lv_rope_type;

typedef struct lv_rope_config {
    lv_rope_type type;
    float theta;
    float factor;
    int original_max_position;               // the trained length that scaling starts from
    float beta_fast, beta_slow;              // YaRN; 32 and 1 unless given
    float attention_factor;                  // YaRN; 0: 0.1 ln(factor) + 1
    float low_freq_factor, high_freq_factor; // Llama 3
} lv_rope_config;

typedef struct lv_text_config {
    int vocab_size, d_model, d_ff, n_layers;
    int n_heads, n_kv_heads, head_dim;
    int max_position;   // trained length in tokens
    int sliding_window; // 0: none
    float rms_norm_eps;
    bool tie_embeddings;
    lv_rope_config rope;
    int bos_id;
    int eos_ids[LV_MAX_EOS];
    int n_eos;
} lv_text_config;

typedef enum lv_layout {
    LV_LAYOUT_PAD,   // 1.5: pad to a square with the mean colour, resize
    LV_LAYOUT_CROP,  // llava-hf 1.5: shortest edge, centre crop
    LV_LAYOUT_ANYRES // 1.6: whole image squashed + tiles of the best grid
} lv_layout;

typedef struct lv_image_config {
    lv_layout layout;
    lv_family family;  // who decides ties, rounding and cropping
    int size;          // side of one tile in pixels
    int shortest_edge; // LV_LAYOUT_CROP: what the shortest edge is resized to (0: not resized)
    int pinpoints[LV_MAX_PINPOINTS]
                 [2]; // LV_LAYOUT_ANYRES, in the order of the file, as {width, height}
    int n_pinpoints;
    float mean[3], std[3];
    double rescale; // 1/255 unless given; the references multiply by it in f64
} lv_image_config;

typedef struct lv_quant_config {
    int bits;       // 0: not quantised
    int group_size; // along K
} lv_quant_config;

typedef struct lv_generation_config {
    bool do_sample;
    float temperature, top_p; // 0: not given
    int top_k;                // 0: not given
    float repetition_penalty; // 0: not given
} lv_generation_config;

typedef struct lv_config {
    lv_family family;
    bool is_next;             // LLaVA-1.6 (anyres) rather than 1.5
    bool spatial_unpad;       // 1.6: unpad and append image_newline to each row
    char text_model_type[32]; // "llama", "mistral", ...
    char vision_tower[256];   // the second checkpoint that holds CLIP; "" where it is inside
    int image_token_id; // id of <image> in the vocabulary; -1 where there is none (original family)
    int projector_hidden; // width between the projector's two linears
    lv_activation projector_activation;
    bool projector_bias;
    lv_vision_config vision; // image_size 0 until the vision tower's config is read
    lv_text_config text;
    lv_image_config image;
    lv_quant_config quant;
    lv_generation_config generation;
} lv_config;

// Reads config.json, preprocessor_config.json, generation_config.json of the folder `dir` into
// *out. `vision_dir` names the second checkpoint's folder (NULL: look at vision_tower as a path or
// hub name). LV_EFORMAT names the file and key; LV_EUNSUPPORTED names what is not supported.
lv_status lv_config_load(const char *dir, const char *vision_dir, lv_config *out) LV_MUST_CHECK;

// What the vision tower is fed for each level of a channel: (level * rescale - mean) / std.
void lv_image_levels(const lv_image_config *config, float out[3][256]);

#endif
