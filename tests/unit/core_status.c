// Messages: one printable line, context in front, one for each thread.
#include <pthread.h>

#include "tests/check.h"

static void *other_thread(void *seen) {
    *(int *)seen = *lv_error() == 0;
    (void)lv_fail(LV_EIO, "another thread's");
    return NULL;
}

int main(void) {
    CHECK(*lv_error() == 0);
    CHECK(lv_fail(LV_EFORMAT, "%s: %d", "file", 3) == LV_EFORMAT);
    CHECK(strcmp(lv_error(), "file: 3") == 0, "%s", lv_error());
    CHECK(lv_fail_in(LV_EFORMAT, "layer %d", 7) == LV_EFORMAT);
    CHECK(strcmp(lv_error(), "layer 7: file: 3") == 0, "%s", lv_error());

    pthread_t thread;
    int was_empty = 0;
    CHECK(pthread_create(&thread, NULL, other_thread, &was_empty) == 0);
    pthread_join(thread, NULL);
    CHECK(was_empty);
    CHECK(strcmp(lv_error(), "layer 7: file: 3") == 0, "%s", lv_error());

    (void)lv_fail(LV_EIO, "a\nb\x1b[2J\x7f"
                          "c");
    CHECK(strcmp(lv_error(), "a b [2J c") == 0, "%s", lv_error());

    char text[4096];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    (void)lv_fail(LV_EIO, "%s", text);
    CHECK(strlen(lv_error()) < sizeof text - 1);
    (void)lv_fail_in(LV_EIO, "%s", text);
    CHECK(strlen(lv_error()) < sizeof text - 1);
    CHECK(strcmp(lv_status_name(LV_ELIMIT), "LV_ELIMIT") == 0);
    CHECK(strcmp(lv_status_name((lv_status)-99), "unknown status") == 0);
    return check_done();
}
