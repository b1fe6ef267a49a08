// What the GPU tests share: the two backends, and act buffers filled from and read to f32.
#ifndef LV_TESTS_GPU_UTIL_H
#define LV_TESTS_GPU_UTIL_H

#include <stdio.h>

#include "tests/unit/kernels_util.h"

// The CUDA backend, or a group of `tp` GPUs; the test ends as skipped where there are none.
static inline lv_backend *open_gpus(int tp) {
    lv_backend_options options = {.device = "cuda", .tp = tp};
    lv_backend *be = NULL;
    if (lv_backend_open(&options, &be) != LV_OK) {
        printf("skipped: %s\n", lv_error());
        exit(77);
    }
    return be;
}

static inline lv_backend *open_cuda(void) {
    return open_gpus(1);
}

// LV_GPU_SMALL leaves out what takes too long under compute-sanitizer, where everything is a
// hundred times slower: 1 under its memcheck, 2 also what does under synccheck, 3 under racecheck.
static inline bool gpu_small(int level) {
    const char *value = getenv("LV_GPU_SMALL");
    return value && atoi(value) >= level;
}

// f32 values as f16 would hold them, so that both backends start from the same numbers.
static inline float *random_halves(size_t n) {
    float *x = random_floats(n);
    for (size_t i = 0; i < n; i++) {
        x[i] = lv_f16_to_f32(lv_f32_to_f16(x[i]));
    }
    return x;
}

static inline void *dev_bytes(lv_backend *be, size_t n_bytes) {
    void *dev = NULL;
    CHECK_OK(be->ops->alloc(be, n_bytes ? n_bytes : 1, &dev));
    return dev;
}

// n act values on the device: those of `host`, or NaN where it is NULL.
static inline void *dev_act(lv_backend *be, const float *host, size_t n) {
    void *dev = dev_bytes(be, n * lv_dtype_bytes(be->act));
    float *poison = host ? NULL : poisoned(n);
    CHECK_OK(be->ops->upload_act(be, dev, host ? host : poison, n));
    free(poison);
    return dev;
}

static inline float *dev_f32(lv_backend *be, const float *host, size_t n) {
    float *dev = dev_bytes(be, n * sizeof(float)), *poison = host ? NULL : poisoned(n);
    CHECK_OK(be->ops->upload(be, dev, host ? host : poison, n * sizeof(float)));
    free(poison);
    return dev;
}

// n act values back on the host; the caller frees them.
static inline float *host_act(lv_backend *be, const void *dev, size_t n) {
    float *host = poisoned(n);
    CHECK_OK(be->ops->download_act(be, host, dev, n));
    return host;
}

static inline float *host_f32(lv_backend *be, const float *dev, size_t n) {
    float *host = poisoned(n);
    CHECK_OK(be->ops->download(be, host, dev, n * sizeof(float)));
    return host;
}

// mean |a - b| / mean |b|; NaN where anything is.
static inline double mean_error(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += fabs((double)a[i] - (double)b[i]);
        norm += fabs((double)b[i]);
    }
    return difference / (norm + 1e-30);
}

#endif
