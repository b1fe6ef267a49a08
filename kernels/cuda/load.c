// Weights on their way to the device: file -> pinned ring -> device, then into the kernels'
// layout by a kernel of the same stream. Threads fill one slot of the ring while the copies of the
// others are under way; nothing waits but for a free slot.
#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "kernels/cuda/cuda.h"

#define N_SLOTS 4
#define SLOT_BYTES ((size_t)8 << 20)
#define PIECE_BYTES ((size_t)256 << 10) // what one thread copies at a time
#define MAX_THREADS 8

struct lv_loader {
    uint8_t *host; // pinned [N_SLOTS, SLOT_BYTES]
    cudaEvent_t copied[N_SLOTS];
    int next, n_threads;
};

static lv_status open_loader(lv_cuda *cuda) {
    cpu_set_t set;
    struct lv_loader *loader = calloc(1, sizeof *loader);
    if (!loader) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    cuda->loader = loader;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    cores = cuda->n_threads > 0 && cuda->n_threads < cores ? cuda->n_threads : cores;
    loader->n_threads = cores < MAX_THREADS ? cores : MAX_THREADS;
    LV_CUDA_TRY(cuda, cudaHostAlloc((void **)&loader->host, N_SLOTS * SLOT_BYTES, 0));
    for (int i = 0; i < N_SLOTS; i++) {
        LV_CUDA_TRY(cuda, cudaEventCreateWithFlags(&loader->copied[i], cudaEventDisableTiming));
    }
    return LV_OK;
}

void lv_cuda_loader_free(lv_cuda *cuda) {
    if (cuda->loader) {
        for (int i = 0; i < N_SLOTS; i++) {
            if (cuda->loader->copied[i]) {
                cudaEventDestroy(cuda->loader->copied[i]);
            }
        }
        cudaFreeHost(cuda->loader->host);
        free(cuda->loader);
        cuda->loader = NULL;
    }
}

static void copy_pieces(uint8_t *to, const uint8_t *from, size_t n_bytes, int n_threads) {
    const ptrdiff_t n_pieces = (ptrdiff_t)((n_bytes + PIECE_BYTES - 1) / PIECE_BYTES);
#pragma omp parallel for num_threads(n_threads) if (n_pieces > 2) schedule(dynamic)
    for (ptrdiff_t i = 0; i < n_pieces; i++) {
        const size_t at = (size_t)i * PIECE_BYTES, left = n_bytes - at;
        lv_mapped_copy(to + at, from + at, left < PIECE_BYTES ? left : PIECE_BYTES);
    }
}

lv_status lv_cuda_copy_in(lv_cuda *cuda, void *dev, const void *host, size_t n_bytes) {
    LV_TRY(lv_cuda_flush(cuda));
    if (!cuda->loader) {
        LV_TRY(open_loader(cuda));
    }
    struct lv_loader *loader = cuda->loader;
    for (size_t at = 0; at < n_bytes; at += SLOT_BYTES) {
        const size_t n = n_bytes - at < SLOT_BYTES ? n_bytes - at : SLOT_BYTES;
        const int slot = loader->next;
        uint8_t *pinned = loader->host + (size_t)slot * SLOT_BYTES;
        LV_CUDA_TRY(cuda, cudaEventSynchronize(loader->copied[slot]));
        copy_pieces(pinned, (const uint8_t *)host + at, n, loader->n_threads);
        LV_CUDA_TRY(cuda, cudaMemcpyAsync((uint8_t *)dev + at, pinned, n, cudaMemcpyHostToDevice,
                                          cuda->stream));
        LV_CUDA_TRY(cuda, cudaEventRecord(loader->copied[slot], cuda->stream));
        loader->next = (slot + 1) % N_SLOTS;
    }
    return LV_OK;
}

// A tensor as stored, in the scratch memory for loading, `at` bytes in.
static lv_status stage(lv_cuda *cuda, const lv_tensor *t, size_t at, void **out) {
    uint8_t *base = cuda->scratch[LV_SCRATCH_LOAD].data;
    *out = base + at;
    return lv_cuda_copy_in(cuda, base + at, t->data, lv_tensor_bytes(t));
}

static size_t round_up(size_t n) {
    return (n + 255) & ~(size_t)255;
}

// --- one source's rows --------------------------------------------------------------------------

