// Operations of the "few rows" family that wait for one another: see small_chain.cu.
#ifndef LV_KERNELS_CUDA_SMALL_CHAIN_H
#define LV_KERNELS_CUDA_SMALL_CHAIN_H

#include "kernels/cuda/small.cuh"

// The narrow kernel's job of int4 weights, enqueued by the next lv_cuda_flush.
lv_status lv_small_put_off(lv_cuda *cuda, const lv_small_job *job);
// The narrow kernel by itself. LV_EUNSUPPORTED where x does not fit shared memory.
lv_status lv_small_alone(lv_cuda *cuda, lv_small_job *job, lv_format format);

#endif
