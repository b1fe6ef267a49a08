// The safetensors files of one folder; internal to core.
#ifndef LV_CORE_SHARDS_H
#define LV_CORE_SHARDS_H

#include "core/safetensors.h"

typedef struct lv_shards {
    char **paths;           // [n]
    lv_safetensors **files; // [n]
    size_t n;
} lv_shards;

// model.safetensors, or what model.safetensors.index.json lists (checked against the shards), or
// every *.safetensors of the folder. LV_EUNSUPPORTED with the way to convert where there are only
// pickles. *out must be zeroed; close it in either case.
lv_status lv_shards_open(const char *dir, lv_shards *out) LV_MUST_CHECK;
void lv_shards_close(lv_shards *shards);

#endif
