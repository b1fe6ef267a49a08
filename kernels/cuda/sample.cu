// Logits -> tokens, as kernels/cpu/sample.c defines it: a block of 1024 threads a row.
//
// Nothing is sorted but the last 1024 candidates at most: the set that top-k or top-p keeps is a
// prefix of the tokens in order of their ranks (sample.cuh), and its end is found by halving.
// Every sum has a fixed order, so that a draw can be repeated to the bit.
#include "kernels/cuda/sample.cuh"
#include "kernels/cuda/sample.h"

#define THREADS 1024
#define WARPS 32
#define N_SORTED THREADS
#define ALL_LANES 0xffffffffu

typedef struct shared_state {
    float2 table[LV_EXP_TABLE];
    uint64_t sorted[N_SORTED];
    uint64_t ranks[WARPS];
    double sums[WARPS], sum;
    int counts[WARPS], count;
    int n_sorted, token;
    float raw; // the drawn token's logit before penalties
} shared_state;

// --- over the block -----------------------------------------------------------------------------
//
// Two barriers each: the second one keeps `ranks`, `sums` and `counts` until all have read them.

__device__ static inline uint64_t block_max(uint64_t value, shared_state *s) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const uint64_t other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
    }
    if (threadIdx.x % 32 == 0) {
        s->ranks[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = s->ranks[threadIdx.x % 32];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const uint64_t other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
    }
    __syncthreads();
    return value;
}

__device__ static inline double warp_sum(double value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, step);
    }
    return value;
}

// The sum of all threads' `value` and, in *count, of their *count. Doubles are slow on most GPUs:
// one warp adds up the warps' sums.
__device__ static inline double block_sum(double value, int *count, shared_state *s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int n = *count;
    value = warp_sum(value);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        n += __shfl_xor_sync(ALL_LANES, n, step);
    }
    if (lane == 0) {
        s->sums[warp] = value;
        s->counts[warp] = n;
    }
    __syncthreads();
    if (warp == 0) {
        value = warp_sum(s->sums[lane]);
        n = s->counts[lane];
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            n += __shfl_xor_sync(ALL_LANES, n, step);
        }
        if (lane == 0) {
            s->sum = value;
            s->count = n;
        }
    }
    __syncthreads();
    *count = s->count;
    return s->sum;
}

// The sum over this lane and those before it.
__device__ static inline double warp_scan(double value) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const double before = __shfl_up_sync(ALL_LANES, value, step);
        value += lane >= step ? before : 0.0;
    }
    return value;
}

// --- the largest logit --------------------------------------------------------------------------

typedef struct best {
    float value;
    int id;
} best;

__device__ static inline void better(best *b, float value, int id) {
    if (value > b->value) {
        b->value = value;
        b->id = id;
    }
}

// The largest of x [vocab] and its lowest id; *finite whether all are. Eight 16-byte loads a thread
// are under way at a time where the vocabulary is a multiple of four: LLaVA's 32064 in one go.
__device__ static best largest(const float *x, int vocab, shared_state *s, bool *finite) {
    best b = {-INFINITY, 0};
    float zero = 0; // NaN as soon as something is not finite
    if (vocab % 4 == 0) {
        const float4 *units = (const float4 *)x;
        const int n = vocab / 4;
        for (int first = threadIdx.x; first < n; first += 8 * THREADS) {
            float4 v[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int i = first + j * THREADS;
                v[j] = i < n ? units[i] : make_float4(0, 0, 0, 0);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int id = 4 * (first + j * THREADS);
                if (id < vocab) {
                    better(&b, v[j].x, id);
                    better(&b, v[j].y, id + 1);
                    better(&b, v[j].z, id + 2);
                    better(&b, v[j].w, id + 3);
                }
                zero = __fmaf_rn(v[j].x, 0.0f, __fmaf_rn(v[j].y, 0.0f, zero));
                zero = __fmaf_rn(v[j].z, 0.0f, __fmaf_rn(v[j].w, 0.0f, zero));
            }
        }
    } else {
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            better(&b, x[i], i);
            zero = __fmaf_rn(x[i], 0.0f, zero);
        }
    }
    const uint64_t rank = block_max((uint64_t)lv_key(b.value) << 32 | (uint32_t)~b.id, s);
    *finite = !__syncthreads_or(!(zero == 0.0f));
    b.value = lv_key_value((uint32_t)(rank >> 32));
    b.id = (int)~(uint32_t)rank;
    return b;
}

