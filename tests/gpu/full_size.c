// A whole model on given inputs, its outputs as .npy: full_size.py compares them with transformers.
//   test_gpu_full_size CHECKPOINT DIR [DEVICE]
// reads from DIR
//   picture.png, pixel_values.npy f32 [n_tiles, 3, size, size] what transformers makes of it
//   before.npy, after.npy  i32: ids of the prompt around the picture
//   next.npy               i32 [n]: ids that follow it, given one by one whatever the model says
//   positions.npy          i32: which of the n predictions' logits are wanted
// and writes there features.npy, embeds.npy, and for each decoder D (f16: as stored; w4: rounded to
// int4 while loading) and way W (decode: token by token; prefill: 128 at once)
//   D_W_top1.npy i32 [n], D_W_logits.npy f32 [n positions, vocab]
#include <math.h>

#include "core/files.h"
#include "llm/llm.h"
#include "preprocess/preprocess.h"
#include "projector/projector.h"
#include "tests/check.h"
#include "vision/vision.h"

#define MAX_BYTES ((size_t)1 << 30)
#define AT_ONCE 128 // ids of one pass of the prefill way

typedef struct inputs {
    const char *dir;
    lv_tensor pixel_values, before, after, next, positions;
} inputs;

typedef struct machine {
    lv_checkpoint *checkpoint;
    const lv_config *config;
    lv_backend *be;
    void *embeds; // dev act [n_embeds, d_model]
    int n_embeds;
} machine;

// --- arrays
// ---------------------------------------------------------------------------------------

static lv_status load(const char *dir, const char *name, lv_dtype dtype, lv_tensor *out) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s.npy", dir, name);
    LV_TRY(lv_npy_load(path, MAX_BYTES, out));
    return out->dtype == dtype ? LV_OK
                               : lv_fail(LV_EFORMAT, "%s: %s, expected %s", path,
                                         lv_dtype_name(out->dtype), lv_dtype_name(dtype));
}

static lv_status save(const char *dir, const char *name, lv_dtype dtype, const void *data,
                      int n_dims, const int64_t *dims) {
    char path[600];
    lv_tensor tensor = {.data = data, .dtype = dtype, .n_dims = n_dims};
    memcpy(tensor.dims, dims, (size_t)n_dims * sizeof *dims);
    snprintf(path, sizeof path, "%s/%s.npy", dir, name);
    return lv_npy_save(path, &tensor);
}

static lv_status save_act(lv_backend *be, const char *dir, const char *name, const void *dev,
                          int64_t n_rows, int64_t width) {
    const size_t n = (size_t)n_rows * (size_t)width;
    float *host = malloc(n * sizeof *host);
    lv_status status =
        host ? be->ops->download_act(be, host, dev, n) : lv_fail(LV_ENOMEM, "out of memory");
    if (status == LV_OK) {
        status = save(dir, name, LV_F32, host, 2, (const int64_t[]){n_rows, width});
    }
    free(host);
    return status;
}

static lv_status load_inputs(const char *dir, inputs *in) {
    in->dir = dir;
    LV_TRY(load(dir, "pixel_values", LV_F32, &in->pixel_values));
    LV_TRY(load(dir, "before", LV_I32, &in->before));
    LV_TRY(load(dir, "after", LV_I32, &in->after));
    LV_TRY(load(dir, "next", LV_I32, &in->next));
    return load(dir, "positions", LV_I32, &in->positions);
}

static void free_inputs(inputs *in) {
    const lv_tensor *all[] = {&in->pixel_values, &in->before, &in->after, &in->next,
                              &in->positions};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free((void *)(uintptr_t)all[i]->data);
    }
}

// --- the picture
// ----------------------------------------------------------------------------------

