// An answer's text: what the callback saw is the answer, no stop string in it, no white space at
// its ends.
#include "tests/check.h"

#include <ctype.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/files.h"
#include "pipeline/internal.h"

#define TINY LV_SOURCE_DIR "/tests/data/tokenizer/tiny.model"

static char folder[] = "/tmp/lv_stream_XXXXXX";

typedef struct seen {
    char text[4096];
    size_t n;
    int n_calls_left; // the callback says stop after so many
    int n_tokens;     // that came with the text; their logprobs count them
} seen;

static bool on_text(void *user, const lv_piece *piece) {
    seen *s = user;
    const char *text = piece->text;
    const size_t n = strlen(text);
    CHECK(s->n + n < sizeof s->text);
    memcpy(s->text + s->n, text, n + 1);
    s->n += n;
    for (int i = 0; i < piece->n_tokens; i++) {
        CHECK((int)piece->tokens[i].logprob == s->n_tokens++, "token %d came as number %d",
              (int)piece->tokens[i].logprob, s->n_tokens - 1);
    }
    return --s->n_calls_left != 0;
}

static lv_tokenizer *open_tokenizer(void) {
    static const lv_config config = {
        .family = LV_FAMILY_ORIGINAL, .image_token_id = -1, .text = {.bos_id = 1}};
    lv_buffer model = {0};
    char path[64];
    lv_tokenizer *tokenizer = NULL;
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    CHECK_OK(lv_file_read(TINY, (size_t)1 << 24, &model));
    CHECK_OK(lv_file_write_atomic(path, model.data, model.n_bytes));
    CHECK_OK(lv_tokenizer_open(folder, &config, &tokenizer));
    lv_buffer_free(&model);
    unlink(path);
    rmdir(folder);
    return tokenizer;
}

// Streams the tokens of `text` and returns the answer; *is_done: a stop string ended it.
static char *stream(const lv_tokenizer *tokenizer, const char *text, const char *const *stops,
                    int n_stops, seen *s, bool *is_done) {
    lv_answer_stream *answer = NULL;
    lv_ids ids = {0};
    lv_answer out = {0};
    char spelled[4096] = "";
    size_t n_spelled = 0;
    *is_done = false;
    CHECK_OK(lv_tokenize(tokenizer, text, strlen(text), &ids));
    CHECK_OK(lv_answer_stream_open(tokenizer, stops, n_stops, NULL, on_text, s, &answer));
    for (int i = 0; i < ids.n && !*is_done; i++) {
        const lv_token token = {.id = ids.ids[i], .logprob = (float)i};
        const lv_status status = lv_answer_stream_push(answer, ids.ids[i], &token, is_done);
        if (status == LV_ECANCELLED) {
            break;
        }
        CHECK_OK(status);
    }
    CHECK_OK(lv_answer_stream_finish(answer, &out));
    lv_answer_stream_free(answer);
    lv_ids_free(&ids);
    // Its tokens, those that the callback saw, spell a beginning of the answer; all of it but for
    // one that a stop string begins within, or white space at the end.
    CHECK(out.n_logprobs == s->n_tokens, "%d tokens, %d seen", out.n_logprobs, s->n_tokens);
    for (int i = 0; i < out.n_logprobs; i++) {
        n_spelled += lv_token_bytes(tokenizer, out.tokens[i].id, spelled + n_spelled,
                                    sizeof spelled - n_spelled);
    }
    const char *from = spelled + strspn(spelled, " \n");
    CHECK(strncmp(out.text, from, strlen(from)) == 0, "\"%s\" spelled \"%s\"", out.text, from);
    CHECK(n_stops > 0 || s->n_calls_left >= 0 || strcmp(out.text, from) == 0 ||
              isspace((unsigned char)text[strlen(text) - 1]),
          "\"%s\" spelled only \"%s\"", out.text, from);
    free(out.tokens);
    return out.text;
}

static void check_answer(const lv_tokenizer *tokenizer, const char *text, const char *stop,
                         const char *want) {
    seen s = {.n_calls_left = -1};
    bool is_done;
    char *out = stream(tokenizer, text, &stop, stop ? 1 : 0, &s, &is_done);
    CHECK(strcmp(out, want) == 0, "\"%s\" until \"%s\" gave \"%s\"", text, stop ? stop : "", out);
    CHECK(strcmp(s.text, want) == 0, "the callback saw \"%s\", not \"%s\"", s.text, want);
    CHECK(is_done == (stop && strstr(text, stop)), "\"%s\" until \"%s\": done %d", text,
          stop ? stop : "", is_done);
    free(out);
}

// Stops cut out of random text at random places: whatever the tokens are, the answer is what stands
// before the first of them.
static void check_random_stops(const lv_tokenizer *tokenizer) {
    static const char alphabet[] = "ab \n.";
    srand(1);
    for (int round = 0; round < 500; round++) {
        char text[41] = "x", stop[4] = "";
        for (int i = 1; i < 39; i++) {
            text[i] = alphabet[rand() % 5];
        }
        text[39] = 'y';
        for (int i = 0; i < 1 + rand() % 3; i++) {
            stop[i] = alphabet[rand() % 5];
        }
        char *end = strstr(text, stop), want[41];
        size_t n = end ? (size_t)(end - text) : strlen(text);
        while (n > 0 && isspace((unsigned char)text[n - 1])) {
            n--;
        }
        memcpy(want, text, n);
        want[n] = 0;
        check_answer(tokenizer, text, stop, want);
    }
}

static void check_cancel(const lv_tokenizer *tokenizer) {
    seen s = {.n_calls_left = 2};
    bool is_done;
    char *out = stream(tokenizer, "one two three four five six", NULL, 0, &s, &is_done);
    CHECK(!is_done);
    CHECK(strcmp(out, s.text) == 0, "cancelled with \"%s\", shown \"%s\"", out, s.text);
    CHECK(strlen(out) < strlen("one two three four five six"));
    free(out);
}

int main(void) {
    lv_tokenizer *tokenizer = open_tokenizer();
    if (!tokenizer) {
        return check_done();
    }
    check_answer(tokenizer, "A red square.", NULL, "A red square.");
    check_answer(tokenizer, "  A red square. \n ", NULL, "A red square.");
    check_answer(tokenizer, "A cat.\nUSER: more", "\nUSER:", "A cat.");
    check_answer(tokenizer, "A cat.\nUSE it", "\nUSER:", "A cat.\nUSE it");
    check_answer(tokenizer, "###", "###", "");
    check_answer(tokenizer, "caf\xC3\xA9 \xF0\x9F\x98\x80!", "!", "caf\xC3\xA9 \xF0\x9F\x98\x80");
    check_answer(tokenizer, "aab", "ab", "a");
    check_random_stops(tokenizer);
    check_cancel(tokenizer);
    lv_tokenizer_free(tokenizer);
    return check_done();
}
