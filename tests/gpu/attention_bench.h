// Times of the attention kernels at LLaVA's sizes: decode at several batches and contexts, prefill,
// CLIP by our kernel and by cuDNN. For gpu/attention.c alone.
#ifndef LV_TESTS_GPU_ATTENTION_BENCH_H
#define LV_TESTS_GPU_ATTENTION_BENCH_H

#include "kernels/cuda/cuda.h"
#include "tests/gpu/util.h"

typedef struct bench {
    lv_backend *be;
    lv_cuda *cuda;
    cudaEvent_t from, to;
} bench;

#define TRY_CUDA(call) CHECK((call) == cudaSuccess, "%s", cudaGetErrorString(cudaGetLastError()))

typedef lv_status bench_step(bench *b, void *user, int i);

// Microseconds of one step: n_steps of them recorded as a graph, so that launches cost little, the
// best of 5 runs.
static double time_steps(bench *b, bench_step *step, void *user, int n_steps) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    float best = INFINITY, ms = 0;
    CHECK_OK(step(b, user, 0)); // allocates
    TRY_CUDA(cudaStreamSynchronize(b->cuda->stream));
    TRY_CUDA(cudaStreamBeginCapture(b->cuda->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n_steps; i++) {
        CHECK_OK(step(b, user, i));
    }
    TRY_CUDA(cudaStreamEndCapture(b->cuda->stream, &graph));
    TRY_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 6 && check_n_failed == 0; i++) {
        TRY_CUDA(cudaEventRecord(b->from, b->cuda->stream));
        TRY_CUDA(cudaGraphLaunch(exec, b->cuda->stream));
        TRY_CUDA(cudaEventRecord(b->to, b->cuda->stream));
        TRY_CUDA(cudaEventSynchronize(b->to));
        TRY_CUDA(cudaEventElapsedTime(&ms, b->from, b->to));
        best = i > 0 && ms < best ? ms : best;
    }
    TRY_CUDA(cudaGraphExecDestroy(exec));
    TRY_CUDA(cudaGraphDestroy(graph));
    return (double)best * 1e3 / n_steps;
}

// Small positive halves (and scales), in all of it.
static void fill_plausibly(lv_backend *be, void *dev, size_t n_bytes) {
    size_t step = n_bytes < 1 << 26 ? n_bytes : 1 << 26;
    uint8_t *bytes = malloc(step);
    for (size_t i = 0; i < step; i++) {
        bytes[i] = i % 2 ? (uint8_t)(0x30 + rng() % 11) : (uint8_t)rng();
    }
    for (size_t at = 0; at < n_bytes; at += step) {
        CHECK_OK(be->ops->upload(be, (uint8_t *)dev + at, bytes,
                                 n_bytes - at < step ? n_bytes - at : step));
    }
    free(bytes);
}

typedef struct attention_bench {
    lv_attention_shape shape;
    lv_device_batch batch;
    lv_kv *kv;
    void *q, *kv_new, *out;
    int n_layers;
    bool append;
    bool apart; // a memset between steps, which keeps them from overlapping
} attention_bench;

static lv_status decode_step(bench *b, void *user, int i) {
    attention_bench *a = user;
    if (a->apart) {
        TRY_CUDA(cudaMemsetAsync(a->out, 0xFF, 4, b->cuda->stream));
    }
    return lv_cuda_decode_attention(b->cuda, &a->batch, &a->shape, a->q, a->kv_new, a->kv,
                                    i % a->n_layers, a->out);
}

static lv_status prefill_step(bench *b, void *user, int i) {
    attention_bench *a = user;
    return a->append ? lv_cuda_kv_append(b->cuda, &a->batch, a->kv_new, a->kv, i % a->n_layers)
                     : lv_cuda_prefill_attention(b->cuda, &a->batch, &a->shape, a->q, a->kv,
                                                 i % a->n_layers, a->out);
}

