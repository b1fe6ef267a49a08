// describe: says what pictures show, or answers questions about them.
#include "client.h"
#include "folders.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "apps/polite.h"

// The system takes memory and device back faster than they are freed one by one: at the end only
// what looks for leaks wants that.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FREES_ALL true
#else
#define FREES_ALL false
#endif

// Help and version: whole on standard output, or an error.
static int flush_printed(void) {
    if (fflush(stdout) != 0 || ferror(stdout)) {
        complain("standard output", "%s", strerror(errno));
        return EXIT_SOME_FAILED;
    }
    return EXIT_DONE;
}

// Which device was taken where none was named; -v says it in its own lines.
static void say_device(const describe_app *app) {
    const char *named = app->options->model.device, *no_gpu = app->info.no_gpu;
    if ((!named || strcmp(named, "auto") == 0) && !app->options->verbose) {
        note("on %s%s%s", app->info.device, *no_gpu ? "; no GPU: " : "", no_gpu);
    }
}

static void say_notes(const describe_app *app) {
    const describe_options *o = app->options;
    say_device(app);
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

// Whether there are questions that the engine can answer side by side.
static bool is_batch(const describe_options *o, const input_list *inputs) {
    return !o->chat && !o->together && (inputs->n > 1 || records(o) || o->failures);
}

static lv_status open_engine(describe_app *app, const input_list *inputs) {
    lv_engine_options options = app->options->engine;
    const bool batch = is_batch(app->options, inputs);
    const int most = app->info.is_gpu ? 64 : 16;
    if (!batch || options.max_sequences <= 0) {
        options.max_sequences = !batch ? 1 : inputs->n < most ? inputs->n : most;
    }
    options.queue_length = 2 * options.max_sequences;
    options.n_workers = batch ? options.n_workers : 1;
    options.no_reuse = batch; // every picture is asked about once; what is before it is shared
    if (!batch && !app->options->chat && !options.image_cache_bytes) {
        options.image_cache_bytes = 1; // no further picture comes
    }
    app->n_sequences = options.max_sequences;
    return lv_engine_open(app->model, &options, &app->engine);
}

static int open_model(describe_app *app, const input_list *inputs) {
    const describe_options *o = app->options;
    const char *name = o->model.model ? o->model.model : "the model";
    progress("loading %s", name);
    lv_status status = lv_model_open(&o->model, &app->model);
    if (status == LV_OK) {
        app->info = lv_model_describe(app->model);
        status = open_engine(app, inputs);
    }
    progress_end();
    if (status != LV_OK) {
        complain(NULL, "cannot load %s: %s", name, last_reason(name));
        return EXIT_MODEL;
    }
    say_notes(app);
    return EXIT_DONE;
}

static int open_server(describe_app *app) {
    const char *name = app->options->server;
    progress("asking %s", name);
    lv_status status = client_open(app->options, &app->client);
    progress_end();
    if (status != LV_OK) {
        complain(name, "%s", last_reason(name));
        return EXIT_MODEL;
    }
    app->n_sequences = client_n_threads(app->client);
    if (app->options->verbose) {
        note("%s answers at %s", client_model(app->client), name);
    }
    return EXIT_DONE;
}

static int answer_inputs(describe_app *app, recorder *keeper, const input_list *inputs) {
    const describe_options *o = app->options;
    if (o->chat) {
        return chat_run(app, inputs);
    }
    if (!is_batch(o, inputs)) {
        return answer_question(app, inputs->items, inputs->n, !o->together && inputs->n_refused);
    }
    return batch_run(app, keeper, inputs);
}

// Whether there is anything to ask the model; says so where that is not plain.
static bool has_work(const describe_options *o, const recorder *keeper, const input_list *inputs) {
    if (o->together && inputs->n_refused) {
        complain("--together", "the question needs every picture and was not asked");
        return false;
    }
    if (o->fail_fast && inputs->n_refused) {
        complain("--fail-fast", "nothing was described");
        return false;
    }
    if (inputs->n > 0 || o->chat) {
        return true;
    }
    if (keeper->n_skipped) {
        note("nothing to do: %d picture%s already", keeper->n_skipped,
             keeper->n_skipped > 1 ? "s have captions" : " has its caption");
    } else if (o->shard.count > 1) {
        note("part %d of %d has no picture", o->shard.index + 1, o->shard.count);
    } else if (!inputs->n_refused) {
        note("%s names no picture", o->files_from);
    }
    return false;
}

static int run(const describe_options *options, input_list *inputs) {
    describe_app app = {.options = options};
    recorder keeper = {0};
    const char *dump_dir = options->params.dump_dir;
    if (dump_dir && inputs->n > 1 && !options->together) {
        complain("--dump-tensors", "takes one question: one picture, or several --together");
        return EXIT_USAGE;
    }
    if (dump_dir && mkdir(dump_dir, 0777) != 0 && errno != EEXIST) {
        complain("--dump-tensors", "%s: %s", dump_dir, strerror(errno));
        return EXIT_USAGE;
    }
    int result = recorder_open(options, &keeper);
    if (result != EXIT_DONE) {
        return result;
    }
    for (int i = 0; i + 1 < inputs->refusals.n; i += 2) {
        recorder_fail(&keeper, inputs->refusals.items[i], inputs->refusals.items[i + 1]);
    }
    recorder_skip_done(&keeper, inputs);
    result = inputs->n_refused ? EXIT_SOME_FAILED : EXIT_DONE;
    if (has_work(options, &keeper, inputs)) {
        int answered = options->server ? open_server(&app) : open_model(&app, inputs);
        answered = answered == EXIT_DONE ? answer_inputs(&app, &keeper, inputs) : answered;
        result = answered > result ? answered : result;
        client_close(app.client);
        if (FREES_ALL) {
            lv_engine_close(app.engine);
            lv_model_free(app.model);
        }
    }
    return recorder_close(&keeper) || result != EXIT_DONE ? result : EXIT_SOME_FAILED;
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
    if (!FREES_ALL) {
        fflush(NULL);
        _exit(result);
    }
    return result;
}
