// A picture laid out for the vision tower: the rules of the two reference families.
//
// PAD    LLaVA 1.5: onto a square of the mean colour, centred (odd space goes below and right),
//        then resized. transformers' do_pad follows the same rule and rounding.
// CROP   CLIPImageProcessor: shortest edge resized, the other side truncated; centre crop, where a
//        picture smaller than the crop is padded with black (odd space goes above and left).
// ANYRES LLaVA 1.6: the grid that keeps most pixels and wastes least, the picture resized to fit in
//        it with its aspect (the other side rounded up), centred on black and cut row by row.
//        Both families compute this alike; they differ in how they read the pinpoints of a file,
//        (w, h) or (h, w), which is settled before they come here.
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { MAX_TILE_SIDE = 4096, MAX_TILES = 1024 };

static lv_status tiles_new(int grid_width, int grid_height, int n_tiles, int size,
                           const lv_image *image, lv_tiles *out) {
    size_t n_bytes = (size_t)n_tiles * (size_t)size * (size_t)size * 3;
    *out = (lv_tiles){.n_tiles = n_tiles,
                      .size = size,
                      .rgb = calloc(n_bytes, 1),
                      .grid_width = grid_width,
                      .grid_height = grid_height,
                      .original_width = image->width,
                      .original_height = image->height};
    if (!out->rgb) {
        return lv_fail(LV_ENOMEM, "tiles: no memory for %d tiles of %d x %d", n_tiles, size, size);
    }
    return LV_OK;
}

static lv_status make_pad(const lv_image *image, const lv_image_config *config, lv_tiles *out) {
    LV_TRY(tiles_new(1, 1, 1, config->size, image, out));
    int side = image->width > image->height ? image->width : image->height;
    lv_canvas canvas = {.image = image,
                        .width = side,
                        .height = side,
                        .x = (side - image->width) / 2,
                        .y = (side - image->height) / 2};
    for (int c = 0; c < 3; c++) {
        double mean = config->mean[c] * 255.0;
        canvas.background[c] = (uint8_t)(mean < 0 ? 0 : mean > 255 ? 255 : mean);
    }
    return lv_canvas_resize(&canvas, config->size, config->size,
                            (lv_window){0, 0, config->size, config->size}, out->rgb);
}

// Where a side of `n` pixels meets a crop of `size`: which of its pixels are taken, and where.
static void centre_crop(int64_t n, int size, int *from, int *count, int *at) {
    if (n >= size) {
        *from = (int)((n - size) / 2);
        *count = size;
        *at = 0;
    } else {
        *from = 0;
        *count = (int)n;
        *at = (size - (int)n + 1) / 2;
    }
}

static lv_status make_crop(const lv_image *image, const lv_image_config *config, lv_tiles *out) {
    int size = config->size, edge = config->shortest_edge;
    int64_t width = image->width, height = image->height;
    if (edge > 0 && width <= height) {
        height = (int64_t)((double)(edge * height) / (double)width);
        width = edge;
    } else if (edge > 0) {
        width = (int64_t)((double)(edge * width) / (double)height);
        height = edge;
    }
    lv_window window;
    int x, y;
    centre_crop(width, size, &window.x, &window.width, &x);
    centre_crop(height, size, &window.y, &window.height, &y);
    LV_TRY(tiles_new(1, 1, 1, size, image, out));
    lv_image part;
    LV_TRY(lv_image_new(window.width, window.height, &part));
    lv_canvas canvas = {.image = image, .width = image->width, .height = image->height};
    lv_status status = lv_canvas_resize(&canvas, width, height, window, part.rgb);
    for (int row = 0; row < window.height && status == LV_OK; row++) {
        memcpy(out->rgb + ((size_t)(y + row) * (size_t)size + (size_t)x) * 3,
               part.rgb + (size_t)row * (size_t)window.width * 3, (size_t)window.width * 3);
    }
    lv_image_free(&part);
    return status;
}

// The pinpoint that keeps the most pixels of the picture, then wastes the least; the first wins.
static int best_pinpoint(const lv_image *image, const lv_image_config *config) {
    int best = 0;
    int64_t most_effective = 0, least_wasted = INT64_MAX;
    int64_t n_pixels = (int64_t)image->width * image->height;
    for (int i = 0; i < config->n_pinpoints; i++) {
        int width = config->pinpoints[i][0], height = config->pinpoints[i][1];
        double scale = fmin((double)width / image->width, (double)height / image->height);
        int64_t scaled = (int64_t)(image->width * scale) * (int64_t)(image->height * scale);
        int64_t effective = scaled < n_pixels ? scaled : n_pixels;
        int64_t wasted = (int64_t)width * height - effective;
        if (effective > most_effective || (effective == most_effective && wasted < least_wasted)) {
            best = i;
            most_effective = effective;
            least_wasted = wasted;
        }
    }
    return best;
}

