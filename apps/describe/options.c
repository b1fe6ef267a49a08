// describe's command line.
#include "folders.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/command_line.h"

static lv_status take_input(const option_spec *spec, const char *text, void *options) {
    (void)spec;
    list_add(&((describe_options *)options)->inputs, text, strlen(text));
    return LV_OK;
}

static lv_status take_stop(const option_spec *spec, const char *text, void *field) {
    (void)spec;
    list_add(field, text, strlen(text));
    return LV_OK;
}

static lv_status take_seed(const option_spec *spec, const char *text, void *field) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end || errno || !(*text >= '0' && *text <= '9')) {
        return lv_fail(LV_EINVAL, "--%s %s: expected a whole number from 0 to 18446744073709551615",
                       spec->name, text);
    }
    *(uint64_t *)field = value;
    return LV_OK;
}

static lv_status take_shard(const option_spec *spec, const char *text, void *field) {
    return shard_parse(text, field)
               ? LV_OK
               : lv_fail(LV_EINVAL, "--%s %s: expected I/N, as 2/3 for the second of three parts",
                         spec->name, text);
}

#define AT(field) offsetof(describe_options, field)

static const option_spec specs[] = {
    {"Question", 'p', "prompt", "TEXT", take_text, AT(prompt), 0, 0,
     "what to ask (default: Describe this image.)"},
    {NULL, 's', "system", "TEXT", take_text, AT(system), 0, 0, "replace the system text"},
    {NULL, 0, "together", NULL, take_flag, AT(together), 0, 0, "all pictures in one question"},
    {NULL, 0, "chat", NULL, take_flag, AT(chat), 0, 0,
     "ask in the terminal; /help there says more"},

    {"Pictures", 0, "files-from", "LIST", take_name, AT(files_from), 0, 0,
     "also the pictures named in LIST, one a line (-: standard input)"},
    {NULL, '0', "null", NULL, take_flag, AT(nul_separated), 0, 0,
     "names in LIST end with NUL, as find -print0 writes them"},
    {NULL, 'r', "recursive", NULL, take_flag, AT(recursive), 0, 0,
     "also the folders below the folders named"},
    {NULL, 0, "shard", "I/N", take_shard, AT(shard), 0, 0,
     "part I of N only (default: as the ranks of mpirun or srun)"},

    {"Captions in files", 'o', "output", "FILE", take_name, AT(output), 0, 0,
     "one record a picture in FILE.jsonl or FILE.csv"},
    {NULL, 0, "sidecar", "EXT", take_name, AT(sidecar), 0, 0,
     "a file beside each picture: with .txt, photo.txt beside photo.jpg"},
    {NULL, 0, "caption-extension", "EXT", take_name, AT(sidecar), 0, 0, "the same"},
    {NULL, 0, "prefix", "TEXT", take_text, AT(prefix), 0, 0, "in front of each caption"},
    {NULL, 0, "suffix", "TEXT", take_text, AT(suffix), 0, 0, "behind each caption"},
    {NULL, 0, "overwrite", NULL, take_flag, AT(overwrite), 0, 0,
     "replace captions (default: pictures that have one are skipped)"},
    {NULL, 0, "append", NULL, take_flag, AT(append), 0, 0, "add to the end of each --sidecar"},
    {NULL, 0, "prepend", NULL, take_flag, AT(prepend), 0, 0, "add to the front of each --sidecar"},
    {NULL, 0, "failures", "FILE", take_name, AT(failures), 0, 0,
     "list what failed: picture, tab, reason"},
    {NULL, 0, "fail-fast", NULL, take_flag, AT(fail_fast), 0, 0, "stop at the first failure"},

    {"Answer", 'n', "max-tokens", "N", take_int, AT(params.max_tokens), 1, 1000000,
     "at most N tokens (default 512)"},
    {NULL, 't', "temperature", "T", take_float, AT(params.temperature), 0, 10,
     "0 takes the likeliest word (default), higher varies more"},
    {NULL, 0, "top-p", "P", take_float, AT(params.top_p), 0, 1, "draw from the likeliest P of all"},
    {NULL, 0, "top-k", "K", take_int, AT(params.top_k), 0, 1000000, "draw from the K likeliest"},
    {NULL, 0, "min-p", "P", take_float, AT(params.min_p), 0, 1,
     "leave out what is P times less likely than the best"},
    {NULL, 0, "repetition-penalty", "R", take_float, AT(params.repetition_penalty), 0.01, 10,
     "above 1 repeats less (1: off)"},
    {NULL, 0, "presence-penalty", "R", take_float, AT(params.presence_penalty), -2, 2,
     "lower what was said at all"},
    {NULL, 0, "frequency-penalty", "R", take_float, AT(params.frequency_penalty), -2, 2,
     "lower what was said, by how often"},
    {NULL, 0, "seed", "N", take_seed, AT(params.seed), 0, 0, "the same seed draws the same answer"},
    {NULL, 0, "stop", "TEXT", take_stop, AT(stops), 0, 0, "end before TEXT (may be repeated)"},
    {NULL, 0, "ignore-eos", NULL, take_flag, AT(params.ignore_eos), 0, 0,
     "go on to --max-tokens whatever the model says: to measure with"},
    {NULL, 0, "json-schema", "FILE", take_name, AT(json_schema), 0, 0,
     "answer in JSON as the JSON schema in FILE asks"},

    {"Model", 'm', "model", "DIR|ORG/NAME", take_name, AT(model.model), 0, 0,
     "a folder or a name in the Hugging Face cache (default: demo model)"},
    {NULL, 0, "pull", "ORG/NAME", take_name, AT(pull), 0, 0,
     "first download this model from the hub, or what is missing of it"},
    MODEL_OPTIONS(describe_options),
    WEIGHT_OPTIONS(describe_options, model),
    {NULL, 0, "kv-memory", "BYTES", take_size, AT(engine.kv_bytes), 1, OPTION_SIZE_TOP,
     "memory for keys and values instead; K, M and G are understood"},
    {NULL, 0, "max-batch-size", "N", take_int, AT(engine.max_sequences), 1, 256,
     "pictures described at once (default 64, CPU 16)"},

    {"Server", 0, "server", "URL", take_name, AT(server), 0, 0,
     "ask a running image-chat instead of loading a model"},
    {NULL, 0, "api-key", "KEY", take_name, AT(api_key), 0, 0,
     "its key (default: $IMAGE_CHAT_API_KEY)"},

    {"Output", 0, "json", NULL, take_flag, AT(json), 0, 0,
     "one JSON object a line: text, finish reason, tokens, timings"},
    {NULL, 'q', "quiet", NULL, take_flag, AT(quiet), 0, 0, "answers and errors only"},
    {NULL, 'v', "verbose", NULL, take_flag, AT(verbose), 0, 0,
     "device, model, memory, and time per stage"},
    {NULL, 0, "dump-tensors", "DIR", take_name, AT(params.dump_dir), 0, 0,
     "write every stage's tensors to DIR as .npy"},
    {NULL, 'h', "help", NULL, take_flag, AT(help), 0, 0, "this text"},
    {NULL, 0, "version", NULL, take_flag, AT(version), 0, 0, "the version"},
};

