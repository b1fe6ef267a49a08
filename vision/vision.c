// The CLIP ViT of the checkpoint on any backend: patch embedding, then pre-norm blocks
//   x += out(attention(qkv(layer_norm1(x))));  x += fc2(act(fc1(layer_norm2(x))))
// up to the layer whose hidden state the projector reads. Source: transformers CLIPVisionModel.
#include "vision/vision.h"

#include <stdio.h>
#include <stdlib.h>

#define NAME_BYTES 128
#define TILES_PER_PASS_CPU 4
#define TILES_PER_PASS_GPU 10 // two LLaVA-1.6 pictures

typedef struct vision_layer {
    float *layer_norm1_weight, *layer_norm1_bias; // [d_model]
    float *layer_norm2_weight, *layer_norm2_bias; // [d_model]
    lv_linear *qkv;                               // [3 d_model, d_model]
    lv_linear *out_proj;                          // [d_model, d_model]
    lv_linear *fc1, *fc2;                         // [d_ff, d_model], [d_model, d_ff]
} vision_layer;

struct lv_vision {
    lv_backend *be;
    lv_vision_config config;
    int n_patches;
    int tiles_per_pass;
    lv_linear *patch_embedding;                     // [d_model, 3 patch^2]
    float *class_embedding, *position_embedding;    // [d_model], [1 + n_patches, d_model]
    float *pre_layrnorm_weight, *pre_layrnorm_bias; // [d_model]
    vision_layer *layers;                           // [n_run_layers]
    uint8_t *rgb;                                   // dev [tiles_per_pass, size, size, 3]
    float *levels;                                  // dev [3, 256] what the levels of rgb stand for
    void *x, *h, *wide; // dev act, tiles_per_pass * (1 + n_patches) rows; wide: qkv, then fc1's out
    int32_t *kept_rows; // [tiles_per_pass, rows] without CLS
    void *features;     // dev act [feature_tiles, rows, d_model]
    int feature_tiles;
};

int lv_vision_rows(const lv_vision *vision) {
    return vision->n_patches + (vision->config.drop_cls ? 0 : 1);
}

int lv_vision_width(const lv_vision *vision) {
    return vision->config.d_model;
}

static lv_status load_vector(const lv_checkpoint *checkpoint, lv_backend *be, const char *name,
                             int64_t n, float **out) {
    lv_tensor tensor;
    LV_TRY(lv_checkpoint_tensor(checkpoint, name, 1, &n, &tensor));
    return be->ops->tensor_load(be, &tensor, out);
}

static lv_status load_norm(const lv_checkpoint *checkpoint, lv_backend *be, const char *prefix,
                           int d, float **weight, float **bias) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.weight", prefix);
    LV_TRY(load_vector(checkpoint, be, name, d, weight));
    snprintf(name, sizeof name, "%s.bias", prefix);
    return load_vector(checkpoint, be, name, d, bias);
}

// The linears `prefix``names[i]`, stacked along their outputs.
static lv_status load_linear(const lv_checkpoint *checkpoint, lv_backend *be, const char *prefix,
                             const char *const *names, int n_names, int n_out, int n_in,
                             lv_linear **out) {
    lv_linear_source parts[3];
    for (int i = 0; i < n_names; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%s%s", prefix, names[i]);
        LV_TRY(lv_checkpoint_linear(checkpoint, name, n_out, n_in, &parts[i]));
    }
    return be->ops->linear_load(be, parts, n_names, NULL, out);
}

