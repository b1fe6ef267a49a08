// The wide kernel: up to 32 rows of x a block, in tiles of eight. See small.cu.
//
// A warp has two tiles of weights. Its block's slabs of x and its own ring of weights are both
// filled by bulk copies that end on a barrier (cp.async before sm_90); the last warp to have read a
// slab asks for the next one into its place, so that nobody waits for a producer.
#include "kernels/cuda/small_wide.cuh"

// --- the kernel ----------------------------------------------------------------------------------

template <int FORMAT, int NT>
static __global__ void __launch_bounds__(32 * LV_WIDE_WARPS, 1)
    wide(const __grid_constant__ lv_small_job job) {
    extern __shared__ __align__(128) uint8_t shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    const int part = blockIdx.x % job.n_parts, column = blockIdx.x / job.n_parts % job.n_columns;
    const int tile0 = blockIdx.x / (job.n_parts * job.n_columns) * n_warps * LV_WIDE_TILES;
    const int n_tiles = job.n_out / LV_TILE - tile0, n_readers = (n_tiles + 1) / LV_WIDE_TILES;
    const int present = min(n_tiles - warp * LV_WIDE_TILES, LV_WIDE_TILES); // none: <= 0
    const int n_slices = LV_SLICES / job.n_parts, slice0 = part * n_slices;
    const int n_records = job.n_in / LV_RECORD_K, first = slice0 * n_records / LV_SLICES;
    const int last = (slice0 + n_slices) * n_records / LV_SLICES;
    const lv_wide_layout at =
        lv_wide_plan(lv_slot_bytes<FORMAT>(), LV_WIDE_TILES, NT, n_warps, job.stages, job.n_parts);

    lv_ring ring = lv_ring_start<FORMAT, LV_WIDE_TILES>(
        job, shared + warp * at.ring, lv_shared(shared + at.barriers) + warp * job.stages * 8,
        present > 0 ? tile0 + warp * LV_WIDE_TILES : 0, present > 0, 0, present, first, last,
        job.n_columns > 1 ? LV_EVICT_NORMAL : LV_EVICT_FIRST, lane);
    lv_slabs x = {.slots = shared + at.slabs,
                  .barriers = lv_shared(shared + at.slab_barriers),
                  .readers = (uint32_t *)(shared + at.readers),
                  .from = job.slabs + ((size_t)first * job.n_columns + column) * lv_slab_bytes(NT),
                  .step = (size_t)job.n_columns * lv_slab_bytes(NT),
                  .n = last - first,
                  .n_readers = min(n_readers, n_warps),
                  .slot = 0,
                  .parity = 0};
    lv_slabs_start<NT>(x, warp, lane);

    float acc[LV_WIDE_TILES][NT][4] = {};
    float4 *saved = (float4 *)(shared + at.saved) + warp * at.levels * LV_WIDE_TILES * NT * 32;
    for (int slice = 0, i = 0; (!LV_SLABS_ASYNC || present > 0) && slice < n_slices; slice++) {
        const int end = (slice0 + slice + 1) * n_records / LV_SLICES - first;
#pragma unroll
        for (int k = 0; k < LV_WIDE_TILES * NT * 4; k++) {
            acc[k / (NT * 4)][k / 4 % NT][k % 4] = 0;
        }
        for (; i < end; i++) {
            const uint8_t *slab = lv_slab_wait<NT>(x, i);
            const float *sums = (const float *)(slab + NT * 2048) + lane % 4 * 2;
#pragma unroll
            for (int k = 0; k < LV_RECORD_K; k += lv_unit_k<FORMAT>()) {
                if (LV_SLABS_ASYNC || present > 0) {
                    const uint8_t *slot = lv_ring_wait<FORMAT, LV_WIDE_TILES>(&ring);
                    lv_multiply<FORMAT, LV_WIDE_TILES, NT, true>(slot, slab + k * 16 + lane * 16,
                                                                 sums, lane, acc);
                    lv_ring_advance<FORMAT, LV_WIDE_TILES>(&ring, job.n_in, lane);
                }
            }
            lv_slab_advance<NT>(&x, i, lane);
        }
        lv_join_slices<LV_WIDE_TILES, NT>(saved, slice, n_slices, lane, acc);
    }
    float4 *mine = (float4 *)(shared + warp * at.ring);
#pragma unroll
    for (int k = 0; k < LV_WIDE_TILES * NT; k++) {
        const float *from = acc[k / NT][k % NT];
        mine[k * 32 + lane] = make_float4(from[0], from[1], from[2], from[3]);
    }
    lv_finish_sums<FORMAT, LV_WIDE_TILES, NT>(job, shared, at.ring, part, column, tile0);
}

// --- launching -----------------------------------------------------------------------------------

typedef void (*wide_kernel)(lv_small_job);

template <int FORMAT>
static lv_status launch(lv_cuda *cuda, const lv_small_job *job, int nt, int n_warps, int n_blocks) {
    static const wide_kernel kernels[] = {wide<FORMAT, 1>, wide<FORMAT, 2>, wide<FORMAT, 3>,
                                          wide<FORMAT, 4>};
    const lv_wide_layout at = lv_wide_plan(lv_slot_bytes<FORMAT>(), LV_WIDE_TILES, nt, n_warps,
                                           job->stages, job->n_parts);
    return lv_launch_clusters(cuda, "few rows, wide", kernels[nt - 1],
                              job->parts ? 1 : job->n_parts, n_blocks, 32 * n_warps,
                              (size_t)at.n_bytes, *job);
}

lv_status lv_small_wide(lv_cuda *cuda, const lv_small_job *job, lv_format format, int nt,
                        int n_warps, int n_blocks) {
    switch (format) {
    case LV_W_INT4:
        return launch<LV_W_INT4>(cuda, job, nt, n_warps, n_blocks);
    case LV_W_INT8:
        return launch<LV_W_INT8>(cuda, job, nt, n_warps, n_blocks);
    default:
        return launch<LV_W_F16>(cuda, job, nt, n_warps, n_blocks);
    }
}

lv_status lv_small_wide_resident(lv_cuda *cuda, int n_parts, int *n_blocks) {
    int *known = &cuda->wide_resident[n_parts == 1 ? 0 : n_parts == 2 ? 1 : n_parts == 4 ? 2 : 3];
    if (*known == 0 && (cuda->sm < 90 || n_parts == 1)) {
        *known = cuda->n_sms;
    } else if (*known == 0) {
        int n_clusters = 0;
        cudaLaunchAttribute attribute[1];
        attribute[0].id = cudaLaunchAttributeClusterDimension;
        attribute[0].val.clusterDim.x = n_parts;
        attribute[0].val.clusterDim.y = 1;
        attribute[0].val.clusterDim.z = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = n_parts;
        config.blockDim = 32 * LV_WIDE_WARPS;
        config.dynamicSmemBytes = cuda->shared_bytes; // an SM holds one
        config.attrs = attribute;
        config.numAttrs = 1;
        LV_TRY(lv_cuda_check(cuda,
                             cudaFuncSetAttribute((const void *)wide<LV_W_INT4, 4>,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)cuda->shared_bytes),
                             "few rows, clusters"));
        LV_TRY(lv_cuda_check(
            cuda, cudaOccupancyMaxActiveClusters(&n_clusters, wide<LV_W_INT4, 4>, &config),
            "few rows, clusters"));
        *known = n_clusters > 0 ? n_clusters * n_parts : n_parts;
    }
    *n_blocks = *known;
    return LV_OK;
}
