// One question: pictures -> prompt -> answer, streamed or whole.
#include "client.h"

#include <stdlib.h>
#include <string.h>

lv_picture *answer_load(const describe_app *app, const describe_input *input) {
    lv_picture *picture = NULL;
    lv_fetch_options fetch = {.progress = progress_fetch, .user = input->label};
    progress("%s: reading", input->label);
    lv_status status = lv_picture_load(app->model, input->source, NULL, &fetch, &picture);
    progress_end();
    if (status != LV_OK) {
        complain(input->label, "%s", last_reason(input->source));
        return NULL;
    }
    return picture;
}

int answer_failed(const char *label, lv_status status) {
    complain(label, "%s", lv_error());
    return status == LV_EDEVICE ? EXIT_MODEL : EXIT_SOME_FAILED;
}

static bool put_header(answer_header *header) {
    bool ok = true;
    for (int i = 0; header && i < header->n && ok; i++) {
        ok = put_text(header->inputs[i].label) && put_text(i + 1 < header->n ? ", " : ": ");
    }
    if (header) {
        header->n = 0;
    }
    return ok;
}

bool answer_on_text(void *user, const lv_piece *piece) {
    return (!*piece->text || (put_header(user) && put_text(piece->text))) && !interrupted();
}

static bool goes_on(void *user, const lv_piece *piece) {
    (void)user;
    (void)piece;
    return !interrupted();
}

bool answer_put(const describe_app *app, const describe_input *inputs, const lv_picture_info *infos,
                int n, const lv_answer *answer, answer_header *header) {
    bool ok = false;
    if (app->options->json) {
        char *line = answer_json(inputs, infos, n, answer);
        ok = line && put_line(line);
        free(line);
    } else {
        ok = put_header(header) && put_line(terminal_streams() ? "" : answer->text);
    }
    if (ok && (answer->finish == LV_FINISH_LENGTH || answer->finish == LV_FINISH_CONTEXT)) {
        note("%s: the answer was cut after %d tokens (%s)", inputs->label, answer->n_tokens,
             answer->finish == LV_FINISH_LENGTH ? "--max-tokens" : "--session-len");
    }
    if (ok && app->options->verbose) {
        report_answer(inputs->label, infos, n, answer);
    }
    return ok;
}

const char *answer_prompt(const describe_options *options, int n_pictures) {
    return options->prompt  ? options->prompt
           : n_pictures > 1 ? "Describe these images."
                            : "Describe this image.";
}

// The options' question about n pictures: messages [2]. Returns how many.
static int question(const describe_options *options, lv_picture *const *pictures, int n,
                    lv_message *messages) {
    lv_message *last = messages;
    if (options->system) {
        *last++ = (lv_message){.role = "system", .text = options->system};
    }
    *last++ = (lv_message){
        .role = "user", .text = answer_prompt(options, n), .pictures = pictures, .n_pictures = n};
    return (int)(last - messages);
}

lv_status answer_submit(describe_app *app, lv_picture *picture, lv_text_callback on_text,
                        lv_done_callback on_done, void *user, uint64_t *out_id) {
    lv_message messages[2];
    const lv_request request = {.messages = messages,
                                .n_messages = question(app->options, &picture, 1, messages),
                                .params = app->options->params,
                                .on_text = on_text ? on_text : goes_on,
                                .on_done = on_done,
                                .user = user};
    return lv_engine_submit(app->engine, &request, out_id);
}

// Where `pictures` are, the engine is asked, else the server. Fills infos [n].
static lv_status ask_any(describe_app *app, const describe_input *inputs,
                         lv_picture *const *pictures, int n, lv_text_callback on_text,
                         answer_header *header, lv_picture_info *infos, lv_answer *out) {
    lv_message messages[2];
    if (!pictures) {
        return client_ask(app->client, inputs, n, on_text, header, infos, out);
    }
    for (int i = 0; i < n; i++) {
        infos[i] = lv_picture_describe(pictures[i]);
    }
    const int n_messages = question(app->options, pictures, n, messages);
    return lv_engine_answer(app->engine, messages, n_messages, &app->options->params, on_text,
                            header, out);
}

static int ask(describe_app *app, const describe_input *inputs, lv_picture *const *pictures, int n,
               bool with_header) {
    bool streams = terminal_streams() && !app->options->json;
    answer_header header = {.inputs = inputs, .n = with_header ? n : 0};
    lv_answer answer = {0};
    lv_picture_info *infos = calloc((size_t)n + 1, sizeof *infos);
    progress("%s: looking", inputs->label);
    lv_status status = infos ? ask_any(app, inputs, pictures, n, streams ? answer_on_text : NULL,
                                       &header, infos, &answer)
                             : lv_fail(LV_ENOMEM, "out of memory");
    progress_end();
    int result = EXIT_DONE;
    if (status != LV_OK) {
        result = answer_failed(inputs->label, status);
    } else if (!answer_put(app, inputs, infos, n, &answer, &header)) {
        result = EXIT_SOME_FAILED;
    }
    lv_answer_free(&answer);
    free(infos);
    return result;
}

int answer_question(describe_app *app, const describe_input *inputs, int n, bool with_header) {
    int n_loaded = 0, result = EXIT_SOME_FAILED;
    if (app->client) {
        return ask(app, inputs, NULL, n, with_header);
    }
    lv_picture **pictures = calloc((size_t)n, sizeof *pictures);
    if (!pictures) {
        complain(NULL, "out of memory");
        return result;
    }
    for (int i = 0; i < n; i++) { // each bad one is named
        pictures[i] = answer_load(app, &inputs[i]);
        n_loaded += pictures[i] != NULL;
    }
    if (n_loaded == n) {
        result = ask(app, inputs, pictures, n, with_header);
    } else if (n > 1) {
        complain("--together", "the question needs every picture and was not asked");
    }
    for (int i = 0; i < n; i++) {
        lv_picture_free(pictures[i]);
    }
    free(pictures);
    return result;
}
