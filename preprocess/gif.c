// GIF: the first frame. Where it does not reach, the page is transparent (white), or colour 0 where
// no index is transparent, as in Pillow.
//
// A header with the screen's size and perhaps a palette, then blocks: extensions (of which the
// graphic control names a transparent index) and images: a rectangle, perhaps its own palette, and
// LZW codes in sub-blocks of up to 255 bytes that a block of length 0 ends.
// Own code, because stb_image (2.27 to 2.30) refuses frames that do not begin with a clear code or
// go on without one when the 4,096 codes are used up, which some encoders write, and takes a cut
// frame for a whole one: telling that apart needs every code's length, which is the decoder.
// Source: the GIF89a specification.
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "preprocess/internal.h"

enum { MAX_CODES = 4096 };

typedef struct gif {
    lv_bytes file;
    size_t at;
    int left, top, width, height; // the frame
    bool interlaced;
    uint8_t palette[256][3];
    int transparent; // index, or -1
} gif;

// The LZW dictionary: code c stands for the string of prefix[c], then the byte suffix[c].
typedef struct lzw {
    uint16_t prefix[MAX_CODES], length[MAX_CODES];
    uint8_t suffix[MAX_CODES], first[MAX_CODES];
} lzw;

static lv_status cut(const gif *g) {
    return lv_fail(LV_EFORMAT, "GIF: ends too early, after %zu bytes", g->file.n);
}

static lv_status take(gif *g, size_t n, const uint8_t **out) {
    *out = g->file.data + g->at;
    if (g->file.n - g->at < n) {
        return cut(g);
    }
    g->at += n;
    return LV_OK;
}

static lv_status read_palette(gif *g, int flags) {
    const uint8_t *colours;
    size_t n = (size_t)2 << (flags & 7);
    LV_TRY(take(g, 3 * n, &colours));
    lv_palette_init(g->palette);
    memcpy(g->palette, colours, 3 * n);
    return LV_OK;
}

static lv_status read_extension(gif *g) {
    const uint8_t *label, *size, *data;
    LV_TRY(take(g, 1, &label));
    for (bool first = true;; first = false) {
        LV_TRY(take(g, 1, &size));
        if (*size == 0) {
            return LV_OK;
        }
        LV_TRY(take(g, *size, &data));
        if (first && *label == 0xf9 && *size >= 4) {
            g->transparent = data[0] & 1 ? data[3] : -1;
        }
    }
}

static lv_status find_frame(gif *g) {
    const uint8_t *block;
    for (;;) {
        LV_TRY(take(g, 1, &block));
        if (*block == ',') {
            break;
        }
        if (*block == '!') {
            LV_TRY(read_extension(g));
        } else if (*block == ';') {
            return lv_fail(LV_EFORMAT, "GIF: no picture in the file");
        }
    }
    LV_TRY(take(g, 9, &block));
    g->left = (int)lv_le16(block);
    g->top = (int)lv_le16(block + 2);
    g->width = (int)lv_le16(block + 4);
    g->height = (int)lv_le16(block + 6);
    g->interlaced = block[8] & 0x40;
    return block[8] & 0x80 ? read_palette(g, block[8]) : LV_OK;
}

// Rows come in order, or every 8th from 0, every 8th from 4, every 4th from 2, every 2nd from 1.
static int row_of(const gif *g, int index) {
    static const int start[] = {0, 4, 2, 1}, step[] = {8, 8, 4, 2};
    if (!g->interlaced) {
        return index;
    }
    for (int pass = 0; pass < 4; pass++) {
        int n = (g->height - start[pass] + step[pass] - 1) / step[pass];
        if (index < n) {
            return start[pass] + index * step[pass];
        }
        index -= n;
    }
    return index;
}

// The frame's sub-blocks as one run of bytes, as far as the file goes: whether they hold the whole
// frame shows when they are unpacked.
static size_t join_blocks(gif *g, uint8_t *joined) {
    const uint8_t *data = g->file.data + g->at;
    size_t room = g->file.n - g->at, n_joined = 0;
    while (room > 1 && data[0] > 0) {
        size_t n = data[0] < room - 1 ? data[0] : room - 1;
        memcpy(joined + n_joined, data + 1, n);
        n_joined += n;
        data += n + 1;
        room -= n + 1;
    }
    return n_joined;
}

static lv_status broken(size_t n_done, size_t n) {
    return lv_fail(LV_EFORMAT, "GIF: the picture data is broken or cut after %zu of %zu pixels",
                   n_done, n);
}

