// Every stage of a tiny checkpoint against the references' outputs, one line of errors a picture:
//   golden_stages CASE FOLDER ref|cpu|cpu2|cuda|cuda2 [ITEM...]
// CASE names the stored outputs, FOLDER the checkpoint (tiny.py writes it; pictures lie beside it).
#include "golden.h"

#include "llm/llm.h"
#include "llm/text.h"
#include "preprocess/preprocess.h"
#include "projector/projector.h"
#include "vision/vision.h"

#define MAX_PICTURES 2
#define MAX_NEW 32
#define QUESTION "What is in this picture?"

typedef struct machine {
    const lv_safetensors *golden;
    const char *folder;
    double tolerance;         // of features and embeddings
    double decoder_tolerance; // of everything the decoder makes
    float margin;             // by which a greedy token's logit may stay behind the best
    lv_checkpoint *checkpoint;
    const lv_config *config;
    lv_backend *be;
    lv_vision *vision;
    lv_projector *projector;
    lv_llm *llm;
    lv_cache *cache;
    lv_tokenizer *tokenizer;
} machine;

// What an item puts before the decoder.
typedef struct scene {
    const char *item;
    int n_pictures;
    void *embeddings[MAX_PICTURES]; // dev act [n_rows, d_model]
    int n_rows[MAX_PICTURES];
    float *host_embeddings; // [all rows, d_model]
    lv_ids ids;
} scene;

static lv_status machine_open(machine *m, const char *backend) {
    const lv_backend_options options = golden_backend(backend);
    LV_TRY(lv_checkpoint_open(m->folder, NULL, &m->checkpoint));
    m->config = lv_checkpoint_config(m->checkpoint);
    LV_TRY(lv_backend_open(&options, &m->be));
    LV_TRY(lv_vision_load(m->checkpoint, m->be, &m->vision));
    LV_TRY(lv_projector_load(m->checkpoint, m->be, &m->projector));
    LV_TRY(lv_llm_load(m->checkpoint, m->be, NULL, &m->llm));
    LV_TRY(lv_cache_create(m->llm, 16, golden_kv(backend), &m->cache));
    return lv_tokenizer_open(m->folder, m->config, &m->tokenizer);
}

static void machine_close(machine *m) {
    lv_tokenizer_free(m->tokenizer);
    lv_cache_free(m->cache);
    lv_llm_free(m->llm);
    lv_projector_free(m->projector);
    lv_vision_free(m->vision);
    lv_backend_close(m->be);
    lv_checkpoint_free(m->checkpoint);
}

static lv_status load_tiles(const machine *m, const char *picture, lv_tiles *out) {
    char path[512];
    lv_buffer bytes = {0};
    lv_image image = {0};
    snprintf(path, sizeof path, "%s/../%s.png", m->folder, picture);
    lv_status status = lv_file_read(path, (size_t)1 << 20, &bytes);
    if (status == LV_OK) {
        status = lv_image_decode(bytes.data, bytes.n_bytes, NULL, &image);
    }
    if (status == LV_OK) {
        status = lv_tiles_make(&image, &m->config->image, out);
    }
    lv_image_free(&image);
    lv_buffer_free(&bytes);
    return status;
}

static void check_pixels(const machine *m, const char *item, const lv_tiles *tiles) {
    const lv_tensor *want = golden_find(m->golden, item, "pixels");
    if (!want) {
        return;
    }
    const size_t n = (size_t)tiles->n_tiles * (size_t)tiles->size * (size_t)tiles->size * 3;
    CHECK(n == lv_tensor_bytes(want), "%s: %zu bytes of pixels, the reference has %zu", item, n,
          lv_tensor_bytes(want));
    if (n == lv_tensor_bytes(want)) {
        size_t n_wrong = 0;
        for (size_t i = 0; i < n; i++) {
            n_wrong += tiles->rgb[i] != ((const uint8_t *)want->data)[i];
        }
        CHECK(n_wrong == 0, "%s: %zu of %zu samples differ", item, n_wrong, n);
        printf("  %6zu", n_wrong);
    }
}

