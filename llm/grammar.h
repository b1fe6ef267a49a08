// Answers bound to a grammar: a JSON schema becomes a grammar over bytes, and a matcher says before
// each token which ones keep the answer a beginning of a text that the grammar has.
//
//   lv_grammar     immutable, may be shared by threads: what a schema allows
//   lv_vocabulary  immutable, may be shared by threads: a tokenizer's tokens as bytes, sorted
//   lv_matcher     one answer's place in its grammar
#ifndef LV_LLM_GRAMMAR_H
#define LV_LLM_GRAMMAR_H

#include "llm/text.h"

#define LV_SCHEMA_MAX_BYTES ((size_t)1 << 20)

// --- grammars -----------------------------------------------------------------------------------

typedef struct lv_grammar lv_grammar;

// Compiles the JSON schema in schema[n_bytes]; `name` is what messages call it. NULL: any JSON
// object.
//
// Keywords: type (one or a list), properties, required, additionalProperties, items, minItems,
// maxItems, minLength, maxLength, enum, const, anyOf and oneOf (both: any of the alternatives),
// $ref into the schema itself. Names, such as title and description, are passed over. Where no type
// is given the keywords tell it. Narrower than JSON Schema, on purpose:
//   - members come in the order of `properties`; where properties are listed, others are allowed
//     only by additionalProperties, and their names are plain ASCII
//   - at most one space, after ':' or ','; 15 digits before and behind the point, exponent of 2
//   - LV_GRAMMAR_MAX_DEPTH caps nesting
// LV_EUNSUPPORTED names any other keyword and its place ("#/properties/x"), or a schema that no
// text matches; LV_EFORMAT a keyword that is not well-formed; LV_ELIMIT a schema over a cap.
lv_status lv_grammar_compile(const char *schema, size_t n_bytes, const char *name,
                             lv_grammar **out) LV_MUST_CHECK;
void lv_grammar_free(lv_grammar *grammar);

// --- vocabularies -------------------------------------------------------------------------------

typedef struct lv_vocabulary lv_vocabulary;

// Tokens 0..n_tokens-1 (the logits' width, which may pass the tokenizer's size). Tokens that add no
// text to an answer are never allowed; those of `config`'s eos_ids end it. Keeps no reference to
// the tokenizer.
lv_status lv_vocabulary_create(const lv_tokenizer *tokenizer, const lv_text_config *config,
                               int n_tokens, lv_vocabulary **out) LV_MUST_CHECK;
void lv_vocabulary_free(lv_vocabulary *vocabulary);

// --- matching -----------------------------------------------------------------------------------

typedef struct lv_matcher lv_matcher;

// The vocabulary must outlive the matcher. All memory (about 6 MiB) is taken here.
lv_status lv_matcher_open(const lv_vocabulary *vocabulary, lv_matcher **out) LV_MUST_CHECK;
void lv_matcher_free(lv_matcher *matcher);

// Begins an answer; the grammar must live until the next one. LV_EUNSUPPORTED where the vocabulary
// cannot spell what the grammar may ask for.
lv_status lv_matcher_start(lv_matcher *matcher, const lv_grammar *grammar) LV_MUST_CHECK;

// What narrows a choice further.
typedef struct lv_matcher_wish {
    int n_left;   // tokens the answer may still have, this one included; 0: any number
    bool closing; // end what may end here: the string, number, list or object at hand
} lv_matcher_wish;

// The tokens that may come next: a bitmap [n_tokens] valid until the next call. Never empty while
// the answer can go on or end: a wish that cannot be met is passed over. While n_left is enough for
// the shortest ending, only tokens that leave it enough are allowed; *out_short says that this
// ruled some out (may be NULL).
lv_status lv_matcher_allowed(lv_matcher *matcher, lv_matcher_wish wish, const uint32_t **out,
                             bool *out_short) LV_MUST_CHECK;

// Goes on by a token of the text, not by one that ends it. LV_EINVAL, and no change, where it was
// not allowed.
lv_status lv_matcher_push(lv_matcher *matcher, int32_t id) LV_MUST_CHECK;
// The same for a token's worth of text: false, and no change, where no text goes on so.
bool lv_matcher_push_text(lv_matcher *matcher, const char *text, size_t n_bytes);

bool lv_matcher_is_complete(const lv_matcher *matcher); // the text so far is a whole one
bool lv_matcher_is_final(const lv_matcher *matcher);    // and nothing can follow it
int lv_matcher_shortest(const lv_matcher *matcher);     // bytes that the shortest ending takes

#endif
