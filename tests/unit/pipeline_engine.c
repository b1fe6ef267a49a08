// The engine: requests side by side answer as alone, whatever the others do, and each one ends
// once.
#include "pipeline_util.h"

#include <math.h>

static lv_model *model;
static lv_grammar *endless, *colours;

// --- the same answers ----------------------------------------------------------------------------

typedef struct request_case {
    const char *question;
    int n_pictures, first_picture; // of `pictures`
    lv_params params;
} request_case;

enum { N_PICTURES = 6, N_CASES = 14 };
static lv_picture *pictures[N_PICTURES];
static request_case cases[N_CASES];
static char *alone[N_CASES];

static void make_cases(void) {
    static const char *const stops[] = {"zebra", " a "};
    static char *long_question;
    long_question = long_text(700);
    for (int i = 0; i < N_CASES; i++) {
        cases[i] = (request_case){"Describe this image.", 1, i % N_PICTURES, {.max_tokens = 40}};
    }
    cases[1].question = "What colours are there?";
    cases[2] = (request_case){"What is a tree?", 0, 0, {.max_tokens = 30}};
    cases[3] = (request_case){"Describe these images.", 2, 1, {.max_tokens = 40}};
    cases[4].params = (lv_params){.max_tokens = 60, .temperature = 1.2f, .seed = 7};
    cases[5].params =
        (lv_params){.max_tokens = 60, .temperature = 0.9f, .seed = 8, .top_k = 20, .top_p = 0.9f};
    cases[6].params = (lv_params){.max_tokens = 50, .repetition_penalty = 1.3f};
    cases[7].params = (lv_params){.max_tokens = 50, .presence_penalty = 1, .frequency_penalty = 1};
    cases[8].params = (lv_params){.max_tokens = 120, .grammar = colours};
    cases[9].params = (lv_params){.max_tokens = 90, .grammar = endless};
    cases[10].params = (lv_params){.max_tokens = 40, .stop = stops, .n_stop = 2};
    cases[11].params = (lv_params){.max_tokens = 40, .logprobs = true, .top_logprobs = 5};
    cases[12] = (request_case){long_question, 0, 0, {.max_tokens = 40}};
    cases[13] = (request_case){"Between <image> and <image>, what differs?", 2, 3, {0}};
}

static lv_status ask_case(lv_engine *engine, int i, outcome *o) {
    return ask(engine, o, cases[i].question, pictures + cases[i].first_picture, cases[i].n_pictures,
               &cases[i].params);
}

static void answer_alone(void) {
    lv_engine *engine = open_engine(model, &(lv_engine_options){.max_sequences = 1});
    for (int i = 0; i < N_CASES; i++) {
        outcome o = {0};
        CHECK_OK(ask_case(engine, i, &o));
        outcome_wait(&o);
        CHECK_OK(o.status);
        alone[i] = strdup(o.answer.text ? o.answer.text : "");
        outcome_free(&o);
    }
    lv_engine_close(engine);
}

static void check_case(const char *how, int i, const outcome *o) {
    CHECK(o->n_done == 1 && o->n_after_done == 0, "%s, %d: ended %d times, %d calls after", how, i,
          o->n_done, o->n_after_done);
    CHECK(o->status == LV_OK, "%s, %d: %s", how, i, o->message ? o->message : "");
    const char *text = o->answer.text ? o->answer.text : "";
    CHECK(strcmp(text, alone[i]) == 0, "%s, %d: \"%s\"\nalone \"%s\"", how, i, text, alone[i]);
    CHECK(o->text.data && strcmp((const char *)o->text.data, text) == 0,
          "%s, %d: shown \"%s\", answered \"%s\"", how, i, (const char *)o->text.data, text);
    CHECK(o->n_tokens == o->answer.n_logprobs, "%s, %d: %d tokens shown, %d answered", how, i,
          o->n_tokens, o->answer.n_logprobs);
}

