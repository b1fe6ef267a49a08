// The "few rows" family, several products in one kernel: O, gate and up, down and the next layer's
// q, k, v of a decoder's step. See small.cu for formula, formats and the order of the sums, which
// are the narrow kernel's, bit for bit.
//
// What a product of one row costs beside its bytes is its beginning and end: x is not there before
// the last block of the product before has ended, and meanwhile nothing may arrive in a ring that
// does not exist yet. Here a block has an SM and stays: while its warps wait for the others, their
// rings fill with the next product's weights, which depend on nothing.
//
//   block     16 warps, two halves of eight: a half works like a block of the narrow kernel, a tile
//             of 16 rows at a time, a warp a slice of K
//   ring      a warp's next `stages` slots of up to four records (4288 bytes, one bulk copy), on
//             and on across tiles and products; 134 KiB an SM, 18 MB of all: 4 us of reading. A
//             bulk copy of one record of 1072 bytes does not do: those reach 1.9 TB/s of an H200,
//             of two records 3.9, of four 4.1, of 4096 bytes 4.3
//   product   x [m, n_in], normed, with its groups' sums, staged by the 16 warps; tiles dealt to
//             halves in turn; a tile's sums meet in shared memory, where two further warps a half
//             finish them, so that no warp that multiplies waits for its slowest neighbour
//   between   all blocks count themselves in and wait for the rest (one counter in memory, never
//             reset). There are no more blocks than SMs and all of them run: nothing that comes
//             after this kernel begins before each of them has.
//
// measured: H200, the four products of a 7B layer, m = 1 (test_gpu_linear --bench): 42.2 us against
// 43.9 of four narrow kernels in the same run, where nothing but products follows one another; a
// whole step of one sequence at context 512, int8 KV: 1.63 ms against 1.85. Of the kernel's time,
// reading binds gate and up (18.2 of 71 thousand cycles); about 6 of 71 each are spent in every
// wait for the other blocks, 2 in staging x, 100 instructions a record and warp in multiplying.
// Tried: filling rings one after another by a warp of its own (one copy in 600 cycles, twice the
// time), slots of one record, finishing sums by the multiplying warps in turn (a convoy: +10%).
//
// lv_cuda_small puts operations of a pass off instead of enqueueing them, as long as they follow
// one another; whatever else is enqueued flushes them first. A lone one goes to the narrow kernel.
#include <stdlib.h>

#include "kernels/cuda/small_chain.h"
#include "kernels/cuda/small_finish.cuh"
#include "kernels/cuda/small_rows.cuh"

#define HALVES 2
#define WARPS (HALVES * LV_SLICES)
#define BLOCK (WARPS * 32) // threads that multiply
#define FINISHERS 64       // threads of a half that finish its sums: 8 rows, 8 columns
#define THREADS (BLOCK + HALVES * FINISHERS)
#define ARRIVALS (HALVES * FINISHERS / 32) // of a block after a product: one a warp that stores
#define MOST_JOBS 4
#define SUMS (LV_SLICES * 128) // of a tile: f32 [slice][row][column]

typedef struct chain_args {
    lv_small_job jobs[MOST_JOBS];
    int n_jobs;
    int stages, per_slot;        // slots of a ring, records of a slot
    unsigned long long *arrived; // ARRIVALS a block and product, of all kernels so far
} chain_args;

struct lv_chain {
    chain_args args;
    unsigned long long *arrived;
};

// Byte offsets in shared memory; the rings come first.
typedef struct chain_layout {
    int full;                  // barriers of the slots [warp][stage]
    int sums_full, sums_empty; // barriers of `partials` [half][buffer]
    int args, partials, sums, segments, rows, n_bytes;
} chain_layout;

