"""Second stage, on a CPU: teaches the decoder what the first stage left weak, on frozen features.

    python3 polish.py --data DIR --tokenizer ../tokenizer.model --weights OUT/weights.npz --out OUT2

After the first stage the model says rightly "A is to the left of B" when asked which, but guesses
when it must begin with yes or no. Here the vision tower and the projector stay as they are, their
features are computed once, and the decoder (int4 fake quantisation on, bf16) sees many such
questions on each scene, mixed with everything else so that it forgets nothing.
"""

import argparse
import json
import os
import random
import time
from multiprocessing import Pool

import numpy as np
import torch

import batches as B
import model as M
import plan as P
import sprites as S
import text as T
import train as TR

N_TEXT = 300
RELATION_SHARE = .65         # of the rows about scenes; the others are as in the first stage
FIRST_WEIGHT = 3.0           # of the first token of an answer in those rows
CUT_SHARE = .85              # of their yes/no answers end after that token, for more questions a row
KEYS = ("ids", "labels", "weights", "seg", "pos", "kinds")


def collect(maker, renderer, net, p, count, seed, augment):
    """(features [count, n, d], scenes or photo labels) of new pictures; one in eight is a photo."""
    rng, feats, shown = random.Random(seed), [], []
    while len(shown) < count:
        b = maker.empty(32)
        for i in range(32):
            while True:
                for key, fresh in maker.empty(1).items():
                    b[key][i] = fresh[0]
                if rng.random() < .12:
                    maker.plan_photo(rng, b, i, [T.PHOTO])
                    b["kind"][i] = B.PHOTO
                    shown.append(maker.names[b["label"][i] - 1])
                    break
                maker.plan_scene(rng, b, i, [T.BACK])
                if maker.asker._pair(rng, maker.last_scene, "x") or rng.random() < .2:
                    shown.append(maker.last_scene)
                    break
        with torch.no_grad():
            pixels, _ = renderer(TR.to_device(b, "cpu"), augment=augment)
            feats.append(net.project(p, net.see(p, pixels)))
    return torch.cat(feats), shown


def relation_row(rows, asker, rng, scene):
    """A row of questions about places; most answers are only learned up to their first word."""
    turns = []
    for _ in range(30):
        turns += asker.scene_turns(rng, scene, rng.choices([T.LEFTRIGHT, T.UPDOWN, T.WHICH], [.90, .04, .06]))
        if len(turns) == 15:
            break
    ids, labels, weights, seg, pos, kinds = rows.row(rng, [], 0, False)
    at = base = rows.n_prefix + rows.n_image
    where = int(pos[base - 1]) + 1
    for number, (_, question, answer) in enumerate(turns, 1):
        ask, n_ask = rows.turn(rng, T.vary(rng, question), answer, True)
        cut = answer.startswith(("Yes", "No,")) and rng.random() < CUT_SHARE
        tokens, targets = (ask[:n_ask], ask[n_ask:n_ask + 1]) if cut else (ask, ask[n_ask:])
        if at + len(tokens) > len(ids):
            break
        end, first = at + len(tokens), at + n_ask - 1
        ids[at:end], seg[at:end] = tokens, number
        pos[at:end] = np.arange(where, where + len(tokens))
        labels[first:first + len(targets)] = targets
        weights[first:first + len(targets)] = 1.0
        weights[first] = FIRST_WEIGHT
        at = end
    return ids, labels, weights, seg, pos, kinds


def stack(rows):
    return {k: torch.from_numpy(np.stack(v)) for k, v in zip(KEYS, zip(*rows))}


def batch_of(maker, rng, shown, chosen):
    rows, out = maker.rows, []
    for i in chosen:
        if isinstance(shown[i], str):
            out.append(rows.row(rng, [maker.asker.photo_turn(rng, shown[i]) for _ in range(8)], 0, False))
        elif rng.random() < RELATION_SHARE:
            out.append(relation_row(rows, maker.asker, rng, shown[i]))
        else:
            kinds = [T.CAPTION] + rng.choices(list(T.WEIGHTS), list(T.WEIGHTS.values()), k=12)
            out.append(rows.row(rng, maker.asker.scene_turns(rng, shown[i], kinds), 0, rng.random() < .2))
    return stack(out)


