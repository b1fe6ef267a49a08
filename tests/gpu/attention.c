// Attention on the GPU against double precision over what the cache holds: decode, prefill, both in
// one batch, windows, grouped heads, page edges, i8; and bits that depend on nothing but the
// sequence itself. `--bench` times instead, `--bench quick` at the sizes of the bars.
#include "tests/gpu/util.h"

#ifndef LV_HAVE_CUDA

int main(void) {
    return check_skip("built without CUDA");
}

#else

#include "kernels/cuda/cuda.h"
#include "tests/gpu/attention_bench.h"

#define MAX_SEQS 64
#define LAYER 1 // of 2

// One sequence: inputs of all its tokens, and keys and values as the cache holds them.
typedef struct sequence {
    int length;
    float *q;     // [length, n_heads head_dim]
    float *k, *v; // [length, n_kv_heads head_dim]
    float *kept_k, *kept_v;
} sequence;

typedef struct world {
    const char *name;
    lv_attention_shape shape;
    lv_dtype kv_dtype;
    int n_seqs, max_blocks, n_blocks;
    sequence seqs[MAX_SEQS];
    int32_t *table; // [n_seqs, max_blocks]
    lv_kv *kv;
} world;

// What a pass computes: the tokens [from, from + n_new) of some sequences.
typedef struct part {
    int seq, from, n_new;
} part;

// --- inputs -------------------------------------------------------------------------------------

static float *halves(size_t n, float factor) {
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        int sum = (int)(rng() & 1023) + (int)(rng() & 1023) + (int)(rng() & 1023) - 1535;
        x[i] = lv_f16_to_f32(lv_f32_to_f16((float)sum / 512.0f * factor));
    }
    return x;
}

// As the CPU's quantise_i8, and back.
static void round_i8(const float *x, int n, float *kept) {
    float most = 0;
    for (int i = 0; i < n; i++) {
        most = fmaxf(most, fabsf(x[i]));
    }
    float inverse = most > 1e-30f ? 127.0f / most : 0;
    for (int i = 0; i < n; i++) {
        kept[i] = rintf(x[i] * inverse) * (most / 127.0f);
    }
}

static float *kept(const float *x, size_t n, int head_dim, lv_dtype dtype) {
    float *y = malloc((n + 1) * sizeof *y);
    memcpy(y, x, n * sizeof *y);
    for (size_t i = 0; dtype == LV_I8 && i < n; i += (size_t)head_dim) {
        round_i8(x + i, head_dim, y + i);
    }
    return y;
}

static void fill_with_nan(lv_backend *be, const lv_kv *kv) {
    size_t step = kv->n_bytes < 1 << 24 ? kv->n_bytes : 1 << 24;
    uint8_t *bytes = malloc(step);
    memset(bytes, 0xFF, step);
    for (size_t at = 0; at < kv->n_bytes; at += step) {
        size_t n = kv->n_bytes - at < step ? kv->n_bytes - at : step;
        CHECK_OK(be->ops->upload(be, kv->data + at, bytes, n));
    }
    free(bytes);
}

