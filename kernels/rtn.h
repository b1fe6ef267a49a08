// Rounding dense weights to int4, for models that come without quantised ones.
#ifndef LV_KERNELS_RTN_H
#define LV_KERNELS_RTN_H

#include "core/checkpoint.h"
#include "core/status.h"

#define LV_RTN_GROUP 128 // weights along n_in that share a scale and a zero

// A dense source -> what AWQ would store of it, each weight rounded to the nearest of 16 levels:
// over each group s = f16((max - min) / 15), where min <= 0 <= max, z = clamp(round(-min / s)),
// q = clamp(round(w / s) + z), clamped to 0 .. 15. Weights are rounded to f16 first; all else is
// f32, so that the CUDA backend finds the same integers. n_in must be a multiple of 128 and n_out
// of 8, else LV_EUNSUPPORTED. The bias is borrowed from `source`.
lv_status lv_rtn_int4(const lv_linear_source *source, int n_threads,
                      lv_linear_source *out) LV_MUST_CHECK;
// Frees what lv_rtn_int4 made and clears it; a source that is all zero is accepted.
void lv_rtn_free(lv_linear_source *source);

#endif
