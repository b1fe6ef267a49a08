#!/usr/bin/env python3
"""LLaVA-1.6-vicuna-7B in full size: ours against transformers, on a machine with a GPU.

    full_size.py PROGRAM [--family 1.5] [--scratch DIR] [--keep] [--layers N]

PROGRAM is test_gpu_full_size. There are no real weights here, so random ones of the real shapes are
made on the GPU, scaled so that the model behaves like one: attention that is neither even nor on
one token, a residual stream that keeps what it was given, logits with a spread and a leader (what
came out is printed). They are written as f16 safetensors under the names of the transformers
installed, and both sides run the picture and a continuation of 512 ids that is given whatever the
model says:

    transformers in f32      the reference
    transformers in f16      how far f16 alone is from it: the bar for ours
    ours in f16              token by token, and 128 tokens a pass
    the same four with the decoder's linears rounded to int4 (MODEL.md, W4A16; to nearest)

Exit status 1 where ours is further from the f32 reference than transformers' own f16 (of logits all
positions together count), or agrees on the likeliest token at less than 99% of the positions.
Needs torch, transformers, numpy, Pillow, and 14 GB of disk or memory for --scratch (default:
/dev/shm or /tmp, whichever has room).
"""
import argparse, concurrent.futures, json, math, os, shutil, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
N_NEXT = 512
POSITIONS = [0, 1, 2, 31, 127, 255, 400, 511]  # whose logits are compared in full
N_SHARDS = 12
GROUP = 128
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

start = time.time()


def say(text):
    print(f"[{time.time() - start:6.1f} s] {text}", flush=True)


# --- the checkpoint's JSON files ------------------------------------------------------------------


