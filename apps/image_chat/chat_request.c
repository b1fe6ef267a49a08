// A chat request's fields: everything but the messages.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "apps/image_chat/chat.h"

#define DEFAULT_TEMPERATURE 0.2f // LLaVA's own
#define MAX_TOKENS 16777216

// What the table below fills, besides the parameters.
typedef struct raw_request {
    lv_params params;
    const char *model;
    int max_tokens, max_completion_tokens, n, top_logprobs;
    int64_t seed;
    bool stream, logprobs;
} raw_request;

#define AT(field) offsetof(raw_request, field)

static const field fields[] = {
    {"messages", FIELD_ANY, 0, 0, 0, NULL},
    {"model", FIELD_STRING, 0, 1024, AT(model), NULL},
    {"stream", FIELD_BOOL, 0, 0, AT(stream), NULL},
    {"stream_options", FIELD_ANY, 0, 0, 0, NULL},
    {"max_tokens", FIELD_INTEGER, 1, MAX_TOKENS, AT(max_tokens), NULL},
    {"max_completion_tokens", FIELD_INTEGER, 1, MAX_TOKENS, AT(max_completion_tokens), NULL},
    {"n", FIELD_INTEGER, 1, MAX_CHOICES, AT(n), NULL},
    {"temperature", FIELD_NUMBER, 0, 2, AT(params.temperature), NULL},
    {"top_p", FIELD_NUMBER, 0, 1, AT(params.top_p), NULL},
    {"top_k", FIELD_INTEGER, 0, 1000000, AT(params.top_k), NULL},
    {"min_p", FIELD_NUMBER, 0, 1, AT(params.min_p), NULL},
    {"presence_penalty", FIELD_NUMBER, -2, 2, AT(params.presence_penalty), NULL},
    {"frequency_penalty", FIELD_NUMBER, -2, 2, AT(params.frequency_penalty), NULL},
    {"repetition_penalty", FIELD_NUMBER, 0.01, 10, AT(params.repetition_penalty), NULL},
    {"seed", FIELD_INTEGER64, 0, 0, AT(seed), NULL},
    {"stop", FIELD_ANY, 0, 0, 0, NULL},
    {"logprobs", FIELD_BOOL, 0, 0, AT(logprobs), NULL},
    {"top_logprobs", FIELD_INTEGER, 0, LV_MAX_TOP_LOGPROBS, AT(top_logprobs), NULL},
    {"response_format", FIELD_ANY, 0, 0, 0, NULL},
    {"modalities", FIELD_ANY, 0, 0, 0, NULL},
    {"user", FIELD_IGNORED, 0, 0, 0, NULL},
    {"metadata", FIELD_IGNORED, 0, 0, 0, NULL},
    {"store", FIELD_IGNORED, 0, 0, 0, NULL},
    {"service_tier", FIELD_IGNORED, 0, 0, 0, NULL},
    {"parallel_tool_calls", FIELD_IGNORED, 0, 0, 0, NULL},
    {"safety_identifier", FIELD_IGNORED, 0, 0, 0, NULL},
    {"prompt_cache_key", FIELD_IGNORED, 0, 0, 0, NULL},
    {"prompt_cache_retention", FIELD_IGNORED, 0, 0, 0, NULL},
    {"tools", FIELD_REFUSED, 0, 0, 0, "this model calls no tools"},
    {"tool_choice", FIELD_REFUSED, 0, 0, 0, "this model calls no tools"},
    {"functions", FIELD_REFUSED, 0, 0, 0, "this model calls no functions"},
    {"function_call", FIELD_REFUSED, 0, 0, 0, "this model calls no functions"},
    {"audio", FIELD_REFUSED, 0, 0, 0, "this model neither hears nor speaks"},
    {"logit_bias", FIELD_REFUSED, 0, 0, 0, "is not supported"},
    {"prediction", FIELD_REFUSED, 0, 0, 0, "is not supported"},
    {"reasoning_effort", FIELD_REFUSED, 0, 0, 0, "this model does not reason apart"},
    {"verbosity", FIELD_REFUSED, 0, 0, 0, "is not supported; say in the question how long"},
    {"web_search_options", FIELD_REFUSED, 0, 0, 0, "this model searches nothing"},
};

