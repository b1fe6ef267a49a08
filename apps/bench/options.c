// The command line, and what is run where it does not say.
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/bench/bench.h"

static const char usage[] =
    "usage: llava-bench (--synthetic NAME | -m MODEL) [options]\n"
    "  --synthetic NAME   random weights of real shapes, W4 decoder: llava-1.5-7b, llava-1.6-7b,\n"
    "                     llava-1.5-13b, llava-1.6-13b, llava-1.6-mistral-7b, demo\n"
    "                     (written to $TMPDIR, or /tmp, and removed: 4.5 GB for 7B)\n"
    "  --dense            with an f16 decoder (14 GB for 7B)\n"
    "  --write DIR        keep it in DIR; without --stages nothing is run\n"
    "  --tokenizer FILE   copy FILE to DIR/tokenizer.model, for describe --model DIR\n"
    "  -m, --model MODEL  a checkpoint folder or org/name\n"
    "  --quantize-weights round a dense decoder to int4 while loading\n"
    "  --int8-head        keep the decoder's last linear in int8\n"
    "  --device NAME      auto, cpu, cuda, cuda:N\n"
    "  --tp N             tensor parallelism over N devices from that one on\n"
    "  --threads N        CPU threads (default: all this process may use)\n"
    "  --stages LIST      of load, preprocess, encode, prefill, decode, answer, ceilings\n"
    "                     (default: all on a GPU; on a CPU not answer). Ceilings are measured\n"
    "                     for every stage that is compared with them\n"
    "  --tiles LIST       tiles of the CLIP pass\n"
    "  --prompts LIST     tokens of the prefill\n"
    "  --contexts LIST    tokens cached before decoding\n"
    "  --batches LIST     sequences decoded together\n"
    "  --kv LIST          of f32, f16, i8 (default: f16 and i8 on a GPU, f32 on a CPU)\n"
    "  --decode-tokens N  tokens decoded and timed, one by one\n"
    "  --json             print JSON\n"
    "A LIST is one or more values with commas between: --contexts 512,2204.\n"
    "LV_CPU_ISA=portable|avx2|avx512|vnni takes a lesser instruction set than the CPU's best.\n";

static const struct {
    const char *name;
    int value;
} stage_names[] = {{"ceilings", BENCH_CEILINGS},     {"load", BENCH_LOAD},
                   {"preprocess", BENCH_PREPROCESS}, {"encode", BENCH_ENCODE},
                   {"prefill", BENCH_PREFILL},       {"decode", BENCH_DECODE},
                   {"answer", BENCH_ANSWER}},
  kv_names[] = {{"f32", LV_F32}, {"f16", LV_F16}, {"i8", LV_I8}};

static bool read_number(const char *text, int max, int *out) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < 1 || value > max) {
        fprintf(stderr, "llava-bench: \"%s\": expected a number from 1 to %d\n", text, max);
        return false;
    }
    *out = (int)value;
    return true;
}

// Calls read(item, max, value) for each item of a comma-separated list.
static bool read_list(const char *text, int max, bool (*read)(const char *, int, int *),
                      bench_list *out) {
    char item[32];
    out->n = 0;
    for (;;) {
        size_t n = strcspn(text, ",");
        snprintf(item, sizeof item, "%.*s", (int)n, text);
        if (out->n == BENCH_MAX_LIST) {
            fprintf(stderr, "llava-bench: a list of more than %d values\n", BENCH_MAX_LIST);
            return false;
        }
        if (!read(item, max, &out->values[out->n++])) {
            return false;
        }
        if (!text[n]) {
            return true;
        }
        text += n + 1;
    }
}

static bool read_kv(const char *text, int max, int *out) {
    (void)max;
    for (size_t i = 0; i < sizeof kv_names / sizeof *kv_names; i++) {
        if (strcmp(text, kv_names[i].name) == 0) {
            *out = kv_names[i].value;
            return true;
        }
    }
    fprintf(stderr, "llava-bench: --kv %s: expected f32, f16 or i8\n", text);
    return false;
}

