// Quantised weights on their way in and out: AWQ arrays -> records (records.h) or f16 rows, f16
// rows
// -> records or int8, records and int8 -> f16 rows. All places are in tile order (lv_tile_row).
//
//   w[k, n] = (q[k, n] - z[k / group, n]) scales[k / group, n]
//
// qweight u32 [n_in, n_out / 8], qzeros u32 [n_in / group, n_out / 8], scales f16 [n_in / group,
// n_out], all natural; records [n_out / 16][n_in / 128] of 1072 bytes, 16-byte aligned.
//
// Packing transposes: AWQ words run along n, records along k. A block takes 16 tiles by one record:
// 128 rows of 32 words (two runs of 64 bytes, or one of 128) go through 16.5 KiB of shared memory,
// rows one word apart so that the four k that the lanes of a quad want lie in different banks.
// Bytes in = bytes out; a 7B model is 3.4 GB each way, so memory binds, 1.6 ms at 4.3 TB/s, behind
// a PCIe copy of the same bytes that takes 60. Each half of a tile (8 rows) is one column of words
// of one source; where the other half comes from another source (gate and up), its bits are kept.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/records.h"

#define BLOCK 256
#define TILES 16   // of a block of the packing kernel
#define SPAN 64    // k of a block of awq_to_f16
#define COLUMNS 32 // words of a row that a block takes

__device__ static inline uint4 load16(const void *from) {
    return *(const uint4 *)from;
}

static __global__ void __launch_bounds__(BLOCK)
    int4_pack(const uint32_t *__restrict__ qweight, const uint32_t *__restrict__ qzeros,
              const uint16_t *__restrict__ scales, int row0, int n_out, int n_in, int pair,
              int n_tiles, uint8_t *records) {
    __shared__ uint32_t words[LV_RECORD_K][COLUMNS + 1];
    __shared__ int columns[COLUMNS]; // of the source, for (half, tile); -1: not in this source
    const int tid = threadIdx.x, record = blockIdx.x, tile0 = blockIdx.y * TILES;
    const int n_words = n_out / 8;
    lv_wait_previous();
    if (tid < COLUMNS) {
        const int tile = tile0 + tid % TILES;
        const int row = lv_tile_row(tile * LV_TILE + tid / TILES * 8, pair) - row0;
        columns[tid] = tile < n_tiles && row >= 0 && row < n_out ? row / 8 : -1;
    }
    __syncthreads();
    for (int i = tid; i < LV_RECORD_K * COLUMNS; i += BLOCK) {
        const int k = i / COLUMNS, c = i % COLUMNS;
        if (columns[c] >= 0) {
            words[k][c] = qweight[((size_t)record * LV_RECORD_K + k) * n_words + columns[c]];
        }
    }
    __syncthreads();
    const int n_records = n_in / LV_RECORD_K;
    for (int i = tid; i < TILES * 64; i += BLOCK) {
        const int tile = i / 64, quarter = i / 32 % 2, lane = i % 32;
        const uint32_t mask =
            (columns[tile] >= 0 ? 0x00ff00ffu : 0) | (columns[TILES + tile] >= 0 ? 0xff00ff00u : 0);
        if (mask == 0) {
            continue;
        }
        uint32_t out[4];
        for (int j = 0; j < 4; j++) {
            out[j] = 0;
            for (int nibble = 0; nibble < 8; nibble++) {
                const int k = lv_record_k(lane % 4, quarter * 4 + j, nibble);
                const int half = lv_record_row(0, nibble) / 8;
                const uint32_t q = words[k][half * TILES + tile] >> lv_awq_shift(lane / 4) & 15;
                out[j] |= q << (4 * nibble);
            }
        }
        uint4 *to =
            (uint4 *)(records + ((size_t)(tile0 + tile) * n_records + record) * LV_RECORD_BYTES +
                      lv_record_byte(lane, quarter * 4));
        const uint4 old = mask == 0xffffffffu ? make_uint4(0, 0, 0, 0) : *to;
        *to = make_uint4((old.x & ~mask) | (out[0] & mask), (old.y & ~mask) | (out[1] & mask),
                         (old.z & ~mask) | (out[2] & mask), (old.w & ~mask) | (out[3] & mask));
    }
    const int tile = tid / LV_TILE, row = tid % LV_TILE; // one scale and zero a thread
    const int column = columns[row / 8 * TILES + tile];
    if (column >= 0) {
        uint8_t *to = records + ((size_t)(tile0 + tile) * n_records + record) * LV_RECORD_BYTES;
        const int at = lv_record_scale(row);
        ((uint16_t *)(to + LV_RECORD_SCALES))[at] =
            scales[(size_t)record * n_out + column * 8 + row % 8];
        to[LV_RECORD_ZEROS + at] =
            qzeros[(size_t)record * n_words + column] >> lv_awq_shift(row % 8) & 15;
    }
}

