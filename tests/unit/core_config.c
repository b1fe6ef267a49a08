// Every family's JSON files, transformers' defaults, and what is refused.
#include <jansson.h>

#include "core/config.h"
#include "core_util.h"

// What the real files say of llava-hf 1.5, less than which they never give.
static const char hf_15[] =
    "{\"model_type\":\"llava\",\"image_token_index\":32000,"
    "\"text_config\":{\"model_type\":\"llama\",\"vocab_size\":32064,\"rms_norm_eps\":1e-5,"
    "\"max_position_embeddings\":4096},"
    "\"vision_config\":{\"hidden_size\":1024,\"image_size\":336,\"intermediate_size\":4096,"
    "\"num_attention_heads\":16,\"num_hidden_layers\":24,\"patch_size\":14,"
    "\"model_type\":\"clip_vision_model\"}}";

static const char original_15[] =
    "{\"model_type\":\"llava\",\"hidden_size\":4096,\"intermediate_size\":11008,"
    "\"max_position_embeddings\":4096,\"num_attention_heads\":32,\"num_hidden_layers\":32,"
    "\"num_key_value_heads\":32,\"rms_norm_eps\":1e-5,\"rope_scaling\":null,\"vocab_size\":32000,"
    "\"image_aspect_ratio\":\"pad\",\"mm_projector_type\":\"mlp2x_gelu\","
    "\"mm_vision_select_layer\":-2,\"mm_vision_select_feature\":\"patch\","
    "\"mm_resampler_type\":null,\"mm_vision_tower\":\"openai/clip-vit-large-patch14-336\"}";

static const char pinpoints_16[] = "[[336,672],[672,336],[672,672],[1008,336],[336,1008]]";

// The file that is being made up: `begin` takes a text, `put` sets a key ("a.b" for one inside a)
// to a JSON value (NULL removes it), `end` writes it.
static json_t *made;

static void begin(const char *text) {
    made = json_loads(text, 0, NULL);
    CHECK(made, "%s", text);
}

static void put(const char *path, const char *value) {
    const char *dot = strchr(path, '.');
    json_t *object = made;
    if (dot) {
        char outer[64];
        snprintf(outer, sizeof outer, "%.*s", (int)(dot - path), path);
        object = json_object_get(made, outer);
        if (!object) {
            object = json_object();
            json_object_set_new(made, outer, object);
        }
    }
    const char *key = dot ? dot + 1 : path;
    if (value) {
        json_object_set_new(object, key, json_loads(value, JSON_DECODE_ANY, NULL));
    } else {
        json_object_del(object, key);
    }
}

static void end(const char *name) {
    CHECK(json_dump_file(made, scratch(name), 0) == 0);
    json_decref(made);
}

static lv_config load(const char *dir, const char *vision_dir) {
    lv_config config;
    CHECK_OK(lv_config_load(scratch(dir), vision_dir ? scratch(vision_dir) : NULL, &config));
    return config;
}

// hf_15 or original_15 (each in its folder) with one key changed, loaded.
static lv_status changed(const char *base, const char *path, const char *value, lv_config *out) {
    begin(base);
    put(path, value);
    end("model/config.json");
    return lv_config_load(scratch("model"), NULL, out);
}

static lv_config changed_ok(const char *base, const char *path, const char *value) {
    lv_config config;
    lv_status status = changed(base, path, value, &config);
    CHECK(status == LV_OK, "%s = %s: %s", path, value, lv_error());
    return config;
}

static void changed_bad(const char *base, const char *path, const char *value, lv_status want) {
    lv_config config;
    lv_status status = changed(base, path, value, &config);
    CHECK(status == want, "%s = %s: %s: %s", path, value, lv_status_name(status), lv_error());
    CHECK(error_names("config.json", NULL), "%s", lv_error());
}

static void check_vit_l(const lv_vision_config *v) {
    CHECK(v->image_size == 336 && v->patch_size == 14 && v->d_model == 1024 && v->d_ff == 4096);
    CHECK(v->n_layers == 24 && v->n_heads == 16 && v->n_run_layers == 23 && v->drop_cls);
    CHECK(v->layer_norm_eps == 1e-5f && v->activation == LV_ACT_QUICK_GELU);
}

