// A question on its way to a server, and the answer's stream on its way back.
#include <curl/curl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "core/json.h"

#define MAX_LINE_BYTES ((size_t)16 << 20)
#define MAX_TEXT_BYTES ((size_t)64 << 20)
#define MAX_ERROR_BYTES ((size_t)64 << 10)
#define CONNECT_S 10L
#define SILENCE_S 120L // a server that lives says something every few seconds

// --- the question --------------------------------------------------------------------------------

static lv_status put(lv_buffer *out, const char *text) {
    return lv_buffer_append(out, text, strlen(text));
}

static lv_status put_base64(lv_buffer *out, const lv_buffer *data) {
    enum { PIECE = 3 << 12 };
    char text[PIECE / 3 * 4 + 1];
    for (size_t at = 0; at < data->n_bytes; at += PIECE) {
        size_t n = data->n_bytes - at < PIECE ? data->n_bytes - at : PIECE;
        int n_text = EVP_EncodeBlock((unsigned char *)text, data->data + at, (int)n);
        LV_TRY(lv_buffer_append(out, text, (size_t)n_text));
    }
    return LV_OK;
}

// Takes `value`.
static lv_status put_json(lv_buffer *out, json_t *value) {
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    json_decref(value);
    lv_status status = text ? put(out, text) : lv_fail(LV_ENOMEM, "out of memory");
    free(text);
    return status;
}

static json_t *clean_json(const char *text) {
    char *clean = clean_utf8(text);
    json_t *value = clean ? json_string(clean) : NULL;
    free(clean);
    return value;
}

static void set_real(json_t *object, const char *name, float value, float absent) {
    if (value < absent || value > absent) {
        char text[32]; // 0.1f is 0.1, not 0.10000000149
        snprintf(text, sizeof text, "%.7g", (double)value);
        json_object_set_new(object, name, json_real(strtod(text, NULL)));
    }
}

static void set_whole(json_t *object, const char *name, json_int_t value) {
    if (value) {
        json_object_set_new(object, name, json_integer(value));
    }
}

static lv_status set_schema(json_t *object, const char *path) {
    json_t *schema = NULL;
    if (!path) {
        return LV_OK;
    }
    LV_TRY(lv_json_load(path, LV_SCHEMA_MAX_BYTES, &schema));
    json_object_set_new(object, "response_format",
                        json_pack("{s:s, s:{s:s, s:o}}", "type", "json_schema", "json_schema",
                                  "name", "answer", "schema", schema));
    return LV_OK;
}

