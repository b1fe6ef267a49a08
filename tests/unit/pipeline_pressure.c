// The engine where something is short: blocks that several want in one pass, a session that is
// full, pictures among prompts without end, a disk, a device, a source that does not answer.
#include "core_util.h"
#include "pipeline_util.h"

static lv_model *model;

// --- blocks --------------------------------------------------------------------------------------

// Requests of one length want a block in the same pass. A picture is found once, however often its
// request makes room.
static void test_in_step(int n_blocks, bool no_reuse, bool with_picture) {
    enum { N = 4 };
    const size_t block = lv_cache_block_bytes(model->llm, LV_NONE);
    const lv_engine_options options = {.kv_bytes = (size_t)n_blocks * block, .no_reuse = no_reuse};
    outcome alone[N] = {{0}}, together[N] = {{0}};
    lv_picture *picture = draw_picture(model, 1);
    uint64_t n_preempted = 0;
    for (int side_by_side = 0; side_by_side < 2; side_by_side++) {
        outcome *o = side_by_side ? together : alone;
        lv_engine *engine = open_engine(model, &options);
        for (int i = 0; i < N; i++) {
            const lv_params params = {
                .max_tokens = 120, .ignore_eos = true, .temperature = 1, .seed = (uint64_t)i};
            CHECK_OK(ask(engine, &o[i], "Tell me a story.", &picture, with_picture, &params));
            if (!side_by_side) {
                outcome_wait(&o[i]);
            }
        }
        for (int i = 0; i < N; i++) {
            outcome_wait(&o[i]);
            CHECK(o[i].status == LV_OK, "%d blocks, %d: %s", n_blocks, i, o[i].message);
            CHECK(o[i].answer.n_reused_images == (with_picture && i > 0), "%d blocks, %d: %d",
                  n_blocks, i, o[i].answer.n_reused_images);
        }
        n_preempted = stats_of(engine).n_preempted;
        CHECK(stats_of(engine).n_kv_used == 0, "%d blocks used", stats_of(engine).n_kv_used);
        lv_engine_close(engine);
    }
    CHECK(n_preempted > 0, "%d blocks: nobody made room", n_blocks);
    lv_picture_free(picture);
    for (int i = 0; i < N; i++) {
        CHECK(alone[i].answer.text && together[i].answer.text &&
                  strcmp(alone[i].answer.text, together[i].answer.text) == 0,
              "%d blocks, %d: another text than alone", n_blocks, i);
        outcome_free(&alone[i]);
        outcome_free(&together[i]);
    }
}

static int n_tokens_of(lv_engine *engine, const char *question) {
    outcome o = {0};
    ask_and_wait(engine, &o, question, NULL, 0, &(lv_params){.max_tokens = 1});
    const int n = o.answer.n_prompt_tokens;
    outcome_free(&o);
    return n;
}

// A question of n tokens with its template.
static char *question_of(lv_engine *engine, int n) {
    const int n_least = n_tokens_of(engine, "a");
    char *text = calloc(1, 2 * (size_t)n), *to = text;
    *to++ = 'a';
    for (int i = n_least; i < n; i++) {
        to += sprintf(to, " a");
    }
    CHECK(n_tokens_of(engine, text) == n, "\"%s\": not %d tokens", text, n);
    return text;
}

static bool dawdle(void *user, const lv_piece *piece) {
    (void)user;
    (void)piece;
    usleep(300000);
    return false;
}

