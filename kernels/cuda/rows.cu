// Row-wise and element-wise steps on f16 rows. All of them move bytes: their floor is what they
// read and write over the memory's (or the L2 cache's) bandwidth. Values are read and written 8 at
// a time, 16 bytes, where the widths are multiples of 8, else one by one; arithmetic is in f32.
#include <stdint.h>

#include "kernels/cuda/rms.cuh"
#include "kernels/cuda/rows.cuh"

// The sum over the LANES threads of a row; `partial` [LANES / 32] is shared memory of this call.
template <int LANES> __device__ static inline float row_sum(float sum, float *partial) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (LANES > 32) {
        if (threadIdx.x % 32 == 0) {
            partial[threadIdx.x / 32] = sum;
        }
        __syncthreads();
        sum = 0;
#pragma unroll
        for (int i = 0; i < LANES / 32; i++) {
            sum += partial[i];
        }
    }
    return sum;
}

// --- norms --------------------------------------------------------------------------------------

// 8 values from a multiple of 8 on of an array of the backend's own.
__device__ static inline void load_f32x8(const float *from, float v[8]) {
    const float4 a = *(const float4 *)from, b = *(const float4 *)(from + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// out = (x - mean) / sqrt(var + eps) * weight + bias
//
// x, out f16 [m, d], d a multiple of 8 and at most 32 LANES; weight, bias f32 [d]. LANES threads
// keep a row in registers, up to four times 8 values each: it is read once, and mean and variance
// are two passes over the registers. CLIP, 5 tiles: m 2885, d 1024, 11.8 MB: the bytes bind.
template <int LANES>
__global__ void __launch_bounds__(THREADS)
    layer_norm_kernel(const __half *x, int m, int d, const float *weight, const float *bias,
                      float eps, __half *out) {
    __shared__ float partial[2][LANES / 32];
    const int row = blockIdx.x * (THREADS / LANES) + threadIdx.y;
    float v[4][8], sum = 0;
    lv_wait_previous();
    lv_launch_next();
    if (row >= m) { // a whole warp, or never
        return;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const int at = (c * LANES + threadIdx.x) * 8;
        if (at < d) {
            load8(x + (size_t)row * d + at, v[c]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sum += v[c][i];
            }
        }
    }
    const float mean = row_sum<LANES>(sum, partial[0]) / (float)d;
    sum = 0;
#pragma unroll
    for (int c = 0; c < 4; c++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[c][i] -= mean;
            sum += (c * LANES + threadIdx.x) * 8 < d ? v[c][i] * v[c][i] : 0.0f;
        }
    }
    const float factor = 1.0f / sqrtf(row_sum<LANES>(sum, partial[1]) / (float)d + eps);
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const int at = (c * LANES + threadIdx.x) * 8;
        if (at < d) {
            float w[8], b[8];
            load_f32x8(weight + at, w);
            load_f32x8(bias + at, b);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                v[c][i] = v[c][i] * factor * w[i] + b[i];
            }
            store8(out + (size_t)row * d + at, v[c]);
        }
    }
}

// The same for any d: a block reads its row three times, from the cache after the first.
__global__ void __launch_bounds__(THREADS)
    layer_norm_any_kernel(const __half *x, int d, const float *weight, const float *bias, float eps,
                          __half *out) {
    __shared__ float partial[2][THREADS / 32];
    const size_t row = (size_t)blockIdx.x * d;
    float sum = 0;
    lv_wait_previous();
    lv_launch_next();
    for (int i = threadIdx.x; i < d; i += THREADS) {
        sum += __half2float(x[row + i]);
    }
    const float mean = row_sum<THREADS>(sum, partial[0]) / (float)d;
    sum = 0;
    for (int i = threadIdx.x; i < d; i += THREADS) {
        const float centred = __half2float(x[row + i]) - mean;
        sum += centred * centred;
    }
    const float factor = 1.0f / sqrtf(row_sum<THREADS>(sum, partial[1]) / (float)d + eps);
    for (int i = threadIdx.x; i < d; i += THREADS) {
        const float centred = __half2float(x[row + i]) - mean;
        out[row + i] = __float2half_rn(centred * factor * weight[i] + bias[i]);
    }
}

