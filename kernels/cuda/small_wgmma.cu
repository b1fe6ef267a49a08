// The wide kernel of int4 weights on Hopper, by wgmma: up to 64 rows of x a block. See small.cu.
//
//   y^T [64 rows of W, 8 NT rows of x] += A [64, 16] B [16, 8 NT]      wgmma m64nNk16, N = 8 NT
//
// A comes from registers: a warpgroup has four tiles of weights, a warp one, and a record's masked
// words are the fragments of wgmma's A just as they are mma.sync's. B is a slab of x in shared
// memory, core matrices in the records' order of k (small_wide.h). For every record eight wgmma,
// four of low nibbles and four of high ones, each with accumulators of its own; then zeros, scales
// and the slice's sums in f32, as lv_multiply_int4 does it: wgmma adds up 16 products at once as
// mma.sync m16n8k16 does, so that a row's bits are those of the narrow kernel.
//
// While the tensor cores work on a record, its warp fetches the words of the next one; while a
// warpgroup folds and unpacks, those of the other warpgroups (up to three a block) keep the tensor
// cores busy. Slabs, parts of K and the end are the other wide kernel's (small_wide.cuh).
//
// m = 64, the four products of a 7B layer: 26 GFLOP, 35 us at 750 TFLOP/s (a record: 256 cycles of
// a multiprocessor's tensor cores for four warps); 106 MB of weights, 25 us at 4.3 TB/s; every
// block reads all x of its part of K from the second-level cache: 60 MB for gate and up at three
// warpgroups a block; issue slots: 45 to unpack a record, 13 NT to fold it.
//
// measured: H200, the four products of a 7B layer (test_gpu_linear --bench): 90 us at 32 rows
// (mma.sync 107), 128 us at 64 (192). Latency of a record's step binds: q, k, v at 32 rows with all
// K in a block take 32 us with three warpgroups (64 blocks), 28 with two; gate and up 34 with three
// (115 blocks); slabs 3, 4 or 6 deep and rings 2 to 4 give the same. (Measured when warps asked for
// slabs by turns; since the last reader does, a step of llava-bench takes 4.42 ms at batch 32 and
// 7.10 at 64, context 512, int8 KV.)
#include "kernels/cuda/small_wide.cuh"
#include "kernels/cuda/wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Core matrices of 128 bytes, halves of k side by side, then eight rows further.
__device__ static inline uint64_t descriptor(const void *step) {
    return (uint64_t)((lv_shared(step) & 0x3ffff) >> 4) | (uint64_t)(128 >> 4) << 16 |
           (uint64_t)(256 >> 4) << 32;
}

// --- a record ------------------------------------------------------------------------------------

// A lane's part of a record: eight words of nibbles, scales and zeros of rows g and g + 8.
typedef struct record_part {
    uint4 words[2];
    uint32_t scales, zeros;
} record_part;

__device__ static inline record_part read_record(const uint8_t *record, int lane) {
    record_part r;
    r.words[0] = lv_load16(record + lane * 16);
    r.words[1] = lv_load16(record + 512 + lane * 16);
    r.scales = *(const uint32_t *)(record + LV_RECORD_SCALES + lane / 4 * 4);
    r.zeros = *(const uint16_t *)(record + LV_RECORD_ZEROS + lane / 4 * 2);
    return r;
}

// Begins lo, hi = record x^T, low and high nibbles apart.
template <int NT>
__device__ static inline void begin(const record_part &r, const uint8_t *slab, float lo[NT][4],
                                    float hi[NT][4]) {
    const uint32_t low = 0x000f000f, high = 0x00f000f0;
    uint32_t a[8][4];
#pragma unroll
    for (int p = 0; p < 4; p++) {
        const uint32_t w0 = p % 2 ? r.words[p / 2].z : r.words[p / 2].x;
        const uint32_t w1 = p % 2 ? r.words[p / 2].w : r.words[p / 2].y;
        const uint32_t v0 = w0 >> 8, v1 = w1 >> 8, words[4] = {w0, v0, w1, v1};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[2 * p][i] = words[i] & low;
            a[2 * p + 1][i] = words[i] & high;
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) { // all of them before the first wgmma
        asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
    }
    const uint64_t b = descriptor(slab);
    lv_wgmma_begin();
#pragma unroll
    for (int p = 0; p < 4; p++) {
        lv_wgmma<NT, false>(lo, a[2 * p], b + 2 * p * (lv_core_step(NT) >> 4), p > 0);
        lv_wgmma<NT, false>(hi, a[2 * p + 1], b + (2 * p + 1) * (lv_core_step(NT) >> 4), p > 0);
    }
    lv_wgmma_commit();
}

