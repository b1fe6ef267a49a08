// Which backend runs: by name, or the first that works.
#include <stdio.h>
#include <string.h>

#include "kernels/ops.h"

lv_status lv_backend_open(const lv_backend_options *options, lv_backend **out) {
    const lv_backend_options defaults = {0};
    if (!options) {
        options = &defaults;
    }
    const char *device = options->device ? options->device : "auto";
    *out = NULL;
    if (strcmp(device, "cpu") == 0) {
        return lv_cpu_open(options, out);
    }
    if (strcmp(device, "auto") == 0) {
        if (!options->reference && lv_cuda_open(options, out) == LV_OK) {
            return LV_OK;
        }
        char no_gpu[sizeof(*out)->no_gpu];
        snprintf(no_gpu, sizeof no_gpu, "%s", options->reference ? "" : lv_error());
        LV_TRY(lv_cpu_open(options, out));
        memcpy((*out)->no_gpu, no_gpu, sizeof no_gpu);
        return LV_OK;
    }
    if (strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0) {
        lv_status status = lv_cuda_open(options, out);
        if (status ==
            LV_EUNSUPPORTED) { // this build has none: for the caller the device is missing
            status = LV_EDEVICE;
        }
        return status == LV_OK ? LV_OK : lv_fail_in(status, "device \"%s\"", device);
    }
    return lv_fail(LV_EINVAL, "device \"%s\": expected auto, cpu, cuda or cuda:N", device);
}

void lv_backend_close(lv_backend *be) {
    if (be) {
        be->ops->close(be);
    }
}
