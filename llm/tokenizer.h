// Inside llm/: what the tokenizer shares with the templates and the detokeniser.
#ifndef LV_LLM_TOKENIZER_H
#define LV_LLM_TOKENIZER_H

#include <jansson.h>

#include "llm/spm.h"

#define LV_SPACE "\xE2\x96\x81" // U+2581, SentencePiece's space

// A token beside SentencePiece's own: cut out of the text before it is tokenised.
typedef struct lv_added_token {
    char *text;
    size_t n_bytes;
    int32_t id;
    bool is_special;     // steers the model: never taken from a user's text, never shown
    bool lstrip, rstrip; // also eats the spaces before, behind
} lv_added_token;

struct lv_tokenizer {
    lv_spm *spm;
    lv_added_token *added; // [n_added], longest first
    int n_added, added_capacity;
    bool added_starts[256]; // by first byte
    bool prefix_first;      // only the first stretch of a text gets SentencePiece's leading space
    bool strips_space;      // decoding removes the first space
    bool adds_bos;
    int32_t bos_id;
    int size;
};

// Parses `dir`/`name`, numbers as doubles; *out (json_decref) is NULL where there is no such file.
lv_status lv_text_json(const char *dir, const char *name, json_t **out) LV_MUST_CHECK;

// Reads added_tokens.json and tokenizer_config.json of `dir` (either may be missing).
lv_status lv_added_load(const char *dir, lv_tokenizer *tokenizer, bool *out_legacy) LV_MUST_CHECK;
lv_status lv_added_push(lv_tokenizer *tokenizer, const char *text, int64_t id, bool is_special,
                        bool lstrip, bool rstrip) LV_MUST_CHECK;

// The id of a token such as "</s>" wherever it is kept; -1 where the vocabulary has none.
int32_t lv_tokenizer_special(const lv_tokenizer *tokenizer, const char *text);

// Appends the ids of one stretch of valid UTF-8 between added tokens. `first`: nothing precedes it.
lv_status lv_tokenize_stretch(const lv_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              bool first, lv_ids *out) LV_MUST_CHECK;
// The same for a user's words: no token that steers the model can come out of them.
lv_status lv_tokenize_quoted(const lv_tokenizer *tokenizer, const char *text, size_t n_bytes,
                             bool first, lv_ids *out) LV_MUST_CHECK;

#endif