static world *make_world(lv_backend *be, const char *name, lv_attention_shape shape,
                         lv_dtype kv_dtype, int n_seqs, const int *lengths) {
    world *w = calloc(1, sizeof *w);
    *w = (world){.name = name, .shape = shape, .kv_dtype = kv_dtype, .n_seqs = n_seqs};
    size_t width = (size_t)(shape.n_kv_heads * shape.head_dim);
    for (int s = 0; s < n_seqs; s++) {
        sequence *q = &w->seqs[s];
        size_t n = (size_t)lengths[s] * width;
        int n_blocks = (lengths[s] + LV_KV_BLOCK - 1) / LV_KV_BLOCK;
        q->length = lengths[s];
        q->q = halves((size_t)(lengths[s] * shape.n_heads * shape.head_dim), 2.0f);
        q->k = halves(n, 1.0f);
        q->v = halves(n, 1.0f);
        q->kept_k = kept(q->k, n, shape.head_dim, kv_dtype);
        q->kept_v = kept(q->v, n, shape.head_dim, kv_dtype);
        w->n_blocks += n_blocks;
        w->max_blocks = n_blocks > w->max_blocks ? n_blocks : w->max_blocks;
    }
    // Blocks in no order: the next free one after a jump.
    w->table = calloc((size_t)(n_seqs * w->max_blocks) + 1, sizeof *w->table);
    uint8_t *used = calloc((size_t)w->n_blocks, 1);
    for (int s = 0; s < n_seqs; s++) {
        for (int b = 0; b * LV_KV_BLOCK < lengths[s]; b++) {
            int block = (int)(rng() % (unsigned)w->n_blocks);
            while (used[block]) {
                block = (block + 1) % w->n_blocks;
            }
            used[block] = 1;
            w->table[s * w->max_blocks + b] = block;
        }
    }
    free(used);
    CHECK_OK(
        be->ops->kv_create(be, 2, shape.n_kv_heads, shape.head_dim, w->n_blocks, kv_dtype, &w->kv));
    fill_with_nan(be, w->kv);
    return w;
}

static void free_world(lv_backend *be, world *w) {
    for (int s = 0; s < w->n_seqs; s++) {
        free(w->seqs[s].q);
        free(w->seqs[s].k);
        free(w->seqs[s].v);
        free(w->seqs[s].kept_k);
        free(w->seqs[s].kept_v);
    }
    be->ops->kv_free(be, w->kv);
    free(w->table);
    free(w);
}

// --- passes -------------------------------------------------------------------------------------

// The batch of some parts; its arrays stay until the next call.
static lv_batch make_batch(const world *w, const part *parts, int n_parts) {
    static int32_t start[MAX_SEQS + 1], length[MAX_SEQS], *table;
    table = realloc(table, (size_t)(n_parts * w->max_blocks) * sizeof *table);
    for (int i = 0; i < n_parts; i++) {
        start[i + 1] = start[i] + parts[i].n_new;
        length[i] = parts[i].from + parts[i].n_new;
        memcpy(table + i * w->max_blocks, w->table + parts[i].seq * w->max_blocks,
               (size_t)w->max_blocks * sizeof *table);
    }
    return (lv_batch){.n_seqs = n_parts,
                      .n_tokens = start[n_parts],
                      .token_start = start,
                      .kv_length = length,
                      .block_table = table,
                      .max_blocks = w->max_blocks};
}

// What norm_qkv_rope_append leaves: keys and values of the new tokens.
static void upload_kv_new(lv_backend *be, const world *w, const part *parts, int n_parts) {
    size_t width = (size_t)(w->shape.n_kv_heads * w->shape.head_dim), n_tokens = 0, row = 0;
    for (int i = 0; i < n_parts; i++) {
        n_tokens += (size_t)parts[i].n_new;
    }
    float *host = malloc(n_tokens * 2 * width * sizeof *host);
    void *dev;
    for (int i = 0; i < n_parts; i++) {
        const sequence *s = &w->seqs[parts[i].seq];
        for (int t = parts[i].from; t < parts[i].from + parts[i].n_new; t++, row++) {
            memcpy(host + row * 2 * width, s->k + (size_t)t * width, width * sizeof *host);
            memcpy(host + row * 2 * width + width, s->v + (size_t)t * width, width * sizeof *host);
        }
    }
    CHECK_OK(lv_cuda_scratch((lv_cuda *)be, LV_SCRATCH_KV_NEW, n_tokens * 2 * width * 2, &dev));
    CHECK_OK(be->ops->upload_act(be, dev, host, n_tokens * 2 * width));
    free(host);
}

