// What the two wide kernels of the "few rows" family share (small.cu): slabs of activations on
// their way through shared memory, slices of K that join, blocks of a cluster that share the end.
#ifndef LV_KERNELS_CUDA_SMALL_WIDE_CUH
#define LV_KERNELS_CUDA_SMALL_WIDE_CUH

#include "kernels/cuda/small_finish.cuh"
#include "kernels/cuda/small_wide.h"

#if __CUDA_ARCH__ >= 800
#define LV_SLABS_ASYNC true
#else
#define LV_SLABS_ASYNC false // a slab is copied between two barriers of the block
#endif

// --- slabs ---------------------------------------------------------------------------------------

typedef struct lv_slabs {
    uint8_t *slots;
    uint32_t barriers;
    uint32_t *readers;
    const uint8_t *from; // of the first record
    size_t step;         // to the next record's
    int n, n_readers;
    int slot; // to be read next
    uint32_t parity;
} lv_slabs;

// The whole warp asks for slab i.
template <int NT> __device__ static inline void lv_slab_fill(const lv_slabs &s, int i, int lane) {
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

// Barriers are ready, the kernel before has ended, and the first slabs are asked for.
template <int NT>
__device__ static inline void lv_slabs_start(const lv_slabs &s, int warp, int lane) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < LV_WIDE_SLABS; i++) {
            lv_barrier_init(s.barriers + i * 8, LV_ARRIVALS(LV_W_INT4));
            s.readers[i] = 0;
        }
        lv_barrier_fence();
    }
    __syncthreads();
    lv_wait_previous();
    lv_copy_fence();
    for (int i = 0; LV_SLABS_ASYNC && warp == 0 && i < min(LV_WIDE_SLABS, s.n); i++) {
        lv_slab_fill<NT>(s, i, lane);
    }
}

template <int NT> __device__ static inline const uint8_t *lv_slab_wait(const lv_slabs &s, int i) {
    uint8_t *slab = s.slots + s.slot * lv_slab_bytes(NT);
    if (LV_SLABS_ASYNC) {
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

// Whether this lane's warp is the last to have read the slab that lv_slab_wait gave (lane 0 knows).
__device__ static inline bool lv_last_reader(const lv_slabs &s) {
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
template <int NT> __device__ static inline void lv_slab_advance(lv_slabs *s, int i, int lane) {
    __syncwarp();
    if (LV_SLABS_ASYNC && i + LV_WIDE_SLABS < s->n) {
        const int last = lane == 0 && lv_last_reader(*s);
        if (__shfl_sync(0xffffffffu, last, 0)) {
            lv_slab_fill<NT>(*s, i + LV_WIDE_SLABS, lane);
        }
    }
    if (++s->slot == LV_WIDE_SLABS) {
        s->slot = 0;
        s->parity ^= 1;
    }
}

// --- sums ----------------------------------------------------------------------------------------

// The sums of slice `slice` of n_slices join those that wait for them, or wait themselves.
template <int TILES, int NT>
__device__ static inline void lv_join_slices(float4 *saved, int slice, int n_slices, int lane,
                                             float acc[TILES][NT][4]) {
    int level = 0;
    for (; slice >> level & 1; level++) {
#pragma unroll
        for (int i = 0; i < TILES * NT; i++) {
            float *to = acc[i / NT][i % NT];
            const float4 from = saved[(level * TILES * NT + i) * 32 + lane];
            to[0] = __fadd_rn(from.x, to[0]);
            to[1] = __fadd_rn(from.y, to[1]);
            to[2] = __fadd_rn(from.z, to[2]);
            to[3] = __fadd_rn(from.w, to[3]);
        }
    }
    if (slice + 1 < n_slices) {
#pragma unroll
        for (int i = 0; i < TILES * NT; i++) {
            const float *from = acc[i / NT][i % NT];
            saved[(level * TILES * NT + i) * 32 + lane] =
                make_float4(from[0], from[1], from[2], from[3]);
        }
    }
}

__device__ static inline void lv_cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ static inline void lv_cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// What block `rank` of the cluster has at this block's address.
__device__ static inline float4 lv_cluster_load(const float4 *mine, int rank) {
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
__device__ static inline void lv_finish_pair(const lv_small_job &job, int place, int token,
                                             float4 y) {
    if (token < job.m) {
        lv_small_finish<FORMAT>(job, place, token, y.x, y.z, lv_look_ahead(job, place, token));
    }
    if (token + 1 < job.m) {
        lv_small_finish<FORMAT>(job, place, token + 1, y.y, y.w,
                                lv_look_ahead(job, place, token + 1));
    }
}

__device__ static inline void lv_store_part(const lv_small_job &job, int part, int place, int token,
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

// Every warp has left its sums where its ring was, f32x4 [TILES NT, lane], and the blocks of a
// cluster share their sums' joining evenly.
template <int FORMAT, int TILES, int NT>
__device__ static inline void lv_finish_sums(const lv_small_job &job, const uint8_t *shared,
                                             int ring_bytes, int part, int column, int tile0) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    const int n_sums = TILES * NT, n_shares = job.parts ? 1 : job.n_parts;
    __syncthreads();
    lv_cluster_arrive();
    lv_cluster_wait();
    for (int i = (job.parts ? 0 : part) * n_warps + warp; i < n_warps * n_sums;
         i += n_shares * n_warps) {
        const int source = i / n_sums, which = i % n_sums;
        const int tile = tile0 + source * TILES + which / NT;
        const int place = tile * LV_TILE + lane / 4;
        const int token = (column * NT + which % NT) * 8 + lane % 4 * 2;
        if (tile >= job.n_out / LV_TILE) {
            continue;
        }
        const float4 *mine = (const float4 *)(shared + source * ring_bytes) + which * 32 + lane;
        if (job.parts) {
            lv_store_part(job, part, place, token, *mine);
            continue;
        }
        float v[4][LV_SLICES] = {};
#pragma unroll
        for (int k = 0; k < LV_SLICES; k++) {
            if (k < n_shares) {
                const float4 from = lv_cluster_load(mine, k);
                v[0][k] = from.x;
                v[1][k] = from.y;
                v[2][k] = from.z;
                v[3][k] = from.w;
            }
        }
        lv_finish_pair<FORMAT>(job, place, token,
                               make_float4(lv_join(v[0], n_shares), lv_join(v[1], n_shares),
                                           lv_join(v[2], n_shares), lv_join(v[3], n_shares)));
    }
    lv_cluster_arrive(); // nobody leaves while another block reads its sums
    lv_cluster_wait();
}

#endif