def model_config(is_next, n_layers):
    config = dict(
        architectures=[
            "LlavaNextForConditionalGeneration" if is_next else "LlavaForConditionalGeneration"
        ],
        model_type="llava_next" if is_next else "llava",
        ignore_index=-100,
        image_token_index=32000,
        pad_token_id=32001,
        projector_hidden_act="gelu",
        text_config=dict(
            model_type="llama",
            architectures=["LlamaForCausalLM"],
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=n_layers,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32064,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            tie_word_embeddings=False,
            hidden_act="silu",
            bos_token_id=1,
            eos_token_id=2,
        ),
        vision_config=dict(
            model_type="clip_vision_model",
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            num_hidden_layers=24,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        vocab_size=32064,
    )
    if is_next:
        config.update(image_grid_pinpoints=PINPOINTS, use_image_newline_parameter=True)
    return config


def preprocessor_config(is_next):
    config = dict(
        crop_size=dict(height=336, width=336),
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
        size=dict(shortest_edge=336),
    )
    if is_next:
        config.update(
            image_processor_type="LlavaNextImageProcessor",
            aspect_ratio_setting="anyres",
            do_pad=True,
            image_grid_pinpoints=PINPOINTS,
        )
    return config


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w") as file:
        json.dump(value, file)


def write_texts(folder, is_next, n_layers):
    write_json(folder, "config.json", model_config(is_next, n_layers))
    write_json(folder, "preprocessor_config.json", preprocessor_config(is_next))
    tokenizer = os.path.join(ROOT, "tests", "golden", "tokenizer", "small.model")
    shutil.copy(tokenizer, os.path.join(folder, "tokenizer.model"))


# --- weights --------------------------------------------------------------------------------------


def deviation(name, n_layers):
    """Standard deviation of a matrix's or an embedding's elements.

    A linear of n inputs of size 1 gives sqrt(n) times it. Queries and keys of size s give scores of
    deviation s^2: attention then reaches about n exp(-s^4) of n tokens.
    """
    rules = [  # the decoder's: queries and keys of 1.3, values of 2.6, logits of 1.3
        ("embed_tokens", 1.0),
        ("lm_head", 0.02),
        ("multi_modal_projector.linear_1", 0.02),
        ("multi_modal_projector.linear_2", 0.024),  # image embeddings of about 1, as text's
        ("image_newline", 1.0),
        ("class_embedding", 0.3),
        ("patch_embedding", 0.02),
        ("position_embedding", 0.3),
    ]
    for part, std in rules:
        if part in name:
            return std
    depth = 1 / math.sqrt(2 * n_layers)  # the sum of all blocks stays about as large as the input
    if "vision_tower" in name:  # 1024 wide; queries and keys of 1.4
        kinds = dict(q_proj=0.045, k_proj=0.045, v_proj=0.03, out_proj=0.01, fc1=0.03, fc2=0.005)
    else:
        kinds = dict(
            q_proj=0.02,
            k_proj=0.02,
            v_proj=0.04,
            o_proj=0.04 * depth,
            gate_proj=0.02,
            up_proj=0.02,
            down_proj=0.02 * depth,
        )
    for part, std in kinds.items():
        if f".{part}." in name:
            return std
    raise ValueError(f"no rule for {name}")


def fill(torch, model, n_layers):
    random = torch.Generator(device="cuda").manual_seed(20240607)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name.rsplit(".", 2)[-2] and p.dim() == 1:
                mean = 1.0 if name.endswith("weight") else 0.0
                p.normal_(mean, 0.1 if mean else 0.05, generator=random)
            elif name.endswith(".bias"):
                p.normal_(0, 0.05, generator=random)
            else:
                p.normal_(0, deviation(name, n_layers), generator=random)
                if "lm_head" in name:
                    # Rows of unequal length: real logits have a clear leader more often than
                    # normal ones, whose best two lie close together.
                    rows = torch.randn(p.shape[0], 1, device="cuda", generator=random)
                    p.mul_((0.4 * rows).exp().to(p.dtype))


def build(torch, tf, folder, is_next, n_layers):
    config = tf.AutoConfig.from_pretrained(folder)
    kind = tf.LlavaNextForConditionalGeneration if is_next else tf.LlavaForConditionalGeneration
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = kind(config)
    torch.set_default_dtype(torch.float32)
    model = model.to(device="cuda", dtype=torch.float16).eval()
    fill(torch, model, n_layers)
    # As on a CPU, and in f32 whatever the model's type was when it was made.
    half = torch.arange(0, 128, 2, dtype=torch.float32) / 128
    set_rope(torch, model, 1.0 / (10000.0**half))
    return model


def set_rope(torch, model, inv_freq):
    rope = model.model.language_model.rotary_emb
    for field in ("inv_freq", "original_inv_freq"):
        if hasattr(rope, field):
            setattr(rope, field, inv_freq.to(device="cuda", dtype=torch.float32))


def to_type(torch, model, dtype):
    inv_freq = model.model.language_model.rotary_emb.inv_freq.clone()
    model.to(dtype)
    set_rope(torch, model, inv_freq)


# --- safetensors, many files at once --------------------------------------------------------------


def write_shard(torch, path, tensors):
    """tensors: (name, f16 tensor on the GPU)."""
    header, at = {}, 0
    for name, t in tensors:
        n_bytes = t.numel() * 2
        header[name] = dict(dtype="F16", shape=list(t.shape), data_offsets=[at, at + n_bytes])
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file, torch.cuda.stream(torch.cuda.Stream()):
        file.write(len(text).to_bytes(8, "little") + text)
        for _, t in tensors:
            left = memoryview(t.detach().reshape(-1).view(torch.uint8).cpu().numpy())
            while len(left):
                left = left[file.write(left) :]


def write_weights(torch, model, folder):
    torch.cuda.synchronize()
    tensors = {n: t for n, t in model.state_dict().items() if t.dtype == torch.float16}
    shards = [[] for _ in range(N_SHARDS)]
    sizes = [0] * N_SHARDS
    for name, t in sorted(tensors.items(), key=lambda item: -item[1].numel()):
        i = sizes.index(min(sizes))
        shards[i].append((name, t))
        sizes[i] += t.numel()
    names = [f"model-{i + 1:05}-of-{N_SHARDS:05}.safetensors" for i in range(N_SHARDS)]
    with concurrent.futures.ThreadPoolExecutor(N_SHARDS) as pool:
        jobs = [
            pool.submit(write_shard, torch, os.path.join(folder, name), shard)
            for name, shard in zip(names, shards)
        ]
        for job in jobs:
            job.result()
    index = {name: file for file, shard in zip(names, shards) for name, _ in shard}
    total = 2 * sum(sizes)
    write_json(
        folder,
        "model.safetensors.index.json",
        dict(metadata=dict(total_size=total), weight_map=index),
    )
    return total


# --- inputs ---------------------------------------------------------------------------------------


def make_inputs(np, folder, is_next):
    from PIL import Image

    if is_next:
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil as Kind,
        )
    else:
        from transformers.models.llava.image_processing_pil_llava import (
            LlavaImageProcessorPil as Kind,
        )
    config = {
        k: v
        for k, v in preprocessor_config(is_next).items()
        if k not in ("image_processor_type", "aspect_ratio_setting")
    }
    source = os.path.join(ROOT, "assets", "pictures", "beach.png")
    shutil.copy(source, os.path.join(folder, "picture.png"))
    image = Image.open(source).convert("RGB")
    pixels = Kind(**config)(
        np.asarray(image), input_data_format="channels_last", return_tensors="np"
    )["pixel_values"]
    pixels = np.ascontiguousarray(np.asarray(pixels, np.float32).reshape(-1, 3, 336, 336))
    random = np.random.default_rng(1)
    ids = lambda n: random.integers(3, 32000, n).astype(np.int32)
    arrays = dict(
        pixel_values=pixels,
        before=np.concatenate([np.array([1], np.int32), ids(34)]),
        after=ids(25),
        next=ids(N_NEXT),
        positions=np.array(POSITIONS, np.int32),
    )
    for name, array in arrays.items():
        np.save(os.path.join(folder, name + ".npy"), array)
    return arrays, image.size


