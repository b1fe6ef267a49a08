// What the two kernels of the "few rows" family share (small.cu says how they work): the ring of
// weights and the multiplication of one unit of them.
#ifndef LV_KERNELS_CUDA_SMALL_CUH
#define LV_KERNELS_CUDA_SMALL_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/records.h"
#include "kernels/cuda/rms.cuh"

#define LV_SLICES 8          // parts of K, each summed on its own
#define LV_NARROW_ROWS 8     // most rows of the narrow kernel: columns of one mma
#define LV_SMALL_BLOCK 256   // threads of the narrow kernel and of small_prepare: a warp a slice
#define LV_SUM_UNIT 0x1p-20f // sums of x and accumulators of quantised formats are in units of 2^20

// A kernel's parameters.
typedef struct lv_small_job {
    const uint8_t *w;
    const float *row_scales; // int8: f32 [n_out] in tile order
    const float *bias;       // f32 [n_out] in natural order, or NULL
    const __half *x;         // f16 [*, n_in]
    const int32_t *rows;     // as lv_small
    const float *norm;
    float eps;
    int m, n_in, n_out, pair;
    lv_epilogue epilogue;
    lv_activation activation;
    const __half *residual;
    void *out;
    __half *kv_new;
    int n_heads, n_kv_heads, head_dim;
    const float2 *turns; // [m, head_dim / 2] cos and sin of each row's angles
    int stages;          // of each warp's ring
    // Wide kernel
    const uint8_t *slabs; // [n_in / 128, n_columns] of lv_slab_bytes
    int n_parts;          // of K, each for other blocks
    int n_columns;        // blocks that share weights and differ in rows of x
    float *parts; // f32 [n_parts, m, n_out] in tile order; NULL: the blocks of a cluster join them
} lv_small_job;

// A unit is what a warp fetches and multiplies at once: 16 rows by 128 k, of f16 by 64 k.
template <int FORMAT> __host__ __device__ constexpr int lv_unit_k() {
    return FORMAT == LV_W_F16 ? 64 : 128;
}

template <int FORMAT> __host__ __device__ constexpr int lv_unit_bytes() {
    return FORMAT == LV_W_INT4 ? LV_RECORD_BYTES : 2048;
}

// Units of a slot of the rings. Bulk copies of one record reach 1.9 TB/s of an H200, of two 3.9.
template <int FORMAT> __host__ __device__ constexpr int lv_slot_units() {
    return FORMAT == LV_W_INT4 ? 2 : 1;
}

template <int FORMAT> __host__ __device__ constexpr int lv_slot_bytes() {
    return lv_slot_units<FORMAT>() * lv_unit_bytes<FORMAT>();
}

// Bytes from a unit to the next one of its tile.
template <int FORMAT> __host__ __device__ constexpr int lv_unit_stride() {
    return FORMAT == LV_W_INT4 ? LV_RECORD_BYTES : 128;
}

template <int FORMAT> __host__ __device__ constexpr size_t lv_tile_bytes(int n_in) {
    return FORMAT == LV_W_INT4 ? (size_t)(n_in / LV_RECORD_K) * LV_RECORD_BYTES
                               : (size_t)LV_TILE * n_in * (FORMAT == LV_W_F16 ? 2 : 1);
}

// A row of n activations in shared memory, padded so that the lanes of eight rows meet all banks.
template <int FORMAT> __host__ __device__ constexpr int lv_row_bytes(int n) {
    return n * 2 + (FORMAT == LV_W_INT8 ? 16 : 64);
}

// Where the 16-byte pieces of a lane's activations of a unit lie, in a row or in a slab.
template <int FORMAT, bool SLAB> __device__ constexpr int lv_piece(int i) {
    return SLAB ? i * 512 : FORMAT == LV_W_INT8 ? i / 2 * 128 + i % 2 * 16 : i * 64;
}

// Where in a unit of a row the activations of lane t of a quad start.
template <int FORMAT> __device__ constexpr int lv_lane_bytes(int t) {
    return t * (FORMAT == LV_W_INT8 ? 32 : 16);
}

// --- copies --------------------------------------------------------------------------------------

