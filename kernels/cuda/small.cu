// The "few rows" family: y[m, n_out] = x[m, n_in] W^T with W as stored, and what follows it.
//
//   W      int4 records (records.h), f16 [n_out, n_in] or int8 [n_out, n_in] with a scale a row,
//          rows in tile order (lv_tile_row), 16-byte aligned; n_out a multiple of 16, n_in of 128
//   x      f16 [*, n_in], gathered by `rows`; where `norm` is given, rms_norm(x) norm rounded to
//   f16 y      f32 sums; + bias, activation, residual, RoPE or silu(g) u; stored as lv_epilogue
//   says
//
// Tensor cores multiply even a single row: weights are the m16 operand of mma.m16n8k16, rows of x
// its eight columns, so that one row and eight cost the same instructions, and sums in f32 are
// free. Row g and g + 8 of a tile lie in one lane, which is why RoPE's halves, gate and up are
// stored as such pairs: their epilogues need no other lane.
//
//   tile of W, 16 rows                    x, as columns            lane 4 g + t holds
//   g  ______________________________       g g g g g ..           A: rows g and g + 8,
//     | a0 (t: 2 k)    a2 (t: 2 k)  |     t b0 (2 k)               B: column g,
//   8 | a1             a3           |     t b1 (2 k)               C: rows g and g + 8 of columns
//     |_____________________________|                              2 t and 2 t + 1
//
// Which k an mma calls its own is free, as long as A and B agree. B is 16 bytes of a row of x, from
// k = 32 p + 8 t on, for two mma; int4's A are masked words (records.h: q 2^-24 and q 2^-20, each
// with accumulators of its own), f16's A are the same 16 bytes of rows g and g + 8 of W; int8's B
// are 32 bytes from 64 j + 16 t on, and its A are bytes q + 128 as subnormals. Zeros and the 128
// come off afterwards: sum of (q - z) x = sum of q x - z sum of x, once a group of 128 k in f32,
// and int4's scales are applied there. That makes about 95 instructions a record of 2048 weights
// and warp; at 4.3 TB/s an SM of an H200 gets a record every 33 ns, and its schedulers have 260
// issue slots in that time.
//
// The order of the sums depends on n_in alone, so that a row's bits are the same for any m:
//   slice s of 8    records [s R / 8, (s + 1) R / 8) of R = n_in / 128, one after another
//   total           ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
//
// narrow (m <= 4)   A warp a slice: a block of 8 warps has one tile at a time, two blocks an SM,
//   tiles dealt in turn. Every warp has a ring of units on their way (int4: 4 of two records by
//   bulk copies that end on a barrier each; f16 and int8: 3 of 2 KiB by cp.async, each lane its own
//   fragments), 134 KiB an SM for int4 and 96 else, running on across tiles. Weights are asked for
//   before the previous kernel's end; x is then staged, with its norm and its sums, in shared
//   memory. Slices meet in shared memory, two buffers, one barrier a tile. On sm_90 a step's int4
//   products that follow one another run in one kernel instead: small_chain.cu.
// wide (m > 4)      A kernel before gathers and norms x and leaves it, with its groups' sums, as
//   slabs (small_wide.h) of 128 k of up to 32 rows. A warp has two tiles of one part of K and a
//   ring of their units, so that 16 bytes of x a lane serve four mma; a block of up to 12 warps
//   shares four slabs. K is cut in 1 to 8 parts (slices stay whole) where that fills the SMs; the
//   parts' blocks are a cluster, each joins its share of the sums out of the others' shared memory
//   (before sm_90: f32 sums in memory, joined by another kernel). Rows beyond 32 are other blocks.
//   At m = 32 a record takes a warp 32 mma, about 256 cycles of the tensor cores (8 each), 32 of
//   shared memory for x and 8 for weights (of four such shares an SM has), and about 150 issue
//   slots: the tensor cores bind, 98,816 records of a 7B layer over 528 schedulers in 27 us. On
//   Hopper int4 of 17 rows and more is multiplied by wgmma instead: small_wgmma.cu.
//
// Bytes of a 7B layer at m = 1, int4: QKV 26.3 MB, O 8.8, gate and up 47.2, down 23.6: 6.1, 2.0,
// 11.0 and 5.5 us at 4.3 TB/s; 2 FLOP a weight and row, 0.4 GFLOP a layer and row: memory binds up
// to about 60 rows.
#include "kernels/cuda/small_chain.h"
#include "kernels/cuda/small_finish.cuh"
#include "kernels/cuda/small_narrow.h"
#include "kernels/cuda/small_rows.cuh"
#include "kernels/cuda/small_wide.h"

