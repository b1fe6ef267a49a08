// Vector kernels for the platform's baseline: SSE2 on x86-64, NEON on aarch64.
#define LV_W 4
#define LV_MR 4
#define LV_NV 2
#define LV_KERNELS lv_vector_portable

#include "core/tensor.h"
#include "kernels/cpu/vector_types.h"

static inline vf lv_load_f16(const uint8_t *p) {
    float value[LV_W];
    lv_to_f32(LV_F16, p, LV_W, value);
    return load(value);
}

#include "kernels/cpu/vector.inc.h"
