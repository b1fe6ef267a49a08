// Times of the "few rows" family at the shapes of a 7B model: CUDA events around a graph of many
// launches that go round weights of more than twice the second-level cache.
#ifndef LV_TESTS_GPU_LINEAR_BENCH_H
#define LV_TESTS_GPU_LINEAR_BENCH_H

#include "kernels/cuda/cuda.h"
#include "tests/gpu/util.h"

#define BENCH_BYTES ((size_t)200 << 20) // of weights that launches go round
#define BENCH_MOST_COPIES 64
#define BENCH_REPEATS 7
#define BENCH_ROWS 64

typedef struct bench_weights {
    const char *name;
    lv_linear copies[BENCH_MOST_COPIES]; // the same values, each in memory of its own
    lv_linear *first;
    int n;
} bench_weights;

static inline bench_weights *bench_load(lv_cuda *cuda, const char *name, lv_format format,
                                        int n_out, int n_in, int pair) {
    lv_backend *be = &cuda->base;
    bench_weights *b = calloc(1, sizeof *b);
    lv_linear_source s = awq_source(format == LV_W_INT4 ? n_out : 16, n_in, LV_RECORD_K, false);
    uint16_t *halves = NULL;
    if (format != LV_W_INT4) {
        free_source(&s, 0);
        const size_t n = (size_t)n_out * (size_t)n_in;
        halves = malloc(n * sizeof *halves);
        for (size_t i = 0; i < n; i++) { // 0.03 to 0.06, either sign
            halves[i] = (uint16_t)(0x2800 | (rng() & 0x3ff) | (rng() & 1) << 15);
        }
        s = (lv_linear_source){.n_out = n_out, .n_in = n_in};
        s.weight = (lv_tensor){halves, LV_F16, 2, {n_out, n_in}};
    }
    const lv_linear_options options = {.pair = pair,
                                       .keep = format == LV_W_INT8 ? LV_AS_INT8 : LV_AS_STORED};
    CHECK_OK(be->ops->linear_load(be, &s, 1, &options, &b->first));
    free_source(&s, 0);
    b->name = name;
    b->n = (int)(BENCH_BYTES / b->first->n_bytes) + 2;
    b->n = b->n < BENCH_MOST_COPIES ? b->n : BENCH_MOST_COPIES;
    for (int i = 0; i < b->n; i++) {
        b->copies[i] = *b->first;
        b->copies[i].data = dev_bytes(be, b->first->n_bytes);
        CHECK(cudaMemcpyAsync(b->copies[i].data, b->first->data, b->first->n_bytes,
                              cudaMemcpyDeviceToDevice, cuda->stream) == cudaSuccess,
              "copy");
        if (format == LV_W_INT8) {
            b->copies[i].scales =
                (float *)((uint8_t *)b->copies[i].data + (size_t)n_out * (size_t)n_in);
        }
    }
    return b;
}

static inline void bench_free(lv_cuda *cuda, bench_weights *b) {
    for (int i = 0; i < b->n; i++) {
        lv_cuda_free(&cuda->base, b->copies[i].data);
    }
    cuda->base.ops->linear_free(&cuda->base, b->first);
    free(b);
}

// Median microseconds of what `launch` enqueues, recorded in a graph.
static inline double bench_time(lv_cuda *cuda, void (*launch)(lv_cuda *cuda, void *user),
                                void *user) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaEvent_t start, stop;
    double times[BENCH_REPEATS];
    launch(cuda, user); // work space
    CHECK(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess,
          "capture");
    launch(cuda, user);
    CHECK(cudaStreamEndCapture(cuda->stream, &graph) == cudaSuccess, "capture");
    CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess, "graph");
    cudaEventCreate(&start);
    cudaEventCreate(&stop);
    for (int i = -2; i < BENCH_REPEATS; i++) {
        float ms = 0;
        cudaEventRecord(start, cuda->stream);
        cudaGraphLaunch(exec, cuda->stream);
        cudaEventRecord(stop, cuda->stream);
        CHECK(cudaEventSynchronize(stop) == cudaSuccess, "graph: %s",
              cudaGetErrorString(cudaGetLastError()));
        cudaEventElapsedTime(&ms, start, stop);
        for (int k = i; k >= 0; k--) { // into its place
            if (k == 0 || times[k - 1] <= (double)ms * 1e3) {
                times[k] = (double)ms * 1e3;
                break;
            }
            times[k] = times[k - 1];
        }
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return times[BENCH_REPEATS / 2];
}

