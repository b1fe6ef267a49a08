// Rotary frequencies, as transformers' modeling_rope_utils.py computes them: the base and what is
// derived from it in double, the table in float, in the same order of operations.
#include <math.h>

#include "llm/llm.h"

static const double pi = 3.14159265358979323846;

// 1 / theta^(2i / d)
static void plain(double theta, int head_dim, float *out) {
    for (int i = 0; i < head_dim / 2; i++) {
        out[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)head_dim);
    }
}

static void linear(double factor, int n, float *freq) {
    for (int i = 0; i < n; i++) {
        freq[i] /= (float)factor;
    }
}

// Dynamic NTK: theta (f L / M - (f - 1))^(d / (d - 2)), L the sequence's limit, M the trained
// length.
static double dynamic_theta(const lv_rope_config *rope, int head_dim, int limit) {
    double factor = rope->factor, d = head_dim;
    double s = factor * limit / rope->original_max_position - (factor - 1);
    return rope->theta * pow(s, d / (d - 2));
}

// The dimension that turns `n_turns` times over the trained length.
static double yarn_dim(const lv_rope_config *rope, int head_dim, double n_turns) {
    return head_dim * log(rope->original_max_position / (n_turns * 2 * pi)) /
           (2 * log((double)rope->theta));
}

// YaRN: fast dimensions keep their frequency, slow ones are divided by the factor, a ramp between.
static void yarn(const lv_rope_config *rope, int head_dim, float *out) {
    double low = floor(yarn_dim(rope, head_dim, rope->beta_fast));
    double high = ceil(yarn_dim(rope, head_dim, rope->beta_slow));
    low = low < 0 ? 0 : low;
    high = high > head_dim - 1 ? head_dim - 1 : high;
    high += low == high ? 0.001 : 0;
    for (int i = 0; i < head_dim / 2; i++) {
        float pos = powf(rope->theta, (float)(2 * i) / (float)head_dim);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1.0f - (ramp < 0 ? 0.0f : ramp > 1 ? 1.0f : ramp);
        out[i] = 1.0f / (rope->factor * pos) * (1.0f - keep) + 1.0f / pos * keep;
    }
}

// Llama 3: wavelengths beyond M / low are divided by the factor, those under M / high kept, a blend
// between.
static void llama3(const lv_rope_config *rope, int n, float *freq) {
    double m = rope->original_max_position;
    double low = rope->low_freq_factor, high = rope->high_freq_factor;
    for (int i = 0; i < n; i++) {
        float wavelength = 1.0f / freq[i] * (float)(2 * pi); // torch divides a number this way
        if (wavelength > (float)(m / low)) {
            freq[i] /= rope->factor;
        } else if (wavelength >= (float)(m / high)) {
            float smooth = (1.0f / wavelength * (float)m - (float)low) / (float)(high - low);
            freq[i] = (1.0f - smooth) * freq[i] / rope->factor + smooth * freq[i];
        }
    }
}

// What holds for a sequence of at most `limit` tokens: the config's own within the trained length,
// else `scaling` with its gaps filled.
static lv_rope_config choose(const lv_text_config *config, const lv_rope_config *scaling,
                             int limit) {
    lv_rope_config rope = config->rope;
    if (limit > config->max_position && scaling) {
        rope = *scaling;
    } else if (limit > config->max_position && rope.type == LV_ROPE_PLAIN) {
        rope.type = LV_ROPE_DYNAMIC;
        rope.factor = 1;
    }
    bool is_dynamic = rope.type == LV_ROPE_DYNAMIC;
    rope.theta = rope.theta > 0 ? rope.theta : config->rope.theta;
    if (rope.original_max_position <= 0) {
        rope.original_max_position = config->max_position;
    }
    if (!(rope.factor > 0)) {
        float needed = (float)limit / (float)rope.original_max_position;
        rope.factor = is_dynamic || needed < 1 ? 1 : needed;
    }
    rope.beta_fast = rope.beta_fast > 0 ? rope.beta_fast : 32;
    rope.beta_slow = rope.beta_slow > 0 ? rope.beta_slow : 1;
    if (is_dynamic && limit <= rope.original_max_position) {
        rope.type = LV_ROPE_PLAIN;
    }
    return rope;
}

static lv_status check(const lv_rope_config *rope, int head_dim, int limit) {
    if (head_dim < 4 || head_dim % 2 || limit <= 0) {
        return lv_fail(LV_EINVAL, "rotary embedding: head_dim %d, limit %d", head_dim, limit);
    }
    if (!(rope->theta > 1) || rope->original_max_position <= 0 || !isfinite(rope->theta) ||
        !isfinite(rope->factor)) {
        return lv_fail(LV_EINVAL, "rotary embedding: theta %g, factor %g, trained length %d",
                       (double)rope->theta, (double)rope->factor, rope->original_max_position);
    }
    if (rope->type == LV_ROPE_LLAMA3 &&
        !(rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor)) {
        return lv_fail(LV_EINVAL, "rope_scaling: low_freq_factor %g, high_freq_factor %g",
                       (double)rope->low_freq_factor, (double)rope->high_freq_factor);
    }
    return LV_OK;
}

lv_status lv_rope_frequencies(const lv_text_config *config, const lv_rope_config *scaling,
                              int limit, float *out_inv_freq, float *out_scale) {
    lv_rope_config rope = choose(config, scaling, limit);
    int head_dim = config->head_dim, n = head_dim / 2;
    LV_TRY(check(&rope, head_dim, limit));
    *out_scale = 1;
    plain(rope.theta, head_dim, out_inv_freq);
    switch (rope.type) {
    case LV_ROPE_PLAIN:
        return LV_OK;
    case LV_ROPE_LINEAR:
        linear(rope.factor, n, out_inv_freq);
        return LV_OK;
    case LV_ROPE_DYNAMIC:
        plain(dynamic_theta(&rope, head_dim, limit), head_dim, out_inv_freq);
        return LV_OK;
    case LV_ROPE_LLAMA3:
        llama3(&rope, n, out_inv_freq);
        return LV_OK;
    case LV_ROPE_YARN:
        yarn(&rope, head_dim, out_inv_freq);
        *out_scale = rope.attention_factor > 0 ? rope.attention_factor
                     : rope.factor > 1         ? (float)(0.1 * log((double)rope.factor) + 1)
                                               : 1;
        return LV_OK;
    }
    return lv_fail(LV_EUNSUPPORTED, "rope_scaling: type %d", (int)rope.type);
}
