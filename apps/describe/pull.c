// --pull: a model from the hub into the cache, with a progress bar.
#include "describe.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/pull.h"

typedef struct pull_watch {
    double start, last_shown; // seconds; start 0: nothing was shown yet
    const char *last_file;
} pull_watch;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void show_bar(pull_watch *watch, const lv_pull_progress *now) {
    enum { WIDTH = 24, REDRAWS = 10 }; // a second
    double at = seconds();
    if (watch->last_file == now->file && at - watch->last_shown < 1.0 / REDRAWS) {
        return;
    }
    watch->last_file = now->file;
    watch->last_shown = at;
    watch->start = watch->start > 0 ? watch->start : at;
    double spent = at - watch->start;
    double speed = spent > 0 ? (double)now->n_received_bytes / spent : 0;
    int filled = now->total_bytes ? (int)(WIDTH * now->n_bytes / now->total_bytes) : 0;
    char left[32] = "";
    if (speed > 0) {
        double wait = (double)(now->total_bytes - now->n_bytes) / speed;
        int s = wait < 359999 ? (int)wait : 359999; // 99:59:59
        snprintf(left, sizeof left, "%d:%02d:%02d left  ", s / 3600, s / 60 % 60, s % 60);
    }
    progress("[%.*s%*s] %.1f of %.1f MB  %.1f MB/s  %s%s", filled, "########################",
             WIDTH - filled, "", (double)now->n_bytes / 1e6, (double)now->total_bytes / 1e6,
             speed / 1e6, left, now->file);
}

static bool on_progress(void *user, const lv_pull_progress *now) {
    if (now->file_done) {
        note("%s: %.1f MB, checked", now->file, (double)now->file_bytes / 1e6);
    } else if (now->file) {
        show_bar(user, now);
    }
    return !interrupted();
}

static int pull(const char *name, char **out_dir) {
    pull_watch watch = {0};
    lv_pull_options options = {.progress = on_progress, .user = &watch};
    interrupt_mode(INTERRUPT_STOPS);
    progress("%s: asking the hub", name);
    lv_status status = lv_pull(name, &options, out_dir);
    progress_end();
    interrupt_mode(INTERRUPT_LEAVES);
    if (status == LV_ECANCELLED) {
        note("%s: stopped; the same command goes on from here", name);
        return EXIT_INTERRUPTED;
    }
    if (status != LV_OK) {
        complain(name, "%s", last_reason(name));
        return EXIT_SOME_FAILED;
    }
    note("%s: complete in %s", name, *out_dir);
    return EXIT_DONE;
}

int pull_run(const describe_options *options) {
    char *dir = NULL, *tower = NULL, *tower_dir = NULL;
    int result = pull(options->pull, &dir);
    if (result == EXIT_DONE && !options->model.vision_model) {
        if (lv_pull_tower(dir, &tower) != LV_OK) {
            complain(options->pull, "%s", lv_error());
            result = EXIT_SOME_FAILED;
        } else if (tower) {
            note("%s comes without its vision tower, which is %s", options->pull, tower);
            result = pull(tower, &tower_dir);
        }
    }
    free(dir);
    free(tower);
    free(tower_dir);
    return result;
}
