// The parts of config.c; internal to core.
#ifndef LV_CORE_CONFIG_PARTS_H
#define LV_CORE_CONFIG_PARTS_H

#include "core/config.h"
#include "core/json.h"

#define LV_MAX_DIM 65536
#define LV_MAX_LAYERS 1024
#define LV_MAX_VOCAB (1 << 22)
#define LV_MAX_POSITION (1 << 24)

// A LLaMA- or Mistral-like decoder's keys; `type` fills in what transformers' classes default to.
lv_status lv_config_text(const lv_json *json, const char *type, lv_text_config *out) LV_MUST_CHECK;

// The activation named by `key`; keeps *out where absent.
lv_status lv_config_activation(const lv_json *json, const char *key,
                               lv_activation *out) LV_MUST_CHECK;

// bos_token_id and eos_token_id (one or several); keeps *out where absent.
lv_status lv_config_token_ids(const lv_json *json, lv_text_config *out) LV_MUST_CHECK;

// CLIPVisionConfig's keys.
lv_status lv_config_vision(const lv_json *json, lv_vision_config *out) LV_MUST_CHECK;

// quantization_config; LV_EUNSUPPORTED names every method but AutoAWQ's GEMM packing.
lv_status lv_config_quant(const lv_json *json, lv_quant_config *out) LV_MUST_CHECK;

// `dir`/processor_config.json: image_processor, else `dir`/preprocessor_config.json, else CLIP's
// defaults. Reads mean, std and rescale, and for llava-hf the layout; config->vision must be known.
lv_status lv_config_image(const char *dir, lv_config *config) LV_MUST_CHECK;

// image_grid_pinpoints: a list of pairs, that list as a string, or "(1x1),...,(6x6)".
lv_status lv_config_pinpoints(const lv_json *json, const lv_config *config,
                              lv_image_config *out) LV_MUST_CHECK;

// The folder of the second checkpoint: `vision_dir` where given, else `name` as a path, a sibling
// folder of `dir`, or a hub name. Caller frees *out_dir.
lv_status lv_tower_find(const char *dir, const char *vision_dir, const char *name,
                        char **out_dir) LV_MUST_CHECK;

// A JSON file of a folder; *out stays NULL where there is none.
lv_status lv_config_file(const char *dir, const char *name, json_t **out) LV_MUST_CHECK;

#endif
