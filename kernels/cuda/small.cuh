// What the two kernels of the "few rows" family share (small.cu says how they work): the ring of
// weights, the multiplication of one unit of them, the order of the sums, the epilogues.
#ifndef LV_KERNELS_CUDA_SMALL_CUH
#define LV_KERNELS_CUDA_SMALL_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/records.h"
#include "kernels/cuda/rms.cuh"

#define LV_SLICES 8          // parts of K, each summed on its own
#define LV_NARROW_ROWS 8     // most rows of the narrow kernel: columns of one mma
#define LV_SMALL_BLOCK 256   // threads of the narrow kernel and of small_prepare: a warp a slice
#define LV_WIDE_TILES 12     // most tiles (warps) of a block of the wide kernel
#define LV_WIDE_SLABS 4      // steps of activations that it holds
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
    const int32_t *token_seq, *token_pos; // of row 0 on
    const float *inv_freq, *rope_scale;
    int stages; // of each warp's ring
    // Wide kernel
    const float *sums; // f32 [n_in / 128, sums_stride]: sum of x over a group, in units of 2^20
    int sums_stride;
    int n_parts;   // of K, each for other blocks
    int n_columns; // blocks that share weights and differ in rows of x
    float *parts;  // f32 [n_parts, m, n_out] in tile order, where n_parts > 1
} lv_small_job;

// A unit is what a warp fetches and multiplies at once: 16 rows by 128 k, of f16 by 64 k.
template <int FORMAT> __host__ __device__ constexpr int lv_unit_k() {
    return FORMAT == LV_W_F16 ? 64 : 128;
}

template <int FORMAT> __host__ __device__ constexpr int lv_unit_bytes() {
    return FORMAT == LV_W_INT4 ? LV_RECORD_BYTES : 2048;
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

__device__ static inline void lv_copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int N> __device__ static inline void lv_copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
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

// `stages` slots of one unit each. A slot is filled again as soon as the warp has multiplied it, so
// that all but one are always on their way. Units come in the order in which they are used: those
// of the warp's slice of one tile, then of its next tile.
typedef struct lv_ring {
    uint8_t *slots;
    uint32_t barriers; // shared address of one mbarrier a slot
    const uint8_t *next;
    size_t jump;           // from the end of a tile's slice to the next tile's
    int per_tile, in_tile; // units of a slice; how many of the tile under way were asked for
    int left;              // units that were not asked for yet
    int stages, stage;     // stage: the slot to be read next
    uint32_t parity;
    uint64_t policy;
} lv_ring;

#if __CUDA_ARCH__ >= 900
#define LV_ARRIVALS(format) ((format) == LV_W_INT4 ? 1 : 32) // one bulk copy, or 32 lanes' copies
#else
#define LV_ARRIVALS(format) 32
#endif

// Asks for the next unit, into the slot `stage`. The whole warp calls it.
template <int FORMAT>
__device__ static inline void lv_ring_fill(lv_ring *ring, int n_in, int stage, int lane) {
    uint8_t *slot = ring->slots + stage * lv_unit_bytes<FORMAT>();
    const uint8_t *from = ring->next;
    [[maybe_unused]] const uint32_t barrier = ring->barriers + stage * 8;
    if (FORMAT == LV_W_INT4) {
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                         "r"(LV_RECORD_BYTES)
                         : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                         ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(lv_shared(slot)),
                         "l"(from), "r"(LV_RECORD_BYTES), "r"(barrier), "l"(ring->policy)
                         : "memory");
        }
#else
        lv_copy16(slot + lane * 16, from + lane * 16);
        lv_copy16(slot + 512 + lane * 16, from + 512 + lane * 16);
        if (lane < 3) {
            lv_copy16(slot + 1024 + lane * 16, from + 1024 + lane * 16);
        }
#endif
    } else { // each lane its own fragments: rows g and g + 8, two runs of 16 bytes each
        const size_t row_bytes = (size_t)n_in * (FORMAT == LV_W_F16 ? 2 : 1);
        const uint8_t *row = from + (lane / 4) * row_bytes + lane % 4 * 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            lv_copy16(slot + i * 512 + lane * 16, row + i / 2 * 8 * row_bytes + i % 2 * 64);
        }
    }
