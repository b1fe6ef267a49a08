// PNG: checked here, decoded by stb_image.
//
// A file is chunks of length, type, data, CRC-32. IHDR gives the size and the sample layout, PLTE
// the palette, tRNS a transparent colour or the palette's alphas, the IDATs together one zlib
// stream. Those chunks, once checked, are written to a new file with nothing else in it: that is
// what stb_image sees, and it fails where the stream is broken or holds too few bytes.
// 16-bit samples keep their high byte, as Pillow does for colour; for 16-bit grey Pillow's
// convert("RGB") clips at 255 instead, which no one wants: here it keeps the high byte too.
// Source: the PNG specification (ISO/IEC 15948).
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { GREY = 0, COLOUR = 2, PALETTE = 3, GREY_ALPHA = 4, COLOUR_ALPHA = 6 };
enum { MAX_TEXT = 1 << 18 };              // of metadata, inflated
enum { MAX_PIXELS = INT_MAX / 9 };        // stb_image counts in int: 8 bytes a pixel, 1 more a row
enum { SIGNATURE = 8, CHUNK_EXTRA = 12 }; // of a chunk: length, type, checksum
enum { HEAD_ROOM = 2048 };                // more than all checked chunks before the data

typedef struct png {
    int width, height, depth, colour, channels;
    bool has_palette, has_data, has_profile;
    lv_bytes header;      // the chunk's data
    uint8_t palette[768]; // every index has a colour
    uint8_t clear[256];   // tRNS, checked
    size_t n_clear, n_data;
    uint8_t *checked; // the new file
    size_t n_checked;
    int exif, profile, xmp; // orientations that metadata give; 1: upright, or none
    uint32_t crc_table[256];
} png;

static void crc_init(png *p) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++) {
            c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        }
        p->crc_table[i] = c;
    }
}

static uint32_t crc(const png *p, const uint8_t *data, size_t n) {
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        c = p->crc_table[(c ^ data[i]) & 255] ^ (c >> 8);
    }
    return ~c;
}

static lv_status read_header(png *p, lv_bytes chunk, const lv_image_limits *limits) {
    static const uint8_t depths[7] = {
        1 | 2 | 4 | 8 | 16, 0, 8 | 16, 1 | 2 | 4 | 8, 8 | 16, 0, 8 | 16};
    static const int channels[7] = {1, 0, 3, 1, 2, 0, 4};
    if (chunk.n != 13 || p->header.data) {
        return lv_fail(LV_EFORMAT, "PNG: a header of %zu bytes where one of 13 is expected",
                       chunk.n);
    }
    const uint8_t *d = chunk.data;
    LV_TRY(lv_image_check("PNG", lv_be32(d), lv_be32(d + 4), limits));
    p->width = (int)lv_be32(d);
    p->height = (int)lv_be32(d + 4);
    p->depth = d[8];
    p->colour = d[9];
    if (p->colour > 6 || p->depth > 16 || (p->depth & (p->depth - 1)) ||
        !(depths[p->colour] & p->depth) || d[10] != 0 || d[11] != 0 || d[12] > 1) {
        return lv_fail(LV_EFORMAT,
                       "PNG: no such kind: depth %d, colour %d, compression %d, filter %d, "
                       "interlace %d",
                       d[8], d[9], d[10], d[11], d[12]);
    }
    p->channels = channels[p->colour];
    p->header = chunk;
    return LV_OK;
}

static lv_status read_palette(png *p, lv_bytes chunk) {
    if (chunk.n % 3 || chunk.n > 768 || chunk.n == 0) {
        return lv_fail(LV_EFORMAT, "PNG: a palette of %zu bytes, 3 to 768 by threes expected",
                       chunk.n);
    }
    p->has_palette = true;
    memcpy(p->palette, chunk.data, chunk.n);
    return LV_OK;
}

