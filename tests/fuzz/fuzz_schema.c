// Any bytes as a JSON schema, and as choices that make one up; where it compiles, a random walk
// through its answers.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llm/grammar.h"

#define MUST(condition) ((condition) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const lv_config config = {.family = LV_FAMILY_HF,
                                 .text = {.bos_id = 1, .eos_ids = {2}, .n_eos = 1}};
static lv_tokenizer *tokenizer;
static lv_vocabulary *vocabulary;
static lv_matcher *matcher;

static void close_all(void) {
    lv_matcher_free(matcher);
    lv_vocabulary_free(vocabulary);
    lv_tokenizer_free(tokenizer);
}

static void open_all(void) {
    char folder[] = "/tmp/lv_fuzz_XXXXXX", path[64];
    MUST(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    MUST(symlink(LV_SOURCE_DIR "/tests/data/tokenizer/tiny.model", path) == 0);
    MUST(lv_tokenizer_open(folder, &config, &tokenizer) == LV_OK);
    MUST(lv_vocabulary_create(tokenizer, &config.text, lv_tokenizer_size(tokenizer), &vocabulary) ==
         LV_OK);
    MUST(lv_matcher_open(vocabulary, &matcher) == LV_OK);
    unlink(path);
    rmdir(folder);
    atexit(close_all);
}

// Some token is allowed at every step, and what is allowed can be pushed.
static void walk(uint32_t seed, int n_left) {
    const int n_tokens = lv_tokenizer_size(tokenizer);
    for (; n_left > 0 && !lv_matcher_is_final(matcher); n_left--) {
        const uint32_t *mask;
        const lv_matcher_wish wish = {.n_left = seed % 2 ? n_left : 0, .closing = seed % 7 == 0};
        MUST(lv_matcher_allowed(matcher, wish, &mask, NULL) == LV_OK);
        seed = seed * 1664525u + 1013904223u;
        int32_t id = (int32_t)((seed >> 8) % (uint32_t)n_tokens);
        int n_seen = 0;
        while (!(mask[id / 32] >> (id % 32) & 1)) {
            id = (id + 1) % n_tokens;
            MUST(++n_seen < n_tokens);
        }
        if (id == 2) {
            MUST(lv_matcher_is_complete(matcher));
            return;
        }
        MUST(lv_matcher_push(matcher, id) == LV_OK);
    }
}

static void use(const char *schema, size_t n_bytes, uint32_t seed) {
    lv_grammar *grammar = NULL;
    if (lv_grammar_compile(schema, n_bytes, "fuzz", &grammar) == LV_OK) {
        MUST(lv_matcher_start(matcher, grammar) == LV_OK);
        walk(seed, 60);
    }
    lv_grammar_free(grammar);
}

// A schema made up from bytes.
typedef struct maker {
    const uint8_t *at, *end;
    char text[1 << 14];
    size_t n;
} maker;

static int choose(maker *m, int n) {
    return m->at < m->end ? *m->at++ % n : 0;
}

static void put(maker *m, const char *text) {
    const size_t n = strlen(text);
    if (m->n + n < sizeof m->text) {
        memcpy(m->text + m->n, text, n + 1);
        m->n += n;
    }
}

static void put_schema(maker *m, int depth);

static void put_object(maker *m, int depth) {
    static const char *const names[] = {"\"a\"", "\"ab\"", "\"b\"", "\"\\u00e9\""};
    static const char *const rests[] = {"}", ",\"additionalProperties\":true}",
                                        ",\"required\":[\"a\"]}",
                                        ",\"additionalProperties\":{\"type\":\"null\"}}"};
    const int n = choose(m, 5);
    put(m, "{\"properties\":{");
    for (int i = 0; i < n && i < 4; i++) {
        put(m, i ? "," : "");
        put(m, names[i]);
        put(m, ":");
        put_schema(m, depth + 1);
    }
    put(m, "}");
    put(m, rests[choose(m, 4)]);
}

static void put_schema(maker *m, int depth) {
    static const char *const leaves[] = {
        "{\"type\":\"string\"}",
        "{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
        "{\"type\":[\"integer\",\"null\"]}",
        "{\"type\":\"number\"}",
        "{\"enum\":[\"a\",\"ab\",1,12,1.5,[]]}",
        "{\"const\":{\"a\":null}}",
        "{\"$ref\":\"#\"}",
        "{\"$ref\":\"#/$defs/d\"}",
        "{}",
    };
    static const char *const arrays[] = {
        "{\"items\":", "{\"minItems\":2,\"items\":", "{\"minItems\":1,\"maxItems\":3,\"items\":"};
    const int kind = choose(m, 8);
    if (depth > 5 || kind < 3) {
        put(m, leaves[choose(m, sizeof leaves / sizeof *leaves)]);
    } else if (kind < 5) {
        put_object(m, depth);
    } else if (kind == 5) {
        put(m, arrays[choose(m, 3)]);
        put_schema(m, depth + 1);
        put(m, "}");
    } else {
        put(m, "{\"anyOf\":[");
        for (int i = choose(m, 3); i >= 0; i--) {
            put_schema(m, depth + 1);
            put(m, i ? "," : "]}");
        }
    }
}

static void make_up(const uint8_t *data, size_t size, uint32_t seed) {
    static maker m;
    m.at = data;
    m.end = data + size;
    m.n = 0;
    put(&m, "{\"$defs\":{\"d\":");
    put_schema(&m, 1);
    put(&m, "},\"anyOf\":[");
    put_schema(&m, 1);
    put(&m, "]}");
    use(m.text, m.n, seed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint32_t seed = (uint32_t)size * 2654435761u + (size ? data[size / 2] : 0);
    if (!matcher) {
        open_all();
    }
    use((const char *)data, size, seed);
    make_up(data, size, seed);
    make_up(data + size / 2, size - size / 2, seed + 1);
    return 0;
}
