// The narrow kernel's shared memory, for the kernel and for its launcher.
#ifndef LV_KERNELS_CUDA_SMALL_NARROW_H
#define LV_KERNELS_CUDA_SMALL_NARROW_H

#include "kernels/cuda/records.h"

// Byte offsets; the rings of the eight warps come first.
typedef struct lv_narrow_layout {
    int barriers; // of the rings
    int partials; // f32 [2, 8 slices, 16 rows, 8 columns]
    int sums;     // f32 [n_in / 128, 8]
    int segments; // f32 [m, n_in / 256], with a norm
    int rows;     // f16 [m, n_in], padded
    int n_bytes;
} lv_narrow_layout;

// pad: bytes after a row.
LV_HOST_DEVICE static inline lv_narrow_layout lv_narrow_plan(int slot_bytes, int pad, int m,
                                                             int n_in, int stages, bool norm) {
    lv_narrow_layout at;
    at.barriers = 8 * stages * slot_bytes;
    at.partials = at.barriers + 8 * stages * 8;
    at.sums = at.partials + 2 * 8 * 128 * 4;
    at.segments = at.sums + n_in / 128 * 32;
    at.rows = at.segments + (norm ? (m * ((n_in + 255) / 256) * 4 + 15) / 16 * 16 : 0);
    at.n_bytes = at.rows + m * (n_in * 2 + pad);
    return at;
}

#endif
