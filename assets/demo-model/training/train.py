"""Trains the demo model on one GPU, by the clock.

    python3 train.py --data DIR --tokenizer ../tokenizer.model --out OUT --seconds 940

Writes OUT/weights.npz (fp16, exponential average, checkpoint names), OUT/train.log and OUT/done.
"""

import argparse
import copy
import json
import math
import multiprocessing as mp
import os
import queue
import threading
import time
import traceback

import numpy as np
import torch
import torch.nn.functional as F

import batches as B
import export as E
import model as M
import plan as P
import render as R
import sprites as S
import text as T
from names import SHAPES

AUX_PATCH, AUX_IMAGE = .5, .1
SIDE_LAYER = 5               # of the decoder: after it the true side shall be known
MEASURED = [T.CAPTION, T.YESNO, T.HOWMANY, T.BACK, T.LEFTRIGHT, T.UPDOWN, T.COLOR]


def produce(args, kwargs, seeds, size, out):
    """Worker process: batches for ever."""
    torch.set_num_threads(1)
    B.start_worker(args, kwargs)
    for seed in seeds:
        out.put(B.make((seed, size)))


class Feed:
    """Worker processes, then a thread that moves their batches to the GPU and draws them ahead of use."""

    def __init__(self, args, kwargs, size, workers, seed, device):
        self.raw, self.ready, self.device, self.workers = mp.Queue(2 * workers), queue.Queue(3), device, []
        for w in range(workers):
            seeds = range(seed + w, 10 ** 9, workers)
            self.workers.append(mp.Process(target=produce, args=(args, kwargs, seeds, size, self.raw), daemon=True))
            self.workers[-1].start()

    def start(self, renderer, overlap):
        """Draws on a CUDA stream of its own where `overlap`, else when a batch is asked for."""
        self.renderer = None if overlap else renderer
        threading.Thread(target=self._move if overlap else self._load, args=(renderer,), daemon=True).start()

    def _load(self, _):
        while True:
            self.ready.put(to_device(self.raw.get(), self.device))

    def _move(self, renderer):
        try:
            torch.cuda.synchronize()
            self._draw(renderer)
        except Exception:                        # a dead thread would leave training waiting for ever
            traceback.print_exc()
            os._exit(1)

    def _draw(self, renderer):
        user, side = torch.cuda.default_stream(), torch.cuda.Stream()
        with torch.cuda.stream(side):
            while True:
                b = to_device(self.raw.get(), self.device)
                pixels, target = renderer(b)
                side.synchronize()
                for t in (pixels, target, *b.values()):
                    t.record_stream(user)        # its memory is not reused before training has read it
                self.ready.put((b, pixels, target))

    def next(self):
        """(batch, pixels, class of each patch)."""
        got = self.ready.get()
        return (got, *self.renderer(got)) if self.renderer else got

    def stop(self):
        for w in self.workers:
            w.kill()


def to_device(batch, device):
    out = {}
    for k, v in batch.items():
        t = torch.from_numpy(v)
        out[k] = (t.pin_memory() if device != "cpu" else t).to(device, non_blocking=True)
    return out


def aux_loss(heads, feats, target, n_classes):
    """Patches say what covers them; the whole picture says what is anywhere in it."""
    h = F.layer_norm(feats.float(), feats.shape[-1:]).to(feats.dtype)
    logits = F.linear(h, heads["patch.weight"].to(h.dtype), heads["patch.bias"].to(h.dtype)).float()
    weight = torch.ones(n_classes, device=feats.device)
    weight[0] = .15
    patch = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weight)
    share = F.one_hot(target.flatten(1), n_classes).sum(1).float() / target[0].numel()
    share[:, 0] = 0
    hot = (share > 0).float()
    total = share.sum(1, keepdim=True).clamp(min=1e-6)
    mixed = (share / total * hot.sum(1, keepdim=True)).clamp(max=1)     # cut-together photos: by area
    pooled = F.linear(h.mean(1), heads["image.weight"].to(h.dtype), heads["image.bias"].to(h.dtype)).float()
    image = F.binary_cross_entropy_with_logits(pooled, torch.where(mixed > .5, hot, mixed), reduction="none")
    return patch, image.sum(1).mean()


