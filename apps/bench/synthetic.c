// A checkpoint of real shapes with random weights, so that speeds can be measured without any
// download: llava-hf layout, AutoAWQ int4 or f16 decoder, f16 CLIP.
//
// Weights are scaled so that a linear of 4096 inputs keeps the size of what it is given: queries
// and keys of about 1 give attention that is neither even nor on one token, and a block adds about
// 0.7 to each value of the residual stream, which 40 layers bring to 5, far inside of f16.
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apps/bench/bench.h"
#include "core/files.h"

typedef struct shapes {
    const char *name;
    int d, d_ff, n_layers, n_heads, n_kv_heads, vocab; // decoder
    int vit_d, vit_ff, vit_layers, vit_heads, image, patch;
    bool next; // LLaVA-1.6
} shapes;

static const shapes all_shapes[] = {
    {"llava-1.5-7b", 4096, 11008, 32, 32, 32, 32064, 1024, 4096, 24, 16, 336, 14, false},
    {"llava-1.6-7b", 4096, 11008, 32, 32, 32, 32064, 1024, 4096, 24, 16, 336, 14, true},
    {"llava-1.5-13b", 5120, 13824, 40, 40, 40, 32064, 1024, 4096, 24, 16, 336, 14, false},
    {"llava-1.6-13b", 5120, 13824, 40, 40, 40, 32064, 1024, 4096, 24, 16, 336, 14, true},
    {"llava-1.6-mistral-7b", 4096, 14336, 32, 32, 8, 32064, 1024, 4096, 24, 16, 336, 14, true},
    {"demo", 384, 1024, 6, 6, 6, 2048, 384, 1536, 8, 6, 168, 14, false},
};

#define GROUP 128
#define BLOCK_BYTES ((size_t)4 << 20) // written at once
#define NOISE_BYTES ((size_t)8 << 20) // of random content; a block begins anywhere in its half
#define N_PADDED_IDS 64               // the vocabulary's last, whose rows of the head are 0

typedef enum kind { INT4, ZEROS, SCALES, WEIGHTS, ONES, N_KINDS } kind;

// Bytes [offset, offset + n_bytes) of the data hold noise of one kind.
typedef struct block {
    uint64_t offset;
    uint32_t n_bytes;
    kind kind;
} block;

typedef struct writer {
    lv_buffer header; // JSON text
    lv_buffer blocks; // of block
    uint64_t n_bytes; // of data so far
    bool dense;
    uint64_t zero_offset, n_zero_bytes; // overwritten with zeros in the end
    uint8_t *noise[N_KINDS];            // [NOISE_BYTES]
    lv_status status;
} writer;

static uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

// The i-th 16 bits of a kind's noise.
static uint16_t noise_at(kind k, uint32_t i) {
    const uint32_t random = mix(i * 8 + (uint32_t)k + 1);
    const float u = (float)(random >> 8) / 16777216.0f;
    switch (k) {
    case INT4:
        return (uint16_t)random;
    case ZEROS: // four nibbles of 7 or 8
        return (uint16_t)(0x7777u + (random & 0x1111u));
    case SCALES:
        return lv_f32_to_f16(0.003f + 0.001f * u);
    case WEIGHTS:
        return lv_f32_to_f16(0.056f * (u - 0.5f));
    default:
        return lv_f32_to_f16(1.0f);
    }
}

static lv_status make_noise(writer *w) {
    for (int k = 0; k < N_KINDS; k++) {
        w->noise[k] = malloc(NOISE_BYTES);
        if (!w->noise[k]) {
            return lv_fail(LV_ENOMEM, "out of memory");
        }
#pragma omp parallel for
        for (uint32_t i = 0; i < NOISE_BYTES / 2; i++) {
            const uint16_t value = noise_at((kind)k, i);
            memcpy(w->noise[k] + 2 * (size_t)i, &value, 2);
        }
    }
    return LV_OK;
}

