#include <stdio.h>
#include <stdlib.h>

#include "llm/model.h"

#define MAX_WORK_BYTES ((size_t)256 << 20)
#define MAX_TOKENS_CPU 768  // an engine's chunk of 512 beside 256 sequences that go on
#define MAX_TOKENS_GPU 3072 // a LLaVA-1.6 prompt

// --- weights ------------------------------------------------------------------------------------

static lv_status load_norm(const lv_checkpoint *checkpoint, lv_backend *be, const char *name, int d,
                           float **out) {
    lv_tensor tensor;
    LV_TRY(lv_checkpoint_tensor(checkpoint, name, 1, (int64_t[]){d}, &tensor));
    return be->ops->tensor_load(be, &tensor, out);
}

// A part of a stacked linear: where it lies below its prefix, and its rows.
typedef struct part {
    const char *name;
    int n_out;
} part;

static lv_status load_linear(const lv_checkpoint *checkpoint, lv_backend *be, const char *prefix,
                             const part *parts, int n_parts, int n_in,
                             const lv_linear_options *options, lv_linear **out) {
    lv_linear_source sources[3];
    char name[256];
    for (int i = 0; i < n_parts; i++) {
        snprintf(name, sizeof name, "%s%s", prefix, parts[i].name);
        LV_TRY(lv_checkpoint_linear(checkpoint, name, parts[i].n_out, n_in, &sources[i]));
    }
    lv_status status = be->ops->linear_load(be, sources, n_parts, options, out);
    return status == LV_OK ? LV_OK : lv_fail_in(status, "%s%s", prefix, parts[0].name);
}

static lv_status load_layer(const lv_checkpoint *checkpoint, lv_backend *be,
                            const lv_text_config *c, const lv_llm_options *options, int i,
                            lv_llm_layer *layer) {
    const lv_keep keep = options->int4_weights ? LV_AS_INT4 : LV_AS_STORED;
    const lv_units heads = {c->n_kv_heads, c->head_dim}, values = {c->d_ff, 1};
    const lv_linear_options out = {.keep = keep, .split = LV_SPLIT_IN, .units = heads};
    const lv_linear_options back = {.keep = keep, .split = LV_SPLIT_IN, .units = values};
    const lv_linear_options halves = {
        .pair = c->head_dim / 2, .keep = keep, .split = LV_SPLIT_OUT, .units = heads};
    const lv_linear_options gated = {
        .pair = c->d_ff, .keep = keep, .split = LV_SPLIT_OUT, .units = values};
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    char prefix[64], name[128];
    snprintf(prefix, sizeof prefix, "language_model.layers.%d.", i);
    snprintf(name, sizeof name, "%sinput_layernorm.weight", prefix);
    LV_TRY(load_norm(checkpoint, be, name, c->d_model, &layer->input_layernorm));
    snprintf(name, sizeof name, "%spost_attention_layernorm.weight", prefix);
    LV_TRY(load_norm(checkpoint, be, name, c->d_model, &layer->post_attention_layernorm));
    const part qkv[] = {
        {"self_attn.q_proj", q}, {"self_attn.k_proj", kv}, {"self_attn.v_proj", kv}};
    const part o[] = {{"self_attn.o_proj", c->d_model}};
    const part gate_up[] = {{"mlp.gate_proj", c->d_ff}, {"mlp.up_proj", c->d_ff}};
    const part down[] = {{"mlp.down_proj", c->d_model}};
    LV_TRY(load_linear(checkpoint, be, prefix, qkv, 3, c->d_model, &halves, &layer->qkv));
    LV_TRY(load_linear(checkpoint, be, prefix, o, 1, q, &out, &layer->o_proj));
    LV_TRY(load_linear(checkpoint, be, prefix, gate_up, 2, c->d_model, &gated, &layer->gate_up));
    return load_linear(checkpoint, be, prefix, down, 1, c->d_ff, &back, &layer->down_proj);
}

