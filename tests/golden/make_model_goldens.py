#!/usr/bin/env python3
"""Runs the references on the tiny checkpoints of tiny.py and stores what every stage gives.

    make_model_goldens.py OUTDIR [LLAMA_DIR]

llava-hf cases: transformers' own processors (the PIL ones), models and generate(), in f32 with
eager attention. Original cases: the original LLaVA code's rules (original_llava.py) around
transformers' CLIP and LLaMA modules. LLAMA_DIR holds the real vocabulary's tokenizer.model and
tokenizer.json (not ours to ship); without it only the small vocabulary's ids are made.
Each case is written on its own, so one that fails does not cost the rest.
"""
import json, math, multiprocessing, os, random, sys, traceback

import numpy as np
import torch
from PIL import Image

import tiny
from original_llava import original_merge, original_tiles
from reference_tokenizers import HfTokenizer, SlowTokenizer
from tokenizer_texts import texts

QUESTION = "What is in this picture?"
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions."
)
VICUNA = SYSTEM + " USER: <image>\n" + QUESTION + " ASSISTANT:"
PROMPTS = {
    "vicuna": VICUNA,
    "pair": SYSTEM + " USER: <image>\n<image>\n" + QUESTION + " ASSISTANT:",
    "turns": VICUNA + " A red square.</s>USER: And what colour is it? ASSISTANT:",
    "mistral": "[INST] <image>\n" + QUESTION + " [/INST]",
}
N_NEW = 32
IMAGE = -200  # stands for one picture in the stored ids
OUT, WORK, LLAMA = sys.argv[1], "/tmp/tiny-goldens", sys.argv[2] if len(sys.argv) > 2 else None

# --- tokenizers ----------------------------------------------------------------------------------


def make_tokens(name, slow, hf):
    different = 0
    with open(os.path.join(OUT, name + ".tsv"), "w") as f:
        for text in texts():
            a, b = slow(text), hf(text)
            different += a != b
            f.write(
                "\t".join([json.dumps(text), " ".join(map(str, a)), " ".join(map(str, b))]) + "\n"
            )
        for prompt in ["Describe this image.\n", QUESTION]:
            for kind, whole in PROMPTS.items():
                whole = whole.replace(QUESTION, prompt)
                row = [" ".join(map(str, prompt_ids(t, whole))) for t in (slow, hf)]
                f.write("\t".join(["prompt " + json.dumps(whole)] + row) + "\n")
    print(name, len(texts()), "texts,", different, "differ between the two")


def prompt_ids(tokenize, prompt):
    """BOS, then each stretch between pictures tokenised on its own."""
    ids = [1]
    for i, stretch in enumerate(prompt.split("<image>")):
        ids += ([IMAGE] if i else []) + tokenize(stretch)
    return ids


# --- storing -------------------------------------------------------------------------------------


class Store:
    KINDS = {np.dtype(np.uint8): "U8", np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}

    def __init__(self):
        self.tensors = {}

    def put(self, name, value):
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        value = np.ascontiguousarray(value)
        self.tensors[name] = tiny.Tensor(self.KINDS[value.dtype], value.shape, value.tobytes())

    def write(self, name):
        tiny.write_safetensors(os.path.join(OUT, name + ".safetensors"), self.tensors)


# --- models --------------------------------------------------------------------------------------


