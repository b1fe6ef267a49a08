// GPUs exchange by NCCL, and what is small by kernels that write into one another's memory
// (peers.cu) where the GPUs can. The library is opened by name.
//
// Everything goes to a member's own stream and can be recorded in its graph.
#include <dlfcn.h>
#include <nccl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/group/group.h"
#include "kernels/group/peers.h"

// A sum by peers.cu sends all values to each of the others: the most that it takes between two
// GPUs, where it is the faster one up to there.
#define SMALL_SUM_BYTES ((size_t)8 * LV_PEER_PACKETS)

typedef struct nccl_api {
    __typeof__(ncclGetVersion) *version;
    __typeof__(ncclGetErrorString) *error;
    __typeof__(ncclCommInitAll) *init_all;
    __typeof__(ncclCommDestroy) *destroy;
    __typeof__(ncclCommAbort) *abort;
    __typeof__(ncclAllReduce) *all_reduce;
    __typeof__(ncclAllGather) *all_gather;
    __typeof__(ncclBroadcast) *broadcast;
    __typeof__(ncclGroupStart) *group_start;
    __typeof__(ncclGroupEnd) *group_end;
} nccl_api;

static const struct {
    const char *name;
    size_t at;
} symbols[] = {
    {"ncclGetVersion", offsetof(nccl_api, version)},
    {"ncclGetErrorString", offsetof(nccl_api, error)},
    {"ncclCommInitAll", offsetof(nccl_api, init_all)},
    {"ncclCommDestroy", offsetof(nccl_api, destroy)},
    {"ncclCommAbort", offsetof(nccl_api, abort)},
    {"ncclAllReduce", offsetof(nccl_api, all_reduce)},
    {"ncclAllGather", offsetof(nccl_api, all_gather)},
    {"ncclBroadcast", offsetof(nccl_api, broadcast)},
    {"ncclGroupStart", offsetof(nccl_api, group_start)},
    {"ncclGroupEnd", offsetof(nccl_api, group_end)},
};

typedef struct nccl {
    lv_collectives base;
    int n;
    lv_cuda *cuda[LV_MAX_MEMBERS];
    void *library;
    nccl_api api;
    ncclComm_t comms[LV_MAX_MEMBERS];
    bool sees_peers;
    lv_peers peers[LV_MAX_MEMBERS];
    int *aborted; // mapped host memory
} nccl;

static lv_status failed(const nccl *c, ncclResult_t result, const char *what) {
    return lv_fail(LV_EDEVICE, "NCCL: %s: %s", what, c->api.error(result));
}