// Attention of the parts' tokens, as the model runs it -> [n_tokens, n_heads head_dim].
static float *run(lv_backend *be, const world *w, const part *parts, int n_parts) {
    size_t width = (size_t)(w->shape.n_heads * w->shape.head_dim), row = 0;
    lv_batch batch = make_batch(w, parts, n_parts);
    size_t n = (size_t)batch.n_tokens * width;
    float *q = malloc(n * sizeof *q);
    for (int i = 0; i < n_parts; i++) {
        memcpy(q + row * width, w->seqs[parts[i].seq].q + (size_t)parts[i].from * width,
               (size_t)parts[i].n_new * width * sizeof *q);
        row += (size_t)parts[i].n_new;
    }
    upload_kv_new(be, w, parts, n_parts);
    void *dev_q = dev_act(be, q, n), *dev_out = dev_act(be, NULL, n);
    CHECK_OK(be->ops->attention(be, &batch, &w->shape, dev_q, w->kv, LAYER, dev_out));
    float *out = host_act(be, dev_out, n);
    be->ops->free(be, dev_q);
    be->ops->free(be, dev_out);
    free(q);
    return out;
}

// The first `n` tokens of a sequence -> the cache.
static void fill(lv_backend *be, const world *w, int seq, int n) {
    part p = {seq, 0, n};
    if (n == 1) {
        free(run(be, w, &p, 1));
    } else if (n > 1) {
        lv_cuda *cuda = (lv_cuda *)be;
        const lv_device_batch *on_device;
        lv_batch batch = make_batch(w, &p, 1);
        upload_kv_new(be, w, &p, 1);
        CHECK_OK(lv_cuda_batch(cuda, &batch, &on_device));
        CHECK_OK(lv_cuda_kv_append(cuda, on_device, cuda->scratch[LV_SCRATCH_KV_NEW].data, w->kv,
                                   LAYER));
        CHECK_OK(be->ops->sync(be));
    }
}

// --- the reference ------------------------------------------------------------------------------

// Row `position` of a sequence, one head: out [head_dim].
static void attend(const world *w, int seq, int position, int head, double *out) {
    const sequence *s = &w->seqs[seq];
    int hd = w->shape.head_dim, window = w->shape.window;
    int first = window && position >= window ? position - window + 1 : 0;
    size_t stride = (size_t)(w->shape.n_kv_heads * hd);
    size_t at = (size_t)(head / (w->shape.n_heads / w->shape.n_kv_heads) * hd);
    const float *q =
        s->q + ((size_t)position * (size_t)w->shape.n_heads + (size_t)head) * (size_t)hd;
    double *p = malloc((size_t)(position + 1) * sizeof *p), max = -INFINITY, sum = 0;
    for (int t = first; t <= position; t++) {
        const float *k = s->kept_k + (size_t)t * stride + at;
        p[t] = 0;
        for (int i = 0; i < hd; i++) {
            p[t] += (double)q[i] * (double)k[i];
        }
        p[t] /= sqrt(hd);
        max = fmax(max, p[t]);
    }
    memset(out, 0, (size_t)hd * sizeof *out);
    for (int t = first; t <= position; t++) {
        const float *v = s->kept_v + (size_t)t * stride + at;
        double e = exp(p[t] - max);
        sum += e;
        for (int i = 0; i < hd; i++) {
            out[i] += e * (double)v[i];
        }
    }
    for (int i = 0; i < hd; i++) {
        out[i] /= sum;
    }
    free(p);
}

// All rows of a part, or some where there are many: the ends, page and tile edges, a few between.
static bool is_checked(int position, int i, int n) {
    return n <= 200 || i < 2 || i >= n - 2 || position % 64 < 2 || i % 128 < 2 || i % 37 == 0;
}

