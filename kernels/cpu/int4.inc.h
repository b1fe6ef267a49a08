// The int4 kernels; int4_*.c define the vector type and its operations, and include this.
//
//   y[i, j] = sum over blocks b of k:
//             sx[i, b] * scale[j, g(b)] * (sum_k q[j, k] xq[i, k] - zero[j, g(b)] sum_k xq[i, k])
//
// Shapes: x [m, n_in] as 16-bit integers xq with one scale sx a row and block of at most 256 k
// (lv_int4_rows), weights q of 4 bits in tiles of 16 outputs (int4.c), y f32. The inner sums are
// exact 32-bit integers and the outer ones run over b in order, so that neither the instruction
// set, nor the number of rows, nor threads change a bit. 16 bits keep the error near 3e-5 of the
// result's norm (kernels_linear.c holds it below 1e-4 against f64); 8 bits would miss the bar of
// 1e-3.
//
// Few rows (decode): each line of weights is used as it comes from memory. The roof is reading 0.52
// bytes a weight: 3.39 GB a token for 7B. Many rows (prefill): 32 outputs (AVX2: 16) of a block are
// unpacked to 16-bit integers in L1 and meet register blocks of 12 (6) rows. The roof is the two
// multiply pipes, 32 products an instruction: 2 * 32 * 2 * 4.1 GHz = 525 GFLOP/s a core with VNNI.
//
// Measured on 2 cores of a Zen 5 server CPU (AVX-512 VNNI), [88064, 4096] group 128, one row: 59
// GB/s, where a prefetched sum reads 67 (88%). [11008, 4096] on one core, 8 rows: 410 GFLOP/s
// (78%), 128 rows: 430 to 450 (84%); AVX-512 without VNNI 390, AVX2 160.
//
// Tried and rejected: two tiles at once for one row: 20% faster from L3, but 25% slower from
// memory, which likes one stream a core. Prefetching 1, 4, 16 KiB ahead instead of 8: 44, 55, 53
// GB/s. Unpacking for 8 rows, too: 250 GFLOP/s. Rejected by count: x as two 8-bit integers and
// vpdpbusd (twice the sums in registers for the same products a cycle); weights less their zero in
// decode (four subtractions a line against one multiplication a block).
#include <string.h>

#include "kernels/cpu/cpu.h"

#define N_VECTORS 2 // vectors of outputs in a register block

static inline __attribute__((always_inline)) vi broadcast_pair(const int16_t *pair) {
    int32_t word;
    memcpy(&word, pair, sizeof word);
    return v_set(word);
}

// --- few rows ------------------------------------------------------------------------------------

// sum[r][v][i % n_s] += the products of nibbles i of n_lines lines; odd nibbles count 16-fold. With
// few rows there are four sums each, so that enough independent ones hide the multiply's latency.
static inline __attribute__((always_inline)) void
direct_lines(const uint32_t *line, int n_lines, const int16_t *q, int n_r, int n_s,
             vsum sum[LV_DIRECT_ROWS][LV_TILE_VECTORS][4]) {
    const vi low = v_set(0x000F000F), high = v_set(0x00F000F0);
    for (int k = 0; k < n_lines; k++, line += LV_INT4_TILE, q += 8 * n_r) {
        _mm_prefetch((const char *)line + LV_PREFETCH_BYTES, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int v = 0; v < LV_TILE_VECTORS; v++) {
            vi word = v_load(line + v * LV_LANES), upper = v_shift(word, 8);
            vi part[4] = {v_and(word, low), v_and(word, high), v_and(upper, low),
                          v_and(upper, high)};
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
#pragma GCC unroll 16
                for (int r = 0; r < n_r; r++) {
                    vsum *to = &sum[r][v][i % n_s];
                    *to = v_dot(*to, part[i], broadcast_pair(q + (i * n_r + r) * 2));
                }
            }
        }
    }
}

