// Which backend runs: by name, or the first that works.
#include <stdio.h>
#include <string.h>

#include "kernels/group/group.h"

// One device, or a group of them.
static lv_status open_cpu(const lv_backend_options *options, lv_backend **out) {
    lv_backend_options cpu = *options;
    cpu.device = "cpu";
    return options->tp > 1 ? lv_group_open(&cpu, out) : lv_cpu_open(&cpu, out);
}

static lv_status open_cuda(const lv_backend_options *options, lv_backend **out) {
    lv_backend_options cuda = *options;
    cuda.device = strncmp(options->device, "cuda", 4) == 0 ? options->device : "cuda";
    return options->tp > 1 ? lv_group_open(&cuda, out) : lv_cuda_open(&cuda, out);
}

// Whether a GPU could be used alone; else lv_error() says why not.
static bool has_gpu(const lv_backend_options *options) {
    lv_backend_options alone = *options;
    lv_backend *one = NULL;
    alone.tp = 0;
    const bool opens = lv_cuda_open(&alone, &one) == LV_OK;
    lv_backend_close(one);
    return opens;
}

// The first that works.
static lv_status open_any(const lv_backend_options *options, lv_backend **out) {
    char no_gpu[sizeof(*out)->no_gpu] = "", why[512] = "";
    if (!options->reference) {
        const lv_status status = open_cuda(options, out);
        if (status == LV_OK) {
            return LV_OK;
        }
        snprintf(why, sizeof why, "%s", lv_error());
        if (options->tp > 1 && has_gpu(options)) { // that there are too few of them is a failure
            return lv_fail(status == LV_EUNSUPPORTED ? LV_EDEVICE : status, "%s", why);
        }
        snprintf(no_gpu, sizeof no_gpu, "%s", lv_error()); // of one alone, where asked for it
    }
    LV_TRY(open_cpu(options, out));
    memcpy((*out)->no_gpu, no_gpu, sizeof no_gpu);
    return LV_OK;
}

lv_status lv_backend_open(const lv_backend_options *options, lv_backend **out) {
    const lv_backend_options defaults = {0};
    lv_backend_options o = options ? *options : defaults;
    o.device = o.device ? o.device : "auto";
    *out = NULL;
    if (o.tp < 0 || o.tp > LV_MAX_MEMBERS) {
        return lv_fail(LV_EINVAL, "tensor parallelism over %d devices: expected 1 to %d", o.tp,
                       LV_MAX_MEMBERS);
    }
    if (strcmp(o.device, "cpu") == 0) {
        return open_cpu(&o, out);
    }
    if (strcmp(o.device, "auto") == 0) {
        return open_any(&o, out);
    }
    if (strcmp(o.device, "cuda") == 0 || strncmp(o.device, "cuda:", 5) == 0) {
        lv_status status = open_cuda(&o, out);
        if (status ==
            LV_EUNSUPPORTED) { // this build has none: for the caller the device is missing
            status = LV_EDEVICE;
        }
        return status == LV_OK ? LV_OK : lv_fail_in(status, "device \"%s\"", o.device);
    }
    return lv_fail(LV_EINVAL, "device \"%s\": expected auto, cpu, cuda or cuda:N", o.device);
}

void lv_backend_close(lv_backend *be) {
    if (be) {
        be->ops->close(be);
    }
}