// got [n_tokens, n_heads head_dim] of the parts. Says the worst of it once.
static void check_rows(const world *w, const part *parts, int n_parts, const float *got) {
    int hd = w->shape.head_dim, heads = w->shape.n_heads, n_bad = 0;
    double *want = malloc((size_t)hd * sizeof *want), difference = 0, norm = 0, worst = 0;
    char where[160] = "";
    size_t row = 0;
    for (int i = 0; i < n_parts; i++) {
        for (int t = 0; t < parts[i].n_new; t++, row++) {
            for (int h = 0; h < heads && is_checked(parts[i].from + t, t, parts[i].n_new); h++) {
                attend(w, parts[i].seq, parts[i].from + t, h, want);
                for (int d = 0; d < hd; d++) {
                    double value =
                        (double)got[(row * (size_t)heads + (size_t)h) * (size_t)hd + (size_t)d];
                    double off = fabs(value - want[d]), ratio = off / (1e-3 + 1e-3 * fabs(want[d]));
                    difference += off;
                    norm += fabs(want[d]);
                    if (!(ratio <= 1)) {
                        if (n_bad++ == 0 || ratio > worst) {
                            worst = ratio;
                            snprintf(
                                where, sizeof where,
                                "sequence %d position %d head %d dimension %d: got %g, wanted %g",
                                parts[i].seq, parts[i].from + t, h, d, value, want[d]);
                        }
                    }
                }
            }
        }
    }
    CHECK(n_bad == 0, "%s, %s: %d values, worst: %s", w->name, lv_dtype_name(w->kv_dtype), n_bad,
          where);
    CHECK(difference <= 1e-3 * norm, "%s, %s: mean error %g", w->name, lv_dtype_name(w->kv_dtype),
          difference / norm);
    free(want);
}

static void check_same(const char *name, const char *what, const world *w, const float *a,
                       const float *b, size_t n_rows) {
    size_t width = (size_t)(w->shape.n_heads * w->shape.head_dim), i = 0;
    while (i < n_rows * width && memcmp(a + i, b + i, sizeof *a) == 0) {
        i++;
    }
    CHECK(i == n_rows * width, "%s, %s, %s: row %zu column %zu: %g and %g", name,
          lv_dtype_name(w->kv_dtype), what, i / width, i % width, (double)a[i], (double)b[i]);
}

// --- tests --------------------------------------------------------------------------------------

typedef struct setup {
    const char *name;
    lv_attention_shape shape;
    int n;
    int length[12], n_new[12];
} setup;

#define SHORT_CONTEXTS                                                                             \
    { 0, 1, 62, 63, 64, 126, 127, 128, 499, 191, 700 }
#define LONG_CONTEXTS                                                                              \
    { 0, 1, 62, 63, 64, 126, 127, 128, 499, 2203, 7999 }
#define ONES                                                                                       \
    { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 }
static const setup setups[] = {
    {"decode 4 x 128", {4, 4, 128, 0}, 11, LONG_CONTEXTS, ONES},
    {"decode 8/2 x 128", {8, 2, 128, 0}, 11, LONG_CONTEXTS, ONES},
    {"decode 32 x 128", {32, 32, 128, 0}, 2, {511, 700}, ONES},
    {"decode 7/1 x 64", {7, 1, 64, 0}, 11, SHORT_CONTEXTS, ONES},
    {"decode 8/1 x 96", {8, 1, 96, 0}, 11, SHORT_CONTEXTS, ONES},
    {"decode 2 x 80", {2, 2, 80, 0}, 11, SHORT_CONTEXTS, ONES},
    {"decode 12/1 x 64", {12, 1, 64, 0}, 11, SHORT_CONTEXTS, ONES},
    {"decode 8/2 x 128, window 65", {8, 2, 128, 65}, 11, SHORT_CONTEXTS, ONES},
    {"decode 4 x 64, window 1", {4, 4, 64, 1}, 11, SHORT_CONTEXTS, ONES},
    {"decode 4 x 8", {4, 4, 8, 0}, 11, SHORT_CONTEXTS, ONES},
    {"decode 4/1 x 16", {4, 1, 16, 0}, 11, SHORT_CONTEXTS, ONES},
    {"decode 2/1 x 32, window 100", {2, 1, 32, 100}, 11, SHORT_CONTEXTS, ONES},
    {"decode 2 x 200", {2, 2, 200, 0}, 11, SHORT_CONTEXTS, ONES},
    {"prefill 4 x 128", {4, 4, 128, 0}, 1, {0}, {2204}},
    {"prefill 32 x 128", {32, 32, 128, 0}, 1, {5}, {1100}},
    {"mixed 8/2 x 128", {8, 2, 128, 0}, 6, {63, 64, 200, 0, 129, 0}, {1, 130, 1, 65, 7, 1}},
    {"mixed 4 x 64", {4, 4, 64, 0}, 6, {63, 64, 200, 0, 129, 0}, {1, 130, 1, 65, 7, 1}},
    {"mixed 7/1 x 80", {7, 1, 80, 0}, 6, {63, 64, 200, 0, 129, 0}, {1, 130, 1, 65, 7, 1}},
    {"mixed 4/2 x 96", {4, 2, 96, 0}, 6, {63, 64, 200, 0, 129, 0}, {1, 130, 1, 65, 7, 1}},
    {"mixed 4 x 128, window 100", {4, 4, 128, 100}, 4, {300, 250, 0, 129}, {1, 130, 290, 7}},
    {"mixed 4/2 x 10, window 50",
     {4, 2, 10, 50},
     6,
     {63, 64, 200, 0, 129, 0},
     {1, 130, 1, 65, 7, 1}},
};