def side_loss(heads, state, sides):
    """(loss, share right) of reading the true side off the decoder's state where an answer begins."""
    h = F.layer_norm(state.float(), state.shape[-1:])
    logits = F.linear(h, heads["side.weight"], heads["side.bias"]).flatten(0, 1)
    sides = sides.flatten().long()
    asked = (sides >= 0).sum().clamp(min=1)
    loss = F.cross_entropy(logits, sides, ignore_index=-1, reduction="sum") / asked
    return loss, ((logits.argmax(1) == sides) & (sides >= 0)).sum() / asked


def schedule(x, hold, warm=.03):
    """Learning-rate factor at the share x of the time: up, level until `hold`, down."""
    if x < warm:
        return x / warm
    start = max(hold, warm)
    return .5 * (1 + math.cos(math.pi * max(0, x - start) / (1 - start))) * .995 + .005


@torch.no_grad()
def exact(net, p, renderer, batch, amount, device, n_prefix):
    """{type: (right, asked)}: answers whose every token is the most likely one, which is what greedy
    decoding writes; and of the questions that want Yes or No about a side, only that word."""
    b = to_device(batch, device)
    pixels, _ = renderer(b, augment=False)
    _, hit = net.read(p, b, net.project(p, net.see(p, pixels)), amount, n_prefix)
    return count_exact(b, hit)


def count_exact(b, hit):
    """{type: (right, asked)} from the hits of the text positions."""
    seg, labels = b["seg"][:, -hit.shape[1]:], b["labels"][:, -hit.shape[1]:]
    hit = hit | (labels == T.IGNORE)
    out = {}
    for s in range(1, 16):
        kind = b["kinds"][:, s].tolist()
        right = (hit | (seg != s)).all(1).tolist()
        for k, ok in zip(kind, right):
            if k >= 0:
                r, n = out.get(k, (0, 0))
                out[k] = (r + ok, n + 1)
    return out | count_verdicts(b, hit, labels)


def count_verdicts(b, hit, labels):
    """{which: (right, asked)} of the words Yes and No about sides."""
    sides = b["sides"][:, -hit.shape[1]:]
    verdict = torch.zeros_like(hit)
    for token in VERDICTS:
        verdict |= labels == token
    out = {}
    for which, low in (("left/right: yes or no", 0), ("above/below: yes or no", 2)):
        here = verdict & (sides >= low) & (sides < low + 2)
        out[which] = (int((hit & here).sum()), int(here.sum()))
    return out


def merge(results):
    total = {}
    for r in results:
        for k, (a, n) in r.items():
            x, y = total.get(k, (0, 0))
            total[k] = (x + a, y + n)
    return {k if isinstance(k, str) else T.TYPES[k]: round(100 * a / n, 1) for k, (a, n) in total.items() if n}


def save(path, tensors):
    np.savez(path, **{k: t.cpu().numpy() for k, t in tensors.items()})


class Log:
    def __init__(self, path):
        self.f, self.t0 = open(path, "w", encoding="utf-8"), time.time()

    def __call__(self, *words):
        line = f"[{time.time() - self.t0:7.1f}s] " + " ".join(map(str, words))
        print(line, flush=True)
        self.f.write(line + "\n")
        self.f.flush()


def build_renderer(maker, data, device, seed, pool):
    bank = S.load_bank(data, maker.sprites, maker.styles)
    photos = S.decode_photos(data, maker.photos, pool)
    loose = np.array([not s.group.startswith(R.ORGANIC) for s in maker.sprites] + [False] * len(SHAPES), np.int64)
    return R.Renderer(bank, photos, loose, M.SIZE, device, M.PATCH, seed)


def held_out_sets(make_maker, count, size):
    """{name: [batches]} that training never sees."""
    seen = [s for s in ALL_STYLES if s != P.HELD_OUT_STYLE]
    scenes = make_maker(seen, held_out_photos=True, augment=False)
    other = make_maker([P.HELD_OUT_STYLE], held_out_photos=True, augment=False)
    sets = {"seen styles": [scenes.batch(10 ** 9 + i, size, 0.0, MEASURED, 0) for i in range(count)],
            "sides": [scenes.batch(4 * 10 ** 9 + i, size, 0.0, [T.LEFTRIGHT] * 3 + [T.UPDOWN], 0)
                      for i in range(count)],
            "held-out style": [other.batch(2 * 10 ** 9 + i, size, 0.0, MEASURED, 0) for i in range(count)],
            "held-out photos": [scenes.batch(3 * 10 ** 9 + i, size, 1.0, [T.PHOTO], 0) for i in range(count)]}
    return sets


