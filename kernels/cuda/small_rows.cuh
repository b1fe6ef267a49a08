// Rows of activations for the "few rows" kernels: gathered, normed, and summed over each group of
// 128 k, which the zeros of int4 (and the offset of int8) are multiplied by.
//
// A block of BLOCK threads takes chunk j BLOCK + tid of eight elements of each row, so that a warp
// holds a segment of rms.cuh and each half of it a group. A group's sum adds a chunk's elements in
// order and the chunks in a butterfly.
#ifndef LV_KERNELS_CUDA_SMALL_ROWS_CUH
#define LV_KERNELS_CUDA_SMALL_ROWS_CUH

#include "kernels/cuda/small.cuh"
#include "kernels/cuda/small_wide.h"

#define LV_BATCH 6 // chunks that a thread has on their way at once

// A barrier of the block's first BLOCK threads, which are those that work on rows.
template <int BLOCK> __device__ static inline void lv_sync() {
    asm volatile("bar.sync 0, %0;" ::"n"(BLOCK) : "memory");
}

typedef struct lv_rows {
    const __half *x; // f16 [*, n_in]
    const int32_t *rows;
    int m, n_in;
    const float *norm; // or NULL
    float eps;
    uint8_t *to; // shared: [m] rows of f16, row_bytes apart; with slabs only used for a norm
    size_t row_bytes;
    uint8_t *slab; // of record 0, where the one row (m = 1) starts; the next ones slab_step apart
    size_t slab_step;
    bool int8;
    int cores_nt; // slabs for wgmma, of so many rows by eight; else 0
    float *sums;  // f32 [n_in / 128, sums_stride], in units of 2^20; NULL: not wanted
    int sums_stride;
    float *segments; // shared f32 [m, ceil(n_in / 256)], with a norm
} lv_rows;

// This thread's first two chunks of the norm's weights, read ahead of lv_wait_previous.
typedef struct lv_norm_head {
    float4 v[4];
} lv_norm_head;

template <int BLOCK>
__device__ static inline lv_norm_head lv_norm_ahead(const float *norm, int n_in) {
    lv_norm_head head = {};
    const int chunk = threadIdx.x;
    if (norm && chunk < n_in / 8) {
        head.v[0] = *(const float4 *)(norm + chunk * 8);
        head.v[1] = *(const float4 *)(norm + chunk * 8 + 4);
    }
    if (norm && chunk + BLOCK < n_in / 8) {
        head.v[2] = *(const float4 *)(norm + (chunk + BLOCK) * 8);
        head.v[3] = *(const float4 *)(norm + (chunk + BLOCK) * 8 + 4);
    }
    return head;
}

template <bool SLABS>
__device__ static inline uint4 *lv_row_chunk(const lv_rows &r, int row, int chunk) {
    return (uint4 *)(SLABS ? r.slab + chunk / 16 * r.slab_step + lv_slab_chunk(chunk % 16, r.int8)
                           : r.to + row * r.row_bytes + chunk * 16);
}

// A chunk's final place.
template <bool SLABS>
__device__ static inline void lv_put_chunk(const lv_rows &r, int row, int chunk, uint4 bits) {
    if (SLABS && r.cores_nt > 0) {
        uint8_t *to = r.slab + chunk / 16 * r.slab_step + lv_core_chunk(chunk % 16, r.cores_nt);
        *(uint32_t *)to = bits.x;
        *(uint32_t *)(to + 128) = bits.y;
        to += lv_core_step(r.cores_nt);
        *(uint32_t *)to = bits.z;
        *(uint32_t *)(to + 128) = bits.w;
    } else {
        *lv_row_chunk<SLABS>(r, row, chunk) = bits;
    }
}

