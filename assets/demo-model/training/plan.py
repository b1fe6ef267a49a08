"""Plans pictures before anything is drawn: which things, where, how large, on what background.

Plain Python and numpy, so that the worker processes of the training and `scene_eval.py` share it.
All lengths are in units of the padded square: the picture itself is a centred rectangle of
width `w` and height `h`, one of which is 1.
"""

import colorsys
import csv
import math
import os
import random
from dataclasses import dataclass, field

import numpy as np

from names import COLORS, PLACES, SHAPES

SPRITE = 96              # pixels of a sprite's side in the atlases
ATLAS_COLUMNS = 40
MAX_OBJECTS = 5
HELD_OUT_STYLE = "blob"  # never trained on
HELD_OUT_PHOTOS = 10     # every tenth photo of each label is never trained on
KIND_SHARE = {"all different": 0.40, "objects": [0.12, 0.17, 0.23, 0.24, 0.24]}

# colour name -> [(hue range in degrees, saturation range, value range)], well apart from each other
COLOR_RANGES = {
    "white": [((0, 360), (0, .03), (.96, 1))],
    "black": [((0, 360), (0, .25), (0, .09))],
    "gray": [((0, 360), (0, .05), (.40, .70))],
    "red": [((-8, 6), (.75, 1), (.65, 1))],
    "orange": [((25, 36), (.80, 1), (.92, 1))],
    "yellow": [((50, 60), (.55, 1), (.92, 1))],
    "green": [((95, 150), (.45, 1), (.40, .90)), ((85, 145), (.30, .55), (.80, 1))],
    "blue": [((206, 240), (.50, 1), (.45, 1)), ((196, 215), (.30, .60), (.88, 1))],
    "purple": [((266, 288), (.45, 1), (.42, .90))],
    "pink": [((318, 348), (.22, .60), (.94, 1))],
    "brown": [((16, 30), (.50, .85), (.28, .50))],
}
MEAN_COLOR = (122, 116, 104)


def shade(rng, name):
    """A random RGB (0..1) that people would call `name`."""
    hue, sat, val = rng.choice(COLOR_RANGES[name])
    return colorsys.hsv_to_rgb((rng.uniform(*hue) % 360) / 360, rng.uniform(*sat), rng.uniform(*val))


@dataclass
class Sprite:
    name: str
    style: str
    group: str
    cell: int            # place in its atlas


@dataclass
class Thing:
    """One object of a scene: a sprite, or a drawn shape where `color` is set."""
    name: str
    color: str | None
    sprite: int          # index into the sprite table, or into SHAPES for a shape
    x: float = 0.0
    y: float = 0.0
    size: float = 0.0    # side of the square that the sprite is drawn into
    angle: float = 0.0
    flip: bool = False
    stretch: float = 1.0
    rgb: tuple = (1.0, 1.0, 1.0)
    keep_color: bool = False


@dataclass
class Scene:
    things: list
    w: float
    h: float
    back: str                                    # a colour, a place or "photo"
    layout: int = 0                              # see BACKGROUNDS
    colors: list = field(default_factory=list)   # five RGB triples
    shape: list = field(default_factory=list)    # eight numbers
    photo: int = 0

    def kinds(self):
        """[(name, color, [things])] from left to right by the leftmost one of each kind."""
        groups = {}
        for t in sorted(self.things, key=lambda t: t.x):
            groups.setdefault((t.name, t.color), []).append(t)
        return [(name, color, ts) for (name, color), ts in groups.items()]


BACKGROUNDS = ["plain", "gradient", "stripes", "checks", "dots", "bands", "photo"]


def load_sprites(data):
    """The sprite table and the styles in their order."""
    sprites, counts = [], {}
    with open(os.path.join(data, "sprites.tsv"), encoding="utf-8") as f:
        for name, _, style, group in csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE):
            sprites.append(Sprite(name, style, group, counts.get(style, 0)))
            counts[style] = counts.get(style, 0) + 1
    return sprites, list(counts)


def load_photos(data):
    """[(offset, length, label)] and the held-out flag of each photo."""
    photos, held, seen = [], [], {}
    with open(os.path.join(data, "photos96.tsv"), encoding="utf-8") as f:
        for offset, length, label, _ in csv.reader(f, delimiter="\t"):
            photos.append((int(offset), int(length), label))
    order = np.random.default_rng(7).permutation(len(photos))
    held = [False] * len(photos)
    for i in order:
        label = photos[i][2]
        seen[label] = seen.get(label, 0) + 1
        held[i] = seen[label] % HELD_OUT_PHOTOS == 0
    return photos, held