static const help_note notes[] = {
    {"Examples",
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
     "  describe --server http://127.0.0.1:23333 holiday.jpg\n"},
    {"Environment",
     "  LLAVA_MODEL   the model where --model names none\n"
     "  HF_HOME       where the Hugging Face cache lies (default: ~/.cache/huggingface)\n"
     "  HF_TOKEN      opens gated models to --pull; HF_ENDPOINT names another hub\n"
     "  http_proxy, https_proxy, no_proxy   as curl reads them\n"},
    {"Exit status",
     "  0 all described   1 some pictures or the download failed (named on standard error)\n"
     "  2 wrong usage     3 the model or device cannot be used   130 interrupted\n"},
};

static const command_line line = {
    .program = "describe",
    .purpose = "say what a picture shows, or answer a question about it",
    .usage = "[OPTIONS] FILE|FOLDER|URL|- ...",
    .about =
        "Pictures are JPEG, PNG, WebP, BMP, GIF (first frame) or PNM: files, http(s) and data:\n"
        "URLs, or - for standard input; of a folder those whose names say so, sorted. Answers go\n"
        "to standard output, one picture after the other; with several pictures each answer\n"
        "follows its \"FILE: \". With --output or --sidecar they go to files, and the same\n"
        "command again goes on where the last run ended, however that was.\n",
    .specs = specs,
    .n_specs = sizeof specs / sizeof *specs,
    .take_operand = take_input,
    .notes = notes,
    .n_notes = sizeof notes / sizeof *notes,
};