def dense_awq(tensors, group):
    """The checkpoint an AWQ one stands for: w[k, n] = (q - z) s, exact in f32."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def unpack(t):
        words = np.frombuffer(t.data, np.uint32).reshape(t.shape)
        out = np.zeros((t.shape[0], t.shape[1] * 8), np.float32)
        for nibble, column in enumerate(order):
            out[:, column::8] = (words >> (4 * nibble)) & 15
        return out

    out = {}
    for name, t in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind == "qweight":
            q, z = unpack(t), unpack(tensors[stem + ".qzeros"])
            s = (
                np.frombuffer(tensors[stem + ".scales"].data, np.float16)
                .astype(np.float32)
                .reshape(z.shape)
            )
            w = ((q - z.repeat(group, 0)) * s.repeat(group, 0)).T.copy()
            out[stem + ".weight"] = tiny.Tensor("F32", w.shape, w.tobytes())
        elif kind not in ("qzeros", "scales"):
            out[name] = t
    return out


def load(name, case):
    import transformers as tf

    folder = os.path.join(WORK, name + "_reference")
    plain = dict(case, family="hf")
    tiny.write_case(WORK, name + "_reference", plain)
    if case.get("awq_group"):
        tensors = dense_awq(tiny.hf_tensors(case), case["awq_group"])
        tiny.write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
        tiny.write_json(
            os.path.join(folder, "config.json"), tiny.hf_config(dict(plain, awq_group=0))
        )
    kind = (
        tf.LlavaNextForConditionalGeneration if case["next"] else tf.LlavaForConditionalGeneration
    )
    model, info = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    bad = {k: v for k, v in info.items() if v}
    print(name, "loaded;", "NOT ALL NAMES MATCH" if bad else "all names match", bad)
    if name in tiny.SAVED:
        save(name, case, model)
    return model.eval()


def save(name, case, model):
    """The JSON files that this transformers writes, for the configuration reader's tests."""
    import transformers as tf

    folder = os.path.join(OUT, "saved", name)
    model.config.save_pretrained(folder)
    slow = SlowTokenizer(os.path.join(tiny.HERE, "tokenizer", "small.model"))
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=HfTokenizer(model=slow.whole).tokenizer)
    kind = tf.LlavaNextProcessor if case["next"] else tf.LlavaProcessor
    processor = kind(
        image_processor=hf_processor(case),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=case["select"],
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    for file in os.listdir(folder):
        if file not in ("config.json", "processor_config.json"):
            os.remove(os.path.join(folder, file))


def hf_processor(case):
    config = tiny.preprocessor_config(case)
    config = {
        k: v for k, v in config.items() if k not in ("image_processor_type", "aspect_ratio_setting")
    }
    if case["next"]:
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil as Kind,
        )
    else:
        from transformers.models.llava.image_processing_pil_llava import (
            LlavaImageProcessorPil as Kind,
        )
    return Kind(**config)


def hf_pixels(processor, image):
    """(u8 [n, side, side, 3], f32 [n, 3, side, side])"""
    image = np.asarray(image)
    run = lambda **more: np.asarray(
        processor(image, input_data_format="channels_last", return_tensors="np", **more)[
            "pixel_values"
        ]
    )
    raw, values = run(do_rescale=False, do_normalize=False), run()
    raw, values = (x.reshape(-1, *x.shape[-3:]) for x in (raw, values))
    assert (raw == raw.astype(np.uint8)).all()
    return raw.astype(np.uint8).transpose(0, 2, 3, 1), values.astype(np.float32)


def normalised(tiles):
    """(x / 255 - mean) / std in f32, as transformers' numpy code orders it."""
    x = tiles.astype(np.float64) * (1 / 255)
    x = x.astype(np.float32)
    x = (x - np.array(tiny.MEAN, np.float32)) / np.array(tiny.STD, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2).astype(np.float32))


def tower_features(model, case, values):
    states = model.model.vision_tower(
        torch.from_numpy(values), output_hidden_states=True, return_dict=True
    )
    features = states.hidden_states[case["layer"]]
    return features[:, 1:] if case["select"] == "default" else features


def unwrap(features):
    """What get_image_features gives in this transformers version -> [n, d] for each picture."""
    for field in ("pooler_output", "image_hidden_states"):
        if hasattr(features, field) and not isinstance(features, (list, tuple, torch.Tensor)):
            features = getattr(features, field)
    if isinstance(features, torch.Tensor):
        features = [features] if features.dim() == 2 else list(features)
    return [f.reshape(-1, f.shape[-1]) for f in features]


def greedy(step):
    """Tokens and top-1 margins of step(tokens so far) -> logits."""
    tokens, margins, first = [], [], None
    while len(tokens) < N_NEW:
        logits = step(tokens)
        first = logits if first is None else first
        top = torch.topk(logits, 2)
        tokens.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        if tokens[-1] == 2:
            break
    return first, tokens, margins


def answer_hf(model, ids, pixel_values, sizes, counts):
    """generate() on the ids with every picture's token repeated: embeddings, logits, tokens."""
    counts, full = iter(counts), []
    for i in ids:
        full += [tiny.IMAGE_ID] * next(counts) if i == IMAGE else [i]
    inputs = dict(
        input_ids=torch.tensor([full]), attention_mask=torch.ones(1, len(full), dtype=torch.long)
    )
    if pixel_values is not None:
        inputs["pixel_values"] = pixel_values
    if sizes is not None:
        inputs["image_sizes"] = sizes
    caught = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["inputs_embeds"].clone()),
        with_kwargs=True,
    )
    out = model.generate(
        **inputs,
        max_new_tokens=N_NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=2,
        pad_token_id=tiny.PAD_ID,
    )
    hook.remove()
    logits = torch.cat(out.logits)
    top = torch.topk(logits, 2).values
    tokens = out.sequences[0, len(full) :].tolist()
    assert tokens == logits.argmax(-1).tolist()
    embeds = caught[0][0][torch.tensor(full) == tiny.IMAGE_ID]
    return embeds, logits[0], tokens, (top[:, 0] - top[:, 1]).tolist()