static bool check_model(const server *s, const char *name, api_error *error) {
    if (!name || strcmp(name, s->info.name) == 0) {
        return true;
    }
    return fail_with(error, 404, "model_not_found", "model",
                     "There is no model \"%.200s\" here; this server has \"%.200s\".", name,
                     s->info.name);
}

static bool read_stream_options(json_t *root, chat_request *out, api_error *error) {
    static const field options[] = {
        {"include_usage", FIELD_BOOL, 0, 0, offsetof(chat_request, include_usage), NULL},
        {"include_obfuscation", FIELD_IGNORED, 0, 0, 0, NULL},
    };
    json_t *value = field_get(root, "stream_options");
    if (!value) {
        return true;
    }
    if (!out->stream) {
        return fail_with(error, 400, "invalid_value", "stream_options",
                         "stream_options: only where stream is true.");
    }
    return fields_read(value, "stream_options", options, 2, out, error);
}

static bool add_stop(json_t *value, chat_request *out, api_error *error) {
    size_t n = json_string_length(value);
    if (!json_is_string(value)) {
        return fail_with(error, 400, "invalid_type", "stop",
                         "stop: expected a string or a list of strings.");
    }
    if (n < 1 || n > LV_MAX_STOP_BYTES) {
        return fail_with(error, 400, "invalid_value", "stop",
                         "stop: expected strings of 1 to %d bytes.", LV_MAX_STOP_BYTES);
    }
    char *copy = strdup(json_string_value(value));
    if (!copy) {
        return fail_with(error, 503, "out_of_memory", NULL, "The server is out of memory.");
    }
    out->stops[out->params.n_stop++] = copy;
    return true;
}

static bool read_stops(json_t *root, chat_request *out, api_error *error) {
    json_t *value = field_get(root, "stop"), *one;
    size_t i;
    if (!value) {
        return true;
    }
    if (!json_is_array(value)) {
        return add_stop(value, out, error);
    }
    if (json_array_size(value) > LV_MAX_STOPS) {
        return fail_with(error, 400, "invalid_value", "stop", "stop: more than %d strings.",
                         LV_MAX_STOPS);
    }
    json_array_foreach(value, i, one) {
        if (!add_stop(one, out, error)) {
            return false;
        }
    }
    return true;
}

static bool compile(const json_t *schema, chat_request *out, api_error *error) {
    static const char name[] = "response_format.json_schema.schema";
    lv_grammar *grammar = NULL;
    char *text = schema ? json_dumps(schema, JSON_COMPACT) : NULL;
    if (schema && !text) {
        return fail_with(error, 503, "out_of_memory", NULL, "The server is out of memory.");
    }
    if (text && lift_is_mark(text)) { // a constant of a kilobyte, by the looks of a picture
        free(text);
        return fail_with(error, 400, "invalid_json_schema", name, "%s: a URI that long.", name);
    }
    lv_status status = lv_grammar_compile(text, text ? strlen(text) : 0, name, &grammar);
    free(text);
    out->params.grammar = grammar;
    return status == LV_OK || fail_with(error, 400, "invalid_json_schema", name, "%s", lv_error());
}

static bool read_schema(json_t *format, chat_request *out, api_error *error) {
    static const char where[] = "response_format.json_schema";
    struct {
        const char *name, *description;
        bool strict;
    } raw = {0};
    static const field members[] = {
        {"name", FIELD_STRING, 0, 64, 0, NULL},
        {"description", FIELD_STRING, 0, 65536, sizeof(char *), NULL},
        {"schema", FIELD_ANY, 0, 0, 0, NULL},
        {"strict", FIELD_BOOL, 0, 0, 2 * sizeof(char *), NULL},
    };
    json_t *value = field_get(format, "json_schema");
    if (!value) {
        return fail_with(error, 400, "missing_parameter", where, "%s: is missing.", where);
    }
    if (!fields_read(value, where, members, 4, &raw, error)) {
        return false;
    }
    json_t *schema = field_get(value, "schema");
    if (schema && !json_is_object(schema)) {
        return fail_with(error, 400, "invalid_type", "response_format.json_schema.schema",
                         "response_format.json_schema.schema: expected an object.");
    }
    return compile(schema, out, error);
}

