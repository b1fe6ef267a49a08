// Many rows: products by cuBLASLt, which is opened while weights are loaded.
//
// out [m, n_out] = x [m, n_in] W^T + bias + residual, W [n_out, n_in]; all row-major, f16, sums in
// f32. cuBLASLt counts by columns: it is told W (transposed) times x^T, with out's rows as columns.
//
// A row's bits must not depend on m. So every shape has one plan: the first algorithm that the
// heuristic names for plan_rows() rows and that does not split K. Such an algorithm adds up a row's
// products in an order of its own, wherever in a tile the row lies and however many tiles there
// are. Candidates are not timed: that would cost start-up, and might end differently each time.
//
// int4 and int8 weights are expanded to f16 slice by slice, at most SLICE_BYTES each, into one
// buffer. At 2204 rows a 7B layer is 0.93 TFLOP (1.3 ms at 700 TFLOP/s) and 510 MB of expansion
// (0.15 ms at 3.4 TB/s). Expanding the next slice on a stream beside the product hides nothing: its
// blocks leave no room on a multiprocessor (60.9 ms of prefill against 60.9, H200).
// Slices that stay in the L2 cache (32 MB) would save traffic, but their products have so few tiles
// that the last wave is mostly empty: 62.5 ms of prefill against 60.9 with 96 MB, 61.1 with 192 MB
// (2204 tokens, 7B, H100; the plan for 2304 rows; with that for 2048 rows 65.3, 2560 62.4).
// CLIP's four products of a layer take 117 us for five tiles with the plan for their 2885 rows, 132
// with that for 2048 rows and 159 with that for 2304 (H200).
//
// Where the library is absent or refuses a shape (widths that are no multiple of eight), the
// product is that of plain.cu.
#include <cublasLt.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

#define SLICE_BYTES ((size_t)96 << 20)
#define SLICE_ROWS 128                     // slices are multiples of it: whole tiles
#define WORKSPACE_BYTES ((size_t)32 << 20) // what NVIDIA advises for Hopper
#define SMALL_WEIGHTS (8 << 20)            // values: below it CLIP, above it a decoder
#define VISION_ROWS 2885                   // five tiles of 577
#define DECODER_ROWS 2304
#define MAX_CANDIDATES 16

typedef struct blas_api {
    __typeof__(cublasLtCreate) *create;
    __typeof__(cublasLtDestroy) *destroy;
    __typeof__(cublasLtGetStatusName) *status_name;
    __typeof__(cublasLtMatmul) *matmul;
    __typeof__(cublasLtMatmulAlgoGetHeuristic) *heuristic;
    __typeof__(cublasLtMatmulAlgoCheck) *check;
    __typeof__(cublasLtMatmulAlgoConfigGetAttribute) *algo_get;
    __typeof__(cublasLtMatmulDescCreate) *desc_create;
    __typeof__(cublasLtMatmulDescDestroy) *desc_destroy;
    __typeof__(cublasLtMatmulDescSetAttribute) *desc_set;
    __typeof__(cublasLtMatrixLayoutCreate) *layout_create;
    __typeof__(cublasLtMatrixLayoutDestroy) *layout_destroy;
    __typeof__(cublasLtMatrixLayoutSetAttribute) *layout_set;
    __typeof__(cublasLtMatmulPreferenceCreate) *preference_create;
    __typeof__(cublasLtMatmulPreferenceDestroy) *preference_destroy;
    __typeof__(cublasLtMatmulPreferenceSetAttribute) *preference_set;
} blas_api;

static const struct {
    const char *name;
    size_t at;
} symbols[] = {
    {"cublasLtCreate", offsetof(blas_api, create)},
    {"cublasLtDestroy", offsetof(blas_api, destroy)},
    {"cublasLtGetStatusName", offsetof(blas_api, status_name)},
    {"cublasLtMatmul", offsetof(blas_api, matmul)},
    {"cublasLtMatmulAlgoGetHeuristic", offsetof(blas_api, heuristic)},
    {"cublasLtMatmulAlgoCheck", offsetof(blas_api, check)},
    {"cublasLtMatmulAlgoConfigGetAttribute", offsetof(blas_api, algo_get)},
    {"cublasLtMatmulDescCreate", offsetof(blas_api, desc_create)},
    {"cublasLtMatmulDescDestroy", offsetof(blas_api, desc_destroy)},
    {"cublasLtMatmulDescSetAttribute", offsetof(blas_api, desc_set)},
    {"cublasLtMatrixLayoutCreate", offsetof(blas_api, layout_create)},
    {"cublasLtMatrixLayoutDestroy", offsetof(blas_api, layout_destroy)},
    {"cublasLtMatrixLayoutSetAttribute", offsetof(blas_api, layout_set)},
    {"cublasLtMatmulPreferenceCreate", offsetof(blas_api, preference_create)},
    {"cublasLtMatmulPreferenceDestroy", offsetof(blas_api, preference_destroy)},
    {"cublasLtMatmulPreferenceSetAttribute", offsetof(blas_api, preference_set)},
};