// The younger of two fills its session, and has to make room when all its places are known.
static void test_full_session(void) {
    enum { SESSION = 256 };
    lv_model *usual = model;
    model = open_model(SESSION, usual->be->runs_ahead);
    const size_t block = lv_cache_block_bytes(model->llm, LV_NONE);
    lv_engine *engine = open_engine(model, NULL);
    char *questions[] = {question_of(engine, 60), question_of(engine, 123)};
    lv_engine_close(engine);
    for (int n_blocks = IS_SANITIZED ? 7 : 4; n_blocks < 8; n_blocks++) {
        const lv_message message = {"user", "a", NULL, 0};
        outcome first = {0}, o[2] = {{0}};
        const lv_request slow = {.messages = &message,
                                 .n_messages = 1,
                                 .params = {.max_tokens = 2},
                                 .on_text = dawdle,
                                 .on_done = outcome_done,
                                 .user = &first};
        engine = open_engine(model, &(lv_engine_options){.kv_bytes = (size_t)n_blocks * block});
        CHECK_OK(lv_engine_submit(engine, &slow, NULL)); // so that the two come in together
        usleep(100000);
        for (int i = 0; i < 2; i++) {
            CHECK_OK(ask(engine, &o[i], questions[i], NULL, 0,
                         &(lv_params){.max_tokens = 1000, .ignore_eos = true}));
        }
        outcome_wait(&first);
        for (int i = 0; i < 2; i++) {
            outcome_wait(&o[i]);
            CHECK(o[i].status == LV_OK && o[i].answer.finish == LV_FINISH_CONTEXT,
                  "%d blocks, %d: %s", n_blocks, i, lv_finish_name(o[i].answer.finish));
            outcome_free(&o[i]);
        }
        outcome_free(&first);
        lv_engine_close(engine);
    }
    free(questions[0]);
    free(questions[1]);
    lv_model_free(model);
    model = usual;
}

// --- pictures ------------------------------------------------------------------------------------

typedef struct load {
    lv_engine *engine;
    const char *text;
    atomic_int n_asked, n_answered, n_failed;
    atomic_bool ends;
} load;

static void answered(void *user, lv_status status, const char *message, lv_answer *answer);

static void ask_more(load *l) {
    char text[16384];
    const int n = atomic_fetch_add(&l->n_asked, 1);
    snprintf(text, sizeof text, "%d %s", n * 7919 % 100003, l->text);
    const lv_message message = {"user", text, NULL, 0};
    const lv_request request = {.messages = &message,
                                .n_messages = 1,
                                .params = {.max_tokens = 4, .ignore_eos = true},
                                .on_done = answered,
                                .user = l};
    const lv_status status = lv_engine_submit(l->engine, &request, NULL);
    atomic_fetch_add(&l->n_failed, status != LV_OK && status != LV_ECANCELLED); // it is closed
}

static void answered(void *user, lv_status status, const char *message, lv_answer *answer) {
    load *l = user;
    (void)message;
    (void)answer;
    atomic_fetch_add(&l->n_failed, status != LV_OK);
    atomic_fetch_add(&l->n_answered, 1);
    if (!atomic_load(&l->ends)) {
        ask_more(l);
    }
}

// Prompts come and come; those asked later do not hold off the picture of one asked before.
static void test_picture_among_prompts(void) {
    enum { N_LOAD = 8, N_RUNNING = 4, MOST = 24 };
    char *text = long_text(300);
    const lv_engine_options options = {
        .max_sequences = N_RUNNING, .chunk_tokens = 64, .pass_tokens = 64, .no_reuse = true};
    lv_engine *engine = open_engine(model, &options);
    load l = {.engine = engine, .text = text};
    outcome o = {0};
    lv_picture *picture = draw_picture(model, 1);
    for (int i = 0; i < N_LOAD; i++) {
        ask_more(&l);
    }
    while (atomic_load(&l.n_answered) < N_RUNNING) {
        usleep(1000);
    }
    const int n_before = atomic_load(&l.n_asked);
    CHECK_OK(ask(engine, &o, "Describe this image.", &picture, 1, NULL));
    for (bool is_done = false; !is_done && atomic_load(&l.n_answered) < n_before + MOST;) {
        usleep(1000);
        pthread_mutex_lock(&outcome_lock);
        is_done = o.n_done > 0;
        pthread_mutex_unlock(&outcome_lock);
    }
    const int n_meanwhile = atomic_load(&l.n_answered) - n_before;
    atomic_store(&l.ends, true);
    outcome_wait(&o);
    CHECK_OK(o.status);
    CHECK(n_meanwhile < MOST, "%d younger prompts were answered first", n_meanwhile);
    lv_engine_close(engine);
    CHECK(atomic_load(&l.n_failed) == 0, "%d failed", atomic_load(&l.n_failed));
    outcome_free(&o);
    lv_picture_free(picture);
    free(text);
}

