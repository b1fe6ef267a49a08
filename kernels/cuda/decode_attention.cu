// Attention of one new token a sequence over its paged cache, and that token's way into the cache.
//
//   out[h] = sum_t softmax_t(q[h] k[t] / sqrt(head_dim)) v[t],  t over the tokens that it sees
//
// q, out f16 [n_tokens, n_heads head_dim], kv_new f16 [n_tokens, 2 n_kv_heads head_dim]; pages as
// in attention.cuh. A block is one kv head of one sequence, up to 8 of its query heads, and a share
// of the pages: 4 warps of which each takes 16 tokens of every page and keeps a softmax of its own.
//
//   scores [16 tokens, 8 heads] = K [16, head_dim] q^T       mma: K is the m16 operand, q the n8
//   out^T [head_dim, 8 heads]  += V^T [head_dim, 16] P       mma: V^T is the m16 operand, P the n8
//
// Rows of a page are contiguous, and each lane loads 16-byte chunks of them straight into
// fragments: which row or column of an mma means which token or dimension is free, as long as both
// operands agree. Of keys, lane 4 g + t takes chunk 4 b + t of rows token(g) and token(g) + 2
// (row_token), so that a chunk is the k of E / 4 steps. Of values it takes chunk 8 j + g of tokens
// 4 t .. 4 t + 3; four PRMT make pairs of tokens of it. P comes out of the scores by a
// transposition in registers. i8 bytes become halves by PRMT with 0x6400; the keys' scale meets the
// scores, the values' P.
//
// The next step's keys are loaded when the scores are done, its values when the sums are: registers
// are the ring. The first step's loads precede lv_wait_previous(): those pages were written by
// earlier passes, and the copy that brings this pass's batch lies between them and this kernel.
//
// Maxima are rounded up to whole powers of two, so that rescaling is exact and parts may be joined
// in any grouping: a worker (block) takes one or many splits with the same bits. What a split is
// depends on the sequence's own pages only (lv_splits).
//   1 worker    folds its splits one after another and writes out
//   more        leave parts in scratch memory; the last to arrive joins them in order
//
// 7B, context 512, KV16: 8.4 MB a layer, 2.0 us at 4.3 TB/s; B = 32 at 1,024, KV8: 277 MB, 64 us.
// The roof is memory. Issue slots: i8, 16 tokens of 128: 32 words a lane, 64 + 80 to unpack, 16
// mma, 8 loads, about 70 of softmax: 7 a word of 27 at full bandwidth; f16 2 a word. In flight: 32
// KiB a block, three blocks a multiprocessor. 128 threads, 21.7 KiB of shared memory.
#include "kernels/cuda/decode_warp.cuh"

typedef struct decode_args {
    const __half *q, *kv_new;
    __half *out;
    lv_kv_layer kv;
    float *part;        // [units, splits.most, min(group, 8), head_dim] sums of splits
    float2 *part_state; // [units, splits.most, 8] their maximum and sum of probabilities
    int32_t *arrived;   // [units]
    int n_heads, group; // group: query heads of a kv head
    int units_per_head; // blocks of up to 8 query heads that share a kv head
    int window, table_stride;
    float scale; // log2(e) / sqrt(head_dim)
    const int32_t *single, *token_start, *kv_length, *block_table;
    lv_splits splits;
} decode_args;

template <int HD> struct decode_shared {
    lv_chunk q[(HD + 63) / 64 * 2][32]; // fragments: see load_query
    float part[WARPS][HEADS][HD + 2];   // + 2: fewer bank conflicts
    float fold[HEADS][HD];              // splits joined so far (one worker)
    float part_max[WARPS][HEADS], part_sum[WARPS][HEADS];
    float weight[WARPS][HEADS], new_weight[HEADS];
    float fold_max[HEADS], fold_sum[HEADS], fold_weight[HEADS], split_weight[HEADS];
    float new_score[HEADS], new_value[HD];
    int last;
};

