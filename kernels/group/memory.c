// Memory of all members, and the addresses in it.
#include <stdlib.h>
#include <string.h>

#include "kernels/group/group.h"

// The first allocation that begins beyond `dev`.
static int first_beyond(const lv_group *g, const void *dev) {
    int low = 0, high = g->n_allocations;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if ((uintptr_t)g->allocations[middle].at[0] > (uintptr_t)dev) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

void *lv_group_at(const lv_group *g, int member, const void *dev) {
    if (!dev || member == 0) {
        return (void *)(uintptr_t)dev;
    }
    const int i = first_beyond(g, dev) - 1;
    const lv_allocation *a = i >= 0 ? &g->allocations[i] : NULL;
    const size_t offset = a ? (uintptr_t)dev - (uintptr_t)a->at[0] : 0;
    return a && offset <= a->n_bytes ? a->at[member] + offset : NULL;
}

static lv_status remember(lv_group *g, const lv_allocation *a) {
    if (g->n_allocations == g->capacity) {
        const int capacity = g->capacity ? 2 * g->capacity : 512;
        lv_allocation *all = realloc(g->allocations, (size_t)capacity * sizeof *all);
        if (!all) {
            return lv_fail(LV_ENOMEM, "out of memory");
        }
        g->allocations = all;
        g->capacity = capacity;
    }
    const int i = first_beyond(g, a->at[0]);
    memmove(&g->allocations[i + 1], &g->allocations[i],
            (size_t)(g->n_allocations - i) * sizeof *g->allocations);
    g->allocations[i] = *a;
    g->n_allocations++;
    return LV_OK;
}

static void free_all(lv_group *g, const lv_allocation *a) {
    for (int i = 0; i < g->n; i++) {
        if (a->at[i]) {
            g->members[i].be->ops->free(g->members[i].be, a->at[i]);
        }
    }
}

// What `body` has put at a->at[i] becomes one allocation of the group.
static lv_status allocate(lv_group *g, lv_allocation *a, lv_member_body *body, const void *call) {
    if (lv_team_is_inside(g)) {
        return lv_fail(LV_EINVAL, "memory of a group cannot be had inside of a pass");
    }
    lv_status status = lv_team_run(g, body, call);
    if (status == LV_OK) {
        status = remember(g, a);
    }
    if (status != LV_OK) {
        free_all(g, a);
    }
    return status;
}

static lv_status alloc_one(lv_group *g, int i, const void *call) {
    lv_allocation *a = *(lv_allocation *const *)call;
    void *dev = NULL;
    const lv_status status = g->members[i].be->ops->alloc(g->members[i].be, a->n_bytes, &dev);
    a->at[i] = dev;
    return status;
}

lv_status lv_group_alloc(lv_backend *be, size_t n_bytes, void **out) {
    lv_allocation a = {.n_bytes = n_bytes}, *call = &a;
    *out = NULL;
    LV_TRY(allocate((lv_group *)be, &a, alloc_one, &call));
    *out = a.at[0];
    return LV_OK;
}

void lv_group_free(lv_backend *be, void *dev) {
    lv_group *g = (lv_group *)be;
    const int i = first_beyond(g, dev) - 1;
    if (dev && i >= 0 && g->allocations[i].at[0] == dev) {
        free_all(g, &g->allocations[i]);
        memmove(&g->allocations[i], &g->allocations[i + 1],
                (size_t)(--g->n_allocations - i) * sizeof *g->allocations);
    }
}

typedef struct tensor_call {
    const lv_tensor *source;
    lv_allocation *a;
} tensor_call;

static lv_status load_one(lv_group *g, int i, const void *call) {
    const tensor_call *c = call;
    float *dev = NULL;
    const lv_status status = g->members[i].be->ops->tensor_load(g->members[i].be, c->source, &dev);
    c->a->at[i] = (uint8_t *)dev;
    return status;
}

lv_status lv_group_tensor_load(lv_backend *be, const lv_tensor *source, float **out) {
    lv_allocation a = {.n_bytes = (size_t)lv_tensor_count(source) * sizeof(float)};
    const tensor_call call = {source, &a};
    *out = NULL;
    LV_TRY(allocate((lv_group *)be, &a, load_one, &call));
    *out = (float *)(void *)a.at[0];
    return LV_OK;
}
