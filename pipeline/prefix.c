// Keys and values of earlier timelines, found again by what stands in them.
//
// A full block's name is SHA-256(name of the block before it | its 64 places); the name before the
// first one is that of the rotary frequencies. A place is a token's id or a picture's row, the
// picture being named by its SHA-256. So equal names mean equal places from the start on, and two
// timelines share exactly the blocks of their common beginning. A sequence's last, partly filled
// block is kept too. Such a block, or a full one that no more than one follows, is handed over to
// the next sequence that shares its beginning: nobody else holds it, so that its rest may be
// overwritten, and no more than 127 places are lost for it. Of a block that others still use the
// common places are copied: pictures described side by side share the words in front of them.
//
// Blocks that no sequence holds are given up from the least recently used on, the end of a timeline
// before its beginning.
#include <stdlib.h>
#include <string.h>

#include "pipeline/engine.h"

#define PLACE_BYTES (2 * sizeof(int32_t))
#define MAX_ENTRY_BYTES (PLACE_BYTES + LV_HASH_BYTES)

enum { LEAST_COPIED = 8 };
enum { TAG_TOKEN, TAG_NEXT_ROW, TAG_PICTURE }; // a row after the one before; a row, picture named

struct lv_node {
    lv_hash name, parent_name;              // name: of full blocks only
    lv_node *parent;                        // NULL: the first block
    lv_node *next_in_name, *next_in_parent; // in their buckets
    lv_node *older, *newer;                 // among those that may be given up at once
    bool is_listed;
    uint8_t *entries; // the block's places, as hashed
    size_t n_bytes;
    int n_tokens;
    int32_t block; // a hold of the index's own
    int n_users;   // sequences whose path leads through it
    int n_children;
    uint64_t used; // when last
};

struct lv_prefix {
    lv_cache *cache;
    lv_node *nodes; // [n_blocks]
    lv_node *free_nodes;
    lv_node **by_name, **by_parent; // [n_buckets]
    size_t n_buckets;               // a power of two
    lv_node *oldest, *newest;
    int n_kept; // nodes without users
    uint64_t clock;
};

lv_status lv_prefix_create(lv_cache *cache, int n_blocks, lv_prefix **out) {
    lv_prefix *p = calloc(1, sizeof *p);
    *out = NULL;
    if (!p) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    p->cache = cache;
    p->n_buckets = 64;
    while (p->n_buckets < 2 * (size_t)n_blocks) {
        p->n_buckets *= 2;
    }
    p->nodes = calloc((size_t)n_blocks, sizeof *p->nodes);
    p->by_name = calloc(p->n_buckets, sizeof *p->by_name);
    p->by_parent = calloc(p->n_buckets, sizeof *p->by_parent);
    if (!p->nodes || !p->by_name || !p->by_parent) {
        lv_prefix_free(p);
        return lv_fail(LV_ENOMEM, "out of memory for an index of %d blocks", n_blocks);
    }
    for (int i = n_blocks - 1; i >= 0; i--) {
        p->nodes[i].next_in_name = p->free_nodes;
        p->free_nodes = &p->nodes[i];
    }
    *out = p;
    return LV_OK;
}

void lv_prefix_free(lv_prefix *p) {
    if (!p) {
        return;
    }
    lv_prefix_make_room(p, INT32_MAX); // their entries
    free(p->nodes);
    free(p->by_name);
    free(p->by_parent);
    free(p);
}

int lv_prefix_kept(const lv_prefix *p) {
    return p->n_kept;
}

// --- names ---------------------------------------------------------------------------------------

static size_t entry_bytes(const uint8_t *entry) {
    int32_t tag;
    memcpy(&tag, entry, sizeof tag);
    return tag == TAG_PICTURE ? MAX_ENTRY_BYTES : PLACE_BYTES;
}

