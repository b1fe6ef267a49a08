#include "core/hash.h"

#include <stdbool.h>

#include <openssl/evp.h>

lv_status lv_sha256(const lv_span *spans, int n_spans, lv_hash *out) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool ok = context && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1;
    for (int i = 0; ok && i < n_spans; i++) {
        ok = EVP_DigestUpdate(context, spans[i].data, spans[i].n_bytes) == 1;
    }
    ok = ok && EVP_DigestFinal_ex(context, out->bytes, NULL) == 1;
    EVP_MD_CTX_free(context);
    return ok ? LV_OK : lv_fail(LV_ENOMEM, "SHA-256: libcrypto refuses");
}
