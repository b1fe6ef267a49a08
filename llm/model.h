// Inside llm/: the decoder's weights and work space.
#ifndef LV_LLM_MODEL_H
#define LV_LLM_MODEL_H

#include "llm/llm.h"

typedef struct lv_llm_layer {
    float *input_layernorm;          // dev f32 [d_model]
    lv_linear *qkv;                  // [(n_heads + 2 n_kv_heads) head_dim, d_model]
    lv_linear *o_proj;               // [d_model, n_heads head_dim]
    float *post_attention_layernorm; // dev f32 [d_model]
    lv_linear *gate_up;              // [2 d_ff, d_model]
    lv_linear *down_proj;            // [d_model, d_ff]
} lv_llm_layer;

// Host arrays that describe one pass, filled anew for each.
typedef struct lv_llm_pass {
    int32_t *token_start; // [LV_MAX_ROWS + 1]
    int32_t *kv_length;   // [LV_MAX_ROWS]
    int32_t *block_table; // [n_seqs, max_blocks], grown as needed
    size_t table_capacity;
    float *inv_freq;   // [LV_MAX_ROWS, head_dim / 2]
    float *rope_scale; // [LV_MAX_ROWS]
    int32_t *ids;      // [max_tokens]
    int32_t *index;    // [max_tokens] 0, 1, 2, ...: copies rows through gather_rows
    int32_t *rows;     // [LV_MAX_ROWS] rows that want logits
    int n_logits;      // rows of logits that this call's passes have written
} lv_llm_pass;

struct lv_llm {
    lv_backend *be;
    lv_text_config config;
    lv_linear *embed_tokens; // [vocab, d_model]
    lv_linear *lm_head;      // [vocab, d_model]; embed_tokens itself where they are tied
    float *norm;             // dev f32 [d_model]
    lv_llm_layer *layers;    // [n_layers]
    int max_tokens;
    void *x; // dev act [max_tokens, d_model]
    // q and mixed lie where hidden does: one is done with before the other begins.
    void *q;       // dev act [max_tokens, n_heads head_dim]
    void *mixed;   // dev act [max_tokens, n_heads head_dim] what attention gives
    void *hidden;  // dev act [max_tokens, d_ff]
    float *logits; // dev f32 [LV_MAX_ROWS, vocab]
    lv_llm_pass pass;
};

struct lv_cache {
    lv_backend *be;
    lv_llm *llm; // whose it is
    lv_kv *kv;
    int n_blocks, n_free;
    int32_t *free_blocks; // [n_blocks] a stack; the first n_free are free
    int32_t *holds;       // [n_blocks] by how many sequences and others; 0: free
};

#endif