lv_status lv_cuda_layer_norm(lv_backend *be, const void *x, int m, int d, const float *weight,
                             const float *bias, float eps, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    const __half *from = (const __half *)x;
    LV_TRY(lv_cuda_enter(cuda));
    if (m < 1 || d < 1) {
        return m == 0 ? LV_OK : lv_fail(LV_EINVAL, "layer_norm of %d rows of %d", m, d);
    }
    if (d % 8 == 0 && d <= 1024) {
        return lv_launch(cuda, "layer_norm", layer_norm_kernel<32>, dim3((m + 7) / 8), dim3(32, 8),
                         0, from, m, d, weight, bias, eps, (__half *)out);
    }
    if (d % 8 == 0 && d <= 32 * THREADS) {
        return lv_launch(cuda, "layer_norm", layer_norm_kernel<THREADS>, dim3(m), dim3(THREADS), 0,
                         from, m, d, weight, bias, eps, (__half *)out);
    }
    return lv_launch(cuda, "layer_norm", layer_norm_any_kernel, dim3(m), dim3(THREADS), 0, from, d,
                     weight, bias, eps, (__half *)out);
}

// out[i] = rms_norm(x[rows[i]]) * norm, by rms.cuh: its segments over the block's eight warps,
// their sums [d / 256] in shared memory. x, out f16 [*, d], norm f32 [d]. 7B, 2204 tokens: d 4096,
// 36 MB: the bytes bind; the row's second reading is from the L1 cache.
__global__ void __launch_bounds__(THREADS)
    rms_norm_kernel(const __half *x, const int32_t *rows, int d, const float *norm, float eps,
                    __half *out) {
    extern __shared__ float sums[];
    const int lane = threadIdx.x % 32, n_segments = (d + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT;
    float v[8], sum = 0;
    lv_wait_previous();
    lv_launch_next();
    const __half *from = x + (size_t)(rows ? rows[blockIdx.x] : blockIdx.x) * d;
    __half *to = out + (size_t)blockIdx.x * d;
    for (int s = threadIdx.x / 32; s < n_segments; s += THREADS / 32) {
        lv_rms_load(from, d, s * LV_RMS_SEGMENT + lane * 8, v);
        const float segment = lv_rms_segment(v);
        if (lane == 0) {
            sums[s] = segment;
        }
    }
    __syncthreads();
    for (int s = 0; s < n_segments; s++) {
        sum = __fadd_rn(sum, sums[s]);
    }
    const float factor = lv_rms_factor(sum, d, eps);
    for (int at = threadIdx.x * 8; at < d; at += THREADS * 8) {
        lv_rms_load(from, d, at, v);
        if (d % 8 == 0) {
            __align__(16) __half y[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                y[i] = lv_rms_apply(v[i], factor, norm[at + i]);
            }
            *(uint4 *)(to + at) = *(const uint4 *)y;
        } else {
            for (int i = 0; i < 8 && at + i < d; i++) {
                to[at + i] = lv_rms_apply(v[i], factor, norm[at + i]);
            }
        }
    }
}

lv_status lv_cuda_rms_norm(lv_cuda *cuda, const void *x, const int32_t *rows, int m, int d,
                           const float *norm, float eps, void *out) {
    const size_t shared = ((size_t)d + LV_RMS_SEGMENT - 1) / LV_RMS_SEGMENT * sizeof(float);
    return m == 0 ? LV_OK
                  : lv_launch(cuda, "rms_norm", rms_norm_kernel, dim3(m), dim3(THREADS), shared,
                              (const __half *)x, rows, d, norm, eps, (__half *)out);
}

// --- activations --------------------------------------------------------------------------------

// x sigmoid(factor x). exp may reach infinity: the quotient is then 0.
__device__ static inline float swish(float x, float factor) {
    return __fdividef(x, 1.0f + __expf(-factor * x));
}

template <lv_activation A> __device__ static inline float activated(float x) {
    switch (A) {
    case LV_ACT_QUICK_GELU:
        return swish(x, 1.702f);
    case LV_ACT_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case LV_ACT_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case LV_ACT_SILU:
        return swish(x, 1.0f);
    default:
        return x;
    }
}

// x = activation(x) in place, f16 [n], the first n_units of it in 16-byte units, two a thread.
// CLIP, 5 tiles: [2885, 4096], 47 MB, of which the L2 cache holds a part; beside the bytes, the
// exponentials and quotients take 6 us of all multiprocessors.
template <lv_activation A>
__global__ void __launch_bounds__(THREADS) activate_kernel(__half *x, size_t n, size_t n_units) {
    const size_t thread = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const size_t n_threads = (size_t)gridDim.x * THREADS;
    lv_wait_previous();
    lv_launch_next();
    for (size_t i = thread; i < n_units; i += 2 * n_threads) {
        const size_t j = i + n_threads;
        float a[8], b[8] = {0};
        load8(x + 8 * i, a);
        if (j < n_units) {
            load8(x + 8 * j, b);
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            a[k] = activated<A>(a[k]);
            b[k] = activated<A>(b[k]);
        }
        store8(x + 8 * i, a);
        if (j < n_units) {
            store8(x + 8 * j, b);
        }
    }
    for (size_t i = 8 * n_units + thread; i < n; i += n_threads) {
        x[i] = __float2half_rn(activated<A>(__half2float(x[i])));
    }
}

lv_status lv_cuda_activate(lv_cuda *cuda, lv_activation activation, void *x, size_t n) {
    static void (*const kernels[])(__half *, size_t, size_t) = {
        activate_kernel<LV_ACT_NONE>, activate_kernel<LV_ACT_QUICK_GELU>,
        activate_kernel<LV_ACT_GELU>, activate_kernel<LV_ACT_GELU_TANH>,
        activate_kernel<LV_ACT_SILU>};
    const size_t n_units = (uintptr_t)x % 16 == 0 ? n / 8 : 0;
    const size_t n_threads = n_units ? (n_units + 1) / 2 : n;
    const size_t n_blocks = (n_threads + THREADS - 1) / THREADS;
    if (activation == LV_ACT_NONE || n == 0) {
        return LV_OK;
    }
    return lv_launch(cuda, "activate", kernels[activation],
                     dim3((unsigned)(n_blocks < 1 << 20 ? n_blocks : 1 << 20)), dim3(THREADS), 0,
                     (__half *)x, n, n_units);
}

// --- what follows the decoder's products
// ----------------------------------------------------------

// The place of source row `row` in the tile order of pair: the inverse of lv_tile_row. Eight rows
// from a multiple of 8 on lie side by side.
__host__ __device__ static inline int tile_place(int row, int pair) {
    if (pair == 0) {
        return row;
    }
    const int block = row / (2 * pair), in_block = row % (2 * pair), in_half = in_block % pair;
    return block * 2 * pair + in_half / 8 * LV_TILE + in_block / pair * 8 + in_half % 8;
}

// turns[t, i] = (cos, sin)(position[t] inv_freq[seq[t], i]) scale[seq[t]], by the accurate sincosf,
// as it loses nothing against the CPU's. A block a token.
__global__ void __launch_bounds__(THREADS)
    turn_kernel(const int32_t *seqs, const int32_t *positions, const float *inv_freq,
                const float *scales, int half, float2 *turns) {
    lv_wait_previous();
    lv_launch_next();
    const int t = blockIdx.x, seq = seqs[t];
    const float position = (float)positions[t], scale = scales[seq];
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float s, c;
        sincosf(__fmul_rn(position, inv_freq[(size_t)seq * half + i]), &s, &c);
        turns[(size_t)t * half + i] = make_float2(__fmul_rn(c, scale), __fmul_rn(s, scale));
    }
}

