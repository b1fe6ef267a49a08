#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_BYTES 1024

static _Thread_local char message[MESSAGE_BYTES];

// File names and tensor names come from outside: a message stays one line without terminal escapes.
static void clean_message(void) {
    for (char *at = message; *at; at++) {
        if ((unsigned char)*at < 0x20 || *at == 0x7f) {
            *at = ' ';
        }
    }
}

lv_status lv_fail(lv_status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    clean_message();
    return code;
}

lv_status lv_fail_in(lv_status code, const char *format, ...) {
    char inner[MESSAGE_BYTES];
    memcpy(inner, message, sizeof inner);
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    strncat(message, ": ", sizeof message - strlen(message) - 1);
    strncat(message, inner, sizeof message - strlen(message) - 1);
    clean_message();
    return code;
}

const char *lv_error(void) {
    return message;
}

const char *lv_status_name(lv_status code) {
    switch (code) {
    case LV_OK:
        return "LV_OK";
    case LV_EINVAL:
        return "LV_EINVAL";
    case LV_ENOMEM:
        return "LV_ENOMEM";
    case LV_EIO:
        return "LV_EIO";
    case LV_EFORMAT:
        return "LV_EFORMAT";
    case LV_EUNSUPPORTED:
        return "LV_EUNSUPPORTED";
    case LV_ENOTFOUND:
        return "LV_ENOTFOUND";
    case LV_ELIMIT:
        return "LV_ELIMIT";
    case LV_ENETWORK:
        return "LV_ENETWORK";
    case LV_EDEVICE:
        return "LV_EDEVICE";
    case LV_ECANCELLED:
        return "LV_ECANCELLED";
    case LV_EFULL:
        return "LV_EFULL";
    }
    return "unknown status";
}
