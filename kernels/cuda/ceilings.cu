// What the device can do at best, to compare every other figure with: reading memory, copying it,
// and one large f16 matrix product.
#include "kernels/cuda/launch.cuh"

#define BUFFER_BYTES ((size_t)2 << 30) // far beyond any L2
#define GEMM_N 8192
#define N_RUNS 12
#define READ_BLOCK 512
#define READ_UNROLL 8

// Sum of n 16-byte words.
// words [n] dev, 16-byte aligned, n a multiple of READ_UNROLL. Each thread keeps READ_UNROLL loads
// in flight; neighbouring threads read neighbouring words. `out` is written only for one sum in
// 2^32, which is enough for the loads to be kept.
// 2 GiB read, nothing written: the memory's read bandwidth binds.
__global__ static void read_all(const uint4 *__restrict__ words, size_t n, uint32_t *out) {
    const size_t n_threads = (size_t)gridDim.x * blockDim.x;
    const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = 0;
    lv_wait_previous();
    for (size_t i = thread; i < n / READ_UNROLL; i += n_threads) {
        // Words i, i + n / 8, i + 2 n / 8, ...: eight streams, each read in order by all threads.
        uint4 word[READ_UNROLL];
#pragma unroll
        for (int j = 0; j < READ_UNROLL; j++) {
            word[j] = __ldcs(words + i + j * (n / READ_UNROLL));
        }
#pragma unroll
        for (int j = 0; j < READ_UNROLL; j++) {
            sum += word[j].x ^ word[j].y ^ word[j].z ^ word[j].w;
        }
    }
    if (sum == 0x9E3779B9u) {
        *out = sum;
    }
}

// f16 noise in [-0.5, 0.5): a product of zeros would draw less power and run faster.
__global__ static void fill_noise(__half *out, size_t n, uint32_t seed) {
    lv_wait_previous();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = ((uint32_t)i ^ seed) * 2654435761u;
        x = (x ^ x >> 15) * 2246822519u;
        x ^= x >> 13;
        out[i] = __float2half_rn((float)(x & 0xFFFF) / 65536.0f - 0.5f);
    }
}

typedef enum ceiling { READ, COPY, GEMM } ceiling;

typedef struct bench {
    uint8_t *buffer;         // dev [BUFFER_BYTES]
    cudaEvent_t start, stop; //
    lv_linear weights;       // the second third of what GEMM uses of the buffer
    const void *x;           // [GEMM_N, GEMM_N] f16
    void *y;                 // [GEMM_N, GEMM_N] f16
} bench;

static lv_status run_once(lv_cuda *cuda, const bench *b, ceiling which) {
    const size_t half = BUFFER_BYTES / 2, n_words = BUFFER_BYTES / sizeof(uint4);
    switch (which) {
    case READ:
        return lv_launch(cuda, "read_all", read_all, dim3(cuda->n_sms * 4), dim3(READ_BLOCK), 0,
                         (const uint4 *)b->buffer, n_words, (uint32_t *)b->buffer);
    case COPY:
        return lv_cuda_check(cuda,
                             cudaMemcpyAsync(b->buffer + half, b->buffer, half,
                                             cudaMemcpyDeviceToDevice, cuda->stream),
                             "copying device memory");
    case GEMM:
        return lv_cuda_dense(cuda, b->x, GEMM_N, &b->weights, NULL, b->y);
    }
    return LV_OK;
}

// The shortest of N_RUNS runs, in seconds; the first two only warm up.
static lv_status best_of(lv_cuda *cuda, const bench *b, ceiling which, double *out) {
    *out = 1e30;
    for (int run = -2; run < N_RUNS; run++) {
        float ms = 0;
        LV_CUDA_TRY(cuda, cudaEventRecord(b->start, cuda->stream));
        LV_TRY(run_once(cuda, b, which));
        LV_CUDA_TRY(cuda, cudaEventRecord(b->stop, cuda->stream));
        LV_CUDA_TRY(cuda, cudaEventSynchronize(b->stop));
        LV_CUDA_TRY(cuda, cudaEventElapsedTime(&ms, b->start, b->stop));
        *out = run >= 0 && ms * 1e-3 < *out ? ms * 1e-3 : *out;
    }
    return LV_OK;
}

static lv_status measure(lv_cuda *cuda, bench *b, lv_ceilings *out) {
    const size_t n_elements = (size_t)GEMM_N * GEMM_N;
    double seconds = 0;
    LV_CUDA_TRY(cuda, cudaEventCreate(&b->start));
    LV_CUDA_TRY(cuda, cudaEventCreate(&b->stop));
    LV_TRY(lv_launch(cuda, "fill_noise", fill_noise, dim3(cuda->n_sms * 8), dim3(256), 0,
                     (__half *)b->buffer, BUFFER_BYTES / sizeof(__half), 1u));
    b->x = b->buffer;
    b->weights.n_out = b->weights.n_in = GEMM_N;
    b->weights.format = LV_W_F16;
    b->weights.data = (__half *)b->buffer + n_elements;
    b->weights.n_bytes = n_elements * sizeof(__half);
    b->y = (__half *)b->buffer + 2 * n_elements;
    LV_TRY(best_of(cuda, b, READ, &seconds));
    out->read_bytes = BUFFER_BYTES / seconds;
    LV_TRY(best_of(cuda, b, COPY, &seconds));
    out->copied_bytes = BUFFER_BYTES / seconds; // half of it read, half written
    LV_TRY(best_of(cuda, b, GEMM, &seconds));
    out->f16_flops = 2.0 * GEMM_N * GEMM_N * GEMM_N / seconds;
    return LV_OK;
}

lv_status lv_cuda_ceilings(lv_backend *be, lv_ceilings *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    bench b = {};
    void *buffer = NULL;
    *out = {};
    LV_TRY(lv_cuda_alloc(be, BUFFER_BYTES, &buffer));
    b.buffer = (uint8_t *)buffer;
    const lv_status status = measure(cuda, &b, out);
    if (b.start) {
        cudaEventDestroy(b.start);
    }
    if (b.stop) {
        cudaEventDestroy(b.stop);
    }
    lv_cuda_free(be, buffer);
    return status;
}