// One tile, all of K, n_r rows: c[n_r, 16] of stride 64.
static inline __attribute__((always_inline)) void
direct_tile(const lv_int4 *w, int tile, const lv_int4_rows *x, int row0, int n_r, float *c) {
    const int n_lines = w->block / 8, n_s = n_r * LV_TILE_VECTORS > 4 ? 2 : 4;
    const int n_blocks = w->n_in / w->block;
    const int64_t n_groups = w->n_in / w->group_size;
    const uint32_t *line = w->q + (int64_t)tile * (w->n_in / 8) * LV_INT4_TILE;
    const int16_t *q = x->q + (ptrdiff_t)row0 * w->n_in;
    const float *scales = x->scales + (ptrdiff_t)row0 * n_blocks;
    const int32_t *sums = x->sums + (ptrdiff_t)row0 * n_blocks;
    for (int b = 0; b < n_blocks; b++) {
        vsum sum[LV_DIRECT_ROWS][LV_TILE_VECTORS][4];
#pragma GCC unroll 16
        for (int r = 0; r < n_r; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < LV_TILE_VECTORS; v++) {
#pragma GCC unroll 4
                for (int i = 0; i < n_s; i++) {
                    sum[r][v][i] = (vsum){0};
                }
            }
        }
        direct_lines(line, n_lines, q, n_r, n_s, sum);
        line += n_lines * LV_INT4_TILE;
        q += w->block * n_r;
        int64_t at = (tile * n_groups + b * w->block / w->group_size) * LV_INT4_TILE;
#pragma GCC unroll 16
        for (int r = 0; r < n_r; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < LV_TILE_VECTORS; v++, at += LV_LANES) {
                vsum *s = sum[r][v], odd = s[1] + (n_s == 4 ? s[3] : (vsum){0});
                vsum dot = s[0] + (n_s == 4 ? s[2] : (vsum){0}) + (odd >> 4);
                vi zero = v_mul(v_widen(w->zeros + at), v_set(sums[b * n_r + r]));
                vs scaled = s_mul(v_float(v_sub((vi)dot, zero)), s_set(scales[b * n_r + r]));
                float *to = c + r * LV_CPU_PANEL + v * LV_LANES;
                s_store(to, s_add(s_load(to), s_mul(scaled, v_f16(w->scales + at))));
            }
            at -= LV_INT4_TILE;
        }
    }
}

static void direct_any(const lv_int4 *w, int tile, const lv_int4_rows *x, int row0, int n_r,
                       float *c) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        direct_tile(w, tile, x, row0, n, c);                                                       \
        break
    switch (n_r) {
        CASE(1);
        CASE(2);
#if LV_DIRECT_ROWS > 2
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
#endif
    }
#undef CASE
}

// A tile stays in L1 while the register blocks take their turns.
static void direct(const lv_int4 *w, int tile0, int n_tiles, const lv_int4_rows *x, int block0,
                   int block1, float *c) {
    int first = lv_int4_row(x, block0);
    for (int t = 0; t < n_tiles; t++) {
        for (int block = block0; block < block1; block++) {
            int row0 = lv_int4_row(x, block), n_r = lv_int4_row(x, block + 1) - row0;
            direct_any(w, tile0 + t, x, row0, n_r,
                       c + (ptrdiff_t)(row0 - first) * LV_CPU_PANEL + t * LV_INT4_TILE);
        }
    }
}

// --- many rows -----------------------------------------------------------------------------------

// Where vector v of a register block that starts at tile t lies: its tile and the lane in it. A
// tile beyond the last is replaced by the last; nobody reads those outputs.
static inline int vector_tile(const lv_int4 *w, int t, int v) {
    int tile = t + v / LV_TILE_VECTORS;
    return tile < w->n_tiles ? tile : w->n_tiles - 1;
}

// Block b of N_VECTORS vectors of outputs -> w - zero as pairs of 16-bit integers,
// panel [block / 2, N_VECTORS, LV_LANES, 2].
static void unpack(const lv_int4 *w, int t, int b, int16_t *panel) {
    const vi low = v_set(0x000F000F);
    for (int v = 0; v < N_VECTORS; v++) {
        int64_t tile = vector_tile(w, t, v), lane = v % LV_TILE_VECTORS * LV_LANES;
        int64_t group = tile * (w->n_in / w->group_size) + b * w->block / w->group_size;
        const uint32_t *line =
            w->q + (tile * (w->n_in / 8) + b * (w->block / 8)) * LV_INT4_TILE + lane;
        vi zero = v_widen(w->zeros + group * LV_INT4_TILE + lane);
        zero = v_add(zero, v_mul(zero, v_set(1 << 16)));
        for (int k = 0; k < w->block / 8; k++, line += LV_INT4_TILE) {
            vi word = v_load(line);
            for (int i = 0; i < 4; i++, word = v_shift(word, 4)) {
                vi pair = v_sub16(v_and(word, low), zero);
                v_store(panel + ((ptrdiff_t)(k * 4 + i) * N_VECTORS + v) * LV_LANES * 2, pair);
            }
        }
    }
}