static void check_llama_7b(const lv_text_config *t) {
    CHECK(t->d_model == 4096 && t->d_ff == 11008 && t->n_layers == 32);
    CHECK(t->n_heads == 32 && t->n_kv_heads == 32 && t->head_dim == 128);
    CHECK(t->max_position == 4096 && t->sliding_window == 0 && t->rms_norm_eps == 1e-5f);
    CHECK(t->rope.type == LV_ROPE_PLAIN && t->rope.theta == 10000 && !t->tie_embeddings);
    CHECK(t->bos_id == 1 && t->n_eos == 1 && t->eos_ids[0] == 2);
}

static void check_clip_colours(const lv_image_config *image) {
    CHECK(image->mean[0] == 0.48145466f && image->mean[1] == 0.4578275f &&
          image->mean[2] == 0.40821073f);
    CHECK(image->std[0] == 0.26862954f && image->std[1] == 0.26130258f &&
          image->std[2] == 0.27577711f);
    CHECK(image->rescale == 1.0 / 255);
}

static void test_hf_15(void) {
    lv_config c = changed_ok(hf_15, "vocab_size", "32064");
    CHECK(c.family == LV_FAMILY_HF && !c.is_next && !c.spatial_unpad);
    CHECK(strcmp(c.text_model_type, "llama") == 0 && !*c.vision_tower && c.image_token_id == 32000);
    CHECK(c.projector_hidden == 4096 && c.projector_activation == LV_ACT_GELU && c.projector_bias);
    CHECK(c.text.vocab_size == 32064 && c.quant.bits == 0);
    check_vit_l(&c.vision);
    check_llama_7b(&c.text);
    CHECK(c.image.layout == LV_LAYOUT_CROP && c.image.family == LV_FAMILY_HF);
    CHECK(c.image.size == 336 && c.image.shortest_edge == 336);
    check_clip_colours(&c.image);
}

static void test_hf_keys(void) {
    CHECK(changed_ok(hf_15, "vision_feature_layer", "-1").vision.n_run_layers == 24);
    CHECK(changed_ok(hf_15, "vision_feature_layer", "-25").vision.n_run_layers == 0);
    CHECK(changed_ok(hf_15, "vision_feature_layer", "11").vision.n_run_layers == 11);
    CHECK(!changed_ok(hf_15, "vision_feature_select_strategy", "\"full\"").vision.drop_cls);
    CHECK(changed_ok(hf_15, "image_token_id", "5").image_token_id == 32000, "index is the older");
    CHECK(!changed_ok(hf_15, "multimodal_projector_bias", "false").projector_bias);
    CHECK(changed_ok(hf_15, "projector_hidden_act", "\"gelu_pytorch_tanh\"").projector_activation ==
          LV_ACT_GELU_TANH);
    CHECK(changed_ok(hf_15, "tie_word_embeddings", "true").text.tie_embeddings);
    CHECK(changed_ok(hf_15, "text_config.tie_word_embeddings", "true").text.tie_embeddings);
    CHECK(changed_ok(hf_15, "text_config.head_dim", "null").text.head_dim == 128);
    CHECK(changed_ok(hf_15, "text_config.head_dim", "64").text.head_dim == 64);
    CHECK(changed_ok(hf_15, "text_config.num_key_value_heads", "8").text.n_kv_heads == 8);
    lv_config c = changed_ok(hf_15, "eos_token_id", "[2, 7, 9]");
    CHECK(c.text.n_eos == 3 && c.text.eos_ids[1] == 7 && c.text.eos_ids[2] == 9);
    c = changed_ok(hf_15, "text_config.eos_token_id", "11");
    CHECK(c.text.n_eos == 1 && c.text.eos_ids[0] == 11);
    CHECK(changed_ok(hf_15, "text_config", "{\"max_position_embeddings\":77}").text.d_ff == 11008,
          "a missing model_type is llama");
    // MistralConfig: 8 key heads, and a window of 4096 unless the file says null.
    c = changed_ok(hf_15, "text_config", "{\"model_type\":\"mistral\"}");
    CHECK(c.text.n_kv_heads == 8 && c.text.d_ff == 14336 && c.text.sliding_window == 4096);
    CHECK(c.text.max_position == 131072 && c.text.rms_norm_eps == 1e-6f);
    c = changed_ok(hf_15, "text_config", "{\"model_type\":\"mistral\",\"sliding_window\":null}");
    CHECK(c.text.sliding_window == 0);
}

