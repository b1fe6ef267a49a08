// The int4 kernel for AVX-512 VNNI: vpdpwssd.
#if defined(__x86_64__)
#define LV_INT4_KERNEL lv_int4_vnni
#include "kernels/cpu/int4_avx512.inc.h"
#define v_dot(sum, w, x) ((vsum)_mm512_dpwssd_epi32((__m512i)(sum), w, x))

#include "kernels/cpu/int4.inc.h"
#else
typedef int lv_not_x86; // an empty file is not C
#endif