#if __CUDA_ARCH__ >= 800
    if (LV_ARRIVALS(FORMAT) == 32) {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
    }
#endif
    ring->next += lv_unit_stride<FORMAT>();
    if (++ring->in_tile == ring->per_tile) {
        ring->in_tile = 0;
        ring->next += ring->jump;
    }
    // The last one is on its way: the next kernel's weights may follow.
    if (--ring->left == 0) {
        lv_launch_next();
    }
}

// Records [first, last) of `tile` and of n_tiles - 1 more, `tile_step` apart.
template <int FORMAT>
__device__ static inline lv_ring
lv_ring_start(const lv_small_job &job, uint8_t *slots, uint32_t barriers, int tile, int n_tiles,
              int tile_step, int first, int last, uint64_t policy, int lane) {
    const int per_record = LV_RECORD_K / lv_unit_k<FORMAT>();
    const size_t tile_bytes = lv_tile_bytes<FORMAT>(job.n_in);
    lv_ring ring;
    ring.slots = slots;
    ring.barriers = barriers;
    ring.per_tile = (last - first) * per_record;
    ring.in_tile = 0;
    ring.left = ring.per_tile * n_tiles;
    ring.next = job.w + tile * tile_bytes + first * per_record * lv_unit_stride<FORMAT>();
    ring.jump = tile_step * tile_bytes - ring.per_tile * lv_unit_stride<FORMAT>();
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
        lv_ring_fill<FORMAT>(&ring, job.n_in, i, lane);
    }
    return ring;
}

__device__ static inline const uint8_t *lv_ring_wait(const lv_ring *ring, int unit_bytes) {
    lv_barrier_wait(ring->barriers + ring->stage * 8, ring->parity);
    return ring->slots + ring->stage * unit_bytes;
}

// The slot that lv_ring_wait gave is read: fills it again and goes on to the next.
template <int FORMAT>
__device__ static inline void lv_ring_advance(lv_ring *ring, int n_in, int lane) {
    __syncwarp();
    if (ring->left > 0) {
        lv_ring_fill<FORMAT>(ring, n_in, ring->stage, lane);
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

// acc[nt] += unit x^T for NT tiles of eight rows of x. x: this lane's activations of the unit in
// row g of tile 0; tile_bytes: to the next eight rows; sums: those of rows 2 t and 2 t + 1 of tile
// 0. acc of int4 and int8 is in units of 2^20 (int8: and of the row's scale).
template <int NT>
__device__ static inline void lv_multiply_int4(const uint8_t *slot, const uint8_t *x,
                                               int tile_bytes, const float *sums, int lane,
                                               float acc[NT][4]) {
    const uint4 first = lv_load16(slot + lane * 16), second = lv_load16(slot + 512 + lane * 16);
    const uint32_t w[8] = {first.x,  first.y,  first.z,  first.w,
                           second.x, second.y, second.z, second.w};
    const float2 scale = __half22float2(*(const __half2 *)(slot + LV_RECORD_SCALES + lane / 4 * 4));
    const uint32_t zeros = *(const uint16_t *)(slot + LV_RECORD_ZEROS + lane / 4 * 2);
    const float z0 = -(float)(zeros & 255), z1 = -(float)(zeros >> 8);
    const uint32_t low = 0x000f000f, high = 0x00f000f0;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        float lo[4] = {0, 0, 0, 0}, hi[4] = {0, 0, 0, 0};
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const uint4 b = lv_load16(x + nt * tile_bytes + p * 64);
            const uint32_t w0 = w[2 * p], w1 = w[2 * p + 1];
            lv_mma(lo, w0 & low, w0 >> 8 & low, w1 & low, w1 >> 8 & low, b.x, b.y);
            lv_mma(hi, w0 & high, w0 >> 8 & high, w1 & high, w1 >> 8 & high, b.z, b.w);
        }
        const float2 sum = *(const float2 *)(sums + nt * 8);
#pragma unroll
        for (int i = 0; i < 4; i++) { // q 2^-24 and q 2^-20 -> (q - z) 2^-20, times the scale
            const float q = __fmaf_rn(lo[i], 16.0f, hi[i]);
            const float v = __fmaf_rn(i < 2 ? z0 : z1, i % 2 ? sum.y : sum.x, q);
            acc[nt][i] = __fmaf_rn(i < 2 ? scale.x : scale.y, v, acc[nt][i]);
        }
    }
}