static void header_text(writer *w, const char *format, ...) LV_PRINTF(2, 3);
static void header_text(writer *w, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (w->status == LV_OK) {
        w->status = lv_buffer_append(&w->header, text, (size_t)n);
    }
}

// One tensor's place in the file; dims in JSON.
static void place(writer *w, const char *prefix, const char *name, kind k, const char *dims,
                  uint64_t n_bytes) {
    header_text(w, "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%s],", w->n_bytes ? "," : "", prefix,
                name, k == INT4 || k == ZEROS ? "I32" : "F16", dims);
    header_text(w, "\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", w->n_bytes, w->n_bytes + n_bytes);
    while (n_bytes > 0 && w->status == LV_OK) {
        const uint64_t now = n_bytes < BLOCK_BYTES ? n_bytes : BLOCK_BYTES;
        const block b = {w->n_bytes, (uint32_t)now, k};
        w->status = lv_buffer_append(&w->blocks, &b, sizeof b);
        w->n_bytes += now;
        n_bytes -= now;
    }
}

// d1 0: a vector.
static void tensor(writer *w, const char *prefix, const char *name, kind k, int64_t d0,
                   int64_t d1) {
    char dims[64];
    snprintf(dims, sizeof dims, d1 ? "%" PRId64 ",%" PRId64 : "%" PRId64, d0, d1);
    place(w, prefix, name, k, dims,
          (uint64_t)d0 * (uint64_t)(d1 ? d1 : 1) * (k == INT4 || k == ZEROS ? 4 : 2));
}

// A decoder's linear.
static void linear(writer *w, const char *prefix, const char *name, int n_out, int n_in) {
    char full[128];
    snprintf(full, sizeof full, "%s%s.", prefix, name);
    if (w->dense) {
        tensor(w, full, "weight", WEIGHTS, n_out, n_in);
        return;
    }
    tensor(w, full, "qweight", INT4, n_in, n_out / 8);
    tensor(w, full, "qzeros", ZEROS, n_in / GROUP, n_out / 8);
    tensor(w, full, "scales", SCALES, n_in / GROUP, n_out);
}

// CLIP's and the projector's.
static void biased_linear(writer *w, const char *prefix, const char *name, int n_out, int n_in) {
    char full[128];
    snprintf(full, sizeof full, "%s%s.", prefix, name);
    tensor(w, full, "weight", WEIGHTS, n_out, n_in);
    tensor(w, full, "bias", WEIGHTS, n_out, 0);
}

static void norm(writer *w, const char *prefix, const char *name, int d) {
    char full[128];
    snprintf(full, sizeof full, "%s%s.", prefix, name);
    tensor(w, full, "weight", ONES, d, 0);
    tensor(w, full, "bias", WEIGHTS, d, 0);
}

static void decoder(writer *w, const shapes *s) {
    int kv = s->d / s->n_heads * s->n_kv_heads;
    char prefix[64];
    for (int i = 0; i < s->n_layers; i++) {
        snprintf(prefix, sizeof prefix, "language_model.model.layers.%d.", i);
        tensor(w, prefix, "input_layernorm.weight", ONES, s->d, 0);
        tensor(w, prefix, "post_attention_layernorm.weight", ONES, s->d, 0);
        linear(w, prefix, "self_attn.q_proj", s->d, s->d);
        linear(w, prefix, "self_attn.k_proj", kv, s->d);
        linear(w, prefix, "self_attn.v_proj", kv, s->d);
        linear(w, prefix, "self_attn.o_proj", s->d, s->d);
        linear(w, prefix, "mlp.gate_proj", s->d_ff, s->d);
        linear(w, prefix, "mlp.up_proj", s->d_ff, s->d);
        linear(w, prefix, "mlp.down_proj", s->d, s->d_ff);
    }
    tensor(w, "language_model.model.", "embed_tokens.weight", WEIGHTS, s->vocab, s->d);
    tensor(w, "language_model.model.", "norm.weight", ONES, s->d, 0);
    tensor(w, "language_model.", "lm_head.weight", WEIGHTS, s->vocab, s->d);
    w->n_zero_bytes = (uint64_t)N_PADDED_IDS * (uint64_t)s->d * 2;
    w->zero_offset = w->n_bytes - w->n_zero_bytes;
}

