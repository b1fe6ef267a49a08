// A picture's way from bytes to tiles.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipeline/internal.h"

#define DEFAULT_MAX_BYTES ((size_t)64 << 20)

static size_t max_bytes_of(const lv_picture *picture) {
    return picture->limits.max_bytes ? picture->limits.max_bytes : DEFAULT_MAX_BYTES;
}

static lv_picture *new_picture(const lv_model *model, const lv_picture_limits *limits,
                               const lv_fetch_options *fetch) {
    lv_picture *picture = calloc(1, sizeof *picture);
    if (picture) {
        picture->model = model;
        picture->limits = limits ? *limits : (lv_picture_limits){0};
        picture->fetch = fetch ? *fetch : (lv_fetch_options){0};
        atomic_init(&picture->n_holds, 1);
        atomic_init(&picture->state, LV_PICTURE_NOTED);
        pthread_mutex_init(&picture->lock, NULL);
    }
    return picture;
}

lv_picture *lv_picture_hold(lv_picture *picture) {
    atomic_fetch_add(&picture->n_holds, 1);
    return picture;
}

void lv_picture_free(lv_picture *picture) {
    if (!picture || atomic_fetch_sub(&picture->n_holds, 1) > 1) {
        return;
    }
    pthread_mutex_destroy(&picture->lock);
    lv_tiles_free(&picture->tiles);
    lv_buffer_free(&picture->bytes);
    free(picture->source);
    free(picture->reason);
    free(picture);
}

// --- reading and decoding

// A transfer's progress goes to whom the caller named, and to whoever may stop the work.
typedef struct transfer {
    const lv_fetch_options *options;
    bool (*goes_on)(void *user);
    void *user;
} transfer;

static bool transfer_progress(void *user, size_t n_bytes, size_t total_bytes) {
    const transfer *t = user;
    const lv_fetch_options *o = t->options;
    return (!t->goes_on || t->goes_on(t->user)) &&
           (!o->progress || o->progress(o->user, n_bytes, total_bytes));
}

static lv_status read_source(const lv_picture *picture, bool (*goes_on)(void *), void *user,
                             lv_buffer *out) {
    const char *source = picture->source;
    const size_t max_bytes = max_bytes_of(picture);
    if (strcmp(source, "-") == 0) {
        return lv_stream_read(STDIN_FILENO, "standard input", max_bytes, out);
    }
    if (lv_is_url(source)) {
        transfer t = {.options = &picture->fetch, .goes_on = goes_on, .user = user};
        lv_fetch_options capped = picture->fetch;
        capped.progress = transfer_progress;
        capped.user = &t;
        capped.max_bytes = capped.max_bytes ? capped.max_bytes : max_bytes;
        return lv_fetch(source, &capped, out);
    }
    return lv_file_read(source, max_bytes, out);
}

// Pixels and how they lie are all that the encoder reads; the model says what it makes of them.
static lv_status identify(lv_picture *picture) {
    const lv_tiles *t = &picture->tiles;
    const int32_t layout[] = {t->n_tiles,     t->size,           t->grid_width,
                              t->grid_height, t->original_width, t->original_height};
    const size_t n_bytes = (size_t)t->n_tiles * (size_t)t->size * (size_t)t->size * 3;
    const lv_span spans[] = {{picture->model->id.bytes, sizeof picture->model->id.bytes},
                             {layout, sizeof layout},
                             {t->rgb, n_bytes}};
    return lv_sha256(spans, 3, &picture->id);
}

static lv_status decode(lv_picture *picture, const uint8_t *bytes, size_t n_bytes) {
    const lv_model *model = picture->model;
    const lv_image_limits limits = {.max_bytes = picture->limits.max_bytes,
                                    .max_pixels = picture->limits.max_pixels,
                                    .max_side = picture->limits.max_side};
    const double start = lv_now_ms();
    lv_image image = {0};
    lv_status status = lv_image_decode(bytes, n_bytes, &limits, &image);
    if (status == LV_OK) {
        status = lv_tiles_make(&image, &model->config->image, &picture->tiles);
    }
    lv_image_free(&image);
    LV_TRY(status);
    picture->shape = (lv_picture_shape){.n_tiles = picture->tiles.n_tiles,
                                        .rows_per_tile = lv_vision_rows(model->vision),
                                        .grid_width = picture->tiles.grid_width,
                                        .grid_height = picture->tiles.grid_height,
                                        .original_width = picture->tiles.original_width,
                                        .original_height = picture->tiles.original_height};
    picture->n_tokens = lv_projector_tokens(model->projector, &picture->shape);
    LV_TRY(identify(picture));
    picture->preprocess_ms = lv_now_ms() - start;
    return LV_OK;
}