#define NARROW_BLOCKS_PER_SM 2
#define NARROW_STAGES_INT4 4
#define NARROW_STAGES_ROWS 3 // f16 and int8
#define NARROW_MOST_ROWS 4   // beyond, the wide kernel's plan is the faster one
#define WIDE_MAX_STAGES_INT4 4
#define WIDE_MAX_STAGES 8 // f16 and int8
#define WGMMA_STAGES 2
#define WGMMA_ROWS 17 // below, mma.sync is faster: at 16 rows a layer's four products 73 us, not 76
#define MAX_PARTS LV_SLICES

// --- kernels around the wide one -----------------------------------------------------------------

typedef struct lv_prepare {
    const __half *x; // f16 [*, n_in]
    const int32_t *rows;
    const float *norm; // or NULL
    float eps;
    int n_in, nt, n_columns;
    bool int8, cores;
    uint8_t *slabs;
} lv_prepare;

// A block a row of x: gathered and normed into slabs, with its groups' sums.
static __global__ void __launch_bounds__(LV_SMALL_BLOCK)
    small_prepare(const __grid_constant__ lv_prepare p) {
    extern __shared__ __align__(128) uint8_t shared[]; // the row before its norm, segments
    const lv_norm_head head = lv_norm_ahead<LV_SMALL_BLOCK>(p.norm, p.n_in);
    lv_launch_next();
    lv_wait_previous();
    const int row = blockIdx.x, source = p.rows ? p.rows[row] : row;
    const int in_slab = row % (8 * p.nt), step = p.n_columns * lv_slab_bytes(p.nt);
    uint8_t *slab = p.slabs + row / (8 * p.nt) * lv_slab_bytes(p.nt);
    const lv_rows r = {.x = p.x + (size_t)source * p.n_in,
                       .rows = nullptr,
                       .m = 1,
                       .n_in = p.n_in,
                       .norm = p.norm,
                       .eps = p.eps,
                       .to = shared,
                       .row_bytes = 0,
                       .slab = slab + (p.cores ? in_slab / 8 * 256 + in_slab % 8 * 16
                                               : in_slab / 8 * 2048 + in_slab % 8 * 64),
                       .slab_step = (size_t)step,
                       .int8 = p.int8,
                       .cores_nt = p.cores ? p.nt : 0,
                       .sums = (float *)(slab + p.nt * 2048) + in_slab,
                       .sums_stride = step / (int)sizeof(float),
                       .segments = (float *)(shared + p.n_in * 2)};
    lv_stage_rows<true, LV_SMALL_BLOCK>(r, head);
}

// A thread two places of a row.
template <int FORMAT>
static __global__ void __launch_bounds__(LV_SMALL_BLOCK)
    small_join(const __grid_constant__ lv_small_job job) {
    const int i = blockIdx.x * LV_SMALL_BLOCK + threadIdx.x, token = blockIdx.y;
    const int place = i / 8 * LV_TILE + i % 8;
    lv_launch_next();
    lv_wait_previous();
    if (place >= job.n_out) {
        return;
    }
    float y[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float parts[MAX_PARTS] = {};
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++) {
            if (i < job.n_parts) {
                parts[i] = job.parts[((size_t)i * job.m + token) * job.n_out + place + 8 * half];
            }
        }
        y[half] = lv_join(parts, job.n_parts);
    }
    lv_small_finish<FORMAT>(job, place, token, y[0], y[1], lv_look_ahead(job, place, token));
}

// --- plans ---------------------------------------------------------------------------------------

static int slot_bytes(lv_format format) {
    return format == LV_W_INT4 ? lv_slot_bytes<LV_W_INT4>() : lv_slot_bytes<LV_W_F16>();
}

