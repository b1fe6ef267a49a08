#include "core/path.h"

#include <stdarg.h>
#include <stdio.h>

lv_status lv_text_format(char **out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vasprintf(out, format, args);
    va_end(args);
    if (n < 0) {
        *out = NULL;
        return lv_fail(LV_ENOMEM, "out of memory");
    }
    return LV_OK;
}

lv_status lv_path_join(const char *dir, const char *name, char **out) {
    return lv_text_format(out, "%s/%s", dir, name);
}
