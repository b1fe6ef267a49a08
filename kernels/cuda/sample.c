// Sampling's host side: what rows ask for goes to the device with the launch, their lists by one
// copy from pinned memory; tokens stay on the device for the next pass and come to the host in
// pinned memory that the kernels write, behind an event.
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/sample.h"

#define LIST_BYTES ((size_t)4 << 20) // of lists a launch: some 150 rows of 3000 seen tokens

struct lv_sampler {
    lv_sample_result *results; // pinned [LV_MAX_ROWS]
    cudaEvent_t done;          // behind the last call's kernels
    int n_rows;                // of the last call
    uint32_t *lists;           // dev [n_words]
    size_t n_words;
    struct {
        uint32_t *host; // pinned [n_words]
        cudaEvent_t copied;
    } slots[2];
    int slot;
};

// --- memory -------------------------------------------------------------------------------------

static lv_status open_sampler(lv_cuda *cuda) {
    struct lv_sampler *s = calloc(1, sizeof *s);
    if (!s) {
        return lv_fail(LV_ENOMEM, "sample: out of memory");
    }
    cuda->sampler = s;
    LV_CUDA_TRY(cuda, cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming));
    LV_CUDA_TRY(cuda, cudaHostAlloc((void **)&s->results, LV_MAX_ROWS * sizeof *s->results,
                                    cudaHostAllocMapped));
    return LV_OK;
}

static void free_lists(lv_cuda *cuda, struct lv_sampler *s) {
    for (int i = 0; i < 2; i++) {
        if (s->slots[i].copied) {
            cudaEventSynchronize(s->slots[i].copied);
            cudaEventDestroy(s->slots[i].copied);
        }
        cudaFreeHost(s->slots[i].host);
        s->slots[i].copied = NULL;
        s->slots[i].host = NULL;
    }
    lv_cuda_free(&cuda->base, s->lists);
    s->lists = NULL;
    s->n_words = 0;
}

void lv_cuda_sampler_free(lv_cuda *cuda) {
    struct lv_sampler *s = cuda->sampler;
    if (s) {
        free_lists(cuda, s);
        if (s->done) {
            cudaEventDestroy(s->done);
        }
        cudaFreeHost(s->results);
        free(s);
        cuda->sampler = NULL;
    }
}

static lv_status get_sampler(lv_cuda *cuda, struct lv_sampler **out) {
    if (!cuda->sampler) {
        const lv_status status = open_sampler(cuda);
        if (status != LV_OK) {
            lv_cuda_sampler_free(cuda);
            return status;
        }
    }
    *out = cuda->sampler;
    return LV_OK;
}

static size_t words_at_most(int vocab) { // of one row: all tokens seen, with counts, and a bitmap
    return 2 * (size_t)vocab + (size_t)(vocab + 31) / 32;
}

// Room for the lists of at least one row of this vocabulary, whatever they hold.
static lv_status reserve_lists(lv_cuda *cuda, struct lv_sampler *s, int vocab) {
    void *lists;
    size_t n_words = words_at_most(vocab);
    if (n_words <= s->n_words) {
        return LV_OK;
    }
    n_words = n_words < LIST_BYTES / 4 ? LIST_BYTES / 4 : n_words;
    free_lists(cuda, s);
    for (int i = 0; i < 2; i++) {
        LV_CUDA_TRY(cuda, cudaHostAlloc((void **)&s->slots[i].host, n_words * 4, 0));
        LV_CUDA_TRY(cuda, cudaEventCreateWithFlags(&s->slots[i].copied, cudaEventDisableTiming));
    }
    LV_TRY(lv_cuda_alloc(&cuda->base, n_words * 4, &lists));
    s->lists = lists;
    s->n_words = n_words;
    return LV_OK;
}

// --- rows ---------------------------------------------------------------------------------------

// Penalties that change nothing need no list.
static bool penalises(const lv_sampling *s) {
    return s->n_seen > 0 && ((s->repetition_penalty > 0 && s->repetition_penalty != 1) ||
                             s->presence_penalty != 0 || s->frequency_penalty != 0);
}

