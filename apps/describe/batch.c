// The loop over many pictures: next picture -> caption -> record, with a bar and a summary.
#include "folders.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct batch {
    describe_app *app;
    recorder *keeper;
    const input_list *inputs;
    bool with_header; // answers on standard output follow their "FILE: "
    bool stops;       // no further picture can be, or is to be, described
    int n_done, n_failed, n_cut, result;
    long n_tokens;
    double start_s;
} batch;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int n_threads_of(const describe_options *options) {
    cpu_set_t cores;
    if (options->model.n_threads > 0) {
        return options->model.n_threads;
    }
    return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

static const char *clock_text(double seconds, char out[16]) {
    int s = seconds < 359999 ? (int)seconds : 359999; // 99:59:59
    snprintf(out, 16, s < 3600 ? "%d:%02d" : "%d:%02d:%02d", s < 3600 ? s / 60 : s / 3600,
             s < 3600 ? s % 60 : s / 60 % 60, s % 60);
    return out;
}

static void show_bar(const batch *b, const char *label) {
    enum { WIDTH = 20 };
    int n_over = b->n_done + b->n_failed, n = b->inputs->n;
    int filled = (int)((long)WIDTH * n_over / n);
    double spent = now_s() - b->start_s;
    char left[16], speed[96] = "", failed[32] = "";
    if (n_over > 0 && spent > 0) {
        snprintf(speed, sizeof speed, "  %.2f images/s  %.0f tokens/s  %s left", b->n_done / spent,
                 (double)b->n_tokens / spent, clock_text(spent / n_over * (n - n_over), left));
    }
    if (b->n_failed > 0) {
        snprintf(failed, sizeof failed, "  %d failed", b->n_failed);
    }
    progress("[%.*s%*s] %d/%d%s%s  %s", filled, "####################", WIDTH - filled, "", n_over,
             n, speed, failed, label);
}

static void fail(batch *b, const describe_input *input, const char *reason) {
    complain(input->label, "%s", reason);
    recorder_fail(b->keeper, input->source, reason);
    b->n_failed++;
    b->stops = b->stops || b->app->options->fail_fast;
    b->result = b->result > EXIT_SOME_FAILED ? b->result : EXIT_SOME_FAILED;
}

static bool goes_on(void *user, const char *text) {
    (void)user;
    (void)text;
    return !interrupted();
}

// Puts an answer where the options say.
static void keep(batch *b, const describe_input *input, lv_picture *picture,
                 const lv_answer *answer, answer_header *header) {
    const describe_options *options = b->app->options;
    if (!records(options)) {
        if (!answer_put(b->app, input, &picture, 1, answer, header)) {
            b->stops = true;
            b->result = EXIT_SOME_FAILED;
            return;
        }
    } else if (recorder_put(b->keeper, input, picture, answer) != LV_OK) {
        fail(b, input, last_reason(input->source));
        b->stops = b->stops || options->output; // it takes none of the others either
        return;
    } else if (options->verbose) {
        report_answer(input->label, &picture, 1, answer);
    }
    b->n_done++;
    b->n_tokens += answer->n_tokens;
    b->n_cut += answer->finish == LV_FINISH_LENGTH || answer->finish == LV_FINISH_CONTEXT;
}

static void describe_one(batch *b, const describe_input *input, lv_picture *picture) {
    const describe_options *options = b->app->options;
    bool streams = !records(options) && !options->json && terminal_streams();
    answer_header header = {.inputs = input, .n = b->with_header};
    lv_answer answer = {0};
    if (streams) {
        progress("%s: looking", input->label);
    } else {
        show_bar(b, input->label);
    }
    lv_status status = answer_ask(b->app, &picture, 1, streams ? answer_on_text : goes_on,
                                  streams ? &header : NULL, &answer);
    progress_end();
    if (status != LV_OK) {
        fail(b, input, lv_error());
        if (status == LV_EDEVICE) {
            b->stops = true;
            b->result = EXIT_MODEL;
        }
    } else if (answer.finish != LV_FINISH_CANCELLED) {
        keep(b, input, picture, &answer, &header);
    }
    lv_answer_free(&answer);
}

static void say_summary(const batch *b) {
    double spent = now_s() - b->start_s;
    lv_shard shard = b->app->options->shard;
    char took[16], part[48] = "", rest[160] = "", *to = rest, *end = rest + sizeof rest;
    if (b->n_cut) {
        to +=
            snprintf(to, (size_t)(end - to), ", %d cut by --max-tokens or --session-len", b->n_cut);
    }
    if (b->keeper->n_skipped) {
        to += snprintf(to, (size_t)(end - to), ", %d had captions already", b->keeper->n_skipped);
    }
    int n_failed = b->n_failed + b->inputs->n_refused;
    if (n_failed) {
        to += snprintf(to, (size_t)(end - to), ", %d failed", n_failed);
    }
    int n_left = b->inputs->n - b->n_done - b->n_failed;
    if (n_left) {
        snprintf(to, (size_t)(end - to), ", %d left", n_left);
    }
    if (shard.count > 1) {
        snprintf(part, sizeof part, "part %d of %d: ", shard.index + 1, shard.count);
    }
    note("%sdescribed %d picture%s in %s (%.2f images/s, %.0f tokens/s)%s", part, b->n_done,
         b->n_done == 1 ? "" : "s", clock_text(spent, took), b->n_done / spent,
         (double)b->n_tokens / spent, rest);
}

int batch_run(describe_app *app, recorder *keeper, const input_list *inputs) {
    batch b = {.app = app,
               .keeper = keeper,
               .inputs = inputs,
               .with_header = inputs->n + inputs->n_refused > 1,
               .start_s = now_s()};
    // An answer on standard output needs no care: what is out is kept, and the rest may go at once.
    interrupt_mode(records(app->options) ? INTERRUPT_STOPS : INTERRUPT_LEAVES);
    ahead *pictures = ahead_start(app->model, inputs->items, inputs->n, n_threads_of(app->options));
    lv_picture *picture = NULL;
    char *reason = NULL;
    if (!pictures) {
        complain(NULL, "no thread can be started");
        return EXIT_MODEL;
    }
    for (int i = 0; !b.stops && ahead_next(pictures, &picture, &reason); i++) {
        if (picture) {
            describe_one(&b, &inputs->items[i], picture);
        } else {
            fail(&b, &inputs->items[i], reason ? reason : "out of memory");
        }
        lv_picture_free(picture);
        free(reason);
    }
    say_summary(&b);
    if (interrupted()) { // a worker may wait long for a server: nobody waits for the worker
        recorder_close(keeper);
        _exit(EXIT_INTERRUPTED);
    }
    ahead_free(pictures);
    return b.result;
}