lv_status lv_cuda_turn(lv_cuda *cuda, const lv_device_batch *b) {
    const int half = b->head_dim / 2;
    return !b->turns
               ? LV_OK
               : lv_launch(cuda, "turn", turn_kernel, dim3(b->n_tokens),
                           dim3(half < THREADS ? half : THREADS), 0, b->token_seq, b->token_pos,
                           b->inv_freq, b->rope_scale, half, (float2 *)(uintptr_t)b->turns);
}

typedef struct rotate_args {
    const __half *qkv;   // [m, (n_heads + 2 n_kv_heads) head_dim] in tile order of pair
    const float *bias;   // of the same in natural order, or NULL
    __half *q, *kv_new;  // natural order
    const float2 *turns; // [m, head_dim / 2]
    int n_heads, n_kv_heads, head_dim, pair;
} rotate_args;

template <int N>
__device__ static inline void load_biased(const rotate_args *a, size_t row0, int row, float v[N]) {
    load<N>(a->qkv + row0 + tile_place(row, a->pair), v);
#pragma unroll
    for (int i = 0; i < N; i++) {
        v[i] += a->bias ? a->bias[row + i] : 0.0f;
    }
}

// q and k: (a, b) -> (a cos - b sin, b cos + a sin), a and b being i and i + head_dim / 2 of a
// head; v as it is. A block a token; its cosines and sines [head_dim / 2] in shared memory; N = 8
// where head_dim is a multiple of 16, else 1. 7B: 24.6 KB in and out, 108 MB for 2204 tokens: the
// bytes bind, of which a good part is still in the L2 cache.
template <int N>
__global__ void __launch_bounds__(THREADS) rotate_kernel(const __grid_constant__ rotate_args a) {
    extern __shared__ float cosines[];
    const int hd = a.head_dim, half = hd / 2, groups = half / N,
              n_rotated = a.n_heads + a.n_kv_heads;
    const int kv_width = a.n_kv_heads * hd, t = blockIdx.x;
    const size_t row0 = (size_t)t * (n_rotated * hd + kv_width);
    float *sines = cosines + half;
    __half *q = a.q + (size_t)t * a.n_heads * hd, *kv = a.kv_new + (size_t)t * 2 * kv_width;
    lv_wait_previous();
    lv_launch_next();
    for (int i = threadIdx.x; i < half; i += THREADS) {
        const float2 turn = a.turns[(size_t)t * half + i];
        cosines[i] = turn.x;
        sines[i] = turn.y;
    }
    for (int i = threadIdx.x * N; i < kv_width; i += THREADS * N) {
        float v[N];
        load_biased<N>(&a, row0, n_rotated * hd + i, v);
        store<N>(kv + kv_width + i, v);
    }
    __syncthreads();
    for (int item = threadIdx.x; item < n_rotated * groups; item += THREADS) {
        const int head = item / groups, i = item % groups * N, row = head * hd + i;
        float x[N], y[N], rotated_x[N], rotated_y[N];
        load_biased<N>(&a, row0, row, x);
        load_biased<N>(&a, row0, row + half, y);
#pragma unroll
        for (int k = 0; k < N; k++) {
            rotated_x[k] = x[k] * cosines[i + k] - y[k] * sines[i + k];
            rotated_y[k] = y[k] * cosines[i + k] + x[k] * sines[i + k];
        }
        __half *to = head < a.n_heads ? q + row : kv + row - a.n_heads * hd;
        store<N>(to, rotated_x);
        store<N>(to + half, rotated_y);
    }
}

