// PNG, checked before and while it is read: chunk checksums, structure, sizes, a whole picture.
//
// A file is chunks of length, type, data, CRC-32. IHDR gives the size and the sample layout, PLTE
// the palette, tRNS a transparent colour or the palette's alphas, the IDATs together one zlib
// stream: rows of a filter byte and packed samples, or seven such pictures where interlaced.
// 16-bit samples keep their high byte, as Pillow does for colour; for 16-bit grey Pillow's
// convert("RGB") clips at 255 instead, which no one wants: here it keeps the high byte too.
// Source: the PNG specification (ISO/IEC 15948).
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { GREY = 0, COLOUR = 2, PALETTE = 3, GREY_ALPHA = 4, COLOUR_ALPHA = 6 };
enum { EXTRA_BYTES = 1 << 16 }; // a stream may hold this much more than the picture needs
enum { MAX_TEXT = 1 << 18 };    // of metadata, inflated

typedef struct png {
    int width, height, depth, colour, channels;
    bool interlaced, has_key, has_header, has_profile;
    uint8_t palette[256][3], alpha[256];
    int n_palette;
    uint32_t key[3]; // the transparent grey or colour, where has_key
    lv_bytes idat;   // the zlib stream, in the file or in `joined`
    uint8_t *joined;
    int exif, profile, xmp; // orientations that metadata give; 1: upright, or none
    uint32_t crc_table[256];
} png;

static const uint8_t pass_x[] = {0, 4, 0, 2, 0, 1, 0}, pass_y[] = {0, 0, 4, 0, 2, 0, 1};
static const uint8_t pass_dx[] = {8, 8, 4, 4, 2, 2, 1}, pass_dy[] = {8, 8, 8, 4, 4, 2, 2};

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
    if (chunk.n != 13 || p->has_header) {
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
    p->interlaced = d[12] == 1;
    p->has_header = true;
    return LV_OK;
}

static lv_status read_palette(png *p, lv_bytes chunk) {
    if (chunk.n % 3 || chunk.n > 768 || chunk.n == 0) {
        return lv_fail(LV_EFORMAT, "PNG: a palette of %zu bytes, 3 to 768 by threes expected",
                       chunk.n);
    }
    p->n_palette = (int)(chunk.n / 3);
    memcpy(p->palette, chunk.data, chunk.n);
    return LV_OK;
}

static lv_status read_transparency(png *p, lv_bytes chunk) {
    size_t n_keys = p->colour == GREY ? 1 : 3;
    if (p->colour == PALETTE) {
        memcpy(p->alpha, chunk.data, chunk.n < 256 ? chunk.n : 256);
    } else if (p->colour == GREY || p->colour == COLOUR) {
        if (chunk.n < 2 * n_keys) {
            return lv_fail(LV_EFORMAT, "PNG: a transparent colour of %zu bytes", chunk.n);
        }
        for (size_t i = 0; i < n_keys; i++) {
            p->key[i] = lv_be16(chunk.data + 2 * i) & ((1u << p->depth) - 1);
        }
        p->has_key = true;
    }
    return LV_OK;
}

