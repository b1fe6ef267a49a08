// The command line: one table says what every option is called, means and takes.
#include "folders.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum option_kind {
    FLAG,
    TEXT,
    NAME,
    TEXTS,
    INTEGER,
    NUMBER,
    SHARE,
    BYTES,
    SEED,
    ROPE,
    QUANT_POLICY,
    SHARD
} option_kind;

typedef struct option_spec {
    const char *group; // opens a group in the help
    char letter;       // 0: none
    const char *name;
    const char *value; // what it takes, NULL for a flag
    option_kind kind;
    size_t offset; // of its field in options
    double min, max;
    const char *help;
} option_spec;

#define AT(field) offsetof(describe_options, field)

static const option_spec specs[] = {
    {"Question", 'p', "prompt", "TEXT", TEXT, AT(prompt), 0, 0,
     "what to ask (default: Describe this image.)"},
    {NULL, 's', "system", "TEXT", TEXT, AT(system), 0, 0, "replace the system text"},
    {NULL, 0, "together", NULL, FLAG, AT(together), 0, 0, "all pictures in one question"},
    {NULL, 0, "chat", NULL, FLAG, AT(chat), 0, 0, "ask in the terminal; /help there says more"},

    {"Pictures", 0, "files-from", "LIST", NAME, AT(files_from), 0, 0,
     "also the pictures named in LIST, one a line (-: standard input)"},
    {NULL, '0', "null", NULL, FLAG, AT(nul_separated), 0, 0,
     "names in LIST end with NUL, as find -print0 writes them"},
    {NULL, 'r', "recursive", NULL, FLAG, AT(recursive), 0, 0,
     "also the folders below the folders named"},
    {NULL, 0, "shard", "I/N", SHARD, AT(shard), 0, 0,
     "part I of N only (default: as the ranks of mpirun or srun)"},

    {"Captions in files", 'o', "output", "FILE", NAME, AT(output), 0, 0,
     "one record a picture in FILE.jsonl or FILE.csv"},
    {NULL, 0, "sidecar", "EXT", NAME, AT(sidecar), 0, 0,
     "a file beside each picture: with .txt, photo.txt beside photo.jpg"},
    {NULL, 0, "caption-extension", "EXT", NAME, AT(sidecar), 0, 0, "the same"},
    {NULL, 0, "prefix", "TEXT", TEXT, AT(prefix), 0, 0, "in front of each caption"},
    {NULL, 0, "suffix", "TEXT", TEXT, AT(suffix), 0, 0, "behind each caption"},
    {NULL, 0, "overwrite", NULL, FLAG, AT(overwrite), 0, 0,
     "replace captions (default: pictures that have one are skipped)"},
    {NULL, 0, "append", NULL, FLAG, AT(append), 0, 0, "add to the end of each --sidecar"},
    {NULL, 0, "prepend", NULL, FLAG, AT(prepend), 0, 0, "add to the front of each --sidecar"},
    {NULL, 0, "failures", "FILE", NAME, AT(failures), 0, 0,
     "list what failed: picture, tab, reason"},
    {NULL, 0, "fail-fast", NULL, FLAG, AT(fail_fast), 0, 0, "stop at the first failure"},

    {"Answer", 'n', "max-tokens", "N", INTEGER, AT(params.max_tokens), 1, 1000000,
     "at most N tokens (default 512)"},
    {NULL, 't', "temperature", "T", NUMBER, AT(params.temperature), 0, 10,
     "0 takes the likeliest word (default), higher varies more"},
    {NULL, 0, "top-p", "P", NUMBER, AT(params.top_p), 0, 1, "draw from the likeliest P of all"},
    {NULL, 0, "top-k", "K", INTEGER, AT(params.top_k), 0, 1000000, "draw from the K likeliest"},
    {NULL, 0, "min-p", "P", NUMBER, AT(params.min_p), 0, 1,
     "leave out what is P times less likely than the best"},
    {NULL, 0, "repetition-penalty", "R", NUMBER, AT(params.repetition_penalty), 0.01, 10,
     "above 1 repeats less (1: off)"},
    {NULL, 0, "presence-penalty", "R", NUMBER, AT(params.presence_penalty), -2, 2,
     "lower what was said at all"},
    {NULL, 0, "frequency-penalty", "R", NUMBER, AT(params.frequency_penalty), -2, 2,
     "lower what was said, by how often"},
    {NULL, 0, "seed", "N", SEED, AT(params.seed), 0, 0, "the same seed draws the same answer"},
    {NULL, 0, "stop", "TEXT", TEXTS, AT(stops), 0, 0, "end before TEXT (may be repeated)"},
    {NULL, 0, "ignore-eos", NULL, FLAG, AT(params.ignore_eos), 0, 0,
     "go on to --max-tokens whatever the model says: to measure with"},
    {NULL, 0, "json-schema", "FILE", NAME, AT(json_schema), 0, 0,
     "answer in JSON as the JSON schema in FILE asks"},

    {"Model", 'm', "model", "DIR|ORG/NAME", NAME, AT(model.model), 0, 0,
     "a folder or a name in the Hugging Face cache (default: demo model)"},
    {NULL, 0, "pull", "ORG/NAME", NAME, AT(pull), 0, 0,
     "first download this model from the hub, or what is missing of it"},
    {NULL, 0, "vision-model", "DIR|ORG/NAME", NAME, AT(model.vision_model), 0, 0,
     "CLIP, where the model comes without it"},
    {NULL, 0, "template", "NAME", NAME, AT(model.template_name), 0, 0,
     "prompt template (default: by the model)"},
    {NULL, 0, "device", "DEVICE", NAME, AT(model.device), 0, 0, "auto, cpu, cuda or cuda:N"},
    {NULL, 0, "tp", "N", INTEGER, AT(model.tp), 1, 8,
     "tensor parallelism: N GPUs from that one on hold the model together"},
    {NULL, 0, "threads", "N", INTEGER, AT(model.n_threads), 1, 1024, "CPU threads (default: all)"},
    {NULL, 0, "session-len", "N", INTEGER, AT(model.session_len), 16, 4194304,
     "tokens a conversation may hold (default: as trained)"},
    {NULL, 0, "rope-scaling", "TYPE[:FACTOR]", ROPE, AT(rope), 0, 0,
     "beyond the trained length: dynamic, linear or yarn (yarn:4)"},
    {NULL, 0, "quant-policy", "0|8", QUANT_POLICY, AT(engine.kv_dtype), 0, 0,
     "8 keeps the conversation in int8, in less memory (default 0)"},
    {NULL, 0, "quantize-weights", NULL, FLAG, AT(model.int4_weights), 0, 0,
     "round the decoder's weights to int4 while loading"},
    {NULL, 0, "int8-head", NULL, FLAG, AT(model.int8_head), 0, 0,
     "keep the decoder's last linear in int8"},
    {NULL, 0, "cache-max-entry-count", "F", SHARE, AT(engine.cache_max_entry_count), 0.001, 0.99,
     "share of the free memory for keys and values (default 0.8, CPU 0.2)"},
    {NULL, 0, "kv-memory", "BYTES", BYTES, AT(engine.kv_bytes), 0, 0,
     "memory for keys and values instead; K, M and G are understood"},
    {NULL, 0, "max-batch-size", "N", INTEGER, AT(engine.max_sequences), 1, 256,
     "pictures described at once (default 64, CPU 16)"},

    {"Server", 0, "server", "URL", NAME, AT(server), 0, 0,
     "ask a running image-chat instead of loading a model"},
    {NULL, 0, "api-key", "KEY", NAME, AT(api_key), 0, 0, "its key (default: $IMAGE_CHAT_API_KEY)"},

    {"Output", 0, "json", NULL, FLAG, AT(json), 0, 0,
     "one JSON object a line: text, finish reason, tokens, timings"},
    {NULL, 'q', "quiet", NULL, FLAG, AT(quiet), 0, 0, "answers and errors only"},
    {NULL, 'v', "verbose", NULL, FLAG, AT(verbose), 0, 0,
     "device, model, memory, and time per stage"},
    {NULL, 0, "dump-tensors", "DIR", NAME, AT(params.dump_dir), 0, 0,
     "write every stage's tensors to DIR as .npy"},
    {NULL, 'h', "help", NULL, FLAG, AT(help), 0, 0, "this text"},
    {NULL, 0, "version", NULL, FLAG, AT(version), 0, 0, "the version"},
};

