// A test is a program: CHECK what must hold, return check_done(). 0 passed, 1 failed, 77 skipped.
#ifndef LV_TESTS_CHECK_H
#define LV_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

static int check_n_run, check_n_failed;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        check_n_run++;                                                                             \
        if (!(condition)) {                                                                        \
            check_n_failed++;                                                                      \
            fprintf(stderr, "%s:%d: %s", __FILE__, __LINE__, #condition);                          \
            fprintf(stderr, ": " __VA_ARGS__);                                                     \
            fprintf(stderr, "\n");                                                                 \
        }                                                                                          \
    } while (0)

// The expression must return LV_OK, or else the code `want`.
#define CHECK_OK(expression) CHECK_STATUS(expression, LV_OK)
#define CHECK_STATUS(expression, want)                                                             \
    do {                                                                                           \
        lv_status check_got_ = (expression);                                                       \
        CHECK(check_got_ == (want), "%s, wanted %s: %s", lv_status_name(check_got_),               \
              lv_status_name(want), lv_error());                                                   \
    } while (0)

static inline int check_done(void) {
    printf("%d checks, %d failed\n", check_n_run, check_n_failed);
    return check_n_failed || !check_n_run ? 1 : 0;
}

static inline int check_skip(const char *why) {
    printf("skipped: %s\n", why);
    return 77;
}

#ifdef LV_SOURCE_DIR
// The source tree: where this was built, or $LV_SOURCE_DIR where the programs were carried
// elsewhere.
static inline const char *check_source(void) {
    const char *named = getenv("LV_SOURCE_DIR");
    return named ? named : LV_SOURCE_DIR;
}
#endif

#endif
