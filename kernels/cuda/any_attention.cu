// Attention for shapes that the fast kernels do not take: any even head_dim up to 256, paged or
// contiguous, causal or full. Small test models run on it; nobody needs it to be fast.
//
//   out[h] = sum_t softmax_t(q[h] k[t] / sqrt(head_dim)) v[t]
//
// One warp a query row and head. 32 tokens at a time: first a lane is a token (its score, whole),
// then a lane is every 32nd dimension. A row's bits depend on its own tokens only.
#include "kernels/cuda/attention.cuh"

#define WARPS 4
#define PER_LANE (LV_MAX_HEAD_DIM / 32)

// Rows of keys and values: of the cache where `table` is set, else `stride_bytes` apart.
typedef struct any_args {
    const __half *q;
    __half *out;
    int q_stride, out_stride; // elements between rows
    int n_heads, group, head_dim, window;
    float scale; // log2(e) / sqrt(head_dim)
    lv_kv_layer kv;
    const int32_t *single, *tile_seq, *tile_first, *token_start, *kv_length, *table;
    int table_stride;
    const uint8_t *keys; // images: row 0, head 0
    size_t value_bytes, stride_bytes;
    int n_rows;  // of an image
    int n_tasks; // rows of the whole call
} any_args;

// A query row: its number in q and out, its head, and the tokens [first, end) that it sees.
typedef struct any_row {
    int row, head, seq, first, end;
} any_row;

__device__ static inline bool find_row(const any_args *a, int task, any_row *r) {
    int in_seq = 0;
    r->head = blockIdx.x;
    if (!a->table) {
        r->seq = task / a->n_rows;
        r->row = task;
        r->first = 0;
        r->end = a->n_rows;
        return true;
    }
    if (a->single) {
        r->seq = a->single[task];
    } else {
        r->seq = a->tile_seq[task / LV_Q_TILE];
        in_seq = a->tile_first[task / LV_Q_TILE] + task % LV_Q_TILE;
    }
    const int start = a->token_start[r->seq], n_new = a->token_start[r->seq + 1] - start;
    r->row = start + in_seq;
    r->end = a->kv_length[r->seq] - n_new + in_seq + 1;
    r->first = lv_first_seen(r->end - 1, a->window);
    return in_seq < n_new;
}

// Token t's key (is_value: value) of the row's head; *scale where bytes are to be multiplied by it.
__device__ static inline const uint8_t *token_row(const any_args *a, const any_row *r, int t,
                                                  int is_value, float *scale) {
    const int kv_head = r->head / a->group, slot = t % LV_KV_BLOCK;
    *scale = 1.0f;
    if (!a->table) {
        return a->keys + ((size_t)r->seq * a->n_rows + t) * a->stride_bytes +
               is_value * a->value_bytes + (size_t)kv_head * a->head_dim * sizeof(__half);
    }
    const int block = a->table[(size_t)r->seq * a->table_stride + t / LV_KV_BLOCK];
    const uint8_t *page = lv_kv_page(&a->kv, block, kv_head) + is_value * a->kv.page_bytes;
    if (a->kv.is_i8) {
        *scale = ((const float *)(page + LV_KV_BLOCK * a->head_dim))[slot];
        return page + slot * a->head_dim;
    }
    return page + (size_t)slot * a->head_dim * sizeof(__half);
}

__device__ static inline float element(const any_args *a, const uint8_t *row, int i) {
    return a->table && a->kv.is_i8 ? (float)row[i] - 128.0f
                                   : __half2float(((const __half *)row)[i]);
}

