#!/usr/bin/env python3
"""What Pillow makes of our inputs: resized pixels, tiles of every layout, decoded pictures.

Writes pillow_resize.txt, pillow_tiles.txt and pillow_images.txt beside itself; with --images first
draws the pictures of tests/images/ (their bytes depend on the encoders' versions, so they are kept).
Made with Pillow 9.4.0, numpy 1.24.2, libjpeg-turbo 2.1.5 and libwebp 1.2.4 (Debian 12):

    /usr/bin/python3 tests/golden/pillow_goldens.py [--images]

Inputs are a function of size and seed that the tests compute too; outputs are kept as a 64-bit
checksum, the sum over all bytes of (byte + 1) * splitmix64(index).
"""
import io
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "images"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


def splitmix64(index):
    with np.errstate(over="ignore"):
        z = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def checksum(array):
    data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    with np.errstate(over="ignore"):
        terms = (data.astype(np.uint64) + np.uint64(1)) * splitmix64(np.arange(len(data)))
        return "%016x" % int(np.sum(terms, dtype=np.uint64))


def noise(width, height, seed):
    """Random bytes; odd seeds have only 0 and 255, which drives the filter past both ends."""
    values = splitmix64(np.arange(width * height * 3, dtype=np.uint64) + np.uint64(seed << 32))
    data = (values >> np.uint64(56)).astype(np.uint8)
    if seed % 2:
        data = np.where(data & 1, 255, 0).astype(np.uint8)
    return Image.fromarray(data.reshape(height, width, 3))


# --- resizing

def resize_cases():
    cases = [(1, 1, 336, 336), (1, 1, 1, 1), (1, 7, 336, 336), (7, 1, 336, 336), (2, 2, 3, 3),
             (3000, 50, 336, 336), (50, 3000, 336, 336), (3000, 50, 672, 11), (3000, 50, 1, 1),
             (1, 3000, 336, 336), (3000, 1, 336, 336), (1, 3000, 1, 336), (336, 336, 336, 336),
             (336, 500, 336, 336), (500, 336, 336, 336), (640, 480, 336, 336), (5, 4, 3, 3),
             (640, 480, 672, 504), (800, 600, 168, 168), (337, 335, 336, 336), (1000, 667, 503, 336),
             (1024, 899, 336, 336), (1920, 200, 336, 336), (20000, 3, 168, 168), (3, 20000, 168, 168)]
    rng = np.random.RandomState(1)
    while len(cases) < 260:
        width, height = (int(math.exp(v)) for v in rng.uniform(0, 6.8, 2))
        targets = [(336, 336), (168, 168), (224, 224), (672, 336), (int(rng.randint(1, 400)),
                   int(rng.randint(1, 400))), (width, 336), (336, height)]
        cases.append((width, height) + targets[len(cases) % len(targets)])
    return cases


def write_resize(out):
    for seed, (width, height, to_width, to_height) in enumerate(resize_cases()):
        pixels = np.asarray(noise(width, height, seed).resize((to_width, to_height), Image.BICUBIC))
        full = pixels.tobytes().hex() if pixels.size <= 27 else "-"
        print(width, height, to_width, to_height, seed, checksum(pixels), full, file=out)


# --- tiles

def pad(image, size):
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return [square.resize((size, size), Image.BICUBIC)], (1, 1)


