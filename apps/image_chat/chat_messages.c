// The messages of a chat request: roles, texts, pictures.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/image_chat/chat.h"
#include "apps/image_chat/guard.h"

#define MAX_TEXT_BYTES ((size_t)4 << 20)
#define MAX_SYSTEM_MESSAGES 16

typedef struct reader {
    const server *server;
    const lift *uris;
    chat_request *out;
    api_error *error;
    char where[80]; // "messages[1].content[0]"
    out_text text;  // of the message at hand
    bool takes_pictures;
    int n_system;
} reader;

static bool fail(reader *r, int status, const char *code, const char *what, const char *why) {
    char path[96];
    snprintf(path, sizeof path, "%s%s", r->where, what);
    return fail_with(r->error, status, code, path, "%s: %s", path, why);
}

static bool out_of_memory(reader *r) {
    return fail_with(r->error, 503, "out_of_memory", NULL, "The server is out of memory.");
}

// --- pictures ------------------------------------------------------------------------------------

static bool add_data(reader *r, const char *uri, chat_picture *picture) {
    const server_options *o = r->server->options;
    const lv_picture_limits limits = {.max_bytes = o->max_image_bytes, .max_pixels = o->max_pixels};
    lv_buffer bytes = {0};
    const lifted data = lift_find(r->uris, uri);
    lv_status status = data_uri_decode(data.uri, data.n_bytes, o->max_image_bytes, &bytes);
    if (status == LV_OK) {
        status = lv_picture_bytes_later(r->server->model, bytes.data, bytes.n_bytes, &limits,
                                        &picture->picture);
    }
    lv_buffer_free(&bytes);
    switch (status) {
    case LV_OK:
        return true;
    case LV_ELIMIT:
        return fail(r, 413, "image_too_large", ".image_url.url", lv_error());
    case LV_ENOMEM:
        return out_of_memory(r);
    default:
        return fail(r, 400, "invalid_image", ".image_url.url", lv_error());
    }
}

static bool add_url(reader *r, const char *url, chat_picture *picture) {
    if (strncasecmp(url, "http://", 7) != 0 && strncasecmp(url, "https://", 8) != 0) {
        return fail(r, 400, "invalid_image_url", ".image_url.url",
                    "expected a data: URI with base64, or an http(s) URL.");
    }
    if (!r->server->options->allow_url_fetch) {
        return fail(r, 400, "url_fetch_disabled", ".image_url.url",
                    "this server fetches no URLs; send the picture as a data: URI (or start the "
                    "server with --allow-url-fetch).");
    }
    if (strlen(url) > 8192) {
        return fail(r, 400, "invalid_image_url", ".image_url.url", "a URL over 8192 bytes.");
    }
    picture->url = strdup(url);
    r->out->has_urls = true;
    return picture->url ? true : out_of_memory(r);
}

static bool add_picture(reader *r, json_t *part) {
    static const field members[] = {
        {"url", FIELD_ANY, 0, 0, 0, NULL},
        {"detail", FIELD_STRING, 0, 16, 0, NULL},
    };
    chat_request *out = r->out;
    json_t *image = field_get(part, "image_url");
    const char *detail = "auto";
    char where[96];
    snprintf(where, sizeof where, "%s.image_url", r->where);
    if (!r->takes_pictures) {
        return fail(r, 400, "invalid_value", "", "pictures stand in messages of the user only.");
    }
    if (!image) {
        return fail(r, 400, "missing_parameter", ".image_url", "is missing.");
    }
    if (!fields_read(image, where, members, 2, &detail, r->error)) {
        return false;
    }
    if (strcmp(detail, "auto") != 0 && strcmp(detail, "low") != 0 && strcmp(detail, "high") != 0) {
        return fail(r, 400, "invalid_value", ".image_url.detail",
                    "expected \"auto\", \"low\" or \"high\".");
    }
    json_t *url = field_get(image, "url");
    if (!json_is_string(url)) {
        return fail(r, 400, url ? "invalid_type" : "missing_parameter", ".image_url.url",
                    "expected a string.");
    }
    if (out->n_pictures == r->server->options->max_images) {
        return fail(r, 413, "too_many_images", "", "more pictures than this server takes.");
    }
    chat_picture *grown =
        realloc(out->pictures, (size_t)(out->n_pictures + 1) * sizeof *out->pictures);
    if (!grown) {
        return out_of_memory(r);
    }
    out->pictures = grown;
    out->pictures[out->n_pictures++] = (chat_picture){0};
    chat_picture *picture = &out->pictures[out->n_pictures - 1];
    const char *text = json_string_value(url);
    return strncasecmp(text, "data:", 5) == 0 ? add_data(r, text, picture)
                                              : add_url(r, text, picture);
}

