// Checkpoints: every family's names, shards, quantised linears, and what is refused.
#include "core/checkpoint.h"
#include "core_util.h"

// A decoder of width 16 with one layer and a tower of width 8, in both layouts.
static const char hf_config[] =
    "{\"model_type\":\"llava\",\"text_config\":{\"hidden_size\":16,\"intermediate_size\":24,"
    "\"num_attention_heads\":2,\"num_hidden_layers\":1,\"vocab_size\":32,"
    "\"tie_word_embeddings\":%s},\"vision_config\":{\"hidden_size\":8,\"image_size\":28,"
    "\"patch_size\":14,\"num_attention_heads\":2,\"num_hidden_layers\":2}%s}";

static const char original_config[] =
    "{\"model_type\":\"llava\",\"hidden_size\":16,\"intermediate_size\":24,"
    "\"num_attention_heads\":2,\"num_hidden_layers\":1,\"vocab_size\":32,"
    "\"mm_projector_type\":\"mlp2x_gelu\",\"image_aspect_ratio\":\"pad\","
    "\"mm_vision_tower\":\"org/%s\"}";

static const char awq[] = ",\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,"
                          "\"group_size\":8,\"version\":\"gemm\"}";

static void write_hf_config(const char *tie, const char *more) {
    char text[2048];
    snprintf(text, sizeof text, hf_config, tie, more);
    write_text("model/config.json", text);
}

static void write_original_config(const char *tower) {
    char text[2048];
    snprintf(text, sizeof text, original_config, tower);
    write_text("model/config.json", text);
}

static lv_status open_model(lv_checkpoint **out) {
    return lv_checkpoint_open(scratch("model"), NULL, out);
}

static void opened(lv_checkpoint **out) {
    CHECK_OK(open_model(out));
    if (!*out) {
        exit(1);
    }
}

static void refused(lv_status want, const char *named) {
    lv_checkpoint *checkpoint;
    CHECK_STATUS(open_model(&checkpoint), want);
    CHECK(!checkpoint && error_names(named, NULL), "wanted %s: %s", named, lv_error());
    lv_checkpoint_free(checkpoint);
}

static void has_tensor(const lv_checkpoint *checkpoint, const char *name, int n_dims, int64_t a,
                       int64_t b) {
    lv_tensor tensor;
    lv_status status = lv_checkpoint_tensor(checkpoint, name, n_dims, (int64_t[]){a, b}, &tensor);
    CHECK(status == LV_OK && tensor.data && tensor.dtype == LV_F16, "%s: %s", name, lv_error());
}

// --- names --------------------------------------------------------------------------------------

// The same few tensors, named as each family names them: {embedding, norm, head, projector's two
// layers, newline, class embedding}.
static const struct {
    const char *family;
    bool hf;
    const char *names[7];
} families[] = {
    {"llava-hf",
     true,
     {"language_model.model.embed_tokens.weight", "language_model.model.layers.0.norm",
      "language_model.lm_head.weight", "multi_modal_projector.linear_1.bias",
      "multi_modal_projector.linear_2.bias", "image_newline",
      "vision_tower.vision_model.embeddings.class_embedding"}},
    {"transformers 4.52",
     true,
     {"model.language_model.embed_tokens.weight", "model.language_model.layers.0.norm",
      "lm_head.weight", "model.multi_modal_projector.linear_1.bias",
      "model.multi_modal_projector.linear_2.bias", "model.image_newline",
      "model.vision_tower.vision_model.embeddings.class_embedding"}},
    {"transformers 5.6",
     true,
     {"model.language_model.embed_tokens.weight", "model.language_model.layers.0.norm",
      "lm_head.weight", "model.multi_modal_projector.linear_1.bias",
      "model.multi_modal_projector.linear_2.bias", "model.image_newline",
      "model.vision_tower.embeddings.class_embedding"}},
    {"canonical",
     true,
     {"language_model.embed_tokens.weight", "language_model.layers.0.norm", "lm_head.weight",
      "multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_2.bias", "image_newline",
      "vision_tower.embeddings.class_embedding"}},
    {"original 1.6",
     false,
     {"model.embed_tokens.weight", "model.layers.0.norm", "lm_head.weight",
      "model.mm_projector.0.bias", "model.mm_projector.2.bias", "model.image_newline",
      "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"}},
};