static bool read_stage(const char *text, int max, int *out) {
    (void)max;
    for (size_t i = 0; i < sizeof stage_names / sizeof *stage_names; i++) {
        if (strcmp(text, stage_names[i].name) == 0) {
            *out = stage_names[i].value;
            return true;
        }
    }
    fprintf(stderr, "llava-bench: --stages %s: llava-bench --help lists them\n", text);
    return false;
}

static bool read_stages(const char *text, unsigned *out) {
    bench_list list;
    if (!read_list(text, 0, read_stage, &list)) {
        return false;
    }
    for (int i = 0; i < list.n; i++) {
        *out |= (unsigned)list.values[i];
    }
    return true;
}

enum {
    SYNTHETIC = 256,
    DENSE,
    WRITE,
    TOKENIZER,
    INT4,
    INT8_HEAD,
    DEVICE,
    TP,
    THREADS,
    STAGES,
    TILES,
    PROMPTS,
    CONTEXTS,
    BATCHES,
    KV,
    DECODE,
    JSON
};

static bool read_flag(int c, bench_options *o) {
    switch (c) {
    case SYNTHETIC:
        o->synthetic = optarg;
        return true;
    case 'm':
        o->model = optarg;
        return true;
    case DENSE:
        return o->dense = true;
    case WRITE:
        o->write_dir = optarg;
        return true;
    case TOKENIZER:
        o->tokenizer = optarg;
        return true;
    case INT4:
        return o->llm.int4_weights = true;
    case INT8_HEAD:
        return o->llm.int8_head = true;
    case DEVICE:
        o->device = optarg;
        return true;
    case JSON:
        return o->json = true;
    default:
        return false;
    }
}

static bool read_option(int c, bench_options *o) {
    switch (c) {
    case TP:
        return read_number(optarg, 8, &o->tp);
    case THREADS:
        return read_number(optarg, 1024, &o->n_threads);
    case STAGES:
        return read_stages(optarg, &o->stages);
    case TILES:
        return read_list(optarg, 1024, read_number, &o->tiles);
    case PROMPTS:
        return read_list(optarg, 65536, read_number, &o->prompts);
    case CONTEXTS:
        return read_list(optarg, 65536, read_number, &o->contexts);
    case BATCHES:
        return read_list(optarg, 256, read_number, &o->batches);
    case KV:
        return read_list(optarg, 0, read_kv, &o->kv);
    case DECODE:
        return read_number(optarg, 65536, &o->n_decode);
    default:
        return read_flag(c, o);
    }
}

int bench_read_options(int argc, char **argv, bench_options *out) {
    static const struct option names[] = {{"synthetic", 1, NULL, SYNTHETIC},
                                          {"dense", 0, NULL, DENSE},
                                          {"write", 1, NULL, WRITE},
                                          {"tokenizer", 1, NULL, TOKENIZER},
                                          {"model", 1, NULL, 'm'},
                                          {"quantize-weights", 0, NULL, INT4},
                                          {"int8-head", 0, NULL, INT8_HEAD},
                                          {"device", 1, NULL, DEVICE},
                                          {"tp", 1, NULL, TP},
                                          {"threads", 1, NULL, THREADS},
                                          {"stages", 1, NULL, STAGES},
                                          {"tiles", 1, NULL, TILES},
                                          {"prompts", 1, NULL, PROMPTS},
                                          {"contexts", 1, NULL, CONTEXTS},
                                          {"batches", 1, NULL, BATCHES},
                                          {"kv", 1, NULL, KV},
                                          {"decode-tokens", 1, NULL, DECODE},
                                          {"json", 0, NULL, JSON},
                                          {"help", 0, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "m:h", names, NULL)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return 0;
        }
        ok = read_option(c, out);
    }
    if (ok && !out->synthetic && (out->dense || out->write_dir || out->tokenizer)) {
        fprintf(stderr, "llava-bench: --dense, --write and --tokenizer go with --synthetic\n");
        ok = false;
    }
    if (!ok || optind < argc || !out->synthetic == !out->model) {
        fputs(usage, stderr);
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
