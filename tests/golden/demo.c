// golden_demo cpu|cuda: the shipped demo model against transformers on the exact values of its int4
// weights: prompt ids, first logits, answers in one and several turns, one picture's pixels.
#include "golden.h"

#include <unistd.h>

#include "core/json.h"
#include "pipeline/llava.h"

#define DESCRIBE "Describe this image."
#define MAX_TURNS 8

static char dump_dir[] = "/tmp/lv_demo_XXXXXX";
static double tolerance = GOLDEN_AWQ_TOLERANCE; // of logits

// What the answer just given dumped under `name`; zeroed where it is missing.
static lv_tensor take_dump(const char *name) {
    char path[64];
    lv_tensor tensor = {0};
    snprintf(path, sizeof path, "%s/%s.npy", dump_dir, name);
    CHECK_OK(lv_npy_load(path, (size_t)1 << 26, &tensor));
    unlink(path);
    return tensor;
}

static void free_tensor(lv_tensor *tensor) {
    free((void *)(uintptr_t)tensor->data);
}

static void check_ids(const json_t *want, const char *what) {
    lv_tensor ids = take_dump("input_ids");
    const int64_t *got = ids.data;
    CHECK(ids.data && (size_t)lv_tensor_count(&ids) == json_array_size(want), "%s: %lld ids", what,
          (long long)lv_tensor_count(&ids));
    for (size_t i = 0; got && i < json_array_size(want); i++) {
        const json_int_t id = json_integer_value(json_array_get(want, i));
        CHECK(got[i] == id, "%s: id %zu is %lld, not %lld", what, i, (long long)got[i],
              (long long)id);
    }
    free_tensor(&ids);
}

// The dumped tensor `name` against the stored NAME_ITEM.npy, to `allowed` (0: to the byte).
static void check_stage(const char *name, const char *item, double allowed) {
    char path[512];
    lv_tensor got = take_dump(name), want = {0};
    snprintf(path, sizeof path, "%s/tests/golden/demo/%s_%s.npy", check_source(), name, item);
    if (access(path, R_OK) == 0) {
        CHECK_OK(lv_npy_load(path, (size_t)1 << 26, &want));
        CHECK(lv_tensor_bytes(&got) == lv_tensor_bytes(&want), "%s of %s: another size", name,
              item);
        if (got.data && lv_tensor_bytes(&got) == lv_tensor_bytes(&want)) {
            const double error =
                allowed > 0 ? golden_relative(got.data, want.data, (size_t)lv_tensor_count(&want))
                            : memcmp(got.data, want.data, lv_tensor_bytes(&want)) != 0;
            CHECK(error <= allowed, "%s of %s: relative error %.2e", name, item, error);
            printf("%s of %s: relative error %.1e\n", name, item, error);
        }
    }
    free_tensor(&got);
    free_tensor(&want);
}

static void check_stages(const json_t *item, const char *picture, const char *question) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(picture, "."), picture);
    check_ids(json_object_get(item, "input_ids"), name);
    // The logits stored are those of the description.
    check_stage("logits", strcmp(question, DESCRIBE) == 0 ? name : "none", tolerance);
    check_stage("pixels", name, 0);
    check_stage("pixel_values", name, 0);
    free_tensor(&(lv_tensor){.data = take_dump("vision_features").data});
    free_tensor(&(lv_tensor){.data = take_dump("image_embeds").data});
}

static void check_case(lv_engine *engine, const lv_model *model, const json_t *item) {
    const json_t *questions = json_object_get(item, "questions");
    const json_t *before = json_object_get(item, "answers_before");
    const char *picture_name = json_string_value(json_object_get(item, "picture"));
    const char *want = json_string_value(json_object_get(item, "text"));
    const int n_turns = (int)json_array_size(questions);
    char path[512];
    lv_message messages[2 * MAX_TURNS];
    lv_picture *picture = NULL;
    lv_answer answer = {0};
    int n = 0;
    snprintf(path, sizeof path, "%s/tests/golden/demo/%s", check_source(), picture_name);
    CHECK(n_turns >= 1 && n_turns <= MAX_TURNS);
    CHECK_OK(lv_picture_load(model, path, NULL, NULL, &picture));
    for (int i = 0; i < n_turns; i++) {
        const char *question = json_string_value(json_array_get(questions, (size_t)i));
        messages[n++] = (lv_message){"user", question, &picture, i == 0};
        if (i + 1 < n_turns) {
            const char *given = json_string_value(json_array_get(before, (size_t)i));
            messages[n++] = (lv_message){"assistant", given, NULL, 0};
        }
    }
    if (picture) {
        const lv_params params = {.max_tokens = 64, .dump_dir = dump_dir};
        CHECK_OK(lv_engine_answer(engine, messages, n, &params, NULL, NULL, &answer));
        CHECK(answer.text && strcmp(answer.text, want) == 0, "%s, %s: \"%s\", not \"%s\"",
              picture_name, messages[n - 1].text, answer.text ? answer.text : "", want);
        check_stages(item, picture_name, messages[n - 1].text);
    }
    lv_answer_free(&answer);
    lv_picture_free(picture);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: golden_demo cpu|cpu2|cuda|cuda2\n");
        return 2;
    }
    char folder[512], cases_file[512];
    snprintf(folder, sizeof folder, "%s/assets/demo-model", check_source());
    snprintf(cases_file, sizeof cases_file, "%s/tests/golden/demo/demo.json", check_source());
    const lv_backend_options backend = golden_backend(argv[1]);
    const lv_model_options options = {.model = folder, .device = backend.device, .tp = backend.tp};
    tolerance = golden_is_cuda(argv[1]) ? GOLDEN_F16_TOLERANCE : tolerance;
    lv_model *model = NULL;
    lv_engine *engine = NULL;
    json_t *root = NULL;
    const lv_status status = lv_model_open(&options, &model);
    if (status == LV_EDEVICE && golden_is_cuda(argv[1])) {
        return check_skip(lv_error());
    }
    CHECK_OK(status);
    CHECK(mkdtemp(dump_dir));
    CHECK_OK(lv_json_load(cases_file, (size_t)1 << 20, &root));
    CHECK_OK(model ? lv_engine_open(model, NULL, &engine) : LV_ENOTFOUND);
    const json_t *cases = json_object_get(root, "cases");
    CHECK(json_array_size(cases) >= 15, "%zu cases", json_array_size(cases));
    for (size_t i = 0; engine && i < json_array_size(cases); i++) {
        check_case(engine, model, json_array_get(cases, i));
    }
    lv_engine_close(engine);
    lv_model_free(model);
    json_decref(root);
    rmdir(dump_dir);
    return check_done();
}
