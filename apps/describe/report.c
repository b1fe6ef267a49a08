// What is known about an answer: -v for people, --json for programs.
#include "describe.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static double peak_memory_mb(void) {
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024 / 1e6; // ru_maxrss is in KiB
}

void report_model(const describe_app *app) {
    const lv_model_info *info = &app->info;
    lv_engine_stats stats;
    lv_engine_snapshot(app->engine, &stats);
    fprintf(stderr,
            "model     %s (%s)\n"
            "weights   %.1f MB, loaded in %.0f ms\n"
            "template  %s\n"
            "session   %d tokens\n"
            "device    %s\n"
            "cache     %d tokens in %.0f MB, %d answer%s at once\n"
            "memory    %.0f MB\n",
            info->name, info->dir, (double)info->weight_bytes / 1e6, info->load_ms,
            info->template_name, info->session_len, info->device,
            stats.n_kv_blocks * stats.block_tokens, (double)stats.kv_bytes / 1e6, app->n_sequences,
            app->n_sequences > 1 ? "s" : "", peak_memory_mb());
    if (*info->no_gpu) {
        fprintf(stderr, "no GPU    %s\n", info->no_gpu);
    }
    if (stats.device_used_bytes) {
        fprintf(stderr,
                "on it     %.2f GB weights, work space and caches (%.2f GB keys and values), "
                "%.2f GB free\n",
                (double)stats.device_used_bytes / 1e9, (double)stats.kv_bytes / 1e9,
                (double)stats.device_free_bytes / 1e9);
    }
}

void report_engine(const describe_app *app) {
    lv_engine_stats stats;
    lv_engine_snapshot(app->engine, &stats);
    double n_passes = stats.n_passes > 0 ? (double)stats.n_passes : 1;
    fprintf(stderr,
            "engine    saw %llu pictures in %.2f s; %llu passes of %.0f tokens each in %.2f s; "
            "%llu of %llu prompt tokens shared\n",
            (unsigned long long)stats.n_images, stats.encode_ms / 1e3,
            (unsigned long long)stats.n_passes, (double)stats.n_pass_tokens / n_passes,
            stats.pass_ms / 1e3, (unsigned long long)stats.n_reused_tokens,
            (unsigned long long)stats.n_prompt_tokens);
}

static void stage(const char *name, double ms, int n_tokens) {
    fprintf(stderr, "  %-12s %9.1f ms", name, ms);
    if (n_tokens > 0 && ms > 0) {
        fprintf(stderr, "  %5d tokens  %8.1f tokens/s", n_tokens, n_tokens * 1e3 / ms);
    }
    fputc('\n', stderr);
}

void report_answer(const char *label, const lv_picture_info *infos, int n,
                   const lv_answer *answer) {
    double load_ms = 0, preprocess_ms = 0;
    char *line = clean_line(label);
    fprintf(stderr, "%s\n", line ? line : "");
    free(line);
    for (int i = 0; i < n; i++) {
        const lv_picture_info info = infos[i];
        load_ms += info.load_ms;
        preprocess_ms += info.preprocess_ms;
        fprintf(stderr, "  picture      %d x %d, %d tile%s of %d x %d, %d tokens\n", info.width,
                info.height, info.n_tiles, info.n_tiles > 1 ? "s" : "", info.tile_size,
                info.tile_size, info.n_tokens);
    }
    int n_new = answer->n_prompt_tokens - answer->n_reused_tokens;
    if (n > 0) {
        stage("read, decode", load_ms, 0);
        stage("preprocess", preprocess_ms, 0);
        stage("see", answer->encode_ms, answer->n_image_tokens);
    }
    stage("read prompt", answer->prefill_ms, n_new);
    stage("answer", answer->decode_ms, answer->n_tokens);
    stage("all",
          load_ms + preprocess_ms + answer->encode_ms + answer->prefill_ms + answer->decode_ms, 0);
    fprintf(stderr, "  first word after %.1f ms; finish: %s; memory %.0f MB at most\n",
            load_ms + preprocess_ms + answer->first_token_ms, lv_finish_name(answer->finish),
            peak_memory_mb());
}

static json_t *text_json(const char *text) {
    char *clean = clean_utf8(text);
    json_t *value = clean ? json_string(clean) : NULL;
    free(clean);
    return value;
}

static json_t *ms_json(double ms) {
    return json_real(round(ms * 100) / 100);
}

static json_t *image_json(const describe_input *input, const lv_picture_info *info) {
    return json_pack("{s:o, s:i, s:i, s:i, s:i, s:i}", "source", text_json(input->label), "width",
                     info->width, "height", info->height, "tiles", info->n_tiles, "tile_size",
                     info->tile_size, "tokens", info->n_tokens);
}

char *answer_json(const describe_input *inputs, const lv_picture_info *infos, int n,
                  const lv_answer *answer) {
    double load_ms = 0, preprocess_ms = 0;
    json_t *images = json_array();
    for (int i = 0; i < n; i++) {
        const lv_picture_info info = infos[i];
        load_ms += info.load_ms;
        preprocess_ms += info.preprocess_ms;
        json_array_append_new(images, image_json(&inputs[i], &info));
    }
    json_t *usage = json_pack("{s:i, s:i, s:i, s:i}", "prompt_tokens", answer->n_prompt_tokens,
                              "image_tokens", answer->n_image_tokens, "cached_tokens",
                              answer->n_reused_tokens, "completion_tokens", answer->n_tokens);
    json_t *timings =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "load", ms_json(load_ms), "preprocess",
                  ms_json(preprocess_ms), "encode", ms_json(answer->encode_ms), "prefill",
                  ms_json(answer->prefill_ms), "decode", ms_json(answer->decode_ms), "first_token",
                  ms_json(load_ms + preprocess_ms + answer->first_token_ms));
    json_t *object =
        json_pack("{s:o, s:o, s:s, s:o, s:o, s:o}", "source", text_json(inputs[0].label), "text",
                  text_json(answer->text), "finish_reason", lv_finish_name(answer->finish),
                  "images", images, "usage", usage, "timings_ms", timings);
    char *line = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(object);
    if (!line) {
        complain(inputs[0].label, "out of memory");
    }
    return line;
}
