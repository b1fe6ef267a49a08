// One answer's place in its grammar, as an automaton made while it is used.
//
// A config is the set of places that a text may have come to: items (BYTE node, stack), none twice,
// sorted. Stacks are chains of frames, kept once each, so that equal sets are equal arrays and each
// config has one number. Steps from config to config by a class of bytes are kept in a table: a
// walk over a whole vocabulary inside a string goes round in a dozen configs, and a step costs a
// look-up. What does not fit any more is thrown away but for the config at hand.
//
// No dead ends: an item is kept only where its rule and those on its stack can end within
// LV_GRAMMAR_MAX_DEPTH, and an item that does not fit into a config leaves the others whole.
#include <stdlib.h>
#include <string.h>

#include "llm/grammar_parts.h"

enum {
    MAX_CONFIGS = 1024,
    MAX_CONFIG_ITEMS = 512,
    MAX_ITEMS = (LV_TOKEN_MAX_BYTES + 1) * MAX_CONFIG_ITEMS, // a token's path always fits
    MAX_LOOKS = 1 << 14,                                     // places looked at for one config
    MAX_WORK = 4096,                                         // places not looked at yet
    MAX_FRAMES = 1 << 17, // above MAX_CONFIG_ITEMS * LV_GRAMMAR_MAX_DEPTH + MAX_LOOKS
    FRAME_SLOTS = 2 * MAX_FRAMES,
    CONFIG_SLOTS = 2 * MAX_CONFIGS,
    N_MASKS = 16, // kept; one more is scratch
    UNKNOWN = -3, // a step not taken yet
    FULL = -2,    // no room for the config
    DEAD = -1     // no text goes on so
};

// A call of a rule that is under way.
typedef struct stack_frame {
    int32_t node;     // REPEAT
    int32_t count;    // ends of its rule so far; of those beyond min without a max, none
    int32_t parent;   // frame; frame 0 is the text's own and has none
    int32_t distance; // bytes from the rule's end to the text's end at least
    int32_t depth;
} stack_frame;

typedef struct item {
    int32_t node; // BYTE
    int32_t frame;
    int32_t closes; // 1: it stands behind a repeat that could have gone on
} item;

typedef struct config {
    int32_t first, n; // items
    int32_t shortest; // bytes to the text's end at least
    int16_t mask;     // -1: none kept
    bool is_complete;
} config;

typedef struct work {
    int32_t node, frame, count;
    bool closes;
} work;

struct lv_matcher {
    const lv_vocabulary *vocabulary;
    const lv_grammar *grammar; // NULL: not started
    int32_t at;                // the config at hand
    config *configs;           // [MAX_CONFIGS]
    int16_t *steps;            // [n_configs, n_classes]
    item *items;               // [MAX_ITEMS]
    stack_frame *frames;       // [MAX_FRAMES]; a parent comes before its children
    int n_configs, n_items, n_frames;
    int32_t *config_slots, *frame_slots; // [.._SLOTS] 1 + number; 0: free
    int32_t *moved;                      // [MAX_FRAMES] scratch of forget()
    // The config being made
    work *todo;  // [MAX_WORK]
    item *found; // [MAX_CONFIG_ITEMS]
    int n_todo, n_found;
    bool found_end, is_full; // is_full: it lacks places for want of frames
    // Masks of configs, used in turn
    uint32_t *masks; // [N_MASKS + 1, n_words]
    int32_t mask_owner[N_MASKS];
    int32_t mask_reach[N_MASKS]; // the largest `shortest` behind any of its tokens
    int next_mask, n_words;
};

// --- memory -------------------------------------------------------------------------------------

void lv_matcher_free(lv_matcher *m) {
    if (m) {
        free(m->configs);
        free(m->steps);
        free(m->items);
        free(m->frames);
        free(m->config_slots);
        free(m->frame_slots);
        free(m->moved);
        free(m->todo);
        free(m->found);
        free(m->masks);
        free(m);
    }
}

