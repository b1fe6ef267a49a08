// The decoder's stages: reading a prompt, and answering token by token, alone or together.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/bench/bench.h"

#define N_WARM_UP 4                           // steps; a graph is recorded at the second
#define ROOM_FOR_WORK_BYTES ((size_t)3 << 30) // that a full GPU leaves to context and work space

// --- operations ---------------------------------------------------------------------------------

// Of the linears for one token, without the head.
static double token_flops(const lv_text_config *c) {
    double q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    return 2.0 * c->n_layers *
           (c->d_model * (q + 2 * kv) + q * c->d_model + 3.0 * c->d_model * c->d_ff);
}

double bench_prefill_flops(const lv_text_config *c, int n) {
    return token_flops(c) * n + 2.0 * c->n_layers * c->n_heads * c->head_dim * n * (double)n;
}

// --- prefill ------------------------------------------------------------------------------------

// Feeds n tokens to the sequence; logits of the last one.
static lv_status feed(bench *b, lv_cache *cache, lv_sequence *sequence, int n, float **out_logits) {
    const int most = lv_llm_max_tokens(b->llm), vocab = b->config->text.vocab_size;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    lv_status status = ids ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    for (int i = 0; ids && i < n; i++) {
        ids[i] = (int32_t)((int64_t)i * 7919 % vocab);
    }
    for (int done = 0; done < n && status == LV_OK; done += most) {
        const int now = n - done < most ? n - done : most;
        const lv_chunk piece = {sequence, ids + done, NULL, now, done + now == n};
        status = lv_llm_forward(b->llm, cache, &piece, 1, out_logits);
    }
    free(ids);
    return status;
}

// Speeds of a decoder whose numbers have run away say nothing.
static lv_status check_logits(bench *b, const float *logits) {
    const size_t n = (size_t)b->config->text.vocab_size;
    float *host = malloc(n * sizeof *host);
    if (!host) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    lv_status status = b->be->ops->download(b->be, host, logits, n * sizeof *host);
    bool differ = false;
    for (size_t i = 0; i < n && status == LV_OK; i++) {
        differ |= host[i] != host[0];
        if (!isfinite(host[i])) {
            status = lv_fail(LV_EFORMAT, "logit %zu after the prefill is %g", i, (double)host[i]);
        }
    }
    free(host);
    return status == LV_OK && !differ ? lv_fail(LV_EFORMAT, "all logits are the same") : status;
}

static lv_status prefill_tokens(bench *b, lv_cache *cache, int n) {
    const int n_runs = b->be->is_gpu ? 5 : 2;
    double seconds[5];
    lv_sequence sequence;
    float *logits = NULL;
    LV_TRY(lv_sequence_open(b->llm, n, NULL, &sequence));
    lv_status status = LV_OK;
    for (int run = -1; run < n_runs && status == LV_OK; run++) {
        lv_sequence_truncate(cache, &sequence, 0);
        const double start = bench_now();
        status = feed(b, cache, &sequence, n, &logits);
        status = status == LV_OK ? b->be->ops->sync(b->be) : status;
        if (run >= 0) {
            seconds[run] = bench_now() - start;
        }
    }
    status = status == LV_OK ? check_logits(b, logits) : status;
    if (status == LV_OK) {
        bench_row *row =
            bench_add_row(b, "prefill", bench_median(seconds, n_runs), n, "tok/s", "%d tokens", n);
        row->flops = bench_prefill_flops(&b->config->text, n);
        row->memory_bytes = bench_used_bytes(b);
    }
    lv_sequence_close(cache, &sequence);
    return status;
}

lv_status bench_run_prefill(bench *b) {
    const bench_list *prompts = &b->options->prompts;
    lv_cache *cache = NULL;
    int longest = 0;
    for (int i = 0; i < prompts->n; i++) {
        longest = prompts->values[i] > longest ? prompts->values[i] : longest;
    }
    LV_TRY(
        lv_cache_create(b->llm, lv_kv_blocks(longest), (lv_dtype)b->options->kv.values[0], &cache));
    lv_status status = LV_OK;
    for (int i = 0; i < prompts->n && status == LV_OK; i++) {
        status = prefill_tokens(b, cache, prompts->values[i]);
    }
    lv_cache_free(cache);
    return status;
}

// --- a group of sequences -----------------------------------------------------------------------

