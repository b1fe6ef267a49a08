// What the tests of the "few rows" family share.
#ifndef LV_TESTS_GPU_LINEAR_UTIL_H
#define LV_TESTS_GPU_LINEAR_UTIL_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/records.h"
#include "tests/gpu/util.h"

static inline lv_linear *load(lv_backend *be, const lv_linear_source *parts, int n, int pair,
                              lv_format format) {
    const lv_linear_options options = {.pair = pair,
                                       .keep = format == LV_W_INT8 ? LV_AS_INT8 : LV_AS_STORED};
    lv_linear *w = NULL;
    CHECK_OK(be->ops->linear_load(be, parts, n, &options, &w));
    CHECK(w->format == format, "[%d, %d]: format %d, wanted %d", w->n_out, w->n_in, w->format,
          format);
    return w;
}

static inline void poison(lv_cuda *cuda, void *dev, size_t n_bytes) {
    CHECK(cudaMemsetAsync(dev, 0xFF, n_bytes, cuda->stream) == cudaSuccess, "memset");
}

#endif
