"""Draws the pictures that come with the project: three to look at, and the small ones of the goldens.

    python3 pictures.py --data DIR --show assets/pictures --golden tests/golden/demo

They are composed by hand from sprites of Fluent (MIT) and Noto (Apache-2.0) and from drawn shapes.
"""

import argparse
import os
import random

import plan as P
import scene_eval as E
import sprites as S
from names import SHAPES

# name: (width, height, background, style, [(thing, x, y, size, colour)]) in shares of the longer side
SHOW = {
    "park": (640, 480, "meadow", "fluent3d", [("house", .20, .50, .26, None), ("tree", .44, .46, .24, None),
                                              ("dog", .62, .66, .18, None), ("bicycle", .82, .60, .22, None)]),
    "beach": (640, 480, "beach", "fluent3d", [("crab", .16, .74, .17, None), ("palm tree", .36, .50, .30, None),
                                              ("sailboat", .62, .42, .22, None), ("sun", .86, .24, .18, None)]),
    "breakfast": (600, 600, "yellow", "fluent3d", [("cup of coffee", .24, .32, .30, None),
                                                   ("croissant", .68, .26, .30, None), ("egg", .30, .74, .22, None),
                                                   ("egg", .55, .72, .22, None), ("strawberry", .82, .68, .20, None)]),
}
GOLDEN = {
    "mice": (240, 180, "blue", "noto", [("mouse", .25, .40, .28, None), ("mouse", .55, .62, .28, None),
                                        ("cheese wedge", .80, .36, .26, None)]),
    "guitar": (180, 240, "white", "fluentflat", [("guitar", .50, .50, .50, None)]),
    "shapes": (200, 200, "white", None, [("circle", .25, .30, .28, "red"), ("square", .70, .30, .28, "blue"),
                                         ("triangle", .50, .74, .30, "green")]),
    "fruit": (256, 144, "gray", "fluent3d", [("apple", .18, .50, .24, None), ("banana", .50, .48, .26, None),
                                             ("apple", .80, .50, .24, None)]),
    "night": (150, 200, "night", "fluent3d", [("rocket", .38, .36, .30, None), ("robot", .62, .70, .26, None)]),
    "five": (300, 225, "pink", "noto", [("car", .15, .30, .20, None), ("car", .40, .60, .20, None), ("bus", .60, .30, .22, None),
                                        ("bicycle", .72, .66, .20, None), ("key", .90, .40, .16, None)]),
}
FLAT = {"blue": (.25, .45, .95), "white": (1, 1, 1), "yellow": (1, .90, .35), "gray": (.55, .55, .55), "pink": (1, .70, .82)}
RGB = {"red": (.88, .12, .12), "blue": (.12, .30, .90), "green": (.13, .65, .25)}


def compose(spec, sprites, bank):
    """One picture from its description."""
    width, height, back, style, things = spec
    rng, longest = random.Random(3), max(width, height)
    scene = P.Scene([], width / longest, height / longest, back)
    if back in FLAT:
        scene.layout, scene.colors, scene.shape = 0, [FLAT[back]] * 5, [0, 4, .5, 0, 0, 0, 0, 0]
    else:
        scene.layout = P.BACKGROUNDS.index("bands")
        scene.colors, scene.shape = P.place_colors(rng, back)
        if back == "beach":
            scene.shape[0:2] = [.42, .58]
    for name, x, y, size, color in things:
        index = SHAPES.index(name) if color else next(
            i for i, s in enumerate(sprites) if s.name == name and s.style == style)
        scene.things.append(P.Thing(name, color, index, x, (1 - scene.h) / 2 + y * scene.h, size, rgb=RGB.get(color, (1, 1, 1))))
        scene.things[-1].x = (1 - scene.w) / 2 + x * scene.w
    return E.draw(scene, bank, len(sprites), longest, rng, None)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--show", required=True)
    ap.add_argument("--golden", required=True)
    args = ap.parse_args()
    sprites, styles = P.load_sprites(args.data)
    bank = S.load_bank(args.data, sprites, styles)
    for folder, specs in ((args.show, SHOW), (args.golden, GOLDEN)):
        os.makedirs(folder, exist_ok=True)
        for name, spec in specs.items():
            compose(spec, sprites, bank).save(os.path.join(folder, name + ".png"), optimize=True)


if __name__ == "__main__":
    main()
