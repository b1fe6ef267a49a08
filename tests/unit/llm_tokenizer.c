// The tokenizer against a tiny model (tests/data/tokenizer/make.sh) and, where ../shared has it,
// LLaMA's own; the detokeniser against a plain decoding of all ids at once; broken files.
#include "tests/check.h"

#include <sys/stat.h>
#include <unistd.h>

#include "core/files.h"
#include "llm/text.h"

#define TINY LV_SOURCE_DIR "/tests/data/tokenizer/tiny.model"
#define LLAMA LV_SHARED_DIR "/data/tokenizer/"
#define FFFD "\xEF\xBF\xBD"

static char folder[] = "/tmp/lv_tokenizer_XXXXXX";
static const lv_config original = {
    .family = LV_FAMILY_ORIGINAL, .image_token_id = -1, .text = {.bos_id = 1}};
static const lv_config hf = {.family = LV_FAMILY_HF, .text = {.bos_id = 1}};

static void write_file(const char *name, const void *data, size_t n_bytes) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CHECK_OK(lv_file_write_atomic(path, data, n_bytes));
}

static void write_text(const char *name, const char *text) {
    write_file(name, text, strlen(text));
}

static void remove_file(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

static lv_buffer read_file(const char *path) {
    lv_buffer file = {0};
    CHECK_OK(lv_file_read(path, (size_t)1 << 24, &file));
    return file;
}

static lv_tokenizer *open_tiny(const lv_config *config) {
    lv_buffer model = read_file(TINY);
    lv_tokenizer *tokenizer = NULL;
    write_file("tokenizer.model", model.data, model.n_bytes);
    CHECK_OK(lv_tokenizer_open(folder, config, &tokenizer));
    lv_buffer_free(&model);
    return tokenizer;
}

static void format_ids(const lv_ids *ids, char *out, size_t n_bytes) {
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < ids->n && n < n_bytes; i++) {
        n += (size_t)snprintf(out + n, n_bytes - n, "%s%d", i ? " " : "", ids->ids[i]);
    }
}

static void check_bytes(const lv_tokenizer *t, const char *text, size_t n, const char *want) {
    lv_ids ids = {0};
    char got[4096];
    CHECK_OK(lv_tokenize(t, text, n, &ids));
    format_ids(&ids, got, sizeof got);
    CHECK(strcmp(got, want) == 0, "\"%s\": %s, wanted %s", text, got, want);
    lv_ids_free(&ids);
}

static void check_text(const lv_tokenizer *t, const char *text, const char *want) {
    check_bytes(t, text, strlen(text), want);
}

// --- text to ids --------------------------------------------------------------------------------

// Pieces of tiny.model by name; byte b is id 4 + b.
static void test_tiny(void) {
    lv_tokenizer *t = open_tiny(&hf);
    check_text(t, "", "");
    check_text(t, "the", "264");
    check_text(t, " the", "491 264");                 // both spaces stay
    check_text(t, "\n", "491 14");                    // byte 0x0A
    check_text(t, "\xE4\xB8\xAD", "491 232 188 177"); // U+4E2D in bytes
    check_bytes(t, "\0the", 4, "491 4 494 262");
    check_text(t, "</s>", "2");
    check_text(t, "<s>the</s>the", "1 264 2 264"); // llava-hf: each stretch gets a space in front
    check_text(t, "the </s> the", "264 491 2 491 264");
    // Invalid bytes: one U+FFFD for each maximal subpart, as in Python.
    lv_ids want = {0}, got = {0};
    const char *fixed = "a" FFFD "b" FFFD FFFD FFFD "c" FFFD;
    CHECK_OK(lv_tokenize(t, fixed, strlen(fixed), &want));
    CHECK_OK(lv_tokenize(t,
                         "a\xE2\x82"
                         "b\xED\xA0\x80"
                         "c\xF0\x9F\x98",
                         11, &got));
    CHECK(want.n == got.n && memcmp(want.ids, got.ids, (size_t)want.n * sizeof *want.ids) == 0,
          "%d ids, %d wanted", got.n, want.n);
    // Too much text leaves the list as it was.
    char *long_text = calloc(((size_t)4 << 20) + 1, 1);
    int n_before = got.n;
    CHECK_STATUS(lv_tokenize(t, long_text, ((size_t)4 << 20) + 1, &got), LV_ELIMIT);
    CHECK(got.n == n_before, "%d ids", got.n);
    free(long_text);
    lv_ids_free(&want);
    lv_ids_free(&got);
    CHECK(lv_tokenizer_size(t) == 560, "%d pieces", lv_tokenizer_size(t));
    lv_tokenizer_free(t);
}

