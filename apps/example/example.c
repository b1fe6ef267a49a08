// Describes a picture with libllava:  example PICTURE [MODEL]
//   cc example.c $(pkg-config --cflags --libs llava) -o example, or the CMakeLists.txt beside it
#include <llava.h>
#include <stdio.h>

static bool on_text(void *user, const lv_piece *piece) {
    (void)user;
    fputs(piece->text, stdout); // as it comes
    return fflush(stdout) == 0; // false would end the answer
}

int main(int argc, char **argv) {
    lv_model *model = NULL;
    lv_engine *engine = NULL;
    lv_picture *picture = NULL;
    lv_answer answer = {0};
    const lv_model_options options = {.model = argc > 2 ? argv[2] : NULL}; // NULL: the demo model
    const lv_params params = {.max_tokens = 100};
    if (argc < 2) {
        fprintf(stderr, "usage: example PICTURE [MODEL]\n");
        return 2;
    }
    lv_status status = lv_model_open(&options, &model);
    if (status == LV_OK) {
        status = lv_engine_open(model, NULL, &engine);
    }
    if (status == LV_OK) {
        status = lv_picture_load(model, argv[1], NULL, NULL, &picture);
    }
    if (status == LV_OK) {
        const lv_message question = {"user", "Describe this image.", &picture, 1};
        status = lv_engine_answer(engine, &question, 1, &params, on_text, NULL, &answer);
    }
    if (status == LV_OK) {
        printf("\n%d tokens, finish: %s, model: %s\n", answer.n_tokens,
               lv_finish_name(answer.finish), lv_model_describe(model).dir);
    } else {
        fprintf(stderr, "example: %s\n", lv_error());
    }
    lv_answer_free(&answer);
    lv_picture_free(picture);
    lv_engine_close(engine);
    lv_model_free(model);
    return status == LV_OK ? 0 : 1;
}
