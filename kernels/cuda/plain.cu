// Products without cuBLASLt: where the library is absent, and for widths that it refuses.
#include <mma.h>

#include "kernels/cuda/launch.cuh"

#define TILE 64       // rows of x and rows of W of a block
#define STEP 32       // of k at a time
#define LD (STEP + 8) // halves between rows in shared memory: whole 16-byte units, banks spread
#define LD_OUT (TILE + 4)
#define THREADS 128

// out [m, n_out] = x [m, n_in] W^T + bias + residual
//
// x, W f16 row-major, any widths (16-byte loads where n_in is a multiple of 8); bias f32; residual
// and out f16, or out f32. A block of four warps makes 64 x 64 of out, each warp 32 x 32 by wmma
// 16x16x16 with f32 sums; 64 x 32 of x and of W lie in shared memory (10 KB), the next ones wait in
// registers; the sums go through shared memory (17 KB) to the edges and to out. Each sum runs over
// k in order, so that a row's bits depend neither on m nor on its place.
// Patches of five LLaVA tiles, [2880, 588] x [1024, 588]: 3.5 GFLOP on 10 MB. Tensor cores bind in
// principle; shared memory does here (32 bytes read for 1024 multiplications of a warp's tile).
struct shared_tiles {
    union {
        struct {
            __half x[TILE * LD], w[TILE * LD];
        };
        float out[TILE * LD_OUT];
    };
};

// 16 of the tile's 64 x 32 values a thread: half a row of it.
template <bool VECTOR>
__device__ static void fetch(const __half *from, int row, int n_rows, int k, int n_k,
                             uint4 held[2]) {
    __half *values = (__half *)held;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = k + 8 * i;
        const __half *place = from + (size_t)row * n_k + at;
        held[i] = make_uint4(0, 0, 0, 0);
        if (VECTOR && row < n_rows && at < n_k) {
            held[i] = *(const uint4 *)place;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (!VECTOR && row < n_rows && at + j < n_k) {
                values[8 * i + j] = place[j];
            }
        }
    }
}

// The block's 64 x 64 sums + bias + residual -> out.
__device__ static void finish(const float *sums, const lv_product *t, int row0, int column0) {
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        const int row = row0 + i / TILE, column = column0 + i % TILE;
        if (row >= t->m || column >= t->n_out) {
            continue;
        }
        const size_t at = (size_t)row * t->ld_out + column;
        float y = sums[i / TILE * LD_OUT + i % TILE];
        y += t->bias ? t->bias[column] : 0.0f;
        if (t->f32) {
            ((float *)t->out)[at] = y;
        } else {
            y += t->residual ? __half2float(((const __half *)t->residual)[at]) : 0.0f;
            ((__half *)t->out)[at] = __float2half_rn(y);
        }
    }
}

template <bool VECTOR> __global__ void __launch_bounds__(THREADS) plain_kernel(const lv_product t) {
    using namespace nvcuda;
    __shared__ __align__(32) shared_tiles tiles;
    const int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE, thread = threadIdx.x;
    const int warp_row = thread / 64 * 32, warp_column = thread / 32 % 2 * 32;
    const int row = thread / 2, k0 = thread % 2 * 16; // what this thread fetches
    const __half *x = (const __half *)t.x, *w = (const __half *)t.w;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[2][2];
    for (int i = 0; i < 4; i++) {
        wmma::fill_fragment(sums[i / 2][i % 2], 0.0f);
    }
    uint4 next_x[2], next_w[2];
    lv_wait_previous();
    lv_launch_next();
    fetch<VECTOR>(x, row0 + row, t.m, k0, t.n_in, next_x);
    fetch<VECTOR>(w, column0 + row, t.n_out, k0, t.n_in, next_w);
    for (int k = 0; k < t.n_in; k += STEP) {
        __syncthreads(); // the previous step has been read
        for (int i = 0; i < 2; i++) {
            *(uint4 *)(tiles.x + row * LD + k0 + 8 * i) = next_x[i];
            *(uint4 *)(tiles.w + row * LD + k0 + 8 * i) = next_w[i];
        }
        __syncthreads();
        fetch<VECTOR>(x, row0 + row, t.m, k + STEP + k0, t.n_in, next_x);
        fetch<VECTOR>(w, column0 + row, t.n_out, k + STEP + k0, t.n_in, next_w);
#pragma unroll
        for (int inner = 0; inner < STEP; inner += 16) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> a[2];
            wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> b[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                wmma::load_matrix_sync(a[i], tiles.x + (warp_row + 16 * i) * LD + inner, LD);
                wmma::load_matrix_sync(b[i], tiles.w + (warp_column + 16 * i) * LD + inner, LD);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                wmma::mma_sync(sums[i / 2][i % 2], a[i / 2], b[i % 2], sums[i / 2][i % 2]);
            }
        }
    }
    __syncthreads(); // the sums take the tiles' place
    for (int i = 0; i < 4; i++) {
        float *to = tiles.out + (warp_row + i / 2 * 16) * LD_OUT + warp_column + i % 2 * 16;
        wmma::store_matrix_sync(to, sums[i / 2][i % 2], LD_OUT, wmma::mem_row_major);
    }
    __syncthreads();
    finish(tiles.out, &t, row0, column0);
}

lv_status lv_cuda_plain(lv_cuda *cuda, const lv_product *t) {
    const dim3 grid((t->n_out + TILE - 1) / TILE, (t->m + TILE - 1) / TILE);
    if (grid.y > 65535) {
        return lv_fail(LV_EUNSUPPORTED, "product of %d rows", t->m);
    }
    return lv_launch(cuda, "plain", t->n_in % 8 == 0 ? plain_kernel<true> : plain_kernel<false>,
                     grid, dim3(THREADS), 0, *t);
}