static lv_status read_transparency(png *p, lv_bytes chunk) {
    size_t n_keys = p->colour == GREY ? 1 : 3;
    if (p->colour == PALETTE) {
        p->n_clear = chunk.n < 256 ? chunk.n : 256;
        memcpy(p->clear, chunk.data, p->n_clear);
    } else if (p->colour == GREY || p->colour == COLOUR) {
        if (chunk.n < 2 * n_keys) {
            return lv_fail(LV_EFORMAT, "PNG: a transparent colour of %zu bytes", chunk.n);
        }
        for (size_t i = 0; i < n_keys; i++) {
            uint32_t key = lv_be16(chunk.data + 2 * i) & ((1u << p->depth) - 1);
            p->clear[2 * i] = (uint8_t)(key >> 8);
            p->clear[2 * i + 1] = (uint8_t)key;
        }
        p->n_clear = 2 * n_keys;
    }
    return LV_OK;
}

// stb_image reads no checksums: they stay 0.
static void put_chunk(png *p, const char *type, const uint8_t *data, size_t n) {
    uint8_t *to = p->checked + p->n_checked;
    for (int i = 0; i < 4; i++) {
        to[i] = (uint8_t)(n >> (24 - 8 * i));
    }
    memcpy(to + 4, type, 4);
    memcpy(to + 8, data, n);
    memset(to + 8 + n, 0, 4);
    p->n_checked += n + CHUNK_EXTRA;
}

static lv_status add_data(png *p, lv_bytes chunk) {
    if (p->colour == PALETTE && !p->has_palette) {
        return lv_fail(LV_EFORMAT, "PNG: the palette is missing");
    }
    if (!p->has_data) {
        put_chunk(p, "IHDR", p->header.data, p->header.n);
        put_chunk(p, "PLTE", p->palette, sizeof(p->palette));
        if (p->n_clear > 0) {
            put_chunk(p, "tRNS", p->clear, p->n_clear);
        }
    }
    if (chunk.n > 0) { // stb_image would do sums with its null pointer
        put_chunk(p, "IDAT", chunk.data, chunk.n);
    }
    p->has_data = true;
    p->n_data += chunk.n;
    return LV_OK;
}

// Text behind `keyword` and the zero that ends it; n is 0 where the chunk has another keyword.
static lv_bytes text_of(lv_bytes chunk, const char *keyword) {
    size_t n = strlen(keyword) + 1;
    bool same = chunk.n > n && memcmp(chunk.data, keyword, n) == 0;
    return same ? (lv_bytes){chunk.data + n, chunk.n - n} : (lv_bytes){chunk.data, 0};
}

// Orientations: an eXIf chunk; ImageMagick's text, plain or compressed (a 0 byte, then zlib); XMP.
static void read_metadata(png *p, const uint8_t *type, lv_bytes chunk) {
    lv_bytes profile = text_of(chunk, "Raw profile type exif");
    if (!memcmp(type, "eXIf", 4)) {
        p->exif = lv_exif_orientation(chunk);
    } else if (!memcmp(type, "tEXt", 4) && profile.n > 0) {
        p->profile = lv_exif_hex_orientation(profile);
    } else if (!memcmp(type, "zTXt", 4) && profile.n > 1 && !p->has_profile) {
        p->has_profile = true; // once: thousands of such chunks would take minutes
        uint8_t *text = calloc(1, MAX_TEXT);
        int64_t n =
            text ? lv_inflate((lv_bytes){profile.data + 1, profile.n - 1}, text, MAX_TEXT) : 0;
        if (n > 0) {
            p->profile = lv_exif_hex_orientation((lv_bytes){text, (size_t)n});
        }
        free(text);
    } else if (!memcmp(type, "iTXt", 4)) {
        p->xmp = lv_xmp_orientation(text_of(chunk, "XML:com.adobe.xmp"));
    }
}