// q as fragments, for all warps: word w of chunk (b, c) is dimensions (4 b + t) E + 8 c + 2 w and
// the next of head g.
template <int HD, bool I8>
__device__ static inline void load_query(decode_shared<HD> *shared, const decode_args *a,
                                         const job *j) {
    using S = shape_of<HD, I8>;
    const size_t row = (size_t)a->token_start[j->seq] * a->n_heads + j->head0 + j->g;
    for (int i = j->warp; i < S::KB * (S::E / 8); i += WARPS) {
        const int b = i / (S::E / 8), c = i % (S::E / 8);
        lv_chunk chunk = {};
        if (j->g < j->n_heads && 4 * b + j->t < S::CHUNKS) {
            chunk = *(const lv_chunk *)(a->q + row * HD + (4 * b + j->t) * S::E + c * 8);
        }
        shared->q[i][j->lane] = chunk;
    }
}

// --- the new token ------------------------------------------------------------------------------

// Scores and value of the new token as the cache will hold it -> shared memory; the first block of
// the kv head stores it. Warps share the heads; warp 0 stores the key, warp 1 handles the value.
template <int HD, bool I8>
__device__ static inline void new_token(const decode_args *a, const job *j,
                                        decode_shared<HD> *shared) {
    constexpr int PAIRS = shape_of<HD, I8>::PAIRS;
    const int row = a->token_start[j->seq], position = j->length - 1, n_kv = a->kv.n_kv_heads;
    const __half *key = a->kv_new + ((size_t)row * 2 * n_kv + j->kv_head) * HD;
    const int block = a->block_table[(size_t)j->seq * a->table_stride + position / LV_KV_BLOCK];
    uint8_t *page = lv_kv_page(&a->kv, block, j->kv_head);
    const bool stores = j->head0 == j->kv_head * a->group;
    float2 pair[PAIRS], query[PAIRS];
    lv_read_pairs<PAIRS>(key, j->lane, HD, pair);
    const float key_scale = I8 ? lv_quantise<PAIRS>(pair) : 1.0f;
    if (j->warp == 0 && stores) {
        lv_store_pairs<PAIRS>(page, position % LV_KV_BLOCK, j->lane, HD, I8, pair, key_scale);
    }
    for (int h = j->warp; h < j->n_heads; h += WARPS) {
        float sum = 0;
        lv_read_pairs<PAIRS>(a->q + ((size_t)row * a->n_heads + j->head0 + h) * HD, j->lane, HD,
                             query);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            sum = fmaf(query[i].x, pair[i].x, fmaf(query[i].y, pair[i].y, sum));
        }
        sum = lv_warp_sum(sum);
        if (j->lane == 0) {
            shared->new_score[h] = sum * key_scale * a->scale;
        }
    }
    if (j->warp == 1) {
        lv_read_pairs<PAIRS>(key + (size_t)n_kv * HD, j->lane, HD, pair);
        const float scale = I8 ? lv_quantise<PAIRS>(pair) : 1.0f;
        if (stores) {
            lv_store_pairs<PAIRS>(page + a->kv.page_bytes, position % LV_KV_BLOCK, j->lane, HD, I8,
                                  pair, scale);
        }
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            if (j->lane + 32 * i < HD / 2) {
                shared->new_value[2 * (j->lane + 32 * i)] = pair[i].x * scale;
                shared->new_value[2 * (j->lane + 32 * i) + 1] = pair[i].y * scale;
            }
        }
    }
}

// --- the end of a split -------------------------------------------------------------------------

// Each thread clears what it alone will use.
template <int HD> __device__ static inline void clear_fold(decode_shared<HD> *shared) {
    for (int i = threadIdx.x; i < HEADS * HD; i += THREADS) {
        shared->fold[i / HD][i % HD] = 0;
    }
    if (threadIdx.x < HEADS) {
        shared->fold_max[threadIdx.x] = -INFINITY;
        shared->fold_sum[threadIdx.x] = 0;
    }
}

