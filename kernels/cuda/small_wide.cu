// The wide kernel: up to 32 rows of x a block, in tiles of eight. See small.cu.
//
// A warp has two tiles of weights. Its block's slabs of x and its own ring of weights are both
// filled by bulk copies that end on a barrier (cp.async before sm_90); the last warp to have read a
// slab asks for the next one into its place, so that nobody waits for a producer.
#include "kernels/cuda/small_finish.cuh"
#include "kernels/cuda/small_wide.h"

#if __CUDA_ARCH__ >= 800
#define ASYNC true
#else
#define ASYNC false // a slab is copied between two barriers of the block
#endif

// --- slabs ---------------------------------------------------------------------------------------

typedef struct slabs {
    uint8_t *slots;
    uint32_t barriers;
    uint32_t *readers;
    const uint8_t *from; // of the first record
    size_t step;         // to the next record's
    int n, n_readers;
    int slot; // to be read next
    uint32_t parity;
} slabs;

__device__ static inline void slabs_init(const slabs &s) {
    for (int i = 0; i < LV_WIDE_SLABS; i++) {
        lv_barrier_init(s.barriers + i * 8, LV_ARRIVALS(LV_W_INT4));
        s.readers[i] = 0;
    }
    lv_barrier_fence();
}

// The whole warp asks for slab i.
template <int NT> __device__ static inline void slab_fill(const slabs &s, int i, int lane) {
    const int slot = i % LV_WIDE_SLABS;
    const uint8_t *from = s.from + i * s.step;
    uint8_t *to = s.slots + slot * lv_slab_bytes(NT);
    if (LV_ARRIVALS(LV_W_INT4) == 1) {
        if (lane == 0) {
            lv_barrier_expect(s.barriers + slot * 8, lv_slab_bytes(NT));
            lv_copy_bulk(to, from, lv_slab_bytes(NT), s.barriers + slot * 8, LV_EVICT_NORMAL);
        }
    } else {
        for (int at = lane * 16; at < lv_slab_bytes(NT); at += 512) {
            lv_copy16(to + at, from + at);
        }
        lv_copy_arrive(s.barriers + slot * 8);
    }
}

template <int NT> __device__ static inline const uint8_t *slab_wait(const slabs &s, int i) {
    uint8_t *slab = s.slots + s.slot * lv_slab_bytes(NT);
    if (ASYNC) {
        lv_barrier_wait(s.barriers + s.slot * 8, s.parity);
    } else {
        __syncthreads();
        for (int at = threadIdx.x * 16; at < lv_slab_bytes(NT); at += blockDim.x * 16) {
            lv_copy16(slab + at, s.from + i * s.step + at);
        }
        __syncthreads();
    }
    return slab;
}

// Whether this lane's warp is the last to have read the slab that slab_wait gave (lane 0 knows).
__device__ static inline bool last_reader(const slabs &s) {
    uint32_t before = 0;
#if __CUDA_ARCH__ >= 800
    asm volatile("atom.acq_rel.cta.shared.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "r"(lv_shared(s.readers + s.slot)), "r"(s.n_readers - 1)
                 : "memory");
#endif
    return (int)before == s.n_readers - 1;
}

// Slab i is read.
template <int NT> __device__ static inline void slab_advance(slabs *s, int i, int lane) {
    __syncwarp();
    if (ASYNC && i + LV_WIDE_SLABS < s->n) {
        const int last = lane == 0 && last_reader(*s);
        if (__shfl_sync(0xffffffffu, last, 0)) {
            slab_fill<NT>(*s, i + LV_WIDE_SLABS, lane);
        }
    }
    if (++s->slot == LV_WIDE_SLABS) {
        s->slot = 0;
        s->parity ^= 1;
    }
}

// --- sums ----------------------------------------------------------------------------------------