// All but the messages.
static lv_status settings(const describe_options *o, const char *model, json_t **out) {
    const lv_params *p = &o->params;
    json_t *root = json_pack("{s:s, s:b, s:{s:b}}", "model", model, "stream", 1, "stream_options",
                             "include_usage", 1);
    *out = root;
    if (!root) {
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    json_object_set_new(root, "temperature", json_integer(0));
    set_real(root, "temperature", p->temperature, 0);
    set_real(root, "top_p", p->top_p, 0);
    set_real(root, "min_p", p->min_p, 0);
    set_real(root, "repetition_penalty", p->repetition_penalty, 0);
    set_real(root, "presence_penalty", p->presence_penalty, 0);
    set_real(root, "frequency_penalty", p->frequency_penalty, 0);
    set_whole(root, "top_k", p->top_k);
    set_whole(root, "max_tokens", p->max_tokens ? p->max_tokens : 512);
    json_object_set_new(root, "seed", json_integer((json_int_t)p->seed));
    for (int i = 0; i < p->n_stop; i++) {
        json_t *stops = i ? json_object_get(root, "stop") : json_array();
        json_array_append_new(stops, clean_json(p->stop[i]));
        if (i == 0) {
            json_object_set_new(root, "stop", stops);
        }
    }
    return set_schema(root, o->json_schema);
}

static lv_status put_messages(const describe_options *o, lv_buffer *pictures, int n,
                              lv_buffer *out) {
    const char *prompt = answer_prompt(o, n);
    LV_TRY(put(out, ",\"messages\":["));
    if (o->system) {
        LV_TRY(put_json(
            out, json_pack("{s:s, s:o}", "role", "system", "content", clean_json(o->system))));
        LV_TRY(put(out, ","));
    }
    LV_TRY(put(out, "{\"role\":\"user\",\"content\":["));
    for (int i = 0; i < n; i++) {
        LV_TRY(put(out, "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/*;base64,"));
        LV_TRY(put_base64(out, &pictures[i]));
        LV_TRY(put(out, "\"}},"));
        lv_buffer_free(&pictures[i]); // megabytes
    }
    LV_TRY(put_json(out, json_pack("{s:s, s:o}", "type", "text", "text", clean_json(prompt))));
    return put(out, "]}]}");
}

lv_status client_body(const describe_options *options, const char *model, lv_buffer *pictures,
                      int n, lv_buffer *out) {
    json_t *root = NULL;
    lv_status status = settings(options, model, &root);
    *out = (lv_buffer){.max_bytes = (size_t)1 << 30};
    if (status == LV_OK) {
        status = put_json(out, json_incref(root));
    }
    json_decref(root);
    if (status == LV_OK) {
        out->n_bytes--; // the closing brace
        status = put_messages(options, pictures, n, out);
    }
    return status;
}

// --- the answer ----------------------------------------------------------------------------------

static int whole_of(const json_t *object, const char *name) {
    return (int)json_integer_value(json_object_get(object, name));
}

static double real_of(const json_t *object, const char *name) {
    return json_number_value(json_object_get(object, name));
}

static void read_facts(client_reply *r, const json_t *chunk) {
    const json_t *usage = json_object_get(chunk, "usage");
    const json_t *details = json_object_get(usage, "prompt_tokens_details");
    const json_t *timings = json_object_get(chunk, "timings");
    const json_t *images = json_object_get(chunk, "images");
    lv_answer *a = r->answer;
    if (json_is_object(usage)) {
        a->n_prompt_tokens = whole_of(usage, "prompt_tokens");
        a->n_tokens = whole_of(usage, "completion_tokens");
        a->n_image_tokens = whole_of(details, "image_tokens");
        a->n_reused_tokens = whole_of(details, "cached_tokens");
    }
    if (json_is_object(timings)) {
        a->queue_ms = real_of(timings, "queue_ms");
        a->encode_ms = real_of(timings, "encode_ms");
        a->prefill_ms = real_of(timings, "prefill_ms");
        a->decode_ms = real_of(timings, "decode_ms");
        a->first_token_ms = real_of(timings, "first_token_ms");
    }
    for (int i = 0; i < r->n_infos && json_is_array(images); i++) {
        const json_t *image = json_array_get(images, (size_t)i);
        r->infos[i].width = whole_of(image, "width");
        r->infos[i].height = whole_of(image, "height");
        r->infos[i].n_tiles = whole_of(image, "tiles");
        r->infos[i].tile_size = whole_of(image, "tile_size");
        r->infos[i].n_tokens = whole_of(image, "tokens");
    }
}

static const char *error_text(const json_t *root) {
    const json_t *error = json_object_get(root, "error");
    const char *text = json_string_value(json_object_get(error, "message"));
    return text ? text : "no reason given";
}

static lv_status take_text(client_reply *r, const char *text) {
    const lv_piece piece = {.text = text};
    LV_TRY(lv_buffer_append(&r->text, text, strlen(text)));
    if (r->on_text && !r->on_text(r->user, &piece)) {
        r->is_cancelled = true;
        return LV_ECANCELLED;
    }
    return LV_OK;
}

static lv_status take_chunk(client_reply *r, const json_t *chunk) {
    const json_t *choice = json_array_get(json_object_get(chunk, "choices"), 0);
    const json_t *delta = json_object_get(choice, "delta");
    const char *text = json_string_value(json_object_get(delta, "content"));
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    if (json_object_get(chunk, "error")) {
        return lv_fail(LV_ENETWORK, "the server: %s", error_text(chunk));
    }
    if (finish) {
        r->answer->finish = strcmp(finish, "length") == 0 ? LV_FINISH_LENGTH : LV_FINISH_STOP;
    }
    read_facts(r, chunk);
    return text ? take_text(r, text) : LV_OK;
}

// One line of the stream: "data: ...", a comment, or an empty one.
static lv_status take_line(client_reply *r, const char *line, size_t n) {
    json_t *chunk = NULL;
    if (n < 6 || memcmp(line, "data: ", 6) != 0) {
        return LV_OK;
    }
    if (n >= 12 && memcmp(line + 6, "[DONE]", 6) == 0) {
        r->is_done = true;
        return LV_OK;
    }
    LV_TRY(lv_json_parse(line + 6, n - 6, "the server's answer", &chunk));
    lv_status status = take_chunk(r, chunk);
    json_decref(chunk);
    return status;
}

static lv_status take_bytes(client_reply *r, const char *data, size_t n) {
    while (n > 0) {
        const char *end = memchr(data, '\n', n);
        size_t n_line = end ? (size_t)(end - data) : n;
        LV_TRY(lv_buffer_append(&r->line, data, n_line));
        if (end) {
            lv_status status = take_line(r, (const char *)r->line.data, r->line.n_bytes);
            r->line.n_bytes = 0;
            LV_TRY(status);
            n_line++;
        }
        data += n_line;
        n -= n_line;
    }
    return LV_OK;
}

// --- libcurl -------------------------------------------------------------------------------------

typedef struct transfer {
    CURL *curl;
    client_reply *reply;
    lv_buffer *whole; // of a GET
} transfer;

// The signatures of these two are libcurl's.
static size_t on_data(char *data, size_t size, size_t n, void *user) {
    transfer *t = user;
    client_reply *r = t->reply;
    long code = 0;
    size_t n_bytes = size * n;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &code);
    if (!r) {
        return lv_buffer_append(t->whole, data, n_bytes) == LV_OK ? n_bytes : 0;
    }
    if (code != 200) {
        return lv_buffer_append(&r->error, data, n_bytes) == LV_OK ? n_bytes : 0;
    }
    r->status = take_bytes(r, data, n_bytes);
    return r->status == LV_OK ? n_bytes : 0;
}

