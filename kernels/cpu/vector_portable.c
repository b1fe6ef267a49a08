// Vector kernels for the platform's baseline: SSE2 on x86-64, NEON on aarch64.
#define LV_W 4
#define LV_MR 4
#define LV_NV 2
#define LV_KERNELS lv_vector_portable

#include "kernels/cpu/vector_types.h"

// Exponent and fraction moved into place and rescaled by 2^(127 - 15), which is exact and makes
// subnormal numbers normal; infinities and NaN get the full exponent.
static inline vf lv_load_f16(const uint8_t *p) {
    vh half;
    memcpy(&half, p, sizeof half);
    vu bits = __builtin_convertvector(half, vu);
    vu magnitude = (vu)((vf)((bits & 0x7FFF) << 13) * 0x1p112f);
    magnitude |= (vu)((bits & 0x7C00) == 0x7C00) & 0x7F800000;
    return (vf)(magnitude | (bits & 0x8000) << 16);
}

static inline vf lv_load_i8(const uint8_t *p) {
    const int8_t *q = (const int8_t *)p;
    return (vf){q[0], q[1], q[2], q[3]};
}

#include "kernels/cpu/vector.inc.h"
