// Inside of the CPU backend: its structures, its scratch memory, and the kernels that exist once
// for each instruction set.
#ifndef LV_KERNELS_CPU_H
#define LV_KERNELS_CPU_H

#include "kernels/checks.h"

#define LV_CPU_PANEL 64       // outputs of a linear that are computed together
#define LV_CPU_ROWS 192       // rows of x that are computed together
#define LV_INT4_TILE 16       // outputs interleaved in one 64-byte line
#define LV_INT4_MAX_BLOCK 256 // most k that share one activation scale
#define LV_CPU_N_SCRATCH 6

// Instruction sets, each including those before it.
typedef enum lv_cpu_isa { LV_ISA_PORTABLE, LV_ISA_AVX2, LV_ISA_AVX512, LV_ISA_VNNI } lv_cpu_isa;

// AWQ weights in the layout the int4 kernels read (int4.c).
typedef struct lv_int4 {
    int n_out, n_in, group_size;
    int block;        // k that share one activation scale: divides group_size
    int n_tiles;      // ceil(n_out / 16); outputs beyond n_out have scale 0
    uint32_t *q;      // [n_tiles, n_in / 8, 16]
    uint16_t *scales; // [n_tiles, n_in / group_size, 16] f16
    uint8_t *zeros;   // [n_tiles, n_in / group_size, 16]
    size_t map_bytes; // all three lie in one mapping that starts at q
} lv_int4;

// Rows of x as 16-bit integers with one scale a row and block. Rows are split into n_blocks
// register blocks; block b has rows lv_int4_row(b) .. lv_int4_row(b + 1) - 1 (R of them),
// interleaved.
typedef struct lv_int4_rows {
    int n_rows, n_blocks;
    int16_t *q;    // a block: [n_in / 2, R, 2]
    float *scales; // a block: [n_in / block, R]
    int32_t *sums; // a block: [n_in / block, R], sum of the integers
} lv_int4_rows;

static inline int lv_int4_row(const lv_int4_rows *x, int block) {
    return (int)((int64_t)block * x->n_rows / x->n_blocks);
}

struct lv_linear {
    int n_out, n_in, n_parts;
    lv_linear_source parts[3]; // the reference and dense kernels read them in place
    bool owns_parts;           // they were made by lv_rtn_int4
    float *bias;               // [n_out], or NULL
    lv_int4 int4;              // q NULL where dense, or in the reference
    size_t n_bytes;
};

struct lv_kv {
    int n_layers, n_kv_heads, head_dim, n_blocks;
    lv_dtype dtype; // f32, f16 or i8
    size_t page_bytes, map_bytes;
    uint8_t *data; // [n_layers, n_blocks, n_kv_heads, 2] pages: lv_kv_page
};

// One page: 64 tokens of one layer and head. Keys are [head_dim, 64] (a lane is a token, so that
// scores need no horizontal sums), values [64, head_dim]; a head's two pages lie side by side, for
// the processor's prefetching does well with long runs only. i8 pages end with a scale for each of
// the 64 tokens: x = scale q with scale = max|x| / 127.
static inline void *lv_kv_page(const lv_kv *kv, int layer, int block, int is_value, int head) {
    size_t block_at = (size_t)layer * (size_t)kv->n_blocks + (size_t)block;
    size_t page = (block_at * (size_t)kv->n_kv_heads + (size_t)head) * 2 + (size_t)is_value;
    return kv->data + page * kv->page_bytes;
}

static inline lv_cache_shape lv_kv_shape(const lv_kv *kv) {
    return (lv_cache_shape){kv->n_layers, kv->n_kv_heads, kv->head_dim, kv->n_blocks};
}

// [64] f32 of an i8 page.
static inline float *lv_kv_scales(const lv_kv *kv, void *page) {
    return (float *)((int8_t *)page + (ptrdiff_t)LV_KV_BLOCK * kv->head_dim);
}

// Kernels compiled once for each instruction set (vector.inc.h). All work on one row or one tile;
// threads are the callers' business.
typedef struct lv_vector_kernels {
    // c[m, n] += a[m, k] b[k, n], b being f32, f16 or i8; each sum runs over k in order, so a row's
    // bits do not depend on m.
    void (*gemm)(int m, int n, int k, const float *a, ptrdiff_t lda, lv_dtype b_type, const void *b,
                 ptrdiff_t ldb, float *c, ptrdiff_t ldc);
    // out[k, 64] = rows[j][k] for k < n_k and j < n_j rounded up to 16 (all of which must be
    // readable);
    void (*pack)(lv_dtype dtype, const uint8_t *const *rows, int n_j, int n_k, float *out);
    // c[m, 64] = x[m, n_k] rows^T for outputs j < n_j rounded up to 4; a row's bits do not depend
    // on m.
    void (*dot)(lv_dtype dtype, const uint8_t *const *rows, int n_j, int n_k, const float *x, int m,
                float *c);
    void (*layer_norm)(const float *x, int d, const float *weight, const float *bias, float eps,
                       float *out);
    void (*rms_norm)(const float *x, int d, const float *weight, float eps, float *out);
    void (*softmax)(float *x, int n);
    // One page of online softmax: s[n] -> exp(s - max'), *max and *sum updated; returns the factor
    // for what was accumulated before.
    float (*softmax_page)(float *s, int n, float *max, float *sum);
    void (*activate)(lv_activation activation, float *x, int n);
    void (*silu_mul)(const float *gate, const float *up, int n, float *out);
    void (*scale)(float *x, int n, float factor);
    void (*multiply)(float *x, const float *factors, int n);
    void (*convert)(lv_dtype dtype, const void *source, int n, float *out); // from f16 or i8
    // One row into a register block: q [n_in / 2, R, 2] at row r, scales and sums [n_in / block,
    // R].
    void (*quantise)(const float *x, int n_in, int block, int r, int n_r, int16_t *q, float *scales,
                     int32_t *sums);
    // One token of an i8 cache: x = scale q; returns the scale.
    float (*quantise_i8)(const float *x, int n, int8_t *q);
} lv_vector_kernels;

