// Two GPUs as one: a layer's split linears against one GPU, also replayed from a recording; sums
// and joins of every size against the host's; how long sums take.
#include <time.h>

#include "tests/gpu/util.h"

#ifndef LV_HAVE_CUDA
int main(void) {
    return check_skip("built without CUDA");
}
#else

#include "kernels/cuda/cuda.h"
#include "kernels/group/group.h"

enum { N = 2, D = 1024, D_FF = 2816, MOST_ROWS = 600 };

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

// --- a layer ------------------------------------------------------------------------------------

typedef struct layer {
    lv_backend *be;
    lv_linear *gate_up, *down;
    float *norm;
    void *x, *hidden;
} layer;

static layer load_layer(lv_backend *be, const lv_linear_source *parts, const float *norm) {
    const lv_units units = {D_FF, 1};
    const lv_linear_options out = {.pair = D_FF, .split = LV_SPLIT_OUT, .units = units};
    const lv_linear_options in = {.split = LV_SPLIT_IN, .units = units};
    const lv_tensor weight = {norm, LV_F32, 1, {D}};
    layer l = {.be = be};
    CHECK_OK(be->ops->linear_load(be, parts, 2, &out, &l.gate_up));
    CHECK_OK(be->ops->linear_load(be, &parts[2], 1, &in, &l.down));
    CHECK_OK(be->ops->tensor_load(be, &weight, &l.norm));
    l.x = dev_act(be, NULL, (size_t)MOST_ROWS * D);
    l.hidden = dev_act(be, NULL, (size_t)MOST_ROWS * D_FF);
    return l;
}

static void free_layer(layer *l) {
    l->be->ops->linear_free(l->be, l->gate_up);
    l->be->ops->linear_free(l->be, l->down);
    l->be->ops->free(l->be, l->norm);
    l->be->ops->free(l->be, l->x);
    l->be->ops->free(l->be, l->hidden);
}

static lv_status body(void *user, const lv_batch *batch) {
    const layer *l = user;
    LV_TRY(l->be->ops->norm_gate_up_silu(l->be, l->x, batch->n_tokens, l->norm, 1e-5f, l->gate_up,
                                         l->hidden));
    return l->be->ops->linear(l->be, l->hidden, batch->n_tokens, l->down, LV_ACT_NONE, l->x, l->x);
}

// `m` sequences of one token, or one sequence of m; as often as it takes to be replayed.
static float *run_layer(layer *l, const float *x, int m, bool steady, int n_runs) {
    static int32_t starts[MOST_ROWS + 1], lengths[MOST_ROWS], table[MOST_ROWS];
    for (int i = 0; i <= m; i++) {
        starts[i] = i;
        lengths[i < m ? i : 0] = 1;
    }
    const int32_t whole[] = {0, m};
    const lv_batch batch = {.n_seqs = steady ? m : 1,
                            .n_tokens = m,
                            .steady = steady,
                            .token_start = steady ? starts : whole,
                            .kv_length = steady ? lengths : &whole[1],
                            .block_table = table,
                            .max_blocks = 1};
    for (int run = 0; run < n_runs; run++) {
        CHECK_OK(l->be->ops->upload_act(l->be, l->x, x, (size_t)m * D));
        CHECK_OK(l->be->ops->pass(l->be, &batch, body, l));
    }
    return host_act(l->be, l->x, (size_t)m * D);
}

static void test_layer(lv_backend *one, lv_backend *two, int group) {
    static const int sizes[] = {1, 3, 8, 64, 128, 200, MOST_ROWS};
    lv_linear_source parts[3];
    for (int i = 0; i < 3; i++) {
        const int n_out = i < 2 ? D_FF : D, n_in = i < 2 ? D : D_FF;
        parts[i] = group ? awq_source(n_out, n_in, group, i == 2)
                         : dense_source(n_out, n_in, LV_F16, 0, i == 2);
    }
    float *x = random_halves((size_t)MOST_ROWS * D), *norm = random_floats(D);
    layer alone = load_layer(one, parts, norm), split = load_layer(two, parts, norm);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const int m = sizes[k];
        const size_t n = (size_t)m * D;
        const bool steady = m <= 64;
        float *want = run_layer(&alone, x, m, steady, 1);
        float *first = run_layer(&split, x, m, steady, 1);
        float *again = run_layer(&split, x, m, steady, steady ? 5 : 1);
        const double error = mean_error(first, want, n);
        CHECK(error < 1e-3, "groups of %d, %d rows: mean error %g", group, m, error);
        CHECK(memcmp(first, again, n * sizeof *first) == 0, "groups of %d, %d rows: other bits %s",
              group, m, steady ? "from a recording" : "again");
        free(want);
        free(first);
        free(again);
    }
    free_layer(&alone);
    free_layer(&split);
    for (int i = 0; i < 3; i++) {
        free_source(&parts[i], 0);
    }
    free(x);
    free(norm);
}

