// Between sampling's host side (sample.c) and its kernels (sample.cu).
#ifndef LV_KERNELS_CUDA_SAMPLE_H
#define LV_KERNELS_CUDA_SAMPLE_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LV_SAMPLE_ROWS 128 // rows of one launch: their parameters are the kernel's

typedef enum lv_sample_error { LV_SAMPLE_OK, LV_SAMPLE_NOT_FINITE, LV_SAMPLE_NONE } lv_sample_error;

// lv_sampling for the device. `lists` is its array of 32-bit words.
typedef struct lv_sample_row {
    float temperature, top_p, min_p, repetition, presence, frequency;
    int32_t top_k;
    int32_t n_seen; // lists[seen_at ...]: ids, then counts
    uint32_t seen_at;
    int32_t has_allowed; // lists[allowed_at ...]: the bitmap
    uint32_t allowed_at;
    int32_t want_logprob;
    uint64_t seed, step;
} lv_sample_row;

// Of one row, in host memory that the device writes.
typedef struct lv_sample_result {
    int32_t token;  // LV_SAMPLE_NOT_FINITE: where
    float logprob;  // and what
    int32_t error;  // lv_sample_error
    int32_t unused; // 16 bytes
} lv_sample_result;

typedef struct lv_sample_wants {
    uint32_t bits[LV_MAX_ROWS / 32]; // bit r % 32 of word r / 32: row r's log-probability
} lv_sample_wants;

typedef struct lv_sample_call {
    const float *logits; // [n_rows, vocab]
    int n_rows, vocab;
    const uint32_t *lists;     // dev
    float *scratch;            // dev [n_rows, vocab]
    lv_sample_result *results; // [n_rows]
    int32_t *tokens;           // dev [n_rows]
} lv_sample_call;

// Rows that want no more than their largest logit. No scratch, no lists.
lv_status lv_cuda_sample_greedy(lv_cuda *cuda, const lv_sample_call *call,
                                const lv_sample_wants *wants) LV_MUST_CHECK;
// At most LV_SAMPLE_ROWS rows.
lv_status lv_cuda_sample_rows(lv_cuda *cuda, const lv_sample_call *call,
                              const lv_sample_row *rows) LV_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