static void test_setup(lv_backend *be, const setup *s, lv_dtype kv_dtype) {
    int total[12];
    part parts[12];
    size_t n_rows = 0;
    for (int i = 0; i < s->n; i++) {
        total[i] = s->length[i] + s->n_new[i];
        parts[i] = (part){i, s->length[i], s->n_new[i]};
        n_rows += (size_t)s->n_new[i];
    }
    world *w = make_world(be, s->name, s->shape, kv_dtype, s->n, total);
    for (int i = 0; i < s->n; i++) {
        fill(be, w, i, s->length[i]);
    }
    float *out = run(be, w, parts, s->n), *again = run(be, w, parts, s->n);
    check_rows(w, parts, s->n, out);
    check_same(s->name, "once more", w, again, out, n_rows);
    free(again);
    // The tokens that this pass appended are in the cache as the next one wants them.
    for (int i = 0, row = 0; i < s->n; row += s->n_new[i++]) {
        part last = {i, total[i] - 1, 1};
        if (s->n_new[i] == 1) {
            again = run(be, w, &last, 1);
            check_same(s->name, "alone", w, again,
                       out + (size_t)(row * s->shape.n_heads * s->shape.head_dim), 1);
            free(again);
        }
    }
    free(out);
    free_world(be, w);
}

// New tokens one after another: each reads what the ones before it left in the cache.
static void test_steps(lv_backend *be, lv_attention_shape shape, lv_dtype kv_dtype) {
    enum { FROM = 60, N = 9 };
    world *w = make_world(be, "steps", shape, kv_dtype, 1, (int[]){FROM + N});
    fill(be, w, 0, FROM);
    for (int i = 0; i < N; i++) {
        part p = {0, FROM + i, 1};
        float *out = run(be, w, &p, 1);
        check_rows(w, &p, 1, out);
        free(out);
    }
    free_world(be, w);
}

// A prompt in pieces and as a whole: the same bits.
static void test_chunks(lv_backend *be, lv_attention_shape shape, lv_dtype kv_dtype, int n,
                        const int *chunks) {
    world *w = make_world(be, "chunks", shape, kv_dtype, 1, &n);
    part whole = {0, 0, n};
    size_t width = (size_t)(shape.n_heads * shape.head_dim);
    float *want = run(be, w, &whole, 1);
    fill_with_nan(be, w->kv);
    for (int from = 0; from < n; from += *chunks++) {
        part p = {0, from, *chunks};
        float *out = run(be, w, &p, 1);
        char what[64];
        snprintf(what, sizeof what, "tokens %d to %d of %d", from, from + *chunks, n);
        check_same("chunks", what, w, out, want + (size_t)from * width, (size_t)*chunks);
        free(out);
    }
    free(want);
    free_world(be, w);
}