static lv_status load_weights(const lv_checkpoint *checkpoint, const lv_llm_options *options,
                              lv_llm *llm) {
    const lv_linear_options for_head = {.keep = options->int8_head ? LV_AS_INT8 : LV_AS_STORED,
                                        .split = LV_SPLIT_HEAD,
                                        .units = {llm->config.vocab_size, 1}};
    const lv_text_config *c = &llm->config;
    const part embed[] = {{"language_model.embed_tokens", c->vocab_size}};
    const part head[] = {{"lm_head", c->vocab_size}};
    LV_TRY(load_linear(checkpoint, llm->be, "", embed, 1, c->d_model, NULL, &llm->embed_tokens));
    if (c->tie_embeddings) {
        llm->lm_head = llm->embed_tokens;
    } else {
        LV_TRY(load_linear(checkpoint, llm->be, "", head, 1, c->d_model, &for_head, &llm->lm_head));
    }
    LV_TRY(load_norm(checkpoint, llm->be, "language_model.norm.weight", c->d_model, &llm->norm));
    llm->layers = calloc((size_t)c->n_layers, sizeof *llm->layers);
    if (!llm->layers) {
        return lv_fail(LV_ENOMEM, "out of memory for %d layers", c->n_layers);
    }
    for (int i = 0; i < c->n_layers; i++) {
        LV_TRY(load_layer(checkpoint, llm->be, c, options, i, &llm->layers[i]));
    }
    return LV_OK;
}

// --- work space ---------------------------------------------------------------------------------

static size_t act_bytes(const lv_llm *llm, int n_tokens, int width) {
    return (size_t)n_tokens * (size_t)width * lv_dtype_bytes(llm->be->act);
}

static lv_status allocate_host(lv_llm *llm) {
    lv_llm_pass *p = &llm->pass;
    size_t n = (size_t)llm->max_tokens, rows = LV_MAX_ROWS;
    p->token_start = malloc((rows + 1) * sizeof *p->token_start);
    p->kv_length = malloc(rows * sizeof *p->kv_length);
    p->inv_freq = malloc(rows * (size_t)(llm->config.head_dim / 2) * sizeof *p->inv_freq);
    p->rope_scale = malloc(rows * sizeof *p->rope_scale);
    p->ids = malloc(n * sizeof *p->ids);
    p->index = malloc(n * sizeof *p->index);
    p->rows = malloc(rows * sizeof *p->rows);
    if (!p->token_start || !p->kv_length || !p->inv_freq || !p->rope_scale || !p->ids ||
        !p->index || !p->rows) {
        return lv_fail(LV_ENOMEM, "out of memory for a pass of %d tokens", llm->max_tokens);
    }
    for (int i = 0; i < llm->max_tokens; i++) {
        p->index[i] = i;
    }
    return LV_OK;
}

static lv_status allocate(lv_llm *llm) {
    const lv_text_config *c = &llm->config;
    const lv_ops *ops = llm->be->ops;
    int n = llm->be->is_gpu ? MAX_TOKENS_GPU : MAX_TOKENS_CPU, q = c->n_heads * c->head_dim;
    const int width = c->d_ff > 2 * q ? c->d_ff : 2 * q;
    while (n > 64 && act_bytes(llm, n, c->d_model + width) > MAX_WORK_BYTES) {
        n /= 2;
    }
    llm->max_tokens = n;
    LV_TRY(ops->alloc(llm->be, act_bytes(llm, n, c->d_model), &llm->x));
    LV_TRY(ops->alloc(llm->be, act_bytes(llm, n, width), &llm->hidden));
    llm->q = llm->hidden;
    llm->mixed = (char *)llm->hidden + act_bytes(llm, n, q);
    void *logits = NULL;
    LV_TRY(
        ops->alloc(llm->be, (size_t)LV_MAX_ROWS * (size_t)c->vocab_size * sizeof(float), &logits));
    llm->logits = logits;
    return allocate_host(llm);
}

