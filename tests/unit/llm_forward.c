// The decoder on tiny random checkpoints that the test writes: however the tokens are fed, the
// logits are the same; refusals change nothing.
#include "tests/check.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/files.h"
#include "llm/llm.h"

#define VOCAB 301
#define D_MODEL 128
#define D_FF 256
#define N_LAYERS 2
#define TOLERANCE 1e-5 // norm of the difference over the norm, f32

typedef struct variant {
    int n_heads, n_kv_heads, head_dim, window;
    bool tied, biased;
} variant;

// --- a checkpoint -------------------------------------------------------------------------------

static char folder[] = "/tmp/lv_forward_XXXXXX";
static uint64_t random_state = 11;

static float next_random(void) { // uniform in -1 .. 1
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(random_state >> 32) / 2147483648.0f;
}

typedef struct writer {
    lv_buffer header, data;
} writer;

static void add(writer *w, float scale, float offset, int rows, int columns, const char *name) {
    char entry[512], shape[64];
    size_t start = w->data.n_bytes;
    snprintf(shape, sizeof shape, columns ? "%d,%d" : "%d", rows, columns);
    int n = rows * (columns ? columns : 1);
    for (int i = 0; i < n; i++) {
        float value = offset + scale * next_random();
        CHECK_OK(lv_buffer_append(&w->data, &value, sizeof value));
    }
    snprintf(entry, sizeof entry,
             "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
             w->header.n_bytes > 1 ? "," : "", name, shape, start, w->data.n_bytes);
    CHECK_OK(lv_buffer_append(&w->header, entry, strlen(entry)));
}

static void add_layer(writer *w, const variant *v, int layer) {
    const struct {
        const char *name;
        int rows, columns;
    } linears[] = {{"self_attn.q_proj", v->n_heads * v->head_dim, D_MODEL},
                   {"self_attn.k_proj", v->n_kv_heads * v->head_dim, D_MODEL},
                   {"self_attn.v_proj", v->n_kv_heads * v->head_dim, D_MODEL},
                   {"self_attn.o_proj", D_MODEL, v->n_heads * v->head_dim},
                   {"mlp.gate_proj", D_FF, D_MODEL},
                   {"mlp.up_proj", D_FF, D_MODEL},
                   {"mlp.down_proj", D_MODEL, D_FF}};
    char name[128];
    for (int i = 0; i < 7; i++) {
        snprintf(name, sizeof name, "language_model.model.layers.%d.%s.weight", layer,
                 linears[i].name);
        add(w, 1.7f / sqrtf((float)linears[i].columns), 0, linears[i].rows, linears[i].columns,
            name);
        if (v->biased && i < 3) {
            snprintf(name, sizeof name, "language_model.model.layers.%d.%s.bias", layer,
                     linears[i].name);
            add(w, 0.5f, 0, linears[i].rows, 0, name);
        }
    }
    snprintf(name, sizeof name, "language_model.model.layers.%d.input_layernorm.weight", layer);
    add(w, 0.3f, 1, D_MODEL, 0, name);
    snprintf(name, sizeof name, "language_model.model.layers.%d.post_attention_layernorm.weight",
             layer);
    add(w, 0.3f, 1, D_MODEL, 0, name);
}

static void write_config(const variant *v) {
    char text[2048], path[256], window[64] = "";
    if (v->window) {
        snprintf(window, sizeof window, "\"sliding_window\": %d,", v->window);
    }
    snprintf(text, sizeof text,
             "{\"model_type\": \"llava\", \"image_token_index\": 300,"
             " \"tie_word_embeddings\": %s,"
             " \"text_config\": {\"model_type\": \"%s\", \"vocab_size\": %d, \"hidden_size\": %d,"
             " \"intermediate_size\": %d, \"num_hidden_layers\": %d, \"num_attention_heads\": %d,"
             " \"num_key_value_heads\": %d, \"head_dim\": %d, %s"
             " \"max_position_embeddings\": 1024, \"rms_norm_eps\": 1e-5,"
             " \"tie_word_embeddings\": %s},"
             " \"vision_config\": {\"hidden_size\": 64, \"intermediate_size\": 128, \"image_size\":"
             " 28, \"patch_size\": 14, \"num_hidden_layers\": 2, \"num_attention_heads\": 2}}",
             v->tied ? "true" : "false", v->window ? "mistral" : "llama", VOCAB, D_MODEL, D_FF,
             N_LAYERS, v->n_heads, v->n_kv_heads, v->head_dim, window, v->tied ? "true" : "false");
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK_OK(lv_file_write_atomic(path, text, strlen(text)));
}

