// What the operations of a group share: ops.c and decoder.c.
#ifndef LV_KERNELS_GROUP_PARTS_H
#define LV_KERNELS_GROUP_PARTS_H

#include "kernels/group/group.h"

// Weights of all members.
typedef struct shared_linear {
    lv_linear *of[LV_MAX_MEMBERS];
    lv_copies copies[LV_MAX_MEMBERS]; // of the CPU, which reads weights where they lie
    lv_split split;
    lv_linear_shape shape; // of the whole
} shared_linear;

typedef struct shared_kv {
    lv_kv *of[LV_MAX_MEMBERS];
} shared_kv;

static inline lv_backend *member_of(const lv_group *g, int i) {
    return g->members[i].be;
}

static inline const lv_linear *linear_of(const lv_linear *w, int i) {
    return ((const shared_linear *)(const void *)w)->of[i];
}

static inline lv_split split_of(const lv_linear *w) {
    return ((const shared_linear *)(const void *)w)->split;
}

static inline lv_kv *kv_of(const lv_kv *kv, int i) {
    return ((const shared_kv *)(const void *)kv)->of[i];
}

// --- exchange -----------------------------------------------------------------------------------

typedef enum exchange_kind { SUM, JOIN, SPREAD } exchange_kind;

typedef struct exchange {
    exchange_kind kind;
    size_t n; // SUM: values; JOIN: bytes of a row of a part
    int n_rows;
    void *out;           // JOIN: this member's
    const size_t *first; // SPREAD
} exchange;

// `mine`: this member's address. Nobody begins before all have come that far, and nobody goes on
// before all have begun: so no device ever waits for a member that fails, or whose host waits for
// that device.
lv_status lv_group_exchange(lv_group *g, int i, void *mine, const exchange *e) LV_MUST_CHECK;

void lv_group_decoder_ops(lv_ops *ops); // the slots from `pass` on, in a table begun

#endif