// All cases at once, some of them twice.
static void check_together(const char *how, const lv_engine_options *options) {
    enum { N = N_CASES + 6 };
    outcome o[N] = {{0}};
    lv_engine *engine = open_engine(model, options);
    for (int i = 0; i < N; i++) {
        CHECK_OK(ask_case(engine, i % N_CASES, &o[i]));
    }
    for (int i = 0; i < N; i++) {
        outcome_wait(&o[i]);
        check_case(how, i % N_CASES, &o[i]);
        outcome_free(&o[i]);
    }
    const lv_engine_stats stats = stats_of(engine);
    printf("%s: %llu passes of %.1f tokens, %llu of %llu prompt tokens and %llu pictures reused\n",
           how, (unsigned long long)stats.n_passes,
           (double)stats.n_pass_tokens / (double)stats.n_passes,
           (unsigned long long)stats.n_reused_tokens, (unsigned long long)stats.n_prompt_tokens,
           (unsigned long long)stats.n_reused_images);
    CHECK(stats.n_kv_used == 0 && stats.n_finished == N, "%d blocks used after %d of %d",
          stats.n_kv_used, (int)stats.n_finished, N);
    lv_engine_close(engine);
}

static void test_together(void) {
    const size_t block = lv_cache_block_bytes(model->llm, LV_NONE);
    check_together("side by side", &(lv_engine_options){.max_sequences = 8});
    if (IS_SANITIZED) {
        return;
    }
    check_together("without reuse", &(lv_engine_options){.no_reuse = true});
    check_together("small chunks", &(lv_engine_options){.chunk_tokens = 64, .pass_tokens = 200});
    check_together("little room", &(lv_engine_options){.kv_bytes = 16 * block, .n_workers = 1});
    check_together("few pictures", &(lv_engine_options){.image_cache_bytes = 1});
}

// Answers that outgrow the cache together: the youngest make room, and go on later as if nothing
// had happened.
static void check_making_room(const char *how, const lv_engine_options *options) {
    enum { N = 5 };
    static char *want[N];
    outcome o[N] = {{0}};
    lv_engine *engine = open_engine(model, options);
    for (int i = 0; i < N; i++) {
        const lv_params params = {.max_tokens = 150,
                                  .grammar = i < 3 ? endless : NULL,
                                  .temperature = 1.5f,
                                  .repetition_penalty = 1.1f,
                                  .logprobs = i == 1,
                                  .seed = (uint64_t)i};
        CHECK_OK(ask(engine, &o[i], "Describe this image.", pictures + i, i < 4, &params));
        if (options->max_sequences == 1) {
            outcome_wait(&o[i]); // alone
        }
    }
    for (int i = 0; i < N; i++) {
        outcome_wait(&o[i]);
        CHECK_OK(o[i].status);
        want[i] = want[i] ? want[i] : strdup(o[i].answer.text);
        CHECK(strcmp(o[i].answer.text, want[i]) == 0, "%s, %d: \"%s\"\nalone \"%s\"", how, i,
              o[i].answer.text, want[i]);
        CHECK(strcmp((char *)o[i].text.data, want[i]) == 0, "%s, %d: shown \"%s\"", how, i,
              (char *)o[i].text.data);
        outcome_free(&o[i]);
    }
    const lv_engine_stats stats = stats_of(engine);
    printf("%s: %llu made room in %llu passes\n", how, (unsigned long long)stats.n_preempted,
           (unsigned long long)stats.n_passes);
    CHECK((stats.n_preempted > 0) == (options->max_sequences != 1), "%s: %d made room", how,
          (int)stats.n_preempted);
    CHECK(stats.n_kv_used == 0, "%s: %d blocks used", how, stats.n_kv_used);
    lv_engine_close(engine);
}

static void test_making_room(void) {
    const size_t block = lv_cache_block_bytes(model->llm, LV_NONE);
    const size_t kv_bytes = 10 * block;
    check_making_room("alone", &(lv_engine_options){.max_sequences = 1});
    check_making_room("making room", &(lv_engine_options){.kv_bytes = kv_bytes});
    if (IS_SANITIZED) {
        return;
    }
    check_making_room("making room without reuse",
                      &(lv_engine_options){.kv_bytes = kv_bytes, .no_reuse = true});
    check_making_room("making room in small chunks",
                      &(lv_engine_options){.kv_bytes = kv_bytes, .chunk_tokens = 128});
}

