// PNM: PBM, PGM and PPM, plain (P1 to P3) and raw (P4 to P6), up to 16 bits a sample.
//
// Samples are scaled to 8 bits as round(value / maxval * 255), halves to even, as Pillow does for
// colour; its convert("RGB") clips grey of more than 8 bits instead, which no one wants. In PBM 1
// is black.
// Own code, because stb_image (2.27 to 2.30) is right only for raw grey and colour whose maxval is
// 255: it knows no other kind, does not scale, and leaves 16-bit samples in the file's byte order.
#include <math.h>
#include <stdlib.h>

#include "core/files.h"
#include "preprocess/internal.h"

typedef struct pnm {
    lv_bytes file;
    size_t at;
    int kind; // 1 to 6
    uint32_t width, height, maxval;
} pnm;

static lv_status cut(const pnm *p) {
    return lv_fail(LV_EFORMAT, "PNM: ends too early, after %zu bytes", p->file.n);
}

static bool is_space(uint8_t c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void skip_space(pnm *p) {
    bool comment = false;
    for (; p->at < p->file.n; p->at++) {
        uint8_t c = p->file.data[p->at];
        comment = comment ? c != '\n' && c != '\r' : c == '#';
        if (!comment && !is_space(c)) {
            return;
        }
    }
}

static lv_status read_number(pnm *p, uint32_t max, uint32_t *out) {
    skip_space(p);
    uint32_t value = 0;
    size_t start = p->at;
    for (; p->at < p->file.n && p->file.data[p->at] >= '0' && p->file.data[p->at] <= '9'; p->at++) {
        value = value * 10 + (uint32_t)(p->file.data[p->at] - '0');
        if (value > max) {
            return lv_fail(LV_EFORMAT, "PNM: the number at byte %zu is greater than %u", start,
                           max);
        }
    }
    if (p->at == p->file.n && p->at == start) {
        return cut(p);
    }
    if (p->at == start) {
        return lv_fail(LV_EFORMAT, "PNM: no number at byte %zu", start);
    }
    *out = value;
    return LV_OK;
}

static uint8_t to_byte(const pnm *p, uint32_t value) {
    long scaled = lrint((double)value / p->maxval * 255.0);
    return (uint8_t)(scaled > 255 ? 255 : scaled);
}

static lv_status read_plain(pnm *p, int channels, lv_image *out) {
    size_t n = (size_t)out->width * (size_t)out->height;
    for (size_t i = 0; i < n; i++) {
        for (int c = 0; c < channels; c++) {
            uint32_t value;
            LV_TRY(read_number(p, p->maxval, &value));
            out->rgb[3 * i + (size_t)c] = to_byte(p, value);
        }
    }
    return LV_OK;
}

// Plain PBM: digits need no space between them.
static lv_status read_plain_bits(pnm *p, lv_image *out) {
    size_t n = (size_t)out->width * (size_t)out->height;
    for (size_t i = 0; i < n; i++) {
        skip_space(p);
        if (p->at == p->file.n) {
            return cut(p);
        }
        uint8_t c = p->file.data[p->at++];
        if (c != '0' && c != '1') {
            return lv_fail(LV_EFORMAT, "PNM: neither 0 nor 1 at byte %zu", p->at - 1);
        }
        out->rgb[3 * i] = c == '1' ? 0 : 255;
    }
    return LV_OK;
}

static lv_status read_raw_bits(const pnm *p, lv_image *out) {
    size_t stride = ((size_t)out->width + 7) / 8;
    if ((p->file.n - p->at) / stride < (size_t)out->height) {
        return cut(p);
    }
    uint8_t *rgb = out->rgb;
    for (size_t y = 0; y < (size_t)out->height; y++) {
        const uint8_t *row = p->file.data + p->at + y * stride;
        for (size_t x = 0; x < (size_t)out->width; x++, rgb += 3) {
            *rgb = row[x / 8] >> (7 - x % 8) & 1 ? 0 : 255;
        }
    }
    return LV_OK;
}

static lv_status read_raw(const pnm *p, size_t channels, lv_image *out) {
    size_t n = (size_t)out->width * (size_t)out->height, wide = p->maxval > 255 ? 2 : 1;
    if ((p->file.n - p->at) / (channels * wide) < n) {
        return cut(p);
    }
    const uint8_t *from = p->file.data + p->at;
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < channels; c++, from += wide) {
            out->rgb[3 * i + c] = to_byte(p, wide == 2 ? lv_be16(from) : *from);
        }
    }
    return LV_OK;
}

lv_status lv_pnm_decode(lv_bytes file, const lv_image_limits *limits, lv_image *out,
                        int *orientation) {
    (void)orientation;
    pnm p = {.file = file, .at = 2, .kind = file.data[1] - '0', .maxval = 1};
    bool bits = p.kind == 1 || p.kind == 4, colour = p.kind == 3 || p.kind == 6;
    LV_TRY(read_number(&p, 1u << 30, &p.width));
    LV_TRY(read_number(&p, 1u << 30, &p.height));
    LV_TRY(lv_image_check("PNM", p.width, p.height, limits));
    if (!bits) {
        LV_TRY(read_number(&p, 65535, &p.maxval));
    }
    if (p.maxval == 0 || p.at == file.n || !is_space(file.data[p.at])) {
        return lv_fail(LV_EFORMAT, "PNM: the header is broken at byte %zu", p.at);
    }
    p.at++;
    // A pixel needs a bit at least: a small file that claims a huge picture costs no memory.
    if ((uint64_t)p.width * p.height / 8 > file.n) {
        return cut(&p);
    }
    LV_TRY(lv_image_new((int)p.width, (int)p.height, out));
    switch (p.kind) {
    case 1:
        LV_TRY(read_plain_bits(&p, out));
        break;
    case 4:
        LV_TRY(read_raw_bits(&p, out));
        break;
    default:
        LV_TRY(p.kind <= 3 ? read_plain(&p, colour ? 3 : 1, out)
                           : read_raw(&p, colour ? 3 : 1, out));
    }
    size_t n = (size_t)out->width * (size_t)out->height;
    for (size_t i = 0; i < n && !colour; i++) {
        out->rgb[3 * i + 1] = out->rgb[3 * i + 2] = out->rgb[3 * i];
    }
    return LV_OK;
}