enum { N_SPECS = sizeof specs / sizeof *specs };

void options_help(void) {
    bool bold = terminal_streams() && !getenv("NO_COLOR");
    const char *on = bold ? "\033[1m" : "", *off = bold ? "\033[0m" : "";
    printf(
        "%sdescribe%s - say what a picture shows, or answer a question about it\n\n"
        "%susage:%s describe [OPTIONS] FILE|FOLDER|URL|- ...\n\n"
        "Pictures are JPEG, PNG, WebP, BMP, GIF (first frame) or PNM: files, http(s) and data:\n"
        "URLs, or - for standard input; of a folder those whose names say so, sorted. Answers go\n"
        "to standard output, one picture after the other; with several pictures each answer\n"
        "follows its \"FILE: \". With --output or --sidecar they go to files, and the same\n"
        "command again goes on where the last run ended, however that was.\n",
        on, off, on, off);
    for (const option_spec *spec = specs; spec < specs + N_SPECS; spec++) {
        if (spec->group) {
            printf("\n%s%s%s\n", on, spec->group, off);
        }
        char names[64];
        snprintf(names, sizeof names, "%c%c%c --%s%s%s", spec->letter ? '-' : ' ',
                 spec->letter ? spec->letter : ' ', spec->letter ? ',' : ' ', spec->name,
                 spec->value ? " " : "", spec->value ? spec->value : "");
        if (strlen(names) > 28) {
            printf("  %s\n  %-28s  %s\n", names, "", spec->help);
        } else {
            printf("  %-28s  %s\n", names, spec->help);
        }
    }
    printf("\n%sExamples%s\n"
           "  describe holiday.jpg\n"
           "  describe -p 'How many people are there?' https://example.org/team.png\n"
           "  describe --json *.jpg > captions.jsonl\n"
           "  find photos -name '*.jpg' -print0 | describe --files-from - -0\n"
           "  describe -r --output captions.jsonl photos\n"
           "  describe -r --sidecar .txt --prefix 'sks style, ' --failures failed.tsv photos\n"
           "  mpirun -n 4 describe -r --output captions.csv photos\n"
           "  describe --together -p 'What changed?' before.png after.png\n"
           "  describe --chat holiday.jpg\n"
           "  describe --pull llava-hf/llava-1.5-7b-hf\n"
           "  describe --model llava-hf/llava-1.5-7b-hf holiday.jpg\n"
           "  describe --server http://127.0.0.1:23333 holiday.jpg\n"
           "\n%sEnvironment%s\n"
           "  LLAVA_MODEL   the model where --model names none\n"
           "  HF_HOME       where the Hugging Face cache lies (default: ~/.cache/huggingface)\n"
           "  HF_TOKEN      opens gated models to --pull; HF_ENDPOINT names another hub\n"
           "  http_proxy, https_proxy, no_proxy   as curl reads them\n"
           "\n%sExit status%s\n"
           "  0 all described   1 some pictures or the download failed (named on standard error)\n"
           "  2 wrong usage     3 the model or device cannot be used   130 interrupted\n",
           on, off, on, off, on, off);
}

