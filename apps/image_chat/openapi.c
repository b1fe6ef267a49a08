// /openapi.json: the file of that name, with what is known only here.
#include <jansson.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/image_chat/server.h"

static void set_etag(server *s) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    char *to = s->openapi_etag;
    SHA256((const unsigned char *)s->openapi, s->openapi_bytes, digest);
    *to++ = '"';
    for (int i = 0; i < 16; i++) {
        to += sprintf(to, "%02x", digest[i]);
    }
    strcpy(to, "\"");
}

bool openapi_build(server *s) {
    const server_options *o = s->options;
    const page *file = page_named("openapi.json");
    json_error_t error;
    json_t *root = json_loadb((const char *)file->data, file->n_bytes, 0, &error);
    if (!root) {
        log_line("image-chat: openapi.json: line %d: %s", error.line, error.text);
        return false;
    }
    json_object_set_new(json_object_get(root, "info"), "version", json_string(LV_VERSION));
    json_object_set_new(root, "x-limits",
                        json_pack("{s:I, s:I, s:I, s:i, s:i, s:b, s:b}", "max_body_bytes",
                                  (json_int_t)o->max_body_bytes, "max_image_bytes",
                                  (json_int_t)o->max_image_bytes, "max_pixels",
                                  (json_int_t)o->max_pixels, "max_images", o->max_images,
                                  "default_max_tokens", o->max_tokens, "url_fetch",
                                  o->allow_url_fetch, "api_key", o->api_keys.n > 0));
    if (o->api_keys.n == 0) {
        json_object_set_new(root, "security", json_array());
    }
    s->openapi = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (s->openapi) {
        s->openapi_bytes = strlen(s->openapi);
        set_etag(s);
    }
    return s->openapi != NULL;
}

void handle_openapi(exchange *x) {
    x->static_data = x->server->openapi;
    x->static_bytes = x->server->openapi_bytes;
    x->etag = x->server->openapi_etag;
}
