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
// narrow (m <= 8)   A warp a slice: a block of 8 warps has one tile at a time, two blocks an SM,
// tiles
//   dealt in turn. Every warp has a ring of units on their way (int4: 8 of 1072 bytes by bulk
//   copies that end on a barrier each; f16 and int8: 3 of 2 KiB by cp.async, each lane its own
//   fragments), 134 KiB an SM for int4 and 96 else, running on across tiles. Weights are asked for
//   before the previous kernel's end; x is then staged, with its norm and its sums, in shared
//   memory. Slices meet in shared memory, two buffers, one barrier a tile.
// wide (m > 8)      A warp a tile through all slices, pairs of sums in registers; 128 k of up to 32
// rows
//   of x at a time go through shared memory for all warps (4 slabs of 10 KiB); norms and sums come
//   from a kernel before. Where that gives the SMs too little, K is cut in 2 or 4 parts (pairs of
//   slices stay together), whose f32 sums another kernel joins; rows beyond 32 are other blocks.
//
// Bytes of a 7B layer at m = 1, int4: QKV 26.3 MB, O 8.8, gate and up 47.2, down 23.6: 6.1, 2.0,
// 11.0 and 5.5 us at 4.3 TB/s; 2 FLOP a weight and row, 0.4 GFLOP a layer and row: memory binds up
// to about 60 rows.
#include "kernels/cuda/small_narrow.h"
#include "kernels/cuda/small_rows.cuh"

#define NARROW_BLOCKS_PER_SM 2
#define NARROW_STAGES_INT4 8
#define NARROW_STAGES_ROWS 3        // f16 and int8
#define WIDE_RING_BYTES (64 * 1024) // of a block
#define WIDE_MAX_STAGES 8
#define MAX_PARTS 4

// --- kernels around the wide one -----------------------------------------------------------------

// A block a row of x: gathered and normed into `to` (NULL: as it is), its groups' sums.
static __global__ void __launch_bounds__(LV_SMALL_BLOCK)
    small_prepare(const __half *x, const int32_t *rows, int n_in, const float *norm, float eps,
                  __half *to, float *sums, int sums_stride) {
    extern __shared__ float segments[];
    const lv_norm_head head = lv_norm_ahead(norm, n_in);
    lv_launch_next();
    lv_wait_previous();
    const int row = blockIdx.x, source = rows ? rows[row] : row;
    const lv_rows r = {.x = x + (size_t)source * n_in,
                       .rows = nullptr,
                       .m = 1,
                       .n_in = n_in,
                       .norm = norm,
                       .eps = eps,
                       .to = to ? (uint8_t *)(to + (size_t)row * n_in) : nullptr,
                       .row_bytes = 0,
                       .sums = sums ? sums + row : nullptr,
                       .sums_stride = sums_stride,
                       .segments = segments};
    lv_stage_rows(r, head);
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
        float sum[MAX_PARTS / 2];
        for (int j = 0; j < job.n_parts / 2; j++) {
            const size_t part = (size_t)job.m * job.n_out;
            const float *from =
                job.parts + 2 * j * part + (size_t)token * job.n_out + place + 8 * half;
            sum[j] = __fadd_rn(from[0], from[part]);
        }
        y[half] = job.n_parts == 4 ? __fadd_rn(sum[0], sum[1]) : sum[0];
    }
    lv_small_finish<FORMAT>(job, place, token, y[0], y[1]);
}

// --- plans ---------------------------------------------------------------------------------------

static int unit_bytes(lv_format format) {
    return format == LV_W_INT4 ? lv_unit_bytes<LV_W_INT4>() : lv_unit_bytes<LV_W_F16>();
}

static int row_pad(lv_format format) {
    return format == LV_W_INT8 ? lv_row_bytes<LV_W_INT8>(0) : lv_row_bytes<LV_W_F16>(0);
}

// Rings as deep as shared memory allows, two blocks an SM or one. *n_blocks is 0 where x does not
// fit.
static void plan_narrow(const lv_cuda *cuda, const lv_linear *w, lv_small_job *job, int *n_blocks,
                        size_t *shared_bytes) {
    const int most = w->format == LV_W_INT4 ? NARROW_STAGES_INT4 : NARROW_STAGES_ROWS;
    const size_t reserved = 1024; // of every block, by the driver
    *n_blocks = 0;
    for (int blocks = NARROW_BLOCKS_PER_SM; blocks > 0; blocks--) {
        const size_t limit = (cuda->shared_bytes + reserved) / (size_t)blocks - reserved;
        for (int stages = most; stages > 1 && (stages > 2 || blocks == 1); stages--) {
            const lv_narrow_layout at =
                lv_narrow_plan(unit_bytes(w->format), row_pad(w->format), job->m, job->n_in, stages,
                               job->norm != NULL);
            if ((size_t)at.n_bytes <= limit) {
                const int n_tiles = w->n_out / LV_TILE, n = blocks * cuda->n_sms;
                job->stages = stages;
                *n_blocks = n_tiles < n ? n_tiles : n;
                *shared_bytes = (size_t)at.n_bytes;
                return;
            }
        }
    }
}

typedef struct wide_plan {
    int n_rows, n_warps, n_blocks;
} wide_plan;