// --- sums and joins -----------------------------------------------------------------------------

typedef struct exchange_call {
    void *at;       // group's address
    void *out;      // joins
    size_t n;       // values of a sum, bytes of a row of a join
    int n_rows;     // 0: a sum
    int n_times;    // recorded
    double *out_us; // of one, by member 0's clock; NULL: once, as it is
} exchange_call;

static lv_status exchange_once(lv_group *g, int i, const exchange_call *c, void **where) {
    return c->n_rows ? g->collectives->join(g->collectives, i, where, c->n_rows, c->n,
                                            lv_group_at(g, i, c->out))
                     : g->collectives->sum(g->collectives, i, where, c->n);
}

static lv_status exchange_body(lv_group *g, int i, const void *user) {
    const exchange_call *c = user;
    lv_cuda *cuda = (lv_cuda *)g->members[i].be;
    void *where[N];
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    for (int j = 0; j < N; j++) {
        where[j] = lv_group_at(g, j, c->at);
    }
    LV_TRY(lv_cuda_enter(cuda));
    if (!c->out_us) {
        return exchange_once(g, i, c, where);
    }
    LV_TRY(lv_team_meet(g));
    LV_CUDA_TRY(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    for (int k = 0; k < c->n_times; k++) {
        LV_TRY(exchange_once(g, i, c, where));
    }
    LV_CUDA_TRY(cuda, cudaStreamEndCapture(cuda->stream, &graph));
    LV_CUDA_TRY(cuda, cudaGraphInstantiate(&exec, graph, 0));
    double best = 1e9;
    for (int run = 0; run < 5; run++) {
        LV_TRY(lv_team_meet(g));
        const double start = now_us();
        LV_CUDA_TRY(cuda, cudaGraphLaunch(exec, cuda->stream));
        LV_CUDA_TRY(cuda, cudaStreamSynchronize(cuda->stream));
        const double us = now_us() - start;
        best = us < best ? us : best;
    }
    if (i == 0) {
        *c->out_us = best / c->n_times;
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return LV_OK;
}

// x[n] of each member, member j's being j + 1 times the host's.
static void *spread_values(lv_group *g, const float *x, size_t n) {
    void *dev = dev_act(&g->base, x, n);
    float *scaled = malloc(n * sizeof *scaled);
    for (int j = 1; j < N; j++) {
        lv_backend *be = g->members[j].be;
        for (size_t i = 0; i < n; i++) {
            scaled[i] = (float)(j + 1) * x[i];
        }
        CHECK_OK(be->ops->upload_act(be, lv_group_at(g, j, dev), scaled, n));
    }
    CHECK_OK(g->base.ops->sync(&g->base));
    free(scaled);
    return dev;
}

static void test_sum(lv_group *g, size_t n, size_t small_bytes) {
    float *x = random_halves(n);
    void *dev = spread_values(g, x, n);
    const exchange_call call = {.at = dev, .n = n};
    const size_t usual = g->collectives->small_bytes;
    g->collectives->small_bytes = small_bytes;
    CHECK_OK(lv_team_run(g, exchange_body, &call));
    g->collectives->small_bytes = usual;
    CHECK_OK(g->base.ops->sync(&g->base));
    for (int j = 0; j < N; j++) {
        float *got = host_act(g->members[j].be, lv_group_at(g, j, dev), n);
        size_t bad = 0;
        for (size_t i = 0; i < n; i++) {
            const float twice = lv_f16_to_f32(lv_f32_to_f16(2 * x[i]));
            bad += got[i] != lv_f16_to_f32(lv_f32_to_f16(x[i] + twice));
        }
        CHECK(bad == 0, "sum of %zu, member %d: %zu values are wrong", n, j, bad);
        free(got);
    }
    g->base.ops->free(&g->base, dev);
    free(x);
}

// Rows of f32 seen as pairs of f16.
static void test_join(lv_group *g, int n_rows, size_t row_bytes) {
    const size_t row = row_bytes / 2, n = row * (size_t)n_rows, all = n * N;
    float *x = random_halves(all);
    void *parts = spread_values(g, x, all), *out = dev_act(&g->base, NULL, all);
    const exchange_call call = {
        .at = parts, .out = n_rows > 1 ? out : parts, .n = row_bytes, .n_rows = n_rows};
    CHECK_OK(lv_team_run(g, exchange_body, &call));
    CHECK_OK(g->base.ops->sync(&g->base));
    for (int j = 0; j < N; j++) {
        float *got = host_act(g->members[j].be, lv_group_at(g, j, call.out), all);
        size_t bad = 0;
        for (size_t i = 0; i < all; i++) {
            const size_t r = i / (N * row), member = i / row % N, column = i % row;
            const float from = x[(member * (size_t)n_rows + r) * row + column];
            bad += got[i] != lv_f16_to_f32(lv_f32_to_f16((float)(member + 1) * from));
        }
        CHECK(bad == 0, "join of %d rows of %zu bytes, member %d: %zu values are wrong", n_rows,
              row_bytes, j, bad);
        free(got);
    }
    g->base.ops->free(&g->base, parts);
    g->base.ops->free(&g->base, out);
    free(x);
}

// --- giving up ----------------------------------------------------------------------------------

// Member 0 begins a sum that member 1 never comes to.
static lv_status lonely_body(lv_group *g, int i, const void *user) {
    const exchange_call *c = user;
    void *where[] = {c->at};
    LV_TRY(lv_cuda_enter((lv_cuda *)g->members[i].be));
    return i == 0 ? g->collectives->sum(g->collectives, i, where, c->n)
                  : lv_fail(LV_ELIMIT, "not today");
}

// Neither our kernel nor NCCL waits for ever, and nothing is exchanged afterwards. NCCL connects at
// its first use, where the host waits as well: the group loses patience with that by itself.
static void test_giving_up(bool by_nccl) {
    lv_backend *be = open_gpus(N);
    lv_group *g = (lv_group *)be;
    const exchange_call call = {.at = dev_act(be, NULL, 4096), .n = 4096};
    lv_linear_source source = dense_source(256, 256, LV_F16, 0, false);
    const lv_linear_options options = {.split = LV_SPLIT_IN, .units = {256, 1}};
    lv_linear *w = NULL;
    CHECK_OK(be->ops->linear_load(be, &source, 1, &options, &w));
    CHECK_OK(be->ops->linear(be, call.at, 1, w, LV_ACT_NONE, NULL, call.at));
    g->collectives->small_bytes = by_nccl ? 0 : SIZE_MAX;
    const double start = now_us(), patience_us = by_nccl ? 10e6 : 5e6;
    CHECK_STATUS(lv_team_run(g, lonely_body, &call), LV_ELIMIT);
    lv_team_break(g, "not today");
    CHECK_OK(be->ops->sync(be));
    CHECK(now_us() - start < patience_us, "it took %.1f s", (now_us() - start) * 1e-6);
    CHECK_STATUS(be->ops->linear(be, call.at, 1, w, LV_ACT_NONE, NULL, call.at), LV_EDEVICE);
    CHECK(strstr(lv_error(), "not today"), "%s", lv_error());
    be->ops->linear_free(be, w);
    be->ops->free(be, call.at);
    free_source(&source, 0);
    lv_backend_close(be);
}

static void time_sums(lv_group *g) {
    static const int rows[] = {1, 8, 32, 64, 128, 256, 512, 2204};
    const size_t usual = g->collectives->small_bytes;
    void *dev = dev_act(&g->base, NULL, (size_t)2304 * 4096);
    printf("rows of 4096 f16: us a sum by our kernel, by NCCL\n");
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        double us[2] = {0};
        for (int by = 0; by < 2; by++) {
            const exchange_call call = {
                .at = dev, .n = (size_t)rows[k] * 4096, .n_times = 50, .out_us = &us[by]};
            g->collectives->small_bytes = by == 0 && rows[k] <= 256 ? SIZE_MAX : 0;
            CHECK_OK(lv_team_run(g, exchange_body, &call));
        }
        printf("  %5d %8.2f %8.2f\n", rows[k], us[0], us[1]);
    }
    g->collectives->small_bytes = usual;
    g->base.ops->free(&g->base, dev);
}

int main(void) {
    lv_backend *two = open_gpus(N), *one = open_cuda();
    lv_group *g = (lv_group *)two;
    printf("%s\n", two->device);
    static const size_t sizes[] = {4, 128, 1024, 4096, 5120, 131072, 1048576, 1048580, 2204 * 4096};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int again = 0; again < 3; again++) {
            test_sum(g, sizes[i], sizes[i] <= 1048576 ? SIZE_MAX : 0);
        }
        test_sum(g, sizes[i], 0);
    }
    static const int joined[] = {1, 3, 32, 64};
    for (size_t i = 0; i < sizeof joined / sizeof *joined; i++) {
        test_join(g, joined[i], 64128);
        test_join(g, joined[i], 4224);
    }
    test_layer(one, two, 0);
    test_layer(one, two, 128);
    if (!gpu_small(1)) {
        time_sums(g);
    }
    lv_backend_close(two);
    lv_backend_close(one);
    test_giving_up(false);
    test_giving_up(true);
    return check_done();
}

#endif
