"""Measures the `describe` program on pictures that training never saw. numpy and Pillow only.

    python3 scene_eval.py make --data DIR --out EVAL [--count 200] [--seed 1]
    python3 scene_eval.py score --eval EVAL [--program build/bin/describe] [--report FILE] [--shuffle]

`make` draws scenes at everyday sizes from the sprites in DIR, takes held-out photos, and writes the
files with EVAL/questions.json. Styles are "seen", but for the held-out one and those given by
--new-styles. `score` asks the program, one run for up to 50 pictures that share a question.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

import names as N
import plan as P
import sprites as S
import text as T

SIZES = [(480, 360), (360, 480), (640, 480), (400, 400), (512, 512), (640, 360), (300, 225), (256, 256), (800, 600)]
FILES_A_RUN = 50          # so that --jobs has something to share
FORMATS = [("png", {}), ("jpg", {"quality": 90}), ("jpg", {"quality": 80})]


def background(scene, width, height, rng, photos):
    """uint8 [height, width, 3]: the layouts of plan.py, drawn as render.py draws them."""
    u, v = np.meshgrid((np.arange(width) + .5) / width, (np.arange(height) + .5) / height)
    col, p = np.array(scene.colors), scene.shape
    layout = P.BACKGROUNDS[scene.layout]
    if layout == "photo":
        im = Image.fromarray(photos[scene.photo]).resize((width, height), Image.BICUBIC)
        fade = rng.uniform(.4, .9)
        return (np.asarray(im) * fade + 255 * rng.random() * (1 - fade)).clip(0, 255).astype(np.uint8)
    if layout == "bands":
        t = np.clip(v / p[0], 0, 1)[..., None]
        img = col[0] + (col[1] - col[0]) * t
        img = np.where((v > p[0])[..., None], col[2], img)
        stars = np.random.default_rng(rng.randrange(1 << 30)).random((height, width)) < p[5] / 2
        img = np.where(stars[..., None], 1.0, img)
        t = np.clip((v - p[1]) / (1 - p[1]), 0, 1)[..., None]
        ground = col[3] + (col[4] - col[3]) * t
        img = np.where((v > p[1] + p[2] * np.sin(u * p[3] * 6.28 + p[4]))[..., None], ground, img)
        dash = (np.abs(v - (1 + p[1]) / 2) < p[6]) & (np.sin(u * p[3] * 12) > 0)
        img = np.where(dash[..., None], .92, img)
    else:
        along = (u - .5) * math.cos(p[0]) + (v - .5) * math.sin(p[0])
        across = (v - .5) * math.cos(p[0]) - (u - .5) * math.sin(p[0])
        a, b = np.sin(along * p[1] * 6.28), np.sin(across * p[1] * 6.28)
        t = {"plain": 0 * a, "gradient": np.clip(along * .8 + .5, 0, 1), "stripes": a > 0, "checks": a * b > 0,
             "dots": a * b > p[2]}[layout]
        img = col[0] + (col[1] - col[0]) * np.asarray(t, float)[..., None]
    return (img.clip(0, 1) * 255 + .5).astype(np.uint8)


def draw(scene, bank, n_sprites, longest, rng, photos):
    """The scene as an RGB picture whose longer side has `longest` pixels."""
    width, height = round(scene.w * longest), round(scene.h * longest)
    im = Image.fromarray(background(scene, width, height, rng, photos))
    for t in scene.things:
        tile = bank[t.sprite + (n_sprites if t.color else 0)]
        if t.color:
            tile = np.concatenate([(tile[..., :3] * np.array(t.rgb)).astype(np.uint8), tile[..., 3:]], 2)
        tile = Image.fromarray(np.ascontiguousarray(tile), "RGBA")
        if t.flip:
            tile = tile.transpose(Image.FLIP_LEFT_RIGHT)
        side = max(4, round(t.size * longest))
        tile = tile.resize((side, side), Image.BICUBIC)
        if t.angle:
            tile = tile.rotate(-t.angle, Image.BICUBIC, expand=True)
        x = (t.x - (1 - scene.w) / 2) * longest - tile.width / 2
        y = (t.y - (1 - scene.h) / 2) * longest - tile.height / 2
        im.paste(tile, (round(x), round(y)), tile)
    return im


def planned(planner, rng, size):
    """A scene in the shape of the wanted picture size."""
    w, h = size[0] / max(size), size[1] / max(size)
    while True:
        scene = planner.scene(rng)
        scene.w, scene.h = w, h
        if P.place_things(rng, scene):
            return scene


def make_scenes(name, styles, args, material, rng, items):
    """Pictures of one set, each with a caption and one question of the other kinds."""
    sprites, bank, photos, held = material
    planner = P.ScenePlanner(sprites, styles, held, None, augment=False)
    asker = T.Asker(planner, [])
    kinds = [T.YESNO, T.HOWMANY, T.BACK] + [T.LEFTRIGHT] * 3
    for i in range(args.count):
        size = rng.choice(SIZES)
        scene = planned(planner, rng, size)
        ext, options = rng.choice(FORMATS)
        file = f"{name.replace(' ', '-')}-{i:04d}.{ext}"
        draw(scene, bank, len(sprites), max(size), rng, photos).save(os.path.join(args.out, file), **options)
        shown = [[n, c, len(ts)] for n, c, ts in scene.kinds()]
        items.append({"set": name, "kind": "caption", "file": file, "question": "Describe this image.",
                      "answer": T.caption(scene), "things": shown})
        for kind, question, answer in asker.scene_turns(rng, scene, kinds):
            question = question.replace("{p}", "picture")
            if kind == T.BACK:
                if scene.back not in N.COLORS:
                    continue
                question = "What color is the background?"
            if kind == T.LEFTRIGHT and answer.startswith("There"):
                continue
            items.append({"set": name, "kind": T.TYPES[kind], "file": file, "question": question, "answer": answer})


def make_photos(args, material, table, held, rng, items):
    _, _, photos, _ = material
    for k in rng.sample(held, min(args.count * 2, len(held))):
        file = f"photo-{k:05d}.png"
        Image.fromarray(photos[k]).save(os.path.join(args.out, file))
        items.append({"set": "held-out photos", "kind": "photo noun", "file": file, "question": "Describe this image.",
                      "answer": T.photo_caption(table[k][2]), "label": table[k][2]})


class LazyPhotos:
    """Decodes a photo when it is asked for."""

    def __init__(self, data, table):
        with open(os.path.join(data, "photos96.bin"), "rb") as f:
            self.raw = f.read()
        self.table = table

    def __getitem__(self, k):
        offset, length, _ = self.table[k]
        return S.decode(self.raw[offset:offset + length])


def make(args):
    os.makedirs(args.out, exist_ok=True)
    rng, items = random.Random(args.seed), []
    sprites, styles = P.load_sprites(args.data)
    bank = S.load_bank(args.data, sprites, styles)
    new = [s for s in args.new_styles.split(",") if s] or [s for s in styles if s == P.HELD_OUT_STYLE]
    photos, held = None, [0]
    have_photos = os.path.exists(os.path.join(args.data, "photos96.tsv"))
    if have_photos:
        table, flags = P.load_photos(args.data)
        photos, held = LazyPhotos(args.data, table), [i for i, h in enumerate(flags) if h]
    material = (sprites, bank, photos, held)
    seen = [s for s in styles if s not in new and s != P.HELD_OUT_STYLE]
    if seen:
        make_scenes("seen styles", seen, args, material, rng, items)
    if new:
        make_scenes("new style", new, args, material, rng, items)
    if have_photos:
        make_photos(args, material, table, held, rng, items)
    with open(os.path.join(args.out, "questions.json"), "w", encoding="utf-8") as f:
        json.dump(items, f, indent=0)
    print(len(items), "questions about", len({i["file"] for i in items}), "pictures in", args.out)


def ask(program, folder, question, files, extra):
    """{file: text} from one run of the program."""
    with tempfile.TemporaryFile("w+") as err:
        command = [program, "--json", "--temperature", "0", "-p", question, *extra, *files]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=err, text=True, check=False)
        if done.returncode:
            err.seek(0)
            print(f"exit status {done.returncode} for {question!r}: {err.read()[-300:]}")
    answers = {}
    for line in done.stdout.splitlines():
        reply = json.loads(line)
        answers[os.path.basename(reply["source"])] = reply.get("text", "").strip()
    return answers


def named(things, text):
    """How many kinds of the scene the text names, in the singular or the plural."""
    said = f" {re.sub(r'[.,]', ' ', text)} "
    return sum(any(f" {w} " in said for w in (N.bare(n, c), N.many(n, c))) for n, c, _ in things)


def right(item, text):
    """Is the answer right? Yes/no and left/right count by their first word, the rest whole."""
    want = item["answer"]
    if want.startswith(("Yes", "No,")):
        return text.split()[:1] == want.split()[:1]
    if item["kind"] == "photo noun":
        return f" {N.bare(item['label'])} " in f" {re.sub('[.,]', ' ', text)} "
    return text == want


def shuffle(items):
    """The control: every question is asked about the next picture of its kind instead."""
    kinds = defaultdict(list)
    for item in items:
        kinds[item["set"], item["kind"]].append(item)
    for group in kinds.values():
        files = [i["file"] for i in group]
        for item, file in zip(group, files[1:] + files[:1]):
            item["file"] = file


def score(args):
    with open(os.path.join(args.eval, "questions.json"), encoding="utf-8") as f:
        items = json.load(f)
    if args.shuffle:
        shuffle(items)
    groups = defaultdict(list)
    for item in items:
        groups[item["question"]].append(item)
    program, tally, wrong = os.path.abspath(args.program), defaultdict(lambda: [0, 0]), []
    runs = []
    for question, group in groups.items():
        files = sorted({i["file"] for i in group})
        runs += [(question, files[i:i + FILES_A_RUN]) for i in range(0, len(files), FILES_A_RUN)]
    said = defaultdict(dict)
    with ThreadPoolExecutor(args.jobs) as pool:
        done = pool.map(lambda run: ask(program, args.eval, *run, args.extra.split()), runs)
        for n, ((question, _), answers) in enumerate(zip(runs, done)):
            said[question].update(answers)
            if args.verbose and n % 20 == 0:
                print(f"{n} of {len(runs)} runs", flush=True)
    for question, group in groups.items():
        answers = said[question]
        for item in group:
            text = answers.get(item["file"], "")
            ok = right(item, text)
            rows = [(item["set"], "caption exact" if item["kind"] == "caption" else item["kind"], ok, 1)]
            if item["kind"] == "left/right":
                form = "yes or no" if item["answer"].startswith(("Yes", "No,")) else "which side"
                rows.append((item["set"], f"left/right, {form}", ok, 1))
            if item["kind"] == "caption":
                rows.append((item["set"], "object recall", named(item["things"], text), len(item["things"])))
            for name, kind, hit, total in rows:
                tally[name, kind][0] += hit
                tally[name, kind][1] += total
            if not ok:
                wrong.append({**item, "said": text})
    lines = [f"| {'set':16} | {'what':21} | {'right':>7} | {'asked':>5} |", "| --- | --- | --- | --- |"]
    for (name, kind), (hit, total) in sorted(tally.items()):
        lines.append(f"| {name:16} | {kind:21} | {100 * hit / total:6.1f}% | {total:5d} |")
    print("\n".join(lines))
    if args.report:
        with open(args.report, "w", encoding="utf-8") as f:
            json.dump({"table": lines, "wrong": wrong}, f, indent=1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="what", required=True)
    m = sub.add_parser("make")
    m.add_argument("--data", required=True)
    m.add_argument("--out", required=True)
    m.add_argument("--count", type=int, default=200)
    m.add_argument("--seed", type=int, default=1)
    m.add_argument("--new-styles", default="", help="styles in DIR that training never saw, with commas")
    s = sub.add_parser("score")
    s.add_argument("--eval", required=True)
    s.add_argument("--program", default="build/bin/describe")
    s.add_argument("--extra", default="", help="more arguments for the program")
    s.add_argument("--jobs", type=int, default=1, help="runs of the program at a time")
    s.add_argument("--report", help="write the table and every wrong answer here")
    s.add_argument("--shuffle", action="store_true", help="the control: ask about the wrong picture")
    s.add_argument("--verbose", action="store_true")
    args = ap.parse_args()
    make(args) if args.what == "make" else score(args)


if __name__ == "__main__":
    main()
