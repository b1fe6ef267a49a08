// The sampler's filters against transformers' processors: golden_sampling ref|cpu|cuda
//
// Each stored row of logits is drawn from many times. No token may come out that the reference
// leaves no probability, and the counts must fit its probabilities (Pearson's statistic).
#include "golden.h"

#include "kernels/ops.h"

#define N_DRAWS 8192
#define BATCH 256

typedef struct row {
    const float *settings; // temperature, top_k, top_p, min_p, repetition penalty
    const float *logits, *probabilities;
    const int32_t *seen;
    int vocab, n_seen;
} row;

static void count_draws(lv_backend *be, const row *r, float *dev, float *host, int *counts) {
    const int32_t zeros[64] = {0};
    lv_sampling sampling[BATCH];
    int32_t tokens[BATCH];
    for (int first = 0; first < N_DRAWS; first += BATCH) {
        for (int i = 0; i < BATCH; i++) {
            memcpy(host + (size_t)i * (size_t)r->vocab, r->logits, (size_t)r->vocab * sizeof *host);
            sampling[i] = (lv_sampling){.temperature = r->settings[0],
                                        .top_k = (int)r->settings[1],
                                        .top_p = r->settings[2],
                                        .min_p = r->settings[3],
                                        .repetition_penalty = r->settings[4],
                                        .seed = 12345,
                                        .step = (uint64_t)(first + i),
                                        .seen_ids = r->seen,
                                        .seen_counts = zeros,
                                        .n_seen = r->n_seen};
        }
        CHECK_OK(be->ops->upload(be, dev, host, (size_t)BATCH * (size_t)r->vocab * sizeof *host));
        CHECK_OK(be->ops->sample(be, dev, BATCH, r->vocab, sampling, tokens, NULL));
        for (int i = 0; i < BATCH; i++) {
            counts[tokens[i]]++;
        }
    }
}

static void check_counts(int index, const row *r, const int *counts) {
    double statistic = 0, rest_want = 0, rest_got = 0;
    int n_bins = 0;
    for (int i = 0; i < r->vocab; i++) {
        const double want = (double)r->probabilities[i] * N_DRAWS;
        CHECK(want > 0 || counts[i] == 0, "row %d: token %d drawn, the reference removes it", index,
              i);
        if (want < 5) {
            rest_want += want;
            rest_got += counts[i];
        } else {
            statistic += (counts[i] - want) * (counts[i] - want) / want;
            n_bins++;
        }
    }
    if (rest_want >= 5) {
        statistic += (rest_got - rest_want) * (rest_got - rest_want) / rest_want;
        n_bins++;
    }
    // Six deviations above the mean of chi-square with n_bins - 1 degrees of freedom.
    const double bound = n_bins - 1 + 6 * sqrt(2.0 * n_bins);
    CHECK(statistic <= bound, "row %d: statistic %.1f over %d bins, allowed %.1f", index, statistic,
          n_bins, bound);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: golden_sampling ref|cpu|cuda\n");
        return 2;
    }
    const lv_backend_options options = golden_backend(argv[1]);
    lv_backend *be = NULL;
    const lv_status status = lv_backend_open(&options, &be);
    if (status == LV_EDEVICE && golden_is_cuda(argv[1])) {
        return check_skip(lv_error());
    }
    CHECK_OK(status);
    lv_safetensors *golden = golden_open("sampling");
    if (!golden || !be) {
        return check_done();
    }
    const lv_tensor *shape = &lv_safetensors_find(golden, "logits")->tensor;
    const int n = (int)shape->dims[0], vocab = (int)shape->dims[1];
    const int n_seen = (int)lv_safetensors_find(golden, "seen")->tensor.dims[1];
    float *logits = golden_copy(shape);
    float *settings = golden_copy(&lv_safetensors_find(golden, "settings")->tensor);
    float *probabilities = golden_copy(&lv_safetensors_find(golden, "probabilities")->tensor);
    int32_t *seen = golden_copy(&lv_safetensors_find(golden, "seen")->tensor);
    float *host = malloc((size_t)BATCH * (size_t)vocab * sizeof *host);
    int *counts = malloc((size_t)vocab * sizeof *counts);
    void *dev = NULL;
    CHECK_OK(be->ops->alloc(be, (size_t)BATCH * (size_t)vocab * sizeof *host, &dev));
    for (int i = 0; i < n && dev; i++) {
        const size_t at = (size_t)i * (size_t)vocab;
        const row r = {settings + 5 * i,  logits + at, probabilities + at,
                       seen + i * n_seen, vocab,       n_seen};
        memset(counts, 0, (size_t)vocab * sizeof *counts);
        count_draws(be, &r, dev, host, counts);
        check_counts(i, &r, counts);
    }
    printf("%d rows, %d draws each, on %s\n", n, N_DRAWS, be->device);
    be->ops->free(be, dev);
    free(counts);
    free(host);
    free(seen);
    free(probabilities);
    free(settings);
    free(logits);
    lv_backend_close(be);
    lv_safetensors_free(golden);
    return check_done();
}
