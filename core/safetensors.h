// One .safetensors file: u64 header length, a JSON header, the tensors' bytes. Mapped, not copied.
// https://github.com/huggingface/safetensors#format
#ifndef LV_CORE_SAFETENSORS_H
#define LV_CORE_SAFETENSORS_H

#include "core/status.h"
#include "core/tensor.h"

#define LV_SAFETENSORS_MAX_HEADER ((size_t)100000000) // the format's own limit
#define LV_SAFETENSORS_MAX_TENSORS 200000

typedef struct lv_safetensors lv_safetensors;

typedef struct lv_named_tensor {
    char *name;
    char type[16];    // as the file spells it: "F16"
    lv_tensor tensor; // dtype LV_NONE where the type is none of lv_dtype
} lv_named_tensor;

// Every offset, size and shape is checked against the file. LV_EFORMAT names file and tensor.
lv_status lv_safetensors_open(const char *path, lv_safetensors **out) LV_MUST_CHECK;
// The same over borrowed memory, which must outlive *out; `name` is what messages call it.
lv_status lv_safetensors_parse(const void *bytes, size_t n_bytes, const char *name,
                               lv_safetensors **out) LV_MUST_CHECK;
void lv_safetensors_free(lv_safetensors *file);

// All tensors, by name in strcmp's order.
const lv_named_tensor *lv_safetensors_list(const lv_safetensors *file, size_t *out_n);
const lv_named_tensor *lv_safetensors_find(const lv_safetensors *file, const char *name);

#endif
