// Checks of sources, the same for every backend.
#ifndef LV_KERNELS_SOURCES_H
#define LV_KERNELS_SOURCES_H

#include "kernels/ops.h"

// Parts of one linear: 1 to 3, of equal n_in, kind and type, with tensors of the shapes that
// lv_linear_source says. *out_n_out: rows of all. LV_EINVAL, LV_EFORMAT or LV_EUNSUPPORTED.
lv_status lv_check_sources(const lv_linear_source *parts, int n_parts,
                           int *out_n_out) LV_MUST_CHECK;
lv_status lv_check_tensor(const lv_tensor *source) LV_MUST_CHECK; // f32, f16 or bf16

#endif