// --- texts ---------------------------------------------------------------------------------------

static bool add_text(reader *r, json_t *value, const char *what) {
    if (!json_is_string(value)) {
        return fail(r, 400, value ? "invalid_type" : "missing_parameter", what,
                    "expected a string.");
    }
    out_bytes(&r->text, json_string_value(value), json_string_length(value));
    return !r->text.failed ||
           fail(r, 413, "context_length_exceeded", what, "a text of more than 4 MiB.");
}

static bool add_part(reader *r, json_t *part) {
    static const field text_members[] = {
        {"type", FIELD_STRING, 0, 64, 0, NULL},
        {"text", FIELD_ANY, 0, 0, 0, NULL},
    };
    static const field image_members[] = {
        {"type", FIELD_STRING, 0, 64, 0, NULL},
        {"image_url", FIELD_ANY, 0, 0, 0, NULL},
    };
    json_t *type = json_is_object(part) ? field_get(part, "type") : NULL;
    const char *name = json_string_value(type);
    if (!name) {
        return fail(r, 400, "invalid_type", "", "expected an object with a \"type\".");
    }
    if (strcmp(name, "text") == 0) {
        return fields_read(part, r->where, text_members, 2, &name, r->error) &&
               add_text(r, field_get(part, "text"), ".text");
    }
    if (strcmp(name, "image_url") == 0) {
        return fields_read(part, r->where, image_members, 2, &name, r->error) &&
               add_picture(r, part);
    }
    return fail(r, 400, "unsupported_content", ".type",
                "expected \"text\" or \"image_url\"; this model takes nothing else.");
}

static bool read_content(reader *r, json_t *content, size_t index) {
    size_t i;
    json_t *part;
    if (!json_is_array(content)) {
        return add_text(r, content, ".content");
    }
    if (json_array_size(content) == 0) {
        return fail(r, 400, "invalid_value", ".content", "an empty list.");
    }
    json_array_foreach(content, i, part) {
        snprintf(r->where, sizeof r->where, "messages[%zu].content[%zu]", index, i);
        if (r->text.buffer.n_bytes > 0 && json_string_value(field_get(part, "text"))) {
            out_put(&r->text, "\n"); // texts that stand apart stay apart
        }
        if (!add_part(r, part)) {
            return false;
        }
    }
    return true;
}

// --- messages ------------------------------------------------------------------------------------

static const field message_members[] = {
    {"role", FIELD_STRING, 0, 64, 0, NULL},
    {"content", FIELD_ANY, 0, 0, 0, NULL},
    {"name", FIELD_IGNORED, 0, 0, 0, NULL},
    {"annotations", FIELD_IGNORED, 0, 0, 0, NULL},
    {"refusal", FIELD_REFUSED, 0, 0, 0, "is not supported"},
    {"audio", FIELD_REFUSED, 0, 0, 0, "this model neither hears nor speaks"},
    {"tool_calls", FIELD_REFUSED, 0, 0, 0, "this model calls no tools"},
    {"tool_call_id", FIELD_REFUSED, 0, 0, 0, "this model calls no tools"},
    {"function_call", FIELD_REFUSED, 0, 0, 0, "this model calls no functions"},
};

// "developer" is the newer name of "system".
static const char *role_of(const char *name) {
    static const char *const roles[] = {"system", "user", "assistant"};
    if (name && strcmp(name, "developer") == 0) {
        return roles[0];
    }
    for (size_t i = 0; name && i < sizeof roles / sizeof *roles; i++) {
        if (strcmp(roles[i], name) == 0) {
            return roles[i];
        }
    }
    return NULL;
}

