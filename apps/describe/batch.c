// Many pictures: handed to the engine ahead of time, taken back in their order, recorded, with a
// bar and a summary.
#include "client.h"
#include "folders.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// A picture on its way. The engine's thread writes it, under the lock, until is_done.
typedef struct item {
    struct batch *batch;
    lv_picture *picture; // NULL where a server is asked
    lv_picture_info info;
    uint64_t id; // of its request
    bool is_done;
    lv_status status;
    char *reason; // of a failure
    lv_answer answer;
    lv_buffer streamed; // text that is not on the terminal yet
} item;

typedef struct batch {
    describe_app *app;
    recorder *keeper;
    const input_list *inputs;
    bool with_header; // answers on standard output follow their "FILE: "
    bool streams;     // the terminal shows them word by word
    bool stops;       // no further picture can be, or is to be, described
    int n_done, n_failed, n_cut, result;
    long n_tokens;
    double start_s;
    item *items; // [n_slots] a ring: input i is at i % n_slots
    int n_slots, n_submitted, n_taken;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} batch;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
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

// Puts an answer where the options say.
static void keep(batch *b, const describe_input *input, const lv_picture_info *info,
                 const lv_answer *answer, answer_header *header) {
    const describe_options *options = b->app->options;
    if (!records(options)) {
        if (!answer_put(b->app, input, info, 1, answer, header)) {
            b->stops = true;
            b->result = EXIT_SOME_FAILED;
            return;
        }
    } else {
        const lv_status status = recorder_put(b->keeper, input, info, answer);
        if (status != LV_OK) {
            fail(b, input, last_reason(input->source));
            // One file for all, and a full disk, take none of the others either.
            b->stops = b->stops || options->output || status == LV_EFULL;
            return;
        }
        if (options->verbose) {
            report_answer(input->label, info, 1, answer);
        }
    }
    b->n_done++;
    b->n_tokens += answer->n_tokens;
    b->n_cut += answer->finish == LV_FINISH_LENGTH || answer->finish == LV_FINISH_CONTEXT;
}

// --- to the engine and back

static bool fetch_goes_on(void *user, size_t n_bytes, size_t total_bytes) {
    (void)user;
    (void)n_bytes;
    (void)total_bytes;
    return !interrupted();
}

static bool on_text(void *user, const lv_piece *piece) {
    item *it = user;
    batch *b = it->batch;
    pthread_mutex_lock(&b->lock);
    // Without memory the answer comes whole, at its end.
    (void)!lv_buffer_append(&it->streamed, piece->text, strlen(piece->text));
    pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->lock);
    return !interrupted();
}

static void on_done(void *user, lv_status status, const char *message, lv_answer *answer) {
    item *it = user;
    batch *b = it->batch;
    pthread_mutex_lock(&b->lock);
    it->status = status;
    it->reason = message ? strdup(message) : NULL;
    if (answer) {
        it->answer = *answer;
        *answer = (lv_answer){0};
    }
    it->is_done = true;
    pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

// Hands input i over. What fails at once is done with its reason.
static void submit(batch *b, int i) {
    const lv_fetch_options fetch = {.progress = fetch_goes_on};
    const describe_input *input = &b->inputs->items[i];
    item *it = &b->items[i % b->n_slots];
    *it = (item){.batch = b, .streamed = {.max_bytes = (size_t)1 << 24}};
    lv_text_callback show = b->streams ? on_text : NULL;
    lv_status status;
    if (b->app->client) {
        status = client_submit(b->app->client, input, show, on_done, it, &it->info);
    } else {
        status = lv_picture_later(b->app->model, input->source, NULL, &fetch, &it->picture);
        if (status == LV_OK) {
            status = answer_submit(b->app, it->picture, show, on_done, it, &it->id);
        }
    }
    if (status != LV_OK) {
        on_done(it, status, lv_error(), NULL);
    }
}

static void forget(item *it) {
    lv_picture_free(it->picture);
    lv_answer_free(&it->answer);
    lv_buffer_free(&it->streamed);
    free(it->reason);
    *it = (item){0};
}

// Shows what has come of the answer that is to be shown next. Called with the lock held, which it
// lets go of meanwhile.
static void show_streamed(batch *b, item *it, answer_header *header) {
    lv_buffer text = it->streamed;
    it->streamed = (lv_buffer){.max_bytes = text.max_bytes};
    pthread_mutex_unlock(&b->lock);
    const lv_piece piece = {.text = text.data ? (const char *)text.data : ""};
    answer_on_text(header, &piece);
    lv_buffer_free(&text);
    pthread_mutex_lock(&b->lock);
}

// Waits for the next item in order; false on an interrupt.
static bool wait_for(batch *b, item *it, answer_header *header) {
    pthread_mutex_lock(&b->lock);
    while (!interrupted() && (!it->is_done || it->streamed.n_bytes)) {
        if (it->streamed.n_bytes) {
            show_streamed(b, it, header);
            continue;
        }
        struct timespec until; // a signal wakes no thread that waits: looked for now and then
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100 * 1000 * 1000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&b->changed, &b->lock, &until);
    }
    const bool is_done = it->is_done && !interrupted();
    pthread_mutex_unlock(&b->lock);
    return is_done;
}