// Edits (insert, delete, replace) that turn one name into the other.
static int distance(const char *a, const char *b) {
    enum { LONGEST = 40 };
    size_t n = strlen(b);
    int row[LONGEST + 1];
    if (n > LONGEST) {
        return LONGEST;
    }
    for (size_t j = 0; j <= n; j++) {
        row[j] = (int)j;
    }
    for (size_t i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = best < row[j] + 1 ? best : row[j] + 1;
            row[j] = best < row[j - 1] + 1 ? best : row[j - 1] + 1;
        }
    }
    return row[n];
}

static void complain_unknown(const char *name, size_t n_bytes) {
    char given[64];
    snprintf(given, sizeof given, "%.*s", (int)n_bytes, name);
    const option_spec *best = NULL;
    int best_distance = (int)strlen(given) / 3 + 2;
    for (const option_spec *spec = specs; spec < specs + N_SPECS; spec++) {
        int edits = strncmp(spec->name, given, strlen(given)) ? distance(given, spec->name) : 0;
        if (edits < best_distance) {
            best_distance = edits;
            best = spec;
        }
    }
    if (best) {
        complain(NULL, "--%s: no such option; did you mean --%s?", given, best->name);
    } else {
        complain(NULL, "--%s: no such option; describe --help lists them", given);
    }
}

