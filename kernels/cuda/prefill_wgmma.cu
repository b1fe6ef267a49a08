// Attention of many query rows by Hopper's wgmma: new tokens over the paged cache, heads of 128,
// and images, heads of 64.
//
//   out[i] = sum_t softmax_t(q[i] k[t] / sqrt(HD)) v[t],  t up to token i, or all of an image
//
// Paged: q, out f16 [n_tokens, n_heads 128]; pages as in attention.cuh. Images: qkv f16 [n, n_rows,
// 3 n_heads 64], out f16 [n, n_rows, n_heads 64]. A block is a tile of query rows of one head:
// warpgroups of 64 rows each that multiply, two for tokens and three for images (of whose 577 rows
// tiles of 192 leave one over, of 128 half a tile), and one that feeds them with pages of 64 tokens
// through a ring of five stages, so that each page crosses the L2 once for all its rows.
//
//   feeding   stage <- keys and values as f16: copied by cp.async, or unpacked from i8 to halves q
//   the rest  scores [64, 64] of the next page = Q K^T           wgmma, Q in registers, on the way
//             out [64, HD] += P V of the page before             wgmma, P in registers, on the way
//             softmax of this page's scores with the running maximum; P as f16      during
//
// A stage holds keys and values as panels of [64 tokens, 64 dimensions]: rows of 128 bytes whose
// 16-byte chunks are mixed (chunk ^ row % 8), wgmma's 128-byte swizzle. Tokens beyond the last are
// zeros, for what a page held before may be NaN. Softmax and masks are prefill_tile.cuh's: a row
// does not depend on the tile it is in.
//
// 7B, 2,204 new tokens: 40 GFLOP a layer (causal half), 53 us at 761 TFLOP/s; 78 million
// exponentials. The roof is the tensor cores. CLIP, 5 tiles: 6.8 GFLOP, 27 million exponentials, of
// which a multiprocessor does 16 a clock: 7 us, as the tensor cores' 9. One block a multiprocessor:
// 384 threads and 198 KiB of shared memory, 512 and 109 KiB.
//
// measured (H200, test_gpu_attention --bench quick): 2,204 tokens, f16 109 us a layer (366
// TFLOP/s), i8 134 us (298); mma.sync (prefill_attention.cu): 213 and 233. The values of a page
// added before the softmax of the next instead of beside it: f16 128 us. CLIP, 5 and 25 tiles: 34
// and 146 us a layer (mma.sync 52 and 206, cuDNN 33 and 120); tiles of 128 rows: the same.
#include "kernels/cuda/prefill_tile.cuh"
#include "kernels/cuda/wgmma.cuh"

#define STAGES 5
#define FEEDERS 128        // threads that fill the ring
#define PANEL (PAGE * 128) // bytes: 64 tokens, 64 dimensions
#define AHEAD 2            // pages on their way while an earlier one is handed over
#define ALIGN 1024         // of what is mixed
#define IMAGE_WARPS 12     // warps of rows of a tile of an image

// Rows hold the page before and this one while they wait for the next, which is handed over when
// AHEAD further ones are on their way.
static_assert(STAGES >= AHEAD + 3, "rows and feeders would wait for each other");

// Shared memory of a block: heads of HEAD_DIM, WARPS of 16 rows each.
template <int HEAD_DIM, int WARPS> struct wgmma_shared {
    static constexpr int HD = HEAD_DIM, ROW_WARPS = WARPS, ROWS = 16 * WARPS;
    static constexpr int THREADS = 32 * WARPS + FEEDERS;
    static constexpr int CHUNKS = HD / 8; // of a row of halves
    // Registers of a thread once roles are shared out: all have EVEN at first, and nobody can take
    // what others have not left.
    static constexpr int EVEN = 65536 / THREADS / 8 * 8;
    static constexpr int ROW_REGISTERS = WARPS == 8 ? 216 : 160;
    static constexpr int FEEDER_REGISTERS = WARPS == 8 ? 72 : 32;
    static_assert(32 * WARPS * ROW_REGISTERS + FEEDERS * FEEDER_REGISTERS <= THREADS * EVEN,
                  "more registers than the block has");

    uint8_t keys[STAGES][HD / 64 * PANEL], values[STAGES][HD / 64 * PANEL];
    __half q[ROWS][tile_shape<HD, false>::STRIDE]; // then the block's output
    float key_scale[STAGES][PAGE];
    float value_scale[STAGES][PAGE]; // boosted; 0 beyond the last token
};
typedef wgmma_shared<128, 8> token_shared;          // of new tokens
typedef wgmma_shared<64, IMAGE_WARPS> image_shared; // of images