extern const lv_vector_kernels lv_vector_portable, lv_vector_avx2, lv_vector_avx512;

// c[n_rows, 64] = x w^T for outputs of tiles tile0 .. tile0 + 3 (as far as they exist) and register
// blocks block0 .. block1 - 1; c's first row is that of block0. Bitwise the same in every
// implementation.
typedef void lv_int4_kernel(const lv_int4 *w, int tile0, const lv_int4_rows *x, int block0,
                            int block1, float *c);
lv_int4_kernel lv_int4_portable, lv_int4_avx2, lv_int4_avx512, lv_int4_vnni;

typedef struct lv_cpu {
    lv_backend base;
    lv_cpu_isa isa;
    int n_threads;
    bool reference;
    const lv_vector_kernels *vector;
    lv_int4_kernel *int4;
    int int4_rows; // most rows of x in a register block of that kernel
    struct {
        void *data;
        size_t n_bytes;
    } scratch[LV_CPU_N_SCRATCH]; // grow only: nothing is allocated once the largest shape was seen
    int n_sampled;               // by the last call of sample
    int32_t tokens[LV_MAX_ROWS];
    float logprobs[LV_MAX_ROWS];
} lv_cpu;

// Users of scratch memory that may be alive at the same time.
enum { LV_SCRATCH_NORM, LV_SCRATCH_LINEAR, LV_SCRATCH_INT4, LV_SCRATCH_THREADS, LV_SCRATCH_SAMPLE };

// At least n_bytes of memory, 64-byte aligned, kept until the next call with the same slot.
lv_status lv_cpu_scratch(lv_cpu *cpu, int slot, size_t n_bytes, void **out) LV_MUST_CHECK;

// Zeroed pages that are committed only when touched; large ones where all will be.
void *lv_cpu_map(size_t n_bytes, bool large_pages);
void lv_cpu_unmap(void *data, size_t n_bytes);

// int4.c
lv_status lv_int4_pack(const lv_linear_source *parts, int n_parts, int n_threads,
                       lv_int4 *out) LV_MUST_CHECK;
int lv_int4_block(int group_size);

// The cores this process may use: its affinity mask, less where a cgroup grants less CPU time.
int lv_cpu_cores(void);

// Shared by both tables (cpu.c, weights.c, kv.c, sample.c).
lv_status lv_cpu_alloc(lv_backend *be, size_t n_bytes, void **out);
void lv_cpu_free(lv_backend *be, void *dev);
lv_status lv_cpu_copy(lv_backend *be, void *to, const void *from, size_t n_bytes);
lv_status lv_cpu_linear_load(lv_backend *be, const lv_linear_source *parts, int n_parts,
                             const lv_linear_options *options, lv_linear **out);
void lv_cpu_linear_free(lv_backend *be, lv_linear *linear);
lv_linear_shape lv_cpu_linear_shape(const lv_linear *linear);
lv_status lv_cpu_tensor_load(lv_backend *be, const lv_tensor *source, float **out);
lv_status lv_cpu_embed(lv_backend *be, const lv_batch *batch, const lv_linear *table, void *out);
lv_status lv_cpu_gather_rows(lv_backend *be, const void *source, const float *extra,
                             const int32_t *index, int n, int d, void *out);
lv_status lv_cpu_kv_create(lv_backend *be, int n_layers, int n_kv_heads, int head_dim, int n_blocks,
                           lv_dtype kv_dtype, lv_kv **out);
void lv_cpu_kv_free(lv_backend *be, lv_kv *kv);
size_t lv_cpu_kv_block_bytes(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                             lv_dtype kv_dtype);
lv_status lv_cpu_kv_copy(lv_backend *be, lv_kv *kv, int from, int to);
lv_status lv_cpu_sample(lv_backend *be, float *logits, int n_rows, int vocab,
                        const lv_sampling *rows, int32_t *tokens, float *logprobs);
lv_status lv_cpu_collect(lv_backend *be, int32_t *tokens, float *logprobs);

// linear.c: as the operation `linear`; scratch slots LV_SCRATCH_INT4 and LV_SCRATCH_THREADS.
lv_status lv_cpu_linear(lv_backend *be, const void *x, int m, const lv_linear *w,
                        lv_activation activation, const void *residual, void *out) LV_MUST_CHECK;
// The same for the rows of logits, where few rows meet many outputs. Each operation takes always
// the same one of the two, for their sums differ in their last bits.
lv_status lv_cpu_logits(lv_backend *be, const void *x, int m, const lv_linear *w,
                        float *out) LV_MUST_CHECK;
// rms_norm of rows x[rows[i]] (rows NULL: x[i]) -> out[n, d].
void lv_cpu_rms_norm(lv_cpu *cpu, const float *x, const int32_t *rows, int n, int d,
                     const float *norm, float eps, float *out);

// attention.c
lv_status lv_cpu_attention(lv_backend *be, const lv_batch *batch, const lv_attention_shape *shape,
                           const void *q, const lv_kv *kv, int layer, void *out);
lv_status lv_cpu_image_attention(lv_backend *be, const void *qkv, int n, int n_rows, int n_heads,
                                 int head_dim, void *out);

// The two tables: plain loops (ref.c) and the fast path.
void lv_cpu_reference_ops(lv_ops *ops);
void lv_cpu_fast_ops(lv_ops *ops);

#endif
