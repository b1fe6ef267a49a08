// What the engine keeps: keys and values of common beginnings, embeddings of pictures; and what it
// must not take for the same.
#include "pipeline_util.h"

static lv_model *model;
static lv_picture *pictures[4];

static const char first_question[] = "What colour is the upper half of this picture?";
static const char second_question[] = "Is there a tree in it, and where does it stand?";

// A second question about a picture costs its own words only, in the same conversation and in a new
// one, and is answered as if it had come first.
static void test_second_question(void) {
    const lv_params params = {.max_tokens = 12};
    lv_engine *engine = open_engine(model, &(lv_engine_options){.no_reuse = true});
    outcome fresh, first, second;
    ask_and_wait(engine, &fresh, second_question, pictures, 1, &params);
    CHECK(fresh.answer.n_reused_tokens == 0, "%d", fresh.answer.n_reused_tokens);
    lv_engine_close(engine);

    engine = open_engine(model, NULL);
    ask_and_wait(engine, &first, first_question, pictures, 1, &params);
    ask_and_wait(engine, &second, second_question, pictures, 1, &params);
    const lv_answer *a = &second.answer;
    const int n_words = a->n_prompt_tokens - a->n_reused_tokens;
    CHECK(strcmp(a->text, fresh.answer.text) == 0, "\"%s\", fresh \"%s\"", a->text,
          fresh.answer.text);
    CHECK(n_words <= 24, "%d of %d tokens read for the second question", n_words,
          a->n_prompt_tokens);
    CHECK(first.answer.encode_ms > 0 && a->encode_ms <= 0 && a->n_reused_images == 0,
          "encoded in %.2f ms, %d pictures reused: all of it was in the cache", a->encode_ms,
          a->n_reused_images);
    printf("second question: first word after %.1f ms, the first one's %.1f ms (%.0f%%)\n",
           a->first_token_ms, first.answer.first_token_ms,
           100 * a->first_token_ms / first.answer.first_token_ms);
    outcome_free(&second);
    // The same pixels from another file.
    lv_picture *again = draw_picture(model, 0);
    ask_and_wait(engine, &second, second_question, &again, 1, &params);
    CHECK(second.answer.n_reused_tokens >= fresh.answer.n_prompt_tokens - 1, "%d of %d",
          second.answer.n_reused_tokens, fresh.answer.n_prompt_tokens);
    lv_picture_free(again);
    lv_engine_close(engine);
    outcome_free(&fresh);
    outcome_free(&first);
    outcome_free(&second);
}

// Another picture, other words before it, or another order share nothing but the words in front.
static void test_differences(void) {
    lv_engine *engine = open_engine(model, NULL);
    const lv_params params = {.max_tokens = 4};
    outcome o;
    ask_and_wait(engine, &o, "Compare.", pictures, 2, &params);
    const int n_front = o.answer.n_prompt_tokens; // at most
    outcome_free(&o);
    lv_picture *const swapped[] = {pictures[1], pictures[0]};
    ask_and_wait(engine, &o, "Compare.", swapped, 2, &params);
    CHECK(o.answer.n_reused_tokens < n_front / 3, "%d of %d tokens reused for swapped pictures",
          o.answer.n_reused_tokens, n_front);
    CHECK(o.answer.n_reused_images == 2, "%d pictures reused", o.answer.n_reused_images);
    outcome_free(&o);
    const int n_before = (int)stats_of(engine).n_images;
    ask_and_wait(engine, &o, "Compare.", pictures + 2, 2, &params);
    CHECK((int)stats_of(engine).n_images == n_before + 2, "%d pictures encoded",
          (int)stats_of(engine).n_images - n_before);
    outcome_free(&o);
    lv_engine_close(engine);
}