__host__ __device__ static inline chain_layout lay_out(const chain_args &a) {
    const int m = a.jobs[0].m;
    int n_in = 0;
    for (int i = 0; i < a.n_jobs; i++) {
        n_in = a.jobs[i].n_in > n_in ? a.jobs[i].n_in : n_in;
    }
    chain_layout at;
    at.full = WARPS * a.stages * a.per_slot * LV_RECORD_BYTES;
    at.sums_full = at.full + WARPS * a.stages * 8;
    at.sums_empty = at.sums_full + HALVES * 2 * 8;
    at.args = at.sums_empty + HALVES * 2 * 8;
    at.partials = at.args + ((int)sizeof(chain_args) + 15) / 16 * 16;
    at.sums = at.partials + HALVES * 2 * SUMS * 4;
    at.segments = at.sums + n_in / LV_RECORD_K * LV_NARROW_ROWS * 4;
    at.rows = at.segments + (m * ((n_in + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT) * 4 + 15) / 16 * 16;
    at.n_bytes = at.rows + m * lv_row_bytes<LV_W_INT4>(n_in);
    return at;
}

__device__ static inline int slice_start(const lv_small_job &job, int slice) {
    return slice * (job.n_in / LV_RECORD_K) / LV_SLICES;
}

// Tiles of a half of the block are this and every HALVES * gridDim.x-th after it: blocks first,
// then halves, so that blocks differ by one tile at most.
__device__ static inline int first_tile(int half) {
    return half * (int)gridDim.x + (int)blockIdx.x;
}

// --- the ring of a warp, on across products ------------------------------------------------------

typedef struct chain_ring {
    uint8_t *slots;
    uint32_t barriers;
    int half, slice; // half: the first tile of the warp's half of the block
    // What is asked for next: a product, a tile, how many records of its slice are left, the first.
    int job, tile, left;
    const uint8_t *next;
    int stage; // the slot to be read next
    uint32_t parity;
} chain_ring;

// The ring's tile of its product, or the first tile of the next product that has something for this
// warp. left stays 0 at the end.
__device__ static inline void ring_seek(const chain_args &a, chain_ring *r) {
    for (; r->job < a.n_jobs; r->job++, r->tile = r->half) {
        const lv_small_job &job = a.jobs[r->job];
        const int first = slice_start(job, r->slice), last = slice_start(job, r->slice + 1);
        if (r->tile < job.n_out / LV_TILE && first < last) {
            r->left = last - first;
            r->next =
                job.w + r->tile * lv_tile_bytes<LV_W_INT4>(job.n_in) + first * LV_RECORD_BYTES;
            return;
        }
    }
    lv_launch_next(); // all is on its way: the next kernel may begin to ask for its own
}

__device__ static inline void ring_fill(const chain_args &a, chain_ring *r, int stage, int lane) {
    const int n = min(a.per_slot, r->left);
    if (n <= 0) {
        return;
    }
    if (lane == 0) {
        const uint32_t barrier = r->barriers + stage * 8;
        lv_barrier_expect(barrier, n * LV_RECORD_BYTES);
        lv_copy_bulk(r->slots + stage * a.per_slot * LV_RECORD_BYTES, r->next, n * LV_RECORD_BYTES,
                     barrier, LV_EVICT_FIRST);
    }
    r->next += n * LV_RECORD_BYTES;
    r->left -= n;
    if (r->left == 0) {
        r->tile += HALVES * gridDim.x;
        ring_seek(a, r);
    }
}

__device__ static inline chain_ring ring_start(const chain_args &a, uint8_t *shared,
                                               const chain_layout &at, int warp, int lane) {
    chain_ring r = {};
    r.slots = shared + warp * a.stages * a.per_slot * LV_RECORD_BYTES;
    r.barriers = lv_shared(shared + at.full) + warp * a.stages * 8;
    r.half = r.tile = first_tile(warp / LV_SLICES);
    r.slice = warp % LV_SLICES;
    if (lane == 0) {
        for (int i = 0; i < a.stages; i++) {
            lv_barrier_init(r.barriers + i * 8, 1);
        }
        lv_barrier_fence();
    }
    __syncwarp();
    ring_seek(a, &r);
    for (int i = 0; i < a.stages; i++) {
        ring_fill(a, &r, i, lane);
    }
    return r;
}

// --- between products ----------------------------------------------------------------------------

__device__ static inline unsigned long long arrivals(const unsigned long long *arrived) {
    unsigned long long n = 0;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(n) : "l"(arrived) : "memory");
    return n;
}

// All blocks have ended the product before; what they stored is seen. Only warps that finish sums
// store, and none of them has copies under way that a release would wait for.
__device__ static inline void meet(unsigned long long *arrived, unsigned long long goal) {
    if (threadIdx.x >= BLOCK) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(arrived) : "memory");
        }
        while (threadIdx.x == BLOCK && arrivals(arrived) < goal) {
        }
    }
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

// --- a product -----------------------------------------------------------------------------------

