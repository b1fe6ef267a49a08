// The first rows of a tower: tokens of a table, patches of pictures, and rows gathered from others.
#include "kernels/cuda/rows.cuh"

// --- gathering ----------------------------------------------------------------------------------

// The indices travel as a parameter of the kernel: no memory of the host is read after the call.
#define CHUNK 1000
typedef struct chunk {
    int32_t at[CHUNK]; // within the 4 KB that every device takes
} chunk;

// out[i] = source[at[i]], or extra where at[i] is negative. f16 [*, d], extra f32 [d]; a block a
// row. LLaVA-1.6 merges up to 2928 rows of 4096: 48 MB, the bytes bind.
template <int N>
__global__ void __launch_bounds__(THREADS)
    gather_kernel(const __half *source, const float *extra, const __grid_constant__ chunk index,
                  int d, __half *out) {
    const int from = index.at[blockIdx.x];
    lv_wait_previous();
    lv_launch_next();
    for (int i = threadIdx.x * N; i < d; i += THREADS * N) {
        float v[N];
        if (from >= 0) {
            load<N>(source + (size_t)from * d + i, v);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) {
                v[k] = extra[i + k];
            }
        }
        store<N>(out + (size_t)blockIdx.x * d + i, v);
    }
}

lv_status lv_cuda_gather_rows(lv_backend *be, const void *source, const float *extra,
                              const int32_t *index, int n, int d, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    LV_TRY(lv_cuda_enter(cuda));
    for (int i = 0; i < n; i++) {
        if (index[i] < 0 && !extra) {
            return lv_fail(LV_EINVAL, "gather_rows: row %d wants `extra`, which is absent", i);
        }
    }
    for (int first = 0; first < n; first += CHUNK) {
        chunk c;
        const int m = n - first < CHUNK ? n - first : CHUNK;
        memcpy(c.at, index + first, (size_t)m * sizeof *index);
        LV_TRY(lv_launch(cuda, "gather_rows", d % 8 == 0 ? gather_kernel<8> : gather_kernel<1>,
                         dim3(m), dim3(THREADS), 0, (const __half *)source, extra, c, d,
                         (__half *)out + (size_t)first * d));
    }
    return LV_OK;
}

// out[i] = table[ids[i]]; -1 - r means the token that row r was given last, LV_ID_ROW leaves the
// row alone. f16 [*, d]; a block a row. Ids of a replayed pass have not been seen by the host: they
// are kept within the table here.
template <int N>
__global__ void __launch_bounds__(THREADS)
    embed_kernel(const int32_t *ids, const int32_t *tokens, const __half *table, int vocab, int d,
                 __half *out) {
    lv_wait_previous();
    lv_launch_next();
    int id = ids[blockIdx.x];
    if (id == LV_ID_ROW) {
        return;
    }
    id = id < 0 ? tokens[min(-1 - id, LV_MAX_ROWS - 1)] : id;
    id = min(max(id, 0), vocab - 1);
    for (int i = threadIdx.x * N; i < d; i += THREADS * N) {
        float v[N];
        load<N>(table + (size_t)id * d + i, v);
        store<N>(out + (size_t)blockIdx.x * d + i, v);
    }
}

lv_status lv_cuda_embed(lv_backend *be, const lv_batch *batch, const lv_linear *table, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    const lv_device_batch *device;
    const int n = batch->n_tokens;
    if (table->format != LV_W_F16 || (table->pair != 0 && table->pair != 8)) {
        return lv_fail(LV_EUNSUPPORTED, "embedding table: expected dense rows in their own order");
    }
    for (int i = 0; i < n; i++) {
        const int32_t id = batch->ids[i];
        if (id >= table->n_out || (id < -LV_MAX_ROWS && id != LV_ID_ROW)) {
            return lv_fail(LV_EINVAL, "token %d: the vocabulary has %d", id, table->n_out);
        }
    }
    LV_TRY(lv_cuda_batch(cuda, batch, &device));
    return n == 0
               ? LV_OK
               : lv_launch(cuda, "embed", table->n_in % 8 == 0 ? embed_kernel<8> : embed_kernel<1>,
                           dim3(n), dim3(THREADS), 0, device->ids, cuda->tokens,
                           (const __half *)table->data, table->n_out, table->n_in, (__half *)out);
}

// --- patch embedding ----------------------------------------------------------------------------

// rgb u8 [n, side, side, 3] -> rows f16 [n_rows, width]: value k of a patch is level `rgb` of
// channel k / patch^2 at line k / patch % patch, column k % patch, in levels f32 [3, 256]; zeros
// from 3 patch^2 to width, a multiple of 8. Eight values a thread. Five tiles: 1.7 MB read, 3.4 MB
// written.
__global__ void __launch_bounds__(THREADS)
    patches_kernel(const uint8_t *rgb, const float *levels, int n_rows, int side, int patch,
                   int width, __half *out) {
    const int unit = blockIdx.x * THREADS + threadIdx.x, per_row = width / 8, grid = side / patch;
    const int row = unit / per_row, k = unit % per_row * 8, n_in = 3 * patch * patch;
    const int image = row / (grid * grid), place = row % (grid * grid);
    int channel = k / (patch * patch), dy = k / patch % patch, dx = k % patch;
    float v[8];
    lv_wait_previous();
    lv_launch_next();
    if (row >= n_rows) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const size_t line = (size_t)image * side + place / grid * patch + dy;
        const size_t pixel = line * side + place % grid * patch + dx;
        v[i] = k + i < n_in ? levels[channel * 256 + rgb[pixel * 3 + channel]] : 0.0f;
        if (++dx == patch) {
            dx = 0;
            if (++dy == patch) {
                dy = 0;
                channel++;
            }
        }
    }
    store8(out + (size_t)row * width + k, v);
}