#define NCCL_TRY(c, call)                                                                          \
    do {                                                                                           \
        const ncclResult_t nccl_result_ = (c)->api.call;                                           \
        if (nccl_result_ != ncclSuccess) {                                                         \
            return failed(c, nccl_result_, #call);                                                 \
        }                                                                                          \
    } while (0)

// --- exchanges ----------------------------------------------------------------------------------

static lv_status sum(lv_collectives *base, int i, void *const *where, size_t n) {
    const nccl *c = (const nccl *)base;
    LV_TRY(lv_cuda_flush(c->cuda[i]));
    if (c->sees_peers && n * 2 <= base->small_bytes && n % 4 == 0) {
        return lv_peers_sum(c->cuda[i], &c->peers[i], where[i], n);
    }
    NCCL_TRY(c, all_reduce(where[i], where[i], n, ncclFloat16, ncclSum, c->comms[i],
                           c->cuda[i]->stream));
    return LV_OK;
}

static lv_status join(lv_collectives *base, int i, void *const *where, int n_rows, size_t row_bytes,
                      void *out) {
    const nccl *c = (const nccl *)base;
    const cudaStream_t stream = c->cuda[i]->stream;
    const size_t part_bytes = (size_t)n_rows * row_bytes;
    const uint8_t *parts = where[i], *mine = parts + (size_t)i * part_bytes;
    LV_TRY(lv_cuda_flush(c->cuda[i]));
    if (c->sees_peers && part_bytes <= (size_t)8 * LV_PEER_PACKETS && row_bytes % 8 == 0) {
        return lv_peers_join(c->cuda[i], &c->peers[i], mine, n_rows, row_bytes, out);
    }
    NCCL_TRY(c, all_gather(mine, where[i], part_bytes, ncclUint8, c->comms[i], stream));
    for (int j = 0; j < c->n && n_rows > 1; j++) {
        LV_CUDA_TRY(c->cuda[i],
                    cudaMemcpy2DAsync((uint8_t *)out + (size_t)j * row_bytes,
                                      (size_t)c->n * row_bytes, parts + (size_t)j * part_bytes,
                                      row_bytes, row_bytes, (size_t)n_rows,
                                      cudaMemcpyDeviceToDevice, stream));
    }
    return LV_OK;
}

static lv_status spread(lv_collectives *base, int i, void *const *where, const size_t *first) {
    const nccl *c = (const nccl *)base;
    LV_TRY(lv_cuda_flush(c->cuda[i]));
    NCCL_TRY(c, group_start());
    for (int j = 0; j < c->n; j++) {
        uint8_t *at = (uint8_t *)where[i] + first[j];
        if (first[j + 1] > first[j]) {
            NCCL_TRY(c, broadcast(at, at, first[j + 1] - first[j], ncclUint8, j, c->comms[i],
                                  c->cuda[i]->stream));
        }
    }
    NCCL_TRY(c, group_end());
    return LV_OK;
}

static void give_up(lv_collectives *base) {
    nccl *c = (nccl *)base;
    if (c->aborted) {
        *(volatile int *)c->aborted = 1;
    }
    for (int i = 0; i < c->n; i++) {
        if (c->comms[i]) {
            c->api.abort(c->comms[i]);
            c->comms[i] = NULL;
        }
    }
}

// --- opening and closing ------------------------------------------------------------------------

static void close_nccl(lv_collectives *base) {
    nccl *c = (nccl *)base;
    for (int i = 0; i < c->n; i++) {
        cudaSetDevice(c->cuda[i]->device);
        lv_cuda_free(&c->cuda[i]->base, c->peers[i].inbox[i]);
        lv_cuda_free(&c->cuda[i]->base, c->peers[i].uses);
        cudaStreamSynchronize(c->cuda[i]->stream);
    }
    for (int i = 0; i < c->n; i++) {
        if (c->comms[i]) {
            c->api.destroy(c->comms[i]);
        }
    }
    cudaFreeHost(c->aborted);
    free(c); // the library stays: it has threads of its own
}

static lv_status open_library(nccl *c) {
    static const char *const names[] = {"libnccl.so.2", "libnccl.so",
                                        "/usr/local/cuda/lib64/libnccl.so.2"};
    for (size_t i = 0; i < sizeof names / sizeof *names && !c->library; i++) {
        c->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    }
    if (!c->library) {
        return lv_fail(LV_EUNSUPPORTED, "tensor parallelism over GPUs: no libnccl.so.2 (%s)",
                       dlerror());
    }
    for (size_t s = 0; s < sizeof symbols / sizeof *symbols; s++) {
        void *symbol = dlsym(c->library, symbols[s].name);
        memcpy((uint8_t *)&c->api + symbols[s].at, &symbol, sizeof symbol);
        if (!symbol) {
            return lv_fail(LV_EUNSUPPORTED, "tensor parallelism over GPUs: this NCCL has no %s",
                           symbols[s].name);
        }
    }
    return LV_OK;
}

// The pool that all of a member's memory comes from, opened to the others: NCCL reads and writes
// what it is given directly. False where a GPU cannot see another's memory.
static lv_status open_pools(nccl *c, bool *out) {
    *out = true;
    for (int i = 0; i < c->n; i++) {
        cudaMemPool_t pool;
        LV_CUDA_TRY(c->cuda[i], cudaDeviceGetDefaultMemPool(&pool, c->cuda[i]->device));
        for (int j = 0; j < c->n; j++) {
            int can = 1;
            const struct cudaMemAccessDesc access = {
                .location = {.type = cudaMemLocationTypeDevice, .id = c->cuda[j]->device},
                .flags = cudaMemAccessFlagsProtReadWrite};
            if (j != i) {
                LV_CUDA_TRY(c->cuda[i],
                            cudaDeviceCanAccessPeer(&can, c->cuda[j]->device, c->cuda[i]->device));
            }
            if (j != i && can) {
                LV_CUDA_TRY(c->cuda[i], cudaMemPoolSetAccess(pool, &access, 1));
            }
            *out = *out && can;
        }
    }
    return LV_OK;
}

static lv_status open_peers(nccl *c) {
    const size_t inbox_bytes = LV_PEER_INBOX_BYTES(c->n);
    LV_CUDA_TRY(c->cuda[0], cudaHostAlloc((void **)&c->aborted, sizeof *c->aborted,
                                          cudaHostAllocMapped | cudaHostAllocPortable));
    *c->aborted = 0;
    for (int i = 0; i < c->n; i++) {
        lv_cuda *cuda = c->cuda[i];
        lv_peers *mine = &c->peers[i];
        void *inbox, *uses;
        LV_TRY(lv_cuda_alloc(&cuda->base, inbox_bytes, &inbox));
        mine->inbox[i] = inbox;
        LV_TRY(lv_cuda_alloc(&cuda->base, LV_PEER_PACKETS * sizeof *mine->uses, &uses));
        mine->uses = uses;
        mine->n = c->n;
        mine->me = i;
        mine->aborted = c->aborted;
        LV_CUDA_TRY(cuda, cudaMemsetAsync(inbox, 0, inbox_bytes, cuda->stream));
        LV_CUDA_TRY(cuda,
                    cudaMemsetAsync(uses, 0, LV_PEER_PACKETS * sizeof *mine->uses, cuda->stream));
        LV_CUDA_TRY(cuda, cudaStreamSynchronize(cuda->stream));
    }
    for (int i = 0; i < c->n; i++) {
        for (int j = 0; j < c->n; j++) {
            c->peers[i].inbox[j] = c->peers[j].inbox[j];
        }
    }
    c->sees_peers = true;
    return LV_OK;
}

static lv_status open_all(nccl *c, const lv_group *group) {
    int devices[LV_MAX_MEMBERS], version = 0;
    bool sees_peers;
    for (int i = 0; i < group->n; i++) {
        c->cuda[i] = (lv_cuda *)group->members[i].be;
        devices[i] = c->cuda[i]->device;
    }
    c->n = group->n;
    LV_TRY(open_library(c));
    NCCL_TRY(c, version(&version));
    LV_TRY(open_pools(c, &sees_peers));
    NCCL_TRY(c, init_all(c->comms, c->n, devices));
    if (sees_peers) {
        LV_TRY(open_peers(c));
    }
    snprintf(c->base.name, sizeof c->base.name, "NCCL %d.%d.%d%s", version / 10000,
             version / 100 % 100, version % 100, sees_peers ? "" : ", no peer access");
    return LV_OK;
}

lv_status lv_nccl_collectives(const lv_group *group, lv_collectives **out) {
    nccl *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    c->base = (lv_collectives){.small_bytes = SMALL_SUM_BYTES / (size_t)(group->n - 1),
                               .sum = sum,
                               .join = join,
                               .spread = spread,
                               .abort = give_up,
                               .close = close_nccl};
    const lv_status status = open_all(c, group);
    if (status != LV_OK) {
        close_nccl(&c->base);
        return status;
    }
    *out = &c->base;
    return LV_OK;
}