// Into *out the first value that is not finite.
__device__ static void report_not_finite(const float *x, int vocab, shared_state *s,
                                         lv_sample_result *out, int32_t *token) {
    uint64_t first = 0;
    for (int i = threadIdx.x; i < vocab && first == 0; i += THREADS) {
        first = isfinite(x[i]) ? 0 : (uint32_t)~i;
    }
    const int id = (int)~(uint32_t)block_max(first, s);
    if (threadIdx.x == 0) {
        *out = {id, x[id], LV_SAMPLE_NOT_FINITE, 0};
        *token = 0; // the next pass may embed it before the host knows
    }
}

// log of the sum of exp(x - max).
__device__ static float log_sum(const float *x, int vocab, float max, shared_state *s) {
    float sum = 0;
    int count = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        sum += __expf(x[i] - max);
    }
    const double all = block_sum((double)sum, &count, s);
    return threadIdx.x == 0 ? (float)log(all) : 0.0f;
}

// Greedy rows: the token and, where it is wanted, its log-softmax.
//
// logits f32 [n_rows, vocab]. A decoding step's last kernel: 128 KB a row of LLaVA, which one
// multiprocessor reads from the L2 cache in about a microsecond at 64 bytes a clock; then two
// reductions. More blocks a row would have to meet once more, which costs what they would gain.
__global__ void __launch_bounds__(THREADS)
    greedy_kernel(const float *logits, int vocab, const __grid_constant__ lv_sample_wants wants,
                  lv_sample_result *results, int32_t *tokens) {
    __shared__ shared_state s;
    const float *x = logits + (size_t)blockIdx.x * vocab;
    const bool wants_logprob = wants.bits[blockIdx.x / 32] >> blockIdx.x % 32 & 1;
    bool finite;
    lv_wait_previous();
    lv_launch_next();
    const best b = largest(x, vocab, &s, &finite);
    if (!finite) {
        report_not_finite(x, vocab, &s, &results[blockIdx.x], &tokens[blockIdx.x]);
        return;
    }
    const float logprob = wants_logprob ? -log_sum(x, vocab, b.value, &s) : 0.0f;
    if (threadIdx.x == 0) {
        tokens[blockIdx.x] = b.id;
        results[blockIdx.x] = {b.id, logprob, LV_SAMPLE_OK, 0};
    }
}

// --- processors ---------------------------------------------------------------------------------

// Each operation rounded by itself, as on the CPU.
__device__ static inline float penalised(float x, int count, const lv_sample_row *row) {
    x = x > 0 ? __fdiv_rn(x, row->repetition) : __fmul_rn(x, row->repetition);
    if (count > 0) {
        x = __fsub_rn(x, __fadd_rn(__fmul_rn(row->frequency, (float)count), row->presence));
    }
    return x;
}

// x -> v with penalties, -inf where a token is not allowed.
__device__ static void process(const float *x, int vocab, const lv_sample_row *row,
                               const uint32_t *lists, float *v) {
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        v[i] = x[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < row->n_seen; i += THREADS) {
        const int id = (int)lists[row->seen_at + i];
        v[id] = penalised(x[id], (int)lists[row->seen_at + row->n_seen + i], row);
    }
    __syncthreads();
    for (int i = threadIdx.x; row->has_allowed && i < vocab; i += THREADS) {
        if (!(lists[row->allowed_at + i / 32] >> i % 32 & 1)) {
            v[i] = -INFINITY;
        }
    }
    __syncthreads();
}

// --- top-k and top-p ----------------------------------------------------------------------------

// Logits over the temperature, and how they are ranked.
typedef struct row_values {
    const float *v; // [vocab]
    int vocab, id_bits;
    float max;
} row_values;

// exp(v - max), 0 where that is too little to count.
__device__ static inline float2 exp_of(const row_values *r, float v, const shared_state *s) {
    const float d = v - r->max;
    return d >= LV_EXP_LEAST ? lv_exp_pair(d, s->table) : make_float2(0, 0);
}

