// One forward pass. A call's chunks are checked and their cache blocks reserved first, so that a
// refusal changes nothing; then they go through the decoder in passes of at most max_tokens rows.
#include "llm/llm.h"

#include <stdlib.h>
#include <string.h>

#include "llm/model.h"

// Where the next pass begins.
typedef struct cursor {
    const lv_chunk *chunks;
    int n_chunks;
    int chunk, offset; // chunks before `chunk` are done, and `offset` tokens of it
} cursor;

// --- checks -------------------------------------------------------------------------------------

static lv_status check_chunk(const lv_llm *llm, const lv_chunk *chunk) {
    if (!chunk->sequence || chunk->n < 1 || !chunk->ids == !chunk->embeddings) {
        return lv_fail(LV_EINVAL, "a chunk needs a sequence, a token, and ids or embeddings");
    }
    for (int i = 0; chunk->ids && i < chunk->n; i++) {
        if (chunk->ids[i] < -LV_MAX_ROWS || chunk->ids[i] >= llm->config.vocab_size) {
            return lv_fail(LV_EINVAL, "token id %d; the vocabulary has %d", chunk->ids[i],
                           llm->config.vocab_size);
        }
    }
    return LV_OK;
}

static lv_status check_chunks(const lv_llm *llm, const lv_chunk *chunks, int n_chunks) {
    int n_logits = 0;
    for (int i = 0; i < n_chunks; i++) {
        LV_TRY(check_chunk(llm, &chunks[i]));
        n_logits += chunks[i].want_logits;
        bool continues = i > 0 && chunks[i - 1].sequence == chunks[i].sequence;
        for (int j = 0; !continues && j < i; j++) {
            if (chunks[j].sequence == chunks[i].sequence) {
                return lv_fail(LV_EINVAL, "the chunks of one sequence must stand together");
            }
        }
    }
    if (n_chunks < 1 || n_logits > LV_MAX_ROWS) {
        return lv_fail(LV_EINVAL, "%d chunks, %d of them with logits; at most %d", n_chunks,
                       n_logits, LV_MAX_ROWS);
    }
    return LV_OK;
}

// Blocks for every sequence's new tokens.
static lv_status reserve(lv_cache *cache, const lv_chunk *chunks, int n_chunks) {
    for (int i = 0; i < n_chunks;) {
        lv_sequence *s = chunks[i].sequence;
        int64_t length = s->length;
        for (; i < n_chunks && chunks[i].sequence == s; i++) {
            length += chunks[i].n;
        }
        if (length > s->limit) {
            return lv_fail(LV_ELIMIT, "the sequence would hold %lld tokens; its limit is %d",
                           (long long)length, s->limit);
        }
        LV_TRY(lv_sequence_reserve(cache, s, (int)length));
    }
    return LV_OK;
}

// Undoes `reserve`, and what passes have appended: truncating to the old length returns the blocks.
static void roll_back(lv_cache *cache, const lv_chunk *chunks, int n_chunks, const cursor *done) {
    for (int i = 0; i < n_chunks; i++) {
        if (i < done->chunk) {
            chunks[i].sequence->length -= chunks[i].n;
        } else if (i == done->chunk) {
            chunks[i].sequence->length -= done->offset;
        }
    }
    for (int i = 0; i < n_chunks; i++) {
        lv_sequence_truncate(cache, chunks[i].sequence, chunks[i].sequence->length);
    }
}

// --- one pass -----------------------------------------------------------------------------------

// Rows [row, row + n) of x, and their places in the list of ids, from a chunk's embeddings.
static lv_status copy_embeddings(lv_llm *llm, const lv_chunk *chunk, int offset, int n, int row) {
    for (int i = 0; i < n; i++) {
        llm->pass.ids[row + i] = LV_ID_ROW;
    }
    size_t row_bytes = (size_t)llm->config.d_model * lv_dtype_bytes(llm->be->act);
    const char *source = (const char *)chunk->embeddings + (size_t)offset * row_bytes;
    return llm->be->ops->gather_rows(llm->be, source, NULL, llm->pass.index, n, llm->config.d_model,
                                     (char *)llm->x + (size_t)row * row_bytes);
}

// Opens the next row of the batch for sequence `s`.
static void begin_sequence(lv_llm *llm, const lv_sequence *s, int n_seqs, int row) {
    int half = llm->config.head_dim / 2;
    lv_llm_pass *p = &llm->pass;
    p->token_start[n_seqs] = row;
    p->rope_scale[n_seqs] = s->rope_scale;
    memcpy(p->inv_freq + (size_t)n_seqs * (size_t)half, s->inv_freq, (size_t)half * sizeof(float));
}

// Takes tokens from the cursor until the pass is full; the batch's arrays are filled, embeddings
// copied into x, the sequences' lengths grown. sequences [n_seqs] are those of the pass.
static lv_status take(lv_llm *llm, cursor *at, lv_batch *batch, const lv_sequence **sequences) {
    lv_llm_pass *p = &llm->pass;
    int row = 0, n_seqs = 0, n_rows = 0;
    while (at->chunk < at->n_chunks && row < llm->max_tokens) {
        const lv_chunk *chunk = &at->chunks[at->chunk];
        lv_sequence *s = chunk->sequence;
        if (n_seqs == 0 || sequences[n_seqs - 1] != s) {
            if (n_seqs == LV_MAX_ROWS) {
                break;
            }
            sequences[n_seqs] = s;
            begin_sequence(llm, s, n_seqs++, row);
        }
        int n = chunk->n - at->offset;
        n = n < llm->max_tokens - row ? n : llm->max_tokens - row;
        if (chunk->ids) {
            memcpy(p->ids + row, chunk->ids + at->offset, (size_t)n * sizeof *p->ids);
        } else {
            LV_TRY(copy_embeddings(llm, chunk, at->offset, n, row));
        }
        row += n;
        s->length += n;
        at->offset += n;
        p->kv_length[n_seqs - 1] = s->length;
        if (at->offset == chunk->n) {
            at->chunk++;
            at->offset = 0;
            if (chunk->want_logits) {
                p->rows[n_rows++] = row - 1;
            }
        }
    }
    p->token_start[n_seqs] = row;
    batch->n_seqs = n_seqs;
    batch->n_tokens = row;
    batch->n_logits = n_rows;
    return LV_OK;
}