// Consecutive IDATs are one stream: used in place where there is one, else joined.
static lv_status add_data(png *p, lv_bytes chunk, size_t n_file) {
    if (!p->idat.data) {
        p->idat = chunk;
        return LV_OK;
    }
    if (!p->joined) {
        p->joined = malloc(n_file); // all chunks together are smaller
        if (!p->joined) {
            return lv_fail(LV_ENOMEM, "PNG: no memory for %zu bytes", n_file);
        }
        memcpy(p->joined, p->idat.data, p->idat.n);
        p->idat.data = p->joined;
    }
    memcpy(p->joined + p->idat.n, chunk.data, chunk.n);
    p->idat.n += chunk.n;
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
        uint8_t *text = malloc(MAX_TEXT);
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

static lv_status read_chunk(png *p, const uint8_t *type, lv_bytes chunk, size_t n_file,
                            const lv_image_limits *limits) {
    if (!memcmp(type, "IHDR", 4)) {
        return read_header(p, chunk, limits);
    }
    if (!p->has_header) {
        return lv_fail(LV_EFORMAT, "PNG: a chunk before the header");
    }
    if (!memcmp(type, "PLTE", 4)) {
        return read_palette(p, chunk);
    }
    if (!memcmp(type, "tRNS", 4)) {
        return read_transparency(p, chunk);
    }
    if (!memcmp(type, "IDAT", 4)) {
        return add_data(p, chunk, n_file);
    }
    read_metadata(p, type, chunk);
    return LV_OK;
}

// Every chunk must be whole, and up to the picture data must have the right checksum. What follows
// the data is optional (it may say the orientation): reading stops where it is broken.
static lv_status read_chunks(png *p, lv_bytes file, const lv_image_limits *limits) {
    size_t at = 8;
    while (file.n - at >= 12) { // length, type, checksum
        const uint8_t *type = file.data + at + 4;
        size_t n = lv_be32(file.data + at);
        bool after_data = p->idat.data && memcmp(type, "IDAT", 4);
        if (n > file.n - at - 12) {
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
            LV_TRY(read_chunk(p, type, (lv_bytes){type + 4, n}, file.n, limits));
        }
        at += n + 12;
    }
    if (!p->idat.data) {
        return lv_fail(LV_EFORMAT, "PNG: no picture data in %zu bytes", file.n);
    }
    return LV_OK;
}

static size_t row_bytes(const png *p, int width) {
    return ((size_t)width * (size_t)(p->channels * p->depth) + 7) / 8;
}

// The size of pass `i` of an interlaced picture; either side may be 0.
static void pass_size(const png *p, int i, int *width, int *height) {
    *width = (p->width - pass_x[i] + pass_dx[i] - 1) / pass_dx[i];
    *height = (p->height - pass_y[i] + pass_dy[i] - 1) / pass_dy[i];
}

static size_t picture_bytes(const png *p) {
    if (!p->interlaced) {
        return (row_bytes(p, p->width) + 1) * (size_t)p->height;
    }
    size_t sum = 0;
    for (int i = 0; i < 7; i++) {
        int width, height;
        pass_size(p, i, &width, &height);
        sum += width > 0 && height > 0 ? (row_bytes(p, width) + 1) * (size_t)height : 0;
    }
    return sum;
}

static uint8_t paeth(int left, int up, int corner) {
    int estimate = left + up - corner;
    int d_left = abs(estimate - left), d_up = abs(estimate - up), d = abs(estimate - corner);
    return (uint8_t)(d_left <= d_up && d_left <= d ? left : d_up <= d ? up : corner);
}

// Undoes a row's filter in place; `above` is the row before it, or zeros. What lies before the row
// is 0 (n >= step).
static lv_status unfilter(uint8_t *row, const uint8_t *above, size_t n, size_t step, int filter) {
    switch (filter) {
    case 0:
        break;
    case 1:
        for (size_t i = step; i < n; i++) {
            row[i] = (uint8_t)(row[i] + row[i - step]);
        }
        break;
    case 2:
        for (size_t i = 0; i < n; i++) {
            row[i] = (uint8_t)(row[i] + above[i]);
        }
        break;
    case 3:
        for (size_t i = 0; i < step; i++) {
            row[i] = (uint8_t)(row[i] + above[i] / 2);
        }
        for (size_t i = step; i < n; i++) {
            row[i] = (uint8_t)(row[i] + (row[i - step] + above[i]) / 2);
        }
        break;
    case 4:
        for (size_t i = 0; i < step; i++) {
            row[i] = (uint8_t)(row[i] + above[i]);
        }
        for (size_t i = step; i < n; i++) {
            row[i] = (uint8_t)(row[i] + paeth(row[i - step], above[i], above[i - step]));
        }
        break;
    default:
        return lv_fail(LV_EFORMAT, "PNG: no such row filter: %d", filter);
    }
    return LV_OK;
}

// Sample `i` of a row at the file's own depth.
static uint32_t sample(const png *p, const uint8_t *row, size_t i) {
    if (p->depth == 16) {
        return lv_be16(row + 2 * i);
    }
    if (p->depth == 8) {
        return row[i];
    }
    size_t bit = i * (size_t)p->depth;
    return (uint32_t)(row[bit / 8] >> (8 - p->depth - (int)(bit % 8))) & ((1u << p->depth) - 1);
}

static uint32_t to_8_bits(const png *p, uint32_t value) {
    return p->depth == 16 ? value >> 8 : value * 255 / ((1u << p->depth) - 1);
}

static void expand_pixel(const png *p, const uint8_t *row, size_t x, uint8_t *rgb) {
    uint32_t s[4] = {0}, rgba[4] = {0, 0, 0, 255};
    size_t n = (size_t)p->channels;
    for (size_t c = 0; c < n; c++) {
        s[c] = sample(p, row, x * n + c);
    }
    if (p->colour == PALETTE) {
        for (int c = 0; c < 3; c++) {
            rgba[c] = p->palette[s[0]][c];
        }
        rgba[3] = p->alpha[s[0]];
    } else {
        bool grey = n < 3;
        for (int c = 0; c < 3; c++) {
            rgba[c] = to_8_bits(p, s[grey ? 0 : c]);
        }
        if (n == 2 || n == 4) {
            rgba[3] = to_8_bits(p, s[n - 1]);
        } else if (p->has_key && s[0] == p->key[0] &&
                   (grey || (s[1] == p->key[1] && s[2] == p->key[2]))) {
            rgba[3] = 0;
        }
    }
    for (int c = 0; c < 3; c++) {
        rgb[c] = lv_over_white(rgba[c], rgba[3]);
    }
}

static void put_on_white(const uint8_t *restrict rgba, int width, uint8_t *restrict rgb) {
    for (int x = 0; x < width; x++) {
        for (int c = 0; c < 3; c++) {
            rgb[3 * x + c] = lv_over_white(rgba[4 * x + c], rgba[4 * x + 3]);
        }
    }
}

// One pass: rows of samples at `raw`, to every dx-th pixel of every dy-th row.
static lv_status read_pass(const png *p, uint8_t *raw, int pass, const uint8_t *zeros,
                           lv_image *out) {
    int width = p->width, height = p->height, x0 = 0, y0 = 0, dx = 1, dy = 1;
    if (p->interlaced) {
        pass_size(p, pass, &width, &height);
        x0 = pass_x[pass], y0 = pass_y[pass], dx = pass_dx[pass], dy = pass_dy[pass];
    }
    size_t n = row_bytes(p, width), bits = (size_t)(p->channels * p->depth);
    bool in_order = p->depth == 8 && !p->has_key && dx == 1;
    const uint8_t *above = zeros;
    for (int y = 0; y < height; y++, raw += n + 1) {
        uint8_t *row = raw + 1;
        LV_TRY(unfilter(row, above, n, bits < 8 ? 1 : bits / 8, raw[0]));
        above = row;
        uint8_t *rgb = out->rgb + ((size_t)(y0 + y * dy) * (size_t)p->width + (size_t)x0) * 3;
        if (in_order && p->colour == COLOUR) {
            memcpy(rgb, row, n);
        } else if (in_order && p->colour == COLOUR_ALPHA) {
            put_on_white(row, width, rgb);
        } else {
            for (int x = 0; x < width; x++, rgb += 3 * dx) {
                expand_pixel(p, row, (size_t)x, rgb);
            }
        }
    }
    return LV_OK;
}

static lv_status read_picture(const png *p, uint8_t *raw, lv_image *out) {
    uint8_t *zeros = calloc(row_bytes(p, p->width), 1);
    if (!zeros) {
        return lv_fail(LV_ENOMEM, "PNG: no memory for a row");
    }
    lv_status status = LV_OK;
    for (int pass = 0; pass < (p->interlaced ? 7 : 1) && status == LV_OK; pass++) {
        int width = p->width, height = p->height;
        if (p->interlaced) {
            pass_size(p, pass, &width, &height);
        }
        if (width > 0 && height > 0) {
            status = read_pass(p, raw, pass, zeros, out);
            raw += (row_bytes(p, width) + 1) * (size_t)height;
        }
    }
    free(zeros);
    return status;
}

lv_status lv_png_decode(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                        int *orientation) {
    png *p = calloc(1, sizeof(*p));
    uint8_t *raw = NULL;
    lv_status status;
    if (!p) {
        return lv_fail(LV_ENOMEM, "PNG: no memory for the decoder");
    }
    crc_init(p);
    lv_palette_init(p->palette);
    memset(p->alpha, 255, sizeof(p->alpha));
    p->exif = p->profile = p->xmp = 1;
    LV_TRY_DONE(read_chunks(p, file, limits));
    *orientation = p->exif > 1 ? p->exif : p->profile > 1 ? p->profile : p->xmp;
    if (p->colour == PALETTE && p->n_palette == 0) {
        status = lv_fail(LV_EFORMAT, "PNG: the palette is missing");
        goto done;
    }
    size_t n = picture_bytes(p);
    if (n > INT_MAX - EXTRA_BYTES) {
        status = lv_fail(LV_ELIMIT, "PNG: %zu bytes of samples, %d can be read", n, INT_MAX);
        goto done;
    }
    // Deflate cannot shrink more than 1032 times: a small file that claims a huge picture costs
    // no memory.
    if (n / 1032 > p->idat.n) {
        status = lv_fail(LV_EFORMAT, "PNG: %zu bytes of data cannot hold %d x %d pixels", p->idat.n,
                         p->width, p->height);
        goto done;
    }
    raw = malloc(n + EXTRA_BYTES);
    if (!raw) {
        status = lv_fail(LV_ENOMEM, "PNG: no memory for %zu bytes", n);
        goto done;
    }
    int64_t got = lv_inflate(p->idat, raw, n + EXTRA_BYTES);
    if (got < (int64_t)n) {
        status = lv_fail(LV_EFORMAT, "PNG: the picture data is broken or cut (%lld of %zu bytes)",
                         (long long)(got < 0 ? 0 : got), n);
        goto done;
    }
    LV_TRY_DONE(lv_image_new(p->width, p->height, out));
    status = read_picture(p, raw, out);
done:
    free(raw);
    free(p->joined);
    free(p);
    return status;
}