static void check_canonical(const lv_checkpoint *checkpoint) {
    has_tensor(checkpoint, "language_model.embed_tokens.weight", 2, 32, 16);
    has_tensor(checkpoint, "language_model.layers.0.norm", 1, 16, 0);
    has_tensor(checkpoint, "lm_head.weight", 2, 32, 16);
    has_tensor(checkpoint, "multi_modal_projector.linear_1.bias", 1, 17, 0);
    has_tensor(checkpoint, "multi_modal_projector.linear_2.bias", 1, 18, 0);
    has_tensor(checkpoint, "image_newline", 1, 16, 0);
    has_tensor(checkpoint, "vision_tower.embeddings.class_embedding", 1, 8, 0);
}

static void test_families(void) {
    static const char *const shapes[] = {"[32,16]", "[16]", "[32,16]", "[17]",
                                         "[18]",    "[16]", "[8]"};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        builder b = {0};
        for (size_t j = 0; j < 7; j++) {
            builder_add_f16(&b, families[i].names[j], shapes[j]);
        }
        builder_write(&b, "model/model.safetensors");
        if (families[i].hf) {
            write_hf_config("false", "");
        } else {
            write_original_config("clip-vit-large-patch14-336");
        }
        lv_checkpoint *checkpoint;
        opened(&checkpoint);
        check_canonical(checkpoint);
        CHECK(lv_checkpoint_bytes(checkpoint) == 2 * (512 + 16 + 512 + 17 + 18 + 16 + 8));
        CHECK(strcmp(lv_checkpoint_dir(checkpoint), scratch("model")) == 0);
        CHECK(!*lv_checkpoint_config(checkpoint)->vision_tower, "%s: inside", families[i].family);
        lv_checkpoint_free(checkpoint);
    }
    lv_checkpoint_free(NULL);
}

static void test_tensor(void) {
    builder b = {0};
    builder_add_f16(&b, "language_model.model.norm.weight", "[16]");
    builder_add(&b, "language_model.model.steps", "I64", 8, "[2]", 2);
    builder_add(&b, "language_model.model.wide", "F64", 8, "[2]", 2);
    builder_write(&b, "model/model.safetensors");
    write_hf_config("false", "");
    lv_checkpoint *checkpoint;
    opened(&checkpoint);
    lv_tensor tensor;
    int64_t dims[2] = {16, 1};
    CHECK_OK(lv_checkpoint_tensor(checkpoint, "language_model.norm.weight", 1, dims, &tensor));
    CHECK_STATUS(lv_checkpoint_tensor(checkpoint, "language_model.norm.weight", 2, dims, &tensor),
                 LV_EFORMAT);
    CHECK(!tensor.data);
    dims[0] = 15;
    CHECK_STATUS(lv_checkpoint_tensor(checkpoint, "language_model.norm.weight", 1, dims, &tensor),
                 LV_EFORMAT);
    CHECK(
        error_names("model.safetensors", "language_model.model.norm.weight", "[15]", "[16]", NULL),
        "%s", lv_error());
    dims[0] = 2;
    CHECK_STATUS(lv_checkpoint_tensor(checkpoint, "language_model.steps", 1, dims, &tensor),
                 LV_EFORMAT);
    CHECK(error_names("F16", "I64", NULL), "%s", lv_error());
    CHECK_STATUS(lv_checkpoint_tensor(checkpoint, "language_model.wide", 1, dims, &tensor),
                 LV_EFORMAT);
    CHECK(error_names("F64", NULL), "%s", lv_error());
    CHECK_STATUS(lv_checkpoint_tensor(checkpoint, "language_model.gone", 1, dims, &tensor),
                 LV_ENOTFOUND);
    CHECK(error_names("language_model.gone", "llava-hf", NULL), "%s", lv_error());
    CHECK(lv_checkpoint_has(checkpoint, "language_model.norm") &&
          lv_checkpoint_has(checkpoint, "language_model.norm.weight") &&
          !lv_checkpoint_has(checkpoint, "language_model.nor"));
    lv_checkpoint_free(checkpoint);
    // Two names that mean the same tensor.
    builder_add_f16(&b, "language_model.model.norm.weight", "[16]");
    builder_add_f16(&b, "model.language_model.norm.weight", "[16]");
    builder_write(&b, "model/model.safetensors");
    refused(LV_EFORMAT, "language_model.norm.weight");
}

