"""Folders: what is taken, where captions go, and what is left after every kind of end."""

import csv
import fcntl
import glob
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
import unittest

from cli import DESCRIBE, MODEL, SECONDS, SHARED, SOURCE, Case, png
from test_output import Terminal

N_MANY = 200  # pictures of which a killed run does some


class Folders(Case):
    def setUp(self):
        super().setUp()
        self.names = [self.write(f"photos/{name}", png(40 + i, 30, (9 * i, 200 - i, 7 * i)))
                      for i, name in enumerate(sorted(("a.png", "B.PNG", "c, \"d\".png", "e.Png")))]

    def many(self):
        """N_MANY pictures, sorted."""
        data = [png(40 + i, 40, (i * 12, 255 - i * 12, 60)) for i in range(20)]
        return [self.write(f"many/{i:04}.png", data[i % 20]) for i in range(N_MANY)]

    def read(self, name):
        with open(os.path.join(self.dir, name), encoding="utf-8", newline="") as file:
            return file.read()

    def records(self, name):
        """What FILE.jsonl or FILE.csv holds, every line of it whole."""
        text = self.read(name)
        if name.endswith(".csv"):
            self.assertTrue(text.endswith("\r\n"), text[-200:])
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
            self.assertTrue(all(None not in row and None not in row.values() for row in rows))
            return rows
        self.assertTrue(text == "" or text.endswith("\n"), text[-200:])
        return [json.loads(line) for line in text.splitlines()]

    def captions(self, *names):
        """{source: text}, after checking that each source is there once."""
        rows = [(row["source"], row["text"]) for name in names for row in self.records(name)]
        self.assertEqual(len(dict(rows)), len(rows))
        return dict(rows)

    def good(self, *args, **more):
        result = self.describe(*args, **more)
        self.assertEqual((result.status, result.err), (0, ""))
        return result

    def limited(self, n_bytes, *args):
        """A run whose files may not grow past n_bytes."""
        process = self.start("-q", "--max-tokens", "2", *args, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, preexec_fn=lambda: resource.setrlimit(
                                 resource.RLIMIT_FSIZE, (n_bytes, n_bytes)))
        _, err = process.communicate(timeout=SECONDS)
        return process.returncode, err.decode()


class Inputs(Folders):
    def test_what_a_folder_holds(self):
        self.write("photos/.hidden.png", png())
        self.write("photos/notes.txt", b"no picture")
        self.write("photos/below/f.jpg", png())
        self.write("photos/.cache/g.jpg", png())
        os.mkfifo(os.path.join(self.dir, "photos/fifo.png"))
        self.write("plain", png())
        for args, names in ((["photos"], self.names),
                            (["photos/", "plain"], [*self.names, "plain"]),
                            (["-r", "photos"], [*self.names[:2], "photos/below/f.jpg", *self.names[2:]]),
                            (["-r", "good.png", "photos/below", "photos"],
                             ["good.png", "photos/below/f.jpg", *self.names])):
            result = self.good("--json", *args)
            self.assertEqual([line["source"] for line in self.objects(result)], names)
        self.write("list", b"photos\ngood.png\n")
        result = self.good("--files-from", "list")
        self.assertEqual(result.out.count(".png: ") + result.out.count(".PNG: ")
                         + result.out.count(".Png: "), 5)

    def test_links_in_circles(self):
        self.write("photos/x/1.png", png())
        os.symlink("..", os.path.join(self.dir, "photos/x/up"))
        os.symlink("x", os.path.join(self.dir, "photos/same"))
        os.symlink("nowhere", os.path.join(self.dir, "photos/dead.jpg"))
        result = self.describe("--recursive", "--output", "out.jsonl", "photos")
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertIn("photos/dead.jpg: No such file", result.err)
        self.assertEqual(len(self.captions("out.jsonl")), 5)

    def test_what_cannot_be_looked_into(self):
        here = os.getcwd()
        os.chdir(self.dir)
        for _ in range(20):  # further down than a path can say
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        with open("deep.png", "wb") as file:
            file.write(png())
        os.chdir(here)
        self.write("d" * 250 + "/top.png", png())
        result = self.describe("-r", "--output", "o.jsonl", "--failures", "bad.tsv", "d" * 250)
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertIn("File name too long", self.read("bad.tsv"))
        self.assertEqual(list(self.captions("o.jsonl")), ["d" * 250 + "/top.png"])

    def test_named_and_in_a_folder(self):
        self.write("one/a.png", png())
        self.good("--output", "o.jsonl", "one/a.png", "one")
        self.assertEqual(list(self.captions("o.jsonl")), ["one/a.png"])

    def test_no_picture(self):
        os.makedirs(os.path.join(self.dir, "empty/below"))
        for args in ([], ["-r"]):
            result = self.describe("--model", "no/model", *args, "empty")
            self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
            self.assertIn("no picture", result.err)

    def test_same_as_one_at_a_time(self):
        names = self.many()[:64]
        self.good("--output", "out.jsonl", *names)
        texts = self.captions("out.jsonl")
        self.assertEqual(list(texts), names)
        for name in names[:20]:
            self.assertEqual(self.objects(self.good("--json", name))[0]["text"].strip(), texts[name])
        for i, options in enumerate((["--max-batch-size", "1"], ["--max-batch-size", "64"],
                                     ["--max-batch-size", "5", "--kv-memory", "16M"])):
            self.good("--output", f"{i}.jsonl", *options, *names)
            self.assertEqual(self.captions(f"{i}.jsonl"), texts)

    def test_wrong_usage(self):
        for args in (["--output", "x.txt"], ["--output", "x.jsonl", "--sidecar", ".txt"],
                     ["--sidecar", ".png"], ["--sidecar", "jpg"], ["--sidecar", "."],
                     ["--sidecar", "a/b"], ["--append", "--output", "x.csv"], ["--overwrite"],
                     ["--prefix", "x"], ["--sidecar", "txt", "--append", "--prepend"],
                     ["--output", "x.csv", "--json"], ["--output", "x.csv", "--together"],
                     ["--shard", "0/2"], ["--shard", "3/2"], ["--shard", "2"], ["--shard", "1/x"],
                     ["--shard", "1/2", "--together"], ["--output", "x.csv", "--failures", "x.csv"],
                     ["--output", "no/folder/x.csv"], ["--failures", "no/folder/x.tsv"],
                     ["--output", "full.csv"]):
            if "full.csv" in args:
                os.symlink("/dev/full", os.path.join(self.dir, "full.csv"))
            result = self.describe("--model", "no/model", *args, "photos")
            self.assertEqual((result.status, len(result.errors)), (2, 1), f"{args} {result.err}")
        self.assertFalse(os.path.exists(os.path.join(self.dir, "x.csv")))