// How one shape is multiplied.
typedef struct plan {
    int n_out, n_in, ld_out;
    bool bias, residual, f32; // f32: out's type
    bool plain;               // by plain.cu
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, out;
    cublasLtMatmulAlgo_t algo;
    int m_checked; // the algorithm was found good for so many rows
} plan;

struct lv_blas {
    void *library; // NULL: absent
    blas_api api;
    cublasLtHandle_t handle;
    void *workspace; // dev
    plan *plans;
    int n_plans, capacity;
    pthread_t opener; // opens the library, which takes a while, beside the loading of weights
    bool is_opening, is_ready;
    int device;
    cublasStatus_t created; // what the opener's cublasLtCreate said
};

// --- the library --------------------------------------------------------------------------------

static lv_status failed(const struct lv_blas *b, cublasStatus_t status, const char *what) {
    return lv_fail(status == CUBLAS_STATUS_ALLOC_FAILED ? LV_ENOMEM : LV_EDEVICE, "%s: %s (%d)",
                   what, b->api.status_name(status), (int)status);
}

#define BLAS_TRY(b, call)                                                                          \
    do {                                                                                           \
        const cublasStatus_t blas_status_ = (b)->api.call;                                         \
        if (blas_status_ != CUBLAS_STATUS_SUCCESS) {                                               \
            return failed(b, blas_status_, "cuBLASLt: " #call);                                    \
        }                                                                                          \
    } while (0)

static void *open_library(blas_api *api) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so",
                                        "/usr/local/cuda/lib64/libcublasLt.so.13",
                                        "/usr/local/cuda/lib64/libcublasLt.so"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        bool complete = library != NULL;
        for (size_t s = 0; complete && s < sizeof symbols / sizeof *symbols; s++) {
            void *symbol = dlsym(library, symbols[s].name);
            memcpy((uint8_t *)api + symbols[s].at, &symbol, sizeof symbol);
            complete = symbol != NULL;
        }
        if (complete) {
            return library;
        }
        if (library) {
            dlclose(library);
        }
    }
    return NULL;
}

// --- plans --------------------------------------------------------------------------------------

static void free_plan(const struct lv_blas *b, plan *p) {
    if (p->desc) {
        b->api.desc_destroy(p->desc);
    }
    cublasLtMatrixLayout_t layouts[] = {p->w, p->x, p->out};
    for (int i = 0; i < 3; i++) {
        if (layouts[i]) {
            b->api.layout_destroy(layouts[i]);
        }
    }
}

// The alignment of every row of this many bytes, the first being aligned as allocations are.
static uint32_t alignment_of(size_t row_bytes) {
    const size_t low = row_bytes & (~row_bytes + 1);
    return low < 256 ? (uint32_t)low : 256;
}

static lv_status set_rows(const struct lv_blas *b, const plan *p, int m) {
    const uint64_t cols = (uint64_t)m;
    BLAS_TRY(b, layout_set(p->x, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof cols));
    BLAS_TRY(b, layout_set(p->out, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof cols));
    return LV_OK;
}

// As many rows as such weights usually meet: vision's tiles, a LLaVA-1.6 prompt.
static int plan_rows(const plan *p) {
    return (int64_t)p->n_out * p->n_in < SMALL_WEIGHTS ? VISION_ROWS : DECODER_ROWS;
}

