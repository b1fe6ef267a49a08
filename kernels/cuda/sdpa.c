// Attention inside images by cuDNN: its graph API's one operation "scaled dot product attention",
// not causal, q, k and v being strides into the packed qkv. An oracle for our own kernel
// (prefill_attention.cu). It is faster, 37.7 us a layer of five tiles against 52 (H200), 0.4 ms of
// a pass; but its first plan takes 190 ms and one for each further number of tiles 68 ms, which is
// what describe would wait for.
//
// libcudnn.so.9 is opened at the first use, so programs start and link without it. A plan is built
// for a shape at its first use (hundreds of milliseconds) and kept. Names and numbers below are
// those of version 9's interface, which are fixed for that .so name; they are written out because
// its headers need not be where this is built. cuDNN has the operation since 9.13 or so, and says
// so by refusing the descriptor.
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

#define MAX_PLANS 16
#define MAX_CONFIGS 8

typedef void *descriptor;
enum { // cudnnBackendDescriptorType_t
    ENGINE_CONFIG = 3,
    HEURISTICS = 4,
    PLAN = 5,
    GRAPH = 15,
    VARIANT_PACK = 16,
    TENSOR = 17,
    SDPA = 41
};
enum { // cudnnBackendAttributeName_t
    HEURISTICS_MODE = 200,
    HEURISTICS_GRAPH = 201,
    HEURISTICS_RESULTS = 202,
    PLAN_HANDLE = 400,
    PLAN_CONFIG = 401,
    PLAN_WORKSPACE = 402,
    GRAPH_HANDLE = 800,
    GRAPH_OPERATIONS = 801,
    TENSOR_ALIGNMENT = 900,
    TENSOR_TYPE = 901,
    TENSOR_DIMENSIONS = 902,
    TENSOR_STRIDES = 903,
    TENSOR_ID = 906,
    TENSOR_BY_VALUE = 908,
    PACK_IDS = 1000,
    PACK_POINTERS = 1001,
    PACK_WORKSPACE = 1003,
    SDPA_Q = 2800,
    SDPA_K = 2801,
    SDPA_V = 2802,
    SDPA_OUT = 2803,
    SDPA_SCALE = 2805
};
enum { // cudnnBackendAttributeType_t
    TYPE_HANDLE = 0,
    TYPE_DATA_TYPE = 1,
    TYPE_BOOLEAN = 2,
    TYPE_INT64 = 3,
    TYPE_POINTER = 6,
    TYPE_MODE = 8,
    TYPE_DESCRIPTOR = 15
};
enum { DATA_F32 = 0, DATA_F16 = 2, MODE_A = 3 };
enum { ID_Q = 1, ID_K, ID_V, ID_OUT, ID_SCALE, N_TENSORS = 5 };

typedef struct plan {
    int n, n_rows, n_heads, head_dim;
    descriptor plan;
    int64_t workspace_bytes;
} plan;

struct lv_dnn {
    void *library, *handle;
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*make)(int type, descriptor *out);
    int (*drop)(descriptor d);
    int (*set)(descriptor d, int name, int type, int64_t count, const void *values);
    int (*get)(descriptor d, int name, int type, int64_t wanted, int64_t *count, void *values);
    int (*finalize)(descriptor d);
    int (*execute)(void *handle, descriptor plan, descriptor pack);
    const char *(*error)(int status);
    size_t (*version)(void);
    plan plans[MAX_PLANS];
    int n_plans;
    void *workspace; // dev
    size_t workspace_bytes;
    char refusal[128]; // why it cannot be used; "" where it can
};

// --- the library --------------------------------------------------------------------------------

static bool find(struct lv_dnn *dnn, const char *name, void *function) {
    void *symbol = dlsym(dnn->library, name);
    memcpy(function, &symbol, sizeof symbol);
    if (!symbol) {
        snprintf(dnn->refusal, sizeof dnn->refusal, "libcudnn.so.9 has no %s", name);
    }
    return symbol != NULL;
}