// The weight of all tokens of rank `from` or more, a token weighing exp(v - max) (MASS) or 1;
// *count: how many of those have less than rank `to`.
template <bool MASS>
__device__ static double weigh(const row_values *r, uint64_t from, uint64_t to, shared_state *s,
                               int *count) {
    const float least = lv_key_value((uint32_t)(from >> r->id_bits));
    lv_sum sum = {0, 0};
    int n = 0, n_all = 0;
    for (int i = threadIdx.x; i < r->vocab; i += THREADS) {
        const float v = r->v[i];
        if (v >= least) { // most are not: the rest is skipped by whole warps
            const uint64_t rank = lv_rank(v, i, r->id_bits);
            if (rank >= from) {
                n += rank < to;
                n_all++;
                if (MASS) {
                    const float2 p = exp_of(r, v, s);
                    lv_add(&sum, p.x);
                    sum.y += p.y;
                }
            }
        }
    }
    *count = n;
    return block_sum(MASS ? (double)sum.x + (double)sum.y : (double)n_all, count, s);
}

// The ranks of tokens in [low, high), of which there are n <= N_SORTED -> s->sorted, greatest
// first. They come in any order; ranks are distinct, so that they end up in one.
__device__ static void sort_candidates(const row_values *r, uint64_t low, uint64_t high, int n,
                                       shared_state *s) {
    const float least = lv_key_value((uint32_t)(low >> r->id_bits));
    int size = 2;
    while (size < n) {
        size *= 2;
    }
    if (threadIdx.x == 0) {
        s->n_sorted = 0;
    }
    if (threadIdx.x < size) {
        s->sorted[threadIdx.x] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < r->vocab; i += THREADS) {
        if (r->v[i] >= least) {
            const uint64_t rank = lv_rank(r->v[i], i, r->id_bits);
            if (rank >= low && rank < high) {
                s->sorted[atomicAdd(&s->n_sorted, 1)] = rank;
            }
        }
    }
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) { // bitonic
        for (int stride = run / 2; stride > 0; stride /= 2) {
            if (threadIdx.x < size / 2) {
                const int i = threadIdx.x / stride * 2 * stride + threadIdx.x % stride;
                const uint64_t a = s->sorted[i], b = s->sorted[i + stride];
                if ((a < b) == ((i & run) == 0)) {
                    s->sorted[i] = b;
                    s->sorted[i + stride] = a;
                }
            }
            __syncthreads();
        }
    }
}

// The rank of the first token, greatest rank first, at which the weight of it and all before it
// reaches `goal` > 0. It lies in [low, high), which has n tokens, and none has rank high or more.
//
// The range is halved, each time weighing the row, until N_SORTED tokens are left in it; they are
// sorted and their weights added up in order.
template <bool MASS>
__device__ static uint64_t cut(const row_values *r, uint64_t low, uint64_t high, int n, double goal,
                               shared_state *s) {
    const int thread = threadIdx.x;
    double above = 0; // weight of the tokens of rank high or more
    while (n > N_SORTED) {
        int count;
        const uint64_t middle = lv_between(low, high, r->id_bits);
        const double weight = weigh<MASS>(r, middle, high, s, &count);
        if (weight >= goal) {
            low = middle;
            n = count;
        } else {
            high = middle;
            above = weight;
            n -= count;
        }
    }
    if (n == 0) { // sums that differ in their last bits can leave nothing
        return low;
    }
    sort_candidates(r, low, high, n, s);
    double weight = 0;
    if (thread < n) {
        const float2 p = exp_of(r, lv_key_value((uint32_t)(s->sorted[thread] >> r->id_bits)), s);
        weight = MASS ? (double)p.x + (double)p.y : 1.0;
    }
    weight = warp_scan(weight);
    if (thread % 32 == 31) {
        s->sums[thread / 32] = weight;
    }
    __syncthreads();
    for (int i = 0; thread < n && i < thread / 32; i++) {
        above += s->sums[i];
    }
    const int n_before = __syncthreads_count(thread < n && above + weight < goal);
    return s->sorted[n_before < n ? n_before : n - 1];
}

