"""Pictures from everywhere, good and bad."""

import base64
import glob
import http.server
import os
import random
import socket
import threading
import unittest

from cli import SHARED, SOURCE, Case, png, ppm


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = {"/ok.png": png(), "/page": b"<html>not a picture</html>"}.get(self.path)
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "/ok.png" if self.path == "/redirect" else self.path + "x")
        else:
            self.send_response(200 if body else 404)
        body = body or b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Inputs(Case):
    def failed(self, result, *names):
        """One line for each of `names`, in their order, and exit status 1."""
        self.assertEqual(result.status, 1, result.err)
        self.assertEqual(len(result.errors), len(names), result.err)
        for line, name in zip(result.errors, names):
            self.assertTrue(line.startswith(f"describe: {name}: "), line)
            self.assertGreater(len(line), len(f"describe: {name}: ") + 5, line)

    def test_one_file(self):
        result = self.describe("good.png")
        self.assertEqual((result.status, result.err), (0, ""))
        self.assertEqual(result.out.count("\n"), 1)
        self.assertGreater(len(result.out.strip()), 0)
        self.assertFalse(result.out.startswith("good.png"))

    def test_several_files_of_which_some_are_bad(self):
        self.write("empty.png", b"")
        self.write("noise.jpg", random.Random(1).randbytes(5000))
        self.write("text.webp", b"This is not a picture at all.\n")
        self.write("really-a-png.jpg", png())
        self.write("blue.ppm", ppm())
        os.mkdir(os.path.join(self.dir, "folder"))
        result = self.describe("good.png", "missing.png", "empty.png", "noise.jpg", "folder",
                               "text.webp", "really-a-png.jpg", "blue.ppm")
        # What can be seen without the model comes first.
        self.failed(result, "missing.png", "folder", "empty.png", "noise.jpg", "text.webp")
        names = [line.split(": ")[0] for line in result.out.splitlines()]
        self.assertEqual(names, ["good.png", "really-a-png.jpg", "blue.ppm"])

    def test_bad_ones_alone_load_no_model(self):
        result = self.describe("--model", "no/such-model", "missing.png")
        self.failed(result, "missing.png")

    def test_truncated(self):
        good = png(64, 64)
        pictures = {"png": good, "ppm": ppm(64, 64)}
        for path in glob.glob(os.path.join(SOURCE, "assets", "pictures", "*.*")):
            with open(path, "rb") as file:
                pictures.setdefault(path.rsplit(".", 1)[1], file.read())
        names = []
        for kind, data in pictures.items():
            for tenth in range(10):
                names.append(self.write(f"cut{tenth}.{kind}", data[:len(data) * tenth // 10]))
        self.failed(self.describe("--max-tokens", "1", *names), *names)

    def test_extreme_sizes(self):
        names = [self.write(f"{w}x{h}.png", png(w, h))
                 for w, h in ((1, 1), (1, 700), (900, 1), (3000, 50))]
        result = self.describe("--max-tokens", "1", "--json", *names)
        for line in self.objects(result):
            image = line["images"][0]
            self.assertEqual(f"{image['width']}x{image['height']}.png", line["source"])
        self.assertEqual(len(result.errors) + len(self.objects(result)), len(names))

    def test_decompression_bomb(self):
        huge = bytearray(png(8, 8))
        huge[16:24] = (32000).to_bytes(4, "big") * 2
        self.write("bomb.png", bytes(huge))
        self.failed(self.describe("bomb.png"), "bomb.png")

    def test_odd_names(self):
        names = [self.write(name, png()) for name in
                 ("a b.png", "100%s%n.png", "-dash.png", "ünïcödé.png")]
        result = self.describe("--max-tokens", "1", "--json", "--", *names)
        self.assertEqual((result.status, result.err), (0, ""))
        self.assertEqual([line["source"] for line in self.objects(result)], names)

    def test_names_that_are_not_text(self):
        os.symlink("good.png", os.path.join(os.fsencode(self.dir), b"bad\xff.png"))
        result = self.describe("--max-tokens", "1", "--json", b"bad\xff.png")
        self.assertEqual(self.objects(result)[0]["source"], "bad\N{REPLACEMENT CHARACTER}.png")
        result = self.describe("no\nsuch\033[31m.png")
        self.assertEqual((result.status, len(result.errors)), (1, 1))
        self.assertNotIn("\033", result.err)

    def test_standard_input(self):
        result = self.describe("-", stdin=png())
        self.assertEqual((result.status, result.err), (0, ""))
        self.failed(self.describe("-", stdin=b""), "-")

    def test_lists(self):
        self.write("list.txt", b"good.png\r\n\nmissing.png\ngood.png")
        result = self.describe("--max-tokens", "1", "--files-from", "list.txt", "good.png")
        self.failed(result, "missing.png")
        self.assertEqual(result.out.count("good.png: "), 3)
        self.write("two\nlines.png", png())
        result = self.describe("--max-tokens", "1", "--json", "-0", "--files-from", "-",
                               stdin=b"good.png\0two\nlines.png\0")
        self.assertEqual([line["source"] for line in self.objects(result)],
                         ["good.png", "two\nlines.png"])
        result = self.describe("--files-from", "-", stdin=b"good.png\0two\nlines.png\0")
        self.assertEqual((result.status, len(result.errors)), (2, 1), result.err)
        self.assertIn("--null", result.err)
        result = self.describe("--json", "--files-from", "-", stdin="\ufeffgood.png\n".encode())
        self.assertEqual([line["source"] for line in self.objects(result)], ["good.png"])

    def test_together(self):
        result = self.describe("--together", "--json", "good.png", "good.png")
        self.assertEqual((result.status, result.err), (0, ""))
        line, = self.objects(result)
        self.assertEqual(len(line["images"]), 2)
        self.assertEqual(line["usage"]["image_tokens"],
                         sum(image["tokens"] for image in line["images"]))
        result = self.describe("--together", "good.png", "missing.png")
        self.assertEqual((result.status, result.out), (1, ""))

    def test_data_uris(self):
        good = "data:image/png;base64," + base64.b64encode(png()).decode()
        result = self.describe("--json", good, "data:image/png;base64,AAAA", "data:nonsense")
        self.failed(result, "data:image/png;base64,AAAA", "data:nonsense")
        line, = self.objects(result)
        self.assertTrue(line["source"].startswith("data:image/png;base64,"))
        self.assertLess(len(line["source"]), 60)

    def test_urls(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            closed = f"http://127.0.0.1:{unused.getsockname()[1]}/x.png"
        here = f"http://127.0.0.1:{server.server_port}"
        bad = [f"{here}/missing.png", f"{here}/page", f"{here}/redirect-without-end", closed,
               "http://", "https://no-such-host.invalid/x.png"]
        result = self.describe("--max-tokens", "1", "--json", f"{here}/ok.png", *bad,
                               f"{here}/redirect", env={"no_proxy": "*"})
        self.failed(result, *bad)
        self.assertEqual([line["source"] for line in self.objects(result)],
                         [f"{here}/ok.png", f"{here}/redirect"])

    def test_pictures_of_other_decoders_suites(self):
        manifest = os.path.join(SHARED, "images", "MANIFEST.tsv")
        if not os.path.exists(manifest):
            self.skipTest("no ../shared/data/images here")
        with open(manifest, encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file][1:]
        names = [os.path.abspath(os.path.join(SHARED, "images", row[0]))
                 for row in rows if row[2] != "ok"]
        names = [name for name in names if "\n" not in name and os.path.isfile(name)]
        result = self.describe("--max-tokens", "1", "--json", "--files-from", "-",
                               stdin="\n".join(names).encode())
        self.assertIn(result.status, (0, 1))
        self.assertEqual(len(result.errors) + len(self.objects(result)), len(names))
        self.assertGreater(len(result.errors), len(names) // 2)


if __name__ == "__main__":
    unittest.main()
