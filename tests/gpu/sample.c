// The GPU's sampler against the CPU's: the same tokens from the same logits, whatever is asked for.
// --bench: times of greedy rows and of top-p.
#include "tests/gpu/bench.h"

static lv_backend *ref, *be;

#define MAX_ROWS 256

typedef struct request {
    lv_sampling s;
    int32_t *ids, *counts;
    uint32_t *allowed;
} request;

static bool one_in(uint32_t n) {
    return rng() % n == 0;
}

static float pick(const float *values, uint32_t n) {
    return values[rng() % n];
}

static void random_logits(float *x, int vocab) {
    static const float spreads[] = {0.01f, 0.5f, 2, 4, 12};
    const float spread = pick(spreads, 5), step = one_in(3) ? 0.25f : 0, shift = rng_float() * 5;
    const bool equal = one_in(12), peaked = one_in(4);
    for (int i = 0; i < vocab; i++) {
        x[i] = equal ? 1.5f : rng_float() * spread + shift;
        x[i] = step > 0 ? rintf(x[i] / step) * step : x[i]; // many ties, and zeros of both signs
    }
    for (int i = 0; peaked && i < 5; i++) {
        x[rng() % (uint32_t)vocab] += 10.0f + (float)i;
    }
}

static void random_request(int vocab, request *r) {
    static const float temperatures[] = {0, 0.2f, 0.7f, 1, 1, 1.5f, 4, 1e-3f, 1e-38f};
    static const float top_ps[] = {0, 0, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 1, 1e-6f};
    static const float min_ps[] = {0, 0, 0, 0.05f, 0.5f, 1};
    static const float repetitions[] = {0, 1, 1.1f, 1.3f, 0.8f};
    static const float presences[] = {0, 0, 0.5f, -0.5f, 1.5f};
    const int top_ks[] = {0, 0, 1, 5, 40, 1500, vocab - 1, vocab, vocab + 3};
    const uint32_t n = (uint32_t)vocab, n_seen = one_in(2) ? rng() % (n < 3000 ? n : 3000) : 0;
    *r = (request){.s = {.temperature = pick(temperatures, 9),
                         .top_k = top_ks[rng() % 9],
                         .top_p = pick(top_ps, 9),
                         .min_p = pick(min_ps, 6),
                         .repetition_penalty = pick(repetitions, 5),
                         .presence_penalty = pick(presences, 5),
                         .frequency_penalty = pick(presences, 5),
                         .seed = (uint64_t)rng() << 40 ^ rng(),
                         .step = (uint64_t)(rng() & 1) << 33 ^ rng() % 1000,
                         .n_seen = (int)n_seen,
                         .want_logprob = true}};
    r->ids = malloc((n_seen + 1) * sizeof *r->ids);
    r->counts = malloc((n_seen + 1) * sizeof *r->counts);
    uint32_t id = rng() % n, stride = 1 + rng() % 7; // distinct: a step that divides no vocabulary
    stride = stride == 7 || n % (stride * 2 + 1) == 0 ? 1 : stride * 2 + 1;
    for (uint32_t i = 0; i < n_seen; i++, id = (id + stride) % n) {
        r->ids[i] = (int32_t)id;
        r->counts[i] = one_in(2) ? 0 : (int32_t)(rng() % 4);
    }
    r->s.seen_ids = r->ids;
    r->s.seen_counts = one_in(8) ? NULL : r->counts;
    if (one_in(4)) {
        const bool few = one_in(2);
        r->allowed = calloc((n + 31) / 32, sizeof *r->allowed);
        for (uint32_t i = 0; i < n; i++) {
            if (few ? one_in(50) : !one_in(3)) {
                r->allowed[i / 32] |= 1u << (i % 32);
            }
        }
        id = rng() % n;
        r->allowed[id / 32] |= 1u << (id % 32);
        r->s.allowed = r->allowed;
    }
}

static void describe(const lv_sampling *s, char *text, size_t n) {
    snprintf(text, n,
             "temperature %g, top_k %d, top_p %g, min_p %g, penalties %g %g %g over %d, allowed %d",
             (double)s->temperature, s->top_k, (double)s->top_p, (double)s->min_p,
             (double)s->repetition_penalty, (double)s->presence_penalty,
             (double)s->frequency_penalty, s->n_seen, s->allowed != NULL);
}

