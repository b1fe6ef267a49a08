// A picture's way from bytes to embeddings in the decoder's space.
#include "pipeline/internal.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_MAX_BYTES ((size_t)64 << 20)

lv_status lv_dump(const char *dump_dir, const char *name, int index, lv_dtype dtype,
                  const void *data, int n_dims, const int64_t *dims) {
    char path[PATH_MAX], suffix[16] = "";
    lv_tensor tensor = {.data = data, .dtype = dtype, .n_dims = n_dims};
    memcpy(tensor.dims, dims, (size_t)n_dims * sizeof *dims);
    if (index > 0) {
        snprintf(suffix, sizeof suffix, "_%d", index + 1);
    }
    snprintf(path, sizeof path, "%s/%s%s.npy", dump_dir, name, suffix);
    return lv_npy_save(path, &tensor);
}

// Downloads act [n_rows, n_columns] and writes it as f32.
static lv_status dump_act(lv_backend *be, const char *dump_dir, const char *name, int index,
                          const void *dev, int64_t n_tiles, int64_t n_rows, int64_t n_columns) {
    const size_t n = (size_t)(n_tiles ? n_tiles : 1) * (size_t)n_rows * (size_t)n_columns;
    float *host = malloc(n * sizeof *host);
    if (!host) {
        return lv_fail(LV_ENOMEM, "out of memory for %s", name);
    }
    lv_status status = be->ops->download_act(be, host, dev, n);
    if (status == LV_OK) {
        const int64_t dims[] = {n_tiles, n_rows, n_columns};
        status = n_tiles ? lv_dump(dump_dir, name, index, LV_F32, host, 3, dims)
                         : lv_dump(dump_dir, name, index, LV_F32, host, 2, dims + 1);
    }
    free(host);
    return status;
}

static lv_status read_source(const char *source, size_t max_bytes, const lv_fetch_options *fetch,
                             lv_buffer *out) {
    if (strcmp(source, "-") == 0) {
        return lv_stream_read(STDIN_FILENO, "standard input", max_bytes, out);
    }
    if (lv_is_url(source)) {
        lv_fetch_options capped = fetch ? *fetch : (lv_fetch_options){0};
        if (!capped.max_bytes) {
            capped.max_bytes = max_bytes;
        }
        return lv_fetch(source, &capped, out);
    }
    return lv_file_read(source, max_bytes, out);
}

lv_status lv_picture_load(const lv_model *model, const char *source,
                          const lv_picture_limits *limits, const lv_fetch_options *fetch,
                          lv_picture **out) {
    const double start = lv_now_ms();
    const size_t max_bytes = limits && limits->max_bytes ? limits->max_bytes : DEFAULT_MAX_BYTES;
    lv_buffer bytes = {0};
    *out = NULL;
    lv_status status = read_source(source, max_bytes, fetch, &bytes);
    const double load_ms = lv_now_ms() - start;
    if (status == LV_OK) {
        status = lv_picture_from_bytes(model, bytes.data, bytes.n_bytes, limits, out);
    }
    if (status == LV_OK) {
        (*out)->load_ms = load_ms;
    }
    lv_buffer_free(&bytes);
    return status;
}

lv_status lv_picture_from_bytes(const lv_model *model, const uint8_t *bytes, size_t n_bytes,
                                const lv_picture_limits *limits, lv_picture **out) {
    static atomic_uint_fast64_t next_serial;
    const double start = lv_now_ms();
    const lv_image_limits image_limits = {.max_bytes = limits ? limits->max_bytes : 0,
                                          .max_pixels = limits ? limits->max_pixels : 0,
                                          .max_side = limits ? limits->max_side : 0};
    lv_status status = LV_OK;
    lv_image image = {0};
    lv_picture *picture = calloc(1, sizeof *picture);
    *out = NULL;
    if (!picture) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    picture->model = model;
    picture->serial = atomic_fetch_add(&next_serial, 1);
    LV_TRY_DONE(lv_image_decode(bytes, n_bytes, &image_limits, &image));
    LV_TRY_DONE(lv_tiles_make(&image, &model->config->image, &picture->tiles));
    picture->shape = (lv_picture_shape){.n_tiles = picture->tiles.n_tiles,
                                        .rows_per_tile = lv_vision_rows(model->vision),
                                        .grid_width = picture->tiles.grid_width,
                                        .grid_height = picture->tiles.grid_height,
                                        .original_width = picture->tiles.original_width,
                                        .original_height = picture->tiles.original_height};
    picture->n_tokens = lv_projector_tokens(model->projector, &picture->shape);
    picture->preprocess_ms = lv_now_ms() - start;
    *out = picture;
    picture = NULL;
done:
    lv_picture_free(picture);
    lv_image_free(&image);
    return status;
}

