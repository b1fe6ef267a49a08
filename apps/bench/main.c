// llava-bench: speed of each stage beside the ceilings measured in the same run.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "apps/bench/bench.h"
#include "apps/polite.h"

// A temporary folder for the synthetic checkpoint.
static lv_status make_folder(char *dir, size_t n) {
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, n, "%s/llava-bench-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? LV_OK : lv_fail(LV_EIO, "%s: cannot be made", dir);
}

static lv_status write_kept(const bench_options *o) {
    const double start = bench_now();
    mkdir(o->write_dir, 0777); // or it is there
    LV_TRY(bench_write_synthetic(o->synthetic, o->dense, o->tokenizer, o->write_dir));
    fprintf(stderr, "llava-bench: %s written in %.1f s\n", o->write_dir, bench_now() - start);
    return LV_OK;
}

static lv_status run(bench *b, bench_options *o) {
    const int n_threads = o->backend.n_threads ? o->backend.n_threads : omp_get_num_procs();
    bench_fill_options(o, b->config, b->be->is_gpu);
    const bool compares =
        o->stages & (BENCH_CEILINGS | BENCH_ENCODE | BENCH_PREFILL | BENCH_DECODE);
    if (compares) {
        LV_TRY(bench_measure_ceilings(b->be, n_threads, &b->report->ceilings));
    }
    LV_TRY(bench_run_stages(b));
    // Again on the CPU: what else the machine does changes from minute to minute, and the best
    // counts.
    return compares && !b->be->is_gpu
               ? bench_measure_ceilings(b->be, n_threads, &b->report->ceilings)
               : LV_OK;
}

int main(int argc, char **argv) {
    static bench_report report;
    bench_options o = {0};
    bench b = {.options = &o, .report = &report};
    char temporary[512] = "";
    wait_politely(argv);
    int exit_status = bench_read_options(argc, argv, &o);
    if (exit_status >= 0) {
        return exit_status;
    }
    lv_checkpoint *checkpoint = NULL;
    lv_status status = LV_OK;
    const char *dir = o.model;
    if (o.write_dir) {
        LV_TRY_DONE(write_kept(&o));
        dir = o.write_dir;
        if (!o.stages) {
            goto done;
        }
    }
    LV_TRY_DONE(lv_backend_open(&o.backend, &b.be));
    if (o.synthetic && !o.write_dir) {
        LV_TRY_DONE(make_folder(temporary, sizeof temporary));
        dir = temporary;
        LV_TRY_DONE(bench_write_synthetic(o.synthetic, o.dense, NULL, dir));
    }
    LV_TRY_DONE(lv_checkpoint_open(dir, NULL, &checkpoint));
    if (temporary[0]) { // mapped by now: nothing is left behind even where the process is killed
        bench_remove_synthetic(temporary);
        temporary[0] = 0;
    }
    b.checkpoint = checkpoint;
    b.config = lv_checkpoint_config(checkpoint);
    status = run(&b, &o);
    if (status == LV_OK || report.n_rows > 0) { // what was measured before a failure counts
        bench_print(&b);
    }
done:
    if (status != LV_OK) {
        fprintf(stderr, "llava-bench: %s\n", lv_error());
    }
    if (temporary[0]) {
        bench_remove_synthetic(temporary);
    }
    lv_llm_free(b.llm);
    lv_projector_free(b.projector);
    lv_vision_free(b.vision);
    lv_checkpoint_free(checkpoint);
    lv_backend_close(b.be);
    return status == LV_OK ? 0 : 1;
}