static lv_status read_chunk(png *p, const uint8_t *type, lv_bytes chunk,
                            const lv_image_limits *limits) {
    if (!memcmp(type, "IHDR", 4)) {
        return read_header(p, chunk, limits);
    }
    if (!p->header.data) {
        return lv_fail(LV_EFORMAT, "PNG: a chunk before the header");
    }
    if (!memcmp(type, "PLTE", 4)) {
        return read_palette(p, chunk);
    }
    if (!memcmp(type, "tRNS", 4)) {
        return read_transparency(p, chunk);
    }
    if (!memcmp(type, "IDAT", 4)) {
        return add_data(p, chunk);
    }
    read_metadata(p, type, chunk);
    return LV_OK;
}

// Every chunk must be whole, and up to the picture data must have the right checksum. What follows
// the data is optional (it may say the orientation): reading stops where it is broken.
static lv_status read_chunks(png *p, lv_bytes file, const lv_image_limits *limits) {
    size_t at = SIGNATURE;
    while (file.n - at >= CHUNK_EXTRA) {
        const uint8_t *type = file.data + at + 4;
        size_t n = lv_be32(file.data + at);
        bool after_data = p->has_data && memcmp(type, "IDAT", 4);
        if (n > file.n - at - CHUNK_EXTRA) {
            return lv_fail(LV_EFORMAT, "PNG: the chunk at byte %zu passes the end of the file", at);
        }
        bool wrong = crc(p, type, n + 4) != lv_be32(type + 4 + n);
        if (after_data && (wrong || !memcmp(type, "IEND", 4))) {
            return LV_OK;
        }
        if (wrong) {
            return lv_fail(LV_EFORMAT, "PNG: the chunk at byte %zu has a wrong checksum", at);
        }
        if (after_data) {
            read_metadata(p, type, (lv_bytes){type + 4, n});
        } else {
            LV_TRY(read_chunk(p, type, (lv_bytes){type + 4, n}, limits));
        }
        at += n + CHUNK_EXTRA;
    }
    if (!p->has_data) {
        return lv_fail(LV_EFORMAT, "PNG: no picture data in %zu bytes", file.n);
    }
    return LV_OK;
}

static lv_status read_picture(png *p, lv_image *out) {
    if ((uint64_t)p->width * (uint64_t)p->height > MAX_PIXELS) {
        return lv_fail(LV_ELIMIT, "PNG: %d x %d pixels, %d can be read", p->width, p->height,
                       MAX_PIXELS);
    }
    size_t n_bits = (size_t)p->width * (size_t)(p->channels * p->depth);
    size_t n_inflated = ((n_bits + 7) / 8 + 1) * (size_t)p->height; // interlaced: up to twice that
    // Deflate cannot shrink more than 1032 times: a small file that claims a huge picture costs
    // no memory.
    if (n_inflated / 1032 > p->n_data) {
        return lv_fail(LV_EFORMAT, "PNG: %zu bytes of data cannot hold %d x %d pixels", p->n_data,
                       p->width, p->height);
    }
    put_chunk(p, "IEND", p->header.data, 0);
    bool has_alpha = p->n_clear > 0 || p->colour == GREY_ALPHA || p->colour == COLOUR_ALPHA;
    return lv_stb_png((lv_bytes){p->checked, p->n_checked}, n_inflated, has_alpha, out);
}

lv_status lv_png_decode(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                        int *orientation) {
    png *p = calloc(1, sizeof(*p));
    uint8_t *checked = malloc(file.n + HEAD_ROOM);
    lv_status status;
    if (!p || !checked) {
        status = lv_fail(LV_ENOMEM, "PNG: no memory for %zu bytes", file.n);
        goto done;
    }
    crc_init(p);
    for (int i = 0; i < 768; i++) { // as Pillow: index i without a colour is grey i
        p->palette[i] = (uint8_t)(i / 3);
    }
    p->checked = checked;
    memcpy(checked, file.data, SIGNATURE);
    p->n_checked = SIGNATURE;
    p->exif = p->profile = p->xmp = 1;
    LV_TRY_DONE(read_chunks(p, file, limits));
    *orientation = p->exif > 1 ? p->exif : p->profile > 1 ? p->profile : p->xmp;
    LV_TRY_DONE(read_picture(p, out));
done:
    free(checked);
    free(p);
    return status;
}