lv_status bench_group_open(bench *b, lv_cache *cache, int n, int limit, bench_group *out) {
    *out = (bench_group){.b = b, .cache = cache};
    const size_t count = (size_t)n;
    out->sequences = calloc(count, sizeof *out->sequences);
    out->chunks = calloc(count, sizeof *out->chunks);
    out->tokens = calloc(count, sizeof *out->tokens);
    out->ids = calloc(count, sizeof *out->ids);
    out->greedy = calloc(count, sizeof *out->greedy);
    if (!out->sequences || !out->chunks || !out->tokens || !out->ids || !out->greedy) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    for (; out->n < n; out->n++) {
        LV_TRY(lv_sequence_open(b->llm, limit, NULL, &out->sequences[out->n]));
    }
    return LV_OK;
}

void bench_group_close(bench_group *group) {
    for (int i = 0; i < group->n; i++) {
        lv_sequence_close(group->cache, &group->sequences[i]);
    }
    free(group->sequences);
    free(group->chunks);
    free(group->tokens);
    free(group->ids);
    free(group->greedy);
}

// Runs a pass over one token a sequence: the known one, or the one that is being drawn.
static lv_status feed_group(bench_group *group, bool known) {
    for (int i = 0; i < group->n; i++) {
        group->ids[i] = known ? group->tokens[i] : -1 - i;
        group->chunks[i] = (lv_chunk){&group->sequences[i], &group->ids[i], NULL, 1, true};
    }
    return lv_llm_forward(group->b->llm, group->cache, group->chunks, group->n, &group->logits);
}

lv_status bench_group_step(bench_group *group) {
    lv_backend *be = group->b->be;
    LV_TRY(be->ops->sample(be, group->logits, group->n, group->b->config->text.vocab_size,
                           group->greedy, NULL, NULL));
    if (be->runs_ahead) {
        LV_TRY(feed_group(group, false));
        return be->ops->collect(be, group->tokens, NULL);
    }
    LV_TRY(be->ops->collect(be, group->tokens, NULL));
    return feed_group(group, true);
}

// --- decode -------------------------------------------------------------------------------------

// Keys and values of real passes in every block, so that no timing hangs on what the memory held
// before: prompts of one pass each, forgotten again.
static lv_status fill_cache(bench *b, lv_cache *cache, int n_blocks) {
    const int most = lv_llm_max_tokens(b->llm) / LV_KV_BLOCK;
    const int n = (n_blocks + most - 1) / most;
    lv_sequence *sequences = calloc((size_t)n, sizeof *sequences);
    lv_status status = sequences ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    int n_open = 0;
    while (n_open < n && status == LV_OK) {
        const int left = n_blocks - n_open * most;
        const int n_tokens = (left < most ? left : most) * LV_KV_BLOCK;
        float *logits;
        status = lv_sequence_open(b->llm, n_tokens, NULL, &sequences[n_open]);
        if (status == LV_OK) {
            status = feed(b, cache, &sequences[n_open++], n_tokens, &logits);
        }
    }
    for (int i = 0; i < n_open; i++) {
        lv_sequence_close(cache, &sequences[i]);
    }
    free(sequences);
    return status;
}

static int tokens_needed(const bench *b, int context) {
    return context + 1 + N_WARM_UP + b->options->n_decode + 1;
}

static size_t blocks_needed(const bench *b, int batch, int context) {
    return (size_t)batch * (size_t)lv_kv_blocks(tokens_needed(b, context));
}

// Seconds of each of n_decode steps of `batch` sequences with `context` tokens each.
static lv_status time_steps(bench *b, lv_cache *cache, int batch, int context, double *seconds) {
    bench_group group;
    lv_status status;
    LV_TRY_DONE(bench_group_open(b, cache, batch, tokens_needed(b, context), &group));
    for (int i = 0; i < batch; i++) {
        // The next pass takes blocks for them; fill_cache has put something there.
        group.sequences[i].length = context;
        group.tokens[i] = i * 37 % b->config->text.vocab_size;
    }
    LV_TRY_DONE(feed_group(&group, true));
    for (int step = -N_WARM_UP; step < b->options->n_decode; step++) {
        const double start = bench_now();
        LV_TRY_DONE(bench_group_step(&group));
        if (step >= 0) {
            seconds[step] = bench_now() - start;
        }
    }
    status = b->be->ops->sync(b->be);
done:
    bench_group_close(&group);
    return status;
}