@torch.no_grad()
def check(net, p, maker, feats, shown, amount):
    """Exact answers by type on held-out pictures."""
    rng, results, rows = random.Random(5), [], maker.rows
    for at in range(0, len(shown), 16):
        out = []
        for s in shown[at:at + 16]:
            kinds = [T.CAPTION] + [T.LEFTRIGHT] * 4 + [T.UPDOWN, T.HOWMANY, T.YESNO]
            turns = [(T.PHOTO, "Describe this image.", T.photo_caption(s))] if isinstance(s, str) else \
                maker.asker.scene_turns(rng, s, kinds)
            out.append(rows.row(rng, turns, 0, False))
        b = stack(out)
        _, hit = net.read(p, b, feats[at:at + 16], amount, rows.n_prefix)
        results.append(TR.count_exact(b, hit))
    return TR.merge(results)


def main():
    ap = argparse.ArgumentParser()
    for name in ("data", "tokenizer", "weights", "out"):
        ap.add_argument("--" + name, required=True)
    ap.add_argument("--seconds", type=float, default=1500)
    ap.add_argument("--pictures", type=int, default=1600)
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--lr", type=float, default=3e-4)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=9)
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    log = TR.Log(os.path.join(args.out, "polish.log"))
    torch.manual_seed(args.seed)
    sprites, styles = P.load_sprites(args.data)
    bank = S.load_bank(args.data, sprites, styles)
    colors = {i: c for i in range(len(sprites)) if (c := S.main_color(bank[i]))}
    use = [s for s in styles if s != P.HELD_OUT_STYLE]
    makers = [B.Maker(args.data, args.tokenizer, M.N_IMAGE, N_TEXT, use, held, not held, colors) for held in (False, True)]
    with Pool(2) as pool:
        renderer = TR.build_renderer(makers[0], args.data, "cpu", args.seed, pool)
    torch.set_num_threads(args.threads)
    weights = {k: torch.from_numpy(v.astype(np.float32)) for k, v in np.load(args.weights).items()}
    net = M.Net(compiled=False, dtype=torch.bfloat16)
    tests = collect(makers[1], renderer, net, weights, 160, 10 ** 9, False)
    train = collect(makers[0], renderer, net, weights, args.pictures, args.seed + 2, True)
    log("features of", len(tests[1]), "and", len(train[1]), "pictures")
    fit(args, log, net, weights, makers, *train, tests)


def fit(args, log, net, weights, makers, feats, shown, tests):
    rng, amount = random.Random(args.seed), torch.ones(())
    learn = [k for k in weights if k.startswith(M.L)]
    for k in learn:
        weights[k].requires_grad_(True)
    params = [weights[k] for k in learn]
    opt = torch.optim.AdamW(params, lr=args.lr, betas=(.9, .98), weight_decay=0)
    path, order, step, losses = os.path.join(args.out, "weights.npz"), [], 0, []

    def report():
        log(f"step {step} loss {np.mean(losses or [0]):.4f} exact answers %:",
            check(net, weights, makers[1], *tests, amount))
        TR.save(path, {k: t.detach().half() for k, t in weights.items()})

    report()
    begin = last = time.time()
    while (x := (time.time() - begin) / args.seconds) < 1:
        if len(order) < args.batch:
            order = rng.sample(range(len(shown)), len(shown))
        chosen = [order.pop() for _ in range(args.batch)]
        for g in opt.param_groups:
            g["lr"] = args.lr * TR.schedule(x, .05)
        b = batch_of(makers[0], rng, shown, chosen)
        loss, _ = net.read(weights, b, feats[chosen], amount, makers[0].rows.n_prefix)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        losses.append(loss.item())
        if time.time() - last > 150:
            report()
            last, losses = time.time(), []
    report()


if __name__ == "__main__":
    main()
