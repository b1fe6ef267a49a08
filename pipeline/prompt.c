// Messages -> a timeline of tokens and picture rows.
#include <stdlib.h>

#include "pipeline/internal.h"

// How long the timeline is; LV_EINVAL where the marks and the pictures do not agree.
static lv_status measure(const lv_ids *ids, lv_picture *const *pictures, int n_pictures, int *out_n,
                         int *out_n_image) {
    int64_t n = 0, n_image = 0;
    int n_marks = 0;
    for (int i = 0; i < ids->n; i++) {
        if (ids->ids[i] != LV_IMAGE_TOKEN) {
            n++;
        } else if (n_marks < n_pictures) {
            n_image += pictures[n_marks++]->n_tokens;
        } else {
            return lv_fail(LV_EINVAL, "the prompt marks more pictures than it has");
        }
    }
    if (n + n_image > 1 << 24) {
        return lv_fail(LV_ELIMIT, "the prompt is %lld tokens (%lld of them pictures); at most %d",
                       (long long)(n + n_image), (long long)n_image, 1 << 24);
    }
    *out_n = (int)(n + n_image);
    *out_n_image = (int)n_image;
    return LV_OK;
}

// The ids as the reference's processor gives them: llava-hf repeats <image> for each row, the
// original family has one mark a picture.
static lv_status dump_ids(const lv_model *model, const lv_ids *ids, const lv_place *places,
                          int n_places, const char *dump_dir) {
    const int image_id = model->config->image_token_id;
    const int n = image_id >= 0 ? n_places : ids->n;
    int64_t *out = calloc((size_t)n + 1, sizeof *out);
    if (!out) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    for (int i = 0; i < n; i++) {
        out[i] = image_id < 0 ? ids->ids[i] : places[i].picture ? image_id : places[i].value;
    }
    const lv_status status =
        lv_dump(dump_dir, "input_ids", 0, LV_I64, out, 1, (const int64_t[]){n});
    free(out);
    return status;
}

lv_status lv_timeline_lay(const lv_model *model, const lv_turn *turns, int n_turns,
                          lv_picture *const *pictures, int n_pictures, const char *dump_dir,
                          lv_place **out_places, int *out_n, int *out_n_image) {
    lv_status status = LV_OK;
    lv_ids ids = {0};
    lv_place *places = NULL;
    *out_places = NULL;
    LV_TRY_DONE(lv_prompt_build(model->tokenizer, model->template_id, turns, n_turns, &ids));
    LV_TRY_DONE(measure(&ids, pictures, n_pictures, out_n, out_n_image));
    places = calloc((size_t)*out_n + 1, sizeof *places);
    if (!places) {
        status = lv_fail(LV_ENOMEM, "out of memory for a prompt of %d tokens", *out_n);
        goto done;
    }
    for (int i = 0, at = 0, picture = 0; i < ids.n; i++) {
        if (ids.ids[i] != LV_IMAGE_TOKEN) {
            places[at++] = (lv_place){0, ids.ids[i]};
            continue;
        }
        for (int row = 0; row < pictures[picture]->n_tokens; row++) {
            places[at++] = (lv_place){picture + 1, row};
        }
        picture++;
    }
    if (dump_dir) {
        LV_TRY_DONE(dump_ids(model, &ids, places, *out_n, dump_dir));
    }
    *out_places = places;
    places = NULL;
done:
    free(places);
    lv_ids_free(&ids);
    return status;
}
