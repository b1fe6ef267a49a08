"""Batches made by worker processes: planned pictures as arrays, and their token rows."""

import random

import numpy as np
import sentencepiece as spm

import names as N
import plan as P
import text as T

SCENE, PHOTO, CUTMIX = 0, 1, 2
PHOTO_SHARE = .34        # of the pictures; a quarter of these are cut together and only teach the eyes
CUTMIX_SHARE = .25


class Maker:
    """Everything a worker needs to make batches; picklable by its arguments."""

    def __init__(self, data, tokenizer, n_image, n_text, styles, held_out_photos=False, augment=True,
                 sprite_colors=None, sides=1.0, verdict=1.0, photo_share=PHOTO_SHARE):
        self.sprites, self.styles = P.load_sprites(data)
        self.photos, held = P.load_photos(data)
        self.augment, self.photo_share = augment, photo_share
        use = [i for i, h in enumerate(held) if h == held_out_photos]
        self.photo_ids = np.array(use)
        train = [i for i, h in enumerate(held) if not h]
        self.labels = sorted({p[2] for p in self.photos})
        self.planner = P.ScenePlanner(self.sprites, styles, use if held_out_photos else train, sprite_colors, augment)
        # answers may name any concept, also one that the styles of this maker do not draw
        self.names = sorted({s.name for s in self.sprites} | set(self.labels) | set(N.SHAPES))
        self.class_id = {n: i + 1 for i, n in enumerate(self.names)}
        self.asker = T.Asker(self.planner, self.labels, sides)
        counts = {}
        for i in use:
            counts[self.photos[i][2]] = counts.get(self.photos[i][2], 0) + 1
        w = np.array([counts[self.photos[i][2]] ** (-.35 if augment else 0) for i in use])
        self.photo_p = np.cumsum(w / w.sum())
        self.rows = T.RowBuilder(spm.SentencePieceProcessor(model_file=tokenizer), 2048, 2049, n_image, n_text, verdict)

    def batch(self, seed, size, photo_share=None, kinds=None, chat_share=.2):
        """A dict of arrays. `kinds`: only these types of questions, one a segment (for measuring)."""
        rng, photo_share = random.Random(seed), self.photo_share if photo_share is None else photo_share
        b, rows = self.empty(size), []
        system = 0 if rng.random() < .8 else rng.randrange(3)
        for i in range(size):
            if rng.random() < photo_share:
                turns = self.plan_photo(rng, b, i, kinds)
            else:
                turns = self.plan_scene(rng, b, i, kinds)
            rows.append(self.rows.row(rng, turns, system if not kinds else 0, not kinds and rng.random() < chat_share))
        for key, part in zip(("ids", "labels", "weights", "seg", "pos", "kinds", "sides"), zip(*rows)):
            b[key] = np.stack(part)
        return b

    @staticmethod
    def empty(n):
        """The arrays that say what is drawn, for n pictures."""
        k = P.MAX_OBJECTS
        return {"kind": np.zeros(n, np.int8), "wh": np.ones((n, 2), np.float32),
                "obj": np.full((n, k), -1, np.int32), "cls": np.zeros((n, k), np.int16),
                "geo": np.zeros((n, k, 7), np.float32), "rgb": np.ones((n, k, 3), np.float32),
                "layout": np.zeros(n, np.int8), "colors": np.zeros((n, 5, 3), np.float32),
                "shape": np.ones((n, 8), np.float32), "photo": np.zeros(n, np.int32), "label": np.zeros(n, np.int16)}

    def plan_photo(self, rng, b, i, kinds):
        k = int(self.photo_ids[min(np.searchsorted(self.photo_p, rng.random()), len(self.photo_ids) - 1)])
        label = self.photos[k][2]
        b["photo"][i], b["label"][i] = k, self.class_id[label]
        b["layout"][i] = P.BACKGROUNDS.index("photo")
        mixed = self.augment and rng.random() < CUTMIX_SHARE
        b["kind"][i] = CUTMIX if mixed else PHOTO
        if self.augment and rng.random() < .5:
            b["wh"][i, rng.randrange(2)] = rng.uniform(.55, 1)
        if mixed:
            return []
        if kinds:
            return [(T.PHOTO, "Describe this image.", T.photo_caption(label))]
        return [self.asker.photo_turn(rng, label) for _ in range(4)]

    def plan_scene(self, rng, b, i, kinds):
        s = self.last_scene = self.planner.scene(rng)
        b["wh"][i] = s.w, s.h
        b["layout"][i], b["colors"][i], b["shape"][i], b["photo"][i] = s.layout, s.colors, s.shape, s.photo
        for j, t in enumerate(s.things):
            b["obj"][i, j] = t.sprite + (len(self.sprites) if t.color else 0)
            b["cls"][i, j] = self.class_id[t.name]
            b["geo"][i, j] = (t.x, t.y, t.size, np.radians(t.angle), -1 if t.flip else 1, t.stretch, t.keep_color)
            b["rgb"][i, j] = t.rgb
        return self.asker.scene_turns(rng, s, kinds or self.asker.pick_types(rng))


_maker = None


def start_worker(args, kwargs):
    global _maker
    _maker = Maker(*args, **kwargs)


def make(job):
    """Worker entry: job = (seed, size)."""
    return _maker.batch(*job)