// The sums of slice `slice` of n_slices join those that wait for them, or wait themselves.
template <int NT>
__device__ static inline void join_slices(float4 *saved, int slice, int n_slices, int lane,
                                          float acc[LV_WIDE_TILES][NT][4]) {
    int level = 0;
    for (; slice >> level & 1; level++) {
#pragma unroll
        for (int i = 0; i < LV_WIDE_TILES * NT; i++) {
            float *to = acc[i / NT][i % NT];
            const float4 from = saved[(level * LV_WIDE_TILES * NT + i) * 32 + lane];
            to[0] = __fadd_rn(from.x, to[0]);
            to[1] = __fadd_rn(from.y, to[1]);
            to[2] = __fadd_rn(from.z, to[2]);
            to[3] = __fadd_rn(from.w, to[3]);
        }
    }
    if (slice + 1 < n_slices) {
#pragma unroll
        for (int i = 0; i < LV_WIDE_TILES * NT; i++) {
            const float *from = acc[i / NT][i % NT];
            saved[(level * LV_WIDE_TILES * NT + i) * 32 + lane] =
                make_float4(from[0], from[1], from[2], from[3]);
        }
    }
}

__device__ static inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ static inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// What block `rank` of the cluster has at this block's address.
__device__ static inline float4 cluster_load(const float4 *mine, int rank) {
    float4 v = *mine;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n"
                 ".reg .u32 at;\n"
                 "mapa.shared::cluster.u32 at, %4, %5;\n"
                 "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [at];\n"
                 "}\n"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(lv_shared(mine)), "r"(rank)
                 : "memory");
#endif
    return v;
}

// The four sums of a lane of an mma: places place and place + 8 for rows token and token + 1.
template <int FORMAT>
__device__ static inline void finish(const lv_small_job &job, int place, int token, float4 y) {
    if (token < job.m) {
        lv_small_finish<FORMAT>(job, place, token, y.x, y.z, lv_look_ahead(job, place, token));
    }
    if (token + 1 < job.m) {
        lv_small_finish<FORMAT>(job, place, token + 1, y.y, y.w,
                                lv_look_ahead(job, place, token + 1));
    }
}

__device__ static inline void store_part(const lv_small_job &job, int part, int place, int token,
                                         float4 y) {
    float *to = job.parts + ((size_t)part * job.m + token) * job.n_out + place;
    if (token < job.m) {
        to[0] = y.x;
        to[8] = y.z;
    }
    if (token + 1 < job.m) {
        to[job.n_out] = y.y;
        to[job.n_out + 8] = y.w;
    }
}

