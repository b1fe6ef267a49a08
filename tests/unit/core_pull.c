// Pulling without a hub: names, endpoints and tokens that are refused before anything is asked, and
// which second checkpoint a model wants. tests/cli/test_pull.py has the hub.
#include "core/pull.h"
#include "core_util.h"

static void refused(const char *name, lv_status want, const char *named) {
    char *dir = scratch_dir;
    CHECK_STATUS(lv_pull(name, NULL, &dir), want);
    CHECK(!dir && error_names(name, named, NULL), "%s", lv_error());
    CHECK_STATUS(lv_pull(name, NULL, NULL), want);
}

static void test_refused(void) {
    static const char *const names[] = {"", "..", "a/b/c", "/a", "a/", "a b", "https://x/y"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        refused(names[i], LV_EINVAL, "org/name");
    }
    setenv("HF_ENDPOINT", "file:///etc", 1);
    refused("org/name", LV_EINVAL, "HF_ENDPOINT");
    setenv("HF_ENDPOINT", "https://user@[::bad", 1);
    refused("org/name", LV_EINVAL, NULL);
    setenv("HF_ENDPOINT", "http://127.0.0.1:9", 1); // nobody listens there
    refused("org/name", LV_ENETWORK, "127.0.0.1");
    setenv("HF_TOKEN", "caf\xc3\xa9", 1);
    refused("org/name", LV_EINVAL, "HF_TOKEN");
    unsetenv("HF_TOKEN");
    char long_token[2000];
    memset(long_token, 'x', sizeof long_token - 1);
    long_token[sizeof long_token - 1] = 0;
    write_text("token", long_token);
    refused("org/name", LV_ELIMIT, "token");
    unlink(scratch("token"));
    CHECK(access(scratch("hub"), F_OK) != 0); // nothing was made
}

static void tower(const char *config, const char *tensor, const char *want) {
    char *name;
    builder b = {0};
    builder_add_f16(&b, tensor, "[8]");
    builder_write(&b, "model/model.safetensors");
    write_text("model/config.json", config);
    CHECK_OK(lv_pull_tower(scratch("model"), &name));
    CHECK(want ? name && strcmp(name, want) == 0 : !name, "%s", name ? name : "NULL");
    free(name);
}

static void test_tower(void) {
    make_folder("model");
    tower("{\"mm_vision_tower\": \"org/clip\"}", "model.norm.weight", "org/clip");
    tower("{\"mm_vision_tower\": \"org/clip\"}",
          "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding", NULL);
    tower("{\"mm_vision_tower\": \"/a/path\"}", "model.norm.weight", NULL);
    tower("{\"mm_vision_tower\": 7}", "model.norm.weight", NULL);
    tower("{}", "model.norm.weight", NULL);
    char *name;
    unlink(scratch("model/config.json"));
    CHECK_OK(lv_pull_tower(scratch("model"), &name));
    CHECK(!name);
    write_text("model/config.json", "{\"mm_vision_tower\": \"org/clip\"}");
    unlink(scratch("model/model.safetensors"));
    CHECK_STATUS(lv_pull_tower(scratch("model"), &name), LV_ENOTFOUND);
    CHECK(!name);
}

int main(void) {
    scratch_open();
    setenv("no_proxy", "*", 1);
    setenv("HF_HOME", scratch_dir, 1);
    unsetenv("HF_HUB_CACHE");
    unsetenv("HF_TOKEN");
    unsetenv("HF_TOKEN_PATH");
    unsetenv("HF_ENDPOINT");
    test_refused();
    test_tower();
    return check_done();
}
