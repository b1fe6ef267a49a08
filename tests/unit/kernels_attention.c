// Attention of every instruction set against the reference: batches of several sequences with
// different lengths, page edges, grouped heads, windows, f16 and i8 caches, stale memory, and bits
// that do not depend on the batch or the threads.
#include "tests/unit/kernels_util.h"

#include "kernels/cpu/cpu.h"

#define MAX_BLOCKS 4
#define N_BLOCKS 13

typedef struct setup {
    lv_attention_shape shape;
    int n_seqs;
    int length[4], n_new[4]; // tokens cached before this pass; new tokens
    lv_dtype kv_dtype;
} setup;

typedef struct batch_data {
    lv_batch batch;
    int32_t token_start[5], kv_length[4], table[4 * MAX_BLOCKS];
    float inv_freq[4 * 128], rope_scale[4];
} batch_data;

// Sequences `first` .. `first + n - 1` of the setup; pass 0 fills the cache up to length, pass 1
// adds n_new.
static void make_batch(const setup *s, int first, int n, int pass, batch_data *d) {
    int half = s->shape.head_dim / 2;
    memset(d, 0, sizeof *d);
    for (int i = 0; i < n; i++) {
        int seq = first + i, n_new = pass ? s->n_new[seq] : s->length[seq];
        d->token_start[i + 1] = d->token_start[i] + n_new;
        d->kv_length[i] = s->length[seq] + (pass ? s->n_new[seq] : 0);
        for (int b = 0; b < MAX_BLOCKS; b++) { // blocks in no order
            d->table[i * MAX_BLOCKS + b] = (seq * 5 + b * 7 + 1) % N_BLOCKS;
        }
        for (int k = 0; k < half; k++) {
            d->inv_freq[i * half + k] = powf(10000.0f + (float)seq, -(float)k / (float)half);
        }
        d->rope_scale[i] = seq == 1 ? 1.1f : 1.0f;
    }
    d->batch = (lv_batch){.n_seqs = n,
                          .n_tokens = d->token_start[n],
                          .token_start = d->token_start,
                          .kv_length = d->kv_length,
                          .block_table = d->table,
                          .max_blocks = MAX_BLOCKS,
                          .inv_freq = d->inv_freq,
                          .rope_scale = d->rope_scale};
}

typedef struct model {
    lv_linear_source qkv;
    float *norm;
    float *x[2]; // inputs of the two passes, all sequences
    int d;
} model;

static void poison_cache(lv_backend *be, lv_kv *kv, const setup *s) {
    // Freed pages keep what they had: fill all of them with NaN by a pass of NaN tokens.
    setup all = *s;
    batch_data d;
    all.n_seqs = 1;
    for (int b = 0; b < N_BLOCKS; b++) {
        int d_model = 16, n_out = (s->shape.n_heads + 2 * s->shape.n_kv_heads) * s->shape.head_dim;
        lv_linear_source source = dense_source(n_out, d_model, LV_F32, 0, false);
        lv_linear *linear = NULL;
        float *x = poisoned((size_t)(64 * d_model)), *norm = random_floats((size_t)d_model);
        float *q = poisoned((size_t)(64 * s->shape.n_heads * s->shape.head_dim));
        all.length[0] = 64;
        make_batch(&all, 0, 1, 0, &d);
        d.table[0] = b;
        CHECK_OK(be->ops->linear_load(be, &source, 1, NULL, &linear));
        CHECK_OK(be->ops->norm_qkv_rope_append(be, &d.batch, &s->shape, x, norm, 1e-5f, linear, kv,
                                               0, q));
        CHECK_OK(be->ops->norm_qkv_rope_append(be, &d.batch, &s->shape, x, norm, 1e-5f, linear, kv,
                                               1, q));
        be->ops->linear_free(be, linear);
        free(x);
        free(norm);
        free(q);
        free_source(&source, 0);
    }
}