static lv_status check_config(const lv_text_config *c) {
    const struct {
        const char *name;
        int value, max;
    } fields[] = {{"vocab_size", c->vocab_size, 1 << 24},
                  {"hidden_size", c->d_model, 1 << 16},
                  {"intermediate_size", c->d_ff, 1 << 18},
                  {"num_hidden_layers", c->n_layers, 1 << 12},
                  {"num_attention_heads", c->n_heads, 1 << 12},
                  {"num_key_value_heads", c->n_kv_heads, 1 << 12},
                  {"head_dim", c->head_dim, 1 << 12}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].value < 1 || fields[i].value > fields[i].max) {
            return lv_fail(LV_EFORMAT, "text config: %s is %d; expected 1 to %d", fields[i].name,
                           fields[i].value, fields[i].max);
        }
    }
    if (c->n_heads % c->n_kv_heads || c->head_dim % 2) {
        return lv_fail(LV_EFORMAT, "text config: %d heads over %d KV heads of %d", c->n_heads,
                       c->n_kv_heads, c->head_dim);
    }
    return LV_OK;
}

lv_status lv_llm_load(const lv_checkpoint *checkpoint, lv_backend *be,
                      const lv_llm_options *options, lv_llm **out) {
    static const lv_llm_options defaults = {0};
    const lv_text_config *config = &lv_checkpoint_config(checkpoint)->text;
    *out = NULL;
    LV_TRY(check_config(config));
    lv_llm *llm = calloc(1, sizeof *llm);
    if (!llm) {
        return lv_fail(LV_ENOMEM, "out of memory for the decoder");
    }
    llm->be = be;
    llm->config = *config;
    lv_status status = LV_OK;
    LV_TRY_DONE(load_weights(checkpoint, options ? options : &defaults, llm));
    LV_TRY_DONE(allocate(llm));
    *out = llm;
    return LV_OK;
done:
    lv_llm_free(llm);
    return status;
}

static void free_linear(lv_backend *be, lv_linear *linear) {
    if (linear) {
        be->ops->linear_free(be, linear);
    }
}

static void free_dev(lv_backend *be, void *dev) {
    if (dev) {
        be->ops->free(be, dev);
    }
}

void lv_llm_free(lv_llm *llm) {
    if (!llm) {
        return;
    }
    lv_backend *be = llm->be;
    for (int i = 0; llm->layers && i < llm->config.n_layers; i++) {
        lv_llm_layer *layer = &llm->layers[i];
        free_dev(be, layer->input_layernorm);
        free_dev(be, layer->post_attention_layernorm);
        free_linear(be, layer->qkv);
        free_linear(be, layer->o_proj);
        free_linear(be, layer->gate_up);
        free_linear(be, layer->down_proj);
    }
    free(llm->layers);
    if (llm->lm_head != llm->embed_tokens) {
        free_linear(be, llm->lm_head);
    }
    free_linear(be, llm->embed_tokens);
    void *dev[] = {llm->norm, llm->x, llm->hidden, llm->logits};
    for (size_t i = 0; i < sizeof dev / sizeof *dev; i++) {
        free_dev(be, dev[i]);
    }
    lv_llm_pass *p = &llm->pass;
    void *host[] = {p->token_start, p->kv_length, p->block_table, p->inv_freq,
                    p->rope_scale,  p->ids,       p->index,       p->rows};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) {
        free(host[i]);
    }
    free(llm);
}

const lv_text_config *lv_llm_config(const lv_llm *llm) {
    return &llm->config;
}

int lv_llm_max_tokens(const lv_llm *llm) {
    return llm->max_tokens;
}

size_t lv_llm_bytes_per_token(const lv_llm *llm) {
    const lv_ops *ops = llm->be->ops;
    size_t d = (size_t)llm->config.d_model, n_layers = (size_t)llm->config.n_layers;
    size_t n = ops->linear_shape(llm->lm_head).n_bytes + (2 * n_layers + 1) * d * sizeof(float);
    for (size_t i = 0; i < n_layers; i++) {
        const lv_llm_layer *layer = &llm->layers[i];
        const lv_linear *all[] = {layer->qkv, layer->o_proj, layer->gate_up, layer->down_proj};
        for (int j = 0; j < 4; j++) {
            n += ops->linear_shape(all[j]).n_bytes;
        }
    }
    return n;
}
