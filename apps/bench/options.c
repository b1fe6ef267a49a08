// llava-bench's command line, and what is run where it does not say.
#include <stdio.h>
#include <string.h>

#include "apps/bench/bench.h"
#include "apps/command_line.h"

// Lets `take` read each item of a comma-separated list.
static lv_status take_list(const option_spec *spec, const char *text, option_take *take,
                           bench_list *out) {
    char item[32];
    out->n = 0;
    for (;;) {
        const size_t n = strcspn(text, ",");
        snprintf(item, sizeof item, "%.*s", (int)n, text);
        if (out->n == BENCH_MAX_LIST) {
            return lv_fail(LV_ELIMIT, "--%s: a list of more than %d values", spec->name,
                           BENCH_MAX_LIST);
        }
        LV_TRY(take(spec, item, &out->values[out->n++]));
        if (!text[n]) {
            return LV_OK;
        }
        text += n + 1;
    }
}

static lv_status take_ints(const option_spec *spec, const char *text, void *field) {
    return take_list(spec, text, take_int, field);
}

static lv_status take_kv(const option_spec *spec, const char *text, void *field) {
    static const struct {
        const char *name;
        lv_dtype type;
    } types[] = {{"f32", LV_F32}, {"f16", LV_F16}, {"i8", LV_I8}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(text, types[i].name) == 0) {
            *(int *)field = types[i].type;
            return LV_OK;
        }
    }
    return lv_fail(LV_EINVAL, "--%s %s: expected f32, f16 or i8", spec->name, text);
}

static lv_status take_kvs(const option_spec *spec, const char *text, void *field) {
    return take_list(spec, text, take_kv, field);
}

static lv_status take_stage(const option_spec *spec, const char *text, void *field) {
    static const struct {
        const char *name;
        bench_stage stage;
    } stages[] = {{"ceilings", BENCH_CEILINGS},     {"load", BENCH_LOAD},
                  {"preprocess", BENCH_PREPROCESS}, {"encode", BENCH_ENCODE},
                  {"prefill", BENCH_PREFILL},       {"decode", BENCH_DECODE},
                  {"answer", BENCH_ANSWER}};
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        if (strcmp(text, stages[i].name) == 0) {
            *(int *)field = stages[i].stage;
            return LV_OK;
        }
    }
    return lv_fail(LV_EINVAL, "--%s %s: llava-bench --help lists them", spec->name, text);
}

static lv_status take_stages(const option_spec *spec, const char *text, void *field) {
    bench_list list;
    LV_TRY(take_list(spec, text, take_stage, &list));
    for (int i = 0; i < list.n; i++) {
        *(unsigned *)field |= (unsigned)list.values[i];
    }
    return LV_OK;
}

#define AT(field) offsetof(bench_options, field)

static const option_spec specs[] = {
    {"Model", 0, "synthetic", "NAME", take_name, AT(synthetic), 0, 0,
     "random weights of real shapes, W4 decoder: llava-1.5-7b,\n"
     "llava-1.6-7b, llava-1.5-13b, llava-1.6-13b,\n"
     "llava-1.6-mistral-7b, demo (written to $TMPDIR, or /tmp, and\n"
     "removed: 4.5 GB for 7B)"},
    {NULL, 0, "dense", NULL, take_flag, AT(dense), 0, 0, "with an f16 decoder (14 GB for 7B)"},
    {NULL, 0, "write", "DIR", take_name, AT(write_dir), 0, 0,
     "keep it in DIR; without --stages nothing is run"},
    {NULL, 0, "tokenizer", "FILE", take_name, AT(tokenizer), 0, 0,
     "copy FILE to DIR/tokenizer.model, for describe --model DIR"},
    {NULL, 'm', "model", "MODEL", take_name, AT(model), 0, 0, "a checkpoint folder or org/name"},
    WEIGHT_OPTIONS(bench_options, llm),
    DEVICE_OPTIONS(bench_options, backend),

    {"Measurements", 0, "stages", "LIST", take_stages, AT(stages), 0, 0,
     "of load, preprocess, encode, prefill, decode, answer, ceilings\n"
     "(default: all on a GPU; on a CPU not answer). Ceilings are\n"
     "measured for every stage that is compared with them"},
    {NULL, 0, "tiles", "LIST", take_ints, AT(tiles), 1, 1024, "tiles of the CLIP pass"},
    {NULL, 0, "prompts", "LIST", take_ints, AT(prompts), 1, 65536, "tokens of the prefill"},
    {NULL, 0, "contexts", "LIST", take_ints, AT(contexts), 1, 65536,
     "tokens cached before decoding"},
    {NULL, 0, "batches", "LIST", take_ints, AT(batches), 1, 256, "sequences decoded together"},
    {NULL, 0, "kv", "LIST", take_kvs, AT(kv), 0, 0,
     "of f32, f16, i8 (default: f16 and i8 on a GPU, f32 on a CPU)"},
    {NULL, 0, "decode-tokens", "N", take_int, AT(n_decode), 1, 65536,
     "tokens decoded and timed, one by one"},

    {"Output", 0, "json", NULL, take_flag, AT(json), 0, 0, "print JSON"},
    {NULL, 'h', "help", NULL, take_flag, AT(help), 0, 0, "this text"},
};