static void load(struct lv_dnn *dnn, cudaStream_t stream) {
    dnn->library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!dnn->library) {
        snprintf(dnn->refusal, sizeof dnn->refusal, "no libcudnn.so.9");
        return;
    }
    if (!find(dnn, "cudnnCreate", &dnn->create) || !find(dnn, "cudnnDestroy", &dnn->destroy) ||
        !find(dnn, "cudnnSetStream", &dnn->set_stream) ||
        !find(dnn, "cudnnBackendCreateDescriptor", &dnn->make) ||
        !find(dnn, "cudnnBackendDestroyDescriptor", &dnn->drop) ||
        !find(dnn, "cudnnBackendSetAttribute", &dnn->set) ||
        !find(dnn, "cudnnBackendGetAttribute", &dnn->get) ||
        !find(dnn, "cudnnBackendFinalize", &dnn->finalize) ||
        !find(dnn, "cudnnBackendExecute", &dnn->execute) ||
        !find(dnn, "cudnnGetErrorString", &dnn->error) ||
        !find(dnn, "cudnnGetVersion", &dnn->version)) {
        return;
    }
    int status = dnn->create(&dnn->handle);
    status = status ? status : dnn->set_stream(dnn->handle, stream);
    if (status) {
        snprintf(dnn->refusal, sizeof dnn->refusal, "%s", dnn->error(status));
    }
}

static lv_status refuse(const struct lv_dnn *dnn, int status, const char *what) {
    return lv_fail(LV_EUNSUPPORTED, "cuDNN %zu: %s: %s", dnn->version(), what, dnn->error(status));
}