lv_status lv_cuda_rotate(lv_cuda *cuda, const lv_small *s, const void *qkv) {
    const lv_device_batch *batch = s->batch;
    const bool adds_bias = s->w->pair != 0 && s->w->pair != 8; // else it is in qkv already
    if (batch->head_dim != s->head_dim || s->head_dim % 2 != 0 || !batch->turns) {
        return lv_fail(LV_EINVAL, "heads of %d, and a batch's angles for heads of %d", s->head_dim,
                       batch->head_dim);
    }
    const rotate_args args = {.qkv = (const __half *)qkv,
                              .bias = adds_bias ? s->w->bias : NULL,
                              .q = (__half *)s->out,
                              .kv_new = (__half *)s->kv_new,
                              .turns = (const float2 *)batch->turns +
                                       (size_t)s->first_row * (size_t)(s->head_dim / 2),
                              .n_heads = s->n_heads,
                              .n_kv_heads = s->n_kv_heads,
                              .head_dim = s->head_dim,
                              .pair = s->w->pair};
    return s->m == 0
               ? LV_OK
               : lv_launch(cuda, "rotate",
                           s->head_dim % 16 == 0 ? rotate_kernel<8> : rotate_kernel<1>, dim3(s->m),
                           dim3(THREADS), (size_t)s->head_dim * sizeof(float), args);
}

// out = silu(g) u, (g | u) a row of gate_up f16 [m, 2 d_ff] in tile order of pair, plus bias f32
// [2 d_ff] in natural order or NULL; out f16 [m, d_ff]. N values a thread, 8 where d_ff is a
// multiple of 8. 7B, 2204 tokens: d_ff 11008, 97 MB read and 49 MB written: the bytes bind.
template <int N>
__global__ void __launch_bounds__(THREADS)
    silu_mul_kernel(const __half *gate_up, unsigned m, unsigned d_ff, int pair, const float *bias,
                    __half *out) {
    const unsigned unit = blockIdx.x * THREADS + threadIdx.x, per_row = d_ff / N;
    const unsigned row = unit / per_row, k = (unit - row * per_row) * N;
    float g[N], u[N];
    lv_wait_previous();
    lv_launch_next();
    if (row >= m) {
        return;
    }
    const __half *from = gate_up + (size_t)row * 2 * d_ff;
    load<N>(from + tile_place((int)k, pair), g);
    load<N>(from + tile_place((int)(k + d_ff), pair), u);
#pragma unroll
    for (int i = 0; i < N; i++) {
        g[i] += bias ? bias[k + i] : 0.0f;
        u[i] += bias ? bias[d_ff + k + i] : 0.0f;
        g[i] = swish(g[i], 1.0f) * u[i];
    }
    store<N>(out + (size_t)row * d_ff + k, g);
}

lv_status lv_cuda_silu_mul(lv_cuda *cuda, const void *gate_up, int m, int d_ff, int pair,
                           const float *bias, void *out) {
    const int step = d_ff % 8 == 0 ? 8 : 1;
    return m == 0 ? LV_OK
                  : lv_launch(cuda, "silu_mul", step == 8 ? silu_mul_kernel<8> : silu_mul_kernel<1>,
                              dim3(blocks_for((size_t)m * (size_t)(d_ff / step))), dim3(THREADS), 0,
                              (const __half *)gate_up, (unsigned)m, (unsigned)d_ff, pair, bias,
                              (__half *)out);
}
