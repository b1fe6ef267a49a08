// Which chat template a checkpoint was trained with.
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "llm/template.h"

#define MAX_TEMPLATE_BYTES ((size_t)1 << 20)

static bool has(const char *text, const char *part) {
    return strstr(text, part) != NULL;
}

// By words that only one of the templates holds; LV_N_TEMPLATES where none is recognised.
static lv_template_id recognise(const char *jinja) {
    if (has(jinja, "<|im_start|>")) {
        return LV_TEMPLATE_CHATML_DIRECT;
    }
    if (has(jinja, "[INST]")) {
        return has(jinja, "helpful language and vision assistant") ? LV_TEMPLATE_LLAVA_LLAMA_2
                                                                   : LV_TEMPLATE_MISTRAL_INSTRUCT;
    }
    if (has(jinja, "A chat between a curious human")) {
        return LV_TEMPLATE_LLAVA_V1;
    }
    if (has(jinja, "A chat between a curious user")) {
        return LV_TEMPLATE_VICUNA_V1;
    }
    return has(jinja, "ASSISTANT:") ? LV_TEMPLATE_LLAVA_HF : LV_N_TEMPLATES;
}

static lv_status recognise_jinja(const char *dir, lv_template_id *out) {
    char path[4096];
    snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
    if (access(path, F_OK) != 0) {
        return LV_OK;
    }
    lv_buffer file = {0};
    lv_status status = lv_file_read(path, MAX_TEMPLATE_BYTES, &file);
    if (status == LV_OK) {
        *out = recognise((const char *)file.data);
    }
    lv_buffer_free(&file);
    return status;
}

// The same where the template stands in a JSON file, unless one is recognised already.
static lv_status recognise_json(const char *dir, const char *name, lv_template_id *out) {
    json_t *root = NULL;
    if (*out == LV_N_TEMPLATES) {
        LV_TRY(lv_text_json(dir, name, &root));
        const char *jinja = json_string_value(json_object_get(root, "chat_template"));
        *out = jinja ? recognise(jinja) : LV_N_TEMPLATES;
        json_decref(root);
    }
    return LV_OK;
}

// The folder's own name in lower case; in the hub's cache ("models--org--name/snapshots/HASH") the
// model's.
static void folder_name(const char *dir, char *out, size_t n_bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s", dir);
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) {
        path[n - 1] = 0;
    }
    char *snapshots = strstr(path, "/snapshots/");
    if (snapshots) {
        *snapshots = 0;
    }
    const char *slash = strrchr(path, '/');
    snprintf(out, n_bytes, "%s", slash ? slash + 1 : path);
    for (char *c = out; *c; c++) {
        *c = (char)tolower((unsigned char)*c);
    }
}

// As the original code does, by name (llava/eval/run_llava.py), and by what the text model is.
static lv_template_id by_model(const lv_config *config, const char *dir) {
    char name[256];
    folder_name(dir, name, sizeof name);
    if (strcmp(config->text_model_type, "mistral") == 0 || has(name, "mistral")) {
        return LV_TEMPLATE_MISTRAL_INSTRUCT;
    }
    bool is_yi = config->text.vocab_size >= 64000 && config->text.vocab_size <= 64064;
    if (is_yi || has(name, "v1.6-34b")) {
        return LV_TEMPLATE_CHATML_DIRECT;
    }
    if (has(name, "llama-2")) {
        return LV_TEMPLATE_LLAVA_LLAMA_2;
    }
    bool hf_1_5 = config->family == LV_FAMILY_HF && !config->is_next;
    return hf_1_5 ? LV_TEMPLATE_LLAVA_HF : LV_TEMPLATE_LLAVA_V1;
}

static lv_status by_name(const char *name, int *out) {
    const char *const *names = lv_template_names();
    char all[256] = "";
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], name) == 0) {
            *out = i;
            return LV_OK;
        }
        size_t n = strlen(all);
        snprintf(all + n, sizeof all - n, "%s%s", n ? ", " : "", names[i]);
    }
    return lv_fail(LV_EINVAL, "no template \"%s\"; there are %s", name, all);
}

lv_status lv_template_choose(const lv_config *config, const char *dir, const char *name, int *out) {
    if (name) {
        return by_name(name, out);
    }
    lv_template_id id = LV_N_TEMPLATES;
    if (config->family == LV_FAMILY_HF) {
        LV_TRY(recognise_jinja(dir, &id));
        LV_TRY(recognise_json(dir, "chat_template.json", &id));
        LV_TRY(recognise_json(dir, "tokenizer_config.json", &id));
    }
    *out = (int)(id == LV_N_TEMPLATES ? by_model(config, dir) : id);
    return LV_OK;
}