#define TRY_DNN(call, what)                                                                        \
    do {                                                                                           \
        int dnn_status_ = (call);                                                                  \
        if (dnn_status_) {                                                                         \
            status = refuse(dnn, dnn_status_, what);                                               \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

// --- plans --------------------------------------------------------------------------------------

// [n, n_heads, n_rows, head_dim] in rows of row_stride elements; or, where head_dim is 0, one f32
// that the host passes.
static lv_status make_tensor(const struct lv_dnn *dnn, int64_t id, const plan *p,
                             int64_t row_stride, descriptor *out) {
    const bool by_value = row_stride == 0;
    const int64_t one[4] = {1, 1, 1, 1}, alignment = by_value ? 4 : 16;
    const int64_t dimensions[4] = {p->n, p->n_heads, p->n_rows, p->head_dim};
    const int64_t strides[4] = {p->n_rows * row_stride, p->head_dim, row_stride, 1};
    const int data_type = by_value ? DATA_F32 : DATA_F16;
    lv_status status = LV_OK;
    descriptor t = NULL;
    TRY_DNN(dnn->make(TENSOR, &t), "tensor");
    TRY_DNN(dnn->set(t, TENSOR_ID, TYPE_INT64, 1, &id), "tensor");
    TRY_DNN(dnn->set(t, TENSOR_TYPE, TYPE_DATA_TYPE, 1, &data_type), "tensor type");
    TRY_DNN(dnn->set(t, TENSOR_ALIGNMENT, TYPE_INT64, 1, &alignment), "tensor alignment");
    TRY_DNN(dnn->set(t, TENSOR_DIMENSIONS, TYPE_INT64, 4, by_value ? one : dimensions), "shape");
    TRY_DNN(dnn->set(t, TENSOR_STRIDES, TYPE_INT64, 4, by_value ? one : strides), "strides");
    if (by_value) {
        TRY_DNN(dnn->set(t, TENSOR_BY_VALUE, TYPE_BOOLEAN, 1, &by_value), "scale by value");
    }
    TRY_DNN(dnn->finalize(t), "tensor");
    *out = t;
    t = NULL;
done:
    if (t) {
        dnn->drop(t);
    }
    return status;
}

// The graph of the one operation.
static lv_status make_graph(const struct lv_dnn *dnn, const plan *p, descriptor tensors[N_TENSORS],
                            descriptor *operation, descriptor *graph) {
    static const int roles[N_TENSORS] = {SDPA_Q, SDPA_K, SDPA_V, SDPA_OUT, SDPA_SCALE};
    const int64_t d = (int64_t)p->n_heads * p->head_dim;
    const int64_t row_strides[N_TENSORS] = {3 * d, 3 * d, 3 * d, d, 0};
    lv_status status = LV_OK;
    for (int i = 0; i < N_TENSORS; i++) {
        LV_TRY(make_tensor(dnn, ID_Q + i, p, row_strides[i], &tensors[i]));
    }
    TRY_DNN(dnn->make(SDPA, operation), "attention");
    for (int i = 0; i < N_TENSORS; i++) {
        TRY_DNN(dnn->set(*operation, roles[i], TYPE_DESCRIPTOR, 1, &tensors[i]), "attention");
    }
    TRY_DNN(dnn->finalize(*operation), "attention");
    TRY_DNN(dnn->make(GRAPH, graph), "graph");
    TRY_DNN(dnn->set(*graph, GRAPH_HANDLE, TYPE_HANDLE, 1, &dnn->handle), "graph");
    TRY_DNN(dnn->set(*graph, GRAPH_OPERATIONS, TYPE_DESCRIPTOR, 1, operation), "graph");
    TRY_DNN(dnn->finalize(*graph), "graph");
done:
    return status;
}

// The first of the heuristics' proposals that makes a plan.
static lv_status choose_plan(const struct lv_dnn *dnn, descriptor graph, plan *p) {
    lv_status status = LV_OK;
    descriptor heuristics = NULL, configs[MAX_CONFIGS] = {NULL};
    const int mode = MODE_A;
    int64_t n = 0, count = 0;
    TRY_DNN(dnn->make(HEURISTICS, &heuristics), "heuristics");
    TRY_DNN(dnn->set(heuristics, HEURISTICS_GRAPH, TYPE_DESCRIPTOR, 1, &graph), "heuristics");
    TRY_DNN(dnn->set(heuristics, HEURISTICS_MODE, TYPE_MODE, 1, &mode), "heuristics");
    TRY_DNN(dnn->finalize(heuristics), "heuristics");
    for (int i = 0; i < MAX_CONFIGS; i++) {
        TRY_DNN(dnn->make(ENGINE_CONFIG, &configs[i]), "configuration");
    }
    TRY_DNN(dnn->get(heuristics, HEURISTICS_RESULTS, TYPE_DESCRIPTOR, MAX_CONFIGS, &n, configs),
            "heuristics");
    status = lv_fail(LV_EUNSUPPORTED, "cuDNN %zu: no engine for %d heads of %d, %d rows",
                     dnn->version(), p->n_heads, p->head_dim, p->n_rows);
    for (int i = 0; i < n && i < MAX_CONFIGS && !p->plan; i++) {
        descriptor made = NULL;
        if (dnn->make(PLAN, &made) == 0 &&
            dnn->set(made, PLAN_HANDLE, TYPE_HANDLE, 1, &dnn->handle) == 0 &&
            dnn->set(made, PLAN_CONFIG, TYPE_DESCRIPTOR, 1, &configs[i]) == 0 &&
            dnn->finalize(made) == 0 &&
            dnn->get(made, PLAN_WORKSPACE, TYPE_INT64, 1, &count, &p->workspace_bytes) == 0) {
            p->plan = made;
            status = LV_OK;
        } else if (made) {
            dnn->drop(made);
        }
    }
done:
    for (int i = 0; i < MAX_CONFIGS; i++) {
        if (configs[i]) {
            dnn->drop(configs[i]);
        }
    }
    if (heuristics) {
        dnn->drop(heuristics);
    }
    return status;
}

static lv_status build_plan(const struct lv_dnn *dnn, plan *p) {
    descriptor tensors[N_TENSORS] = {NULL}, operation = NULL, graph = NULL;
    lv_status status = make_graph(dnn, p, tensors, &operation, &graph);
    if (status == LV_OK) {
        status = choose_plan(dnn, graph, p);
    }
    descriptor made[] = {graph,      operation,  tensors[0], tensors[1],
                         tensors[2], tensors[3], tensors[4]};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        if (made[i]) {
            dnn->drop(made[i]);
        }
    }
    return status;
}

static lv_status find_plan(lv_cuda *cuda, struct lv_dnn *dnn, const plan *wanted, plan **out) {
    plan *p = NULL;
    for (int i = 0; i < dnn->n_plans && !p; i++) {
        plan *old = &dnn->plans[i];
        if (old->n == wanted->n && old->n_rows == wanted->n_rows &&
            old->n_heads == wanted->n_heads && old->head_dim == wanted->head_dim) {
            p = old;
        }
    }
    if (!p) {
        plan fresh = *wanted;
        LV_TRY(build_plan(dnn, &fresh));
        if (dnn->n_plans == MAX_PLANS) { // the oldest goes; what it enqueued may still run
            LV_CUDA_TRY(cuda, cudaStreamSynchronize(cuda->stream));
            dnn->drop(dnn->plans[0].plan);
            memmove(dnn->plans, dnn->plans + 1, sizeof *dnn->plans * (MAX_PLANS - 1));
            dnn->n_plans--;
        }
        p = &dnn->plans[dnn->n_plans++];
        *p = fresh;
    }
    if ((size_t)p->workspace_bytes > dnn->workspace_bytes) {
        LV_CUDA_TRY(cuda, cudaStreamSynchronize(cuda->stream));
        lv_cuda_free(&cuda->base, dnn->workspace);
        dnn->workspace = NULL;
        dnn->workspace_bytes = 0;
        LV_TRY(lv_cuda_alloc(&cuda->base, (size_t)p->workspace_bytes, &dnn->workspace));
        dnn->workspace_bytes = (size_t)p->workspace_bytes;
    }
    *out = p;
    return LV_OK;
}

lv_status lv_cuda_dnn_attention(lv_cuda *cuda, const void *qkv, int n, int n_rows, int n_heads,
                                int head_dim, void *out) {
    lv_status status = LV_OK;
    descriptor pack = NULL;
    plan wanted = {.n = n, .n_rows = n_rows, .n_heads = n_heads, .head_dim = head_dim}, *p;
    if (!cuda->dnn) {
        cuda->dnn = calloc(1, sizeof *cuda->dnn);
        if (!cuda->dnn) {
            return lv_fail(LV_ENOMEM, "cuDNN: out of memory");
        }
        load(cuda->dnn, cuda->stream);
    }
    struct lv_dnn *dnn = cuda->dnn;
    if (dnn->refusal[0]) {
        return lv_fail(LV_EUNSUPPORTED, "cuDNN: %s", dnn->refusal);
    }
    LV_TRY(find_plan(cuda, dnn, &wanted, &p));
    LV_TRY(lv_cuda_flush(cuda));
    const int64_t ids[N_TENSORS] = {ID_Q, ID_K, ID_V, ID_OUT, ID_SCALE};
    const size_t d_bytes = (size_t)n_heads * (size_t)head_dim * 2;
    const uint8_t *q = qkv;
    float scale = 1.0f / sqrtf((float)head_dim);
    const void *pointers[N_TENSORS] = {q, q + d_bytes, q + 2 * d_bytes, out, &scale};
    TRY_DNN(dnn->make(VARIANT_PACK, &pack), "variant pack");
    TRY_DNN(dnn->set(pack, PACK_IDS, TYPE_INT64, N_TENSORS, ids), "variant pack");
    TRY_DNN(dnn->set(pack, PACK_POINTERS, TYPE_POINTER, N_TENSORS, pointers), "variant pack");
    TRY_DNN(dnn->set(pack, PACK_WORKSPACE, TYPE_POINTER, 1, &dnn->workspace), "variant pack");
    TRY_DNN(dnn->finalize(pack), "variant pack");
    TRY_DNN(dnn->execute(dnn->handle, p->plan, pack), "attention");
done:
    if (pack) {
        dnn->drop(pack);
    }
    return status;
}

void lv_cuda_dnn_free(lv_cuda *cuda) {
    struct lv_dnn *dnn = cuda->dnn;
    if (dnn) {
        for (int i = 0; i < dnn->n_plans; i++) {
            dnn->drop(dnn->plans[i].plan);
        }
        if (dnn->handle) {
            dnn->destroy(dnn->handle);
        }
        lv_cuda_free(&cuda->base, dnn->workspace);
        if (dnn->library) {
            dlclose(dnn->library);
        }
        free(dnn);
        cuda->dnn = NULL;
    }
}
