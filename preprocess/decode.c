// Which format the bytes are, by content alone, and the limits that hold before a decoder runs.
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

static const lv_image_limits default_limits = {
    .max_bytes = 64u << 20, .max_pixels = 178956970, .max_side = 65535};

lv_status lv_image_check(const char *format, int64_t width, int64_t height,
                         const lv_image_limits *limits) {
    if (width < 1 || height < 1) {
        return lv_fail(LV_EFORMAT, "%s: the header says %lld x %lld pixels", format,
                       (long long)width, (long long)height);
    }
    if (width > limits->max_side || height > limits->max_side) {
        return lv_fail(LV_ELIMIT, "%s: %lld x %lld pixels, a side may have %d", format,
                       (long long)width, (long long)height, limits->max_side);
    }
    if ((uint64_t)width * (uint64_t)height > limits->max_pixels) {
        return lv_fail(LV_ELIMIT, "%s: %lld x %lld pixels, a picture may have %zu", format,
                       (long long)width, (long long)height, limits->max_pixels);
    }
    return LV_OK;
}

lv_status lv_image_new(int width, int height, lv_image *out) {
    size_t n_bytes;
    *out = (lv_image){.width = width, .height = height};
    if (lv_mul((size_t)width, (size_t)height, &n_bytes) && lv_mul(n_bytes, (size_t)3, &n_bytes)) {
        out->rgb = malloc(n_bytes);
    }
    if (!out->rgb) {
        *out = (lv_image){0};
        return lv_fail(LV_ENOMEM, "no memory for %d x %d pixels", width, height);
    }
    memset(out->rgb, 255, n_bytes);
    return LV_OK;
}

void lv_image_free(lv_image *image) {
    free(image->rgb);
    *image = (lv_image){0};
}

static bool has(lv_bytes file, size_t at, const char *magic, size_t n) {
    return file.n >= at + n && memcmp(file.data + at, magic, n) == 0;
}
#define HAS(at, magic) has(file, at, magic, sizeof(magic) - 1)

static bool is_pnm(lv_bytes file) {
    return file.n >= 3 && file.data[0] == 'P' && file.data[1] >= '1' && file.data[1] <= '6' &&
           (strchr(" \t\n\v\f\r#", file.data[2]) && file.data[2]);
}

static lv_decoder *find_decoder(lv_bytes file) {
    if (HAS(0, "\xff\xd8\xff")) {
        return lv_jpeg_decode;
    }
    if (HAS(0, "\x89PNG\r\n\x1a\n")) {
        return lv_png_decode;
    }
    if (HAS(0, "RIFF") && HAS(8, "WEBP")) {
        return lv_webp_decode;
    }
    if (HAS(0, "GIF87a") || HAS(0, "GIF89a")) {
        return lv_gif_decode;
    }
    if (HAS(0, "BM")) {
        return lv_bmp_decode;
    }
    return is_pnm(file) ? lv_pnm_decode : NULL;
}

// ISO base media files (AVIF, HEIC, ...) name their kind in the brand after "ftyp".
static const char *iso_media_name(lv_bytes file) {
    static const char *const brands[][2] = {{"avif", "AVIF"}, {"avis", "AVIF"}, {"heic", "HEIC"},
                                            {"heix", "HEIC"}, {"hevc", "HEIC"}, {"heim", "HEIC"},
                                            {"mif1", "HEIF"}, {"msf1", "HEIF"}};
    if (!HAS(4, "ftyp")) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof(brands) / sizeof(brands[0]); i++) {
        if (has(file, 8, brands[i][0], 4)) {
            return brands[i][1];
        }
    }
    return "MP4 or another ISO media file";
}

static bool is_svg(lv_bytes file) {
    size_t n = file.n < 512 ? file.n : 512;
    for (size_t i = 0; i + 4 <= n; i++) {
        if (memcmp(file.data + i, "<svg", 4) == 0) {
            return true;
        }
    }
    return false;
}

// A format known but not decoded here, or NULL.
static const char *undecoded_name(lv_bytes file) {
    static const struct {
        const char *magic;
        size_t n;
        const char *name;
    } known[] = {{"II*\0", 4, "TIFF"},
                 {"MM\0*", 4, "TIFF"},
                 {"II+\0", 4, "BigTIFF"},
                 {"MM\0+", 4, "BigTIFF"},
                 {"\xff\x0a", 2, "JPEG XL"},
                 {"\0\0\0\x0cJXL ", 8, "JPEG XL"},
                 {"\0\0\0\x0cjP  ", 8, "JPEG 2000"},
                 {"\xff\x4f\xff\x51", 4, "JPEG 2000"},
                 {"%PDF-", 5, "PDF"},
                 {"%!PS", 4, "PostScript"},
                 {"\xc5\xd0\xd3\xc6", 4, "EPS"},
                 {"\0\0\1\0", 4, "ICO"},
                 {"\0\0\2\0", 4, "CUR"},
                 {"8BPS", 4, "Photoshop PSD"},
                 {"DDS ", 4, "DDS"},
                 {"qoif", 4, "QOI"},
                 {"\x76\x2f\x31\x01", 4, "OpenEXR"},
                 {"#?RADIANCE", 10, "Radiance HDR"},
                 {"gimp xcf", 8, "GIMP XCF"},
                 {"P7\n", 3, "PAM"},
                 {"Pf\n", 3, "PFM"},
                 {"PF\n", 3, "PFM"},
                 {"\x8aMNG", 4, "MNG"},
                 {"FORM", 4, "IFF"}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (has(file, 0, known[i].magic, known[i].n)) {
            return known[i].name;
        }
    }
    const char *name = iso_media_name(file);
    return name ? name : is_svg(file) ? "SVG" : NULL;
}

static lv_status refuse(lv_bytes file) {
    const char *name = undecoded_name(file);
    if (name) {
        return lv_fail(LV_EUNSUPPORTED,
                       "%s is not read here: JPEG, PNG, WebP, GIF, BMP and PNM are", name);
    }
    if (file.n == 0) {
        return lv_fail(LV_EFORMAT, "the file is empty");
    }
    return lv_fail(
        LV_EFORMAT,
        "not a picture: none of JPEG, PNG, WebP, GIF, BMP, PNM begins as these %zu bytes", file.n);
}

lv_status lv_image_decode(const uint8_t *bytes, size_t n_bytes, const lv_image_limits *limits,
                          lv_image *out) {
    *out = (lv_image){0};
    lv_image_limits filled = limits ? *limits : default_limits;
    filled.max_bytes = filled.max_bytes ? filled.max_bytes : default_limits.max_bytes;
    filled.max_pixels = filled.max_pixels ? filled.max_pixels : default_limits.max_pixels;
    filled.max_side = filled.max_side > 0 ? filled.max_side : default_limits.max_side;
    if (n_bytes > filled.max_bytes) {
        return lv_fail(LV_ELIMIT, "%zu bytes, a picture file may have %zu", n_bytes,
                       filled.max_bytes);
    }
    lv_bytes file = {bytes, n_bytes};
    lv_decoder *decode = find_decoder(file);
    if (!decode) {
        return refuse(file);
    }
    int orientation = 1;
    lv_status status = decode(file, &filled, out, &orientation);
    if (status == LV_OK) {
        status = lv_image_orient(out, orientation);
    }
    if (status != LV_OK) {
        lv_image_free(out);
    }
    return status;
}
