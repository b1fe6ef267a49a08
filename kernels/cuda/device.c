// Opening the device, its memory, copies, and what an error of the runtime means for us.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

#define MIN_SM 75

// --- errors -------------------------------------------------------------------------------------

// After one of these the context is lost: nothing works on it any more.
static bool is_sticky(cudaError_t error) {
    static const cudaError_t sticky[] = {cudaErrorIllegalAddress,      cudaErrorLaunchFailure,
                                         cudaErrorLaunchTimeout,       cudaErrorAssert,
                                         cudaErrorHardwareStackError,  cudaErrorIllegalInstruction,
                                         cudaErrorMisalignedAddress,   cudaErrorInvalidPc,
                                         cudaErrorInvalidAddressSpace, cudaErrorECCUncorrectable,
                                         cudaErrorContextIsDestroyed,  cudaErrorUnknown,
                                         cudaErrorNvlinkUncorrectable, cudaErrorDevicesUnavailable};
    for (size_t i = 0; i < sizeof sticky / sizeof *sticky; i++) {
        if (error == sticky[i]) {
            return true;
        }
    }
    return false;
}

lv_status lv_cuda_check(lv_cuda *cuda, cudaError_t error, const char *what) {
    if (cuda->broken != LV_OK) {
        return lv_fail(LV_EDEVICE, "%s: the GPU failed earlier (%s); start again", what,
                       cuda->broken_by);
    }
    if (error == cudaSuccess) {
        return LV_OK;
    }
    cudaGetLastError(); // an error that is not sticky is forgotten here
    if (error == cudaErrorMemoryAllocation) {
        return lv_fail(LV_ENOMEM, "%s: out of GPU memory", what);
    }
    if (is_sticky(error)) {
        cuda->broken = LV_EDEVICE;
        snprintf(cuda->broken_by, sizeof cuda->broken_by, "%s", cudaGetErrorString(error));
    }
    return lv_fail(LV_EDEVICE, "%s: %s", what, cudaGetErrorString(error));
}

lv_status lv_cuda_enter(lv_cuda *cuda) {
    return lv_cuda_check(cuda, cudaSetDevice(cuda->device), "cudaSetDevice");
}

// --- memory -------------------------------------------------------------------------------------

// Sizes are kept beside the pointers, for the runtime does not tell them.
static lv_status remember(lv_cuda *cuda, void *dev, size_t n_bytes) {
    if (cuda->n_blocks == cuda->blocks_capacity) {
        const int capacity = cuda->blocks_capacity ? 2 * cuda->blocks_capacity : 1024;
        lv_cuda_block *blocks = realloc(cuda->blocks, (size_t)capacity * sizeof *blocks);
        if (!blocks) {
            return lv_fail(LV_ENOMEM, "out of memory");
        }
        cuda->blocks = blocks;
        cuda->blocks_capacity = capacity;
    }
    cuda->blocks[cuda->n_blocks++] = (lv_cuda_block){dev, n_bytes};
    cuda->used_bytes += n_bytes;
    return LV_OK;
}

lv_status lv_cuda_alloc(lv_backend *be, size_t n_bytes, void **out) {
    lv_cuda *cuda = (lv_cuda *)be;
    size_t free_bytes = 0, total_bytes = 0;
    *out = NULL;
    LV_TRY(lv_cuda_enter(cuda));
    n_bytes = n_bytes ? n_bytes : 1;
    // In the order of the stream: neither allocating nor freeing waits for the device.
    const cudaError_t error = cudaMallocAsync(out, n_bytes, cuda->stream);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total_bytes);
        *out = NULL;
        return lv_fail(LV_ENOMEM,
                       "GPU memory: no %zu bytes, %zu of %zu are free; a shorter session, int8 KV "
                       "or int4 weights need less",
                       n_bytes, free_bytes, total_bytes);
    }
    LV_TRY(lv_cuda_check(cuda, error, "cudaMallocAsync"));
    const lv_status status = remember(cuda, *out, n_bytes);
    if (status != LV_OK) {
        cudaFreeAsync(*out, cuda->stream);
        *out = NULL;
    }
    return status;
}

