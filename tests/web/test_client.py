"""describe --server: a running server is asked, and all else is as with a model here."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from web import PICTURES, SECONDS, SIGNS, Case, data_uri, png

DESCRIBE = os.environ["DESCRIBE"]
BEACH = os.path.join(PICTURES, "beach.png")
NAMES = ["beach.png", "breakfast.png", "park.png"]


def describe(*args, stdin=b"", env=None, cwd=None):
    environment = {key: value for key, value in os.environ.items() if key not in ("LLAVA_MODEL", "IMAGE_CHAT_API_KEY")}
    done = subprocess.run([DESCRIBE, *args], input=stdin, capture_output=True, timeout=SECONDS,
                          env={**environment, **(env or {})}, cwd=cwd)
    done.out, done.err = done.stdout.decode(), done.stderr.decode()
    for sign in SIGNS:
        if sign in done.err:
            raise AssertionError(done.err)
    return done


class Client(Case):
    args = ("-q",)

    def setUp(self):
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.dir = tempfile.mkdtemp(prefix="client-test-")
        self.addCleanup(shutil.rmtree, self.dir)

    def ask(self, *args, **more):
        return describe("--server", self.url, *args, **more)

    def test_same_answers(self):
        """The same output and status as a model here gives, picture by picture and together."""
        files = [os.path.join(PICTURES, name) for name in NAMES]
        for args in ([BEACH], files, ["--together", *files[:2]], ["-p", "Is there a cat?", files[2]],
                     ["-s", "Be brief.", BEACH], ["--max-tokens", "3", BEACH], ["--stop", " palm", BEACH],
                     ["-t", "1.5", "--seed", "18446744073709551615", "--top-k", "5", "--max-tokens", "9", BEACH],
                     ["--repetition-penalty", "1.3", "--presence-penalty", "0.5", BEACH],
                     [files[0], "missing.png", files[1]]):
            here, there = describe("-q", *args), self.ask("-q", *args)
            self.assertEqual((there.out, there.returncode, there.err), (here.out, here.returncode, here.err), args)

    def test_sources(self):
        with open(BEACH, "rb") as file:
            data = file.read()
        want = describe("-q", BEACH).out
        self.assertEqual(self.ask("-q", "-", stdin=data).out, want)
        self.assertEqual(self.ask("-q", data_uri(data)[:3000]).returncode, 1)
        self.assertEqual(self.ask("-q", data_uri(png(9, 9))).returncode, 0)

    def test_json(self):
        here, there = (json.loads(run("-q", "--json", "--max-tokens", "5", BEACH).out) for run in (describe, self.ask))
        for value in (here, there):
            self.assertEqual(sorted(value.pop("timings_ms")), ["decode", "encode", "first_token", "load", "prefill",
                                                               "preprocess"])
            value["usage"].pop("cached_tokens")
        self.assertEqual(here, there)

    def test_schema(self):
        path = os.path.join(self.dir, "s.json")
        with open(path, "w") as file:
            json.dump({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}, file)
        done = self.ask("-q", "--json-schema", path, BEACH)
        self.assertEqual(done.returncode, 0, done.err)
        self.assertIs(type(json.loads(done.out)["a"]), bool)

    def test_folders(self):
        folder = os.path.join(self.dir, "photos")
        os.mkdir(folder)
        for i in range(24):
            with open(os.path.join(folder, f"{i:02}.png"), "wb") as file:
                file.write(png(10 + i, 40 - i, (9 * i, 50, 200)) if i % 8 else b"no picture")
        tables = []
        for run, name in ((describe, "here.csv"), (self.ask, "there.csv")):
            done = run("--output", name, "--failures", name + ".failed", "--max-tokens", "6", "photos", cwd=self.dir)
            self.assertEqual(done.returncode, 1, done.err)
            with open(os.path.join(self.dir, name), newline="") as file:
                rows = [{key: row[key] for key in ("source", "text", "finish_reason", "width", "height",
                                                   "completion_tokens")} for row in csv.DictReader(file)]
            with open(os.path.join(self.dir, name + ".failed")) as file:
                failed = [line.split("\t")[0] for line in file]
            tables.append((rows, failed))
        self.assertEqual(tables[0], tables[1])
        self.assertEqual((len(tables[0][0]), len(tables[0][1])), (21, 3))
        again = self.ask("--output", "there.csv", "photos/01.png", cwd=self.dir)
        self.assertIn("has its caption", again.err)
        done = self.ask("--sidecar", ".txt", "--prefix", "my style, ", "photos/01.png", cwd=self.dir)
        self.assertEqual(done.returncode, 0, done.err)
        with open(os.path.join(folder, "01.txt")) as file:
            self.assertTrue(file.read().startswith("my style, "))

    def test_failures_say_why(self):
        path = os.path.join(self.dir, "bad.png")
        with open(path, "wb") as file:
            file.write(png()[:40])
        done = self.ask("-q", path)
        self.assertEqual((done.returncode, done.out), (1, ""))
        self.assertIn("bad.png: ", done.err)
        done = self.ask("-q", "-p", "crab " * 5000, BEACH)
        self.assertEqual(done.returncode, 1)
        self.assertIn("tokens", done.err)

    def test_unusable_server(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for server, word in ((f"http://127.0.0.1:{port}", "connect"), ("http://no-such-host.invalid", "resolve"),
                             (self.url + "/nothing", "404")):
            done = describe("--server", server, BEACH)
            self.assertEqual((done.returncode, done.out), (3, ""), done.err)
            self.assertEqual(len(done.err.splitlines()), 1)
            self.assertIn(word, done.err)

    def test_spellings_of_the_url(self):
        for url in (self.url + "/", self.url + "/v1", self.url + "/v1/", f"127.0.0.1:{self.server.port}"):
            self.assertEqual(describe("-q", "--server", url, "--max-tokens", "1", BEACH).returncode, 0)

    def test_key(self):
        server = self.start("--api-key", "secret", key="secret")
        url = f"http://127.0.0.1:{server.port}"
        done = describe("-q", "--server", url, "--max-tokens", "1", BEACH)
        self.assertEqual(done.returncode, 3)
        self.assertIn("401", done.err)
        for more in ({"args": ("--api-key", "secret")}, {"env": {"IMAGE_CHAT_API_KEY": "secret,other"}}):
            done = describe("-q", "--server", url, "--max-tokens", "1", BEACH, *more.get("args", ()), env=more.get("env"))
            self.assertEqual(done.returncode, 0, done.err)

    def test_wrong_usage(self):
        for args in (["--api-key", "x"], ["--server", self.url, "--device", "cpu"], ["--server", self.url, "--chat"],
                     ["--server", self.url, "--session-len", "100"], ["--server", ""]):
            done = describe(*args, BEACH)
            self.assertEqual((done.returncode, done.out), (2, ""), args)

    def test_verbose(self):
        done = self.ask("-v", BEACH)
        self.assertIn(f"demo-model answers at {self.url}", done.err)
        self.assertIn("640 x 480", done.err)

    def test_interrupt(self):
        process = subprocess.Popen([DESCRIBE, "--server", self.url, "-t", "2", "--max-tokens", "1500", "-q", BEACH] +
                                   ["-p", "Tell me all.", "--json-schema", self.long_schema()],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.server.wait_for(lambda: self.server.metric("running") == 1)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        process.communicate(timeout=SECONDS)
        self.assertEqual(process.returncode, 130)
        self.assertLess(time.monotonic() - start, 10)
        self.server.wait_for(lambda: self.server.metric("chat_requests") == 0, 10)

    def long_schema(self):
        path = os.path.join(self.dir, "long.json")
        with open(path, "w") as file:
            json.dump({"type": "string", "minLength": 6000}, file)
        return path

    def test_server_that_breaks_off(self):
        """Not image-chat: the model's list, then half an answer, another reply each time."""
        answers = [b"data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n",
                   b"data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\ndata: {\"error\":{\"message\":\"why\"}}\n\n",
                   b"data: nonsense\n\n", b"<html>", b""]
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def serve():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.settimeout(5)
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += client.recv(65536)
                    body = b'{"data":[{"id":"m"}]}'
                    if head.startswith(b"POST"):
                        n = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                        got = len(head.split(b"\r\n\r\n", 1)[1])
                        while got < n:
                            got += len(client.recv(65536))
                        body = answers.pop(0)
                    client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                                   % (len(body), body))

        threading.Thread(target=serve, daemon=True).start()
        while answers:
            n = len(answers)
            done = describe("-q", "--server", f"127.0.0.1:{listener.getsockname()[1]}", BEACH)
            self.assertEqual((done.returncode, len(answers)), (1, n - 1), done.err)
            self.assertEqual(len(done.err.splitlines()), 1)


if __name__ == "__main__":
    unittest.main()