static void write_checkpoint(const variant *v) {
    writer w = {.header = {.max_bytes = 1 << 16}, .data = {.max_bytes = 1 << 26}};
    char path[256];
    write_config(v);
    CHECK_OK(lv_buffer_append(&w.header, "{", 1));
    add(&w, 1, 0, VOCAB, D_MODEL, "language_model.model.embed_tokens.weight");
    for (int i = 0; i < N_LAYERS; i++) {
        add_layer(&w, v, i);
    }
    add(&w, 0.3f, 1, D_MODEL, 0, "language_model.model.norm.weight");
    if (!v->tied) {
        add(&w, 0.2f, 0, VOCAB, D_MODEL, "language_model.lm_head.weight");
    }
    CHECK_OK(lv_buffer_append(&w.header, "}", 1));
    lv_buffer file = {.max_bytes = 1 << 27};
    uint64_t n_header = w.header.n_bytes;
    CHECK_OK(lv_buffer_append(&file, &n_header, sizeof n_header));
    CHECK_OK(lv_buffer_append(&file, w.header.data, w.header.n_bytes));
    CHECK_OK(lv_buffer_append(&file, w.data.data, w.data.n_bytes));
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    CHECK_OK(lv_file_write_atomic(path, file.data, file.n_bytes));
    lv_buffer_free(&w.header);
    lv_buffer_free(&w.data);
    lv_buffer_free(&file);
}

// --- feeding ------------------------------------------------------------------------------------

static lv_backend *be;
static lv_llm *llm;
static lv_cache *cache;
static int32_t tokens[1000];

static lv_sequence open_sequence(void) {
    lv_sequence s = {0};
    CHECK_OK(lv_sequence_open(llm, 1024, NULL, &s));
    return s;
}

// Feeds n ids; logits, where not NULL, gets those of the last.
static void feed(lv_sequence *s, const int32_t *ids, int n, float *logits) {
    float *dev;
    const lv_chunk chunk = {.sequence = s, .ids = ids, .n = n, .want_logits = logits != NULL};
    CHECK_OK(lv_llm_forward(llm, cache, &chunk, 1, &dev));
    if (logits) {
        CHECK_OK(be->ops->download(be, logits, dev, VOCAB * sizeof(float)));
    }
}