static bool has_lists(const lv_sampling *s) {
    return penalises(s) || s->allowed;
}

static bool is_greedy(const lv_sampling *s) {
    return s->temperature <= 0 && !has_lists(s);
}

static lv_status check_seen(const lv_sampling *s, int vocab) {
    if (s->n_seen < 0 || s->n_seen > vocab) {
        return lv_fail(LV_EINVAL, "sample: %d seen tokens of %d", s->n_seen, vocab);
    }
    for (int i = 0; i < s->n_seen; i++) {
        if (s->seen_ids[i] < 0 || s->seen_ids[i] >= vocab) {
            return lv_fail(LV_EINVAL, "sample: seen token %d of %d", s->seen_ids[i], vocab);
        }
    }
    return LV_OK;
}

static size_t count_words(const lv_sampling *s, int vocab) {
    return (penalises(s) ? 2 * (size_t)s->n_seen : 0) +
           (s->allowed ? (size_t)(vocab + 31) / 32 : 0);
}

// The row for the device, its lists written at words + *at and on.
static void pack_row(const lv_sampling *s, int vocab, bool want_logprob, uint32_t *words,
                     size_t *at, lv_sample_row *out) {
    const size_t n_seen = penalises(s) ? (size_t)s->n_seen : 0;
    *out = (lv_sample_row){.temperature = s->temperature,
                           .top_p = s->top_p,
                           .min_p = s->min_p,
                           .repetition = s->repetition_penalty > 0 ? s->repetition_penalty : 1,
                           .presence = s->presence_penalty,
                           .frequency = s->frequency_penalty,
                           .top_k = s->top_k,
                           .n_seen = (int32_t)n_seen,
                           .has_allowed = s->allowed != NULL,
                           .want_logprob = want_logprob,
                           .seed = s->seed,
                           .step = s->step};
    if (n_seen > 0) {
        out->seen_at = (uint32_t)*at;
        memcpy(words + *at, s->seen_ids, n_seen * 4);
        if (s->seen_counts) {
            memcpy(words + *at + n_seen, s->seen_counts, n_seen * 4);
        } else {
            memset(words + *at + n_seen, 0, n_seen * 4);
        }
        *at += 2 * n_seen;
    }
    if (s->allowed) {
        const size_t n = (size_t)(vocab + 31) / 32;
        out->allowed_at = (uint32_t)*at;
        memcpy(words + *at, s->allowed, n * 4);
        *at += n;
    }
}

// --- the operations -----------------------------------------------------------------------------

static lv_status sample_greedy(lv_cuda *cuda, const lv_sample_call *call, const lv_sampling *rows,
                               bool want_logprobs) {
    lv_sample_wants wants = {{0}};
    for (int i = 0; i < call->n_rows; i++) {
        wants.bits[i / 32] |= (uint32_t)(want_logprobs || rows[i].want_logprob) << (i % 32);
    }
    return lv_cuda_sample_greedy(cuda, call, &wants);
}

// Rows [first, ...) of the call as far as one launch takes them; *n of them.
static lv_status sample_some(lv_cuda *cuda, struct lv_sampler *s, const lv_sample_call *all,
                             const lv_sampling *rows, bool want_logprobs, int first, int *n) {
    lv_sample_row packed[LV_SAMPLE_ROWS];
    uint32_t *words = s->slots[s->slot].host;
    size_t at = 0;
    int m = 0;
    if (s->n_words > 0) {
        LV_CUDA_TRY(cuda, cudaEventSynchronize(s->slots[s->slot].copied));
    }
    for (; first + m < all->n_rows && m < LV_SAMPLE_ROWS; m++) {
        const lv_sampling *row = &rows[first + m];
        if (at + count_words(row, all->vocab) > s->n_words) {
            break;
        }
        pack_row(row, all->vocab, want_logprobs || row->want_logprob, words, &at, &packed[m]);
    }
    if (at > 0) {
        LV_CUDA_TRY(cuda,
                    cudaMemcpyAsync(s->lists, words, at * 4, cudaMemcpyHostToDevice, cuda->stream));
        LV_CUDA_TRY(cuda, cudaEventRecord(s->slots[s->slot].copied, cuda->stream));
        s->slot ^= 1;
    }
    const lv_sample_call call = {.logits = all->logits + (ptrdiff_t)first * all->vocab,
                                 .n_rows = m,
                                 .vocab = all->vocab,
                                 .lists = s->lists,
                                 .scratch = all->scratch,
                                 .results = all->results + first,
                                 .tokens = all->tokens + first};
    *n = m;
    return lv_cuda_sample_rows(cuda, &call, packed);
}

