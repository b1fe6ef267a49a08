#!/usr/bin/env python3
"""Writes the tiny LLaVA checkpoints and pictures that the golden tests run on: tiny.py OUTDIR.

Weights and pictures are pure functions of their names (Mersenne Twister bytes, integer formulas),
so only the references' outputs are stored, not the inputs. Needs nothing beside Python's own
library. Every weight is an odd integer below 256 times a power of two: exact in f16, bf16 and f32
alike.
"""
import hashlib, json, math, os, random, shutil, struct, sys, zlib

HERE = os.path.dirname(os.path.abspath(__file__))
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
N_PIECES = 512  # of tokenizer/small.model
IMAGE_ID, PAD_ID, N_PADDED = 512, 513, 576

# --- pictures ------------------------------------------------------------------------------------

PICTURES = {  # name: (width, height)
    "dot": (1, 1),
    "hair": (1, 37),
    "line": (53, 1),
    "wide": (300, 50),
    "tall": (50, 300),
    "odd": (97, 131),
    "square": (128, 128),
    "photo": (200, 150),
    "band": (640, 30),
    "even": (150, 100),
    "seam": (205, 82),  # 205 * (6 / 82) is just below 15 in floating point
}


def picture(name):
    """RGB bytes: gradients, a checker pattern and noise, so that every resampling tap matters."""
    width, height = PICTURES[name]
    noise = random.Random("picture " + name).randbytes(width * height)
    rgb = bytearray(width * height * 3)
    for y in range(height):
        for x in range(width):
            at = y * width + x
            grain = noise[at] >> 5
            rgb[3 * at] = min(255, x * 220 // width + grain)
            rgb[3 * at + 1] = min(255, y * 220 // height + grain)
            rgb[3 * at + 2] = min(255, 200 * ((x // 7 + y // 5) & 1) + grain)
    return width, height, bytes(rgb)


def png(width, height, rgb):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + rgb[y * width * 3 : (y + 1) * width * 3] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# --- weights -------------------------------------------------------------------------------------


def encode(value, dtype):
    if dtype == "F16":
        return struct.pack("<e", value)
    bits = struct.pack("<f", value)
    return bits[2:] if dtype == "BF16" else bits


class Tensor:
    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, list(shape), data


def drawn(name, shape, values, dtype):
    """A tensor whose elements are values[b] for the bytes b that the name's generator gives."""
    count = math.prod(shape)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = random.Random(seed).randbytes(count)
    codes = [encode(v, dtype) for v in values]
    width = len(codes[0])
    data = bytearray(count * width)
    for i in range(width):
        data[i::width] = raw.translate(bytes(code[i] for code in codes))
    return Tensor(dtype, shape, bytes(data))


def uniform(name, shape, std, dtype):
    """About `std`: odd integers in [-255, 255] (deviation 147) times the nearest power of two."""
    step = 2.0 ** round(math.log2(std / 147.2))
    return drawn(name, shape, [(2 * b - 255) * step for b in range(256)], dtype)


def norm_weight(name, n, dtype):
    return drawn(name, [n], [1 + ((b >> 3) - 16) / 32 for b in range(256)], dtype)


def vision_tensors(seed, v, dtype):
    d, ff, n_patches = (
        v["hidden_size"],
        v["intermediate_size"],
        (v["image_size"] // v["patch_size"]) ** 2,
    )
    t = {}
    add = lambda name, shape, std: t.__setitem__(name, uniform(seed + name, shape, std, dtype))
    add("embeddings.class_embedding", [d], 0.3)
    add(
        "embeddings.patch_embedding.weight",
        [d, 3, v["patch_size"], v["patch_size"]],
        1 / math.sqrt(3 * v["patch_size"] ** 2),
    )
    add("embeddings.position_embedding.weight", [n_patches + 1, d], 0.3)

    def layer_norm(name):
        t[name + ".weight"] = norm_weight(seed + name, d, dtype)
        add(name + ".bias", [d], 0.1)

    def linear(name, n_out, n_in, gain=1.0):
        add(name + ".weight", [n_out, n_in], gain / math.sqrt(n_in))
        add(name + ".bias", [n_out], 0.1)

    layer_norm("pre_layrnorm")
    layer_norm("post_layernorm")
    for i in range(v["num_hidden_layers"]):
        p = f"encoder.layers.{i}."
        layer_norm(p + "layer_norm1")
        layer_norm(p + "layer_norm2")
        for part in "qkvo":
            linear(p + "self_attn." + ("out" if part == "o" else part) + "_proj", d, d)
        linear(p + "mlp.fc1", ff, d, 1.5)
        linear(p + "mlp.fc2", d, ff)
    return t


def awq_linear(t, seed, name, n_in, n_out, group):
    """Random AutoAWQ GEMM tensors: qweight [K, N/8], qzeros [K/g, N/8] i32, scales [K/g, N] f16."""
    draw = lambda what, n: random.Random(seed + name + what).randbytes(n)
    groups = n_in // group
    t[name + ".qweight"] = Tensor("I32", [n_in, n_out // 8], draw("q", n_in * n_out // 2))
    zeros = bytes(0x11 * (5 + b % 6) ^ (b >> 5) for b in draw("z", groups * n_out // 2))
    t[name + ".qzeros"] = Tensor("I32", [groups, n_out // 8], zeros)
    step = 2.0 ** round(math.log2(1 / math.sqrt(n_in) / 5 / 192))
    t[name + ".scales"] = drawn(
        seed + name + "s", [groups, n_out], [(128 + b // 2) * step for b in range(256)], "F16"
    )


def text_tensors(seed, c, dtype, awq_group=0):
    d, ff, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    head_dim = c.get("head_dim", d // heads)
    t = {}

    def linear(name, n_out, n_in):
        if awq_group:
            awq_linear(t, seed, name, n_in, n_out, awq_group)
        else:
            t[name + ".weight"] = uniform(seed + name, [n_out, n_in], 1 / math.sqrt(n_in), dtype)

    t["model.embed_tokens.weight"] = uniform(seed + "embed", [c["vocab_size"], d], 0.6, dtype)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        t[p + "input_layernorm.weight"] = norm_weight(seed + p + "in", d, dtype)
        t[p + "post_attention_layernorm.weight"] = norm_weight(seed + p + "post", d, dtype)
        linear(p + "self_attn.q_proj", heads * head_dim, d)
        linear(p + "self_attn.k_proj", c["num_key_value_heads"] * head_dim, d)
        linear(p + "self_attn.v_proj", c["num_key_value_heads"] * head_dim, d)
        linear(p + "self_attn.o_proj", d, heads * head_dim)
        linear(p + "mlp.gate_proj", ff, d)
        linear(p + "mlp.up_proj", ff, d)
        linear(p + "mlp.down_proj", d, ff)
    t["model.norm.weight"] = norm_weight(seed + "norm", d, dtype)
    # The rows that only pad the vocabulary are zero: no reference would ever answer with them.
    head = uniform(seed + "head", [N_PIECES, d], 3 / math.sqrt(d), dtype)
    head.data += bytes((c["vocab_size"] - N_PIECES) * d * len(encode(0, dtype)))
    t["lm_head.weight"] = Tensor(dtype, [c["vocab_size"], d], head.data)
    return t


def hf_tensors(case):
    """All tensors of a case under llava-hf's names."""
    seed, dtype, t = case["seed"], case["dtype"], {}
    v, c = case["vision"], case["text"]
    for name, tensor in vision_tensors(seed, v, dtype).items():
        t["vision_tower.vision_model." + name] = tensor
    for i, n_in in ((1, v["hidden_size"]), (2, c["hidden_size"])):
        p = f"multi_modal_projector.linear_{i}"
        t[p + ".weight"] = uniform(seed + p, [c["hidden_size"], n_in], 1 / math.sqrt(n_in), dtype)
        t[p + ".bias"] = uniform(seed + p + "b", [c["hidden_size"]], 0.1, dtype)
    if case["next"]:
        t["image_newline"] = uniform(seed + "newline", [c["hidden_size"]], 0.6, dtype)
    for name, tensor in text_tensors(seed, c, dtype, case.get("awq_group", 0)).items():
        t["language_model." + name] = tensor
    return t


# --- cases ---------------------------------------------------------------------------------------

VISION_56 = dict(
    model_type="clip_vision_model",
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_hidden_layers=4,
    image_size=56,
    patch_size=14,
    projection_dim=32,
)
VISION_84 = dict(
    VISION_56, hidden_size=128, intermediate_size=192, num_attention_heads=2, image_size=84
)
LLAMA = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=N_PADDED,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    hidden_act="silu",
    bos_token_id=1,
    eos_token_id=2,
)
GQA = dict(
    LLAMA,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
)
MISTRAL = dict(
    LLAMA,
    model_type="mistral",
    architectures=["MistralForCausalLM"],
    num_key_value_heads=2,
    head_dim=64,
    rope_theta=1000000.0,
    sliding_window=None,
)
PINPOINTS = [[84, 168], [168, 84], [168, 168], [252, 84], [84, 252]]
TRAINED = 64  # trained length of the rope cases


def case(seed, dtype, vision, text, is_next=False, **more):
    return dict(
        dict(
            seed=seed,
            dtype=dtype,
            vision=vision,
            text=text,
            next=is_next,
            layer=-2,
            select="default",
            do_pad=False,
            family="hf",
        ),
        **more,
    )


def rope(**scaling):
    return case(
        "hf15",
        "F16",
        VISION_56,
        dict(LLAMA, max_position_embeddings=TRAINED, rope_scaling=scaling),
        long_text=True,
    )


CASES = {
    "hf15": case("hf15", "F16", VISION_56, LLAMA),
    "hf15_pad": case("hf15", "F32", VISION_56, LLAMA, layer=-1, do_pad=True),
    "hf15_full": case("hf15", "F16", VISION_56, LLAMA, select="full"),
    "hf16": case("hf16", "BF16", VISION_84, GQA, True),
    "hf16_mistral": case("mistral_b", "F16", VISION_84, MISTRAL, True),
    "orig15": case("hf15", "F16", VISION_56, LLAMA, family="original"),
    "orig16": case(
        "hf16", "BF16", VISION_84, dict(LLAMA, num_key_value_heads=2), True, family="original"
    ),
    "awq64": case("awq", "F16", VISION_56, LLAMA, awq_group=64),
    "awq128": case("awq", "F16", VISION_56, LLAMA, awq_group=128),
    "rope_linear": rope(rope_type="linear", type="linear", factor=4.0),
    "rope_dynamic": rope(rope_type="dynamic", type="dynamic", factor=2.0),
    "rope_yarn": rope(
        rope_type="yarn", type="yarn", factor=4.0, original_max_position_embeddings=TRAINED
    ),
    "rope_yarn_own": rope(
        rope_type="yarn",
        type="yarn",
        factor=4.0,
        original_max_position_embeddings=TRAINED,
        beta_fast=3.0,
        beta_slow=0.5,
        attention_factor=0.9,
    ),
    "rope_llama3": rope(
        rope_type="llama3",
        type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=TRAINED,
    ),
    "window": case("mistral", "F16", VISION_56, dict(MISTRAL, sliding_window=48), long_text=True),
}


def hf_config(case):
    config = dict(
        architectures=[
            "LlavaNextForConditionalGeneration" if case["next"] else "LlavaForConditionalGeneration"
        ],
        model_type="llava_next" if case["next"] else "llava",
        ignore_index=-100,
        image_token_index=IMAGE_ID,
        pad_token_id=PAD_ID,
        projector_hidden_act="gelu",
        text_config=case["text"],
        vision_config=case["vision"],
        vision_feature_layer=case["layer"],
        vision_feature_select_strategy=case["select"],
        tie_word_embeddings=False,
        vocab_size=N_PADDED,
    )
    if case["next"]:
        config.update(image_grid_pinpoints=PINPOINTS, use_image_newline_parameter=True)
    if case.get("awq_group"):
        config["quantization_config"] = dict(
            quant_method="awq",
            version="gemm",
            bits=4,
            zero_point=True,
            group_size=case["awq_group"],
        )
    return config


def preprocessor_config(case):
    side = case["vision"]["image_size"]
    config = dict(
        crop_size=dict(height=side, width=side),
        do_center_crop=True,
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        image_mean=MEAN,
        image_std=STD,
        image_processor_type="CLIPImageProcessor",
        resample=3,
        rescale_factor=1 / 255,
        size=dict(shortest_edge=side),
    )
    if case["do_pad"]:
        config.update(do_pad=True, image_processor_type="LlavaImageProcessor")
    if case["next"]:
        config.update(
            image_processor_type="LlavaNextImageProcessor",
            aspect_ratio_setting="anyres",
            do_pad=True,
            image_grid_pinpoints=PINPOINTS,
        )
    return config


def original_config(case, tower):
    config = dict(
        case["text"],
        vocab_size=N_PIECES,
        model_type="llava",
        architectures=["LlavaLlamaForCausalLM"],
        mm_hidden_size=case["vision"]["hidden_size"],
        mm_projector_type="mlp2x_gelu",
        mm_use_im_patch_token=False,
        mm_use_im_start_end=False,
        mm_vision_select_feature="patch",
        mm_vision_select_layer=-2,
        mm_vision_tower=tower,
        image_aspect_ratio="pad",
        use_mm_proj=True,
        pad_token_id=0,
        rope_scaling=None,
    )
    if case["next"]:
        config.update(
            image_aspect_ratio="anyres",
            mm_patch_merge_type="spatial_unpad",
            image_grid_pinpoints=PINPOINTS,
        )
    return config


def original_tensors(case):
    """(checkpoint, CLIP's own checkpoint) under liuhaotian's and openai's names."""
    model, clip = {}, {}
    for name, t in hf_tensors(case).items():
        if name.startswith("vision_tower."):
            name = name.removeprefix("vision_tower.")
            if case["next"]:
                model["model.vision_tower.vision_tower." + name] = t
            clip[name] = t
        elif name.startswith("multi_modal_projector."):
            part = name.rsplit(".", 1)[1]
            model["model.mm_projector." + ("0." if "linear_1" in name else "2.") + part] = t
        elif name == "image_newline":
            model["model.image_newline"] = t
        else:
            name = name.removeprefix("language_model.")
            if "embed_tokens" in name or "lm_head" in name:
                row = len(t.data) // t.shape[0]
                t = Tensor(t.dtype, [N_PIECES, t.shape[1]], t.data[: N_PIECES * row])
            model[name] = t
    return model, clip


# --- the same checkpoints as others write them ---------------------------------------------------

SAVED = [
    "hf15",
    "hf15_pad",
    "hf16",
    "rope_yarn",
]  # transformers 5's own JSON files are in data/saved

NAMINGS = {
    "4.52": [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("image_newline", "model.image_newline"),
    ],
    "5.6": [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("image_newline", "model.image_newline"),
    ],
}


def renamed(tensors, rules):
    out = {}
    for name, tensor in tensors.items():
        for old, new in rules:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        out[name] = tensor
    return out


# --- files ---------------------------------------------------------------------------------------


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = dict(dtype=t.dtype, shape=t.shape, data_offsets=[at, at + len(t.data)])
        at += len(t.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.data)


def write_json(path, data):
    with open(path, "w") as f:
        json.dump(data, f, indent=1)


def write_shards(folder, tensors):
    """Two shards and an index, every other tensor in the second."""
    parts = [{}, {}]
    for i, (name, t) in enumerate(tensors.items()):
        parts[i % 2][name] = t
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, part in zip(files, parts):
        write_safetensors(os.path.join(folder, name), part)
    index = {name: files[i % 2] for i, name in enumerate(tensors)}
    write_json(
        os.path.join(folder, "model.safetensors.index.json"),
        dict(
            metadata=dict(total_size=sum(len(t.data) for t in tensors.values())), weight_map=index
        ),
    )


def write_tokenizer(folder, hf):
    shutil.copy(
        os.path.join(HERE, "tokenizer", "small.model"), os.path.join(folder, "tokenizer.model")
    )
    token = lambda text: dict(
        content=text, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True
    )
    config = dict(
        tokenizer_class="LlamaTokenizer",
        legacy=False,
        add_bos_token=True,
        add_eos_token=False,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    if hf:
        added = {0: "<unk>", 1: "<s>", 2: "</s>", IMAGE_ID: "<image>", PAD_ID: "<pad>"}
        config["added_tokens_decoder"] = {str(i): token(text) for i, text in added.items()}
        config["pad_token"] = "<pad>"
        write_json(
            os.path.join(folder, "added_tokens.json"), {"<image>": IMAGE_ID, "<pad>": PAD_ID}
        )
    write_json(os.path.join(folder, "tokenizer_config.json"), config)


def write_case(out, name, case, naming=None):
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "generation_config.json"), dict(bos_token_id=1, eos_token_id=2))
    write_tokenizer(folder, case["family"] == "hf")
    if case["family"] == "hf":
        tensors = hf_tensors(case)
        write_json(os.path.join(folder, "config.json"), hf_config(case))
        write_json(os.path.join(folder, "preprocessor_config.json"), preprocessor_config(case))
        write_safetensors(
            os.path.join(folder, "model.safetensors"), renamed(tensors, NAMINGS.get(naming, []))
        )
        return
    tensors, clip = original_tensors(case)
    tower = os.path.join(out, name + "_clip")
    os.makedirs(tower, exist_ok=True)
    write_json(os.path.join(folder, "config.json"), original_config(case, os.path.abspath(tower)))
    write_shards(folder, tensors)
    # openai's CLIP repository: both towers' configuration; only the vision tower is of use here
    write_json(
        os.path.join(tower, "config.json"),
        dict(model_type="clip", vision_config=case["vision"], projection_dim=32),
    )
    write_json(
        os.path.join(tower, "preprocessor_config.json"), preprocessor_config(dict(case, next=False))
    )
    write_safetensors(os.path.join(tower, "model.safetensors"), clip)


def main(out):
    os.makedirs(out, exist_ok=True)
    for name in PICTURES:
        with open(os.path.join(out, name + ".png"), "wb") as f:
            f.write(png(*picture(name)))
    for name, case in CASES.items():
        write_case(out, name, case)
    for naming in NAMINGS:
        for name in ("hf15", "hf16"):
            write_case(out, f"{name}_names_{naming}", CASES[name], naming)
    for name in SAVED:
        write_case(out, name + "_saved", CASES[name], "5.6")
        folder = os.path.join(out, name + "_saved")
        os.remove(os.path.join(folder, "preprocessor_config.json"))
        shutil.copytree(os.path.join(HERE, "data", "saved", name), folder, dirs_exist_ok=True)


if __name__ == "__main__":
    main(sys.argv[1])
