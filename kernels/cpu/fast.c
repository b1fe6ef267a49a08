// The fast table: rows over threads around the kernels of linear.c and attention.c.
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define PARALLEL_FLOATS 65536 // less is not worth waking threads for

static lv_status layer_norm(lv_backend *be, const void *x, int m, int d, const float *weight,
                            const float *bias, float eps, void *out) {
    lv_cpu *cpu = (lv_cpu *)be;
#pragma omp parallel for num_threads(cpu->n_threads) if ((int64_t)m * d > PARALLEL_FLOATS)
    for (int i = 0; i < m; i++) {
        cpu->vector->layer_norm((const float *)x + (ptrdiff_t)i * d, d, weight, bias, eps,
                                (float *)out + (ptrdiff_t)i * d);
    }
    return LV_OK;
}

void lv_cpu_rms_norm(lv_cpu *cpu, const float *x, const int32_t *rows, int n, int d,
                     const float *norm, float eps, float *out) {
#pragma omp parallel for num_threads(cpu->n_threads) if ((int64_t)n * d > PARALLEL_FLOATS)
    for (int i = 0; i < n; i++) {
        cpu->vector->rms_norm(x + (ptrdiff_t)(rows ? rows[i] : i) * d, d, norm, eps,
                              out + (ptrdiff_t)i * d);
    }
}

// Patches of n images -> rows [n n_patches, 3 patch^2] in the order of w's columns.
static void image_to_rows(const uint8_t *rgb, const float *levels, int n, int side, int patch,
                          float *out) {
    int grid = side / patch;
    for (int i = 0; i < n * grid * grid * 3 * patch; i++) { // a line of a patch
        int dy = i % patch, c = i / patch % 3, p = i / patch / 3;
        ptrdiff_t image = p / (grid * grid), row = p / grid % grid * patch + dy;
        const uint8_t *from = rgb + ((image * side + row) * side + p % grid * patch) * 3 + c;
        float *to = out + ((ptrdiff_t)p * 3 + c) * patch * patch + dy * patch;
        for (int dx = 0; dx < patch; dx++) {
            to[dx] = levels[c * 256 + from[3 * dx]];
        }
    }
}

static lv_status patch_embed(lv_backend *be, const uint8_t *rgb, const float *levels, int n,
                             int side, int patch, const lv_linear *w, const float *class_embedding,
                             const float *positions, void *out) {
    lv_cpu *cpu = (lv_cpu *)be;
    int n_patches = (side / patch) * (side / patch), d = w->n_out;
    size_t n_rows = (size_t)n * (size_t)n_patches;
    void *scratch;
    if (patch <= 0 || side <= 0 || w->n_in != 3 * patch * patch) {
        return lv_fail(LV_EINVAL, "patch_embed: side %d, patch %d, %d inputs", side, patch,
                       w->n_in);
    }
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_NORM, n_rows * (size_t)(w->n_in + d) * sizeof(float),
                          &scratch));
    float *rows = scratch, *y = rows + n_rows * (size_t)w->n_in;
    image_to_rows(rgb, levels, n, side, patch, rows);
    LV_TRY(lv_cpu_linear(be, rows, (int)n_rows, w, LV_ACT_NONE, NULL, y));
    for (int i = 0; i < n * (n_patches + 1); i++) {
        ptrdiff_t image = i / (n_patches + 1), row = i % (n_patches + 1);
        const float *from = row == 0 ? class_embedding : y + (image * n_patches + row - 1) * d;
        float *to = (float *)out + (ptrdiff_t)i * d;
        for (int k = 0; k < d; k++) {
            to[k] = from[k] + positions[row * d + k];
        }
    }
    return LV_OK;
}

// --- decoder -------------------------------------------------------------------------------------

