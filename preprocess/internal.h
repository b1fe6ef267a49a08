// What the files of preprocess/ share: decoders behind lv_image_decode, and resizing onto windows.
#ifndef LV_PREPROCESS_INTERNAL_H
#define LV_PREPROCESS_INTERNAL_H

#include <stdbool.h>

#include "preprocess/preprocess.h"

// --- decoding

typedef struct lv_bytes {
    const uint8_t *data;
    size_t n;
} lv_bytes;

static inline uint32_t lv_be16(const uint8_t *p) {
    return (uint32_t)p[0] << 8 | p[1];
}
static inline uint32_t lv_be32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static inline uint32_t lv_le16(const uint8_t *p) {
    return (uint32_t)p[1] << 8 | p[0];
}
static inline uint32_t lv_le32(const uint8_t *p) {
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

// round(a * b / 255) for bytes, in integers.
static inline uint32_t lv_mul_255(uint32_t a, uint32_t b) {
    uint32_t t = a * b + 128;
    return ((t >> 8) + t) >> 8;
}

// A colour with coverage `alpha` over white: round((c * alpha + 255 * (255 - alpha)) / 255).
static inline uint8_t lv_over_white(uint32_t c, uint32_t alpha) {
    uint32_t t = c * alpha + 255 * (255 - alpha) + 128;
    return (uint8_t)(((t >> 8) + t) >> 8);
}

// Checks width x height (as a header claims) against filled-in limits.
lv_status lv_image_check(const char *format, int64_t width, int64_t height,
                         const lv_image_limits *limits) LV_MUST_CHECK;

// Allocates pixels after lv_image_check has passed: white, as if nothing were drawn on the page.
lv_status lv_image_new(int width, int height, lv_image *out) LV_MUST_CHECK;

// Each decodes a whole file, checking its header against the (filled-in) limits first. On failure
// *out may hold a partial picture: the caller frees it. `orientation` is set where EXIF gives one.
typedef lv_status lv_decoder(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                             int *orientation);
lv_decoder lv_jpeg_decode, lv_webp_decode, lv_png_decode, lv_gif_decode, lv_bmp_decode,
    lv_pnm_decode;

// What a palette's missing colours are, as in Pillow: index i is grey i.
static inline void lv_palette_init(uint8_t (*palette)[3]) {
    for (int i = 0; i < 256; i++) {
        palette[i][0] = palette[i][1] = palette[i][2] = (uint8_t)i;
    }
}

// Inflates a zlib stream to at most `capacity` bytes of `out`, which is zeroed (a hostile stream
// copies from what it has not written); returns how many, or -1 where the stream is broken, cut or
// holds more.
int64_t lv_inflate(lv_bytes zlib, uint8_t *out, size_t capacity);

// Decodes a PNG made of checked chunks whose picture data are about `n_inflated` bytes, to RGB or
// (has_alpha) to RGBA on white.
lv_status lv_stb_png(lv_bytes png, size_t n_inflated, bool has_alpha, lv_image *out) LV_MUST_CHECK;

// The orientation (1 to 8) in a TIFF-structured EXIF block, or 1 where there is none.
int lv_exif_orientation(lv_bytes tiff);

// The same from the text that ImageMagick keeps EXIF in ("\nexif\n  size\nhex digits"), and from
// XMP.
int lv_exif_hex_orientation(lv_bytes text);
int lv_xmp_orientation(lv_bytes xml);

// Turns the picture as the orientation says; frees and replaces its pixels.
lv_status lv_image_orient(lv_image *image, int orientation) LV_MUST_CHECK;

// --- resizing

// A picture pasted with its top left corner at (x, y) of a one-coloured canvas, never built.
typedef struct lv_canvas {
    const lv_image *image;
    int width, height, x, y;
    uint8_t background[3];
} lv_canvas;

typedef struct lv_window {
    int x, y, width, height;
} lv_window;

// Resizes the canvas to width x height and stores `window` of the result: out [window.height,
// window.width, 3]. Nothing outside what the window needs is computed.
lv_status lv_canvas_resize(const lv_canvas *canvas, int64_t width, int64_t height, lv_window window,
                           uint8_t *out) LV_MUST_CHECK;

#endif
