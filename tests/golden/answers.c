// A tiny checkpoint end to end through the public library: golden_answers CASE FOLDER
// Answers' texts, token counts and the stages that dump_dir writes.
#include "golden.h"

#include <sys/stat.h>
#include <unistd.h>

#include "pipeline/llava.h"

#define QUESTION "What is in this picture?"

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

static void check_text(const lv_safetensors *golden, const char *item, const char *text) {
    const lv_tensor *greedy = golden_find(golden, item, "greedy");
    char *want = golden_copy(golden_find(golden, item, "text")), *got = strdup(text);
    simplify(want);
    simplify(got);
    // An answer whose stored tokens stop at a near tie says nothing about the rest.
    if (lv_tensor_count(greedy) == 32) {
        CHECK(strcmp(got, want) == 0, "%s: answered\n%s\nthe reference\n%s", item, got, want);
    }
    free(got);
    free(want);
}

static void check_dump(const lv_safetensors *golden, const char *dir, const char *item,
                       const char *dump, const char *stored) {
    char path[600];
    lv_tensor tensor = {0};
    const lv_tensor *want = golden_find(golden, item, stored);
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
        CHECK(error <= GOLDEN_TOLERANCE, "%s: %s.npy: relative error %.2e", item, dump, error);
        printf("  %s %.1e", dump, error);
    }
    free((void *)(uintptr_t)tensor.data);
}

static void check_dumps(const lv_safetensors *golden, const char *dir, const char *item) {
    static const char *const names[][2] = {{"pixels", "pixels"},
                                           {"pixel_values", "pixel_values"},
                                           {"vision_features", "features"},
                                           {"image_embeds", "embeds"},
                                           {"input_ids", ""},
                                           {"logits", "logits"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_dump(golden, dir, item, names[i][0], names[i][1]);
    }
    printf("\n");
}

// Prompt length: text ids and each picture's rows.
static int prompt_tokens(const lv_safetensors *golden, const char *item, int n_pictures) {
    return (int)golden_find(golden, item, "ids")->dims[0] - n_pictures +
           (int)golden_find(golden, item, "embeds")->dims[0];
}

static void check_item(lv_engine *engine, const lv_model *model, const lv_safetensors *golden,
                       const char *folder, const char *item) {
    char path[512], dir[] = "/tmp/lv_golden_XXXXXX";
    lv_picture *picture = NULL;
    lv_answer answer = {0};
    CHECK(mkdtemp(dir), "no temporary folder");
    snprintf(path, sizeof path, "%s/../%s.png", folder, item);
    CHECK_OK(lv_picture_load(model, path, NULL, NULL, &picture));
    if (picture) {
        const lv_message message = {"user", QUESTION, &picture, 1};
        const lv_params params = {.max_tokens = 32, .dump_dir = dir};
        CHECK_OK(lv_engine_answer(engine, &message, 1, &params, NULL, NULL, &answer));
        CHECK(answer.n_prompt_tokens == prompt_tokens(golden, item, 1), "%s: %d prompt tokens",
              item, answer.n_prompt_tokens);
        check_text(golden, item, answer.text ? answer.text : "");
        printf("%-8s", item);
        check_dumps(golden, dir, item);
    }
    lv_answer_free(&answer);
    lv_picture_free(picture);
    rmdir(dir);
}

// A second question in the same conversation reads only what is new and answers as from scratch.
static void check_turns(lv_engine *engine, const lv_model *model, const lv_safetensors *golden,
                        const char *folder) {
    char path[512];
    lv_picture *picture = NULL;
    snprintf(path, sizeof path, "%s/../photo.png", folder);
    CHECK_OK(lv_picture_load(model, path, NULL, NULL, &picture));
    const lv_message messages[] = {{"user", QUESTION, &picture, 1},
                                   {"assistant", "A red square.", NULL, 0},
                                   {"user", "And what colour is it?", NULL, 0}};
    const lv_params params = {.max_tokens = 32};
    for (int n = 1; n <= 3 && picture; n += 2) {
        lv_answer answer = {0};
        const char *item = n == 1 ? "photo" : "turns";
        CHECK_OK(lv_engine_answer(engine, messages, n, &params, NULL, NULL, &answer));
        CHECK(answer.n_prompt_tokens == prompt_tokens(golden, item, 1), "%s: %d prompt tokens",
              item, answer.n_prompt_tokens);
        check_text(golden, item, answer.text ? answer.text : "");
        if (n == 3) {
            CHECK(answer.n_reused_tokens >= prompt_tokens(golden, "photo", 1) - 1,
                  "the second turn reused %d of %d tokens", answer.n_reused_tokens,
                  prompt_tokens(golden, "photo", 1));
        }
        lv_answer_free(&answer);
    }
    lv_picture_free(picture);
}

// One picture named twice with nothing between reads as two pictures that look the same.
static void check_repeated(lv_engine *engine, const lv_model *model, const char *folder) {
    char path[512], *texts[2] = {NULL, NULL};
    lv_picture *pictures[2] = {NULL, NULL};
    snprintf(path, sizeof path, "%s/../odd.png", folder);
    CHECK_OK(lv_picture_load(model, path, NULL, NULL, &pictures[0]));
    CHECK_OK(lv_picture_load(model, path, NULL, NULL, &pictures[1]));
    for (int i = 0; i < 2 && pictures[1]; i++) {
        lv_picture *const shown[] = {pictures[0], pictures[i]};
        const lv_message message = {"user", "<image><image>" QUESTION, shown, 2};
        const lv_params params = {.max_tokens = 32};
        lv_answer answer = {0};
        CHECK_OK(lv_engine_answer(engine, &message, 1, &params, NULL, NULL, &answer));
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
    if (argc != 3) {
        fprintf(stderr, "usage: golden_answers CASE FOLDER\n");
        return 2;
    }
    const lv_model_options options = {
        .model = argv[2],
        .device = "cpu",
        .template_name = strstr(argv[1], "mistral") ? "mistral_instruct" : "llava_v1"};
    const lv_engine_options engine_options = {.kv_dtype = LV_F32, .max_sequences = 2};
    lv_model *model = NULL;
    lv_engine *engine = NULL;
    lv_safetensors *golden = golden_open(argv[1]);
    CHECK_OK(lv_model_open(&options, &model));
    CHECK_OK(model ? lv_engine_open(model, &engine_options, &engine) : LV_ENOTFOUND);
    if (engine && golden) {
        check_item(engine, model, golden, argv[2], "odd");
        check_item(engine, model, golden, argv[2], "wide");
        check_repeated(engine, model, argv[2]);
        if (golden_find(golden, "turns", "ids")) {
            check_turns(engine, model, golden, argv[2]);
        }
    }
    lv_engine_close(engine);
    lv_model_free(model);
    lv_safetensors_free(golden);
    return check_done();
}
