// Inside llm/: a grammar's nodes and how they are made.
//
// A grammar is a graph of nodes, each a place in a text:
//
//   BYTE    one byte of low..high, then next
//   SPLIT   next or other
//   REPEAT  the rule at `other` min to max times, then next
//   END     the end of a rule, or of the text
//
// Nodes are made back to front: each is told what follows it. Rules call one another through
// REPEAT, so that the stack of a match is a chain of (REPEAT node, count).
#ifndef LV_LLM_GRAMMAR_PARTS_H
#define LV_LLM_GRAMMAR_PARTS_H

#include <jansson.h>

#include "llm/grammar.h"

#define LV_GRAMMAR_MAX_NODES (1 << 18)
#define LV_GRAMMAR_MAX_DEPTH 192 // rules inside one another; a JSON array or object takes 2 or 3
#define LV_GRAMMAR_FAR (1 << 24) // more bytes than any answer has
#define LV_GRAMMAR_ENDLESS INT32_MAX // a repeat's max

typedef enum lv_node_kind { LV_NODE_END, LV_NODE_BYTE, LV_NODE_SPLIT, LV_NODE_REPEAT } lv_node_kind;

typedef struct lv_node {
    uint8_t kind;
    uint8_t low, high;   // BYTE
    int16_t need;        // rules deep that a match from here to its rule's END must go
    int32_t distance;    // bytes from here to its rule's END at least
    int32_t next, other; // node indices
    int32_t min, max;    // REPEAT
} lv_node;

// Node 0 is the END of every rule.
struct lv_grammar {
    lv_node *nodes;
    int n_nodes, capacity;
    int32_t start;
    bool has_wide; // names or values beyond ASCII that only their own bytes can spell
    // Bytes that no node tells apart form a class.
    uint8_t class_of[256], class_byte[256]; // class_byte: one of its bytes
    int n_classes;
    // While it is made
    lv_status status;                       // the first failure; makers go on, giving node 0
    int32_t character, ascii, digit, value; // shared rules, 0: not made yet
};

// Makers: each gives a node index.
int32_t lv_node_byte(lv_grammar *g, int low, int high, int32_t next);
int32_t lv_node_split(lv_grammar *g, int32_t a, int32_t b);
int32_t lv_node_repeat(lv_grammar *g, int32_t rule, int32_t min, int32_t max, int32_t next);
int32_t lv_node_call(lv_grammar *g, int32_t rule, int32_t next);
int32_t lv_node_text(lv_grammar *g, const char *text, size_t n_bytes, int32_t next);
// A rule not made yet, and its filling in.
int32_t lv_node_reserve(lv_grammar *g);
void lv_node_fill(lv_grammar *g, int32_t reserved, int32_t rule);

// One of texts[n], which are sorted in place; they share what they begin with.
typedef struct lv_grammar_text {
    char *text; // not NUL-terminated
    size_t n_bytes;
} lv_grammar_text;
int32_t lv_node_one_of(lv_grammar *g, lv_grammar_text *texts, size_t n, int32_t next);

// JSON's own parts. A space may stand behind ',' and ':'.
int32_t lv_node_punctuation(lv_grammar *g, char c, int32_t next);
int32_t lv_node_string(lv_grammar *g, int32_t min, int32_t max, int32_t next); // in characters
int32_t lv_node_number(lv_grammar *g, bool integer, int32_t next);
int32_t lv_node_array(lv_grammar *g, int32_t item, int32_t min, int32_t max, int32_t next);
int32_t lv_node_any_value(lv_grammar *g, int32_t next);
int32_t lv_node_any_object(lv_grammar *g, int32_t next);
// A member's name, plain ASCII and none of names[n] (sorted in place), without its first quote.
int32_t lv_node_other_name(lv_grammar *g, lv_grammar_text *names, size_t n, int32_t next);
// What follows in an object once members begin to be optional: any number of the rule `member`.
// `first`: none stands before.
int32_t lv_node_members(lv_grammar *g, int32_t member, bool first, int32_t next);

// Computes needs, distances and classes. LV_EUNSUPPORTED where no text matches or a rule begins
// with itself.
lv_status lv_grammar_finish(lv_grammar *g, const char *name) LV_MUST_CHECK;

// Fills in the grammar of a parsed schema, up to but without lv_grammar_finish.
lv_status lv_schema_compile(lv_grammar *g, const json_t *schema, const char *name) LV_MUST_CHECK;

// --- vocabularies -------------------------------------------------------------------------------

#define LV_TOKEN_MAX_BYTES 64 // longer ones are never allowed

// Sorted by bytes, so that neighbours share what they begin with.
typedef struct lv_spelling {
    int32_t id;
    uint32_t first;   // in bytes
    uint8_t n_bytes;  // 1..LV_TOKEN_MAX_BYTES
    uint8_t n_shared; // with the one before
} lv_spelling;

struct lv_vocabulary {
    int n_tokens;
    int32_t eos_ids[LV_MAX_EOS];
    int n_eos;
    lv_spelling *spellings; // [n_spellings]
    int n_spellings;
    int32_t *place; // [n_tokens] in spellings, -1: none
    uint8_t *bytes;
    bool spells_ascii; // each printable ASCII character is a token
    bool spells_bytes; // each byte is one
};

#endif