def place_colors(rng, place):
    """Five RGB triples (top, horizon, middle band, ground, ground's foot) and where the bands lie."""
    def near(color, spread=.05):
        return tuple(min(1, max(0, c + rng.uniform(-spread, spread))) for c in color)
    sky, haze = near((.40, .68, .95), .12), near((.75, .88, .98), .06)
    h1 = rng.uniform(.35, .6)
    wave, stars, dashes, h2 = 0.0, 0.0, 0.0, h1
    if place == "meadow":
        cols, wave = [sky, haze, haze, near((.42, .74, .27), .1), near((.25, .55, .18), .08)], rng.uniform(0, .05)
    elif place == "beach":
        h2 = h1 + rng.uniform(.12, .22)
        cols, wave = [sky, haze, near((.08, .45, .70), .08), near((.95, .86, .62)), near((.90, .78, .50))], .01
    elif place == "desert":
        cols = [near((.98, .80, .50), .08), near((1, .92, .72)), haze, near((.90, .68, .35), .07), near((.80, .55, .24))]
        wave = rng.uniform(.03, .09)
    elif place == "snow":
        cols = [near((.70, .80, .92), .08), near((.86, .91, .97)), haze, near((.97, .98, 1), .02), near((.90, .94, .98), .03)]
        wave = rng.uniform(.02, .07)
    elif place == "night":
        h1 = h2 = rng.uniform(.75, .95)
        cols = [near((.03, .04, .16), .03), near((.10, .10, .32)), haze, near((.04, .07, .08), .03), near((.02, .03, .04), .02)]
        stars, wave = rng.uniform(.004, .012), rng.uniform(0, .05)
    elif place == "road":
        cols = [sky, haze, haze, near((.36, .36, .38), .06), near((.28, .28, .30))]
        dashes = rng.uniform(.02, .035)
    else:
        h1 = h2 = rng.uniform(.62, .80)
        wall = near(rng.choice([(.93, .87, .75), (.80, .88, .84), (.88, .80, .84), (.82, .85, .92), (.95, .92, .86)]))
        cols = [wall, wall, wall, near((.58, .38, .22), .07), near((.48, .30, .16))]
    return cols, [h1, max(h1, h2), wave, rng.uniform(1, 3), rng.uniform(0, 6.28), stars, dashes, 0.0]


def plan_background(rng, scene, photos, plain_only=False):
    """Fills in what is behind the things."""
    pick = rng.random()
    if plain_only or pick < .72:
        scene.back = rng.choice(COLORS)
        layout = "plain" if plain_only or rng.random() < .5 else rng.choice(BACKGROUNDS[1:5])
        scene.colors = [shade(rng, scene.back) for _ in range(5)]
        scene.shape = [rng.uniform(0, 6.28), rng.uniform(3, 14), rng.uniform(.25, .75), 0, 0, 0, 0, 0]
        if layout in ("stripes", "checks", "dots"):   # two close shades of one colour
            keep = rng.uniform(.2, .8)
            a, b = scene.colors[:2]
            scene.colors[1] = tuple(keep * p + (1 - keep) * q for p, q in zip(a, b))
    elif pick < .90:
        scene.back, layout = rng.choice(PLACES), "bands"
        scene.colors, scene.shape = place_colors(rng, scene.back)
    else:
        scene.back, layout = "photo", "photo"
        scene.photo = rng.choice(photos)
        scene.colors, scene.shape = [(0, 0, 0)] * 5, [rng.random() for _ in range(8)]
    scene.layout = BACKGROUNDS.index(layout)


def half_extent(t):
    """Half of the side of the upright square around a turned sprite."""
    a = abs(math.radians(t.angle))
    return .5 * t.size * (abs(math.cos(a)) + abs(math.sin(a))) * max(t.stretch, 1 / t.stretch)


def place_things(rng, scene):
    """Puts the things where they are whole, hardly overlap and have a clear left-to-right order."""
    n, unit = len(scene.things), min(scene.w, scene.h)
    least = max(.19 * unit, .15)
    most = max([0, .85, .55, .46, .42, .38][n] * unit, 1.2 * least)
    left, low = (1 - scene.w) / 2, (1 - scene.h) / 2
    for attempt in range(12):
        shrink = 1 - .05 * attempt
        done = []
        alike = rng.random() < .4 and rng.uniform(least, most)
        for t in scene.things:
            for _ in range(25):
                t.size = shrink * (alike or rng.uniform(least, most))
                e = half_extent(t)
                t.x = rng.uniform(left + e, left + scene.w - e) if scene.w > 2 * e else .5
                t.y = rng.uniform(low + e, low + scene.h - e) if scene.h > 2 * e else .5
                if all(max(abs(t.x - o.x), abs(t.y - o.y)) > .46 * (t.size + o.size) for o in done):
                    break
            else:
                break
            done.append(t)
        if len(done) == n:
            first = [ts[0].x for _, _, ts in scene.kinds()]
            if all(b - a > .045 for a, b in zip(first, first[1:])):
                return True
    return False


