// Attention over the paged cache, and inside images.
//
//   out[i] = sum_t softmax_t(q[i] k[t] / sqrt(head_dim)) v[t]
//
// The paged one goes page by page with an online softmax: scores [rows, 64] = Q [rows, head_dim]
// keys [head_dim, 64], out += softmax(scores) values [64, head_dim], rows being the new tokens of a
// sequence times the query heads that share a key head. A row passes its own pages in order
// whatever else is in the block, so its bits depend on its own sequence only.
//
// An i8 cache has a scale for each token and head. That of keys meets the scores, that of values
// the probabilities, so the products work on the plain integers, which f32 holds exactly.
//
// One new token reads the cache once, 1 MiB a token of context for 7B in f32 (f16 half of it, i8
// 264 KiB): the roof is memory. Measured with two threads at context 2048 in f32: 37 GB/s of 45 to
// 60. One busy core, 32 heads of 128, 2048 tokens: f32 1.97 ms (34 GB/s), f16 1.24 ms (27), i8 1.10
// ms (15; its conversions are four instructions a line, so that fewer lines are on their way at
// once). 512 new tokens: the FMA rate, 287 of 524 GFLOP/s, f16 and i8 4% less.
//
// Tried and rejected: all keys of a block before all values: runs of 8 KiB (i8) end before the
// processor's prefetching gets going, 1.9 ms instead of 1.2 in i8 and f16. Prefetching the next
// page by hand: no gain. Copying f16 pages to f32 also for one row: 2.9 ms. Images: 577 rows, 16
// heads of 64: 10 ms on one core, 134 of 262 GFLOP/s; 14% of a CLIP layer.
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define DIRECT_ROWS 6 // the most query rows that convert f16 and i8 pages on their way
#define MAX_ROWS 48   // query rows of a block, unless one token's heads alone are more

typedef struct block {
    const lv_batch *batch;
    const lv_attention_shape *shape;
    const lv_kv *kv;
    int layer, seq, kv_head;
    int token0, n_tokens; // within the sequence's new tokens
} block;

typedef struct scratch {
    float *q;           // [rows, head_dim], scaled; row = token * group + head
    float *out;         // [rows, head_dim]
    float *scores;      // [rows, 64]
    float *max, *sum;   // [rows]
    float *key, *value; // f32 copies of f16 and i8 pages
} scratch;

typedef struct page {
    lv_dtype dtype;
    const void *data;    // keys [head_dim, 64] or values [64, head_dim]
    const float *scales; // [64], or NULL where not i8
} page;

static int block_rows(const lv_attention_shape *shape) {
    int group = shape->n_heads / shape->n_kv_heads;
    return group > MAX_ROWS ? group : MAX_ROWS / group * group;
}

static ptrdiff_t scratch_floats(const lv_attention_shape *shape) {
    ptrdiff_t rows = block_rows(shape), hd = shape->head_dim;
    ptrdiff_t n = rows * (2 * hd + LV_KV_BLOCK + 2) + 2 * LV_KV_BLOCK * hd;
    return (n + 15) / 16 * 16;
}

static scratch cut_scratch(float *p, const lv_attention_shape *shape) {
    ptrdiff_t rows = block_rows(shape), hd = shape->head_dim;
    scratch s = {.q = p};
    s.key = s.q + rows * hd;
    s.value = s.key + LV_KV_BLOCK * hd;
    s.out = s.value + LV_KV_BLOCK * hd;
    s.scores = s.out + rows * hd;
    s.max = s.scores + rows * LV_KV_BLOCK;
    s.sum = s.max + rows;
    return s;
}

// Few rows convert a page while they read it, many rows read a copy of f32: the same numbers.
static page get_page(const lv_cpu *cpu, const block *b, int index, int is_value, int n_rows,
                     float *copy) {
    int id = b->batch->block_table[(ptrdiff_t)b->seq * b->batch->max_blocks + index];
    void *data = lv_kv_page(b->kv, b->layer, id, is_value, b->kv_head);
    page p = {b->kv->dtype, data, b->kv->dtype == LV_I8 ? lv_kv_scales(b->kv, data) : NULL};
    if (p.dtype != LV_F32 && n_rows > DIRECT_ROWS) {
        cpu->vector->convert(p.dtype, data, LV_KV_BLOCK * b->kv->head_dim, copy);
        p.dtype = LV_F32;
        p.data = copy;
    }
    return p;
}

// scores [n_rows, n_t] of 64 columns: each column times its token's scale.
static void apply_scales(const lv_cpu *cpu, const page *p, int n_rows, int n_t, float *scores) {
    for (int r = 0; p->scales && r < n_rows; r++) {
        cpu->vector->multiply(scores + (ptrdiff_t)r * LV_KV_BLOCK, p->scales, n_t);
    }
}