// Bytes q + 128 under a zero byte are f16 of value (q + 128) 2^-24.
template <int NT>
__device__ static inline void lv_multiply_int8(const uint8_t *slot, const uint8_t *x,
                                               int tile_bytes, const float *sums, int lane,
                                               float acc[NT][4]) {
    uint32_t w[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 q = lv_load16(slot + i * 512 + lane * 16);
        w[i][0] = q.x ^ 0x80808080u;
        w[i][1] = q.y ^ 0x80808080u;
        w[i][2] = q.z ^ 0x80808080u;
        w[i][3] = q.w ^ 0x80808080u;
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        float c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint4 b0 = lv_load16(x + nt * tile_bytes + j * 128);
            const uint4 b1 = lv_load16(x + nt * tile_bytes + j * 128 + 16);
            const uint32_t b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t top = w[j][i], bottom = w[2 + j][i]; // rows g and g + 8
                lv_mma(c, __byte_perm(top, 0, 0x4140), __byte_perm(bottom, 0, 0x4140),
                       __byte_perm(top, 0, 0x4342), __byte_perm(bottom, 0, 0x4342), b[2 * i],
                       b[2 * i + 1]);
            }
        }
        const float2 sum = *(const float2 *)(sums + nt * 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float offset = __fmul_rn(-128.0f, i % 2 ? sum.y : sum.x);
            acc[nt][i] = __fadd_rn(acc[nt][i], __fmaf_rn(c[i], 16.0f, offset));
        }
    }
}

template <int NT>
__device__ static inline void lv_multiply_f16(const uint8_t *slot, const uint8_t *x, int tile_bytes,
                                              int lane, float acc[NT][4]) {
    uint4 w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w[i] = lv_load16(slot + i * 512 + lane * 16);
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint4 b = lv_load16(x + nt * tile_bytes + j * 64);
            lv_mma(acc[nt], w[j].x, w[2 + j].x, w[j].y, w[2 + j].y, b.x, b.y);
            lv_mma(acc[nt], w[j].z, w[2 + j].z, w[j].w, w[2 + j].w, b.z, b.w);
        }
    }
}

template <int FORMAT, int NT>
__device__ static inline void lv_multiply(const uint8_t *slot, const uint8_t *x, int tile_bytes,
                                          const float *sums, int lane, float acc[NT][4]) {
    if (FORMAT == LV_W_INT4) {
        lv_multiply_int4<NT>(slot, x, tile_bytes, sums, lane, acc);
    } else if (FORMAT == LV_W_INT8) {
        lv_multiply_int8<NT>(slot, x, tile_bytes, sums, lane, acc);
    } else {
        lv_multiply_f16<NT>(slot, x, tile_bytes, lane, acc);
    }
}

// --- epilogues -----------------------------------------------------------------------------------

__device__ static inline float lv_sigmoid(float x) {
    return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-x)));
}

__device__ static inline float lv_activated(lv_activation activation, float x) {
    switch (activation) {
    case LV_ACT_QUICK_GELU:
        return __fmul_rn(x, lv_sigmoid(__fmul_rn(1.702f, x)));
    case LV_ACT_GELU:
        return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, erff(__fmul_rn(x, 0.70710678f))));
    case LV_ACT_GELU_TANH: {
        const float cube = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, x), x), x);
        const float t = tanhf(__fmul_rn(0.79788456f, __fadd_rn(x, cube)));
        return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, t));
    }
    case LV_ACT_SILU:
        return __fmul_rn(x, lv_sigmoid(x));
    default:
        return x;
    }
}

