// A tiny checkpoint end to end through the public library: golden_answers CASE FOLDER cpu|cuda
// Answers' texts, token counts and the stages that dump_dir writes. On a GPU an answer is asked for
// up to the first near tie only, which f16 activations may decide otherwise.
#include "golden.h"

#include <sys/stat.h>
#include <unistd.h>

#include "llm/llm.h"
#include "llm/text.h"
#include "pipeline/llava.h"

#define QUESTION "What is in this picture?"
#define MAX_NEW 32

typedef struct subject {
    const char *folder;
    const lv_safetensors *golden;
    bool is_cuda;
    double tolerance;
    lv_model *model;
    lv_engine *engine;
} subject;

// --- near ties ----------------------------------------------------------------------------------

static float best_two_apart(const float *logits, int n) {
    float best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (logits[i] > best) {
            second = best;
            best = logits[i];
        } else if (logits[i] > second) {
            second = logits[i];
        }
    }
    return best - second;
}

// The stored prompt, whose one picture's embeddings are stored too, through the plain loops.
static lv_status read_prompt(const subject *s, const char *item, lv_backend *be, lv_llm *llm,
                             lv_cache *cache, lv_sequence *sequence, void *dev, float **logits) {
    const lv_tensor *embeds = golden_find(s->golden, item, "embeds");
    const lv_tensor *stored = golden_find(s->golden, item, "ids");
    int32_t *ids = golden_copy(stored), n = (int32_t)lv_tensor_count(stored), at = 0;
    float *rows = golden_copy(embeds);
    while (at < n && ids[at] != LV_IMAGE_TOKEN) {
        at++;
    }
    const lv_chunk chunks[] = {{.sequence = sequence, .ids = ids, .n = at},
                               {.sequence = sequence, .embeddings = dev, .n = (int)embeds->dims[0]},
                               {sequence, ids + at + 1, NULL, n - at - 1, true}};
    lv_status status = be->ops->upload_act(be, dev, rows, (size_t)lv_tensor_count(embeds));
    status = status == LV_OK ? lv_llm_forward(llm, cache, chunks, 3, logits) : status;
    free(rows);
    free(ids);
    return status;
}

// How many of the item's greedy tokens come before the reference's best two logits are within
// GOLDEN_F16_MARGIN; the plain loops, which are within 1e-6 of it, stand in for the reference.
static lv_status count_sure(const subject *s, const char *item, int *out) {
    const lv_backend_options options = golden_backend("ref");
    const lv_tensor *embeds = golden_find(s->golden, item, "embeds");
    const lv_tensor *greedy = golden_find(s->golden, item, "greedy");
    const int n = (int)lv_tensor_count(greedy);
    int32_t *tokens = golden_copy(greedy);
    float *host = NULL, *logits;
    void *dev = NULL;
    lv_checkpoint *checkpoint = NULL;
    lv_backend *be = NULL;
    lv_llm *llm = NULL;
    lv_cache *cache = NULL;
    lv_sequence sequence = {0};
    lv_status status;
    LV_TRY_DONE(lv_checkpoint_open(s->folder, NULL, &checkpoint));
    LV_TRY_DONE(lv_backend_open(&options, &be));
    LV_TRY_DONE(lv_llm_load(checkpoint, be, NULL, &llm));
    LV_TRY_DONE(lv_cache_create(llm, 16, LV_F32, &cache));
    LV_TRY_DONE(lv_sequence_open(llm, 1024, NULL, &sequence));
    LV_TRY_DONE(be->ops->alloc(be, lv_tensor_bytes(embeds), &dev));
    const int vocab = lv_llm_config(llm)->vocab_size;
    host = malloc((size_t)vocab * sizeof *host);
    LV_TRY_DONE(read_prompt(s, item, be, llm, cache, &sequence, dev, &logits));
    for (*out = 0; *out < n; ++*out) {
        LV_TRY_DONE(be->ops->download(be, host, logits, (size_t)vocab * sizeof *host));
        if (best_two_apart(host, vocab) < GOLDEN_F16_MARGIN) {
            break;
        }
        const lv_chunk next = {&sequence, &tokens[*out], NULL, 1, true};
        LV_TRY_DONE(lv_llm_forward(llm, cache, &next, 1, &logits));
    }
done:
    if (be) {
        be->ops->free(be, dev);
    }
    lv_sequence_close(cache, &sequence);
    lv_cache_free(cache);
    lv_llm_free(llm);
    lv_backend_close(be);
    lv_checkpoint_free(checkpoint);
    free(host);
    free(tokens);
    return status;
}

