// A pass: its batch goes to the device in one copy, and what a steady batch's body enqueues is
// recorded as a CUDA graph at its second use and replayed from then on. The first use runs as it
// is: it may allocate work space, which a recording must not.
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

#define MAX_GRAPHS 600 // twice as many as batch sizes of one cache

// --- the batch's place in memory ----------------------------------------------------------------

typedef struct counts {
    int n_single, n_tiles;
} counts;

static int new_tokens(const lv_batch *b, int seq) {
    return b->token_start[seq + 1] - b->token_start[seq];
}

static counts count(const lv_batch *b) {
    counts n = {0, 0};
    for (int s = 0; b->token_start && s < b->n_seqs; s++) { // none outside of a pass: ids alone
        const int m = new_tokens(b, s);
        n.n_single += m == 1;
        n.n_tiles += m > 1 ? (m + LV_Q_TILE - 1) / LV_Q_TILE : 0;
    }
    return n;
}

// The next n values of 4 bytes after *at.
static const void *place(uint8_t *base, size_t *at, int n) {
    const void *here = base + *at;
    *at += ((size_t)n * 4 + 15) & ~(size_t)15;
    return here;
}

// Where everything lies: a function of the sizes and `base` alone, so that a recorded graph finds
// the next batch of its sizes at the same addresses. Returns the bytes.
static size_t lay_out(const lv_batch *b, counts n, int stride, uint8_t *base,
                      lv_device_batch *out) {
    size_t at = 0;
    memset(out, 0, sizeof *out); // padding too: graphs are found by comparing all of it
    out->n_seqs = b->n_seqs;
    out->n_tokens = b->n_tokens;
    out->n_logits = b->n_logits;
    out->n_single = n.n_single;
    out->n_tiles = n.n_tiles;
    out->head_dim = b->head_dim;
    out->table_stride = stride;
    out->ids = place(base, &at, b->n_tokens);
    out->logit_rows = place(base, &at, b->n_logits);
    out->token_seq = place(base, &at, b->n_tokens);
    out->token_pos = place(base, &at, b->n_tokens);
    out->token_start = place(base, &at, b->n_seqs + 1);
    out->kv_length = place(base, &at, b->n_seqs);
    out->single = place(base, &at, n.n_single);
    out->tile_seq = place(base, &at, n.n_tiles);
    out->tile_first = place(base, &at, n.n_tiles);
    out->rope_scale = place(base, &at, b->n_seqs);
    out->inv_freq = place(base, &at, b->n_seqs * (b->head_dim / 2));
    out->block_table = place(base, &at, b->n_seqs * stride);
    return at;
}

// Writes through a pointer of `host`, which is laid out at host memory.
static void copy_words(const void *to, const void *from, int n) {
    if (from && n > 0) {
        memcpy((void *)(uintptr_t)to, from, (size_t)n * 4);
    }
}

static void fill_sequences(const lv_batch *b, const lv_device_batch *host) {
    int32_t *token_seq = (int32_t *)(uintptr_t)host->token_seq;
    int32_t *token_pos = (int32_t *)(uintptr_t)host->token_pos;
    int32_t *single = (int32_t *)(uintptr_t)host->single;
    int32_t *tile_seq = (int32_t *)(uintptr_t)host->tile_seq;
    int32_t *tile_first = (int32_t *)(uintptr_t)host->tile_first;
    for (int s = 0, n_single = 0, n_tiles = 0; s < b->n_seqs; s++) {
        const int m = new_tokens(b, s), first = b->kv_length[s] - m;
        for (int i = 0; i < m; i++) {
            token_seq[b->token_start[s] + i] = s;
            token_pos[b->token_start[s] + i] = first + i;
        }
        if (m == 1) {
            single[n_single++] = s;
        }
        // The last tiles look back furthest: they begin first.
        for (int row = (m - 1) / LV_Q_TILE * LV_Q_TILE; m > 1 && row >= 0; row -= LV_Q_TILE) {
            tile_seq[n_tiles] = s;
            tile_first[n_tiles++] = row;
        }
    }
}

static void fill(const lv_batch *b, const lv_device_batch *host) {
    const int half = host->head_dim / 2;
    copy_words(host->ids, b->ids, b->n_tokens);
    copy_words(host->logit_rows, b->logit_rows, b->n_logits);
    if (!b->token_start) {
        return;
    }
    copy_words(host->token_start, b->token_start, b->n_seqs + 1);
    copy_words(host->kv_length, b->kv_length, b->n_seqs);
    copy_words(host->rope_scale, b->rope_scale, b->n_seqs);
    copy_words(host->inv_freq, b->inv_freq, b->n_seqs * half);
    for (int s = 0; s < b->n_seqs; s++) {
        copy_words(host->block_table + (ptrdiff_t)s * host->table_stride,
                   b->block_table + (ptrdiff_t)s * b->max_blocks, b->max_blocks);
    }
    fill_sequences(b, host);
}