static void test_added(void) {
    write_text("added_tokens.json", "{\"<pad>\": 561, \"<image>\": 560}");
    write_text("tokenizer_config.json",
               "{\"legacy\": false, \"model_max_length\": 1000000000000000019884624838656,"
               " \"added_tokens_decoder\": {"
               " \"2\": {\"content\": \"</s>\", \"special\": true},"
               " \"562\": {\"content\": \"<box>\", \"special\": false},"
               " \"563\": {\"content\": \"<box><\", \"special\": false, \"rstrip\": true},"
               " \"564\": {\"content\": \"[L]\", \"special\": true, \"lstrip\": true}}}");
    lv_tokenizer *t = open_tiny(&hf);
    CHECK(lv_tokenizer_size(t) == 565, "%d tokens", lv_tokenizer_size(t));
    check_text(t, "<image><pad>", "560 561"); // not piece 3: added tokens come first
    check_text(t, "the<box>the", "264 562 264");
    check_text(t, "<box><  the", "563 264"); // the longest; eats the spaces behind
    check_text(t, "the  [L]</s>", "264 564 2");
    lv_tokenizer_free(t);
    // The original code's tokenizer: only the text's start gets a space in front.
    t = open_tiny(&original);
    check_text(t, "the</s>the</s> the", "264 2 494 262 2 264");
    check_text(t, " the", "491 264");
    lv_tokenizer_free(t);
    write_text("tokenizer_config.json", "{\"legacy\": true}");
    t = open_tiny(&original);
    check_text(t, "the</s>the", "264 2 264");
    lv_tokenizer_free(t);
    static const char *const broken[] = {
        "",
        "[]",
        "{",
        "{\"added_tokens_decoder\": {\"x\": {\"content\": \"y\"}}}",
        "{\"added_tokens_decoder\": {\"5\": {}}}",
        "{\"added_tokens_decoder\": {\"-5\": {\"content\": \"y\"}}}",
        "{\"added_tokens_decoder\": {\"99999999999\": {\"content\": \"y\"}}}"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        write_text("tokenizer_config.json", broken[i]);
        CHECK_STATUS(lv_tokenizer_open(folder, &hf, &t), LV_EFORMAT);
    }
    remove_file("tokenizer_config.json");
    remove_file("added_tokens.json");
}

// Texts separated by a marker line, ids a line each: made without BOS.
static void test_llama(void) {
    if (access(LLAMA "tokenizer.model", F_OK) != 0) {
        printf("LLaMA's vocabulary is not here: its vectors are left out\n");
        return;
    }
    lv_tokenizer *t = NULL;
    CHECK_OK(lv_tokenizer_open(LLAMA, &hf, &t));
    lv_buffer texts = read_file(LLAMA "vectors.inp"), ids = read_file(LLAMA "vectors.out");
    char *text = (char *)texts.data, *line, *rest = (char *)ids.data;
    const char *marker = "\n__ggml_vocab_test__\n";
    int n_texts = 0;
    for (char *end; (end = strstr(text, marker)) && (line = strsep(&rest, "\n"));
         text = end + strlen(marker), n_texts++) {
        *end = 0;
        check_text(t, text, *line == ' ' ? line + 1 : line);
    }
    CHECK(n_texts == 46, "%d texts", n_texts);
    check_text(t, "\nWhat", "29871 13 5618");
    lv_buffer_free(&texts);
    lv_buffer_free(&ids);
    lv_tokenizer_free(t);
}

// --- ids to text --------------------------------------------------------------------------------

