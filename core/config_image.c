// How pictures are laid out: preprocessor_config.json and image_grid_pinpoints.
#include "core/config_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SIDE 16384

static lv_status read_triple(const lv_json *json, const char *key, float *out) {
    const json_t *list = lv_json_get(json, key);
    if (!list) {
        return LV_OK;
    }
    for (size_t i = 0; i < 3; i++) {
        const json_t *item = json_array_get(list, i);
        double value = json_number_value(item);
        if (!json_is_number(item) || json_array_size(list) != 3 ||
            !(value >= -1000 && value <= 1000)) {
            return lv_json_wrong(json, key, "three numbers");
        }
        out[i] = (float)value;
    }
    return LV_OK;
}

// A side given as a number, {"shortest_edge": n} or {"height": n, "width": n}; *out_square tells
// the last form.
static lv_status read_side(const lv_json *json, const char *key, int *out, bool *out_square) {
    const json_t *value = lv_json_get(json, key);
    *out_square = false;
    if (!value || json_is_integer(value)) {
        return lv_json_int(json, key, 1, MAX_SIDE, out);
    }
    lv_json size;
    LV_TRY(lv_json_child(json, key, &size));
    if (lv_json_get(&size, "shortest_edge")) {
        return lv_json_int(&size, "shortest_edge", 1, MAX_SIDE, out);
    }
    int height = 0, width = 0;
    LV_TRY(lv_json_int(&size, "height", 1, MAX_SIDE, &height));
    LV_TRY(lv_json_int(&size, "width", 1, MAX_SIDE, &width));
    if (!height || height != width) {
        return lv_json_wrong(json, key, "shortest_edge, or equal height and width");
    }
    *out = height;
    *out_square = true;
    return LV_OK;
}

static lv_status add_pinpoint(const lv_json *json, int width, int height, lv_image_config *out) {
    if (out->n_pinpoints == LV_MAX_PINPOINTS || width > MAX_SIDE || height > MAX_SIDE ||
        width % out->size || height % out->size) {
        return lv_fail(LV_EFORMAT,
                       "%s: image_grid_pinpoints: %d x %d: expected at most %d grids, each a "
                       "multiple of the tile's side %d",
                       json->where, width, height, LV_MAX_PINPOINTS, out->size);
    }
    int *pinpoint = out->pinpoints[out->n_pinpoints++];
    pinpoint[0] = width;
    pinpoint[1] = height;
    return LV_OK;
}

// The next number of a string such as "(1x1),...,(6x6)" or "[(336, 672), ...]": 0 at the end, one
// above MAX_SIDE where it is out of range.
static int next_number(const char **at) {
    *at += strcspn(*at, "0123456789");
    if (!**at) {
        return 0;
    }
    long number = strtol(*at, (char **)at, 10);
    return number > 0 && number <= MAX_SIDE ? (int)number : MAX_SIDE + 1;
}

// "(axb),...,(cxd)" stands for every grid of a..c by b..d tiles, as the original code reads it.
static lv_status add_range(const lv_json *json, const char *text, lv_image_config *out) {
    int first[2];
    first[0] = next_number(&text);
    first[1] = next_number(&text);
    int last[2] = {first[0], first[1]};
    for (int a, b; (a = next_number(&text)) && (b = next_number(&text));) {
        last[0] = a;
        last[1] = b;
    }
    if (!first[0] || !first[1] || last[0] > LV_MAX_PINPOINTS || last[1] > LV_MAX_PINPOINTS) {
        return lv_json_wrong(json, "image_grid_pinpoints", "a range such as (1x1),...,(6x6)");
    }
    for (int i = first[0]; i <= last[0]; i++) {
        for (int j = first[1]; j <= last[1]; j++) {
            LV_TRY(add_pinpoint(json, i * out->size, j * out->size, out));
        }
    }
    return LV_OK;
}

static lv_status add_list(const lv_json *json, const json_t *list, lv_image_config *out) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *pair = json_array_get(list, i);
        json_int_t a = json_integer_value(json_array_get(pair, 0));
        json_int_t b = json_integer_value(json_array_get(pair, 1));
        if (json_array_size(pair) != 2 || a < 1 || b < 1 || a > MAX_SIDE || b > MAX_SIDE) {
            return lv_json_wrong(json, "image_grid_pinpoints", "a list of pairs of sides");
        }
        LV_TRY(add_pinpoint(json, (int)a, (int)b, out));
    }
    return LV_OK;
}

lv_status lv_config_pinpoints(const lv_json *json, const lv_config *config, lv_image_config *out) {
    const json_t *value = lv_json_get(json, "image_grid_pinpoints");
    const char *text = json_string_value(value);
    out->n_pinpoints = 0;
    if (json_is_array(value)) {
        LV_TRY(add_list(json, value, out));
    } else if (text && strchr(text, 'x')) {
        LV_TRY(add_range(json, text, out));
    } else if (text) {
        for (int a, b; (a = next_number(&text)) && (b = next_number(&text));) {
            LV_TRY(add_pinpoint(json, a, b, out));
        }
    }
    if (out->n_pinpoints == 0) {
        return lv_json_wrong(json, "image_grid_pinpoints", "a list of pairs of sides");
    }
    // transformers reads each pair as (height, width), the original code as (width, height).
    for (int i = 0; config->family == LV_FAMILY_HF && i < out->n_pinpoints; i++) {
        int height = out->pinpoints[i][0];
        out->pinpoints[i][0] = out->pinpoints[i][1];
        out->pinpoints[i][1] = height;
    }
    return LV_OK;
}