// n_seqs sequences of `context` tokens, n_new of them new.
static attention_bench open_bench(bench *b, lv_attention_shape shape, lv_dtype dtype, int n_seqs,
                                  int context, int n_new) {
    attention_bench a = {.shape = shape};
    lv_backend *be = b->be;
    int blocks = (context + LV_KV_BLOCK - 1) / LV_KV_BLOCK, n_tokens = n_seqs * n_new;
    int32_t *start = calloc((size_t)n_seqs + 1, 4), *length = calloc((size_t)n_seqs, 4);
    int32_t *table = calloc((size_t)(n_seqs * blocks), 4);
    const lv_device_batch *on_device;
    for (int i = 0; i < n_seqs; i++) {
        start[i + 1] = start[i] + n_new;
        length[i] = context;
        for (int k = 0; k < blocks; k++) { // neighbours in time are not neighbours in memory
            table[i * blocks + k] = k * n_seqs + i;
        }
    }
    lv_batch batch = {.n_seqs = n_seqs,
                      .n_tokens = n_tokens,
                      .token_start = start,
                      .kv_length = length,
                      .block_table = table,
                      .max_blocks = blocks};
    size_t layer = be->ops->kv_block_bytes(be, 1, shape.n_kv_heads, shape.head_dim, dtype) *
                   (size_t)(n_seqs * blocks);
    a.n_layers = (int)((400u << 20) / layer) + 1;
    a.n_layers = a.n_layers > 32 ? 32 : a.n_layers;
    CHECK_OK(be->ops->kv_create(be, a.n_layers, shape.n_kv_heads, shape.head_dim, n_seqs * blocks,
                                dtype, &a.kv));
    fill_plausibly(be, a.kv->data, a.kv->n_bytes);
    size_t row = (size_t)shape.head_dim * 2, n = (size_t)n_tokens;
    a.q = dev_bytes(be, n * row * (size_t)shape.n_heads);
    a.out = dev_bytes(be, n * row * (size_t)shape.n_heads);
    a.kv_new = dev_bytes(be, n * row * 2 * (size_t)shape.n_kv_heads);
    fill_plausibly(be, a.q, n * row * (size_t)shape.n_heads);
    fill_plausibly(be, a.kv_new, n * row * 2 * (size_t)shape.n_kv_heads);
    CHECK_OK(lv_cuda_batch(b->cuda, &batch, &on_device));
    a.batch = *on_device;
    CHECK_OK(be->ops->sync(be));
    free(start);
    free(length);
    free(table);
    return a;
}

static void close_bench(bench *b, attention_bench *a) {
    b->be->ops->kv_free(b->be, a->kv);
    b->be->ops->free(b->be, a->q);
    b->be->ops->free(b->be, a->out);
    b->be->ops->free(b->be, a->kv_new);
}

static void bench_decode(bench *b, lv_attention_shape shape, lv_dtype dtype, int n_seqs,
                         int context) {
    attention_bench a = open_bench(b, shape, dtype, n_seqs, context, 1);
    int n_steps = a.n_layers < 16 ? 16 : a.n_layers;
    double bytes = (double)n_seqs * context * shape.n_kv_heads * 2 *
                   (dtype == LV_I8 ? shape.head_dim + 4 : 2 * shape.head_dim);
    double overlapped = time_steps(b, decode_step, &a, n_steps);
    a.apart = true;
    double apart = time_steps(b, decode_step, &a, n_steps);
    printf("decode %2d/%d x %d %s B %2d context %4d: %7.1f us a layer, %4.2f TB/s; apart %7.1f us, "
           "%4.2f TB/s\n",
           shape.n_heads, shape.n_kv_heads, shape.head_dim, lv_dtype_name(dtype), n_seqs, context,
           overlapped, bytes / overlapped / 1e6, apart, bytes / apart / 1e6);
    close_bench(b, &a);
}

