// Image bytes -> RGB -> tiles of the model's size -> normalised pixel values.
//
// Resizing is Pillow's bicubic bit for bit; layouts are those of MODEL.md, "Image to tiles".
#ifndef LV_PREPROCESS_H
#define LV_PREPROCESS_H

#include "core/config.h"

#include <stddef.h>
#include <stdint.h>

typedef struct lv_image {
    int width, height;
    uint8_t *rgb; // [height, width, 3]
} lv_image;

// Caps checked from the header, before a decoder runs. Zero means default.
typedef struct lv_image_limits {
    size_t max_bytes;  // 64 MiB
    size_t max_pixels; // 178,956,970 (Pillow's own bomb limit)
    int max_side;      // 65,535
} lv_image_limits;

// Decodes JPEG (libjpeg-turbo), WebP (libwebp, first frame), PNG (stb_image) and, by code of ours,
// GIF (first frame), BMP and PNM to 8-bit RGB: EXIF orientation applied, alpha composited on white,
// grey, CMYK and 16-bit colour as Pillow's convert("RGB"); 16-bit grey keeps its high byte. The
// format is found by content alone.
// LV_EFORMAT: broken, cut or unknown (says which); LV_ELIMIT: over a cap (says the numbers);
// LV_EUNSUPPORTED: a known format or kind that is not decoded here (AVIF, HEIC, TIFF, SVG, ...).
lv_status lv_image_decode(const uint8_t *bytes, size_t n_bytes, const lv_image_limits *limits,
                          lv_image *out) LV_MUST_CHECK;
void lv_image_free(lv_image *image); // leaves it zeroed

// Pillow's Image.resize((width, height), BICUBIC) on RGB, 8-bit fixed point, horizontal pass first.
lv_status lv_image_resize(const lv_image *image, int width, int height,
                          lv_image *out) LV_MUST_CHECK;

// A picture cut to what the vision tower takes.
typedef struct lv_tiles {
    int n_tiles, size;
    uint8_t *rgb; // [n_tiles, size, size, 3]; ANYRES: tile 0 is the whole picture squashed
    int grid_width, grid_height;         // ANYRES: tiles across and down; else 1, 1
    int original_width, original_height; // of the decoded picture (after EXIF rotation)
} lv_tiles;

// Lays the picture out as config->layout and config->family say. Any W x H from 1 x 1 on works, or
// is LV_ELIMIT with a reason.
lv_status lv_tiles_make(const lv_image *image, const lv_image_config *config,
                        lv_tiles *out) LV_MUST_CHECK;
void lv_tiles_free(lv_tiles *tiles);

// out f32 [n_tiles, 3, size, size] = (x * rescale - mean) / std, as the reference computes it in
// f32.
void lv_tiles_normalize(const lv_tiles *tiles, const lv_image_config *config, float *out);

#endif
