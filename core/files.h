// Files and growing buffers. Every buffer that grows with outside data has a maximum.
#ifndef LV_CORE_FILES_H
#define LV_CORE_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "core/tensor.h"

// A growing byte buffer; zero-initialise, then set max_bytes. `data` is always followed by a 0
// byte.
typedef struct lv_buffer {
    uint8_t *data;
    size_t n_bytes, capacity;
    size_t max_bytes; // LV_ELIMIT beyond it
} lv_buffer;

lv_status lv_buffer_append(lv_buffer *buffer, const void *data, size_t n_bytes) LV_MUST_CHECK;
void lv_buffer_free(lv_buffer *buffer); // leaves it empty, ready for use

// Checked size arithmetic: false on overflow.
#define lv_mul(a, b, out) (!__builtin_mul_overflow((a), (b), (out)))
#define lv_add(a, b, out) (!__builtin_add_overflow((a), (b), (out)))

lv_status lv_file_read(const char *path, size_t max_bytes,
                       lv_buffer *out) LV_MUST_CHECK; // sets out->max_bytes
lv_status lv_stream_read(int fd, const char *name, size_t max_bytes, lv_buffer *out) LV_MUST_CHECK;

// A read-only mapping of a whole regular file.
typedef struct lv_mapping {
    const uint8_t *data;
    size_t n_bytes;
} lv_mapping;

lv_status lv_file_map(const char *path, lv_mapping *out) LV_MUST_CHECK;
void lv_file_unmap(lv_mapping *mapping);
// memcpy, for bytes that are read once: those of a mapping come by reading its file, so that no
// page of it has to be mapped, nor unmapped in the end. Any thread; no other may unmap it
// meanwhile.
void lv_mapped_copy(void *to, const void *from, size_t n_bytes);

// Writes temporary file, fsync, rename: readers see the old file or the whole new one, which has
// its mode. What a link names is replaced, the link stays. LV_EFULL: no room on the disk.
lv_status lv_file_write_atomic(const char *path, const void *data, size_t n_bytes) LV_MUST_CHECK;

// NumPy .npy version 1.0, little-endian, C order: f32, f16, i32, i64, u8. `load` is for tests and
// tools: *out owns a copy freed by free((void *)out->data).
lv_status lv_npy_save(const char *path, const lv_tensor *tensor) LV_MUST_CHECK;
lv_status lv_npy_load(const char *path, size_t max_bytes, lv_tensor *out) LV_MUST_CHECK;

// Where a hub name lies in the Hugging Face cache layout (HF_HUB_CACHE, HF_HOME,
// ~/.cache/huggingface): models--org--name/snapshots/<refs/main>. An existing folder is returned as
// it is. Caller frees *out.
lv_status lv_model_find(const char *model, char **out_dir) LV_MUST_CHECK;

#endif