static lv_status load_layer(const lv_checkpoint *checkpoint, lv_vision *vision, int index) {
    static const char *const qkv[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    static const char *const out_proj[] = {"self_attn.out_proj"};
    static const char *const fc1[] = {"mlp.fc1"};
    static const char *const fc2[] = {"mlp.fc2"};
    lv_backend *be = vision->be;
    vision_layer *layer = &vision->layers[index];
    int d = vision->config.d_model, d_ff = vision->config.d_ff;
    char prefix[NAME_BYTES / 2], norm[NAME_BYTES];
    snprintf(prefix, sizeof prefix, "vision_tower.encoder.layers.%d.", index);
    snprintf(norm, sizeof norm, "%slayer_norm1", prefix);
    LV_TRY(
        load_norm(checkpoint, be, norm, d, &layer->layer_norm1_weight, &layer->layer_norm1_bias));
    snprintf(norm, sizeof norm, "%slayer_norm2", prefix);
    LV_TRY(
        load_norm(checkpoint, be, norm, d, &layer->layer_norm2_weight, &layer->layer_norm2_bias));
    LV_TRY(load_linear(checkpoint, be, prefix, qkv, 3, d, d, &layer->qkv));
    LV_TRY(load_linear(checkpoint, be, prefix, out_proj, 1, d, d, &layer->out_proj));
    LV_TRY(load_linear(checkpoint, be, prefix, fc1, 1, d_ff, d, &layer->fc1));
    return load_linear(checkpoint, be, prefix, fc2, 1, d, d_ff, &layer->fc2);
}

static lv_status load_embeddings(const lv_checkpoint *checkpoint, lv_vision *vision) {
    const lv_vision_config *c = &vision->config;
    lv_backend *be = vision->be;
    const int64_t d = c->d_model, p = c->patch_size;

    // The convolution's stride is its size: a linear over each patch's 3 p p pixels.
    lv_tensor kernel;
    LV_TRY(lv_checkpoint_tensor(checkpoint, "vision_tower.embeddings.patch_embedding.weight", 4,
                                (const int64_t[]){d, 3, p, p}, &kernel));
    kernel.n_dims = 2;
    kernel.dims[1] = 3 * p * p;
    const lv_linear_source source = {
        .n_out = (int)d, .n_in = (int)kernel.dims[1], .weight = kernel};
    LV_TRY(be->ops->linear_load(be, &source, 1, NULL, &vision->patch_embedding));

    LV_TRY(load_vector(checkpoint, be, "vision_tower.embeddings.class_embedding", d,
                       &vision->class_embedding));
    lv_tensor positions;
    LV_TRY(lv_checkpoint_tensor(checkpoint, "vision_tower.embeddings.position_embedding.weight", 2,
                                (const int64_t[]){1 + vision->n_patches, d}, &positions));
    LV_TRY(be->ops->tensor_load(be, &positions, &vision->position_embedding));
    return load_norm(checkpoint, be, "vision_tower.pre_layrnorm", (int)d,
                     &vision->pre_layrnorm_weight, &vision->pre_layrnorm_bias);
}

static lv_status upload_levels(const lv_image_config *config, lv_vision *vision) {
    float levels[3][256];
    lv_image_levels(config, levels);
    LV_TRY(vision->be->ops->alloc(vision->be, sizeof levels, (void **)&vision->levels));
    return vision->be->ops->upload(vision->be, vision->levels, levels, sizeof levels);
}

static lv_status alloc_workspace(lv_vision *vision) {
    const lv_vision_config *c = &vision->config;
    lv_backend *be = vision->be;
    const size_t tiles = (size_t)vision->tiles_per_pass;
    const size_t rows = tiles * (size_t)(1 + vision->n_patches);
    const size_t row_bytes = (size_t)c->d_model * lv_dtype_bytes(be->act);
    const size_t width = (size_t)(c->d_ff > 3 * c->d_model ? c->d_ff : 3 * c->d_model);
    const size_t tile_bytes = 3 * (size_t)c->image_size * (size_t)c->image_size;
    LV_TRY(be->ops->alloc(be, tiles * tile_bytes, (void **)&vision->rgb));
    LV_TRY(be->ops->alloc(be, rows * row_bytes, &vision->x));
    LV_TRY(be->ops->alloc(be, rows * row_bytes, &vision->h));
    LV_TRY(be->ops->alloc(be, rows * width * lv_dtype_bytes(be->act), &vision->wide));

    const int kept = lv_vision_rows(vision), skipped = 1 + vision->n_patches - kept;
    vision->kept_rows = malloc(tiles * (size_t)kept * sizeof *vision->kept_rows);
    if (!vision->kept_rows) {
        return lv_fail(LV_ENOMEM, "vision tower: out of memory");
    }
    for (int t = 0; t < vision->tiles_per_pass; t++) {
        for (int i = 0; i < kept; i++) {
            vision->kept_rows[t * kept + i] = t * (1 + vision->n_patches) + skipped + i;
        }
    }
    return LV_OK;
}

lv_status lv_vision_load(const lv_checkpoint *checkpoint, lv_backend *be, lv_vision **out) {
    lv_status status = LV_OK;
    const lv_vision_config *c = &lv_checkpoint_config(checkpoint)->vision;
    lv_vision *vision = calloc(1, sizeof *vision);
    *out = NULL;
    if (!vision) {
        return lv_fail(LV_ENOMEM, "vision tower: out of memory");
    }
    vision->be = be;
    vision->config = *c;
    vision->n_patches = (c->image_size / c->patch_size) * (c->image_size / c->patch_size);
    vision->tiles_per_pass = be->is_gpu ? TILES_PER_PASS_GPU : TILES_PER_PASS_CPU;
    vision->layers = calloc((size_t)c->n_run_layers + 1, sizeof *vision->layers);
    if (!vision->layers) {
        status = lv_fail(LV_ENOMEM, "vision tower: out of memory");
        goto done;
    }
    LV_TRY_DONE(load_embeddings(checkpoint, vision));
    LV_TRY_DONE(upload_levels(&lv_checkpoint_config(checkpoint)->image, vision));
    for (int i = 0; i < c->n_run_layers; i++) {
        LV_TRY_DONE(load_layer(checkpoint, vision, i));
    }
    LV_TRY_DONE(alloc_workspace(vision));
    *out = vision;
    vision = NULL;
done:
    lv_vision_free(vision);
    return status;
}

void lv_vision_free(lv_vision *vision) {
    if (!vision) {
        return;
    }
    lv_backend *be = vision->be;
    for (int i = 0; vision->layers && i < vision->config.n_run_layers; i++) {
        vision_layer *layer = &vision->layers[i];
        be->ops->free(be, layer->layer_norm1_weight);
        be->ops->free(be, layer->layer_norm1_bias);
        be->ops->free(be, layer->layer_norm2_weight);
        be->ops->free(be, layer->layer_norm2_bias);
        be->ops->linear_free(be, layer->qkv);
        be->ops->linear_free(be, layer->out_proj);
        be->ops->linear_free(be, layer->fc1);
        be->ops->linear_free(be, layer->fc2);
    }
    be->ops->linear_free(be, vision->patch_embedding);
    void *const buffers[] = {vision->class_embedding,
                             vision->position_embedding,
                             vision->pre_layrnorm_weight,
                             vision->pre_layrnorm_bias,
                             vision->rgb,
                             vision->levels,
                             vision->x,
                             vision->h,
                             vision->wide,
                             vision->features};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        be->ops->free(be, buffers[i]);
    }
    free(vision->kept_rows);
    free(vision->layers);
    free(vision);
}