// cos and sin of one position, [head_dim / 2] each, in f32 as transformers computes them.
static void rotary(int position, const float *inv_freq, float scale, int half, float *cosines,
                   float *sines) {
    for (int i = 0; i < half; i++) {
        float angle = (float)position * inv_freq[i];
        cosines[i] = cosf(angle) * scale;
        sines[i] = sinf(angle) * scale;
    }
}

static void rotate(const float *x, int half, const float *cosines, const float *sines, float *out) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        out[i] = a * cosines[i] - b * sines[i];
        out[i + half] = b * cosines[i] + a * sines[i];
    }
}

// One token's key or value of one head into its page.
static void append_i8(const lv_cpu *cpu, const lv_kv *kv, void *page, int is_value, int t,
                      const float *x, int8_t *scratch) {
    int hd = kv->head_dim;
    int8_t *to = page, *q = is_value ? to + (ptrdiff_t)t * hd : scratch;
    lv_kv_scales(kv, page)[t] = cpu->vector->quantise_i8(x, hd, q);
    for (int i = 0; !is_value && i < hd; i++) {
        to[i * LV_KV_BLOCK + t] = q[i];
    }
}

static void append(const lv_cpu *cpu, const lv_kv *kv, int layer, int block, int is_value, int head,
                   int t, const float *x, void *scratch) {
    void *page = lv_kv_page(kv, layer, block, is_value, head);
    ptrdiff_t step = is_value ? 1 : LV_KV_BLOCK, first = is_value ? (ptrdiff_t)t * kv->head_dim : t;
    if (kv->dtype == LV_I8) {
        append_i8(cpu, kv, page, is_value, t, x, scratch);
        return;
    }
    for (int i = 0; i < kv->head_dim; i++) {
        if (kv->dtype == LV_F32) {
            ((float *)page)[first + i * step] = x[i];
        } else {
            ((uint16_t *)page)[first + i * step] = lv_f32_to_f16(x[i]);
        }
    }
}

// Row `row` of y = (q | k | v): q rotated to out_q, k rotated and v to the cache. angles
// [3 head_dim] is scratch.
static void finish_token(const lv_cpu *cpu, const lv_batch *batch, const lv_attention_shape *shape,
                         int seq, int row, const float *y, lv_kv *kv, int layer, float *angles,
                         float *out_q) {
    int hd = shape->head_dim, half = hd / 2, n_heads = shape->n_heads, n_kv = shape->n_kv_heads;
    int position = batch->kv_length[seq] - batch->token_start[seq + 1] + row;
    int block = batch->block_table[(ptrdiff_t)seq * batch->max_blocks + position / LV_KV_BLOCK];
    int t = position % LV_KV_BLOCK;
    float *cosines = angles, *sines = angles + half, *key = angles + hd, *rest = key + hd;
    rotary(position, batch->inv_freq + (ptrdiff_t)seq * half, batch->rope_scale[seq], half, cosines,
           sines);
    for (int head = 0; head < n_heads; head++, y += hd) {
        rotate(y, half, cosines, sines, out_q + (ptrdiff_t)head * hd);
    }
    for (int head = 0; head < n_kv; head++, y += hd) {
        rotate(y, half, cosines, sines, key);
        append(cpu, kv, layer, block, 0, head, t, key, rest);
    }
    for (int head = 0; head < n_kv; head++, y += hd) {
        append(cpu, kv, layer, block, 1, head, t, y, rest);
    }
}