static void test_tied(void) {
    lv_checkpoint *checkpoint;
    lv_linear_source linear;
    lv_tensor head, embed;
    int64_t dims[] = {32, 16};
    builder b = {0};
    builder_add_f16(&b, "language_model.model.embed_tokens.weight", "[32,16]");
    builder_write(&b, "model/model.safetensors");
    write_hf_config("true", "");
    opened(&checkpoint);
    CHECK(lv_checkpoint_config(checkpoint)->text.tie_embeddings);
    CHECK_OK(lv_checkpoint_tensor(checkpoint, "lm_head.weight", 2, dims, &head));
    CHECK_OK(
        lv_checkpoint_tensor(checkpoint, "language_model.embed_tokens.weight", 2, dims, &embed));
    CHECK(head.data == embed.data);
    CHECK_OK(lv_checkpoint_linear(checkpoint, "lm_head", 32, 16, &linear));
    CHECK(linear.weight.data == embed.data);
    lv_checkpoint_free(checkpoint);

    write_hf_config("false", "");
    opened(&checkpoint);
    CHECK_STATUS(lv_checkpoint_linear(checkpoint, "lm_head", 32, 16, &linear), LV_ENOTFOUND);
    CHECK(error_names("lm_head.weight", NULL), "%s", lv_error());
    lv_checkpoint_free(checkpoint);

    // A head of its own is used although the config says tied.
    builder_add_f16(&b, "language_model.model.embed_tokens.weight", "[32,16]");
    builder_add_f16(&b, "language_model.lm_head.weight", "[32,16]");
    builder_write(&b, "model/model.safetensors");
    write_hf_config("true", "");
    opened(&checkpoint);
    CHECK(!lv_checkpoint_config(checkpoint)->text.tie_embeddings);
    CHECK_OK(lv_checkpoint_tensor(checkpoint, "lm_head.weight", 2, dims, &head));
    CHECK_OK(
        lv_checkpoint_tensor(checkpoint, "language_model.embed_tokens.weight", 2, dims, &embed));
    CHECK(head.data != embed.data);
    lv_checkpoint_free(checkpoint);
}

// --- linears ------------------------------------------------------------------------------------

static void test_dense_linear(void) {
    builder b = {0};
    builder_add_f16(&b, "model.language_model.layers.0.q.weight", "[16,8]");
    builder_add_f16(&b, "model.language_model.layers.0.k.weight", "[16,8]");
    builder_add_f16(&b, "model.language_model.layers.0.k.bias", "[16]");
    builder_add_f16(&b, "model.language_model.layers.0.v.weight", "[16,8]");
    builder_add_f16(&b, "model.language_model.layers.0.v.bias", "[15]");
    builder_write(&b, "model/model.safetensors");
    write_hf_config("false", "");
    lv_checkpoint *checkpoint;
    lv_linear_source q, k;
    opened(&checkpoint);
    CHECK_OK(lv_checkpoint_linear(checkpoint, "language_model.layers.0.q", 16, 8, &q));
    CHECK(q.quant == LV_QUANT_NONE && q.weight.data && !q.bias.data && q.n_out == 16 &&
          q.n_in == 8);
    CHECK_OK(lv_checkpoint_linear(checkpoint, "language_model.layers.0.k", 16, 8, &k));
    CHECK(k.bias.data && k.bias.dims[0] == 16);
    CHECK_STATUS(lv_checkpoint_linear(checkpoint, "language_model.layers.0.q", 8, 16, &q),
                 LV_EFORMAT);
    CHECK_STATUS(lv_checkpoint_linear(checkpoint, "language_model.layers.0.v", 16, 8, &q),
                 LV_EFORMAT);
    CHECK(error_names("v.bias", "[16]", "[15]", NULL), "%s", lv_error());
    CHECK_STATUS(lv_checkpoint_linear(checkpoint, "language_model.layers.0.o", 16, 8, &q),
                 LV_ENOTFOUND);
    char name[1024];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    CHECK_STATUS(lv_checkpoint_linear(checkpoint, name, 16, 8, &q), LV_EINVAL);
    lv_checkpoint_free(checkpoint);
}

