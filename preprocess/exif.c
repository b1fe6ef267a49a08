// The one thing EXIF says that changes pixels: which way up the picture is.
//
// A TIFF block: "II" or "MM" (byte order), 42, the offset of the first directory; a directory is a
// count of 12-byte entries: tag, type, count, value or offset. Orientation is tag 0x112, a SHORT.
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { TAG_ORIENTATION = 0x0112, TYPE_SHORT = 3 };

int lv_exif_orientation(lv_bytes tiff) {
    if (tiff.n < 8 || (memcmp(tiff.data, "II", 2) && memcmp(tiff.data, "MM", 2))) {
        return 1;
    }
    bool little = tiff.data[0] == 'I';
    size_t at = little ? lv_le32(tiff.data + 4) : lv_be32(tiff.data + 4);
    if (at > tiff.n - 2) {
        return 1;
    }
    size_t n_entries = little ? lv_le16(tiff.data + at) : lv_be16(tiff.data + at);
    at += 2;
    for (; n_entries > 0 && tiff.n - at >= 12; n_entries--, at += 12) {
        const uint8_t *entry = tiff.data + at;
        uint32_t tag = little ? lv_le16(entry) : lv_be16(entry);
        uint32_t type = little ? lv_le16(entry + 2) : lv_be16(entry + 2);
        uint32_t value = little ? lv_le16(entry + 8) : lv_be16(entry + 8);
        if (tag == TAG_ORIENTATION) {
            return type == TYPE_SHORT && value >= 1 && value <= 8 ? (int)value : 1;
        }
    }
    return 1;
}

static int hex_value(uint8_t c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int lv_exif_hex_orientation(lv_bytes text) {
    static const char prefix[] = "Exif\0";
    uint8_t block[4096]; // the orientation is in the first directory
    size_t at = 0, n = 0;
    for (int n_lines = 0; at < text.n && n_lines < 3; at++) {
        n_lines += text.data[at] == '\n';
    }
    for (int high = -1; at < text.n && n < sizeof(block); at++) {
        int value = hex_value(text.data[at]);
        if (value >= 0 && high < 0) {
            high = value;
        } else if (value >= 0) {
            block[n++] = (uint8_t)(high * 16 + value);
            high = -1;
        }
    }
    size_t skip = n >= 6 && memcmp(block, prefix, 6) == 0 ? 6 : 0;
    return lv_exif_orientation((lv_bytes){block + skip, n - skip});
}

int lv_xmp_orientation(lv_bytes xml) {
    static const char name[] = "tiff:Orientation";
    const size_t n_name = sizeof(name) - 1;
    for (const uint8_t *at = xml.data, *end = xml.data + xml.n;
         (at = memmem(at, (size_t)(end - at), name, n_name)) != NULL;) {
        at += n_name;
        size_t skip = end - at >= 3 && at[0] == '=' && at[1] == '"' ? 2 : 1;
        if ((size_t)(end - at) > skip && (skip == 2 || at[0] == '>') && at[skip] >= '1' &&
            at[skip] <= '8') {
            return at[skip] - '0';
        }
    }
    return 1;
}

// Orientations 2 to 8 as steps: transpose first (5 to 8 lie on their side), then mirror each axis.
lv_status lv_image_orient(lv_image *image, int orientation) {
    if (orientation < 2 || orientation > 8) {
        return LV_OK;
    }
    bool transpose = orientation >= 5;
    bool flip_x = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    bool flip_y = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    size_t width = (size_t)image->width, height = (size_t)image->height;
    size_t out_width = transpose ? height : width, out_height = transpose ? width : height;
    uint8_t *out = malloc(width * height * 3);
    if (!out) {
        return lv_fail(LV_ENOMEM, "no memory to turn %zu x %zu pixels", width, height);
    }
    for (size_t y = 0; y < out_height; y++) {
        size_t from_y = flip_y ? out_height - 1 - y : y;
        uint8_t *to = out + y * out_width * 3;
        for (size_t x = 0; x < out_width; x++, to += 3) {
            size_t from_x = flip_x ? out_width - 1 - x : x;
            size_t at = transpose ? from_x * width + from_y : from_y * width + from_x;
            memcpy(to, image->rgb + at * 3, 3);
        }
    }
    free(image->rgb);
    *image = (lv_image){.width = (int)out_width, .height = (int)out_height, .rgb = out};
    return LV_OK;
}
