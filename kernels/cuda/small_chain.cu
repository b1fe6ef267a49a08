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
// measured: H200, 7B layer, m = 1, a step at context 512, int8 KV (llava-bench --stages decode
// --batches 1 --kv i8 --contexts 512): 1.545 and 1.551 ms, 1.575 and 1.632 in the same run before
// rings were filled in order of need and the beginning was made short.
// Thousands of cycles (clock64, means of 132 blocks; O, gate and up, down, q k v; 75 a layer):
//
//   multiplying                          3.0  16.9   7.2   8.7   gate and up: 13.7 to 21.7
//   from there to the block's arrival    1.4   1.7   1.7
//   until the last block has arrived     3.7   4.3   4.4         O: 5.6 in another run
//   until all know, x in shared memory   1.4 + 1.3 to 1.9 each
//   before the first product             9.7, 5.0 in blocks that start last, which are late at O
//                                        (926 instructions then, 569 now)
//
// Tried: filling rings one after another by a warp of its own (one copy in 600 cycles, twice the
// time), slots of one record, finishing sums by the multiplying warps in turn (a convoy: +10%),
// slots behind the ring brought into the second-level cache ahead (1.67 to 1.82 ms), three groups
// of eight warps (1.90), x read by lanes that have a row only (1.58 to 1.65), shifts as
// multiplications (no difference), the next product's slots asked for after the last tile (1.55).
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
#define MOST_JOBS 4
#define SUMS (LV_SLICES * 128) // of a tile: f32 [slice][row][column]

typedef struct chain_args {
    lv_small_job jobs[MOST_JOBS];
    int n_jobs;
    int most_in;          // n_in of the widest
    int stages, per_slot; // slots of a ring, records of a slot
    uint32_t *arrived;    // what meet() counts in
} chain_args;

struct lv_chain {
    chain_args args;
    uint32_t *arrived;
};

// Byte offsets in shared memory; the rings come first.
typedef struct chain_layout {
    int full;                  // barriers of the slots [warp][stage]
    int sums_full, sums_empty; // barriers of `partials` [half][buffer]
    int args, partials, sums, segments, rows, n_bytes;
} chain_layout;

