// Sizes and operations of the int4 kernels on AVX-512; v_dot is the includer's, with VNNI or
// without.
#include <immintrin.h>

#define LV_LANES 16
#define LV_TILE_VECTORS 1
#define LV_DIRECT_ROWS 12
#define LV_DIRECT_BLOCKS 2
#define LV_BLOCK_ROWS 12
#define LV_PREFETCH_BYTES 8192
typedef __m512i vi;
typedef int32_t vsum __attribute__((vector_size(64))); // one mode for all of a sum's life
typedef __m512 vs;
#define v_load(p) _mm512_loadu_si512(p)
#define v_store(p, v) _mm512_storeu_si512(p, v)
#define v_set(x) _mm512_set1_epi32(x)
#define v_and(a, b) _mm512_and_si512(a, b)
#define v_shift(a, n) _mm512_srli_epi32(a, n)
#define v_sub16(a, b) _mm512_sub_epi16(a, b)
#define v_add(a, b) _mm512_add_epi32(a, b)
#define v_sub(a, b) _mm512_sub_epi32(a, b)
#define v_mul(a, b) _mm512_mullo_epi32(a, b)
#define v_widen(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p)))
#define v_f16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define v_float(a) _mm512_cvtepi32_ps(a)
#define s_set(x) _mm512_set1_ps(x)
#define s_load(p) _mm512_loadu_ps(p)
#define s_store(p, v) _mm512_storeu_ps(p, v)
#define s_mul(a, b) _mm512_mul_ps(a, b)
#define s_add(a, b) _mm512_add_ps(a, b)
