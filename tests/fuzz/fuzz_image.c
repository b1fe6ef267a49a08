// Any bytes as a picture, and what decodes laid out as tiles in every layout.
//
// Limits are small, so that a fuzzer spends its time in the parsers and not in large fills.
#include <assert.h>
#include <stdlib.h>

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const lv_image_limits limits = {.max_pixels = 1 << 18, .max_side = 1 << 14};
    lv_image image;
    if (lv_image_decode(data, size, &limits, &image) == LV_OK) {
        assert(image.width >= 1 && image.height >= 1 && image.width <= 1 << 14);
        lay_out(&image, LV_LAYOUT_PAD);
        lay_out(&image, LV_LAYOUT_CROP);
        lay_out(&image, LV_LAYOUT_ANYRES);
    }
    lv_image_free(&image);
    return 0;
}