// What one request wants written beside the answer is no other's business.
static void test_dump_that_fails(void) {
    make_folder("dump/pixels.npy"); // cannot be replaced by a file
    lv_engine *engine = open_engine(model, NULL);
    outcome o[3] = {{0}};
    lv_picture *pictures[] = {draw_picture(model, 1), draw_picture(model, 2)};
    CHECK_OK(ask(engine, &o[0], "Tell me a story.", NULL, 0,
                 &(lv_params){.max_tokens = 300, .ignore_eos = true}));
    CHECK_OK(ask(engine, &o[1], "Describe these.", pictures, 2,
                 &(lv_params){.max_tokens = 10, .dump_dir = scratch("dump")}));
    CHECK_OK(ask(engine, &o[2], "Describe this.", pictures, 1, &(lv_params){.max_tokens = 10}));
    for (int i = 0; i < 3; i++) {
        outcome_wait(&o[i]);
        CHECK(o[i].status == (i == 1 ? LV_EIO : LV_OK), "%d: %s", i, o[i].message);
        outcome_free(&o[i]);
    }
    lv_engine_close(engine);
    lv_picture_free(pictures[0]);
    lv_picture_free(pictures[1]);
}

static void *feed(void *user) {
    uint8_t bytes[8192];
    const size_t n = draw_ppm(1, bytes);
    FILE *to = fopen(user, "wb"); // once somebody reads
    return to && fwrite(bytes, 1, n, to) == n && fclose(to) == 0 ? user : NULL;
}

// Two want a picture whose source says nothing yet; the one who waits for the other may leave.
static void test_leaving_a_slow_source(void) {
    char name[128];
    snprintf(name, sizeof name, "%s", scratch("picture.ppm"));
    CHECK(mkfifo(name, 0600) == 0);
    lv_engine *engine = open_engine(model, &(lv_engine_options){.n_workers = 2});
    outcome o[2] = {{0}};
    lv_picture *picture = NULL;
    pthread_t feeder;
    CHECK_OK(lv_picture_later(model, name, NULL, NULL, &picture));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ask(engine, &o[i], "Describe this image.", &picture, 1, NULL));
        usleep(100000);
    }
    lv_engine_cancel(engine, o[1].id);
    outcome_wait(&o[1]); // while the source is silent
    CHECK(o[1].answer.finish == LV_FINISH_CANCELLED, "%s", lv_finish_name(o[1].answer.finish));
    CHECK(pthread_create(&feeder, NULL, feed, name) == 0);
    outcome_wait(&o[0]);
    CHECK_OK(o[0].status);
    void *fed = NULL;
    CHECK(pthread_join(feeder, &fed) == 0 && fed, "not all of the picture was read");
    lv_engine_close(engine);
    outcome_free(&o[0]);
    outcome_free(&o[1]);
    lv_picture_free(picture);
    unlink(name);
}

// --- the end -------------------------------------------------------------------------------------

static struct {
    lv_ops ops;
    const lv_ops *usual;
    atomic_bool burns;
    atomic_int n_refused; // as they have to be
    lv_engine *engine;
} device;

static lv_status pass(lv_backend *be, const lv_batch *batch, lv_pass_body *body, void *user) {
    return atomic_load(&device.burns) ? lv_fail(LV_EDEVICE, "the device burns")
                                      : device.usual->pass(be, batch, body, user);
}

// Asks what is refused: another reason in lv_error.
static void done_and_ask(void *user, lv_status status, const char *message, lv_answer *answer) {
    const lv_message again = {"user", "Again?", NULL, 0};
    const lv_request bad = {.messages = &again, .n_messages = 1, .params = {.max_tokens = -1}};
    const lv_request good = {.messages = &again, .n_messages = 1, .on_done = outcome_done};
    uint64_t id;
    atomic_fetch_add(&device.n_refused, lv_engine_submit(device.engine, &good, &id) == LV_EDEVICE);
    atomic_fetch_add(&device.n_refused, lv_engine_submit(device.engine, &bad, &id) == LV_EINVAL);
    outcome_done(user, status, message, answer);
}

