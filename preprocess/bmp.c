// BMP: OS/2 1 and Windows headers, 1, 4, 8, 16, 24 and 32 bits a pixel, bit fields, RLE4 and RLE8.
//
// A file header (14 bytes, with the offset of the pixels), a header whose first word is its size,
// masks where the header is too short to hold them, a palette of blue, green, red(, 0), then rows
// padded to 4 bytes, from the bottom up unless the height is negative. As in Pillow, the fourth
// byte of 32-bit pixels is alpha only where bit fields say so.
// Own code, because stb_image (2.27 to 2.30) reads only plain rows: no runs, no headers of 52 or
// 64 bytes, no palette of a length that the offset does not show, and it rounds 5 and 6 bits
// otherwise than Pillow. Plain rows are the ten lines here that it could spare.
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { FILE_HEADER = 14, RAW = 0, RLE8 = 1, RLE4 = 2, BITFIELDS = 3 };

typedef struct bmp {
    lv_bytes file;
    size_t header, pixels; // offsets
    int64_t width, height;
    bool top_down;
    uint32_t bits, compression;
    uint32_t masks[4]; // red, green, blue, alpha
    uint8_t palette[256][3];
} bmp;

static lv_status cut(const bmp *b) {
    return lv_fail(LV_EFORMAT, "BMP: ends too early, after %zu bytes", b->file.n);
}

static void read_sizes(bmp *b) {
    const uint8_t *h = b->file.data + FILE_HEADER;
    if (b->header == 12) {
        b->width = lv_le16(h + 4);
        b->height = lv_le16(h + 6);
        b->bits = lv_le16(h + 10);
        return;
    }
    b->width = (int32_t)lv_le32(h + 4);
    b->height = (int32_t)lv_le32(h + 8);
    b->top_down = b->height < 0;
    b->height = b->top_down ? -b->height : b->height;
    b->bits = lv_le16(h + 14);
    b->compression = lv_le32(h + 16);
}

static lv_status check_kind(const bmp *b) {
    bool fits;
    switch (b->compression) {
    case RAW:
        fits = b->bits == 1 || b->bits == 4 || b->bits == 8 || b->bits == 16 || b->bits == 24 ||
               b->bits == 32;
        break;
    case RLE8:
        fits = b->bits == 8;
        break;
    case RLE4:
        fits = b->bits == 4;
        break;
    default:
        fits = b->compression == BITFIELDS && b->header != 64 &&
               (b->bits == 16 || b->bits == 24 || b->bits == 32);
    }
    return fits ? LV_OK
                : lv_fail(LV_EUNSUPPORTED, "BMP: %u bits a pixel with compression %u", b->bits,
                          b->compression);
}

// Masks lie in long headers, or behind a short one; `*at` moves past those.
static lv_status read_masks(bmp *b, size_t *at) {
    static const uint32_t masks_16[] = {0x7c00, 0x3e0, 0x1f, 0};
    static const uint32_t masks_32[] = {0xff0000, 0xff00, 0xff, 0};
    memcpy(b->masks, b->bits == 16 ? masks_16 : masks_32, sizeof(b->masks));
    if (b->compression != BITFIELDS) {
        return LV_OK;
    }
    size_t n = b->header >= 56 ? 4 : 3;
    const uint8_t *masks = b->file.data + FILE_HEADER + 40;
    if (b->header < 52) {
        if (b->file.n < *at + 12) {
            return cut(b);
        }
        *at += 12;
    }
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) {
        b->masks[i] = lv_le32(masks + 4 * i);
        any |= b->masks[i];
    }
    if (any == 0 && b->bits == 32) { // what some writers of BGRA do
        memcpy(b->masks, masks_32, sizeof(masks_32));
        b->masks[3] = 0xff000000u;
    }
    return LV_OK;
}

static lv_status read_palette(bmp *b, size_t *at) {
    if (b->bits > 8) {
        return LV_OK;
    }
    size_t entry = b->header == 12 ? 3 : 4, n = (size_t)1 << b->bits;
    uint32_t n_used = b->header == 12 ? 0 : lv_le32(b->file.data + FILE_HEADER + 32);
    n = n_used ? n_used : n;
    size_t room = b->file.n - *at;
    if (n > 65536 || n * entry > room) {
        return lv_fail(LV_EFORMAT, "BMP: a palette of %zu colours in %zu bytes", n, room);
    }
    for (size_t i = 0; i < n && i < 256; i++) {
        const uint8_t *bgr = b->file.data + *at + i * entry;
        for (int c = 0; c < 3; c++) {
            b->palette[i][c] = bgr[2 - c];
        }
    }
    *at += n * entry;
    return LV_OK;
}

static uint8_t *row_of(const bmp *b, int64_t y, lv_image *out) {
    int64_t row = b->top_down ? y : b->height - 1 - y;
    return out->rgb + (size_t)row * (size_t)out->width * 3;
}

// The bits of `value` under a contiguous mask, scaled to a byte; `otherwise` for an empty mask.
static uint8_t masked(uint32_t value, uint32_t mask, uint8_t otherwise) {
    if (mask == 0) {
        return otherwise;
    }
    int shift = __builtin_ctz(mask);
    return (uint8_t)((uint64_t)((value & mask) >> shift) * 255 / (mask >> shift));
}

