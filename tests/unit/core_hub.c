// Looking a model up: folders, and the Hugging Face cache by each of its variables.
#include <ctype.h>
#include <utime.h>

#include "core_util.h"

static void clear_variables(void) {
    unsetenv("HF_HUB_CACHE");
    unsetenv("HF_HOME");
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", "/nonexistent", 1);
}

static void found(const char *model, const char *want) {
    char *dir;
    CHECK_OK(lv_model_find(model, &dir));
    CHECK(dir && strcmp(dir, scratch(want)) == 0, "%s", dir ? dir : "NULL");
    free(dir);
}

static void missing(const char *model, lv_status want) {
    char *dir;
    CHECK_STATUS(lv_model_find(model, &dir), want);
    CHECK(!dir && error_names(model, NULL), "%s", lv_error());
    bool in_cache = strstr(lv_error(), "cache") != NULL;
    CHECK(in_cache == (strncmp(model, "org/", 4) == 0 && isalpha((unsigned char)model[4])), "%s",
          lv_error());
}

static void add_model(const char *cache, const char *revision) {
    char name[256];
    snprintf(name, sizeof name, "%s/models--org--name/snapshots/%s", cache, revision);
    make_folder(name);
    snprintf(name, sizeof name, "%s/models--org--name/refs", cache);
    make_folder(name);
    snprintf(name, sizeof name, "%s/models--org--name/refs/main", cache);
    write_text(name, revision);
}

static void test_variables(void) {
    add_model("a", "1111");
    add_model("b/hub", "2222");
    add_model("c/huggingface/hub", "3333");
    add_model("d/.cache/huggingface/hub", "4444");
    setenv("HOME", scratch("d"), 1);
    found("org/name", "d/.cache/huggingface/hub/models--org--name/snapshots/4444");
    setenv("XDG_CACHE_HOME", scratch("c"), 1);
    found("org/name", "c/huggingface/hub/models--org--name/snapshots/3333");
    setenv("HF_HOME", scratch("b"), 1);
    found("org/name", "b/hub/models--org--name/snapshots/2222");
    setenv("HF_HUB_CACHE", scratch("a"), 1);
    found("org/name", "a/models--org--name/snapshots/1111");
    setenv("HF_HUB_CACHE", "", 1); // empty counts as unset
    found("org/name", "b/hub/models--org--name/snapshots/2222");
}

static void test_revisions(void) {
    setenv("HF_HUB_CACHE", scratch("a"), 1);
    make_folder("a/models--org--name/snapshots/newer");
    make_folder("a/models--org--name/snapshots/older");
    struct utimbuf now = {0};
    now.actime = now.modtime = 1000000000;
    utime(scratch("a/models--org--name/snapshots/older"), &now);
    utime(scratch("a/models--org--name/snapshots/1111"), &now);
    make_folder("a/models--org--name/snapshots/a/b");
    utime(scratch("a/models--org--name/snapshots/a"), &now);
    found("org/name", "a/models--org--name/snapshots/1111");
    write_text("a/models--org--name/refs/main", "older\n");
    found("org/name", "a/models--org--name/snapshots/older");
    static const char *const bad[] = {"", "gone", "..", "../../..", "a/b", "\x01\x02"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text("a/models--org--name/refs/main", bad[i]);
        found("org/name", "a/models--org--name/snapshots/newer");
    }
    unlink(scratch("a/models--org--name/refs/main"));
    found("org/name", "a/models--org--name/snapshots/newer");
    make_folder("a/models--single/snapshots/x");
    found("single", "a/models--single/snapshots/x");
}

static void test_folders(void) {
    make_folder("model");
    found(scratch("model"), "model");
    write_text("file.gguf", "x");
    missing(scratch("file.gguf"), LV_EINVAL);
    missing(scratch("nothing"), LV_ENOTFOUND);
    setenv("HF_HUB_CACHE", scratch("a"), 1);
    missing("org/other", LV_ENOTFOUND);
    CHECK(error_names(scratch("a/models--org--other"), "describe --pull org/other", NULL), "%s",
          lv_error());
    make_folder("a/models--org--empty/snapshots");
    missing("org/empty", LV_ENOTFOUND);
    CHECK(chdir(scratch("model")) == 0); // so that relative names mean nothing else
    static const char *const names[] = {"a/b/c", "../x", "./x", "org/", "org/..", "a b", ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        missing(names[i], LV_ENOTFOUND);
    }
}

int main(void) {
    scratch_open();
    clear_variables();
    test_variables();
    test_revisions();
    test_folders();
    return check_done();
}