#define AWQ_NAME "language_model.model.layers.0.q"

// An AWQ linear of 16 inputs in groups of 8 and 24 outputs, with one part's shape or type changed.
static lv_status awq_linear(const char *part, const char *type, const char *shape, int n_elements,
                            lv_linear_source *out, lv_checkpoint **checkpoint) {
    static const struct {
        const char *part, *type, *shape;
        int bytes, n;
    } parts[] = {{"qweight", "I32", "[16,3]", 4, 48},
                 {"qzeros", "I32", "[2,3]", 4, 6},
                 {"scales", "F16", "[2,24]", 2, 48}};
    builder b = {0};
    for (size_t i = 0; i < 3; i++) {
        bool change = strcmp(part, parts[i].part) == 0;
        const char *as = change ? type : parts[i].type;
        char name[128];
        snprintf(name, sizeof name, AWQ_NAME ".%s", parts[i].part);
        if (*as) {
            builder_add(&b, name, as, strcmp(as, "F16") == 0 ? 2 : 4,
                        change ? shape : parts[i].shape,
                        (size_t)(change ? n_elements : parts[i].n));
        }
    }
    if (strcmp(part, "g_idx") == 0) {
        builder_add(&b, AWQ_NAME ".g_idx", "I32", 4, "[16]", 16);
    }
    builder_write(&b, "model/model.safetensors");
    opened(checkpoint);
    return lv_checkpoint_linear(*checkpoint, "language_model.layers.0.q", 24, 16, out);
}

static void awq_bad(const char *part, const char *type, const char *shape, int n, lv_status want,
                    const char *named) {
    lv_checkpoint *checkpoint;
    lv_linear_source linear;
    CHECK_STATUS(awq_linear(part, type, shape, n, &linear, &checkpoint), want);
    CHECK(error_names(named, NULL), "wanted %s: %s", named, lv_error());
    lv_checkpoint_free(checkpoint);
}

static void test_awq_linear(void) {
    lv_checkpoint *checkpoint;
    lv_linear_source linear;
    write_hf_config("false", awq);
    CHECK_OK(awq_linear("", "", "", 0, &linear, &checkpoint));
    CHECK(linear.quant == LV_QUANT_AWQ && linear.group_size == 8 && !linear.weight.data);
    CHECK(linear.qweight.dims[0] == 16 && linear.qweight.dims[1] == 3);
    CHECK(linear.qzeros.dims[0] == 2 && linear.scales.dims[1] == 24 && !linear.bias.data);
    CHECK(lv_checkpoint_has(checkpoint, "language_model.layers.0.q"));
    CHECK_STATUS(lv_checkpoint_linear(checkpoint, "language_model.layers.0.q", 20, 16, &linear),
                 LV_EFORMAT);
    CHECK_STATUS(lv_checkpoint_linear(checkpoint, "language_model.layers.0.q", 24, 12, &linear),
                 LV_EFORMAT);
    lv_checkpoint_free(checkpoint);
    awq_bad("qweight", "I32", "[3,16]", 48, LV_EFORMAT, "q.qweight");
    awq_bad("qweight", "F32", "[16,3]", 48, LV_EFORMAT, "q.qweight");
    awq_bad("qzeros", "I32", "[3,2]", 6, LV_EFORMAT, "q.qzeros");
    awq_bad("qzeros", "", "", 0, LV_ENOTFOUND, "q.qzeros");
    awq_bad("scales", "F32", "[2,24]", 48, LV_EFORMAT, "q.scales");
    awq_bad("scales", "F16", "[2,12]", 24, LV_EFORMAT, "q.scales");
    awq_bad("scales", "", "", 0, LV_ENOTFOUND, "q.scales");
    awq_bad("g_idx", "", "", 0, LV_EUNSUPPORTED, "GPTQ");
    write_hf_config("false", "");
    awq_bad("", "", "", 0, LV_EFORMAT, "quantization_config");
}