// Every warp has left its sums where its ring was, f32x4 [2 NT, lane], and the blocks of a cluster
// share their sums' joining evenly.
template <int FORMAT, int NT>
__device__ static inline void finish_sums(const lv_small_job &job, const uint8_t *shared,
                                          int ring_bytes, int part, int column, int tile0) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    const int n_sums = LV_WIDE_TILES * NT, n_shares = job.parts ? 1 : job.n_parts;
    __syncthreads();
    cluster_arrive();
    cluster_wait();
    for (int i = (job.parts ? 0 : part) * n_warps + warp; i < n_warps * n_sums;
         i += n_shares * n_warps) {
        const int source = i / n_sums, which = i % n_sums;
        const int tile = tile0 + source * LV_WIDE_TILES + which / NT;
        const int place = tile * LV_TILE + lane / 4;
        const int token = (column * NT + which % NT) * 8 + lane % 4 * 2;
        if (tile >= job.n_out / LV_TILE) {
            continue;
        }
        const float4 *mine = (const float4 *)(shared + source * ring_bytes) + which * 32 + lane;
        if (job.parts) {
            store_part(job, part, place, token, *mine);
            continue;
        }
        float v[4][LV_SLICES] = {};
#pragma unroll
        for (int k = 0; k < LV_SLICES; k++) {
            if (k < n_shares) {
                const float4 from = cluster_load(mine, k);
                v[0][k] = from.x;
                v[1][k] = from.y;
                v[2][k] = from.z;
                v[3][k] = from.w;
            }
        }
        finish<FORMAT>(job, place, token,
                       make_float4(lv_join(v[0], n_shares), lv_join(v[1], n_shares),
                                   lv_join(v[2], n_shares), lv_join(v[3], n_shares)));
    }
    cluster_arrive(); // nobody leaves while another block reads its sums
    cluster_wait();
}

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
        lv_wide_plan(lv_slot_bytes<FORMAT>(), NT, n_warps, job.stages, job.n_parts);

    lv_ring ring = lv_ring_start<FORMAT, LV_WIDE_TILES>(
        job, shared + warp * at.ring, lv_shared(shared + at.barriers) + warp * job.stages * 8,
        present > 0 ? tile0 + warp * LV_WIDE_TILES : 0, present > 0, 0, present, first, last,
        job.n_columns > 1 ? LV_EVICT_NORMAL : LV_EVICT_FIRST, lane);
    slabs x = {.slots = shared + at.slabs,
               .barriers = lv_shared(shared + at.slab_barriers),
               .readers = (uint32_t *)(shared + at.readers),
               .from = job.slabs + ((size_t)first * job.n_columns + column) * lv_slab_bytes(NT),
               .step = (size_t)job.n_columns * lv_slab_bytes(NT),
               .n = last - first,
               .n_readers = min(n_readers, n_warps),
               .slot = 0,
               .parity = 0};
    if (threadIdx.x == 0) {
        slabs_init(x);
    }
    __syncthreads();
    lv_wait_previous();
    lv_copy_fence();
    for (int i = 0; ASYNC && warp == 0 && i < min(LV_WIDE_SLABS, x.n); i++) {
        slab_fill<NT>(x, i, lane);
    }

    float acc[LV_WIDE_TILES][NT][4] = {};
    float4 *saved = (float4 *)(shared + at.saved) + warp * at.levels * LV_WIDE_TILES * NT * 32;
    for (int slice = 0, i = 0; (!ASYNC || present > 0) && slice < n_slices; slice++) {
        const int end = (slice0 + slice + 1) * n_records / LV_SLICES - first;
#pragma unroll
        for (int k = 0; k < LV_WIDE_TILES * NT * 4; k++) {
            acc[k / (NT * 4)][k / 4 % NT][k % 4] = 0;
        }
        for (; i < end; i++) {
            const uint8_t *slab = slab_wait<NT>(x, i);
            const float *sums = (const float *)(slab + NT * 2048) + lane % 4 * 2;
#pragma unroll
            for (int k = 0; k < LV_RECORD_K; k += lv_unit_k<FORMAT>()) {
                if (ASYNC || present > 0) {
                    const uint8_t *slot = lv_ring_wait<FORMAT, LV_WIDE_TILES>(&ring);
                    lv_multiply<FORMAT, LV_WIDE_TILES, NT, true>(slot, slab + k * 16 + lane * 16,
                                                                 sums, lane, acc);
                    lv_ring_advance<FORMAT, LV_WIDE_TILES>(&ring, job.n_in, lane);
                }
            }
            slab_advance<NT>(&x, i, lane);
        }
        join_slices<NT>(saved, slice, n_slices, lane, acc);
    }
    float4 *mine = (float4 *)(shared + warp * at.ring);
#pragma unroll
    for (int k = 0; k < LV_WIDE_TILES * NT; k++) {
        const float *from = acc[k / NT][k % NT];
        mine[k * 32 + lane] = make_float4(from[0], from[1], from[2], from[3]);
    }
    finish_sums<FORMAT, NT>(job, shared, at.ring, part, column, tile0);
}

// --- launching -----------------------------------------------------------------------------------

typedef void (*wide_kernel)(lv_small_job);

template <int FORMAT>
static lv_status launch(lv_cuda *cuda, const lv_small_job *job, int nt, int n_warps, int n_blocks) {
    static const wide_kernel kernels[] = {wide<FORMAT, 1>, wide<FORMAT, 2>, wide<FORMAT, 3>,
                                          wide<FORMAT, 4>};
    const lv_wide_layout at =
        lv_wide_plan(lv_slot_bytes<FORMAT>(), nt, n_warps, job->stages, job->n_parts);
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
