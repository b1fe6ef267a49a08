// Norms, patch embedding, gather, embedding table, SwiGLU, logits, memory and opening: every
// instruction set against the reference.
#include "tests/unit/kernels_util.h"

static void test_layer_norm(lv_backend *ref, lv_backend *be, const char *name) {
    static const int widths[] = {1, 7, 64, 100, 1024};
    for (int i = 0; i < 5; i++) {
        int d = widths[i], m = i == 4 ? 100 : 3;
        size_t n = (size_t)(m * d);
        float *x = random_floats(n), *w = random_floats((size_t)d), *b = random_floats((size_t)d);
        float *want = poisoned(n), *got = poisoned(n);
        for (size_t k = 0; k < n; k++) {
            x[k] += 3.0f;
        }
        CHECK_OK(ref->ops->layer_norm(ref, x, m, d, w, b, 1e-5f, want));
        CHECK_OK(be->ops->layer_norm(be, x, m, d, w, b, 1e-5f, got));
        double error = relative_error(got, want, n);
        CHECK(error < 3e-6, "%s: layer_norm %d: %g", name, d, error);
        free(x), free(w), free(b), free(want), free(got);
    }
}

static void test_patch_embed(lv_backend *ref, lv_backend *be, const char *name) {
    enum { N = 2, SIDE = 29, PATCH = 7, D = 20, ROWS = 17 }; // a rest of one pixel is left out
    lv_linear_source source = dense_source(D, 3 * PATCH * PATCH, LV_F32, 0, false);
    float *levels = random_floats(3 * 256), *cls = random_floats(D);
    uint8_t rgb[N * SIDE * SIDE * 3];
    float *positions = random_floats(ROWS * D);
    float *out[2] = {poisoned(N * ROWS * D), poisoned(N * ROWS * D)};
    lv_backend *both[2] = {ref, be};
    for (size_t i = 0; i < sizeof rgb; i++) {
        rgb[i] = (uint8_t)(i * 7919 % 257);
    }
    for (int i = 0; i < 2; i++) {
        lv_linear *w = NULL;
        CHECK_OK(both[i]->ops->linear_load(both[i], &source, 1, NULL, &w));
        CHECK_OK(both[i]->ops->patch_embed(both[i], rgb, levels, N, SIDE, PATCH, w, cls, positions,
                                           out[i]));
        both[i]->ops->linear_free(both[i], w);
    }
    double error = relative_error(out[1], out[0], N * ROWS * D);
    CHECK(error < 2e-6, "%s: patch_embed: %g", name, error);
    free(levels), free(cls), free(positions), free(out[0]), free(out[1]);
    free_source(&source, 0);
}

static void test_swiglu_and_logits(lv_backend *ref, lv_backend *be, const char *name, bool awq) {
    enum { M = 19, D = 64, FF = 88 };
    lv_linear_source parts[2];
    for (int i = 0; i < 2; i++) {
        parts[i] = awq ? awq_source(FF, D, 32, false) : dense_source(FF, D, LV_BF16, 1, false);
    }
    static const int32_t rows[3] = {18, 0, 7};
    const lv_batch batch = {.n_tokens = M, .n_logits = 3, .logit_rows = rows};
    float *x = random_floats(M * D), *norm = random_floats(D);
    float *ff[2] = {poisoned(M * FF), poisoned(M * FF)};
    float *logits[2] = {poisoned(3 * 2 * FF), poisoned(3 * 2 * FF)};
    lv_backend *both[2] = {ref, be};
    for (int i = 0; i < 2; i++) {
        lv_linear *w = NULL;
        CHECK_OK(both[i]->ops->linear_load(both[i], parts, 2, NULL, &w));
        CHECK_OK(both[i]->ops->norm_gate_up_silu(both[i], x, M, norm, 1e-6f, w, ff[i]));
        CHECK_OK(both[i]->ops->norm_logits(both[i], &batch, x, norm, 1e-6f, w, logits[i]));
        both[i]->ops->linear_free(both[i], w);
    }
    double bar = awq ? 2e-4 : 3e-6;
    double error = relative_error(ff[1], ff[0], M * FF);
    CHECK(error < bar, "%s, awq %d: norm_gate_up_silu: %g", name, awq, error);
    error = relative_error(logits[1], logits[0], 3 * 2 * FF);
    CHECK(error < bar, "%s, awq %d: norm_logits: %g", name, awq, error);
    for (int i = 0; i < 2; i++) {
        free(ff[i]), free(logits[i]);
        free_source(&parts[i], awq ? 0 : 1);
    }
    free(x), free(norm);
}

