#include "core/tensor.h"

#include <string.h>

size_t lv_dtype_bytes(lv_dtype dtype) {
    switch (dtype) {
    case LV_F32:
    case LV_I32:
        return 4;
    case LV_F16:
    case LV_BF16:
        return 2;
    case LV_I64:
        return 8;
    case LV_I8:
    case LV_U8:
        return 1;
    case LV_NONE:
        break;
    }
    return 0;
}

const char *lv_dtype_name(lv_dtype dtype) {
    switch (dtype) {
    case LV_F32:
        return "f32";
    case LV_F16:
        return "f16";
    case LV_BF16:
        return "bf16";
    case LV_I64:
        return "i64";
    case LV_I32:
        return "i32";
    case LV_I8:
        return "i8";
    case LV_U8:
        return "u8";
    case LV_NONE:
        break;
    }
    return "none";
}

int64_t lv_tensor_count(const lv_tensor *tensor) {
    int64_t count = 1;
    for (int i = 0; i < tensor->n_dims; i++) {
        count *= tensor->dims[i];
    }
    return count;
}

size_t lv_tensor_bytes(const lv_tensor *tensor) {
    return (size_t)lv_tensor_count(tensor) * lv_dtype_bytes(tensor->dtype);
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Moving exponent and mantissa into a float's fields leaves the value 2^112 too small, subnormals
// included; the exponent of infinities and NaN is set outright. No branches, so loops vectorise.
float lv_f16_to_f32(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu;
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t scaled = bits_of(float_of(magnitude << 13) * 0x1p112f);
    uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u | magnitude << 13 : scaled;
    return float_of(sign | special);
}

uint16_t lv_f32_to_f16(float value) {
    uint32_t bits = bits_of(value);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    } else if (magnitude >= 0x477ff000u) { // 65520 and above round to infinity
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) { // below 2^-14: an ulp of 0.5f is a subnormal's step
        half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    } else {
        half = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
    }
    return (uint16_t)(sign | half);
}

float lv_bf16_to_f32(uint16_t half) {
    return float_of((uint32_t)half << 16);
}

uint16_t lv_f32_to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u); // stays a NaN though its low bits go
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void lv_to_f32(lv_dtype from, const void *source, size_t n, float *out) {
    const uint8_t *bytes = source;
    uint16_t half;
    if (from == LV_F32) {
        if (n) {
            memcpy(out, source, n * sizeof *out);
        }
    } else if (from == LV_F16) {
        for (size_t i = 0; i < n; i++) {
            memcpy(&half, bytes + 2 * i, 2);
            out[i] = lv_f16_to_f32(half);
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            memcpy(&half, bytes + 2 * i, 2);
            out[i] = lv_bf16_to_f32(half);
        }
    }
}