__host__ __device__ static inline chain_layout lay_out(const chain_args &a) {
    const int m = a.jobs[0].m, n_in = a.most_in;
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

// A half's tiles are its first one and every tile_step()-th after it: blocks first, then halves,
// so that blocks differ by one tile at most.
__device__ static inline int first_tile(int half) {
    return half * (int)gridDim.x + (int)blockIdx.x;
}

__device__ static inline int tile_step() {
    return HALVES * (int)gridDim.x;
}

// --- the ring of a warp, on across products ------------------------------------------------------

typedef struct chain_ring {
    uint8_t *slots;
    uint32_t barriers;
    // What is asked for next: a product, a tile, a record, and how many of the slice are left.
    int job, tile, left;
    const uint8_t *next;
    // Of that product: its tiles, records of a slice, bytes from a slice's end to the next tile's.
    int n_tiles, per_tile, jump;
    int asked; // slots asked for and not read
    int stage; // the slot to be read next
    uint32_t parity;
} chain_ring;

// The first product from `job` on that has something for this warp; left is 0 where none has.
__device__ static inline void ring_seek(const chain_args &a, chain_ring *r, int job) {
    const int warp = threadIdx.x / 32, slice = warp % LV_SLICES;
    for (; job < a.n_jobs; job++) {
        const lv_small_job &j = a.jobs[job];
        const int first = slice_start(j, slice), last = slice_start(j, slice + 1);
        const size_t tile_bytes = lv_tile_bytes<LV_W_INT4>(j.n_in);
        r->tile = first_tile(warp / LV_SLICES);
        r->n_tiles = j.n_out / LV_TILE;
        r->left = r->per_tile = last - first;
        if (r->tile < r->n_tiles && r->left > 0) {
            r->job = job;
            r->next = j.w + r->tile * tile_bytes + first * LV_RECORD_BYTES;
            r->jump = tile_step() * (int)tile_bytes - r->per_tile * LV_RECORD_BYTES;
            return;
        }
    }
    r->left = 0;
}

template <int RECORDS>
__device__ static inline void ring_fill(const chain_args &a, chain_ring *r, int stage, int lane) {
    const int n = min(RECORDS, r->left);
    if (n == 0) {
        return;
    }
    if (lane == 0) {
        const uint32_t barrier = r->barriers + stage * 8;
        lv_barrier_expect(barrier, n * LV_RECORD_BYTES);
        lv_copy_bulk(r->slots + stage * RECORDS * LV_RECORD_BYTES, r->next, n * LV_RECORD_BYTES,
                     barrier, LV_EVICT_FIRST);
    }
    r->next += n * LV_RECORD_BYTES;
    r->left -= n;
    if (r->left == 0) {
        r->tile += tile_step();
        r->next += r->jump;
        r->left = r->per_tile;
        if (r->tile >= r->n_tiles) {
            ring_seek(a, r, r->job + 1);
        }
    }
    r->asked++;
    if (r->left == 0) {
        lv_launch_next(); // all is on its way: the next kernel may begin to ask for its own
    }
}

// Asks for the slot that was read last, once the next one is there: what a product begins with (x,
// its first records) must not stand in a queue behind what it needs later.
template <int RECORDS>
__device__ static inline void ring_end(const chain_args &a, chain_ring *r, int lane) {
    if (r->asked < a.stages) {
        if (r->asked > 0) {
            lv_barrier_wait(r->barriers + r->stage * 8, r->parity);
        }
        ring_fill<RECORDS>(a, r, (r->stage + a.stages - 1) % a.stages, lane);
    }
}

template <int RECORDS>
__device__ static inline chain_ring ring_start(const chain_args &a, uint8_t *shared,
                                               const chain_layout &at, int warp, int lane) {
    chain_ring r = {};
    r.slots = shared + warp * a.stages * RECORDS * LV_RECORD_BYTES;
    r.barriers = lv_shared(shared + at.full) + warp * a.stages * 8;
    if (lane < a.stages) {
        lv_barrier_init(r.barriers + lane * 8, 1);
        lv_barrier_fence();
    }
    __syncwarp();
    ring_seek(a, &r, 0);
    if (r.left == 0) {
        lv_launch_next();
    }
    for (int i = 0; i < a.stages - 1; i++) {
        ring_fill<RECORDS>(a, &r, i, lane);
    }
    ring_end<RECORDS>(a, &r, lane);
    return r;
}

// --- between products ----------------------------------------------------------------------------

// All blocks have stored what this product gives, and see it. They add up to 2^31 each time, so
// that the counter's top bit turns with the last of them, whatever it was before.
__device__ static inline void meet(uint32_t *arrived) {
    if (threadIdx.x >= BLOCK) { // the others store nothing
        asm volatile("bar.sync 2, %0;" ::"n"(THREADS - BLOCK) : "memory");
    }
    if (threadIdx.x == BLOCK) {
        const uint32_t mine = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1;
        uint32_t before, now;
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                     : "=r"(before)
                     : "l"(arrived), "r"(mine)
                     : "memory");
        now = before + mine;
        while (((before ^ now) & 0x80000000u) == 0) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                         : "=r"(now)
                         : "l"(arrived)
                         : "memory");
        }
    }
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

// --- a product -----------------------------------------------------------------------------------