#define LV_EVICT_FIRST 0x12f0000000000000ull // L2 policies as createpolicy encodes them
#define LV_EVICT_NORMAL 0x1000000000000000ull

__device__ static inline uint32_t lv_shared(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// 16 bytes, asynchronously where the device can.
__device__ static inline void lv_copy16(void *to, const void *from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(lv_shared(to)), "l"(from)
                 : "memory");
#else
    *(uint4 *)to = *(const uint4 *)from;
#endif
}

__device__ static inline void lv_barrier_init(uint32_t barrier, int n_arrivals) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals) : "memory");
#endif
}

// After a thread's lv_barrier_init, before copies that complete on those barriers.
__device__ static inline void lv_barrier_fence() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Between the last kernel's stores and bulk copies of what they left.
__device__ static inline void lv_copy_fence() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

__device__ static inline void lv_barrier_arrive(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

// Waits for the phase of that parity to end. A warp calls it together.
__device__ static inline void lv_barrier_wait(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#else
    __syncwarp();
#endif
}

// --- the ring of a warp --------------------------------------------------------------------------

// `stages` slots of lv_slot_units units each, or of as many of each of TILES tiles side by side. A
// slot is filled again as soon as the warp has multiplied it, so that all but one are always on
// their way. Units come in the order in which they are used: those of the warp's slice of one tile,
// then of its next tile; a slot holds units of one tile only.
typedef struct lv_ring {
    uint8_t *slots;
    uint32_t barriers; // shared address of one mbarrier a slot
    const uint8_t *next;
    size_t tile_bytes;
    size_t jump;           // from the end of a tile's slice to the next tile's
    int per_tile, in_tile; // units of a slice; how many of the tile under way were asked for
    int done, in_slot;     // how many of the tile were multiplied, and of the slot
    int left;              // units that were not asked for yet
    int present;           // of the TILES tiles side by side
    int stages, stage;     // stage: the slot to be read next
    uint32_t parity;
    uint64_t policy;
} lv_ring;

#if __CUDA_ARCH__ >= 900
#define LV_ARRIVALS(format) ((format) == LV_W_INT4 ? 1 : 32) // bulk copies, or 32 lanes' copies
#else
#define LV_ARRIVALS(format) 32
#endif

__device__ static inline void lv_barrier_expect(uint32_t barrier, int n_bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(n_bytes)
                 : "memory");
#endif
}

// One thread's copy of n_bytes, which count towards what the barrier expects.
__device__ static inline void lv_copy_bulk(void *to, const void *from, int n_bytes,
                                           uint32_t barrier, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(lv_shared(to)),
                 "l"(from), "r"(n_bytes), "r"(barrier), "l"(policy)
                 : "memory");
#endif
}

// The lane arrives once its copies so far are there.
__device__ static inline void lv_copy_arrive(uint32_t barrier) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

// A slot's n units of one tile, not as a bulk copy.
template <int FORMAT>
__device__ static inline void lv_unit_copy(uint8_t *slot, const uint8_t *from, int n, int n_in,
                                           int lane) {
    if (FORMAT == LV_W_INT4) {
        for (int i = lane; i < n * LV_RECORD_BYTES / 16; i += 32) {
            lv_copy16(slot + i * 16, from + i * 16);
        }
    } else { // each lane its own fragments: rows g and g + 8, two runs of 16 bytes each
        const size_t row_bytes = (size_t)n_in * (FORMAT == LV_W_F16 ? 2 : 1);
        const uint8_t *row = from + (lane / 4) * row_bytes + lane % 4 * 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            lv_copy16(slot + i * 512 + lane * 16, row + i / 2 * 8 * row_bytes + i % 2 * 64);
        }
    }
}

