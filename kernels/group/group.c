// Opening a group: its members, their threads, and what they exchange by.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/group/group.h"

#define SPIN_NS 50000 // a decode step of a GPU is some hundred microseconds

// "cuda" or "cuda:N" -> N.
static lv_status first_device(const char *device, int *out) {
    const char *colon = strchr(device, ':');
    char *end = NULL;
    *out = 0;
    if (colon) {
        const long n = strtol(colon + 1, &end, 10);
        if (end == colon + 1 || *end || n < 0 || n > 1 << 16) {
            return lv_fail(LV_EINVAL, "expected cuda:N with a number");
        }
        *out = (int)n;
    }
    return LV_OK;
}

static lv_status open_cuda(lv_group *g, const lv_backend_options *options) {
    int first;
    LV_TRY(first_device(options->device, &first));
    for (int i = 0; i < g->n; i++) {
        char name[32];
        snprintf(name, sizeof name, "cuda:%d", first + i);
        lv_backend_options one = *options;
        one.device = name;
        one.tp = 0;
        const lv_status status = lv_cuda_open(&one, &g->members[i].be);
        if (status != LV_OK) {
            return lv_fail_in(status, "tensor parallelism over %d GPUs from %d on", g->n, first);
        }
    }
    return LV_OK;
}

static lv_status open_cpu(lv_group *g, const lv_backend_options *options) {
    const int n_threads = options->n_threads ? options->n_threads : lv_cpu_cores();
    lv_backend_options one = *options;
    one.device = "cpu";
    one.n_threads = n_threads > g->n ? n_threads / g->n : 1;
    one.tp = 0;
    for (int i = 0; i < g->n; i++) {
        LV_TRY(lv_cpu_open(&one, &g->members[i].be));
    }
    return LV_OK;
}

static void close_group(lv_backend *be) {
    lv_group *g = (lv_group *)be;
    for (int i = 0; i < g->n; i++) {
        lv_backend *member = g->members[i].be;
        if (member && g->parts[i]) {
            member->ops->free(member, g->parts[i]);
        }
        if (member && member->ops->sync(member) != LV_OK) {
            continue; // closing is all that is left to do
        }
    }
    lv_team_end(g);
    if (g->collectives) {
        g->collectives->close(g->collectives);
    }
    for (int i = 0; i < g->n; i++) {
        lv_copies_free(&g->members[i].copies);
        if (g->members[i].be) {
            g->members[i].be->ops->close(g->members[i].be);
        }
    }
    free(g->allocations);
    free((void *)g->base.ops);
    free(g);
}

static lv_status open_members(lv_group *g, const lv_backend_options *options) {
    const bool is_cuda = strncmp(options->device, "cuda", 4) == 0;
    LV_TRY(is_cuda ? open_cuda(g, options) : open_cpu(g, options));
    const lv_backend *first = g->members[0].be;
    g->base.act = first->act;
    g->base.is_gpu = first->is_gpu;
    g->base.runs_ahead = first->runs_ahead;
    g->spin_ns = is_cuda ? SPIN_NS : 0; // the CPU's members compute meanwhile
    LV_TRY((is_cuda ? lv_nccl_collectives : lv_host_collectives)(g, &g->collectives));
    snprintf(g->base.device, sizeof g->base.device, "%d x %.80s, over %.32s", g->n, first->device,
             g->collectives->name);
    return LV_OK;
}

lv_status lv_group_open(const lv_backend_options *options, lv_backend **out) {
    *out = NULL;
    if (options->tp < 2 || options->tp > LV_MAX_MEMBERS) {
        return lv_fail(LV_EINVAL, "tensor parallelism over %d devices: expected 1 to %d",
                       options->tp, LV_MAX_MEMBERS);
    }
    lv_group *g = calloc(1, sizeof *g);
    lv_ops *ops = calloc(1, sizeof *ops);
    if (!g || !ops) {
        free(g);
        free(ops);
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_group_ops(ops);
    ops->close = close_group;
    g->base.ops = ops;
    g->n = options->tp;
    lv_status status = lv_team_start(g);
    if (status == LV_OK) {
        status = open_members(g, options);
    }
    if (status != LV_OK) {
        close_group(&g->base);
        return status;
    }
    *out = &g->base;
    return LV_OK;
}
