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
// Each warp copies its tokens of the coming pages into a ring of its own in shared memory
// (cp.async, i8 three pages, f16 two) and meets the other warps only when all its pages are done.
// ldmatrix makes operands of the rows, of values transposed; which dimension an operand's row or k
// means is free as long as both operands agree, so that i8 takes one PRMT (with 0x6400) and one
// subtraction a word to become halves: k 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of the scores' steps are
// dimensions 4 t .. 4 t + 3, rows g and g + 8 of the sums are dimensions 2 g and 2 g + 1 (dim_of).
// P comes out of the scores by a transposition in registers. The keys' scale meets the scores, the
// values' P.
//
// The first copies precede lv_wait_previous(): those pages were written by earlier passes, and the
// copy that brings this pass's batch lies between them and this kernel.
//
// Maxima are rounded up to whole powers of two, so that rescaling is exact: a worker (block) takes
// one or many splits with the same bits. What a split is depends on the sequence's own pages only
// (lv_splits). A warp's sums of the splits are joined in their order, then the four warps'.
//   1 worker    each warp folds its splits in shared memory
//   more        leave the warps' parts in scratch memory; the last to arrive joins them
//
// 7B, context 512, KV16: 8.4 MB a layer, 2.0 us at 4.3 TB/s; B = 32 at 1,024, KV8: 277 MB, 64 us.
// The roof is memory. Issue slots: i8, 16 tokens of 128: 128 to unpack, 16 mma, 17 of copies and
// ldmatrix, about 70 of softmax: 7 a word of 27 at full bandwidth. Shared memory: i8 53 KiB, four
// blocks a multiprocessor; f16 68 KiB, three.
//
// measured (H200, test_gpu_attention --bench quick, launches overlapping): B = 32 at 1,024 KV8 67
// us (4.1 TB/s), KV16 123 us (4.4 TB/s); B = 1 KV8 at 512 / 2,204 / 8,000: 6.1 / 10.4 / 25 us,
// KV16 5.6 / 12.8 / 43 us.
// Tried and slower: the next step's keys and values in registers, with a barrier of the block at
// each split's end (B = 32: KV8 107 us, KV16 171); workers as clusters of eight that join out of
// each other's shared memory (KV8, B = 1 at 2,204: 11.4 us; B = 2 at 1,024: 14.6 us, not 9.7).
#include "kernels/cuda/decode_warp.cuh"

typedef struct decode_args {
    const __half *q, *kv_new;
    __half *out;
    lv_kv_layer kv;
    float *part;        // [units, splits.most, WARPS, heads_of(group), head_dim] sums of splits
    float2 *part_state; // [units, splits.most, WARPS, HEADS] their maximum, sum of probabilities
    int32_t *arrived;   // [units]
    int n_heads, group; // group: query heads of a kv head
    int units_per_head; // blocks of up to 8 query heads that share a kv head
    int window, table_stride;
    float scale; // log2(e) / sqrt(head_dim)
    const int32_t *single, *token_start, *kv_length, *block_table;
    lv_splits splits;
} decode_args;

template <int HD> struct decode_shared {
    float2 state[WARPS][HEADS]; // of the warps' sums over all splits: maximum, probabilities
    float new_score[HEADS], new_value[HD];
    int last;
    // [WARPS, heads_of(group), HD + 4] the warps' sums over all splits; + 4: fewer bank conflicts
    __align__(16) float fold[1];
};

// Query heads that a block may have.
__host__ __device__ static inline int heads_of(int group) {
    return group < HEADS ? group : HEADS;
}