// Asks for the next slot's units, into the slot `stage`. The whole warp calls it.
template <int FORMAT, int TILES>
__device__ static inline void lv_ring_fill(lv_ring *ring, int n_in, int stage, int lane) {
    uint8_t *slot = ring->slots + stage * TILES * lv_slot_bytes<FORMAT>();
    const uint32_t barrier = ring->barriers + stage * 8;
    const int present = TILES == 1 ? 1 : ring->present;
    const int n = min(lv_slot_units<FORMAT>(), ring->per_tile - ring->in_tile);
    if (LV_ARRIVALS(FORMAT) == 32) {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            if (i < present) {
                lv_unit_copy<FORMAT>(slot + i * lv_slot_bytes<FORMAT>(),
                                     ring->next + i * ring->tile_bytes, n, n_in, lane);
            }
        }
        lv_copy_arrive(barrier);
    } else if (lane == 0) {
        lv_barrier_expect(barrier, present * n * lv_unit_bytes<FORMAT>());
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            if (i < present) {
                lv_copy_bulk(slot + i * lv_slot_bytes<FORMAT>(), ring->next + i * ring->tile_bytes,
                             n * lv_unit_bytes<FORMAT>(), barrier, ring->policy);
            }
        }
    }
    ring->next += n * lv_unit_stride<FORMAT>();
    ring->in_tile += n;
    if (ring->in_tile == ring->per_tile) {
        ring->in_tile = 0;
        ring->next += ring->jump;
    }
    // The last one is on its way: the next kernel's weights may follow.
    ring->left -= n;
    if (ring->left == 0) {
        lv_launch_next();
    }
}

// Records [first, last) of `tile` and of n_tiles - 1 more, `tile_step` apart; or of `present`
// tiles side by side.
template <int FORMAT, int TILES>
__device__ static inline lv_ring
lv_ring_start(const lv_small_job &job, uint8_t *slots, uint32_t barriers, int tile, int n_tiles,
              int tile_step, int present, int first, int last, uint64_t policy, int lane) {
    const int per_record = LV_RECORD_K / lv_unit_k<FORMAT>();
    lv_ring ring;
    ring.slots = slots;
    ring.barriers = barriers;
    ring.tile_bytes = lv_tile_bytes<FORMAT>(job.n_in);
    ring.per_tile = (last - first) * per_record;
    ring.in_tile = ring.done = ring.in_slot = 0;
    ring.left = ring.per_tile * n_tiles;
    ring.present = present;
    ring.next = job.w + tile * ring.tile_bytes + first * per_record * lv_unit_stride<FORMAT>();
    ring.jump = tile_step * ring.tile_bytes - ring.per_tile * lv_unit_stride<FORMAT>();
    ring.stages = job.stages;
    ring.stage = 0;
    ring.parity = 0;
    ring.policy = policy;
    if (lane == 0) {
        for (int i = 0; i < ring.stages; i++) {
            lv_barrier_init(barriers + i * 8, LV_ARRIVALS(FORMAT));
        }
        lv_barrier_fence();
    }
    __syncwarp();
    if (ring.left == 0) {
        lv_launch_next();
    }
    for (int i = 0; i < ring.stages && ring.left > 0; i++) {
        lv_ring_fill<FORMAT, TILES>(&ring, job.n_in, i, lane);
    }
    return ring;
}

// The next unit, of the first of TILES tiles; the others' are lv_slot_bytes further each.
template <int FORMAT, int TILES>
__device__ static inline const uint8_t *lv_ring_wait(const lv_ring *ring) {
    if (lv_slot_units<FORMAT>() == 1 || ring->in_slot == 0) {
        lv_barrier_wait(ring->barriers + ring->stage * 8, ring->parity);
    }
    return ring->slots + ring->stage * TILES * lv_slot_bytes<FORMAT>() +
           ring->in_slot * lv_unit_bytes<FORMAT>();
}

// The unit that lv_ring_wait gave is read. Fills its slot again where it was the last one there.
template <int FORMAT, int TILES>
__device__ static inline void lv_ring_advance(lv_ring *ring, int n_in, int lane) {
    if (lv_slot_units<FORMAT>() > 1) {
        const bool ends_tile = ++ring->done == ring->per_tile;
        if (!ends_tile && ++ring->in_slot < lv_slot_units<FORMAT>()) {
            return;
        }
        ring->in_slot = 0;
        ring->done = ends_tile ? 0 : ring->done;
    }
    __syncwarp();
    if (ring->left > 0) {
        lv_ring_fill<FORMAT, TILES>(ring, n_in, ring->stage, lane);
    }
    if (++ring->stage == ring->stages) {
        ring->stage = 0;
        ring->parity ^= 1;
    }
}