static lv_status read_normalisation(const lv_json *json, lv_image_config *out) {
    // OpenAI's CLIP constants.
    *out = (lv_image_config){.mean = {0.48145466f, 0.4578275f, 0.40821073f},
                             .std = {0.26862954f, 0.26130258f, 0.27577711f},
                             .rescale = 1.0 / 255.0};
    bool normalize = true, rescale = true;
    int resample = 3;
    LV_TRY(lv_json_bool(json, "do_normalize", &normalize));
    LV_TRY(lv_json_bool(json, "do_rescale", &rescale));
    LV_TRY(lv_json_double(json, "rescale_factor", 1e-9, 1e9, &out->rescale));
    LV_TRY(read_triple(json, "image_mean", out->mean));
    LV_TRY(read_triple(json, "image_std", out->std));
    LV_TRY(lv_json_int(json, "resample", 0, 6, &resample));
    if (resample != 3) {
        return lv_fail(LV_EUNSUPPORTED, "%s: resample %d is not supported; 3 (bicubic) is",
                       json->where, resample);
    }
    if (!rescale) {
        out->rescale = 1;
    }
    for (int i = 0; i < 3; i++) {
        out->mean[i] = normalize ? out->mean[i] : 0;
        out->std[i] = normalize ? out->std[i] : 1;
        if (!(out->std[i] > 0)) {
            return lv_json_wrong(json, "image_std", "three numbers above 0");
        }
    }
    return LV_OK;
}

// llava-hf: LlavaNextImageProcessor cuts grids; CLIPImageProcessor crops unless do_pad asks for
// LlavaImageProcessor's square padding.
static lv_status read_hf_layout(const lv_json *json, const lv_config *config,
                                lv_image_config *out) {
    bool pad = false, crop = true, resize = true, square = false, square_crop;
    int edge = config->vision.image_size, crop_side = config->vision.image_size;
    LV_TRY(lv_json_bool(json, "do_pad", &pad));
    LV_TRY(lv_json_bool(json, "do_center_crop", &crop));
    LV_TRY(lv_json_bool(json, "do_resize", &resize));
    LV_TRY(read_side(json, "size", &edge, &square));
    LV_TRY(read_side(json, "crop_size", &crop_side, &square_crop));
    out->layout = config->is_next ? LV_LAYOUT_ANYRES : pad ? LV_LAYOUT_PAD : LV_LAYOUT_CROP;
    if (out->layout != LV_LAYOUT_CROP) {
        out->size = crop ? crop_side : edge;
    } else if (square || !crop) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s: pictures squashed to a square or left uncropped are not supported; "
                       "do_pad, or shortest_edge with do_center_crop, are",
                       json->where);
    } else {
        out->size = crop_side;
        out->shortest_edge = resize ? edge : 0;
    }
    if (out->size != config->vision.image_size) {
        return lv_fail(LV_EFORMAT, "%s: pictures of %d pixels for a vision tower of %d",
                       json->where, out->size, config->vision.image_size);
    }
    return LV_OK;
}

// The image processor's object: transformers 5 nests it in processor_config.json.
static lv_status open_processor(const char *dir, json_t **out_root, lv_json *out) {
    char where[512];
    *out_root = NULL;
    LV_TRY(lv_config_file(dir, "processor_config.json", out_root));
    snprintf(where, sizeof where, "%.400s/processor_config.json", dir);
    lv_json root = lv_json_at(*out_root, where);
    LV_TRY(lv_json_child(&root, "image_processor", out));
    if (out->object) {
        return LV_OK;
    }
    json_decref(*out_root);
    *out_root = NULL;
    LV_TRY(lv_config_file(dir, "preprocessor_config.json", out_root));
    snprintf(where, sizeof where, "%.400s/preprocessor_config.json", dir);
    *out = lv_json_at(*out_root, where);
    return LV_OK;
}

lv_status lv_config_image(const char *dir, lv_config *config) {
    json_t *root = NULL;
    lv_json json;
    lv_image_config *out = &config->image;
    lv_status status;
    LV_TRY_DONE(open_processor(dir, &root, &json));
    LV_TRY_DONE(read_normalisation(&json, out));
    out->family = config->family;
    out->size = config->vision.image_size;
    if (config->family == LV_FAMILY_HF) {
        LV_TRY_DONE(read_hf_layout(&json, config, out));
    }
    if (config->is_next && lv_json_get(&json, "image_grid_pinpoints")) {
        LV_TRY_DONE(lv_config_pinpoints(&json, config, out));
    }
done:
    json_decref(root);
    return status;
}

// The references multiply in f64, round to f32, then subtract and divide in f32: 256 levels a
// channel, so a table gives the same bits.
void lv_image_levels(const lv_image_config *config, float out[3][256]) {
    const double rescale = config->rescale != 0 ? config->rescale : 1.0 / 255.0;
    for (int c = 0; c < 3; c++) {
        for (int level = 0; level < 256; level++) {
            out[c][level] = ((float)(level * rescale) - config->mean[c]) / config->std[c];
        }
    }
}
