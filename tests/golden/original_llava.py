"""The original LLaVA code's rules for pictures, on Pillow and torch."""

import math

import numpy as np
import torch
from PIL import Image

import tiny


def square_on_mean(image):
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(m * 255) for m in tiny.MEAN))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def best_grid(width, height):
    best, best_key = None, None
    for pin_width, pin_height in tiny.PINPOINTS:
        scale = min(pin_width / width, pin_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        key = (kept, kept - pin_width * pin_height)
        if best is None or key > best_key:
            best, best_key = (pin_width, pin_height), key
    return best


def original_tiles(image, side, anyres):
    """u8 [n, side, side, 3] and the grid (across, down)."""
    if not anyres:
        square = square_on_mean(image)
        return np.asarray(square.resize((side, side), Image.BICUBIC))[None], (1, 1)
    width, height = best_grid(*image.size)
    across, down = width / image.width, height / image.height
    if across < down:
        size = (width, min(math.ceil(image.height * across), height))
    else:
        size = (min(math.ceil(image.width * down), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(
        image.resize(size, Image.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2)
    )
    tiles = [image.resize((side, side), Image.BICUBIC)]
    tiles += [
        canvas.crop((x, y, x + side, y + side))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    return np.stack([np.asarray(t) for t in tiles]), (width // side, height // side)


def original_merge(embeddings, grid, size, newline):
    """[n_tiles, p * p, d] -> the base tile, then the unpadded rows, image_newline after each."""
    across, down = grid
    p, d = math.isqrt(embeddings.shape[1]), embeddings.shape[2]
    rows = (
        embeddings[1:]
        .reshape(down, across, p, p, d)
        .permute(0, 2, 1, 3, 4)
        .reshape(down * p, across * p, d)
    )
    height, width = rows.shape[:2]
    if size[0] / size[1] > width / height:
        crop = (height - int(size[1] * (width / size[0]))) // 2
        rows = rows[crop : height - crop]
    else:
        crop = (width - int(size[0] * (height / size[1]))) // 2
        rows = rows[:, crop : width - crop]
    rows = torch.cat([rows, newline.expand(rows.shape[0], 1, d)], 1)
    return torch.cat([embeddings[0], rows.flatten(0, 1)])
