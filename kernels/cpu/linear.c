// out[m, n_out] = activation(x[m, n_in] W^T + bias) + residual.
//
// Work is cut into tasks of 64 outputs and up to 192 rows; a task computes its 64 columns into a
// tile of f32 and then finishes them (bias, activation, residual). Dense weights are converted and
// transposed 128 k at a time into a panel in L1 and multiplied there (vector.inc.h), int4 weights
// go to the kernels of int4.inc.h. Each output is one sum in the order of k, so rows do not depend
// on m, nor on threads. Logits of a dense head are dot products instead, whatever m: 16 (AVX2: 8)
// sums of every 16th k, then their sum, so that weights are used as they come from memory.
//
// CLIP's layer for 577 rows is 14.5 GFLOP: the roof is the FMA rate, 262 GFLOP/s a core; measured
// 228 (87%) for f16 and 220 for f32 weights, [4096, 1024]. lm_head [32064, 4096] for few rows is
// 262 MB: the roof is memory. One busy core reads 23.4 GB/s for one row, 20.9 for two, 20.3 for
// four (bf16: 22.3, 19.5, 20.2), where a sum of words reads 23; as one product of the kind above it
// would be 14.5, 13.5, 11.5, for transposing takes 2.5 ns a line.
//
// Tried and rejected: OpenBLAS: version 0.3.21 takes this CPU for a Haswell, 117 GFLOP/s a core,
// and nothing promises that a row's bits do not depend on m. Copying each row's cache lines before
// they are transposed, against set conflicts of 4096 columns: no gain. Dot products of one or two
// weight rows at a time: 16 to 20 GB/s, as four wait less for each other; prefetching 0.5, 1, 4, 8
// KiB ahead instead of 2: 19, 22, 22, 20. Not taken: dot products for few rows of any linear,
// faster from memory, but other bits than in a batch; and for all m, as their register blocks want
// both sides from L1 where the product above wants one.
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define PANEL_K 128

typedef struct task {
    const lv_linear *w;
    const float *x;     // [m, n_in]
    lv_int4_rows quant; // of x, where w is int4
    int m;
    bool by_dot;            // dense weights by dot products
    int n_panels, n_chunks; // of 64 outputs; of rows
    lv_activation activation;
    const float *residual; // [m, n_out] or NULL
    float *out;            // [m, n_out]
} task;

// Row j of the stacked parts, or the last one for j beyond them.
static const uint8_t *weight_row(const lv_linear *w, int j) {
    const lv_linear_source *s = w->parts;
    j = j < w->n_out ? j : w->n_out - 1;
    for (; j >= s->n_out; s++) {
        j -= s->n_out;
    }
    size_t row_bytes = (size_t)w->n_in * lv_dtype_bytes(s->weight.dtype);
    return (const uint8_t *)s->weight.data + (size_t)j * row_bytes;
}

// c[n_rows, 64] = x w^T for outputs j0 .. j0 + n_j - 1.
static void dense_panel(const lv_cpu *cpu, const task *t, int j0, int n_j, int row0, int n_rows,
                        float *panel, float *c) {
    const uint8_t *rows[LV_CPU_PANEL];
    lv_dtype dtype = t->w->parts[0].weight.dtype;
    ptrdiff_t size = (ptrdiff_t)lv_dtype_bytes(dtype);
    int n_in = t->w->n_in, n_padded = (n_j + 15) / 16 * 16;
    for (int j = 0; j < n_padded; j++) {
        rows[j] = weight_row(t->w, j0 + j);
    }
    memset(c, 0, (size_t)n_rows * LV_CPU_PANEL * sizeof(float));
    for (int k = 0; k < n_in; k += PANEL_K) {
        int n_k = n_in - k < PANEL_K ? n_in - k : PANEL_K;
        cpu->vector->pack(dtype, rows, n_padded, n_k, panel);
        cpu->vector->gemm(n_rows, n_padded, n_k, t->x + (ptrdiff_t)row0 * n_in + k, n_in, LV_F32,
                          panel, LV_CPU_PANEL, c, LV_CPU_PANEL);
        for (int j = 0; j < n_padded; j++) {
            rows[j] += n_k * size;
        }
    }
}

// The same by dot products over all of k.
static void dense_dots(const lv_cpu *cpu, const task *t, int j0, int n_j, int row0, int n_rows,
                       float *c) {
    const uint8_t *rows[LV_CPU_PANEL];
    int n_padded = (n_j + 15) / 16 * 16;
    for (int j = 0; j < n_padded; j++) {
        rows[j] = weight_row(t->w, j0 + j);
    }
    cpu->vector->dot(t->w->parts[0].weight.dtype, rows, n_padded, t->w->n_in,
                     t->x + (ptrdiff_t)row0 * t->w->n_in, n_rows, c);
}

static void finish(const lv_cpu *cpu, const task *t, int j0, int n_j, int row0, int n_rows,
                   float *c) {
    const float *bias = t->w->bias ? t->w->bias + j0 : NULL;
    for (int i = 0; i < n_rows; i++, c += LV_CPU_PANEL) {
        ptrdiff_t at = (ptrdiff_t)(row0 + i) * t->w->n_out + j0;
        for (int j = 0; bias && j < n_j; j++) {
            c[j] += bias[j];
        }
        if (t->activation != LV_ACT_NONE) {
            cpu->vector->activate(t->activation, c, n_j);
        }
        for (int j = 0; t->residual && j < n_j; j++) {
            c[j] += t->residual[at + j];
        }
        memcpy(t->out + at, c, (size_t)n_j * sizeof(float));
    }
}