lv_status lv_matcher_open(const lv_vocabulary *vocabulary, lv_matcher **out) {
    lv_matcher *m = calloc(1, sizeof *m);
    *out = NULL;
    if (!m) {
        return lv_fail(LV_ENOMEM, "out of memory for a grammar's matcher");
    }
    m->vocabulary = vocabulary;
    m->n_words = (vocabulary->n_tokens + 31) / 32;
    m->configs = calloc(MAX_CONFIGS, sizeof *m->configs);
    m->steps = calloc((size_t)MAX_CONFIGS * 256, sizeof *m->steps);
    m->items = calloc(MAX_ITEMS, sizeof *m->items);
    m->frames = calloc(MAX_FRAMES, sizeof *m->frames);
    m->config_slots = calloc(CONFIG_SLOTS, sizeof *m->config_slots);
    m->frame_slots = calloc(FRAME_SLOTS, sizeof *m->frame_slots);
    m->moved = calloc(MAX_FRAMES, sizeof *m->moved);
    m->todo = calloc(MAX_WORK, sizeof *m->todo);
    m->found = calloc(MAX_CONFIG_ITEMS, sizeof *m->found);
    m->masks = calloc((size_t)m->n_words * (N_MASKS + 1), sizeof *m->masks);
    if (!m->configs || !m->steps || !m->items || !m->frames || !m->config_slots ||
        !m->frame_slots || !m->moved || !m->todo || !m->found || !m->masks) {
        lv_matcher_free(m);
        return lv_fail(LV_ENOMEM, "out of memory for a grammar's matcher");
    }
    *out = m;
    return LV_OK;
}

static uint32_t mix(uint32_t hash, int32_t value) {
    hash = (hash ^ (uint32_t)value) * 0x9E3779B1u;
    return hash ^ hash >> 15;
}

static int32_t far_sum(int64_t a, int64_t b) {
    return a + b < LV_GRAMMAR_FAR ? (int32_t)(a + b) : LV_GRAMMAR_FAR;
}

// --- frames and configs, once each --------------------------------------------------------------

// The number of this frame, or FULL.
static int32_t put_frame(lv_matcher *m, int32_t node, int32_t count, int32_t parent) {
    const lv_node *repeat = &m->grammar->nodes[node];
    uint32_t slot = mix(mix(mix(1, node), count), parent) % FRAME_SLOTS;
    for (; m->frame_slots[slot]; slot = (slot + 1) % FRAME_SLOTS) {
        const int32_t i = m->frame_slots[slot] - 1;
        if (m->frames[i].node == node && m->frames[i].count == count &&
            m->frames[i].parent == parent) {
            return i;
        }
    }
    if (m->n_frames == MAX_FRAMES) {
        return FULL;
    }
    const int64_t missing = count + 1 < repeat->min ? repeat->min - count - 1 : 0;
    const int64_t rest = missing * m->grammar->nodes[repeat->other].distance;
    m->frames[m->n_frames] =
        (stack_frame){.node = node,
                      .count = count,
                      .parent = parent,
                      .distance = far_sum(rest + m->grammar->nodes[repeat->next].distance,
                                          m->frames[parent].distance),
                      .depth = m->frames[parent].depth + 1};
    m->frame_slots[slot] = ++m->n_frames;
    return m->n_frames - 1;
}

static int compare_items(const void *a, const void *b) {
    const item *x = a, *y = b;
    const int32_t order = x->node != y->node     ? x->node - y->node
                          : x->frame != y->frame ? x->frame - y->frame
                                                 : x->closes - y->closes;
    return order;
}

static void sort_found(lv_matcher *m) {
    int n = 0;
    qsort(m->found, (size_t)m->n_found, sizeof *m->found, compare_items);
    for (int i = 0; i < m->n_found; i++) {
        if (i == 0 || compare_items(&m->found[i], &m->found[i - 1]) != 0) {
            m->found[n++] = m->found[i];
        }
    }
    m->n_found = n;
}

static uint32_t hash_items(const item *items, int n, bool is_complete) {
    uint32_t hash = is_complete;
    for (int i = 0; i < n; i++) {
        hash = mix(mix(hash, items[i].node), items[i].frame * 2 + items[i].closes);
    }
    return hash;
}

static int32_t shortest_of(const lv_matcher *m, const item *items, int n, bool is_complete) {
    int32_t shortest = is_complete ? 0 : LV_GRAMMAR_FAR;
    for (int i = 0; i < n; i++) {
        const int32_t distance =
            far_sum(m->grammar->nodes[items[i].node].distance, m->frames[items[i].frame].distance);
        shortest = distance < shortest ? distance : shortest;
    }
    return shortest;
}