// One pre-norm block over n tiles; vision->x is updated in place.
static lv_status run_layer(lv_vision *vision, const vision_layer *layer, int n) {
    const lv_vision_config *c = &vision->config;
    lv_backend *be = vision->be;
    const lv_ops *ops = be->ops;
    const int n_rows = 1 + vision->n_patches, m = n * n_rows, d = c->d_model;
    LV_TRY(ops->layer_norm(be, vision->x, m, d, layer->layer_norm1_weight, layer->layer_norm1_bias,
                           c->layer_norm_eps, vision->h));
    LV_TRY(ops->linear(be, vision->h, m, layer->qkv, LV_ACT_NONE, NULL, vision->wide));
    LV_TRY(
        ops->image_attention(be, vision->wide, n, n_rows, c->n_heads, d / c->n_heads, vision->h));
    LV_TRY(ops->linear(be, vision->h, m, layer->out_proj, LV_ACT_NONE, vision->x, vision->x));
    LV_TRY(ops->layer_norm(be, vision->x, m, d, layer->layer_norm2_weight, layer->layer_norm2_bias,
                           c->layer_norm_eps, vision->h));
    LV_TRY(ops->linear(be, vision->h, m, layer->fc1, c->activation, NULL, vision->wide));
    return ops->linear(be, vision->wide, m, layer->fc2, LV_ACT_NONE, vision->x, vision->x);
}