static lv_status decode_at(bench *b, lv_cache *cache, double used, lv_dtype kv, int batch,
                           int context, double *seconds) {
    const int n = b->options->n_decode;
    const double block_bytes = (double)lv_cache_block_bytes(b->llm, kv);
    LV_TRY(time_steps(b, cache, batch, context, seconds));
    bench_row *row =
        bench_add_row(b, "decode", bench_median(seconds, n), batch, "tok/s",
                      "batch %d, context %d, %s KV", batch, context, bench_kv_name(kv));
    row->bytes = (double)b->report->weight_bytes +
                 block_bytes / LV_KV_BLOCK * (context + N_WARM_UP + 0.5 * n) * batch;
    row->flops = token_flops(&b->config->text) * batch;
    row->memory_bytes =
        used > 0 ? used + block_bytes * (double)blocks_needed(b, batch, context) : 0;
    return LV_OK;
}

// Most blocks of a cache that this device holds beside what is on it.
static size_t most_blocks(bench *b, lv_dtype kv) {
    lv_memory m;
    if (b->be->ops->memory(b->be, &m) != LV_OK) {
        return 0;
    }
    // A GPU's free memory does not count what the backend keeps for its next allocation.
    const size_t taken = m.used_bytes + ROOM_FOR_WORK_BYTES;
    const size_t room =
        b->be->is_gpu ? (m.total_bytes > taken ? m.total_bytes - taken : 0) : m.free_bytes;
    return room / lv_cache_block_bytes(b->llm, kv);
}

static void note_too_large(bench *b, int batch, int context, lv_dtype kv) {
    bench_row *row = bench_add_row(b, "decode", 0, batch, "tok/s", "batch %d, context %d, %s KV",
                                   batch, context, bench_kv_name(kv));
    snprintf(row->note, sizeof row->note, "does not fit: %.1f GB of keys and values",
             (double)blocks_needed(b, batch, context) * (double)lv_cache_block_bytes(b->llm, kv) *
                 1e-9);
}

// Blocks of the largest wanted combination that needs at most `limit`; 0: none does.
static size_t largest_within(const bench *b, size_t limit) {
    const bench_list *contexts = &b->options->contexts, *batches = &b->options->batches;
    size_t most = 0;
    for (int i = 0; i < contexts->n * batches->n; i++) {
        const size_t needed =
            blocks_needed(b, batches->values[i / contexts->n], contexts->values[i % contexts->n]);
        most = needed <= limit && needed > most ? needed : most;
    }
    return most;
}

// All batches and contexts with one cache.
static lv_status decode_with(bench *b, lv_dtype kv, double *seconds) {
    const bench_list *contexts = &b->options->contexts, *batches = &b->options->batches;
    const double used = bench_used_bytes(b);
    size_t n_blocks = largest_within(b, most_blocks(b, kv));
    lv_cache *cache = NULL;
    lv_status status = LV_OK;
    while (n_blocks > 0 && !cache) {
        status = lv_cache_create(b->llm, (int)n_blocks, kv, &cache);
        if (status == LV_ENOMEM) { // others use the device too
            n_blocks = largest_within(b, n_blocks - 1);
            status = LV_OK;
            continue;
        }
        LV_TRY_DONE(status);
        LV_TRY_DONE(fill_cache(b, cache, (int)n_blocks));
    }
    for (int i = 0; i < contexts->n * batches->n; i++) {
        const int batch = batches->values[i / contexts->n];
        const int context = contexts->values[i % contexts->n];
        if (blocks_needed(b, batch, context) > n_blocks) {
            note_too_large(b, batch, context, kv);
        } else {
            LV_TRY_DONE(decode_at(b, cache, used, kv, batch, context, seconds));
        }
    }
done:
    lv_cache_free(cache);
    return status;
}

lv_status bench_run_decode(bench *b) {
    double *seconds = malloc((size_t)b->options->n_decode * sizeof *seconds);
    lv_status status = seconds ? LV_OK : lv_fail(LV_ENOMEM, "out of memory");
    for (int i = 0; i < b->options->kv.n && status == LV_OK; i++) {
        status = decode_with(b, (lv_dtype)b->options->kv.values[i], seconds);
    }
    free(seconds);
    return status;
}