void options_help(void) {
    command_line_help(&line);
}

#define CHECK(rules) command_line_check(&line, rules, sizeof(rules) / sizeof *(rules))

static lv_status check_together(const describe_options *o) {
    int n_stdin = o->files_from && !strcmp(o->files_from, "-");
    for (int i = 0; i < o->inputs.n; i++) {
        n_stdin += !strcmp(o->inputs.items[i], "-");
    }
    const usage_rule rules[] = {
        {o->inputs.n == 0 && !o->files_from && !o->chat && !o->pull, "no picture given"},
        {o->nul_separated && !o->files_from,
         "-0 says how --files-from is written, and there is none"},
        {n_stdin + o->chat > 1,
         "standard input can be only one of: a picture, --files-from -, --chat"},
        {o->chat && (o->json || o->together), "--chat goes with neither --json nor --together"},
        {o->quiet && o->verbose, "-q and -v are opposites"},
        {o->json_schema && (o->stops.n || o->params.ignore_eos),
         "--json-schema says itself where an answer ends: not with --stop or --ignore-eos"},
        {o->params.dump_dir && !o->together && (o->inputs.n > 1 || o->files_from),
         "--dump-tensors takes one question: one picture, or several --together"},
    };
    return CHECK(rules);
}

static bool ends_in(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n > n_end && !strcasecmp(text + n - n_end, end);
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

static lv_status check_captions(const describe_options *o) {
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
    return CHECK(rules);
}

static lv_status check_batch(const describe_options *o) {
    bool one_talk = o->chat || o->together;
    const usage_rule rules[] = {
        {one_talk && records(o), "--output and --sidecar go with neither --chat nor --together"},
        {one_talk && (o->failures || o->fail_fast),
         "--failures and --fail-fast go with neither --chat nor --together"},
        {one_talk && o->shard.count, "--shard goes with neither --chat nor --together"},
        {o->output && o->failures && !strcmp(o->output, o->failures),
         "--output and --failures name the same file"},
        {o->failures && is_picture_name(o->failures),
         "--failures takes a file to write, and its name is a picture's"},
    };
    return CHECK(rules);
}

static lv_status check_server(const describe_options *o) {
    const lv_model_options *m = &o->model;
    const usage_rule rules[] = {
        {!o->server && o->api_key, "--api-key goes with --server"},
        {o->server && (o->pull || o->chat || o->params.dump_dir || o->params.ignore_eos),
         "--server goes with neither --pull nor --chat nor --dump-tensors nor --ignore-eos"},
        {o->server && (m->vision_model || m->device || m->tp || m->n_threads || m->template_name ||
                       m->session_len || o->rope.type || o->engine.kv_dtype || o->engine.kv_bytes ||
                       o->engine.cache_max_entry_count > 0 || o->engine.max_sequences),
         "with --server the model's options are the server's"},
    };
    return CHECK(rules);
}

static lv_status check(const describe_options *o) {
    LV_TRY(check_together(o));
    LV_TRY(check_captions(o));
    LV_TRY(check_batch(o));
    return check_server(o);
}

bool options_parse(int argc, char **argv, describe_options *out) {
    lv_status status = command_line_parse(&line, argc, argv, out);
    if (status == LV_OK && !out->help && !out->version) {
        status = check(out);
    }
    if (status != LV_OK) {
        complain(NULL, "%s", lv_error());
        return false;
    }
    out->params.stop = (const char *const *)out->stops.items;
    out->params.n_stop = out->stops.n;
    out->model.rope_scaling = out->rope.type ? &out->rope : NULL;
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
