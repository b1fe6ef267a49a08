// A model on disk: its configuration and its tensors under one set of canonical names, whichever
// family wrote it. Tensors are views of mapped safetensors files; nothing is copied.
//
// Canonical names (those of llava-hf without wrappers):
//   vision_tower.{embeddings.*, pre_layrnorm.*, encoder.layers.N.*, post_layernorm.*}
//   multi_modal_projector.{linear_1,linear_2}.{weight,bias}
//   image_newline
//   language_model.{embed_tokens.weight, layers.N.*, norm.weight}
//   lm_head.weight
#ifndef LV_CORE_CHECKPOINT_H
#define LV_CORE_CHECKPOINT_H

#include "core/config.h"
#include "core/tensor.h"

typedef struct lv_checkpoint lv_checkpoint;

typedef enum lv_quant { LV_QUANT_NONE = 0, LV_QUANT_AWQ } lv_quant;

// A linear layer's weights as stored. Dense: y = x weight^T + bias.
// AWQ: w[k, n] = (q[k, n] - z[k / group, n]) * scales[k / group, n], nibble i of a 32-bit word
// being column {0, 2, 4, 6, 1, 3, 5, 7}[i] of its eight.
typedef struct lv_linear_source {
    int n_out, n_in;
    lv_quant quant;
    lv_tensor weight;  // [n_out, n_in] f32, f16 or bf16 (dense)
    lv_tensor qweight; // [n_in, n_out / 8] i32 (AWQ)
    lv_tensor qzeros;  // [n_in / group_size, n_out / 8] i32
    lv_tensor scales;  // [n_in / group_size, n_out] f16
    int group_size;
    lv_tensor bias; // [n_out], or absent
} lv_linear_source;

// Opens a folder, or an org/name looked up in the Hugging Face cache. Pickled checkpoints are
// refused with a message that says how to convert them. Shapes and offsets are checked against the
// files.
lv_status lv_checkpoint_open(const char *model, const char *vision_model,
                             lv_checkpoint **out) LV_MUST_CHECK;
void lv_checkpoint_free(lv_checkpoint *checkpoint);

const lv_config *lv_checkpoint_config(const lv_checkpoint *checkpoint);
const char *lv_checkpoint_dir(const lv_checkpoint *checkpoint); // where tokenizer.model lies
size_t lv_checkpoint_bytes(const lv_checkpoint *checkpoint);    // sum over all tensors

// The tensor `name` with exactly these dims, of type f32, f16 or bf16. LV_ENOTFOUND or LV_EFORMAT
// names the tensor, its file, the expected and the actual.
lv_status lv_checkpoint_tensor(const lv_checkpoint *checkpoint, const char *name, int n_dims,
                               const int64_t *dims, lv_tensor *out) LV_MUST_CHECK;

// The linear `name` (without ".weight"), dense or quantised; a bias is taken where the file has
// one.
lv_status lv_checkpoint_linear(const lv_checkpoint *checkpoint, const char *name, int n_out,
                               int n_in, lv_linear_source *out) LV_MUST_CHECK;

// True where any tensor of this canonical name exists (dense or quantised linear, or plain tensor).
bool lv_checkpoint_has(const lv_checkpoint *checkpoint, const char *name);

#endif
