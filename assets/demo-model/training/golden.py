"""Reference answers of the shipped model: what any other program must reproduce.

    python3 golden.py --weights OUT/weights.npz --tokenizer ../tokenizer.model --pictures DIR --to DIR \\
        [--engine transformers|own] [--compare OTHER_DIR]

fp32 on the CPU with the dequantised int4 values, by transformers or by model.py's own forward pass.
Writes DIR/demo.json (prompts, ids, greedy answers), logits_*.npy (f32 [vocab], first generated
position) and, for one picture, pixels and pixel_values. --compare says how far two sets differ.
"""

import argparse
import glob
import hashlib
import json
import os

import numpy as np
import sentencepiece as spm
import torch
from PIL import Image

import evaluate as E
import export
import model as M
import text as T

QUESTIONS = {
    "mice": ["Describe this image.", "How many mice are there?", "Is the cheese wedge to the left of the mouse?"],
    "guitar": ["Describe this image.", "What color is the background?"],
    "shapes": ["Describe this image.", "What color is the square?", "Is the red circle to the left of the blue square?"],
    "fruit": ["Describe this image.", "Is there a dog in this picture?"],
    "night": ["Describe this image.", "What is the name of the robot?"],
    "five": ["Describe this image.", "How many cars are there?"],
}
CHAT = ("fruit", ["How many apples are there?", "Is there a banana?", "Where is the banana?"])


def encode(sp, turns, answers):
    """Ids of a conversation: each side of <image> on its own, BOS once. A finished answer ends in </s>;
    what follows it is a new stretch of text."""
    ids = [sp.bos_id()] + sp.encode(T.SYSTEM_HUMAN + " USER: ") + [M.IMAGE_ID] * M.N_IMAGE
    text = f"\n{turns[0]} ASSISTANT:"
    for answer, question in zip(answers, turns[1:]):
        ids += sp.encode(f"{text} {answer}") + [sp.eos_id()]
        text = f"USER: {question} ASSISTANT:"
    return ids + sp.encode(text)


class OwnModel:
    """model.py's forward pass, one greedy token after the other."""

    def __init__(self, weights):
        self.p = {k: torch.from_numpy(v.astype(np.float32)) for k, v in export.tensors(weights, "dequantized").items()}
        self.net = M.Net(compiled=False, dtype=torch.float32)
        self.net.head_loss = lambda h, norm, emb, labels, w: (None, M.F.linear(M.rms_norm(h[:, -1:], norm), emb))

    def logits(self, ids, image):
        n, at = len(ids), ids.index(M.IMAGE_ID)
        grid = torch.tensor([ids])
        row = {"ids": grid, "pos": torch.arange(n)[None], "seg": torch.zeros(1, n, dtype=torch.long), "labels": grid,
               "weights": grid}
        return self.net.read(self.p, row, image, torch.zeros(()), at)[1][0, 0]

    def answer(self, ids, values):
        image = self.net.project(self.p, self.net.see(self.p, torch.from_numpy(values)[None]))
        first, new = None, []
        while len(new) < 64 and 2 not in new:
            logits = self.logits(ids + new, image)
            first = logits.numpy() if first is None else first
            new.append(int(logits.argmax()))
        return new, first


@torch.no_grad()
def answer(model, ids, values):
    """(new ids, first logits) of greedy decoding."""
    if isinstance(model, OwnModel):
        return model.answer(ids, values)
    out = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                         pixel_values=torch.from_numpy(values)[None], max_new_tokens=64, do_sample=False,
                         eos_token_id=2, pad_token_id=M.PAD_ID, output_logits=True, return_dict_in_generate=True)
    return out.sequences[0, len(ids):].tolist(), out.logits[0][0].float().numpy()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--weights", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--pictures", required=True)
    ap.add_argument("--to", required=True)
    ap.add_argument("--engine", choices=["transformers", "own"], default="transformers")
    ap.add_argument("--compare")
    args = ap.parse_args()
    os.makedirs(args.to, exist_ok=True)
    sp = spm.SentencePieceProcessor(model_file=args.tokenizer)
    weights, made_by = dict(np.load(args.weights)), f"training/model.py, torch {torch.__version__}, fp32"
    if args.engine == "own":
        model = OwnModel(weights)
    else:
        import transformers
        model, _ = E.load(weights, args.tokenizer, "dequantized", "cpu")
        made_by = f"transformers {transformers.__version__}, torch {torch.__version__}, fp32"
    cases = []

    def case(name, turns, answers):
        pixels, values = E.preprocess(Image.open(os.path.join(args.pictures, name + ".png")).convert("RGB"))
        ids = encode(sp, turns, answers)
        new, logits = answer(model, ids, np.ascontiguousarray(values, np.float32))
        text = sp.decode([i for i in new if i != 2 and i < M.PIECES]).strip()
        cases.append({"picture": name + ".png", "questions": turns, "answers_before": answers, "input_ids": ids,
                      "output_ids": new, "text": text, "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest()})
        print(name, turns[-1], "->", text)
        return pixels, values, logits, text

    for path in sorted(glob.glob(os.path.join(args.pictures, "*.png"))):
        name = os.path.splitext(os.path.basename(path))[0]
        for question in QUESTIONS.get(name, []):
            pixels, values, logits, _ = case(name, [question], [])
            if question == "Describe this image.":
                np.save(os.path.join(args.to, f"logits_{name}.npy"), logits)
                if name == "guitar":
                    np.save(os.path.join(args.to, "pixels_guitar.npy"), pixels[None])
                    np.save(os.path.join(args.to, "pixel_values_guitar.npy"), values[None].astype(np.float32))
    name, turns = CHAT
    answers = []
    for i in range(len(turns)):
        answers.append(case(name, turns[:i + 1], list(answers))[3])
    with open(os.path.join(args.to, "demo.json"), "w", encoding="utf-8") as f:
        json.dump({"system": T.SYSTEM_HUMAN, "made_by": made_by, "cases": cases}, f, ensure_ascii=False)
        f.write("\n")
    if args.compare:
        compare(args.to, args.compare)


def compare(a, b):
    """Prints how many answers are equal and how far the first logits are apart."""
    cases = []
    for folder in (a, b):
        with open(os.path.join(folder, "demo.json"), encoding="utf-8") as f:
            cases.append(json.load(f)["cases"])
    same = sum(x["output_ids"] == y["output_ids"] and x["input_ids"] == y["input_ids"] for x, y in zip(*cases))
    print(same, "of", len(cases[0]), "answers identical")
    for path in sorted(glob.glob(os.path.join(a, "logits_*.npy"))):
        x, y = np.load(path), np.load(os.path.join(b, os.path.basename(path)))
        print(os.path.basename(path), "relative difference", np.linalg.norm(x - y) / np.linalg.norm(y))


if __name__ == "__main__":
    main()
