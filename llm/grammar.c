// Nodes, JSON's own parts made of them, and what is computed once over the finished graph.
#include "llm/grammar_parts.h"

#include <stdlib.h>
#include <string.h>

#include "core/json.h"

#define NO_NEED INT16_MAX // no match however deep

// --- nodes --------------------------------------------------------------------------------------

static int32_t add(lv_grammar *g, lv_node node) {
    if (g->status != LV_OK) {
        return 0;
    }
    if (g->n_nodes == g->capacity) {
        int capacity = g->capacity ? 2 * g->capacity : 1024;
        if (capacity > LV_GRAMMAR_MAX_NODES) {
            g->status = lv_fail(LV_ELIMIT, "the schema is too large: its grammar passes %d nodes",
                                LV_GRAMMAR_MAX_NODES);
            return 0;
        }
        lv_node *nodes = realloc(g->nodes, (size_t)capacity * sizeof *nodes);
        if (!nodes) {
            g->status = lv_fail(LV_ENOMEM, "out of memory for a grammar");
            return 0;
        }
        g->nodes = nodes;
        g->capacity = capacity;
    }
    g->nodes[g->n_nodes] = node;
    return g->n_nodes++;
}

int32_t lv_node_byte(lv_grammar *g, int low, int high, int32_t next) {
    return add(
        g,
        (lv_node){.kind = LV_NODE_BYTE, .low = (uint8_t)low, .high = (uint8_t)high, .next = next});
}

int32_t lv_node_split(lv_grammar *g, int32_t a, int32_t b) {
    return add(g, (lv_node){.kind = LV_NODE_SPLIT, .next = a, .other = b});
}

int32_t lv_node_repeat(lv_grammar *g, int32_t rule, int32_t min, int32_t max, int32_t next) {
    return add(
        g, (lv_node){.kind = LV_NODE_REPEAT, .other = rule, .min = min, .max = max, .next = next});
}

int32_t lv_node_call(lv_grammar *g, int32_t rule, int32_t next) {
    return lv_node_repeat(g, rule, 1, 1, next);
}

int32_t lv_node_text(lv_grammar *g, const char *text, size_t n_bytes, int32_t next) {
    for (size_t i = n_bytes; i-- > 0;) {
        const uint8_t byte = (uint8_t)text[i];
        g->has_wide |= byte >= 0x80;
        next = lv_node_byte(g, byte, byte, next);
    }
    return next;
}

int32_t lv_node_reserve(lv_grammar *g) {
    return lv_node_split(g, 0, 0);
}

void lv_node_fill(lv_grammar *g, int32_t reserved, int32_t rule) {
    if (g->status == LV_OK) {
        g->nodes[reserved].next = g->nodes[reserved].other = rule;
    }
}

