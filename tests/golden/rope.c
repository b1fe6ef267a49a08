// Logits beyond the trained length, for each way of scaling the rotary frequencies:
//   golden_rope CASE FOLDER ref|cpu|cuda
#include "golden.h"

#include "llm/llm.h"

#define MAX_POSITIONS 8

// One pass: the sequence cut after each stored position, the logits of every piece's last token.
static void check_logits(const lv_safetensors *golden, lv_llm *llm, lv_backend *be,
                         lv_sequence *sequence, lv_cache *cache, double tolerance) {
    const lv_tensor *want = &lv_safetensors_find(golden, "logits")->tensor;
    int32_t *ids = golden_copy(&lv_safetensors_find(golden, "ids")->tensor);
    int32_t *positions = golden_copy(&lv_safetensors_find(golden, "positions")->tensor);
    float *reference = golden_copy(want);
    const int n = (int)want->dims[0], vocab = (int)want->dims[1];
    lv_chunk chunks[MAX_POSITIONS] = {{0}};
    float *logits, *host = malloc((size_t)n * (size_t)vocab * sizeof *host);
    CHECK(n <= MAX_POSITIONS && vocab == lv_llm_config(llm)->vocab_size, "%d x %d logits", n,
          vocab);
    for (int i = 0, start = 0; i < n; i++) {
        chunks[i] = (lv_chunk){.sequence = sequence,
                               .ids = ids + start,
                               .n = positions[i] + 1 - start,
                               .want_logits = true};
        start = positions[i] + 1;
    }
    const lv_status status = lv_llm_forward(llm, cache, chunks, n, &logits);
    CHECK_OK(status);
    if (status == LV_OK) {
        CHECK_OK(be->ops->download(be, host, logits, (size_t)n * (size_t)vocab * sizeof *host));
        for (int i = 0; i < n; i++) {
            const size_t row = (size_t)i * (size_t)vocab;
            const double error = golden_relative(host + row, reference + row, (size_t)vocab);
            CHECK(error <= tolerance, "position %d: relative error %.2e", positions[i], error);
            printf("  logits[%d] %.1e", positions[i], error);
        }
        printf("\n");
    }
    free(host);
    free(reference);
    free(positions);
    free(ids);
}

static lv_status run(const lv_safetensors *golden, const char *folder, const char *backend) {
    const lv_backend_options options = golden_backend(backend);
    lv_checkpoint *checkpoint = NULL;
    lv_backend *be = NULL;
    lv_llm *llm = NULL;
    lv_cache *cache = NULL;
    lv_sequence sequence = {0};
    lv_status status;
    LV_TRY_DONE(lv_checkpoint_open(folder, NULL, &checkpoint));
    LV_TRY_DONE(lv_backend_open(&options, &be));
    LV_TRY_DONE(lv_llm_load(checkpoint, be, NULL, &llm));
    LV_TRY_DONE(lv_cache_create(llm, 8, golden_kv(backend), &cache));
    const int limit = (int)lv_tensor_count(&lv_safetensors_find(golden, "ids")->tensor);
    LV_TRY_DONE(lv_sequence_open(llm, limit, NULL, &sequence));

    const lv_tensor *want = &lv_safetensors_find(golden, "inv_freq")->tensor;
    const double error = golden_error(sequence.inv_freq, (size_t)lv_tensor_count(want), want);
    float scale;
    memcpy(&scale, lv_safetensors_find(golden, "scale")->tensor.data, sizeof scale);
    CHECK(error < 1e-6, "rotary frequencies: relative error %.2e", error);
    CHECK(fabsf(sequence.rope_scale - scale) < 1e-6f, "scale %.7f, the reference's is %.7f",
          (double)sequence.rope_scale, (double)scale);
    printf("frequencies %.1e", error);
    check_logits(golden, llm, be, &sequence, cache, golden_tolerance(backend));
done:
    lv_sequence_close(cache, &sequence);
    lv_cache_free(cache);
    lv_llm_free(llm);
    lv_backend_close(be);
    lv_checkpoint_free(checkpoint);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: golden_rope CASE FOLDER ref|cpu|cuda\n");
        return 2;
    }
    lv_safetensors *golden = golden_open(argv[1]);
    const lv_status status = golden ? run(golden, argv[2], argv[3]) : LV_ENOTFOUND;
    lv_safetensors_free(golden);
    if (status == LV_EDEVICE && golden_is_cuda(argv[3])) {
        return check_skip(lv_error());
    }
    CHECK_OK(status);
    return check_done();
}