// The warp's sums -> shared memory, and cleared.
template <int HD, bool I8>
__device__ static inline void publish(lane_sums<HD, I8> *sums, const job *j,
                                      decode_shared<HD> *shared) {
    using S = shape_of<HD, I8>;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        for (int offset = 4; offset < 32; offset *= 2) {
            sums->sum[c] += __shfl_xor_sync(LV_ALL_LANES, sums->sum[c], offset);
        }
        const int head = 2 * j->t + c;
        if (j->g == 0) {
            shared->part_max[j->warp][head] = sums->max[c];
            shared->part_sum[j->warp][head] = sums->sum[c];
        }
#pragma unroll
        for (int b = 0; b < S::VB; b++) {
            if (head < j->n_heads && 8 * b + j->g < S::CHUNKS) {
                float *to = &shared->part[j->warp][head][(8 * b + j->g) * S::E];
#pragma unroll
                for (int i = 0; i < S::TILES; i++) {
                    *(float2 *)(to + 2 * i) =
                        make_float2(sums->out[b][i][c], sums->out[b][i][c + 2]);
                }
            }
        }
    }
    clear_sums<HD, I8>(sums);
}

// One thread a head: the weights of the warps' parts and of the new token, the split's state, and
// how it joins what was folded before.
template <int HD, bool I8>
__device__ static inline void weigh_split(const decode_args *a, const job *j, int split, int head,
                                          decode_shared<HD> *shared) {
    const bool with_new = split == j->n_splits - 1;
    float max = with_new ? ceilf(shared->new_score[head]) : -INFINITY, sum = 0;
    for (int w = 0; w < WARPS; w++) {
        max = fmaxf(max, shared->part_max[w][head]);
    }
    for (int w = 0; w < WARPS; w++) {
        const float factor = lv_exp2_whole(shared->part_max[w][head] - max);
        sum = fmaf(shared->part_sum[w][head], factor, sum);
        shared->weight[w][head] = I8 ? factor / LV_I8_BOOST : factor;
    }
    shared->new_weight[head] = with_new ? lv_exp2(shared->new_score[head] - max) : 0.0f;
    sum += shared->new_weight[head];
    if (j->n_workers > 1) {
        a->part_state[((size_t)j->unit * a->splits.most + split) * HEADS + head] =
            make_float2(max, sum);
    } else {
        const float before = shared->fold_max[head], now = fmaxf(before, max);
        const float factor = lv_exp2_whole(before - now), mine = lv_exp2_whole(max - now);
        shared->fold_max[head] = now;
        shared->fold_sum[head] = fmaf(sum, mine, shared->fold_sum[head] * factor);
        shared->fold_weight[head] = factor;
        shared->split_weight[head] = mine;
    }
}

template <int HD, bool I8>
__device__ static inline void finish_split(const decode_args *a, const job *j, int split,
                                           lane_sums<HD, I8> *sums, decode_shared<HD> *shared) {
    const bool is_last = split == j->n_splits - 1;
    publish<HD, I8>(sums, j, shared);
    __syncthreads();
    if ((int)threadIdx.x < j->n_heads) {
        weigh_split<HD, I8>(a, j, split, threadIdx.x, shared);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < j->n_heads * HD; i += THREADS) {
        const int head = i / HD, d = i % HD;
        float out = 0;
        for (int w = 0; w < WARPS; w++) {
            out = fmaf(shared->part[w][head][d], shared->weight[w][head], out);
        }
        if (is_last) {
            out = fmaf(shared->new_value[d], shared->new_weight[head], out);
        }
        if (j->n_workers > 1) {
            const size_t at = (size_t)j->unit * a->splits.most + split;
            a->part[(at * min(a->group, HEADS) + head) * HD + d] = out;
        } else {
            out = fmaf(out, shared->split_weight[head],
                       shared->fold[head][d] * shared->fold_weight[head]);
            shared->fold[head][d] = out;
            if (is_last) {
                const size_t row = (size_t)a->token_start[j->seq] * a->n_heads + j->head0 + head;
                a->out[row * HD + d] = __float2half_rn(out / shared->fold_sum[head]);
            }
        }
    }
    __syncthreads();
}

// --- the last worker joins all splits -----------------------------------------------------------

