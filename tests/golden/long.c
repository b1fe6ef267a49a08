// Perplexity past the trained length: the demo model reads 8,192 tokens of a conversation of its
// own kind. Frequencies scaled for that length keep it sane there; unscaled ones do not.
#include "golden.h"

#include "core/checkpoint.h"
#include "llm/llm.h"
#include "llm/text.h"

enum {
    N_TOKENS = 8192,
    WINDOW = 1024,
    N_WINDOWS = N_TOKENS / WINDOW,
    N_ROWS = 256,
    MAX_TURNS = 400
};

static const char *pick(uint32_t *dice, const char *const *words, uint32_t n) {
    *dice = *dice * 1664525u + 1013904223u;
    return words[(*dice >> 16) % n];
}

// Captions put together by chance, so that nothing but the language can be foreseen.
static void write_text(const lv_tokenizer *tokenizer, int template_id, lv_ids *ids) {
    static const char *const things[] = {"a dog",    "a tree",     "two cars", "a bicycle",
                                         "a key",    "three cats", "an apple", "a banana",
                                         "a guitar", "a rocket",   "a robot",  "a red circle"};
    static const char *const places[] = {"on a pink background", "on a white background",
                                         "on a meadow",          "in a room",
                                         "at the beach",         "under a night sky"};
    static char texts[2 * MAX_TURNS][128];
    static lv_turn turns[2 * MAX_TURNS];
    uint32_t dice = 7;
    for (int i = 0; i < MAX_TURNS; i++) {
        const char *first = pick(&dice, things, 12), *second = pick(&dice, things, 12);
        snprintf(texts[i], sizeof texts[i], "The picture shows %s and %s %s.", first, second,
                 pick(&dice, places, 6));
        turns[2 * i] = (lv_turn){"user", "Describe this image.", 0};
        turns[2 * i + 1] = (lv_turn){"assistant", texts[i], 0};
    }
    turns[2 * MAX_TURNS - 1] = (lv_turn){"user", "And now?", 0};
    CHECK_OK(lv_prompt_build(tokenizer, template_id, turns, 2 * MAX_TURNS - 1, ids));
    CHECK(ids->n >= N_TOKENS, "%d tokens", ids->n);
    ids->n = ids->n < N_TOKENS ? ids->n : N_TOKENS;
}

static double surprise(const float *logits, int vocab, int32_t id) {
    double sum = 0;
    float max = logits[0];
    for (int i = 1; i < vocab; i++) {
        max = logits[i] > max ? logits[i] : max;
    }
    for (int i = 0; i < vocab; i++) {
        sum += exp((double)(logits[i] - max));
    }
    return log(sum) - (double)(logits[id] - max);
}

// Where the answers stand, of which alone the model was taught to foresee the words.
static void find_answers(const lv_tokenizer *tokenizer, const lv_ids *ids, int32_t eos_id,
                         bool *out) {
    lv_ids begin = {0};
    bool is_answer = false;
    CHECK_OK(lv_tokenize(tokenizer, "The picture shows", 17, &begin));
    for (int i = 0; i < N_TOKENS; i++) {
        is_answer = is_answer ||
                    (i + begin.n <= N_TOKENS &&
                     memcmp(ids->ids + i, begin.ids, (size_t)begin.n * sizeof *begin.ids) == 0);
        out[i] = is_answer;
        is_answer = is_answer && ids->ids[i] != eos_id;
    }
    lv_ids_free(&begin);
}