// Bytes of the character at run[n], 0 where there is none: the standard's ranges by code point.
static int character(const uint8_t *run, int n) {
    int length = run[0] < 0x80   ? 1
                 : run[0] < 0xC2 ? 0
                 : run[0] < 0xE0 ? 2
                 : run[0] < 0xF0 ? 3
                 : run[0] < 0xF5 ? 4
                                 : 0;
    for (int i = 1; i < length; i++) {
        if (i >= n || (run[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    int code = length == 3   ? (run[0] & 15) << 12 | (run[1] & 63) << 6
               : length == 4 ? (run[0] & 7) << 18 | (run[1] & 63) << 12
                             : 0;
    bool wrong = (length == 3 && (code < 0x800 || (code >= 0xD800 && code <= 0xDFFF))) ||
                 (length == 4 && (code < 0x10000 || code > 0x10FFFF));
    return wrong ? 0 : length;
}

static char *repair(const uint8_t *run, int n, char *out) {
    for (int i = 0; i < n;) {
        int length = character(run + i, n - i);
        if (length == 0) {
            out = stpcpy(out, FFFD);
        } else if (run[i] != 0) { // a NUL is left out
            out = (char *)memcpy(out, run + i, (size_t)length) + length;
        }
        i += length ? length : 1;
    }
    return out;
}

// The reference: all bytes laid end to end, runs of byte pieces repaired byte by byte, the first
// space removed. Ids 0..2 are control, 3 "<image>" an ordinary piece, 4..259 bytes.
static void decode_all(const lv_ids *ids, const char *const *pieces, char *out) {
    uint8_t run[512];
    int n_run = 0;
    char *start = out;
    for (int i = 0; i < ids->n; i++) {
        int id = ids->ids[i];
        if (id >= 4 && id < 260) {
            run[n_run++] = (uint8_t)(id - 4);
        } else if (id > 2) {
            out = stpcpy(repair(run, n_run, out), pieces[id]);
            n_run = 0;
        }
    }
    *repair(run, n_run, out) = 0;
    if (*start == ' ') {
        memmove(start, start + 1, strlen(start));
    }
}

static uint64_t random_state = 7;
static uint32_t next_random(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

// Mostly bytes of well-formed characters, cut and mixed with others.
static int32_t random_id(void) {
    static const uint8_t text[] = "\xF0\x9F\x98\x80\xE2\x82\xAC\xC3\xA9z \xED\xA0\x80\xF4\x90";
    static size_t at;
    switch (next_random() % 8) {
    case 0:
        return (int32_t)(next_random() % 560);
    case 1:
        return 260 + (int32_t)(next_random() % 300);
    case 2:
        return 4 + (int32_t)(next_random() % 256);
    case 3:
        return (int32_t)(next_random() % 3);
    default:
        at = (at + 1) % (sizeof text - 1);
        return 4 + text[at];
    }
}

static bool is_whole(const char *text) {
    const uint8_t *c = (const uint8_t *)text;
    while (*c) {
        int n = *c < 0x80 ? 1 : *c >= 0xF0 ? 4 : *c >= 0xE0 ? 3 : *c >= 0xC2 ? 2 : 0;
        for (int i = 1; i < n; i++) {
            if ((c[i] & 0xC0) != 0x80) {
                return false;
            }
        }
        if (n == 0) {
            return false;
        }
        c += n;
    }
    return true;
}

// A piece's text: what it decodes to behind an "a", whose own text is cut off.
static void read_pieces(const lv_tokenizer *t, char **pieces) {
    lv_ids a = {0};
    CHECK_OK(lv_tokenize(t, "a", 1, &a)); // "▁a": decodes to "a"
    for (int32_t id = 0; id < 560; id++) {
        lv_detokenizer *d = NULL;
        const char *text;
        CHECK_OK(lv_detokenizer_open(t, &d));
        CHECK_OK(lv_detokenizer_push(d, a.ids[0], &text));
        CHECK(strcmp(text, "a") == 0, "\"%s\"", text);
        CHECK_OK(lv_detokenizer_push(d, id, &text));
        pieces[id] = strdup(text);
        lv_detokenizer_free(d);
    }
    lv_ids_free(&a);
}

static void test_detokenizer(void) {
    lv_tokenizer *t = open_tiny(&hf);
    char *pieces[560];
    read_pieces(t, pieces);
    CHECK(strcmp(pieces[264], " the") == 0 && !*pieces[1], "\"%s\" \"%s\"", pieces[264], pieces[1]);
    for (int round = 0; round < 3000; round++) {
        lv_ids ids = {0};
        char want[8192], got[8192] = "";
        const char *text;
        lv_detokenizer *d = NULL;
        CHECK_OK(lv_detokenizer_open(t, &d));
        for (uint32_t n = next_random() % 60; n > 0; n--) {
            CHECK_OK(lv_ids_push(&ids, random_id()));
            CHECK_OK(lv_detokenizer_push(d, ids.ids[ids.n - 1], &text));
            CHECK(is_whole(text), "a character is cut: \"%s\"", text);
            strcat(got, text);
        }
        CHECK_OK(lv_detokenizer_flush(d, &text));
        strcat(got, text);
        decode_all(&ids, (const char *const *)pieces, want);
        CHECK(strcmp(got, want) == 0, "round %d: \"%s\", wanted \"%s\"", round, got, want);
        lv_detokenizer_free(d);
        lv_ids_free(&ids);
    }
    // What is tokenised comes back.
    static const char *const texts[] = {
        "the ball",          " two  spaces", "a\nb", "\xE4\xB8\xAD\xE6\x96\x87",
        "\xF0\x9F\x98\x80!", "x ",           " ",    "\t"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        lv_ids ids = {0};
        char got[256] = "";
        const char *text;
        lv_detokenizer *d = NULL;
        CHECK_OK(lv_detokenizer_open(t, &d));
        CHECK_OK(lv_tokenize(t, texts[i], strlen(texts[i]), &ids));
        for (int j = 0; j < ids.n; j++) {
            CHECK_OK(lv_detokenizer_push(d, ids.ids[j], &text));
            strcat(got, text);
        }
        CHECK(strcmp(got, texts[i]) == 0, "\"%s\", wanted \"%s\"", got, texts[i]);
        CHECK_OK(lv_detokenizer_push(d, 99999, &text)); // a row that pads the embedding
        CHECK(!*text, "\"%s\"", text);
        CHECK_STATUS(lv_detokenizer_push(d, -200, &text), LV_EINVAL);
        lv_detokenizer_free(d);
        lv_ids_free(&ids);
    }
    for (int id = 0; id < 560; id++) {
        free(pieces[id]);
    }
    lv_tokenizer_free(t);
}

// --- broken files -------------------------------------------------------------------------------

static void use_if_opens(const void *data, size_t n_bytes) {
    lv_tokenizer *t = NULL;
    write_file("tokenizer.model", data, n_bytes);
    lv_status status = lv_tokenizer_open(folder, &hf, &t);
    CHECK(status == LV_OK || status == LV_EFORMAT, "%s", lv_status_name(status));
    if (status == LV_OK) {
        lv_ids ids = {0};
        const char *text = "The picture shows \xE4\xB8\xAD a <image> dog.";
        lv_status encoded = lv_tokenize(t, text, strlen(text), &ids);
        CHECK(encoded == LV_OK || encoded == LV_EFORMAT, "%s", lv_status_name(encoded));
        lv_ids_free(&ids);
    }
    lv_tokenizer_free(t);
}

// normalizer_spec { precompiled_charsmap } behind a good model: 256 trie units, then strings.
static lv_status open_with_charsmap(uint32_t trie_bytes, uint32_t first_unit,
                                    uint32_t second_unit) {
    lv_buffer model = read_file(TINY);
    uint8_t map[4 + 1024 + 2] = {0};
    memcpy(map, &trie_bytes, 4);
    memcpy(map + 4, &first_unit, 4);
    memcpy(map + 8, &second_unit, 4);
    const uint8_t field[] = {0x1A, 0x89, 0x08, 0x12, 0x86, 0x08}; // 3: 1033 bytes { 2: 1030 bytes }
    CHECK_OK(lv_buffer_append(&model, field, sizeof field));
    CHECK_OK(lv_buffer_append(&model, map, sizeof map));
    lv_tokenizer *t = NULL;
    write_file("tokenizer.model", model.data, model.n_bytes);
    lv_status status = lv_tokenizer_open(folder, &hf, &t);
    lv_tokenizer_free(t);
    lv_buffer_free(&model);
    return status;
}

static void test_broken(void) {
    lv_tokenizer *t = NULL;
    remove_file("tokenizer.model");
    CHECK_STATUS(lv_tokenizer_open(folder, &hf, &t), LV_ENOTFOUND);
    CHECK(!strstr(lv_error(), "tokenizer.json"), "%s", lv_error());
    write_text("tokenizer.json", "{}");
    CHECK_STATUS(lv_tokenizer_open(folder, &hf, &t), LV_ENOTFOUND);
    CHECK(strstr(lv_error(), "only tokenizer.json") && strstr(lv_error(), "download"), "%s",
          lv_error());
    remove_file("tokenizer.json");

    lv_buffer model = read_file(TINY);
    use_if_opens("", 0);
    use_if_opens("garbage", 7);
    for (size_t n = 1; n < model.n_bytes; n += 1 + n / 3) {
        use_if_opens(model.data, n);
    }
    for (int round = 0; round < 300; round++) {
        size_t at = next_random() % model.n_bytes;
        uint8_t kept = model.data[at];
        model.data[at] = (uint8_t)next_random();
        use_if_opens(model.data, model.n_bytes);
        model.data[at] = kept;
    }
    lv_buffer_free(&model);

    CHECK_OK(open_with_charsmap(1024, 0, 0));
    CHECK_STATUS(open_with_charsmap(1020, 0, 0), LV_EFORMAT);         // a block cut short
    CHECK_STATUS(open_with_charsmap(4096, 0, 0), LV_EFORMAT);         // longer than the map
    CHECK_STATUS(open_with_charsmap(1024, 400 << 10, 0), LV_EFORMAT); // a step outside
    CHECK_STATUS(open_with_charsmap(1024, 1 << 10 | 1 << 8, 0x80000002), LV_EFORMAT); // a string
    CHECK_OK(open_with_charsmap(1024, 1 << 10 | 1 << 8, 0x80000001));
    remove_file("tokenizer.model");
}

int main(void) {
    CHECK(mkdtemp(folder), "no temporary folder");
    test_tiny();
    test_added();
    test_llama();
    test_detokenizer();
    test_broken();
    rmdir(folder);
    return check_done();
}