// The answer to picture i, or its failure. False on an interrupt.
static bool take(batch *b, int i) {
    const describe_input *input = &b->inputs->items[i];
    item *it = &b->items[i % b->n_slots];
    answer_header header = {.inputs = input, .n = b->with_header};
    if (b->streams) {
        progress("%s: looking", input->label);
    } else {
        show_bar(b, input->label);
    }
    if (!wait_for(b, it, &header)) {
        return false;
    }
    progress_end();
    if (it->status != LV_OK) {
        const size_t n = strlen(input->source);
        const char *reason = it->reason ? it->reason : "out of memory";
        const bool is_named = !strncmp(reason, input->source, n) && !strncmp(reason + n, ": ", 2);
        fail(b, input, is_named ? reason + n + 2 : reason);
        if (it->status == LV_EDEVICE) {
            b->stops = true;
            b->result = EXIT_MODEL;
        }
    } else if (it->answer.finish != LV_FINISH_CANCELLED) {
        if (it->picture) {
            it->info = lv_picture_describe(it->picture);
            // Told apart from reading, as where one picture is read before it is asked about.
            it->answer.first_token_ms -= it->info.load_ms + it->info.preprocess_ms;
        }
        keep(b, input, &it->info, &it->answer, &header);
    }
    forget(it);
    return true;
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

// Takes back what is with the engine still.
static void leave(batch *b) {
    if (b->app->client) {
        client_stop(b->app->client);
    }
    for (int i = b->n_taken; !b->app->client && i < b->n_submitted; i++) {
        lv_engine_cancel(b->app->engine, b->items[i % b->n_slots].id);
    }
    for (int i = b->n_taken; i < b->n_submitted; i++) {
        item *it = &b->items[i % b->n_slots];
        pthread_mutex_lock(&b->lock);
        while (!it->is_done) {
            pthread_cond_wait(&b->changed, &b->lock);
        }
        pthread_mutex_unlock(&b->lock);
        forget(it);
    }
}

int batch_run(describe_app *app, recorder *keeper, const input_list *inputs) {
    batch b = {.app = app,
               .keeper = keeper,
               .inputs = inputs,
               .with_header = inputs->n + inputs->n_refused > 1,
               .streams = !records(app->options) && !app->options->json && terminal_streams(),
               .start_s = now_s(),
               .n_slots = 2 * app->n_sequences};
    // An answer on standard output needs no care: what is out is kept, and the rest may go at once.
    interrupt_mode(records(app->options) ? INTERRUPT_STOPS : INTERRUPT_LEAVES);
    b.items = calloc((size_t)b.n_slots, sizeof *b.items);
    if (!b.items) {
        complain(NULL, "out of memory");
        return EXIT_MODEL;
    }
    pthread_mutex_init(&b.lock, NULL);
    pthread_cond_init(&b.changed, NULL);
    while (!b.stops && b.n_taken < inputs->n) {
        while (b.n_submitted < inputs->n && b.n_submitted < b.n_taken + b.n_slots) {
            submit(&b, b.n_submitted++);
        }
        if (!take(&b, b.n_taken)) {
            break;
        }
        b.n_taken++;
    }
    progress_end();
    say_summary(&b);
    if (app->options->verbose && app->engine) {
        report_engine(app);
    }
    if (interrupted()) { // a worker may wait long for a server: nobody waits for the worker
        recorder_close(keeper);
        _exit(EXIT_INTERRUPTED);
    }
    leave(&b);
    pthread_cond_destroy(&b.changed);
    pthread_mutex_destroy(&b.lock);
    free(b.items);
    return b.result;
}
