// safetensors files, honest and not.
#include "core/safetensors.h"
#include "core_util.h"

#define HEADER(type, shape, offsets)                                                               \
    "{\"t\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static lv_status parse(const char *header, size_t n_data, lv_safetensors **out, uint8_t **bytes) {
    size_t n_bytes;
    *bytes = safetensors_bytes(header, n_data, &n_bytes);
    return lv_safetensors_parse(*bytes, n_bytes, "file", out);
}

static void refused(const char *header, size_t n_data, lv_status want) {
    lv_safetensors *file;
    uint8_t *bytes;
    CHECK_STATUS(parse(header, n_data, &file, &bytes), want);
    CHECK(!file && error_names("file", NULL), "%.200s: %s", header, lv_error());
    free(bytes);
}

static void test_good(void) {
    builder b = {0};
    builder_add(&b, "z.weight", "F32", 4, "[2,3]", 6);
    builder_add(&b, "a.weight", "BF16", 2, "[4]", 4);
    builder_add(&b, "scalar", "I64", 8, "[]", 1);
    builder_add(&b, "none", "U8", 1, "[0,7]", 0);
    builder_add(&b, "double", "F64", 8, "[2]", 2);
    b.n_header += (size_t)sprintf(b.header + b.n_header, ",\"__metadata__\":{\"format\":\"pt\"}");
    builder_write(&b, "good.safetensors");
    lv_safetensors *file;
    size_t n;
    CHECK_OK(lv_safetensors_open(scratch("good.safetensors"), &file));
    const lv_named_tensor *list = lv_safetensors_list(file, &n);
    CHECK(n == 5 && strcmp(list[0].name, "a.weight") == 0 && strcmp(list[4].name, "z.weight") == 0);
    const lv_named_tensor *z = lv_safetensors_find(file, "z.weight");
    CHECK(z && z->tensor.dtype == LV_F32 && z->tensor.n_dims == 2 && z->tensor.dims[0] == 2 &&
          z->tensor.dims[1] == 3);
    CHECK(z && ((const uint8_t *)z->tensor.data)[5] == 5);
    const lv_named_tensor *a = lv_safetensors_find(file, "a.weight");
    CHECK(a && a->tensor.dtype == LV_BF16 && ((const uint8_t *)a->tensor.data)[0] == 24);
    const lv_named_tensor *scalar = lv_safetensors_find(file, "scalar");
    CHECK(scalar && scalar->tensor.n_dims == 0 && lv_tensor_bytes(&scalar->tensor) == 8);
    const lv_named_tensor *none = lv_safetensors_find(file, "none");
    CHECK(none && none->tensor.data && lv_tensor_bytes(&none->tensor) == 0);
    const lv_named_tensor *d = lv_safetensors_find(file, "double");
    CHECK(d && d->tensor.dtype == LV_NONE && strcmp(d->type, "F64") == 0);
    CHECK(!lv_safetensors_find(file, "missing"));
    lv_safetensors_free(file);
    lv_safetensors_free(NULL);
    uint8_t *bytes;
    CHECK_OK(parse("{}", 0, &file, &bytes));
    CHECK(lv_safetensors_list(file, &n) && n == 0 && !lv_safetensors_find(file, "x"));
    lv_safetensors_free(file);
    free(bytes);
}