def partition(rng, n):
    """How many of each kind, n in all: often all different, else any split."""
    if rng.random() < KIND_SHARE["all different"]:
        return [1] * n
    counts, left = [], n
    while left:
        counts.append(rng.randint(1, left))
        left -= counts[-1]
    rng.shuffle(counts)
    return counts


class ScenePlanner:
    """Draws random scenes from the sprites of some styles."""

    def __init__(self, sprites, styles, photos, sprite_colors=None, augment=True):
        self.sprites, self.photos, self.augment = sprites, photos, augment
        self.sprite_colors = sprite_colors or {}
        self.by_name, self.by_style = {}, {}
        for i, s in enumerate(sprites):
            if s.style in styles:
                self.by_name.setdefault(s.name, []).append(i)
                self.by_style.setdefault(s.style, {}).setdefault(s.name, []).append(i)
        self.names = sorted(self.by_name)
        self.groups = {}
        for n in self.names:
            self.groups.setdefault(sprites[self.by_name[n][0]].group, []).append(n)

    def pick_kinds(self, rng, pool, k, shapes):
        """k different (name, color) pairs; some scenes take them from one group (harder)."""
        if shapes:
            every = [(s, c) for s in rng.sample(SHAPES, min(4, len(SHAPES))) for c in rng.sample(COLORS, 3)]
            return rng.sample(every, k)
        if rng.random() < .2:
            near = [n for n in rng.choice(list(self.groups.values())) if n in pool]
            if len(near) >= k:
                return [(n, None) for n in rng.sample(near, k)]
        names = list(pool)
        return [(n, None) for n in rng.sample(names, k)]

    def scene(self, rng):
        """One scene, or a new try where the things did not fit."""
        while True:
            s = self._try(rng)
            if s is not None:
                return s

    def _try(self, rng):
        scene = Scene([], 1.0, 1.0, "white")
        if rng.random() < .5:
            side = rng.choice([.75, .667, .5625, rng.uniform(.55, 1)])
            scene.w, scene.h = (1.0, side) if rng.random() < .65 else (side, 1.0)
        counts = partition(rng, rng.choices(range(1, MAX_OBJECTS + 1), KIND_SHARE["objects"])[0])
        shapes = rng.random() < .16
        # one art style in a scene, as a rule; sometimes a mixture
        style = rng.choice(list(self.by_style)) if rng.random() < .75 else None
        pool = self.by_style[style] if style else self.by_name
        plan_background(rng, scene, self.photos, plain_only=not self.augment and rng.random() < .5)
        mixed = not shapes and rng.random() < .05
        for j, (name, color) in enumerate(self.pick_kinds(rng, pool, len(counts), shapes)):
            if mixed and j == 0:
                name, color = rng.choice(SHAPES), rng.choice(COLORS)
            if color and (color == scene.back or scene.back in PLACES or scene.back == "photo"):
                plan_background(rng, scene, self.photos, plain_only=True)
                while scene.back in {t.color for t in scene.things} | {color}:
                    plan_background(rng, scene, self.photos, plain_only=True)
            same = rng.choice(pool[name]) if not color else SHAPES.index(name)
            turn = rng.uniform(-12, 12) if color or rng.random() < .8 else rng.uniform(-35, 35)
            flip, keep = rng.random() < .4, rng.random() < .3
            for _ in range(counts[j]):
                t = Thing(name, color, same, keep_color=keep)
                if not color and rng.random() < .25:
                    t.sprite = rng.choice(pool[name])
                t.angle = 0.0 if rng.random() < .4 else turn + rng.uniform(-6, 6)
                t.flip = flip if rng.random() < .8 else not flip
                t.stretch = 1.0 if color or rng.random() < .4 else math.exp(rng.uniform(-.2, .2))
                if not self.augment:
                    t.stretch, t.angle, t.flip = 1.0, t.angle * .5, flip
                t.rgb = shade(rng, color) if color else (1.0, 1.0, 1.0)
                scene.things.append(t)
        return scene if place_things(rng, scene) else None