static void check_near(const char *item, const char *what, double error, double tolerance) {
    CHECK(error <= tolerance, "%s: %s: relative error %.2e, allowed %.0e", item, what, error,
          tolerance);
    printf("  %.1e", error);
}

// Pixel values differ from the reference by a rounding of f32 at most.
static void check_pixel_values(const machine *m, const char *item, const float *values, size_t n) {
    const lv_tensor *want = golden_find(m->golden, item, "pixel_values");
    if (want && n == (size_t)lv_tensor_count(want)) {
        float *copy = golden_copy(want), most = 0;
        for (size_t i = 0; i < n; i++) {
            most = fmaxf(most, fabsf(values[i] - copy[i]));
        }
        CHECK(most <= 5e-7f, "%s: pixel values differ by up to %.2e", item, (double)most);
        free(copy);
    }
}

static void check_features(const machine *m, const char *item, const void *features, int n_tiles) {
    const lv_tensor *want = golden_find(m->golden, item, "features");
    const size_t n =
        (size_t)n_tiles * (size_t)lv_vision_rows(m->vision) * (size_t)lv_vision_width(m->vision);
    float *host = malloc(n * sizeof *host);
    if (want && host) {
        CHECK_OK(m->be->ops->download_act(m->be, host, features, n));
        check_near(item, "vision features", golden_error(host, n, want), m->tolerance);
    }
    free(host);
}

// Pixels to image embeddings, each stage compared where the reference's output is stored.
static lv_status run_picture(machine *m, const char *picture, scene *s) {
    lv_tiles tiles = {0};
    const void *features;
    lv_status status = load_tiles(m, picture, &tiles);
    if (status != LV_OK) {
        return status;
    }
    const size_t n = (size_t)tiles.n_tiles * 3 * (size_t)tiles.size * (size_t)tiles.size;
    float *values = malloc(n * sizeof *values);
    check_pixels(m, s->item, &tiles);
    lv_tiles_normalize(&tiles, &m->config->image, values);
    check_pixel_values(m, s->item, values, n);
    status = lv_vision_encode(m->vision, tiles.rgb, tiles.n_tiles, &features);
    if (status == LV_OK) {
        check_features(m, s->item, features, tiles.n_tiles);
        const lv_picture_shape shape = {tiles.n_tiles,        lv_vision_rows(m->vision),
                                        tiles.grid_width,     tiles.grid_height,
                                        tiles.original_width, tiles.original_height};
        const int rows = lv_projector_tokens(m->projector, &shape);
        const size_t row_bytes = (size_t)m->config->text.d_model * lv_dtype_bytes(m->be->act);
        status = m->be->ops->alloc(m->be, (size_t)rows * row_bytes, &s->embeddings[s->n_pictures]);
        if (status == LV_OK) {
            status = lv_projector_run(m->projector, features, &shape, s->embeddings[s->n_pictures]);
            s->n_rows[s->n_pictures++] = rows;
        }
    }
    free(values);
    lv_tiles_free(&tiles);
    return status;
}

static void check_embeddings(const machine *m, const scene *s) {
    const size_t d = (size_t)m->config->text.d_model;
    const lv_tensor *want = golden_find(m->golden, s->item, "embeds");
    size_t n = 0;
    for (int i = 0; i < s->n_pictures; i++) {
        n += (size_t)s->n_rows[i];
    }
    float *host = malloc(n * d * sizeof *host), *at = host;
    for (int i = 0; i < s->n_pictures; i++) {
        const size_t part = (size_t)s->n_rows[i] * d;
        CHECK_OK(m->be->ops->download_act(m->be, at, s->embeddings[i], part));
        at += part;
    }
    CHECK(want && want->dims[0] == (int64_t)n, "%s: %zu image tokens, the reference has %d",
          s->item, n, want ? (int)want->dims[0] : 0);
    check_near(s->item, "image embeddings", want ? golden_error(host, n * d, want) : NAN,
               m->tolerance);
    free(host);
}