template <int HD>
__device__ static inline float *fold_of(decode_shared<HD> *shared, const decode_args *a, int warp,
                                        int head) {
    return shared->fold + (warp * heads_of(a->group) + head) * (HD + 4);
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

// The new token joins the sums of warp 0.
template <int HD, bool I8>
__device__ static inline void add_new_token(lane_sums<HD> *sums, const job *j,
                                            const decode_shared<HD> *shared) {
    float max[2], p[2];
#pragma unroll
    for (int c = 0; c < 2; c++) {
        const int head = 2 * j->t + c;
        const float score = head < j->n_heads ? shared->new_score[head] : 0.0f;
        max[c] = fmaxf(sums->max[c], ceilf(score));
        p[c] = lv_exp2(score - max[c]);
    }
    raise_max<HD>(sums, max);
#pragma unroll
    for (int c = 0; c < 2; c++) {
        sums->sum[c] += j->g == 0 ? p[c] : 0.0f;
        p[c] *= I8 ? LV_I8_BOOST : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float value = shared->new_value[dim_of<I8>(i, k / 2, j)];
            sums->out[i][k] = fmaf(value, p[k % 2], sums->out[i][k]);
        }
    }
}

// --- the end of a split -------------------------------------------------------------------------

// A split's sums join those of the splits before it. Whoever does it does it by this.
typedef struct joined {
    float max, sum;
} joined;

__device__ static inline float2 join(joined *all, float max, float sum) {
    const float now = fmaxf(all->max, max);
    const float2 factor = make_float2(lv_exp2_whole(all->max - now), lv_exp2_whole(max - now));
    all->max = now;
    all->sum = fmaf(sum, factor.y, all->sum * factor.x);
    return factor;
}

__device__ static inline float join_value(float before, float value, float2 factor) {
    return fmaf(value, factor.y, before * factor.x);
}

// The warp's sums -> its part of the split in scratch memory, or what it has folded so far; and
// cleared.
template <int HD, bool I8>
__device__ static inline void finish_split(const decode_args *a, const job *j, int split,
                                           lane_sums<HD> *sums, joined fold[2],
                                           decode_shared<HD> *shared) {
    const size_t at = ((size_t)j->unit * a->splits.most + split) * WARPS + j->warp;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        const int head = 2 * j->t + c;
        for (int offset = 4; offset < 32; offset *= 2) {
            sums->sum[c] += __shfl_xor_sync(LV_ALL_LANES, sums->sum[c], offset);
        }
        if (j->n_workers > 1) {
            float *to = a->part + (at * heads_of(a->group) + head) * HD;
            if (j->g == 0 && head < j->n_heads) {
                a->part_state[at * HEADS + head] = make_float2(sums->max[c], sums->sum[c]);
            }
#pragma unroll
            for (int i = 0; i < HD / 8; i++) {
                if (head < j->n_heads) {
                    to[dim_of<I8>(i / 2, i % 2, j)] = sums->out[i / 2][i % 2 * 2 + c];
                }
            }
        } else {
            float *to = fold_of<HD>(shared, a, j->warp, head);
            const float2 factor = join(&fold[c], sums->max[c], sums->sum[c]);
#pragma unroll
            for (int i = 0; i < HD / 8; i++) {
                if (head < j->n_heads) {
                    float *x = &to[dim_of<I8>(i / 2, i % 2, j)];
                    *x = join_value(*x, sums->out[i / 2][i % 2 * 2 + c], factor);
                }
            }
            if (j->g == 0) {
                shared->state[j->warp][head] = make_float2(fold[c].max, fold[c].sum);
            }
        }
    }
    clear_sums<HD>(sums);
}