// Questions about other pictures at the same time share the words in front of them, in a block that
// both go on in; where nothing is kept, too, but then only while another one runs.
static void test_side_by_side(bool no_reuse) {
    lv_engine *engine = open_engine(model, &(lv_engine_options){.no_reuse = no_reuse});
    lv_grammar *endless = long_grammar(300);
    const lv_params going_on = {.max_tokens = 1500, .grammar = endless},
                    params = {.max_tokens = 12};
    outcome alone, running = {0}, beside, after;
    ask_and_wait(engine, &alone, first_question, pictures + 1, 1, &params);
    CHECK(alone.answer.n_reused_tokens == 0, "%d", alone.answer.n_reused_tokens);
    lv_engine_close(engine);

    engine = open_engine(model, &(lv_engine_options){.no_reuse = no_reuse});
    CHECK_OK(ask(engine, &running, first_question, pictures, 1, &going_on));
    while (stats_of(engine).n_tokens < 3) {
        usleep(1000);
    }
    ask_and_wait(engine, &beside, first_question, pictures + 1, 1, &params);
    const int n_shared = beside.answer.n_reused_tokens;
    CHECK(n_shared >= 8 && n_shared < LV_KV_BLOCK, "%d tokens shared", n_shared);
    CHECK(strcmp(beside.answer.text, alone.answer.text) == 0, "\"%s\", alone \"%s\"",
          beside.answer.text, alone.answer.text);
    lv_engine_cancel(engine, running.id);
    outcome_wait(&running);
    ask_and_wait(engine, &after, first_question, pictures + 2, 1, &params);
    CHECK(after.answer.n_reused_tokens == (no_reuse ? 0 : n_shared), "%d tokens shared afterwards",
          after.answer.n_reused_tokens);
    const lv_engine_stats stats = stats_of(engine);
    CHECK(stats.n_kv_used == 0 && (stats.n_kv_kept == 0) == no_reuse, "%d blocks used, %d kept",
          stats.n_kv_used, stats.n_kv_kept);
    lv_engine_close(engine);
    lv_grammar_free(endless);
    outcome_free(&alone);
    outcome_free(&running);
    outcome_free(&beside);
    outcome_free(&after);
}

// A conversation of many turns: each question reads its own words and the last answer's end.
static void test_turns(void) {
    enum { N_TURNS = 12 };
    lv_message messages[2 * N_TURNS];
    char questions[N_TURNS][64];
    lv_answer answers[N_TURNS] = {{0}};
    const lv_params params = {.max_tokens = 16};
    lv_engine *engine = open_engine(model, NULL);
    int n = 0;
    for (int i = 0; i < N_TURNS; i++) {
        snprintf(questions[i], sizeof questions[i], "Question %d: what else is there?", i + 1);
        messages[n++] = (lv_message){"user", questions[i], pictures, i == 0};
        CHECK_OK(lv_engine_answer(engine, messages, n, &params, NULL, NULL, &answers[i]));
        const int n_new = answers[i].n_prompt_tokens - answers[i].n_reused_tokens;
        CHECK(i == 0 || n_new <= 40, "turn %d read %d tokens of %d", i + 1, n_new,
              answers[i].n_prompt_tokens);
        messages[n++] = (lv_message){"assistant", answers[i].text ? answers[i].text : "", NULL, 0};
    }
    lv_answer fresh = {0};
    lv_engine_close(engine);
    engine = open_engine(model, &(lv_engine_options){.no_reuse = true});
    CHECK_OK(lv_engine_answer(engine, messages, n - 1, &params, NULL, NULL, &fresh));
    CHECK(fresh.text && strcmp(fresh.text, answers[N_TURNS - 1].text) == 0,
          "after %d turns \"%s\", from scratch \"%s\"", N_TURNS, answers[N_TURNS - 1].text,
          fresh.text ? fresh.text : "");
    lv_answer_free(&fresh);
    for (int i = 0; i < N_TURNS; i++) {
        lv_answer_free(&answers[i]);
    }
    lv_engine_close(engine);
}

