// Sampling, the same for the reference and the fast path: logits -> processors -> one token.
//
// The order is that of transformers: repetition penalty, presence and frequency penalties (OpenAI's
// definition), allowed tokens, temperature, top-k, top-p, min-p. The draw walks the kept tokens in
// order of their ids until their cumulated probability passes u, u from Philox4x32-10 (Salmon et
// al., SC 2011) with the seed as key and the step as counter, so that any backend can repeat it.
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

// Counter (step, 0), key seed -> [0, 1) with 53 bits.
static double philox_uniform(uint64_t seed, uint64_t step) {
    uint32_t x[4] = {(uint32_t)step, (uint32_t)(step >> 32), 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * x[0], p1 = (uint64_t)0xCD9E8D57u * x[2];
        uint32_t y[4] = {(uint32_t)(p1 >> 32) ^ x[1] ^ k0, (uint32_t)p1,
                         (uint32_t)(p0 >> 32) ^ x[3] ^ k1, (uint32_t)p0};
        memcpy(x, y, sizeof x);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    uint64_t bits = ((uint64_t)x[0] << 32 | x[1]) >> 11;
    return (double)bits * 0x1p-53;
}

static lv_status penalise(float *x, int vocab, const lv_sampling *s) {
    float repetition = s->repetition_penalty > 0 ? s->repetition_penalty : 1;
    for (int i = 0; i < s->n_seen; i++) {
        int32_t id = s->seen_ids[i];
        if (id < 0 || id >= vocab) {
            return lv_fail(LV_EINVAL, "sample: seen token %d of %d", id, vocab);
        }
        x[id] = x[id] > 0 ? x[id] / repetition : x[id] * repetition;
        int count = s->seen_counts ? s->seen_counts[i] : 0;
        if (count > 0) {
            x[id] -= s->frequency_penalty * (float)count + s->presence_penalty;
        }
    }
    for (int id = 0; s->allowed && id < vocab; id++) {
        if (!(s->allowed[id / 32] >> (id % 32) & 1)) {
            x[id] = -INFINITY;
        }
    }
    return LV_OK;
}

static int argmax(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

// True where token a comes before token b: the larger logit, then the lower id.
static bool before(const float *x, int32_t a, int32_t b) {
    return x[a] > x[b] || (x[a] == x[b] && a < b);
}

static void sift_down(const float *x, int32_t *heap, int n, int i) {
    for (;;) {
        int top = i, left = 2 * i + 1;
        for (int child = left; child < n && child <= left + 1; child++) {
            top = before(x, heap[child], heap[top]) ? child : top;
        }
        if (top == i) {
            return;
        }
        int32_t moved = heap[i];
        heap[i] = heap[top];
        heap[top] = moved;
        i = top;
    }
}

// The i-th call moves the i-th largest token from the heap's top to heap[vocab - i].
static int32_t pop(const float *x, int32_t *heap, int *n) {
    int32_t id = heap[0];
    heap[0] = heap[--*n];
    heap[*n] = id;
    sift_down(x, heap, *n, 0);
    return id;
}

// Top-k and top-p: all other tokens become -inf. A heap gives the tokens in order, so that only as
// many are sorted as are kept. max is the largest logit.
static void keep_top(float *x, int vocab, const lv_sampling *s, float max, int32_t *heap) {
    bool use_k = s->top_k > 0 && s->top_k<vocab, use_p = s->top_p> 0 && s->top_p < 1;
    int n = vocab, n_kept = use_k ? s->top_k : vocab;
    double total = 0, cumulated = 0;
    if (!use_k && !use_p) {
        return;
    }
    for (int i = 0; i < vocab; i++) {
        heap[i] = i;
        total += use_k ? 0 : exp((double)(x[i] - max));
    }
    for (int i = vocab / 2 - 1; i >= 0; i--) {
        sift_down(x, heap, vocab, i);
    }
    for (int i = 0; use_k && i < n_kept; i++) {
        total += exp((double)(x[pop(x, heap, &n)] - max));
    }
    for (int i = 0; use_p && i < n_kept; i++) {
        int32_t id = use_k ? heap[vocab - 1 - i] : pop(x, heap, &n);
        cumulated += exp((double)(x[id] - max));
        if (cumulated >= (double)s->top_p * total) {
            n_kept = i + 1;
        }
    }
    for (int i = 0; i < vocab - n_kept; i++) {
        x[heap[i]] = -INFINITY;
    }
}

static int32_t draw(float *x, int vocab, const lv_sampling *s, int32_t *heap) {
    float max = x[argmax(x, vocab)] / s->temperature;
    for (int i = 0; i < vocab; i++) {
        x[i] /= s->temperature;
    }
    keep_top(x, vocab, s, max, heap);
    double total = 0, cumulated = 0;
    for (int i = 0; i < vocab; i++) {
        double p = exp((double)(x[i] - max));
        p = s->min_p > 0 && p < (double)s->min_p ? 0 : p;
        x[i] = (float)p;
        total += (double)x[i];
    }
    double u = philox_uniform(s->seed, s->step) * total;
    int32_t last = 0;
    for (int i = 0; i < vocab; i++) {
        if (x[i] > 0) {
            cumulated += (double)x[i];
            last = i;
            if (cumulated > u) {
                break;
            }
        }
    }
    return last;
}

static lv_status sample_row(const float *logits, int vocab, const lv_sampling *s, float *x,
                            int32_t *heap, int32_t *token, float *logprob) {
    double sum = 0;
    for (int i = 0; i < vocab; i++) {
        if (!isfinite(logits[i])) {
            return lv_fail(LV_EFORMAT, "logits are not finite (token %d: %g)", i,
                           (double)logits[i]);
        }
        x[i] = logits[i];
    }
    LV_TRY(penalise(x, vocab, s));
    int best = argmax(x, vocab);
    if (x[best] == -INFINITY) {
        return lv_fail(LV_EINVAL, "sample: no token is allowed");
    }
    // A temperature too small to divide by is greedy.
    bool greedy = s->temperature <= 0 || !isfinite(x[best] / s->temperature);
    *token = greedy ? best : draw(x, vocab, s, heap);
    if (logprob) {
        float max = logits[argmax(logits, vocab)];
        for (int i = 0; i < vocab; i++) {
            sum += exp((double)(logits[i] - max));
        }
        *logprob = (float)((double)(logits[*token] - max) - log(sum));
    }
    return LV_OK;
}

lv_status lv_cpu_sample(lv_backend *be, float *logits, int n_rows, int vocab,
                        const lv_sampling *rows, int32_t *tokens, float *logprobs) {
    lv_cpu *cpu = (lv_cpu *)be;
    void *scratch;
    if (n_rows < 1 || n_rows > LV_MAX_ROWS) {
        return lv_fail(LV_EINVAL, "sample: %d rows; expected 1 to %d", n_rows, LV_MAX_ROWS);
    }
    cpu->n_sampled = 0;
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_SAMPLE, (size_t)vocab * (sizeof(float) + sizeof(int32_t)),
                          &scratch));
    float *x = scratch;
    int32_t *heap = (int32_t *)(x + vocab);
    for (int i = 0; i < n_rows; i++) {
        LV_TRY(sample_row(logits + (ptrdiff_t)i * vocab, vocab, &rows[i], x, heap, &cpu->tokens[i],
                          logprobs || rows[i].want_logprob ? &cpu->logprobs[i] : NULL));
    }
    cpu->n_sampled = n_rows;
    return tokens ? lv_cpu_collect(be, tokens, logprobs) : LV_OK;
}

lv_status lv_cpu_collect(lv_backend *be, int32_t *tokens, float *logprobs) {
    const lv_cpu *cpu = (const lv_cpu *)be;
    memcpy(tokens, cpu->tokens, (size_t)cpu->n_sampled * sizeof *tokens);
    if (logprobs) {
        memcpy(logprobs, cpu->logprobs, (size_t)cpu->n_sampled * sizeof *logprobs);
    }
    return LV_OK;
}
