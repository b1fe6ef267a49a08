// Half-precision conversions, exhaustively, and tensor sizes.
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/tensor.h"
#include "tests/check.h"

// binary16 from its definition.
static double f16_value(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void test_f16_all(void) {
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t half = (uint16_t)h;
        float value = lv_f16_to_f32(half);
        if ((half & 0x7c00) == 0x7c00) {
            bool nan = (half & 0x3ff) != 0;
            CHECK(nan ? isnan(value) : isinf(value), "%04x", h);
            CHECK(!signbit(value) == !(half & 0x8000), "%04x", h);
            // A NaN may become quiet, which sets its top bit.
            CHECK(lv_f32_to_f16(value) == (nan ? (half | 0x200) : half), "%04x", h);
        } else {
            CHECK((double)value == f16_value(half), "%04x", h);
            CHECK(lv_f32_to_f16(value) == half, "%04x", h);
        }
    }
}

// Between neighbours: the midpoint goes to the even one, anything off it to the nearer.
static void test_f16_rounding(void) {
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float low = lv_f16_to_f32((uint16_t)h), high = lv_f16_to_f32((uint16_t)(h + 1));
        float middle = (low + high) / 2; // exact in f32
        CHECK(lv_f32_to_f16(middle) == (h & 1 ? h + 1 : h), "%04x", h);
        CHECK(lv_f32_to_f16(nextafterf(middle, low)) == h, "%04x", h);
        CHECK(lv_f32_to_f16(nextafterf(middle, high)) == h + 1, "%04x", h);
        CHECK(lv_f32_to_f16(-middle) == (0x8000 | (h & 1 ? h + 1 : h)), "%04x", h);
    }
    CHECK(lv_f32_to_f16(65519.996f) == 0x7bff);
    CHECK(lv_f32_to_f16(65520.0f) == 0x7c00);
    CHECK(lv_f32_to_f16(FLT_MAX) == 0x7c00);
    CHECK(lv_f32_to_f16(FLT_MIN) == 0);
    CHECK(lv_f32_to_f16(-0.0f) == 0x8000);
    CHECK(lv_f32_to_f16(from_bits(0x7f800001)) == 0x7e00, "a NaN with only low bits stays one");
}

static void test_bf16(void) {
    for (uint32_t h = 0; h < 65536; h++) {
        float value = lv_bf16_to_f32((uint16_t)h);
        bool nan = (h & 0x7f80) == 0x7f80 && (h & 0x7f);
        CHECK(nan ? isnan(value) : lv_f32_to_bf16(value) == h, "%04x", h);
        CHECK(!nan || isnan(lv_bf16_to_f32(lv_f32_to_bf16(value))), "%04x", h);
    }
    CHECK(lv_f32_to_bf16(from_bits(0x3f808000)) == 0x3f80);
    CHECK(lv_f32_to_bf16(from_bits(0x3f818000)) == 0x3f82);
    CHECK(lv_f32_to_bf16(from_bits(0x3f808001)) == 0x3f81);
    CHECK(lv_f32_to_bf16(FLT_MAX) == 0x7f80);
    CHECK(isnan(lv_bf16_to_f32(lv_f32_to_bf16(from_bits(0x7f800001)))));
}

static void test_to_f32(void) {
    const float values[] = {1, -2.5f, 0, 65504, 6.1035156e-5f};
    const lv_dtype types[] = {LV_F32, LV_F16, LV_BF16};
    for (int t = 0; t < 3; t++) {
        uint8_t bytes[64];
        float out[5];
        for (size_t i = 0; i < 5; i++) {
            uint16_t half =
                types[t] == LV_F16 ? lv_f32_to_f16(values[i]) : lv_f32_to_bf16(values[i]);
            size_t size = lv_dtype_bytes(types[t]);
            memcpy(bytes + 1 + i * size, types[t] == LV_F32 ? (const void *)&values[i] : &half,
                   size);
        }
        lv_to_f32(types[t], bytes + 1, 5, out); // unaligned
        for (size_t i = 0; i < 5; i++) {
            float want =
                types[t] == LV_BF16 ? lv_bf16_to_f32(lv_f32_to_bf16(values[i])) : values[i];
            CHECK(out[i] == want, "%s, %zu: %g", lv_dtype_name(types[t]), i, (double)out[i]);
        }
        lv_to_f32(types[t], NULL, 0, out);
    }
}

static void test_sizes(void) {
    lv_tensor tensor = {.dtype = LV_F16, .n_dims = 3, .dims = {2, 3, 4}};
    CHECK(lv_tensor_count(&tensor) == 24);
    CHECK(lv_tensor_bytes(&tensor) == 48);
    tensor.n_dims = 0;
    CHECK(lv_tensor_count(&tensor) == 1);
    CHECK(lv_dtype_bytes(LV_NONE) == 0);
    CHECK(lv_dtype_bytes(LV_I64) == 8 && lv_dtype_bytes(LV_I32) == 4 && lv_dtype_bytes(LV_U8) == 1);
    CHECK(strcmp(lv_dtype_name(LV_BF16), "bf16") == 0);
}

int main(void) {
    test_f16_all();
    test_f16_rounding();
    test_bf16();
    test_to_f32();
    test_sizes();
    return check_done();
}