// The least rank that top-k and top-p keep.
__device__ static uint64_t least_kept(const row_values *r, const lv_sample_row *row, double total,
                                      float lowest, int n, shared_state *s) {
    const bool use_k = row->top_k > 0 && row->top_k < r->vocab;
    const uint64_t high = (uint64_t)(lv_key(r->max) + 1) << r->id_bits;
    uint64_t low = (uint64_t)lv_key(lowest) << r->id_bits;
    if (use_k && n > row->top_k) {
        low = cut<false>(r, low, high, n, row->top_k, s);
    }
    if (row->top_p > 0 && row->top_p < 1) {
        if (use_k) {
            total = weigh<true>(r, low, high, s, &n);
        }
        low = cut<true>(r, low, high, n, (double)row->top_p * total, s);
    }
    return low;
}

// --- the draw -----------------------------------------------------------------------------------

// The probability, to a factor, of token i: 0 where it is not kept.
__device__ static inline float kept(const row_values *r, int i, uint64_t least, float min_p,
                                    const shared_state *s) {
    const float v = r->v[i];
    if (v < lv_key_value((uint32_t)(least >> r->id_bits)) || lv_rank(v, i, r->id_bits) < least) {
        return 0;
    }
    const float2 p = exp_of(r, v, s);
    return p.x < min_p || (p.x == min_p && p.y < 0) ? 0 : p.x;
}

// Walks the kept tokens in order of their ids until their sum passes u. Each warp has summed up one
// piece of the row; the first warp finds the piece, then the place in it.
__device__ static int walk(const row_values *r, uint64_t least, const lv_sample_row *row, int piece,
                           shared_state *s) {
    const int lane = threadIdx.x % 32;
    const double mine = s->sums[lane], until = warp_scan(mine);
    const double u = lv_philox(row->seed, row->step) * __shfl_sync(ALL_LANES, until, 31);
    const unsigned passed = __ballot_sync(ALL_LANES, mine > 0 && until > u);
    const unsigned any = __ballot_sync(ALL_LANES, mine > 0);
    if (any == 0) {
        return 0;
    }
    const int owner = passed ? __ffs(passed) - 1 : 31 - __clz(any);
    double before = __shfl_sync(ALL_LANES, until - mine, owner);
    int last = 0;
    const int end = min((owner + 1) * piece, r->vocab);
    for (int first = owner * piece; first < end; first += 32) {
        const int i = first + lane;
        const float p = i < end ? kept(r, i, least, row->min_p, s) : 0;
        const unsigned some = __ballot_sync(ALL_LANES, p > 0);
        if (some == 0) {
            continue;
        }
        const double sum = before + warp_scan((double)p);
        const unsigned over = __ballot_sync(ALL_LANES, p > 0 && sum > u);
        if (over) {
            return first + __ffs(over) - 1;
        }
        last = first + 31 - __clz(some);
        before = __shfl_sync(ALL_LANES, sum, 31);
    }
    return last;
}

// from: the processed logits; v: room for them over the temperature, may be the same.
__device__ static int draw(const float *from, const lv_sample_row *row, best top, int vocab,
                           float *v, shared_state *s) {
    const bool use_k = row->top_k > 0 && row->top_k < vocab;
    const bool use_p = row->top_p > 0 && row->top_p < 1;
    const row_values r = {v, vocab, 32 - __clz(vocab), __fdiv_rn(top.value, row->temperature)};
    // All tokens below this together weigh less than what top-p leaves out: the sum is at least 1.
    float lowest = r.max + LV_EXP_LEAST;
    if (use_p && !use_k) {
        lowest = fmaxf(lowest, r.max + logf((1.0f - row->top_p) * 0.5f / (float)vocab));
    }
    lv_sum sum = {0, 0};
    int n = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        const float value = __fdiv_rn(from[i], row->temperature);
        v[i] = value;
        n += value >= lowest;
        if (use_p && !use_k) {
            const float2 p = exp_of(&r, value, s);
            lv_add(&sum, p.x);
            sum.y += p.y;
        }
    }
    uint64_t least = 0;
    if (use_k || use_p) {
        const double total = block_sum((double)sum.x + (double)sum.y, &n, s);
        least = least_kept(&r, row, total, lowest, n, s);
    }
    const int warp = threadIdx.x / 32, piece = (vocab + 1023) / 1024 * 32;
    const int end = min((warp + 1) * piece, vocab);
    __syncthreads(); // v is complete, s->sums has been read
    sum = {0, 0};
    for (int i = warp * piece + threadIdx.x % 32; i < end; i += 32) {
        lv_add(&sum, kept(&r, i, least, row->min_p, s));
    }
    const double mine = warp_sum((double)sum.x + (double)sum.y);
    if (threadIdx.x % 32 == 0) {
        s->sums[warp] = mine;
    }
    __syncthreads();
    if (warp == 0) {
        const int token = walk(&r, least, row, piece, s);
        if (threadIdx.x == 0) {
            s->token = token;
        }
    }
    __syncthreads();
    return s->token;
}

