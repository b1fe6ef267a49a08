#!/usr/bin/env python3
"""Draws N different JPEG pictures of about a photo's detail, to measure with.

    tests/speed/pictures.py FOLDER N [WIDTHxHEIGHT]        640x480 by default; wants Pillow
"""

import os
import random
import sys

try:
    from PIL import Image, ImageDraw
except ImportError:
    sys.exit("pictures.py: Pillow is not installed for this python3 (apt: python3-pil)")


def draw(seed, width, height):
    dice = random.Random(seed)
    coarse = Image.frombytes("RGB", (8, 6), dice.randbytes(8 * 6 * 3))
    picture = coarse.resize((width, height), Image.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y, size = dice.randrange(width), dice.randrange(height), dice.randrange(20, height // 2)
        shape = pen.ellipse if dice.random() < 0.5 else pen.rectangle
        shape((x, y, x + size, y + size * 2 // 3), tuple(dice.randbytes(3)))
    n_grain = width // 2 * (height // 2)
    grain = Image.frombytes("L", (width // 2, height // 2), dice.randbytes(n_grain))
    grain = grain.resize((width, height), Image.BICUBIC).convert("RGB")
    return Image.blend(picture, grain, 0.08)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    folder, n = sys.argv[1], int(sys.argv[2])
    width, height = (int(side) for side in (sys.argv[3] if len(sys.argv) > 3 else "640x480").split("x"))
    os.makedirs(folder, exist_ok=True)
    for i in range(n):
        draw(i, width, height).save(os.path.join(folder, f"{i:05}.jpg"), quality=88)


if __name__ == "__main__":
    main()
