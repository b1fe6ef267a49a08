// The int4 kernel in plain C: the same integers and the same f32 operations as its vector twins
// (int4.inc.h), so the same bits.
#include <string.h>

#include "kernels/cpu/cpu.h"

// Adds register block rows r of x, k block b, to c[R, 64].
static void tile_block(const lv_int4 *w, int tile, int b, const lv_int4_rows *x, int row0, int n_r,
                       float *c) {
    int group = b * w->block / w->group_size, n_groups = w->n_in / w->group_size;
    const uint32_t *line = w->q + ((int64_t)tile * (w->n_in / 8) + b * w->block / 8) * LV_INT4_TILE;
    int64_t at = ((int64_t)tile * n_groups + group) * LV_INT4_TILE;
    int n_blocks = w->n_in / w->block;
    const int16_t *q = x->q + (ptrdiff_t)row0 * w->n_in + (ptrdiff_t)b * w->block * n_r;
    const float *scales = x->scales + (ptrdiff_t)row0 * n_blocks + (ptrdiff_t)b * n_r;
    const int32_t *sums = x->sums + (ptrdiff_t)row0 * n_blocks + (ptrdiff_t)b * n_r;
    for (int r = 0; r < n_r; r++) {
        int32_t sum[LV_INT4_TILE] = {0};
        for (int k = 0; k < w->block / 8; k++) {
            const int16_t *xk = q + (ptrdiff_t)(k * 4 * n_r + r) * 2;
            for (int o = 0; o < LV_INT4_TILE; o++) {
                uint32_t word = line[k * LV_INT4_TILE + o];
                for (int i = 0; i < 4; i++) {
                    sum[o] += (int32_t)(word >> (4 * i) & 15) * xk[i * 2 * n_r] +
                              (int32_t)(word >> (4 * i + 16) & 15) * xk[i * 2 * n_r + 1];
                }
            }
        }
        for (int o = 0; o < LV_INT4_TILE; o++) {
            float dot = (float)(sum[o] - w->zeros[at + o] * sums[r]) * scales[r];
            c[(ptrdiff_t)r * LV_CPU_PANEL + o] += dot * lv_f16_to_f32(w->scales[at + o]);
        }
    }
}

void lv_int4_portable(const lv_int4 *w, int tile0, const lv_int4_rows *x, int block0, int block1,
                      float *c) {
    int first = lv_int4_row(x, block0), n_tiles = w->n_tiles - tile0;
    n_tiles = n_tiles < LV_CPU_PANEL / LV_INT4_TILE ? n_tiles : LV_CPU_PANEL / LV_INT4_TILE;
    memset(c, 0, (size_t)(lv_int4_row(x, block1) - first) * LV_CPU_PANEL * sizeof(float));
    for (int block = block0; block < block1; block++) {
        int row0 = lv_int4_row(x, block), n_r = lv_int4_row(x, block + 1) - row0;
        for (int t = 0; t < n_tiles; t++) {
            for (int b = 0; b < w->n_in / w->block; b++) {
                tile_block(w, tile0 + t, b, x, row0, n_r,
                           c + (ptrdiff_t)(row0 - first) * LV_CPU_PANEL + t * LV_INT4_TILE);
            }
        }
    }
}
