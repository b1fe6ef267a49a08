// The sampler: each processor against a direct computation, the draw against known answers of
// Philox and against the distribution it must follow.
#include "tests/unit/kernels_util.h"

static lv_backend *be;

static int32_t sample(const float *logits, int vocab, lv_sampling s) {
    float copy[1024];
    int32_t token = -1;
    memcpy(copy, logits, (size_t)vocab * sizeof(float));
    CHECK_OK(be->ops->sample(be, copy, 1, vocab, &s, &token, NULL));
    return token;
}

static void test_greedy(void) {
    float logits[5] = {1, 3, -2, 3, 2}, row[10];
    CHECK(sample(logits, 5, (lv_sampling){0}) == 1, "ties go to the lowest id");
    int32_t seen[2] = {1, 2}, counts[2] = {2, 0};
    lv_sampling s = {
        .repetition_penalty = 2.0f, .seen_ids = seen, .seen_counts = counts, .n_seen = 2};
    CHECK(sample(logits, 5, s) == 3, "repetition divides what is positive");
    float negative[3] = {-2.9f, -2, -1.5f};
    CHECK(sample(negative, 3, s) == 0, "and multiplies what is negative");
    s.repetition_penalty = 0;
    s.frequency_penalty = 0.4f;
    s.presence_penalty = 0.3f;
    float close[3] = {1.8f, 3.0f, 1.95f};
    CHECK(sample(close, 3, s) == 2, "3 - 2 * 0.4 - 0.3 = 1.9; the prompt's token 2 is untouched");
    close[2] = 1.85f;
    CHECK(sample(close, 3, s) == 1, "1.9 against 1.85");
    uint32_t allowed[1] = {1u << 4 | 1u << 2};
    s = (lv_sampling){.allowed = allowed};
    CHECK(sample(logits, 5, s) == 4, "allowed");
    // Two rows, each with its own options; log-probabilities of the raw logits.
    lv_sampling both[2];
    memset(both, 0, sizeof both);
    both[0].allowed = allowed;
    int32_t tokens[2];
    float logprobs[2];
    memcpy(row, logits, sizeof logits);
    memcpy(row + 5, logits, sizeof logits);
    CHECK_OK(be->ops->sample(be, row, 2, 5, both, tokens, logprobs));
    double sum = exp(1) + 2 * exp(3) + exp(-2) + exp(2);
    CHECK(tokens[0] == 4 && tokens[1] == 1, "rows");
    CHECK(fabs((double)logprobs[0] - (2 - log(sum))) < 1e-6, "%g", (double)logprobs[0]);
    CHECK(fabs((double)logprobs[1] - (3 - log(sum))) < 1e-6, "%g", (double)logprobs[1]);
}

static void test_refusals(void) {
    float logits[3] = {0, 1, 2}, bad[3] = {0, NAN, 1};
    int32_t token, seen = 3;
    uint32_t none = 0;
    lv_sampling s = {.allowed = &none};
    CHECK_STATUS(be->ops->sample(be, logits, 1, 3, &s, &token, NULL), LV_EINVAL);
    s = (lv_sampling){.seen_ids = &seen, .n_seen = 1};
    CHECK_STATUS(be->ops->sample(be, logits, 1, 3, &s, &token, NULL), LV_EINVAL);
    s = (lv_sampling){0};
    CHECK_STATUS(be->ops->sample(be, bad, 1, 3, &s, &token, NULL), LV_EFORMAT);
    CHECK(strstr(lv_error(), "logits are not finite"), "%s", lv_error());
}

// 65,536 equal logits: the token is the top 16 bits of the draw. A known answer of Philox4x32-10
// (the kat_vectors of Random123): counter 0, key 0 -> 6627e8d5 ...
static void test_philox(void) {
    enum { V = 65536 };
    float *logits = calloc(V, sizeof *logits);
    int32_t token;
    lv_sampling s = {.temperature = 1};
    CHECK_OK(be->ops->sample(be, logits, 1, V, &s, &token, NULL));
    CHECK(token == 0x6627, "%x", (unsigned)token);
    int distinct = 0, previous = token;
    for (uint64_t step = 1; step < 50; step++) {
        s.step = step;
        CHECK_OK(be->ops->sample(be, logits, 1, V, &s, &token, NULL));
        distinct += token != previous;
        previous = token;
    }
    CHECK(distinct == 49, "steps give different draws: %d", distinct);
    free(logits);
}

