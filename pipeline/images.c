// Embeddings of pictures in the decoder's space: made for several requests at a time, kept for
// questions to come, the least recently used given up first.
//
// They lie in slots of equal size, one allocation: a picture that comes moves no memory on the
// device, and nothing is freed while passes are recorded.
#include <stdlib.h>
#include <string.h>

#include "pipeline/engine.h"

typedef struct slot {
    bool is_filled;
    lv_hash id;
    int n_holds;
    uint64_t used; // when last
} slot;

struct lv_images {
    lv_model *model;
    uint8_t *rows; // dev act [n_slots, slot_rows, d_model]
    size_t slot_bytes, row_bytes;
    slot *slots;
    int n_slots, n_filled;
    uint64_t clock;
    uint8_t *rgb; // [rgb_bytes] host, a batch's tiles
    size_t rgb_bytes;
};

// The most rows that any picture of this model takes.
static size_t most_rows(const lv_model *model) {
    const lv_image_config *c = &model->config->image;
    const size_t rows = (size_t)lv_vision_rows(model->vision);
    size_t most = rows;
    for (int i = 0; c->layout == LV_LAYOUT_ANYRES && i < c->n_pinpoints; i++) {
        const size_t across = (size_t)(c->pinpoints[i][0] / c->size);
        const size_t down = (size_t)(c->pinpoints[i][1] / c->size);
        // The whole picture, the tiles, and a newline for each of their rows of patches.
        const size_t n = rows * (1 + across * down) + down * rows;
        most = n > most ? n : most;
    }
    return most;
}

lv_status lv_images_create(lv_model *model, size_t max_bytes, int chunk_tokens, lv_images **out) {
    lv_backend *be = model->be;
    lv_status status = LV_OK;
    lv_images *images = calloc(1, sizeof *images);
    *out = NULL;
    if (!images) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    images->model = model;
    images->row_bytes = (size_t)model->config->text.d_model * lv_dtype_bytes(be->act);
    images->slot_bytes = most_rows(model) * images->row_bytes;
    // A chunk's pictures must fit at once, and one more.
    const int least = chunk_tokens / lv_vision_rows(model->vision) + 2;
    const size_t wanted = max_bytes ? max_bytes / images->slot_bytes : be->is_gpu ? 64 : 16;
    images->n_slots = wanted > (size_t)least ? (int)(wanted < 65536 ? wanted : 65536) : least;
    images->slots = calloc((size_t)images->n_slots, sizeof *images->slots);
    if (!images->slots) {
        status = lv_fail(LV_ENOMEM, "out of memory");
        goto done;
    }
    LV_TRY_DONE(
        be->ops->alloc(be, (size_t)images->n_slots * images->slot_bytes, (void **)&images->rows));
    *out = images;
    images = NULL;
done:
    lv_images_free(images);
    return status;
}

void lv_images_free(lv_images *images) {
    if (images) {
        images->model->be->ops->free(images->model->be, images->rows);
        free(images->slots);
        free(images->rgb);
        free(images);
    }
}

int lv_images_find(lv_images *images, const lv_hash *id) {
    for (int i = 0; i < images->n_slots; i++) {
        slot *s = &images->slots[i];
        if (s->is_filled && memcmp(s->id.bytes, id->bytes, LV_HASH_BYTES) == 0) {
            s->n_holds++;
            return i;
        }
    }
    return -1;
}

static int take(lv_images *images, const lv_hash *id) {
    int best = -1;
    for (int i = 0; i < images->n_slots; i++) {
        const slot *s = &images->slots[i];
        if (s->n_holds == 0 && (best < 0 || s->used < images->slots[best].used)) {
            best = i;
        }
    }
    if (best >= 0) {
        images->n_filled += !images->slots[best].is_filled;
        images->slots[best] = (slot){.is_filled = true, .id = *id, .n_holds = 1};
    }
    return best;
}

void lv_images_release(lv_images *images, int index) {
    images->slots[index].n_holds--;
    images->slots[index].used = ++images->clock;
}

const void *lv_images_row(const lv_images *images, int index, int row) {
    return images->rows + (size_t)index * images->slot_bytes + (size_t)row * images->row_bytes;
}

size_t lv_images_bytes(const lv_images *images) {
    return (size_t)images->n_filled * images->slot_bytes;
}

int lv_images_unheld(const lv_images *images) {
    int n = 0;
    for (int i = 0; i < images->n_slots; i++) {
        n += images->slots[i].n_holds == 0;
    }
    return n;
}

// --- encoding ------------------------------------------------------------------------------------

static size_t tile_bytes(const lv_tiles *tiles) {
    return 3 * (size_t)tiles->size * (size_t)tiles->size;
}