// Logits of dense heads, odd widths and all: the reference's, and for each row the same bits alone
// and among others, with one thread and with three.
static void test_logits(lv_backend *ref, lv_backend *one, lv_backend *three, const char *name) {
    static const lv_dtype dtypes[] = {LV_F32, LV_F16, LV_BF16};
    static const int widths[][2] = {{130, 37}, {33, 300}, {300, 2080}}; // vocabulary, inputs
    enum { M = 7 };
    for (int i = 0; i < 9; i++) {
        int vocab = widths[i / 3][0], d = widths[i / 3][1];
        lv_linear_source head = dense_source(vocab, d, dtypes[i % 3], (size_t)(i % 3) + 1, true);
        lv_backend *all[3] = {ref, one, three};
        float *x = random_floats((size_t)(M * d)), *norm = random_floats((size_t)d), *logits[3];
        float *alone = poisoned((size_t)vocab);
        int32_t rows[M] = {6, 0, 3, 3, 1, 5, 2};
        const lv_batch batch = {.n_tokens = M, .n_logits = M, .logit_rows = rows};
        lv_linear *w[3];
        for (int b = 0; b < 3; b++) {
            logits[b] = poisoned((size_t)(M * vocab));
            CHECK_OK(all[b]->ops->linear_load(all[b], &head, 1, NULL, &w[b]));
            CHECK_OK(all[b]->ops->norm_logits(all[b], &batch, x, norm, 1e-6f, w[b], logits[b]));
        }
        size_t n = (size_t)(M * vocab);
        double error = relative_error(logits[1], logits[0], n);
        CHECK(error < 2e-6, "%s: logits %d: %g", name, i, error);
        CHECK(!memcmp(logits[1], logits[2], n * 4), "%s: logits %d: threads change bits", name, i);
        for (int r = 0; r < M; r++) {
            const lv_batch single = {.n_tokens = M, .n_logits = 1, .logit_rows = &rows[r]};
            CHECK_OK(one->ops->norm_logits(one, &single, x, norm, 1e-6f, w[1], alone));
            CHECK(memcmp(alone, logits[1] + r * vocab, (size_t)vocab * 4) == 0,
                  "%s: logits %d: row %d alone and among %d", name, i, r, M);
        }
        for (int b = 0; b < 3; b++) {
            all[b]->ops->linear_free(all[b], w[b]);
            free(logits[b]);
        }
        free(x), free(norm), free(alone);
        free_source(&head, (size_t)(i % 3) + 1);
    }
}

// The activations over the whole range, where exp must neither overflow nor lose its sign.
static void test_activation_range(lv_backend *ref, lv_backend *be, const char *name) {
    static const float one = 1.0f;
    lv_linear_source source = {.n_out = 1, .n_in = 1, .weight = {&one, LV_F32, 2, {1, 1}}};
    enum { N = 4001 };
    float *x = poisoned(N), *want = poisoned(N), *got = poisoned(N);
    for (int i = 0; i < N; i++) {
        x[i] = (float)(i - N / 2) * 0.1f;
    }
    for (int a = LV_ACT_NONE; a <= LV_ACT_SILU; a++) {
        lv_linear *w[2] = {NULL, NULL};
        CHECK_OK(ref->ops->linear_load(ref, &source, 1, NULL, &w[0]));
        CHECK_OK(be->ops->linear_load(be, &source, 1, NULL, &w[1]));
        CHECK_OK(ref->ops->linear(ref, x, N, w[0], (lv_activation)a, NULL, want));
        CHECK_OK(be->ops->linear(be, x, N, w[1], (lv_activation)a, NULL, got));
        for (int i = 0; i < N; i++) {
            CHECK(fabsf(got[i] - want[i]) <= 2e-6f * fabsf(want[i]) + 1e-30f,
                  "%s: activation %d of %g: %g, wanted %g", name, a, (double)x[i], (double)got[i],
                  (double)want[i]);
        }
        ref->ops->linear_free(ref, w[0]);
        be->ops->linear_free(be, w[1]);
    }
    free(x), free(want), free(got);
}

