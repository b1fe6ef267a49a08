// Tiles and pixel values of every layout equal what Pillow and numpy make by the references' rules.
#include <math.h>

#include "tests/unit/preprocess_util.h"

static const int pinpoints[][2] = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};

static lv_image_config clip_config(const char *layout, int size, int edge, const char *family) {
    lv_image_config config = {.size = size,
                              .shortest_edge = edge,
                              .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                              .std = {0.26862954f, 0.26130258f, 0.27577711f},
                              .rescale = 1.0 / 255.0,
                              .n_pinpoints = 5};
    config.layout = !strcmp(layout, "pad")    ? LV_LAYOUT_PAD
                    : !strcmp(layout, "crop") ? LV_LAYOUT_CROP
                                              : LV_LAYOUT_ANYRES;
    config.family = strcmp(family, "hf") ? LV_FAMILY_ORIGINAL : LV_FAMILY_HF;
    bool swap = config.family == LV_FAMILY_HF; // transformers reads the same file as (h, w)
    for (int i = 0; i < 5; i++) {
        config.pinpoints[i][0] = pinpoints[i][swap] * size / 336;
        config.pinpoints[i][1] = pinpoints[i][!swap] * size / 336;
    }
    return config;
}

static void check_line(const char *line) {
    char layout[16], family[16];
    int size, edge, width, height, n_tiles, grid_width, grid_height;
    unsigned long long seed, want_pixels, want_values;
    if (sscanf(line, "%15s %d %d %15s %d %d %llu %d %d %d %llx %llx", layout, &size, &edge, family,
               &width, &height, &seed, &n_tiles, &grid_width, &grid_height, &want_pixels,
               &want_values) != 12) {
        CHECK(line[0] == '#', "not a golden line: %s", line);
        return;
    }
    lv_image_config config = clip_config(layout, size, edge, family);
    lv_image image = noise(width, height, seed);
    lv_tiles tiles;
    CHECK_OK(lv_tiles_make(&image, &config, &tiles));
    CHECK(tiles.n_tiles == n_tiles && tiles.size == size, "%s", line);
    CHECK(tiles.grid_width == grid_width && tiles.grid_height == grid_height, "%s", line);
    CHECK(tiles.original_width == width && tiles.original_height == height, "%s", line);
    if (tiles.n_tiles == n_tiles) {
        size_t n = (size_t)n_tiles * (size_t)size * (size_t)size * 3;
        float *values = malloc(n * sizeof(float));
        lv_tiles_normalize(&tiles, &config, values);
        CHECK(checksum(tiles.rgb, n) == want_pixels, "pixels: %s", line);
        size_t one = n / (size_t)n_tiles;
        CHECK(checksum(values + n - one, one * sizeof(float)) == want_values,
              "values of the last tile: %s", line);
        free(values);
    }
    lv_tiles_free(&tiles);
    lv_image_free(&image);
}

// Shapes where the references need gigabytes or fail still give a picture.
static void check_extremes(void) {
    static const char *const layouts[] = {"pad", "crop", "anyres"};
    static const int sizes[][2] = {{1, 65535}, {65535, 1}, {65535, 2}, {1, 1}};
    for (size_t i = 0; i < 3; i++) {
        for (size_t j = 0; j < 4; j++) {
            lv_image_config config = clip_config(layouts[i], 336, 336, "hf");
            lv_image image = noise(sizes[j][0], sizes[j][1], 1);
            lv_tiles tiles;
            CHECK_OK(lv_tiles_make(&image, &config, &tiles));
            CHECK(tiles.n_tiles >= 1 && tiles.rgb);
            lv_tiles_free(&tiles);
            lv_image_free(&image);
        }
    }
}

static void check_refusals(void) {
    lv_image image = noise(8, 8, 0);
    lv_tiles tiles;
    lv_image_config config = clip_config("anyres", 336, 0, "original");
    config.pinpoints[2][0] = 500; // not a multiple of the tile
    CHECK_STATUS(lv_tiles_make(&image, &config, &tiles), LV_EINVAL);
    CHECK(strstr(lv_error(), "500"), "%s", lv_error());
    config = clip_config("anyres", 336, 0, "original");
    config.n_pinpoints = 0;
    CHECK_STATUS(lv_tiles_make(&image, &config, &tiles), LV_EINVAL);
    config = clip_config("pad", 0, 0, "original");
    CHECK_STATUS(lv_tiles_make(&image, &config, &tiles), LV_EINVAL);
    CHECK(!tiles.rgb);
    lv_image empty = {0};
    config = clip_config("pad", 336, 0, "original");
    CHECK_STATUS(lv_tiles_make(&empty, &config, &tiles), LV_EINVAL);
    lv_image_free(&image);
}

int main(void) {
    check_lines("pillow_tiles.txt", 150, check_line);
    check_extremes();
    check_refusals();
    return check_done();
}