typedef struct bench_call {
    bench_weights *w[5];
    int n_w, n_rounds, m;
    bool may_wait;
    void *x, *wide, *out;
    float *norm;
} bench_call;

static inline void bench_launch(lv_cuda *cuda, void *user) {
    const bench_call *c = user;
    for (int round = 0; round < c->n_rounds; round++) {
        for (int i = 0; i < c->n_w; i++) {
            const lv_linear *w = &c->w[i]->copies[round % c->w[i]->n];
            const bool gate = w->pair * 2 == w->n_out, head = w->n_out > 30000;
            const bool from_wide = w->n_in > 4096;
            const lv_small s = {.w = w,
                                .x = from_wide ? c->wide : c->x,
                                .m = c->m,
                                .norm = w->n_out > 4096 ? c->norm : NULL,
                                .eps = 1e-5f,
                                .epilogue = gate   ? LV_GATE
                                            : head ? LV_STORE_F32
                                                   : LV_STORE,
                                .residual = w->n_out == 4096 ? c->x : NULL,
                                .out = gate               ? c->wide
                                       : w->n_out == 4096 ? c->x
                                                          : c->out,
                                .may_wait = c->may_wait};
            CHECK_OK(lv_cuda_small(cuda, &s));
        }
    }
    CHECK_OK(lv_cuda_flush(cuda));
}

static inline void bench_print(lv_cuda *cuda, bench_call *c, const char *name, const char *format) {
    static const int row_counts[] = {1, 2, 4, 8, 16, 32, 64};
    size_t n_bytes = 0;
    for (int i = 0; i < c->n_w; i++) {
        n_bytes += c->w[i]->first->n_bytes;
    }
    printf("%-24s %-5s %7.1f MB ", name, format, (double)n_bytes * 1e-6);
    for (int i = 0; i < 7; i++) {
        c->m = row_counts[i];
        const double us = bench_time(cuda, bench_launch, c) / c->n_rounds;
        printf(" | %2d: %7.2f us %5.2f TB/s", c->m, us, (double)n_bytes / us * 1e-6);
        fflush(stdout);
    }
    printf("\n");
}

// Each shape by itself, then one after another as in a layer.
static inline void bench_linears(lv_cuda *cuda) {
    static const char *const formats[] = {"f16", "int4", "int8"};
    static const lv_format order[] = {LV_W_INT4, LV_W_F16, LV_W_INT8};
    lv_backend *be = &cuda->base;
    const size_t n = (size_t)BENCH_ROWS * 11008;
    float *values = random_halves(n), *norm = random_floats(4096);
    bench_call c = {.x = dev_act(be, values, n),
                    .wide = dev_act(be, values, n),
                    .out = dev_bytes(be, (size_t)BENCH_ROWS * 32064 * sizeof(float)),
                    .norm = dev_f32(be, norm, 4096)};
    for (int f = 0; f < 3; f++) {
        bench_weights *w[5] = {
            bench_load(cuda, "qkv 12288x4096", order[f], 12288, 4096, 8),
            bench_load(cuda, "o 4096x4096", order[f], 4096, 4096, 8),
            bench_load(cuda, "gate, up 22016x4096", order[f], 22016, 4096, 11008),
            bench_load(cuda, "down 4096x11008", order[f], 4096, 11008, 8),
            bench_load(cuda, "head 32064x4096", order[f], 32064, 4096, 8)};
        for (int i = 0; i < 5; i++) {
            c.w[0] = w[i];
            c.n_w = 1;
            c.n_rounds = 2 * w[i]->n > 24 ? 2 * w[i]->n : 24;
            bench_print(cuda, &c, w[i]->name, formats[order[f]]);
        }
        bench_weights *one = bench_load(cuda, "one tile", order[f], 16, 4096, 8);
        c.w[0] = one;
        c.n_rounds = 64;
        bench_print(cuda, &c, one->name, formats[order[f]]);
        bench_free(cuda, one);
        memcpy(c.w, w, sizeof w);
        c.n_w = 4;
        c.n_rounds = 32;
        bench_print(cuda, &c, "a layer's four", formats[order[f]]);
        c.may_wait = true;
        bench_print(cuda, &c, "the same, in a chain", formats[order[f]]);
        c.may_wait = false;
        for (int i = 0; i < 5; i++) {
            bench_free(cuda, w[i]);
        }
    }
    be->ops->free(be, c.x);
    be->ops->free(be, c.wide);
    be->ops->free(be, c.out);
    be->ops->free(be, c.norm);
    free(values);
    free(norm);
}

#endif
