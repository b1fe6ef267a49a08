"""What the command-line tests share: running describe, and pictures made from nothing.

$DESCRIBE names the program, $LV_SOURCE the source tree, $LV_TINY the folder that golden/tiny.py wrote:
one of its checkpoints answers, as no test here depends on what is said.
"""

import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest
import zlib

DESCRIBE = os.environ["DESCRIBE"]
SOURCE = os.environ["LV_SOURCE"]
TINY = os.environ["LV_TINY"]
MODEL = os.path.join(TINY, "hf15")
SHARED = os.path.join(SOURCE, "..", "shared", "data")
SECONDS = 240  # for one run of the program, sanitizers included


def png(width=48, height=32, colour=(200, 30, 30)):
    """A PNG of one colour with a darker lower half."""

    def chunk(kind, data):
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    dark = tuple(c // 2 for c in colour)
    rows = b"".join(b"\0" + bytes(colour if y < height // 2 else dark) * width
                    for y in range(height))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def ppm(width=48, height=32, colour=(20, 120, 220)):
    return b"P6\n%d %d\n255\n" % (width, height) + bytes(colour) * (width * height)


class Case(unittest.TestCase):
    """A test in an empty folder of its own, with a good picture in it."""

    maxDiff = None

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="describe-test-")
        self.addCleanup(shutil.rmtree, self.dir)
        self.write("good.png", png())

    def write(self, name, data):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        return name

    def start(self, *args, env=None, **popen):
        return subprocess.Popen([DESCRIBE, *args], cwd=self.dir,
                                env={**os.environ, "LLAVA_MODEL": MODEL, **(env or {})}, **popen)

    def run_describe(self, *args, stdin=b"", env=None, stdout=subprocess.PIPE):
        """Runs to the end. The result has status, out and err (text) and errors (lines of err)."""
        process = self.start(*args, env=env, stdin=subprocess.PIPE, stdout=stdout,
                             stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(stdin, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.fail(f"describe {' '.join(args)}: still running after {SECONDS} s")
        process.status = process.returncode
        process.out = (out or b"").decode("utf-8", "strict")
        process.err = err.decode("utf-8", "strict")
        process.errors = process.err.splitlines()
        for sign in ("AddressSanitizer", "LeakSanitizer", "runtime error:"):
            self.assertNotIn(sign, process.err)
        return process

    def describe(self, *args, **more):
        """A run of few tokens, without notes on standard error."""
        return self.run_describe("-q", "--max-tokens", "2", *args, **more)

    def objects(self, result):
        return [json.loads(line) for line in result.out.splitlines()]