// A sequence's bits alone and with 1, 7, 31, 63 others: decode, whose workers share the splits of a
// sequence in other ways each time; and a prompt among others.
static void test_batches(lv_backend *be, lv_attention_shape shape, lv_dtype kv_dtype) {
    static const int sizes[] = {1, 2, 8, 32};
    int total[MAX_SEQS];
    part parts[MAX_SEQS];
    size_t width = (size_t)(shape.n_heads * shape.head_dim);
    for (int i = 0; i < MAX_SEQS; i++) {
        total[i] = i % 8 == 5 ? 1500 + i : 1 + i * 37 % 300;
        parts[i] = (part){i, total[i] - 1, 1};
    }
    world *w = make_world(be, "batches", shape, kv_dtype, MAX_SEQS, total);
    for (int i = 0; i < MAX_SEQS; i++) {
        fill(be, w, i, parts[i].from);
    }
    float *want = run(be, w, parts, MAX_SEQS);
    check_rows(w, parts, MAX_SEQS, want);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int first = 0; first < (sizes[k] > 8 ? MAX_SEQS : 8); first += sizes[k]) {
            float *out = run(be, w, parts + first, sizes[k]);
            char what[64];
            snprintf(what, sizeof what, "from %d on, batch of %d and of %d", first, sizes[k],
                     MAX_SEQS);
            check_same("batches", what, w, out, want + (size_t)first * width, (size_t)sizes[k]);
            free(out);
        }
    }
    part prompt = {5, 0, 300}, mixed[3] = {{4, 0, 100}, prompt, {6, total[6] - 1, 1}};
    float *alone = run(be, w, &prompt, 1), *among = run(be, w, mixed, 3);
    check_same("batches", "a prompt alone and among others", w, among + 100 * width, alone, 300);
    check_same("batches", "a step after prompts", w, among + 400 * width, want + 6 * width, 1);
    free(alone);
    free(among);
    free(want);
    free_world(be, w);
}

static void test_images(lv_backend *be, lv_backend *cpu) {
    static const int shapes[][4] = {// images, rows, heads, head_dim
                                    {1, 1, 1, 8},    {2, 17, 3, 20},  {1, 50, 2, 64},
                                    {3, 101, 2, 80}, {2, 130, 3, 96}, {1, 200, 2, 128},
                                    {2, 577, 2, 64}, {40, 65, 4, 64}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int n = shapes[i][0], rows = shapes[i][1], heads = shapes[i][2], hd = shapes[i][3];
        size_t count = (size_t)(n * rows * heads * hd), bad = 0;
        float *qkv = halves(count * 3, 1.5f), *want = poisoned(count);
        void *dev = dev_act(be, qkv, count * 3), *dev_out = dev_act(be, NULL, count);
        CHECK_OK(cpu->ops->image_attention(cpu, qkv, n, rows, heads, hd, want));
        CHECK_OK(be->ops->image_attention(be, dev, n, rows, heads, hd, dev_out));
        float *got = host_act(be, dev_out, count);
        while (bad < count && fabsf(got[bad] - want[bad]) <= 1e-3f + 1e-3f * fabsf(want[bad])) {
            bad++;
        }
        CHECK(bad == count, "image attention %d x %d x %d x %d, element %zu: got %g, wanted %g", n,
              rows, heads, hd, bad, (double)got[bad], (double)want[bad]);
        lv_status status = lv_cuda_dnn_attention((lv_cuda *)be, dev, n, rows, heads, hd, dev_out);
        CHECK(status == LV_OK || status == LV_EUNSUPPORTED, "cuDNN: %s", lv_error());
        if (status == LV_OK) {
            float *dnn = host_act(be, dev_out, count);
            CHECK(mean_error(dnn, got, count) < 1e-3,
                  "image attention %d x %d x %d: cuDNN is %g off", n, rows, hd,
                  mean_error(dnn, got, count));
            free(dnn);
        } else if (rows == 577) {
            printf("no cuDNN attention: %s\n", lv_error());
        }
        be->ops->free(be, dev);
        be->ops->free(be, dev_out);
        free(qkv);
        free(want);
        free(got);
    }
}

