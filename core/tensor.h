// Element types, half-precision conversion, and a borrowed view of an n-dimensional array.
#ifndef LV_CORE_TENSOR_H
#define LV_CORE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#define LV_MAX_DIMS 6

typedef enum lv_dtype {
    LV_NONE = 0,
    LV_F32,
    LV_F16,
    LV_BF16,
    LV_I64,
    LV_I32,
    LV_I8,
    LV_U8
} lv_dtype;

// Row-major and dense. `data` is borrowed: from a mapped checkpoint it lives as long as that is
// open. It may be unaligned (safetensors promises no alignment): read it with memcpy or unaligned
// loads.
typedef struct lv_tensor {
    const void *data; // [dims[0], ..., dims[n_dims - 1]] dtype; NULL: absent
    lv_dtype dtype;
    int n_dims;
    int64_t dims[LV_MAX_DIMS];
} lv_tensor;

size_t lv_dtype_bytes(lv_dtype dtype);     // 0 for LV_NONE
const char *lv_dtype_name(lv_dtype dtype); // "f32", "f16", ...
int64_t lv_tensor_count(const lv_tensor *tensor);
size_t lv_tensor_bytes(const lv_tensor *tensor);

// IEEE 754 binary16 and bfloat16, round to nearest even, NaN and infinities kept.
float lv_f16_to_f32(uint16_t half);
uint16_t lv_f32_to_f16(float value);
float lv_bf16_to_f32(uint16_t half);
uint16_t lv_f32_to_bf16(float value);

// Converts n elements of f32, f16 or bf16 (`from`, possibly unaligned) to f32.
void lv_to_f32(lv_dtype from, const void *source, size_t n, float *out);

#endif