// Places [first, first + n) as bytes: out [n * MAX_ENTRY_BYTES]. Returns how many.
static size_t write_entries(const lv_timeline *t, int first, int n, uint8_t *out) {
    uint8_t *to = out;
    for (int i = first; i < first + n; i++) {
        const lv_place place = t->places[i];
        const bool follows = i > first && place.picture == t->places[i - 1].picture &&
                             place.value == t->places[i - 1].value + 1;
        const int32_t entry[] = {!place.picture ? TAG_TOKEN
                                 : follows      ? TAG_NEXT_ROW
                                                : TAG_PICTURE,
                                 place.value};
        memcpy(to, entry, sizeof entry);
        to += sizeof entry;
        if (entry[0] == TAG_PICTURE) {
            memcpy(to, t->pictures[place.picture - 1]->id.bytes, LV_HASH_BYTES);
            to += LV_HASH_BYTES;
        }
    }
    return (size_t)(to - out);
}

// How many places two stretches have in common from their start.
static int common_places(const uint8_t *a, size_t n_a, const uint8_t *b, size_t n_b) {
    const size_t n = n_a < n_b ? n_a : n_b;
    int n_places = 0;
    for (size_t at = 0; at < n;) {
        const size_t size = entry_bytes(a + at);
        if (at + size > n || memcmp(a + at, b + at, size) != 0) {
            break;
        }
        at += size;
        n_places++;
    }
    return n_places;
}

static bool name_block(const lv_hash *parent, const uint8_t *entries, size_t n_bytes,
                       lv_hash *out) {
    const lv_span spans[] = {{parent->bytes, LV_HASH_BYTES}, {entries, n_bytes}};
    return lv_sha256(spans, 2, out) == LV_OK;
}

static bool is_same(const lv_hash *a, const lv_hash *b) {
    return memcmp(a->bytes, b->bytes, LV_HASH_BYTES) == 0;
}

static size_t bucket_of(const lv_prefix *p, const lv_hash *name) {
    size_t first;
    memcpy(&first, name->bytes, sizeof first);
    return first & (p->n_buckets - 1);
}

static lv_node *find(const lv_prefix *p, const lv_hash *name) {
    lv_node *node = p->by_name[bucket_of(p, name)];
    while (node && !is_same(&node->name, name)) {
        node = node->next_in_name;
    }
    return node;
}

// --- the order of giving up ----------------------------------------------------------------------

static void unlist(lv_prefix *p, lv_node *node) {
    if (node->is_listed) {
        *(node->older ? &node->older->newer : &p->oldest) = node->newer;
        *(node->newer ? &node->newer->older : &p->newest) = node->older;
        node->is_listed = false;
    }
}

// Lists a node once nothing needs it, sorted by use. A node whose child has just been given up
// finds its place from the old end, one whose user has just left from the new end.
static void list_if_unneeded(lv_prefix *p, lv_node *node, bool from_oldest) {
    if (node->n_users > 0 || node->n_children > 0 || node->is_listed) {
        return;
    }
    lv_node *older = from_oldest ? NULL : p->newest;
    if (from_oldest) {
        for (lv_node *at = p->oldest; at && at->used <= node->used; at = at->newer) {
            older = at;
        }
    } else {
        while (older && older->used > node->used) {
            older = older->older;
        }
    }
    node->older = older;
    node->newer = older ? older->newer : p->oldest;
    *(node->older ? &node->older->newer : &p->oldest) = node;
    *(node->newer ? &node->newer->older : &p->newest) = node;
    node->is_listed = true;
}

static void use(lv_prefix *p, lv_node *node) {
    p->n_kept -= node->n_users++ == 0;
    unlist(p, node);
}

static void disuse(lv_prefix *p, lv_node *node) {
    node->used = p->clock;
    p->n_kept += --node->n_users == 0;
    list_if_unneeded(p, node, false);
}

// --- nodes come and go ---------------------------------------------------------------------------

// A node without users for a block that the caller's sequence holds. NULL: out of memory.
static lv_node *add(lv_prefix *p, lv_node *parent, const lv_hash *parent_name, const lv_hash *name,
                    const uint8_t *entries, size_t n_bytes, int n_tokens, int32_t block) {
    lv_node *node = p->free_nodes;
    uint8_t *copy = node ? malloc(n_bytes) : NULL;
    if (!copy) {
        return NULL;
    }
    memcpy(copy, entries, n_bytes);
    p->free_nodes = node->next_in_name;
    *node = (lv_node){.parent_name = *parent_name,
                      .parent = parent,
                      .entries = copy,
                      .n_bytes = n_bytes,
                      .n_tokens = n_tokens,
                      .block = block,
                      .used = p->clock};
    if (name) {
        lv_node **bucket = &p->by_name[bucket_of(p, name)];
        node->name = *name;
        node->next_in_name = *bucket;
        *bucket = node;
    }
    lv_node **siblings = &p->by_parent[bucket_of(p, parent_name)];
    node->next_in_parent = *siblings;
    *siblings = node;
    lv_cache_hold(p->cache, block);
    p->n_kept++;
    if (parent) {
        parent->n_children++;
        unlist(p, parent);
    }
    return node;
}

