// The stored outputs of the references (see README.md) and how far we are from them.
#ifndef LV_TESTS_GOLDEN_H
#define LV_TESTS_GOLDEN_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core/files.h"
#include "core/safetensors.h"
#include "kernels/ops.h"

// Relative errors, ||ours - reference|| / ||reference||, in f32 on both sides.
#define GOLDEN_TOLERANCE 1e-4
#define GOLDEN_AWQ_TOLERANCE 1e-3
#define GOLDEN_F16_TOLERANCE 3e-3 // on a GPU, where activations are f16
// Where the best two logits are closer than this, f16 activations may swap them.
#define GOLDEN_F16_MARGIN 1e-2f

// "ref", "cpu" or "cuda"; "cpu2" and "cuda2" are groups of two.
static inline bool golden_is_cuda(const char *backend) {
    return strncmp(backend, "cuda", 4) == 0;
}

static inline int golden_tp(const char *backend) {
    return backend[strlen(backend) - 1] == '2' ? 2 : 1;
}

static inline lv_backend_options golden_backend(const char *backend) {
    return (lv_backend_options){.device = golden_is_cuda(backend) ? "cuda" : "cpu",
                                .reference = strcmp(backend, "ref") == 0,
                                .tp = golden_tp(backend)};
}

// The goldens were made with keys and values in f32.
static inline lv_dtype golden_kv(const char *backend) {
    return golden_is_cuda(backend) ? LV_NONE : LV_F32;
}

static inline double golden_tolerance(const char *backend) {
    return golden_is_cuda(backend) ? GOLDEN_F16_TOLERANCE : GOLDEN_TOLERANCE;
}

// The stored tensor "item/what"; NULL where there is none.
static inline const lv_tensor *golden_find(const lv_safetensors *file, const char *item,
                                           const char *what) {
    char name[128];
    snprintf(name, sizeof name, "%s/%s", item, what);
    const lv_named_tensor *found = lv_safetensors_find(file, name);
    return found ? &found->tensor : NULL;
}

// An aligned copy (the file's tensors lie anywhere); the caller frees it.
static inline void *golden_copy(const lv_tensor *tensor) {
    void *copy = malloc(lv_tensor_bytes(tensor) + 1);
    if (!copy) {
        abort();
    }
    memcpy(copy, tensor->data, lv_tensor_bytes(tensor));
    ((char *)copy)[lv_tensor_bytes(tensor)] = 0;
    return copy;
}

static inline double golden_relative(const float *ours, const float *reference, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)ours[i] - reference[i];
        difference += d * d;
        size += (double)reference[i] * reference[i];
    }
    return sqrt(difference / size);
}

// The relative error against a stored f32 tensor that must have n elements; NaN where it has not.
static inline double golden_error(const float *ours, size_t n, const lv_tensor *reference) {
    if (reference->dtype != LV_F32 || lv_tensor_count(reference) != (int64_t)n) {
        return NAN;
    }
    float *copy = golden_copy(reference);
    const double error = golden_relative(ours, copy, n);
    free(copy);
    return error;
}

static inline lv_safetensors *golden_open(const char *name) {
    char path[512];
    lv_safetensors *file = NULL;
    snprintf(path, sizeof path, "%s/tests/golden/data/%s.safetensors", check_source(), name);
    CHECK_OK(lv_safetensors_open(path, &file));
    return file;
}

#endif