// How many tokens of the item are asked for; at least one.
static int max_tokens(const subject *s, const char *item) {
    int n_sure = MAX_NEW;
    if (s->is_cuda) {
        CHECK_OK(count_sure(s, item, &n_sure));
        printf("%s: %d tokens before a near tie\n", item, n_sure);
    }
    return n_sure > 0 ? n_sure : 1;
}

// --- texts --------------------------------------------------------------------------------------

// Without outer white space, and with runs of U+FFFD as one: how many of them stand for broken
// bytes is not agreed on.
static void simplify(char *text) {
    static const char mark[] = "\xEF\xBF\xBD";
    char *to = text;
    const char *from = text + strspn(text, " \n\t\r");
    while (*from) {
        if (strncmp(from, mark, 3) == 0 && to - text >= 3 && memcmp(to - 3, mark, 3) == 0) {
            from += 3;
        } else {
            *to++ = *from++;
        }
    }
    while (to > text && strchr(" \n\t\r", to[-1])) {
        to--;
    }
    *to = 0;
}

static void check_text(const subject *s, const char *item, const lv_answer *answer) {
    static const char mark[] = "\xEF\xBF\xBD";
    const lv_tensor *greedy = golden_find(s->golden, item, "greedy");
    char *want = golden_copy(golden_find(s->golden, item, "text"));
    char *got = strdup(answer->text ? answer->text : "");
    simplify(want);
    simplify(got);
    if (answer->finish == LV_FINISH_LENGTH && answer->n_tokens < MAX_NEW) {
        // Cut short on purpose, maybe inside of a character.
        size_t n = strlen(got);
        while (n >= 3 && memcmp(got + n - 3, mark, 3) == 0) {
            n -= 3;
        }
        CHECK(strncmp(got, want, n) == 0, "%s: answered\n%s\nthe reference\n%s", item, got, want);
    } else if (lv_tensor_count(greedy) == MAX_NEW) {
        // An answer whose stored tokens stop at a near tie says nothing about the rest.
        CHECK(strcmp(got, want) == 0, "%s: answered\n%s\nthe reference\n%s", item, got, want);
    }
    free(got);
    free(want);
}

static void check_dump(const subject *s, const char *dir, const char *item, const char *dump,
                       const char *stored) {
    char path[600];
    lv_tensor tensor = {0};
    const lv_tensor *want = golden_find(s->golden, item, stored);
    snprintf(path, sizeof path, "%s/%s.npy", dir, dump);
    CHECK_OK(lv_npy_load(path, (size_t)1 << 26, &tensor));
    unlink(path);
    if (want && tensor.data) {
        double error = NAN;
        if (want->dtype == LV_U8 && lv_tensor_bytes(want) == lv_tensor_bytes(&tensor)) {
            error = memcmp(want->data, tensor.data, lv_tensor_bytes(want)) ? 1 : 0;
        } else if (tensor.dtype == LV_F32) {
            error = golden_error(tensor.data, (size_t)lv_tensor_count(&tensor), want);
        }
        CHECK(error <= s->tolerance, "%s: %s.npy: relative error %.2e", item, dump, error);
        printf("  %s %.1e", dump, error);
    }
    free((void *)(uintptr_t)tensor.data);
}