static lv_status norm_qkv_rope_append(lv_backend *be, const lv_batch *batch,
                                      const lv_attention_shape *shape, const void *x,
                                      const float *norm, float eps, const lv_linear *qkv, lv_kv *kv,
                                      int layer, void *out_q) {
    lv_cpu *cpu = (lv_cpu *)be;
    int m = batch->n_tokens, hd = shape->head_dim;
    void *scratch;
    LV_TRY(lv_check_attention(batch, shape, lv_kv_shape(kv), layer));
    if (qkv->n_out != (shape->n_heads + 2 * shape->n_kv_heads) * hd || hd % 2) {
        return lv_fail(LV_EINVAL, "qkv of %d outputs for %d + 2 * %d heads of %d", qkv->n_out,
                       shape->n_heads, shape->n_kv_heads, hd);
    }
    size_t per_row = (size_t)(qkv->n_in + qkv->n_out), per_thread = 3 * (size_t)hd;
    LV_TRY(lv_cpu_scratch(
        cpu, LV_SCRATCH_NORM,
        ((size_t)m * per_row + (size_t)cpu->n_threads * per_thread) * sizeof(float), &scratch));
    float *h = scratch, *y = h + (ptrdiff_t)m * qkv->n_in, *angles = y + (ptrdiff_t)m * qkv->n_out;
    lv_cpu_rms_norm(cpu, x, NULL, m, qkv->n_in, norm, eps, h);
    LV_TRY(lv_cpu_linear(be, h, m, qkv, LV_ACT_NONE, NULL, y));
    for (int s = 0; s < batch->n_seqs; s++) {
        int from = batch->token_start[s], to = batch->token_start[s + 1];
#pragma omp parallel for num_threads(cpu->n_threads) if ((int64_t)(to - from) * qkv->n_out >       \
                                                         PARALLEL_FLOATS)
        for (int row = from; row < to; row++) {
            finish_token(cpu, batch, shape, s, row, y + (ptrdiff_t)row * qkv->n_out, kv, layer,
                         angles + omp_get_thread_num() * (ptrdiff_t)per_thread,
                         (float *)out_q + (ptrdiff_t)row * shape->n_heads * hd);
        }
    }
    return LV_OK;
}

static lv_status norm_gate_up_silu(lv_backend *be, const void *x, int m, const float *norm,
                                   float eps, const lv_linear *gate_up, void *out) {
    lv_cpu *cpu = (lv_cpu *)be;
    int d = gate_up->n_in, d_ff = gate_up->n_out / 2;
    void *scratch;
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_NORM,
                          (size_t)m * (size_t)(d + gate_up->n_out) * sizeof(float), &scratch));
    float *h = scratch, *y = h + (ptrdiff_t)m * d;
    lv_cpu_rms_norm(cpu, x, NULL, m, d, norm, eps, h);
    LV_TRY(lv_cpu_linear(be, h, m, gate_up, LV_ACT_NONE, NULL, y));
#pragma omp parallel for num_threads(cpu->n_threads) if ((int64_t)m * d_ff > PARALLEL_FLOATS)
    for (int i = 0; i < m; i++) {
        const float *gate = y + (ptrdiff_t)i * 2 * d_ff;
        cpu->vector->silu_mul(gate, gate + d_ff, d_ff, (float *)out + (ptrdiff_t)i * d_ff);
    }
    return LV_OK;
}

static lv_status norm_logits(lv_backend *be, const lv_batch *batch, const void *x,
                             const float *norm, float eps, const lv_linear *head, float *logits) {
    const int32_t *rows = batch->logit_rows;
    const int n_rows = batch->n_logits;
    lv_cpu *cpu = (lv_cpu *)be;
    void *h;
    LV_TRY(lv_cpu_scratch(cpu, LV_SCRATCH_NORM,
                          (size_t)n_rows * (size_t)head->n_in * sizeof(float) + 1, &h));
    lv_cpu_rms_norm(cpu, x, rows, n_rows, head->n_in, norm, eps, h);
    return lv_cpu_logits(be, h, n_rows, head, logits);
}

void lv_cpu_fast_ops(lv_ops *ops) {
    ops->linear = lv_cpu_linear;
    ops->layer_norm = layer_norm;
    ops->patch_embed = patch_embed;
    ops->image_attention = lv_cpu_image_attention;
    ops->norm_qkv_rope_append = norm_qkv_rope_append;
    ops->attention = lv_cpu_attention;
    ops->norm_gate_up_silu = norm_gate_up_silu;
    ops->norm_logits = norm_logits;
}
