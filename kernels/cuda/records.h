// Where a weight lies inside a record of int4 weights, for the device and for tests on the host.
//
// A record is rows 0 .. 15 of a tile by 128 k: 1024 bytes of nibbles, 16 f16 scales, 16 u8 zeros.
// The nibbles lie as the lanes of a warp want them for eight mma.m16n8k16: lane 4 g + t has eight
// 32-bit words, words 0 .. 3 in the first 512 bytes, 4 .. 7 in the second (two 16-byte loads that
// meet all banks once), and feeds rows g and g + 8 from them.
//
//   bits of a word   28..31 24..27 20..23 16..19 12..15  8..11   4..7   0..3
//   nibble                7      6      5      4      3      2      1      0
//   row               g + 8  g + 8      g      g  g + 8  g + 8      g      g
//   k - k0                5      1      5      1      4      0      4      0
//
// with k0 = 32 (word / 2) + 8 t + 2 (word % 2). So word & 0x000F000F is a pair of weights (row g,
// k0 and k0 + 1) as two f16 of value q 2^-24 (subnormals, which tensor cores multiply at full
// speed), word & 0x00F000F0 is (row g, k0 + 4 and k0 + 5) as q 2^-20, and the word shifted right by
// 8 gives row g + 8. Words 2 p and 2 p + 1 are the A fragments of two steps; their B fragments are
// the 16 bytes of activations from k = 32 p + 8 t on: the first 8 bytes for the step of the low
// nibbles, the others for that of the high ones. Scales and zeros alternate: (g, g + 8) side by
// side.
#ifndef LV_KERNELS_CUDA_RECORDS_H
#define LV_KERNELS_CUDA_RECORDS_H

#ifdef __CUDACC__
#define LV_HOST_DEVICE __host__ __device__
#else
#define LV_HOST_DEVICE
#endif

#define LV_RECORD_SCALES 1024 // byte at which the scales start
#define LV_RECORD_ZEROS 1056

// Row and k of a nibble (0 .. 7) of a word (0 .. 7) of lane 4 g + t.
LV_HOST_DEVICE static inline int lv_record_row(int g, int nibble) {
    return g + 8 * (nibble >> 1 & 1);
}

LV_HOST_DEVICE static inline int lv_record_k(int t, int word, int nibble) {
    return 32 * (word >> 1) + 8 * t + 4 * (nibble & 1) + 2 * (word & 1) + (nibble >> 2);
}

// Byte offset of a word of a lane.
LV_HOST_DEVICE static inline int lv_record_byte(int lane, int word) {
    return (word >> 2) * 512 + lane * 16 + (word & 3) * 4;
}

// The reverse: lane, word and nibble of a row and k.
LV_HOST_DEVICE static inline int lv_record_lane(int row, int k) {
    return row % 8 * 4 + k / 8 % 4;
}

LV_HOST_DEVICE static inline int lv_record_word(int k) {
    return k / 32 * 2 + k / 2 % 2;
}

LV_HOST_DEVICE static inline int lv_record_nibble(int row, int k) {
    return k / 4 % 2 + row / 8 * 2 + k % 2 * 4;
}

// Index of a row's scale and zero.
LV_HOST_DEVICE static inline int lv_record_scale(int row) {
    return row % 8 * 2 + row / 8;
}

// Bit at which AWQ keeps column 0 .. 7 of a word.
LV_HOST_DEVICE static inline int lv_awq_shift(int column) {
    return 16 * (column & 1) + 4 * (column >> 1);
}

// The place in tile order that holds source row `row` (see lv_tile_row).
LV_HOST_DEVICE static inline int lv_tile_place(int row, int pair) {
    if (pair == 0) {
        return row;
    }
    const int block = row / (2 * pair), in_block = row % (2 * pair), in_half = in_block % pair;
    return block * 2 * pair + in_half / 8 * 16 + in_block / pair * 8 + in_half % 8;
}

#endif
