// The layout of int4 records, and that a warp's tensor core instructions, spelt out lane by lane,
// make the product of it that kernels/cuda/small.cu says they do.
#include "kernels/cuda/records.h"
#include "tests/unit/kernels_util.h"

#define ROWS 16
#define GROUP 128
#define COLUMNS 8 // of x: rows of activations

static uint32_t word_of(const uint8_t *record, int lane, int word) {
    uint32_t bits;
    memcpy(&bits, record + lv_record_byte(lane, word), sizeof bits);
    return bits;
}

// Every nibble belongs to one row and k; the reverse functions agree; words do not overlap.
static void test_bijection(void) {
    static int seen[ROWS][GROUP], used[1024];
    for (int lane = 0; lane < 32; lane++) {
        for (int word = 0; word < 8; word++) {
            const int byte = lv_record_byte(lane, word);
            CHECK(byte >= 0 && byte % 4 == 0 && byte < LV_RECORD_SCALES && !used[byte]++,
                  "lane %d word %d: byte %d", lane, word, byte);
            for (int n = 0; n < 8; n++) {
                const int row = lv_record_row(lane / 4, n), k = lv_record_k(lane % 4, word, n);
                const bool in = row >= 0 && row < ROWS && k >= 0 && k < GROUP;
                CHECK(in && !seen[row][k]++, "lane %d word %d nibble %d: row %d k %d", lane, word,
                      n, row, k);
                CHECK(in && lv_record_lane(row, k) == lane && lv_record_word(k) == word &&
                          lv_record_nibble(row, k) == n,
                      "row %d k %d: back to %d %d %d", row, k, lv_record_lane(row, k),
                      lv_record_word(k), lv_record_nibble(row, k));
            }
        }
    }
    for (int lane = 0; lane < 32; lane++) { // words 0 .. 3 and 4 .. 7 as 16 bytes each
        CHECK(lv_record_byte(lane, 3) == lv_record_byte(lane, 0) + 12 &&
                  lv_record_byte(lane, 7) == lv_record_byte(lane, 4) + 12 &&
                  lv_record_byte(lane, 0) % 16 == 0 && lv_record_byte(lane, 4) % 16 == 0,
              "lane %d", lane);
    }
}

// mma.m16n8k16: a and b of all lanes as pairs of values, d += a b.
static void mma(const double a[32][4][2], const double b[32][2][2], double d[32][4]) {
    double left[16][16], right[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 4; i++) { // i & 1: rows below, i & 2: k above
                left[g + 8 * (i & 1)][2 * t + h + 8 * (i >> 1)] = a[lane][i][h];
            }
            right[2 * t + h][g] = b[lane][0][h];
            right[2 * t + h + 8][g] = b[lane][1][h];
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 16; k++) {
                d[lane][i] += left[lane / 4 + 8 * (i >> 1)][k] * right[k][lane % 4 * 2 + (i & 1)];
            }
        }
    }
}

// Two halves of a masked word, as subnormal f16.
static void halves(uint32_t word, double out[2]) {
    out[0] = (double)lv_f16_to_f32((uint16_t)word);
    out[1] = (double)lv_f16_to_f32((uint16_t)(word >> 16));
}

static void test_product(void) {
    static uint8_t record[1072];
    static int q[ROWS][GROUP];
    static double x[COLUMNS][GROUP], lo[32][4], hi[32][4];
    for (int row = 0; row < ROWS; row++) {
        for (int k = 0; k < GROUP; k++) {
            q[row][k] = (int)(rng() & 15);
            const int lane = lv_record_lane(row, k), nibble = lv_record_nibble(row, k);
            uint32_t bits = word_of(record, lane, lv_record_word(k));
            bits |= (uint32_t)q[row][k] << (4 * nibble);
            memcpy(record + lv_record_byte(lane, lv_record_word(k)), &bits, sizeof bits);
        }
    }
    for (int i = 0; i < COLUMNS * GROUP; i++) {
        x[i / GROUP][i % GROUP] = (double)rng_float();
    }
    for (int p = 0; p < 4; p++) {
        double a[2][32][4][2], b[2][32][2][2];
        for (int lane = 0; lane < 32; lane++) {
            const uint32_t masks[2] = {0x000f000f, 0x00f000f0};
            const double *column = x[lane / 4] + 32 * p + 8 * (lane % 4);
            for (int step = 0; step < 2; step++) {
                for (int i = 0; i < 4; i++) {
                    const uint32_t w = word_of(record, lane, 2 * p + (i >> 1));
                    halves(w >> (8 * (i & 1)) & masks[step], a[step][lane][i]);
                }
                for (int e = 0; e < 4; e++) {
                    b[step][lane][e / 2][e % 2] = column[4 * step + e];
                }
            }
        }
        mma(a[0], b[0], lo);
        mma(a[1], b[1], hi);
    }
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
            double want = 0, got = (lo[lane][i] * 16 + hi[lane][i]) * 0x1p20;
            for (int k = 0; k < GROUP; k++) {
                want += q[row][k] * x[column][k];
            }
            CHECK(fabs(got - want) < 1e-9, "row %d column %d: %g, wanted %g", row, column, got,
                  want);
        }
    }
}

// Tile order: a bijection, eight rows at a time, halves of pairs in one tile.
static void test_places(void) {
    static const int pairs[] = {8, 16, 64, 72};
    for (int i = 0; i < 4; i++) {
        const int pair = pairs[i], n = 2 * pair * 3;
        int *seen = calloc((size_t)n, sizeof *seen);
        for (int row = 0; row < n; row++) {
            const int place = lv_tile_place(row, pair), in_block = row % (2 * pair);
            CHECK(place >= 0 && place < n && !seen[place]++, "pair %d row %d: place %d", pair, row,
                  place);
            if (in_block < pair) {
                CHECK(place % 16 < 8 && lv_tile_place(row + pair, pair) == place + 8,
                      "pair %d row %d: place %d", pair, row, place);
            }
            CHECK(row % 8 == place % 8, "pair %d row %d: place %d", pair, row, place);
            CHECK(pair != 8 || place == row, "row %d: place %d", row, place);
        }
        free(seen);
    }
    CHECK(lv_tile_place(77, 0) == 77, "natural order");
    static const int columns[8] = {0, 2, 4, 6, 1, 3, 5, 7}; // AWQ: of nibbles 0 .. 7
    for (int n = 0; n < 8; n++) {
        CHECK(lv_awq_shift(columns[n]) == 4 * n, "column %d", columns[n]);
    }
    for (int row = 0; row < ROWS; row++) {
        CHECK(lv_record_scale(row) == row % 8 * 2 + row / 8, "row %d", row);
    }
}

int main(void) {
    test_bijection();
    test_product();
    test_places();
    return check_done();
}