def crop(image, size, edge):
    if edge:
        short, long = sorted(image.size)
        to = (edge, int(edge * long / short))
        image = image.resize(to if image.width <= image.height else to[::-1], Image.BICUBIC)
    tile = Image.new("RGB", (size, size))  # black
    # Floor of half: a negative odd space rounds to the left and up.
    tile.paste(image, (-((image.width - size) // 2), -((image.height - size) // 2)))
    return [tile], (1, 1)


def anyres(image, size, pinpoints):
    def merit(pinpoint):
        scale = min(pinpoint[0] / image.width, pinpoint[1] / image.height)
        kept = min(int(image.width * scale) * int(image.height * scale), image.width * image.height)
        return (kept, kept - pinpoint[0] * pinpoint[1])
    width, height = max(pinpoints, key=merit)  # max keeps the first of equals
    scale_x, scale_y = width / image.width, height / image.height
    if scale_x < scale_y:
        fitted = (width, min(math.ceil(image.height * scale_x), height))
    else:
        fitted = (min(math.ceil(image.width * scale_y), width), height)
    page = Image.new("RGB", (width, height))
    page.paste(image.resize(fitted, Image.BICUBIC),
               ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    tiles = [page.crop((x, y, x + size, y + size))
             for y in range(0, height, size) for x in range(0, width, size)]
    return [image.resize((size, size), Image.BICUBIC)] + tiles, (width // size, height // size)


def normalize(tiles):
    values = (tiles.astype(np.float64) * (1 / 255)).astype(np.float32)
    values = (values - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def write_tiles(out):
    small = [(w // 2, h // 2) for w, h in PINPOINTS]
    layouts = {
        "pad 336 0 original": lambda im: pad(im, 336),
        "pad 168 0 hf": lambda im: pad(im, 168),
        "crop 336 336 hf": lambda im: crop(im, 336, 336),
        "crop 336 0 hf": lambda im: crop(im, 336, 0),
        "crop 335 224 hf": lambda im: crop(im, 335, 224),
        "crop 224 336 original": lambda im: crop(im, 224, 336),
        "anyres 336 0 original": lambda im: anyres(im, 336, PINPOINTS),
        "anyres 336 0 hf": lambda im: anyres(im, 336, [(h, w) for w, h in PINPOINTS]),
        "anyres 168 0 original": lambda im: anyres(im, 168, small),
    }
    sizes = [(1, 1), (1, 7), (7, 1), (5, 4), (3000, 50), (50, 3000), (336, 336), (337, 336),
             (640, 480), (480, 640), (1000, 667), (667, 1000), (672, 672), (13, 999), (1024, 899),
             (1280, 720), (100, 100)]
    for name, layout in layouts.items():
        extreme = [] if name.startswith("crop 335") or "336 336" in name else [(1, 2000), (2000, 1)]
        for seed, (width, height) in enumerate(sizes + extreme):
            tiles, grid = layout(noise(width, height, seed))
            pixels = np.stack([np.asarray(t) for t in tiles])
            print(name, width, height, seed, len(tiles), *grid, checksum(pixels),
                  checksum(normalize(pixels[-1:])), file=out)


# --- pictures

def decode(path):
    """Pillow's RGB, upright, on white; 16-bit grey keeps its high byte (Pillow would clip)."""
    image = Image.open(path)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image.convert("RGB")


def write_images(out):
    for path in sorted(IMAGES.iterdir()):
        if path.suffix not in (".txt", ".md"):
            pixels = np.asarray(decode(path))
            print(path.name, pixels.shape[1], pixels.shape[0], checksum(pixels), file=out)


def picture(width, height):
    """A smooth scene with edges: gradients, a disc, stripes."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 255 * x / (width - 1)
    green = 255 * y / (height - 1)
    blue = 127.5 + 127.5 * np.sin(x / 5.0) * np.cos(y / 7.0)
    disc = (x - width * 0.6) ** 2 + (y - height * 0.4) ** 2 < (min(width, height) * 0.25) ** 2
    data = np.stack([red, green, blue], 2)
    data[disc] = (250, 220, 40)
    data[(y > height * 0.8) & (x.astype(int) // 4 % 2 == 0)] = (20, 30, 90)
    return Image.fromarray(np.rint(data).astype(np.uint8))


def alpha_of(width, height):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(((x * 255 // (width - 1) + y * 255 // (height - 1)) // 2).astype(np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, depth, colour, rows, extra=b""):
    """rows: bytes a row, without filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data)
            + chunk(b"IEND", b""))


def interlaced_png(image):
    data = np.asarray(image)
    starts = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in starts for row in data[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def clearless_gif(image):
    """A GIF without clear codes, neither first nor where the 4,096 codes are used up."""
    table = {bytes([i]): i for i in range(256)}
    run, codes = b"", []
    for pixel in image.tobytes():
        longer = run + bytes([pixel])
        if longer not in table:
            codes.append(table[run])
            if len(table) + 2 < 4096:
                table[longer] = len(table) + 2
            longer = bytes([pixel])
        run = longer
    bits, n_bits, width = 0, 0, 9
    for i, code in enumerate(codes + [table[run], 257]):
        bits |= code << n_bits
        n_bits += width
        width += 258 + i == 1 << width and width < 12
    data = bits.to_bytes((n_bits + 7) // 8, "little")
    blocks = [data[i:i + 255] for i in range(0, len(data), 255)]
    return (b"GIF87a" + struct.pack("<HHBBB", *image.size, 0xf7, 0, 0) +
            bytes(i // 3 for i in range(768)) + b"," +
            struct.pack("<HHHHB", 0, 0, *image.size, 0) + b"\x08" +
            b"".join(bytes([len(block)]) + block for block in blocks) + b"\0;")


def draw_jpegs(scene):
    save = lambda name, image=scene, **options: image.save(IMAGES / name, "JPEG", **options)
    save("baseline.jpg", quality=80)
    save("progressive.jpg", quality=80, progressive=True)
    save("full_chroma.jpg", quality=90, subsampling=0)
    save("half_chroma.jpg", quality=85, subsampling=1)
    save("grey.jpg", scene.convert("L"), quality=80)
    save("grey_progressive.jpg", scene.convert("L"), quality=80, progressive=True)
    save("cmyk.jpg", scene.convert("CMYK"), quality=85)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"exif_{orientation}.jpg", scene.resize((37, 26)), quality=80, exif=exif)


def draw_pngs(scene, alpha):
    save = lambda name, image, **options: image.save(IMAGES / name, "PNG", **options)
    rgba = scene.copy()
    rgba.putalpha(alpha)
    palette = scene.quantize(64)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("rgb.png", scene, optimize=True)
    save("rgba.png", rgba)
    save("grey.png", scene.convert("L"))
    save("grey_alpha.png", rgba.convert("LA"))
    save("bits.png", scene.convert("1"))
    save("palette.png", palette)
    save("palette_4.png", scene.quantize(13), bits=4)
    save("palette_2.png", scene.quantize(4), bits=2)
    save("palette_clear.png", palette, transparency=bytes((i * 9) % 256 for i in range(64)))
    save("key.png", scene, transparency=(250, 220, 40))
    save("exif.png", scene.resize((37, 26)), exif=exif)
    block = (b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")).hex()
    profile, xmp = PngInfo(), PngInfo()
    profile.add_text("Raw profile type exif", f"\nexif\n{len(block) // 2:8}\n{block}\n", zip=True)
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    save("exif_profile.png", scene.resize((37, 26)), pnginfo=profile)
    save("exif_xmp.png", scene.resize((37, 26)), pnginfo=xmp)
    (IMAGES / "interlaced.png").write_bytes(interlaced_png(scene))
    wide = np.asarray(scene).astype(np.uint16) * 257 + 85 & 0xFFFF
    with_alpha = np.dstack([wide, np.asarray(alpha).astype(np.uint16) * 257])
    rows = lambda data: [row.astype(">u2").tobytes() for row in data]
    width, height = scene.size
    write = lambda name, colour, data: (IMAGES / name).write_bytes(
        raw_png(width, height, 16, colour, rows(data)))
    write("grey_16.png", 0, wide[:, :, 0])
    write("rgb_16.png", 2, wide)
    write("grey_alpha_16.png", 4, with_alpha[:, :, [1, 3]])
    write("rgba_16.png", 6, with_alpha)
    grey2 = np.packbits(np.unpackbits((np.asarray(scene.convert("L")) >> 6)[:, :, None], axis=2)
                        [:, :, 6:].reshape(height, -1), axis=1)
    (IMAGES / "grey_2.png").write_bytes(raw_png(width, height, 2, 0, [r.tobytes() for r in grey2]))


def draw_rest(scene, alpha):
    rgba = scene.copy()
    rgba.putalpha(alpha)
    small = scene.resize((48, 32))
    exif = Image.Exif()
    exif[0x0112] = 8
    scene.save(IMAGES / "lossy.webp", "WEBP", quality=70)
    scene.save(IMAGES / "lossless.webp", "WEBP", lossless=True)
    rgba.save(IMAGES / "alpha.webp", "WEBP", quality=70)
    small.save(IMAGES / "exif.webp", "WEBP", quality=70, exif=exif)
    small.save(IMAGES / "animated.webp", "WEBP", save_all=True, append_images=[ImageOps.invert(small)])
    scene.quantize(32).save(IMAGES / "palette.gif", "GIF", interlace=0)
    scene.quantize(32).save(IMAGES / "interlaced.gif", "GIF", interlace=1)
    scene.quantize(32).save(IMAGES / "clear.gif", "GIF", transparency=3)
    small.quantize(16).save(IMAGES / "animated.gif", "GIF", save_all=True, duration=100,
                            append_images=[ImageOps.invert(small).quantize(16)])
    (IMAGES / "clearless.gif").write_bytes(clearless_gif(noise(120, 80, 2).getchannel(0)))
    small.save(IMAGES / "rgb.bmp", "BMP")
    rgba.resize((48, 32)).save(IMAGES / "rgba.bmp", "BMP")
    small.quantize(100).save(IMAGES / "palette.bmp", "BMP")
    small.convert("1").save(IMAGES / "bits.bmp", "BMP")
    small.save(IMAGES / "raw.ppm", "PPM")
    small.convert("L").save(IMAGES / "raw.pgm", "PPM")
    scene.convert("1").save(IMAGES / "raw.pbm", "PPM")
    data = np.asarray(small.resize((12, 8)))
    text = lambda values: "\n".join(" ".join(map(str, row)) for row in values)
    (IMAGES / "plain.ppm").write_text(f"P3 # plain\n12 8\n255\n{text(data.reshape(8, -1))}\n")
    (IMAGES / "plain.pgm").write_text(f"P2\n12 8\n# maxval\n100\n{text(data[:, :, 0] // 3)}\n")
    (IMAGES / "plain.pbm").write_text(f"P1\n12 8\n{text(data[:, :, 1] // 128)}\n")
    wide = (np.asarray(small).astype(">u2") * 257).tobytes()
    (IMAGES / "wide.ppm").write_bytes(b"P6 48 32 65535\n" + wide)


def main():
    if "--images" in sys.argv:
        IMAGES.mkdir(exist_ok=True)
        scene, alpha = picture(120, 80), alpha_of(120, 80)
        draw_jpegs(scene)
        draw_pngs(scene, alpha)
        draw_rest(scene, alpha)
    for name, write in (("resize", write_resize), ("tiles", write_tiles), ("images", write_images)):
        text = io.StringIO()
        print(f"# Pillow {PIL.__version__}, by pillow_goldens.py", file=text)
        write(text)
        (HERE / f"pillow_{name}.txt").write_text(text.getvalue())


if __name__ == "__main__":
    main()
