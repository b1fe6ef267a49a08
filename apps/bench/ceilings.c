// What this machine can do at best: reading memory, and f32 matrix products.
#include <cblas.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "apps/bench/bench.h"

#define READ_BYTES ((size_t)2 << 30)
#define GEMM_N 1536

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Sum of n words in eight streams, so that no addition waits for another; fetched 4 KiB ahead.
static uint64_t sum_words(const uint64_t *words, size_t n) {
    uint64_t sum[8] = {0};
    for (size_t i = 0; i + 8 <= n; i += 8) {
        __builtin_prefetch(words + i + 512);
        for (size_t j = 0; j < 8; j++) {
            sum[j] += words[i + j];
        }
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

static lv_status measure_read(int n_threads, double *out) {
    size_t n = READ_BYTES / sizeof(uint64_t), part = n / (size_t)n_threads;
    uint64_t *words = malloc(READ_BYTES), total = 0;
    if (!words) {
        return lv_fail(LV_ENOMEM, "no memory to measure the read bandwidth with");
    }
    double best = 1e9;
    for (int run = 0; run < 6; run++) {
        double start = bench_now();
#pragma omp parallel num_threads(n_threads) reduction(+ : total)
        {
            uint64_t *mine = words + (size_t)omp_get_thread_num() * part;
            if (run == 0) { // touched by the thread that reads it
                memset(mine, 1, part * sizeof *mine);
            }
            total += sum_words(mine, part);
        }
        double seconds = bench_now() - start;
        best = run > 0 && seconds < best ? seconds : best;
    }
    volatile uint64_t keep = total;
    (void)keep;
    free(words);
    *out = (double)(part * (size_t)n_threads * sizeof(uint64_t)) / best;
    return LV_OK;
}

static lv_status measure_gemm(int n_threads, double *out) {
    const size_t n = GEMM_N;
    float *a = malloc(3 * n * n * sizeof *a);
    if (!a) {
        return lv_fail(LV_ENOMEM, "no memory to measure sgemm with");
    }
    for (size_t i = 0; i < 3 * n * n; i++) {
        a[i] = (float)(i % 7) * 0.1f;
    }
    openblas_set_num_threads(n_threads);
    double best = 1e9;
    for (int run = 0; run < 5; run++) {
        double start = bench_now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, GEMM_N, GEMM_N, GEMM_N, 1.0f, a,
                    GEMM_N, a + n * n, GEMM_N, 0.0f, a + 2 * n * n, GEMM_N);
        double seconds = bench_now() - start;
        best = seconds < best ? seconds : best;
    }
    free(a);
    *out = 2.0 * GEMM_N * GEMM_N * GEMM_N / best;
    return LV_OK;
}

static void raise(double *best, double now) {
    *best = now > *best ? now : *best;
}

lv_status bench_measure_ceilings(lv_backend *be, int n_threads, bench_ceilings *best) {
    lv_ceilings device;
    const lv_status status = be->ops->ceilings(be, &device);
    if (status == LV_OK) {
        raise(&best->read_bytes, device.read_bytes);
        raise(&best->copied_bytes, device.copied_bytes);
        raise(&best->flops, device.f16_flops);
        best->product = "f16 GEMM";
        return LV_OK;
    }
    double read_bytes = 0, flops = 0;
    LV_TRY(status == LV_EUNSUPPORTED ? LV_OK : status);
    LV_TRY(measure_read(n_threads, &read_bytes));
    LV_TRY(measure_gemm(n_threads, &flops));
    raise(&best->read_bytes, read_bytes);
    raise(&best->flops, flops);
    best->product = "f32 sgemm";
    return LV_OK;
}