// Perplexity of the answers in each window of the text.
static lv_status read_text(lv_llm *llm, lv_backend *be, const lv_ids *ids, const bool *is_answer,
                           const lv_rope_config *scaling, double *out) {
    const int vocab = lv_llm_config(llm)->vocab_size;
    lv_status status = LV_OK;
    lv_cache *cache = NULL;
    lv_sequence sequence = {0};
    lv_chunk chunks[N_ROWS];
    float *logits, *host = malloc((size_t)N_ROWS * (size_t)vocab * sizeof *host);
    double sums[N_WINDOWS] = {0};
    int counts[N_WINDOWS] = {0};
    LV_TRY_DONE(lv_cache_create(llm, N_TOKENS / LV_KV_BLOCK, LV_NONE, &cache));
    LV_TRY_DONE(lv_sequence_open(llm, N_TOKENS, scaling, &sequence));
    for (int at = 0; at < N_TOKENS; at += N_ROWS) {
        for (int i = 0; i < N_ROWS; i++) {
            chunks[i] = (lv_chunk){
                .sequence = &sequence, .ids = ids->ids + at + i, .n = 1, .want_logits = true};
        }
        LV_TRY_DONE(lv_llm_forward(llm, cache, chunks, N_ROWS, &logits));
        LV_TRY_DONE(
            be->ops->download(be, host, logits, (size_t)N_ROWS * (size_t)vocab * sizeof *host));
        for (int i = 0; i < N_ROWS && at + i + 1 < N_TOKENS; i++) {
            if (is_answer[at + i + 1]) {
                const float *row = host + (size_t)i * (size_t)vocab;
                sums[(at + i) / WINDOW] += surprise(row, vocab, ids->ids[at + i + 1]);
                counts[(at + i) / WINDOW]++;
            }
        }
    }
    for (int i = 0; i < N_WINDOWS; i++) {
        out[i] = exp(sums[i] / counts[i]);
        printf(" %8.2f", out[i]);
    }
    printf("\n");
done:
    lv_sequence_close(cache, &sequence);
    lv_cache_free(cache);
    free(host);
    return status;
}

static lv_status run(void) {
    const lv_backend_options options = {.device = "cpu"};
    // A factor of 1: as if the model had been trained for any length.
    const lv_rope_config unscaled = {.type = LV_ROPE_LINEAR, .factor = 1};
    const char *dir = LV_SOURCE_DIR "/assets/demo-model";
    static bool is_answer[N_TOKENS];
    double plain[N_WINDOWS] = {0}, scaled[N_WINDOWS] = {0}, trained = 0;
    lv_checkpoint *checkpoint = NULL;
    lv_tokenizer *tokenizer = NULL;
    lv_backend *be = NULL;
    lv_llm *llm = NULL;
    lv_ids ids = {0};
    lv_status status;
    LV_TRY_DONE(lv_checkpoint_open(dir, NULL, &checkpoint));
    const lv_config *config = lv_checkpoint_config(checkpoint);
    LV_TRY_DONE(lv_tokenizer_open(dir, config, &tokenizer));
    LV_TRY_DONE(lv_backend_open(&options, &be));
    LV_TRY_DONE(lv_llm_load(checkpoint, be, NULL, &llm));
    int template_id;
    LV_TRY_DONE(lv_template_choose(config, dir, NULL, &template_id));
    write_text(tokenizer, template_id, &ids);
    find_answers(tokenizer, &ids, config->text.eos_ids[0], is_answer);
    printf("perplexity of each %d tokens, unscaled:", WINDOW);
    LV_TRY_DONE(read_text(llm, be, &ids, is_answer, &unscaled, plain));
    printf("perplexity of each %d tokens, scaled:  ", WINDOW);
    LV_TRY_DONE(read_text(llm, be, &ids, is_answer, NULL, scaled));
    const int n_trained = config->text.max_position / WINDOW;
    for (int i = 0; i < n_trained; i++) {
        trained = plain[i] > trained ? plain[i] : trained;
    }
    for (int i = 0; i < N_WINDOWS; i++) {
        CHECK(scaled[i] < 3 * trained && scaled[i] < plain[i],
              "window %d: perplexity %.2f, unscaled %.2f; %.2f in the trained length", i, scaled[i],
              plain[i], trained);
    }
    CHECK(scaled[N_WINDOWS - 1] < plain[N_WINDOWS - 1] / 2, "at the end %.2f scaled, %.2f unscaled",
          scaled[N_WINDOWS - 1], plain[N_WINDOWS - 1]);
done:
    lv_ids_free(&ids);
    lv_llm_free(llm);
    lv_backend_close(be);
    lv_tokenizer_free(tokenizer);
    lv_checkpoint_free(checkpoint);
    return status;
}

int main(void) {
    CHECK_OK(run());
    return check_done();
}