// --- multiplication ------------------------------------------------------------------------------

// d[16, 8] = a[16, 16] b[16, 8] + c, f16 and f32.
__device__ static inline void lv_mma(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                     uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

__device__ static inline uint4 lv_load16(const uint8_t *shared) {
    return *(const uint4 *)shared;
}

// Activations and their sums, by other names than weights: racecheck's reports tell places by their
// function's name, and slabs are filled again by other rules than rings (tests/gpu/sanitizer.sh).
__device__ static inline uint4 lv_load_x(const uint8_t *shared) {
    return *(const uint4 *)shared;
}

__device__ static inline float2 lv_load_sums(const float *shared) {
    return *(const float2 *)shared;
}

// acc[tile][nt] += unit x^T for TILES units side by side and NT tiles of eight rows of x, so that
// what is read of x serves all TILES and what is unpacked of a unit serves all NT. x: this lane's
// activations of the unit in row g of tile 0, in a row (NT = 1) or in a slab; sums: those of rows
// 2 t and 2 t + 1 of tile 0. acc of int4 and int8 is in units of 2^20 (int8: and of the row's
// scale).
template <int TILES, int NT, bool SLAB>
__device__ static inline void lv_multiply_int4(const uint8_t *slot, const uint8_t *x,
                                               const float *sums, int lane,
                                               float acc[TILES][NT][4]) {
    const uint32_t low = 0x000f000f, high = 0x00f000f0;
    float lo[TILES][NT][4] = {}, hi[TILES][NT][4] = {};
    uint4 words[TILES];
#pragma unroll
    for (int p = 0; p < 4; p++) {
        uint4 b[NT];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            b[nt] = lv_load_x(x + nt * 2048 + lv_piece<LV_W_INT4, SLAB>(p));
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            if (p % 2 == 0) {
                words[i] =
                    lv_load16(slot + i * lv_slot_bytes<LV_W_INT4>() + p / 2 * 512 + lane * 16);
            }
            const uint32_t w0 = p % 2 ? words[i].z : words[i].x;
            const uint32_t w1 = p % 2 ? words[i].w : words[i].y;
            const uint32_t v0 = w0 >> 8, v1 = w1 >> 8;
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                lv_mma(lo[i][nt], w0 & low, v0 & low, w1 & low, v1 & low, b[nt].x, b[nt].y);
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                lv_mma(hi[i][nt], w0 & high, v0 & high, w1 & high, v1 & high, b[nt].z, b[nt].w);
            }
        }
    }
    float2 scale[TILES];
    float z0[TILES], z1[TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        const uint8_t *unit = slot + i * lv_slot_bytes<LV_W_INT4>();
        scale[i] = __half22float2(*(const __half2 *)(unit + LV_RECORD_SCALES + lane / 4 * 4));
        const uint32_t zeros = *(const uint16_t *)(unit + LV_RECORD_ZEROS + lane / 4 * 2);
        z0[i] = -(float)(zeros & 255);
        z1[i] = -(float)(zeros >> 8);
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const float2 sum = lv_load_sums(sums + nt * 8);
#pragma unroll
        for (int i = 0; i < TILES * 4; i++) {
            // q 2^-24 and q 2^-20 -> (q - z) 2^-20, times the scale
            const int tile = i / 4, c = i % 4;
            const float q = __fmaf_rn(lo[tile][nt][c], 16.0f, hi[tile][nt][c]);
            const float v = __fmaf_rn(c < 2 ? z0[tile] : z1[tile], c % 2 ? sum.y : sum.x, q);
            acc[tile][nt][c] =
                __fmaf_rn(c < 2 ? scale[tile].x : scale[tile].y, v, acc[tile][nt][c]);
        }
    }
}

