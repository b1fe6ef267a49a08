#!/usr/bin/env python3
"""Writes tests/data/rope_tables.tsv: rotary frequencies for tests/unit/llm_rope.c.

The formulas of transformers' modeling_rope_utils.py (and section 5 of MODEL.md for the default beyond the
trained length), each float32 operation rounded once: python3 tests/golden/rope_tables.py > tests/data/rope_tables.tsv
Columns: name, head_dim, theta, trained length, limit, cos/sin factor, then head_dim / 2 frequencies.
"""
import math
import struct


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def exponents(d):
    return [f32(f32(2 * i) / f32(d)) for i in range(d // 2)]


def plain(theta, d):
    return [f32(1 / f32(f32(theta) ** e)) for e in exponents(d)]


def linear(theta, d, factor):
    return [f32(x / f32(factor)) for x in plain(theta, d)]


def dynamic(theta, d, factor, trained, limit):
    return plain(theta * (factor * limit / trained - (factor - 1)) ** (d / (d - 2)), d)


def yarn(theta, d, factor, trained, fast=32, slow=1):
    def dim(turns):
        return d * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = max(math.floor(dim(fast)), 0), min(math.ceil(dim(slow)), d - 1)
    out = []
    for i, e in enumerate(exponents(d)):
        pos = f32(f32(theta) ** e)
        ramp = min(max(f32(f32(i - low) / f32(high - low)), 0), 1)
        keep = f32(1 - ramp)
        slowed = f32(f32(1 / f32(f32(factor) * pos)) * f32(1 - keep))
        out.append(f32(slowed + f32(f32(1 / pos) * keep)))
    return out


def llama3(theta, d, factor, low, high, trained):
    out = []
    for f in plain(theta, d):
        wave = f32(f32(1 / f) * f32(2 * math.pi))
        smooth = f32(f32(f32(f32(1 / wave) * f32(trained)) - f32(low)) / f32(high - low))
        blend = f32(f32(f32(f32(1 - smooth) * f) / f32(factor)) + f32(smooth * f))
        out.append(f32(f / f32(factor)) if wave > trained / low else f if wave < trained / high else blend)
    return out


def line(name, d, theta, trained, limit, freq, scale=1.0):
    print("\t".join([name, str(d), repr(theta), str(trained), str(limit), repr(f32(scale))] + [x.hex() for x in freq]))


for d, theta in ((128, 10000.0), (64, 10000.0), (128, 5000000.0), (128, 1000000.0)):
    line("plain", d, theta, 4096, 4096, plain(theta, d))
    line("default", d, theta, 4096, 5000, dynamic(theta, d, 1, 4096, 5000))
    line("default", d, theta, 4096, 65536, dynamic(theta, d, 1, 4096, 65536))
line("linear4", 128, 10000.0, 4096, 100, linear(10000.0, 128, 4))
line("linear4", 128, 10000.0, 4096, 16384, linear(10000.0, 128, 4))
line("dynamic2", 128, 10000.0, 4096, 4096, plain(10000.0, 128))
line("dynamic2", 128, 10000.0, 4096, 8192, dynamic(10000.0, 128, 2, 4096, 8192))
line("yarn4", 128, 10000.0, 4096, 100, yarn(10000.0, 128, 4, 4096), 0.1 * math.log(4) + 1)
line("yarn4", 64, 1000000.0, 4096, 16384, yarn(1000000.0, 64, 4, 4096), 0.1 * math.log(4) + 1)
line("yarn4 by option", 128, 10000.0, 4096, 4096, plain(10000.0, 128))
line("yarn4 by option", 128, 10000.0, 4096, 8192, yarn(10000.0, 128, 2, 4096), 0.1 * math.log(2) + 1)
line("llama3", 128, 500000.0, 131072, 100, llama3(500000.0, 128, 8, 1, 4, 8192))
