// llava-bench's parts: what it was asked, synthetic checkpoints, ceilings, the stages, the report.
#ifndef LV_BENCH_H
#define LV_BENCH_H

#include "core/checkpoint.h"
#include "kernels/ops.h"
#include "llm/llm.h"
#include "projector/projector.h"
#include "vision/vision.h"

#define BENCH_MAX_LIST 16

typedef struct bench_list {
    int values[BENCH_MAX_LIST];
    int n; // 0: not given
} bench_list;

typedef enum bench_stage {
    BENCH_CEILINGS = 1,
    BENCH_LOAD = 2,
    BENCH_PREPROCESS = 4,
    BENCH_ENCODE = 8,
    BENCH_PREFILL = 16,
    BENCH_DECODE = 32,
    BENCH_ANSWER = 64
} bench_stage;

typedef struct bench_options {
    const char *synthetic; // shapes by name, random weights; or
    const char *model;     // a real checkpoint
    const char *write_dir; // where the synthetic one is kept; NULL: it is removed
    const char *tokenizer; // a tokenizer.model to put beside it
    bool dense;            // f16 decoder instead of int4
    lv_backend_options backend;
    unsigned stages; // of bench_stage; 0: not given
    bench_list tiles;
    bench_list prompts;  // tokens of a prefill
    bench_list contexts; // tokens in the cache before the first decoded one
    bench_list batches;  // sequences decoded together
    bench_list kv;       // lv_dtype; LV_NONE: the backend's default
    int n_decode;        // tokens decoded; 0: not given
    lv_llm_options llm;
    bool json, help;
} bench_options;

// One line of the report.
typedef struct bench_row {
    const char *name;
    char detail[80];     // "128 tokens", "1 tile"
    double ms;           // median; 0: nothing was timed
    double rate;         // per second, in `unit`
    const char *unit;    // "tok/s", "tiles/s", ...
    double bytes, flops; // of one run; 0: not counted
    double memory_bytes; // on the device, with all that this needs; 0: not known
    char note[120];      // why nothing was timed
} bench_row;

typedef struct bench_ceilings {
    double read_bytes; // a second
    double copied_bytes;
    double flops;
    const char *product; // what was multiplied: "f16 GEMM", "f32 sgemm"
} bench_ceilings;

#define BENCH_MAX_ROWS 256

typedef struct bench_report {
    bench_ceilings ceilings;
    bench_row rows[BENCH_MAX_ROWS];
    int n_rows;
    size_t weight_bytes; // that one decoded token reads
} bench_report;

typedef struct bench {
    const bench_options *options;
    const lv_checkpoint *checkpoint;
    const lv_config *config;
    lv_backend *be;
    lv_vision *vision; // these three NULL until a stage needs them
    lv_projector *projector;
    lv_llm *llm;
    bench_report *report;
} bench;

// --- options.c

// Returns an exit status, or -1 to go on.
int bench_read_options(int argc, char **argv, bench_options *out);
// What was not given: on a GPU the whole list, on a CPU what takes a minute with 7B.
void bench_fill_options(bench_options *options, const lv_config *config, bool is_gpu);

// --- synthetic.c

// Writes a checkpoint folder with random weights of the named shapes: W4 decoder (group 128) or f16
// (`dense`), f16 CLIP; tokenizer.model copied from the file `tokenizer` unless NULL. LV_ENOTFOUND
// lists the names. `dir` must exist.
lv_status bench_write_synthetic(const char *name, bool dense, const char *tokenizer,
                                const char *dir) LV_MUST_CHECK;
void bench_remove_synthetic(const char *dir);

// --- ceilings.c

double bench_now(void); // seconds
// Raises *best (zeroed at first) to what is measured now: the device's own ceilings, or what
// n_threads of this CPU reach.
lv_status bench_measure_ceilings(lv_backend *be, int n_threads, bench_ceilings *best) LV_MUST_CHECK;

// --- stages.c

lv_status bench_run_stages(bench *b) LV_MUST_CHECK;
// A new row, said on standard error as well; seconds 0: nothing was timed.
bench_row *bench_add_row(bench *b, const char *name, double seconds, double count, const char *unit,
                         const char *detail, ...) LV_PRINTF(6, 7);
double bench_median(double *values, int n);      // sorts them
double bench_used_bytes(const bench *b);         // on the device; 0: not known
const char *bench_kv_name(lv_dtype kv);          // "f16"; "default"
lv_status bench_make_picture(uint8_t **out_rgb); // [BENCH_HEIGHT, BENCH_WIDTH, 3]; freed by free
lv_picture_shape bench_shape(const bench *b, int n_tiles); // of a picture with so many tiles

#define BENCH_WIDTH 1024
#define BENCH_HEIGHT 899

// --- decoder.c

lv_status bench_run_prefill(bench *b) LV_MUST_CHECK;
lv_status bench_run_decode(bench *b) LV_MUST_CHECK;
double bench_prefill_flops(const lv_text_config *c, int n_tokens);

// Sequences that decode together, as the product does it: where the backend runs ahead, the next
// pass is begun before the host knows the tokens it starts from.
typedef struct bench_group {
    bench *b;
    lv_cache *cache;
    lv_sequence *sequences; // [n]
    int n;
    lv_chunk *chunks;      // [n]
    int32_t *tokens, *ids; // [n] the last ones known; what the next pass is given
    lv_sampling *greedy;   // [n]
    float *logits;         // of the pass before
} bench_group;

lv_status bench_group_open(bench *b, lv_cache *cache, int n, int limit, bench_group *out);
void bench_group_close(bench_group *group); // also after a failed open
// One token for each sequence, from group->logits.
lv_status bench_group_step(bench_group *group);

// --- answer.c

lv_status bench_run_answer(bench *b) LV_MUST_CHECK; // a picture to its description

// --- report.c

void bench_print(const bench *b);

#endif