void lv_cuda_free(lv_backend *be, void *dev) {
    lv_cuda *cuda = (lv_cuda *)be;
    for (int i = cuda->n_blocks - 1; dev && i >= 0; i--) { // the youngest die first, mostly
        if (cuda->blocks[i].dev == dev) {
            cuda->used_bytes -= cuda->blocks[i].n_bytes;
            cuda->blocks[i] = cuda->blocks[--cuda->n_blocks];
            cudaSetDevice(cuda->device);
            cudaFreeAsync(dev, cuda->stream);
            return;
        }
    }
}

lv_status lv_cuda_scratch(lv_cuda *cuda, int slot, size_t n_bytes, void **out) {
    if (cuda->scratch[slot].n_bytes < n_bytes) {
        void *data;
        LV_TRY(lv_cuda_flush(cuda));
        lv_cuda_forget_graphs(cuda); // they hold the old address
        lv_cuda_free(&cuda->base, cuda->scratch[slot].data);
        cuda->scratch[slot].data = NULL;
        cuda->scratch[slot].n_bytes = 0;
        LV_TRY(lv_cuda_alloc(&cuda->base, n_bytes, &data));
        cuda->scratch[slot].data = data;
        cuda->scratch[slot].n_bytes = n_bytes;
    }
    *out = cuda->scratch[slot].data;
    return LV_OK;
}

static lv_status cuda_memory(lv_backend *be, lv_memory *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    *out = (lv_memory){.used_bytes = cuda->used_bytes};
    LV_TRY(lv_cuda_enter(cuda));
    LV_CUDA_TRY(cuda, cudaMemGetInfo(&out->free_bytes, &out->total_bytes));
    return LV_OK;
}

// --- copies -------------------------------------------------------------------------------------

static lv_status cuda_upload(lv_backend *be, void *dev, const void *host, size_t n_bytes) {
    lv_cuda *cuda = (lv_cuda *)be;
    LV_TRY(lv_cuda_enter(cuda));
    return lv_cuda_copy_in(cuda, dev, host, n_bytes);
}

static lv_status cuda_sync(lv_backend *be) {
    lv_cuda *cuda = (lv_cuda *)be;
    LV_TRY(lv_cuda_enter(cuda));
    LV_TRY(lv_cuda_flush(cuda));
    LV_CUDA_TRY(cuda, cudaStreamSynchronize(cuda->stream));
    return LV_OK;
}

static lv_status cuda_download(lv_backend *be, void *host, const void *dev, size_t n_bytes) {
    lv_cuda *cuda = (lv_cuda *)be;
    LV_TRY(lv_cuda_enter(cuda));
    LV_TRY(lv_cuda_flush(cuda));
    if (n_bytes > 0) {
        LV_CUDA_TRY(cuda,
                    cudaMemcpyAsync(host, dev, n_bytes, cudaMemcpyDeviceToHost, cuda->stream));
    }
    return cuda_sync(be);
}

static lv_status cuda_upload_act(lv_backend *be, void *dev, const float *host, size_t n) {
    lv_cuda *cuda = (lv_cuda *)be;
    void *f32;
    if (n == 0) {
        return LV_OK;
    }
    LV_TRY(lv_cuda_alloc(be, n * sizeof(float), &f32));
    lv_status status = cuda_upload(be, f32, host, n * sizeof(float));
    if (status == LV_OK) {
        status = lv_cuda_f32_to_f16(cuda, f32, n, dev);
    }
    lv_cuda_free(be, f32);
    return status;
}

static lv_status cuda_download_act(lv_backend *be, float *host, const void *dev, size_t n) {
    lv_cuda *cuda = (lv_cuda *)be;
    void *f32;
    if (n == 0) {
        return LV_OK;
    }
    LV_TRY(lv_cuda_alloc(be, n * sizeof(float), &f32));
    lv_status status = lv_cuda_f16_to_f32(cuda, dev, n, f32);
    if (status == LV_OK) {
        status = cuda_download(be, host, f32, n * sizeof(float));
    }
    lv_cuda_free(be, f32);
    return status;
}