// --- logprobs ------------------------------------------------------------------------------------

static void test_logprobs(lv_engine *engine) {
    const lv_params params = {.max_tokens = 12, .logprobs = true, .top_logprobs = 20};
    outcome o;
    char spelled[1024] = "";
    size_t n = 0;
    ask_and_wait(engine, &o, "Describe this image.", pictures, 1, &params);
    CHECK(o.answer.n_logprobs > 3 && o.answer.tokens, "%d logprobs", o.answer.n_logprobs);
    for (int i = 0; i < o.answer.n_logprobs; i++) {
        const lv_token *t = &o.answer.tokens[i];
        double sum = 0;
        for (int j = 0; j < 20; j++) {
            sum += exp((double)t->top[j].logprob);
            CHECK(j == 0 || t->top[j].logprob <= t->top[j - 1].logprob, "token %d: not sorted", i);
        }
        CHECK(t->top[0].id == t->id && fabsf(t->top[0].logprob - t->logprob) < 1e-4f,
              "greedy took %d (%g), the likeliest is %d (%g)", t->id, (double)t->logprob,
              t->top[0].id, (double)t->top[0].logprob);
        CHECK(sum > 0.3 && sum < 1.0001, "token %d: the likeliest sum up to %g", i, sum);
        n += lv_model_token(model, t->id, spelled + n, sizeof spelled - n - 1);
    }
    CHECK(strcmp(spelled + strspn(spelled, " "), o.answer.text) == 0, "\"%s\" spells \"%s\"",
          spelled, o.answer.text);
    outcome_free(&o);
}

// --- ends ----------------------------------------------------------------------------------------

static void test_cancel(lv_engine *engine) {
    const lv_params params = {.max_tokens = 1500, .grammar = endless};
    for (int by_return = 0; by_return < 2; by_return++) {
        outcome o = {.cancel_at = 3, .refuse_at = by_return}, other = {0};
        CHECK_OK(ask(engine, &o, "Count.", NULL, 0, &params));
        CHECK_OK(ask_case(engine, 0, &other));
        outcome_wait(&o);
        outcome_wait(&other);
        check_case("beside one that is cancelled", 0, &other);
        CHECK(o.status == LV_OK && o.answer.finish == LV_FINISH_CANCELLED, "%s",
              lv_finish_name(o.answer.finish));
        CHECK(o.n_text <= 3 + 2, "%d pieces after a stop at the third", o.n_text);
        CHECK(o.answer.text && strcmp(o.answer.text, (char *)o.text.data) == 0, "\"%s\"",
              o.answer.text);
        outcome_free(&o);
        outcome_free(&other);
    }
    lv_engine_cancel(engine, 0);
    lv_engine_cancel(engine, UINT64_MAX);
}

// Holds the engine's thread in a callback until it is let go.
typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_reached, is_open;
} gate;

static void wait_at_gate(outcome *o) {
    gate *g = o->watcher;
    pthread_mutex_lock(&g->lock);
    g->is_reached = true;
    pthread_cond_broadcast(&g->changed);
    while (!g->is_open) {
        pthread_cond_wait(&g->changed, &g->lock);
    }
    pthread_mutex_unlock(&g->lock);
}

static void gate_reach(gate *g) {
    pthread_mutex_lock(&g->lock);
    while (!g->is_reached) {
        pthread_cond_wait(&g->changed, &g->lock);
    }
    pthread_mutex_unlock(&g->lock);
}