static void vision(writer *w, const shapes *s) {
    const char *base = "vision_tower.vision_model.";
    int d = s->vit_d, side = s->image / s->patch;
    char prefix[96];
    for (int i = 0; i < s->vit_layers; i++) {
        snprintf(prefix, sizeof prefix, "%sencoder.layers.%d.", base, i);
        norm(w, prefix, "layer_norm1", d);
        norm(w, prefix, "layer_norm2", d);
        biased_linear(w, prefix, "self_attn.q_proj", d, d);
        biased_linear(w, prefix, "self_attn.k_proj", d, d);
        biased_linear(w, prefix, "self_attn.v_proj", d, d);
        biased_linear(w, prefix, "self_attn.out_proj", d, d);
        biased_linear(w, prefix, "mlp.fc1", s->vit_ff, d);
        biased_linear(w, prefix, "mlp.fc2", d, s->vit_ff);
    }
    norm(w, base, "pre_layrnorm", d);
    tensor(w, base, "embeddings.class_embedding", WEIGHTS, d, 0);
    tensor(w, base, "embeddings.position_embedding.weight", WEIGHTS, side * side + 1, d);
    char dims[64];
    snprintf(dims, sizeof dims, "%d,3,%d,%d", d, s->patch, s->patch);
    place(w, base, "embeddings.patch_embedding.weight", WEIGHTS, dims,
          (uint64_t)d * 3 * (uint64_t)(s->patch * s->patch) * 2);
    biased_linear(w, "multi_modal_projector.", "linear_1", s->d, d);
    biased_linear(w, "multi_modal_projector.", "linear_2", s->d, s->d);
    if (s->next) {
        tensor(w, "", "image_newline", WEIGHTS, s->d, 0);
    }
}

static bool write_at(int fd, const void *data, size_t n, uint64_t offset) {
    const char *from = data;
    while (n > 0) {
        const ssize_t done = pwrite(fd, from, n, (off_t)offset);
        if (done <= 0) {
            return false;
        }
        from += done;
        offset += (uint64_t)done;
        n -= (size_t)done;
    }
    return true;
}

// The header, then all blocks by many threads; each begins elsewhere in its kind's noise, so that
// no two rows of a matrix are the same.
static bool write_file(const writer *w, int fd) {
    const block *blocks = (const block *)(const void *)w->blocks.data;
    const size_t n = w->blocks.n_bytes / sizeof *blocks;
    const uint64_t n_header = w->header.n_bytes, data = sizeof n_header + n_header;
    bool ok = write_at(fd, &n_header, sizeof n_header, 0) &&
              write_at(fd, w->header.data, n_header, sizeof n_header);
#pragma omp parallel for schedule(dynamic) reduction(&& : ok)
    for (size_t i = 0; i < n; i++) {
        const size_t start = mix((uint32_t)i) % (uint32_t)((NOISE_BYTES - BLOCK_BYTES) / 2) * 2;
        ok = ok && write_at(fd, w->noise[blocks[i].kind] + start, blocks[i].n_bytes,
                            data + blocks[i].offset);
    }
    void *zeros = calloc(1, w->n_zero_bytes);
    ok = ok && zeros && write_at(fd, zeros, w->n_zero_bytes, data + w->zero_offset);
    free(zeros);
    return ok;
}

