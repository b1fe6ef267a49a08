// The .npy format, version 1.0: "\x93NUMPY", version, header length, a Python dict padded with
// spaces to a multiple of 64, then the elements.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#include "core/files.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "\x93NUMPY"
#define MAGIC_BYTES 6
#define PREFIX_BYTES 10 // magic, two version bytes, u16 header length
#define ALIGN_BYTES 64

static const struct {
    lv_dtype dtype;
    const char *descr;
} npy_types[] = {{LV_F32, "<f4"}, {LV_F16, "<f2"}, {LV_I64, "<i8"},
                 {LV_I32, "<i4"}, {LV_I8, "|i1"},  {LV_U8, "|u1"}};
#define N_NPY_TYPES (sizeof npy_types / sizeof *npy_types)

static const char *descr_of(lv_dtype dtype) {
    for (size_t i = 0; i < N_NPY_TYPES; i++) {
        if (npy_types[i].dtype == dtype) {
            return npy_types[i].descr;
        }
    }
    return NULL;
}

lv_status lv_npy_save(const char *path, const lv_tensor *tensor) {
    const char *descr = descr_of(tensor->dtype);
    if (!descr) {
        return lv_fail(LV_EUNSUPPORTED, "%s: .npy has no type for %s", path,
                       lv_dtype_name(tensor->dtype));
    }
    char shape[LV_MAX_DIMS * 24] = "";
    int n = 0;
    for (int i = 0; i < tensor->n_dims; i++) {
        // A trailing comma is what makes (3,) a tuple in Python.
        const char *end = i + 1 < tensor->n_dims ? ", " : tensor->n_dims == 1 ? "," : "";
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%" PRId64 "%s", tensor->dims[i], end);
    }
    char header[4 * ALIGN_BYTES + PREFIX_BYTES];
    int n_dict = snprintf(header + PREFIX_BYTES, sizeof header - PREFIX_BYTES,
                          "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, shape);
    size_t n_header = PREFIX_BYTES + (size_t)n_dict + 1;
    n_header = (n_header + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    memset(header + PREFIX_BYTES + n_dict, ' ', n_header - PREFIX_BYTES - (size_t)n_dict);
    header[n_header - 1] = '\n';
    size_t n_text = n_header - PREFIX_BYTES;
    memcpy(header, MAGIC "\x01", MAGIC_BYTES + 2);
    header[8] = (char)(n_text & 0xff);
    header[9] = (char)(n_text >> 8);

    size_t n_bytes = lv_tensor_bytes(tensor);
    lv_buffer file = {.max_bytes = n_header + n_bytes};
    lv_status status;
    LV_TRY_DONE(lv_buffer_append(&file, header, n_header));
    LV_TRY_DONE(lv_buffer_append(&file, tensor->data, n_bytes));
    status = lv_file_write_atomic(path, file.data, file.n_bytes);
done:
    lv_buffer_free(&file);
    return status;
}

// The text after `'key':` in the header's dict, spaces skipped; NULL where the key is missing.
static const char *value_of(const char *dict, const char *key) {
    const char *at = strstr(dict, key);
    if (!at) {
        return NULL;
    }
    at += strlen(key);
    at += strspn(at, " ");
    if (*at++ != ':') {
        return NULL;
    }
    return at + strspn(at, " ");
}

static lv_status parse_shape(const char *path, const char *at, lv_tensor *out) {
    int64_t count = 1;
    at++; // '('
    for (;;) {
        at += strspn(at, " ,");
        if (*at == ')') {
            return LV_OK;
        }
        char *end;
        long long dim = strtoll(at, &end, 10);
        if (end == at || dim < 0 || dim == INT64_MAX || out->n_dims == LV_MAX_DIMS ||
            !lv_mul(count, (int64_t)dim, &count)) {
            return lv_fail(LV_EFORMAT, "%s: the shape in the .npy header is not valid", path);
        }
        out->dims[out->n_dims++] = dim;
        at = end;
    }
}

static lv_status parse_dict(const char *path, const char *dict, lv_tensor *out) {
    const char *descr = value_of(dict, "'descr'");
    const char *order = value_of(dict, "'fortran_order'");
    const char *shape = value_of(dict, "'shape'");
    if (!descr || !order || !shape || *shape != '(') {
        return lv_fail(LV_EFORMAT, "%s: the .npy header lacks descr, fortran_order or shape", path);
    }
    if (strncmp(order, "False", 5) != 0) {
        return lv_fail(LV_EUNSUPPORTED, "%s: Fortran order is not read", path);
    }
    for (size_t i = 0; i < N_NPY_TYPES; i++) {
        if (*descr == '\'' && strncmp(descr + 1, npy_types[i].descr, 3) == 0) {
            out->dtype = npy_types[i].dtype;
        }
    }
    if (out->dtype == LV_NONE) {
        return lv_fail(LV_EUNSUPPORTED, "%s: .npy type %.5s is not read", path, descr);
    }
    return parse_shape(path, shape, out);
}

lv_status lv_npy_load(const char *path, size_t max_bytes, lv_tensor *out) {
    *out = (lv_tensor){0};
    lv_buffer file = {0};
    char *dict = NULL;
    void *data = NULL;
    lv_tensor tensor = {0};
    lv_status status = LV_OK;
    LV_TRY_DONE(lv_file_read(path, max_bytes, &file));
    size_t n_text =
        file.n_bytes < PREFIX_BYTES ? SIZE_MAX : (size_t)file.data[8] + ((size_t)file.data[9] << 8);
    if (n_text == SIZE_MAX || memcmp(file.data, MAGIC "\x01", MAGIC_BYTES + 1) != 0 ||
        n_text > file.n_bytes - PREFIX_BYTES) {
        status = lv_fail(LV_EFORMAT, "%s: not a .npy file of version 1", path);
        goto done;
    }
    dict = strndup((const char *)file.data + PREFIX_BYTES, n_text);
    if (!dict) {
        status = lv_fail(LV_ENOMEM, "out of memory");
        goto done;
    }
    LV_TRY_DONE(parse_dict(path, dict, &tensor));
    size_t n_bytes;
    size_t n_actual = file.n_bytes - PREFIX_BYTES - n_text;
    if (!lv_mul((size_t)lv_tensor_count(&tensor), lv_dtype_bytes(tensor.dtype), &n_bytes) ||
        n_bytes != n_actual) {
        status = lv_fail(LV_EFORMAT, "%s: the shape needs other than the %zu bytes that follow",
                         path, n_actual);
        goto done;
    }
    data = malloc(n_bytes ? n_bytes : 1);
    if (!data) {
        status = lv_fail(LV_ENOMEM, "%s: out of memory for %zu bytes", path, n_bytes);
        goto done;
    }
    memcpy(data, file.data + PREFIX_BYTES + n_text, n_bytes);
    tensor.data = data;
    *out = tensor;
done:
    free(dict);
    lv_buffer_free(&file);
    return status;
}