static int on_progress(void *user, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now) {
    const transfer *t = user;
    (void)total, (void)now, (void)up_total, (void)up_now;
    return t->reply && !t->reply->goes_on(t->reply->goes_on_user);
}

static CURL *open_curl(const struct client_link *link, const char *path, transfer *t,
                       struct curl_slist *headers) {
    char url[4096];
    CURL *curl = curl_easy_init();
    snprintf(url, sizeof url, "%s%s", link->url, path);
    t->curl = curl;
    if (curl) {
        curl_easy_setopt(curl, CURLOPT_URL, url);
        curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
        curl_easy_setopt(curl, CURLOPT_USERAGENT, "llava.c/" LV_VERSION);
        curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CONNECT_S);
        curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, SILENCE_S);
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, t);
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, t);
    }
    return curl;
}

static struct curl_slist *make_headers(const struct client_link *link) {
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct curl_slist *more = headers ? curl_slist_append(headers, "Expect:") : NULL;
    if (more && link->authorization) {
        more = curl_slist_append(headers, link->authorization);
    }
    if (!more) {
        curl_slist_free_all(headers);
    }
    return more ? headers : NULL;
}

// What an HTTP status other than 200 means here.
static lv_status refused(long code, const lv_buffer *body, bool *out_again) {
    json_t *root = NULL;
    lv_status parsed =
        body->data ? lv_json_parse((const char *)body->data, body->n_bytes, "", &root) : LV_EFORMAT;
    const char *text = parsed == LV_OK ? error_text(root) : "no reason given";
    bool is_ours = code == 400 || code == 413; // of the question; its reason says enough
    const char *name = json_string_value(json_object_get(json_object_get(root, "error"), "code"));
    *out_again = code == 429 || (code == 503 && name && strcmp(name, "loading") == 0);
    lv_status status = is_ours ? lv_fail(code == 413 ? LV_ELIMIT : LV_EFORMAT, "%s", text)
                               : lv_fail(code == 429 ? LV_ENETWORK : LV_EDEVICE,
                                         "the server: status %ld: %s", code, text);
    json_decref(root);
    return status;
}

lv_status client_post(const struct client_link *link, const lv_buffer *body, client_reply *reply,
                      bool *out_again) {
    transfer t = {.reply = reply};
    struct curl_slist *headers = make_headers(link);
    CURL *curl = headers ? open_curl(link, "/v1/chat/completions", &t, headers) : NULL;
    lv_status status = LV_OK;
    long http_status = 0;
    *out_again = false;
    reply->line.max_bytes = MAX_LINE_BYTES;
    reply->text.max_bytes = MAX_TEXT_BYTES;
    reply->error.max_bytes = MAX_ERROR_BYTES;
    if (!curl) {
        curl_slist_free_all(headers);
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, (const char *)body->data);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body->n_bytes);
    CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http_status);
    if (code == CURLE_ABORTED_BY_CALLBACK || reply->is_cancelled) {
        reply->is_cancelled = true;
    } else if (reply->status != LV_OK) {
        status = reply->status;
    } else if (code == CURLE_OK && http_status != 200) {
        status = refused(http_status, &reply->error, out_again);
    } else if (code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST) {
        status = lv_fail(LV_EDEVICE, "%s: %s", link->url, curl_easy_strerror(code));
    } else if (code != CURLE_OK || !reply->is_done) {
        status = lv_fail(LV_ENETWORK, "%s: the answer broke off%s%s", link->url, code ? ": " : "",
                         code ? curl_easy_strerror(code) : "");
    }
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
    return status;
}

lv_status client_get(const struct client_link *link, const char *path, json_t **out) {
    lv_buffer body = {.max_bytes = MAX_LINE_BYTES};
    transfer t = {.whole = &body};
    struct curl_slist *headers = make_headers(link);
    CURL *curl = headers ? open_curl(link, path, &t, headers) : NULL;
    long http_status = 0;
    bool again;
    lv_status status = LV_OK;
    *out = NULL;
    if (!curl) {
        curl_slist_free_all(headers);
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http_status);
    if (code != CURLE_OK) {
        status = lv_fail(LV_EDEVICE, "%s: %s", link->url, curl_easy_strerror(code));
    } else if (http_status != 200) {
        status = refused(http_status, &body, &again);
        status = again ? LV_ELIMIT : status;
    } else {
        status = lv_json_parse((const char *)body.data, body.n_bytes, link->url, out);
    }
    lv_buffer_free(&body);
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
    return status;
}
