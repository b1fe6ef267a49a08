#include "core/safetensors.h"

#include "core/files.h"
#include "core/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX_BYTES 8

struct lv_safetensors {
    lv_mapping mapping; // empty where the bytes are borrowed
    lv_named_tensor *tensors;
    size_t n_tensors;
};

// Types that lv_dtype lacks may stand in a file as long as nobody asks for such a tensor.
static const struct {
    const char *name;
    lv_dtype dtype;
    int n_bytes;
} types[] = {{"F32", LV_F32, 4},      {"F16", LV_F16, 2},      {"BF16", LV_BF16, 2},
             {"I64", LV_I64, 8},      {"I32", LV_I32, 4},      {"I8", LV_I8, 1},
             {"U8", LV_U8, 1},        {"F64", LV_NONE, 8},     {"I16", LV_NONE, 2},
             {"U16", LV_NONE, 2},     {"U32", LV_NONE, 4},     {"U64", LV_NONE, 8},
             {"BOOL", LV_NONE, 1},    {"F8_E4M3", LV_NONE, 1}, {"F8_E5M2", LV_NONE, 1},
             {"F8_E8M0", LV_NONE, 1}, {"C64", LV_NONE, 8}};

static lv_status read_type(const lv_json *json, lv_named_tensor *out, int *out_n_bytes) {
    LV_TRY(lv_json_string(json, "dtype", out->type, sizeof out->type));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].name, out->type) == 0) {
            out->tensor.dtype = types[i].dtype;
            *out_n_bytes = types[i].n_bytes;
            return LV_OK;
        }
    }
    return lv_json_wrong(json, "dtype", "a safetensors type");
}

static lv_status read_shape(const lv_json *json, lv_tensor *out, uint64_t *n_bytes) {
    const json_t *shape = lv_json_get(json, "shape");
    size_t n_dims = json_array_size(shape);
    if (!json_is_array(shape) || n_dims > LV_MAX_DIMS) {
        return lv_json_wrong(json, "shape", "a list of at most 6 sizes");
    }
    for (size_t i = 0; i < n_dims; i++) {
        const json_t *dim = json_array_get(shape, i);
        json_int_t value = json_integer_value(dim);
        if (!json_is_integer(dim) || value < 0 || !lv_mul(*n_bytes, (uint64_t)value, n_bytes)) {
            return lv_json_wrong(json, "shape", "sizes whose product is a number of bytes");
        }
        out->dims[i] = value;
    }
    out->n_dims = (int)n_dims;
    return LV_OK;
}

static lv_status read_tensor(const lv_json *json, const uint8_t *data, size_t n_data,
                             lv_named_tensor *out) {
    int n_element_bytes = 0;
    LV_TRY(read_type(json, out, &n_element_bytes));
    uint64_t n_bytes = (uint64_t)n_element_bytes;
    LV_TRY(read_shape(json, &out->tensor, &n_bytes));
    const json_t *offsets = lv_json_get(json, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        begin < 0 || end < begin) {
        return lv_json_wrong(json, "data_offsets", "two offsets in order");
    }
    if ((uint64_t)end > n_data) {
        return lv_fail(LV_EFORMAT,
                       "%s: ends at byte %" PRId64 " of the data, but the file has only %zu "
                       "(truncated?)",
                       json->where, (int64_t)end, n_data);
    }
    if ((uint64_t)(end - begin) != n_bytes) {
        return lv_fail(LV_EFORMAT,
                       "%s: its shape needs %" PRIu64 " bytes, its offsets give %" PRId64,
                       json->where, n_bytes, (int64_t)(end - begin));
    }
    out->tensor.data = data + begin;
    return LV_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const lv_named_tensor *)a)->name, ((const lv_named_tensor *)b)->name);
}