// Tiles of one half of the block, its rows of x being staged. turn: tiles of this half so far.
__device__ static inline int multiply_tiles(const chain_args &a, const lv_small_job &job,
                                            chain_ring *ring, uint8_t *shared,
                                            const chain_layout &at, int turn) {
    const int tid = threadIdx.x % LV_SMALL_BLOCK, half = threadIdx.x / LV_SMALL_BLOCK;
    const int slice = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int first = slice_start(job, slice), last = slice_start(job, slice + 1);
    const int n_tiles = job.n_out / LV_TILE;
    // Columns of x beyond m repeat row 0; nobody looks at their results.
    const uint8_t *x_slice = shared + at.rows +
                             (g < job.m ? g : 0) * lv_row_bytes<LV_W_INT4>(job.n_in) +
                             lv_lane_bytes<LV_W_INT4>(t) + first * LV_RECORD_K * 2;
    const float *sums_slice = (const float *)(shared + at.sums) + first * LV_NARROW_ROWS + 2 * t;
    for (int tile = ring->half; tile < n_tiles; tile += HALVES * gridDim.x, turn++) {
        float acc[1][1][4] = {};
        const uint8_t *x = x_slice;
        const float *sum = sums_slice;
        for (int left = last - first; left > 0; left -= a.per_slot) {
            const uint8_t *slot = ring->slots + ring->stage * a.per_slot * LV_RECORD_BYTES;
            int n = min(a.per_slot, left);
            lv_barrier_wait(ring->barriers + ring->stage * 8, ring->parity);
            for (; n >= 2; n -= 2) { // two at a time hide each other's latencies
                lv_multiply_int4<1, 1, false>(slot, x, sum, lane, acc);
                lv_multiply_int4<1, 1, false>(slot + LV_RECORD_BYTES, x + LV_RECORD_K * 2,
                                              sum + LV_NARROW_ROWS, lane, acc);
                slot += 2 * LV_RECORD_BYTES;
                x += 2 * LV_RECORD_K * 2;
                sum += 2 * LV_NARROW_ROWS;
            }
            if (n > 0) {
                lv_multiply_int4<1, 1, false>(slot, x, sum, lane, acc);
                x += LV_RECORD_K * 2;
                sum += LV_NARROW_ROWS;
            }
            __syncwarp();
            ring_fill(a, ring, ring->stage, lane);
            if (++ring->stage == a.stages) {
                ring->stage = 0;
                ring->parity ^= 1;
            }
        }
        // Two buffers: this one is free once the tile before the last was read.
        const int buffer = half * 2 + turn % 2;
        const uint32_t use = turn / 2 & 1;
        float *sums = (float *)(shared + at.partials) + buffer * SUMS;
        float2 *mine = (float2 *)(sums + slice * 128);
        lv_barrier_wait(lv_shared(shared + at.sums_empty) + buffer * 8, use ^ 1);
        mine[lane] = make_float2(acc[0][0][0], acc[0][0][1]);
        mine[32 + lane] = make_float2(acc[0][0][2], acc[0][0][3]);
        __syncwarp();
        if (lane == 0) {
            lv_barrier_arrive(lv_shared(shared + at.sums_full) + buffer * 8);
        }
    }
    return turn;
}

// The same tiles, by the half's FINISHERS.
__device__ static inline int finish_tiles(const lv_small_job &job, uint8_t *shared,
                                          const chain_layout &at, int turn) {
    const int half = (threadIdx.x - BLOCK) / FINISHERS, mine = threadIdx.x % FINISHERS;
    const int n_tiles = job.n_out / LV_TILE;
    for (int tile = first_tile(half); tile < n_tiles; tile += HALVES * gridDim.x, turn++) {
        const bool is_row = mine % 8 < job.m;
        const int buffer = half * 2 + turn % 2;
        lv_ahead ahead = {};
        if (is_row) {
            ahead = lv_look_ahead(job, tile * LV_TILE + mine / 8, mine % 8);
        }
        lv_barrier_wait(lv_shared(shared + at.sums_full) + buffer * 8, turn / 2 & 1);
        if (is_row) {
            const float *sums = (const float *)(shared + at.partials) + buffer * SUMS;
            lv_finish_slices<LV_W_INT4>(job, sums, tile, mine, ahead);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            lv_barrier_arrive(lv_shared(shared + at.sums_empty) + buffer * 8);
        }
    }
    return turn;
}