static lv_status read_and_decode(lv_picture *picture, bool (*goes_on)(void *), void *user) {
    lv_buffer read = {0};
    const double start = lv_now_ms();
    if (!picture->source) {
        return decode(picture, picture->bytes.data, picture->bytes.n_bytes);
    }
    lv_status status = read_source(picture, goes_on, user, &read);
    picture->load_ms = lv_now_ms() - start;
    if (status == LV_OK) {
        status = decode(picture, read.data, read.n_bytes);
    }
    lv_buffer_free(&read);
    return status;
}

// An outcome is final, but for a stop from outside. Called with the lock held.
static void settle(lv_picture *picture, lv_status status) {
    if (status == LV_ECANCELLED) {
        return;
    }
    picture->status = status;
    if (status != LV_OK) {
        picture->reason = strdup(lv_error());
    }
    lv_buffer_free(&picture->bytes);
    atomic_store(&picture->state, status == LV_OK ? LV_PICTURE_READY : LV_PICTURE_FAILED);
}

// Another thread may be fetching it for long. False where goes_on (may be NULL) says so meanwhile.
static bool lock(lv_picture *picture, bool (*goes_on)(void *), void *user) {
    while (pthread_mutex_trylock(&picture->lock) != 0) {
        if (goes_on && !goes_on(user)) {
            return false;
        }
        usleep(10000);
    }
    return true;
}

lv_status lv_picture_make(lv_picture *picture, bool (*goes_on)(void *), void *user) {
    lv_status status = LV_OK;
    if (!lock(picture, goes_on, user)) {
        return lv_fail(LV_ECANCELLED, "the picture is no longer wanted");
    }
    if (atomic_load(&picture->state) == LV_PICTURE_NOTED) {
        status = read_and_decode(picture, goes_on, user);
        settle(picture, status);
    } else if (atomic_load(&picture->state) == LV_PICTURE_FAILED) {
        status =
            lv_fail(picture->status, "%s", picture->reason ? picture->reason : "out of memory");
    }
    pthread_mutex_unlock(&picture->lock);
    return status;
}

// --- the four ways to one

lv_status lv_picture_later(const lv_model *model, const char *source,
                           const lv_picture_limits *limits, const lv_fetch_options *fetch,
                           lv_picture **out) {
    *out = new_picture(model, limits, fetch);
    if (*out && ((*out)->source = strdup(source)) == NULL) {
        lv_picture_free(*out);
        *out = NULL;
    }
    return *out ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
}

lv_status lv_picture_load(const lv_model *model, const char *source,
                          const lv_picture_limits *limits, const lv_fetch_options *fetch,
                          lv_picture **out) {
    LV_TRY(lv_picture_later(model, source, limits, fetch, out));
    const lv_status status = lv_picture_make(*out, NULL, NULL);
    if (status != LV_OK) {
        lv_picture_free(*out);
        *out = NULL;
    }
    return status;
}

lv_status lv_picture_bytes_later(const lv_model *model, const uint8_t *bytes, size_t n_bytes,
                                 const lv_picture_limits *limits, lv_picture **out) {
    lv_picture *picture = new_picture(model, limits, NULL);
    *out = NULL;
    if (!picture) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    picture->bytes.max_bytes = max_bytes_of(picture);
    const lv_status status = lv_buffer_append(&picture->bytes, bytes, n_bytes);
    if (status != LV_OK) {
        lv_picture_free(picture);
        return status;
    }
    *out = picture;
    return LV_OK;
}

lv_status lv_picture_from_bytes(const lv_model *model, const uint8_t *bytes, size_t n_bytes,
                                const lv_picture_limits *limits, lv_picture **out) {
    lv_picture *picture = new_picture(model, limits, NULL);
    *out = NULL;
    if (!picture) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    const lv_status status = decode(picture, bytes, n_bytes);
    if (status != LV_OK) {
        lv_picture_free(picture);
        return status;
    }
    atomic_store(&picture->state, LV_PICTURE_READY);
    *out = picture;
    return LV_OK;
}

lv_picture_info lv_picture_describe(const lv_picture *picture) {
    lv_picture_info info = {0};
    if (atomic_load(&((lv_picture *)picture)->state) == LV_PICTURE_READY) {
        info = (lv_picture_info){.width = picture->tiles.original_width,
                                 .height = picture->tiles.original_height,
                                 .n_tiles = picture->tiles.n_tiles,
                                 .tile_size = picture->tiles.size,
                                 .n_tokens = picture->n_tokens,
                                 .load_ms = picture->load_ms,
                                 .preprocess_ms = picture->preprocess_ms};
        memcpy(info.id, picture->id.bytes, sizeof info.id);
    }
    return info;
}
