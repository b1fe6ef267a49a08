"""Measures an exported checkpoint through transformers, greedily, on what training never saw.

    python3 evaluate.py --data DIR --weights OUT/weights.npz --tokenizer ../tokenizer.model --out OUT

Loads the fp16 and the int4 values (dequantised) into LlavaForConditionalGeneration, compares its
first logits with the training code's own forward pass, checks tokenizer and preprocessor against
SentencePiece and Pillow, and writes OUT/evaluation.json.
"""

import argparse
import json
import os
import random
import re
import tempfile
import time
from multiprocessing import Pool

import numpy as np
import sentencepiece as spm
import torch
from PIL import Image

import batches as B
import export
import model as M
import names as N
import plan as P
import text as T
import train


def build(maker, kind, count, seed, question=None):
    """(arrays, questions, answers, scenes) of `count` pictures with one question each."""
    rng = random.Random(seed)
    b, questions, answers, scenes = maker.empty(count), [], [], []
    for i in range(count):
        while True:
            for key, fresh in maker.empty(1).items():
                b[key][i] = fresh[0]
            turns = maker.plan_photo(rng, b, i, [kind]) if kind == T.PHOTO else maker.plan_scene(rng, b, i, [kind])
            if turns:
                break
        questions.append(question or T.vary(rng, turns[0][1]))
        answers.append(turns[0][2])
        scenes.append(None if kind == T.PHOTO else maker.last_scene)
    return b, questions, answers, scenes


def generate(model, rows, questions, pixels):
    """Greedy answers."""
    sp = rows.sp
    head = rows.prefixes[0] + [M.IMAGE_ID] * M.N_IMAGE
    ids = [head + sp.encode(f"\n{q} ASSISTANT:") for q in questions]
    longest = max(map(len, ids))
    grid = torch.tensor([[M.PAD_ID] * (longest - len(i)) + i for i in ids], device=pixels.device)
    out = model.generate(input_ids=grid, attention_mask=(grid != M.PAD_ID).long(), pixel_values=pixels,
                         max_new_tokens=56, do_sample=False, eos_token_id=2, pad_token_id=M.PAD_ID)
    texts = []
    for row in out[:, longest:].tolist():
        row = row[:row.index(2)] if 2 in row else row
        texts.append(sp.decode([t for t in row if t < M.PIECES]))
    return texts


def recall(scene, answer):
    """(kinds named, kinds there): the noun phrase of each kind, in the singular or the plural."""
    said = f" {re.sub(r'[.,]', ' ', answer)} "
    kinds = scene.kinds()
    return sum(any(f" {w} " in said for w in (N.bare(n, c), N.many(n, c))) for n, c, _ in kinds), len(kinds)


def score(kind, answers, texts, scenes):
    exact = np.mean([a == t for a, t in zip(answers, texts)])
    if kind == T.CAPTION:
        pairs = [recall(s, t) for s, t in zip(scenes, texts)]
        return {"object recall": sum(p[0] for p in pairs) / sum(p[1] for p in pairs), "caption exact": exact}
    if kind in (T.YESNO, T.LEFTRIGHT, T.UPDOWN):
        def first(s):
            return s.split()[0] if s.startswith(("Yes", "No")) else s
        right = [first(a) == first(t) for a, t in zip(answers, texts)]
        rows = {T.TYPES[kind]: np.mean(right)}
        if kind == T.LEFTRIGHT:
            rows["left/right: yes or no"] = np.mean([r for r, a in zip(right, answers) if a.startswith(("Yes", "No,"))])
        return rows
    return {T.TYPES[kind]: exact}


PLAN = [("seen styles", [T.CAPTION, T.YESNO, T.HOWMANY, T.BACK, T.LEFTRIGHT, T.UPDOWN, T.WHICH, T.COLOR]),
        ("held-out style", [T.CAPTION, T.YESNO, T.HOWMANY, T.LEFTRIGHT]), ("held-out photos", [T.PHOTO])]


def measure(model, makers, renderer, count, device):
    """The whole table of one set of weights."""
    table, samples = {}, []
    for name, kinds in PLAN:
        for kind in kinds:
            n = count if kind != T.PHOTO else max(count, 1024)
            question = "Describe this image." if kind in (T.CAPTION, T.PHOTO) else None
            b, q, a, scenes = build(makers[name], kind, n, 77 + kind, question)
            texts, blind = [], []
            for i in range(0, n, 512):
                part = train.to_device({k: v[i:i + 512] for k, v in b.items()}, device)
                pixels, _ = renderer(part, augment=False)
                texts += generate(model, makers[name].rows, q[i:i + 512], pixels)
                if kind in (T.CAPTION, T.PHOTO, T.YESNO) and i == 0:
                    blind = generate(model, makers[name].rows, q[:512], pixels.roll(1, 0))
            for key, value in score(kind, a, texts, scenes).items():
                table[f"{name}: {key}"] = round(100 * float(value), 2)
            if blind:
                for key, value in score(kind, a[:512], blind, scenes[:512]).items():
                    table[f"shuffled pictures, {name}: {key}"] = round(100 * float(value), 2)
            samples += [(name, x, y, z) for x, y, z in zip(q[:6], a[:6], texts[:6])]
    return table, samples


def load(weights, tokenizer, form, device):
    from transformers import LlavaForConditionalGeneration
    folder = tempfile.mkdtemp()
    export.save_safetensors(os.path.join(folder, "model.safetensors"), export.tensors(weights, form))
    for name, content in {"config.json": export.config(form), **export.side_files(tokenizer)}.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(content, f)
    with open(tokenizer, "rb") as src, open(os.path.join(folder, "tokenizer.model"), "wb") as dst:
        dst.write(src.read())
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    print(form, "loading:", {k: v for k, v in info.items() if v})
    return model.to(device).eval(), folder