// Many prompts through a small cache: the oldest are given up, the newest are found.
static void test_giving_up(void) {
    const size_t block = lv_cache_block_bytes(model->llm, LV_NONE);
    lv_engine *engine =
        open_engine(model, &(lv_engine_options){.kv_bytes = 12 * block, .image_cache_bytes = 1});
    const lv_params params = {.max_tokens = 4};
    outcome o;
    for (int i = 0; i < 12; i++) {
        lv_picture *picture = draw_picture(model, i);
        for (int again = 0; again < 2; again++) {
            ask_and_wait(engine, &o, "What?", &picture, 1, &params);
            CHECK_OK(o.status);
            CHECK((o.answer.n_reused_tokens >= 192) == again, "picture %d, time %d: %d reused", i,
                  again + 1, o.answer.n_reused_tokens);
            outcome_free(&o);
        }
        lv_picture_free(picture);
        const lv_engine_stats s = stats_of(engine);
        CHECK(s.n_kv_used == 0 && s.n_kv_kept <= s.n_kv_blocks && s.n_kv_blocks == 12,
              "%d used, %d kept of %d", s.n_kv_used, s.n_kv_kept, s.n_kv_blocks);
    }
    lv_picture *first = draw_picture(model, 0);
    ask_and_wait(engine, &o, "What?", &first, 1, &params);
    CHECK(o.answer.n_reused_tokens < 64, "%d tokens of the oldest were still there",
          o.answer.n_reused_tokens);
    outcome_free(&o);
    lv_picture_free(first);
    lv_engine_close(engine);
}

// Past the trained length the rotary frequencies follow the request's own limit, and what was read
// under others is no help.
static void test_frequencies(void) {
    lv_model *long_model = open_model(8192, false);
    lv_picture *picture = draw_picture(long_model, 0);
    lv_engine *engine = open_engine(long_model, NULL);
    const struct {
        int max_tokens;
        bool is_reused;
    } steps[] = {{8, false}, {500, true}, {5000, false}, {5000, true}, {4000, false}, {8, true}};
    static const char *const stop[] = {" "}; // after a word
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        outcome o;
        const lv_params params = {.max_tokens = steps[i].max_tokens, .stop = stop, .n_stop = 1};
        ask_and_wait(engine, &o, "What is in the picture?", &picture, 1, &params);
        CHECK_OK(o.status);
        CHECK((o.answer.n_reused_tokens > 128) == steps[i].is_reused,
              "step %zu, max_tokens %d: %d reused", i, steps[i].max_tokens,
              o.answer.n_reused_tokens);
        outcome_free(&o);
    }
    lv_engine_close(engine);
    lv_picture_free(picture);
    lv_model_free(long_model);
}

// More pictures in one question than embeddings are kept for.
static void test_many_pictures(void) {
    enum { N = 8 };
    lv_picture *many[N];
    lv_engine *engine = open_engine(model, &(lv_engine_options){.image_cache_bytes = 1});
    outcome o[3] = {{0}};
    for (int i = 0; i < N; i++) {
        many[i] = draw_picture(model, i);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ask(engine, &o[i], "What are these?", many + (i == 1), N - (i == 1),
                     &(lv_params){.max_tokens = 6}));
    }
    for (int i = 0; i < 3; i++) {
        outcome_wait(&o[i]);
        CHECK_OK(o[i].status);
    }
    CHECK(strcmp(o[0].answer.text, o[2].answer.text) == 0, "\"%s\" and \"%s\"", o[0].answer.text,
          o[2].answer.text);
    for (int i = 0; i < N; i++) {
        lv_picture_free(many[i]);
    }
    for (int i = 0; i < 3; i++) {
        outcome_free(&o[i]);
    }
    lv_engine_close(engine);
}

int main(void) {
    for (int ahead = 0; ahead < 2; ahead++) {
        model = open_model(0, ahead);
        if (!model) {
            break;
        }
        for (int i = 0; i < 4; i++) {
            pictures[i] = draw_picture(model, i);
        }
        test_second_question();
        test_differences();
        test_side_by_side(false);
        test_side_by_side(true);
        test_turns();
        test_giving_up();
        test_frequencies();
        test_many_pictures();
        for (int i = 0; i < 4; i++) {
            lv_picture_free(pictures[i]);
        }
        lv_model_free(model);
    }
    return check_done();
}
