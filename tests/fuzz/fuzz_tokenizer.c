// Any bytes as text, as token ids, as tokenizer.model and as tokenizer_config.json.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llm/text.h"

#define MAX_TEXT 4096
#define MUST(condition) ((condition) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64];
static lv_tokenizer *tiny;
static const lv_config config = {.family = LV_FAMILY_HF, .text = {.bos_id = 1}};

static void remove_folder(void) {
    lv_tokenizer_free(tiny);
    rmdir(folder);
}

static void write_file(const char *name, const uint8_t *data, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    MUST(file && fwrite(data, 1, size, file) == size);
    fclose(file);
}

static void remove_file(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

static void link_tiny(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    MUST(symlink(LV_SOURCE_DIR "/tests/data/tokenizer/tiny.model", path) == 0);
}

static void open_tiny(void) {
    strcpy(folder, "/tmp/lv_fuzz_XXXXXX");
    MUST(mkdtemp(folder));
    link_tiny();
    MUST(lv_tokenizer_open(folder, &config, &tiny) == LV_OK);
    remove_file("tokenizer.model");
    atexit(remove_folder);
}

// What a user writes never becomes a token that steers the model, and comes back as it was.
static void use_text(const uint8_t *data, size_t size) {
    char text[MAX_TEXT + 1];
    lv_ids ids = {0};
    memcpy(text, data, size);
    text[size] = 0;
    const lv_turn turns[] = {{"system", text, 0}, {"user", text, 0}};
    for (int id = 0; lv_template_names()[id]; id++) {
        ids.n = 0;
        MUST(lv_prompt_build(tiny, id, turns, 2, &ids) == LV_OK && ids.ids[0] == 1);
        for (int i = 1; i < ids.n; i++) {
            MUST(ids.ids[i] > 3); // <unk> <s> </s> <image>
        }
    }
    ids.n = 0;
    MUST(lv_tokenize(tiny, (const char *)data, size, &ids) == LV_OK);
    lv_ids_free(&ids);
}

static void use_ids(const uint8_t *data, size_t size) {
    lv_detokenizer *d;
    const char *text;
    MUST(lv_detokenizer_open(tiny, &d) == LV_OK);
    for (size_t i = 0; i + 1 < size; i += 2) {
        MUST(lv_detokenizer_push(d, data[i] | data[i + 1] % 3 << 8, &text) == LV_OK && text);
    }
    MUST(lv_detokenizer_flush(d, &text) == LV_OK);
    lv_detokenizer_free(d);
}

static void use_folder(void) {
    static const char text[] = "The picture \xE4\xB8\xAD  shows\n<image></s> a dog.";
    lv_tokenizer *t = NULL;
    lv_ids ids = {0};
    if (lv_tokenizer_open(folder, &config, &t) == LV_OK &&
        lv_tokenize(t, text, sizeof text - 1, &ids) == LV_OK) {
        for (int i = 0; i < ids.n; i++) {
            MUST(ids.ids[i] >= 0 && ids.ids[i] < lv_tokenizer_size(t));
        }
    }
    int id;
    if (lv_template_choose(&config, folder, NULL, &id) == LV_OK) {
        MUST(id >= 0 && lv_template_stops(id));
    }
    lv_ids_free(&ids);
    lv_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!tiny) {
        open_tiny();
    }
    size_t n_text = size < MAX_TEXT ? size : MAX_TEXT;
    use_text(data, n_text);
    use_ids(data, n_text);
    write_file("tokenizer.model", data, size);
    use_folder();
    remove_file("tokenizer.model");
    link_tiny();
    write_file("tokenizer_config.json", data, size);
    use_folder();
    remove_file("tokenizer_config.json");
    remove_file("tokenizer.model");
    return 0;
}
