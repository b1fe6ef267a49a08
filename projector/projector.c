// Two linears with an activation between, then the order in which the decoder reads a picture.
// Sources: transformers LlavaMultiModalProjector and LlavaNextModel (llava-hf checkpoints), the
// original LLaVA's llava_arch (its own checkpoints).
#include "projector/projector.h"

#include <math.h>
#include <stdlib.h>

#define ROWS_PER_PASS 2880 // five tiles of 576

struct lv_projector {
    lv_backend *be;
    lv_family family;
    bool is_next, spatial_unpad;
    int side; // patches across a tile
    int d_hidden, d_model;
    size_t d_vision;
    lv_activation activation;
    lv_linear *linear_1, *linear_2; // [d_hidden, d_vision], [d_model, d_hidden]
    float *image_newline;           // [d_model]; NULL for 1.5
    void *hidden;                   // dev act [ROWS_PER_PASS, d_hidden]
    void *projected;                // dev act [projected_rows, d_model]
    size_t projected_rows;
};

lv_status lv_projector_load(const lv_checkpoint *checkpoint, lv_backend *be, lv_projector **out) {
    lv_status status = LV_OK;
    const lv_config *config = lv_checkpoint_config(checkpoint);
    lv_projector *projector = calloc(1, sizeof *projector);
    *out = NULL;
    if (!projector) {
        return lv_fail(LV_ENOMEM, "projector: out of memory");
    }
    projector->be = be;
    projector->family = config->family;
    projector->is_next = config->is_next;
    projector->spatial_unpad = config->spatial_unpad;
    projector->side = config->vision.image_size / config->vision.patch_size;
    projector->d_vision = (size_t)config->vision.d_model;
    projector->d_hidden = config->projector_hidden;
    projector->d_model = config->text.d_model;
    projector->activation = config->projector_activation;
    if (config->is_next && !config->vision.drop_cls) {
        status =
            lv_fail(LV_EUNSUPPORTED, "a LLaVA-1.6 that keeps the class token is not supported");
        goto done;
    }

    lv_linear_source source;
    LV_TRY_DONE(lv_checkpoint_linear(checkpoint, "multi_modal_projector.linear_1",
                                     projector->d_hidden, config->vision.d_model, &source));
    LV_TRY_DONE(be->ops->linear_load(be, &source, 1, NULL, &projector->linear_1));
    LV_TRY_DONE(lv_checkpoint_linear(checkpoint, "multi_modal_projector.linear_2",
                                     projector->d_model, projector->d_hidden, &source));
    LV_TRY_DONE(be->ops->linear_load(be, &source, 1, NULL, &projector->linear_2));
    if (config->is_next && config->spatial_unpad) {
        lv_tensor newline;
        LV_TRY_DONE(lv_checkpoint_tensor(checkpoint, "image_newline", 1,
                                         (const int64_t[]){projector->d_model}, &newline));
        LV_TRY_DONE(be->ops->tensor_load(be, &newline, &projector->image_newline));
    }
    LV_TRY_DONE(be->ops->alloc(
        be, (size_t)ROWS_PER_PASS * (size_t)projector->d_hidden * lv_dtype_bytes(be->act),
        &projector->hidden));
    *out = projector;
    projector = NULL;
done:
    lv_projector_free(projector);
    return status;
}

void lv_projector_free(lv_projector *projector) {
    if (!projector) {
        return;
    }
    lv_backend *be = projector->be;
    be->ops->linear_free(be, projector->linear_1);
    be->ops->linear_free(be, projector->linear_2);
    be->ops->free(be, projector->image_newline);
    be->ops->free(be, projector->hidden);
    be->ops->free(be, projector->projected);
    free(projector);
}

// --- the order of a 1.6 picture ------------------------------------------------------------------

// The patches [top, bottom) x [left, right) of the joined grid that lie on the picture, not on
// padding.
typedef struct patch_window {
    int top, bottom, left, right;
} patch_window;

// A side's length in patches after scaling. The original truncates; transformers rounds to 7
// decimals first, so that 23.99999999 is 24.
static int scaled_side(lv_family family, int side, double scale) {
    double value = side * scale;
    if (family == LV_FAMILY_HF) {
        value = nearbyint(value * 1e7) / 1e7;
    }
    return (int)value;
}