// How many tiles a block takes and into how many parts K is cut: the least estimated time, in
// cycles. A step (128 k) takes a warp about 500 and a scheduler's share of the work at least.
static wide_plan plan_wide(const lv_cuda *cuda, const lv_linear *w, lv_small_job *job) {
    wide_plan plan = {};
    plan.n_rows = job->m <= 8 ? 8 : job->m <= 16 ? 16 : 32;
    const int n_tiles = w->n_out / LV_TILE, n_records = w->n_in / LV_RECORD_K;
    const int ring = (int)(cuda->shared_bytes / 2) < WIDE_RING_BYTES ? (int)cuda->shared_bytes / 2
                                                                     : WIDE_RING_BYTES;
    double best = 0;
    job->n_columns = (job->m + plan.n_rows - 1) / plan.n_rows;
    for (int n_parts = 1; n_parts <= MAX_PARTS; n_parts *= 2) {
        for (int n_warps = 1; n_warps <= LV_WIDE_TILES; n_warps++) {
            int stages = ring / (n_warps * unit_bytes(w->format));
            stages = stages < WIDE_MAX_STAGES ? stages : WIDE_MAX_STAGES;
            if (stages < 2 ||
                lv_small_wide_bytes(w->format, plan.n_rows, n_warps, stages) > cuda->shared_bytes) {
                continue;
            }
            const int n_groups = (n_tiles + n_warps - 1) / n_warps;
            const int n_blocks = n_groups * n_parts * job->n_columns;
            const int n_waves = (n_blocks + cuda->n_sms - 1) / cuda->n_sms;
            const double work = n_warps * (30.0 + 1.6 * plan.n_rows);
            const double step = work > 500 ? work : 500;
            const double join = n_parts == 1 ? 0 : 4000 + 1e-3 * n_parts * job->m * w->n_out;
            const double cycles = n_waves * (1500 + step * n_records / n_parts) + join;
            if (best == 0 || cycles < best) {
                best = cycles;
                plan.n_warps = n_warps;
                plan.n_blocks = n_blocks;
                job->n_parts = n_parts;
                job->stages = stages;
            }
        }
    }
    return plan;
}

// --- launching -----------------------------------------------------------------------------------

static lv_status run_join(lv_cuda *cuda, const lv_small_job *job, lv_format format) {
    const dim3 grid((job->n_out / 2 + LV_SMALL_BLOCK - 1) / LV_SMALL_BLOCK, job->m);
    auto kernel = format == LV_W_INT4   ? small_join<LV_W_INT4>
                  : format == LV_W_INT8 ? small_join<LV_W_INT8>
                                        : small_join<LV_W_F16>;
    return lv_launch(cuda, "few rows, join", kernel, grid, LV_SMALL_BLOCK, 0, *job);
}

// Rows gathered and normed into scratch memory, and their sums.
static lv_status run_prepare(lv_cuda *cuda, lv_small_job *job, lv_format format, float *sums) {
    const size_t segments = (size_t)(job->n_in + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT;
    void *rows = NULL;
    if (job->norm || job->rows) {
        LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_NORMED, (size_t)job->m * job->n_in * 2, &rows));
    } else if (format == LV_W_F16) {
        return LV_OK;
    }
    job->sums = format == LV_W_F16 ? NULL : sums;
    LV_TRY(lv_launch(cuda, "few rows, prepare", small_prepare, job->m, LV_SMALL_BLOCK,
                     segments * sizeof(float), job->x, job->rows, job->n_in, job->norm, job->eps,
                     (__half *)rows, (float *)job->sums, job->sums_stride));
    job->x = rows ? (const __half *)rows : job->x;
    return LV_OK;
}

static lv_status run_wide(lv_cuda *cuda, const lv_linear *w, lv_small_job *job) {
    const wide_plan plan = plan_wide(cuda, w, job);
    void *scratch;
    if (plan.n_warps == 0) {
        return lv_fail(LV_EUNSUPPORTED, "few rows: %zu bytes of shared memory are too few",
                       cuda->shared_bytes);
    }
    job->sums_stride = (job->m + 31) / 32 * 32;
    const size_t n_sums = (size_t)(w->n_in / LV_RECORD_K) * job->sums_stride;
    const size_t n_parts = job->n_parts > 1 ? (size_t)job->n_parts * job->m * w->n_out : 0;
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_PARTS, (n_sums + n_parts) * sizeof(float), &scratch));
    job->parts = (float *)scratch + n_sums;
    LV_TRY(run_prepare(cuda, job, w->format, (float *)scratch));
    LV_TRY(lv_small_wide(cuda, job, w->format, plan.n_rows, plan.n_warps, plan.n_blocks));
    return job->n_parts > 1 ? run_join(cuda, job, w->format) : LV_OK;
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
        job.token_seq = s->batch->token_seq + s->first_row;
        job.token_pos = s->batch->token_pos + s->first_row;
        job.inv_freq = s->batch->inv_freq;
        job.rope_scale = s->batch->rope_scale;
    }
    return job;
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
    if (s->m <= LV_NARROW_ROWS) {
        plan_narrow(cuda, w, &job, &n_blocks, &shared_bytes);
    }
    return n_blocks > 0 ? lv_small_narrow(cuda, &job, w->format, n_blocks, shared_bytes)
                        : run_wide(cuda, w, &job);
}
