// Members of the CPU read and write one another's memory.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/group/group.h"

typedef struct host {
    lv_collectives base;
    int n;
} host;

// Each member adds up a share of the values for all, in the members' order.
static lv_status sum(lv_collectives *c, int member, void *const *where, size_t n) {
    const host *h = (const host *)c;
    const size_t first = n * (size_t)member / (size_t)h->n;
    const size_t end = n * (size_t)(member + 1) / (size_t)h->n;
    float *to = where[0];
    for (int j = 1; j < h->n; j++) {
        const float *from = where[j];
        for (size_t i = first; i < end; i++) {
            to[i] += from[i];
        }
    }
    for (int j = 1; j < h->n && end > first; j++) {
        memcpy((float *)where[j] + first, to + first, (end - first) * sizeof *to);
    }
    return LV_OK;
}

static lv_status join(lv_collectives *c, int member, void *const *where, int n_rows,
                      size_t row_bytes, void *out) {
    const host *h = (const host *)c;
    const size_t part_bytes = (size_t)n_rows * row_bytes;
    for (int j = 0; j < h->n; j++) {
        const uint8_t *from = (const uint8_t *)where[j] + (size_t)j * part_bytes;
        for (int i = 0; i < n_rows && !(n_rows == 1 && j == member); i++) {
            memcpy((uint8_t *)out + ((size_t)i * (size_t)h->n + (size_t)j) * row_bytes,
                   from + (size_t)i * row_bytes, row_bytes);
        }
    }
    return LV_OK;
}

static lv_status spread(lv_collectives *c, int member, void *const *where, const size_t *first) {
    const host *h = (const host *)c;
    for (int j = 0; j < h->n; j++) {
        if (j != member && first[j + 1] > first[j]) {
            memcpy((uint8_t *)where[member] + first[j], (const uint8_t *)where[j] + first[j],
                   first[j + 1] - first[j]);
        }
    }
    return LV_OK;
}

static void abort_nothing(lv_collectives *c) {
    (void)c; // they wait at meetings only
}

static void close_host(lv_collectives *c) {
    free(c);
}

lv_status lv_host_collectives(const lv_group *group, lv_collectives **out) {
    host *h = calloc(1, sizeof *h);
    *out = NULL;
    if (!h) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    h->n = group->n;
    h->base = (lv_collectives){
        .sum = sum, .join = join, .spread = spread, .abort = abort_nothing, .close = close_host};
    snprintf(h->base.name, sizeof h->base.name, "shared memory");
    *out = &h->base;
    return LV_OK;
}
