// Text <-> tokens: SentencePiece, chat templates, and streaming detokenisation that never cuts a
// character.
#ifndef LV_LLM_TEXT_H
#define LV_LLM_TEXT_H

#include "core/config.h"
#include "core/files.h"

typedef struct lv_tokenizer lv_tokenizer;

#define LV_IMAGE_TOKEN                                                                             \
    (-200) // stands for one picture in a token list, whatever the vocabulary says

// Opens `dir`/tokenizer.model and the added tokens of added_tokens.json / tokenizer_config.json.
lv_status lv_tokenizer_open(const char *dir, const lv_config *config,
                            lv_tokenizer **out) LV_MUST_CHECK;
void lv_tokenizer_free(lv_tokenizer *tokenizer);
int lv_tokenizer_size(const lv_tokenizer *tokenizer); // pieces and added tokens

typedef struct lv_ids {
    int32_t *ids;
    int n, capacity;
} lv_ids;
void lv_ids_free(lv_ids *list);
lv_status lv_ids_push(lv_ids *list, int32_t id) LV_MUST_CHECK;

// Appends the ids of UTF-8 `text` (invalid bytes become U+FFFD), as the checkpoint's reference
// tokenizer does: added tokens are cut out first; no BOS, no EOS. LV_ELIMIT beyond 4 MiB of text.
lv_status lv_tokenize(const lv_tokenizer *tokenizer, const char *text, size_t n_bytes,
                      lv_ids *out) LV_MUST_CHECK;

// One message of a conversation. n_images pictures stand in front of its text (as "<image>\n"
// does), or where the text itself says "<image>".
typedef struct lv_turn {
    const char *role; // "system", "user", "assistant"
    const char *text;
    int n_images;
} lv_turn;

// "vicuna_v1", "llava_v1", "llava_hf" (llava-hf 1.5: no system text, no </s>), "mistral_instruct",
// "chatml_direct", "llava_llama_2", "plain"; lists them all.
const char *const *lv_template_names(void); // NULL-terminated

// The template for a checkpoint: by its folder's name and config, or `name` where it is not NULL.
lv_status lv_template_choose(const lv_config *config, const char *dir, const char *name,
                             int *out) LV_MUST_CHECK;

// The whole prompt of a conversation, ready for the answer: BOS, then each stretch of text between
// pictures tokenised on its own (as the references do), LV_IMAGE_TOKEN in between. "</s>" and the
// like inside a turn stay words: only the template writes tokens that steer the model.
lv_status lv_prompt_build(const lv_tokenizer *tokenizer, int template_id, const lv_turn *turns,
                          int n_turns, lv_ids *out) LV_MUST_CHECK;

// The words that end an answer in this template besides the end-of-sequence tokens;
// NULL-terminated.
const char *const *lv_template_stops(int template_id);

// Streaming detokeniser: whole UTF-8 characters come out as soon as they are sure.
typedef struct lv_detokenizer lv_detokenizer;
lv_status lv_detokenizer_open(const lv_tokenizer *tokenizer, lv_detokenizer **out) LV_MUST_CHECK;
void lv_detokenizer_free(lv_detokenizer *detokenizer);
// Feeds one token; *out points to the new text (maybe empty), valid until the next call.
lv_status lv_detokenizer_push(lv_detokenizer *detokenizer, int32_t id,
                              const char **out) LV_MUST_CHECK;
// What is left at the end: incomplete bytes become U+FFFD.
lv_status lv_detokenizer_flush(lv_detokenizer *detokenizer, const char **out) LV_MUST_CHECK;

// A token's own bytes, spaces as such: how many, and at most `size` of them in out. 0: it is never
// shown.
size_t lv_token_bytes(const lv_tokenizer *tokenizer, int32_t id, char *out, size_t size);

#endif