// Both passes over sequences first .. first + n - 1; returns q and attention of the second pass.
// The CPU's tables share a cache's layout, so that one backend can read what another appended.
static void run_passes(lv_backend *be, lv_backend *reader, const setup *s, const model *m,
                       int first, int n, float **q, float **out) {
    int n_heads = s->shape.n_heads, hd = s->shape.head_dim;
    lv_linear *qkv = NULL;
    lv_kv *kv = NULL;
    batch_data d;
    CHECK_OK(be->ops->linear_load(be, &m->qkv, 1, NULL, &qkv));
    CHECK_OK(be->ops->kv_create(be, 2, s->shape.n_kv_heads, hd, N_BLOCKS, s->kv_dtype, &kv));
    poison_cache(be, kv, s);
    for (int pass = 0; pass < 2; pass++) {
        int skip = 0;
        for (int i = 0; i < first; i++) {
            skip += pass ? s->n_new[i] : s->length[i];
        }
        make_batch(s, first, n, pass, &d);
        size_t count = (size_t)(d.batch.n_tokens * n_heads * hd);
        *q = poisoned(count);
        *out = poisoned(count);
        const float *x = m->x[pass] + (ptrdiff_t)skip * m->d;
        CHECK_OK(be->ops->norm_qkv_rope_append(be, &d.batch, &s->shape, x, m->norm, 1e-5f, qkv, kv,
                                               1, *q));
        CHECK_OK(reader->ops->attention(reader, &d.batch, &s->shape, *q, kv, 1, *out));
        if (pass == 0) {
            free(*q);
            free(*out);
        }
    }
    be->ops->kv_free(be, kv);
    be->ops->linear_free(be, qkv);
}

static model make_model(const setup *s) {
    model m = {.d = 48};
    int n_out = (s->shape.n_heads + 2 * s->shape.n_kv_heads) * s->shape.head_dim, n[2] = {0, 0};
    for (int i = 0; i < s->n_seqs; i++) {
        n[0] += s->length[i];
        n[1] += s->n_new[i];
    }
    m.qkv = dense_source(n_out, m.d, LV_F32, 0, true);
    m.norm = random_floats((size_t)m.d);
    m.x[0] = random_floats((size_t)(n[0] * m.d));
    m.x[1] = random_floats((size_t)(n[1] * m.d));
    return m;
}

static void free_model(model *m) {
    free_source(&m->qkv, 0);
    free(m->norm);
    free(m->x[0]);
    free(m->x[1]);
}

// What appending with other last bits may do to attention: an f16 cache rounds such a value to
// another half. An i8 cache moves a value by a step of max / 127 where it stood within 127 * 2e-6
// of the middle of two: less than one value in 1000, and a step is about 2% of the values' norm.
static double append_bar(lv_dtype kv_dtype) {
    return kv_dtype == LV_I8 ? 1e-3 : kv_dtype == LV_F16 ? 1e-4 : 3e-6;
}

static void test_sequences_alone(lv_backend *be, const setup *s, const model *m, const float *out,
                                 const char *name) {
    int width = s->shape.n_heads * s->shape.head_dim, skip = 0;
    float *q, *alone;
    for (int i = 0; i < s->n_seqs; i++) {
        run_passes(be, be, s, m, i, 1, &q, &alone);
        CHECK(memcmp(alone, out + skip * width, (size_t)(s->n_new[i] * width) * 4) == 0,
              "%s: sequence %d alone and in a batch", name, i);
        skip += s->n_new[i];
        free(q);
        free(alone);
    }
}