template <int NT>
__device__ static inline void fold(const record_part &r, const float *sums, const float lo[NT][4],
                                   const float hi[NT][4], float acc[NT][4]) {
    const float2 scale = __half22float2(*(const __half2 *)&r.scales);
    const float z0 = -(float)(r.zeros & 255), z1 = -(float)(r.zeros >> 8);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const float2 sum = lv_load_sums(sums + nt * 8);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float q = __fmaf_rn(lo[nt][c], 16.0f, hi[nt][c]);
            const float v = __fmaf_rn(c < 2 ? z0 : z1, c % 2 ? sum.y : sum.x, q);
            acc[nt][c] = __fmaf_rn(c < 2 ? scale.x : scale.y, v, acc[nt][c]);
        }
    }
}

#endif // wgmma

// --- the kernel ----------------------------------------------------------------------------------

template <int NT>
static __global__ void __launch_bounds__(32 * LV_WIDE_WARPS, 1)
    wide_wgmma(const __grid_constant__ lv_small_job job) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) uint8_t shared[];
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32,
              n_warps = blockDim.x / 32;
    const int part = blockIdx.x % job.n_parts, column = blockIdx.x / job.n_parts % job.n_columns;
    const int tile0 = blockIdx.x / (job.n_parts * job.n_columns) * n_warps;
    const int n_tiles = job.n_out / LV_TILE - tile0;
    const bool has_tile = warp < n_tiles; // the others multiply zeros
    const int n_slices = LV_SLICES / job.n_parts, slice0 = part * n_slices;
    const int n_records = job.n_in / LV_RECORD_K, first = slice0 * n_records / LV_SLICES;
    const int last = (slice0 + n_slices) * n_records / LV_SLICES;
    const lv_wide_layout at =
        lv_wide_plan(lv_slot_bytes<LV_W_INT4>(), 1, NT, n_warps, job.stages, job.n_parts);

    lv_ring ring = lv_ring_start<LV_W_INT4, 1>(
        job, shared + warp * at.ring, lv_shared(shared + at.barriers) + warp * job.stages * 8,
        has_tile ? tile0 + warp : 0, has_tile, 0, 1, first, last,
        job.n_columns > 1 ? LV_EVICT_NORMAL : LV_EVICT_FIRST, lane);
    lv_slabs x = {.slots = shared + at.slabs,
                  .barriers = lv_shared(shared + at.slab_barriers),
                  .readers = (uint32_t *)(shared + at.readers),
                  .from = job.slabs + ((size_t)first * job.n_columns + column) * lv_slab_bytes(NT),
                  .step = (size_t)job.n_columns * lv_slab_bytes(NT),
                  .n = last - first,
                  .n_readers = n_warps,
                  .slot = 0,
                  .parity = 0};
    lv_slabs_start<NT>(x, warp, lane);

    float acc[1][NT][4] = {}, lo[NT][4] = {}, hi[NT][4] = {};
    float4 *saved = (float4 *)(shared + at.saved) + warp * at.levels * NT * 32;
    record_part record = {};
    if (has_tile && x.n > 0) {
        record = read_record(lv_ring_wait<LV_W_INT4, 1>(&ring), lane);
    }
    for (int slice = 0, i = 0; slice < n_slices; slice++) {
        const int end = (slice0 + slice + 1) * n_records / LV_SLICES - first;
#pragma unroll
        for (int k = 0; k < NT * 4; k++) {
            acc[0][k / 4][k % 4] = 0;
        }
        for (; i < end; i++) {
            const uint8_t *slab = lv_slab_wait<NT>(x, i);
            begin<NT>(record, slab, lo, hi);
            record_part next = {};
            if (has_tile) {
                lv_ring_advance<LV_W_INT4, 1>(&ring, job.n_in, lane);
                if (i + 1 < x.n) {
                    next = read_record(lv_ring_wait<LV_W_INT4, 1>(&ring), lane);
                }
            }
            lv_wgmma_wait();
            lv_wgmma_settle<NT>(lo);
            lv_wgmma_settle<NT>(hi);
            fold<NT>(record, (const float *)(slab + NT * 2048) + lane % 4 * 2, lo, hi, acc[0]);
            lv_slab_advance<NT>(&x, i, lane);
            record = next;
        }
        lv_join_slices<1, NT>(saved, slice, n_slices, lane, acc);
    }
    float4 *mine = (float4 *)(shared + warp * at.ring);
#pragma unroll
    for (int k = 0; k < NT; k++) {
        mine[k * 32 + lane] = make_float4(acc[0][k][0], acc[0][k][1], acc[0][k][2], acc[0][k][3]);
    }
    lv_finish_sums<LV_W_INT4, 1, NT>(job, shared, at.ring, part, column, tile0);
#else
    (void)job;
#endif
}

lv_status lv_small_wgmma(lv_cuda *cuda, const lv_small_job *job, int nt, int n_warps,
                         int n_blocks) {
    auto kernel = nt == 4 ? wide_wgmma<4> : wide_wgmma<8>;
    const lv_wide_layout at =
        lv_wide_plan(lv_slot_bytes<LV_W_INT4>(), 1, nt, n_warps, job->stages, job->n_parts);
    return lv_launch_clusters(cuda, "few rows, wgmma", kernel, job->n_parts, n_blocks, 32 * n_warps,
                              (size_t)at.n_bytes, *job);
}