static __global__ void __launch_bounds__(THREADS, 1)
    chain(const __grid_constant__ chain_args params) {
    extern __shared__ __align__(128) uint8_t shared[];
    const chain_layout at = lay_out(params);
    const bool multiplies = threadIdx.x < BLOCK;
    chain_ring ring = {};
    if (multiplies) {
        ring = ring_start(params, shared, at, threadIdx.x / 32, threadIdx.x % 32);
    }
    const int spare = threadIdx.x - BLOCK;
    if (spare >= 0 && spare < HALVES * 2) {
        lv_barrier_init(lv_shared(shared + at.sums_full) + spare * 8, LV_SLICES);
        lv_barrier_init(lv_shared(shared + at.sums_empty) + spare * 8, FINISHERS / 32);
        lv_barrier_fence();
    }
    // Parameters of whichever product it is are read from shared memory: constants may be far.
    for (int i = threadIdx.x; i < (int)(sizeof params / sizeof(uint32_t)); i += THREADS) {
        ((uint32_t *)(shared + at.args))[i] = ((const uint32_t *)&params)[i];
    }
    __syncthreads();
    const chain_args &a = *(const chain_args *)(shared + at.args);
    int turn = 0;
    unsigned long long goal = 0;
    for (int i = 0; i < a.n_jobs; i++) {
        const lv_small_job &job = a.jobs[i];
        const lv_norm_head head = lv_norm_ahead<BLOCK>(multiplies ? job.norm : nullptr, job.n_in);
        if (i == 0) {
            lv_wait_previous(); // the last kernel that counted has ended as well
            goal = arrivals(a.arrived) / (gridDim.x * ARRIVALS) * (gridDim.x * ARRIVALS);
        } else {
            goal += gridDim.x * ARRIVALS;
            meet(a.arrived, goal);
        }
        if (!multiplies) {
            turn = finish_tiles(job, shared, at, turn);
            continue;
        }
        const lv_rows rows = {.x = job.x,
                              .rows = job.rows,
                              .m = job.m,
                              .n_in = job.n_in,
                              .norm = job.norm,
                              .eps = job.eps,
                              .to = shared + at.rows,
                              .row_bytes = (size_t)lv_row_bytes<LV_W_INT4>(job.n_in),
                              .sums = (float *)(shared + at.sums),
                              .sums_stride = LV_NARROW_ROWS,
                              .segments = (float *)(shared + at.segments)};
        lv_stage_rows<false, BLOCK>(rows, head);
        lv_sync<BLOCK>();
        turn = multiply_tiles(a, job, &ring, shared, at, turn);
    }
}

// --- putting off ---------------------------------------------------------------------------------

// The largest rings that fit beside the rows; false where none does.
static bool plan(const lv_cuda *cuda, chain_args *a) {
    static const int plans[][2] = {{2, 4}, {3, 2}, {2, 2}, {3, 1}, {2, 1}}; // stages, records
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
        a->stages = plans[i][0];
        a->per_slot = plans[i][1];
        if ((size_t)lay_out(*a).n_bytes <= cuda->shared_bytes) {
            return true;
        }
    }
    return false;
}

static lv_status open_chain(lv_cuda *cuda) {
    void *dev;
    struct lv_chain *c = (struct lv_chain *)calloc(1, sizeof *c);
    if (!c) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    cuda->chain = c;
    LV_TRY(lv_cuda_alloc(&cuda->base, sizeof *c->arrived, &dev));
    c->arrived = (unsigned long long *)dev;
    LV_CUDA_TRY(cuda, cudaMemsetAsync(dev, 0, sizeof *c->arrived, cuda->stream));
    return LV_OK;
}

lv_status lv_cuda_flush(lv_cuda *cuda) {
    struct lv_chain *c = cuda->chain;
    if (!c || c->args.n_jobs == 0) {
        return LV_OK;
    }
    chain_args a = c->args;
    c->args.n_jobs = 0;
    a.arrived = c->arrived;
    if (a.n_jobs > 1 && plan(cuda, &a)) {
        return lv_launch(cuda, "few rows, chain", chain, cuda->n_sms, THREADS,
                         (size_t)lay_out(a).n_bytes, a);
    }
    for (int i = 0; i < a.n_jobs; i++) {
        LV_TRY(lv_small_alone(cuda, &a.jobs[i], LV_W_INT4));
    }
    return LV_OK;
}

lv_status lv_small_put_off(lv_cuda *cuda, const lv_small_job *job) {
    if (!cuda->chain) {
        LV_TRY(open_chain(cuda));
    }
    chain_args *a = &cuda->chain->args;
    if (a->n_jobs == MOST_JOBS || (a->n_jobs > 0 && a->jobs[0].m != job->m)) {
        LV_TRY(lv_cuda_flush(cuda));
    }
    a->jobs[a->n_jobs++] = *job;
    return LV_OK;
}

void lv_cuda_chain_drop(lv_cuda *cuda) {
    if (cuda->chain) {
        cuda->chain->args.n_jobs = 0;
    }
}

void lv_cuda_chain_free(lv_cuda *cuda) {
    if (cuda->chain) {
        lv_cuda_free(&cuda->base, cuda->chain->arrived);
        free(cuda->chain);
    }
}