static lv_status read_header(json_t *header, const char *name, const uint8_t *data, size_t n_data,
                             lv_safetensors *file) {
    size_t n_entries = json_object_size(header);
    if (n_entries > LV_SAFETENSORS_MAX_TENSORS) {
        return lv_fail(LV_ELIMIT, "%s: %zu tensors; the limit is %d", name, n_entries,
                       LV_SAFETENSORS_MAX_TENSORS);
    }
    file->tensors = calloc(n_entries + 1, sizeof *file->tensors);
    if (!file->tensors) {
        return lv_fail(LV_ENOMEM, "%s: out of memory for %zu tensors", name, n_entries);
    }
    lv_json root = lv_json_at(header, name);
    const char *key;
    json_t *value;
    json_object_foreach(header, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            continue;
        }
        lv_json json;
        LV_TRY(lv_json_child(&root, key, &json));
        lv_named_tensor *entry = &file->tensors[file->n_tensors];
        LV_TRY(read_tensor(&json, data, n_data, entry));
        entry->name = strdup(key);
        if (!entry->name) {
            return lv_fail(LV_ENOMEM, "%s: out of memory", name);
        }
        file->n_tensors++;
    }
    qsort(file->tensors, file->n_tensors, sizeof *file->tensors, by_name);
    return LV_OK;
}

lv_status lv_safetensors_parse(const void *bytes, size_t n_bytes, const char *name,
                               lv_safetensors **out) {
    *out = NULL;
    const uint8_t *at = bytes;
    uint64_t n_header = 0;
    for (int i = 0; n_bytes >= PREFIX_BYTES && i < PREFIX_BYTES; i++) {
        n_header |= (uint64_t)at[i] << (8 * i);
    }
    if (n_bytes < PREFIX_BYTES || n_header > n_bytes - PREFIX_BYTES ||
        n_header > LV_SAFETENSORS_MAX_HEADER) {
        return lv_fail(LV_EFORMAT,
                       "%s: not a safetensors file, or truncated: a header of %" PRIu64
                       " bytes in a file of %zu",
                       name, n_header, n_bytes);
    }
    json_t *header = NULL;
    lv_safetensors *file = calloc(1, sizeof *file);
    lv_status status = file ? LV_OK : lv_fail(LV_ENOMEM, "%s: out of memory", name);
    if (status == LV_OK) {
        status = lv_json_parse((const char *)at + PREFIX_BYTES, n_header, name, &header);
    }
    if (status == LV_OK) {
        const uint8_t *data = at + PREFIX_BYTES + n_header;
        status = read_header(header, name, data, n_bytes - PREFIX_BYTES - n_header, file);
    }
    json_decref(header);
    if (status != LV_OK) {
        lv_safetensors_free(file);
        return status;
    }
    *out = file;
    return LV_OK;
}

lv_status lv_safetensors_open(const char *path, lv_safetensors **out) {
    *out = NULL;
    lv_mapping mapping;
    LV_TRY(lv_file_map(path, &mapping));
    lv_status status = lv_safetensors_parse(mapping.data, mapping.n_bytes, path, out);
    if (status != LV_OK) {
        lv_file_unmap(&mapping);
        return status;
    }
    (*out)->mapping = mapping;
    return LV_OK;
}

void lv_safetensors_free(lv_safetensors *file) {
    if (!file) {
        return;
    }
    for (size_t i = 0; file->tensors && i < file->n_tensors; i++) {
        free(file->tensors[i].name);
    }
    free(file->tensors);
    lv_file_unmap(&file->mapping);
    free(file);
}

const lv_named_tensor *lv_safetensors_list(const lv_safetensors *file, size_t *out_n) {
    *out_n = file->n_tensors;
    return file->tensors;
}

const lv_named_tensor *lv_safetensors_find(const lv_safetensors *file, const char *name) {
    lv_named_tensor key = {.name = (char *)name};
    return file->n_tensors ? bsearch(&key, file->tensors, file->n_tensors, sizeof key, by_name)
                           : NULL;
}
