// Stands in for the CUDA backend where none is built.
#include "kernels/ops.h"

lv_status lv_cuda_open(const lv_backend_options *options, lv_backend **out) {
    (void)options;
    *out = NULL;
    return lv_fail(LV_EUNSUPPORTED, "built without CUDA");
}