// The number of the config that was found, DEAD or FULL.
static int32_t put_config(lv_matcher *m) {
    const int n = m->n_found;
    if (n == 0 && !m->found_end) {
        return DEAD;
    }
    uint32_t slot = hash_items(m->found, n, m->found_end) % CONFIG_SLOTS;
    for (; m->config_slots[slot]; slot = (slot + 1) % CONFIG_SLOTS) {
        const config *c = &m->configs[m->config_slots[slot] - 1];
        if (c->n == n && c->is_complete == m->found_end &&
            memcmp(m->items + c->first, m->found, (size_t)n * sizeof *m->found) == 0) {
            return m->config_slots[slot] - 1;
        }
    }
    if (m->n_configs == MAX_CONFIGS || m->n_items + n > MAX_ITEMS) {
        return FULL;
    }
    memcpy(m->items + m->n_items, m->found, (size_t)n * sizeof *m->found);
    m->configs[m->n_configs] = (config){.first = m->n_items,
                                        .n = n,
                                        .shortest = shortest_of(m, m->found, n, m->found_end),
                                        .mask = -1,
                                        .is_complete = m->found_end};
    m->n_items += n;
    for (int i = 0; i < m->grammar->n_classes; i++) {
        m->steps[m->n_configs * m->grammar->n_classes + i] = UNKNOWN;
    }
    m->config_slots[slot] = ++m->n_configs;
    return m->n_configs - 1;
}

static void forget_all(lv_matcher *m) {
    m->n_configs = m->n_items = 0;
    m->n_frames = 1;
    m->frames[0] = (stack_frame){.node = 0};
    m->next_mask = 0;
    memset(m->config_slots, 0, CONFIG_SLOTS * sizeof *m->config_slots);
    memset(m->frame_slots, 0, FRAME_SLOTS * sizeof *m->frame_slots);
    for (int i = 0; i < N_MASKS; i++) {
        m->mask_owner[i] = -1;
    }
}

// Keeps the config at hand and its stacks only, which become number 0 and the first frames.
static void forget(lv_matcher *m) {
    const config at = m->configs[m->at];
    const int n_old = m->n_frames;
    memcpy(m->found, m->items + at.first, (size_t)at.n * sizeof *m->found);
    memset(m->moved, 0, (size_t)n_old * sizeof *m->moved);
    for (int i = 0; i < at.n; i++) {
        for (int32_t f = m->found[i].frame; f > 0 && !m->moved[f]; f = m->frames[f].parent) {
            m->moved[f] = 1;
        }
    }
    forget_all(m);
    for (int32_t f = 1; f < n_old; f++) { // never to a place behind: the old one is still there
        if (m->moved[f]) {
            const stack_frame old = m->frames[f];
            m->moved[f] = put_frame(m, old.node, old.count, m->moved[old.parent]);
        }
    }
    for (int i = 0; i < at.n; i++) {
        m->found[i].frame = m->moved[m->found[i].frame];
    }
    m->n_found = at.n;
    m->found_end = at.is_complete;
    sort_found(m);
    m->at = put_config(m);
}

// --- steps --------------------------------------------------------------------------------------

static void push_work(lv_matcher *m, int32_t node, int32_t frame, int32_t count, bool closes) {
    if (m->n_todo < MAX_WORK) {
        m->todo[m->n_todo++] = (work){node, frame, count, closes};
    }
}

static void look_at_repeat(lv_matcher *m, const lv_node *node, const work *w) {
    if (w->count >= node->min) {
        push_work(m, node->next, w->frame, 0, w->closes || w->count < node->max);
    }
    if (w->count < node->max) {
        const int32_t child = put_frame(m, w->node, w->count, w->frame);
        if (child == FULL) {
            m->is_full = true;
        } else {
            push_work(m, node->other, child, 0, false);
        }
    }
}

static void look_at_end(lv_matcher *m, const work *w) {
    if (w->frame == 0) {
        m->found_end = true;
        return;
    }
    const stack_frame *f = &m->frames[w->frame];
    const lv_node *repeat = &m->grammar->nodes[f->node];
    const bool saturated = repeat->max == LV_GRAMMAR_ENDLESS && f->count >= repeat->min;
    push_work(m, f->node, f->parent, f->count + !saturated, w->closes);
}

// Follows what takes no byte until only BYTE nodes are left.
static int32_t settle(lv_matcher *m) {
    m->n_found = 0;
    m->found_end = m->is_full = false;
    for (int looks = 0; m->n_todo > 0 && looks < MAX_LOOKS; looks++) {
        const work w = m->todo[--m->n_todo];
        const lv_node *node = &m->grammar->nodes[w.node];
        if (m->frames[w.frame].depth + node->need > LV_GRAMMAR_MAX_DEPTH) {
            continue;
        }
        switch ((lv_node_kind)node->kind) {
        case LV_NODE_BYTE:
            if (m->n_found < MAX_CONFIG_ITEMS) {
                m->found[m->n_found++] = (item){w.node, w.frame, w.closes};
            }
            break;
        case LV_NODE_SPLIT:
            if (node->other != node->next) {
                push_work(m, node->other, w.frame, 0, w.closes);
            }
            push_work(m, node->next, w.frame, 0, w.closes);
            break;
        case LV_NODE_REPEAT:
            look_at_repeat(m, node, &w);
            break;
        case LV_NODE_END:
            look_at_end(m, &w);
            break;
        }
    }
    m->n_todo = 0;
    sort_found(m);
    return m->is_full ? FULL : put_config(m);
}