static void check_same(const char *what, const float *got, const float *want) {
    double difference = 0, norm = 0;
    for (int i = 0; i < VOCAB; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    CHECK(norm > 0 && sqrt(difference / norm) <= TOLERANCE, "%s: relative error %.2e", what,
          sqrt(difference / norm));
}

static void check_differ(const char *what, const float *got, const float *want) {
    CHECK(memcmp(got, want, VOCAB * sizeof *got) != 0, "%s: equal", what);
}

// 150 tokens cross two block edges; 700 are more than one pass takes on the CPU.
static void test_feeding(int n) {
    static const int cuts[] = {1, 63, 1, 2, 30, 7, 1000};
    float want[VOCAB], got[VOCAB];
    lv_sequence s = open_sequence();
    feed(&s, tokens, n, want);
    CHECK(s.length == n && s.n_blocks == (n + 63) / 64, "%d tokens, %d blocks", s.length,
          s.n_blocks);
    lv_sequence_close(cache, &s);

    s = open_sequence();
    for (int i = 0; i < n; i++) {
        feed(&s, tokens + i, 1, i == n - 1 ? got : NULL);
    }
    check_same("token by token", got, want);
    lv_sequence_close(cache, &s);

    lv_chunk chunks[8];
    int n_chunks = 0;
    s = open_sequence();
    for (int i = 0; i < n; n_chunks++) {
        int m = cuts[n_chunks] < n - i ? cuts[n_chunks] : n - i;
        chunks[n_chunks] = (lv_chunk){.sequence = &s, .ids = tokens + i, .n = m};
        i += m;
    }
    chunks[n_chunks - 1].want_logits = true;
    float *dev;
    CHECK_OK(lv_llm_forward(llm, cache, chunks, n_chunks, &dev));
    CHECK_OK(be->ops->download(be, got, dev, sizeof got));
    check_same("in chunks of one call", got, want);
    lv_sequence_close(cache, &s);

    s = open_sequence();
    for (int i = 0; i < n_chunks; i++) {
        feed(&s, chunks[i].ids, chunks[i].n, i == n_chunks - 1 ? got : NULL);
    }
    check_same("in several calls", got, want);
    lv_sequence_close(cache, &s);
}

// Embeddings of ids 20 .. 119 in place of the ids, text on both sides.
static void test_embeddings(lv_checkpoint *checkpoint) {
    float want[VOCAB], got[VOCAB], *host = malloc((size_t)100 * D_MODEL * sizeof *host), *dev;
    void *embeddings = NULL;
    lv_tensor table;
    const int64_t dims[] = {VOCAB, D_MODEL};
    CHECK_OK(
        lv_checkpoint_tensor(checkpoint, "language_model.embed_tokens.weight", 2, dims, &table));
    for (int i = 0; i < 100; i++) {
        size_t row = (size_t)tokens[20 + i] * D_MODEL * sizeof(float);
        memcpy(host + i * D_MODEL, (const char *)table.data + row, D_MODEL * sizeof *host);
    }
    size_t n_bytes = (size_t)100 * D_MODEL * lv_dtype_bytes(be->act);
    CHECK_OK(be->ops->alloc(be, n_bytes, &embeddings));
    CHECK_OK(be->ops->upload_act(be, embeddings, host, (size_t)100 * D_MODEL));
    lv_sequence s = open_sequence();
    feed(&s, tokens, 140, want);
    lv_sequence_close(cache, &s);
    s = open_sequence();
    feed(&s, tokens + 500, 200, got); // leaves other ids in the work space
    lv_sequence_close(cache, &s);
    s = open_sequence();
    const lv_chunk chunks[] = {
        {.sequence = &s, .ids = tokens, .n = 20},
        {.sequence = &s, .embeddings = embeddings, .n = 60},
        {.sequence = &s, .embeddings = (char *)embeddings + n_bytes / 100 * 60, .n = 40},
        {.sequence = &s, .ids = tokens + 120, .n = 20, .want_logits = true}};
    CHECK_OK(lv_llm_forward(llm, cache, chunks, 4, &dev));
    CHECK_OK(be->ops->download(be, got, dev, sizeof got));
    check_same("text, embeddings, text", got, want);
    lv_sequence_close(cache, &s);
    be->ops->free(be, embeddings);
    free(host);
}

// Sequences of different lengths together, some starting, some going on.
static void test_batch(void) {
    enum { N = 5 };
    static const int first[N] = {1, 100, 64, 0, 30}, then[N] = {1, 3, 1, 70, 40};
    float want[N][VOCAB], got[N][VOCAB], *dev;
    lv_sequence s[N];
    lv_chunk chunks[N];
    for (int i = 0; i < N; i++) {
        s[i] = open_sequence();
        feed(&s[i], tokens + 50 * i, first[i] + then[i], want[i]);
        lv_sequence_close(cache, &s[i]);
    }
    for (int i = 0; i < N; i++) {
        s[i] = open_sequence();
        if (first[i]) {
            feed(&s[i], tokens + 50 * i, first[i], NULL);
        }
        chunks[i] = (lv_chunk){.sequence = &s[i],
                               .ids = tokens + 50 * i + first[i],
                               .n = then[i],
                               .want_logits = i != 3};
    }
    CHECK_OK(lv_llm_forward(llm, cache, chunks, N, &dev));
    CHECK_OK(be->ops->download(be, got, dev, (N - 1) * sizeof *got));
    for (int i = 0, row = 0; i < N; i++) {
        if (chunks[i].want_logits) {
            check_same("in a batch", got[row++], want[i]);
        }
        lv_sequence_close(cache, &s[i]);
    }
}

// Logits from the middle of a call that takes two passes, and from its end.
static void test_rows(void) {
    float middle[VOCAB], end[VOCAB], got[2][VOCAB], *dev;
    lv_sequence s = open_sequence();
    feed(&s, tokens, 300, middle);
    feed(&s, tokens + 300, 400, end);
    lv_sequence_close(cache, &s);
    s = open_sequence();
    const lv_chunk chunks[] = {
        {.sequence = &s, .ids = tokens, .n = 300, .want_logits = true},
        {.sequence = &s, .ids = tokens + 300, .n = 400, .want_logits = true}};
    CHECK_OK(lv_llm_forward(llm, cache, chunks, 2, &dev));
    CHECK_OK(be->ops->download(be, got, dev, sizeof got));
    check_same("the middle", got[0], middle);
    check_same("the end", got[1], end);
    lv_sequence_close(cache, &s);
}

static void test_truncate(void) {
    float want[VOCAB], got[VOCAB], other[VOCAB];
    lv_sequence s = open_sequence();
    feed(&s, tokens, 150, other);
    lv_sequence_truncate(cache, &s, 500); // longer than it is: nothing
    CHECK(s.length == 150 && s.n_blocks == 3, "%d tokens, %d blocks", s.length, s.n_blocks);
    lv_sequence_truncate(cache, &s, 70);
    CHECK(s.length == 70 && s.n_blocks == 2, "%d tokens, %d blocks", s.length, s.n_blocks);
    feed(&s, tokens + 200, 90, got);
    lv_sequence_close(cache, &s);
    s = open_sequence();
    feed(&s, tokens, 70, NULL);
    feed(&s, tokens + 200, 90, want);
    check_same("truncated and continued", got, want);
    check_differ("other tokens", got, other);
    lv_sequence_truncate(cache, &s, 0);
    feed(&s, tokens, 150, got);
    check_same("truncated to nothing", got, other);
    lv_sequence_close(cache, &s);
}

// --- refusals -----------------------------------------------------------------------------------

static void check_refused(lv_status want, const lv_chunk *chunks, int n) {
    int n_free = lv_cache_free_blocks(cache), length = chunks[0].sequence->length;
    float *dev;
    CHECK_STATUS(lv_llm_forward(llm, cache, chunks, n, &dev), want);
    CHECK(lv_cache_free_blocks(cache) == n_free && chunks[0].sequence->length == length,
          "%d blocks free of %d, %d tokens of %d", lv_cache_free_blocks(cache), n_free,
          chunks[0].sequence->length, length);
}

static lv_status fail_attention(lv_backend *backend, const lv_batch *batch,
                                const lv_attention_shape *shape, const void *q, const lv_kv *kv,
                                int layer, void *out) {
    (void)backend, (void)batch, (void)shape, (void)q, (void)kv, (void)out;
    return layer == 0 ? LV_OK : lv_fail(LV_EDEVICE, "attention refused");
}

static void test_refusals(void) {
    const int32_t outside[] = {1, VOCAB}, negative[] = {-200};
    float want[VOCAB], got[VOCAB];
    lv_sequence a = open_sequence(), b = open_sequence(), small = {0};
    feed(&a, tokens, 100, NULL);
    check_refused(LV_EINVAL, (lv_chunk[]){{.sequence = &a, .ids = outside, .n = 2}}, 1);
    check_refused(LV_EINVAL, (lv_chunk[]){{.sequence = &a, .ids = negative, .n = 1}}, 1);
    check_refused(LV_EINVAL, (lv_chunk[]){{.sequence = &a, .ids = tokens, .n = 0}}, 1);
    check_refused(LV_EINVAL, (lv_chunk[]){{.sequence = &a, .n = 1}}, 1);
    check_refused(LV_EINVAL,
                  (lv_chunk[]){{.sequence = &a, .ids = tokens, .n = 1},
                               {.sequence = &b, .ids = tokens, .n = 1},
                               {.sequence = &a, .ids = tokens, .n = 1}},
                  3);
    // The second sequence is refused after the first has got its blocks.
    CHECK_OK(lv_sequence_open(llm, 10, NULL, &small));
    check_refused(LV_ELIMIT,
                  (lv_chunk[]){{.sequence = &a, .ids = tokens, .n = 500},
                               {.sequence = &small, .ids = tokens, .n = 11}},
                  2);
    CHECK(strstr(lv_error(), "11 tokens; its limit is 10"), "%s", lv_error());
    // The backend fails in the second layer of the second pass.
    const lv_ops *whole = be->ops;
    lv_ops broken = *whole;
    broken.attention = fail_attention;
    be->ops = &broken;
    check_refused(LV_EDEVICE,
                  (lv_chunk[]){{.sequence = &a, .ids = tokens, .n = 900},
                               {.sequence = &b, .ids = tokens, .n = 70}},
                  2);
    be->ops = whole;
    CHECK(b.length == 0 && b.n_blocks == 0, "%d tokens, %d blocks", b.length, b.n_blocks);
    feed(&a, tokens + 100, 50, got);
    feed(&b, tokens, 150, want);
    check_same("after refusals", got, want);
    lv_sequence_close(cache, &a);
    lv_sequence_close(cache, &b);
    lv_sequence_close(cache, &small);
    CHECK_STATUS(lv_sequence_open(llm, 0, NULL, &a), LV_EINVAL);
}

static void test_full_cache(void) {
    lv_cache *kept = cache;
    lv_sequence a = open_sequence(), b = open_sequence();
    CHECK_STATUS(lv_cache_create(llm, 0, LV_F32, &cache), LV_EINVAL);
    CHECK_OK(lv_cache_create(llm, 3, LV_F32, &cache));
    CHECK(lv_cache_block_bytes(llm, LV_F32) > 0, "no bytes");
    feed(&a, tokens, 100, NULL);
    CHECK(lv_cache_free_blocks(cache) == 1, "%d free", lv_cache_free_blocks(cache));
    check_refused(LV_ELIMIT, (lv_chunk[]){{.sequence = &a, .ids = tokens, .n = 93}}, 1);
    check_refused(LV_ELIMIT,
                  (lv_chunk[]){{.sequence = &a, .ids = tokens, .n = 92},
                               {.sequence = &b, .ids = tokens, .n = 1}},
                  2);
    feed(&b, tokens, 64, NULL);
    check_refused(LV_ELIMIT, (lv_chunk[]){{.sequence = &b, .ids = tokens, .n = 1}}, 1);
    lv_sequence_close(cache, &a);
    feed(&b, tokens, 65, NULL);
    CHECK(lv_cache_free_blocks(cache) == 0, "%d free", lv_cache_free_blocks(cache));
    lv_sequence_close(cache, &b);
    CHECK(lv_cache_free_blocks(cache) == 3, "%d free", lv_cache_free_blocks(cache));
    lv_cache_free(cache);
    cache = kept;
}

// A decode step takes no memory of the backend's.
static int n_allocations;
static lv_status count_allocation(lv_backend *backend, size_t n_bytes, void **out) {
    (void)backend, (void)n_bytes, (void)out;
    n_allocations++;
    return lv_fail(LV_ENOMEM, "counted");
}

static void test_no_allocation(void) {
    float logits[VOCAB];
    lv_sequence s = open_sequence();
    const lv_ops *whole = be->ops;
    lv_ops counting = *whole;
    counting.alloc = count_allocation;
    be->ops = &counting;
    for (int i = 0; i < 130; i++) {
        feed(&s, tokens + i, 1, logits);
    }
    be->ops = whole;
    CHECK(n_allocations == 0, "%d allocations", n_allocations);
    lv_sequence_close(cache, &s);
}

// --- variants -----------------------------------------------------------------------------------

static void run(const variant *v, bool reference) {
    const lv_backend_options options = {.device = "cpu", .n_threads = 2, .reference = reference};
    lv_checkpoint *checkpoint = NULL;
    printf("%d heads over %d of %d%s%s%s, %s\n", v->n_heads, v->n_kv_heads, v->head_dim,
           v->tied ? ", tied" : "", v->biased ? ", biases" : "", v->window ? ", window" : "",
           reference ? "reference" : "fast");
    write_checkpoint(v);
    CHECK_OK(lv_checkpoint_open(folder, NULL, &checkpoint));
    CHECK_OK(lv_backend_open(&options, &be));
    CHECK_OK(lv_llm_load(checkpoint, be, NULL, &llm));
    CHECK_OK(lv_cache_create(llm, 64, LV_F32, &cache));
    if (check_n_failed) {
        return;
    }
    size_t n_linear = (size_t)(2 * v->n_heads + 2 * v->n_kv_heads) * (size_t)v->head_dim * D_MODEL +
                      3 * D_FF * D_MODEL;
    size_t n_weights = N_LAYERS * n_linear + VOCAB * D_MODEL;
    CHECK(lv_llm_bytes_per_token(llm) >= 2 * n_weights &&
              lv_llm_bytes_per_token(llm) < 5 * n_weights,
          "%zu bytes a token", lv_llm_bytes_per_token(llm));
    CHECK(lv_llm_max_tokens(llm) >= 64, "%d", lv_llm_max_tokens(llm));
    test_feeding(150);
    test_embeddings(checkpoint);
    test_batch();
    test_truncate();
    test_refusals();
    test_full_cache();
    test_no_allocation();
    if (!reference) {
        test_feeding(700);
        test_rows();
    }
    CHECK(lv_cache_free_blocks(cache) == 64, "%d blocks free", lv_cache_free_blocks(cache));
    lv_cache_free(cache);
    lv_llm_free(llm);
    lv_backend_close(be);
    lv_checkpoint_free(checkpoint);
}

// A checkpoint that lacks a tensor names it.
static void test_missing(void) {
    const variant v = {.n_heads = 2, .n_kv_heads = 2, .head_dim = 64, .tied = true};
    variant untied = v;
    lv_checkpoint *checkpoint = NULL;
    write_checkpoint(&v);
    untied.tied = false;
    write_config(&untied);
    const lv_backend_options options = {.device = "cpu"};
    CHECK_OK(lv_checkpoint_open(folder, NULL, &checkpoint));
    CHECK_OK(lv_backend_open(&options, &be));
    lv_status status = lv_llm_load(checkpoint, be, NULL, &llm);
    CHECK(status == LV_ENOTFOUND && !llm && strstr(lv_error(), "lm_head"), "%s: %s",
          lv_status_name(status), lv_error());
    lv_backend_close(be);
    lv_checkpoint_free(checkpoint);
}

int main(void) {
    static const variant variants[] = {
        {.n_heads = 4, .n_kv_heads = 2, .head_dim = 32, .biased = true},
        {.n_heads = 2, .n_kv_heads = 2, .head_dim = 64, .tied = true},
        {.n_heads = 3, .n_kv_heads = 1, .head_dim = 64, .window = 40},
    };
    char path[256];
    CHECK(mkdtemp(folder), "no temporary folder");
    for (int i = 0; i < 1000; i++) {
        tokens[i] = (i * 7919 + i * i * 31) % VOCAB;
    }
    for (size_t i = 0; i < sizeof variants / sizeof *variants && !check_n_failed; i++) {
        run(&variants[i], false);
    }
    run(&variants[0], true);
    test_missing();
    snprintf(path, sizeof path, "%s/config.json", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    rmdir(folder);
    return check_done();
}