// n <= tiles_per_pass tiles -> out act [n, rows, d_model].
static lv_status run_pass(lv_vision *vision, const uint8_t *rgb, int n, void *out) {
    const lv_vision_config *c = &vision->config;
    lv_backend *be = vision->be;
    const lv_ops *ops = be->ops;
    const int n_rows = 1 + vision->n_patches, d = c->d_model;
    const size_t tile_bytes = 3 * (size_t)c->image_size * (size_t)c->image_size;
    LV_TRY(ops->upload(be, vision->rgb, rgb, (size_t)n * tile_bytes));
    LV_TRY(ops->patch_embed(be, vision->rgb, vision->levels, n, c->image_size, c->patch_size,
                            vision->patch_embedding, vision->class_embedding,
                            vision->position_embedding, vision->h));
    LV_TRY(ops->layer_norm(be, vision->h, n * n_rows, d, vision->pre_layrnorm_weight,
                           vision->pre_layrnorm_bias, c->layer_norm_eps, vision->x));
    for (int i = 0; i < c->n_run_layers; i++) {
        LV_TRY(run_layer(vision, &vision->layers[i], n));
    }
    return ops->gather_rows(be, vision->x, NULL, vision->kept_rows, n * lv_vision_rows(vision), d,
                            out);
}

// What encoding shares among the members of a group.
typedef struct encode_job {
    lv_vision *vision;
    const uint8_t *rgb; // host [n_tiles, size, size, 3]
    size_t rgb_bytes, tile_bytes;
} encode_job;

static lv_status encode_some(void *user, int first, int count) {
    const encode_job *job = user;
    const int most = job->vision->tiles_per_pass, end = first + count;
    for (int at = first; at < end; at += most) {
        LV_TRY(run_pass(job->vision, job->rgb + (size_t)at * job->rgb_bytes,
                        end - at < most ? end - at : most,
                        (char *)job->vision->features + (size_t)at * job->tile_bytes));
    }
    return LV_OK;
}

lv_status lv_vision_encode(lv_vision *vision, const uint8_t *rgb, int n_tiles,
                           const void **out_features) {
    const lv_vision_config *c = &vision->config;
    lv_backend *be = vision->be;
    encode_job job = {vision, rgb, 3 * (size_t)c->image_size * (size_t)c->image_size,
                      (size_t)lv_vision_rows(vision) * (size_t)c->d_model *
                          lv_dtype_bytes(be->act)};
    *out_features = NULL;
    if (n_tiles > vision->feature_tiles) {
        be->ops->free(be, vision->features);
        vision->features = NULL;
        vision->feature_tiles = 0;
        LV_TRY(be->ops->alloc(be, (size_t)n_tiles * job.tile_bytes, &vision->features));
        vision->feature_tiles = n_tiles;
    }
    LV_TRY(be->ops->share(be, n_tiles, encode_some, &job, vision->features, job.tile_bytes));
    *out_features = vision->features;
    return LV_OK;
}
