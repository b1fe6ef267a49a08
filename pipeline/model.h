// Models and pictures: what an engine works on (pipeline/llava.h, which includes this).
#ifndef LV_MODEL_H
#define LV_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/config.h"
#include "core/fetch.h"
#include "core/status.h"

// --- model ---------------------------------------------------------------------------------------

typedef struct lv_model lv_model;

typedef struct lv_model_options {
    const char *model; // folder or org/name; NULL: $LLAVA_MODEL, else the embedded demo model
    const char *vision_model;  // second checkpoint with CLIP, where the first has none
    const char *device;        // NULL or "auto", "cpu", "cuda", "cuda:N"
    int tp;                    // tensor parallelism: so many devices from that one on; 0, 1: one
    int n_threads;             // CPU threads; 0: all the cores this process may use
    const char *template_name; // NULL: by the checkpoint
    int session_len;           // most tokens of a conversation with its answer; 0: as trained
    const lv_rope_config *rope_scaling; // past the trained length; NULL: config's or dynamic NTK
    bool int4_weights; // rounds a decoder that is not quantised to int4 while loading
    bool int8_head;    // and its last linear to int8
} lv_model_options;

lv_status lv_model_open(const lv_model_options *options, lv_model **out) LV_MUST_CHECK;
void lv_model_free(lv_model *model); // after its engine and pictures; accepts NULL

typedef struct lv_model_info {
    const char *name;   // the folder's last part, or org/name; all strings live as the model does
    const char *dir;    // where it lies
    bool is_demo;       // the embedded demo model was taken because none was named
    const char *device; // "CPU, 2 threads, AVX-512 VNNI"
    const char *no_gpu; // why "auto" took no GPU; "" where it did or was not asked
    bool is_gpu;
    const char *template_name;
    int session_len;
    size_t weight_bytes;
    double load_ms;
    const lv_config *config;
} lv_model_info;

lv_model_info lv_model_describe(const lv_model *model);
// The ids of a text as it stands, without any template; *out is freed by free().
lv_status lv_model_tokenize(const lv_model *model, const char *text, size_t n_bytes, int32_t **out,
                            int *n_out) LV_MUST_CHECK;
// A token's bytes (maybe part of a character), at most `size` of them, and how many it has; 0 for
// one that adds no text. Words begin with their space.
size_t lv_model_token(const lv_model *model, int32_t id, char *out, size_t size);
const char *lv_assets_dir(void); // where demo model and pages lie: $LLAVA_ASSETS, beside the
                                 // program, installed or in the source; NULL: nowhere. Constant.

// --- pictures: any thread ------------------------------------------------------------------------

typedef struct lv_picture lv_picture;

typedef struct lv_picture_limits {
    size_t max_bytes, max_pixels; // 0: 64 MiB, 178,956,970
    int max_side;                 // 0: 65,535
} lv_picture_limits;

// From a file, an http(s) URL, a data: URI or "-" (standard input); from bytes. Read, decoded and
// cut into tiles before the call returns. limits and fetch may be NULL.
lv_status lv_picture_load(const lv_model *model, const char *source,
                          const lv_picture_limits *limits, const lv_fetch_options *fetch,
                          lv_picture **out) LV_MUST_CHECK;
lv_status lv_picture_from_bytes(const lv_model *model, const uint8_t *bytes, size_t n_bytes,
                                const lv_picture_limits *limits, lv_picture **out) LV_MUST_CHECK;
// The same two, but only noted (source, bytes and options copied): an engine's workers do the work
// once a request shows the picture, and where it fails that request ends with the reason.
lv_status lv_picture_later(const lv_model *model, const char *source,
                           const lv_picture_limits *limits, const lv_fetch_options *fetch,
                           lv_picture **out) LV_MUST_CHECK;
lv_status lv_picture_bytes_later(const lv_model *model, const uint8_t *bytes, size_t n_bytes,
                                 const lv_picture_limits *limits, lv_picture **out) LV_MUST_CHECK;
void lv_picture_free(lv_picture *picture); // the caller's hold; requests keep their own

typedef struct lv_picture_info { // zeros until a picture of later is ready
    int width, height;           // as decoded, after EXIF rotation
    int n_tiles, tile_size, n_tokens;
    uint8_t id[32]; // SHA-256 of its tiles' pixels, the preprocessing and the model
    double load_ms, preprocess_ms;
} lv_picture_info;

lv_picture_info lv_picture_describe(const lv_picture *picture);

#endif