static int32_t make_step(lv_matcher *m, int32_t from, int class) {
    const config *c = &m->configs[from];
    const uint8_t byte = m->grammar->class_byte[class];
    for (int i = 0; i < c->n; i++) {
        const item *one = &m->items[c->first + i];
        const lv_node *node = &m->grammar->nodes[one->node];
        if (byte >= node->low && byte <= node->high) {
            push_work(m, node->next, one->frame, 0, false);
        }
    }
    const int32_t to = settle(m);
    if (to != FULL) {
        m->steps[from * m->grammar->n_classes + class] = (int16_t)to;
    }
    return to;
}

static inline int32_t step(lv_matcher *m, int32_t from, uint8_t byte) {
    const int class = m->grammar->class_of[byte];
    const int32_t to = m->steps[from * m->grammar->n_classes + class];
    return to != UNKNOWN ? to : make_step(m, from, class);
}

lv_status lv_matcher_start(lv_matcher *m, const lv_grammar *grammar) {
    if (!m->vocabulary->spells_ascii || (grammar->has_wide && !m->vocabulary->spells_bytes)) {
        return lv_fail(LV_EUNSUPPORTED,
                       "the model's vocabulary cannot spell every %s, which the grammar needs",
                       m->vocabulary->spells_ascii ? "byte" : "ASCII character");
    }
    m->grammar = grammar;
    forget_all(m);
    m->n_todo = 0;
    push_work(m, grammar->start, 0, 0, false);
    m->at = settle(m);
    return LV_OK;
}

// --- masks --------------------------------------------------------------------------------------

static void set_bit(uint32_t *mask, int32_t id) {
    mask[id / 32] |= 1u << (id % 32);
}

// What a walk over the vocabulary looks for, and what it meets.
typedef struct walk {
    int32_t limit;     // the largest `shortest` a token may leave
    const bool *first; // [256] bytes that it may begin with; NULL: any
    uint32_t *mask;    // [n_words]
    int32_t reach;     // the largest `shortest` that an allowed token leaves
    int n_allowed;
    bool is_short; // a token was left out for `limit`
} walk;

// The config behind spelling s; path[*depth] is the one behind the bytes it shares with the last
// walked. *depth ends at the last byte taken.
static int32_t follow(lv_matcher *m, const lv_spelling *s, int32_t *path, int *depth) {
    const uint8_t *bytes = m->vocabulary->bytes + s->first;
    bool forgot = false;
    while (*depth < s->n_bytes) {
        const int32_t next = step(m, path[*depth], bytes[*depth]);
        if (next == FULL && !forgot) {
            forgot = true;
            forget(m);
            path[0] = m->at;
            *depth = 0;
        } else if (next < 0) {
            return DEAD;
        } else {
            path[++*depth] = next;
        }
    }
    return path[*depth];
}

static void walk_tokens(lv_matcher *m, walk *w) {
    const lv_vocabulary *v = m->vocabulary;
    int32_t path[LV_TOKEN_MAX_BYTES + 1] = {m->at};
    int depth = 0;
    bool died = false; // behind path[depth]
    memset(w->mask, 0, (size_t)m->n_words * sizeof *w->mask);
    for (int i = 0; i < v->n_spellings; i++) {
        const lv_spelling *s = &v->spellings[i];
        if ((died && s->n_shared > depth) || (w->first && !w->first[v->bytes[s->first]])) {
            continue;
        }
        depth = s->n_shared < depth ? s->n_shared : depth;
        const int32_t to = follow(m, s, path, &depth);
        died = to < 0;
        if (died) {
            continue;
        }
        const int32_t shortest = m->configs[to].shortest;
        if (shortest > w->limit) {
            w->is_short = true;
            continue;
        }
        w->reach = shortest > w->reach ? shortest : w->reach;
        set_bit(w->mask, s->id);
        w->n_allowed++;
    }
    if (m->configs[m->at].is_complete && !w->first) {
        for (int i = 0; i < v->n_eos; i++, w->n_allowed++) {
            set_bit(w->mask, v->eos_ids[i]);
        }
    }
}