static void test_tables(lv_backend *be) {
    lv_linear_source source = dense_source(5, 3, LV_F16, 1, false);
    lv_linear *table = NULL;
    int32_t ids[3] = {4, 0, 4}, bad[1] = {5}, index[3] = {1, -1, 0};
    float out[9], extra[3] = {7, 8, 9}, *loaded;
    CHECK_OK(be->ops->linear_load(be, &source, 1, NULL, &table));
    lv_batch batch = {.n_tokens = 3, .ids = ids}, bad_batch = {.n_tokens = 1, .ids = bad};
    CHECK_OK(be->ops->embed(be, &batch, table, out));
    for (int i = 0; i < 9; i++) {
        uint16_t half;
        memcpy(&half, (const uint8_t *)source.weight.data + (ids[i / 3] * 3 + i % 3) * 2, 2);
        CHECK(out[i] == lv_f16_to_f32(half), "embed %d", i);
    }
    CHECK_STATUS(be->ops->embed(be, &bad_batch, table, out), LV_EINVAL);
    float gathered[9];
    CHECK_OK(be->ops->gather_rows(be, out, extra, index, 3, 3, gathered));
    CHECK(memcmp(gathered, out + 3, 12) == 0 && memcmp(gathered + 3, extra, 12) == 0 &&
              memcmp(gathered + 6, out, 12) == 0,
          "gather_rows");
    CHECK_STATUS(be->ops->gather_rows(be, out, NULL, index, 3, 3, gathered), LV_EINVAL);
    CHECK_OK(be->ops->tensor_load(be, &source.weight, &loaded));
    CHECK(loaded[12] == out[0] && loaded[14] == out[2], "tensor_load");
    be->ops->free(be, loaded);
    be->ops->linear_free(be, table);
    free_source(&source, 1);
}

static void test_memory(lv_backend *be) {
    float host[5] = {1, 2, 3, 4, 5}, back[5] = {0};
    void *dev = NULL;
    CHECK_OK(be->ops->alloc(be, sizeof host, &dev));
    CHECK((uintptr_t)dev % 64 == 0, "alignment");
    CHECK_OK(be->ops->upload(be, dev, host, sizeof host));
    CHECK_OK(be->ops->download_act(be, back, dev, 5));
    CHECK(memcmp(host, back, sizeof host) == 0, "upload and download_act");
    CHECK_OK(be->ops->sync(be));
    be->ops->free(be, dev);
    CHECK_STATUS(be->ops->alloc(be, SIZE_MAX, &dev), LV_ENOMEM);
    be->ops->free(be, NULL);
}

static void test_open(void) {
    lv_backend *be = NULL;
    lv_backend_options options = {.device = "cuda:99"};
    CHECK_STATUS(lv_backend_open(&options, &be), LV_EDEVICE);
    CHECK(strstr(lv_error(), "cuda:99") && !be, "the message names the device: %s", lv_error());
    options.device = "tpu";
    CHECK_STATUS(lv_backend_open(&options, &be), LV_EINVAL);
    options = (lv_backend_options){.device = "cpu", .n_threads = -1};
    CHECK_STATUS(lv_backend_open(&options, &be), LV_EINVAL);
    setenv("LV_CPU_ISA", "mmx", 1);
    options.n_threads = 2;
    CHECK_STATUS(lv_backend_open(&options, &be), LV_EINVAL);
    unsetenv("LV_CPU_ISA");
    CHECK_OK(lv_backend_open(&options, &be));
    CHECK(be && strstr(be->device, "CPU, 2 threads, "), "%s", be->device);
    lv_backend_close(be);
    CHECK_OK(lv_backend_open(NULL, &be));
    lv_backend_close(be);
    lv_backend_close(NULL);
}

int main(void) {
    lv_backend *ref = open_reference();
    for (int isa = 0; isa < N_ISAS; isa++) {
        lv_backend *be = open_isa(isa, 3), *one = open_isa(isa, 1);
        if (be) {
            test_logits(ref, one, be, isas[isa]);
            test_layer_norm(ref, be, isas[isa]);
            test_patch_embed(ref, be, isas[isa]);
            test_swiglu_and_logits(ref, be, isas[isa], false);
            test_swiglu_and_logits(ref, be, isas[isa], true);
            test_activation_range(ref, be, isas[isa]);
            test_tables(be);
            test_memory(be);
        }
        lv_backend_close(be);
        lv_backend_close(one);
    }
    test_tables(ref);
    lv_backend_close(ref);
    test_open();
    return check_done();
}
