#include "pipeline/internal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double lv_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

// Which model: the option, $LLAVA_MODEL, or the embedded one. Caller frees *out.
static lv_status choose_model(const lv_model_options *options, char **out, bool *is_demo) {
    const char *named = options->model ? options->model : getenv("LLAVA_MODEL");
    *is_demo = !named || !*named;
    if (!*is_demo) {
        *out = strdup(named);
        return *out ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    }
    const char *assets = lv_assets_dir();
    char path[PATH_MAX];
    if (!assets) {
        return lv_fail(LV_ENOTFOUND,
                       "no model named, and the embedded demo model is not where this "
                       "program was built or installed (set LLAVA_ASSETS)");
    }
    snprintf(path, sizeof path, "%s/demo-model", assets);
    if (access(path, R_OK) != 0) {
        return lv_fail(LV_ENOTFOUND, "no model named, and there is no demo model in %s", assets);
    }
    *out = strdup(path);
    return *out ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
}

// A hub name is kept whole; of a path only the last part.
static char *short_name(const char *model, const char *dir) {
    if (access(model, F_OK) != 0) {
        return strdup(model);
    }
    char path[PATH_MAX];
    if (!realpath(dir, path)) {
        return strdup(model);
    }
    const char *slash = strrchr(path, '/');
    return strdup(slash && slash[1] ? slash + 1 : path);
}

static lv_status load_parts(lv_model *model, const lv_model_options *options, const char *named) {
    const lv_backend_options backend = {
        .device = options->device, .n_threads = options->n_threads, .tp = options->tp};
    LV_TRY(lv_checkpoint_open(named, options->vision_model, &model->checkpoint));
    model->config = lv_checkpoint_config(model->checkpoint);
    model->dir = strdup(lv_checkpoint_dir(model->checkpoint));
    if (!model->dir) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    model->name = short_name(named, model->dir);
    if (!model->name) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    LV_TRY(lv_tokenizer_open(model->dir, model->config, &model->tokenizer));
    LV_TRY(lv_vocabulary_create(model->tokenizer, &model->config->text,
                                model->config->text.vocab_size, &model->vocabulary));
    LV_TRY(
        lv_template_choose(model->config, model->dir, options->template_name, &model->template_id));
    LV_TRY(lv_backend_open(&backend, &model->be));
    LV_TRY(lv_vision_load(model->checkpoint, model->be, &model->vision));
    LV_TRY(lv_projector_load(model->checkpoint, model->be, &model->projector));
    const lv_llm_options llm = {.int4_weights = options->int4_weights,
                                .int8_head = options->int8_head};
    return lv_llm_load(model->checkpoint, model->be, &llm, &model->llm);
}

lv_status lv_model_open(const lv_model_options *options, lv_model **out) {
    static const lv_model_options defaults = {0};
    const double start = lv_now_ms();
    lv_status status = LV_OK;
    char *named = NULL;
    lv_model *model = calloc(1, sizeof *model);
    *out = NULL;
    if (!model) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    atomic_flag_clear(&model->has_engine);
    options = options ? options : &defaults;
    if (options->session_len < 0) {
        status = lv_fail(LV_EINVAL, "session length %d is negative", options->session_len);
        goto done;
    }
    LV_TRY_DONE(choose_model(options, &named, &model->is_demo));
    LV_TRY_DONE(load_parts(model, options, named));
    model->session_len =
        options->session_len ? options->session_len : model->config->text.max_position;
    if (options->rope_scaling) {
        model->has_rope_scaling = true;
        model->rope_scaling = *options->rope_scaling;
    }
    const lv_span spans[] = {{model->dir, strlen(model->dir)},
                             {model->config, sizeof *model->config}};
    LV_TRY_DONE(lv_sha256(spans, 2, &model->id));
    model->load_ms = lv_now_ms() - start;
    *out = model;
    model = NULL;
done:
    lv_model_free(model);
    free(named);
    return status;
}

void lv_model_free(lv_model *model) {
    if (!model) {
        return;
    }
    lv_llm_free(model->llm);
    lv_projector_free(model->projector);
    lv_vision_free(model->vision);
    lv_backend_close(model->be);
    lv_vocabulary_free(model->vocabulary);
    lv_tokenizer_free(model->tokenizer);
    lv_checkpoint_free(model->checkpoint);
    free(model->dir);
    free(model->name);
    free(model);
}

lv_model_info lv_model_describe(const lv_model *model) {
    return (lv_model_info){
        .name = model->name,
        .dir = model->dir,
        .is_demo = model->is_demo,
        .device = model->be->device,
        .no_gpu = model->be->no_gpu,
        .is_gpu = model->be->is_gpu,
        .template_name = lv_template_names()[model->template_id],
        .session_len = model->session_len,
        .weight_bytes = lv_checkpoint_bytes(model->checkpoint),
        .load_ms = model->load_ms,
        .config = model->config,
    };
}

lv_status lv_model_tokenize(const lv_model *model, const char *text, size_t n_bytes, int32_t **out,
                            int *n_out) {
    lv_ids ids = {0};
    const lv_status status = lv_tokenize(model->tokenizer, text, n_bytes, &ids);
    if (status != LV_OK) {
        lv_ids_free(&ids);
    }
    *out = ids.ids;
    *n_out = ids.n;
    return status;
}

size_t lv_model_token(const lv_model *model, int32_t id, char *out, size_t size) {
    return lv_token_bytes(model->tokenizer, id, out, size);
}
