// Token ids of some 700 texts and whole prompts:
//   golden_tokens TSV FOLDER     FOLDER's tokenizer.model; its family decides the column
//   golden_tokens llama          the real vocabulary, where ../shared has it, both families
#include "golden.h"

#include <jansson.h>
#include <unistd.h>

#include "llm/text.h"

static bool parse_ids(const char *text, lv_ids *out) {
    char *end;
    for (;; text = end) {
        const long id = strtol(text, &end, 10);
        if (end == text) {
            return true;
        }
        if (lv_ids_push(out, (int32_t)id) != LV_OK) {
            return false;
        }
    }
}

// BOS, then each stretch between pictures on its own.
static lv_status tokenize_prompt(const lv_tokenizer *tokenizer, const char *text, lv_ids *out) {
    LV_TRY(lv_ids_push(out, 1));
    for (;;) {
        const char *image = strstr(text, "<image>");
        LV_TRY(lv_tokenize(tokenizer, text, image ? (size_t)(image - text) : strlen(text), out));
        if (!image) {
            return LV_OK;
        }
        LV_TRY(lv_ids_push(out, LV_IMAGE_TOKEN));
        text = image + strlen("<image>");
    }
}

static void check_line(const lv_tokenizer *tokenizer, const char *quoted, const char *ids) {
    const bool is_prompt = strncmp(quoted, "prompt ", 7) == 0;
    json_t *text = json_loads(is_prompt ? quoted + 7 : quoted, JSON_DECODE_ANY, NULL);
    lv_ids want = {0}, got = {0};
    CHECK(json_is_string(text) && parse_ids(ids, &want), "bad line %s", quoted);
    const lv_status status =
        is_prompt ? tokenize_prompt(tokenizer, json_string_value(text), &got)
                  : lv_tokenize(tokenizer, json_string_value(text), json_string_length(text), &got);
    CHECK_OK(status);
    int i = 0;
    while (i < want.n && i < got.n && want.ids[i] == got.ids[i]) {
        i++;
    }
    CHECK(i == want.n && i == got.n, "%s: %d ids, the reference has %d; first difference at %d",
          quoted, got.n, want.n, i);
    lv_ids_free(&want);
    lv_ids_free(&got);
    json_decref(text);
}

// TSV lines: text as JSON, ids of the original family, ids of llava-hf.
static void check_file(const char *name, const char *folder, const lv_config *config) {
    char path[512];
    lv_buffer tsv = {0};
    lv_tokenizer *tokenizer = NULL;
    int n_lines = 0;
    snprintf(path, sizeof path, "%s/tests/golden/tokenizer/%s.tsv", LV_SOURCE_DIR, name);
    CHECK_OK(lv_file_read(path, (size_t)1 << 24, &tsv));
    CHECK_OK(lv_tokenizer_open(folder, config, &tokenizer));
    char *rest = (char *)tsv.data, *line;
    while (tokenizer && (line = strsep(&rest, "\n")) && *line) {
        const char *quoted = strsep(&line, "\t"), *original = strsep(&line, "\t");
        check_line(tokenizer, quoted, config->family == LV_FAMILY_ORIGINAL ? original : line);
        n_lines++;
    }
    CHECK(!tokenizer || n_lines >= 600, "only %d texts", n_lines);
    printf("%s, %s: %d texts\n", name,
           config->family == LV_FAMILY_ORIGINAL ? "original family" : "llava-hf", n_lines);
    lv_tokenizer_free(tokenizer);
    lv_buffer_free(&tsv);
}

// A folder with the real tokenizer.model beside one checkpoint's own JSON files.
static void check_llama(const char *checkpoint, lv_family family) {
    static const char *const files[] = {"tokenizer_config.json", "added_tokens.json"};
    char folder[] = "/tmp/lv_golden_XXXXXX", source[512], link[600];
    CHECK(mkdtemp(folder), "no temporary folder");
    snprintf(link, sizeof link, "%s/tokenizer.model", folder);
    CHECK(symlink(LV_SHARED_DIR "/data/tokenizer/tokenizer.model", link) == 0, "%s", link);
    for (size_t i = 0; i < 2; i++) {
        snprintf(source, sizeof source, "%s/data/configs/%s/%s", LV_SHARED_DIR, checkpoint,
                 files[i]);
        snprintf(link, sizeof link, "%s/%s", folder, files[i]);
        CHECK(access(source, F_OK) != 0 || symlink(source, link) == 0, "%s", link);
    }
    const lv_config config = {.family = family,
                              .image_token_id = family == LV_FAMILY_HF ? 32000 : -1,
                              .text = {.vocab_size = 32064, .bos_id = 1}};
    check_file("llama", folder, &config);
    snprintf(link, sizeof link, "%s/tokenizer.model", folder);
    unlink(link);
    for (size_t i = 0; i < 2; i++) {
        snprintf(link, sizeof link, "%s/%s", folder, files[i]);
        unlink(link);
    }
    rmdir(folder);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "llama") == 0) {
        if (access(LV_SHARED_DIR "/data/tokenizer/tokenizer.model", F_OK) != 0) {
            return check_skip("the real vocabulary is not ours to ship: no ../shared/data");
        }
        check_llama("llava-v1.5-7b", LV_FAMILY_ORIGINAL);
        check_llama("llava-1.5-7b-hf", LV_FAMILY_HF);
        return check_done();
    }
    if (argc != 3) {
        fprintf(stderr, "usage: golden_tokens TSV FOLDER | golden_tokens llama\n");
        return 2;
    }
    lv_config config;
    CHECK_OK(lv_config_load(argv[2], NULL, &config));
    check_file(argv[1], argv[2], &config);
    return check_done();
}
