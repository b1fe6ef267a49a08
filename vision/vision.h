// The CLIP vision tower: tiles -> patch features. Equations in MODEL.md, "Vision tower".
#ifndef LV_VISION_H
#define LV_VISION_H

#include "kernels/ops.h"

typedef struct lv_vision lv_vision;

// Loads the tower's weights onto the backend; both must outlive it.
lv_status lv_vision_load(const lv_checkpoint *checkpoint, lv_backend *be,
                         lv_vision **out) LV_MUST_CHECK;
void lv_vision_free(lv_vision *vision);

int lv_vision_rows(
    const lv_vision *vision); // feature rows a tile: n_patches (+ 1 where CLS is kept)
int lv_vision_width(const lv_vision *vision); // d_model of the tower

// rgb: host u8 [n_tiles, size, size, 3], normalised on the way -> *out_features: dev act [n_tiles,
// rows, width], the output of layer n_run_layers without post_layernorm. It belongs to the tower
// and holds until the next call.
lv_status lv_vision_encode(lv_vision *vision, const uint8_t *rgb, int n_tiles,
                           const void **out_features) LV_MUST_CHECK;

#endif