class Files(Folders):
    def test_jsonl(self):
        self.good("--output", "out.jsonl", "--prefix", "sks, ", "--suffix", "!", "photos")
        plain = self.objects(self.good("--json", "photos"))
        self.assertEqual(self.captions("out.jsonl"),
                         {line["source"]: f"sks, {line['text'].strip()}!" for line in plain})
        row = self.records("out.jsonl")[1]
        self.assertIn(row["finish_reason"], ("stop", "length"))
        self.assertEqual((row["images"][0]["width"], row["images"][0]["height"]), (41, 30))
        for key in ("usage", "timings_ms"):
            self.assertEqual(set(row[key]), set(plain[1][key]))

    def test_csv(self):
        odd = self.write("two\nlines, \"quoted\".png", png(64, 48))
        self.good("--output", "out.csv", "--prefix", "say \"x\",\n", "photos", odd)
        texts = {line["source"]: line["text"] for line in self.objects(self.good("--json", "photos",
                                                                                odd))}
        self.assertEqual(self.captions("out.csv"),
                         {name: f"say \"x\",\n{text.strip()}" for name, text in texts.items()})
        row = self.records("out.csv")[-1]
        self.assertEqual((row["source"], row["width"], row["height"]), (odd, "64", "48"))
        self.assertGreater(int(row["prompt_tokens"]), int(row["image_tokens"]))
        before = self.read("out.csv")
        self.good("--model", "no/model", "--output", "out.csv", "photos", odd)
        self.assertEqual(self.read("out.csv"), before)

    def test_sidecars(self):
        self.write("photos/a.txt", b"mine\n")
        self.write("photos/e.txt", b"")  # of no use: written
        self.good("--sidecar", ".txt", "--prefix", "sks ", "photos", "good.png")
        texts = {line["source"]: line["text"].strip() for line in
                 self.objects(self.good("--json", "photos", "good.png"))}
        self.assertEqual(self.read("photos/a.txt"), "mine\n")
        for name, text in texts.items():
            if name != "photos/a.png":
                line = " ".join(text.replace("\r", "\n").split("\n"))
                self.assertEqual(self.read(name.rsplit(".", 1)[0] + ".txt"), f"sks {line}\n")
        self.good("--model", "no/model", "--caption-extension", "txt", "photos", "good.png")
        self.assertEqual(sorted(glob.glob("*.tmp", root_dir=os.path.join(self.dir, "photos"))), [])

    def test_append_and_prepend(self):
        self.good("--sidecar", "txt", "good.png")
        caption = self.read("good.txt").strip("\n")
        for option, joined in (("--append", f"tag one {caption}\n"),
                               ("--prepend", f"{caption} tag one\n"),
                               ("--overwrite", f"{caption}\n")):
            self.write("good.txt", b"tag one\n\n")
            for _ in range(2):  # a run again, after an interrupted one, adds nothing twice
                self.good("--sidecar", "txt", option, "good.png")
                self.assertEqual(self.read("good.txt"), joined)
        self.write("good.txt", b"tag one")
        self.good("--sidecar", "txt", "--append", "--prefix", ", ", "good.png")
        self.assertEqual(self.read("good.txt"), f"tag one, {caption}\n")

    def test_sidecars_that_hold_something_else(self):
        self.good("--sidecar", "txt", "good.png")
        caption = self.read("good.txt").strip("\n")
        for option, old, new in (("--prepend", f"{caption}s else", f"{caption} {caption}s else\n"),
                                 ("--append", f"un{caption}", f"un{caption} {caption}\n"),
                                 ("--prepend", "\ufefftag", f"{caption} tag\n"),
                                 ("--append", "\ufefftag", f"tag {caption}\n")):
            self.write("good.txt", old.encode())
            self.good("--sidecar", "txt", option, "good.png")
            self.assertEqual(self.read("good.txt"), new)
        for option, joined in (("--append", f"tag {caption}, \n"), ("--prepend", f"{caption},  tag\n")):
            self.write("good.txt", b"tag")
            for _ in range(3):
                self.good("--sidecar", "txt", option, "--suffix", ", ", "good.png")
                self.assertEqual(self.read("good.txt"), joined)
                joined = joined.replace(", \n", ",\n")  # as a run again leaves it
        self.write("good.txt", "\u72ac\u3001".encode("utf-16"))
        result = self.describe("--sidecar", "txt", "--append", "good.png")
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.write("good.txt", "other".encode("utf-16"))
        for option in ("--append", "--prepend"):
            result = self.describe("--sidecar", "txt", option, "good.png")
            self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
            self.assertIn("UTF-8", result.err)
        with open(os.path.join(self.dir, "good.txt"), "rb") as file:
            self.assertEqual(file.read(), "other".encode("utf-16"))
        os.mkdir(os.path.join(self.dir, "photos/a.txt"))
        result = self.describe("--sidecar", "txt", "photos")
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)

    def test_links_and_modes_stay(self):
        for name in ("real.jsonl", "real.txt"):
            self.write(name, b"")
            os.chmod(os.path.join(self.dir, name), 0o600)
        os.symlink("real.jsonl", os.path.join(self.dir, "link.jsonl"))
        os.symlink("real.txt", os.path.join(self.dir, "good.txt"))
        for _ in range(2):
            self.good("--output", "link.jsonl", "--overwrite", "photos")
            self.good("--sidecar", "txt", "--overwrite", "good.png")
        self.assertEqual(list(self.captions("real.jsonl")), self.names)
        self.assertEqual(self.read("real.txt").count("\n"), 1)
        for name in ("link.jsonl", "good.txt"):
            self.assertTrue(os.path.islink(os.path.join(self.dir, name)))
        for name in ("real.jsonl", "real.txt"):
            self.assertEqual(os.stat(os.path.join(self.dir, name)).st_mode & 0o777, 0o600)

    def test_captions_that_would_meet(self):
        self.write("photos/a.jpg", png(20, 20))
        result = self.describe("--sidecar", ".txt", "--failures", "bad.tsv", "photos", "photos/a.jpg",
                               "photos/a.png", "data:image/png;base64,AAAA")
        self.assertEqual((result.status, len(result.errors)), (1, 2), result.err)
        self.assertIn("photos/a.png: its caption would be under the same name as that of photos/a.jpg",
                      result.err)
        self.assertEqual(len(self.read("bad.tsv").splitlines()), 2)
        self.write("notes.txt", png())
        result = self.describe("--sidecar", ".txt", "--overwrite", "notes.txt")
        self.assertEqual(result.status, 1)
        with open(os.path.join(self.dir, "notes.txt"), "rb") as file:
            self.assertEqual(file.read(), png())

    def test_overwrite_replaces_what_is_named(self):
        for name in ("out.jsonl", "out.csv"):
            self.good("--output", name, "--prefix", "old ", "photos")
            self.good("--output", name, "--prefix", "new ", "--overwrite", "good.png",
                      *self.names[1:])
            texts = self.captions(name)
            self.assertEqual(set(texts), {*self.names, "good.png"})
            self.assertEqual([source for source, text in texts.items() if text.startswith("old ")],
                             self.names[:1])

    def test_overwrite_keeps_all_where_no_model_can_be_loaded(self):
        self.good("--output", "out.jsonl", "photos")
        before = self.read("out.jsonl")
        result = self.describe("--model", "no/model", "--output", "out.jsonl", "--overwrite", "photos")
        self.assertEqual(result.status, 3)
        self.assertEqual(self.read("out.jsonl"), before)

    def test_overwrite_keeps_what_has_no_new_caption(self):
        self.good("--output", "out.jsonl", "--prefix", "old ", "photos")
        self.write(self.names[1], b"broken now")
        result = self.describe("--output", "out.jsonl", "--overwrite", "photos")
        self.assertEqual(result.status, 1)
        texts = self.captions("out.jsonl")
        self.assertEqual(set(texts), set(self.names))
        self.assertEqual([source for source, text in texts.items() if text.startswith("old ")],
                         self.names[1:2])

    def test_edited_by_other_programs(self):
        self.good("--output", "q.csv", "photos")
        self.good("--output", "q.jsonl", "photos")
        whole, lines = self.read("q.csv"), self.read("q.jsonl")
        rows = whole.split("\r\n")
        cells = rows[2].split(",", 2)
        quote = "\r\n".join([*rows[:2], f'{cells[0]},a 5" nail,{cells[2]}', *rows[3:]])
        last = "\r\n".join([*rows[:4], "photos/e.Png,mine," + rows[4].split(",", 2)[2]])
        number = last[:-1]  # as "0.5" for "0.50"
        for name, text in (("q.csv", number), ("q.csv", quote), ("q.csv", whole.replace("\r\n", "\n")),
                           ("q.csv", "\ufeff" + whole), ("q.csv", last),
                           ("q.csv", quote.replace("\r\n", "\n")), ("q.jsonl", "\ufeff" + lines),
                           ("q.jsonl", lines.replace("\n", "\r\n")), ("q.jsonl", lines[:-1])):
            self.write(name, text.encode())
            self.good("--model", "no/model", "--output", name, "photos")  # nothing to do
            self.assertIn(self.read(name)[len(text):], ("", "\n", "\r\n"))
            self.assertEqual(self.read(name)[:len(text)], text)
            self.good("--output", name, "--overwrite", self.names[0])
            left = self.read(name)
            self.assertEqual(left.startswith("\ufeff"), text.startswith("\ufeff"))
            self.assertEqual(left.count("photos/"), 4 if name.endswith(".csv") else 8)
            self.assertEqual("mine" in left, "mine" in text)

    def test_torn_ends_are_cut(self):
        for name in ("out.jsonl", "out.csv"):
            self.good("--output", name, "photos")
            whole = self.read(name)
            texts = self.captions(name)
            for n_cut in (1, 2, 3, 9, 60, len(whole) // 2, len(whole) - 5, len(whole)):
                self.write(name, whole.encode()[:-n_cut])
                self.good("--output", name, "photos")
                self.assertEqual(self.captions(name), texts, f"{name} {n_cut}")

    def test_foreign_files_are_left_alone(self):
        self.good("--output", "out.csv", "photos")
        rows = self.read("out.csv").split("\r\n")
        rows[1] = 'photos/a.png,"open,' + rows[1].split(",", 2)[2]
        for name, text in (("out.jsonl", b"my notes\nmore\n"), ("out.csv", b"name,x\n1,2\n"),
                           ("out.jsonl", b"my notes"), ("out.jsonl", b'[{"source":"x","text":"y"}]'),
                           ("out.csv", "\r\n".join(rows).encode()),
                           ("out.csv", "\n".join(rows).encode())):
            self.write(name, text)
            result = self.describe("--model", "no/model", "--output", name, "photos")
            self.assertEqual((result.status, len(result.errors)), (2, 1), result.err)
            self.assertEqual(self.read(name).encode(), text)

    @staticmethod
    def locks():
        with open("/proc/locks", encoding="ascii") as file:
            return file.read()

    def test_two_runs_at_once(self):
        with open(os.path.join(self.dir, "out.jsonl"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            result = self.describe("--model", "no/model", "--output", "out.jsonl", "photos")
        self.assertEqual((result.status, len(result.errors)), (2, 1), result.err)
        self.assertIn("another run", result.err)
        # A run that waits for its picture holds the lock.
        first = self.start("-q", "--output", "out.jsonl", "-", stdin=subprocess.PIPE)
        end = time.monotonic() + SECONDS
        while not re.search(rf"FLOCK +ADVISORY +WRITE +{first.pid} ", self.locks()):
            self.assertLess(time.monotonic(), end, "the run has not locked its file")
            self.assertIsNone(first.poll(), "the run ended before its picture came")
            time.sleep(.01)
        result = self.describe("--output", "out.jsonl", "good.png")
        self.assertEqual(result.status, 2, result.err)
        first.communicate(png(), timeout=SECONDS)
        self.assertEqual(first.returncode, 0)


class Failures(Folders):
    def test_broken_ones_among_good_ones(self):
        for i, path in enumerate(sorted(glob.glob(os.path.join(SOURCE, "tests", "images", "*")))):
            base = os.path.basename(path)
            with open(path, "rb") as file:
                data = file.read()
            self.write(f"mixed/{base}", data)
            self.write(f"mixed/cut-{base}", data[:len(data) // 3])
        self.write("mixed/empty.jpg", b"")
        self.write("mixed/noise.png", random.Random(2).randbytes(3000))
        alone = self.describe("--json", "mixed")
        result = self.describe("--output", "out.jsonl", "--failures", "bad.tsv", "mixed", "missing.png")
        self.assertEqual(result.status, 1)
        bad = [line.split("\t") for line in self.read("bad.tsv").splitlines()]
        self.assertEqual([f"describe: {source}: {reason}" for source, reason in bad], result.errors)
        self.assertEqual(bad[0], ["missing.png", "No such file or directory"])
        self.assertEqual(set(self.captions("out.jsonl")),
                         {line["source"] for line in self.objects(alone)})
        pictures = [name for name in os.listdir(os.path.join(self.dir, "mixed"))
                    if name.rsplit(".", 1)[-1] in ("jpg", "png", "webp", "gif", "bmp", "ppm", "pgm",
                                                   "pbm", "pnm")]
        self.assertEqual(len(self.captions("out.jsonl")) + len(bad) - 1, len(pictures))
        self.assertGreater(len(self.captions("out.jsonl")), 10)
        self.assertGreater(len(bad), 10)

    def test_pictures_of_other_decoders_suites(self):
        folder = os.path.join(SHARED, "images")
        if not os.path.isdir(folder):
            self.skipTest("no ../shared/data/images here")
        result = self.describe("-r", "--max-tokens", "1", "--output", "out.jsonl", "--failures",
                               "bad.tsv", os.path.abspath(folder))
        self.assertEqual(result.status, 1)
        bad = dict(line.split("\t") for line in self.read("bad.tsv").splitlines())
        self.assertEqual(len(bad), len(result.errors))
        self.assertTrue(all(bad.values()))
        captioned = set(self.captions("out.jsonl"))
        extensions = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "pnm", "ppm",
                      "pgm", "pbm")
        names = {os.path.join(at, name) for at, _, found in os.walk(os.path.abspath(folder))
                 for name in found if name.rsplit(".", 1)[-1].lower() in extensions and name[0] != "."}
        self.assertEqual(captioned | set(bad), names)
        self.assertEqual(captioned & set(bad), set())
        with open(os.path.join(folder, "MANIFEST.tsv"), encoding="utf-8") as file:
            rows = [line.split("\t") for line in file]
        good = {os.path.join(os.path.abspath(folder), row[0]) for row in rows if row[2] == "ok"} & names
        # Four that Pillow forgives, as unit/preprocess_corpus.c says.
        self.assertLessEqual(len(good - captioned), 4, good - captioned)

    def test_the_list_takes_no_other_files_place(self):
        self.good("--output", "out.jsonl", "photos")
        before = self.read("out.jsonl")
        os.symlink("out.jsonl", os.path.join(self.dir, "link.jsonl"))
        os.link(os.path.join(self.dir, "out.jsonl"), os.path.join(self.dir, "hard.jsonl"))
        for name in ("out.jsonl", "./out.jsonl", "link.jsonl", "hard.jsonl"):
            result = self.describe("--output", "out.jsonl", "--failures", name, "photos", "good.png")
            self.assertEqual((result.status, len(result.errors)), (2, 1), result.err)
            self.assertEqual(self.read("out.jsonl"), before)
        result = self.describe("--sidecar", ".txt", "--failures", *self.names)
        self.assertEqual((result.status, len(result.errors)), (2, 1), result.err)
        self.assertGreater(os.path.getsize(os.path.join(self.dir, self.names[0])), 0)
        self.write("todo.txt", b"good.png\n")
        result = self.describe("--files-from", "todo.txt", "--failures", "./todo.txt")
        self.assertEqual((result.status, self.read("todo.txt")), (2, "good.png\n"), result.err)
        self.write("list.tsv", b"of an earlier run\n")
        self.good("--sidecar", ".txt", "--failures", "list.tsv", "photos")
        self.assertEqual(self.read("list.tsv"), "")

    def test_fail_fast(self):
        self.write("photos/b.png", b"broken")
        self.write("photos/d.png", b"broken too")
        result = self.describe("--output", "out.jsonl", "--fail-fast", "--failures", "bad.tsv", "photos")
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertEqual(list(self.captions("out.jsonl")), self.names[:2])
        self.assertEqual(self.read("bad.tsv").count("\n"), 1)
        result = self.describe("--model", "no/model", "--fail-fast", "photos", "missing.png")
        self.assertEqual((result.status, result.out), (1, ""))

    def test_a_failed_one_is_tried_again(self):
        self.write("photos/b.png", b"broken")
        self.assertEqual(self.describe("--output", "o.csv", "--failures", "bad.tsv", "photos").status, 1)
        self.write("photos/b.png", png())
        self.good("--output", "o.csv", "--failures", "bad.tsv", "photos")
        self.assertEqual(set(self.captions("o.csv")), {*self.names, "photos/b.png"})
        self.assertEqual(self.read("bad.tsv"), "")

    def test_sidecars_that_cannot_be_written(self):
        long_name = self.write("photos/" + "n" * 251 + ".png", png())  # no room for a new file's name
        result = self.describe("--sidecar", ".caption", "photos")
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertIn(long_name, result.err)
        self.assertEqual(len(glob.glob(os.path.join(self.dir, "photos", "*.caption"))), 4)
        if os.geteuid() == 0:
            return  # to whom no folder is read-only
        os.chmod(os.path.join(self.dir, "photos"), 0o555)
        result = self.describe("--sidecar", ".txt", *self.names)
        os.chmod(os.path.join(self.dir, "photos"), 0o755)
        self.assertEqual((result.status, len(result.errors)), (1, 4), result.err)

    def test_full_disk(self):
        names = self.many()
        for name in ("out.jsonl", "out.csv"):
            status, err = self.limited(3000, "--output", name, "many")
            self.assertEqual((status, len(err.splitlines())), (1, 1), err)
            n_before = len(self.captions(name))
            self.assertGreater(n_before, 2)
            self.assertLess(n_before, N_MANY)
            self.good("--output", name, "many")
            self.assertEqual(list(self.captions(name)), names)
        status, err = self.limited(1, "--sidecar", ".txt", "photos")
        self.assertEqual((status, len(err.splitlines())), (1, 4), err)
        self.assertEqual([name for name in os.listdir(os.path.join(self.dir, "photos"))
                          if not name.lower().endswith(".png")], [])

    def test_sidecars_on_a_full_disk(self):
        """It takes no further caption: the run stops, and goes on once there is room."""
        names = self.many()[:12]
        os.mkdir(os.path.join(self.dir, "disk"))
        run = '"$0" -q --device cpu --model "$1" --max-tokens 2 --sidecar .txt disk'
        # 14 pages for 12 pictures of one page each and what two captions take.
        n_bytes = 14 * resource.getpagesize()
        script = (f"mount -t tmpfs -o size={n_bytes} none disk && cp {' '.join(names)} disk && "
                  f"{{ {run}; echo $?; ls disk; mount -o remount,size=1m disk; {run}; echo $?; ls disk; }}")
        if subprocess.run(["unshare", "-rm", "true"], stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("this machine allows no mount")
        result = subprocess.run(["unshare", "-rm", "sh", "-c", script, DESCRIBE, MODEL], cwd=self.dir,
                                capture_output=True, text=True, timeout=SECONDS)
        first, second = re.findall(r"^([0-9]+)$((?:\n.*\..*)*)", result.stdout, re.M)
        self.assertEqual((first[0], second[0]), ("1", "0"), result.stdout + result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertIn("No space left", result.stderr)
        self.assertIn(first[1].count(".txt"), range(1, 11), first[1])
        self.assertEqual(second[1].count(".txt"), 12, second[1])
        self.assertNotIn(".tmp", result.stdout)


class Ends(Folders):
    def kill_at_random(self, n_times, seed, check, *args):
        """Kills n_times runs; `check` looks at what the runs after them have made whole."""
        dice = random.Random(seed)
        while n_times:
            process = self.start("-q", "--max-tokens", "2", *args, "many")
            try:
                self.assertEqual(process.wait(dice.uniform(0.02, 0.4)), 0)
                check()  # and from the start again
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                n_times -= 1
        self.good(*args, "many")
        check()

    def test_killed_and_run_again(self):
        names = self.many()
        for name in ("out.jsonl", "out.csv"):
            def check():
                self.assertEqual(list(self.captions(name)), names)
                os.remove(os.path.join(self.dir, name))

            self.kill_at_random(20, 3, check, "--output", name)

    def test_killed_with_sidecars(self):
        names = self.many()

        def check():
            for name in names:
                text = self.read(name[:-4] + ".txt")
                self.assertTrue(text.endswith("\n") and text.count("\n") == 1, text)
                os.remove(os.path.join(self.dir, name[:-4] + ".txt"))

        self.kill_at_random(10, 4, check, "--sidecar", ".txt")

    def test_interrupted(self):
        names = self.many()[:40]
        for n_signals in (1, 2):
            args = ("--max-tokens", "200", "--output", f"{n_signals}.jsonl", *names)
            process = self.start(*args, stderr=subprocess.PIPE)
            end = time.monotonic() + SECONDS
            path = os.path.join(self.dir, f"{n_signals}.jsonl")
            while not (os.path.exists(path) and os.path.getsize(path)):
                self.assertLess(time.monotonic(), end)
                time.sleep(0.002)
            for _ in range(n_signals):
                process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=20)[1].decode()
            self.assertEqual(process.returncode, 130)
            if n_signals == 1:
                self.assertIn(" left", err.splitlines()[-1])
            n_done = len(self.captions(f"{n_signals}.jsonl"))
            self.assertTrue(0 < n_done < len(names), n_done)
            self.good(*args)
            self.assertEqual(list(self.captions(f"{n_signals}.jsonl")), names)
            self.assertEqual({row["finish_reason"] for row in self.records(f"{n_signals}.jsonl")}
                             - {"stop", "length"}, set())

    def begun(self, name, *args, n_bytes=0, **more):
        """A run that has written something beyond n_bytes."""
        process = self.start(*args, **more)
        end = time.monotonic() + SECONDS
        path = os.path.join(self.dir, name)
        while not (os.path.exists(path) and os.path.getsize(path) > n_bytes):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.002)
        return process

    def test_overwrite_cut_short(self):
        """Old captions go when there are new ones."""
        names = self.many()[:40]
        for name in ("o.jsonl", "o.csv"):
            self.good("--output", name, "--prefix", "old ", *names)
            args = ("-q", "--max-tokens", "200", "--output", name, "--overwrite", *names)
            n_bytes = os.path.getsize(os.path.join(self.dir, name))
            process = self.begun(name, *args, n_bytes=n_bytes)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(20), 130)
            texts = self.captions(name)
            self.assertEqual(set(texts), set(names))
            self.assertIn(sum(text.startswith("old ") for text in texts.values()), range(1, 40))
            before = self.read(name)
            process = self.begun(name, *args, n_bytes=len(before.encode()))
            process.kill()
            process.wait()
            with open(os.path.join(self.dir, name), "rb") as file:  # its last record may be torn
                self.assertTrue(file.read().startswith(before.encode()))
            self.good(*args)
            texts = self.captions(name)
            self.assertEqual(set(texts), set(names))
            self.assertFalse([text for text in texts.values() if text.startswith("old ")])

    def test_overwrite_of_a_file_emptied_meanwhile(self):
        names = self.many()[:40]
        self.good("--output", "o.jsonl", "--prefix", "old ", *names)
        n_bytes = os.path.getsize(os.path.join(self.dir, "o.jsonl"))
        process = self.begun("o.jsonl", "-q", "--max-tokens", "200", "--output", "o.jsonl",
                             "--overwrite", *names, n_bytes=n_bytes)
        self.write("o.jsonl", b"")
        self.assertEqual(process.wait(SECONDS), 0)
        texts = self.captions("o.jsonl")
        self.assertGreater(len(texts), 20)
        self.assertFalse([text for text in texts.values() if text.startswith("old ")])

    def test_output_replaced_meanwhile(self):
        names = self.many()[:40]
        process = self.begun("o.jsonl", "-q", "--max-tokens", "200", "--output", "o.jsonl", *names,
                             stderr=subprocess.PIPE)
        shutil.copy(os.path.join(self.dir, "o.jsonl"), os.path.join(self.dir, "copy"))
        os.replace(os.path.join(self.dir, "copy"), os.path.join(self.dir, "o.jsonl"))
        err = process.communicate(timeout=SECONDS)[1].decode()
        self.assertEqual((process.returncode, len(err.splitlines())), (1, 1), err)
        self.assertIn("o.jsonl: was replaced", err)

    def test_an_ignored_interrupt(self):
        names = self.many()[:20]
        process = self.begun("o.jsonl", "-q", "--output", "o.jsonl", *names,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(SECONDS), 0)
        self.assertEqual(list(self.captions("o.jsonl")), names)

    def test_names_that_command_terminals(self):
        self.write("tty/a\nb\033[2Jc\td.png", png())
        result = self.run_describe("-v", "--max-tokens", "2", "--output", "v.jsonl", "tty")
        self.assertEqual(result.status, 0)
        self.assertIn("tty/a b\ufffd[2Jc d.png\n", result.err)
        terminal = Terminal(self, "--max-tokens", "2", "--output", "o.jsonl", "tty")
        self.assertEqual(terminal.finish(), 0)
        self.assertIn("tty/a b\ufffd[2Jc d.png", terminal.text)
        self.assertNotIn("[2Jc", terminal.text.replace("\ufffd[2Jc", ""))

    def test_interrupted_while_a_picture_is_waited_for(self):
        process = self.start("-q", "--output", "out.jsonl", "good.png", "-", stdin=subprocess.PIPE)
        path, end = os.path.join(self.dir, "out.jsonl"), time.monotonic() + SECONDS
        while not (os.path.exists(path) and os.path.getsize(path)):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(5), 130)
        process.stdin.close()
        self.assertEqual(list(self.captions("out.jsonl")), ["good.png"])

    def test_summary_and_bar(self):
        self.write("photos/b.png", b"broken")
        result = self.run_describe("--device", "cpu", "--max-tokens", "2", "--output", "o.jsonl",
                                   "photos")
        self.assertEqual(len(result.errors), 2, result.err)
        for word in ("described 4 pictures in 0:", "images/s", "tokens/s", "1 failed"):
            self.assertIn(word, result.errors[-1])
        again = self.run_describe("--max-tokens", "2", "--output", "o.jsonl", "photos", "good.png")
        self.assertIn("described 1 picture in 0:", again.errors[-1])
        self.assertIn("4 had captions already, 1 failed", again.errors[-1])
        part = self.run_describe("--max-tokens", "2", "--shard", "2/3", "photos")
        self.assertIn("part 2 of 3: described 2 pictures in 0:", part.errors[-1])
        for quiet in ((), ("-q",)):
            terminal = Terminal(self, *quiet, "--max-tokens", "2", "--output", "o.jsonl",
                                "--overwrite", "photos")
            self.assertEqual(terminal.finish(), 1)
            for word in ("] 0/5", "] 3/5", " images/s", " tokens/s", " left"):
                self.assertEqual(word in terminal.text, not quiet, terminal.text)


class Shards(Folders):
    def test_parts_are_the_whole(self):
        names = self.many()[:31]
        self.good("--output", "whole.jsonl", *names)
        whole = self.captions("whole.jsonl")
        for n in (2, 3):
            for i in range(1, n + 1):
                self.good("--output", "p.jsonl", "--shard", f"{i}/{n}", "--failures", "bad.tsv", *names)
                self.assertEqual(self.read(f"bad.{i}-of-{n}.tsv"), "")
            parts = [f"p.{i}-of-{n}.jsonl" for i in range(1, n + 1)]
            self.assertEqual(self.captions(*parts), whole)
            self.assertEqual(list(self.captions(parts[0])), names[::n])
            # In another number of parts nothing is done again.
            self.good("--model", "no/model", "--output", "p.jsonl", *names)
            self.good("--model", "no/model", "--output", "p.jsonl", "--shard", "2/4", *names)
            result = self.describe("--output", "p.jsonl", "--overwrite", *names)
            self.assertEqual((result.status, len(result.errors)), (2, 1), result.err)
            for name in glob.glob(os.path.join(self.dir, "p.*")):
                os.remove(name)

    def test_parts_do_not_depend_on_what_is_done(self):
        self.good("--output", "p.csv", *self.names[:2])
        self.good("--output", "p.csv", "--shard", "1/2", *self.names)
        self.assertEqual(list(self.captions("p.1-of-2.csv")), [self.names[2]])
        self.good("--output", "p.csv", "--shard", "2/2", *self.names)
        self.assertEqual(set(self.captions("p.csv", "p.1-of-2.csv", "p.2-of-2.csv")), set(self.names))

    def test_bad_ones_have_their_part_too(self):
        names = ["missing.png", *self.names]
        for i in (1, 2):
            result = self.describe("--sidecar", ".txt", "--shard", f"{i}/2", *names)
            self.assertEqual((result.status, len(result.errors)), (2 - i, 2 - i), result.err)
        self.assertEqual(len(glob.glob(os.path.join(self.dir, "photos", "*.txt"))), 4)

    def test_ranks(self):
        for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"),
                           ("SLURM_PROCID", "SLURM_NTASKS"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            result = self.good("--json", "photos", env={rank: "1", size: "3"})
            self.assertEqual([line["source"] for line in self.objects(result)], [self.names[1]])
        # A batch script of a job of three tasks, and a plain answer to more ranks than there are.
        for env, args in (({"SLURM_PROCID": "0", "SLURM_NTASKS": "3", "SLURM_JOB_ID": "7"}, []),
                          ({"PMI_RANK": "3", "PMI_SIZE": "3"}, []),
                          ({"PMI_RANK": "1", "PMI_SIZE": "3"}, ["--shard", "1/1"])):
            result = self.good("--json", *args, "photos", env=env)
            self.assertEqual(len(self.objects(result)), 4)
        result = self.good("--output", "o.jsonl", "good.png", env={"PMI_RANK": "1", "PMI_SIZE": "3"})
        self.assertEqual(self.records("o.2-of-3.jsonl"), [])

    def test_mpirun(self):
        mpirun = shutil.which("mpirun")
        if not mpirun:
            self.skipTest("no mpirun here")
        names = self.many()[:40]
        self.good("--output", "one.jsonl", *names)
        env = {**os.environ, "LLAVA_MODEL": MODEL, "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
        result = subprocess.run([mpirun, "--oversubscribe", "-n", "3", DESCRIBE, "-q", "--max-tokens",
                                 "2", "--output", "three.jsonl", *names],
                                cwd=self.dir, env=env, timeout=SECONDS, capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        parts = [f"three.{i}-of-3.jsonl" for i in (1, 2, 3)]
        self.assertEqual(self.captions(*parts), self.captions("one.jsonl"))
        self.assertEqual([len(self.records(part)) for part in parts], [14, 13, 13])


if __name__ == "__main__":
    unittest.main()