static void read_masked_row(const bmp *b, const uint8_t *row, uint8_t *rgb) {
    for (int64_t x = 0; x < b->width; x++, rgb += 3) {
        uint32_t value = b->bits == 16   ? lv_le16(row + 2 * x)
                         : b->bits == 24 ? lv_le16(row + 3 * x) | (uint32_t)row[3 * x + 2] << 16
                                         : lv_le32(row + 4 * x);
        uint8_t alpha = masked(value, b->masks[3], 255);
        for (int c = 0; c < 3; c++) {
            rgb[c] = lv_over_white(masked(value, b->masks[c], 0), alpha);
        }
    }
}

static void read_palette_row(const bmp *b, const uint8_t *row, uint8_t *rgb) {
    for (size_t x = 0; x < (size_t)b->width; x++, rgb += 3) {
        size_t bit = x * b->bits;
        int index = row[bit / 8] >> (8 - b->bits - bit % 8) & ((1 << b->bits) - 1);
        memcpy(rgb, b->palette[index], 3);
    }
}

static lv_status read_rows(const bmp *b, lv_image *out) {
    size_t used = ((size_t)b->width * b->bits + 7) / 8, stride = (used + 3) & ~(size_t)3;
    size_t room = b->file.n - b->pixels;
    if (room < used || (room - used) / stride + 1 < (size_t)b->height) { // last padding is optional
        return cut(b);
    }
    for (int64_t y = 0; y < b->height; y++) {
        const uint8_t *row = b->file.data + b->pixels + (size_t)y * stride;
        if (b->bits <= 8) {
            read_palette_row(b, row, row_of(b, y, out));
        } else {
            read_masked_row(b, row, row_of(b, y, out));
        }
    }
    return LV_OK;
}

typedef struct cursor {
    int64_t x, y;
} cursor;

// Index `i` of a run, in bytes or (RLE4) half bytes; what passes the row's end is dropped.
static void put_run(const bmp *b, cursor *to, const uint8_t *run, size_t n, bool repeat,
                    lv_image *out) {
    for (size_t i = 0; i < n; i++, to->x++) {
        size_t at = repeat ? (b->bits == 4 ? i % 2 : 0) : i;
        int index = b->bits == 8 ? run[at] : run[at / 2] >> (at % 2 ? 0 : 4) & 15;
        if (to->x < b->width && to->y < b->height) {
            memcpy(row_of(b, to->y, out) + to->x * 3, b->palette[index], 3);
        }
    }
}

// Pairs (n, index): a run. (0, 0): next row; (0, 1): the end; (0, 2): move by the next two bytes;
// (0, n): n indices as they are, padded to 2 bytes. What is never drawn has colour 0.
static lv_status read_runs(const bmp *b, lv_image *out) {
    for (size_t i = 0; i < (size_t)out->width * (size_t)out->height; i++) {
        memcpy(out->rgb + 3 * i, b->palette[0], 3);
    }
    size_t at = b->pixels, n_file = b->file.n;
    cursor to = {0, 0};
    while (to.y < b->height && !(to.y == b->height - 1 && to.x >= b->width)) {
        if (n_file - at < 2) {
            return cut(b);
        }
        const uint8_t *pair = b->file.data + at;
        at += 2;
        if (pair[0] > 0) {
            put_run(b, &to, pair + 1, pair[0], true, out);
        } else if (pair[1] == 0) {
            to = (cursor){0, to.y + 1};
        } else if (pair[1] == 1) {
            return LV_OK;
        } else {
            size_t n = pair[1] == 2 ? 2 : (pair[1] * (size_t)b->bits + 15) / 16 * 2;
            if (n_file - at < n) {
                return cut(b);
            }
            if (pair[1] == 2) {
                to = (cursor){to.x + pair[2], to.y + pair[3]};
            } else {
                put_run(b, &to, pair + 2, pair[1], false, out);
            }
            at += n;
        }
    }
    return LV_OK;
}

lv_status lv_bmp_decode(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                        int *orientation) {
    (void)orientation;
    bmp b = {.file = file};
    lv_palette_init(b.palette);
    if (file.n < FILE_HEADER + 4) {
        return cut(&b);
    }
    b.header = lv_le32(file.data + FILE_HEADER);
    if (b.header != 12 && (b.header < 40 || b.header > 124)) {
        return lv_fail(LV_EFORMAT, "BMP: a header of %zu bytes, 12 or 40 to 124 expected",
                       b.header);
    }
    size_t at = FILE_HEADER + b.header;
    if (file.n < at) {
        return cut(&b);
    }
    read_sizes(&b);
    LV_TRY(lv_image_check("BMP", b.width, b.height, limits));
    LV_TRY(check_kind(&b));
    LV_TRY(read_masks(&b, &at));
    LV_TRY(read_palette(&b, &at));
    uint32_t offset = lv_le32(file.data + 10);
    bool skips_palette = offset == FILE_HEADER + b.header; // a known writer's mistake
    b.pixels = offset && !skips_palette ? offset : at;
    if (b.pixels > file.n) {
        return cut(&b);
    }
    bool runs = b.compression == RLE4 || b.compression == RLE8;
    // Rows need their bytes: a small file that claims a huge picture costs no memory.
    if (!runs && (uint64_t)b.width * (uint64_t)b.height * b.bits / 8 > file.n) {
        return cut(&b);
    }
    LV_TRY(lv_image_new((int)b.width, (int)b.height, out));
    return runs ? read_runs(&b, out) : read_rows(&b, out);
}