// Builds for sm_90a have wgmma. Others leave the kernel empty, without barriers in static shared
// memory, by which lv_wgmma_present knows.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// --- barriers -----------------------------------------------------------------------------------

// A stage is full once all feeders have said so, and empty once all warps of rows have.
typedef struct ring_barriers {
    uint64_t full[STAGES], empty[STAGES];
} ring_barriers;

__device__ static inline uint32_t address_of(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

__device__ static inline void barrier_init(uint64_t *barrier, int n_arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address_of(barrier)), "r"(n_arrivals)
                 : "memory");
}

__device__ static inline void barrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address_of(barrier)) : "memory");
}

// Waits for the end of the barrier's phase of use n (counted from 0) of its stage.
__device__ static inline void barrier_wait(uint64_t *barrier, int n) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(address_of(barrier)),
                 "r"(n & 1)
                 : "memory");
}

// What this thread wrote to shared memory is for wgmma to read.
__device__ static inline void show_wgmma() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- feeding ------------------------------------------------------------------------------------

// Where a chunk of a row of halves is in a page's keys or values.
__device__ static inline int place(int row, int chunk) {
    return chunk / 8 * PANEL + row * 128 + ((chunk ^ row) & 7) * 16;
}

template <int N> __device__ static inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ static inline const uint8_t *page_at(const tile_args *a, const tile *b, int page,
                                                int last) {
    return page_of(a, b, min(page, last));
}

__device__ static inline void hand_over(ring_barriers *ring, int n) {
    show_wgmma();
    barrier_arrive(&ring->full[n % STAGES]);
}