static void bench_prefill(bench *b, lv_attention_shape shape, lv_dtype dtype, int n) {
    attention_bench a = open_bench(b, shape, dtype, 1, n, n);
    double flop = 2.0 * n * (n + 1.0) * shape.n_heads * shape.head_dim;
    double us = time_steps(b, prefill_step, &a, 16);
    a.append = true;
    printf("prefill %2d x %d %s %4d tokens: %7.1f us a layer, %4.0f TFLOP/s; append %5.1f us\n",
           shape.n_heads, shape.head_dim, lv_dtype_name(dtype), n, us, flop / us / 1e6,
           time_steps(b, prefill_step, &a, 16));
    close_bench(b, &a);
}

typedef struct image_bench {
    void *qkv, *out;
    int n;
    bool dnn;
} image_bench;

static lv_status image_step(bench *b, void *user, int i) {
    image_bench *a = user;
    (void)i;
    return a->dnn ? lv_cuda_dnn_attention(b->cuda, a->qkv, a->n, 577, 16, 64, a->out)
                  : lv_cuda_image_attention(b->be, a->qkv, a->n, 577, 16, 64, a->out);
}

static void bench_images(bench *b, int n) {
    size_t row = 16 * 64 * 2, rows = (size_t)n * 577;
    image_bench a = {.n = n};
    double flop = 4.0 * n * 577 * 577 * 16 * 64;
    a.qkv = dev_bytes(b->be, rows * 3 * row);
    a.out = dev_bytes(b->be, rows * row);
    fill_plausibly(b->be, a.qkv, rows * 3 * row);
    double ours = time_steps(b, image_step, &a, 16), dnn = 0;
    a.dnn = true;
    if (image_step(b, &a, 0) == LV_OK) {
        dnn = time_steps(b, image_step, &a, 16);
    } else {
        printf("no cuDNN attention: %s\n", lv_error());
    }
    printf("CLIP %2d tiles: ours %5.1f us, %4.0f TFLOP/s; cuDNN %5.1f us, %4.0f TFLOP/s: %s\n", n,
           ours, flop / ours / 1e6, dnn, dnn > 0 ? flop / dnn / 1e6 : 0,
           dnn > 0 && dnn < ours ? "cuDNN is faster" : "ours is not slower");
    b->be->ops->free(b->be, a.qkv);
    b->be->ops->free(b->be, a.out);
}

// quick: the sizes of the bars, in a few seconds.
static int run_bench(lv_backend *be, bool quick) {
    static const int all[][2] = {// batch, context
                                 {1, 512},  {1, 2204},  {1, 8000},  {8, 1024},  {32, 1024},
                                 {2, 1024}, {4, 1024},  {64, 1024}, {1, 1024},  {8, 512},
                                 {8, 2204}, {8, 8000},  {32, 512},  {32, 2204}, {32, 8000},
                                 {64, 512}, {64, 2204}, {64, 8000}};
    static const int prompts[] = {2204, 636, 2940};
    static const lv_dtype dtypes[] = {LV_F16, LV_I8};
    lv_attention_shape mha = {32, 32, 128, 0}, gqa = {32, 8, 128, 0};
    bench b = {.be = be, .cuda = (lv_cuda *)be};
    TRY_CUDA(cudaEventCreate(&b.from));
    TRY_CUDA(cudaEventCreate(&b.to));
    printf("%s\n", be->device);
    for (int d = 0; d < 2; d++) {
        for (size_t i = 0; i < (quick ? 8 : sizeof all / sizeof *all); i++) {
            bench_decode(&b, mha, dtypes[d], all[i][0], all[i][1]);
        }
        for (int i = 1; i < 5; i += 3) {
            bench_decode(&b, gqa, dtypes[d], all[i][0], all[i][1]);
        }
        for (int i = 0; i < (quick ? 1 : 3); i++) {
            bench_prefill(&b, mha, dtypes[d], prompts[i]);
        }
    }
    for (int n = 1; n <= 25; n += n < 5 ? 4 : 20) {
        bench_images(&b, n);
    }
    TRY_CUDA(cudaEventDestroy(b.from));
    TRY_CUDA(cudaEventDestroy(b.to));
    lv_backend_close(be);
    return check_done();
}

#endif