// Forgets a node that has neither users nor children; its block goes where nobody else holds it.
static void drop(lv_prefix *p, lv_node *node) {
    unlist(p, node);
    if (node->n_tokens == LV_KV_BLOCK) {
        lv_node **at = &p->by_name[bucket_of(p, &node->name)];
        while (*at != node) {
            at = &(*at)->next_in_name;
        }
        *at = node->next_in_name;
    }
    lv_node **at = &p->by_parent[bucket_of(p, &node->parent_name)];
    while (*at != node) {
        at = &(*at)->next_in_parent;
    }
    *at = node->next_in_parent;
    if (node->parent) {
        node->parent->n_children--;
        list_if_unneeded(p, node->parent, true);
    }
    p->n_kept--;
    lv_cache_release(p->cache, node->block);
    free(node->entries);
    node->entries = NULL;
    node->next_in_name = p->free_nodes;
    p->free_nodes = node;
}

bool lv_prefix_make_room(lv_prefix *p, int n_blocks) {
    while (lv_cache_free_blocks(p->cache) < n_blocks && p->oldest) {
        drop(p, p->oldest);
    }
    return lv_cache_free_blocks(p->cache) >= n_blocks;
}

// --- a sequence's path ---------------------------------------------------------------------------

lv_status lv_path_open(const lv_sequence *sequence, int head_dim, lv_path *out) {
    const lv_span spans[] = {{sequence->inv_freq, (size_t)(head_dim / 2) * sizeof(float)},
                             {&sequence->rope_scale, sizeof sequence->rope_scale}};
    *out = (lv_path){0};
    LV_TRY(lv_sha256(spans, 2, &out->beginning));
    out->name = out->beginning;
    out->nodes = calloc((size_t)sequence->capacity, sizeof(lv_node *));
    return out->nodes ? LV_OK : lv_fail(LV_ENOMEM, "out of memory for a sequence");
}

void lv_path_close(lv_path *path) {
    free(path->nodes);
    *path = (lv_path){0};
}

static void go_on(lv_prefix *p, lv_path *path, lv_node *node) {
    use(p, node);
    path->nodes[path->n++] = node;
    path->name = node->name;
}

// The block that follows `node`, where only one does and nothing follows that.
static lv_node *only_leaf(const lv_prefix *p, const lv_node *node) {
    if (node->n_children != 1 || node->n_users > 0) {
        return NULL;
    }
    lv_node *at = p->by_parent[bucket_of(p, &node->name)];
    while (at && at->parent != node) {
        at = at->next_in_parent;
    }
    return at && at->is_listed ? at : NULL;
}

typedef struct beginning {
    lv_node *node; // NULL: none
    int n;         // places shared
} beginning;

// The blocks that share most of the next places, up to place n: of those that may be handed over,
// and of all.
static void find_tails(const lv_prefix *p, const lv_timeline *t, const lv_path *path, int n,
                       beginning *out_free, beginning *out_any) {
    uint8_t entries[LV_KV_BLOCK * MAX_ENTRY_BYTES];
    const int first = path->n * LV_KV_BLOCK, n_left = n - first;
    *out_free = *out_any = (beginning){0};
    if (n_left <= 0) {
        return;
    }
    const size_t n_bytes =
        write_entries(t, first, n_left < LV_KV_BLOCK ? n_left : LV_KV_BLOCK, entries);
    for (lv_node *at = p->by_parent[bucket_of(p, &path->name)]; at; at = at->next_in_parent) {
        if (is_same(&at->parent_name, &path->name)) {
            const beginning found = {at, common_places(at->entries, at->n_bytes, entries, n_bytes)};
            const bool is_free = at->is_listed || only_leaf(p, at);
            *out_free = is_free && found.n > out_free->n ? found : *out_free;
            *out_any = found.n > out_any->n ? found : *out_any;
        }
    }
}