// The tiles of all pictures, one after the other; a single picture's stay where they are.
static lv_status join_tiles(lv_images *images, lv_picture *const *pictures, int n,
                            const uint8_t **out_rgb) {
    size_t n_bytes = 0, at = 0;
    *out_rgb = pictures[0]->tiles.rgb;
    if (n == 1) {
        return LV_OK;
    }
    for (int i = 0; i < n; i++) {
        n_bytes += (size_t)pictures[i]->tiles.n_tiles * tile_bytes(&pictures[i]->tiles);
    }
    if (n_bytes > images->rgb_bytes) {
        free(images->rgb);
        images->rgb_bytes = 0;
        images->rgb = malloc(n_bytes);
        if (!images->rgb) {
            return lv_fail(LV_ENOMEM, "out of memory for %zu bytes of tiles", n_bytes);
        }
        images->rgb_bytes = n_bytes;
    }
    for (int i = 0; i < n; i++) {
        const lv_tiles *tiles = &pictures[i]->tiles;
        const size_t picture_bytes = (size_t)tiles->n_tiles * tile_bytes(tiles);
        memcpy(images->rgb + at, tiles->rgb, picture_bytes);
        at += picture_bytes;
    }
    *out_rgb = images->rgb;
    return LV_OK;
}

static lv_status run(lv_images *images, lv_picture *const *pictures, const int *slots, int n) {
    const lv_model *model = images->model;
    const size_t feature_bytes = (size_t)lv_vision_rows(model->vision) *
                                 (size_t)lv_vision_width(model->vision) *
                                 lv_dtype_bytes(model->be->act);
    const void *features;
    const uint8_t *rgb;
    int n_tiles = 0;
    for (int i = 0; i < n; i++) {
        n_tiles += pictures[i]->tiles.n_tiles;
    }
    LV_TRY(join_tiles(images, pictures, n, &rgb));
    LV_TRY(lv_vision_encode(model->vision, rgb, n_tiles, &features));
    for (int i = 0; i < n; i++) {
        LV_TRY(lv_projector_run(model->projector, features, &pictures[i]->shape,
                                (void *)(uintptr_t)lv_images_row(images, slots[i], 0)));
        features = (const uint8_t *)features + (size_t)pictures[i]->tiles.n_tiles * feature_bytes;
    }
    return model->be->ops->sync(model->be);
}

int lv_images_encode(lv_images *images, lv_picture *const *pictures, int n, int *slots,
                     lv_status *status) {
    int n_taken = 0;
    *status = LV_OK;
    while (n_taken < n && (slots[n_taken] = take(images, &pictures[n_taken]->id)) >= 0) {
        n_taken++;
    }
    if (n_taken > 0) {
        *status = run(images, pictures, slots, n_taken);
    }
    for (int i = 0; *status != LV_OK && i < n_taken; i++) {
        images->slots[slots[i]] = (slot){0};
        images->n_filled--;
    }
    return *status == LV_OK ? n_taken : 0;
}

static lv_status dump_values(const lv_model *model, const lv_picture *picture, int index,
                             const char *dump_dir) {
    const lv_tiles *tiles = &picture->tiles;
    const int64_t dims[] = {tiles->n_tiles, 3, tiles->size, tiles->size};
    float *values = malloc((size_t)tiles->n_tiles * tile_bytes(tiles) * sizeof *values);
    if (!values) {
        return lv_fail(LV_ENOMEM, "out of memory for %d tiles", tiles->n_tiles);
    }
    lv_tiles_normalize(tiles, &model->config->image, values);
    const lv_status status = lv_dump(dump_dir, "pixel_values", index, LV_F32, values, 4, dims);
    free(values);
    return status;
}

lv_status lv_images_dump(lv_images *images, const lv_picture *picture, int index, int slot_index,
                         const char *dump_dir) {
    const lv_model *model = images->model;
    const lv_tiles *tiles = &picture->tiles;
    const int64_t n = tiles->n_tiles, size = tiles->size;
    const void *features;
    LV_TRY(lv_vision_encode(model->vision, tiles->rgb, tiles->n_tiles, &features));
    LV_TRY(lv_dump(dump_dir, "pixels", index, LV_U8, tiles->rgb, 4,
                   (const int64_t[]){n, size, size, 3}));
    LV_TRY(dump_values(model, picture, index, dump_dir));
    LV_TRY(lv_dump_act(model->be, dump_dir, "vision_features", index, features, n,
                       lv_vision_rows(model->vision), lv_vision_width(model->vision)));
    return lv_dump_act(model->be, dump_dir, "image_embeds", index,
                       lv_images_row(images, slot_index, 0), 0, picture->n_tokens,
                       model->config->text.d_model);
}