// f16: pages first .. last, by copies.
template <class S>
__device__ static inline void feed_halves(const tile_args *a, const tile *b, int first, int last,
                                          S *shared, ring_barriers *ring) {
    constexpr int CHUNKS = S::CHUNKS;
    const int thread = threadIdx.x - 32 * S::ROW_WARPS, chunk = thread % CHUNKS;
    const uint8_t *from = page_at(a, b, first, last);
    int n = 0;
    for (int page = first; page <= last; page++, n++) {
        const int s = n % STAGES, n_valid = b->length - page * PAGE;
        const uint8_t *next = page_at(a, b, page + 1, last);
        if (n >= STAGES) {
            barrier_wait(&ring->empty[s], n / STAGES - 1);
        }
#pragma unroll
        for (int i = 0; i < PAGE / (FEEDERS / CHUNKS); i++) {
            const int row = thread / CHUNKS + i * (FEEDERS / CHUNKS), at = place(row, chunk);
            const uint8_t *source = from + (row < n_valid ? row : 0) * a->row_bytes + chunk * 16;
            lv_copy_chunk(shared->keys[s] + at, source, row >= n_valid);
            lv_copy_chunk(shared->values[s] + at, source + a->value_bytes, row >= n_valid);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (n >= AHEAD) {
            wait_copies<AHEAD>();
            hand_over(ring, n - AHEAD);
        }
        from = next;
    }
    wait_copies<0>();
    for (int i = max(n - AHEAD, 0); i < n; i++) {
        hand_over(ring, i);
    }
}

// A feeder's part of the keys or values of an i8 page: half a row; and a token's scale.
template <class S> struct raw_rows {
    lv_chunk chunk[S::HD / 2 / 16];
    float scale;
};

template <class S> __device__ static inline void load_raw(raw_rows<S> *raw, const uint8_t *rows) {
    constexpr int HD = S::HD;
    const int thread = threadIdx.x - 32 * S::ROW_WARPS;
#pragma unroll
    for (int i = 0; i < HD / 2 / 16; i++) {
        raw->chunk[i] = *(const lv_chunk *)(rows + (i * FEEDERS + thread) * 16);
    }
    raw->scale = ((const float *)(rows + PAGE * HD))[thread % PAGE];
}

template <class S> __device__ static inline void unpack_raw(const raw_rows<S> *raw, uint8_t *to) {
    constexpr int HD = S::HD;
    const int thread = threadIdx.x - 32 * S::ROW_WARPS;
#pragma unroll
    for (int i = 0; i < HD / 2 / 16; i++) {
        const int row = (i * FEEDERS + thread) / (HD / 16), chunk = thread % (HD / 16) * 2;
        lv_chunk halves[2];
#pragma unroll
        for (int w = 0; w < 4; w++) {
            halves[w / 2].word[w % 2 * 2] = lv_unpack_i8(raw->chunk[i].word[w], false);
            halves[w / 2].word[w % 2 * 2 + 1] = lv_unpack_i8(raw->chunk[i].word[w], true);
        }
        *(lv_chunk *)(to + place(row, chunk)) = halves[0];
        *(lv_chunk *)(to + place(row, chunk + 1)) = halves[1];
    }
}

// i8: pages first .. last, by way of registers, which hold the next page while it waits.
template <class S>
__device__ static inline void feed_bytes(const tile_args *a, const tile *b, int first, int last,
                                         S *shared, ring_barriers *ring) {
    const int thread = threadIdx.x - 32 * S::ROW_WARPS;
    const uint8_t *next = page_at(a, b, first, last);
    raw_rows<S> keys, values;
    load_raw(&keys, next);
    load_raw(&values, next + a->value_bytes);
    for (int page = first, n = 0; page <= last; page++, n++) {
        const int s = n % STAGES;
        next = page_at(a, b, page + 1, last);
        if (n >= STAGES) {
            barrier_wait(&ring->empty[s], n / STAGES - 1);
        }
        if (thread < PAGE) {
            const bool is_token = page * PAGE + thread < b->length;
            shared->key_scale[s][thread] = keys.scale;
            shared->value_scale[s][thread] = is_token ? values.scale * LV_I8_BOOST : 0.0f;
        }
        unpack_raw(&keys, shared->keys[s]);
        load_raw(&keys, next);
        unpack_raw(&values, shared->values[s]);
        load_raw(&values, next + a->value_bytes);
        hand_over(ring, n);
    }
}

// --- wgmma --------------------------------------------------------------------------------------

// Rows of 128 bytes, mixed; groups of 8 rows are 1,024 bytes apart. `leading` is the distance of
// panels where rows run along k (values).
__device__ static inline uint64_t descriptor(const void *shared, int leading) {
    const uint32_t address = address_of(shared);
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// --- a warpgroup of rows ------------------------------------------------------------------------

// What it works with, stages counted from the block's first page.
template <class S> struct rows_job {
    const tile_args *a;
    const tile *b;
    S *shared;
    ring_barriers *ring;
    int first; // page of stage 0
    uint32_t q[S::HD / 16][4];
};

typedef float page_scores[1][PAGE / 8][4];

// Begins to multiply by the keys of the n-th page.
template <class S>
__device__ static inline void begin_scores(page_scores score, const rows_job<S> *r, int n) {
    const uint64_t keys = descriptor(r->shared->keys[n % STAGES], 16);
    barrier_wait(&r->ring->full[n % STAGES], n / STAGES);
    lv_wgmma_begin();
#pragma unroll
    for (int i = 0; i < S::HD / 16; i++) {
        lv_wgmma<8, false>(score[0], r->q[i], keys + (uint64_t)((i / 4 * PANEL + i % 4 * 32) >> 4),
                           i > 0);
    }
    lv_wgmma_commit();
}

template <class S> __device__ static inline void release_stage(const rows_job<S> *r, int n) {
    if (r->b->lane == 0) {
        barrier_arrive(&r->ring->empty[n % STAGES]);
    }
}

// Probabilities of the n-th page, as operands.
typedef uint32_t page_weights[PAGE / 16][4];

// Begins to add the values of the n-th page.
template <class S>
__device__ static inline void begin_values(tile_sums<S::HD, 1> *sums, const page_weights p,
                                           const rows_job<S> *r, int n) {
    const uint64_t values = descriptor(r->shared->values[n % STAGES], PANEL);
    lv_wgmma_begin();
#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
        const uint64_t tokens = values + (uint64_t)(k * 16 * 128 >> 4);
        if constexpr (S::HD == 64) {
            lv_wgmma<8, true>(sums->out[0], p[k], tokens, true);
        } else {
            lv_wgmma<16, true>(sums->out[0], p[k], tokens, true);
        }
    }
    lv_wgmma_commit();
}

// The n-th page, whose scores are there: while its softmax runs, the page before adds its values
// (ADD) and the next one's scores are multiplied (MORE).
template <bool I8, bool ADD, bool MORE, class S>
__device__ static inline void do_page(page_scores score, page_scores next, page_weights p,
                                      tile_sums<S::HD, 1> *sums, const rows_job<S> *r, int n) {
    constexpr int HD = S::HD;
    const int s = n % STAGES;
    float factor[1][2];
    if (MORE) {
        begin_scores(next, r, n + 1);
    }
    if (ADD) {
        begin_values(sums, p, r, n - 1);
    }
    scale_and_mask<1, I8>(score, r->b, r->first + n, r->shared->key_scale[s]);
    const bool grew = softmax_page<HD, 1>(score, sums, r->a->scale, factor);
    lv_wgmma_wait();
    if (MORE) {
        lv_wgmma_settle<PAGE / 8>(next[0]);
    }
    if (ADD) {
        lv_wgmma_settle<HD / 8>(sums->out[0]);
        release_stage(r, n - 1);
        if (grew) {
            rescale<HD, 1>(sums, factor);
        }
    }
#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const int tile = 2 * k + w / 2;
            float2 scale = make_float2(1, 1);
            if (I8) {
                scale = *(const float2 *)&r->shared->value_scale[s][8 * tile + 2 * r->b->t];
            }
            p[k][w] = lv_pack(score[0][tile][w % 2 * 2] * scale.x,
                              score[0][tile][w % 2 * 2 + 1] * scale.y);
        }
    }
}