static int row_pad(lv_format format) {
    return format == LV_W_INT8 ? lv_row_bytes<LV_W_INT8>(0) : lv_row_bytes<LV_W_F16>(0);
}

// Rings as deep as shared memory allows, two blocks an SM or one. *n_blocks is 0 where x does not
// fit.
static void plan_narrow(const lv_cuda *cuda, lv_format format, lv_small_job *job, int *n_blocks,
                        size_t *shared_bytes) {
    const int most = format == LV_W_INT4 ? NARROW_STAGES_INT4 : NARROW_STAGES_ROWS;
    const size_t reserved = 1024; // of every block, by the driver
    *n_blocks = 0;
    for (int blocks = NARROW_BLOCKS_PER_SM; blocks > 0; blocks--) {
        const size_t limit = (cuda->shared_bytes + reserved) / (size_t)blocks - reserved;
        for (int stages = most; stages > 1 && (stages > 2 || blocks == 1); stages--) {
            const lv_narrow_layout at = lv_narrow_plan(slot_bytes(format), row_pad(format), job->m,
                                                       job->n_in, stages, job->norm != NULL);
            if ((size_t)at.n_bytes <= limit) {
                const int n_tiles = job->n_out / LV_TILE, n = blocks * cuda->n_sms;
                job->stages = stages;
                *n_blocks = n_tiles < n ? n_tiles : n;
                *shared_bytes = (size_t)at.n_bytes;
                return;
            }
        }
    }
}

typedef struct wide_plan {
    bool wgmma;
    int tiles; // of weights a warp
    int nt, n_warps, n_blocks;
} wide_plan;

// Cycles of a block, estimated: of n_warps with n_steps of 128 k each, in n_parts parts.
static double wide_cycles(const lv_cuda *cuda, lv_format format, const wide_plan *plan, int n_warps,
                          int n_parts, int n_steps, int n_rows, int n_out) {
    const int nt = plan->nt, tiles = plan->tiles;
    const int bytes = tiles * (format == LV_W_INT4   ? LV_RECORD_BYTES
                               : format == LV_W_INT8 ? 2048
                                                     : 4096);
    const double tensor = plan->wgmma ? 32.0 * nt : tiles * 64.0 * nt;
    const double issue = plan->wgmma ? 75 + 14.0 * nt : tiles * (75 + 25.0 * nt);
    const double work = (n_warps + 3) / 4 * (tensor > issue ? tensor : issue);
    const double memory = n_warps * bytes / 18.0 + lv_slab_bytes(nt) / 40.0;
    const double alone = plan->wgmma ? 300 + tensor + issue : 250 + tensor; // a warp's own chain
    double step = work > memory ? work : memory;
    step = step > alone ? step : alone;
    const double sums = (double)n_warps * tiles * nt;
    const double join = cuda->sm >= 90 ? 1000 + sums * 16 + 1400.0 * tiles * nt / n_parts
                        : n_parts == 1 ? 0
                                       : 4000 + 1e-3 * n_parts * n_rows * n_out;
    return 1500 + step * n_steps + join;
}

// Rows of x a block: as few tiles of eight as do; for wgmma four of them or eight.
static void plan_rows(int m, lv_small_job *job, wide_plan *plan) {
    const int n_row_tiles = (m + 7) / 8, most = plan->wgmma ? 8 : 4;
    job->n_columns = (n_row_tiles + most - 1) / most;
    plan->nt = (n_row_tiles + job->n_columns - 1) / job->n_columns;
    if (plan->wgmma) {
        plan->nt = plan->nt <= 4 ? 4 : 8;
    }
}

