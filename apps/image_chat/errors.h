// What a client is told when something is wrong: OpenAI's shape, HTTP's status.
#ifndef LV_CHAT_ERRORS_H
#define LV_CHAT_ERRORS_H

#include <stdbool.h>

#include "apps/image_chat/json_out.h"
#include "core/status.h"

typedef struct api_error {
    int status;       // 0: nothing is wrong
    const char *code; // constant; NULL: none
    char param[96];   // the field at fault, "": none
    char message[512];
    int retry_after_s;     // 0: no such header
    const char *challenge; // WWW-Authenticate; NULL: none
    const char *allow;     // of a 405
} api_error;

// Fills *out and returns false.
bool fail_with(api_error *out, int status, const char *code, const char *param, const char *format,
               ...) LV_PRINTF(5, 6);

// An engine's or library's failure: what the client may know of it. Its own mistakes are told in
// full, everything else by a fixed text; *out_is_ours says that the detail belongs in the log.
// `reading_picture` tells pictures' failures from those of the prompt.
void fail_with_status(api_error *out, lv_status status, const char *message, bool reading_picture,
                      bool *out_is_ours);

// {"error": {...}}
void error_json(const api_error *error, out_text *out);

#endif