static lv_status load_awq(lv_cuda *cuda, const lv_linear_source *s, int row0, lv_linear *w) {
    void *q, *z, *scales, *base;
    const size_t q_bytes = round_up(lv_tensor_bytes(&s->qweight));
    const size_t z_bytes = round_up(lv_tensor_bytes(&s->qzeros));
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_LOAD, q_bytes + z_bytes + lv_tensor_bytes(&s->scales),
                           &base));
    LV_TRY(stage(cuda, &s->qweight, 0, &q));
    LV_TRY(stage(cuda, &s->qzeros, q_bytes, &z));
    LV_TRY(stage(cuda, &s->scales, q_bytes + z_bytes, &scales));
    if (w->format == LV_W_INT4) {
        return lv_cuda_int4_pack(cuda, q, z, scales, row0, s->n_out, s->n_in, w->pair, w->n_out,
                                 w->data);
    }
    return lv_cuda_awq_to_f16(cuda, q, z, scales, s->group_size, row0, s->n_out, s->n_in, w->pair,
                              w->n_out, w->data);
}

// Dense rows -> f16 at `to` in the linear's order.
static lv_status load_dense(lv_cuda *cuda, const lv_linear_source *s, int row0, const lv_linear *w,
                            void *to) {
    const size_t n_bytes = lv_tensor_bytes(&s->weight);
    void *staged;
    if (s->weight.dtype == LV_F16 && (w->pair == 0 || w->pair == 8)) { // as it is stored
        uint8_t *place = (uint8_t *)to + (size_t)row0 * (size_t)s->n_in * 2;
        return lv_cuda_copy_in(cuda, place, s->weight.data, n_bytes);
    }
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_LOAD, n_bytes, &staged));
    LV_TRY(stage(cuda, &s->weight, 0, &staged));
    return lv_cuda_convert_rows(cuda, s->weight.dtype, staged, row0, s->n_out, s->n_in, w->pair,
                                w->n_out, to);
}

static lv_status load_bias(lv_cuda *cuda, const lv_linear_source *parts, int n_parts,
                           lv_linear *w) {
    bool any = false;
    for (int i = 0; i < n_parts; i++) {
        any = any || parts[i].bias.data;
    }
    float *host = any ? calloc((size_t)w->n_out, sizeof *host) : NULL;
    if (!any || !host) {
        return any ? lv_fail(LV_ENOMEM, "out of memory") : LV_OK;
    }
    float *to = host;
    for (int i = 0; i < n_parts; to += parts[i++].n_out) {
        if (parts[i].bias.data) {
            lv_to_f32(parts[i].bias.dtype, parts[i].bias.data, (size_t)parts[i].n_out, to);
        }
    }
    const size_t n_bytes = (size_t)w->n_out * sizeof *host;
    lv_status status = lv_cuda_alloc(&cuda->base, n_bytes, (void **)&w->bias);
    if (status == LV_OK) {
        status = lv_cuda_copy_in(cuda, w->bias, host, n_bytes);
    }
    free(host);
    LV_TRY(status);
    LV_TRY(lv_cuda_alloc(&cuda->base, n_bytes / 2, &w->bias_f16));
    return lv_cuda_f32_to_f16(cuda, w->bias, (size_t)w->n_out, w->bias_f16);
}

// --- linears ------------------------------------------------------------------------------------

// What it will be on the device: order of rows, format, bytes.
static lv_status choose_layout(const lv_linear_source *first, const lv_linear_options *options,
                               lv_linear *w) {
    const int pair = options && options->pair ? options->pair : 8;
    const bool tiled = w->n_out % LV_TILE == 0 && pair % 8 == 0 && w->n_out % (2 * pair) == 0;
    const bool records = tiled && w->n_in % LV_RECORD_K == 0;
    const lv_keep keep = options ? options->keep : LV_AS_STORED;
    size_t n;
    w->pair = tiled ? pair : 0;
    if (!lv_mul((size_t)w->n_out, (size_t)w->n_in, &n) || n > SIZE_MAX / 4) {
        return lv_fail(LV_EFORMAT, "linear [%d, %d]: too large", w->n_out, w->n_in);
    }
    if (first->quant == LV_QUANT_AWQ) {
        w->format = records && first->group_size == LV_RECORD_K ? LV_W_INT4 : LV_W_F16;
    } else {
        w->format = keep == LV_AS_INT4 && records   ? LV_W_INT4
                    : keep == LV_AS_INT8 && records ? LV_W_INT8
                                                    : LV_W_F16;
    }
    w->n_bytes = w->format == LV_W_INT4   ? n / (LV_TILE * LV_RECORD_K) * LV_RECORD_BYTES
                 : w->format == LV_W_INT8 ? n + (size_t)w->n_out * sizeof(float)
                                          : 2 * n;
    return LV_OK;
}