# --- transformers ---------------------------------------------------------------------------------


def unwrap(features):
    """What get_image_features gives in this transformers version -> [n, d]."""
    import torch

    for field in ("pooler_output", "image_hidden_states"):
        if hasattr(features, field) and not isinstance(features, (list, tuple, torch.Tensor)):
            features = getattr(features, field)
    if isinstance(features, (list, tuple)):
        features = features[0]
    return features.reshape(-1, features.shape[-1])


def see(torch, model, arrays, size, is_next):
    """(features [n_tiles * 576, 1024], image embeddings [n, 4096]), f32."""
    dtype = model.lm_head.weight.dtype
    pixels = torch.from_numpy(arrays["pixel_values"]).to("cuda", dtype)
    states = model.model.vision_tower(pixels, output_hidden_states=True, return_dict=True)
    features = states.hidden_states[-2][:, 1:].reshape(-1, 1024)
    if is_next:
        sizes = torch.tensor([[size[1], size[0]]])
        embeds = model.model.get_image_features(pixel_values=pixels[None], image_sizes=sizes)
    else:
        embeds = model.model.get_image_features(pixel_values=pixels)
    return features.float(), unwrap(embeds).float()


def talk(torch, model, arrays, embeds):
    """(likeliest ids [N_NEXT], logits at POSITIONS, all logits' top two apart), given the ids."""
    table = model.model.language_model.get_input_embeddings()
    rows = lambda name: table(torch.from_numpy(arrays[name]).long().cuda())
    n_prompt = len(arrays["before"]) + len(embeds) + len(arrays["after"])
    x = torch.cat(
        [rows("before"), embeds.to(table.weight.dtype), rows("after"), rows("next")[:-1]]
    )
    hidden = model.model.language_model(inputs_embeds=x[None], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[0, n_prompt - 1 :]).float()
    assert logits.shape[0] == N_NEXT
    top = logits.topk(2).values
    return logits.argmax(-1).cpu(), logits[POSITIONS].cpu(), top[:, 0] - top[:, 1], logits