// The mask of the config at hand without any wish. The walk may renumber configs.
static int keep_mask(lv_matcher *m, int *out_n_allowed) {
    *out_n_allowed = 1;
    if (m->configs[m->at].mask < 0) {
        uint32_t *scratch = m->masks + (size_t)N_MASKS * (size_t)m->n_words;
        walk w = {.limit = LV_GRAMMAR_FAR, .mask = scratch};
        walk_tokens(m, &w);
        const int slot = m->next_mask;
        m->next_mask = (slot + 1) % N_MASKS;
        if (m->mask_owner[slot] >= 0) {
            m->configs[m->mask_owner[slot]].mask = -1;
        }
        memcpy(m->masks + (size_t)slot * (size_t)m->n_words, scratch,
               (size_t)m->n_words * sizeof *scratch);
        m->mask_owner[slot] = m->at;
        m->mask_reach[slot] = w.reach;
        m->configs[m->at].mask = (int16_t)slot;
        *out_n_allowed = w.n_allowed;
    }
    return m->configs[m->at].mask;
}

// Bytes that end what is at hand; false where nothing can end here.
static bool closing_bytes(const lv_matcher *m, bool *out) {
    const config *c = &m->configs[m->at];
    bool any = false;
    memset(out, 0, 256 * sizeof *out);
    for (int i = 0; i < c->n; i++) {
        const item *one = &m->items[c->first + i];
        const lv_node *node = &m->grammar->nodes[one->node];
        for (int byte = node->low; one->closes && byte <= node->high; byte++) {
            out[byte] = any = true;
        }
    }
    return any;
}

lv_status lv_matcher_allowed(lv_matcher *m, lv_matcher_wish wish, const uint32_t **out,
                             bool *out_short) {
    bool first[256];
    int n_allowed = 0;
    *out = NULL;
    if (out_short) {
        *out_short = false;
    }
    if (!m->grammar) {
        return lv_fail(LV_EINVAL, "the matcher has no grammar yet");
    }
    const int slot = keep_mask(m, &n_allowed);
    if (n_allowed == 0) {
        return lv_fail(LV_ELIMIT, "no token goes on with the answer: its grammar is too tangled");
    }
    bool closes = wish.closing && closing_bytes(m, first);
    const int32_t limit = wish.n_left > 0 ? wish.n_left - 1 : LV_GRAMMAR_FAR;
    *out = m->masks + (size_t)slot * (size_t)m->n_words;
    // Wishes go through the scratch mask and count only where they leave a choice. A walk may
    // forget configs and which masks are theirs, but the bits stay where they are.
    const int32_t reach = m->mask_reach[slot];
    while (closes || limit < reach) {
        uint32_t *scratch = m->masks + (size_t)N_MASKS * (size_t)m->n_words;
        walk w = {.limit = limit, .first = closes ? first : NULL, .mask = scratch};
        walk_tokens(m, &w);
        if (w.n_allowed > 0) {
            *out = scratch;
            if (out_short) {
                *out_short = w.is_short;
            }
        }
        if (w.n_allowed > 0 || !closes) {
            break;
        }
        closes = false;
    }
    return LV_OK;
}

// --- going on -----------------------------------------------------------------------------------

bool lv_matcher_push_text(lv_matcher *m, const char *text, size_t n_bytes) {
    bool forgot = false;
    int32_t at = m->at;
    for (size_t i = 0; m->grammar && i < n_bytes;) {
        const int32_t next = step(m, at, (uint8_t)text[i]);
        if (next == FULL && !forgot) {
            forgot = true;
            forget(m);
            at = m->at;
            i = 0;
        } else if (next < 0) {
            return false;
        } else {
            at = next;
            i++;
        }
    }
    m->at = at;
    return m->grammar != NULL;
}

lv_status lv_matcher_push(lv_matcher *m, int32_t id) {
    const lv_vocabulary *v = m->vocabulary;
    const int place = id >= 0 && id < v->n_tokens ? v->place[id] : -1;
    if (place >= 0 && m->grammar) {
        const lv_spelling *s = &v->spellings[place];
        if (lv_matcher_push_text(m, (const char *)v->bytes + s->first, s->n_bytes)) {
            return LV_OK;
        }
    }
    return lv_fail(LV_EINVAL, "token %d does not go on with the answer's grammar", id);
}

bool lv_matcher_is_complete(const lv_matcher *m) {
    return m->grammar && m->configs[m->at].is_complete;
}

bool lv_matcher_is_final(const lv_matcher *m) {
    return lv_matcher_is_complete(m) && m->configs[m->at].n == 0;
}

int lv_matcher_shortest(const lv_matcher *m) {
    return m->grammar ? m->configs[m->at].shortest : 0;
}
