// Vector kernels for AVX2 + FMA + F16C.
#if defined(__x86_64__)
#define LV_W 8
#define LV_MR 6
#define LV_NV 2
#define LV_KERNELS lv_vector_avx2

#include <immintrin.h>

#include "kernels/cpu/vector_types.h"

static inline vf lv_load_f16(const uint8_t *p) {
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

static inline vf lv_load_i8(const uint8_t *p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

#include "kernels/cpu/vector.inc.h"
#else
typedef int lv_not_x86; // an empty file is not C
#endif