static void run_task(const lv_cpu *cpu, const task *t, int index, float *scratch) {
    float *c = scratch, *panel = scratch + LV_CPU_ROWS * LV_CPU_PANEL;
    int j0 = index / t->n_chunks * LV_CPU_PANEL, chunk = index % t->n_chunks;
    int n_j = t->w->n_out - j0 < LV_CPU_PANEL ? t->w->n_out - j0 : LV_CPU_PANEL, row0, row1;
    if (t->w->int4.q) {
        int block0 = (int)((int64_t)chunk * t->quant.n_blocks / t->n_chunks);
        int block1 = (int)((int64_t)(chunk + 1) * t->quant.n_blocks / t->n_chunks);
        row0 = lv_int4_row(&t->quant, block0);
        row1 = lv_int4_row(&t->quant, block1);
        cpu->int4(&t->w->int4, j0 / LV_INT4_TILE, &t->quant, block0, block1, c);
    } else {
        row0 = (int)((int64_t)chunk * t->m / t->n_chunks);
        row1 = (int)((int64_t)(chunk + 1) * t->m / t->n_chunks);
        if (t->by_dot) {
            dense_dots(cpu, t, j0, n_j, row0, row1 - row0, c);
        } else {
            dense_panel(cpu, t, j0, n_j, row0, row1 - row0, panel, c);
        }
    }
    finish(cpu, t, j0, n_j, row0, row1 - row0, c);
}

static lv_status quantise_rows(lv_cpu *cpu, const float *x, int m, const lv_int4 *w,
                               lv_int4_rows *out) {
    int n_blocks = w->n_in / w->block;
    size_t n_values = (size_t)m * (size_t)w->n_in, n_scales = (size_t)m * (size_t)n_blocks;
    void *scratch;
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_INT4, n_values * 2 + n_scales * 8, &scratch));
    out->n_rows = m;
    out->n_blocks = (m + cpu->int4_rows - 1) / cpu->int4_rows;
    out->scales = scratch;
    out->sums = (int32_t *)(out->scales + n_scales);
    out->q = (int16_t *)(out->sums + n_scales);
#pragma omp parallel for num_threads(cpu->n_threads) if (m >= 8)
    for (int block = 0; block < out->n_blocks; block++) {
        int row0 = lv_int4_row(out, block), n_r = lv_int4_row(out, block + 1) - row0;
        for (int r = 0; r < n_r; r++) {
            cpu->vector->quantise(x + (ptrdiff_t)(row0 + r) * w->n_in, w->n_in, w->block, r, n_r,
                                  out->q + (ptrdiff_t)row0 * w->n_in,
                                  out->scales + (ptrdiff_t)row0 * n_blocks,
                                  out->sums + (ptrdiff_t)row0 * n_blocks);
        }
    }
    return LV_OK;
}

// Row chunks: no more than fit a task, enough for all threads.
static int count_chunks(const lv_cpu *cpu, const task *t) {
    int n_units = t->w->int4.q ? t->quant.n_blocks : (t->m + 11) / 12; // what a chunk is made of
    int unit_rows = (t->m + n_units - 1) / n_units, most = LV_CPU_ROWS / unit_rows;
    int n_chunks = (n_units + most - 1) / most;
    int wanted = (4 * cpu->n_threads + t->n_panels - 1) / t->n_panels;
    wanted = wanted < n_units / 2 ? wanted : n_units / 2;
    return cpu->n_threads > 1 && wanted > n_chunks ? wanted : n_chunks;
}

static lv_status run_tasks(lv_cpu *cpu, task t) {
    const lv_linear *w = t.w;
    void *scratch;
    const ptrdiff_t per_thread = (LV_CPU_ROWS + PANEL_K) * LV_CPU_PANEL;
    if (t.m <= 0) {
        return LV_OK;
    }
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_THREADS,
                          (size_t)(cpu->n_threads * per_thread) * sizeof(float), &scratch));
    if (w->int4.q) {
        LV_TRY(quantise_rows(cpu, t.x, t.m, &w->int4, &t.quant));
    }
    t.n_panels = (w->n_out + LV_CPU_PANEL - 1) / LV_CPU_PANEL;
    t.n_chunks = count_chunks(cpu, &t);
    double work = (double)t.m * w->n_out * w->n_in;
    int n_tasks = t.n_panels * t.n_chunks;
// Dynamic: cores may be unequal, or busy with other programs.
#pragma omp parallel for num_threads(cpu->n_threads)                                               \
    schedule(dynamic) if (work > 1e6 && n_tasks > 1)
    for (int i = 0; i < n_tasks; i++) {
        run_task(cpu, &t, i, (float *)scratch + omp_get_thread_num() * per_thread);
    }
    return LV_OK;
}

lv_status lv_cpu_linear(lv_backend *be, const void *x, int m, const lv_linear *w,
                        lv_activation activation, const void *residual, void *out) {
    task t = {.w = w, .x = x, .m = m, .activation = activation, .residual = residual, .out = out};
    return run_tasks((lv_cpu *)be, t);
}

lv_status lv_cpu_logits(lv_backend *be, const void *x, int m, const lv_linear *w, float *out) {
    return run_tasks((lv_cpu *)be, (task){.w = w, .x = x, .m = m, .by_dot = true, .out = out});
}