// System texts stand in front, and become one.
static bool append_message(reader *r, const char *role, int first_picture) {
    chat_request *out = r->out;
    bool is_system = strcmp(role, "system") == 0;
    lv_message *before = out->n_messages ? &out->messages[out->n_messages - 1] : NULL;
    const char *text = r->text.buffer.data ? (const char *)r->text.buffer.data : "";
    char *copy = NULL;
    if (is_system && ++r->n_system > MAX_SYSTEM_MESSAGES) {
        return fail(r, 400, "invalid_value", "", "more than 16 system messages.");
    }
    if (is_system && before) {
        if (strcmp(before->role, "system") != 0) {
            return fail(r, 400, "invalid_value", ".role",
                        "system messages stand in front of all others.");
        }
        if (asprintf(&copy, "%s\n%s", before->text, text) < 0) {
            return out_of_memory(r);
        }
        free((char *)before->text);
        before->text = copy;
        return true;
    }
    copy = strdup(text);
    if (!copy) {
        return out_of_memory(r);
    }
    out->first_picture[out->n_messages] = first_picture;
    out->messages[out->n_messages++] =
        (lv_message){.role = role, .text = copy, .n_pictures = out->n_pictures - first_picture};
    return true;
}

static bool read_message(reader *r, json_t *message, size_t index) {
    const char *name = NULL;
    int first_picture = r->out->n_pictures;
    snprintf(r->where, sizeof r->where, "messages[%zu]", index);
    if (!fields_read(message, r->where, message_members,
                     sizeof message_members / sizeof *message_members, &name, r->error)) {
        return false;
    }
    const char *role = role_of(name);
    if (!role) {
        return fail(r, 400, name ? "invalid_value" : "missing_parameter", ".role",
                    "expected \"system\", \"developer\", \"user\" or \"assistant\".");
    }
    r->takes_pictures = strcmp(role, "user") == 0;
    lv_buffer_free(&r->text.buffer);
    r->text.buffer.max_bytes = MAX_TEXT_BYTES;
    if (!read_content(r, field_get(message, "content"), index)) {
        return false;
    }
    snprintf(r->where, sizeof r->where, "messages[%zu]", index);
    return append_message(r, role, first_picture);
}

static bool read_all(reader *r, json_t *messages) {
    chat_request *out = r->out;
    size_t n = json_array_size(messages), i;
    json_t *message;
    out->messages = calloc(n, sizeof *out->messages);
    out->first_picture = calloc(n, sizeof *out->first_picture);
    if (!out->messages || !out->first_picture) {
        return out_of_memory(r);
    }
    json_array_foreach(messages, i, message) {
        if (!read_message(r, message, i)) {
            return false;
        }
    }
    out->shown = calloc((size_t)out->n_pictures + 1, sizeof(lv_picture *));
    if (!out->shown) {
        return out_of_memory(r);
    }
    for (int m = 0; m < out->n_messages; m++) {
        out->messages[m].pictures = out->shown + out->first_picture[m];
    }
    return strcmp(out->messages[out->n_messages - 1].role, "user") == 0 ||
           fail(r, 400, "invalid_value", ".role", "the last message is the user's.");
}

bool chat_messages_read(const server *s, json_t *messages, const lift *uris, chat_request *out,
                        api_error *error) {
    reader r = {
        .server = s, .uris = uris, .out = out, .error = error, .text = OUT_TEXT(MAX_TEXT_BYTES)};
    size_t n = json_array_size(messages);
    if (!json_is_array(messages)) {
        return fail_with(error, 400, "invalid_type", "messages", "messages: expected a list.");
    }
    if (n < 1 || n > MAX_MESSAGES) {
        return fail_with(error, 400, "invalid_value", "messages",
                         "messages: expected 1 to %d of them.", MAX_MESSAGES);
    }
    bool ok = read_all(&r, messages);
    out_free(&r.text);
    return ok;
}