// --- opening and closing ------------------------------------------------------------------------

static void cuda_close(lv_backend *be) {
    lv_cuda *cuda = (lv_cuda *)be;
    cudaSetDevice(cuda->device);
    if (cuda->stream) {
        cudaStreamSynchronize(cuda->stream);
    }
    lv_cuda_pass_free(cuda);
    lv_cuda_chain_free(cuda);
    lv_cuda_sampler_free(cuda);
    lv_cuda_loader_free(cuda);
    lv_cuda_blas_free(cuda);
    lv_cuda_dnn_free(cuda);
    for (int i = 0; i < LV_CUDA_N_SCRATCH; i++) {
        lv_cuda_free(be, cuda->scratch[i].data);
    }
    if (cuda->stream) {
        cudaStreamSynchronize(cuda->stream);
        cudaStreamDestroy(cuda->stream);
    }
    free(cuda->blocks);
    free((void *)cuda->base.ops);
    free(cuda);
}

static void set_ops(lv_ops *ops) {
    *ops = (lv_ops){.alloc = lv_cuda_alloc,
                    .free = lv_cuda_free,
                    .upload = cuda_upload,
                    .download = cuda_download,
                    .sync = cuda_sync,
                    .memory = cuda_memory,
                    .ceilings = lv_cuda_ceilings,
                    .upload_act = cuda_upload_act,
                    .download_act = cuda_download_act,
                    .linear_load = lv_cuda_linear_load,
                    .linear_free = lv_cuda_linear_free,
                    .linear_shape = lv_cuda_linear_shape,
                    .tensor_load = lv_cuda_tensor_load,
                    .linear = lv_cuda_linear,
                    .layer_norm = lv_cuda_layer_norm,
                    .patch_embed = lv_cuda_patch_embed,
                    .image_attention = lv_cuda_image_attention,
                    .gather_rows = lv_cuda_gather_rows,
                    .share = lv_share_alone,
                    .pass = lv_cuda_pass,
                    .embed = lv_cuda_embed,
                    .kv_create = lv_cuda_kv_create,
                    .kv_free = lv_cuda_kv_free,
                    .kv_block_bytes = lv_cuda_kv_block_bytes,
                    .kv_copy = lv_cuda_kv_copy,
                    .norm_qkv_rope_append = lv_cuda_norm_qkv_rope_append,
                    .attention = lv_cuda_attention,
                    .norm_gate_up_silu = lv_cuda_norm_gate_up_silu,
                    .norm_logits = lv_cuda_norm_logits,
                    .sample = lv_cuda_sample,
                    .collect = lv_cuda_collect,
                    .close = cuda_close};
}

// "cuda", "cuda:N", or "auto" -> N.
static lv_status read_device(const char *name, int n_devices, int *out) {
    *out = 0;
    const char *colon = strchr(name, ':');
    if (!colon) {
        return LV_OK;
    }
    char *end;
    const long n = strtol(colon + 1, &end, 10);
    if (end == colon + 1 || *end) {
        return lv_fail(LV_EINVAL, "expected cuda:N with a number");
    }
    if (n < 0 || n >= n_devices) {
        return lv_fail(LV_EDEVICE, "there %s %d CUDA device%s, counted from 0",
                       n_devices == 1 ? "is" : "are", n_devices, n_devices == 1 ? "" : "s");
    }
    *out = (int)n;
    return LV_OK;
}

