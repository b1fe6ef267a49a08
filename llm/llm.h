// The decoder: embeddings and tokens -> logits -> tokens. LLaMA, Vicuna, Mistral, Yi by
// configuration.
#ifndef LV_LLM_H
#define LV_LLM_H

#include "kernels/ops.h"

typedef struct lv_llm lv_llm;

typedef struct lv_llm_options {
    bool int4_weights; // round dense linears to int4 (groups of 128) while loading
    bool int8_head;    // round the head to int8 (a scale a row)
} lv_llm_options;

// options may be NULL.
lv_status lv_llm_load(const lv_checkpoint *checkpoint, lv_backend *be,
                      const lv_llm_options *options, lv_llm **out) LV_MUST_CHECK;
void lv_llm_free(lv_llm *llm);
const lv_text_config *lv_llm_config(const lv_llm *llm);
size_t lv_llm_bytes_per_token(const lv_llm *llm); // weight bytes that one decoded token must read

// Rotary frequencies for a sequence that may grow to `limit` tokens: plain while it fits the
// trained length; beyond it by `scaling` (NULL: the config's own, or dynamic NTK). out_inv_freq
// [head_dim / 2].
lv_status lv_rope_frequencies(const lv_text_config *config, const lv_rope_config *scaling,
                              int limit, float *out_inv_freq, float *out_scale) LV_MUST_CHECK;

// The KV cache in blocks of LV_KV_BLOCK tokens, owned by the caller of the decoder.
typedef struct lv_cache lv_cache;
lv_status lv_cache_create(lv_llm *llm, int n_blocks, lv_dtype kv_dtype,
                          lv_cache **out) LV_MUST_CHECK;
void lv_cache_free(lv_cache *cache);
static inline int lv_kv_blocks(int n_tokens) { // that they take
    return (n_tokens + LV_KV_BLOCK - 1) / LV_KV_BLOCK;
}
size_t lv_cache_block_bytes(const lv_llm *llm, lv_dtype kv_dtype);
int lv_cache_free_blocks(const lv_cache *cache);
// Blocks are counted: one is free again once all who hold it have released it. What several
// sequences hold must be full, for each would append to it.
void lv_cache_hold(lv_cache *cache, int32_t block);
void lv_cache_release(lv_cache *cache, int32_t block);

// One timeline of tokens in the cache.
typedef struct lv_sequence {
    int length;      // tokens cached
    int limit;       // the most it may hold (decides the rotary scaling)
    int32_t *blocks; // [n_blocks]
    int n_blocks, capacity;
    float *inv_freq; // [head_dim / 2]
    float rope_scale;
} lv_sequence;

lv_status lv_sequence_open(const lv_llm *llm, int limit, const lv_rope_config *scaling,
                           lv_sequence *out) LV_MUST_CHECK;
void lv_sequence_close(lv_cache *cache, lv_sequence *sequence); // gives its blocks back
void lv_sequence_truncate(lv_cache *cache, lv_sequence *sequence, int length); // forgets the tail
// Blocks for `length` tokens in all, as lv_llm_forward takes them by itself; LV_ELIMIT where too
// few are free, none taken then.
lv_status lv_sequence_reserve(lv_cache *cache, lv_sequence *sequence, int length) LV_MUST_CHECK;
// Goes on by a copy of the first n_tokens places of a block, which others may hold; LV_ELIMIT
// where no block is free.
lv_status lv_sequence_copy(lv_cache *cache, lv_sequence *sequence, int32_t block,
                           int n_tokens) LV_MUST_CHECK;
// Goes on by a block that holds the next n_tokens already; the caller's hold passes over.
void lv_sequence_adopt(lv_sequence *sequence, int32_t block, int n_tokens);

// New tokens of one sequence in a pass: either ids (host) or embeddings (dev act [n, d_model]). An
// id of -1 - r is the token that row r of the last lv_ops.sample gave.
typedef struct lv_chunk {
    lv_sequence *sequence;
    const int32_t *ids;     // [n], or NULL
    const void *embeddings; // dev act [n, d_model], or NULL
    int n;
    bool want_logits; // of the chunk's last token
} lv_chunk;

// One forward pass over all chunks; several chunks may belong to one sequence (text, picture,
// text), in order. *out_logits: dev f32 [chunks that want logits, vocab], the decoder's own until
// the next call. LV_ELIMIT where the cache has no free block or a sequence would pass its limit:
// nothing is changed then.
lv_status lv_llm_forward(lv_llm *llm, lv_cache *cache, const lv_chunk *chunks, int n_chunks,
                         float **out_logits) LV_MUST_CHECK;

// The most tokens one pass takes; longer prompts are fed in pieces.
int lv_llm_max_tokens(const lv_llm *llm);

#endif