// --- shards -------------------------------------------------------------------------------------

static void write_index(const char *map) {
    char text[1024];
    snprintf(text, sizeof text, "{\"metadata\":{},\"weight_map\":%s}", map);
    write_text("model/model.safetensors.index.json", text);
}

static void test_shards(void) {
    unlink(scratch("model/model.safetensors"));
    write_hf_config("false", "");
    builder b = {0};
    builder_add_f16(&b, "lm_head.weight", "[32,16]");
    builder_write(&b, "model/a-00001.safetensors");
    builder_add_f16(&b, "model.language_model.norm.weight", "[16]");
    builder_write(&b, "model/a-00002.safetensors");
    lv_checkpoint *checkpoint;
    for (int with_index = 0; with_index < 2; with_index++) {
        if (with_index) {
            write_index("{\"lm_head.weight\":\"a-00001.safetensors\","
                        "\"model.language_model.norm.weight\":\"a-00002.safetensors\"}");
        }
        opened(&checkpoint);
        has_tensor(checkpoint, "lm_head.weight", 2, 32, 16);
        has_tensor(checkpoint, "language_model.norm.weight", 1, 16, 0);
        lv_checkpoint_free(checkpoint);
    }
    write_index("{\"lm_head.weight\":\"a-00009.safetensors\"}");
    refused(LV_ENOTFOUND, "a-00009.safetensors");
    write_index("{\"lm_head.weight\":\"a-00002.safetensors\"}");
    refused(LV_EFORMAT, "lm_head.weight");
    write_text("outside.safetensors", "x");
    static const char *const escapes[] = {
        "../outside.safetensors", "/etc/passwd", "..", "", ".x", "a/../../outside.safetensors"};
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        char map[256];
        snprintf(map, sizeof map, "{\"lm_head.weight\":\"%s\"}", escapes[i]);
        write_index(map);
        refused(LV_EFORMAT, "same folder");
    }
    write_index("{\"lm_head.weight\":7}");
    refused(LV_EFORMAT, "same folder");
    write_index("{}");
    refused(LV_EFORMAT, "weight_map");
    write_index("[]");
    refused(LV_EFORMAT, "weight_map");
    write_text("model/model.safetensors.index.json", "{");
    refused(LV_EFORMAT, "index.json");
    write_index("{\"lm_head.weight\":\"a-00001.safetensors\"}");
    CHECK(truncate(scratch("model/a-00001.safetensors"), 500) == 0);
    refused(LV_EFORMAT, "a-00001.safetensors");
    unlink(scratch("model/model.safetensors.index.json"));
    unlink(scratch("model/a-00001.safetensors"));
    unlink(scratch("model/a-00002.safetensors"));
}

static void test_pickles(void) {
    refused(LV_ENOTFOUND, "no weights");
    write_text("model/x.gguf", "GGUF");
    refused(LV_EUNSUPPORTED, "GGUF");
    write_text("model/pytorch_model-00001-of-00002.bin", "PK");
    refused(LV_EUNSUPPORTED, "python3 -c");
    CHECK(error_names("weights_only=True", "save_file", "glob('pytorch_model*.bin')]\"", NULL),
          "%s", lv_error());
    unlink(scratch("model/pytorch_model-00001-of-00002.bin"));
    write_text("model/pytorch_model.bin.index.json", "{}");
    refused(LV_EUNSUPPORTED, "pickled");
    unlink(scratch("model/pytorch_model.bin.index.json"));
    unlink(scratch("model/x.gguf"));
}