// True in all threads of the unit's last worker, which then sees what the others wrote.
template <int HD>
__device__ static inline bool arrive(const decode_args *a, const job *j,
                                     decode_shared<HD> *shared) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        shared->last = atomicAdd(&a->arrived[j->unit], 1) == j->n_workers - 1;
        if (shared->last) {
            a->arrived[j->unit] = 0;
        }
    }
    __syncthreads();
    __threadfence();
    return shared->last;
}

template <int HD>
__device__ static inline void join_splits(const decode_args *a, const job *j,
                                          decode_shared<HD> *shared) {
    float *weight = &shared->part[0][0][0]; // [n_splits, HEADS]
    const size_t first = (size_t)j->unit * a->splits.most;
    const int n_states = j->n_splits * HEADS;
    float *max = weight + LV_MAX_SPLITS * HEADS, *sum = max + LV_MAX_SPLITS * HEADS;
    for (int i = threadIdx.x; i < n_states; i += THREADS) {
        if (i % HEADS < j->n_heads) {
            const float2 state = __ldcg(&a->part_state[first * HEADS + i]);
            max[i] = state.x;
            sum[i] = state.y;
        }
    }
    __syncthreads();
    if ((int)threadIdx.x < j->n_heads) {
        const int head = threadIdx.x;
        float most = -INFINITY, total = 0;
        for (int s = 0; s < j->n_splits; s++) {
            most = fmaxf(most, max[s * HEADS + head]);
        }
        for (int s = 0; s < j->n_splits; s++) {
            const float factor = lv_exp2_whole(max[s * HEADS + head] - most);
            weight[s * HEADS + head] = factor;
            total = fmaf(sum[s * HEADS + head], factor, total);
        }
        shared->fold_sum[head] = total;
    }
    __syncthreads();
    const int stride = min(a->group, HEADS) * HD;
    for (int i = threadIdx.x; i < j->n_heads * HD; i += THREADS) {
        const int head = i / HD;
        const float *part = a->part + first * stride + i;
        float out = 0;
#pragma unroll 4
        for (int s = 0; s < j->n_splits; s++) {
            out = fmaf(__ldcg(part + (size_t)s * stride), weight[s * HEADS + head], out);
        }
        const size_t row = (size_t)a->token_start[j->seq] * a->n_heads + j->head0;
        a->out[row * HD + i] = __float2half_rn(out / shared->fold_sum[head]);
    }
}

// --- the kernel ---------------------------------------------------------------------------------

// This block's job; false where it has none. All that it reads was there before the pass began.
__device__ static inline bool find_job(const decode_args *a, job *j) {
    j->lane = threadIdx.x % 32;
    j->warp = threadIdx.x / 32;
    j->g = j->lane / 4;
    j->t = j->lane % 4;
    j->kv_head = blockIdx.x / a->units_per_head;
    const int in_group = blockIdx.x % a->units_per_head * HEADS;
    j->head0 = j->kv_head * a->group + in_group;
    j->n_heads = min(HEADS, a->group - in_group);
    j->unit = blockIdx.y * gridDim.x + blockIdx.x;
    j->seq = a->single[blockIdx.y];
    j->length = a->kv_length[j->seq];
    j->n_old = j->length - 1;
    j->first_seen = lv_first_seen(j->length - 1, a->window);
    j->page0 = j->first_seen / LV_KV_BLOCK;
    j->n_pages = max((j->n_old + LV_KV_BLOCK - 1) / LV_KV_BLOCK - j->page0, 0);
    j->split_pages = j->n_pages <= LV_SPLIT_TABLE
                         ? a->splits.pages[j->n_pages]
                         : (j->n_pages + a->splits.long_ones - 1) / a->splits.long_ones;
    j->n_splits = j->n_pages > 0 ? (j->n_pages + j->split_pages - 1) / j->split_pages : 1;
    j->n_workers = min((int)gridDim.z, j->n_splits);
    j->split0 = (int)blockIdx.z * j->n_splits / j->n_workers;
    j->split1 = ((int)blockIdx.z + 1) * j->n_splits / j->n_workers;
    return (int)blockIdx.z < j->n_workers;
}