static void gate_open(gate *g) {
    pthread_mutex_lock(&g->lock);
    g->is_open = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void test_queue(void) {
    gate g = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    outcome o[5] = {{.watch = wait_at_gate, .watcher = &g}};
    lv_engine *engine =
        open_engine(model, &(lv_engine_options){.max_sequences = 1, .queue_length = 2});
    CHECK_OK(ask_case(engine, 0, &o[0]));
    gate_reach(&g);
    CHECK_OK(ask_case(engine, 1, &o[1]));
    CHECK_OK(ask_case(engine, 2, &o[2]));
    CHECK_STATUS(ask_case(engine, 3, &o[3]), LV_ELIMIT);
    const lv_engine_stats full = stats_of(engine);
    CHECK(full.n_running == 1 && full.n_waiting == 2 && full.n_refused == 1, "%d, %d, %d",
          full.n_running, full.n_waiting, (int)full.n_refused);
    lv_engine_cancel(engine, o[1].id); // while it waits
    gate_open(&g);
    for (int i = 0; i < 3; i++) {
        outcome_wait(&o[i]);
    }
    CHECK(o[1].answer.finish == LV_FINISH_CANCELLED && o[1].n_text == 0, "%s, %d pieces",
          lv_finish_name(o[1].answer.finish), o[1].n_text);
    check_case("after a full queue", 0, &o[0]);
    check_case("after a full queue", 2, &o[2]);
    CHECK(o[3].n_done == 0, "a refused request ended");
    CHECK_OK(ask_case(engine, 3, &o[4]));
    outcome_wait(&o[4]);
    check_case("after a full queue", 3, &o[4]);
    for (int i = 0; i < 5; i++) {
        outcome_free(&o[i]);
    }
    lv_engine_close(engine);
}

static void test_close(void) {
    const lv_params params = {.max_tokens = 1500, .grammar = endless};
    gate g = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    outcome o[6] = {{.watch = wait_at_gate, .watcher = &g}};
    lv_engine *engine = open_engine(model, &(lv_engine_options){.max_sequences = 2});
    lv_engine *second = NULL;
    CHECK_STATUS(lv_engine_open(model, NULL, &second), LV_EINVAL);
    for (int i = 0; i < 6; i++) {
        CHECK_OK(ask(engine, &o[i], "Count.", NULL, 0, &params));
    }
    gate_reach(&g);
    gate_open(&g);
    lv_engine_close(engine);
    for (int i = 0; i < 6; i++) {
        CHECK(o[i].n_done == 1 && o[i].answer.finish == LV_FINISH_CANCELLED, "%d: %d times, %s", i,
              o[i].n_done, lv_finish_name(o[i].answer.finish));
        outcome_free(&o[i]);
    }
}

static void test_limits(lv_engine *engine) {
    char *text = long_text(6000);
    outcome o;
    ask_and_wait(engine, &o, text, NULL, 0, NULL);
    CHECK(o.status == LV_ELIMIT && strstr(o.message, "2048"), "%s: %s", lv_status_name(o.status),
          o.message);
    outcome_free(&o);
    // To the last place of the session, and not empty.
    const lv_params params = {.max_tokens = 100000, .grammar = endless};
    text[2 * 1900] = 0;
    ask_and_wait(engine, &o, text, NULL, 0, &params);
    CHECK(o.status == LV_OK && o.answer.finish == LV_FINISH_CONTEXT, "%s",
          o.message ? o.message : lv_finish_name(o.answer.finish));
    CHECK(o.answer.n_prompt_tokens + o.answer.n_tokens <= 2048 + 1 && o.answer.n_tokens > 1,
          "%d + %d tokens of 2048", o.answer.n_prompt_tokens, o.answer.n_tokens);
    outcome_free(&o);
    const lv_params few = {.max_tokens = 3};
    ask_and_wait(engine, &o, "Describe this image.", pictures, 1, &few);
    CHECK(o.answer.finish == LV_FINISH_LENGTH && o.answer.n_tokens == 3, "%s after %d",
          lv_finish_name(o.answer.finish), o.answer.n_tokens);
    outcome_free(&o);
    lv_engine_close(engine);
    // More than the cache can ever hold.
    const size_t block = lv_cache_block_bytes(model->llm, LV_NONE);
    engine = open_engine(model, &(lv_engine_options){.kv_bytes = 8 * block});
    ask_and_wait(engine, &o, "Describe this image.", pictures, 1, &(lv_params){.max_tokens = 400});
    CHECK(o.status == LV_ELIMIT && strstr(o.message, "512"), "%s: %s", lv_status_name(o.status),
          o.message);
    outcome_free(&o);
    ask_and_wait(engine, &o, "Describe this image.", pictures, 1, &(lv_params){.max_tokens = 200});
    CHECK_OK(o.status);
    outcome_free(&o);
    lv_engine_close(engine);
    free(text);
}

static void test_refusals(lv_engine *engine) {
    static const char *stops[40];
    for (int i = 0; i < 40; i++) {
        stops[i] = "x";
    }
    const lv_params bad[] = {
        {.temperature = -1},     {.temperature = NAN}, {.top_p = 1.5f},
        {.top_k = -1},           {.max_tokens = -1},   {.repetition_penalty = 1e-6f},
        {.presence_penalty = 3}, {.top_logprobs = 21}, {.stop = stops, .n_stop = 40}};
    outcome o = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_STATUS(ask(engine, &o, "Hello?", NULL, 0, &bad[i]), LV_EINVAL);
    }
    CHECK(o.n_done == 0, "a refused request ended");
    lv_engine *other = NULL;
    CHECK_STATUS(lv_engine_open(model, &(lv_engine_options){.max_sequences = 300}, &other),
                 LV_EINVAL);
    ask_and_wait(engine, &o, "Where is <image>?", NULL, 0, NULL);
    CHECK(o.status == LV_OK || o.status == LV_EINVAL, "%s", lv_status_name(o.status));
    outcome_free(&o);
}