def run(torch, model, arrays, size, is_next, what):
    with torch.no_grad():
        features, embeds = see(torch, model, arrays, size, is_next)
        top1, logits, gaps, every = talk(torch, model, arrays, embeds)
    say(
        f"{what}: features {float(features.std()):.2f}, embeds {float(embeds.std()):.2f}, logits "
        f"{float(every.std()):.2f} (deviations); best two logits {float(gaps.median()):.3f} apart "
        f"(median), {len(set(top1.tolist()))} different likeliest ids of {N_NEXT}"
    )
    return dict(features=features.cpu(), embeds=embeds.cpu(), top1=top1, logits=logits)


def report_attention(torch, model, arrays, embeds, n_layers):
    """How many tokens the last one attends to, in effect: exp(entropy), without positions."""
    caught = {}
    layers = model.model.language_model.layers
    chosen = sorted({0, n_layers // 2, n_layers - 1})
    hooks = [
        layers[i].input_layernorm.register_forward_hook(
            # of the passes that make up the talk the one with the most tokens
            lambda module, args, out, i=i: caught.__setitem__(
                i, max(caught.get(i, out[0][:0]), out[0].float(), key=len)
            )
        )
        for i in chosen
    ]
    with torch.no_grad():
        talk(torch, model, arrays, embeds.cuda())
        words = []
        for i in chosen:
            h, attention = caught[i], layers[i].self_attn
            q = (h[-1] @ attention.q_proj.weight.float().T).view(32, 1, 128)
            k = (h @ attention.k_proj.weight.float().T).view(-1, 32, 128).transpose(0, 1)
            p = torch.softmax((q @ k.transpose(1, 2))[:, 0] / math.sqrt(128), -1)
            reached = torch.exp(-(p * p.clamp_min(1e-30).log()).sum(-1))
            words.append(f"layer {i}: {float(reached.median()):.0f}")
    for hook in hooks:
        hook.remove()
    say(f"attention of the last of {len(h)} tokens reaches in effect: " + ", ".join(words))


def round_int4(torch, model):
    """The decoder's linears as the nearest of 16 levels, groups of 128 along the inputs, in f32."""
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    with torch.no_grad():
        for name, p in model.model.language_model.named_parameters():
            if name.rsplit(".", 2)[-2] not in kinds:
                continue
            w = p.float().view(p.shape[0], -1, GROUP)
            low = w.amin(-1, keepdim=True).clamp_max(0)
            high = w.amax(-1, keepdim=True).clamp_min(0)
            s = ((high - low) / 15).half().float()
            z = torch.round(-low / s).clamp(0, 15)
            q = (torch.round(w / s) + z).clamp(0, 15)
            p.copy_(torch.where(s > 0, (q - z) * s, torch.zeros_like(w)).view(p.shape))


# --- the comparison -------------------------------------------------------------------------------


def error(torch, got, want):
    got, want = torch.as_tensor(got).double(), want.double()
    if got.shape != want.shape:
        return math.inf
    return float((got - want).norm() / want.norm())


def compare(torch, np, folder, reference, peer, reference_w4, peer_w4):
    load = lambda name: np.load(os.path.join(folder, name + ".npy"))
    rows, failed = [], []

    def row(what, ours, peers):
        rows.append((what, f"{ours:.2e}", f"{peers:.2e}", "" if ours <= peers else "FURTHER"))
        failed.append(not ours <= peers)

    def agreement(what, ours, peers):
        a, b = (float((x == y).double().mean()) for x, y in (ours, peers))
        rows.append((what, f"{100 * a:.1f}%", f"{100 * b:.1f}%", "" if a >= 0.99 else "BELOW 99%"))
        failed.append(a < 0.99)

    for what in ("features", "embeds"):
        row(
            what,
            error(torch, load(what), reference[what]),
            error(torch, peer[what], reference[what]),
        )
    for decoder, want, own in (("f16", reference, peer), ("w4", reference_w4, peer_w4)):
        for way in ("decode", "prefill"):
            got = torch.from_numpy(load(f"{decoder}_{way}_logits"))
            for i, position in enumerate(POSITIONS):
                row(
                    f"{decoder}, {way}: logits at {position}",
                    error(torch, got[i], want["logits"][i]),
                    error(torch, own["logits"][i], want["logits"][i]),
                )
            row(
                f"{decoder}, {way}: all of these",
                error(torch, got, want["logits"]),
                error(torch, own["logits"], want["logits"]),
            )
            top1 = torch.from_numpy(load(f"{decoder}_{way}_top1")).long()
            agreement(
                f"{decoder}, {way}: likeliest of {N_NEXT}",
                (top1, want["top1"]),
                (own["top1"], want["top1"]),
            )
    print(f"\n{'against transformers f32':32} {'ours':>10} {'its f16':>10}")
    for what, ours, peers, word in rows:
        print(f"{what:32} {ours:>10} {peers:>10}  {word}")
    whole = [f for (what, *_), f in zip(rows, failed) if "logits at" not in what]
    return not any(whole)


def scratch_folder(given):
    for place in [given] if given else ["/dev/shm", tempfile.gettempdir()]:
        if given or shutil.disk_usage(place).free > 14 << 30:
            return tempfile.mkdtemp(prefix="llava-full-size-", dir=place)
    sys.exit("full_size.py: neither /dev/shm nor the temporary folder has 14 GiB; name --scratch")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--family", choices=("1.5", "1.6"), default="1.6")
    parser.add_argument("--scratch")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint behind")
    parser.add_argument("--layers", type=int, default=32, help="of the decoder; fewer to try out")
    args = parser.parse_args()
    folder = scratch_folder(args.scratch)
    try:
        sys.exit(0 if check(args, folder) else 1)
    finally:
        if not args.keep:
            shutil.rmtree(folder)


def check(args, folder):
    import numpy as np
    import torch
    import transformers as tf

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    is_next = args.family == "1.6"
    say(f"torch {torch.__version__}, transformers {tf.__version__}, {torch.cuda.get_device_name()}")
    write_texts(folder, is_next, args.layers)
    arrays, size = make_inputs(np, folder, is_next)
    model = build(torch, tf, folder, is_next, args.layers)
    say(f"made; {len(arrays['pixel_values'])} tiles")
    total = write_weights(torch, model, folder)
    say(f"{total / 1e9:.1f} GB written to {folder}")
    ours = subprocess.Popen([args.program, folder, folder])  # while transformers runs

    try:
        results = run_all(torch, model, arrays, size, is_next, args.layers)
        status = ours.wait()
    finally:
        ours.kill()
    say(f"{os.path.basename(args.program)} ended with status {status}")
    return status == 0 and compare(torch, np, folder, *results)


def run_all(torch, model, arrays, size, is_next, n_layers):
    """f32, f16, and both with int4 values; the model's weights are converted on the way."""
    peer = run(torch, model, arrays, size, is_next, "transformers f16")
    report_attention(torch, model, arrays, peer["embeds"], n_layers)
    to_type(torch, model, torch.float32)
    reference = run(torch, model, arrays, size, is_next, "transformers f32")
    round_int4(torch, model)
    reference_w4 = run(torch, model, arrays, size, is_next, "transformers f32, int4 values")
    to_type(torch, model, torch.float16)
    peer_w4 = run(torch, model, arrays, size, is_next, "transformers f16, int4 values")
    return reference, peer, reference_w4, peer_w4


if __name__ == "__main__":
    main()
