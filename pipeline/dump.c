// Tensors of each stage as .npy files, for comparisons with a reference.
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/internal.h"

lv_status lv_dump(const char *dump_dir, const char *name, int index, lv_dtype dtype,
                  const void *data, int n_dims, const int64_t *dims) {
    char path[PATH_MAX], suffix[16] = "";
    lv_tensor tensor = {.data = data, .dtype = dtype, .n_dims = n_dims};
    memcpy(tensor.dims, dims, (size_t)n_dims * sizeof *dims);
    if (index > 0) {
        snprintf(suffix, sizeof suffix, "_%d", index + 1);
    }
    snprintf(path, sizeof path, "%s/%s%s.npy", dump_dir, name, suffix);
    return lv_npy_save(path, &tensor);
}

lv_status lv_dump_act(lv_backend *be, const char *dump_dir, const char *name, int index,
                      const void *dev, int64_t n_tiles, int64_t n_rows, int64_t n_columns) {
    const size_t n = (size_t)(n_tiles ? n_tiles : 1) * (size_t)n_rows * (size_t)n_columns;
    float *host = malloc(n * sizeof *host);
    if (!host) {
        return lv_fail(LV_ENOMEM, "out of memory for %s", name);
    }
    lv_status status = be->ops->download_act(be, host, dev, n);
    if (status == LV_OK) {
        const int64_t dims[] = {n_tiles, n_rows, n_columns};
        status = n_tiles ? lv_dump(dump_dir, name, index, LV_F32, host, 3, dims)
                         : lv_dump(dump_dir, name, index, LV_F32, host, 2, dims + 1);
    }
    free(host);
    return status;
}