static void test_setup(lv_backend *ref, lv_backend *be[N_ISAS][2], const setup *s, int index) {
    model m = make_model(s);
    float *want_q, *want, *q, *out;
    int width = s->shape.n_heads * s->shape.head_dim, n_tokens = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        n_tokens += s->n_new[i];
    }
    size_t n = (size_t)(n_tokens * width);
    run_passes(ref, ref, s, &m, 0, s->n_seqs, &want_q, &want);
    for (int isa = 0; isa < N_ISAS; isa++) {
        for (int t = 0; t < 2 && be[isa][t]; t++) {
            char name[64];
            snprintf(name, sizeof name, "%s, setup %d, %s", isas[isa], index,
                     lv_dtype_name(s->kv_dtype));
            run_passes(ref, be[isa][t], s, &m, 0, s->n_seqs, &q, &out);
            double error = relative_error(out, want, n);
            CHECK(error < 3e-6, "%s: attention over the same cache %g", name, error);
            free(q);
            free(out);
            run_passes(be[isa][t], be[isa][t], s, &m, 0, s->n_seqs, &q, &out);
            double error_q = relative_error(q, want_q, n);
            error = relative_error(out, want, n);
            CHECK(error_q < 2e-6, "%s: q %g", name, error_q);
            CHECK(error < append_bar(s->kv_dtype), "%s: attention %g", name, error);
            test_sequences_alone(be[isa][0], s, &m, out, name);
            free(q);
            free(out);
        }
    }
    free(want_q);
    free(want);
    free_model(&m);
}

// New tokens one after another and all at once: the same bits, though many rows take other ways
// through the kernels than few.
static void test_steps(lv_backend *be, const char *isa, lv_dtype kv_dtype) {
    enum { N = 19 };
    setup s = {{4, 2, 24, 0}, 1, {58}, {N}, kv_dtype}, step = s;
    model m = make_model(&s);
    float *q, *together, one_q[4 * 24], one[4 * 24];
    lv_linear *qkv = NULL;
    lv_kv *kv = NULL;
    batch_data d;
    run_passes(be, be, &s, &m, 0, 1, &q, &together);
    CHECK_OK(be->ops->linear_load(be, &m.qkv, 1, NULL, &qkv));
    CHECK_OK(be->ops->kv_create(be, 1, 2, 24, N_BLOCKS, kv_dtype, &kv));
    for (int i = 0; i < 58 + N; i++) {
        const float *x = i < 58 ? m.x[0] + i * m.d : m.x[1] + (i - 58) * m.d;
        step.length[0] = i;
        step.n_new[0] = 1;
        make_batch(&step, 0, 1, 1, &d);
        CHECK_OK(be->ops->norm_qkv_rope_append(be, &d.batch, &s.shape, x, m.norm, 1e-5f, qkv, kv, 0,
                                               one_q));
        CHECK_OK(be->ops->attention(be, &d.batch, &s.shape, one_q, kv, 0, one));
        CHECK(i < 58 || memcmp(one, together + (i - 58) * 4 * 24, sizeof one) == 0,
              "%s %s: token %d alone and among %d", isa, lv_dtype_name(kv_dtype), i, N);
    }
    be->ops->kv_free(be, kv);
    be->ops->linear_free(be, qkv);
    free(q);
    free(together);
    free_model(&m);
}

// One token attends to itself alone: the output is its value as the cache keeps it.
static void test_i8_rounding(lv_backend *be, const char *name) {
    enum { HEADS = 3, HD = 40 };
    setup s = {{HEADS, HEADS, HD, 0}, 1, {0}, {1}, LV_F32};
    model m = make_model(&s);
    float *q, *value, *kept;
    run_passes(be, be, &s, &m, 0, 1, &q, &value);
    free(q);
    s.kv_dtype = LV_I8;
    run_passes(be, be, &s, &m, 0, 1, &q, &kept);
    for (int h = 0; h < HEADS; h++) {
        float max = 0, off = 0, off_at_max = 1;
        for (int i = h * HD; i < (h + 1) * HD; i++) {
            float d = fabsf(kept[i] - value[i]);
            off = fmaxf(off, d);
            if (fabsf(value[i]) > max) {
                max = fabsf(value[i]);
                off_at_max = d;
            }
        }
        CHECK(off <= max / 254 * 1.0001f, "%s: %g off, half a step is %g", name, off, max / 254);
        CHECK(off_at_max <= max * 1e-6f, "%s: the largest is %g off", name, off_at_max);
    }
    free(q);
    free(value);
    free(kept);
    free_model(&m);
}