// The picture cut; what we make of its pixels must be what transformers makes.
static lv_status cut_picture(const machine *m, const inputs *in, lv_tiles *tiles) {
    char path[600];
    lv_buffer bytes = {0};
    lv_image image = {0};
    float *pixels = NULL, most = 0;
    lv_status status;
    snprintf(path, sizeof path, "%s/picture.png", in->dir);
    LV_TRY_DONE(lv_file_read(path, MAX_BYTES, &bytes));
    LV_TRY_DONE(lv_image_decode(bytes.data, bytes.n_bytes, NULL, &image));
    LV_TRY_DONE(lv_tiles_make(&image, &m->config->image, tiles));
    const size_t n = (size_t)tiles->n_tiles * 3 * (size_t)tiles->size * (size_t)tiles->size;
    if ((int64_t)n != lv_tensor_count(&in->pixel_values)) {
        status = lv_fail(LV_EFORMAT, "%zu pixel values, transformers has %lld", n,
                         (long long)lv_tensor_count(&in->pixel_values));
        goto done;
    }
    pixels = malloc(n * sizeof *pixels);
    if (!pixels) {
        status = lv_fail(LV_ENOMEM, "out of memory");
        goto done;
    }
    lv_tiles_normalize(tiles, &m->config->image, pixels);
    for (size_t i = 0; i < n; i++) {
        most = fmaxf(most, fabsf(pixels[i] - ((const float *)in->pixel_values.data)[i]));
    }
    CHECK(most <= 5e-7f, "pixel values differ by up to %.2e", (double)most);
done:
    free(pixels);
    lv_image_free(&image);
    lv_buffer_free(&bytes);
    return status;
}

static lv_status run_picture(machine *m, const inputs *in) {
    lv_vision *vision = NULL;
    lv_projector *projector = NULL;
    lv_tiles tiles = {0};
    const void *features;
    const int64_t d_model = m->config->text.d_model;
    lv_status status;
    LV_TRY_DONE(cut_picture(m, in, &tiles));
    LV_TRY_DONE(lv_vision_load(m->checkpoint, m->be, &vision));
    LV_TRY_DONE(lv_projector_load(m->checkpoint, m->be, &projector));
    LV_TRY_DONE(lv_vision_encode(vision, tiles.rgb, tiles.n_tiles, &features));
    const lv_picture_shape shape = {.n_tiles = tiles.n_tiles,
                                    .rows_per_tile = lv_vision_rows(vision),
                                    .grid_width = tiles.grid_width,
                                    .grid_height = tiles.grid_height,
                                    .original_width = tiles.original_width,
                                    .original_height = tiles.original_height};
    m->n_embeds = lv_projector_tokens(projector, &shape);
    LV_TRY_DONE(m->be->ops->alloc(
        m->be, (size_t)m->n_embeds * (size_t)d_model * lv_dtype_bytes(m->be->act), &m->embeds));
    LV_TRY_DONE(lv_projector_run(projector, features, &shape, m->embeds));
    LV_TRY_DONE(save_act(m->be, in->dir, "features", features,
                         (int64_t)shape.n_tiles * shape.rows_per_tile, lv_vision_width(vision)));
    LV_TRY_DONE(save_act(m->be, in->dir, "embeds", m->embeds, m->n_embeds, d_model));
done:
    lv_tiles_free(&tiles);
    lv_projector_free(projector);
    lv_vision_free(vision);
    return status;
}

// --- the decoder
// ----------------------------------------------------------------------------------

typedef struct results {
    int vocab, n, n_kept;
    const int32_t *positions; // [n_kept]
    int32_t *top1;            // [n]
    float *logits;            // [n_kept, vocab]
} results;