// Several rows in one call, the odd calls through collect. Lists are gone when the call returns.
static void test_random_rows(int vocab, int n_rows, bool greedy_only) {
    const size_t n = (size_t)n_rows * (size_t)vocab;
    static request requests[MAX_ROWS];
    static lv_sampling rows[MAX_ROWS];
    int32_t want[MAX_ROWS], got[MAX_ROWS];
    float want_logprobs[MAX_ROWS], got_logprobs[MAX_ROWS];
    float *logits = malloc(n * sizeof *logits);
    const bool later = one_in(2);
    for (int i = 0; i < n_rows; i++) {
        random_logits(logits + (size_t)i * (size_t)vocab, vocab);
        random_request(vocab, &requests[i]);
        rows[i] = greedy_only ? (lv_sampling){.want_logprob = !one_in(3)} : requests[i].s;
    }
    float *dev = dev_f32(be, logits, n);
    CHECK_OK(ref->ops->sample(ref, logits, n_rows, vocab, rows, want, want_logprobs));
    CHECK_OK(be->ops->sample(be, dev, n_rows, vocab, rows, later ? NULL : got,
                             later ? NULL : got_logprobs));
    for (int i = 0; i < n_rows; i++) {
        memset(requests[i].ids, 0x55, (size_t)requests[i].s.n_seen * 4);
        memset(requests[i].counts, 0x55, (size_t)requests[i].s.n_seen * 4);
    }
    if (later) {
        CHECK_OK(be->ops->collect(be, got, got_logprobs));
    }
    for (int i = 0; i < n_rows; i++) {
        char text[256];
        describe(&rows[i], text, sizeof text);
        CHECK(got[i] == want[i], "row %d of %d x %d: token %d, wanted %d: %s", i, n_rows, vocab,
              got[i], want[i], text);
        if (got[i] == want[i] && (!later || rows[i].want_logprob)) {
            CHECK(fabsf(got_logprobs[i] - want_logprobs[i]) < 1e-4f,
                  "row %d of %d x %d: logprob %g, wanted %g: %s", i, n_rows, vocab,
                  (double)got_logprobs[i], (double)want_logprobs[i], text);
        }
        free(requests[i].ids), free(requests[i].counts), free(requests[i].allowed);
    }
    be->ops->free(be, dev);
    free(logits);
}

// Draws that walk through the whole row: equal logits, the token is what Philox says.
static void test_philox(void) {
    enum { V = 65536 };
    float *logits = calloc(V, sizeof *logits), *dev = dev_f32(be, logits, V);
    lv_sampling s = {.temperature = 1};
    int32_t token = -1;
    CHECK_OK(be->ops->sample(be, dev, 1, V, &s, &token, NULL));
    CHECK(token == 0x6627, "Philox: %x", (unsigned)token);
    s.top_k = 5; // the lowest ids of equal ones
    for (s.step = 0; s.step < 20; s.step++) {
        CHECK_OK(be->ops->sample(be, dev, 1, V, &s, &token, NULL));
        CHECK(token >= 0 && token < 5, "top-k among equal logits: %d", token);
    }
    be->ops->free(be, dev);
    free(logits);
}

