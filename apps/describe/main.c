// describe: says what pictures show, or answers questions about them.
#include "describe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "apps/polite.h"

// Help and version: whole on standard output, or an error.
static int flush_printed(void) {
    if (fflush(stdout) != 0) {
        complain("standard output", "%s", strerror(errno));
        return EXIT_SOME_FAILED;
    }
    return EXIT_DONE;
}

static void say_notes(const describe_app *app) {
    const describe_options *o = app->options;
    if (app->info.is_demo) {
        note("using the small embedded demo model; for a real one: describe --pull "
             "llava-hf/llava-1.5-7b-hf, then --model llava-hf/llava-1.5-7b-hf");
    }
    if (o->params.temperature <= 0 &&
        (o->params.top_p > 0 || o->params.top_k > 0 || o->params.min_p > 0 || o->params.seed)) {
        note("--top-p, --top-k, --min-p and --seed say nothing without --temperature above 0");
    }
    if (o->verbose) {
        report_model(app);
    }
}

static int open_model(describe_app *app) {
    const describe_options *o = app->options;
    const char *name = o->model.model ? o->model.model : "the model";
    progress("loading %s", name);
    lv_status status = lv_model_open(&o->model, &app->model);
    if (status == LV_OK) {
        app->info = lv_model_describe(app->model);
        status = lv_session_open(app->model, &app->session);
    }
    progress_end();
    if (status != LV_OK) {
        complain(NULL, "cannot load %s: %s", name, last_reason(name));
        return EXIT_MODEL;
    }
    say_notes(app);
    return EXIT_DONE;
}

static int answer_each(describe_app *app, const input_list *inputs) {
    int worst = EXIT_DONE;
    bool several = inputs->n + inputs->n_refused > 1;
    for (int i = 0; i < inputs->n && worst != EXIT_MODEL && !put_failed(); i++) {
        int result = answer_question(app, &inputs->items[i], 1, several);
        worst = result > worst ? result : worst;
    }
    return worst;
}

static int run(const describe_options *options, const input_list *inputs) {
    describe_app app = {.options = options};
    int result = inputs->n_refused ? EXIT_SOME_FAILED : EXIT_DONE;
    if (options->params.dump_dir && mkdir(options->params.dump_dir, 0777) != 0 && errno != EEXIST) {
        complain("--dump-tensors", "%s: %s", options->params.dump_dir, strerror(errno));
        return EXIT_USAGE;
    }
    if (options->together && inputs->n_refused) {
        complain("--together", "the question needs every picture and was not asked");
        return result;
    }
    if (inputs->n == 0 && !options->chat) {
        if (!inputs->n_refused) {
            note("%s names no picture", options->files_from);
        }
        return result;
    }
    int answered = open_model(&app);
    if (answered == EXIT_DONE) {
        answered = options->chat       ? chat_run(&app, inputs)
                   : options->together ? answer_question(&app, inputs->items, inputs->n, false)
                                       : answer_each(&app, inputs);
    }
    lv_session_free(app.session);
    lv_model_free(app.model);
    return answered > result ? answered : result;
}

int main(int argc, char **argv) {
    describe_options options = {0};
    input_list inputs = {0};
    int result = EXIT_USAGE;
    if (!terminal_setup()) {
        return EXIT_SOME_FAILED;
    }
    if (!options_parse(argc, argv, &options)) {
        goto done;
    }
    terminal_quiet(options.quiet);
    if (options.help) {
        options_help();
        result = flush_printed();
    } else if (options.version) {
        printf("describe %s (llava.c)\n", LV_VERSION);
        result = flush_printed();
    } else {
        wait_politely(argv);
        result = options_read_schema(&options) ? inputs_gather(&options, &inputs) : EXIT_USAGE;
        if (result == EXIT_DONE && options.pull) {
            result = pull_run(&options);
            options.model.model = options.model.model ? options.model.model : options.pull;
        }
        bool asks = options.inputs.n || options.files_from || options.chat;
        result = result == EXIT_DONE && asks ? run(&options, &inputs) : result;
    }
done:
    inputs_free(&inputs);
    options_free(&options);
    return result;
}