static lv_status sample_all(lv_cuda *cuda, struct lv_sampler *s, lv_sample_call *call,
                            const lv_sampling *rows, bool want_logprobs) {
    bool greedy = true, lists = false;
    void *scratch;
    for (int i = 0; i < call->n_rows; i++) {
        greedy = greedy && is_greedy(&rows[i]);
        lists = lists || has_lists(&rows[i]);
    }
    if (greedy) {
        return sample_greedy(cuda, call, rows, want_logprobs);
    }
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_SAMPLE,
                           (size_t)LV_SAMPLE_ROWS * (size_t)call->vocab * sizeof(float), &scratch));
    call->scratch = scratch;
    if (lists) {
        LV_TRY(reserve_lists(cuda, s, call->vocab));
    }
    for (int first = 0, n = 0; first < call->n_rows; first += n) {
        LV_TRY(sample_some(cuda, s, call, rows, want_logprobs, first, &n));
    }
    return LV_OK;
}

lv_status lv_cuda_sample(lv_backend *be, float *logits, int n_rows, int vocab,
                         const lv_sampling *rows, int32_t *tokens, float *logprobs) {
    lv_cuda *cuda = (lv_cuda *)be;
    struct lv_sampler *s;
    LV_TRY(lv_cuda_enter(cuda));
    if (n_rows < 1 || n_rows > LV_MAX_ROWS || vocab < 1) {
        return lv_fail(LV_EINVAL, "sample: %d rows of %d; expected 1 to %d", n_rows, vocab,
                       LV_MAX_ROWS);
    }
    LV_TRY(get_sampler(cuda, &s));
    s->n_rows = 0;
    for (int i = 0; i < n_rows; i++) {
        LV_TRY(check_seen(&rows[i], vocab));
    }
    lv_sample_call call = {.logits = logits,
                           .n_rows = n_rows,
                           .vocab = vocab,
                           .results = s->results,
                           .tokens = cuda->tokens};
    LV_TRY(sample_all(cuda, s, &call, rows, logprobs != NULL));
    LV_CUDA_TRY(cuda, cudaEventRecord(s->done, cuda->stream));
    s->n_rows = n_rows;
    return tokens ? lv_cuda_collect(be, tokens, logprobs) : LV_OK;
}

lv_status lv_cuda_collect(lv_backend *be, int32_t *tokens, float *logprobs) {
    lv_cuda *cuda = (lv_cuda *)be;
    const struct lv_sampler *s = cuda->sampler;
    LV_TRY(lv_cuda_enter(cuda));
    if (!s) {
        return LV_OK;
    }
    LV_CUDA_TRY(cuda, cudaEventSynchronize(s->done));
    for (int i = 0; i < s->n_rows; i++) {
        const lv_sample_result *r = &s->results[i];
        if (r->error == LV_SAMPLE_NOT_FINITE) {
            return lv_fail(LV_EFORMAT, "logits are not finite (row %d, token %d: %g)", i, r->token,
                           (double)r->logprob);
        }
        if (r->error == LV_SAMPLE_NONE) {
            return lv_fail(LV_EINVAL, "sample: no token is allowed");
        }
        tokens[i] = r->token;
        if (logprobs) {
            logprobs[i] = r->logprob;
        }
    }
    return LV_OK;
}