static const help_note notes[] = {
    {"Environment", "  LV_CPU_ISA=portable|avx2|avx512|vnni takes a lesser instruction "
                    "set than the CPU's best\n"},
};

static const command_line line = {
    .program = "llava-bench",
    .purpose = "speed of each stage beside the ceilings measured in the same run",
    .usage = "(--synthetic NAME | -m MODEL) [OPTIONS]",
    .about = "A LIST is one or more values with commas between: --contexts 512,2204.\n",
    .specs = specs,
    .n_specs = sizeof specs / sizeof *specs,
    .notes = notes,
    .n_notes = sizeof notes / sizeof *notes,
};

int bench_read_options(int argc, char **argv, bench_options *out) {
    lv_status status = command_line_parse(&line, argc, argv, out);
    if (status == LV_OK && out->help) {
        command_line_help(&line);
        return 0;
    }
    if (status == LV_OK) {
        const usage_rule rules[] = {
            {!out->synthetic && (out->dense || out->write_dir || out->tokenizer),
             "--dense, --write and --tokenizer go with --synthetic"},
            {!out->synthetic == !out->model, "one of --synthetic and --model says what to measure"},
        };
        status = command_line_check(&line, rules, sizeof rules / sizeof *rules);
    }
    if (status != LV_OK) {
        fprintf(stderr, "llava-bench: %s\n", lv_error());
        return 2;
    }
    return -1;
}

static void fill_list(bench_list *list, int n, const int *values) {
    if (list->n == 0) {
        memcpy(list->values, values, (size_t)n * sizeof *values);
        list->n = n;
    }
}

void bench_fill_options(bench_options *o, const lv_config *config, bool is_gpu) {
    const unsigned all = 2 * BENCH_ANSWER - 1;
    const int n_tiles = config->is_next ? 5 : 1;
    o->stages = o->stages ? o->stages : is_gpu ? all : all & ~(unsigned)BENCH_ANSWER;
    o->n_decode = o->n_decode ? o->n_decode : is_gpu ? 64 : 32;
    if (is_gpu) {
        fill_list(&o->tiles, 2, (const int[]){1, 5});
        fill_list(&o->prompts, 3, (const int[]){636, 2204, 2940});
        fill_list(&o->contexts, 3, (const int[]){512, 2204, 8000});
        fill_list(&o->batches, 4, (const int[]){1, 8, 32, 64});
        fill_list(&o->kv, 2, (const int[]){LV_F16, LV_I8});
    } else {
        fill_list(&o->tiles, 1, &n_tiles);
        fill_list(&o->prompts, 1, (const int[]){128});
        fill_list(&o->contexts, 1, (const int[]){128});
        fill_list(&o->batches, 1, (const int[]){1});
        fill_list(&o->kv, 1, (const int[]){LV_NONE});
    }
}