static bool read_format(json_t *root, chat_request *out, api_error *error) {
    static const field members[] = {
        {"type", FIELD_STRING, 0, 64, 0, NULL},
        {"json_schema", FIELD_ANY, 0, 0, 0, NULL},
    };
    const char *type = NULL;
    json_t *value = field_get(root, "response_format");
    if (!value) {
        return true;
    }
    if (!fields_read(value, "response_format", members, 2, &type, error)) {
        return false;
    }
    if (type && strcmp(type, "json_schema") == 0) {
        return read_schema(value, out, error);
    }
    if (field_get(value, "json_schema")) {
        return fail_with(error, 400, "invalid_value", "response_format.json_schema",
                         "response_format.json_schema: only where type is \"json_schema\".");
    }
    if (type && strcmp(type, "json_object") == 0) {
        return compile(NULL, out, error);
    }
    return (type && strcmp(type, "text") == 0) ||
           fail_with(error, 400, "invalid_value", "response_format.type",
                     "response_format.type: expected \"text\", \"json_object\" or "
                     "\"json_schema\".");
}

// ["text"] is what there is.
static bool check_modalities(json_t *root, api_error *error) {
    json_t *value = field_get(root, "modalities"), *one;
    size_t i;
    bool ok = !value || json_is_array(value);
    json_array_foreach(value, i, one) {
        ok = ok && json_is_string(one) && strcmp(json_string_value(one), "text") == 0;
    }
    return ok || fail_with(error, 400, "unsupported_parameter", "modalities",
                           "modalities: answers are \"text\" only.");
}

static bool settle(const server *s, const raw_request *raw, json_t *root, chat_request *out,
                   api_error *error) {
    lv_params *p = &out->params;
    *p = raw->params;
    if (raw->max_tokens && raw->max_completion_tokens &&
        raw->max_tokens != raw->max_completion_tokens) {
        return fail_with(error, 400, "invalid_value", "max_completion_tokens",
                         "max_tokens and max_completion_tokens: two names of one limit, and two "
                         "values.");
    }
    p->max_tokens = raw->max_completion_tokens ? raw->max_completion_tokens : raw->max_tokens;
    p->max_tokens = p->max_tokens ? p->max_tokens : s->options->max_tokens;
    if (p->top_p <= 0) { // the likeliest token alone is left
        p->top_p = 1;
        p->top_k = 1;
    }
    p->logprobs = raw->logprobs;
    p->top_logprobs = raw->top_logprobs;
    if (raw->top_logprobs && !raw->logprobs) {
        return fail_with(error, 400, "invalid_value", "top_logprobs",
                         "top_logprobs: only where logprobs is true.");
    }
    out->has_seed = field_get(root, "seed") != NULL;
    p->seed = (uint64_t)raw->seed;
    if (!out->has_seed && getrandom(&p->seed, sizeof p->seed, 0) != sizeof p->seed) {
        return fail_with(error, 500, "internal_error", NULL, "The server failed.");
    }
    out->n_choices = raw->n;
    out->stream = raw->stream;
    return true;
}

bool chat_request_read(const server *s, json_t *root, const lift *uris, chat_request *out,
                       api_error *error) {
    raw_request raw = {.params = {.temperature = DEFAULT_TEMPERATURE, .top_p = 1}, .n = 1};
    if (!fields_read(root, "", fields, sizeof fields / sizeof *fields, &raw, error) ||
        !check_model(s, raw.model, error) || !settle(s, &raw, root, out, error) ||
        !check_modalities(root, error) || !read_stream_options(root, out, error) ||
        !read_stops(root, out, error) || !read_format(root, out, error)) {
        return false;
    }
    json_t *messages = field_get(root, "messages");
    if (!messages) {
        return fail_with(error, 400, "missing_parameter", "messages", "messages: is missing.");
    }
    return chat_messages_read(s, messages, uris, out, error);
}

lv_picture_info chat_picture_info(const chat_picture *picture) {
    return picture->picture ? lv_picture_describe(picture->picture) : picture->info;
}

void chat_request_free(chat_request *request) {
    for (int i = 0; i < request->n_messages; i++) {
        free((char *)request->messages[i].text);
    }
    for (int i = 0; i < request->n_pictures; i++) {
        free(request->pictures[i].url);
        lv_picture_free(request->pictures[i].picture);
    }
    for (int i = 0; i < request->params.n_stop; i++) {
        free(request->stops[i]);
    }
    lv_grammar_free((lv_grammar *)request->params.grammar);
    free(request->messages);
    free(request->pictures);
    free(request->shown);
    free(request->first_picture);
    *request = (chat_request){0};
}
