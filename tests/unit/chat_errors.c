// What a client learns of a failure: its own mistakes in full, the server's troubles by a fixed
// text.
#include "apps/image_chat/errors.h"
#include "tests/check.h"

#define SECRET "/srv/models: cudaErrorIllegalAddress at 10.0.0.7"

static void check_told(lv_status status, bool reading, int want, const char *code, bool in_full) {
    api_error error;
    bool is_ours = !in_full;
    fail_with_status(&error, status, SECRET, reading, &is_ours);
    CHECK(error.status == want, "%s: %d, wanted %d", lv_status_name(status), error.status, want);
    CHECK((strstr(error.message, SECRET) != NULL) == in_full, "%s: \"%s\"", lv_status_name(status),
          error.message);
    CHECK(*error.message, "%s: told nothing", lv_status_name(status));
    CHECK(error.code == code || (error.code && code && strcmp(error.code, code) == 0),
          "%s: code %s, wanted %s", lv_status_name(status), error.code ? error.code : "none",
          code ? code : "none");
    CHECK((error.retry_after_s > 0) == (want == 503), "%s: Retry-After %d", lv_status_name(status),
          error.retry_after_s);
    if (status != LV_ECANCELLED) { // nothing went wrong
        CHECK(is_ours != in_full, "%s: the log is told of it: %d", lv_status_name(status), is_ours);
    }
}

int main(void) {
    check_told(LV_ELIMIT, true, 413, "image_too_large", true);
    check_told(LV_ELIMIT, false, 413, "context_length_exceeded", true);
    check_told(LV_EFORMAT, true, 400, "invalid_image", true);
    check_told(LV_EUNSUPPORTED, true, 400, "invalid_image", true);
    check_told(LV_EFORMAT, false, 400, NULL, true);
    check_told(LV_EINVAL, false, 400, NULL, true);
    check_told(LV_ENETWORK, true, 400, "image_fetch_failed", false);
    check_told(LV_ENOTFOUND, true, 400, "image_fetch_failed", false);
    check_told(LV_ENOMEM, false, 503, "out_of_memory", false);
    check_told(LV_ECANCELLED, false, 503, "cancelled", false);
    check_told(LV_EIO, false, 500, "internal_error", false);
    check_told(LV_EDEVICE, true, 500, "internal_error", false);
    check_told((lv_status)-99, false, 500, "internal_error", false);
    return check_done();
}