// Draws n tokens and compares how often each came with p (sum 1): chi-square. Tokens of p 0 must
// not come.
static void check_distribution(const char *what, const float *logits, int vocab, lv_sampling s,
                               const double *p) {
    enum { N = 20000 };
    int counts[64] = {0}, freedom = -1;
    double chi = 0;
    for (int i = 0; i < N; i++) {
        s.seed = 42;
        s.step = (uint64_t)i;
        counts[sample(logits, vocab, s)]++;
    }
    for (int i = 0; i < vocab; i++) {
        if (p[i] > 0) {
            double expected = p[i] * N;
            chi += ((double)counts[i] - expected) * ((double)counts[i] - expected) / expected;
            freedom++;
        } else {
            CHECK(counts[i] == 0, "%s: token %d has probability 0, came %d times", what, i,
                  counts[i]);
        }
    }
    // Mean `freedom`, variance twice that: five standard deviations, and the seed is fixed.
    CHECK(chi < freedom + 5 * sqrt(2.0 * freedom) + 1, "%s: chi-square %g for %d", what, chi,
          freedom);
}

static void softmax_of(const double *x, int n, const bool *kept, double *p) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        p[i] = kept[i] ? exp(x[i]) : 0;
        sum += p[i];
    }
    for (int i = 0; i < n; i++) {
        p[i] /= sum;
    }
}

// The direct computation: repeatedly take the best token left.
static void expected(const float *logits, int n, const lv_sampling *s, double *p) {
    double x[64];
    bool kept[64] = {false}, all[64];
    for (int i = 0; i < n; i++) {
        x[i] = (double)logits[i] / (double)s->temperature;
        all[i] = true;
    }
    int k = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    int order[64];
    for (int r = 0; r < k; r++) {
        int best = -1;
        for (int i = 0; i < n; i++) {
            best = !kept[i] && (best < 0 || x[i] > x[best]) ? i : best;
        }
        order[r] = best;
        kept[best] = true;
    }
    softmax_of(x, n, kept, p);
    if (s->top_p > 0 && s->top_p < 1) {
        double cumulated = 0;
        for (int r = 0; r < k; r++) {
            kept[order[r]] = cumulated < (double)s->top_p;
            cumulated += p[order[r]];
        }
    }
    softmax_of(x, n, all, p);
    for (int i = 0; i < n; i++) {
        kept[i] = kept[i] && p[i] >= (double)s->min_p * p[order[0]];
    }
    softmax_of(x, n, kept, p);
}

static void test_distributions(void) {
    float logits[40];
    double p[64];
    for (int i = 0; i < 40; i++) {
        logits[i] = rng_float() * 2;
    }
    const struct {
        const char *name;
        lv_sampling s;
    } cases[] = {
        {"plain", {.temperature = 1}},
        {"cold", {.temperature = 0.4f}},
        {"hot", {.temperature = 3}},
        {"top-k", {.temperature = 1, .top_k = 5}},
        {"top-k 1", {.temperature = 1, .top_k = 1}},
        {"top-k of all", {.temperature = 1, .top_k = 400}},
        {"top-p", {.temperature = 1, .top_p = 0.7f}},
        {"top-p of next to nothing", {.temperature = 1, .top_p = 1e-6f}},
        {"top-k and top-p", {.temperature = 1.5f, .top_k = 8, .top_p = 0.6f}},
        {"min-p", {.temperature = 1, .min_p = 0.1f}},
        {"everything", {.temperature = 0.8f, .top_k = 20, .top_p = 0.95f, .min_p = 0.02f}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        expected(logits, 40, &cases[i].s, p);
        check_distribution(cases[i].name, logits, 40, cases[i].s, p);
    }
}

int main(void) {
    be = open_reference();
    test_greedy();
    test_refusals();
    test_philox();
    test_distributions();
    lv_backend_close(be);
    return check_done();
}
