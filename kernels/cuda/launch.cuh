// Starting kernels, with programmatic dependent launch where the device has it.
#ifndef LV_KERNELS_CUDA_LAUNCH_CUH
#define LV_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/cuda.h"

// Every kernel calls lv_wait_previous() before it touches what an earlier kernel may write, on all
// paths; only weights may be read before. lv_launch_next() lets the next kernel start its prologue.
__device__ static inline void lv_wait_previous() {
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

__device__ static inline void lv_launch_next() {
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// `cluster` blocks in a row make a cluster.
template <class... Params, class... Args>
static lv_status lv_launch_clusters(lv_cuda *cuda, const char *name, void (*kernel)(Params...),
                                    int cluster, dim3 grid, dim3 block, size_t shared_bytes,
                                    Args... args) {
    LV_TRY(lv_cuda_flush(cuda));
    if (shared_bytes > 0) {
        LV_TRY(lv_cuda_check(cuda,
                             cudaFuncSetAttribute((const void *)kernel,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)shared_bytes),
                             name));
        // Blocks of kernels that split L1 differently cannot share a multiprocessor, and a kernel
        // could not begin beside the one before it.
        LV_TRY(lv_cuda_check(cuda,
                             cudaFuncSetAttribute((const void *)kernel,
                                                  cudaFuncAttributePreferredSharedMemoryCarveout,
                                                  cudaSharedmemCarveoutMaxShared),
                             name));
    }
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster;
    attributes[1].val.clusterDim.y = 1;
    attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = cuda->stream;
    config.attrs = attributes;
    config.numAttrs = cuda->sm < 90 ? 0 : cluster > 1 ? 2 : 1;
    return lv_cuda_check(cuda, cudaLaunchKernelEx(&config, kernel, (Params)args...), name);
}

template <class... Params, class... Args>
static lv_status lv_launch(lv_cuda *cuda, const char *name, void (*kernel)(Params...), dim3 grid,
                           dim3 block, size_t shared_bytes, Args... args) {
    return lv_launch_clusters(cuda, name, kernel, 1, grid, block, shared_bytes, args...);
}

#endif