// Rows r and r + head_dim / 2 of [q; k; v].
__device__ static inline void lv_store_rotated(const lv_small_job &job, int row, int token,
                                               float y0, float y1) {
    const int half = job.head_dim / 2, head = row / job.head_dim, i = row % job.head_dim;
    if (head < job.n_heads + job.n_kv_heads) {
        const int seq = job.token_seq[token];
        const float scale = job.rope_scale[seq];
        float sine, cosine;
        sincosf(__fmul_rn((float)job.token_pos[token], job.inv_freq[(size_t)seq * half + i]), &sine,
                &cosine);
        sine = __fmul_rn(sine, scale);
        cosine = __fmul_rn(cosine, scale);
        const float a = y0, b = y1;
        y0 = __fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine));
        y1 = __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine));
    }
    __half *to =
        head < job.n_heads
            ? (__half *)job.out + ((size_t)token * job.n_heads + head) * job.head_dim + i
            : job.kv_new +
                  ((size_t)token * 2 * job.n_kv_heads + head - job.n_heads) * job.head_dim + i;
    to[0] = __float2half_rn(y0);
    to[half] = __float2half_rn(y1);
}

// The sums y0 and y1 of places `place` and place + 8 of the tile order, place % 16 < 8, for one row
// of x. No multiplication here may be fused into an addition differently in the two kernels.
template <int FORMAT>
__device__ static inline void lv_small_finish(const lv_small_job &job, int place, int token,
                                              float y0, float y1) {
    const int r0 = lv_tile_row(place, job.pair), r1 = lv_tile_row(place + 8, job.pair);
    if (FORMAT == LV_W_INT4) {
        y0 = __fmul_rn(y0, 1 / LV_SUM_UNIT);
        y1 = __fmul_rn(y1, 1 / LV_SUM_UNIT);
    } else if (FORMAT == LV_W_INT8) {
        y0 = __fmul_rn(__fmul_rn(y0, 1 / LV_SUM_UNIT), job.row_scales[place]);
        y1 = __fmul_rn(__fmul_rn(y1, 1 / LV_SUM_UNIT), job.row_scales[place + 8]);
    }
    if (job.bias) {
        y0 = __fadd_rn(y0, job.bias[r0]);
        y1 = __fadd_rn(y1, job.bias[r1]);
    }
    const size_t at = (size_t)token * job.n_out;
    switch (job.epilogue) {
    case LV_STORE:
        y0 = lv_activated(job.activation, y0);
        y1 = lv_activated(job.activation, y1);
        if (job.residual) {
            y0 = __fadd_rn(y0, __half2float(job.residual[at + r0]));
            y1 = __fadd_rn(y1, __half2float(job.residual[at + r1]));
        }
        ((__half *)job.out)[at + r0] = __float2half_rn(y0);
        ((__half *)job.out)[at + r1] = __float2half_rn(y1);
        break;
    case LV_STORE_F32:
        ((float *)job.out)[at + r0] = y0;
        ((float *)job.out)[at + r1] = y1;
        break;
    case LV_ROTATE:
        lv_store_rotated(job, r0, token, y0, y1);
        break;
    case LV_GATE:
        ((__half *)job.out)[at / 2 + r0] =
            __float2half_rn(__fmul_rn(lv_activated(LV_ACT_SILU, y0), y1));
        break;
    }
}

// --- launchers of the kernels (small_narrow.cu, small_wide.cu)
// -------------------------------------

lv_status lv_small_narrow(lv_cuda *cuda, const lv_small_job *job, lv_format format, int n_blocks,
                          size_t shared_bytes);
// n_rows: rows of x that a block takes, 8, 16 or 32; n_warps: its tiles.
lv_status lv_small_wide(lv_cuda *cuda, const lv_small_job *job, lv_format format, int n_rows,
                        int n_warps, int n_blocks);
size_t lv_small_wide_bytes(lv_format format, int n_rows, int n_warps, int stages);

#endif
