// The reference: every operation in plain loops, in f32, one thread, weights read as stored. It is
// the oracle of all backends' tests and the executable form of ops.h; nobody needs it to be fast.
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

// --- weights -------------------------------------------------------------------------------------

static uint32_t word_at(const lv_tensor *t, int64_t index) {
    uint32_t word;
    memcpy(&word, (const uint8_t *)t->data + index * 4, sizeof word);
    return word;
}

static float awq_weight(const lv_linear_source *s, int out, int in) {
    static const int shift_of_column[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    int64_t group = in / s->group_size, words = s->n_out / 8;
    int shift = shift_of_column[out % 8];
    int q = (int)(word_at(&s->qweight, in * words + out / 8) >> shift & 15);
    int z = (int)(word_at(&s->qzeros, group * words + out / 8) >> shift & 15);
    float scale;
    lv_to_f32(LV_F16, (const uint8_t *)s->scales.data + (group * s->n_out + out) * 2, 1, &scale);
    return (float)(q - z) * scale;
}

// Row `out` of the stacked parts -> w[n_in].
static void weight_row(const lv_linear *linear, int out, float *w) {
    const lv_linear_source *s = linear->parts;
    for (; out >= s->n_out; s++) {
        out -= s->n_out;
    }
    if (s->quant == LV_QUANT_AWQ) {
        for (int k = 0; k < s->n_in; k++) {
            w[k] = awq_weight(s, out, k);
        }
        return;
    }
    size_t row_bytes = (size_t)s->n_in * lv_dtype_bytes(s->weight.dtype);
    lv_to_f32(s->weight.dtype, (const uint8_t *)s->weight.data + (size_t)out * row_bytes,
              (size_t)s->n_in, w);
}

// --- rows ----------------------------------------------------------------------------------------

static float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

static float activate(lv_activation activation, float x) {
    switch (activation) {
    case LV_ACT_QUICK_GELU:
        return x * sigmoid(1.702f * x);
    case LV_ACT_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case LV_ACT_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case LV_ACT_SILU:
        return x * sigmoid(x);
    default:
        return x;
    }
}

static void rms_norm(const float *x, int d, const float *weight, float eps, float *out) {
    float sum = 0;
    for (int i = 0; i < d; i++) {
        sum += x[i] * x[i];
    }
    float factor = 1.0f / sqrtf(sum / (float)d + eps);
    for (int i = 0; i < d; i++) {
        out[i] = x[i] * factor * weight[i];
    }
}

static void softmax(float *x, int n) {
    float max = x[0], sum = 0;
    for (int i = 1; i < n; i++) {
        max = fmaxf(max, x[i]);
    }
    for (int i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    for (int i = 0; i < n; i++) {
        x[i] /= sum;
    }
}

// --- operations ----------------------------------------------------------------------------------

static lv_status ref_linear(lv_backend *be, const void *x, int m, const lv_linear *w,
                            lv_activation activation, const void *residual, void *out) {
    void *scratch;
    LV_TRY(
        lv_cpu_scratch((lv_cpu *)be, LV_SCRATCH_LINEAR, (size_t)w->n_in * sizeof(float), &scratch));
    float *row = scratch;
    for (int j = 0; j < w->n_out; j++) {
        weight_row(w, j, row);
        for (int i = 0; i < m; i++) {
            const float *xi = (const float *)x + (ptrdiff_t)i * w->n_in;
            ptrdiff_t at = (ptrdiff_t)i * w->n_out + j;
            float sum = 0;
            for (int k = 0; k < w->n_in; k++) {
                sum += xi[k] * row[k];
            }
            sum = activate(activation, sum + (w->bias ? w->bias[j] : 0));
            ((float *)out)[at] = sum + (residual ? ((const float *)residual)[at] : 0);
        }
    }
    return LV_OK;
}

static lv_status ref_layer_norm(lv_backend *be, const void *x, int m, int d, const float *weight,
                                const float *bias, float eps, void *out) {
    (void)be;
    for (int i = 0; i < m; i++) {
        const float *xi = (const float *)x + (ptrdiff_t)i * d;
        float *yi = (float *)out + (ptrdiff_t)i * d;
        float mean = 0, var = 0;
        for (int k = 0; k < d; k++) {
            mean += xi[k];
        }
        mean /= (float)d;
        for (int k = 0; k < d; k++) {
            var += (xi[k] - mean) * (xi[k] - mean);
        }
        float factor = 1.0f / sqrtf(var / (float)d + eps);
        for (int k = 0; k < d; k++) {
            yi[k] = (xi[k] - mean) * factor * weight[k] + bias[k];
        }
    }
    return LV_OK;
}

static lv_status ref_patch_embed(lv_backend *be, const uint8_t *rgb, const float *levels, int n,
                                 int side, int patch, const lv_linear *w,
                                 const float *class_embedding, const float *positions, void *out) {
    int grid = side / patch, n_in = 3 * patch * patch, d = w->n_out;
    void *scratch;
    LV_TRY(lv_cpu_scratch((lv_cpu *)be, LV_SCRATCH_NORM, (size_t)n_in * sizeof(float), &scratch));
    float *x = scratch, *y = out;
    for (int image = 0; image < n; image++) {
        for (int row = 0; row <= grid * grid; row++, y += d) {
            if (row == 0) {
                memcpy(y, class_embedding, (size_t)d * sizeof(float));
            } else {
                int top = (row - 1) / grid * patch, left = (row - 1) % grid * patch;
                for (int k = 0; k < n_in; k++) {
                    int c = k / (patch * patch), dy = k / patch % patch, dx = k % patch;
                    ptrdiff_t pixel = ((ptrdiff_t)image * side + top + dy) * side + left + dx;
                    x[k] = levels[c * 256 + rgb[pixel * 3 + c]];
                }
                LV_TRY(ref_linear(be, x, 1, w, LV_ACT_NONE, NULL, y));
            }
            for (int k = 0; k < d; k++) {
                y[k] += positions[(ptrdiff_t)row * d + k];
            }
        }
    }
    return LV_OK;
}

static lv_status ref_image_attention(lv_backend *be, const void *qkv, int n, int n_rows,
                                     int n_heads, int head_dim, void *out) {
    int d = n_heads * head_dim;
    float scale = 1.0f / sqrtf((float)head_dim);
    void *scratch;
    LV_TRY(lv_cpu_scratch((lv_cpu *)be, LV_SCRATCH_NORM, (size_t)n_rows * sizeof(float), &scratch));
    float *p = scratch;
    for (int task = 0; task < n * n_heads * n_rows; task++) {
        int image = task / (n_heads * n_rows), head = task / n_rows % n_heads, row = task % n_rows;
        const float *base =
            (const float *)qkv + (ptrdiff_t)image * n_rows * 3 * d + head * head_dim;
        const float *q = base + (ptrdiff_t)row * 3 * d;
        float *y = (float *)out + ((ptrdiff_t)image * n_rows + row) * d + head * head_dim;
        for (int t = 0; t < n_rows; t++) {
            const float *k = base + (ptrdiff_t)t * 3 * d + d;
            p[t] = 0;
            for (int i = 0; i < head_dim; i++) {
                p[t] += q[i] * k[i];
            }
            p[t] *= scale;
        }
        softmax(p, n_rows);
        for (int i = 0; i < head_dim; i++) {
            y[i] = 0;
            for (int t = 0; t < n_rows; t++) {
                y[i] += p[t] * base[(ptrdiff_t)t * 3 * d + 2 * d + i];
            }
        }
    }
    return LV_OK;
}

static float kv_at(const lv_kv *kv, const lv_batch *batch, int layer, int seq, int is_value,
                   int head, int position, int i) {
    int block = batch->block_table[(ptrdiff_t)seq * batch->max_blocks + position / LV_KV_BLOCK];
    int t = position % LV_KV_BLOCK;
    int at = is_value ? t * kv->head_dim + i : i * LV_KV_BLOCK + t;
    void *page = lv_kv_page(kv, layer, block, is_value, head);
    if (kv->dtype == LV_I8) {
        return (float)((int8_t *)page)[at] * lv_kv_scales(kv, page)[t];
    }
    return kv->dtype == LV_F32 ? ((float *)page)[at] : lv_f16_to_f32(((uint16_t *)page)[at]);
}

// The scale of one token's x [n] in an i8 cache; NaN where x has a NaN or an infinity.
static float kv_scale(const float *x, int n) {
    float max = 0;
    for (int i = 0; i < n; i++) {
        if (!isfinite(x[i])) {
            return NAN;
        }
        max = fmaxf(max, fabsf(x[i]));
    }
    return max > 1e-30f ? max / 127.0f : 0;
}

// One token's key or value of one head: x [head_dim].
static void kv_set(lv_kv *kv, const lv_batch *batch, int layer, int seq, int is_value, int head,
                   int position, const float *x) {
    int block = batch->block_table[(ptrdiff_t)seq * batch->max_blocks + position / LV_KV_BLOCK];
    int t = position % LV_KV_BLOCK;
    void *page = lv_kv_page(kv, layer, block, is_value, head);
    float scale = kv_scale(x, kv->head_dim);
    if (kv->dtype == LV_I8) {
        lv_kv_scales(kv, page)[t] = scale;
    }
    for (int i = 0; i < kv->head_dim; i++) {
        int at = is_value ? t * kv->head_dim + i : i * LV_KV_BLOCK + t;
        if (kv->dtype == LV_F32) {
            ((float *)page)[at] = x[i];
        } else if (kv->dtype == LV_F16) {
            ((uint16_t *)page)[at] = lv_f32_to_f16(x[i]);
        } else {
            ((int8_t *)page)[at] = scale > 0 ? (int8_t)rintf(x[i] / scale) : 0;
        }
    }
}

static void rotate(float *x, int head_dim, int position, const float *inv_freq, float scale) {
    for (int i = 0; i < head_dim / 2; i++) {
        float angle = (float)position * inv_freq[i];
        float c = cosf(angle) * scale, s = sinf(angle) * scale;
        float a = x[i], b = x[i + head_dim / 2];
        x[i] = a * c - b * s;
        x[i + head_dim / 2] = b * c + a * s;
    }
}

static lv_status ref_norm_qkv_rope_append(lv_backend *be, const lv_batch *batch,
                                          const lv_attention_shape *shape, const void *x,
                                          const float *norm, float eps, const lv_linear *qkv,
                                          lv_kv *kv, int layer, void *out_q) {
    int hd = shape->head_dim, n_kv = shape->n_kv_heads, n_heads = shape->n_heads;
    void *scratch;
    LV_TRY(lv_check_attention(batch, shape, lv_kv_shape(kv), layer));
    LV_TRY(lv_cpu_scratch((lv_cpu *)be, LV_SCRATCH_NORM,
                          (size_t)(qkv->n_in + qkv->n_out) * sizeof(float), &scratch));
    float *h = scratch, *y = h + qkv->n_in;
    for (int s = 0; s < batch->n_seqs; s++) {
        int first = batch->kv_length[s] - (batch->token_start[s + 1] - batch->token_start[s]);
        const float *inv_freq = batch->inv_freq + (ptrdiff_t)s * (hd / 2);
        for (int row = batch->token_start[s]; row < batch->token_start[s + 1]; row++) {
            int position = first + row - batch->token_start[s];
            rms_norm((const float *)x + (ptrdiff_t)row * qkv->n_in, qkv->n_in, norm, eps, h);
            LV_TRY(ref_linear(be, h, 1, qkv, LV_ACT_NONE, NULL, y));
            for (int head = 0; head < n_heads + n_kv; head++) {
                rotate(y + (ptrdiff_t)head * hd, hd, position, inv_freq, batch->rope_scale[s]);
            }
            memcpy((float *)out_q + (ptrdiff_t)row * n_heads * hd, y,
                   (size_t)(n_heads * hd) * sizeof(float));
            for (int head = 0; head < n_kv; head++) {
                kv_set(kv, batch, layer, s, 0, head, position, y + (n_heads + head) * hd);
                kv_set(kv, batch, layer, s, 1, head, position, y + (n_heads + n_kv + head) * hd);
            }
        }
    }
    return LV_OK;
}

static lv_status ref_attention(lv_backend *be, const lv_batch *batch,
                               const lv_attention_shape *shape, const void *q, const lv_kv *kv,
                               int layer, void *out) {
    int hd = shape->head_dim, n_heads = shape->n_heads, group = n_heads / shape->n_kv_heads;
    float scale = 1.0f / sqrtf((float)hd);
    LV_TRY(lv_check_attention(batch, shape, lv_kv_shape(kv), layer));
    for (int s = 0; s < batch->n_seqs; s++) {
        int start = batch->token_start[s], n_new = batch->token_start[s + 1] - start;
        void *scratch;
        LV_TRY(lv_cpu_scratch((lv_cpu *)be, LV_SCRATCH_NORM,
                              (size_t)batch->kv_length[s] * sizeof(float) + 1, &scratch));
        float *p = scratch;
        for (int task = 0; task < n_new * n_heads; task++) {
            int row = start + task / n_heads, head = task % n_heads;
            int position = batch->kv_length[s] - n_new + task / n_heads;
            int first =
                shape->window && position >= shape->window ? position - shape->window + 1 : 0;
            const float *qi = (const float *)q + ((ptrdiff_t)row * n_heads + head) * hd;
            float *y = (float *)out + ((ptrdiff_t)row * n_heads + head) * hd;
            for (int t = first; t <= position; t++) {
                float sum = 0;
                for (int i = 0; i < hd; i++) {
                    sum += qi[i] * kv_at(kv, batch, layer, s, 0, head / group, t, i);
                }
                p[t] = sum * scale;
            }
            softmax(p + first, position + 1 - first);
            for (int i = 0; i < hd; i++) {
                y[i] = 0;
                for (int t = first; t <= position; t++) {
                    y[i] += p[t] * kv_at(kv, batch, layer, s, 1, head / group, t, i);
                }
            }
        }
    }
    return LV_OK;
}

static lv_status ref_norm_gate_up_silu(lv_backend *be, const void *x, int m, const float *norm,
                                       float eps, const lv_linear *gate_up, void *out) {
    int d = gate_up->n_in, d_ff = gate_up->n_out / 2;
    void *scratch;
    LV_TRY(lv_cpu_scratch((lv_cpu *)be, LV_SCRATCH_NORM, (size_t)(d + 2 * d_ff) * sizeof(float),
                          &scratch));
    float *h = scratch, *y = h + d;
    for (int i = 0; i < m; i++) {
        rms_norm((const float *)x + (ptrdiff_t)i * d, d, norm, eps, h);
        LV_TRY(ref_linear(be, h, 1, gate_up, LV_ACT_NONE, NULL, y));
        for (int j = 0; j < d_ff; j++) {
            ((float *)out)[(ptrdiff_t)i * d_ff + j] = activate(LV_ACT_SILU, y[j]) * y[d_ff + j];
        }
    }
    return LV_OK;
}

static lv_status ref_norm_logits(lv_backend *be, const lv_batch *batch, const void *x,
                                 const float *norm, float eps, const lv_linear *head,
                                 float *logits) {
    const int32_t *rows = batch->logit_rows;
    const int n_rows = batch->n_logits;
    void *scratch;
    LV_TRY(lv_cpu_scratch((lv_cpu *)be, LV_SCRATCH_NORM, (size_t)head->n_in * sizeof(float),
                          &scratch));
    for (int i = 0; i < n_rows; i++) {
        rms_norm((const float *)x + (ptrdiff_t)rows[i] * head->n_in, head->n_in, norm, eps,
                 scratch);
        LV_TRY(ref_linear(be, scratch, 1, head, LV_ACT_NONE, NULL,
                          logits + (ptrdiff_t)i * head->n_out));
    }
    return LV_OK;
}

void lv_cpu_reference_ops(lv_ops *ops) {
    ops->linear = ref_linear;
    ops->layer_norm = ref_layer_norm;
    ops->patch_embed = ref_patch_embed;
    ops->image_attention = ref_image_attention;
    ops->norm_qkv_rope_append = ref_norm_qkv_rope_append;
    ops->attention = ref_attention;
    ops->norm_gate_up_silu = ref_norm_gate_up_silu;
    ops->norm_logits = ref_norm_logits;
}
