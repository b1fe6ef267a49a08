// stb_image, reduced to PNG and the inflate under it. It is made for trusted files: it checks no
// checksum, reads past short palettes, takes a stream's copies from before they are written, and
// lets inflated data grow without end. png.c therefore gives it a file made anew from checked
// chunks; its memory comes zeroed, and growth has an end.
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "preprocess/internal.h"

static _Thread_local size_t max_growth; // bytes that a buffer may grow to; 0: it wanted more

static void *grow(void *buffer, size_t n_old, size_t n) {
    if (n > max_growth) {
        max_growth = 0;
        return NULL;
    }
    uint8_t *larger = realloc(buffer, n);
    if (larger && n > n_old) {
        memset(larger + n_old, 0, n - n_old);
    }
    return larger;
}

#define STBI_MALLOC(n) calloc(1, n)
#define STBI_REALLOC_SIZED grow
#define STBI_FREE free
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#pragma GCC diagnostic ignored "-Wunused-function" // most of the library is left out
#include <stb/stb_image.h>

enum { SLACK = 1 << 17 }; // what one block of a stream may need beside the picture

int64_t lv_inflate(lv_bytes zlib, uint8_t *out, size_t capacity) {
    if (zlib.n > INT_MAX || capacity > INT_MAX) {
        return -1;
    }
    return stbi_zlib_decode_buffer((char *)out, (int)capacity, (const char *)zlib.data,
                                   (int)zlib.n);
}

static void put_on_white(const uint8_t *restrict rgba, size_t n, uint8_t *restrict rgb) {
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < 3; c++) {
            rgb[3 * i + c] = lv_over_white(rgba[4 * i + c], rgba[4 * i + 3]);
        }
    }
}

lv_status lv_stb_png(lv_bytes png, size_t n_inflated, bool has_alpha, lv_image *out) {
    int width, height, channels;
    if (png.n > INT_MAX) {
        return lv_fail(LV_ELIMIT, "PNG: %zu bytes, %d can be read", png.n, INT_MAX);
    }
    max_growth = 2 * n_inflated + 2 * png.n + SLACK; // buffers grow by doubling
    uint8_t *pixels =
        stbi_load_from_memory(png.data, (int)png.n, &width, &height, &channels, has_alpha ? 4 : 3);
    if (!pixels) {
        const char *reason = stbi_failure_reason();
        bool no_memory = max_growth > 0 && !strcmp(reason, "outofmem");
        return lv_fail(no_memory ? LV_ENOMEM : LV_EFORMAT,
                       "PNG: the picture data is broken or cut (%s)", reason);
    }
    if (!has_alpha) {
        *out = (lv_image){.width = width, .height = height, .rgb = pixels};
        return LV_OK;
    }
    lv_status status = lv_image_new(width, height, out);
    if (status == LV_OK) {
        put_on_white(pixels, (size_t)width * (size_t)height, out->rgb);
    }
    free(pixels);
    return status;
}