// f16 [n, from] -> f16 [n, to] with zeros at the end of each row.
__global__ void __launch_bounds__(THREADS)
    widen_kernel(const __half *x, int n, int from, int to, __half *out) {
    const int i = blockIdx.x * THREADS + threadIdx.x, row = i / to, column = i % to;
    lv_wait_previous();
    lv_launch_next();
    if (row < n) {
        out[i] = column < from ? x[(size_t)row * from + column] : __float2half_rn(0.0f);
    }
}

// out[image, 0] = class_embedding + positions[0], out[image, 1 + i] = y[image, i] + positions[1+i].
// y f16 [n, n_rows - 1, d], out f16 [n, n_rows, d], the others f32. Five tiles: 12 MB.
template <int N>
__global__ void __launch_bounds__(THREADS)
    positions_kernel(const __half *y, const float *class_embedding, const float *positions,
                     int n_all, int n_rows, int d, __half *out) {
    const int unit = blockIdx.x * THREADS + threadIdx.x, per_row = d / N;
    const int row = unit / per_row, k = unit % per_row * N;
    const int image = row / n_rows, place = row % n_rows;
    float v[N];
    lv_wait_previous();
    lv_launch_next();
    if (row >= n_all) {
        return;
    }
    if (place > 0) {
        load<N>(y + ((size_t)image * (n_rows - 1) + place - 1) * d + k, v);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        v[i] = (place > 0 ? v[i] : class_embedding[k + i]) + positions[(size_t)place * d + k + i];
    }
    store<N>(out + (size_t)row * d + k, v);
}

// Rows of whole 16-byte units are what cuBLASLt is fast on: LLaVA's 588 values become 592. The
// weights (1.2 MB) are widened anew each time, which costs less than keeping them twice.
static lv_status widen(lv_cuda *cuda, const lv_linear *w, int width, lv_linear *out) {
    void *data;
    *out = *w;
    if (width == w->n_in) {
        return LV_OK;
    }
    const size_t n = (size_t)w->n_out * (size_t)width;
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_WEIGHTS, n * 2, &data));
    out->n_in = width;
    out->data = data;
    return lv_launch(cuda, "widen", widen_kernel, dim3(blocks_for(n)), dim3(THREADS), 0,
                     (const __half *)w->data, w->n_out, w->n_in, width, (__half *)data);
}

lv_status lv_cuda_patch_embed(lv_backend *be, const uint8_t *rgb, const float *levels, int n,
                              int side, int patch, const lv_linear *w, const float *class_embedding,
                              const float *positions, void *out) {
    lv_cuda *cuda = (lv_cuda *)be;
    lv_linear wide;
    void *rows, *y;
    LV_TRY(lv_cuda_enter(cuda));
    if (patch <= 0 || side < patch || n < 1 || w->n_in != 3 * patch * patch) {
        return lv_fail(LV_EINVAL, "patch_embed: %d images, side %d, patch %d, %d inputs", n, side,
                       patch, w->n_in);
    }
    if (w->pair != 0 && w->pair != 8) {
        return lv_fail(LV_EUNSUPPORTED, "patch_embed: rows are stored in pairs for another use");
    }
    const int n_patches = (side / patch) * (side / patch), width = (w->n_in + 7) / 8 * 8;
    const int n_rows = n * n_patches, n_out_rows = n * (n_patches + 1), d = w->n_out;
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_PATCHES, (size_t)n_rows * width * 2, &rows));
    LV_TRY(lv_cuda_scratch(cuda, LV_SCRATCH_WIDE, (size_t)n_rows * d * 2, &y));
    LV_TRY(lv_launch(cuda, "patches", patches_kernel,
                     dim3(blocks_for((size_t)n_rows * (width / 8))), dim3(THREADS), 0, rgb, levels,
                     n_rows, side, patch, width, (__half *)rows));
    LV_TRY(widen(cuda, w, width, &wide));
    LV_TRY(lv_cuda_dense(cuda, rows, n_rows, &wide, NULL, y));
    const int step = d % 8 == 0 ? 8 : 1;
    return lv_launch(cuda, "positions", step == 8 ? positions_kernel<8> : positions_kernel<1>,
                     dim3(blocks_for((size_t)n_out_rows * (d / step))), dim3(THREADS), 0,
                     (const __half *)y, class_embedding, positions, n_out_rows, n_patches + 1, d,
                     (__half *)out);
}
