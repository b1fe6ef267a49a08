// Allocated strings; internal to core.
#ifndef LV_CORE_PATH_H
#define LV_CORE_PATH_H

#include "core/status.h"

// asprintf with a status: *out is the caller's to free, NULL on failure.
lv_status lv_text_format(char **out, const char *format, ...) LV_PRINTF(2, 3) LV_MUST_CHECK;

// dir/name.
lv_status lv_path_join(const char *dir, const char *name, char **out) LV_MUST_CHECK;

#endif