// Dense sources by way of f16, which is freed again.
static lv_status load_rounded(lv_cuda *cuda, const lv_linear_source *parts, int n_parts,
                              lv_linear *w) {
    void *f16;
    lv_status status = LV_OK;
    LV_TRY(lv_cuda_alloc(&cuda->base, (size_t)w->n_out * (size_t)w->n_in * 2, &f16));
    for (int i = 0, row0 = 0; status == LV_OK && i < n_parts; row0 += parts[i++].n_out) {
        status = load_dense(cuda, &parts[i], row0, w, f16);
    }
    if (status == LV_OK && w->format == LV_W_INT4) {
        status = lv_cuda_int4_round(cuda, f16, w->n_out, w->n_in, w->data);
    } else if (status == LV_OK) {
        w->scales = (float *)((uint8_t *)w->data + (size_t)w->n_out * (size_t)w->n_in);
        status = lv_cuda_int8_round(cuda, f16, w->n_out, w->n_in, w->data, w->scales);
    }
    lv_cuda_free(&cuda->base, f16);
    return status;
}

static lv_status load_parts(lv_cuda *cuda, const lv_linear_source *parts, int n_parts,
                            lv_linear *w) {
    LV_TRY(lv_cuda_alloc(&cuda->base, w->n_bytes, &w->data));
    LV_TRY(load_bias(cuda, parts, n_parts, w));
    if (parts[0].quant == LV_QUANT_NONE && w->format != LV_W_F16) {
        return load_rounded(cuda, parts, n_parts, w);
    }
    for (int i = 0, row0 = 0; i < n_parts; row0 += parts[i++].n_out) {
        LV_TRY(parts[i].quant == LV_QUANT_AWQ ? load_awq(cuda, &parts[i], row0, w)
                                              : load_dense(cuda, &parts[i], row0, w, w->data));
    }
    return LV_OK;
}

lv_status lv_cuda_linear_load(lv_backend *be, const lv_linear_source *parts, int n_parts,
                              const lv_linear_options *options, lv_linear **out) {
    lv_cuda *cuda = (lv_cuda *)be;
    lv_status status = LV_OK;
    int n_out;
    *out = NULL;
    LV_TRY(lv_cuda_enter(cuda));
    LV_TRY(lv_check_sources(parts, n_parts, &n_out));
    lv_linear *w = calloc(1, sizeof *w);
    if (!w) {
        return lv_fail(LV_ENOMEM, "linear: out of memory");
    }
    w->n_out = n_out;
    w->n_in = parts[0].n_in;
    LV_TRY_DONE(choose_layout(&parts[0], options, w));
    LV_TRY_DONE(load_parts(cuda, parts, n_parts, w));
    *out = w;
    return LV_OK;
done:
    lv_cuda_linear_free(be, w);
    return status;
}

void lv_cuda_linear_free(lv_backend *be, lv_linear *linear) {
    if (linear) {
        lv_cuda_forget_graphs((lv_cuda *)be);
        lv_cuda_free(be, linear->data);
        lv_cuda_free(be, linear->bias);
        lv_cuda_free(be, linear->bias_f16);
        free(linear);
    }
}

lv_linear_shape lv_cuda_linear_shape(const lv_linear *linear) {
    return (lv_linear_shape){linear->n_out, linear->n_in, linear->n_bytes};
}

lv_status lv_cuda_tensor_load(lv_backend *be, const lv_tensor *source, float **out) {
    lv_cuda *cuda = (lv_cuda *)be;
    void *staged, *data;
    *out = NULL;
    LV_TRY(lv_cuda_enter(cuda));
    LV_TRY(lv_check_tensor(source));
    const size_t n = (size_t)lv_tensor_count(source);
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_LOAD, lv_tensor_bytes(source), &staged));
    LV_TRY(stage(cuda, source, 0, &staged));
    LV_TRY(lv_cuda_alloc(be, n * sizeof(float), &data));
    lv_status status = lv_cuda_convert_f32(cuda, source->dtype, staged, n, data);
    if (status != LV_OK) {
        lv_cuda_free(be, data);
        return status;
    }
    *out = data;
    return LV_OK;
}