ALL_STYLES, VERDICTS = [], []    # filled by main


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--seconds", type=float, default=940)
    ap.add_argument("--batch", type=int, default=512)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--decay", type=float, default=.05)
    ap.add_argument("--drop", type=float, default=.1)
    ap.add_argument("--ema", type=float, default=.999)
    ap.add_argument("--quant-from", type=float, default=.78)
    ap.add_argument("--workers", type=int, default=12)
    ap.add_argument("--measure-every", type=float, default=120)
    ap.add_argument("--hold", type=float, default=0, help="share of the time before the learning rate falls")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--init", help="a second stage: go on from these weights")
    ap.add_argument("--decoder-only", action="store_true", help="leave the vision tower and the projector alone")
    ap.add_argument("--sides", type=float, default=1, help="ask this many times more about left and right, for yes or no")
    ap.add_argument("--verdict", type=float, default=1, help="weight of the words Yes and No")
    ap.add_argument("--side-helper", type=float, default=0, help="weight of reading the true side off the decoder")
    ap.add_argument("--photos", type=float, default=B.PHOTO_SHARE, help="share of the pictures")
    ap.add_argument("--eager", action="store_true")
    ap.add_argument("--no-overlap", action="store_true", help="draw on the training stream")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    log = Log(os.path.join(args.out, "train.log"))
    log("arguments", json.dumps({k: v for k, v in vars(args).items() if k not in ("data", "tokenizer", "out")}))

    sprites, styles = P.load_sprites(args.data)
    ALL_STYLES.extend(styles)
    bank = S.load_bank(args.data, sprites, styles)
    colors = {i: c for i in range(len(sprites)) if (c := S.main_color(bank[i]))}
    common = (args.data, args.tokenizer, M.N_IMAGE, M.N_TEXT)

    def make_maker(styles, **kw):
        return B.Maker(*common, styles=styles, sprite_colors=colors, **kw)
    train_styles = [s for s in styles if s != P.HELD_OUT_STYLE]
    asked = {"sides": args.sides, "verdict": args.verdict, "photo_share": args.photos}
    feed = Feed(common, {"styles": train_styles, "sprite_colors": colors, **asked}, args.batch, args.workers,
                args.seed * 1000, args.device)
    maker = make_maker(train_styles)
    VERDICTS.extend(maker.rows.sp.encode(word + ",")[0] for word in ("Yes", "No"))
    with mp.Pool(args.workers) as pool:
        renderer = build_renderer(maker, args.data, args.device, args.seed, pool)
    tests = held_out_sets(make_maker, 2, min(512, args.batch))
    viewer = copy.copy(renderer)                 # measuring draws while the feeding thread does
    viewer.gen = torch.Generator(device=args.device).manual_seed(args.seed)
    feed.start(renderer, args.device != "cpu" and not args.no_overlap)
    log("data ready:", len(sprites), "sprites,", len(maker.photo_ids), "photos to train on,", len(maker.names), "names")
    train(args, log, feed, viewer, tests, len(maker.names) + 1, maker.rows.n_prefix)


