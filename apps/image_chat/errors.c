#include "apps/image_chat/errors.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool fail_with(api_error *out, int status, const char *code, const char *param, const char *format,
               ...) {
    va_list args;
    *out = (api_error){.status = status, .code = code};
    snprintf(out->param, sizeof out->param, "%s", param ? param : "");
    va_start(args, format);
    vsnprintf(out->message, sizeof out->message, format, args);
    va_end(args);
    if (status == 429 || status == 503) {
        out->retry_after_s = 1;
    }
    return false;
}

void fail_with_status(api_error *out, lv_status status, const char *message, bool reading_picture,
                      bool *out_is_ours) {
    *out_is_ours = false;
    switch (status) {
    case LV_ELIMIT:
        fail_with(out, 413, reading_picture ? "image_too_large" : "context_length_exceeded",
                  "messages", "%s", message);
        return;
    case LV_EFORMAT:
    case LV_EUNSUPPORTED:
        fail_with(out, 400, reading_picture ? "invalid_image" : NULL, "messages", "%s", message);
        return;
    case LV_EINVAL:
        fail_with(out, 400, NULL, "messages", "%s", message);
        return;
    case LV_ENETWORK:
    case LV_ENOTFOUND:
        *out_is_ours = true; // what a server inside said is nobody's business outside
        fail_with(out, 400, "image_fetch_failed", "messages",
                  "A picture's URL could not be fetched.");
        return;
    case LV_ENOMEM:
        *out_is_ours = true;
        fail_with(out, 503, "out_of_memory", NULL, "The server is out of memory; try again later.");
        return;
    case LV_ECANCELLED:
        fail_with(out, 503, "cancelled", NULL, "The server is shutting down.");
        return;
    default:
        *out_is_ours = true;
        fail_with(out, 500, "internal_error", NULL, "The server failed; its log says why.");
        return;
    }
}

static const char *type_of(int status) {
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void error_json(const api_error *error, out_text *out) {
    out_put(out, "{\"error\":{\"message\":");
    out_string(out, error->message);
    out_format(out, ",\"type\":\"%s\",\"param\":", type_of(error->status));
    if (*error->param) {
        out_string(out, error->param);
    } else {
        out_put(out, "null");
    }
    out_put(out, ",\"code\":");
    if (error->code) {
        out_string(out, error->code);
    } else {
        out_put(out, "null");
    }
    out_put(out, "}}");
}
