// What the decoder's operations are given: the batch of a pass, attention's shape, how to draw a
// token.
#ifndef LV_KERNELS_BATCH_H
#define LV_KERNELS_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#define LV_MAX_ROWS 256     // sequences in a pass, rows of logits, and rows of one call of sample
#define LV_ID_ROW INT32_MIN // in lv_batch.ids: the row of x is there already

// What one forward pass works on: the tokens of n_seqs sequences one after another, each sequence's
// new tokens continuing its cached ones. Arrays are host memory, read before the call returns.
typedef struct lv_batch {
    int n_seqs;
    int n_tokens;
    int n_logits;
    // [n_tokens] token ids; LV_ID_ROW; or -1 - r: the token that row r of the last `sample` gave,
    // which the host need not know yet.
    const int32_t *ids;
    const int32_t *logit_rows; // [n_logits] the rows whose logits are wanted
    bool steady; // the body does the same for all batches of this size: it may be replayed
    const int32_t *token_start; // [n_seqs + 1] first row of each sequence
    const int32_t
        *kv_length; // [n_seqs] tokens in the cache after this pass; the new ones are the last
    const int32_t
        *block_table; // [n_seqs, max_blocks] block of the sequence's tokens 64 j .. 64 j + 63
    int max_blocks;
    int head_dim; // as inv_freq has it; 0 where there are no frequencies
    const float
        *inv_freq; // [n_seqs, head_dim / 2] rotary frequencies, scaled as the sequence needs
    const float *rope_scale; // [n_seqs] factor on cos and sin (1 but for YaRN)
} lv_batch;

typedef struct lv_attention_shape {
    int n_heads, n_kv_heads, head_dim;
    int window; // sliding window in tokens; 0: none
} lv_attention_shape;

// One row of logits -> one token. Zero-initialised means greedy.
typedef struct lv_sampling {
    float temperature;                         // <= 0: greedy
    int top_k;                                 // 0: off
    float top_p;                               // 0 or >= 1: off
    float min_p;                               // 0: off
    float repetition_penalty;                  // 0 or 1: off (over prompt and answer)
    float presence_penalty, frequency_penalty; // 0: off (over the answer only)
    uint64_t seed;                             // Philox key
    uint64_t step;                             // Philox counter: index of the token in its answer
    const int32_t *seen_ids;                   // [n_seen] distinct ids of prompt and answer, host
    const int32_t
        *seen_counts; // [n_seen] how often each stands in the answer (0: only in the prompt)
    int n_seen;
    const uint32_t *allowed; // bitmap over the vocabulary; NULL: all allowed
    bool want_logprob;       // for `collect`
} lv_sampling;

#endif
