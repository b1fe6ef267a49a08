// Groups of CPU members against one plain backend: shares of weights, what members exchange, what
// is refused, and that a member that fails leaves nobody waiting.
#include <stdatomic.h>
#include <unistd.h>

#include "kernels/group/group.h"
#include "tests/unit/kernels_util.h"

enum { D = 256, D_FF = 768, M = 5 };

static lv_backend *open_group(int tp) {
    const lv_backend_options options = {.device = "cpu", .n_threads = tp, .tp = tp};
    lv_backend *be = NULL;
    CHECK_OK(lv_backend_open(&options, &be));
    return be;
}

static void *to_dev(lv_backend *be, const float *host, size_t n) {
    void *dev = NULL;
    CHECK_OK(be->ops->alloc(be, n * sizeof *host, &dev));
    CHECK_OK(be->ops->upload_act(be, dev, host, n));
    return dev;
}

// --- units --------------------------------------------------------------------------------------

static void test_units(void) {
    static const struct {
        lv_units units;
        int n, first[5];
    } cases[] = {
        {{32, 128}, 2, {0, 16, 32}},                   // heads of 7B
        {{11008, 1}, 2, {0, 5504, 11008}},             // d_ff of 7B
        {{11008, 1}, 4, {0, 2816, 5504, 8320, 11008}}, // 86 groups of 128: 22, 21, 22, 21
        {{6, 64}, 2, {0, 4, 6}},                       // 3 groups of two heads
        {{4, 32}, 2, {0, 2, 4}},                       // one group of 128: heads alone
        {{3, 64}, 2, {0, 2, 3}},
        {{8, 128}, 4, {0, 2, 4, 6, 8}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int first[LV_MAX_MEMBERS + 1];
        CHECK_OK(lv_units_share(cases[i].units, cases[i].n, first));
        for (int j = 0; j <= cases[i].n; j++) {
            CHECK(first[j] == cases[i].first[j], "case %zu, member %d: %d, not %d", i, j, first[j],
                  cases[i].first[j]);
        }
    }
    int first[LV_MAX_MEMBERS + 1];
    CHECK_STATUS(lv_units_share((lv_units){2, 128}, 4, first), LV_EUNSUPPORTED);
    CHECK(strstr(lv_error(), "2 KV heads of 128") && strstr(lv_error(), "4 devices"), "%s",
          lv_error());
}

// --- weights ------------------------------------------------------------------------------------

typedef struct layer {
    lv_linear_source gate, up, down;
} layer;

static lv_linear_source source_of(int n_out, int n_in, lv_dtype dtype, int group, bool bias) {
    return group ? awq_source(n_out, n_in, group, bias) : dense_source(n_out, n_in, dtype, 0, bias);
}

static layer make_layer(lv_dtype dtype, int group) {
    return (layer){source_of(D_FF, D, dtype, group, true), source_of(D_FF, D, dtype, group, true),
                   source_of(D, D_FF, dtype, group, true)};
}

static void free_layer(layer *l) {
    free_source(&l->gate, 0);
    free_source(&l->up, 0);
    free_source(&l->down, 0);
}

// x + down(silu(gate) up) of rows from `row` on, as the decoder does it.
static float *run_layer(lv_backend *be, const layer *l, lv_keep keep, const float *x,
                        const float *norm, int row) {
    const lv_units units = {D_FF, 1};
    const lv_linear_options out = {D_FF, keep, LV_SPLIT_OUT, units};
    const lv_linear_options in = {0, keep, LV_SPLIT_IN, units};
    const lv_linear_source parts[] = {l->gate, l->up};
    const lv_tensor weight = {norm, LV_F32, 1, {D}};
    lv_linear *gate_up = NULL, *down = NULL;
    float *dev_norm = NULL, *host = poisoned((size_t)M * D);
    void *hidden = NULL;
    CHECK_OK(be->ops->linear_load(be, parts, 2, &out, &gate_up));
    CHECK_OK(be->ops->linear_load(be, &l->down, 1, &in, &down));
    CHECK_OK(be->ops->tensor_load(be, &weight, &dev_norm));
    CHECK_OK(be->ops->alloc(be, (size_t)M * D_FF * sizeof(float), &hidden));
    float *dev = to_dev(be, x, (size_t)M * D);
    float *from = dev + (ptrdiff_t)row * D;
    const int m = M - row;
    CHECK_OK(be->ops->norm_gate_up_silu(be, from, m, dev_norm, 1e-5f, gate_up, hidden));
    CHECK_OK(be->ops->linear(be, hidden, m, down, LV_ACT_NONE, from, from));
    CHECK_OK(be->ops->download_act(be, host, dev, (size_t)M * D));
    CHECK(be->ops->linear_shape(down).n_in == D_FF &&
              be->ops->linear_shape(gate_up).n_out == 2 * D_FF,
          "the shapes are the whole's");
    be->ops->linear_free(be, gate_up);
    be->ops->linear_free(be, down);
    be->ops->free(be, dev_norm);
    be->ops->free(be, hidden);
    be->ops->free(be, dev);
    return host;
}

static void test_layer(lv_backend *alone, int tp, lv_dtype dtype, int group, lv_keep keep,
                       double tolerance) {
    lv_backend *be = open_group(tp);
    layer l = make_layer(dtype, group);
    float *x = random_floats((size_t)M * D), *norm = random_floats(D);
    for (int row = 0; row < M; row += M - 1) {
        float *want = run_layer(alone, &l, keep, x, norm, row);
        float *got = run_layer(be, &l, keep, x, norm, row);
        const double error = relative_error(got, want, (size_t)M * D);
        CHECK(error < tolerance, "tp %d, %s, groups of %d, keep %d, from row %d: %g", tp,
              lv_dtype_name(dtype), group, keep, row, error);
        CHECK(memcmp(got, x, (size_t)row * D * sizeof *x) == 0, "rows before %d have changed", row);
        free(want);
        free(got);
    }
    free(x);
    free(norm);
    free_layer(&l);
    lv_backend_close(be);
}

static void test_layers(void) {
    lv_backend *ref = open_reference(), *alone = open_isa(0, 1);
    for (int tp = 2; tp <= 4; tp++) {
        test_layer(ref, tp, LV_F16, 0, LV_AS_STORED, 3e-6);
        test_layer(ref, tp, LV_BF16, 0, LV_AS_STORED, 3e-6);
        test_layer(ref, tp, LV_F32, 0, LV_AS_STORED, 3e-6);
        test_layer(ref, tp, LV_F16, 32, LV_AS_STORED, 1e-3); // int16 activations
        test_layer(ref, tp, LV_F16, 128, LV_AS_STORED, 1e-3);
        test_layer(alone, tp, LV_F16, 0, LV_AS_INT4, 1e-3);
    }
    lv_backend_close(ref);
    lv_backend_close(alone);
}

// Pairs of rows that lie in two parts are closer in a share; those of a head stay as they are.
static void test_pairs(void) {
    lv_linear_source parts[2] = {dense_source(D_FF, D, LV_F16, 0, false),
                                 dense_source(D_FF, D, LV_F16, 0, false)};
    const int pairs[][2] = {{D_FF, D_FF / 3}, {32, 32}};
    for (int i = 0; i < 2; i++) {
        const lv_linear_options options = {
            .pair = pairs[i][0], .split = LV_SPLIT_OUT, .units = {D_FF / 64, 64}};
        lv_slices slices = {.n_copies = 0};
        CHECK_OK(lv_slices_make(parts, 2, &options, LV_SPLIT_OUT, 1, 3, &slices));
        CHECK(slices.options.pair == pairs[i][1], "pair %d became %d", pairs[i][0],
              slices.options.pair);
        CHECK(slices.parts[1].n_out == D_FF / 3 &&
                  slices.parts[1].weight.data ==
                      (const uint8_t *)parts[1].weight.data + (size_t)D_FF / 3 * D * 2,
              "the share of rows lies elsewhere");
        lv_copies_free(&slices.copies);
    }
    free_source(&parts[0], 0);
    free_source(&parts[1], 0);
}

// Copies of one linear's columns in the memory of the last one's, larger or smaller.
static void test_copies(void) {
    static const int widths[] = {96, 256, 32, 320};
    lv_slices slices = {.n_copies = 0};
    for (int i = 0; i < 4; i++) {
        lv_linear_source whole = dense_source(16, widths[i], LV_F16, 0, false);
        const lv_linear_options options = {.split = LV_SPLIT_IN, .units = {widths[i], 1}};
        CHECK_OK(lv_slices_make(&whole, 1, &options, LV_SPLIT_IN, 1, 2, &slices));
        const uint16_t *from = whole.weight.data, *got = slices.parts[0].weight.data;
        const int n = slices.parts[0].n_in, first = widths[i] - n;
        for (int row = 0; row < 16; row++) {
            CHECK(memcmp(got + row * n, from + row * widths[i] + first, (size_t)n * 2) == 0,
                  "row %d of %d columns", row, widths[i]);
        }
        CHECK(n == widths[i] / 2 && slices.n_copies == 1, "%d of %d columns in %d copies", n,
              widths[i], slices.n_copies);
        free_source(&whole, 0);
    }
    lv_copies_free(&slices.copies);
}

// --- refusals -----------------------------------------------------------------------------------

static void refuse(lv_backend *be, const lv_linear_source *source, const lv_linear_options *options,
                   const char *numbers) {
    lv_linear *linear = NULL;
    const lv_status status = be->ops->linear_load(be, source, 1, options, &linear);
    CHECK(status == LV_EUNSUPPORTED && strstr(lv_error(), numbers), "%s: %s, wanted \"%s\"",
          lv_status_name(status), lv_error(), numbers);
    CHECK(!linear, "a linear after all");
}

static void test_refusals(void) {
    lv_backend *be = open_group(2);
    lv_linear_source awq = awq_source(128, 128, 128, false);
    lv_linear_source dense = dense_source(48, 128, LV_F16, 0, false);
    const lv_linear_options columns = {.split = LV_SPLIT_IN, .units = {128, 1}};
    const lv_linear_options one_head = {.split = LV_SPLIT_OUT, .units = {1, 48}};
    const lv_linear_options packed = {.split = LV_SPLIT_OUT, .keep = LV_AS_INT4, .units = {6, 8}};
    refuse(
        be, &awq, &columns,
        "128 int4 columns over 2 devices: 64 on one, which is no multiple of their groups of 128");
    refuse(be, &dense, &one_head, "1 KV heads of 48 cannot be split over 2 devices");
    refuse(be, &dense, &packed, "[48, 128] over 2 devices: [24, 128] on one");
    free_source(&awq, 0);
    free_source(&dense, 0);
    lv_backend_close(be);
    for (int tp = -1; tp <= LV_MAX_MEMBERS + 1; tp += LV_MAX_MEMBERS + 2) {
        const lv_backend_options options = {.device = "cpu", .tp = tp};
        CHECK_STATUS(lv_backend_open(&options, &be), LV_EINVAL);
    }
}

// --- logits -------------------------------------------------------------------------------------

static void test_logits(int tp, int vocab, int n_rows) {
    static const int32_t rows[] = {4, 0, 2};
    lv_backend *ref = open_reference(), *be = open_group(tp), *both[] = {ref, be};
    lv_linear_source head = dense_source(vocab, D, LV_F16, 0, false);
    const lv_linear_options options = {.split = LV_SPLIT_HEAD, .units = {vocab, 1}};
    const lv_batch batch = {.n_tokens = M, .n_logits = n_rows, .logit_rows = rows};
    float *x = random_floats((size_t)M * D), *norm = random_floats(D), *host[2];
    const lv_sampling greedy[3] = {{0}};
    int32_t tokens[2][3];
    const size_t n = (size_t)n_rows * (size_t)vocab;
    for (int i = 0; i < 2; i++) {
        lv_backend *b = both[i];
        const lv_tensor weight = {norm, LV_F32, 1, {D}};
        lv_linear *w = NULL;
        float *dev_norm = NULL;
        void *logits = NULL;
        CHECK_OK(b->ops->linear_load(b, &head, 1, &options, &w));
        CHECK_OK(b->ops->tensor_load(b, &weight, &dev_norm));
        CHECK_OK(b->ops->alloc(b, n * sizeof(float), &logits));
        void *dev = to_dev(b, x, (size_t)M * D);
        CHECK_OK(b->ops->norm_logits(b, &batch, dev, dev_norm, 1e-5f, w, logits));
        CHECK_OK(b->ops->sample(b, logits, n_rows, vocab, greedy, NULL, NULL));
        CHECK_OK(b->ops->collect(b, tokens[i], NULL));
        host[i] = poisoned(n);
        CHECK_OK(b->ops->download(b, host[i], logits, n * sizeof(float)));
        b->ops->linear_free(b, w);
        b->ops->free(b, dev_norm);
        b->ops->free(b, logits);
        b->ops->free(b, dev);
    }
    const double error = relative_error(host[1], host[0], n);
    CHECK(error < 3e-6, "tp %d, %d rows of %d logits: %g", tp, n_rows, vocab, error);
    CHECK(memcmp(tokens[0], tokens[1], (size_t)n_rows * sizeof(int32_t)) == 0, "other tokens");
    free(x);
    free(norm);
    free(host[0]);
    free(host[1]);
    free_source(&head, 0);
    lv_backend_close(ref);
    lv_backend_close(be);
}

// --- sharing and failing ------------------------------------------------------------------------

enum { UNIT = 3, MOST_UNITS = 7 };

typedef struct share_job {
    lv_backend *be;
    float *dev;
    atomic_int n_units, n_bodies;
} share_job;

static lv_status fill_units(void *user, int first, int count) {
    share_job *job = user;
    atomic_fetch_add(&job->n_units, count);
    atomic_fetch_add(&job->n_bodies, 1);
    float values[UNIT * MOST_UNITS];
    for (int i = 0; i < UNIT * count; i++) {
        values[i] = (float)(UNIT * first + i);
    }
    return job->be->ops->upload_act(job->be, job->dev + UNIT * first, values,
                                    (size_t)(UNIT * count));
}

// Every member must have all of what all have made.
static void test_share(int tp, int n) {
    lv_backend *be = open_group(tp);
    const lv_group *group = (const lv_group *)be;
    float *nothing = poisoned(UNIT * MOST_UNITS);
    share_job job = {.be = be, .dev = to_dev(be, nothing, UNIT * MOST_UNITS)};
    CHECK_OK(be->ops->share(be, n, fill_units, &job, job.dev, UNIT * sizeof(float)));
    CHECK(job.n_units == n && job.n_bodies == (n < tp ? n : tp), "%d units in %d bodies",
          job.n_units, job.n_bodies);
    for (int member = 0; member < tp; member++) {
        const float *at = lv_group_at(group, member, job.dev);
        CHECK(member == 0 || at != job.dev, "member %d has no memory of its own", member);
        for (int i = 0; i < UNIT * n; i++) {
            CHECK(at[i] == (float)i, "tp %d, %d units, member %d: value %d is %g", tp, n, member, i,
                  (double)at[i]);
        }
    }
    be->ops->free(be, job.dev);
    free(nothing);
    lv_backend_close(be);
}

typedef struct pass_job {
    lv_backend *be;
    lv_linear *w;
    void *x;
    atomic_int n_calls;
    int failing; // which of the members that come, counted from 1; 0: none
} pass_job;

// One member fails before the exchange that the others go to, or wait at.
static lv_status pass_body(void *user, const lv_batch *batch) {
    pass_job *job = user;
    if (atomic_fetch_add(&job->n_calls, 1) + 1 == job->failing) {
        usleep(job->failing > 1 ? 1000 : 0);
        return lv_fail(LV_ELIMIT, "this member has enough");
    }
    return job->be->ops->linear(job->be, job->x, batch->n_tokens, job->w, LV_ACT_NONE, NULL,
                                job->x);
}

static void test_failure(int tp) {
    static const int32_t token_start[] = {0, 1}, kv_length[] = {1}, table[] = {0};
    lv_backend *be = open_group(tp);
    lv_linear_source source = dense_source(D, D, LV_F16, 0, false);
    const lv_linear_options options = {.split = LV_SPLIT_IN, .units = {D, 1}};
    const lv_batch batch = {.n_seqs = 1,
                            .n_tokens = 1,
                            .token_start = token_start,
                            .kv_length = kv_length,
                            .block_table = table,
                            .max_blocks = 1};
    float *x = random_floats(D);
    pass_job job = {.be = be, .x = to_dev(be, x, D)};
    CHECK_OK(be->ops->linear_load(be, &source, 1, &options, &job.w));
    for (int run = 0; run < 100; run++) {
        job.failing = run % 3 == 0 ? 1 : run % 3 == 1 ? tp : 0;
        job.n_calls = 0;
        const lv_status status = be->ops->pass(be, &batch, pass_body, &job);
        CHECK(status == (job.failing ? LV_ELIMIT : LV_OK), "run %d: %s", run,
              lv_status_name(status));
        CHECK(!job.failing || strcmp(lv_error(), "this member has enough") == 0, "%s", lv_error());
        CHECK(job.n_calls == tp, "%d calls", job.n_calls);
    }
    be->ops->linear_free(be, job.w);
    be->ops->free(be, job.x);
    free(x);
    free_source(&source, 0);
    lv_backend_close(be);
}

int main(void) {
    test_units();
    test_layers();
    test_pairs();
    test_copies();
    test_refusals();
    test_logits(2, 256, 1);
    test_logits(2, 256, 3);
    test_logits(3, 96, 3);
    test_logits(3, 100, 3); // cannot be split: every member does all
    for (int tp = 2; tp <= 3; tp++) {
        test_share(tp, 1);
        test_share(tp, 5);
        test_share(tp, MOST_UNITS);
        test_failure(tp);
    }
    return check_done();
}