// Tiles of one half of the block, its rows of x being staged. turn: tiles of this half so far.
template <int RECORDS>
__device__ static inline unsigned multiply_tiles(const chain_args &a, const lv_small_job &job,
                                                 chain_ring *ring, uint8_t *shared,
                                                 const chain_layout &at, unsigned turn) {
    const int tid = threadIdx.x % LV_SMALL_BLOCK, half = threadIdx.x / LV_SMALL_BLOCK;
    const int slice = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int first = slice_start(job, slice), n_records = slice_start(job, slice + 1) - first;
    const int n_tiles = job.n_out / LV_TILE, stages = a.stages;
    // Columns of x beyond m repeat row 0; nobody looks at their results.
    const uint8_t *x_slice = shared + at.rows +
                             (g < job.m ? g : 0) * lv_row_bytes<LV_W_INT4>(job.n_in) +
                             lv_lane_bytes<LV_W_INT4>(t) + first * LV_RECORD_K * 2;
    const float *sums_slice = (const float *)(shared + at.sums) + first * LV_NARROW_ROWS + 2 * t;
    for (int tile = first_tile(half); tile < n_tiles; tile += tile_step(), turn++) {
        float acc[1][1][4] = {};
        const uint8_t *x = x_slice;
        const float *sum = sums_slice;
        for (int left = n_records; left > 0; left -= RECORDS) {
            const uint8_t *slot = ring->slots + ring->stage * RECORDS * LV_RECORD_BYTES;
            int n = min(RECORDS, left);
            lv_barrier_wait(ring->barriers + ring->stage * 8, ring->parity);
#pragma unroll 1
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
            ring->asked--;
            if (left > RECORDS || tile + tile_step() < n_tiles) { // else it is for ring_end
                ring_fill<RECORDS>(a, ring, ring->stage, lane);
            }
            if (++ring->stage == stages) {
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
__device__ static inline unsigned finish_tiles(const lv_small_job &job, uint8_t *shared,
                                               const chain_layout &at, unsigned turn) {
    const int half = (threadIdx.x - BLOCK) / FINISHERS, mine = threadIdx.x % FINISHERS;
    const int n_tiles = job.n_out / LV_TILE;
    for (int tile = first_tile(half); tile < n_tiles; tile += tile_step(), turn++) {
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

template <int RECORDS>
static __global__ void __launch_bounds__(THREADS, 1)
    chain(const __grid_constant__ chain_args params) {
    extern __shared__ __align__(128) uint8_t shared[];
    const chain_layout at = lay_out(params);
    const bool multiplies = threadIdx.x < BLOCK;
    chain_ring ring = {};
    if (multiplies) {
        ring = ring_start<RECORDS>(params, shared, at, threadIdx.x / 32, threadIdx.x % 32);
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
    unsigned turn = 0;
    for (int i = 0; i < a.n_jobs; i++) {
        const lv_small_job &job = a.jobs[i];
        const lv_norm_head head = lv_norm_ahead<BLOCK>(multiplies ? job.norm : nullptr, job.n_in);
        if (i == 0) {
            lv_wait_previous();
        } else {
            meet(a.arrived);
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
        turn = multiply_tiles<RECORDS>(a, job, &ring, shared, at, turn);
        ring_end<RECORDS>(a, &ring, threadIdx.x % 32);
    }
}

// --- putting off ---------------------------------------------------------------------------------

// The largest rings that fit beside the rows; false where none does.
static bool plan(const lv_cuda *cuda, chain_args *a) {
    static const int plans[][2] = {{2, 4}, {3, 2}, {2, 2}, {3, 1}, {2, 1}}; // stages, records
    a->most_in = 0;
    for (int i = 0; i < a->n_jobs; i++) {
        a->most_in = a->jobs[i].n_in > a->most_in ? a->jobs[i].n_in : a->most_in;
    }
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
    struct lv_chain *c;
    void *dev;
    LV_TRY(lv_cuda_alloc(&cuda->base, sizeof *c->arrived, &dev));
    lv_status status = lv_cuda_check(
        cuda, cudaMemsetAsync(dev, 0, sizeof *c->arrived, cuda->stream), "few rows, chain");
    c = status == LV_OK ? (struct lv_chain *)calloc(1, sizeof *c) : NULL;
    if (!c) {
        lv_cuda_free(&cuda->base, dev);
        return status == LV_OK ? lv_fail(LV_ENOMEM, "out of memory") : status;
    }
    c->arrived = (uint32_t *)dev;
    cuda->chain = c;
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
        auto kernel = a.per_slot == 4 ? chain<4> : a.per_slot == 2 ? chain<2> : chain<1>;
        return lv_launch(cuda, "few rows, chain", kernel, cuda->n_sms, THREADS,
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