// --- a second checkpoint with CLIP --------------------------------------------------------------

static void test_second_checkpoint(void) {
    static const char clip[] = "{\"model_type\":\"clip\",\"vision_config\":{\"hidden_size\":8,"
                               "\"image_size\":28,\"patch_size\":14,\"num_attention_heads\":2,"
                               "\"num_hidden_layers\":2}}";
    static const char *const names[] = {"vision_model.embeddings.class_embedding",
                                        "embeddings.class_embedding",
                                        "vision_tower.vision_model.embeddings.class_embedding"};
    lv_checkpoint *checkpoint;
    make_folder("hub/models--org--clip/snapshots/1");
    write_text("hub/models--org--clip/snapshots/1/config.json", clip);
    write_original_config("clip");
    builder b = {0};
    builder_add_f16(&b, "model.norm.weight", "[16]");
    builder_write(&b, "model/model.safetensors");
    for (size_t i = 0; i < 3; i++) {
        builder_add_f16(&b, names[i], "[8]");
        builder_add_f16(&b, "logit_scale", "[]");
        builder_add_f16(&b, "text_model.embeddings.class_embedding", "[8]");
        builder_write(&b, "hub/models--org--clip/snapshots/1/model.safetensors");
        opened(&checkpoint);
        has_tensor(checkpoint, "vision_tower.embeddings.class_embedding", 1, 8, 0);
        CHECK(!lv_checkpoint_has(checkpoint, "logit_scale"));
        CHECK(strcmp(lv_checkpoint_config(checkpoint)->vision_tower, "org/clip") == 0);
        CHECK(lv_checkpoint_bytes(checkpoint) == 2 * (16 + 8));
        lv_checkpoint_free(checkpoint);
    }
    unlink(scratch("hub/models--org--clip/snapshots/1/model.safetensors"));
    write_text("hub/models--org--clip/snapshots/1/pytorch_model.bin", "PK");
    refused(LV_EUNSUPPORTED, "models--org--clip");
    CHECK_STATUS(lv_checkpoint_open(scratch("model"), scratch("model"), &checkpoint),
                 LV_EUNSUPPORTED); // a LLaVA is no tower
    // A tower whose numbers are known, but whose weights are nowhere.
    write_original_config("clip-vit-large-patch14-336");
    refused(LV_ENOTFOUND, "describe --pull org/clip-vit-large-patch14-336");
    CHECK(error_names("second checkpoint", NULL), "%s", lv_error());
}

static void test_truncated(void) {
    write_hf_config("false", "");
    builder b = {0};
    builder_add_f16(&b, "model.language_model.norm.weight", "[16]");
    builder_add_f16(&b, "lm_head.weight", "[32,16]");
    builder_write(&b, "model/model.safetensors");
    lv_buffer whole;
    CHECK_OK(lv_file_read(scratch("model/model.safetensors"), 1 << 20, &whole));
    for (size_t i = 0; i < 10; i++) {
        write_bytes("model/model.safetensors", whole.data, whole.n_bytes * i / 10);
        refused(LV_EFORMAT, "model.safetensors");
    }
    write_bytes("model/model.safetensors", whole.data, whole.n_bytes - 1);
    refused(LV_EFORMAT, "truncated");
    lv_buffer_free(&whole);
}

int main(void) {
    scratch_open();
    setenv("HF_HUB_CACHE", scratch("hub"), 1);
    make_folder("model");
    test_families();
    test_tensor();
    test_tied();
    test_dense_linear();
    test_awq_linear();
    test_shards();
    test_pickles();
    test_second_checkpoint();
    test_truncated();
    return check_done();
}