static lv_status describe(const struct lv_blas *b, plan *p) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue =
        p->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    const uint64_t n_in = (uint64_t)p->n_in, n_out = (uint64_t)p->n_out;
    BLAS_TRY(b, desc_create(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_TRY(b, desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    BLAS_TRY(b, desc_set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    BLAS_TRY(b, layout_create(&p->w, CUDA_R_16F, n_in, n_out, p->n_in));
    BLAS_TRY(b, layout_create(&p->x, CUDA_R_16F, n_in, (uint64_t)plan_rows(p), p->n_in));
    BLAS_TRY(b, layout_create(&p->out, p->f32 ? CUDA_R_32F : CUDA_R_16F, n_out,
                              (uint64_t)plan_rows(p), p->ld_out));
    return LV_OK;
}

static lv_status prefer(const struct lv_blas *b, const plan *p,
                        cublasLtMatmulPreference_t preference) {
    const size_t workspace = WORKSPACE_BYTES;
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint32_t x_alignment = alignment_of((size_t)p->n_in * 2);
    const uint32_t out_alignment = alignment_of((size_t)p->ld_out * (p->f32 ? 4 : 2));
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t n_bytes;
    } settings[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x_alignment, sizeof x_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out_alignment, sizeof out_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out_alignment, sizeof out_alignment},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        BLAS_TRY(b, preference_set(preference, settings[i].name, settings[i].value,
                                   settings[i].n_bytes));
    }
    return LV_OK;
}

// K in one piece: an algorithm that splits it may do so by m.
static bool is_whole(const struct lv_blas *b, const cublasLtMatmulAlgo_t *algo) {
    int32_t splits = 0;
    uint32_t scheme = 0;
    size_t n;
    return b->api.algo_get(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits, &n) ==
               CUBLAS_STATUS_SUCCESS &&
           b->api.algo_get(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                           &n) == CUBLAS_STATUS_SUCCESS &&
           (splits == 0 || splits == 1) && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

// The heuristic's first algorithm for m rows that keeps K whole; *found false where it has none.
static lv_status choose(const struct lv_blas *b, const plan *p, int m, cublasLtMatmulAlgo_t *algo,
                        bool *found) {
    cublasLtMatmulHeuristicResult_t results[MAX_CANDIDATES];
    cublasLtMatmulPreference_t preference;
    int n = 0;
    *found = false;
    LV_TRY(set_rows(b, p, m));
    BLAS_TRY(b, preference_create(&preference));
    lv_status status = prefer(b, p, preference);
    if (status == LV_OK &&
        b->api.heuristic(b->handle, p->desc, p->w, p->x, p->out, p->out, preference, MAX_CANDIDATES,
                         results, &n) != CUBLAS_STATUS_SUCCESS) {
        n = 0; // a refusal: the shape has no algorithm
    }
    for (int i = 0; i < n && !*found; i++) {
        if (results[i].state == CUBLAS_STATUS_SUCCESS && is_whole(b, &results[i].algo)) {
            *algo = results[i].algo;
            *found = true;
        }
    }
    b->api.preference_destroy(preference);
    return status;
}

static lv_status make_plan(const struct lv_blas *b, plan *p) {
    bool found = false;
    if (b->library) {
        LV_TRY(describe(b, p));
        LV_TRY(choose(b, p, plan_rows(p), &p->algo, &found));
    }
    p->plain = !found;
    p->m_checked = plan_rows(p);
    return LV_OK;
}

static lv_status find_plan(struct lv_blas *b, const lv_product *t, plan **out) {
    const plan want = {.n_out = t->n_out,
                       .n_in = t->n_in,
                       .ld_out = t->ld_out,
                       .bias = t->bias != NULL,
                       .residual = t->residual != NULL,
                       .f32 = t->f32};
    for (int i = 0; i < b->n_plans; i++) {
        plan *p = &b->plans[i];
        if (p->n_out == want.n_out && p->n_in == want.n_in && p->ld_out == want.ld_out &&
            p->bias == want.bias && p->residual == want.residual && p->f32 == want.f32) {
            *out = p;
            return LV_OK;
        }
    }
    if (b->n_plans == b->capacity) {
        const int capacity = b->capacity + 32;
        plan *plans = realloc(b->plans, (size_t)capacity * sizeof *plans);
        if (!plans) {
            return lv_fail(LV_ENOMEM, "cuBLASLt: out of memory");
        }
        b->plans = plans;
        b->capacity = capacity;
    }
    plan *p = &b->plans[b->n_plans];
    *p = want;
    const lv_status status = make_plan(b, p);
    if (status != LV_OK) {
        free_plan(b, p);
        return status;
    }
    b->n_plans++;
    *out = p;
    return LV_OK;
}

// --- opening, beside the loading of weights ------------------------------------------------------

static void *open_beside(void *user) {
    struct lv_blas *b = user;
    b->library = open_library(&b->api);
    if (b->library && cudaSetDevice(b->device) == cudaSuccess) {
        b->created = b->api.create(&b->handle);
    }
    if (b->created == CUBLAS_STATUS_SUCCESS) {
        // The first plan of any shape takes 120 ms, further ones 0.3 (H200).
        plan first = {.n_out = 1024, .n_in = 1024, .ld_out = 1024};
        (void)make_plan(b, &first); // a failure will be met again by who wants a plan
        free_plan(b, &first);
    }
    return NULL;
}

void lv_cuda_blas_begin(lv_cuda *cuda) {
    struct lv_blas *b = calloc(1, sizeof *b);
    if (b) {
        b->device = cuda->device;
        b->created = CUBLAS_STATUS_NOT_INITIALIZED;
        b->is_opening = pthread_create(&b->opener, NULL, open_beside, b) == 0;
        if (!b->is_opening) {
            open_beside(b);
        }
        cuda->blas = b;
    }
}

static void end_opening(struct lv_blas *b) {
    if (b->is_opening) {
        pthread_join(b->opener, NULL);
        b->is_opening = false;
    }
}

static lv_status open_blas(lv_cuda *cuda) {
    if (!cuda->blas) {
        lv_cuda_blas_begin(cuda);
    }
    struct lv_blas *b = cuda->blas;
    if (!b) {
        return lv_fail(LV_ENOMEM, "cuBLASLt: out of memory");
    }
    end_opening(b);
    if (b->library) {
        LV_TRY(lv_cuda_alloc(&cuda->base, WORKSPACE_BYTES, &b->workspace));
        if (b->created != CUBLAS_STATUS_SUCCESS) {
            return failed(b, b->created, "cuBLASLt: create");
        }
    }
    b->is_ready = true;
    return LV_OK;
}

// Usable only as a whole: what fails half-way is tried anew by the next call.
static lv_status get_blas(lv_cuda *cuda, struct lv_blas **out) {
    if (!cuda->blas || !cuda->blas->is_ready) {
        const lv_status status = open_blas(cuda);
        if (status != LV_OK) {
            lv_cuda_blas_free(cuda);
            return status;
        }
    }
    *out = cuda->blas;
    return LV_OK;
}

void lv_cuda_blas_free(lv_cuda *cuda) {
    struct lv_blas *b = cuda->blas;
    if (!b) {
        return;
    }
    end_opening(b);
    for (int i = 0; i < b->n_plans; i++) {
        free_plan(b, &b->plans[i]);
    }
    if (b->handle) {
        b->api.destroy(b->handle);
    }
    lv_cuda_free(&cuda->base, b->workspace);
    free(b->plans); // the library stays: it has threads and handlers of its own
    free(b);
    cuda->blas = NULL;
}

// --- products -----------------------------------------------------------------------------------

// *plain: cuBLASLt has nothing for these rows.
static lv_status algorithm_for(const struct lv_blas *b, plan *p, int m, cublasLtMatmulAlgo_t *algo,
                               bool *plain) {
    cublasLtMatmulHeuristicResult_t result;
    *algo = p->algo;
    *plain = false;
    LV_TRY(set_rows(b, p, m));
    if (m == p->m_checked) {
        return LV_OK;
    }
    if (b->api.check(b->handle, p->desc, p->w, p->x, p->out, p->out, algo, &result) ==
            CUBLAS_STATUS_SUCCESS &&
        result.workspaceSize <= WORKSPACE_BYTES) {
        p->m_checked = m;
        return LV_OK;
    }
    // The pinned algorithm is refused for this m: another one for this m only. Its rows may differ
    // in the last bit from those of other m.
    bool found;
    LV_TRY(choose(b, p, m, algo, &found));
    *plain = !found;
    return LV_OK;
}

static lv_status multiply(lv_cuda *cuda, const lv_product *t) {
    struct lv_blas *b;
    plan *p = NULL;
    cublasLtMatmulAlgo_t algo;
    bool plain;
    LV_TRY(get_blas(cuda, &b));
    LV_TRY(find_plan(b, t, &p));
    if (p->plain) {
        return lv_cuda_plain(cuda, t);
    }
    LV_TRY(algorithm_for(b, p, t->m, &algo, &plain));
    if (plain) {
        return lv_cuda_plain(cuda, t);
    }
    if (t->bias) { // of out's type
        const void *bias = t->f32 ? (const void *)t->bias : t->bias_f16;
        BLAS_TRY(b, desc_set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    }
    const float alpha = 1.0f, beta = t->residual ? 1.0f : 0.0f;
    const void *residual = t->residual ? t->residual : t->out;
    BLAS_TRY(b, matmul(b->handle, p->desc, &alpha, t->w, p->w, t->x, p->x, &beta, residual, p->out,
                       t->out, p->out, &algo, b->workspace, WORKSPACE_BYTES, cuda->stream));
    return LV_OK;
}

// Places [first, first + n) of the weights, f16 at `f16`, as columns of the whole product `t`.
static lv_status multiply_slice(lv_cuda *cuda, const lv_product *t, int first, int n,
                                const void *f16) {
    lv_product s = *t;
    const size_t at = (size_t)first, out_bytes = at * (t->f32 ? 4 : 2);
    s.w = f16;
    s.n_out = n;
    s.out = (uint8_t *)t->out + out_bytes;
    s.residual = t->residual ? (const uint8_t *)t->residual + out_bytes : NULL;
    s.bias = t->bias ? t->bias + at : NULL;
    s.bias_f16 = t->bias ? (const uint8_t *)t->bias_f16 + at * 2 : NULL;
    return multiply(cuda, &s);
}

static lv_status expand(lv_cuda *cuda, const lv_linear *w, int first, int n, void *f16) {
    return w->format == LV_W_INT4 ? lv_cuda_int4_expand(cuda, w, first, n, f16)
                                  : lv_cuda_int8_expand(cuda, w, first, n, f16);
}

static int slice_rows(const lv_linear *w) {
    const size_t row_bytes = (size_t)w->n_in * 2, all = (size_t)w->n_out * row_bytes;
    const int n_slices = (int)((all + SLICE_BYTES - 1) / SLICE_BYTES);
    const int rows = (w->n_out + n_slices - 1) / n_slices;
    return (rows + SLICE_ROWS - 1) / SLICE_ROWS * SLICE_ROWS;
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

static lv_status multiply_expanded(lv_cuda *cuda, const lv_product *t, const lv_linear *w) {
    void *f16;
    const int rows = slice_rows(w);
    const size_t n_bytes = (size_t)smaller(rows, w->n_out) * (size_t)w->n_in * 2;
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_WEIGHTS, n_bytes, &f16));
    for (int first = 0; first < w->n_out; first += rows) {
        const int n = smaller(rows, w->n_out - first);
        LV_TRY(expand(cuda, w, first, n, f16));
        LV_TRY(multiply_slice(cuda, t, first, n, f16));
    }
    return LV_OK;
}

static lv_status dense(lv_cuda *cuda, const void *x, int m, const lv_linear *w,
                       const void *residual, void *out, bool f32) {
    const bool adds_bias = w->bias && (w->pair == 0 || w->pair == 8);
    const lv_product t = {.x = x,
                          .w = w->data,
                          .bias = adds_bias ? w->bias : NULL,
                          .bias_f16 = adds_bias ? w->bias_f16 : NULL,
                          .residual = residual,
                          .out = out,
                          .m = m,
                          .n_out = w->n_out,
                          .n_in = w->n_in,
                          .ld_out = w->n_out,
                          .f32 = f32};
    if (m < 1) {
        return m == 0 ? LV_OK : lv_fail(LV_EINVAL, "linear of %d rows", m);
    }
    LV_TRY(lv_cuda_flush(cuda));
    return w->format == LV_W_F16 ? multiply(cuda, &t) : multiply_expanded(cuda, &t, w);
}

lv_status lv_cuda_dense(lv_cuda *cuda, const void *x, int m, const lv_linear *w,
                        const void *residual, void *out) {
    return dense(cuda, x, m, w, residual, out, false);
}

lv_status lv_cuda_dense_f32(lv_cuda *cuda, const void *x, int m, const lv_linear *w, float *out) {
    return dense(cuda, x, m, w, NULL, out, true);
}