// The whole warp calls it, with zeros beyond the row.
__device__ static inline void lv_sum_group(const lv_rows &r, int row, int chunk, const float v[8]) {
    float sum = v[0];
#pragma unroll
    for (int i = 1; i < 8; i++) {
        sum = __fadd_rn(sum, v[i]);
    }
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, step));
    }
    if (chunk % 16 == 0 && chunk < r.n_in / 8) {
        r.sums[chunk / 16 * r.sums_stride + row] = __fmul_rn(sum, LV_SUM_UNIT);
    }
}

// Rows as they are, and their groups' sums or, before a norm, their segments' sums of squares.
template <bool SLABS, int BLOCK> __device__ static inline void lv_read_rows(const lv_rows &r) {
    const int n_chunks = r.n_in / 8, per_row = (n_chunks + BLOCK - 1) / BLOCK;
    const int n_segments = (r.n_in + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT;
    int next_row = 0, next_chunk = threadIdx.x, row = 0, chunk = threadIdx.x;
    for (int first = 0; first < r.m * per_row; first += LV_BATCH) {
        uint4 bits[LV_BATCH];
#pragma unroll
        for (int i = 0; i < LV_BATCH; i++) {
            bits[i] = make_uint4(0, 0, 0, 0);
            if (next_row < r.m && next_chunk < n_chunks) {
                const int source = r.rows ? r.rows[next_row] : next_row;
                bits[i] = __ldcg((const uint4 *)(r.x + (size_t)source * r.n_in + next_chunk * 8));
            }
            next_chunk += BLOCK;
            if (next_chunk >= per_row * BLOCK) {
                next_chunk = threadIdx.x;
                next_row++;
            }
        }
#pragma unroll
        for (int i = 0; i < LV_BATCH; i++) {
            if (row < r.m) {
                if (chunk < n_chunks && r.norm) {
                    *lv_row_chunk<false>(r, row, chunk) = bits[i];
                } else if (chunk < n_chunks) {
                    lv_put_chunk<SLABS>(r, row, chunk, bits[i]);
                }
                float v[8];
                lv_rms_unpack(bits[i], v);
                if (r.norm) {
                    const float sum = lv_rms_segment(v);
                    if (chunk % 32 == 0 && chunk / 32 < n_segments) {
                        r.segments[row * n_segments + chunk / 32] = sum;
                    }
                } else if (r.sums) {
                    lv_sum_group(r, row, chunk, v);
                }
            }
            chunk += BLOCK;
            if (chunk >= per_row * BLOCK) {
                chunk = threadIdx.x;
                row++;
            }
        }
    }
}

// Each thread norms the chunks that it wrote.
template <bool SLABS, int BLOCK>
__device__ static inline void lv_norm_rows(const lv_rows &r, const lv_norm_head &head) {
    const int n_chunks = r.n_in / 8, per_row = (n_chunks + BLOCK - 1) / BLOCK;
    const int n_segments = (r.n_in + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT;
    for (int row = 0; row < r.m; row++) {
        float sum = 0;
#pragma unroll 8
        for (int i = 0; i < n_segments; i++) {
            sum = __fadd_rn(sum, r.segments[row * n_segments + i]);
        }
        const float factor = lv_rms_factor(sum, r.n_in, r.eps);
        for (int j = 0; j < per_row; j++) {
            const int chunk = j * BLOCK + threadIdx.x;
            float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (chunk < n_chunks) {
                const uint4 *at = lv_row_chunk<false>(r, row, chunk);
                float4 a = j == 0 ? head.v[0] : head.v[2], b = j == 0 ? head.v[1] : head.v[3];
                if (j > 1) {
                    a = *(const float4 *)(r.norm + chunk * 8);
                    b = *(const float4 *)(r.norm + chunk * 8 + 4);
                }
                const float weights[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
                __half2 normed[4];
                lv_rms_unpack(*at, v);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int k = 2 * i;
                    normed[i] = __halves2half2(lv_rms_apply(v[k], factor, weights[k]),
                                               lv_rms_apply(v[k + 1], factor, weights[k + 1]));
                }
                const uint4 bits = *(const uint4 *)normed;
                lv_put_chunk<SLABS>(r, row, chunk, bits);
                lv_rms_unpack(bits, v);
            }
            if (r.sums) {
                lv_sum_group(r, row, chunk, v);
            }
        }
    }
}

// A single row of at most CHUNKS chunks a thread, which stay in registers all the way: one row is
// what most steps have, and every instruction here delays them.
template <int CHUNKS, bool NORM, int BLOCK>
__device__ static inline void lv_stage_one(const lv_rows &r, const lv_norm_head &head) {
    const int n_chunks = r.n_in / 8, tid = threadIdx.x;
    const __half *x = r.x + (r.rows ? (size_t)r.rows[0] * r.n_in : 0);
    uint4 bits[CHUNKS];
    float v[8];
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const int chunk = i * BLOCK + tid;
        bits[i] =
            chunk < n_chunks ? __ldcg((const uint4 *)(x + chunk * 8)) : make_uint4(0, 0, 0, 0);
    }
    if (NORM) {
        const int n_segments = (r.n_in + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const int segment = (i * BLOCK + tid) / 32;
            lv_rms_unpack(bits[i], v);
            const float sum = lv_rms_segment(v);
            if (tid % 32 == 0 && segment < n_segments) {
                r.segments[segment] = sum;
            }
        }
        lv_sync<BLOCK>();
        float sum = 0;
#pragma unroll 8
        for (int i = 0; i < n_segments; i++) {
            sum = __fadd_rn(sum, r.segments[i]);
        }
        const float factor = lv_rms_factor(sum, r.n_in, r.eps);
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const int chunk = i * BLOCK + tid;
            float4 a = i == 0 ? head.v[0] : head.v[2], b = i == 0 ? head.v[1] : head.v[3];
            if (i > 1 && chunk < n_chunks) {
                a = *(const float4 *)(r.norm + chunk * 8);
                b = *(const float4 *)(r.norm + chunk * 8 + 4);
            }
            const float weights[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            __half2 normed[4];
            lv_rms_unpack(bits[i], v);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                normed[j] = __halves2half2(lv_rms_apply(v[2 * j], factor, weights[2 * j]),
                                           lv_rms_apply(v[2 * j + 1], factor, weights[2 * j + 1]));
            }
            bits[i] = *(const uint4 *)normed;
        }
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const int chunk = i * BLOCK + tid;
        if (r.to && chunk < n_chunks) {
            *(uint4 *)(r.to + chunk * 16) = bits[i];
        }
        if (r.sums) {
            lv_rms_unpack(chunk < n_chunks ? bits[i] : make_uint4(0, 0, 0, 0), v);
            lv_sum_group(r, 0, chunk, v);
        }
    }
}

// A block of BLOCK threads calls it; the rows are there after its next barrier.
template <bool SLABS, int BLOCK>
__device__ static inline void lv_stage_rows(const lv_rows &r, const lv_norm_head &head) {
    constexpr int MOST = BLOCK <= 256 ? 6 : 3;
    const int per_thread = (r.n_in / 8 + BLOCK - 1) / BLOCK;
    if (!SLABS && r.m == 1 && r.norm && per_thread == 1) {
        lv_stage_one<1, true, BLOCK>(r, head);
        return;
    }
    if (!SLABS && r.m == 1 && r.norm && per_thread == 2) {
        lv_stage_one<2, true, BLOCK>(r, head);
        return;
    }
    if (!SLABS && r.m == 1 && !r.norm && per_thread <= 2) {
        lv_stage_one<2, false, BLOCK>(r, head);
        return;
    }
    if (!SLABS && r.m == 1 && !r.norm && per_thread <= MOST) {
        lv_stage_one<MOST, false, BLOCK>(r, head);
        return;
    }
    lv_read_rows<SLABS, BLOCK>(r);
    if (r.norm) {
        lv_sync<BLOCK>();
        lv_norm_rows<SLABS, BLOCK>(r, head);
    }
}

#endif
