// Any bytes as a picture, and what decodes laid out as tiles in every layout.
//
// Limits are small, so that a fuzzer spends its time in the parsers and not in large fills.
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "preprocess/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void lay_out(const lv_image *image, lv_layout layout) {
    const lv_image_config config = {.layout = layout,
                                    .size = 28,
                                    .shortest_edge = 28,
                                    .pinpoints = {{28, 56}, {56, 28}, {56, 56}},
                                    .n_pinpoints = 3,
                                    .mean = {0.5f, 0.5f, 0.5f},
                                    .std = {0.25f, 0.25f, 0.25f}};
    lv_tiles tiles;
    if (lv_tiles_make(image, &config, &tiles) == LV_OK) {
        size_t n = (size_t)tiles.n_tiles * 28 * 28 * 3;
        float *values = malloc(n * sizeof(float));
        if (values) {
            lv_tiles_normalize(&tiles, &config, values);
            assert(values[n - 1] >= -2 && values[n - 1] <= 2);
        }
        free(values);
    }
    lv_tiles_free(&tiles);
}

static void try_picture(const uint8_t *data, size_t size) {
    const lv_image_limits limits = {.max_pixels = 1 << 18, .max_side = 1 << 14};
    lv_image image;
    if (lv_image_decode(data, size, &limits, &image) == LV_OK) {
        assert(image.width >= 1 && image.height >= 1 && image.width <= 1 << 14);
        lay_out(&image, LV_LAYOUT_PAD);
        lay_out(&image, LV_LAYOUT_CROP);
        lay_out(&image, LV_LAYOUT_ANYRES);
    }
    lv_image_free(&image);
}

static uint32_t crc(const uint8_t *data, size_t n) {
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        c ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        }
    }
    return ~c;
}

// Changed PNGs fail at their checksums: with those made right again, what lies behind is tried too.
static void try_mended_png(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size);
    if (!copy) {
        return;
    }
    memcpy(copy, data, size);
    for (size_t at = 8; size - at >= 12;) {
        uint8_t *type = copy + at + 4;
        size_t n = (size_t)copy[at] << 24 | (size_t)copy[at + 1] << 16 | (size_t)copy[at + 2] << 8 |
                   copy[at + 3];
        if (n > size - at - 12) {
            break;
        }
        uint32_t right = crc(type, n + 4);
        for (int i = 0; i < 4; i++) {
            type[4 + n + (size_t)i] = (uint8_t)(right >> (24 - 8 * i));
        }
        at += n + 12;
    }
    try_picture(copy, size);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try_picture(data, size);
    if (size > 8 && memcmp(data, "\x89PNG", 4) == 0) {
        try_mended_png(data, size);
    }
    return 0;
}
