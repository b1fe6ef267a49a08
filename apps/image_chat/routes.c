// What is where, and the small endpoints.
#include <stdlib.h>
#include <string.h>

#include "apps/image_chat/chat.h"

static const route routes[] = {
    {"/v1/chat/completions", "POST", handle_chat, false, true, true},
    {"/v1/models", "GET", handle_models, false, false, true},
    {"/v1/models/*", "GET", handle_model, false, false, true},
    {"/v1/tokenize", "POST", handle_tokenize, false, true, true},
    {"/health", "GET", handle_health, true, false, false},
    {"/metrics", "GET", handle_metrics, false, false, false},
    {"/openapi.json", "GET", handle_openapi, false, false, false},
};

static const route page_route = {"page", "GET", handle_page, true, false, false};

static bool is_at(const route *r, const char *path) {
    size_t n = strlen(r->path);
    if (r->path[n - 1] == '*') {
        return strncmp(path, r->path, n - 1) == 0 && path[n - 1];
    }
    return strcmp(path, r->path) == 0;
}

void route_find(exchange *x) {
    for (size_t i = 0; i < sizeof routes / sizeof *routes && !x->route; i++) {
        x->route = is_at(&routes[i], x->path) ? &routes[i] : NULL;
    }
    x->page = x->route ? NULL : page_at(x->path);
    x->route = x->page ? &page_route : x->route;
}

const char *route_name(const exchange *x) {
    return x->route ? x->route->path : "other";
}

// --- models --------------------------------------------------------------------------------------

static void put_model(exchange *x) {
    const server *s = x->server;
    out_put(&x->reply, "{\"id\":");
    out_string(&x->reply, s->info.name);
    out_format(&x->reply,
               ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"llava.c\",\"max_model_len\":"
               "%d,\"device\":",
               (long long)s->created, s->info.session_len);
    out_string(&x->reply, s->info.device);
    out_put(&x->reply, "}");
}

void handle_models(exchange *x) {
    out_put(&x->reply, "{\"object\":\"list\",\"data\":[");
    put_model(x);
    out_put(&x->reply, "]}");
}

void handle_model(exchange *x) {
    const char *id = x->path + strlen("/v1/models/");
    if (strcmp(id, x->server->info.name) != 0) {
        fail_with(&x->error, 404, "model_not_found", NULL, "There is no model of that name here.");
        return;
    }
    put_model(x);
}

// --- tokens --------------------------------------------------------------------------------------

typedef struct tokenize_request {
    const char *model, *prompt;
    bool with_strings;
} tokenize_request;

static const field tokenize_fields[] = {
    {"model", FIELD_STRING, 0, 1024, offsetof(tokenize_request, model), NULL},
    {"prompt", FIELD_STRING, 0, 4 << 20, offsetof(tokenize_request, prompt), NULL},
    {"return_token_strs", FIELD_BOOL, 0, 0, offsetof(tokenize_request, with_strings), NULL},
};

static void put_tokens(exchange *x, const int32_t *ids, int n, bool with_strings) {
    out_format(&x->reply, "{\"count\":%d,\"max_model_len\":%d,\"tokens\":[", n,
               x->server->info.session_len);
    for (int i = 0; i < n; i++) {
        out_format(&x->reply, i ? ",%d" : "%d", ids[i]);
    }
    out_put(&x->reply, with_strings ? "],\"token_strs\":[" : "]");
    for (int i = 0; with_strings && i < n; i++) {
        char text[256];
        size_t length = lv_model_token(x->server->model, ids[i], text, sizeof text);
        out_put(&x->reply, i ? "," : "");
        out_string_n(&x->reply, text, length < sizeof text ? length : sizeof text);
    }
    out_put(&x->reply, with_strings ? "]}" : "}");
}

void handle_tokenize(exchange *x) {
    tokenize_request request = {0};
    int32_t *ids = NULL;
    int n = 0;
    json_t *root = exchange_json(x, NULL);
    if (!root || !fields_read(root, "", tokenize_fields, 3, &request, &x->error)) {
        goto done;
    }
    if (!request.prompt) {
        fail_with(&x->error, 400, "missing_parameter", "prompt", "prompt: is missing.");
        goto done;
    }
    if (request.model && strcmp(request.model, x->server->info.name) != 0) {
        fail_with(&x->error, 404, "model_not_found", "model",
                  "There is no model of that name here.");
        goto done;
    }
    lv_status status =
        lv_model_tokenize(x->server->model, request.prompt, strlen(request.prompt), &ids, &n);
    if (status != LV_OK) {
        bool is_ours;
        fail_with_status(&x->error, status, lv_error(), false, &is_ours);
        goto done;
    }
    put_tokens(x, ids, n, request.with_strings);
done:
    free(ids);
    json_decref(root);
}

// --- the rest ------------------------------------------------------------------------------------

void handle_health(exchange *x) {
    static const char *const words[] = {[SERVER_LOADING] = "loading",
                                        [SERVER_READY] = "ok",
                                        [SERVER_FAILED] = "failed",
                                        [SERVER_DRAINING] = "draining"};
    server_state state = atomic_load(&x->server->state);
    x->status = state == SERVER_READY ? 200 : 503;
    out_format(&x->reply, "{\"status\":\"%s\"}", words[state]);
}

void handle_page(exchange *x) {
    x->static_data = (const char *)x->page->data;
    x->static_bytes = x->page->n_bytes;
    x->type = x->page->type;
    x->etag = x->page->etag;
}

void handle_chat(exchange *x) {
    chat_request request = {0};
    lift uris;
    json_t *root = exchange_json(x, &uris);
    bool ok = root && chat_request_read(x->server, root, &uris, &request, &x->error);
    json_decref(root);
    out_free(&x->body); // what it costs stays reserved until the answer
    if (ok) {
        x->job = job_create(x->server, x->id, &request);
        if (!x->job) {
            fail_with(&x->error, 503, "out_of_memory", NULL, "The server is out of memory.");
        }
    }
    chat_request_free(&request);
}