// Copying a block costs about as much as reading a few places.
static bool is_copy_better(beginning free_one, beginning any) {
    return any.n >= free_one.n + LEAST_COPIED;
}

void lv_prefix_match(lv_prefix *p, const lv_timeline *t, int n, lv_sequence *sequence,
                     lv_path *path) {
    uint8_t entries[LV_KV_BLOCK * MAX_ENTRY_BYTES];
    lv_hash name;
    beginning free_one, any;
    while ((path->n + 1) * LV_KV_BLOCK <= n) {
        const size_t n_bytes = write_entries(t, path->n * LV_KV_BLOCK, LV_KV_BLOCK, entries);
        if (!name_block(&path->name, entries, n_bytes, &name)) {
            return;
        }
        lv_node *node = find(p, &name);
        if (!node) {
            break;
        }
        go_on(p, path, node);
        lv_cache_hold(p->cache, node->block);
        lv_sequence_adopt(sequence, node->block, LV_KV_BLOCK);
    }
    find_tails(p, t, path, n, &free_one, &any);
    if (free_one.node && !is_copy_better(free_one, any)) {
        const int32_t block = free_one.node->block;
        lv_node *child = only_leaf(p, free_one.node);
        lv_cache_hold(p->cache, block);
        if (child) {
            drop(p, child);
        }
        drop(p, free_one.node);
        lv_sequence_adopt(sequence, block, free_one.n);
    }
}

lv_status lv_prefix_copy(lv_prefix *p, const lv_timeline *t, int n, lv_sequence *sequence,
                         lv_path *path) {
    beginning free_one, any;
    if (sequence->length != path->n * LV_KV_BLOCK) {
        return LV_OK; // a block has been handed over
    }
    find_tails(p, t, path, n, &free_one, &any);
    return is_copy_better(free_one, any)
               ? lv_sequence_copy(p->cache, sequence, any.node->block, any.n)
               : LV_OK;
}

void lv_prefix_forget(lv_prefix *p, int n, lv_path *path) {
    while (path->n * LV_KV_BLOCK > n) {
        disuse(p, path->nodes[--path->n]);
    }
    path->name = path->n ? path->nodes[path->n - 1]->name : path->beginning;
}

void lv_prefix_keep(lv_prefix *p, const lv_timeline *t, int n, const lv_sequence *sequence,
                    lv_path *path) {
    uint8_t entries[LV_KV_BLOCK * MAX_ENTRY_BYTES];
    lv_hash name;
    while ((path->n + 1) * LV_KV_BLOCK <= n) {
        const size_t n_bytes = write_entries(t, path->n * LV_KV_BLOCK, LV_KV_BLOCK, entries);
        if (!name_block(&path->name, entries, n_bytes, &name)) {
            return;
        }
        // Two sequences may have computed the same: the first one's block is the one that is found.
        lv_node *node = find(p, &name);
        if (!node) {
            node = add(p, path->n ? path->nodes[path->n - 1] : NULL, &path->name, &name, entries,
                       n_bytes, LV_KV_BLOCK, sequence->blocks[path->n]);
        }
        if (!node) {
            return;
        }
        go_on(p, path, node);
    }
}

void lv_prefix_leave(lv_prefix *p, const lv_timeline *t, int n, const lv_sequence *sequence,
                     lv_path *path) {
    uint8_t entries[LV_KV_BLOCK * MAX_ENTRY_BYTES];
    p->clock++;
    lv_prefix_keep(p, t, n, sequence, path);
    const int n_tail = n - path->n * LV_KV_BLOCK;
    if (n_tail > 0 && n_tail < LV_KV_BLOCK) {
        const size_t n_bytes = write_entries(t, path->n * LV_KV_BLOCK, n_tail, entries);
        lv_node *tail = add(p, path->n ? path->nodes[path->n - 1] : NULL, &path->name, NULL,
                            entries, n_bytes, n_tail, sequence->blocks[path->n]);
        if (tail) {
            list_if_unneeded(p, tail, false);
        }
    }
    while (path->n > 0) {
        disuse(p, path->nodes[--path->n]);
    }
}