static void check_prompt(machine *m, scene *s) {
    const bool is_mistral = strcmp(m->config->text_model_type, "mistral") == 0;
    const lv_turn turns[] = {{"user", QUESTION, s->n_pictures},
                             {"assistant", "A red square.", 0},
                             {"user", "And what colour is it?", 0}};
    int template_id = 0;
    CHECK_OK(lv_template_choose(m->config, m->folder, is_mistral ? "mistral_instruct" : "llava_v1",
                                &template_id));
    CHECK_OK(lv_prompt_build(m->tokenizer, template_id, turns,
                             strcmp(s->item, "turns") == 0 ? 3 : 1, &s->ids));
    const lv_tensor *want = golden_find(m->golden, s->item, "ids");
    int32_t *ids = golden_copy(want);
    const int n = (int)lv_tensor_count(want);
    int i = 0;
    while (i < n && i < s->ids.n && s->ids.ids[i] == ids[i]) {
        i++;
    }
    CHECK(i == n && s->ids.n == n, "%s: prompt of %d ids, the reference has %d; ids[%d] differ",
          s->item, s->ids.n, n, i);
    // The decoder is judged on the reference's prompt.
    s->ids.n = 0;
    for (i = 0; i < n; i++) {
        CHECK_OK(lv_ids_push(&s->ids, ids[i]));
    }
    free(ids);
}

// The prompt in one pass: stretches of text and pictures in turn.
static lv_status prefill(machine *m, const scene *s, lv_sequence *sequence, float **logits) {
    lv_chunk chunks[2 * MAX_PICTURES + 1] = {{0}};
    int n_chunks = 0, picture = 0;
    for (int i = 0; i < s->ids.n;) {
        lv_chunk *chunk = &chunks[n_chunks++];
        chunk->sequence = sequence;
        if (s->ids.ids[i] == LV_IMAGE_TOKEN) {
            chunk->embeddings = s->embeddings[picture];
            chunk->n = s->n_rows[picture++];
            i++;
            continue;
        }
        chunk->ids = s->ids.ids + i;
        while (i < s->ids.n && s->ids.ids[i] != LV_IMAGE_TOKEN) {
            chunk->n++;
            i++;
        }
    }
    chunks[n_chunks - 1].want_logits = true;
    return lv_llm_forward(m->llm, m->cache, chunks, n_chunks, logits);
}