static void test_device_that_fails(void) {
    enum { N = 3 };
    const lv_message message = {"user", "Tell me a story.", NULL, 0};
    outcome o[N] = {{0}}, later = {0};
    device.usual = model->be->ops;
    device.ops = *device.usual;
    device.ops.pass = pass;
    model->be->ops = &device.ops;
    atomic_store(&device.burns, false);
    atomic_store(&device.n_refused, 0);
    device.engine = open_engine(model, NULL);
    for (int i = 0; i < N; i++) {
        const lv_request request = {.messages = &message,
                                    .n_messages = 1,
                                    .params = {.max_tokens = 1500, .ignore_eos = true},
                                    .on_done = done_and_ask,
                                    .user = &o[i]};
        CHECK_OK(lv_engine_submit(device.engine, &request, NULL));
    }
    while (stats_of(device.engine).n_running < N) {
        usleep(1000);
    }
    atomic_store(&device.burns, true);
    for (int i = 0; i < N; i++) {
        outcome_wait(&o[i]);
        CHECK(o[i].status == LV_EDEVICE && strstr(o[i].message, "the device burns"), "%d: %s", i,
              o[i].message);
        outcome_free(&o[i]);
    }
    CHECK(atomic_load(&device.n_refused) == 2 * N, "%d", atomic_load(&device.n_refused));
    CHECK_STATUS(ask(device.engine, &later, "Later?", NULL, 0, NULL), LV_EDEVICE);
    CHECK(strstr(lv_error(), "the device burns"), "%s", lv_error());
    lv_engine_close(device.engine);
    model->be->ops = device.usual;
}

static void *call(void *user) {
    const lv_message message = {"user", "Tell me a story.", NULL, 0};
    lv_answer answer = {0};
    const lv_status status =
        lv_engine_answer(user, &message, 1, &(lv_params){.max_tokens = 1500, .ignore_eos = true},
                         NULL, NULL, &answer);
    pthread_mutex_lock(&outcome_lock); // CHECK counts
    CHECK(status == LV_ECANCELLED || (status == LV_OK && answer.finish == LV_FINISH_CANCELLED),
          "%s, %s", lv_status_name(status), lv_finish_name(answer.finish));
    pthread_mutex_unlock(&outcome_lock);
    lv_answer_free(&answer);
    return NULL;
}

// Closing waits for those who wait for an answer, or for room to ask.
static void test_closing_under_callers(void) {
    enum { N = 6 };
    for (int round = 0; round < 3; round++) {
        pthread_t threads[N];
        lv_engine *engine =
            open_engine(model, &(lv_engine_options){.max_sequences = 2, .queue_length = 1});
        for (int i = 0; i < N; i++) {
            CHECK(pthread_create(&threads[i], NULL, call, engine) == 0);
        }
        while (stats_of(engine).n_running < 2) {
            usleep(1000);
        }
        usleep(50000); // the others wait for room
        lv_engine_close(engine);
        for (int i = 0; i < N; i++) {
            pthread_join(threads[i], NULL);
        }
    }
}

static void test_options(void) {
    lv_engine *engine;
    CHECK_STATUS(lv_engine_open(model, &(lv_engine_options){.kv_dtype = (lv_dtype)99}, &engine),
                 LV_EINVAL);
}

int main(void) {
    scratch_open();
    for (int ahead = IS_SANITIZED; ahead < 2; ahead++) {
        model = open_model(0, ahead);
        if (!model) {
            break;
        }
        test_in_step(8, false, false);
        test_in_step(12, true, true);
        test_full_session();
        test_picture_among_prompts();
        test_dump_that_fails();
        test_leaving_a_slow_source();
        test_device_that_fails();
        test_closing_under_callers();
        test_options();
        lv_model_free(model);
    }
    return check_done();
}