// i8 against f32. Rounding is off by max / 127 / sqrt(12) on average, and max is up to 2.8 times
// the rms of 128 numbers: r = 0.64% of a value's norm; of a score, r rms(q) rms(k), which moves its
// probability by this factor. Averaging over tokens keeps what the values have in common and takes
// from the errors, which have nothing in common: 0.30% to 0.45% are left here, and r is the bar.
// One bit less would double them.
static void test_i8_error(lv_backend *be, const char *name, const setup *s) {
    model m = make_model(s);
    setup f32 = *s;
    float *q, *want, *out;
    size_t n = 0;
    f32.kv_dtype = LV_F32;
    for (int i = 0; i < s->n_seqs; i++) {
        n += (size_t)(s->n_new[i] * s->shape.n_heads * s->shape.head_dim);
    }
    run_passes(be, be, &f32, &m, 0, s->n_seqs, &q, &want);
    free(q);
    run_passes(be, be, s, &m, 0, s->n_seqs, &q, &out);
    double error = relative_error(out, want, n);
    CHECK(error > 1e-3 && error < 6.4e-3, "%s: i8 is %g from f32", name, error);
    free(q);
    free(want);
    free(out);
    free_model(&m);
}

static void test_image_attention(lv_backend *ref, lv_backend *be, const char *name) {
    static const int shapes[][4] = {// images, rows, heads, head_dim
                                    {1, 1, 1, 8},
                                    {2, 17, 3, 20},
                                    {1, 50, 2, 64},
                                    {3, 101, 2, 40}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int n = shapes[i][0], rows = shapes[i][1], heads = shapes[i][2], hd = shapes[i][3];
        size_t count = (size_t)(n * rows * heads * hd);
        float *qkv = random_floats(count * 3), *want = poisoned(count), *got = poisoned(count);
        CHECK_OK(ref->ops->image_attention(ref, qkv, n, rows, heads, hd, want));
        CHECK_OK(be->ops->image_attention(be, qkv, n, rows, heads, hd, got));
        double error = relative_error(got, want, count);
        CHECK(error < 3e-6, "%s: image attention %d x %d: %g", name, rows, hd, error);
        free(qkv);
        free(want);
        free(got);
    }
}

// A copied block is what the other one is in every layer; all else stays.
static void test_copies(lv_backend *be, lv_dtype kv_dtype) {
    enum { N_LAYERS = 3, N_PLACES = 5, FROM = 3, TO = 1 };
    lv_kv *kv = NULL;
    CHECK_OK(be->ops->kv_create(be, N_LAYERS, 3, 6, N_PLACES, kv_dtype, &kv));
    const size_t block_bytes = 2 * 3 * kv->page_bytes, n_bytes = N_LAYERS * N_PLACES * block_bytes;
    uint8_t *want = malloc(n_bytes);
    for (size_t i = 0; i < n_bytes; i++) {
        want[i] = kv->data[i] = (uint8_t)rng();
    }
    CHECK_OK(be->ops->kv_copy(be, kv, FROM, TO));
    for (size_t i = 0; i < N_LAYERS; i++) {
        memcpy(want + (i * N_PLACES + TO) * block_bytes, want + (i * N_PLACES + FROM) * block_bytes,
               block_bytes);
    }
    CHECK(memcmp(kv->data, want, n_bytes) == 0, "%s: a block copied", lv_dtype_name(kv_dtype));
    CHECK_STATUS(be->ops->kv_copy(be, kv, N_PLACES, 0), LV_EINVAL);
    CHECK_STATUS(be->ops->kv_copy(be, kv, 0, -1), LV_EINVAL);
    be->ops->kv_free(be, kv);
    free(want);
}