// --- upload -------------------------------------------------------------------------------------

static lv_status grow(lv_cuda *cuda, size_t n_bytes) {
    void *dev;
    n_bytes = n_bytes < ((size_t)1 << 20) ? (size_t)1 << 20 : 2 * n_bytes;
    lv_cuda_forget_graphs(cuda);
    lv_cuda_free(&cuda->base, cuda->batch_dev);
    cuda->batch_dev = NULL;
    cuda->batch_bytes = 0;
    for (int i = 0; i < 2; i++) {
        if (cuda->batch_slots[i].copied) {
            LV_CUDA_TRY(cuda, cudaEventSynchronize(cuda->batch_slots[i].copied));
        } else {
            LV_CUDA_TRY(cuda, cudaEventCreateWithFlags(&cuda->batch_slots[i].copied,
                                                       cudaEventDisableTiming));
        }
        LV_CUDA_TRY(cuda, cudaFreeHost(cuda->batch_slots[i].host));
        cuda->batch_slots[i].host = NULL;
        LV_CUDA_TRY(cuda, cudaHostAlloc((void **)&cuda->batch_slots[i].host, n_bytes, 0));
    }
    LV_TRY(lv_cuda_alloc(&cuda->base, n_bytes, &dev));
    cuda->batch_dev = dev;
    cuda->batch_bytes = n_bytes;
    return LV_OK;
}

static lv_status upload(lv_cuda *cuda, const lv_batch *b) {
    lv_device_batch host;
    LV_TRY(lv_cuda_flush(cuda)); // what was put off still wants the batch before
    if (b->inv_freq && b->head_dim < 2) {
        return lv_fail(LV_EINVAL, "batch with rotary frequencies and head_dim %d", b->head_dim);
    }
    const counts n = count(b);
    // As few different widths of the table as possible: each has graphs of its own.
    int stride = 256;
    while (stride < b->max_blocks) {
        stride *= 2;
    }
    const size_t n_bytes = lay_out(b, n, stride, NULL, &host);
    if (n_bytes > cuda->batch_bytes) {
        LV_TRY(grow(cuda, n_bytes));
    }
    cuda->batch_slot ^= 1;
    LV_CUDA_TRY(cuda, cudaEventSynchronize(cuda->batch_slots[cuda->batch_slot].copied));
    uint8_t *pinned = cuda->batch_slots[cuda->batch_slot].host;
    lay_out(b, n, stride, pinned, &host);
    fill(b, &host);
    lay_out(b, n, stride, cuda->batch_dev, &cuda->batch);
    LV_CUDA_TRY(cuda, cudaMemcpyAsync(cuda->batch_dev, pinned, n_bytes, cudaMemcpyHostToDevice,
                                      cuda->stream));
    LV_CUDA_TRY(cuda, cudaEventRecord(cuda->batch_slots[cuda->batch_slot].copied, cuda->stream));
    if (b->inv_freq && b->n_tokens > 0 && cuda->batch.token_seq) {
        const size_t n_angles = (size_t)b->n_tokens * (size_t)(b->head_dim / 2);
        void *turns;
        LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_TURNS, n_angles * 2 * sizeof(float), &turns));
        cuda->batch.turns = turns;
    }
    return LV_OK;
}

// Rows in runs of one family of kernels.
static lv_status split(lv_cuda *cuda, const lv_batch *b) {
    cuda->n_runs = 0;
    if (b->n_seqs > cuda->runs_capacity) {
        lv_run *runs = realloc(cuda->runs, (size_t)b->n_seqs * sizeof *runs);
        if (!runs) {
            return lv_fail(LV_ENOMEM, "out of memory");
        }
        cuda->runs = runs;
        cuda->runs_capacity = b->n_seqs;
    }
    for (int s = 0; s < b->n_seqs; s++) {
        const int m = new_tokens(b, s);
        const bool few = m <= LV_FEW_ROWS;
        if (cuda->n_runs > 0 && cuda->runs[cuda->n_runs - 1].few == few) {
            cuda->runs[cuda->n_runs - 1].n += m;
        } else if (m > 0) {
            cuda->runs[cuda->n_runs++] = (lv_run){b->token_start[s], m, few};
        }
    }
    return LV_OK;
}

lv_status lv_cuda_batch(lv_cuda *cuda, const lv_batch *batch, const lv_device_batch **out) {
    *out = &cuda->batch;
    if (cuda->current == batch) {
        return LV_OK;
    }
    LV_TRY(lv_cuda_enter(cuda));
    LV_TRY(upload(cuda, batch));
    return lv_cuda_turn(cuda, &cuda->batch);
}

// --- graphs -------------------------------------------------------------------------------------

void lv_cuda_forget_graphs(lv_cuda *cuda) {
    for (int i = 0; i < cuda->n_graphs; i++) {
        if (cuda->graphs[i].exec) {
            cudaGraphExecDestroy(cuda->graphs[i].exec);
        }
    }
    cuda->n_graphs = 0;
}