static void keep(results *r, int at, const float *logits) {
    int best = 0;
    for (int i = 1; i < r->vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    CHECK(isfinite(logits[best]), "prediction %d: logit %g", at, (double)logits[best]);
    r->top1[at] = best;
    for (int i = 0; i < r->n_kept; i++) {
        if (r->positions[i] == at) {
            memcpy(r->logits + (size_t)i * (size_t)r->vocab, logits,
                   (size_t)r->vocab * sizeof *logits);
        }
    }
}

// The prompt, whose last logits are prediction 0, then ids 0 .. n - 2, each followed by the next
// prediction; at_once of them a pass.
static lv_status predict(const machine *m, const inputs *in, lv_llm *llm, lv_cache *cache,
                         int at_once, results *r) {
    lv_backend *be = m->be;
    const int32_t *ids = in->next.data;
    const int n_before = (int)lv_tensor_count(&in->before);
    const int n_after = (int)lv_tensor_count(&in->after);
    const size_t row = (size_t)r->vocab * sizeof(float);
    lv_sequence sequence = {0};
    float *logits, *host = malloc((size_t)at_once * row);
    lv_status status = host ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    LV_TRY_DONE(status);
    LV_TRY_DONE(lv_sequence_open(llm, n_before + m->n_embeds + n_after + r->n, NULL, &sequence));
    const lv_chunk prompt[] = {{.sequence = &sequence, .ids = in->before.data, .n = n_before},
                               {.sequence = &sequence, .embeddings = m->embeds, .n = m->n_embeds},
                               {&sequence, in->after.data, NULL, n_after, true}};
    LV_TRY_DONE(lv_llm_forward(llm, cache, prompt, 3, &logits));
    LV_TRY_DONE(be->ops->download(be, host, logits, row));
    keep(r, 0, host);
    for (int at = 0; at < r->n - 1;) {
        lv_chunk chunks[AT_ONCE];
        const int now = r->n - 1 - at < at_once ? r->n - 1 - at : at_once;
        for (int i = 0; i < now; i++) {
            chunks[i] = (lv_chunk){&sequence, &ids[at + i], NULL, 1, true};
        }
        LV_TRY_DONE(lv_llm_forward(llm, cache, chunks, now, &logits));
        LV_TRY_DONE(be->ops->download(be, host, logits, (size_t)now * row));
        for (int i = 0; i < now; i++) {
            keep(r, ++at, host + (size_t)i * (size_t)r->vocab);
        }
    }
done:
    lv_sequence_close(cache, &sequence);
    free(host);
    return status;
}

static lv_status save_results(const inputs *in, const char *decoder, const char *way,
                              const results *r) {
    char name[64];
    snprintf(name, sizeof name, "%s_%s_top1", decoder, way);
    LV_TRY(save(in->dir, name, LV_I32, r->top1, 1, (const int64_t[]){r->n}));
    snprintf(name, sizeof name, "%s_%s_logits", decoder, way);
    return save(in->dir, name, LV_F32, r->logits, 2, (const int64_t[]){r->n_kept, r->vocab});
}

static lv_status run_decoder(const machine *m, const inputs *in, const char *name,
                             const lv_llm_options *options) {
    lv_llm *llm = NULL;
    lv_cache *cache = NULL;
    lv_memory memory;
    results r = {.vocab = m->config->text.vocab_size,
                 .n = (int)lv_tensor_count(&in->next),
                 .n_kept = (int)lv_tensor_count(&in->positions),
                 .positions = in->positions.data};
    lv_status status;
    r.top1 = calloc((size_t)r.n, sizeof *r.top1);
    r.logits = calloc((size_t)r.n_kept * (size_t)r.vocab, sizeof *r.logits);
    LV_TRY_DONE(r.top1 && r.logits ? LV_OK : lv_fail(LV_ENOMEM, "out of memory"));
    LV_TRY_DONE(lv_llm_load(m->checkpoint, m->be, options, &llm));
    LV_TRY_DONE(lv_cache_create(llm, 4096 / LV_KV_BLOCK, LV_NONE, &cache));
    LV_TRY_DONE(predict(m, in, llm, cache, 1, &r));
    LV_TRY_DONE(save_results(in, name, "decode", &r));
    LV_TRY_DONE(predict(m, in, llm, cache, AT_ONCE, &r));
    LV_TRY_DONE(save_results(in, name, "prefill", &r));
    LV_TRY_DONE(m->be->ops->memory(m->be, &memory));
    printf("%s: %.2f GB used on the device, %.3f GB of weights a token\n", name,
           (double)memory.used_bytes * 1e-9, (double)lv_llm_bytes_per_token(llm) * 1e-9);
done:
    lv_cache_free(cache);
    lv_llm_free(llm);
    free(r.top1);
    free(r.logits);
    return status;
}

static lv_status run(const char *checkpoint, const char *dir, const char *device, machine *m) {
    const lv_backend_options backend = {.device = device};
    const lv_llm_options stored = {0}, w4 = {.int4_weights = true};
    inputs in = {0};
    lv_status status;
    LV_TRY_DONE(load_inputs(dir, &in));
    LV_TRY_DONE(lv_checkpoint_open(checkpoint, NULL, &m->checkpoint));
    m->config = lv_checkpoint_config(m->checkpoint);
    LV_TRY_DONE(lv_backend_open(&backend, &m->be));
    printf("%s\n", m->be->device);
    LV_TRY_DONE(run_picture(m, &in));
    LV_TRY_DONE(run_decoder(m, &in, "f16", &stored));
    LV_TRY_DONE(run_decoder(m, &in, "w4", &w4));
done:
    free_inputs(&in);
    return status;
}

int main(int argc, char **argv) {
    machine m = {0};
    if (argc < 3) {
        return check_skip("no checkpoint named; tests/gpu/full_size/full_size.py makes one");
    }
    CHECK_OK(run(argv[1], argv[2], argc > 3 ? argv[3] : "cuda", &m));
    if (m.be) {
        m.be->ops->free(m.be, m.embeds);
    }
    lv_backend_close(m.be);
    lv_checkpoint_free(m.checkpoint);
    return check_done();
}
