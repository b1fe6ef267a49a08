// The wide kernel's shared memory and its slabs of activations, for the kernel, for its launcher
// and for who fills the slabs.
#ifndef LV_KERNELS_CUDA_SMALL_WIDE_H
#define LV_KERNELS_CUDA_SMALL_WIDE_H

#include "kernels/cuda/records.h"

#define LV_WIDE_WARPS 12 // most of a block
#define LV_WIDE_TILES 2  // of each warp: what it reads of x serves both
#define LV_WIDE_SLABS 4  // steps of activations that a block holds

// A slab is 8 NT rows of x by 128 k, in memory as in shared memory: the 16 bytes that lane 4 g + t
// needs of row g of eight lie at [row / 8][piece of 4][lane], then come f32 sums of the rows. So a
// step is one copy, and reading it meets all banks.
LV_HOST_DEVICE static inline int lv_slab_bytes(int nt) {
    return nt * (2048 + 32);
}

// Of chunk 0 .. 15 (8 k each) of row 0. A lane of int8 takes two chunks side by side.
LV_HOST_DEVICE static inline int lv_slab_chunk(int chunk, bool int8) {
    return int8 ? (chunk / 8 * 2 + chunk % 2) * 512 + chunk % 8 / 2 * 16
                : chunk / 4 * 512 + chunk % 4 * 16;
}

// For wgmma a slab is the same 8 NT rows by 128 k in eight steps of 16 k, each [row / 8][half of k]
// of core matrices: eight rows of 16 bytes. Step 2 p is what the low nibbles of words 2 p and 2 p +
// 1 of records meet, step 2 p + 1 the high ones (records.h): so a chunk of 8 k of a row is four
// pieces of 4 bytes, k 0 1, 2 3 (halves of step 2 p), 4 5, 6 7 (of step 2 p + 1), p = chunk / 4.
LV_HOST_DEVICE static inline int lv_core_step(int nt) {
    return nt * 256; // bytes
}

// Of the first of the four pieces of chunk 0 .. 15 of row 0; the second is 128 bytes further.
LV_HOST_DEVICE static inline int lv_core_chunk(int chunk, int nt) {
    return chunk / 4 * 2 * lv_core_step(nt) + chunk % 4 * 4;
}

// Byte offsets; the rings of the warps come first. Of warps with `tiles` tiles of weights each.
typedef struct lv_wide_layout {
    int ring; // bytes of a warp's ring
    int slabs;
    int saved; // f32x4 [warps, levels, tiles * NT, 32]: sums of slices that wait for their partner
    int levels;
    int barriers; // of the rings
    int slab_barriers;
    int readers; // u32 [slabs]: warps that have read it
    int n_bytes;
} lv_wide_layout;

LV_HOST_DEVICE static inline lv_wide_layout lv_wide_plan(int slot_bytes, int tiles, int nt,
                                                         int n_warps, int stages, int n_parts) {
    lv_wide_layout at;
    at.ring = stages * tiles * slot_bytes;
    at.levels = n_parts == 8 ? 0 : n_parts == 4 ? 1 : n_parts == 2 ? 2 : 3;
    at.slabs = n_warps * at.ring;
    at.saved = at.slabs + LV_WIDE_SLABS * lv_slab_bytes(nt);
    at.barriers = at.saved + n_warps * at.levels * tiles * nt * 512;
    at.slab_barriers = at.barriers + n_warps * stages * 8;
    at.readers = at.slab_barriers + LV_WIDE_SLABS * 8;
    at.n_bytes = at.readers + LV_WIDE_SLABS * 4;
    return at;
}

#endif