// A copied block is what the other one is in every layer; all else stays.
static void test_copies(lv_backend *be, lv_dtype kv_dtype, int n_heads, int head_dim) {
    enum { N_LAYERS = 3, N_BLOCKS = 5, FROM = 3, TO = 1 };
    lv_kv *kv;
    CHECK_OK(be->ops->kv_create(be, N_LAYERS, n_heads, head_dim, N_BLOCKS, kv_dtype, &kv));
    const size_t block_bytes = kv->n_bytes / (N_LAYERS * N_BLOCKS);
    uint8_t *want = malloc(kv->n_bytes), *got = malloc(kv->n_bytes);
    for (size_t i = 0; i < kv->n_bytes; i++) {
        want[i] = (uint8_t)rng();
    }
    CHECK_OK(be->ops->upload(be, kv->data, want, kv->n_bytes));
    CHECK_OK(be->ops->kv_copy(be, kv, FROM, TO));
    CHECK_OK(be->ops->download(be, got, kv->data, kv->n_bytes));
    for (size_t i = 0; i < N_LAYERS; i++) {
        memcpy(want + (i * N_BLOCKS + TO) * block_bytes, want + (i * N_BLOCKS + FROM) * block_bytes,
               block_bytes);
    }
    for (size_t i = 0; i < N_LAYERS * N_BLOCKS; i++) {
        CHECK(memcmp(got + i * block_bytes, want + i * block_bytes, block_bytes) == 0,
              "%d heads of %d, %s: layer %zu, block %zu after a copy of %d to %d", n_heads,
              head_dim, lv_dtype_name(kv_dtype), i / N_BLOCKS, i % N_BLOCKS, FROM, TO);
    }
    CHECK_STATUS(be->ops->kv_copy(be, kv, N_BLOCKS, 0), LV_EINVAL);
    CHECK_STATUS(be->ops->kv_copy(be, kv, 0, -1), LV_EINVAL);
    be->ops->kv_free(be, kv);
    free(want);
    free(got);
}

int main(int argc, char **argv) {
    static const lv_dtype dtypes[] = {LV_F16, LV_I8};
    lv_backend *be = open_cuda(), *cpu = open_reference();
    lv_kv *kv = NULL;
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        return run_bench(be, argc > 2 && strcmp(argv[2], "quick") == 0);
    }
    CHECK_STATUS(be->ops->kv_create(be, 1, 1, 64, 4, LV_F32, &kv), LV_EUNSUPPORTED);
    CHECK_STATUS(be->ops->kv_create(be, 1, 1, 64, 0, LV_F16, &kv), LV_EINVAL);
    CHECK(be->ops->kv_block_bytes(be, 32, 32, 128, LV_I8) == (size_t)270336 * 64, "i8 bytes");
    CHECK(be->ops->kv_block_bytes(be, 32, 32, 128, LV_NONE) == (size_t)524288 * 64, "f16 bytes");
    for (int d = 0; d < 2; d++) {
        for (size_t i = 0; i < sizeof setups / sizeof *setups; i++) {
            test_setup(be, &setups[i], dtypes[d]);
        }
        test_steps(be, (lv_attention_shape){8, 2, 128, 0}, dtypes[d]);
        test_steps(be, (lv_attention_shape){4, 4, 80, 20}, dtypes[d]);
        test_steps(be, (lv_attention_shape){4, 4, 12, 0}, dtypes[d]);
        test_chunks(be, (lv_attention_shape){2, 2, 128, 0}, dtypes[d], 2204,
                    (int[]){700, 64, 1000, 440});
        test_chunks(be, (lv_attention_shape){4, 2, 20, 0}, dtypes[d], 300, (int[]){70, 2, 228});
        test_batches(be, (lv_attention_shape){8, 2, 64, 200}, dtypes[d]);
        test_batches(be, (lv_attention_shape){2, 2, 32, 0}, dtypes[d]);
        if (!gpu_small(3)) {
            test_chunks(be, (lv_attention_shape){32, 8, 64, 130}, dtypes[d], 1500,
                        (int[]){65, 1300, 135});
            test_batches(be, (lv_attention_shape){8, 8, 128, 0}, dtypes[d]);
        }
        test_copies(be, dtypes[d], 32, 128);
        test_copies(be, dtypes[d], 3, 6);
    }
    test_images(be, cpu);
    lv_backend_close(be);
    lv_backend_close(cpu);
    return check_done();
}

#endif