static void test_refusals(void) {
    enum { V = 70 };
    float logits[2 * V], *dev;
    int32_t tokens[2], seen = V;
    uint32_t none[3] = {0};
    static const lv_sampling greedy[2];
    for (int i = 0; i < 2 * V; i++) {
        logits[i] = (float)(i % V);
    }
    dev = dev_f32(be, logits, 2 * V);
    lv_sampling s[2] = {{.allowed = none}, {.allowed = NULL}};
    CHECK_STATUS(be->ops->sample(be, dev, 2, V, s, tokens, NULL), LV_EINVAL);
    CHECK(strstr(lv_error(), "no token is allowed"), "%s", lv_error());
    s[0] = (lv_sampling){.seen_ids = &seen, .n_seen = 1};
    CHECK_STATUS(be->ops->sample(be, dev, 2, V, s, tokens, NULL), LV_EINVAL);
    CHECK_STATUS(be->ops->sample(be, dev, 0, V, s, tokens, NULL), LV_EINVAL);
    CHECK_STATUS(be->ops->sample(be, dev, MAX_ROWS + 1, V, s, tokens, NULL), LV_EINVAL);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 6; i++) {
        const lv_sampling warm[2] = {{.temperature = 1}, {.temperature = 1}};
        const lv_sampling *rows = i % 2 ? warm : greedy;
        logits[V + 33] = logits[V + 69] = bad[i / 2];
        CHECK_OK(be->ops->upload(be, dev, logits, sizeof logits));
        CHECK_STATUS(be->ops->sample(be, dev, 2, V, rows, tokens, NULL), LV_EFORMAT);
        CHECK(strstr(lv_error(), "logits are not finite") && strstr(lv_error(), "token 33"), "%s",
              lv_error());
        CHECK_OK(be->ops->sample(be, dev, 2, V, rows, NULL, NULL));
        CHECK_STATUS(be->ops->collect(be, tokens, NULL), LV_EFORMAT);
    }
    CHECK_OK(be->ops->sample(be, dev, 1, V, greedy, tokens, NULL)); // the first row is sound
    CHECK(tokens[0] == V - 1, "token %d", tokens[0]);
    be->ops->free(be, dev);
}

static void test_all(void) {
    static const int vocabs[] = {7, 1000, 32064};
    test_philox();
    test_refusals();
    for (int v = 0; v < 3; v++) {
        for (int n = 0; n < 1000;) {
            const int m = v < 2 ? 1 + (int)(rng() % 200) : 1 + (int)(rng() % 24);
            test_random_rows(vocabs[v], m, false);
            n += m;
        }
        test_random_rows(vocabs[v], 3, true);
        test_random_rows(vocabs[v], v < 2 ? MAX_ROWS : 40, true);
    }
    test_random_rows(1, 5, false);
    test_random_rows(130, MAX_ROWS, false);
    test_random_rows(50001, 4, false);
}

// --- bench
// ----------------------------------------------------------------------------------------

#define REPEATS 50

typedef struct job {
    float *logits;
    int n_rows;
    lv_sampling rows[MAX_ROWS];
} job;

static lv_status run_job(void *user, const lv_batch *batch) {
    job *j = user;
    (void)batch;
    for (int i = 0; i < REPEATS; i++) {
        LV_TRY(be->ops->sample(be, j->logits, j->n_rows, 32064, j->rows, NULL, NULL));
    }
    return LV_OK;
}

// Calls in a row, none of them waited for: the device's time, or launching's where that is longer.
static void bench(void) {
    static job j;
    static const int counts[] = {1, 32, 64, 256};
    static const struct {
        const char *name;
        lv_sampling s;
    } kinds[] = {
        {"greedy", {.temperature = 0}},
        {"greedy with logprob", {.want_logprob = true}},
        {"temperature 0.7", {.temperature = 0.7f}},
        {"top-p 0.9", {.temperature = 0.7f, .top_p = 0.9f}},
        {"top-k 40", {.temperature = 0.7f, .top_k = 40}},
        {"top-k 40, top-p 0.9", {.temperature = 0.7f, .top_k = 40, .top_p = 0.9f}},
    };
    float *logits = random_floats((size_t)MAX_ROWS * 32064);
    for (size_t i = 0; i < (size_t)MAX_ROWS * 32064; i++) {
        logits[i] *= 3;
    }
    j.logits = dev_f32(be, logits, (size_t)MAX_ROWS * 32064);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (int c = 0; c < 4; c++) {
            j.n_rows = counts[c];
            for (int i = 0; i < MAX_ROWS; i++) {
                j.rows[i] = kinds[k].s;
            }
            printf("%s, %d rows of 32064: %.2f us\n", kinds[k].name, counts[c],
                   bench_us(be, run_job, &j, false) / REPEATS);
        }
    }
    be->ops->free(be, j.logits);
    free(logits);
}

int main(int argc, char **argv) {
    ref = open_reference();
    be = open_cuda();
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench();
    } else {
        test_all();
    }
    lv_backend_close(ref);
    lv_backend_close(be);
    return check_done();
}