@torch.no_grad()
def compare_forward(model, weights, maker, renderer, device):
    """Greatest difference between transformers' first logits and the training code's, fp32."""
    b, q, _, _ = build(maker, T.CAPTION, 8, 5, "Describe this image.")
    pixels, _ = renderer(train.to_device(b, device), augment=False)
    ids = maker.rows.prefixes[0] + [M.IMAGE_ID] * M.N_IMAGE + maker.rows.sp.encode("\nDescribe this image. ASSISTANT:")
    grid = torch.tensor([ids] * 8, device=device)
    theirs = model(input_ids=grid, pixel_values=pixels).logits[:, -1]
    p = {k: torch.from_numpy(v.astype(np.float32)).to(device) for k, v in weights.items()}
    net = M.Net(compiled=False, dtype=torch.float32)
    net.head_loss = lambda h, norm, emb, labels, w: (None, M.F.linear(M.rms_norm(h, norm), emb))
    n = len(ids)
    row = {"ids": grid, "pos": torch.arange(n, device=device).expand(8, n),
           "seg": torch.zeros(8, n, dtype=torch.long, device=device), "labels": grid, "weights": grid}
    _, ours = net.read(p, row, net.project(p, net.see(p, pixels)), torch.zeros((), device=device),
                       len(maker.rows.prefixes[0]))
    return ((ours[:, -1] - theirs).norm() / theirs.norm()).item()


def check_processors(folder, tokenizer):
    """Counts of texts and sizes on which transformers' own loaders agree with SentencePiece and Pillow."""
    from transformers import AutoTokenizer
    sp = spm.SentencePieceProcessor(model_file=tokenizer)
    out = {}
    try:
        tok = AutoTokenizer.from_pretrained(folder)
        texts = [T.SYSTEM_HUMAN + " USER: ", "\nDescribe this image. ASSISTANT:", "Größe ✓ 漢字 🙂", "  two  spaces",
                 "\n\nHi", "a\tb", "two mice", "12345 dogs", "", " ", "USER: What color is it? ASSISTANT:"] + T.DESCRIBE
        same = [tok.encode(t, add_special_tokens=False) == sp.encode(t) for t in texts]
        out["tokenizer"] = f"{sum(same)} of {len(same)} texts"
        out["tokenizer differs on"] = [(t, tok.encode(t, add_special_tokens=False), sp.encode(t))
                                       for t, ok in zip(texts, same) if not ok][:5]
        full = tok("USER: <image>\nHi ASSISTANT: a</s>USER: b").input_ids
        out["special ids"] = full
        out["class"] = type(tok).__name__
    except Exception as e:                                     # noqa: BLE001 (reported, not hidden)
        out["tokenizer"] = repr(e)
    try:
        from transformers import LlavaImageProcessorPil as Pil
    except ImportError:
        from transformers import LlavaImageProcessor as Pil
    try:
        proc, rng, same = Pil.from_pretrained(folder), np.random.default_rng(1), 0
        sizes = [(480, 360), (360, 480), (640, 480), (96, 96), (300, 201), (33, 500)]
        for w, h in sizes:
            im = Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))
            theirs = np.asarray(proc(im, return_tensors="np")["pixel_values"][0])
            same += np.abs(theirs - preprocess(im)[1]).max() < 1e-5
        out["preprocessor"] = f"{same} of {len(sizes)} sizes ({Pil.__name__})"
    except Exception as e:                                     # noqa: BLE001
        out["preprocessor"] = repr(e)
    return out


def preprocess(im):
    """(uint8 [s, s, 3], float32 [3, s, s]): pad to a square, Pillow's bicubic, normalise."""
    side = max(im.size)
    square = Image.new("RGB", (side, side), P.MEAN_COLOR)
    square.paste(im, ((side - im.width) // 2, (side - im.height) // 2))
    px = np.asarray(square.resize((M.SIZE, M.SIZE), Image.BICUBIC))
    mean, std = train.R.MEAN.numpy(), train.R.STD.numpy()
    return px, ((px.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--weights", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--count", type=int, default=1024)
    ap.add_argument("--device", default="cuda")
    args = ap.parse_args()
    torch.manual_seed(0)
    weights = dict(np.load(args.weights))
    sprites, styles = P.load_sprites(args.data)
    bank = train.S.load_bank(args.data, sprites, styles)
    colors = {i: c for i in range(len(sprites)) if (c := train.S.main_color(bank[i]))}

    def maker(use):
        return B.Maker(args.data, args.tokenizer, M.N_IMAGE, M.N_TEXT, use, True, False, colors)
    seen = maker([s for s in styles if s != P.HELD_OUT_STYLE])
    makers = {"seen styles": seen, "held-out style": maker([P.HELD_OUT_STYLE]), "held-out photos": seen}
    with Pool(8) as pool:
        renderer = train.build_renderer(seen, args.data, args.device, 99, pool)
    result = {"pictures per row": args.count}
    for form in ("fp16", "dequantized"):
        model, folder = load(weights, args.tokenizer, form, args.device)
        if form == "fp16":
            result["first logits, transformers against training code (relative)"] = \
                compare_forward(model, weights, seen, renderer, args.device)
            result.update(check_processors(folder, args.tokenizer))
        start = time.time()
        table, samples = measure(model, makers, renderer, args.count, args.device)
        result[form], result[form + " samples"] = table, samples
        print(form, json.dumps(table, indent=1), f"{time.time() - start:.0f} s", flush=True)
        with open(os.path.join(args.out, "evaluation.json"), "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1, ensure_ascii=False)
    print(json.dumps({k: v for k, v in result.items() if not k.endswith("samples")}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