// One register block of n_r rows, one block of k: c[n_r, 2 vectors] += .
static inline __attribute__((always_inline)) void block_rows(int n_r, int n_pairs,
                                                             const int16_t *panel, const int16_t *q,
                                                             const float *sx, const vs *scale,
                                                             float *c) {
    vsum sum[LV_BLOCK_ROWS][N_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < n_r; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < N_VECTORS; v++) {
            sum[r][v] = (vsum){0};
        }
    }
    for (int k = 0; k < n_pairs; k++) {
        vi w0 = v_load(panel), w1 = v_load(panel + LV_LANES * 2);
        panel += N_VECTORS * LV_LANES * 2;
#pragma GCC unroll 16
        for (int r = 0; r < n_r; r++) {
            vi pair = broadcast_pair(q + r * 2);
            sum[r][0] = v_dot(sum[r][0], w0, pair);
            sum[r][1] = v_dot(sum[r][1], w1, pair);
        }
        q += n_r * 2;
    }
#pragma GCC unroll 16
    for (int r = 0; r < n_r; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < N_VECTORS; v++) {
            float *to = c + r * LV_CPU_PANEL + v * LV_LANES;
            vs scaled = s_mul(v_float((vi)sum[r][v]), s_set(sx[r]));
            s_store(to, s_add(s_load(to), s_mul(scaled, scale[v])));
        }
    }
}

static void block_any(int n_r, int n_pairs, const int16_t *panel, const int16_t *q, const float *sx,
                      const vs *scale, float *c) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        block_rows(n, n_pairs, panel, q, sx, scale, c);                                            \
        break
    switch (n_r) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
#if LV_BLOCK_ROWS > 6
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
#endif
    }
#undef CASE
}

static void panel(const lv_int4 *w, int tile0, int n_tiles, const lv_int4_rows *x, int block0,
                  int block1, float *c) {
    _Alignas(64) int16_t unpacked[LV_INT4_MAX_BLOCK * N_VECTORS * LV_LANES];
    int first = lv_int4_row(x, block0), n_blocks = w->n_in / w->block;
    for (int t = 0; t < n_tiles; t += N_VECTORS / LV_TILE_VECTORS) {
        for (int b = 0; b < n_blocks; b++) {
            vs scale[N_VECTORS];
            for (int v = 0; v < N_VECTORS; v++) {
                int64_t group = (int64_t)vector_tile(w, tile0 + t, v) * (w->n_in / w->group_size) +
                                b * w->block / w->group_size;
                scale[v] = v_f16(w->scales + group * LV_INT4_TILE + v % LV_TILE_VECTORS * LV_LANES);
            }
            unpack(w, tile0 + t, b, unpacked);
            for (int block = block0; block < block1; block++) {
                int row0 = lv_int4_row(x, block), n_r = lv_int4_row(x, block + 1) - row0;
                const int16_t *q = x->q + (ptrdiff_t)row0 * w->n_in + (ptrdiff_t)b * w->block * n_r;
                const float *sx = x->scales + (ptrdiff_t)row0 * n_blocks + (ptrdiff_t)b * n_r;
                block_any(n_r, w->block / 2, unpacked, q, sx, scale,
                          c + (ptrdiff_t)(row0 - first) * LV_CPU_PANEL + t * LV_INT4_TILE);
            }
        }
    }
}

void LV_INT4_KERNEL(const lv_int4 *w, int tile0, const lv_int4_rows *x, int block0, int block1,
                    float *c) {
    int n_tiles = w->n_tiles - tile0;
    n_tiles = n_tiles < LV_CPU_PANEL / LV_INT4_TILE ? n_tiles : LV_CPU_PANEL / LV_INT4_TILE;
    memset(c, 0,
           (size_t)(lv_int4_row(x, block1) - lv_int4_row(x, block0)) * LV_CPU_PANEL *
               sizeof(float));
    if (x->n_rows <= LV_DIRECT_BLOCKS * LV_DIRECT_ROWS) {
        direct(w, tile0, n_tiles, x, block0, block1, c);
    } else {
        panel(w, tile0, n_tiles, x, block0, block1, c);
    }
}