static void test_hf_refused(void) {
    static const struct {
        const char *path, *value;
        lv_status want;
    } bad[] = {
        {"model_type", "\"llava_onevision\"", LV_EUNSUPPORTED},
        {"model_type", "\"qwen2_vl\"", LV_EUNSUPPORTED},
        {"model_type", NULL, LV_EUNSUPPORTED},
        {"model_type", "5", LV_EFORMAT},
        {"text_config", "[]", LV_EFORMAT},
        {"vision_config", "3", LV_EFORMAT},
        {"text_config.model_type", "\"qwen2\"", LV_EUNSUPPORTED},
        {"text_config.hidden_act", "\"gelu\"", LV_EUNSUPPORTED},
        {"text_config.hidden_size", "0", LV_EFORMAT},
        {"text_config.hidden_size", "-4096", LV_EFORMAT},
        {"text_config.hidden_size", "4096.5", LV_EFORMAT},
        {"text_config.hidden_size", "\"4096\"", LV_EFORMAT},
        {"text_config.hidden_size", "65537", LV_EFORMAT},
        {"text_config.hidden_size", "4160", LV_OK},
        {"text_config.hidden_size", "4001", LV_EFORMAT},
        {"text_config.hidden_size", "32", LV_EFORMAT},
        {"text_config.intermediate_size", "1000000000", LV_EFORMAT},
        {"text_config.num_hidden_layers", "0", LV_EFORMAT},
        {"text_config.num_hidden_layers", "1025", LV_EFORMAT},
        {"text_config.num_attention_heads", "0", LV_EFORMAT},
        {"text_config.num_attention_heads", "1", LV_EFORMAT},
        {"text_config.num_key_value_heads", "33", LV_EFORMAT},
        {"text_config.num_key_value_heads", "5", LV_EFORMAT},
        {"text_config.head_dim", "127", LV_EFORMAT},
        {"text_config.head_dim", "2048", LV_EFORMAT},
        {"text_config.vocab_size", "0", LV_EFORMAT},
        {"text_config.vocab_size", "99999999", LV_EFORMAT},
        {"text_config.max_position_embeddings", "-1", LV_EFORMAT},
        {"text_config.rms_norm_eps", "0", LV_EFORMAT},
        {"text_config.rms_norm_eps", "\"x\"", LV_EFORMAT},
        {"text_config.rope_theta", "0", LV_EFORMAT},
        {"text_config.sliding_window", "-1", LV_EFORMAT},
        {"text_config.eos_token_id", "[1,2,3,4,5,6,7,8,9]", LV_EFORMAT},
        {"text_config.eos_token_id", "[1,\"2\"]", LV_EFORMAT},
        {"text_config.eos_token_id", "-2", LV_EFORMAT},
        {"vision_config.model_type", "\"siglip_vision_model\"", LV_EUNSUPPORTED},
        {"vision_config.hidden_act", "\"relu\"", LV_EUNSUPPORTED},
        {"vision_config.num_attention_heads", "15", LV_EFORMAT},
        {"vision_config.num_channels", "4", LV_EFORMAT},
        {"vision_config.patch_size", "0", LV_EFORMAT},
        {"vision_config.patch_size", "13", LV_EUNSUPPORTED},
        {"vision_config.image_size", "1000000", LV_EFORMAT},
        {"vision_config.layer_norm_eps", "-1", LV_EFORMAT},
        {"vision_feature_layer", "25", LV_EFORMAT},
        {"vision_feature_layer", "-26", LV_EFORMAT},
        {"vision_feature_layer", "[-2,-5]", LV_EUNSUPPORTED},
        {"vision_feature_select_strategy", "\"some\"", LV_EUNSUPPORTED},
        {"projector_hidden_act", "\"relu6\"", LV_EUNSUPPORTED},
        {"image_token_index", "-1", LV_EFORMAT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (bad[i].want == LV_OK) {
            (void)changed_ok(hf_15, bad[i].path, bad[i].value);
        } else {
            changed_bad(hf_15, bad[i].path, bad[i].value, bad[i].want);
        }
    }
    changed_bad(hf_15, "model_type", "\"llava_onevision\"", LV_EUNSUPPORTED);
    CHECK(error_names("llava_onevision", "1.5", "1.6", NULL), "%s", lv_error());
    changed_bad(hf_15, "text_config.hidden_size", "65537", LV_EFORMAT);
    CHECK(error_names("text_config", "hidden_size", "65536", "65537", NULL), "%s", lv_error());
}

static void test_rope(void) {
    lv_rope_config r =
        changed_ok(hf_15, "text_config.rope_scaling", "{\"type\":\"linear\",\"factor\":4.0}")
            .text.rope;
    CHECK(r.type == LV_ROPE_LINEAR && r.factor == 4 && r.theta == 10000 &&
          r.original_max_position == 4096);
    r = changed_ok(hf_15, "text_config.rope_scaling", "{\"rope_type\":\"dynamic\",\"factor\":2}")
            .text.rope;
    CHECK(r.type == LV_ROPE_DYNAMIC && r.factor == 2);
    r = changed_ok(hf_15, "text_config.rope_parameters",
                   "{\"rope_type\":\"default\",\"rope_theta\":1000000.0}")
            .text.rope;
    CHECK(r.type == LV_ROPE_PLAIN && r.theta == 1e6f && r.factor == 1);
    r = changed_ok(hf_15, "text_config.rope_theta", "500000").text.rope;
    CHECK(r.theta == 5e5f);
    r = changed_ok(hf_15, "text_config.rope_parameters",
                   "{\"rope_type\":\"yarn\",\"rope_theta\":20000,\"factor\":8,"
                   "\"original_max_position_embeddings\":2048,\"beta_fast\":16,\"beta_slow\":2,"
                   "\"attention_factor\":1.5}")
            .text.rope;
    CHECK(r.type == LV_ROPE_YARN && r.theta == 20000 && r.factor == 8);
    CHECK(r.original_max_position == 2048 && r.beta_fast == 16 && r.beta_slow == 2 &&
          r.attention_factor == 1.5f);
    r = changed_ok(hf_15, "text_config.rope_scaling",
                   "{\"type\":\"yarn\",\"original_max_position_embeddings\":1024}")
            .text.rope;
    CHECK(r.factor == 4 && r.beta_fast == 32 && r.beta_slow == 1 && r.attention_factor == 0);
    r = changed_ok(hf_15, "text_config.rope_scaling",
                   "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
                   "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}")
            .text.rope;
    CHECK(r.type == LV_ROPE_LLAMA3 && r.low_freq_factor == 1 && r.high_freq_factor == 4 &&
          r.original_max_position == 8192);

    const char *key = "text_config.rope_scaling";
    changed_bad(hf_15, key, "{\"type\":\"longrope\",\"factor\":4}", LV_EUNSUPPORTED);
    CHECK(error_names("longrope", NULL), "%s", lv_error());
    changed_bad(hf_15, key, "{\"type\":\"linear\"}", LV_EFORMAT);
    changed_bad(hf_15, key, "{\"type\":\"linear\",\"factor\":0}", LV_EFORMAT);
    changed_bad(hf_15, key, "{\"type\":\"yarn\",\"factor\":4,\"mscale\":0.7}", LV_EUNSUPPORTED);
    changed_bad(hf_15, key, "\"linear\"", LV_EFORMAT);
    changed_bad(hf_15, "text_config.rope_parameters",
                "{\"full_attention\":{\"rope_type\":\"default\"}}", LV_EUNSUPPORTED);
    changed_bad(hf_15, key, "{\"type\":\"yarn\",\"factor\":4,\"mscale\":1}", LV_EUNSUPPORTED);
    changed_bad(hf_15, "text_config.partial_rotary_factor", "0.5", LV_EUNSUPPORTED);
    (void)changed_ok(hf_15, "text_config.partial_rotary_factor", "1.0");

    // vicuna-v1.5-16k keeps 4096 in max_position_embeddings.
    begin(original_15);
    put("rope_scaling", "{\"type\":\"linear\",\"factor\":4.0}");
    put("max_sequence_length", "16384");
    end("model/config.json");
    lv_text_config t = load("model", NULL).text;
    CHECK(t.max_position == 16384 && t.rope.original_max_position == 4096 && t.rope.factor == 4);
}

static void test_quant(void) {
    const char *key = "quantization_config";
    lv_quant_config q =
        changed_ok(hf_15, key,
                   "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128,\"version\":\"gemm\","
                   "\"zero_point\":true,\"modules_to_not_convert\":[\"vision_tower\"]}")
            .quant;
    CHECK(q.bits == 4 && q.group_size == 128);
    q = changed_ok(
            hf_15, "text_config.quantization_config",
            "{\"quant_method\":\"awq\",\"w_bit\":4,\"q_group_size\":64,\"version\":\"GEMM\"}")
            .quant;
    CHECK(q.bits == 4 && q.group_size == 64);
    static const struct {
        const char *value, *named;
        lv_status want;
    } bad[] = {
        {"{\"quant_method\":\"gptq\",\"bits\":4}", "gptq", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}", "bitsandbytes",
         LV_EUNSUPPORTED},
        {"{\"quant_method\":\"compressed-tensors\"}", "compressed-tensors", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"version\":\"gemv\"}", "gemv", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"version\":\"llm-awq\"}", "llm-awq", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"bits\":8}", "bits 8", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"zero_point\":false}", "zero_point", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"group_size\":-1}", "group_size -1", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"group_size\":0}", "group_size 0", LV_EUNSUPPORTED},
        {"{\"quant_method\":\"awq\",\"group_size\":\"big\"}", "group_size", LV_EFORMAT},
        {"{}", "quant_method", LV_EUNSUPPORTED},
        {"7", "quantization_config", LV_EFORMAT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        changed_bad(hf_15, key, bad[i].value, bad[i].want);
        CHECK(error_names(bad[i].named, NULL), "%s", lv_error());
    }
}

// --- pictures -----------------------------------------------------------------------------------

static lv_image_config processed(const char *base, const char *text) {
    write_text("model/config.json", base);
    write_text("model/preprocessor_config.json", text);
    lv_image_config image = load("model", NULL).image;
    unlink(scratch("model/preprocessor_config.json"));
    return image;
}

static void processed_bad(const char *text, lv_status want) {
    lv_config config;
    write_text("model/config.json", hf_15);
    write_text("model/preprocessor_config.json", text);
    lv_status status = lv_config_load(scratch("model"), NULL, &config);
    CHECK(status == want, "%s: %s: %s", text, lv_status_name(status), lv_error());
    CHECK(error_names("preprocessor_config.json", NULL), "%s", lv_error());
    unlink(scratch("model/preprocessor_config.json"));
}

static void test_preprocessor(void) {
    lv_image_config i = processed(
        hf_15, "{\"crop_size\":{\"height\":336,\"width\":336},\"size\":{\"shortest_edge\":400},"
               "\"image_mean\":[0.5,0.25,0],\"image_std\":[1,2,3],\"rescale_factor\":0.5}");
    CHECK(i.layout == LV_LAYOUT_CROP && i.size == 336 && i.shortest_edge == 400);
    CHECK(i.mean[1] == 0.25f && i.std[2] == 3 && i.rescale == 0.5);
    i = processed(hf_15, "{\"crop_size\":336,\"size\":336}");
    CHECK(i.layout == LV_LAYOUT_CROP && i.size == 336 && i.shortest_edge == 336);
    CHECK(processed(hf_15, "{\"do_resize\":false}").shortest_edge == 0);
    CHECK(processed(hf_15, "{\"do_pad\":true}").layout == LV_LAYOUT_PAD);
    i = processed(hf_15, "{\"do_pad\":true,\"size\":{\"height\":336,\"width\":336}}");
    CHECK(i.layout == LV_LAYOUT_PAD && i.size == 336);
    i = processed(hf_15, "{\"do_normalize\":false,\"do_rescale\":false}");
    CHECK(i.mean[0] == 0 && i.std[0] == 1 && i.rescale == 1);
    i = processed(hf_15, "{\"image_mean\":null,\"size\":null}");
    CHECK(i.mean[0] == 0.48145466f && i.shortest_edge == 336);

    // transformers 5 nests it, and reads that file first.
    write_text("model/processor_config.json",
               "{\"image_processor\":{\"do_pad\":true},\"patch_size\":14}");
    CHECK(processed(hf_15, "{\"do_pad\":false}").layout == LV_LAYOUT_PAD);
    write_text("model/processor_config.json", "{\"patch_size\":14}");
    CHECK(processed(hf_15, "{\"do_pad\":true}").layout == LV_LAYOUT_PAD);
    unlink(scratch("model/processor_config.json"));

    processed_bad("{\"crop_size\":224}", LV_EFORMAT);
    processed_bad("{\"crop_size\":{\"height\":336,\"width\":224}}", LV_EFORMAT);
    processed_bad("{\"crop_size\":-5}", LV_EFORMAT);
    processed_bad("{\"size\":{\"height\":336,\"width\":336}}", LV_EUNSUPPORTED);
    processed_bad("{\"do_center_crop\":false}", LV_EUNSUPPORTED);
    processed_bad("{\"resample\":2}", LV_EUNSUPPORTED);
    processed_bad("{\"image_mean\":[1,2]}", LV_EFORMAT);
    processed_bad("{\"image_mean\":[1,2,3,4]}", LV_EFORMAT);
    processed_bad("{\"image_mean\":0.5}", LV_EFORMAT);
    processed_bad("{\"image_std\":[0,1,1]}", LV_EFORMAT);
    processed_bad("{\"rescale_factor\":0}", LV_EFORMAT);
    processed_bad("{\"do_pad\":1}", LV_EFORMAT);
    processed_bad("[]", LV_EFORMAT);
    processed_bad("{", LV_EFORMAT);
}

static void check_pinpoints(const lv_image_config *image, int n, const int *want) {
    CHECK(image->layout == LV_LAYOUT_ANYRES && image->n_pinpoints == n, "%d", image->n_pinpoints);
    for (int i = 0; i < n; i++) {
        CHECK(image->pinpoints[i][0] == want[2 * i] && image->pinpoints[i][1] == want[2 * i + 1],
              "%d: %d x %d", i, image->pinpoints[i][0], image->pinpoints[i][1]);
    }
}

static void test_anyres(void) {
    static const int in_order[] = {336, 672, 672, 336, 672, 672, 1008, 336, 336, 1008};
    static const int turned[] = {672, 336, 336, 672, 672, 672, 336, 1008, 1008, 336};
    begin(hf_15);
    put("model_type", "\"llava_next\"");
    put("image_grid_pinpoints", pinpoints_16);
    end("model/config.json");
    lv_config c = load("model", NULL);
    CHECK(c.is_next && c.spatial_unpad && c.image.size == 336);
    check_pinpoints(&c.image, 5, turned);
    // The preprocessor's own list goes first.
    write_text("model/preprocessor_config.json", "{\"image_grid_pinpoints\":[[672,336]]}");
    c = load("model", NULL);
    check_pinpoints(&c.image, 1, (int[]){336, 672});
    unlink(scratch("model/preprocessor_config.json"));

    begin(original_15);
    put("image_aspect_ratio", "\"anyres\"");
    put("mm_patch_merge_type", "\"spatial_unpad\"");
    put("image_grid_pinpoints", pinpoints_16);
    end("model/config.json");
    c = load("model", NULL);
    CHECK(c.is_next && c.spatial_unpad && c.family == LV_FAMILY_ORIGINAL);
    check_pinpoints(&c.image, 5, in_order);

    for (int i = 0; i < 2; i++) {
        begin(original_15);
        put("image_aspect_ratio", "\"anyres\"");
        put("mm_patch_merge_type", i ? "\"spatial\"" : NULL);
        put("image_grid_pinpoints", pinpoints_16);
        end("model/config.json");
        CHECK_STATUS(lv_config_load(scratch("model"), NULL, &c), i ? LV_EUNSUPPORTED : LV_OK);
        CHECK(i || (c.is_next && !c.spatial_unpad), "without a merge type: flat");
    }
}

static void test_pinpoint_texts(void) {
    static const struct {
        const char *value;
        int n, first[2], last[2];
    } good[] = {
        {"[[336,672]]", 1, {336, 672}, {336, 672}},
        {"\"[(336, 672), (672, 336)]\"", 2, {336, 672}, {672, 336}},
        {"\"(1x1),...,(2x3)\"", 6, {336, 336}, {672, 1008}},
        {"\"(1x1),...,(6x6)\"", 36, {336, 336}, {2016, 2016}},
    };
    static const char *const bad[] = {"[]",
                                      "[[336]]",
                                      "[[336,672,1]]",
                                      "[336,672]",
                                      "[[0,336]]",
                                      "[[-336,336]]",
                                      "[[337,336]]",
                                      "[[336,1000000]]",
                                      "\"\"",
                                      "\"(1x1),...,(9x9)\"",
                                      "\"(0x0),...,(2x2)\"",
                                      "\"x\"",
                                      "\"(1x1),...,(99999999999x9)\"",
                                      "7",
                                      "{}",
                                      "null"};
    for (size_t i = 0; i < sizeof good / sizeof *good + sizeof bad / sizeof *bad; i++) {
        size_t n_good = sizeof good / sizeof *good;
        begin(original_15);
        put("image_aspect_ratio", "\"anyres\"");
        put("mm_patch_merge_type", "\"spatial_unpad\"");
        put("image_grid_pinpoints", i < n_good ? good[i].value : bad[i - n_good]);
        end("model/config.json");
        lv_config c;
        if (i < n_good) {
            c = load("model", NULL);
            int(*p)[2] = c.image.pinpoints;
            CHECK(c.image.n_pinpoints == good[i].n && memcmp(p[0], good[i].first, 8) == 0 &&
                      memcmp(p[good[i].n - 1], good[i].last, 8) == 0,
                  "%s", good[i].value);
        } else {
            lv_status status = lv_config_load(scratch("model"), NULL, &c);
            CHECK(status == LV_EFORMAT && error_names("image_grid_pinpoints", NULL), "%s: %s",
                  bad[i - n_good], lv_error());
        }
    }
}

// --- the original family ------------------------------------------------------------------------

static void test_original(void) {
    write_text("model/config.json", original_15);
    lv_config c = load("model", NULL); // the tower is nowhere, but its numbers are known
    CHECK(c.family == LV_FAMILY_ORIGINAL && !c.is_next && !c.spatial_unpad);
    CHECK(strcmp(c.vision_tower, "openai/clip-vit-large-patch14-336") == 0);
    CHECK(c.image_token_id == -1 && c.projector_hidden == 4096 && c.projector_bias);
    CHECK(c.projector_activation == LV_ACT_GELU && c.text.vocab_size == 32000);
    check_vit_l(&c.vision);
    check_llama_7b(&c.text);
    CHECK(c.image.layout == LV_LAYOUT_PAD && c.image.size == 336);
    CHECK(c.image.family == LV_FAMILY_ORIGINAL);
    check_clip_colours(&c.image);

    CHECK(changed_ok(original_15, "mm_vision_select_layer", "-1").vision.n_run_layers == 24);
    CHECK(!changed_ok(original_15, "mm_vision_select_feature", "\"cls_patch\"").vision.drop_cls);
    lv_image_config image = changed_ok(original_15, "image_aspect_ratio", NULL).image;
    CHECK(image.layout == LV_LAYOUT_CROP && image.shortest_edge == 336);
    c = changed_ok(original_15, "model_type", "\"llava_mistral\"");
    CHECK(strcmp(c.text_model_type, "mistral") == 0);
    CHECK(changed_ok(original_15, "mm_vision_tower", "\"/else/clip-vit-large-patch14\"")
              .vision.image_size == 224);

    changed_bad(original_15, "image_aspect_ratio", "\"anyres_max_9\"", LV_EUNSUPPORTED);
    changed_bad(original_15, "mm_projector_type", "\"linear\"", LV_EUNSUPPORTED);
    changed_bad(original_15, "mm_projector_type", NULL, LV_EUNSUPPORTED);
    changed_bad(original_15, "mm_resampler_type", "\"perceiver\"", LV_EUNSUPPORTED);
    changed_bad(original_15, "mm_use_im_start_end", "true", LV_EUNSUPPORTED);
    changed_bad(original_15, "mm_vision_tower", NULL, LV_EFORMAT);
    changed_bad(original_15, "model_type", "\"llava_mpt\"", LV_EUNSUPPORTED);
    lv_config bad;
    CHECK_STATUS(changed(original_15, "mm_vision_tower", "\"google/siglip-so400m\"", &bad),
                 LV_ENOTFOUND);
    CHECK(error_names("google/siglip-so400m", NULL), "%s", lv_error());
}

static void test_second_checkpoint(void) {
    static const char tower[] =
        "{\"model_type\":\"clip\",\"vision_config\":{\"model_type\":\"clip_vision_model\","
        "\"hidden_size\":64,\"image_size\":%d,\"patch_size\":14,\"num_hidden_layers\":4,"
        "\"num_attention_heads\":4,\"intermediate_size\":128},\"text_config\":{}}";
    char text[512];
    make_folder("tiny-clip");
    make_folder("explicit");
    make_folder("hub/models--org--tiny-clip/snapshots/1");
    snprintf(text, sizeof text, tower, 28);
    write_text("tiny-clip/config.json", text);
    write_text("tiny-clip/preprocessor_config.json", "{\"image_mean\":[0.1,0.2,0.3]}");
    snprintf(text, sizeof text, tower, 42);
    write_text("explicit/config.json", text);
    snprintf(text, sizeof text, tower, 56);
    write_text("hub/models--org--tiny-clip/snapshots/1/config.json", text);

    lv_config c = changed_ok(original_15, "mm_vision_tower", "\"org/tiny-clip\"");
    CHECK(c.vision.image_size == 28 && c.vision.n_run_layers == 3 && c.image.size == 28);
    CHECK(c.image.mean[2] == 0.3f, "the tower's own preprocessor");
    CHECK(load("model", "explicit").vision.image_size == 42);
    unlink(scratch("tiny-clip/config.json"));
    CHECK(load("model", NULL).vision.image_size == 56, "from the cache");
    lv_config bad;
    CHECK_STATUS(lv_config_load(scratch("model"), scratch("nowhere"), &bad), LV_ENOTFOUND);
    CHECK(error_names("vision tower", "nowhere", NULL), "%s", lv_error());
    write_text("explicit/config.json", "{\"model_type\":\"siglip_vision_model\"}");
    CHECK_STATUS(lv_config_load(scratch("model"), scratch("explicit"), &bad), LV_EUNSUPPORTED);
    CHECK(error_names("siglip_vision_model", NULL), "%s", lv_error());
}

static void test_generation(void) {
    write_text("model/config.json", hf_15);
    write_text("model/generation_config.json",
               "{\"do_sample\":true,\"temperature\":0.2,\"top_p\":0.9,\"top_k\":50,"
               "\"repetition_penalty\":1.1,\"bos_token_id\":null,\"eos_token_id\":[2,32000]}");
    lv_config c = load("model", NULL);
    CHECK(c.generation.do_sample && c.generation.temperature == 0.2f &&
          c.generation.top_p == 0.9f && c.generation.top_k == 50 &&
          c.generation.repetition_penalty == 1.1f);
    CHECK(c.text.bos_id == 1 && c.text.n_eos == 2 && c.text.eos_ids[1] == 32000);
    write_text("model/generation_config.json", "{\"temperature\":-1}");
    lv_config bad;
    CHECK_STATUS(lv_config_load(scratch("model"), NULL, &bad), LV_EFORMAT);
    CHECK(error_names("generation_config.json", "temperature", NULL), "%s", lv_error());
    unlink(scratch("model/generation_config.json"));
}

static void test_not_a_model(void) {
    static const struct {
        const char *text;
        lv_status want;
    } bad[] = {{"", LV_EFORMAT},
               {"{", LV_EFORMAT},
               {"[1]", LV_EFORMAT},
               {"{}", LV_EUNSUPPORTED},
               {"{\"model_type\":\"bert\"}", LV_EUNSUPPORTED},
               {"{\"model_type\":\"llama\",\"hidden_size\":4096}", LV_EUNSUPPORTED}};
    lv_config config;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text("model/config.json", bad[i].text);
        CHECK_STATUS(lv_config_load(scratch("model"), NULL, &config), bad[i].want);
        CHECK(error_names("config.json", NULL), "%s", lv_error());
    }
    unlink(scratch("model/config.json"));
    CHECK_STATUS(lv_config_load(scratch("model"), NULL, &config), LV_ENOTFOUND);
    CHECK(error_names("config.json", NULL), "%s", lv_error());
}

// Every prefix of a real-looking file is refused, none crashes.
static void test_truncated(void) {
    lv_config config;
    for (size_t n = 0; n < sizeof hf_15 - 1; n += 7) {
        write_bytes("model/config.json", hf_15, n);
        CHECK_STATUS(lv_config_load(scratch("model"), NULL, &config), LV_EFORMAT);
    }
}

int main(void) {
    scratch_open();
    make_folder("model");
    setenv("HF_HUB_CACHE", scratch("hub"), 1);
    test_hf_15();
    test_hf_keys();
    test_hf_refused();
    test_rope();
    test_quant();
    test_preprocessor();
    test_anyres();
    test_pinpoint_texts();
    test_original();
    test_second_checkpoint();
    test_generation();
    test_not_a_model();
    test_truncated();
    return check_done();
}