// The block table, as wide as the longest sequence of the pass.
static lv_status fill_table(lv_llm_pass *p, const lv_sequence *const *sequences, lv_batch *batch) {
    int width = 1;
    for (int i = 0; i < batch->n_seqs; i++) {
        width = sequences[i]->n_blocks > width ? sequences[i]->n_blocks : width;
    }
    size_t n = (size_t)batch->n_seqs * (size_t)width;
    if (n > p->table_capacity) {
        size_t capacity = n < 4096 ? 4096 : 2 * n; // seldom: it never shrinks
        int32_t *table = realloc(p->block_table, capacity * sizeof *table);
        if (!table) {
            return lv_fail(LV_ENOMEM, "out of memory for a table of %zu blocks", capacity);
        }
        p->block_table = table;
        p->table_capacity = capacity;
    }
    memset(p->block_table, 0, n * sizeof *p->block_table);
    for (int i = 0; i < batch->n_seqs; i++) {
        memcpy(p->block_table + (size_t)i * (size_t)width, sequences[i]->blocks,
               (size_t)sequences[i]->n_blocks * sizeof *p->block_table);
    }
    batch->max_blocks = width;
    batch->block_table = p->block_table;
    return LV_OK;
}

// ids and x -> logits: the embedding, five operations a layer, the head. What lv_ops.pass runs.
static lv_status run_body(void *user, const lv_batch *batch) {
    const lv_cache *cache = user;
    lv_llm *llm = cache->llm;
    lv_kv *kv = cache->kv;
    const lv_text_config *c = &llm->config;
    const lv_ops *ops = llm->be->ops;
    lv_backend *be = llm->be;
    int m = batch->n_tokens;
    const lv_attention_shape shape = {.n_heads = c->n_heads,
                                      .n_kv_heads = c->n_kv_heads,
                                      .head_dim = c->head_dim,
                                      .window = c->sliding_window};
    LV_TRY(ops->embed(be, batch, llm->embed_tokens, llm->x));
    for (int i = 0; i < c->n_layers; i++) {
        const lv_llm_layer *l = &llm->layers[i];
        LV_TRY(ops->norm_qkv_rope_append(be, batch, &shape, llm->x, l->input_layernorm,
                                         c->rms_norm_eps, l->qkv, kv, i, llm->q));
        LV_TRY(ops->attention(be, batch, &shape, llm->q, kv, i, llm->mixed));
        LV_TRY(ops->linear(be, llm->mixed, m, l->o_proj, LV_ACT_NONE, llm->x, llm->x));
        LV_TRY(ops->norm_gate_up_silu(be, llm->x, m, l->post_attention_layernorm, c->rms_norm_eps,
                                      l->gate_up, llm->hidden));
        LV_TRY(ops->linear(be, llm->hidden, m, l->down_proj, LV_ACT_NONE, llm->x, llm->x));
    }
    if (batch->n_logits == 0) {
        return LV_OK;
    }
    float *logits = llm->logits + (size_t)llm->pass.n_logits * (size_t)c->vocab_size;
    return ops->norm_logits(be, batch, llm->x, llm->norm, c->rms_norm_eps, llm->lm_head, logits);
}

static lv_status run_pass(lv_llm *llm, lv_cache *cache, cursor *at) {
    const lv_sequence *sequences[LV_MAX_ROWS];
    lv_llm_pass *p = &llm->pass;
    lv_batch batch = {.token_start = p->token_start,
                      .kv_length = p->kv_length,
                      .head_dim = llm->config.head_dim,
                      .inv_freq = p->inv_freq,
                      .rope_scale = p->rope_scale,
                      .ids = p->ids,
                      .logit_rows = p->rows};
    LV_TRY(take(llm, at, &batch, sequences));
    LV_TRY(fill_table(p, sequences, &batch));
    batch.steady =
        batch.n_tokens == batch.n_seqs && batch.n_logits == batch.n_seqs && p->n_logits == 0;
    LV_TRY(llm->be->ops->pass(llm->be, &batch, run_body, cache));
    p->n_logits += batch.n_logits;
    return LV_OK;
}

lv_status lv_llm_forward(lv_llm *llm, lv_cache *cache, const lv_chunk *chunks, int n_chunks,
                         float **out_logits) {
    cursor at = {.chunks = chunks, .n_chunks = n_chunks};
    llm->pass.n_logits = 0;
    LV_TRY(check_chunks(llm, chunks, n_chunks));
    lv_status status = reserve(cache, chunks, n_chunks);
    while (status == LV_OK && at.chunk < n_chunks) {
        status = run_pass(llm, cache, &at);
    }
    if (status != LV_OK) {
        roll_back(cache, chunks, n_chunks, &at);
        return status;
    }
    if (out_logits) {
        *out_logits = llm->logits;
    }
    return LV_OK;
}