// Bytes q + 128 under a zero byte are f16 of value (q + 128) 2^-24.
template <int TILES, int NT, bool SLAB>
__device__ static inline void lv_multiply_int8(const uint8_t *slot, const uint8_t *x,
                                               const float *sums, int lane,
                                               float acc[TILES][NT][4]) {
    float c[TILES][NT][4] = {};
#pragma unroll
    for (int j = 0; j < 2; j++) {
        uint4 top[TILES], bottom[TILES]; // rows g and g + 8
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            top[i] = lv_load16(slot + i * 2048 + j * 512 + lane * 16);
            bottom[i] = lv_load16(slot + i * 2048 + (2 + j) * 512 + lane * 16);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 b[NT];
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                b[nt] = lv_load_x(x + nt * 2048 + lv_piece<LV_W_INT8, SLAB>(2 * j + h));
            }
#pragma unroll
            for (int i = 0; i < TILES * 2; i++) {
                const int tile = i / 2;
                const uint4 q = top[tile], r = bottom[tile];
                const uint32_t w = (h ? i % 2 ? q.w : q.z : i % 2 ? q.y : q.x) ^ 0x80808080u;
                const uint32_t v = (h ? i % 2 ? r.w : r.z : i % 2 ? r.y : r.x) ^ 0x80808080u;
                const uint32_t a0 = __byte_perm(w, 0, 0x4140), a1 = __byte_perm(v, 0, 0x4140);
                const uint32_t a2 = __byte_perm(w, 0, 0x4342), a3 = __byte_perm(v, 0, 0x4342);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    lv_mma(c[tile][nt], a0, a1, a2, a3, i % 2 ? b[nt].z : b[nt].x,
                           i % 2 ? b[nt].w : b[nt].y);
                }
            }
        }
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const float2 sum = lv_load_sums(sums + nt * 8);
#pragma unroll
        for (int i = 0; i < TILES * 4; i++) {
            const float offset = __fmul_rn(-128.0f, i % 2 ? sum.y : sum.x);
            float *to = &acc[i / 4][nt][i % 4];
            *to = __fadd_rn(*to, __fmaf_rn(c[i / 4][nt][i % 4], 16.0f, offset));
        }
    }
}

template <int TILES, int NT, bool SLAB>
__device__ static inline void lv_multiply_f16(const uint8_t *slot, const uint8_t *x, int lane,
                                              float acc[TILES][NT][4]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        uint4 b[NT];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            b[nt] = lv_load_x(x + nt * 2048 + lv_piece<LV_W_F16, SLAB>(j));
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const uint4 top = lv_load16(slot + i * 2048 + j * 512 + lane * 16);
            const uint4 bottom = lv_load16(slot + i * 2048 + (2 + j) * 512 + lane * 16);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                lv_mma(acc[i][nt], top.x, bottom.x, top.y, bottom.y, b[nt].x, b[nt].y);
                lv_mma(acc[i][nt], top.z, bottom.z, top.w, bottom.w, b[nt].z, b[nt].w);
            }
        }
    }
}

template <int FORMAT, int TILES, int NT, bool SLAB>
__device__ static inline void lv_multiply(const uint8_t *slot, const uint8_t *x, const float *sums,
                                          int lane, float acc[TILES][NT][4]) {
    if (FORMAT == LV_W_INT4) {
        lv_multiply_int4<TILES, NT, SLAB>(slot, x, sums, lane, acc);
    } else if (FORMAT == LV_W_INT8) {
        lv_multiply_int8<TILES, NT, SLAB>(slot, x, sums, lane, acc);
    } else {
        lv_multiply_f16<TILES, NT, SLAB>(slot, x, lane, acc);
    }
}

// --- launchers -----------------------------------------------------------------------------------

lv_status lv_small_narrow(lv_cuda *cuda, const lv_small_job *job, lv_format format, int n_blocks,
                          size_t shared_bytes);
// nt: tiles of eight rows of x that a block takes, 1 to 4; n_warps: each two tiles of weights.
lv_status lv_small_wide(lv_cuda *cuda, const lv_small_job *job, lv_format format, int nt,
                        int n_warps, int n_blocks);
// The same by wgmma, int4: nt 4 or 8; n_warps a multiple of four, each a tile of weights.
lv_status lv_small_wgmma(lv_cuda *cuda, const lv_small_job *job, int nt, int n_warps, int n_blocks);
// Blocks of the wide kernel that run at a time where each n_parts of them are a cluster.
lv_status lv_small_wide_resident(lv_cuda *cuda, int n_parts, int *n_blocks);

#endif