__global__ void __launch_bounds__(WARPS * 32) attend_any(const any_args a) {
    float *q = (float *)lv_shared + threadIdx.x / 32 * LV_MAX_HEAD_DIM; // this warp's row
    const int lane = threadIdx.x % 32, task = blockIdx.y * WARPS + threadIdx.x / 32;
    float out[PER_LANE] = {}, max = -INFINITY, sum = 0, scale;
    any_row r;
    lv_launch_next();
    lv_wait_previous();
    if (task >= a.n_tasks || !find_row(&a, task, &r)) {
        return;
    }
    for (int i = lane; i < a.head_dim; i += 32) {
        q[i] = __half2float(a.q[(size_t)r.row * a.q_stride + r.head * a.head_dim + i]) * a.scale;
    }
    __syncwarp();
    for (int t0 = r.first; t0 < r.end; t0 += 32) {
        float score = -INFINITY;
        if (t0 + lane < r.end) {
            const uint8_t *key = token_row(&a, &r, t0 + lane, 0, &scale);
            score = 0;
            for (int i = 0; i < a.head_dim; i++) {
                score = fmaf(q[i], element(&a, key, i), score);
            }
            score *= scale;
        }
        const float now = fmaxf(max, lv_warp_max(score)), base = now == -INFINITY ? 0.0f : now;
        const float factor = exp2f(max - base), p = exp2f(score - base);
        sum = sum * factor + lv_warp_sum(p);
        max = now;
        for (int i = 0; i < PER_LANE; i++) {
            out[i] *= factor;
        }
        for (int k = 0; k < min(32, r.end - t0); k++) {
            const uint8_t *value = token_row(&a, &r, t0 + k, 1, &scale);
            const float weight = __shfl_sync(LV_ALL_LANES, p, k) * scale;
            for (int i = 0; i < PER_LANE; i++) {
                if (lane + 32 * i < a.head_dim) {
                    out[i] = fmaf(weight, element(&a, value, lane + 32 * i), out[i]);
                }
            }
        }
    }
    for (int i = 0; i < PER_LANE; i++) {
        if (lane + 32 * i < a.head_dim) {
            a.out[(size_t)r.row * a.out_stride + r.head * a.head_dim + lane + 32 * i] =
                __float2half_rn(out[i] / sum);
        }
    }
}

static lv_status launch(lv_cuda *cuda, const any_args *args) {
    if (args->head_dim > LV_MAX_HEAD_DIM) {
        return lv_fail(LV_EUNSUPPORTED, "attention with heads of %d, at most %d", args->head_dim,
                       LV_MAX_HEAD_DIM);
    }
    return lv_launch(cuda, "attention", attend_any,
                     dim3((unsigned)args->n_heads, (unsigned)((args->n_tasks + WARPS - 1) / WARPS)),
                     dim3(WARPS * 32), WARPS * LV_MAX_HEAD_DIM * sizeof(float), *args);
}

lv_status lv_any_attention(lv_cuda *cuda, const lv_device_batch *batch,
                           const lv_attention_shape *shape, const void *q, const lv_kv *kv,
                           int layer, bool single, void *out) {
    any_args args = {};
    args.q = (const __half *)q;
    args.out = (__half *)out;
    args.q_stride = args.out_stride = shape->n_heads * shape->head_dim;
    args.n_heads = shape->n_heads;
    args.group = shape->n_heads / shape->n_kv_heads;
    args.head_dim = shape->head_dim;
    args.window = shape->window;
    args.scale = LV_LOG2E / sqrtf((float)shape->head_dim);
    args.kv = lv_kv_at(kv, layer);
    args.single = single ? batch->single : NULL;
    args.tile_seq = batch->tile_seq;
    args.tile_first = batch->tile_first;
    args.token_start = batch->token_start;
    args.kv_length = batch->kv_length;
    args.table = batch->block_table;
    args.table_stride = batch->table_stride;
    args.n_tasks = single ? batch->n_single : batch->n_tiles * LV_Q_TILE;
    return launch(cuda, &args);
}

lv_status lv_any_image_attention(lv_cuda *cuda, const void *qkv, int n, int n_rows, int n_heads,
                                 int head_dim, void *out) {
    const int d = n_heads * head_dim;
    any_args args = {};
    args.q = (const __half *)qkv;
    args.out = (__half *)out;
    args.q_stride = 3 * d;
    args.out_stride = d;
    args.n_heads = n_heads;
    args.group = 1;
    args.head_dim = head_dim;
    args.scale = LV_LOG2E / sqrtf((float)head_dim);
    args.keys = (const uint8_t *)((const __half *)qkv + d);
    args.value_bytes = (size_t)d * sizeof(__half);
    args.stride_bytes = 3 * (size_t)d * sizeof(__half);
    args.n_rows = n_rows;
    args.n_tasks = n * n_rows;
    return launch(cuda, &args);
}