// The entry for this user and these sizes, a new one at their first use. NULL: out of memory.
static lv_cuda_graph *find_graph(lv_cuda *cuda, void *user) {
    for (int i = 0; i < cuda->n_graphs; i++) {
        lv_cuda_graph *g = &cuda->graphs[i];
        if (g->user == user && memcmp(&g->batch, &cuda->batch, sizeof cuda->batch) == 0) {
            return g;
        }
    }
    if (cuda->n_graphs == MAX_GRAPHS) {
        lv_cuda_forget_graphs(cuda);
    }
    if (cuda->n_graphs == cuda->graphs_capacity) {
        const int capacity = cuda->graphs_capacity + 64;
        lv_cuda_graph *graphs = realloc(cuda->graphs, (size_t)capacity * sizeof *graphs);
        if (!graphs) {
            return NULL;
        }
        cuda->graphs = graphs;
        cuda->graphs_capacity = capacity;
    }
    lv_cuda_graph *g = &cuda->graphs[cuda->n_graphs++];
    *g = (lv_cuda_graph){.user = user};
    memcpy(&g->batch, &cuda->batch, sizeof cuda->batch);
    return g;
}

// All that a pass enqueues after its upload.
static lv_status run(lv_cuda *cuda, const lv_batch *batch, lv_pass_body *body, void *user) {
    LV_TRY(lv_cuda_turn(cuda, &cuda->batch));
    LV_TRY(body(user, batch));
    return lv_cuda_flush(cuda);
}

static lv_status record(lv_cuda *cuda, const lv_batch *batch, lv_pass_body *body, void *user,
                        cudaGraphExec_t *out) {
    cudaGraph_t graph = NULL;
    LV_CUDA_TRY(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    lv_status status = run(cuda, batch, body, user);
    const cudaError_t error = cudaStreamEndCapture(cuda->stream, &graph);
    if (status == LV_OK) {
        status = lv_cuda_check(cuda, error, "recording a pass");
    }
    if (status == LV_OK) {
        status = lv_cuda_check(cuda, cudaGraphInstantiate(out, graph, 0), "cudaGraphInstantiate");
    }
    if (graph) {
        cudaGraphDestroy(graph);
    }
    return status;
}

static lv_status run_steady(lv_cuda *cuda, const lv_batch *batch, lv_pass_body *body, void *user) {
    lv_cuda_graph *g = find_graph(cuda, user);
    if (!g || g->n_uses == 0) {
        if (g) {
            g->n_uses = 1; // before body: work space that it enlarges forgets all entries
        }
        return run(cuda, batch, body, user);
    }
    if (!g->exec) {
        cudaGraphExec_t exec = NULL;
        LV_TRY(record(cuda, batch, body, user, &exec));
        g->exec = exec;
    }
    LV_CUDA_TRY(cuda, cudaGraphLaunch(g->exec, cuda->stream));
    return LV_OK;
}

// What loading needed is given back when the first pass begins.
static void end_loading(lv_cuda *cuda) {
    lv_cuda_free(&cuda->base, cuda->scratch[LV_SCRATCH_LOAD].data);
    cuda->scratch[LV_SCRATCH_LOAD].data = NULL;
    cuda->scratch[LV_SCRATCH_LOAD].n_bytes = 0;
}

lv_status lv_cuda_pass(lv_backend *be, const lv_batch *batch, lv_pass_body *body, void *user) {
    lv_cuda *cuda = (lv_cuda *)be;
    LV_TRY(lv_cuda_enter(cuda));
    if (batch->n_seqs < 1 || batch->n_tokens < 1 || batch->token_start[0] != 0 ||
        batch->token_start[batch->n_seqs] != batch->n_tokens) {
        return lv_fail(LV_EINVAL, "pass of %d sequences, %d tokens", batch->n_seqs,
                       batch->n_tokens);
    }
    end_loading(cuda);
    LV_TRY(upload(cuda, batch));
    LV_TRY(split(cuda, batch));
    cuda->current = batch;
    const lv_status status =
        batch->steady ? run_steady(cuda, batch, body, user) : run(cuda, batch, body, user);
    cuda->current = NULL;
    lv_cuda_chain_drop(cuda); // of a body that failed
    return status;
}

void lv_cuda_pass_free(lv_cuda *cuda) {
    lv_cuda_forget_graphs(cuda);
    for (int i = 0; i < 2; i++) {
        if (cuda->batch_slots[i].copied) {
            cudaEventDestroy(cuda->batch_slots[i].copied);
        }
        cudaFreeHost(cuda->batch_slots[i].host);
    }
    lv_cuda_free(&cuda->base, cuda->batch_dev);
    lv_cuda_free(&cuda->base, cuda->tokens);
    free(cuda->graphs);
    free(cuda->runs);
}
