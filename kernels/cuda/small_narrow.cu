// The narrow kernel: up to eight rows of x, one mma column each. See small.cu.
#include "kernels/cuda/small_finish.cuh"
#include "kernels/cuda/small_narrow.h"
#include "kernels/cuda/small_rows.cuh"

// Blocks of this and of the next kernel whose registers fit an SM together.
#define RESIDENT 3

template <int FORMAT>
static __global__ void __launch_bounds__(LV_SMALL_BLOCK, RESIDENT)
    narrow(const __grid_constant__ lv_small_job job) {
    extern __shared__ __align__(128) uint8_t shared[];
    const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int n_records = job.n_in / LV_RECORD_K, n_tiles = job.n_out / LV_TILE;
    const int first = warp * n_records / LV_SLICES, last = (warp + 1) * n_records / LV_SLICES;
    const lv_narrow_layout at = lv_narrow_plan(lv_slot_bytes<FORMAT>(), lv_row_bytes<FORMAT>(0),
                                               job.m, job.n_in, job.stages, job.norm != nullptr);

    lv_ring ring = lv_ring_start<FORMAT, 1>(
        job, shared + warp * job.stages * lv_slot_bytes<FORMAT>(),
        lv_shared(shared + at.barriers) + warp * job.stages * 8, blockIdx.x,
        (n_tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x, gridDim.x, 1, first,
        last, LV_EVICT_FIRST, lane);
    const lv_norm_head head = lv_norm_ahead<LV_SMALL_BLOCK>(job.norm, job.n_in);
    lv_wait_previous();

    const int row_bytes = lv_row_bytes<FORMAT>(job.n_in);
    float *sums = (float *)(shared + at.sums), *partials = (float *)(shared + at.partials);
    const lv_rows rows = {.x = job.x,
                          .rows = job.rows,
                          .m = job.m,
                          .n_in = job.n_in,
                          .norm = job.norm,
                          .eps = job.eps,
                          .to = shared + at.rows,
                          .row_bytes = (size_t)row_bytes,
                          .sums = FORMAT == LV_W_F16 ? nullptr : sums,
                          .sums_stride = LV_NARROW_ROWS,
                          .segments = (float *)(shared + at.segments)};
    lv_stage_rows<false, LV_SMALL_BLOCK>(rows, head);
    __syncthreads();

    // Columns of x beyond m repeat row 0; nobody looks at their results.
    const uint8_t *x_slice = shared + at.rows + (g < job.m ? g : 0) * row_bytes +
                             lv_lane_bytes<FORMAT>(t) + first * LV_RECORD_K * 2;
    const float *sums_slice = sums + first * LV_NARROW_ROWS + 2 * t;
    for (int tile = blockIdx.x, turn = 0; tile < n_tiles; tile += gridDim.x, turn++) {
        float acc[1][1][4] = {};
        const int reader = (tid - turn * 64) & (LV_SMALL_BLOCK - 1); // two warps, in turn
        const bool reads = reader < 64 && reader % 8 < job.m;
        lv_ahead ahead = {};
        if (reads) {
            ahead = lv_look_ahead(job, tile * LV_TILE + reader / 8, reader % 8);
        }
        const uint8_t *x = x_slice;
        const float *sum = sums_slice;
        for (int unit = 0; unit < ring.per_tile; unit++) {
            const uint8_t *slot = lv_ring_wait<FORMAT, 1>(&ring);
            lv_multiply<FORMAT, 1, 1, false>(slot, x, sum, lane, acc);
            lv_ring_advance<FORMAT, 1>(&ring, job.n_in, lane);
            x += lv_unit_k<FORMAT>() * 2;
            sum += LV_NARROW_ROWS;
        }
        // [slice][row / 8][row % 8][column] in one of two buffers: whoever writes this one again
        // has passed the next tile's barrier, and so have this tile's readers.
        float *buffer = partials + turn % 2 * LV_SLICES * 128;
        float2 *mine = (float2 *)(buffer + warp * 128);
        mine[lane] = make_float2(acc[0][0][0], acc[0][0][1]);
        mine[32 + lane] = make_float2(acc[0][0][2], acc[0][0][3]);
        __syncthreads();
        if (reads) {
            lv_finish_slices<FORMAT>(job, buffer, tile, reader, ahead);
        }
    }
}

lv_status lv_small_narrow(lv_cuda *cuda, const lv_small_job *job, lv_format format, int n_blocks,
                          size_t shared_bytes) {
    auto kernel = format == LV_W_INT4   ? narrow<LV_W_INT4>
                  : format == LV_W_INT8 ? narrow<LV_W_INT8>
                                        : narrow<LV_W_F16>;
    return lv_launch(cuda, "few rows, narrow", kernel, n_blocks, LV_SMALL_BLOCK, shared_bytes,
                     *job);
}
