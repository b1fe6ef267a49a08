#include <assert.h>
#include <stdlib.h>

#include "llm/model.h"

size_t lv_cache_block_bytes(const lv_llm *llm, lv_dtype kv_dtype) {
    const lv_text_config *c = &llm->config;
    return llm->be->ops->kv_block_bytes(llm->be, c->n_layers, c->n_kv_heads, c->head_dim, kv_dtype);
}

lv_status lv_cache_create(lv_llm *llm, int n_blocks, lv_dtype kv_dtype, lv_cache **out) {
    *out = NULL;
    if (n_blocks <= 0) {
        return lv_fail(LV_EINVAL, "KV cache of %d blocks", n_blocks);
    }
    lv_cache *cache = calloc(1, sizeof *cache);
    int32_t *free_blocks = calloc((size_t)n_blocks, sizeof *free_blocks);
    int32_t *holds = calloc((size_t)n_blocks, sizeof *holds);
    lv_status status = LV_OK;
    if (!cache || !free_blocks || !holds) {
        status = lv_fail(LV_ENOMEM, "out of memory for a KV cache of %d blocks", n_blocks);
        goto done;
    }
    const lv_text_config *c = &llm->config;
    cache->be = llm->be;
    cache->llm = llm;
    LV_TRY_DONE(llm->be->ops->kv_create(llm->be, c->n_layers, c->n_kv_heads, c->head_dim, n_blocks,
                                        kv_dtype, &cache->kv));
    for (int i = 0; i < n_blocks; i++) {
        free_blocks[i] = n_blocks - 1 - i; // the stack's top is block 0
    }
    cache->n_blocks = cache->n_free = n_blocks;
    cache->free_blocks = free_blocks;
    cache->holds = holds;
    *out = cache;
    return LV_OK;
done:
    free(holds);
    free(free_blocks);
    free(cache);
    return status;
}

void lv_cache_free(lv_cache *cache) {
    if (cache) {
        cache->be->ops->kv_free(cache->be, cache->kv);
        free(cache->free_blocks);
        free(cache->holds);
        free(cache);
    }
}

int lv_cache_free_blocks(const lv_cache *cache) {
    return cache->n_free;
}

void lv_cache_hold(lv_cache *cache, int32_t block) {
    assert(cache->holds[block] > 0);
    cache->holds[block]++;
}

void lv_cache_release(lv_cache *cache, int32_t block) {
    assert(cache->holds[block] > 0);
    if (--cache->holds[block] == 0) {
        cache->free_blocks[cache->n_free++] = block;
    }
}

lv_status lv_sequence_open(const lv_llm *llm, int limit, const lv_rope_config *scaling,
                           lv_sequence *out) {
    *out = (lv_sequence){0};
    if (limit <= 0 || limit > 1 << 24) {
        return lv_fail(LV_EINVAL, "a sequence of at most %d tokens; expected 1 to %d", limit,
                       1 << 24);
    }
    lv_sequence s = {.limit = limit, .capacity = lv_kv_blocks(limit)};
    // All block numbers it can ever hold, so that a decode step allocates nothing.
    s.blocks = malloc((size_t)s.capacity * sizeof *s.blocks);
    s.inv_freq = malloc((size_t)(llm->config.head_dim / 2) * sizeof *s.inv_freq);
    lv_status status = s.blocks && s.inv_freq ? lv_rope_frequencies(&llm->config, scaling, limit,
                                                                    s.inv_freq, &s.rope_scale)
                                              : lv_fail(LV_ENOMEM, "out of memory for a sequence");
    if (status != LV_OK) {
        free(s.blocks);
        free(s.inv_freq);
        return status;
    }
    *out = s;
    return LV_OK;
}

void lv_sequence_close(lv_cache *cache, lv_sequence *sequence) {
    if (sequence->n_blocks > 0) {
        lv_sequence_truncate(cache, sequence, 0);
    }
    free(sequence->blocks);
    free(sequence->inv_freq);
    *sequence = (lv_sequence){0};
}

void lv_sequence_truncate(lv_cache *cache, lv_sequence *sequence, int length) {
    length = length < 0 ? 0 : length;
    if (length < sequence->length) {
        sequence->length = length;
    }
    int n_kept = lv_kv_blocks(sequence->length);
    while (sequence->n_blocks > n_kept) {
        lv_cache_release(cache, sequence->blocks[--sequence->n_blocks]);
    }
}

lv_status lv_sequence_reserve(lv_cache *cache, lv_sequence *sequence, int length) {
    int n_needed = lv_kv_blocks(length) - sequence->n_blocks;
    if (lv_kv_blocks(length) > sequence->capacity) {
        return lv_fail(LV_EINVAL, "a sequence of at most %d tokens cannot hold %d", sequence->limit,
                       length);
    }
    if (n_needed > cache->n_free) {
        return lv_fail(LV_ELIMIT, "the KV cache is full: %d more blocks needed, %d of %d free",
                       n_needed, cache->n_free, cache->n_blocks);
    }
    for (int i = 0; i < n_needed; i++) {
        const int32_t block = cache->free_blocks[--cache->n_free];
        cache->holds[block] = 1;
        sequence->blocks[sequence->n_blocks++] = block;
    }
    return LV_OK;
}

void lv_sequence_adopt(lv_sequence *sequence, int32_t block, int n_tokens) {
    assert(sequence->length % LV_KV_BLOCK == 0 && n_tokens <= LV_KV_BLOCK &&
           sequence->n_blocks * LV_KV_BLOCK == sequence->length &&
           sequence->n_blocks < sequence->capacity);
    sequence->blocks[sequence->n_blocks++] = block;
    sequence->length += n_tokens;
}

lv_status lv_sequence_copy(lv_cache *cache, lv_sequence *sequence, int32_t block, int n_tokens) {
    assert(sequence->length % LV_KV_BLOCK == 0 && n_tokens <= LV_KV_BLOCK &&
           sequence->n_blocks * LV_KV_BLOCK == sequence->length &&
           sequence->n_blocks < sequence->capacity);
    LV_TRY(lv_sequence_reserve(cache, sequence, sequence->length + 1));
    const int32_t copy = sequence->blocks[sequence->n_blocks - 1];
    const lv_status status = cache->be->ops->kv_copy(cache->be, cache->kv, block, copy);
    if (status == LV_OK) {
        sequence->length += n_tokens;
    } else {
        lv_sequence_truncate(cache, sequence, sequence->length);
    }
    return status;
}