// The block's warps' sums -> out.
template <int HD, bool I8>
__device__ static inline void write_out(const decode_args *a, const job *j,
                                        decode_shared<HD> *shared) {
    __half *to = a->out + ((size_t)a->token_start[j->seq] * a->n_heads + j->head0) * HD;
    __syncthreads();
    for (int i = threadIdx.x; i < j->n_heads * HD; i += THREADS) {
        const int head = i / HD;
        float max = -INFINITY, sum = 0, out = 0;
        for (int w = 0; w < WARPS; w++) {
            max = fmaxf(max, shared->state[w][head].x);
        }
        for (int w = 0; w < WARPS; w++) {
            const float factor = lv_exp2_whole(shared->state[w][head].x - max);
            sum = fmaf(shared->state[w][head].y, factor, sum);
            out = fmaf(fold_of<HD>(shared, a, w, head)[i % HD], factor, out);
        }
        to[i] = __float2half_rn(out / (I8 ? sum * LV_I8_BOOST : sum));
    }
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

// Each warp folds the parts of its own kind, as one worker would have.
template <int HD>
__device__ static inline void join_splits(const decode_args *a, const job *j,
                                          decode_shared<HD> *shared) {
    const int stride = WARPS * heads_of(a->group) * HD;
    const size_t first = (size_t)j->unit * a->splits.most * WARPS + j->warp;
    for (int head = 0; head < j->n_heads; head++) {
        const float2 *state = a->part_state + first * HEADS + head;
        const float *part = a->part + (first * heads_of(a->group) + head) * HD + j->lane * 4;
        float4 out = make_float4(0, 0, 0, 0);
        joined all = {-INFINITY, 0};
#pragma unroll 8
        for (int s = 0; s < j->n_splits; s++) {
            const float2 other = __ldcg(state + (size_t)s * WARPS * HEADS);
            float4 x = out;
            if (j->lane * 4 < HD) {
                x = __ldcg((const float4 *)(part + (size_t)s * stride));
            }
            const float2 factor = join(&all, other.x, other.y);
            out.x = join_value(out.x, x.x, factor);
            out.y = join_value(out.y, x.y, factor);
            out.z = join_value(out.z, x.z, factor);
            out.w = join_value(out.w, x.w, factor);
        }
        if (j->lane * 4 < HD) {
            *(float4 *)(fold_of<HD>(shared, a, j->warp, head) + j->lane * 4) = out;
        }
        if (j->lane == 0) {
            shared->state[j->warp][head] = make_float2(all.max, all.sum);
        }
    }
}

// --- the kernel ---------------------------------------------------------------------------------

// Numbers of a sequence's blocks, 32 at a time in the warp's lanes.
typedef struct block_list {
    const int32_t *table;
    int from, last, numbers;
} block_list;

__device__ static inline int block_at(block_list *list, int page, const job *j) {
    if (page - list->from >= 32) {
        list->from = page;
        list->numbers = list->table[min(page + j->lane, list->last)];
    }
    return __shfl_sync(LV_ALL_LANES, list->numbers, page - list->from);
}

// This block's job; false where it has none. All that it reads was there before the pass began.
__device__ static inline bool find_job(const decode_args *a, job *j, block_list *list) {
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
    list->table = a->block_table + (size_t)j->seq * a->table_stride;
    list->from = 0;
    list->last = a->table_stride - 1;
    list->numbers = list->table[min(j->lane, list->last)];
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

// Begins to fetch the warp's tokens of a page, counted from page0, if there is one.
template <int HD, bool I8>
__device__ static inline void fetch(const decode_args *a, const job *j, block_list *list, int page,
                                    int end, uint8_t *stage) {
    const int at = j->page0 + page;
    if (page < end) {
        fetch_tokens<HD, I8>(stage, lv_kv_page(&a->kv, block_at(list, at, j), j->kv_head),
                             j->n_old - at * LV_KV_BLOCK, j);
    }
    commit_copies();
}

template <int HD, bool I8>
__global__ void __launch_bounds__(THREADS, I8 ? 4 : 3)
    decode(const __grid_constant__ decode_args a) {
    using S = shape_of<HD, I8>;
    constexpr int STAGES = stages_of<I8>(LV_ARCH);
    decode_shared<HD> *shared = (decode_shared<HD> *)(lv_shared + WARPS * STAGES * S::STAGE);
    uint8_t *ring = lv_shared + threadIdx.x / 32 * STAGES * S::STAGE, *stage = ring;
    joined fold[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
    lane_query<HD> query;
    lane_sums<HD> sums;
    job j;
    block_list list;
    lv_launch_next();
    if (!find_job(&a, &j, &list)) {
        return; // without lv_wait_previous(): it touches nothing, and others of this grid wait
    }
    int page = j.split0 * j.split_pages, split = j.split0;
    const int end = min(j.split1 * j.split_pages, j.n_pages);
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        fetch<HD, I8>(&a, &j, &list, page + i, end, ring + i * S::STAGE);
    }
    clear_sums<HD>(&sums);
    for (int i = j.lane; i < heads_of(a.group) * (HD + 4); i += 32) {
        fold_of<HD>(shared, &a, j.warp, 0)[i] = 0;
    }
    __syncwarp();
    lv_wait_previous();
    const size_t row = (size_t)a.token_start[j.seq] * a.n_heads + j.head0 + j.g;
    load_query<HD, I8>(&query, j.g < j.n_heads ? a.q + row * HD : NULL, &j);
    if (j.split1 == j.n_splits) {
        new_token<HD, I8>(&a, &j, shared);
    }
    for (; split < j.split1; split++) {
        const int split_end = min((split + 1) * j.split_pages, end);
        for (; page < split_end; page++) {
            const int token0 = (j.page0 + page) * LV_KV_BLOCK + j.warp * WARP_TOKENS;
            wait_copies<STAGES - 1>();
            __syncwarp();
            if (token0 < j.n_old) {
                float score[4];
                scores_of<HD, I8>(score, stage, &query, a.scale, &j);
                softmax_step<HD>(score, &sums, token0, &j);
                add_values<HD, I8>(&sums, score, stage, &j);
            }
            __syncwarp();
            fetch<HD, I8>(&a, &j, &list, page + STAGES, end, stage);
            stage = stage == ring + (STAGES - 1) * S::STAGE ? ring : stage + S::STAGE;
        }
        if (split == j.n_splits - 1) {
            __syncthreads();
            if (j.warp == 0) {
                add_new_token<HD, I8>(&sums, &j, shared);
            }
        }
        finish_split<HD, I8>(&a, &j, split, &sums, fold, shared);
    }
    if (j.n_workers > 1) {
        if (!arrive<HD>(&a, &j, shared)) {
            return;
        }
        join_splits<HD>(&a, &j, shared);
    }
    write_out<HD, I8>(&a, &j, shared);
}

// Workers of a unit: one where units alone keep two blocks on each multiprocessor, else enough
// for three.
static int workers_of(const lv_cuda *cuda, const decode_args *args, int n_units) {
    int n_workers = 1;
    if (2 * n_units >= 3 * cuda->n_sms) {
        return 1;
    }
    while (n_units * n_workers < 3 * cuda->n_sms && n_workers < args->splits.most) {
        n_workers *= 2;
    }
    return n_workers < args->splits.most ? n_workers : args->splits.most;
}

template <int HD, bool I8>
static lv_status launch(lv_cuda *cuda, const decode_args *args, int n_units, int n_single) {
    const int n_workers = workers_of(cuda, args, n_units * n_single);
    const size_t ring = (size_t)(WARPS * stages_of<I8>(cuda->sm) * shape_of<HD, I8>::STAGE);
    const size_t fold = (size_t)(WARPS * heads_of(args->group) * (HD + 4)) * sizeof(float);
    return lv_launch(cuda, "decode attention", decode<HD, I8>,
                     dim3((unsigned)n_units, (unsigned)n_single, (unsigned)n_workers),
                     dim3(THREADS), ring + sizeof(decode_shared<HD>) + fold, *args);
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
    const int n_units = shape->n_kv_heads * args.units_per_head;
    if (workers_of(cuda, &args, n_units * batch->n_single) > 1) {
        const size_t n_parts = (size_t)(n_units * batch->n_single * WARPS) * args.splits.most;
        const size_t state_bytes = n_parts * HEADS * sizeof(float2);
        void *scratch;
        LV_TRY(lv_cuda_scratch(
            cuda, LV_SCRATCH_SPLITS,
            state_bytes + n_parts * (size_t)(heads_of(group) * hd) * sizeof(float), &scratch));
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
