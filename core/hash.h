// SHA-256 of bytes that lie in several places.
#ifndef LV_CORE_HASH_H
#define LV_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

#define LV_HASH_BYTES 32

typedef struct lv_hash {
    uint8_t bytes[LV_HASH_BYTES];
} lv_hash;

typedef struct lv_span {
    const void *data;
    size_t n_bytes;
} lv_span;

// Of the spans one after another. Only their bytes count: where one ends and the next begins must
// be plain from what they hold.
lv_status lv_sha256(const lv_span *spans, int n_spans, lv_hash *out) LV_MUST_CHECK;

#endif
