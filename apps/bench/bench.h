// llava-bench's parts: what it was asked, synthetic checkpoints, ceilings, and the stages.
#ifndef LV_BENCH_H
#define LV_BENCH_H

#include "core/checkpoint.h"
#include "kernels/ops.h"

typedef struct bench_options {
    const char *synthetic; // shapes by name, random weights; or
    const char *model;     // a real checkpoint
    const char *device;
    int n_threads;
    int n_tiles;       // 0: as the model's family
    int n_prompt;      // tokens of the prefill
    int n_decode;      // tokens decoded
    int context;       // tokens in the cache before the first decoded one
    int batch;         // sequences decoded together
    lv_dtype kv_dtype; // LV_NONE: the backend's default
    bool json;
} bench_options;

// One line of the report.
typedef struct bench_row {
    const char *name;
    char detail[64];     // "128 tokens", "1 tile"
    double ms;           // median
    double rate;         // per second, in `unit`
    const char *unit;    // "tok/s", "tiles/s", ...
    double bytes, flops; // of one run; 0: not counted
} bench_row;

typedef struct bench_ceilings {
    double bytes_per_s; // reading 2 GiB with all threads
    double flops_per_s; // OpenBLAS sgemm
} bench_ceilings;

#define BENCH_MAX_ROWS 16

typedef struct bench_report {
    bench_ceilings ceilings;
    bench_row rows[BENCH_MAX_ROWS];
    int n_rows;
    double load_ms;
    size_t weight_bytes; // that one decoded token reads
} bench_report;

double bench_now(void); // seconds

// Writes a checkpoint folder with random weights of the named shapes: W4 decoder (group 128), f16
// CLIP. LV_ENOTFOUND lists the names. `dir` must exist.
lv_status bench_write_synthetic(const char *name, const char *dir) LV_MUST_CHECK;

// Raises *best (zeroed at first) to what is measured now.
lv_status bench_measure_ceilings(int n_threads, bench_ceilings *best) LV_MUST_CHECK;

// Runs all stages of the checkpoint on the backend.
lv_status bench_run_stages(const bench_options *options, const lv_checkpoint *checkpoint,
                           lv_backend *be, bench_report *report) LV_MUST_CHECK;

void bench_print(const bench_options *options, const lv_backend *be, const bench_report *report);

#endif