static bool parse_number(const option_spec *spec, const char *text, double *out) {
    char *end = NULL;
    double value = strtod(text, &end);
    bool whole = spec->kind == INTEGER;
    if (end == text || *end || strpbrk(text, "xX \t") || !isfinite(value) || value < spec->min ||
        value > spec->max || (whole && value != floor(value))) {
        complain(NULL, "--%s %s: expected a %snumber from %.10g to %.10g", spec->name, text,
                 whole ? "whole " : "", spec->min, spec->max);
        return false;
    }
    *out = value;
    return true;
}

static bool parse_seed(const option_spec *spec, const char *text, uint64_t *out) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end || errno || !(*text >= '0' && *text <= '9')) {
        complain(NULL, "--%s %s: expected a whole number from 0 to 18446744073709551615",
                 spec->name, text);
        return false;
    }
    *out = value;
    return true;
}

// "500M", "8G", "1073741824".
static bool parse_bytes(const option_spec *spec, const char *text, size_t *out) {
    static const char units[] = "KMG";
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    const int shift = unit ? 10 * (int)(unit - units + 1) : 0;
    if (!(*text >= '0' && *text <= '9') || errno || (*end && (!unit || end[1])) || value == 0 ||
        value > SIZE_MAX >> 1 >> shift) {
        complain(NULL, "--%s %s: expected a number of bytes, such as 500M or 8G", spec->name, text);
        return false;
    }
    *out = (size_t)value << shift;
    return true;
}

// "dynamic", "linear:2", "yarn:4": what is not given is left 0, which means as the model or the
// session's length says.
static bool parse_rope(const option_spec *spec, const char *text, lv_rope_config *out) {
    static const struct {
        const char *name;
        lv_rope_type type;
    } types[] = {{"linear", LV_ROPE_LINEAR}, {"dynamic", LV_ROPE_DYNAMIC}, {"yarn", LV_ROPE_YARN}};
    size_t n = strcspn(text, ":");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strlen(types[i].name) != n || strncmp(types[i].name, text, n) != 0) {
            continue;
        }
        *out = (lv_rope_config){.type = types[i].type};
        char *end = NULL;
        out->factor = text[n] ? strtof(text + n + 1, &end) : 0;
        if (!text[n] || (!*end && out->factor >= 1 && out->factor <= 1024)) {
            return true;
        }
    }
    complain(NULL,
             "--%s %s: expected dynamic, linear or yarn, or with a factor from 1 to 1024 as "
             "in linear:2",
             spec->name, text);
    return false;
}

// LMDeploy's numbers: how many bits a value of the KV cache has, 0 being the device's own choice.
static bool parse_quant_policy(const option_spec *spec, const char *text, lv_dtype *out) {
    if (strcmp(text, "0") != 0 && strcmp(text, "8") != 0) {
        complain(NULL, "--%s %s: expected 0 or 8", spec->name, text);
        return false;
    }
    *out = *text == '8' ? LV_I8 : LV_NONE;
    return true;
}

static bool store(const option_spec *spec, const char *text, describe_options *out) {
    void *field = (char *)out + spec->offset;
    double number = 0;
    switch (spec->kind) {
    case FLAG:
        *(bool *)field = true;
        return true;
    case NAME:
        if (!*text) {
            complain(NULL, "--%s: the %s is empty", spec->name, spec->value);
            return false;
        }
        // fall through
    case TEXT:
        *(const char **)field = text;
        return true;
    case TEXTS:
        list_add(field, text, strlen(text));
        return true;
    case INTEGER:
        if (parse_number(spec, text, &number)) {
            *(int *)field = (int)number;
            return true;
        }
        return false;
    case NUMBER:
        if (parse_number(spec, text, &number)) {
            *(float *)field = (float)number;
            return true;
        }
        return false;
    case SHARE:
        return parse_number(spec, text, field);
    case BYTES:
        return parse_bytes(spec, text, field);
    case SEED:
        return parse_seed(spec, text, field);
    case ROPE:
        out->has_rope = true;
        return parse_rope(spec, text, field);
    case QUANT_POLICY:
        return parse_quant_policy(spec, text, field);
    case SHARD:
        if (!shard_parse(text, field)) {
            complain(NULL, "--%s %s: expected I/N, as 2/3 for the second of three parts",
                     spec->name, text);
            return false;
        }
        return true;
    }
    return false;
}