// A block takes 64 k of 32 words (256 rows); a thread writes eight k of a row at a time.
static __global__ void __launch_bounds__(BLOCK)
    awq_to_f16(const uint32_t *__restrict__ qweight, const uint32_t *__restrict__ qzeros,
               const uint16_t *__restrict__ scales, int group_size, int row0, int n_out, int n_in,
               int pair, __half *to) {
    __shared__ uint32_t words[SPAN][COLUMNS + 1];
    const int k0 = blockIdx.x * SPAN, column0 = blockIdx.y * COLUMNS, n_words = n_out / 8;
    lv_wait_previous();
    for (int i = threadIdx.x; i < SPAN * COLUMNS; i += BLOCK) {
        const int k = k0 + i / COLUMNS, column = column0 + i % COLUMNS;
        if (k < n_in && column < n_words) {
            words[i / COLUMNS][i % COLUMNS] = qweight[(size_t)k * n_words + column];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < COLUMNS * 8 * (SPAN / 8); i += BLOCK) {
        const int row = i / (SPAN / 8), chunk = i % (SPAN / 8);
        const int k = k0 + chunk * 8, n = column0 * 8 + row;
        if (k >= n_in || n >= n_out) {
            continue;
        }
        const int group = k / group_size, shift = lv_awq_shift(n % 8);
        const int zero = qzeros[(size_t)group * n_words + n / 8] >> shift & 15;
        const float scale = __half2float(__ushort_as_half(scales[(size_t)group * n_out + n]));
        __align__(16) __half out[8];
        for (int e = 0; e < 8; e++) {
            const int q = words[chunk * 8 + e][row / 8] >> shift & 15;
            out[e] = __float2half_rn((float)(q - zero) * scale);
        }
        *(uint4 *)(to + (size_t)lv_tile_place(row0 + n, pair) * n_in + k) = load16(out);
    }
}

// A block is one record: 16 threads a row, eight k each. The arithmetic is that of kernels/rtn.c.
static __global__ void __launch_bounds__(BLOCK)
    int4_round(const __half *__restrict__ from, int n_in, uint8_t *records) {
    __shared__ __align__(16) uint8_t built[LV_RECORD_BYTES];
    const int row = threadIdx.x / 16, k = threadIdx.x % 16 * 8, record = blockIdx.x;
    const size_t place = (size_t)blockIdx.y * LV_TILE + row;
    lv_wait_previous();
    __align__(16) __half w[8];
    *(uint4 *)w = load16(from + place * n_in + record * LV_RECORD_K + k);
    float min = 0, max = 0;
    for (int e = 0; e < 8; e++) {
        min = fminf(min, __half2float(w[e]));
        max = fmaxf(max, __half2float(w[e]));
    }
    for (int step = 8; step > 0; step /= 2) {
        min = fminf(min, __shfl_xor_sync(0xffffffffu, min, step));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, step));
    }
    __half scale = __float2half_rn(__fdiv_rn(__fsub_rn(max, min), 15.0f));
    float s = __half2float(scale), zero = 0;
    uint32_t q[8] = {0};
    if (s > 0) {
        zero = fminf(fmaxf(rintf(__fdiv_rn(-min, s)), 0.0f), 15.0f);
        for (int e = 0; e < 8; e++) {
            const float level = __fadd_rn(rintf(__fdiv_rn(__half2float(w[e]), s)), zero);
            q[e] = (uint32_t)fminf(fmaxf(level, 0.0f), 15.0f);
        }
    } else {
        scale = __float2half_rn(0.0f);
    }
    // Rows g and g + 8 share words, a byte each of every 16 bits: k e and e + 4 are one byte.
    for (int e = 0; e < 4; e++) {
        const int at = lv_record_byte(lv_record_lane(row, k), lv_record_word(k + e));
        built[at + lv_record_nibble(row, k + e) / 2] = (uint8_t)(q[e] | q[e + 4] << 4);
    }
    if (k == 0) {
        const int at = lv_record_scale(row);
        ((__half *)(built + LV_RECORD_SCALES))[at] = scale;
        built[LV_RECORD_ZEROS + at] = (uint8_t)zero;
    }
    __syncthreads();
    uint8_t *to = records + ((size_t)blockIdx.y * gridDim.x + record) * LV_RECORD_BYTES;
    if (threadIdx.x < LV_RECORD_BYTES / 16) {
        ((uint4 *)to)[threadIdx.x] = load16(built + threadIdx.x * 16);
    }
}