// Scores of one page -> probabilities; what was accumulated before is rescaled. Lanes outside a
// row's own range [first, position] become 0.
static void page_softmax(const lv_cpu *cpu, const block *b, int t0, int n_t, const scratch *s) {
    int group = b->shape->n_heads / b->shape->n_kv_heads, hd = b->shape->head_dim;
    int n_new = b->batch->token_start[b->seq + 1] - b->batch->token_start[b->seq];
    int position0 = b->batch->kv_length[b->seq] - n_new + b->token0;
    for (int r = 0; r < b->n_tokens * group; r++) {
        int position = position0 + r / group, window = b->shape->window;
        int first = window && position >= window ? position - window + 1 : 0;
        int from = first > t0 ? first - t0 : 0,
            to = position + 1 - t0 < n_t ? position + 1 - t0 : n_t;
        float *row = s->scores + (ptrdiff_t)r * LV_KV_BLOCK;
        if (from >= to) { // nothing of this page: an exact no-op
            memset(row, 0, (size_t)n_t * sizeof(float));
            continue;
        }
        float factor = cpu->vector->softmax_page(row + from, to - from, &s->max[r], &s->sum[r]);
        memset(row, 0, (size_t)from * sizeof(float));
        memset(row + to, 0, (size_t)(n_t - to) * sizeof(float));
        if (factor != 1.0f) {
            cpu->vector->scale(s->out + (ptrdiff_t)r * hd, hd, factor);
        }
    }
}

static void run_block(const lv_cpu *cpu, const block *b, const float *q, float *out, scratch s) {
    int group = b->shape->n_heads / b->shape->n_kv_heads, hd = b->shape->head_dim;
    int n_rows = b->n_tokens * group, window = b->shape->window;
    int start = b->batch->token_start[b->seq], length = b->batch->kv_length[b->seq];
    int position0 = length - (b->batch->token_start[b->seq + 1] - start) + b->token0;
    int end = position0 + b->n_tokens; // keys that the last row sees
    int first = window && position0 >= window ? position0 - window + 1 : 0;
    ptrdiff_t stride = (ptrdiff_t)b->shape->n_heads * hd;
    ptrdiff_t base = (start + b->token0) * stride + (ptrdiff_t)b->kv_head * group * hd;
    float factor = 1.0f / sqrtf((float)hd);
    for (int r = 0; r < n_rows; r++) {
        const float *from = q + base + r / group * stride + (ptrdiff_t)(r % group) * hd;
        for (int i = 0; i < hd; i++) {
            s.q[(ptrdiff_t)r * hd + i] = from[i] * factor;
        }
        s.max[r] = -INFINITY;
        s.sum[r] = 0;
    }
    memset(s.out, 0, (size_t)n_rows * (size_t)hd * sizeof(float));
    for (int t0 = first / LV_KV_BLOCK * LV_KV_BLOCK; t0 < end; t0 += LV_KV_BLOCK) {
        int n_t = end - t0 < LV_KV_BLOCK ? end - t0 : LV_KV_BLOCK;
        int index = t0 / LV_KV_BLOCK;
        page key = get_page(cpu, b, index, 0, n_rows, s.key);
        memset(s.scores, 0, (size_t)n_rows * LV_KV_BLOCK * sizeof(float));
        cpu->vector->gemm(n_rows, LV_KV_BLOCK, hd, s.q, hd, key.dtype, key.data, LV_KV_BLOCK,
                          s.scores, LV_KV_BLOCK);
        apply_scales(cpu, &key, n_rows, n_t, s.scores);
        page_softmax(cpu, b, t0, n_t, &s);
        page value = get_page(cpu, b, index, 1, n_rows, s.value);
        apply_scales(cpu, &value, n_rows, n_t, s.scores);
        // Only the n_t values that exist: 0 times what lies beyond could be NaN.
        cpu->vector->gemm(n_rows, hd, n_t, s.scores, LV_KV_BLOCK, value.dtype, value.data, hd,
                          s.out, hd);
    }
    for (int r = 0; r < n_rows; r++) {
        float *to = out + base + r / group * stride + (ptrdiff_t)(r % group) * hd;
        for (int i = 0; i < hd; i++) {
            to[i] = s.out[(ptrdiff_t)r * hd + i] / s.sum[r];
        }
    }
}

lv_status lv_cpu_attention(lv_backend *be, const lv_batch *batch, const lv_attention_shape *shape,
                           const void *q, const lv_kv *kv, int layer, void *out) {
    lv_cpu *cpu = (lv_cpu *)be;
    void *memory;
    LV_TRY(lv_check_attention(batch, shape, lv_kv_shape(kv), layer));
    ptrdiff_t per_thread = scratch_floats(shape);
    int tokens = block_rows(shape) / (shape->n_heads / shape->n_kv_heads);
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_THREADS,
                          (size_t)(cpu->n_threads * per_thread) * sizeof(float), &memory));
    double work = 0;
    for (int s = 0; s < batch->n_seqs; s++) {
        work += (double)(batch->token_start[s + 1] - batch->token_start[s]) * batch->kv_length[s] *
                shape->n_heads * shape->head_dim;
    }