static void test_refusals(lv_backend *be) {
    lv_kv *kv = NULL;
    lv_attention_shape shape = {2, 1, 8, 0};
    setup s = {.shape = shape, .n_seqs = 1, .length = {10}};
    batch_data d;
    float x[80 * 2];
    CHECK_STATUS(be->ops->kv_create(be, 1, 1, 8, 4, LV_BF16, &kv), LV_EUNSUPPORTED);
    CHECK_STATUS(be->ops->kv_create(be, 1, 1, 8, 0, LV_F32, &kv), LV_EINVAL);
    CHECK_STATUS(be->ops->kv_create(be, 1 << 20, 1 << 10, 1 << 10, 1 << 30, LV_F32, &kv),
                 LV_ENOMEM);
    CHECK_OK(be->ops->kv_create(be, 1, 1, 8, 4, LV_NONE, &kv));
    CHECK(be->ops->kv_block_bytes(be, 1, 1, 8, LV_NONE) == 2 * 8 * 64 * 4, "f32 by default");
    CHECK(be->ops->kv_block_bytes(be, 3, 2, 8, LV_I8) == 3 * 2 * 2 * 64 * (8 + 4), "a scale each");
    make_batch(&s, 0, 1, 0, &d);
    d.table[0] = 4;
    CHECK_STATUS(be->ops->attention(be, &d.batch, &shape, x, kv, 0, x), LV_EINVAL);
    d.table[0] = 0;
    CHECK_STATUS(be->ops->attention(be, &d.batch, &shape, x, kv, 1, x), LV_EINVAL);
    be->ops->kv_free(be, kv);
    be->ops->kv_free(be, NULL);
}

int main(void) {
    static const setup setups[] = {
        {{4, 4, 16, 0}, 1, {5}, {1}, LV_F32},
        {{4, 2, 24, 0}, 3, {63, 64, 65}, {1, 1, 1}, LV_F32},
        {{6, 1, 64, 0}, 2, {62, 100}, {3, 29}, LV_F32},
        {{2, 2, 128, 0}, 2, {1, 64}, {130, 70}, LV_F32},
        {{4, 2, 8, 10}, 3, {63, 9, 130}, {5, 3, 1}, LV_F32},
        {{2, 1, 20, 64}, 2, {127, 30}, {66, 40}, LV_F32},
        {{64, 1, 8, 0}, 1, {70}, {3}, LV_F32},
        {{4, 2, 24, 0}, 3, {63, 64, 65}, {1, 4, 1}, LV_F16},
        {{6, 1, 64, 0}, 2, {62, 100}, {3, 29}, LV_F16},
        {{4, 4, 16, 0}, 1, {5}, {1}, LV_I8},
        {{4, 2, 24, 0}, 3, {63, 64, 65}, {1, 4, 1}, LV_I8},
        {{6, 1, 64, 0}, 2, {62, 100}, {3, 29}, LV_I8},
        {{2, 2, 128, 0}, 2, {1, 64}, {130, 70}, LV_I8},
        {{4, 2, 8, 10}, 3, {63, 9, 130}, {5, 3, 1}, LV_I8},
        {{2, 1, 20, 64}, 2, {127, 30}, {66, 40}, LV_I8},
    };
    lv_backend *ref = open_reference(), *be[N_ISAS][2];
    for (int isa = 0; isa < N_ISAS; isa++) {
        be[isa][0] = open_isa(isa, 1);
        be[isa][1] = open_isa(isa, 3);
        if (be[isa][1]) {
            test_image_attention(ref, be[isa][1], isas[isa]);
            test_i8_rounding(be[isa][0], isas[isa]);
            test_steps(be[isa][1], isas[isa], LV_F32);
            test_steps(be[isa][1], isas[isa], LV_F16);
            test_steps(be[isa][1], isas[isa], LV_I8);
        }
    }
    for (size_t i = 0; i < sizeof setups / sizeof *setups; i++) {
        test_setup(ref, be, &setups[i], (int)i);
        if (setups[i].kv_dtype == LV_I8) {
            test_i8_error(ref, "reference", &setups[i]);
        }
    }
    test_i8_rounding(ref, "reference");
    test_refusals(ref);
    test_copies(ref, LV_F32);
    test_copies(ref, LV_F16);
    test_copies(ref, LV_I8);
    for (int isa = 0; isa < N_ISAS; isa++) {
        lv_backend_close(be[isa][0]);
        lv_backend_close(be[isa][1]);
    }
    lv_backend_close(ref);
    return check_done();
}