// A block is one record: 16 threads a row, eight k each.
static __global__ void __launch_bounds__(BLOCK)
    int4_expand(const uint8_t *__restrict__ records, int n_in, __half *to) {
    const int row = threadIdx.x / 16, k = threadIdx.x % 16 * 8, record = blockIdx.x;
    lv_wait_previous();
    const uint8_t *from = records + ((size_t)blockIdx.y * gridDim.x + record) * LV_RECORD_BYTES;
    const int at = lv_record_scale(row);
    const float scale = __half2float(((const __half *)(from + LV_RECORD_SCALES))[at]);
    const int zero = from[LV_RECORD_ZEROS + at];
    const uint2 pair =
        *(const uint2 *)(from + lv_record_byte(lv_record_lane(row, k), lv_record_word(k)));
    __align__(16) __half out[8];
    for (int e = 0; e < 8; e++) {
        const uint32_t word = lv_record_word(k + e) % 2 ? pair.y : pair.x;
        const int q = word >> (4 * lv_record_nibble(row, k + e)) & 15;
        out[e] = __float2half_rn((float)(q - zero) * scale);
    }
    const size_t place = (size_t)blockIdx.y * LV_TILE + row;
    *(uint4 *)(to + place * n_in + record * LV_RECORD_K + k) = load16(out);
}

// A block is one row.
static __global__ void __launch_bounds__(BLOCK)
    int8_round(const __half *__restrict__ from, int n_in, int8_t *to, float *scales) {
    __shared__ float maxima[BLOCK / 32];
    const size_t row = (size_t)blockIdx.x * n_in;
    lv_wait_previous();
    float max = 0;
    for (int k = threadIdx.x; k < n_in; k += BLOCK) {
        max = fmaxf(max, fabsf(__half2float(from[row + k])));
    }
    for (int step = 16; step > 0; step /= 2) {
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, step));
    }
    if (threadIdx.x % 32 == 0) {
        maxima[threadIdx.x / 32] = max;
    }
    __syncthreads();
    for (int i = 0; i < BLOCK / 32; i++) {
        max = fmaxf(max, maxima[i]);
    }
    const float scale = __fdiv_rn(max, 127.0f);
    for (int k = threadIdx.x; k < n_in; k += BLOCK) {
        const float q = scale > 0 ? rintf(__fdiv_rn(__half2float(from[row + k]), scale)) : 0.0f;
        to[row + k] = (int8_t)fminf(fmaxf(q, -127.0f), 127.0f);
    }
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = scale;
    }
}

// Four k a thread; n_in is a multiple of 4.
static __global__ void __launch_bounds__(BLOCK)
    int8_expand(const int8_t *__restrict__ from, const float *__restrict__ scales, int n_in,
                __half *to) {
    const int k = (blockIdx.x * BLOCK + threadIdx.x) * 4;
    const size_t at = (size_t)blockIdx.y * n_in + k;
    lv_wait_previous();
    if (k >= n_in) {
        return;
    }
    const char4 q = *(const char4 *)(from + at);
    const float scale = scales[blockIdx.y];
    *(__half2 *)(to + at) = __floats2half2_rn((float)q.x * scale, (float)q.y * scale);
    *(__half2 *)(to + at + 2) = __floats2half2_rn((float)q.z * scale, (float)q.w * scale);
}