// "--name", "--name=value" or "--name value"; *i is moved past what was taken.
static bool parse_long(int argc, char **argv, int *i, describe_options *out) {
    const char *name = argv[*i] + 2;
    size_t n = strcspn(name, "=");
    for (const option_spec *spec = specs; spec < specs + N_SPECS; spec++) {
        if (strlen(spec->name) != n || strncmp(spec->name, name, n) != 0) {
            continue;
        }
        const char *value = name[n] ? name + n + 1 : NULL;
        if (!spec->value && value) {
            complain(NULL, "--%s takes no value", spec->name);
            return false;
        }
        if (spec->value && !value) {
            if (*i + 1 >= argc) {
                complain(NULL, "--%s wants %s after it", spec->name, spec->value);
                return false;
            }
            value = argv[++*i];
        }
        return store(spec, value, out);
    }
    complain_unknown(name, n);
    return false;
}

// "-p value", "-pvalue", or flags in a row: "-qv".
static bool parse_short(int argc, char **argv, int *i, describe_options *out) {
    for (const char *at = argv[*i] + 1; *at; at++) {
        const option_spec *spec = specs;
        while (spec < specs + N_SPECS && spec->letter != *at) {
            spec++;
        }
        if (spec == specs + N_SPECS) {
            complain(NULL, "-%c: no such option; describe --help lists them", *at);
            return false;
        }
        if (!spec->value) {
            *(bool *)((char *)out + spec->offset) = true;
            continue;
        }
        if (!at[1] && *i + 1 >= argc) {
            complain(NULL, "-%c wants %s after it", *at, spec->value);
            return false;
        }
        return store(spec, at[1] ? at + 1 : argv[++*i], out);
    }
    return true;
}

static bool is_device(const char *name) {
    if (!strcmp(name, "auto") || !strcmp(name, "cpu") || !strcmp(name, "cuda")) {
        return true;
    }
    return !strncmp(name, "cuda:", 5) && name[5] && strlen(name) <= 8 &&
           strspn(name + 5, "0123456789") == strlen(name + 5);
}

// What each option alone cannot see.
static bool check_together(const describe_options *o) {
    int n_stdin = o->files_from && !strcmp(o->files_from, "-");
    for (int i = 0; i < o->inputs.n; i++) {
        n_stdin += !strcmp(o->inputs.items[i], "-");
    }
    const char *wrong = NULL;
    if (o->inputs.n == 0 && !o->files_from && !o->chat && !o->pull) {
        wrong = "no picture given";
    } else if (o->nul_separated && !o->files_from) {
        wrong = "-0 says how --files-from is written, and there is none";
    } else if (n_stdin + o->chat > 1) {
        wrong = "standard input can be only one of: a picture, --files-from -, --chat";
    } else if (o->chat && (o->json || o->together)) {
        wrong = "--chat goes with neither --json nor --together";
    } else if (o->quiet && o->verbose) {
        wrong = "-q and -v are opposites";
    } else if (o->json_schema && (o->stops.n || o->params.ignore_eos)) {
        wrong = "--json-schema says itself where an answer ends: not with --stop or --ignore-eos";
    } else if (o->params.dump_dir && !o->together && (o->inputs.n > 1 || o->files_from)) {
        wrong = "--dump-tensors takes one question: one picture, or several --together";
    } else if (o->model.device && !is_device(o->model.device)) {
        complain(NULL, "--device %s: expected auto, cpu, cuda or cuda:N", o->model.device);
        return false;
    }
    if (wrong) {
        complain(NULL, "%s; describe --help says more", wrong);
    }
    return !wrong;
}

static bool ends_in(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n > n_end && !strcasecmp(text + n - n_end, end);
}

typedef struct usage_rule {
    bool broken;
    const char *text;
} usage_rule;

// Says the first broken rule.
static bool keeps_rules(const usage_rule *rules, size_t n_rules) {
    for (size_t i = 0; i < n_rules; i++) {
        if (rules[i].broken) {
            complain(NULL, "%s; describe --help says more", rules[i].text);
            return false;
        }
    }
    return true;
}

static bool is_table_name(const char *name) {
    return ends_in(name, ".jsonl") || ends_in(name, ".csv");
}

