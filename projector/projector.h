// Patch features -> image embeddings in the decoder's space, in the order the decoder reads them.
#ifndef LV_PROJECTOR_H
#define LV_PROJECTOR_H

#include "kernels/ops.h"

typedef struct lv_projector lv_projector;

lv_status lv_projector_load(const lv_checkpoint *checkpoint, lv_backend *be,
                            lv_projector **out) LV_MUST_CHECK;
void lv_projector_free(lv_projector *projector);

// How a picture's tiles lie: 1.5 has one tile and grid 1 x 1; 1.6 has the whole picture first, then
// grid_height rows of grid_width tiles.
typedef struct lv_picture_shape {
    int n_tiles, rows_per_tile; // feature rows a tile
    int grid_width, grid_height;
    int original_width, original_height; // pixels, before any resizing
} lv_picture_shape;

// Image tokens a picture takes: 576 for 1.5; 576 + h (w + 1) after unpadding for 1.6.
int lv_projector_tokens(const lv_projector *projector, const lv_picture_shape *shape);

// features dev act [n_tiles, rows_per_tile, d_vision] -> out dev act [lv_projector_tokens,
// d_model]: Linear, exact GELU, Linear; then (1.6) tiles joined, padding cropped, image_newline
// after each row.
lv_status lv_projector_run(lv_projector *projector, const void *features,
                           const lv_picture_shape *shape, void *out) LV_MUST_CHECK;

#endif