def answer_original(model, ids, embeds):
    """Greedy decoding of text and picture embeddings; the padded vocabulary is cut off."""
    table, parts, at = model.model.language_model.get_input_embeddings(), [], iter(embeds)
    for i in ids:
        parts.append(next(at) if i == IMAGE else table(torch.tensor([i])))
    prompt = torch.cat(parts)[None]

    def step(tokens):
        x = torch.cat([prompt, table(torch.tensor([tokens]))], 1) if tokens else prompt
        hidden = model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
        return model.lm_head(hidden[0, -1])[: tiny.N_PIECES]

    return greedy(step)


def items(name, case):
    """(item, prompt, pictures) of a case."""
    kind = "mistral" if "mistral" in name else "vicuna"
    pictures = list(tiny.PICTURES)
    if name == "hf15_full" or "mistral" in name or name.startswith("awq"):
        pictures = ["odd", "wide"]
    for picture in pictures:
        yield picture, kind, [picture]
    if name in ("hf16", "orig16", "hf15"):
        yield "pair", "pair", ["odd", "wide"]
    if name in ("hf15", "orig15", "hf16"):
        yield "turns", "turns", ["photo"]


def make_case(name):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = tiny.CASES[name]
    model, store = load(name, case), Store()
    if "long_text" in case:
        make_long_text(name, model, store)
        return
    original = case["family"] == "original"
    slow = SlowTokenizer(os.path.join(tiny.HERE, "tokenizer", "small.model"))
    hf = HfTokenizer(model=slow.whole)
    processor = None if original else hf_processor(case)
    side, failed = case["vision"]["image_size"], []
    for item, kind, pictures in items(name, case):
        try:
            ids = prompt_ids(slow if original else hf, PROMPTS[kind])
            pixels, values, embeds, sizes, hf_values = [], [], [], [], []
            for picture in pictures:
                width, height, rgb = tiny.picture(picture)
                image = Image.frombytes("RGB", (width, height), rgb)
                if original:
                    tiles, grid = original_tiles(image, side, case["next"])
                    value = normalised(tiles)
                else:
                    tiles, value = hf_pixels(processor, image)
                features = tower_features(model, case, value)
                if original:
                    e = model.model.multi_modal_projector(features)
                    e = (
                        original_merge(e, grid, image.size, model.model.image_newline)
                        if case["next"]
                        else e[0]
                    )
                else:
                    x = torch.from_numpy(value)
                    size = torch.tensor([[height, width]])
                    e = model.model.get_image_features(
                        **(
                            dict(pixel_values=x[None], image_sizes=size)
                            if case["next"]
                            else dict(pixel_values=x)
                        )
                    )
                    e = unwrap(e)[0]
                    sizes.append(size)
                    hf_values.append(x)
                embeds.append(e)
                if len(pictures) == 1 and item != "turns":
                    store.put(f"{item}/pixels", tiles)
                    if item in ("odd", "dot"):
                        store.put(f"{item}/pixel_values", value)
                    if not case["next"] or item in ("dot", "odd", "tall"):
                        store.put(f"{item}/features", features)
            if original:
                first, tokens, margins = answer_original(model, ids, embeds)
            else:
                most = max(len(x) for x in hf_values)
                stacked = [
                    torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 0, most - len(x)))
                    for x in hf_values
                ]
                stacked = torch.stack(stacked) if case["next"] else torch.cat(stacked)
                seen, first, tokens, margins = answer_hf(
                    model,
                    ids,
                    stacked,
                    torch.cat(sizes) if case["next"] else None,
                    [len(e) for e in embeds],
                )
                error = float((seen - torch.cat(embeds)).abs().max())
                assert error < 1e-5, f"image embeddings by two ways differ by {error}"
                embeds = [seen]
            store.put(f"{item}/embeds", torch.cat(embeds))
            store.put(f"{item}/ids", np.array(ids, np.int32))
            store.put(f"{item}/logits", first)
            # Beyond a near tie any rounding may change the answer: it is cut there.
            close = next((i for i, m in enumerate(margins) if m < 1e-3), len(tokens))
            store.put(f"{item}/greedy", np.array(tokens[:close], np.int32))
            # Without special tokens. Not by `tokenizers`, which blots out a whole run of bytes where
            # one of them is broken.
            text = slow.whole.decode([t for t in tokens if t > 2])
            store.put(f"{item}/text", np.frombuffer(text.encode(), np.uint8))
            print(
                f"{name}/{item}: {len(torch.cat(embeds))} image tokens, {len(ids)} ids, "
                f"greedy {close} of "
                f"{len(tokens)}, least margin {min(margins):.2e}, distinct {len(set(tokens))}, "
                f"logits deviation {float(first.std()):.2f}"
            )
        except Exception:
            failed.append(item)
            print(f"{name}/{item} FAILED\n{traceback.format_exc()}")
    store.write(name)
    print(name, "done; failed:", failed)