// An extension, with or without its dot, that is no picture's.
static bool is_sidecar(const char *extension) {
    char name[64];
    snprintf(name, sizeof name, ".%s", extension + (*extension == '.'));
    return name[1] && !strpbrk(name, "/") && strlen(extension) <= 32 && !is_picture_name(name);
}

static bool check_captions(const describe_options *o) {
    int n_changes = o->overwrite + o->append + o->prepend;
    const usage_rule rules[] = {
        {o->output && o->sidecar, "--output and --sidecar are two ways, of which one can be taken"},
        {o->output && !is_table_name(o->output),
         "--output says by .jsonl or .csv at its end what to write"},
        {o->sidecar && !is_sidecar(o->sidecar),
         "--sidecar takes an extension, as .txt, and none of pictures"},
        {records(o) && o->json, "--json is for standard output: --output FILE.jsonl has the same"},
        {n_changes > 1, "of --overwrite, --append and --prepend one can be taken"},
        {!o->sidecar && n_changes > o->overwrite, "--append and --prepend go with --sidecar"},
        {!records(o) && o->overwrite, "--overwrite goes with --output or --sidecar"},
        {!records(o) && (o->prefix || o->suffix),
         "--prefix and --suffix go with --output or --sidecar"},
    };
    return keeps_rules(rules, sizeof rules / sizeof *rules);
}

static bool check_batch(const describe_options *o) {
    bool one_talk = o->chat || o->together;
    const usage_rule rules[] = {
        {one_talk && records(o), "--output and --sidecar go with neither --chat nor --together"},
        {one_talk && (o->failures || o->fail_fast),
         "--failures and --fail-fast go with neither --chat nor --together"},
        {one_talk && o->shard.count, "--shard goes with neither --chat nor --together"},
        {o->output && o->failures && !strcmp(o->output, o->failures),
         "--output and --failures name the same file"},
    };
    return keeps_rules(rules, sizeof rules / sizeof *rules);
}

static bool check_server(const describe_options *o) {
    const lv_model_options *m = &o->model;
    const usage_rule rules[] = {
        {!o->server && o->api_key, "--api-key goes with --server"},
        {o->server && (o->pull || o->chat || o->params.dump_dir || o->params.ignore_eos),
         "--server goes with neither --pull nor --chat nor --dump-tensors nor --ignore-eos"},
        {o->server && (m->vision_model || m->device || m->tp || m->n_threads || m->template_name ||
                       m->session_len || o->has_rope || o->engine.kv_dtype || o->engine.kv_bytes ||
                       o->engine.cache_max_entry_count > 0 || o->engine.max_sequences),
         "with --server the model's options are the server's"},
    };
    return keeps_rules(rules, sizeof rules / sizeof *rules);
}

bool options_parse(int argc, char **argv, describe_options *out) {
    bool only_inputs = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (only_inputs || arg[0] != '-' || !arg[1]) {
            list_add(&out->inputs, arg, strlen(arg));
        } else if (!strcmp(arg, "--")) {
            only_inputs = true;
        } else if (!(arg[1] == '-' ? parse_long : parse_short)(argc, argv, &i, out)) {
            return false;
        }
    }
    out->params.stop = (const char *const *)out->stops.items;
    out->params.n_stop = out->stops.n;
    out->model.rope_scaling = out->has_rope ? &out->rope : NULL;
    if (out->help || out->version) {
        return true;
    }
    if (!check_together(out) || !check_captions(out) || !check_batch(out) || !check_server(out)) {
        return false;
    }
    if (!out->shard.count) {
        const lv_shard whole = {.index = 0, .count = 1};
        out->shard = out->chat || out->together ? whole : shard_of_ranks();
    }
    return true;
}

bool options_read_schema(describe_options *options) {
    const char *path = options->json_schema;
    lv_buffer file = {0};
    if (!path) {
        return true;
    }
    lv_status status = lv_file_read(path, LV_SCHEMA_MAX_BYTES, &file);
    if (status == LV_OK) {
        status = lv_grammar_compile((const char *)file.data, file.n_bytes, path, &options->grammar);
    }
    if (status != LV_OK) {
        complain("--json-schema", "%s", lv_error());
    }
    options->params.grammar = options->grammar;
    lv_buffer_free(&file);
    return status == LV_OK;
}

void options_free(describe_options *options) {
    lv_grammar_free(options->grammar);
    list_free(&options->inputs);
    list_free(&options->stops);
}