static lv_status read_properties(lv_cuda *cuda) {
    int major, minor, shared, pools;
    size_t free_bytes, total_bytes;
    const int d = cuda->device;
    LV_CUDA_TRY(cuda, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, d));
    LV_CUDA_TRY(cuda, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, d));
    LV_CUDA_TRY(cuda, cudaDeviceGetAttribute(&cuda->n_sms, cudaDevAttrMultiProcessorCount, d));
    LV_CUDA_TRY(cuda, cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, d));
    LV_CUDA_TRY(cuda, cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, d));
    cuda->sm = 10 * major + minor;
    cuda->shared_bytes = (size_t)shared;
    if (cuda->sm < MIN_SM || !pools) {
        return lv_fail(LV_EDEVICE, "compute capability %d.%d: %d.%d or newer is needed", major,
                       minor, MIN_SM / 10, MIN_SM % 10);
    }
    struct cudaDeviceProp properties;
    LV_CUDA_TRY(cuda, cudaGetDeviceProperties(&properties, d));
    LV_CUDA_TRY(cuda, cudaMemGetInfo(&free_bytes, &total_bytes));
    snprintf(cuda->base.device, sizeof cuda->base.device, "CUDA, %.80s, %.0f GiB", properties.name,
             (double)total_bytes / (1 << 30));
    return LV_OK;
}

// Keeps freed memory for the next allocation, and finds out whether this build has code for the
// device: the first kernel tells.
static lv_status prepare(lv_cuda *cuda) {
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX;
    void *dev;
    LV_CUDA_TRY(cuda, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    LV_CUDA_TRY(cuda, cudaDeviceGetDefaultMemPool(&pool, cuda->device));
    LV_CUDA_TRY(cuda, cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    LV_TRY(lv_cuda_alloc(&cuda->base, LV_MAX_ROWS * sizeof(int32_t), &dev));
    cuda->tokens = dev;
    LV_CUDA_TRY(cuda, cudaMemsetAsync(dev, 0, LV_MAX_ROWS * sizeof(int32_t), cuda->stream));
    LV_TRY(lv_cuda_alloc(&cuda->base, 16, &dev));
    LV_CUDA_TRY(cuda, cudaMemsetAsync(dev, 0, 16, cuda->stream));
    lv_status status = lv_cuda_f32_to_f16(cuda, dev, 1, (char *)dev + 8);
    if (status != LV_OK) {
        status = lv_fail_in(status, "this build has no code for compute capability %d.%d",
                            cuda->sm / 10, cuda->sm % 10);
    }
    cuda->has_wgmma = status == LV_OK && lv_wgmma_present(cuda);
    lv_cuda_free(&cuda->base, dev);
    return status;
}

lv_status lv_cuda_open(const lv_backend_options *options, lv_backend **out) {
    int n_devices = 0, device = 0;
    *out = NULL;
    const cudaError_t error = cudaGetDeviceCount(&n_devices);
    if (error != cudaSuccess || n_devices == 0) {
        int driver = 0; // 0: none
        cudaGetLastError();
        cudaDriverGetVersion(&driver);
        return lv_fail(LV_EDEVICE, "%s",
                       driver == 0            ? "no NVIDIA driver is installed"
                       : error == cudaSuccess ? "the NVIDIA driver finds no device"
                                              : cudaGetErrorString(error));
    }
    LV_TRY(read_device(options->device ? options->device : "auto", n_devices, &device));
    lv_cuda *cuda = calloc(1, sizeof *cuda);
    lv_ops *ops = calloc(1, sizeof *ops);
    if (!cuda || !ops) {
        free(cuda);
        free(ops);
        return lv_fail(LV_ENOMEM, "CUDA backend: out of memory");
    }
    set_ops(ops);
    cuda->base.ops = ops;
    cuda->base.act = LV_F16;
    cuda->base.is_gpu = true;
    cuda->base.runs_ahead = true;
    cuda->device = device;
    cuda->n_threads = options->n_threads;
    lv_status status = lv_cuda_enter(cuda);
    if (status == LV_OK) {
        status = read_properties(cuda);
    }
    if (status == LV_OK) {
        status = prepare(cuda);
    }
    if (status != LV_OK) {
        cuda_close(&cuda->base);
        return status == LV_ENOMEM ? status : LV_EDEVICE;
    }
    lv_cuda_blas_begin(cuda);
    *out = &cuda->base;
    return LV_OK;
}
