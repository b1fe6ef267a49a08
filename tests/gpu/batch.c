// Greedy answers are the same bits alone, again, and among 2, 8, 32 and 64 sequences, with the demo
// model's decoder; and what runs ahead of the host is what waits for it:
//   test_gpu_batch [GPUS]
#include "llm/llm.h"
#include "tests/gpu/util.h"

#define N_MOST 64
#define MOST_STEPS 20
#define LIMIT 512

typedef struct answer {
    int32_t ids[MOST_STEPS];
    float *logits; // [vocab] of the last step
} answer;

typedef struct machine {
    lv_backend *be;
    lv_llm *llm;
    lv_cache *cache;
    int vocab;
    int n_prompts, n_steps; // of N_MOST, MOST_STEPS
} machine;

// Prompt i: 2 to 170 tokens, so that both families of kernels read some.
static int prompt(const machine *m, int i, int32_t *ids) {
    const int n = 2 + i * 37 % 169;
    for (int k = 0; k < n; k++) {
        ids[k] = (k * 131 + i * 977 + 5) % (m->vocab - 8);
    }
    return n;
}

static void read_prompt(machine *m, int i, lv_sequence *s, int32_t *first) {
    int32_t ids[LIMIT];
    float *logits = NULL;
    const lv_sampling greedy = {0};
    const lv_chunk chunk = {s, ids, NULL, prompt(m, i, ids), true};
    CHECK_OK(lv_llm_forward(m->llm, m->cache, &chunk, 1, &logits));
    CHECK_OK(m->be->ops->sample(m->be, logits, 1, m->vocab, &greedy, first, NULL));
}

// Answers prompts first .. first + n - 1 together. ahead: each step is begun before the host has
// seen the tokens it starts from.
static void generate(machine *m, int first, int n, bool ahead, answer *out) {
    lv_sequence s[N_MOST];
    int32_t last[N_MOST], pending[N_MOST];
    lv_chunk chunks[N_MOST];
    lv_sampling greedy[N_MOST] = {{0}};
    float *logits = NULL;
    for (int i = 0; i < n; i++) {
        CHECK_OK(lv_sequence_open(m->llm, LIMIT, NULL, &s[i]));
        read_prompt(m, first + i, &s[i], &last[i]);
        pending[i] = -1 - i;
    }
    for (int step = 0; step < m->n_steps; step++) {
        for (int i = 0; i < n; i++) {
            out[i].ids[step] = last[i];
            const int32_t *id = ahead && step > 0 ? &pending[i] : &last[i];
            chunks[i] = (lv_chunk){&s[i], id, NULL, 1, true};
        }
        CHECK_OK(lv_llm_forward(m->llm, m->cache, chunks, n, &logits));
        CHECK_OK(m->be->ops->sample(m->be, logits, n, m->vocab, greedy, NULL, NULL));
        CHECK_OK(m->be->ops->collect(m->be, last, NULL));
    }
    const size_t row = (size_t)m->vocab;
    for (int i = 0; i < n; i++) {
        out[i].logits = host_f32(m->be, logits + (size_t)i * row, row);
        lv_sequence_close(m->cache, &s[i]);
    }
}

static void check_same(const machine *m, const answer *got, const answer *want, int n, int prompt0,
                       const char *what) {
    for (int i = 0; i < n; i++) {
        int step = 0;
        while (step < m->n_steps && got[i].ids[step] == want[prompt0 + i].ids[step]) {
            step++;
        }
        CHECK(step == m->n_steps, "%s: prompt %d parts at token %d", what, prompt0 + i, step);
        CHECK(memcmp(got[i].logits, want[prompt0 + i].logits, (size_t)m->vocab * 4) == 0,
              "%s: prompt %d: other bits in its last logits", what, prompt0 + i);
        free(got[i].logits);
    }
}

static void run(machine *m) {
    static const int sizes[] = {2, 8, 32, 64};
    static answer alone[N_MOST], together[N_MOST];
    char what[64];
    for (int i = 0; i < m->n_prompts; i++) {
        generate(m, i, 1, false, &alone[i]);
    }
    const int again = 3 % m->n_prompts, ahead = 5 % m->n_prompts;
    generate(m, again, 1, false, together);
    check_same(m, together, alone, 1, again, "again");
    generate(m, ahead, 1, true, together);
    check_same(m, together, alone, 1, ahead, "ahead of the host");
    for (int k = 0; k < 4; k++) {
        for (int first = 0; first + sizes[k] <= m->n_prompts; first += 32) {
            snprintf(what, sizeof what, "%d together", sizes[k]);
            generate(m, first, sizes[k], k % 2 == 1, together);
            check_same(m, together, alone, sizes[k], first, what);
        }
    }
    for (int i = 0; i < m->n_prompts; i++) {
        free(alone[i].logits);
    }
}

static void run_cache(machine *m, lv_dtype kv) {
    CHECK_OK(lv_cache_create(m->llm, N_MOST * 4, kv, &m->cache));
    run(m);
    lv_cache_free(m->cache);
}

int main(int argc, char **argv) {
    machine m = {
        .be = open_gpus(argc > 1 ? atoi(argv[1]) : 1), .n_prompts = N_MOST, .n_steps = MOST_STEPS};
    if (gpu_small(2)) {
        m.n_prompts = 32;
        m.n_steps = 6;
    }
    if (gpu_small(3)) {
        m.n_prompts = 2;
        m.n_steps = 3;
    }
    lv_checkpoint *checkpoint = NULL;
    char demo[4096];
    snprintf(demo, sizeof demo, "%s/assets/demo-model", check_source());
    CHECK_OK(lv_checkpoint_open(demo, NULL, &checkpoint));
    CHECK_OK(lv_llm_load(checkpoint, m.be, NULL, &m.llm));
    m.vocab = lv_llm_config(m.llm)->vocab_size;
    run_cache(&m, LV_F16);
    run_cache(&m, LV_I8);
    lv_llm_free(m.llm);
    lv_backend_close(m.be);
    lv_checkpoint_free(checkpoint);
    return check_done();
}