// `picture`, centred on a black canvas of grid_width x grid_height tiles, into tiles 1 and on.
static void cut_tiles(const lv_image *picture, lv_tiles *tiles) {
    int size = tiles->size;
    int left = (tiles->grid_width * size - picture->width) / 2;
    int top = (tiles->grid_height * size - picture->height) / 2;
    for (int row = 0; row < picture->height; row++) {
        int y = top + row;
        for (int column = 0, n; column < picture->width; column += n) {
            int x = left + column, room = size - x % size;
            n = picture->width - column < room ? picture->width - column : room;
            size_t tile = 1 + (size_t)(y / size * tiles->grid_width + x / size);
            size_t to =
                (tile * (size_t)size + (size_t)(y % size)) * (size_t)size + (size_t)(x % size);
            memcpy(tiles->rgb + to * 3,
                   picture->rgb + ((size_t)row * (size_t)picture->width + (size_t)column) * 3,
                   (size_t)n * 3);
        }
    }
}

static lv_status make_anyres(const lv_image *image, const lv_image_config *config, lv_tiles *out) {
    int best = best_pinpoint(image, config), size = config->size;
    int width = config->pinpoints[best][0], height = config->pinpoints[best][1];
    int grid_width = width / size, grid_height = height / size;
    LV_TRY(tiles_new(grid_width, grid_height, 1 + grid_width * grid_height, size, image, out));
    lv_canvas whole = {.image = image, .width = image->width, .height = image->height};
    LV_TRY(lv_canvas_resize(&whole, size, size, (lv_window){0, 0, size, size}, out->rgb));
    double scale_x = (double)width / image->width, scale_y = (double)height / image->height;
    if (scale_x < scale_y) {
        height = (int)fmin(ceil(image->height * scale_x), height);
    } else {
        width = (int)fmin(ceil(image->width * scale_y), width);
    }
    lv_image fitted;
    LV_TRY(lv_image_resize(image, width, height, &fitted));
    cut_tiles(&fitted, out);
    lv_image_free(&fitted);
    return LV_OK;
}

static lv_status check_config(const lv_image_config *config) {
    if (config->size < 1 || config->size > MAX_TILE_SIDE || config->shortest_edge < 0 ||
        config->shortest_edge > MAX_TILE_SIDE) {
        return lv_fail(LV_EINVAL, "tiles: size %d, shortest edge %d: 1 to %d expected",
                       config->size, config->shortest_edge, MAX_TILE_SIDE);
    }
    if (config->layout != LV_LAYOUT_ANYRES) {
        return LV_OK;
    }
    if (config->n_pinpoints < 1 || config->n_pinpoints > LV_MAX_PINPOINTS) {
        return lv_fail(LV_EINVAL, "tiles: %d pinpoints, 1 to %d expected", config->n_pinpoints,
                       LV_MAX_PINPOINTS);
    }
    for (int i = 0; i < config->n_pinpoints; i++) {
        int width = config->pinpoints[i][0], height = config->pinpoints[i][1];
        if (width < 1 || height < 1 || width % config->size || height % config->size ||
            (int64_t)(width / config->size) * (height / config->size) > MAX_TILES) {
            return lv_fail(LV_EINVAL,
                           "tiles: pinpoint %d x %d is not a grid of 1 to %d tiles of %d pixels",
                           width, height, MAX_TILES, config->size);
        }
    }
    return LV_OK;
}

lv_status lv_tiles_make(const lv_image *image, const lv_image_config *config, lv_tiles *out) {
    *out = (lv_tiles){0};
    if (image->width < 1 || image->height < 1) {
        return lv_fail(LV_EINVAL, "tiles: a picture of %d x %d pixels", image->width,
                       image->height);
    }
    LV_TRY(check_config(config));
    lv_status status;
    switch (config->layout) {
    case LV_LAYOUT_PAD:
        status = make_pad(image, config, out);
        break;
    case LV_LAYOUT_CROP:
        status = make_crop(image, config, out);
        break;
    case LV_LAYOUT_ANYRES:
        status = make_anyres(image, config, out);
        break;
    default:
        return lv_fail(LV_EINVAL, "tiles: unknown layout %d", (int)config->layout);
    }
    if (status != LV_OK) {
        lv_tiles_free(out);
    }
    return status;
}

void lv_tiles_free(lv_tiles *tiles) {
    free(tiles->rgb);
    *tiles = (lv_tiles){0};
}

void lv_tiles_normalize(const lv_tiles *tiles, const lv_image_config *config, float *out) {
    float levels[3][256];
    lv_image_levels(config, levels);
    size_t plane = (size_t)tiles->size * (size_t)tiles->size;
    for (int tile = 0; tile < tiles->n_tiles; tile++) {
        const uint8_t *rgb = tiles->rgb + (size_t)tile * plane * 3;
        float *planes = out + (size_t)tile * plane * 3;
        for (size_t i = 0; i < plane; i++) {
            for (size_t c = 0; c < 3; c++) {
                planes[c * plane + i] = levels[c][rgb[3 * i + c]];
            }
        }
    }
}