static int32_t largest(const float *logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

// The reference's tokens are fed whatever ours would be, so that a near tie does not end the test.
static void check_greedy(machine *m, const scene *s, lv_sequence *sequence, float *logits) {
    const int vocab = m->config->text.vocab_size;
    const lv_tensor *want = golden_find(m->golden, s->item, "greedy");
    const int n = (int)lv_tensor_count(want);
    int32_t *tokens = golden_copy(want);
    float *host = malloc((size_t)vocab * sizeof *host);
    int n_same = 0;
    for (int i = 0; i < n; i++) {
        CHECK_OK(m->be->ops->download(m->be, host, logits, (size_t)vocab * sizeof *host));
        const int32_t token = largest(host, vocab);
        n_same += token == tokens[i];
        CHECK(token == tokens[i] || host[token] - host[tokens[i]] < m->margin,
              "%s: greedy token %d is %d (logit %.4f), the reference's is %d (%.4f)", s->item, i,
              token, (double)host[token], tokens[i], (double)host[tokens[i]]);
        const lv_chunk chunk = {
            .sequence = sequence, .ids = &tokens[i], .n = 1, .want_logits = true};
        CHECK_OK(lv_llm_forward(m->llm, m->cache, &chunk, 1, &logits));
    }
    printf("  %d/%d\n", n_same, n);
    free(host);
    free(tokens);
}

static void check_decoder(machine *m, const scene *s) {
    const int vocab = m->config->text.vocab_size;
    int limit = s->ids.n + MAX_NEW;
    for (int i = 0; i < s->n_pictures; i++) {
        limit += s->n_rows[i];
    }
    lv_sequence sequence;
    float *logits, *host = malloc((size_t)vocab * sizeof *host);
    CHECK_OK(lv_sequence_open(m->llm, limit, NULL, &sequence));
    const lv_status status = prefill(m, s, &sequence, &logits);
    CHECK_OK(status);
    if (status == LV_OK) {
        CHECK_OK(m->be->ops->download(m->be, host, logits, (size_t)vocab * sizeof *host));
        check_near(s->item, "first logits",
                   golden_error(host, (size_t)vocab, golden_find(m->golden, s->item, "logits")),
                   m->decoder_tolerance);
        check_greedy(m, s, &sequence, logits);
    }
    lv_sequence_close(m->cache, &sequence);
    free(host);
}

static void run_item(machine *m, const char *item) {
    const char *pictures[MAX_PICTURES] = {item, NULL};
    if (strcmp(item, "pair") == 0) {
        pictures[0] = "odd";
        pictures[1] = "wide";
    } else if (strcmp(item, "turns") == 0) {
        pictures[0] = "photo";
    }
    scene s = {.item = item};
    lv_status status = LV_OK;
    printf("%-8s", item);
    for (int i = 0; i < MAX_PICTURES && pictures[i] && status == LV_OK; i++) {
        status = run_picture(m, pictures[i], &s);
    }
    CHECK_OK(status);
    if (status == LV_OK) {
        check_embeddings(m, &s);
        check_prompt(m, &s);
        check_decoder(m, &s);
    }
    for (int i = 0; i < MAX_PICTURES; i++) {
        m->be->ops->free(m->be, s.embeddings[i]);
    }
    lv_ids_free(&s.ids);
}

static void run_all(machine *m) {
    size_t n;
    const lv_named_tensor *list = lv_safetensors_list(m->golden, &n);
    for (size_t i = 0; i < n; i++) {
        char item[64];
        snprintf(item, sizeof item, "%s", list[i].name);
        char *slash = strchr(item, '/');
        if (slash && strcmp(slash, "/ids") == 0) {
            *slash = 0;
            run_item(m, item);
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: golden_stages CASE FOLDER ref|cpu|cpu2|cuda|cuda2 [ITEM...]\n");
        return 2;
    }
    lv_safetensors *golden = golden_open(argv[1]);
    machine m = {.golden = golden, .folder = argv[2]};
    const bool is_awq = strncmp(argv[1], "awq", 3) == 0, is_cuda = golden_is_cuda(argv[3]);
    m.tolerance = m.decoder_tolerance = golden_tolerance(argv[3]);
    m.margin = is_cuda ? GOLDEN_F16_MARGIN : 0;
    if (is_awq && !is_cuda) {
        m.decoder_tolerance = GOLDEN_AWQ_TOLERANCE;
    }
    const lv_status status = golden ? machine_open(&m, argv[3]) : LV_ENOTFOUND;
    if (status == LV_EDEVICE && (is_cuda || getenv("LV_CPU_ISA"))) {
        machine_close(&m);
        lv_safetensors_free(golden);
        return check_skip(lv_error());
    }
    CHECK_OK(status);
    if (status == LV_OK) {
        printf("%s on %s: wrong samples, relative errors of features, embeddings, logits; greedy\n",
               argv[1], m.be->device);
        for (int i = 4; i < argc; i++) {
            run_item(&m, argv[i]);
        }
        if (argc == 4) {
            run_all(&m);
        }
    }
    machine_close(&m);
    lv_safetensors_free(golden);
    return check_done();
}