// --- fairness ------------------------------------------------------------------------------------

// How many pieces the other had shown when this one's prompt was read to a further chunk.
typedef struct pace {
    const outcome *other;
    int at[64], n;
} pace;

static void note_pace(outcome *o) {
    pace *p = o->watcher;
    if (o->n_text == 0 && p->n < 64) {
        p->at[p->n++] = p->other->n_text;
    }
}

static void start_long_prompt(outcome *o) {
    outcome *slow = o->watcher;
    if (o->n_text == 1 && !slow->id) {
        char *text = long_text(1200);
        o->n_after_done +=
            ask(o->engine, slow, text, NULL, 0, &(lv_params){.max_tokens = 4}) != LV_OK;
        free(text);
    }
}

static void test_fairness(void) {
    const lv_params params = {.max_tokens = 100, .grammar = endless};
    outcome slow = {.watch = note_pace}, o = {.watch = start_long_prompt, .watcher = &slow};
    pace p = {.other = &o};
    slow.watcher = &p;
    lv_engine *engine = open_engine(model, &(lv_engine_options){.chunk_tokens = 64});
    CHECK_OK(ask(engine, &o, "Count.", NULL, 0, &params));
    outcome_wait(&o);
    outcome_wait(&slow);
    CHECK(o.n_after_done == 0 && p.n >= 8, "a long prompt read in %d chunks", p.n);
    for (int i = 2; i < p.n; i++) {
        // A token a chunk; a piece may be held back, for what it ends in, until the next one.
        CHECK(p.at[i] > p.at[i - 2], "chunk %d: the other had shown %d pieces, %d two before it", i,
              p.at[i], p.at[i - 2]);
    }
    outcome_free(&o);
    outcome_free(&slow);
    lv_engine_close(engine);
}

// --- pictures that fail, many callers ------------------------------------------------------------

static void test_bad_picture(lv_engine *engine) {
    lv_picture *bad = NULL, *missing = NULL;
    outcome o[4] = {{0}};
    CHECK_OK(lv_picture_bytes_later(model, (const uint8_t *)"no picture", 10, NULL, &bad));
    CHECK_OK(lv_picture_later(model, "/nowhere/x.png", NULL, NULL, &missing));
    lv_picture *const mixed[] = {pictures[0], bad};
    CHECK_OK(ask_case(engine, 0, &o[0]));
    CHECK_OK(ask(engine, &o[1], "Both?", mixed, 2, NULL));
    CHECK_OK(ask(engine, &o[2], "What?", &missing, 1, NULL));
    CHECK_OK(ask_case(engine, 1, &o[3]));
    lv_picture_free(bad); // the requests hold their own
    lv_picture_free(missing);
    for (int i = 0; i < 4; i++) {
        outcome_wait(&o[i]);
    }
    check_case("beside a bad picture", 0, &o[0]);
    check_case("beside a bad picture", 1, &o[3]);
    CHECK(o[1].status == LV_EFORMAT && o[1].message, "%s", lv_status_name(o[1].status));
    CHECK(o[2].status != LV_OK && strstr(o[2].message, "/nowhere/x.png"), "%s", o[2].message);
    for (int i = 0; i < 4; i++) {
        outcome_free(&o[i]);
    }
}