// How many tiles a block takes and into how many parts K is cut: the least estimated time.
static lv_status plan_wide(lv_cuda *cuda, const lv_linear *w, lv_small_job *job, wide_plan *plan) {
    plan->wgmma = w->format == LV_W_INT4 && job->m >= WGMMA_ROWS && cuda->has_wgmma;
    plan->tiles = plan->wgmma ? 1 : LV_WIDE_TILES;
    const int n_pairs = (w->n_out / LV_TILE + plan->tiles - 1) / plan->tiles; // a warp each
    const int n_records = w->n_in / LV_RECORD_K, warps_step = plan->wgmma ? 4 : 1;
    // The rest is for the kernel before the next; wgmma's gains more by having it (64 rows: gate
    // and up 61 us, 51).
    const int limit = (int)cuda->shared_bytes / 100 * (plan->wgmma ? 98 : 90);
    double best = 0;
    plan_rows(job->m, job, plan);
    plan->n_warps = 0;
    for (int n_parts = 1; n_parts <= MAX_PARTS; n_parts *= 2) {
        int n_resident;
        LV_TRY(lv_small_wide_resident(cuda, n_parts, &n_resident));
        for (int n_warps = warps_step; n_warps <= LV_WIDE_WARPS; n_warps += warps_step) {
            int stages = plan->wgmma              ? WGMMA_STAGES
                         : w->format == LV_W_INT4 ? WIDE_MAX_STAGES_INT4
                                                  : WIDE_MAX_STAGES;
            while (stages > 1 && lv_wide_plan(slot_bytes(w->format), plan->tiles, plan->nt, n_warps,
                                              stages, n_parts)
                                         .n_bytes > limit) {
                stages--;
            }
            const int n_blocks = (n_pairs + n_warps - 1) / n_warps * n_parts * job->n_columns;
            const int n_waves = (n_blocks + n_resident - 1) / n_resident;
            const double cycles =
                n_waves * wide_cycles(cuda, w->format, plan, n_warps, n_parts,
                                      (n_records + n_parts - 1) / n_parts, job->m, w->n_out);
            if (stages > 1 && (best == 0 || cycles < best)) {
                best = cycles;
                plan->n_warps = n_warps;
                plan->n_blocks = n_blocks;
                job->n_parts = n_parts;
                job->stages = stages;
            }
        }
    }
    return plan->n_warps > 0
               ? LV_OK
               : lv_fail(LV_EUNSUPPORTED, "few rows: %zu bytes of shared memory are too few",
                         cuda->shared_bytes);
}

// --- launching -----------------------------------------------------------------------------------

static lv_status run_join(lv_cuda *cuda, const lv_small_job *job, lv_format format) {
    const dim3 grid((job->n_out / 2 + LV_SMALL_BLOCK - 1) / LV_SMALL_BLOCK, job->m);
    auto kernel = format == LV_W_INT4   ? small_join<LV_W_INT4>
                  : format == LV_W_INT8 ? small_join<LV_W_INT8>
                                        : small_join<LV_W_F16>;
    return lv_launch(cuda, "few rows, join", kernel, grid, LV_SMALL_BLOCK, 0, *job);
}

// Rows gathered and normed into slabs.
static lv_status run_prepare(lv_cuda *cuda, lv_small_job *job, lv_format format,
                             const wide_plan *plan) {
    const size_t n_slabs = (size_t)(job->n_in / LV_RECORD_K) * (size_t)job->n_columns;
    const size_t segments = (size_t)(job->n_in + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT;
    const size_t shared_bytes = (size_t)job->n_in * 2 + segments * sizeof(float);
    void *slabs;
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_NORMED, n_slabs * (size_t)lv_slab_bytes(plan->nt),
                           &slabs));
    const lv_prepare p = {.x = job->x,
                          .rows = job->rows,
                          .norm = job->norm,
                          .eps = job->eps,
                          .n_in = job->n_in,
                          .nt = plan->nt,
                          .n_columns = job->n_columns,
                          .int8 = format == LV_W_INT8,
                          .cores = plan->wgmma,
                          .slabs = (uint8_t *)slabs};
    job->slabs = p.slabs;
    return lv_launch(cuda, "few rows, prepare", small_prepare, job->m, LV_SMALL_BLOCK,
                     job->norm ? shared_bytes : 0, p);
}

