// The int4 kernel for AVX2 + F16C: vpmaddwd and an addition.
#if defined(__x86_64__)
#include <immintrin.h>

#define LV_INT4_KERNEL lv_int4_avx2
#define LV_LANES 8
#define LV_TILE_VECTORS 2
#define LV_DIRECT_ROWS 2
#define LV_DIRECT_BLOCKS 1
#define LV_BLOCK_ROWS 6
#define LV_PREFETCH_BYTES 8192
typedef __m256i vi;
typedef int32_t vsum __attribute__((vector_size(32))); // one mode for all of a sum's life
typedef __m256 vs;
#define v_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define v_store(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define v_set(x) _mm256_set1_epi32(x)
#define v_and(a, b) _mm256_and_si256(a, b)
#define v_shift(a, n) _mm256_srli_epi32(a, n)
#define v_sub16(a, b) _mm256_sub_epi16(a, b)
#define v_dot(sum, w, x) ((sum) + (vsum)_mm256_madd_epi16(w, x))
#define v_add(a, b) _mm256_add_epi32(a, b)
#define v_sub(a, b) _mm256_sub_epi32(a, b)
#define v_mul(a, b) _mm256_mullo_epi32(a, b)
#define v_widen(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p)))
#define v_f16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define v_float(a) _mm256_cvtepi32_ps(a)
#define s_set(x) _mm256_set1_ps(x)
#define s_load(p) _mm256_loadu_ps(p)
#define s_store(p, v) _mm256_storeu_ps(p, v)
#define s_mul(a, b) _mm256_mul_ps(a, b)
#define s_add(a, b) _mm256_add_ps(a, b)

#include "kernels/cpu/int4.inc.h"
#else
typedef int lv_not_x86; // an empty file is not C
#endif