static patch_window unpadded_window(const lv_projector *projector, const lv_picture_shape *shape) {
    const int height = projector->side * shape->grid_height;
    const int width = projector->side * shape->grid_width;
    patch_window window = {0, height, 0, width};
    const double picture_aspect = (double)shape->original_width / shape->original_height;
    if (picture_aspect > (double)width / height) {
        const double scale = (double)width / shape->original_width;
        const int kept = scaled_side(projector->family, shape->original_height, scale);
        window.top = (height - kept) / 2;
        window.bottom = height - window.top;
    } else {
        const double scale = (double)height / shape->original_height;
        const int kept = scaled_side(projector->family, shape->original_width, scale);
        window.left = (width - kept) / 2;
        window.right = width - window.left;
    }
    return window;
}

static bool is_merged(const lv_projector *projector) {
    return projector->is_next && projector->spatial_unpad;
}

int lv_projector_tokens(const lv_projector *projector, const lv_picture_shape *shape) {
    if (!is_merged(projector)) {
        return shape->n_tiles * shape->rows_per_tile;
    }
    const patch_window window = unpadded_window(projector, shape);
    return shape->rows_per_tile + (window.bottom - window.top) * (window.right - window.left + 1);
}

// index[i]: which feature row becomes token i; -1: image_newline.
static void merge_order(const lv_projector *projector, const lv_picture_shape *shape,
                        int32_t *index) {
    const patch_window window = unpadded_window(projector, shape);
    const int side = projector->side;
    int n = 0;
    for (int i = 0; i < shape->rows_per_tile; i++) {
        index[n++] = i;
    }
    for (int y = window.top; y < window.bottom; y++) {
        for (int x = window.left; x < window.right; x++) {
            const int tile = 1 + (y / side) * shape->grid_width + x / side;
            index[n++] = tile * shape->rows_per_tile + (y % side) * side + x % side;
        }
        index[n++] = -1;
    }
}

// --- running -------------------------------------------------------------------------------------

static lv_status project(lv_projector *projector, const void *features, size_t n_rows, void *out) {
    lv_backend *be = projector->be;
    const size_t in_bytes = projector->d_vision * lv_dtype_bytes(be->act);
    const size_t out_bytes = (size_t)projector->d_model * lv_dtype_bytes(be->act);
    for (size_t first = 0; first < n_rows; first += ROWS_PER_PASS) {
        const size_t left = n_rows - first;
        const int n = (int)(left < ROWS_PER_PASS ? left : ROWS_PER_PASS);
        LV_TRY(be->ops->linear(be, (const char *)features + first * in_bytes, n,
                               projector->linear_1, projector->activation, NULL,
                               projector->hidden));
        LV_TRY(be->ops->linear(be, projector->hidden, n, projector->linear_2, LV_ACT_NONE, NULL,
                               (char *)out + first * out_bytes));
    }
    return LV_OK;
}

static lv_status check_shape(const lv_projector *projector, const lv_picture_shape *shape) {
    const int grid_tiles = shape->grid_width * shape->grid_height;
    if (is_merged(projector) && (shape->n_tiles != 1 + grid_tiles ||
                                 shape->rows_per_tile != projector->side * projector->side)) {
        return lv_fail(LV_EINVAL,
                       "picture of %d tiles with %d rows each does not fit a %d x %d grid of %d",
                       shape->n_tiles, shape->rows_per_tile, shape->grid_width, shape->grid_height,
                       projector->side * projector->side);
    }
    if (shape->original_width < 1 || shape->original_height < 1) {
        return lv_fail(LV_EINVAL, "picture of %d x %d pixels", shape->original_width,
                       shape->original_height);
    }
    return LV_OK;
}

lv_status lv_projector_run(lv_projector *projector, const void *features,
                           const lv_picture_shape *shape, void *out) {
    lv_backend *be = projector->be;
    LV_TRY(check_shape(projector, shape));
    const size_t n_rows = (size_t)shape->n_tiles * (size_t)shape->rows_per_tile;
    if (!is_merged(projector)) {
        return project(projector, features, n_rows, out);
    }

    if (n_rows > projector->projected_rows) {
        be->ops->free(be, projector->projected);
        projector->projected = NULL;
        projector->projected_rows = 0;
        LV_TRY(be->ops->alloc(be, n_rows * (size_t)projector->d_model * lv_dtype_bytes(be->act),
                              &projector->projected));
        projector->projected_rows = n_rows;
    }
    LV_TRY(project(projector, features, n_rows, projector->projected));

    const int n_tokens = lv_projector_tokens(projector, shape);
    int32_t *index = malloc((size_t)n_tokens * sizeof *index);
    if (!index) {
        return lv_fail(LV_ENOMEM, "projector: out of memory for %d tokens", n_tokens);
    }
    merge_order(projector, shape, index);
    const lv_status status =
        be->ops->gather_rows(be, projector->projected, projector->image_newline, index, n_tokens,
                             projector->d_model, out);
    free(index);
    return status;
}