static lv_status write_tensors(const shapes *s, bool dense, const char *dir) {
    char path[512];
    int fd = -1;
    writer w = {
        .dense = dense, .header.max_bytes = (size_t)16 << 20, .blocks.max_bytes = (size_t)16 << 20};
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    w.status = make_noise(&w);
    header_text(&w, "{");
    decoder(&w, s);
    vision(&w, s);
    header_text(&w, "}");
    while (w.status == LV_OK && w.header.n_bytes % 8) {
        header_text(&w, " ");
    }
    if (w.status == LV_OK) {
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (fd < 0 || !write_file(&w, fd)) {
            w.status = lv_fail(LV_EIO, "%s: cannot be written: disk full?", path);
        }
    }
    if (fd >= 0 && close(fd) && w.status == LV_OK) {
        w.status = lv_fail(LV_EIO, "%s: cannot be written", path);
    }
    lv_buffer_free(&w.header);
    lv_buffer_free(&w.blocks);
    for (int k = 0; k < N_KINDS; k++) {
        free(w.noise[k]);
    }
    return w.status;
}

static lv_status write_json(const char *dir, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return lv_file_write_atomic(path, text, strlen(text));
}

static lv_status write_configs(const shapes *s, bool dense, const char *dir) {
    char text[2048], quantised[160];
    snprintf(quantised, sizeof quantised,
             ",\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":%d,"
             "\"zero_point\":true,\"version\":\"gemm\"}",
             GROUP);
    // An answer never ends by itself: the last id's row of the head is zero.
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"image_token_index\":%d,\"projector_hidden_act\":\"gelu\",%s"
             "\"vision_feature_layer\":-2,\"vision_feature_select_strategy\":\"default\","
             "\"text_config\":{\"model_type\":\"%s\",\"hidden_size\":%d,\"intermediate_size\":%d,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
             "\"vocab_size\":%d,\"eos_token_id\":%d,\"rms_norm_eps\":1e-5,"
             "\"max_position_embeddings\":4096},"
             "\"vision_config\":{\"model_type\":\"clip_vision_model\",\"hidden_size\":%d,"
             "\"intermediate_size\":%d,\"num_hidden_layers\":%d,\"num_attention_heads\":%d,"
             "\"image_size\":%d,\"patch_size\":%d}%s}",
             s->next ? "llava_next" : "llava", s->vocab - N_PADDED_IDS,
             s->next ? "\"image_grid_pinpoints\":[[336,672],[672,336],[672,672],[1008,336],"
                       "[336,1008]],"
                     : "",
             s->n_kv_heads == s->n_heads ? "llama" : "mistral", s->d, s->d_ff, s->n_layers,
             s->n_heads, s->n_kv_heads, s->vocab, s->vocab - 1, s->vit_d, s->vit_ff, s->vit_layers,
             s->vit_heads, s->image, s->patch, dense ? "" : quantised);
    LV_TRY(write_json(dir, "config.json", text));
    snprintf(text, sizeof text,
             "{\"size\":{\"shortest_edge\":%d},\"crop_size\":{\"height\":%d,\"width\":%d},"
             "\"do_center_crop\":true,\"do_resize\":true}",
             s->image, s->image, s->image);
    return write_json(dir, "preprocessor_config.json", text);
}

static lv_status copy_tokenizer(const char *from, const char *dir) {
    char path[512];
    lv_buffer bytes = {0};
    LV_TRY(lv_file_read(from, (size_t)16 << 20, &bytes));
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    lv_status status = lv_file_write_atomic(path, bytes.data, bytes.n_bytes);
    lv_buffer_free(&bytes);
    return status;
}

lv_status bench_write_synthetic(const char *name, bool dense, const char *tokenizer,
                                const char *dir) {
    const size_t n = sizeof all_shapes / sizeof *all_shapes;
    char names[256] = "";
    for (size_t i = 0; i < n; i++) {
        if (strcmp(name, all_shapes[i].name) == 0) {
            LV_TRY(write_configs(&all_shapes[i], dense, dir));
            LV_TRY(tokenizer ? copy_tokenizer(tokenizer, dir) : LV_OK);
            return write_tensors(&all_shapes[i], dense, dir);
        }
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "",
                 all_shapes[i].name);
    }
    return lv_fail(LV_ENOTFOUND, "--synthetic %s: expected one of %s", name, names);
}

void bench_remove_synthetic(const char *dir) {
    static const char *const files[] = {"model.safetensors", "config.json",
                                        "preprocessor_config.json"};
    char path[600];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
}