def make_long_text(name, model, store):
    """Logits of one pass over 160 tokens, beyond the trained 64 or the attention window."""
    rng = random.Random("rope")
    ids = [1] + [rng.randrange(3, tiny.N_PIECES) for _ in range(159)]
    at = [0, 31, 63, 64, 100, 159]
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    store.put("ids", np.array(ids, np.int32))
    store.put("positions", np.array(at, np.int32))
    store.put("logits", logits[at])
    rotary = model.model.language_model.rotary_emb
    store.put("inv_freq", rotary.inv_freq.float())
    store.put("scale", np.array([rotary.attention_scaling], np.float32))
    store.write(name)
    print(
        name,
        model.config.text_config.rope_parameters,
        "scale",
        rotary.attention_scaling,
        "inv_freq",
        rotary.inv_freq[:3].tolist(),
    )


def make_sampling():
    """Rows of logits and what is left of them, as probabilities, after transformers' processors."""
    from transformers.generation import logits_process as lp

    rng, store = np.random.default_rng(7), Store()
    settings = []
    for temperature in (0.2, 0.7, 1.0, 1.7):
        for top_k, top_p, min_p in (
            (0, 0, 0),
            (5, 0, 0),
            (0, 0.9, 0),
            (0, 0, 0.1),
            (20, 0.8, 0),
            (40, 0.95, 0.05),
            (1, 0, 0),
            (0, 0.01, 0),
        ):
            for penalty in (1.0, 1.3):
                settings.append([temperature, top_k, top_p, min_p, penalty])
    rows = (rng.standard_normal((len(settings), 96)) * 3).astype(np.float32)
    seen = np.stack([rng.choice(96, 10, replace=False) for _ in settings]).astype(np.int32)
    kept = []
    for (temperature, top_k, top_p, min_p, penalty), row, ids in zip(settings, rows, seen):
        ids, x = torch.from_numpy(ids.astype(np.int64))[None], torch.from_numpy(row)[None]
        steps = [lp.RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []
        steps += [lp.TemperatureLogitsWarper(temperature)] if temperature != 1 else []
        steps += [lp.TopKLogitsWarper(int(top_k))] if top_k else []
        steps += [lp.TopPLogitsWarper(float(top_p))] if top_p else []
        steps += [lp.MinPLogitsWarper(float(min_p))] if min_p else []
        for step in steps:
            x = step(ids, x)
        kept.append(torch.softmax(x.double(), -1)[0].float().numpy())
    store.put("settings", np.array(settings, np.float32))
    store.put("logits", rows)
    store.put("seen", seen)
    store.put("probabilities", np.stack(kept))
    store.write("sampling")
    print("sampling", len(settings), "rows")


def make_tokenizers():
    slow = SlowTokenizer(os.path.join(tiny.HERE, "tokenizer", "small.model"))
    hf = HfTokenizer(model=slow.whole)
    for text in texts():  # the slow way without added tokens is plain sentencepiece
        if not any(t in text for t in ("<unk>", "<s>", "</s>", "\u2581")):
            if slow(text) != slow.whole.encode(text):
                print("slow differs from sentencepiece on", json.dumps(text)[:80])
    make_tokens("small", slow, hf)
    if LLAMA:
        make_tokens(
            "llama",
            SlowTokenizer(os.path.join(LLAMA, "tokenizer.model")),
            HfTokenizer(os.path.join(LLAMA, "tokenizer.json")),
        )


def guarded(job):
    with torch.no_grad():
        try:
            dict(sampling=make_sampling, tokenizers=make_tokenizers).get(
                job, lambda: make_case(job)
            )()
        except Exception:
            print(job, "FAILED\n" + traceback.format_exc())
    sys.stdout.flush()


def main():
    import transformers, tokenizers, sentencepiece, PIL

    torch.set_num_threads(1)
    os.makedirs(OUT, exist_ok=True)
    os.makedirs(WORK, exist_ok=True)
    versions = dict(
        python=sys.version.split()[0],
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
        sentencepiece=sentencepiece.__version__,
        pillow=PIL.__version__,
        numpy=np.__version__,
    )
    tiny.write_json(os.path.join(OUT, "versions.json"), versions)
    print(versions)
    jobs = ["tokenizers", "sampling"] + list(tiny.CASES)
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.map(guarded, jobs, chunksize=1)


if __name__ == "__main__":
    main()
