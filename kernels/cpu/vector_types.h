// GCC vectors of LV_W f32 lanes and what the kernels do with them; included by vector_*.c first.
#ifndef LV_KERNELS_CPU_VECTOR_TYPES_H
#define LV_KERNELS_CPU_VECTOR_TYPES_H

#include <stdint.h>
#include <string.h>

typedef float vf __attribute__((vector_size(LV_W * 4)));
typedef uint32_t vu __attribute__((vector_size(LV_W * 4)));
typedef uint16_t vh __attribute__((vector_size(LV_W * 2)));

static inline vf load(const float *p) {
    vf value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline void store(float *p, vf value) {
    memcpy(p, &value, sizeof value);
}

// a0 b0 a1 b1 ... of the lower and the upper halves.
#if LV_W == 16
#define interleave_low(a, b)                                                                       \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define interleave_high(a, b)                                                                      \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LV_W == 8
#define interleave_low(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define interleave_high(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define interleave_low(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define interleave_high(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

#endif