// The warp's rows of Q -> shared memory -> operands.
template <class S> __device__ static inline void load_query(rows_job<S> *r) {
    constexpr int HD = S::HD, CHUNKS = S::CHUNKS;
    const tile *b = r->b;
    const int row0 = b->warp * 16;
    for (int i = b->lane; i < 16 * CHUNKS; i += 32) {
        const int row = row0 + i / CHUNKS, chunk = i % CHUNKS;
        const bool zero = row >= b->n_rows;
        const __half *from = r->a->q + (size_t)(b->row0 + (zero ? 0 : row)) * r->a->q_stride +
                             b->head * HD + chunk * 8;
        lv_copy_chunk(&r->shared->q[row][chunk * 8], from, zero);
    }
    lv_copies_wait();
    __syncwarp();
    const int matrix = b->lane / 8;
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
        lv_ldmatrix(r->q[i],
                    &r->shared->q[row0 + matrix % 2 * 8 + b->lane % 8][matrix / 2 * 8 + 16 * i]);
    }
    __syncwarp(); // the output comes to the same place
}

// Rows 64 w .. 64 w + 63 of the tile: pages that none of them sees are let go.
template <bool I8, class S> __device__ static inline void do_rows(rows_job<S> *r, int last) {
    constexpr int HD = S::HD;
    const tile *b = r->b;
    const int row0 = b->warp / 4 * 64, end = min(row0 + 64, b->n_rows);
    const int n_pages = last - r->first + 1;
    int n = 0, n_last = -1;
    tile_sums<HD, 1> sums = {};
    page_scores even, odd;
    page_weights p;
    sums.max[0][0] = sums.max[0][1] = -INFINITY;
    load_query(r);
    if (row0 < b->n_rows) {
        n_last = (b->last0 + (end - 1) * b->causal) / PAGE - r->first;
        const int n_first = lv_first_seen(b->last0 + row0 * b->causal, b->window) / PAGE - r->first;
        for (; n < n_first; n++) {
            barrier_wait(&r->ring->full[n % STAGES], n / STAGES);
            release_stage(r, n);
        }
        begin_scores(even, r, n);
        lv_wgmma_wait();
        lv_wgmma_settle<PAGE / 8>(even[0]);
        if (n == n_last) {
            do_page<I8, false, false>(even, odd, p, &sums, r, n);
        } else {
            do_page<I8, false, true>(even, odd, p, &sums, r, n++);
            while (true) {
                if (n == n_last) {
                    do_page<I8, true, false>(odd, even, p, &sums, r, n);
                    break;
                }
                do_page<I8, true, true>(odd, even, p, &sums, r, n++);
                if (n == n_last) {
                    do_page<I8, true, false>(even, odd, p, &sums, r, n);
                    break;
                }
                do_page<I8, true, true>(even, odd, p, &sums, r, n++);
            }
        }
        begin_values(&sums, p, r, n);
        lv_wgmma_wait();
        lv_wgmma_settle<HD / 8>(sums.out[0]);
        release_stage(r, n++);
    }
    for (; n < n_pages; n++) {
        barrier_wait(&r->ring->full[n % STAGES], n / STAGES);
        release_stage(r, n);
    }
    if (row0 < b->n_rows) {
        write_rows<HD, 1, I8>(r->a, b, &sums, r->shared->q[0]);
    }
}