// Decodes exactly n indices.
static lv_status unpack(lv_bytes codes, int min_bits, lzw *table, uint8_t *out, size_t n) {
    const int clear = 1 << min_bits, end = clear + 1;
    for (int i = 0; i < clear; i++) {
        table->length[i] = 1;
        table->first[i] = table->suffix[i] = (uint8_t)i;
    }
    int next = clear + 2, width = min_bits + 1, last = -1, n_bits = 0;
    uint32_t bits = 0;
    size_t at = 0, n_done = 0;
    while (n_done < n) {
        for (; n_bits < width; n_bits += 8) {
            if (at == codes.n) {
                return broken(n_done, n);
            }
            bits |= (uint32_t)codes.data[at++] << n_bits;
        }
        int code = (int)(bits & ((1u << width) - 1));
        bits >>= width;
        n_bits -= width;
        if (code == clear) {
            next = clear + 2, width = min_bits + 1, last = -1;
            continue;
        }
        if (code == end || code > next || (code >= clear && last < 0) ||
            (code == next && next == MAX_CODES)) {
            return broken(n_done, n);
        }
        if (last >= 0 && next < MAX_CODES) { // the string of the code before, and this one's start
            table->prefix[next] = (uint16_t)last;
            table->length[next] = (uint16_t)(table->length[last] + 1);
            table->first[next] = table->first[last];
            table->suffix[next] = table->first[code == next ? last : code];
            next++;
            width += next == 1 << width && width < 12;
        }
        size_t length = table->length[code];
        int c = code;
        for (size_t i = length; i-- > 0; c = table->prefix[c]) {
            if (n_done + i < n) {
                out[n_done + i] = table->suffix[c];
            }
        }
        n_done += length;
        last = code;
    }
    return LV_OK;
}

static void draw(const gif *g, const uint8_t *indices, lv_image *out) {
    size_t n_pixels = (size_t)out->width * (size_t)out->height;
    for (size_t i = 0; i < n_pixels && g->transparent < 0; i++) {
        memcpy(out->rgb + 3 * i, g->palette[0], 3);
    }
    for (int i = 0; i < g->height; i++) {
        int y = g->top + row_of(g, i);
        uint8_t *rgb = out->rgb + ((size_t)y * (size_t)out->width + (size_t)g->left) * 3;
        for (int x = 0; x < g->width; x++, rgb += 3, indices++) {
            if (*indices != g->transparent) {
                memcpy(rgb, g->palette[*indices], 3);
            }
        }
    }
}

static lv_status read_frame(gif *g, lv_image *out) {
    const uint8_t *min_bits;
    size_t n = (size_t)g->width * (size_t)g->height, n_codes;
    uint8_t *indices = NULL, *codes = NULL;
    lzw *table = NULL;
    lv_status status = take(g, 1, &min_bits);
    if (status != LV_OK) {
        return status;
    }
    if (*min_bits < 1 || *min_bits > 11) {
        return lv_fail(LV_EFORMAT, "GIF: codes of %d bits, 1 to 11 expected", *min_bits);
    }
    codes = malloc(g->file.n - g->at + 1);
    table = calloc(1, sizeof(*table));
    indices = malloc(n);
    if (!codes || !table || !indices) {
        status = lv_fail(LV_ENOMEM, "GIF: no memory for %zu pixels", n);
        goto done;
    }
    n_codes = join_blocks(g, codes);
    LV_TRY_DONE(unpack((lv_bytes){codes, n_codes}, *min_bits, table, indices, n));
    draw(g, indices, out);
done:
    free(codes);
    free(table);
    free(indices);
    return status;
}

lv_status lv_gif_decode(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                        int *orientation) {
    (void)orientation;
    gif g = {.file = file, .at = 6, .transparent = -1};
    const uint8_t *screen;
    LV_TRY(take(&g, 7, &screen));
    int width = (int)lv_le16(screen), height = (int)lv_le16(screen + 2);
    LV_TRY(lv_image_check("GIF", width > 0 ? width : 1, height > 0 ? height : 1, limits));
    lv_palette_init(g.palette);
    if (screen[4] & 0x80) {
        LV_TRY(read_palette(&g, screen[4]));
    }
    LV_TRY(find_frame(&g));
    // A frame that passes the screen widens it, as in Pillow and browsers.
    width = g.left + g.width > width ? g.left + g.width : width;
    height = g.top + g.height > height ? g.top + g.height : height;
    LV_TRY(lv_image_check("GIF", width, height, limits));
    LV_TRY(lv_image_check("GIF frame", g.width, g.height, limits));
    LV_TRY(lv_image_new(width, height, out));
    return read_frame(&g, out);
}