void lv_picture_free(lv_picture *picture) {
    if (!picture) {
        return;
    }
    picture->model->be->ops->free(picture->model->be, picture->embeddings);
    lv_tiles_free(&picture->tiles);
    free(picture);
}

lv_picture_info lv_picture_describe(const lv_picture *picture) {
    return (lv_picture_info){.width = picture->tiles.original_width,
                             .height = picture->tiles.original_height,
                             .n_tiles = picture->tiles.n_tiles,
                             .tile_size = picture->tiles.size,
                             .n_tokens = picture->n_tokens,
                             .load_ms = picture->load_ms,
                             .preprocess_ms = picture->preprocess_ms,
                             .encode_ms = picture->encode_ms};
}

static lv_status dump_pixels(const lv_tiles *tiles, const float *pixel_values, const char *dump_dir,
                             int index) {
    const int64_t n = tiles->n_tiles, size = tiles->size;
    LV_TRY(lv_dump(dump_dir, "pixels", index, LV_U8, tiles->rgb, 4,
                   (const int64_t[]){n, size, size, 3}));
    return lv_dump(dump_dir, "pixel_values", index, LV_F32, pixel_values, 4,
                   (const int64_t[]){n, 3, size, size});
}

lv_status lv_picture_encode(lv_picture *picture, const char *dump_dir, int index) {
    if (picture->embeddings && !dump_dir) {
        return LV_OK;
    }
    const lv_model *model = picture->model;
    lv_backend *be = model->be;
    const lv_tiles *tiles = &picture->tiles;
    const double start = lv_now_ms();
    const size_t n_values = (size_t)tiles->n_tiles * 3 * (size_t)tiles->size * (size_t)tiles->size;
    const size_t d_model = (size_t)model->config->text.d_model;
    const void *features = NULL;
    lv_status status = LV_OK;
    float *pixel_values = malloc(n_values * sizeof *pixel_values);
    if (!pixel_values) {
        return lv_fail(LV_ENOMEM, "out of memory for %zu pixel values", n_values);
    }
    lv_tiles_normalize(tiles, &model->config->image, pixel_values);
    LV_TRY_DONE(lv_vision_encode(model->vision, pixel_values, tiles->n_tiles, &features));
    if (!picture->embeddings) {
        LV_TRY_DONE(be->ops->alloc(be,
                                   (size_t)picture->n_tokens * d_model * lv_dtype_bytes(be->act),
                                   &picture->embeddings));
    }
    LV_TRY_DONE(lv_projector_run(model->projector, features, &picture->shape, picture->embeddings));
    LV_TRY_DONE(be->ops->sync(be));
    picture->encode_ms = lv_now_ms() - start;
    if (dump_dir) {
        LV_TRY_DONE(dump_pixels(tiles, pixel_values, dump_dir, index));
        LV_TRY_DONE(dump_act(be, dump_dir, "vision_features", index, features, tiles->n_tiles,
                             lv_vision_rows(model->vision), lv_vision_width(model->vision)));
        LV_TRY_DONE(dump_act(be, dump_dir, "image_embeds", index, picture->embeddings, 0,
                             picture->n_tokens, (int64_t)d_model));
    }
done:
    free(pixel_values);
    return status;
}