#endif // wgmma

template <class S, bool I8>
__global__ void __launch_bounds__(S::THREADS, 1) attend_wgmma(const __grid_constant__ tile_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __shared__ ring_barriers ring;
    S *shared = (S *)(lv_shared + (ALIGN - address_of(lv_shared) % ALIGN));
    tile b;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(&ring.full[s], FEEDERS);
            barrier_init(&ring.empty[s], S::ROW_WARPS);
        }
    }
    lv_launch_next();
    lv_wait_previous();
    if (!find_tile<S::ROWS>(&a, &b)) {
        return;
    }
    __syncthreads();
    const int first = lv_first_seen(b.last0, b.window) / PAGE;
    const int last = (b.last0 + (b.n_rows - 1) * b.causal) / PAGE;
    if (threadIdx.x >= 32 * S::ROW_WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::FEEDER_REGISTERS));
        if (I8) {
            feed_bytes(&a, &b, first, last, shared, &ring);
        } else {
            feed_halves(&a, &b, first, last, shared, &ring);
        }
    } else {
        rows_job<S> r = {&a, &b, shared, &ring, first, {}};
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::ROW_REGISTERS));
        do_rows<I8>(&r, last);
    }
#else
    (void)a;
#endif
}

// --- launchers ----------------------------------------------------------------------------------

bool lv_wgmma_present(const lv_cuda *cuda) {
    cudaFuncAttributes attributes;
    return cuda->sm == 90 && cuda->shared_bytes >= sizeof(token_shared) + ALIGN &&
           cudaFuncGetAttributes(&attributes, attend_wgmma<token_shared, false>) == cudaSuccess &&
           attributes.sharedSizeBytes > 0;
}

template <class S, bool I8>
static lv_status launch(lv_cuda *cuda, const tile_args *args, dim3 grid) {
    return lv_launch(cuda, "attention", attend_wgmma<S, I8>, grid, dim3(S::THREADS),
                     sizeof(S) + ALIGN, *args);
}

lv_status lv_wgmma_attention(lv_cuda *cuda, const tile_args *args, int n_heads, bool is_i8) {
    const dim3 grid((unsigned)n_heads, (unsigned)args->n_tiles);
    return is_i8 ? launch<token_shared, true>(cuda, args, grid)
                 : launch<token_shared, false>(cuda, args, grid);
}

lv_status lv_wgmma_image_attention(lv_cuda *cuda, const tile_args *args, int n_heads,
                                   int n_images) {
    const int n_tiles = (args->n_rows + image_shared::ROWS - 1) / image_shared::ROWS;
    return launch<image_shared, false>(
        cuda, args, dim3((unsigned)n_heads, (unsigned)n_tiles, (unsigned)n_images));
}
