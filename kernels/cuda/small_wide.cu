// The wide kernel: up to 32 rows of x a block, in tiles of eight. See small.cu.
#include "kernels/cuda/small.cuh"

// One step's activations: 8 NT rows of 128 k, then their sums.
template <int FORMAT, int NT> __host__ __device__ constexpr int slab_bytes() {
    return 8 * NT * lv_row_bytes<FORMAT>(LV_RECORD_K) + 8 * NT * (int)sizeof(float);
}

// Rows beyond m repeat the last one, and sums beyond m are whatever lies there: nobody looks at
// the results.
template <int FORMAT, int NT>
__device__ static inline void copy_slab(const lv_small_job &job, uint8_t *slab, int record,
                                        int row0) {
    for (int i = threadIdx.x; i < 8 * NT * 16; i += blockDim.x) {
        const int row = i / 16, chunk = i % 16, source = min(row0 + row, job.m - 1);
        lv_copy16(slab + row * lv_row_bytes<FORMAT>(LV_RECORD_K) + chunk * 16,
                  job.x + (size_t)source * job.n_in + record * LV_RECORD_K + chunk * 8);
    }
    if (FORMAT != LV_W_F16 && threadIdx.x < 2 * NT) {
        lv_copy16(slab + 8 * NT * lv_row_bytes<FORMAT>(LV_RECORD_K) + threadIdx.x * 16,
                  job.sums + (size_t)record * job.sums_stride + row0 + threadIdx.x * 4);
    }
}

template <int NT> __device__ static inline void add(float to[NT][4], const float from[NT][4]) {
#pragma unroll
    for (int i = 0; i < NT * 4; i++) {
        to[i / 4][i % 4] = __fadd_rn(from[i / 4][i % 4], to[i / 4][i % 4]);
    }
}

template <int NT> __device__ static inline void copy(float to[NT][4], const float from[NT][4]) {
#pragma unroll
    for (int i = 0; i < NT * 4; i++) {
        to[i / 4][i % 4] = from[i / 4][i % 4];
    }
}

template <int FORMAT, int NT>
__device__ static inline void store(const lv_small_job &job, int part, int tile, int row0, int lane,
                                    const float acc[NT][4]) {
    const int place = tile * LV_TILE + lane / 4;
#pragma unroll
    for (int i = 0; i < NT * 2; i++) {
        const int token = row0 + i / 2 * 8 + lane % 4 * 2 + i % 2;
        const float y0 = acc[i / 2][i % 2], y1 = acc[i / 2][2 + i % 2];
        if (token < job.m && job.n_parts == 1) {
            lv_small_finish<FORMAT>(job, place, token, y0, y1);
        } else if (token < job.m) {
            float *to = job.parts + ((size_t)part * job.m + token) * job.n_out + place;
            to[0] = y0;
            to[8] = y1;
        }
    }
}