static int compare_texts(const void *a, const void *b) {
    const lv_grammar_text *x = a, *y = b;
    const int order = memcmp(x->text, y->text, x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes);
    return order != 0 ? order : (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

// How many bytes all of the sorted texts share.
static size_t shared_bytes(const lv_grammar_text *texts, size_t n) {
    const lv_grammar_text *first = &texts[0], *last = &texts[n - 1];
    size_t k = 0;
    while (k < first->n_bytes && k < last->n_bytes && first->text[k] == last->text[k]) {
        k++;
    }
    return k;
}

// How many of the sorted texts have the byte of the first one at `depth`.
static size_t group_size(const lv_grammar_text *texts, size_t n, size_t depth) {
    size_t k = 1;
    while (k < n && texts[k].text[depth] == texts[0].text[depth]) {
        k++;
    }
    return k;
}

// The rests of texts[n] behind their first `depth` bytes, which all share.
static int32_t one_of(lv_grammar *g, const lv_grammar_text *texts, size_t n, size_t depth,
                      int32_t next) {
    const size_t shared = shared_bytes(texts, n);
    const char *start = texts[0].text + depth;
    size_t i = 0;
    int32_t rest = 0;
    for (; i < n && texts[i].n_bytes == shared; i++) {
        rest = next;
    }
    while (i < n && g->status == LV_OK) {
        const size_t k = group_size(texts + i, n - i, shared);
        const int32_t group = one_of(g, texts + i, k, shared, next);
        rest = rest ? lv_node_split(g, group, rest) : group;
        i += k;
    }
    return lv_node_text(g, start, shared - depth, rest);
}

int32_t lv_node_one_of(lv_grammar *g, lv_grammar_text *texts, size_t n, int32_t next) {
    qsort(texts, n, sizeof *texts, compare_texts);
    // `rest` above takes node 0 for none, so the end of a rule needs a node of its own.
    return one_of(g, texts, n, 0, next ? next : lv_node_split(g, next, next));
}

// --- JSON's parts -------------------------------------------------------------------------------

int32_t lv_node_punctuation(lv_grammar *g, char c, int32_t next) {
    if (c == ',' || c == ':') {
        next = lv_node_split(g, lv_node_byte(g, ' ', ' ', next), next);
    }
    return lv_node_byte(g, c, c, next);
}

static int32_t hex(lv_grammar *g, int n, int32_t next) {
    while (n-- > 0) {
        next = lv_node_split(
            g, lv_node_byte(g, '0', '9', next),
            lv_node_split(g, lv_node_byte(g, 'A', 'F', next), lv_node_byte(g, 'a', 'f', next)));
    }
    return next;
}

// Letters in both cases.
static int32_t letters(lv_grammar *g, int low, int high, int32_t next) {
    return lv_node_split(g, lv_node_byte(g, low, high, next),
                         lv_node_byte(g, low + 'a' - 'A', high + 'a' - 'A', next));
}

// What follows "\u": four hex digits but 0000, and surrogates only in pairs.
static int32_t unicode_escape(lv_grammar *g) {
    const int32_t three = hex(g, 3, 0), two = hex(g, 2, 0), one = hex(g, 1, 0);
    const int32_t last = lv_node_split(g, lv_node_byte(g, '1', '9', 0), letters(g, 'A', 'F', 0));
    const int32_t third =
        lv_node_split(g, lv_node_byte(g, '0', '0', last),
                      lv_node_split(g, lv_node_byte(g, '1', '9', one), letters(g, 'A', 'F', one)));
    const int32_t second =
        lv_node_split(g, lv_node_byte(g, '0', '0', third),
                      lv_node_split(g, lv_node_byte(g, '1', '9', two), letters(g, 'A', 'F', two)));
    const int32_t low_surrogate =
        lv_node_text(g, "\\u", 2, letters(g, 'D', 'D', letters(g, 'C', 'F', two)));
    const int32_t high_surrogate = hex(g, 2, low_surrogate);
    const int32_t after_d =
        lv_node_split(g, lv_node_byte(g, '0', '7', two),
                      lv_node_split(g, lv_node_byte(g, '8', '9', high_surrogate),
                                    letters(g, 'A', 'B', high_surrogate)));
    const int32_t plain =
        lv_node_split(g, lv_node_byte(g, '1', '9', three),
                      lv_node_split(g, letters(g, 'A', 'C', three), letters(g, 'E', 'F', three)));
    return lv_node_split(g, lv_node_byte(g, '0', '0', second),
                         lv_node_split(g, plain, letters(g, 'D', 'D', after_d)));
}

static int32_t split_list(lv_grammar *g, const int32_t *nodes, size_t n) {
    int32_t all = nodes[n - 1];
    for (size_t i = n - 1; i-- > 0;) {
        all = lv_node_split(g, nodes[i], all);
    }
    return all;
}

// One character of a string: ASCII but '"', '\' and controls; an escape; or well-formed UTF-8
// (table 3-7 of the Unicode standard).
static int32_t character(lv_grammar *g) {
    if (!g->character) {
        const int32_t one = lv_node_byte(g, 0x80, 0xBF, 0), two = lv_node_byte(g, 0x80, 0xBF, one),
                      three = lv_node_byte(g, 0x80, 0xBF, two);
        int32_t escapes = lv_node_byte(g, 'u', 'u', unicode_escape(g));
        for (const char *c = "\"\\/bfnrt"; *c; c++) {
            escapes = lv_node_split(g, lv_node_byte(g, *c, *c, 0), escapes);
        }
        const int32_t kinds[] = {
            lv_node_byte(g, 0x20, 0x21, 0),
            lv_node_byte(g, 0x23, 0x5B, 0),
            lv_node_byte(g, 0x5D, 0x7F, 0),
            lv_node_byte(g, '\\', '\\', escapes),
            lv_node_byte(g, 0xC2, 0xDF, one),
            lv_node_byte(g, 0xE0, 0xE0, lv_node_byte(g, 0xA0, 0xBF, one)),
            lv_node_byte(g, 0xE1, 0xEC, two),
            lv_node_byte(g, 0xED, 0xED, lv_node_byte(g, 0x80, 0x9F, one)),
            lv_node_byte(g, 0xEE, 0xEF, two),
            lv_node_byte(g, 0xF0, 0xF0, lv_node_byte(g, 0x90, 0xBF, two)),
            lv_node_byte(g, 0xF1, 0xF3, three),
            lv_node_byte(g, 0xF4, 0xF4, lv_node_byte(g, 0x80, 0x8F, two)),
        };
        g->character = split_list(g, kinds, sizeof kinds / sizeof *kinds);
    }
    return g->character;
}

int32_t lv_node_string(lv_grammar *g, int32_t min, int32_t max, int32_t next) {
    const int32_t end = lv_node_byte(g, '"', '"', next);
    return lv_node_byte(g, '"', '"', lv_node_repeat(g, character(g), min, max, end));
}

// Digits are bounded, so that a number ends and a double holds it.
int32_t lv_node_number(lv_grammar *g, bool integer, int32_t next) {
    enum { MORE_DIGITS = 14, EXPONENT = 2 };
    if (!g->digit) {
        g->digit = lv_node_byte(g, '0', '9', 0);
    }
    if (!integer) {
        int32_t exponent = lv_node_repeat(g, g->digit, 1, EXPONENT, next);
        exponent = lv_node_split(g, exponent,
                                 lv_node_split(g, lv_node_byte(g, '+', '+', exponent),
                                               lv_node_byte(g, '-', '-', exponent)));
        next = lv_node_split(g, next,
                             lv_node_split(g, lv_node_byte(g, 'e', 'e', exponent),
                                           lv_node_byte(g, 'E', 'E', exponent)));
        int32_t fraction = lv_node_repeat(g, g->digit, 1, MORE_DIGITS + 1, next);
        next = lv_node_split(g, next, lv_node_byte(g, '.', '.', fraction));
    }
    const int32_t more = lv_node_repeat(g, g->digit, 0, MORE_DIGITS, next);
    const int32_t from_one = lv_node_byte(g, '1', '9', more);
    const int32_t digits = lv_node_split(g, lv_node_byte(g, '0', '0', next), from_one);
    return lv_node_split(g, digits, lv_node_byte(g, '-', '-', integer ? from_one : digits));
}

int32_t lv_node_array(lv_grammar *g, int32_t item, int32_t min, int32_t max, int32_t next) {
    const int32_t close = lv_node_byte(g, ']', ']', next);
    if (max == 0) {
        return lv_node_byte(g, '[', '[', close);
    }
    const int32_t more = lv_node_punctuation(g, ',', lv_node_call(g, item, 0));
    const int32_t rest = lv_node_repeat(g, more, min > 0 ? min - 1 : 0,
                                        max == LV_GRAMMAR_ENDLESS ? max : max - 1, close);
    const int32_t filled = lv_node_call(g, item, rest);
    return lv_node_byte(g, '[', '[', min > 0 ? filled : lv_node_split(g, close, filled));
}

int32_t lv_node_members(lv_grammar *g, int32_t member, bool first, int32_t next) {
    const int32_t more = lv_node_punctuation(g, ',', lv_node_call(g, member, 0));
    const int32_t rest = lv_node_repeat(g, more, 0, LV_GRAMMAR_ENDLESS, next);
    return first ? lv_node_split(g, next, lv_node_call(g, member, rest)) : rest;
}

int32_t lv_node_any_object(lv_grammar *g, int32_t next) {
    const int32_t value = lv_node_punctuation(g, ':', lv_node_any_value(g, 0));
    const int32_t member = lv_node_string(g, 0, LV_GRAMMAR_ENDLESS, value);
    const int32_t close = lv_node_byte(g, '}', '}', next);
    return lv_node_byte(g, '{', '{', lv_node_members(g, member, true, close));
}

int32_t lv_node_any_value(lv_grammar *g, int32_t next) {
    if (!g->value && g->status == LV_OK) {
        g->value = lv_node_reserve(g);
        const int32_t kinds[] = {
            lv_node_string(g, 0, LV_GRAMMAR_ENDLESS, 0),
            lv_node_any_object(g, 0),
            lv_node_array(g, g->value, 0, LV_GRAMMAR_ENDLESS, 0),
            lv_node_number(g, false, 0),
            lv_node_text(g, "true", 4, 0),
            lv_node_text(g, "false", 5, 0),
            lv_node_text(g, "null", 4, 0),
        };
        lv_node_fill(g, g->value, split_list(g, kinds, sizeof kinds / sizeof *kinds));
    }
    return lv_node_call(g, g->value, next);
}

// Printable ASCII that needs no escape, as ranges without the bytes of `but`.
static int32_t plain_but(lv_grammar *g, const bool *but, int32_t rest, int32_t all) {
    for (int low = 0x20; low < 0x7F; low++) {
        int high = low;
        while (high < 0x7F && high != '"' && high != '\\' && !but[high]) {
            high++;
        }
        if (high > low) {
            const int32_t range = lv_node_byte(g, low, high - 1, rest);
            all = all ? lv_node_split(g, range, all) : range;
        }
        low = high;
    }
    return all;
}

// `rest`: any plain characters and the closing quote.
static int32_t other_name(lv_grammar *g, const lv_grammar_text *names, size_t n, size_t depth,
                          int32_t rest, int32_t next) {
    bool taken[256] = {false};
    int32_t all = 0;
    size_t i = 0;
    while (i < n && names[i].n_bytes == depth) {
        i++;
    }
    if (i == 0) {
        all = lv_node_byte(g, '"', '"', next); // no name ends here
    }
    while (i < n && g->status == LV_OK) {
        const size_t k = group_size(names + i, n - i, depth);
        const uint8_t byte = (uint8_t)names[i].text[depth];
        taken[byte] = true;
        if (byte >= 0x20 && byte < 0x7F && byte != '"' && byte != '\\') {
            const int32_t group = other_name(g, names + i, k, depth + 1, rest, next);
            const int32_t same = lv_node_byte(g, byte, byte, group);
            all = all ? lv_node_split(g, same, all) : same;
        }
        i += k;
    }
    return plain_but(g, taken, rest, all);
}

int32_t lv_node_other_name(lv_grammar *g, lv_grammar_text *names, size_t n, int32_t next) {
    static const bool none[256] = {false};
    if (!g->ascii) {
        g->ascii = plain_but(g, none, 0, 0);
    }
    const int32_t close = lv_node_byte(g, '"', '"', next);
    const int32_t rest = lv_node_repeat(g, g->ascii, 0, LV_GRAMMAR_ENDLESS, close);
    if (n == 0) {
        return rest;
    }
    qsort(names, n, sizeof *names, compare_texts);
    return other_name(g, names, n, 0, rest, next);
}

// --- finishing ----------------------------------------------------------------------------------

// A rule that can reach itself before any byte would make a match go round without end. Depth-first
// over the edges that take no byte; `state`: 0 new, 1 on the path, 2 done. No rule matches nothing,
// so a REPEAT's next comes without a byte only where min is 0.
static bool begins_with_itself(const lv_grammar *g, uint8_t *state, int32_t *path) {
    for (int32_t root = 0; root < g->n_nodes; root++) {
        int n = 0;
        if (state[root] == 0) {
            path[n++] = root;
        }
        while (n > 0) {
            const int32_t at = path[n - 1];
            const lv_node *node = &g->nodes[at];
            const bool branches = node->kind == LV_NODE_SPLIT || node->kind == LV_NODE_REPEAT;
            const bool goes_on =
                node->kind == LV_NODE_SPLIT || (node->kind == LV_NODE_REPEAT && node->min == 0);
            const int32_t edges[2] = {branches ? node->other : 0, goes_on ? node->next : 0};
            state[at] = 1;
            int32_t next = 0;
            for (int i = 0; i < 2; i++) {
                if (edges[i] && state[edges[i]] == 1) {
                    return true;
                }
                next = edges[i] && state[edges[i]] == 0 ? edges[i] : next;
            }
            if (next) {
                path[n++] = next;
            } else {
                state[at] = 2;
                n--;
            }
        }
    }
    return false;
}

static int16_t node_need(const lv_node *nodes, const lv_node *node) {
    const int16_t next = nodes[node->next].need, other = nodes[node->other].need;
    if (node->kind == LV_NODE_SPLIT) {
        return other < next ? other : next;
    }
    if (node->kind == LV_NODE_REPEAT && node->min > 0) {
        const int16_t inside = other >= LV_GRAMMAR_MAX_DEPTH ? NO_NEED : (int16_t)(other + 1);
        return inside > next ? inside : next;
    }
    return next;
}

static int32_t node_distance(const lv_node *nodes, const lv_node *node) {
    int64_t next = nodes[node->next].distance;
    const int64_t other = nodes[node->other].distance;
    if (node->kind == LV_NODE_SPLIT) {
        next = other < next ? other : next;
    } else if (node->kind == LV_NODE_REPEAT) {
        next += other * node->min;
    } else {
        next += 1;
    }
    return next < LV_GRAMMAR_FAR ? (int32_t)next : LV_GRAMMAR_FAR;
}

// Fixed point from above; a pass settles all but what goes through rules made later.
static void measure(lv_grammar *g) {
    for (int i = 1; i < g->n_nodes; i++) {
        g->nodes[i].need = NO_NEED;
        g->nodes[i].distance = LV_GRAMMAR_FAR;
    }
    bool changed = true;
    for (int pass = 0; changed && pass < 2 * LV_GRAMMAR_MAX_DEPTH; pass++) {
        changed = false;
        for (int i = 1; i < g->n_nodes; i++) {
            lv_node *node = &g->nodes[i];
            const int16_t need = node_need(g->nodes, node);
            const int32_t distance = node_distance(g->nodes, node);
            changed |= need != node->need || distance != node->distance;
            node->need = need;
            node->distance = distance;
        }
    }
}

static void classify(lv_grammar *g) {
    bool cut[257] = {false};
    for (int i = 0; i < g->n_nodes; i++) {
        if (g->nodes[i].kind == LV_NODE_BYTE) {
            cut[g->nodes[i].low] = cut[g->nodes[i].high + 1] = true;
        }
    }
    g->n_classes = 0;
    for (int byte = 0; byte < 256; byte++) {
        if (byte == 0 || cut[byte]) {
            g->class_byte[g->n_classes++] = (uint8_t)byte;
        }
        g->class_of[byte] = (uint8_t)(g->n_classes - 1);
    }
}

lv_status lv_grammar_finish(lv_grammar *g, const char *name) {
    LV_TRY(g->status);
    uint8_t *state = calloc((size_t)g->n_nodes, sizeof *state);
    int32_t *path = calloc((size_t)g->n_nodes, sizeof *path);
    lv_status status = LV_OK;
    if (!state || !path) {
        status = lv_fail(LV_ENOMEM, "out of memory for a grammar");
    } else if (begins_with_itself(g, state, path)) {
        status =
            lv_fail(LV_EUNSUPPORTED, "%s: a $ref leads back to itself with nothing between", name);
    }
    free(state);
    free(path);
    LV_TRY(status);
    measure(g);
    if (g->nodes[g->start].need > LV_GRAMMAR_MAX_DEPTH) {
        return lv_fail(LV_EUNSUPPORTED, "%s: no text nested at most %d deep matches the schema",
                       name, LV_GRAMMAR_MAX_DEPTH);
    }
    if (g->nodes[g->start].distance >= LV_GRAMMAR_FAR) {
        return lv_fail(LV_ELIMIT, "%s: the shortest text that matches passes %d bytes", name,
                       LV_GRAMMAR_FAR);
    }
    classify(g);
    return LV_OK;
}

lv_status lv_grammar_compile(const char *schema, size_t n_bytes, const char *name,
                             lv_grammar **out) {
    *out = NULL;
    json_t *root = NULL;
    lv_grammar *g = calloc(1, sizeof *g);
    lv_status status = LV_OK;
    if (!g) {
        return lv_fail(LV_ENOMEM, "out of memory for a grammar");
    }
    if (schema && n_bytes > LV_SCHEMA_MAX_BYTES) {
        status = lv_fail(LV_ELIMIT, "%s: a schema of %zu bytes; at most %zu are read", name,
                         n_bytes, LV_SCHEMA_MAX_BYTES);
        goto done;
    }
    add(g, (lv_node){.kind = LV_NODE_END});
    if (schema) {
        LV_TRY_DONE(lv_json_parse(schema, n_bytes, name, &root));
        LV_TRY_DONE(lv_schema_compile(g, root, name));
    } else {
        g->start = lv_node_any_object(g, 0);
    }
    // The answer's outer white space is trimmed, and many tokens bring a space along.
    g->start = lv_node_split(g, lv_node_byte(g, ' ', ' ', g->start), g->start);
    LV_TRY_DONE(lv_grammar_finish(g, name));
    *out = g;
    g = NULL;
done:
    json_decref(root);
    lv_grammar_free(g);
    return status;
}

void lv_grammar_free(lv_grammar *grammar) {
    if (grammar) {
        free(grammar->nodes);
        free(grammar);
    }
}