static void test_lies(void) {
    // Data of 24 bytes throughout; the first line is the honest one.
    lv_safetensors *file;
    uint8_t *bytes;
    CHECK_OK(parse(HEADER("F32", "[2,3]", "[0,24]"), 24, &file, &bytes));
    lv_safetensors_free(file);
    free(bytes);
    static const char *const bad[] = {
        HEADER("F32", "[2,3]", "[0,28]"),
        HEADER("F32", "[2,3]", "[4,28]"),
        HEADER("F32", "[2,3]", "[24,0]"),
        HEADER("F32", "[2,3]", "[0,20]"),
        HEADER("F32", "[2,3]", "[-24,0]"),
        HEADER("F32", "[2,3]", "[0,24,48]"),
        HEADER("F32", "[2,3]", "[0]"),
        HEADER("F32", "[2,3]", "[0.0,24]"),
        HEADER("F32", "[2,3]", "null"),
        HEADER("F32", "[2,3]", "\"0,24\""),
        HEADER("F32", "[2,3]", "[9223372036854775807,9223372036854775807]"),
        HEADER("F32", "[2,3]", "[9223372036854775784,9223372036854775807]"),
        HEADER("F32", "[2,3]", "[0,18446744073709551615]"),
        HEADER("F32", "[2,4]", "[0,24]"),
        HEADER("F16", "[2,3]", "[0,24]"),
        HEADER("F32", "[-2,-3]", "[0,24]"),
        HEADER("F32", "[0,-1]", "[0,0]"),
        HEADER("F32", "[2,3.0]", "[0,24]"),
        HEADER("F32", "[2,\"3\"]", "[0,24]"),
        HEADER("F32", "6", "[0,24]"),
        HEADER("F32", "{}", "[0,24]"),
        HEADER("F32", "[1,1,1,1,1,2,3]", "[0,24]"),
        HEADER("F32", "[4611686018427387910]", "[0,24]"),
        HEADER("F32", "[4294967296,4294967296]", "[0,0]"),
        HEADER("F32", "[65536,65536,65536,65536]", "[0,0]"),
        HEADER("F4", "[2,3]", "[0,24]"),
        HEADER("", "[2,3]", "[0,24]"),
        HEADER("AVERYLONGTYPENAMEINDEED", "[2,3]", "[0,24]"),
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3]}}",
        "{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,24]}}",
        "{\"t\":{\"shape\":[2,3],\"data_offsets\":[0,24]}}",
        "{\"t\":{\"dtype\":4,\"shape\":[2,3],\"data_offsets\":[0,24]}}",
        "{\"t\":[]}",
        "{\"t\":NaN}",
        "{\"t\":{},\"t\":{}}",
        "NaN",
        "[]",
        "",
        "{",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        refused(bad[i], 24, LV_EFORMAT);
    }
    refused(HEADER("F32", "[2,3]", "[0,28]"), 24, LV_EFORMAT);
    CHECK(error_names("file: t", "28", "24", NULL), "%s", lv_error());
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
            "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
            24, LV_EFORMAT);
}

static void test_header_length(void) {
    size_t n;
    uint8_t *bytes = safetensors_bytes(HEADER("U8", "[3]", "[0,3]"), 3, &n);
    static const uint64_t lengths[] = {0,          1,          1ull << 20, 1ull << 31,
                                       1ull << 32, 1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    lv_safetensors *file;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        put_u64(bytes, lengths[i]);
        CHECK_STATUS(lv_safetensors_parse(bytes, n, "file", &file), LV_EFORMAT);
    }
    free(bytes);
    // Above the format's limit although the file is long enough.
    n = LV_SAFETENSORS_MAX_HEADER + 64;
    bytes = calloc(1, n);
    put_u64(bytes, LV_SAFETENSORS_MAX_HEADER + 1);
    CHECK_STATUS(lv_safetensors_parse(bytes, n, "file", &file), LV_EFORMAT);
    free(bytes);
}

static void test_deep_and_many(void) {
    static char text[2000];
    strcpy(text, "{\"t\":");
    memset(text + 5, '[', 1000);
    refused(text, 0, LV_ELIMIT);
    size_t n_tensors = LV_SAFETENSORS_MAX_TENSORS + 1, n = 1;
    char *many = malloc(n_tensors * 64 + 8);
    strcpy(many, "{");
    for (size_t i = 0; i < n_tensors; i++) {
        n += (size_t)sprintf(many + n, "%s\"%zu\":{}", i ? "," : "", i);
    }
    strcpy(many + n, "}");
    refused(many, 0, LV_ELIMIT);
    free(many);
}

// Every prefix of a good file is refused; so is a file cut at each tenth on the disk.
static void test_truncated(void) {
    builder b = {0};
    builder_add(&b, "a", "F32", 4, "[2,3]", 6);
    builder_add(&b, "b", "F16", 2, "[5]", 5);
    builder_write(&b, "whole");
    lv_buffer whole;
    lv_safetensors *file;
    CHECK_OK(lv_file_read(scratch("whole"), 4096, &whole));
    for (size_t n = 0; n < whole.n_bytes; n++) {
        uint8_t *prefix = malloc(n ? n : 1); // its own block, so that ASan sees a read beyond
        memcpy(prefix, whole.data, n);
        CHECK_STATUS(lv_safetensors_parse(prefix, n, "file", &file), LV_EFORMAT);
        free(prefix);
    }
    for (size_t i = 0; i < 10; i++) {
        write_bytes("cut", whole.data, whole.n_bytes * i / 10);
        CHECK_STATUS(lv_safetensors_open(scratch("cut"), &file), LV_EFORMAT);
        CHECK(error_names("cut", NULL), "%s", lv_error());
    }
    lv_buffer_free(&whole);
    CHECK_STATUS(lv_safetensors_open(scratch("missing"), &file), LV_ENOTFOUND);
}

int main(void) {
    scratch_open();
    test_good();
    test_lies();
    test_header_length();
    test_deep_and_many();
    test_truncated();
    return check_done();
}