// The pages of the worker's steps, in order: numbers of 32 at a time are in the warp's lanes.
typedef struct page_list {
    const int32_t *table; // of the first page
    int from, n, numbers;
} page_list;

__device__ static inline int block_at(page_list *list, int page, const job *j) {
    if (page - list->from >= 32) {
        list->from = page;
        list->numbers = list->table[min(page + j->lane, list->n - 1)];
    }
    return __shfl_sync(LV_ALL_LANES, list->numbers, page - list->from);
}

// Up to PAGES pages that a block works on at once.
template <int HD, bool I8> struct step {
    int block[shape_of<HD, I8>::PAGES];
    int n_valid[shape_of<HD, I8>::PAGES]; // tokens in the cache; 0: no page
};

// The step that begins at page `first` (counted from page0) and ends before `limit`.
template <int HD, bool I8>
__device__ static inline void plan_step(step<HD, I8> *s, int first, int limit, page_list *list,
                                        const job *j) {
#pragma unroll
    for (int p = 0; p < shape_of<HD, I8>::PAGES; p++) {
        s->n_valid[p] = 0;
        if (first + p < limit) {
            s->n_valid[p] = min(j->n_old - (j->page0 + first + p) * LV_KV_BLOCK, LV_KV_BLOCK);
            s->block[p] = block_at(list, first + p, j);
        }
    }
}

template <int HD, bool I8>
__global__ void __launch_bounds__(THREADS, 3) decode(const __grid_constant__ decode_args a) {
    using S = shape_of<HD, I8>;
    decode_shared<HD> *shared = (decode_shared<HD> *)lv_shared;
    lane_keys<HD, I8> keys[S::PAGES];
    lane_values<HD, I8> values[S::PAGES];
    lane_sums<HD, I8> sums;
    step<HD, I8> now, next;
    job j;
    lv_launch_next();
    if (!find_job(&a, &j)) {
        return; // without lv_wait_previous(): it touches nothing, and others of this grid wait
    }
    int page = j.split0 * j.split_pages, split = j.split0;
    const int end = min(j.split1 * j.split_pages, j.n_pages);
    int split_end = min(page + j.split_pages, end);
    page_list list = {a.block_table + (size_t)j.seq * a.table_stride + j.page0, page - 32,
                      j.n_pages, 0};
    plan_step<HD, I8>(&now, page, split_end, &list, &j);
#pragma unroll
    for (int p = 0; p < S::PAGES; p++) {
        if (now.n_valid[p] > 0) {
            const uint8_t *at = lv_kv_page(&a.kv, now.block[p], j.kv_head);
            load_keys<HD, I8>(&keys[p], at, &j);
            load_values<HD, I8>(&values[p], at + a.kv.page_bytes, now.n_valid[p], &j);
        }
    }
    clear_sums<HD, I8>(&sums);
    clear_fold<HD>(shared);
    lv_wait_previous();
    load_query<HD, I8>(shared, &a, &j);
    if (j.split1 == j.n_splits) {
        new_token<HD, I8>(&a, &j, shared);
    }
    __syncthreads();
    do {
        const int token0 = (j.page0 + page) * LV_KV_BLOCK;
        int n_tokens = 0;
        float score[S::PAGES][4];
#pragma unroll
        for (int p = 0; p < S::PAGES; p++) {
            if (now.n_valid[p] > 0) {
                scores_of<HD, I8>(score[p], &keys[p], shared->q, a.scale, j.lane);
                n_tokens += now.n_valid[p];
            }
        }
        page = min(page + S::PAGES, split_end);
        const bool ends_split = page == split_end;
        split_end = ends_split ? min(split_end + j.split_pages, end) : split_end;
        plan_step<HD, I8>(&next, page, split_end, &list, &j);
#pragma unroll
        for (int p = 0; p < S::PAGES; p++) {
            if (next.n_valid[p] > 0) {
                load_keys<HD, I8>(&keys[p], lv_kv_page(&a.kv, next.block[p], j.kv_head), &j);
            }
        }
        softmax_step<HD, I8>(score, &sums, token0, n_tokens, &j);
#pragma unroll
        for (int p = 0; p < S::PAGES; p++) {
            if (now.n_valid[p] > 0) {
                add_values<HD, I8>(&sums, score[p], &values[p]);
            }
            if (next.n_valid[p] > 0) {
                const uint8_t *at = lv_kv_page(&a.kv, next.block[p], j.kv_head);
                load_values<HD, I8>(&values[p], at + a.kv.page_bytes, next.n_valid[p], &j);
            }
        }
        now = next;
        if (ends_split) {
            finish_split<HD, I8>(&a, &j, split++, &sums, shared);
        }
    } while (page < end);
    if (j.n_workers > 1 && arrive<HD>(&a, &j, shared)) {
        join_splits<HD>(&a, &j, shared);
    }
}

