"""The raw material as arrays: sprites from the atlases, drawn shapes, decoded photos."""

import colorsys
import io
import math
import os

import numpy as np
from PIL import Image, ImageDraw

import plan as P
from names import SHAPES


def draw_shape(name, size=P.SPRITE, over=4):
    """A white shape with alpha, uint8 [size, size, 4]."""
    n = size * over
    im = Image.new("L", (n, n), 0)
    d = ImageDraw.Draw(im)
    c, r = n / 2, n * .47

    def ring(k, start=-90.0, radius=r):
        return [(c + radius * math.cos(math.radians(start + 360 * i / k)),
                 c + radius * math.sin(math.radians(start + 360 * i / k))) for i in range(k)]
    if name == "circle":
        d.ellipse((c - r, c - r, c + r, c + r), fill=255)
    elif name == "ring":
        d.ellipse((c - r, c - r, c + r, c + r), fill=255)
        d.ellipse((c - .55 * r, c - .55 * r, c + .55 * r, c + .55 * r), fill=0)
    elif name == "oval":
        d.ellipse((c - r, c - .6 * r, c + r, c + .6 * r), fill=255)
    elif name == "square":
        d.rectangle((c - .85 * r, c - .85 * r, c + .85 * r, c + .85 * r), fill=255)
    elif name == "rectangle":
        d.rectangle((c - r, c - .5 * r, c + r, c + .5 * r), fill=255)
    elif name == "triangle":
        d.polygon([(c, c - .9 * r), (c - r, c + .8 * r), (c + r, c + .8 * r)], fill=255)
    elif name == "diamond":
        d.polygon([(c, c - r), (c + .75 * r, c), (c, c + r), (c - .75 * r, c)], fill=255)
    elif name == "hexagon":
        d.polygon(ring(6, 0.0), fill=255)
    elif name == "cross":
        d.rectangle((c - .33 * r, c - r, c + .33 * r, c + r), fill=255)
        d.rectangle((c - r, c - .33 * r, c + r, c + .33 * r), fill=255)
    elif name == "heart":
        t = np.linspace(0, 2 * np.pi, 200)
        x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        d.polygon([(c + r * a / 17, c - r * (b + 2) / 17) for a, b in zip(x, y)], fill=255)
    alpha = np.asarray(im.resize((size, size), Image.LANCZOS))
    return np.concatenate([np.full((size, size, 3), 255, np.uint8), alpha[..., None]], 2)


def load_bank(data, sprites, styles):
    """Every sprite, then every shape: uint8 [n, 96, 96, 4]."""
    atlas = {s: np.asarray(Image.open(os.path.join(data, f"atlas_{s}.webp")).convert("RGBA")) for s in styles}
    cells, n = [], P.SPRITE
    for s in sprites:
        y, x = divmod(s.cell, P.ATLAS_COLUMNS)
        cells.append(atlas[s.style][y * n:y * n + n, x * n:x * n + n])
    return np.stack(cells + [draw_shape(s) for s in SHAPES])


def decode_photos(data, photos, pool):
    """Every photo: uint8 [n, 96, 96, 3]."""
    with open(os.path.join(data, "photos96.bin"), "rb") as f:
        raw = f.read()
    blobs = [raw[o:o + n] for o, n, _ in photos]
    return np.stack(pool.map(decode, blobs, chunksize=256))


def decode(blob):
    """A photo's bytes as uint8 [96, 96, 3]."""
    return np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))


def main_color(rgba):
    """The colour name that fills most of a sprite, or None where none clearly does."""
    px = rgba.reshape(-1, 4)[::7]
    px = px[px[:, 3] > 200][:, :3] / 255.0
    if len(px) < 100:
        return None
    votes = {}
    for r, g, b in px:
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        h *= 360
        name = None
        if v < .22:
            name = "black"
        elif s < .12:
            name = "white" if v > .88 else "gray" if v < .8 else None
        elif h < 12 or h > 345:
            name = "red" if s > .6 else None
        elif h < 42:
            name = "brown" if v < .62 else "orange" if s > .7 and h > 18 else None
        elif h < 64:
            name = "yellow" if v > .8 and s > .4 else None
        elif 80 < h < 160:
            name = "green"
        elif 190 < h < 250:
            name = "blue"
        elif 258 < h < 295:
            name = "purple"
        elif 305 < h <= 345:
            name = "pink" if v > .75 else None
        votes[name] = votes.get(name, 0) + 1
    best = max(votes, key=votes.get)
    return best if best and votes[best] > .62 * len(px) else None
