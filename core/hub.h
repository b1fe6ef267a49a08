// Names and folders of the Hugging Face cache; internal to core.
#ifndef LV_CORE_HUB_H
#define LV_CORE_HUB_H

#include <stdbool.h>

#include "core/status.h"

// [org/]name of the hub's alphabet; nothing that could leave the cache folder.
bool lv_hub_is_name(const char *text);

// An environment variable; NULL where it is unset or empty. Borrowed.
const char *lv_hub_variable(const char *name);

// The caller frees *out.
lv_status lv_hub_home(char **out) LV_MUST_CHECK;  // HF_HOME, else ~/.cache/huggingface
lv_status lv_hub_cache(char **out) LV_MUST_CHECK; // HF_HUB_CACHE, else <home>/hub
lv_status lv_hub_folder(const char *model, char **out) LV_MUST_CHECK; // <cache>/models--org--name

#endif