// --- launchers -----------------------------------------------------------------------------------

static lv_status refuse(const char *what, int n_out, int n_in) {
    return lv_fail(LV_EUNSUPPORTED, "%s: not for weights [%d, %d]", what, n_out, n_in);
}

lv_status lv_cuda_int4_pack(lv_cuda *cuda, const uint32_t *qweight, const uint32_t *qzeros,
                            const uint16_t *scales, int row0, int n_out, int n_in, int pair,
                            int n_out_all, void *records) {
    if (n_in % LV_RECORD_K || n_out % 8 || row0 % 8 || pair < 8 || pair % 8 ||
        n_out_all % (2 * pair) || row0 + n_out > n_out_all) {
        return refuse("int4 records", n_out, n_in);
    }
    const int n_tiles = n_out_all / LV_TILE;
    const dim3 grid(n_in / LV_RECORD_K, (n_tiles + TILES - 1) / TILES);
    return lv_launch(cuda, "int4_pack", int4_pack, grid, BLOCK, 0, qweight, qzeros, scales, row0,
                     n_out, n_in, pair, n_tiles, (uint8_t *)records);
}

lv_status lv_cuda_awq_to_f16(lv_cuda *cuda, const uint32_t *qweight, const uint32_t *qzeros,
                             const uint16_t *scales, int group_size, int row0, int n_out, int n_in,
                             int pair, int n_out_all, void *to) {
    if (group_size < 8 || group_size % 8 || n_in % group_size || n_out % 8 || pair % 8 ||
        (pair && n_out_all % (2 * pair)) || row0 + n_out > n_out_all) {
        return refuse("AWQ to f16", n_out, n_in);
    }
    const dim3 grid((n_in + SPAN - 1) / SPAN, (n_out / 8 + COLUMNS - 1) / COLUMNS);
    return lv_launch(cuda, "awq_to_f16", awq_to_f16, grid, BLOCK, 0, qweight, qzeros, scales,
                     group_size, row0, n_out, n_in, pair, (__half *)to);
}

lv_status lv_cuda_int4_round(lv_cuda *cuda, const void *f16, int n_out, int n_in, void *records) {
    if (n_in % LV_RECORD_K || n_out % LV_TILE || n_out / LV_TILE > 65535) {
        return refuse("rounding to int4", n_out, n_in);
    }
    return lv_launch(cuda, "int4_round", int4_round, dim3(n_in / LV_RECORD_K, n_out / LV_TILE),
                     BLOCK, 0, (const __half *)f16, n_in, (uint8_t *)records);
}

lv_status lv_cuda_int8_round(lv_cuda *cuda, const void *f16, int n_out, int n_in, void *int8,
                             float *scales) {
    return lv_launch(cuda, "int8_round", int8_round, n_out, BLOCK, 0, (const __half *)f16, n_in,
                     (int8_t *)int8, scales);
}

lv_status lv_cuda_int4_expand(lv_cuda *cuda, const lv_linear *w, int first, int n, void *f16) {
    const int n_records = w->n_in / LV_RECORD_K;
    if (w->format != LV_W_INT4 || first % LV_TILE || n % LV_TILE || n / LV_TILE > 65535) {
        return refuse("expanding int4", n, w->n_in);
    }
    const uint8_t *records =
        (const uint8_t *)w->data + (size_t)(first / LV_TILE) * n_records * LV_RECORD_BYTES;
    return lv_launch(cuda, "int4_expand", int4_expand, dim3(n_records, n / LV_TILE), BLOCK, 0,
                     records, w->n_in, (__half *)f16);
}

lv_status lv_cuda_int8_expand(lv_cuda *cuda, const lv_linear *w, int first, int n, void *f16) {
    if (w->format != LV_W_INT8 || w->n_in % 4 || n > 65535) {
        return refuse("expanding int8", n, w->n_in);
    }
    const dim3 grid((w->n_in / 4 + BLOCK - 1) / BLOCK, n);
    return lv_launch(cuda, "int8_expand", int8_expand, grid, BLOCK, 0,
                     (const int8_t *)w->data + (size_t)first * w->n_in, w->scales + first, w->n_in,
                     (__half *)f16);
}
