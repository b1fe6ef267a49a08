// A checkpoint of real shapes with random weights, so that speeds can be measured without any
// download: llava-hf layout, AutoAWQ int4 decoder, f16 CLIP.
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    {"llava-1.6-mistral-7b", 4096, 14336, 32, 32, 8, 32064, 1024, 4096, 24, 16, 336, 14, true},
    {"demo", 384, 1024, 6, 6, 6, 2048, 384, 1536, 8, 6, 168, 14, false},
};

#define GROUP 128
#define PATTERN_BYTES ((size_t)1 << 20) // of random content, repeated

typedef enum kind { INT4, SCALES, WEIGHTS, ONES, N_KINDS } kind;

typedef struct writer {
    FILE *file;
    lv_buffer header; // JSON text, while `listing`
    bool listing;     // the first pass writes the header, the second the data
    uint64_t offset;  // of the next tensor
    uint8_t *pattern[N_KINDS];
    lv_status status;
} writer;

static uint32_t next_random(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static lv_status make_patterns(writer *w) {
    uint32_t state = 2463534242u;
    for (int k = 0; k < N_KINDS; k++) {
        w->pattern[k] = malloc(PATTERN_BYTES);
        if (!w->pattern[k]) {
            return lv_fail(LV_ENOMEM, "out of memory");
        }
        for (size_t i = 0; i < PATTERN_BYTES / 2; i++) {
            uint32_t random = next_random(&state) >> 8;
            float u = (float)(random & 0xFFFF) / 65536.0f;
            uint16_t half = k == INT4      ? (uint16_t)random
                            : k == SCALES  ? lv_f32_to_f16(0.002f + 0.001f * u)
                            : k == WEIGHTS ? lv_f32_to_f16(0.05f * (u - 0.5f))
                                           : lv_f32_to_f16(1.0f);
            memcpy(w->pattern[k] + 2 * i, &half, 2);
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

static void write_bytes(writer *w, const void *data, size_t n) {
    if (w->status == LV_OK && fwrite(data, 1, n, w->file) != n) {
        w->status = lv_fail(LV_EIO, "writing the synthetic checkpoint: disk full?");
    }
}

// One tensor; d1 0: a vector.
static void tensor(writer *w, const char *prefix, const char *name, kind k, int64_t d0,
                   int64_t d1) {
    uint64_t n_bytes = (uint64_t)d0 * (uint64_t)(d1 ? d1 : 1) * (k == INT4 ? 4 : 2);
    if (w->listing) {
        header_text(w, "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64, w->offset ? "," : "",
                    prefix, name, k == INT4 ? "I32" : "F16", d0);
        header_text(w, d1 ? ",%" PRId64 "]" : "]", d1);
        header_text(w, ",\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", w->offset,
                    w->offset + n_bytes);
    }
    for (uint64_t at = 0; !w->listing && at < n_bytes; at += PATTERN_BYTES) {
        uint64_t rest = n_bytes - at;
        write_bytes(w, w->pattern[k], rest < PATTERN_BYTES ? (size_t)rest : PATTERN_BYTES);
    }
    w->offset += n_bytes;
}

static void int4_linear(writer *w, const char *prefix, const char *name, int n_out, int n_in) {
    char full[128];
    snprintf(full, sizeof full, "%s%s.", prefix, name);
    tensor(w, full, "qweight", INT4, n_in, n_out / 8);
    tensor(w, full, "qzeros", INT4, n_in / GROUP, n_out / 8);
    tensor(w, full, "scales", SCALES, n_in / GROUP, n_out);
}

static void dense_linear(writer *w, const char *prefix, const char *name, int n_out, int n_in) {
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
        int4_linear(w, prefix, "self_attn.q_proj", s->d, s->d);
        int4_linear(w, prefix, "self_attn.k_proj", kv, s->d);
        int4_linear(w, prefix, "self_attn.v_proj", kv, s->d);
        int4_linear(w, prefix, "self_attn.o_proj", s->d, s->d);
        int4_linear(w, prefix, "mlp.gate_proj", s->d_ff, s->d);
        int4_linear(w, prefix, "mlp.up_proj", s->d_ff, s->d);
        int4_linear(w, prefix, "mlp.down_proj", s->d, s->d_ff);
    }
    tensor(w, "language_model.model.", "embed_tokens.weight", WEIGHTS, s->vocab, s->d);
    tensor(w, "language_model.model.", "norm.weight", ONES, s->d, 0);
    tensor(w, "language_model.", "lm_head.weight", WEIGHTS, s->vocab, s->d);
}

static void vision(writer *w, const shapes *s) {
    const char *base = "vision_tower.vision_model.";
    int d = s->vit_d, side = s->image / s->patch;
    char prefix[96];
    for (int i = 0; i < s->vit_layers; i++) {
        snprintf(prefix, sizeof prefix, "%sencoder.layers.%d.", base, i);
        norm(w, prefix, "layer_norm1", d);
        norm(w, prefix, "layer_norm2", d);
        dense_linear(w, prefix, "self_attn.q_proj", d, d);
        dense_linear(w, prefix, "self_attn.k_proj", d, d);
        dense_linear(w, prefix, "self_attn.v_proj", d, d);
        dense_linear(w, prefix, "self_attn.out_proj", d, d);
        dense_linear(w, prefix, "mlp.fc1", s->vit_ff, d);
        dense_linear(w, prefix, "mlp.fc2", d, s->vit_ff);
    }
    norm(w, base, "pre_layrnorm", d);
    tensor(w, base, "embeddings.class_embedding", WEIGHTS, d, 0);
    tensor(w, base, "embeddings.position_embedding.weight", WEIGHTS, side * side + 1, d);
    // [d, 3, patch, patch] in the header, whatever follows is the same bytes.
    uint64_t n_bytes = (uint64_t)d * 3 * (uint64_t)(s->patch * s->patch) * 2;
    if (w->listing) {
        header_text(w,
                    ",\"%sembeddings.patch_embedding.weight\":{\"dtype\":\"F16\",\"shape\":"
                    "[%d,3,%d,%d],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                    base, d, s->patch, s->patch, w->offset, w->offset + n_bytes);
        w->offset += n_bytes;
    } else {
        for (int i = 0; i < d; i++) {
            write_bytes(w, w->pattern[WEIGHTS], (size_t)(3 * s->patch * s->patch) * 2);
        }
    }
    dense_linear(w, "multi_modal_projector.", "linear_1", s->d, d);
    dense_linear(w, "multi_modal_projector.", "linear_2", s->d, s->d);
    if (s->next) {
        tensor(w, "", "image_newline", WEIGHTS, s->d, 0);
    }
}

static lv_status write_tensors(const shapes *s, const char *dir) {
    char path[512];
    writer w = {.listing = true, .header.max_bytes = (size_t)16 << 20};
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    w.status = make_patterns(&w);
    if (w.status == LV_OK && !(w.file = fopen(path, "wb"))) {
        w.status = lv_fail(LV_EIO, "%s: cannot be written", path);
    }
    if (w.status == LV_OK) {
        header_text(&w, "{");
        decoder(&w, s);
        vision(&w, s);
        header_text(&w, "}");
        while (w.status == LV_OK && w.header.n_bytes % 8) {
            header_text(&w, " ");
        }
        uint64_t n = w.header.n_bytes;
        write_bytes(&w, &n, sizeof n);
        write_bytes(&w, w.header.data, w.header.n_bytes);
        w.listing = false;
        decoder(&w, s);
        vision(&w, s);
    }
    if (w.file && fclose(w.file) && w.status == LV_OK) {
        w.status = lv_fail(LV_EIO, "%s: cannot be written", path);
    }
    lv_buffer_free(&w.header);
    for (int k = 0; k < N_KINDS; k++) {
        free(w.pattern[k]);
    }
    return w.status;
}

static lv_status write_json(const char *dir, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return lv_file_write_atomic(path, text, strlen(text));
}

static lv_status write_configs(const shapes *s, const char *dir) {
    char text[2048];
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"image_token_index\":%d,\"projector_hidden_act\":\"gelu\",%s"
             "\"vision_feature_layer\":-2,\"vision_feature_select_strategy\":\"default\","
             "\"text_config\":{\"model_type\":\"%s\",\"hidden_size\":%d,\"intermediate_size\":%d,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
             "\"vocab_size\":%d,\"rms_norm_eps\":1e-5,\"max_position_embeddings\":4096},"
             "\"vision_config\":{\"model_type\":\"clip_vision_model\",\"hidden_size\":%d,"
             "\"intermediate_size\":%d,\"num_hidden_layers\":%d,\"num_attention_heads\":%d,"
             "\"image_size\":%d,\"patch_size\":%d},"
             "\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":%d,"
             "\"zero_point\":true,\"version\":\"gemm\"}}",
             s->next ? "llava_next" : "llava", s->vocab - 64,
             s->next ? "\"image_grid_pinpoints\":[[336,672],[672,336],[672,672],[1008,336],"
                       "[336,1008]],"
                     : "",
             s->n_kv_heads == s->n_heads ? "llama" : "mistral", s->d, s->d_ff, s->n_layers,
             s->n_heads, s->n_kv_heads, s->vocab, s->vit_d, s->vit_ff, s->vit_layers, s->vit_heads,
             s->image, s->patch, GROUP);
    LV_TRY(write_json(dir, "config.json", text));
    snprintf(text, sizeof text,
             "{\"size\":{\"shortest_edge\":%d},\"crop_size\":{\"height\":%d,\"width\":%d},"
             "\"do_center_crop\":true,\"do_resize\":true}",
             s->image, s->image, s->image);
    return write_json(dir, "preprocessor_config.json", text);
}

lv_status bench_write_synthetic(const char *name, const char *dir) {
    const size_t n = sizeof all_shapes / sizeof *all_shapes;
    char names[256] = "";
    for (size_t i = 0; i < n; i++) {
        if (strcmp(name, all_shapes[i].name) == 0) {
            LV_TRY(write_configs(&all_shapes[i], dir));
            return write_tensors(&all_shapes[i], dir);
        }
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "",
                 all_shapes[i].name);
    }
    return lv_fail(LV_ENOTFOUND, "--synthetic %s: expected one of %s", name, names);
}
