// Any bytes as a JSON schema; where one compiles, a random walk through its answers.
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    lv_grammar *grammar = NULL;
    if (!matcher) {
        open_all();
    }
    if (lv_grammar_compile((const char *)data, size, "fuzz", &grammar) == LV_OK) {
        MUST(lv_matcher_start(matcher, grammar) == LV_OK);
        walk((uint32_t)size * 2654435761u, 60);
    }
    lv_grammar_free(grammar);
    return 0;
}
