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

// 8 outputs x 8 k of the source (outputs out .. out + 7) -> half a line.
static void pack_half_line(const lv_linear_source *s, int out, int k, uint32_t *line) {
    // Column c of a word sits at this shift; k 2 i + odd goes to nibble i + 4 odd.
    static const int shift_of_column[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    memset(line, 0, 8 * sizeof *line);
    for (int i = 0; i < 8; i++) {
        uint32_t word = word_at(&s->qweight, (int64_t)(k + i) * (s->n_out / 8) + out / 8);
        int nibble = i / 2 + 4 * (i % 2);
        for (int c = 0; c < 8; c++) {
            line[c] |= (word >> shift_of_column[c] & 15) << (4 * nibble);
        }
    }
}

static void pack_half_tile(const lv_linear_source *s, int out, int to, const lv_int4 *w) {
    static const int shift_of_column[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    int n_groups = s->n_in / s->group_size, n_lines = s->n_in / 8;
    int64_t tile = to / LV_INT4_TILE, lane = to % LV_INT4_TILE;
    for (int line = 0; line < n_lines; line++) {
        pack_half_line(s, out, line * 8, w->q + (tile * n_lines + line) * LV_INT4_TILE + lane);
    }
    for (int group = 0; group < n_groups; group++) {
        int64_t at = (tile * n_groups + group) * LV_INT4_TILE + lane;
        uint32_t zeros = word_at(&s->qzeros, (int64_t)group * (s->n_out / 8) + out / 8);
        memcpy(w->scales + at,
               (const uint8_t *)s->scales.data + ((int64_t)group * s->n_out + out) * 2, 16);
        for (int c = 0; c < 8; c++) {
            w->zeros[at + c] = (uint8_t)(zeros >> shift_of_column[c] & 15);
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
    w.q = lv_cpu_map(w.map_bytes);
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
        for (int out8 = 0; out8 < s->n_out / 8; out8++) {
            pack_half_tile(s, out8 * 8, base + out8 * 8, &w);
        }
        base += s->n_out;
    }
    *out = w;
    return LV_OK;
}