template <int HD, bool I8>
static lv_status launch(lv_cuda *cuda, const decode_args *args, int n_units, int n_single) {
    int n_workers = 1;
    while (n_units * n_single * n_workers < 3 * cuda->n_sms && n_workers < args->splits.most) {
        n_workers *= 2;
    }
    n_workers = n_workers < args->splits.most ? n_workers : args->splits.most;
    return lv_launch(cuda, "decode attention", decode<HD, I8>,
                     dim3((unsigned)n_units, (unsigned)n_single, (unsigned)n_workers),
                     dim3(THREADS), sizeof(decode_shared<HD>), *args);
}

lv_status lv_cuda_decode_attention(lv_cuda *cuda, const lv_device_batch *batch,
                                   const lv_attention_shape *shape, const void *q,
                                   const void *kv_new, const lv_kv *kv, int layer, void *out) {
    const int hd = shape->head_dim, group = shape->n_heads / shape->n_kv_heads;
    if (batch->n_single == 0) {
        return LV_OK;
    }
    if (!lv_fast_head_dim(hd)) {
        LV_TRY(lv_kv_store(cuda, batch, kv_new, kv, layer, true));
        return lv_any_attention(cuda, batch, shape, q, kv, layer, true, out);
    }
    decode_args args = {};
    args.q = (const __half *)q;
    args.kv_new = (const __half *)kv_new;
    args.out = (__half *)out;
    args.kv = lv_kv_at(kv, layer);
    args.arrived = kv->arrived;
    args.n_heads = shape->n_heads;
    args.group = group;
    args.units_per_head = (group + HEADS - 1) / HEADS;
    args.window = shape->window;
    args.table_stride = batch->table_stride;
    args.scale = LV_LOG2E / sqrtf((float)hd);
    args.single = batch->single;
    args.token_start = batch->token_start;
    args.kv_length = batch->kv_length;
    args.block_table = batch->block_table;
    args.splits = kv->splits;
    // Parts are left where a unit has several workers: only where the units are few (launch).
    const int n_units = shape->n_kv_heads * args.units_per_head;
    if (n_units * batch->n_single < 3 * cuda->n_sms) {
        const size_t n_parts = (size_t)(n_units * batch->n_single) * args.splits.most;
        const size_t heads = group < HEADS ? (size_t)group : HEADS;
        const size_t state_bytes = n_parts * HEADS * sizeof(float2);
        void *scratch;
        LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_SPLITS,
                               state_bytes + n_parts * heads * (size_t)hd * sizeof(float),
                               &scratch));
        args.part_state = (float2 *)scratch;
        args.part = (float *)((uint8_t *)scratch + state_bytes);
    }
    const bool i8 = kv->dtype == LV_I8;
    switch (hd) {
    case 64:
        return (i8 ? launch<64, true> : launch<64, false>)(cuda, &args, n_units, batch->n_single);
    case 80:
        return (i8 ? launch<80, true> : launch<80, false>)(cuda, &args, n_units, batch->n_single);
    case 96:
        return (i8 ? launch<96, true> : launch<96, false>)(cuda, &args, n_units, batch->n_single);
    default:
        return (i8 ? launch<128, true> : launch<128, false>)(cuda, &args, n_units, batch->n_single);
    }
}