#pragma omp parallel num_threads(cpu->n_threads) if (work > 1e6)
    {
        scratch mine = cut_scratch((float *)memory + omp_get_thread_num() * per_thread, shape);
        for (int s = 0; s < batch->n_seqs; s++) {
            int n_new = batch->token_start[s + 1] - batch->token_start[s];
            int n_blocks = (n_new + tokens - 1) / tokens;
#pragma omp for schedule(dynamic) nowait
            for (int i = 0; i < n_blocks * shape->n_kv_heads; i++) {
                block b = {batch, shape, kv, layer, s, i / n_blocks, i % n_blocks * tokens, 0};
                b.n_tokens = n_new - b.token0 < tokens ? n_new - b.token0 : tokens;
                run_block(cpu, &b, q, out, mine);
            }
        }
    }
    return LV_OK;
}

// --- images --------------------------------------------------------------------------------------

// A row of keys or scores takes whole vectors: columns that fill none are 60 times as slow.
static ptrdiff_t padded(int n_rows) {
    return (n_rows + 15) / 16 * 16;
}

static ptrdiff_t image_floats(int n_rows, int hd) {
    return padded(n_rows) * (2 * hd + MAX_ROWS) + 2 * MAX_ROWS * (ptrdiff_t)hd;
}

// One head of one image: keys transposed and values gathered, then blocks of rows.
static void image_head(const lv_cpu *cpu, const float *qkv, int n_rows, int n_heads, int hd,
                       float *memory, float *out) {
    ptrdiff_t d = (ptrdiff_t)n_heads * hd, stride = padded(n_rows);
    float *key = memory, *value = key + stride * hd, *q = value + stride * hd;
    float *scores = q + MAX_ROWS * hd, *sums = scores + MAX_ROWS * stride;
    float factor = 1.0f / sqrtf((float)hd);
    for (int i = 0; i < hd; i++) {
        memset(key + i * stride + n_rows, 0, (size_t)(stride - n_rows) * sizeof(float));
    }
    for (int t = 0; t < n_rows; t++) {
        const float *row = qkv + t * 3 * d;
        for (int i = 0; i < hd; i++) {
            key[i * stride + t] = row[d + i];
        }
        memcpy(value + (ptrdiff_t)t * hd, row + 2 * d, (size_t)hd * sizeof(float));
    }
    for (int row0 = 0; row0 < n_rows; row0 += MAX_ROWS) {
        int n = n_rows - row0 < MAX_ROWS ? n_rows - row0 : MAX_ROWS;
        for (int r = 0; r < n; r++) {
            for (int i = 0; i < hd; i++) {
                q[r * hd + i] = qkv[(row0 + r) * 3 * d + i] * factor;
            }
        }
        memset(scores, 0, (size_t)(n * stride) * sizeof(float));
        cpu->vector->gemm(n, (int)stride, hd, q, hd, LV_F32, key, stride, scores, stride);
        for (int i = 0; i < n; i++) {
            cpu->vector->softmax(scores + i * stride, n_rows);
        }
        memset(sums, 0, (size_t)n * (size_t)hd * sizeof(float));
        cpu->vector->gemm(n, hd, n_rows, scores, stride, LV_F32, value, hd, sums, hd);
        for (int i = 0; i < n; i++) {
            memcpy(out + (row0 + i) * d, sums + (ptrdiff_t)i * hd, (size_t)hd * sizeof(float));
        }
    }
}

lv_status lv_cpu_image_attention(lv_backend *be, const void *qkv, int n, int n_rows, int n_heads,
                                 int head_dim, void *out) {
    lv_cpu *cpu = (lv_cpu *)be;
    void *memory;
    ptrdiff_t d = (ptrdiff_t)n_heads * head_dim;
    ptrdiff_t per_thread = image_floats(n_rows, head_dim);
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_THREADS,
                          (size_t)(cpu->n_threads * per_thread) * sizeof(float), &memory));
#pragma omp parallel for num_threads(cpu->n_threads) schedule(dynamic)
    for (int i = 0; i < n * n_heads; i++) {
        ptrdiff_t image = i / n_heads, head = i % n_heads;
        image_head(cpu, (const float *)qkv + image * n_rows * 3 * d + head * head_dim, n_rows,
                   n_heads, head_dim, (float *)memory + omp_get_thread_num() * per_thread,
                   (float *)out + image * n_rows * d + head * head_dim);
    }
    return LV_OK;
}