static void check_dumps(const subject *s, const char *dir, const char *item) {
    static const char *const names[][2] = {{"pixels", "pixels"},
                                           {"pixel_values", "pixel_values"},
                                           {"vision_features", "features"},
                                           {"image_embeds", "embeds"},
                                           {"input_ids", ""},
                                           {"logits", "logits"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_dump(s, dir, item, names[i][0], names[i][1]);
    }
    printf("\n");
}

// Prompt length: text ids and each picture's rows.
static int prompt_tokens(const lv_safetensors *golden, const char *item, int n_pictures) {
    return (int)golden_find(golden, item, "ids")->dims[0] - n_pictures +
           (int)golden_find(golden, item, "embeds")->dims[0];
}

static void check_item(const subject *s, const char *item) {
    char path[512], dir[] = "/tmp/lv_golden_XXXXXX";
    lv_picture *picture = NULL;
    lv_answer answer = {0};
    CHECK(mkdtemp(dir), "no temporary folder");
    snprintf(path, sizeof path, "%s/../%s.png", s->folder, item);
    CHECK_OK(lv_picture_load(s->model, path, NULL, NULL, &picture));
    if (picture) {
        const lv_message message = {"user", QUESTION, &picture, 1};
        const lv_params params = {.max_tokens = max_tokens(s, item), .dump_dir = dir};
        CHECK_OK(lv_engine_answer(s->engine, &message, 1, &params, NULL, NULL, &answer));
        CHECK(answer.n_prompt_tokens == prompt_tokens(s->golden, item, 1), "%s: %d prompt tokens",
              item, answer.n_prompt_tokens);
        check_text(s, item, &answer);
        printf("%-8s", item);
        check_dumps(s, dir, item);
    }
    lv_answer_free(&answer);
    lv_picture_free(picture);
    rmdir(dir);
}

// A second question in the same conversation reads only what is new and answers as from scratch.
static void check_turns(const subject *s) {
    char path[512];
    lv_picture *picture = NULL;
    snprintf(path, sizeof path, "%s/../photo.png", s->folder);
    CHECK_OK(lv_picture_load(s->model, path, NULL, NULL, &picture));
    const lv_message messages[] = {{"user", QUESTION, &picture, 1},
                                   {"assistant", "A red square.", NULL, 0},
                                   {"user", "And what colour is it?", NULL, 0}};
    for (int n = 1; n <= 3 && picture; n += 2) {
        lv_answer answer = {0};
        const char *item = n == 1 ? "photo" : "turns";
        const lv_params params = {.max_tokens = max_tokens(s, item)};
        CHECK_OK(lv_engine_answer(s->engine, messages, n, &params, NULL, NULL, &answer));
        CHECK(answer.n_prompt_tokens == prompt_tokens(s->golden, item, 1), "%s: %d prompt tokens",
              item, answer.n_prompt_tokens);
        check_text(s, item, &answer);
        if (n == 3) {
            CHECK(answer.n_reused_tokens >= prompt_tokens(s->golden, "photo", 1) - 1,
                  "the second turn reused %d of %d tokens", answer.n_reused_tokens,
                  prompt_tokens(s->golden, "photo", 1));
        }
        lv_answer_free(&answer);
    }
    lv_picture_free(picture);
}

// One picture named twice with nothing between reads as two pictures that look the same.
static void check_repeated(const subject *s) {
    char path[512], *texts[2] = {NULL, NULL};
    lv_picture *pictures[2] = {NULL, NULL};
    snprintf(path, sizeof path, "%s/../odd.png", s->folder);
    CHECK_OK(lv_picture_load(s->model, path, NULL, NULL, &pictures[0]));
    CHECK_OK(lv_picture_load(s->model, path, NULL, NULL, &pictures[1]));
    for (int i = 0; i < 2 && pictures[1]; i++) {
        lv_picture *const shown[] = {pictures[0], pictures[i]};
        const lv_message message = {"user", "<image><image>" QUESTION, shown, 2};
        const lv_params params = {.max_tokens = MAX_NEW};
        lv_answer answer = {0};
        CHECK_OK(lv_engine_answer(s->engine, &message, 1, &params, NULL, NULL, &answer));
        texts[i] = answer.text;
    }
    CHECK(texts[0] && texts[1] && strcmp(texts[0], texts[1]) == 0, "%s\nor\n%s", texts[0],
          texts[1]);
    for (int i = 0; i < 2; i++) {
        free(texts[i]);
        lv_picture_free(pictures[i]);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: golden_answers CASE FOLDER cpu|cpu2|cuda|cuda2\n");
        return 2;
    }
    const lv_backend_options backend = golden_backend(argv[3]);
    const lv_model_options options = {
        .model = argv[2],
        .device = backend.device,
        .tp = backend.tp,
        .template_name = strstr(argv[1], "mistral") ? "mistral_instruct" : "llava_v1"};
    const lv_engine_options engine_options = {.kv_dtype = golden_kv(argv[3])};
    lv_model *model = NULL;
    const lv_status status = lv_model_open(&options, &model);
    if (status == LV_EDEVICE && golden_is_cuda(argv[3])) {
        return check_skip(lv_error());
    }
    CHECK_OK(status);
    lv_engine *engine = NULL;
    CHECK_OK(model ? lv_engine_open(model, &engine_options, &engine) : LV_ENOTFOUND);
    lv_safetensors *golden = golden_open(argv[1]);
    const subject s = {argv[2], golden, golden_is_cuda(argv[3]), golden_tolerance(argv[3]),
                       model,   engine};
    if (engine && golden) {
        check_item(&s, "odd");
        check_item(&s, "wide");
        check_repeated(&s);
        if (golden_find(golden, "turns", "ids")) {
            check_turns(&s);
        }
    }
    lv_engine_close(engine);
    lv_model_free(model);
    lv_safetensors_free(golden);
    return check_done();
}
