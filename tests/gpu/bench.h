// Times for --bench: how long the device takes for a body of operations.
#ifndef LV_TESTS_GPU_BENCH_H
#define LV_TESTS_GPU_BENCH_H

#include <time.h>

#include "tests/gpu/util.h"

static inline double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static inline int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct bench_call {
    lv_pass_body *body;
    void *user;
} bench_call;

static lv_status bench_body(void *user, const lv_batch *batch) {
    const bench_call *call = user;
    return call->body(call->user, batch);
}

// The median of seven times of one body. A steady body is recorded and replayed, so that launching
// does not count; others are called directly, and should keep the device busy for longer than the
// host needs to launch them.
static inline double bench_us(lv_backend *be, lv_pass_body *body, void *user, bool steady) {
    const int32_t start[2] = {0, 1}, length[1] = {1}, table[1] = {0}, ids[1] = {LV_ID_ROW};
    const float inv_freq[1] = {1}, scale[1] = {1};
    const lv_batch batch = {.n_seqs = 1,
                            .n_tokens = 1,
                            .ids = ids,
                            .steady = steady,
                            .token_start = start,
                            .kv_length = length,
                            .block_table = table,
                            .max_blocks = 1,
                            .head_dim = 2,
                            .inv_freq = inv_freq,
                            .rope_scale = scale};
    // What was recorded is found again by its user: each call has one of its own.
    static bench_call calls[512];
    static int n_calls;
    bench_call *call = &calls[n_calls++ % 512];
    *call = (bench_call){body, user};
    double times[7];
    for (int i = -3; i < 7; i++) {
        CHECK_OK(be->ops->sync(be));
        const double begun = now_us();
        if (steady) {
            CHECK_OK(be->ops->pass(be, &batch, bench_body, call));
        } else {
            CHECK_OK(bench_body(call, &batch));
        }
        CHECK_OK(be->ops->sync(be));
        if (i >= 0) {
            times[i] = now_us() - begun;
        }
    }
    qsort(times, 7, sizeof *times, by_value);
    return times[3];
}

#endif