template <int FORMAT, int NT>
static __global__ void __launch_bounds__(32 * LV_WIDE_TILES, 1)
    wide(const __grid_constant__ lv_small_job job) {
    extern __shared__ __align__(128) uint8_t shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    const int row0 = blockIdx.x % job.n_columns * 8 * NT;
    const int part = blockIdx.x / job.n_columns % job.n_parts;
    const int tile = blockIdx.x / (job.n_columns * job.n_parts) * n_warps + warp;
    const bool has_tile = tile < job.n_out / LV_TILE;
    const int n_slices = LV_SLICES / job.n_parts, slice0 = part * n_slices;
    const int n_records = job.n_in / LV_RECORD_K, first = slice0 * n_records / LV_SLICES;
    const int last = (slice0 + n_slices) * n_records / LV_SLICES;
    const int ring_bytes = job.stages * lv_unit_bytes<FORMAT>();
    uint8_t *slabs = shared + n_warps * (ring_bytes + job.stages * 8);
    slabs = shared + ((slabs - shared) + 15) / 16 * 16;

    lv_ring ring = lv_ring_start<FORMAT>(
        job, shared + warp * ring_bytes,
        lv_shared(shared + n_warps * ring_bytes) + warp * job.stages * 8, has_tile ? tile : 0,
        has_tile, 0, first, last, job.n_columns > 1 ? LV_EVICT_NORMAL : LV_EVICT_FIRST, lane);
    lv_wait_previous();
    for (int i = 0; i < LV_WIDE_SLABS - 1; i++) {
        if (first + i < last) {
            copy_slab<FORMAT, NT>(job, slabs + i * slab_bytes<FORMAT, NT>(), first + i, row0);
        }
        lv_copy_commit();
    }

    float acc[NT][4], two[NT][4], four[NT][4], eight[NT][4]; // sums of so many slices
    const int x_lane =
        lane / 4 * lv_row_bytes<FORMAT>(LV_RECORD_K) + lv_lane_bytes<FORMAT>(lane % 4);
    for (int slice = 0, record = first; slice < n_slices; slice++) {
        const int end = (slice0 + slice + 1) * n_records / LV_SLICES;
#pragma unroll
        for (int i = 0; i < NT * 4; i++) {
            acc[i / 4][i % 4] = 0;
        }
        for (; record < end; record++) {
            const int ahead = record + LV_WIDE_SLABS - 1;
            lv_copy_wait<LV_WIDE_SLABS - 2>();
            __syncthreads(); // this step's slab is there, the last one's is read
            if (ahead < last) {
                copy_slab<FORMAT, NT>(
                    job, slabs + (ahead - first) % LV_WIDE_SLABS * slab_bytes<FORMAT, NT>(), ahead,
                    row0);
            }
            lv_copy_commit();
            if (!has_tile) {
                continue;
            }
            const uint8_t *slab =
                slabs + (record - first) % LV_WIDE_SLABS * slab_bytes<FORMAT, NT>();
            const float *sums =
                (const float *)(slab + 8 * NT * lv_row_bytes<FORMAT>(LV_RECORD_K)) + lane % 4 * 2;
#pragma unroll
            for (int k = 0; k < LV_RECORD_K; k += lv_unit_k<FORMAT>()) {
                const uint8_t *slot = lv_ring_wait(&ring, lv_unit_bytes<FORMAT>());
                lv_multiply<FORMAT, NT>(slot, slab + x_lane + k * 2,
                                        8 * lv_row_bytes<FORMAT>(LV_RECORD_K), sums, lane, acc);
                lv_ring_advance<FORMAT>(&ring, job.n_in, lane);
            }
        }
        if (slice % 2 == 0) {
            copy<NT>(two, acc);
            continue;
        }
        add<NT>(acc, two);
        if (slice % 4 == 1) {
            copy<NT>(four, acc);
            continue;
        }
        add<NT>(acc, four);
        if (slice == 3) {
            copy<NT>(eight, acc);
            continue;
        }
        add<NT>(acc, eight);
    }
    if (has_tile) {
        store<FORMAT, NT>(job, part, tile, row0, lane, acc);
    }
}

template <int FORMAT>
static lv_status launch(lv_cuda *cuda, const lv_small_job *job, int n_rows, int n_warps,
                        int n_blocks, size_t shared_bytes) {
    auto kernel = n_rows == 8 ? wide<FORMAT, 1> : n_rows == 16 ? wide<FORMAT, 2> : wide<FORMAT, 4>;
    return lv_launch(cuda, "few rows, wide", kernel, n_blocks, 32 * n_warps, shared_bytes, *job);
}

size_t lv_small_wide_bytes(lv_format format, int n_rows, int n_warps, int stages) {
    const int unit = format == LV_W_INT4 ? lv_unit_bytes<LV_W_INT4>() : lv_unit_bytes<LV_W_F16>();
    const int row = format == LV_W_INT8 ? lv_row_bytes<LV_W_INT8>(LV_RECORD_K)
                                        : lv_row_bytes<LV_W_F16>(LV_RECORD_K);
    return (size_t)n_warps * stages * (unit + 8) + 15 +
           (size_t)LV_WIDE_SLABS * n_rows * (row + sizeof(float));
}

lv_status lv_small_wide(lv_cuda *cuda, const lv_small_job *job, lv_format format, int n_rows,
                        int n_warps, int n_blocks) {
    const size_t shared_bytes = lv_small_wide_bytes(format, n_rows, n_warps, job->stages);
    switch (format) {
    case LV_W_INT4:
        return launch<LV_W_INT4>(cuda, job, n_rows, n_warps, n_blocks, shared_bytes);
    case LV_W_INT8:
        return launch<LV_W_INT8>(cuda, job, n_rows, n_warps, n_blocks, shared_bytes);
    default:
        return launch<LV_W_F16>(cuda, job, n_rows, n_warps, n_blocks, shared_bytes);
    }
}