static lv_status run_wide(lv_cuda *cuda, const lv_linear *w, lv_small_job *job) {
    wide_plan plan = {};
    void *parts = NULL;
    LV_TRY(plan_wide(cuda, w, job, &plan));
    if (job->n_parts > 1 && cuda->sm < 90) {
        const size_t n = (size_t)job->n_parts * (size_t)job->m * (size_t)w->n_out;
        LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_PARTS, n * sizeof(float), &parts));
    }
    job->parts = (float *)parts;
    LV_TRY(run_prepare(cuda, job, w->format, &plan));
    if (plan.wgmma) {
        return lv_small_wgmma(cuda, job, plan.nt, plan.n_warps, plan.n_blocks);
    }
    LV_TRY(lv_small_wide(cuda, job, w->format, plan.nt, plan.n_warps, plan.n_blocks));
    return job->parts ? run_join(cuda, job, w->format) : LV_OK;
}

bool lv_cuda_small_takes(const lv_cuda *cuda, const lv_linear *w) {
    (void)cuda;
    return w->n_in > 0 && w->n_in % LV_RECORD_K == 0 && w->n_out % LV_TILE == 0;
}

static lv_status check(const lv_cuda *cuda, const lv_small *s) {
    const lv_linear *w = s->w;
    if (!lv_cuda_small_takes(cuda, w)) {
        return lv_fail(LV_EUNSUPPORTED, "few rows: not for weights [%d, %d]", w->n_out, w->n_in);
    }
    if (s->epilogue == LV_GATE && w->pair * 2 != w->n_out) {
        return lv_fail(LV_EUNSUPPORTED, "gate and up: rows %d apart of %d", w->pair, w->n_out);
    }
    if (s->epilogue == LV_ROTATE &&
        (w->pair * 2 != s->head_dim || s->batch->head_dim != s->head_dim || s->rows ||
         w->n_out != (s->n_heads + 2 * s->n_kv_heads) * s->head_dim)) {
        return lv_fail(LV_EUNSUPPORTED,
                       "q, k, v: %d rows, %d apart, for %d + 2 * %d heads of %d, frequencies for "
                       "heads of %d",
                       w->n_out, w->pair, s->n_heads, s->n_kv_heads, s->head_dim,
                       s->batch->head_dim);
    }
    return LV_OK;
}

static lv_small_job job_of(const lv_small *s) {
    const lv_linear *w = s->w;
    lv_small_job job = {};
    job.w = (const uint8_t *)w->data;
    job.row_scales = w->scales;
    job.bias = w->bias;
    job.x = (const __half *)s->x;
    job.rows = s->rows;
    job.norm = s->norm;
    job.eps = s->eps;
    job.m = s->m;
    job.n_in = w->n_in;
    job.n_out = w->n_out;
    job.pair = w->pair;
    job.epilogue = s->epilogue;
    job.activation = s->activation;
    job.residual = (const __half *)s->residual;
    job.out = s->out;
    if (s->epilogue == LV_ROTATE) {
        job.kv_new = (__half *)s->kv_new;
        job.n_heads = s->n_heads;
        job.n_kv_heads = s->n_kv_heads;
        job.head_dim = s->head_dim;
        job.turns =
            (const float2 *)s->batch->turns + (size_t)s->first_row * (size_t)(s->head_dim / 2);
    }
    return job;
}

lv_status lv_small_alone(lv_cuda *cuda, lv_small_job *job, lv_format format) {
    int n_blocks;
    size_t shared_bytes;
    plan_narrow(cuda, format, job, &n_blocks, &shared_bytes);
    return n_blocks > 0
               ? lv_small_narrow(cuda, job, format, n_blocks, shared_bytes)
               : lv_fail(LV_EUNSUPPORTED, "few rows: %d rows of %d do not fit", job->m, job->n_in);
}

lv_status lv_cuda_small(lv_cuda *cuda, const lv_small *s) {
    const lv_linear *w = s->w;
    int n_blocks = 0;
    size_t shared_bytes = 0;
    LV_TRY(check(cuda, s));
    if (s->m <= 0) {
        return LV_OK;
    }
    lv_small_job job = job_of(s);
    if (s->m <= NARROW_MOST_ROWS) {
        plan_narrow(cuda, w->format, &job, &n_blocks, &shared_bytes);
    }
    if (n_blocks == 0) {
        return run_wide(cuda, w, &job);
    }
    return s->may_wait && w->format == LV_W_INT4 && cuda->sm >= 90
               ? lv_small_put_off(cuda, &job)
               : lv_small_narrow(cuda, &job, w->format, n_blocks, shared_bytes);
}
