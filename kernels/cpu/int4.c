// Repacking of AWQ weights for the int4 kernels.
//
// A tile is 16 outputs; a line is 64 bytes: one 32-bit word an output, with 8 consecutive k. Nibble
// i (bits 4 i) of a word is k 2 i, nibble i + 4 is k 2 i + 1, so that shifting right by 4 i and
// masking with 0x000F000F gives the adjacent pair (k 2 i, k 2 i + 1) as two 16-bit integers: what
// vpdpwssd, vpmaddwd and plain C multiply with a broadcast pair of activations. Lanes are outputs:
// no horizontal sums, and every instruction set adds the same integers.
#include <string.h>

#include "core/files.h"
#include "kernels/cpu/cpu.h"

// One activation scale covers a group, or where groups are long the largest part of one that the
// 32-bit sums hold: 256 k * 15 * 32767 < 2^31.
int lv_int4_block(int group_size) {
    for (int block = LV_INT4_MAX_BLOCK; block > 8; block -= 8) {
        if (group_size % block == 0) {
            return block;
        }
    }
    return 8;
}

static uint32_t word_at(const lv_tensor *t, int64_t index) {
    uint32_t word;
    memcpy(&word, (const uint8_t *)t->data + index * 4, sizeof word);
    return word;
}

// In a word of the source, column c of its eight is nibble NIBBLE[c]; in a line's word, k i is
// nibble NIBBLE[i]: the same order, so that repacking is the transpose of an 8 x 8 matrix of
// nibbles.
static const int NIBBLE[8] = {0, 4, 1, 5, 2, 6, 3, 7};

#define STRIP 16 // words of the source that are taken together: one cache line, 8 tiles

// For each of the STRIP columns of words: nibble j of word i <-> nibble i of word j.
static void transpose_nibbles(uint32_t a[8][STRIP]) {
    static const uint32_t masks[3] = {0x0000FFFF, 0x00FF00FF, 0x0F0F0F0F};
    for (int step = 0; step < 3; step++) {
        int d = 4 >> step;
        for (int i = 0; i < 8; i++) {
            if (i & d) {
                continue;
            }
            for (int s = 0; s < STRIP; s++) {
                uint32_t t = ((a[i][s] >> (4 * d)) ^ a[i + d][s]) & masks[step];
                a[i + d][s] ^= t;
                a[i][s] ^= t << (4 * d);
            }
        }
    }
}

// Words word0 .. word0 + n_words - 1 of each row of the source; their outputs start at `to`.
static void pack_strip(const lv_linear_source *s, int word0, int n_words, int to,
                       const lv_int4 *w) {
    const ptrdiff_t row_bytes = (ptrdiff_t)s->n_out / 2;
    const uint8_t *row = (const uint8_t *)s->qweight.data + (ptrdiff_t)word0 * 4;
    const int64_t n_lines = s->n_in / 8;
    uint32_t a[8][STRIP] = {{0}};
    for (int64_t line = 0; line < n_lines; line++, row += 8 * row_bytes) {
        for (int i = 0; i < 8; i++) {
            memcpy(a[NIBBLE[i]], row + i * row_bytes, (size_t)n_words * 4);
            if (line + 4 < n_lines) {
                __builtin_prefetch(row + (i + 32) * row_bytes);
            }
        }
        transpose_nibbles(a);
        for (int n = 0; n < n_words; n++) {
            int64_t out = to + n * 8, tile = out / LV_INT4_TILE, lane = out % LV_INT4_TILE;
            uint32_t *half_line = w->q + (tile * n_lines + line) * LV_INT4_TILE + lane;
            for (int c = 0; c < 8; c++) {
                half_line[c] = a[NIBBLE[c]][n];
            }
        }
    }
}

// Scales and zeros of the eight outputs of a word.
static void pack_scales(const lv_linear_source *s, int word, int to, const lv_int4 *w) {
    int n_groups = s->n_in / s->group_size;
    for (int group = 0; group < n_groups; group++) {
        int64_t at =
            ((int64_t)(to / LV_INT4_TILE) * n_groups + group) * LV_INT4_TILE + to % LV_INT4_TILE;
        uint32_t zeros = word_at(&s->qzeros, (int64_t)group * (s->n_out / 8) + word);
        memcpy(w->scales + at,
               (const uint8_t *)s->scales.data + ((int64_t)group * s->n_out + word * 8) * 2, 16);
        for (int c = 0; c < 8; c++) {
            w->zeros[at + c] = (uint8_t)(zeros >> (4 * NIBBLE[c]) & 15);
        }
    }
}

lv_status lv_int4_pack(const lv_linear_source *parts, int n_parts, int n_threads, lv_int4 *out) {
    lv_int4 w = {.n_in = parts[0].n_in, .group_size = parts[0].group_size};
    for (int i = 0; i < n_parts; i++) {
        w.n_out += parts[i].n_out;
    }
    w.block = lv_int4_block(w.group_size);
    w.n_tiles = (w.n_out + LV_INT4_TILE - 1) / LV_INT4_TILE;
    size_t n_words, n_scales, bytes;
    if (!lv_mul((size_t)w.n_tiles * LV_INT4_TILE, (size_t)w.n_in / 8, &n_words) ||
        !lv_mul(n_words, sizeof(uint32_t), &bytes)) {
        return lv_fail(LV_EFORMAT, "int4 linear [%d, %d]: too large", w.n_out, w.n_in);
    }
    n_scales = (size_t)w.n_tiles * LV_INT4_TILE * (size_t)(w.n_in / w.group_size);
    w.map_bytes = bytes + n_scales * (sizeof(uint16_t) + sizeof(uint8_t));
    w.q = lv_cpu_map(w.map_bytes, true);
    if (!w.q) {
        return lv_fail(LV_ENOMEM, "int4 linear [%d, %d]: no %zu bytes", w.n_out, w.n_in,
                       w.map_bytes);
    }
    w.scales = (uint16_t *)(w.q + n_words);
    w.zeros = (uint8_t *)(w.scales + n_scales);
    int base = 0;
    for (int i = 0; i < n_parts; i++) {
        const lv_linear_source *s = &parts[i];
#pragma omp parallel for num_threads(n_threads)
        for (int word0 = 0; word0 < s->n_out / 8; word0 += STRIP) {
            int rest = s->n_out / 8 - word0, n = rest < STRIP ? rest : STRIP;
            pack_strip(s, word0, n, base + word0 * 8, &w);
            for (int word = word0; word < word0 + n; word++) {
                pack_scales(s, word, base + word * 8, &w);
            }
        }
        base += s->n_out;
    }
    *out = w;
    return LV_OK;
}