def train(args, log, feed, viewer, tests, n_classes, n_prefix):
    dev = args.device
    torch.manual_seed(args.seed)
    p = M.init(args.seed, dev)
    if args.init:
        start = E.read_checkpoint(args.init) if os.path.isdir(args.init) else np.load(args.init)
        for k, v in start.items():
            p[k].data.copy_(torch.from_numpy(v))
    heads = {}
    for h in ("patch", "image"):
        heads[h + ".weight"] = (torch.randn(n_classes, M.WIDTH, device=dev) * .02).requires_grad_(True)
        heads[h + ".bias"] = torch.full((n_classes,), -4.0 if h == "image" else 0.0, device=dev).requires_grad_(True)
    heads["side.weight"] = (torch.randn(len(T.SIDES), M.WIDTH, device=dev) * .02).requires_grad_(True)
    heads["side.bias"] = torch.zeros(len(T.SIDES), device=dev).requires_grad_(True)
    log("parameters:", sum(t.numel() for t in p.values()))
    unused = {M.V + "post_layernorm.weight", M.V + "post_layernorm.bias"}
    every = {k: t for k, t in (p | heads).items() if k not in unused}
    if args.decoder_only:
        every = {k: t for k, t in every.items() if k.startswith((M.L, "side."))}
    if not args.side_helper:
        every = {k: t for k, t in every.items() if not k.startswith("side.")}
    wide = [t for k, t in every.items() if t.ndim > 1 and "embed" not in k]
    rest = [t for k, t in every.items() if not (t.ndim > 1 and "embed" not in k)]
    opt = torch.optim.AdamW([{"params": wide, "weight_decay": args.decay}, {"params": rest, "weight_decay": 0}],
                            lr=args.lr, betas=(.9, .98), **({"fused": True} if dev != "cpu" else {}))
    names = list(p)
    ema = {k: t.detach().clone() for k, t in p.items()}
    net, plain = M.Net(compiled=not args.eager), M.Net(compiled=False)
    aux = aux_loss if args.eager else torch.compile(aux_loss, dynamic=False)
    amount = torch.zeros((), device=dev)

    def report(weights, title):
        for name, sets in tests.items():
            log(f"  {title}, {name}, exact answers %:",
                merge(exact(plain, weights, viewer, b, amount, dev, n_prefix) for b in sets))

    step, begin, last, shown, seen, waited = 0, None, 0.0, 0.0, 0, 0.0
    sums = torch.zeros(5, device=dev)
    while True:
        asked = time.time()
        b, pixels, target = feed.next()
        waited += time.time() - asked
        x = 0.0 if begin is None else (time.time() - begin) / args.seconds
        if x >= 1:
            break
        for g in opt.param_groups:
            g["lr"] = args.lr * schedule(x if begin else 1e-3, args.hold)
        amount.fill_(float(x >= args.quant_from))
        with torch.set_grad_enabled(not args.decoder_only):
            feats = net.see(p, pixels, 0.0 if args.decoder_only else args.drop)
            seen_by_text = net.project(p, feats)
        patch, image = (0 * amount, 0 * amount) if args.decoder_only else aux(heads, feats, target, n_classes)
        taps = []
        text, _ = net.read(p, b, seen_by_text, amount, n_prefix, taps)
        side, known = 0 * amount, 0 * amount
        if args.side_helper:
            side, known = side_loss(heads, taps[SIDE_LAYER - 1], b["sides"][:, -taps[0].shape[1]:])
        opt.zero_grad(set_to_none=True)
        (text + AUX_PATCH * patch + AUX_IMAGE * image + args.side_helper * side).backward()
        torch.nn.utils.clip_grad_norm_(wide + rest, 1.0)
        opt.step()
        step, seen = step + 1, seen + len(pixels)
        with torch.no_grad():
            decay = min(args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_([ema[k] for k in names], [p[k].detach() for k in names], 1 - decay)
            sums += torch.stack([t.detach() for t in (text, patch, image, side, known)])
        if begin is None:
            if step == 10:                       # the clock starts when everything is compiled
                if dev != "cpu":
                    torch.cuda.synchronize()
                begin, last, shown, seen, count = time.time(), time.time(), time.time(), 0, 0
                waited = 0.0
                sums.zero_()
                log("first steps done")
            continue
        count += 1
        now = time.time()
        if now - shown > 15:
            m = (sums / count).tolist()
            log(f"step {step} {100 * x:.1f}% lr {opt.param_groups[0]['lr']:.2e} text {m[0]:.4f} patch {m[1]:.4f} "
                f"image {m[2]:.3f} side {m[3]:.4f} {100 * m[4]:.1f}% samples {seen} {seen / (now - begin):.0f}/s "
                f"waited {100 * waited / (now - shown):.0f}%")
            sums.zero_()
            waited = 0.0
            shown, count = now, 0
        if now - last > args.measure_every:
            report(ema, "average weights")
            save(os.path.join(args.out, "weights_so_far.npz"), {k: t.half() for k, t in ema.items()})
            last = now
    feed.stop()
    amount.fill_(0.0)
    half = {k: t.half() for k, t in ema.items()}
    save(os.path.join(args.out, "weights.npz"), half)
    log("done:", step, "steps,", seen, "samples, weights saved")
    back = {k: t.float() for k, t in half.items()}
    report(back, "final fp16")
    amount.fill_(1.0)
    report(back, "final int4")
    with open(os.path.join(args.out, "done"), "w") as f:
        f.write("ok\n")
    os._exit(0)                                  # a feeding thread still waits for the workers


if __name__ == "__main__":
    main()