// Requests gone as soon as they came: the engine's thread ends what a worker might take up.
static void test_gone_at_once(void) {
    enum { ROUNDS = 300, N = 8 };
    const lv_params params = {.max_tokens = 1500, .grammar = endless};
    lv_engine *engine = open_engine(model, &(lv_engine_options){.n_workers = 4});
    for (int round = 0; round < ROUNDS; round++) {
        outcome o[N] = {0};
        for (int i = 0; i < N; i++) {
            CHECK_OK(ask(engine, &o[i], "Count.", NULL, 0, &params));
            lv_engine_cancel(engine, o[i].id);
        }
        for (int i = 0; i < N; i++) {
            outcome_wait(&o[i]);
            CHECK(o[i].status == LV_OK && o[i].answer.finish == LV_FINISH_CANCELLED, "%s",
                  lv_finish_name(o[i].answer.finish));
            outcome_free(&o[i]);
        }
    }
    lv_engine_close(engine);
}

typedef struct caller {
    lv_engine *engine;
    int index;
} caller;

static void *call(void *user) {
    const caller *c = user;
    for (int i = 0; i < 2; i++) {
        lv_answer answer = {0};
        const request_case *k = &cases[c->index];
        const lv_message message = {"user", k->question, pictures + k->first_picture,
                                    k->n_pictures};
        const lv_status status =
            lv_engine_answer(c->engine, &message, 1, &k->params, NULL, NULL, &answer);
        pthread_mutex_lock(&outcome_lock); // CHECK counts
        CHECK_OK(status);
        CHECK(answer.text && strcmp(answer.text, alone[c->index]) == 0, "%d: \"%s\", not \"%s\"",
              c->index, answer.text ? answer.text : "", alone[c->index]);
        pthread_mutex_unlock(&outcome_lock);
        lv_answer_free(&answer);
    }
    return NULL;
}

static void test_callers(void) {
    enum { N = 6 };
    pthread_t threads[N];
    caller callers[N];
    lv_engine *engine =
        open_engine(model, &(lv_engine_options){.max_sequences = 2, .queue_length = 1});
    for (int i = 0; i < N; i++) {
        callers[i] = (caller){engine, i};
        CHECK(pthread_create(&threads[i], NULL, call, &callers[i]) == 0);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
    }
    lv_engine_close(engine);
}

int main(void) {
    static const char schema[] =
        "{\"type\":\"object\",\"properties\":{\"colour\":{\"enum\":[\"red\",\"green\",\"blue\"]},"
        "\"words\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":8},"
        "\"minItems\":3,\"maxItems\":3}},\"required\":[\"colour\",\"words\"]}";
    endless = long_grammar(800);
    CHECK_OK(lv_grammar_compile(schema, strlen(schema), "colours", &colours));
    for (int ahead = IS_SANITIZED; ahead < 2; ahead++) {
        model = open_model(0, ahead);
        if (!model) {
            break;
        }
        for (int i = 0; i < N_PICTURES; i++) {
            pictures[i] = draw_picture(model, i);
        }
        if (!cases[0].question) {
            make_cases();
            answer_alone();
        }
        test_together();
        test_making_room();
        test_queue();
        test_close();
        test_fairness();
        test_callers();
        test_gone_at_once();
        lv_engine *engine = open_engine(model, NULL);
        test_logprobs(engine);
        test_cancel(engine);
        test_refusals(engine);
        test_bad_picture(engine);
        test_limits(engine); // closes it
        for (int i = 0; i < N_PICTURES; i++) {
            lv_picture_free(pictures[i]);
        }
        lv_model_free(model);
    }
    for (int i = 0; i < N_CASES; i++) {
        free(alone[i]);
    }
    free((char *)(uintptr_t)cases[12].question);
    lv_grammar_free(endless);
    lv_grammar_free(colours);
    return check_done();
}