// --- the whole sampler --------------------------------------------------------------------------

__device__ static void sample_row(const float *x, int vocab, const lv_sample_row *row,
                                  const uint32_t *lists, float *v, shared_state *s,
                                  lv_sample_result *result, int32_t *token_out) {
    bool finite, ignored;
    const float *from = x;
    const best raw = largest(x, vocab, s, &finite);
    best top = raw;
    if (!finite) {
        report_not_finite(x, vocab, s, result, token_out);
        return;
    }
    if (row->n_seen > 0 || row->has_allowed) {
        process(x, vocab, row, lists, v);
        from = v;
        top = largest(v, vocab, s, &ignored);
    }
    if (top.value == -INFINITY) {
        if (threadIdx.x == 0) {
            *token_out = 0;
            *result = {0, 0.0f, LV_SAMPLE_NONE, 0};
        }
        return;
    }
    // A temperature too small to divide by is greedy.
    const bool greedy = row->temperature <= 0 || !isfinite(__fdiv_rn(top.value, row->temperature));
    const int token = greedy ? top.id : draw(from, row, top, vocab, v, s);
    const float sum = row->want_logprob ? log_sum(x, vocab, raw.value, s) : 0.0f;
    if (threadIdx.x == 0) {
        *token_out = token;
        *result = {token, row->want_logprob ? x[token] - raw.value - sum : 0.0f, LV_SAMPLE_OK, 0};
    }
}

template <int N> struct sample_rows { lv_sample_row row[N]; };

// Any row. logits f32 [n_rows, vocab] stay as they are; scratch of the same shape takes the
// processed ones, 128 KB a row of LLaVA, which stay in the L1 and L2 caches. A row takes one pass
// to find the largest logit, one to divide by the temperature, for top-p with all exponentials, a
// few to narrow the candidates down and two to draw: each about a microsecond, bound by the
// instructions of one multiprocessor.
template <int N>
__global__ void __launch_bounds__(THREADS)
    sample_kernel(const float *logits, int vocab, const __grid_constant__ sample_rows<N> rows,
                  const uint32_t *lists, float *scratch, lv_sample_result *results,
                  int32_t *tokens) {
    __shared__ shared_state s;
    const size_t at = (size_t)blockIdx.x * vocab;
    if (threadIdx.x < LV_EXP_TABLE) {
        s.table[threadIdx.x] = lv_exp_entry(threadIdx.x);
    }
    lv_wait_previous();
    lv_launch_next();
    sample_row(logits + at, vocab, &rows.row[blockIdx.x], lists, scratch + at, &s,
               &results[blockIdx.x], &tokens[blockIdx.x]);
}

lv_status lv_cuda_sample_greedy(lv_cuda *cuda, const lv_sample_call *c,
                                const lv_sample_wants *wants) {
    return lv_launch(cuda, "sample_greedy", greedy_kernel, dim3(c->n_rows), dim3(THREADS), 0,
                     c->logits, c->vocab, *wants, c->results, c->tokens);
}

template <int N>
static lv_status launch_rows(lv_cuda *cuda, const lv_sample_call *c, const lv_sample_row *rows) {
    sample_rows<N> all = {};
    memcpy(all.row, rows, (size_t)c->n_rows * sizeof *rows);
    return lv_launch(cuda, "sample", sample_kernel<N>, dim3(c->n_rows), dim3(THREADS), 0, c->logits,
                     c->vocab, all, c->lists, c->scratch, c->results, c->tokens);
}

lv_status lv_cuda_sample_rows(lv_cuda *cuda, const lv_sample_call *c, const lv_sample_row *rows) {
    return c->n_rows <= 8 ? launch_rows<8>(cuda, c, rows)
                          : launch_rows<LV_SAMPLE_ROWS>(cuda, c, rows);
}
