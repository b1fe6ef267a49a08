"""Downloading models by name, from a hub on loopback that behaves well, and in every bad way."""

import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import unittest

from cli import MODEL, SECONDS, TINY, Case
from hub import COMMIT, Hub, checksum
from test_output import Terminal

NAME = "org/tiny"
WEIGHTS = "model.safetensors"


def files_of(folder):
    files = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                files[name] = file.read()
    return files


class Pull(Case):
    def setUp(self):
        super().setUp()
        self.hub = Hub()
        self.addCleanup(self.hub.close)
        self.files = files_of(MODEL)
        self.hub.models[NAME] = dict(self.files)
        self.home = os.path.join(self.dir, "home")
        self.env = {"HF_ENDPOINT": self.hub.url, "HF_HOME": self.home, "HF_TOKEN": "hf_secret",
                    "HF_HUB_CACHE": "", "no_proxy": "*", "LLAVA_MODEL": ""}

    def start(self, *args, env=None, **popen):
        return super().start(*args, env={**self.env, **(env or {})}, **popen)

    def pull(self, *args, name=NAME, **more):
        return self.run_describe("--pull", name, *args, **more)

    def at(self, *parts, name=NAME):
        return os.path.join(self.home, "hub", "models--" + name.replace("/", "--"), *parts)

    def blob(self, name, ending=""):
        return self.at("blobs", checksum(name, self.hub.models[NAME][name]) + ending)

    def pulled(self, result, files, name=NAME):
        """The cache holds exactly these files, as huggingface_hub lays them out."""
        self.assertEqual((result.status, result.out), (0, ""), result.err)
        with open(self.at("refs", "main", name=name), encoding="ascii") as file:
            self.assertEqual(file.read(), COMMIT)
        snapshot = self.at("snapshots", COMMIT, name=name)
        self.assertEqual(sorted(os.listdir(snapshot)), sorted(files))
        for file, data in files.items():
            link = os.readlink(os.path.join(snapshot, file))
            self.assertEqual(link, "../../blobs/" + checksum(file, data))
        self.assertEqual(files_of(snapshot), files)
        self.assertEqual(len(os.listdir(self.at("blobs", name=name))), len(set(files.values())))

    def refused(self, result, *words, status=1):
        """One line that names the model and says these words, and no model in the cache."""
        self.assertEqual((result.status, result.out), (status, ""), result.err)
        self.assertEqual(len(result.errors), 1, result.err)
        self.assertTrue(result.err.startswith(f"describe: {NAME}: "), result.err)
        for word in words:
            self.assertIn(word, result.err)
        self.assertFalse(os.path.exists(self.at("refs")))
        self.assertFalse(os.path.exists(self.at("snapshots")))
        found = self.describe("--model", NAME, "good.png")
        self.assertEqual(found.status, 3, found.err)
        self.assertIn(f"describe --pull {NAME}", found.err)

    def quietly(self, **more):
        return self.pull("-q", **more)

    # --- what works

    def test_a_model_then_a_picture(self):
        self.hub.models[NAME].update({  # of no use to us
            "README.md": b"x", "pytorch_model.bin": b"x", "model.fp16.safetensors": b"x",
            "consolidated.safetensors": b"x", "pytorch_model.bin.index.json": b"{}",
            ".gitattributes": b"x", "onnx/model.safetensors": b"x"})
        result = self.pull()
        self.pulled(result, self.files)
        lines = result.errors
        self.assertEqual(len(lines), len(self.files) + 1, result.err)
        self.assertIn("describe: model.safetensors: 1.7 MB, checked", lines)
        self.assertEqual(lines[-1], f"describe: {NAME}: complete in {self.at('snapshots', COMMIT)}")
        self.assertNotIn("\r", result.err)
        result = self.describe("--model", NAME, "good.png", env={"HF_ENDPOINT": "http://127.0.0.1:1"})
        self.assertEqual((result.status, result.err), (0, ""))
        self.assertEqual(result.out, self.describe("--model", MODEL, "good.png").out)

    def test_a_second_time_nothing_is_downloaded(self):
        self.pulled(self.pull(), self.files)
        self.hub.requests.clear()
        result = self.pull()
        self.pulled(result, self.files)
        self.assertEqual(len(result.errors), 1, result.err)
        self.assertEqual([r[2] for r in self.hub.requests], [f"/api/models/{NAME}/revision/main"])

    def test_a_new_commit_downloads_what_changed(self):
        self.pulled(self.pull(), self.files)
        self.hub.requests.clear()
        self.hub.commit = COMMIT[::-1]
        self.hub.models[NAME]["generation_config.json"] = b'{"do_sample": false}'
        self.assertEqual(self.quietly().status, 0)
        self.assertEqual([r[2].rsplit("/", 1)[1] for r in self.hub.asked("GET")],
                         ["main", "generation_config.json"])
        with open(self.at("refs", "main"), encoding="ascii") as file:
            self.assertEqual(file.read(), self.hub.commit)
        self.assertEqual(files_of(self.at("snapshots", self.hub.commit)), self.hub.models[NAME])
        self.assertEqual(files_of(self.at("snapshots", COMMIT)), self.files)

    def test_pictures_go_on_with_it(self):
        result = self.quietly_with("good.png", "missing.png")
        self.assertEqual(result.status, 1)
        self.assertEqual(len(result.errors), 1, result.err)
        self.assertTrue(result.out.startswith("good.png: "))
        self.assertIn("missing.png", result.err)
        both = self.quietly_with("--model", os.path.join(TINY, "hf16"), "--json", "good.png")
        alone = self.describe("--model", os.path.join(TINY, "hf16"), "--json", "good.png")
        self.assertEqual(self.objects(both)[0]["usage"], self.objects(alone)[0]["usage"])

    def quietly_with(self, *args):
        return self.pull("-q", "--max-tokens", "2", *args)

    def test_shards_are_those_of_the_index(self):
        clip = "openai/clip"
        files = files_of(os.path.join(TINY, "orig15"))
        config = json.loads(files["config.json"])
        files["config.json"] = json.dumps({**config, "mm_vision_tower": clip}).encode()
        self.hub.models = {clip: files_of(os.path.join(TINY, "orig15_clip")),
                           NAME: {**files, "model-old.safetensors": b"x", "training_args.bin": b"x"}}
        result = self.pull()
        self.pulled(result, files)
        self.pulled(result, self.hub.models[clip], name=clip)  # the tower that the model names
        self.assertIn(clip, result.err)
        result = self.describe("--model", NAME, "good.png")
        self.assertEqual((result.status, result.err), (0, ""))
        self.hub.requests.clear()
        result = self.quietly_with("--vision-model", os.path.join(TINY, "orig15_clip"), "good.png")
        self.assertEqual((result.status, result.err), (0, ""))
        self.assertEqual(len(self.hub.requests), 1)

    def test_the_token_stays_with_the_hub(self):
        self.assertEqual(self.quietly().status, 0)
        headers = [r[3] for r in self.hub.asked("GET", "store")]
        self.assertEqual(len(headers), 2)  # model.safetensors, tokenizer.model
        for one in headers:
            self.assertNotIn("Authorization", one)
        for method, where, path, one in self.hub.asked("GET", "hub") + self.hub.asked("HEAD"):
            self.assertEqual(one["Authorization"], "Bearer hf_secret", (method, where, path))

    def test_where_the_token_is(self):
        def sent(**env):
            self.hub.requests.clear()
            self.assertEqual(self.quietly(env={"HF_TOKEN": "", **env}).status, 0)
            return self.hub.requests[0][3].get("Authorization")

        self.assertIsNone(sent())
        self.write("home/token", b"hf_stored\n")
        self.assertEqual(sent(), "Bearer hf_stored")
        self.write("elsewhere", b" hf_other ")
        self.assertEqual(sent(HF_TOKEN_PATH=os.path.join(self.dir, "elsewhere")), "Bearer hf_other")
        self.assertEqual(sent(HF_TOKEN="a\r\nX-Evil: b"), "Bearer a")
        self.assertNotIn("X-Evil", self.hub.requests[0][3])
        self.assertEqual(self.quietly(env={"HF_TOKEN": "a\x01b"}).status, 1)

    def test_progress_on_a_terminal(self):
        terminal = Terminal(self, "--pull", NAME)
        self.assertEqual(terminal.finish(), 0, terminal.text)
        self.assertRegex(terminal.text, r"\r\033\[K\[#* *\] \d+\.\d of 1\.7 MB")
        self.assertIn("MB/s", terminal.text)

    # --- going on

    def test_a_connection_that_breaks_once(self):
        self.hub.cuts[WEIGHTS] = 700_000
        result = self.quietly()
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertEqual(os.stat(self.blob(WEIGHTS, ".incomplete")).st_size, 700_000)
        self.assertFalse(os.path.exists(self.blob(WEIGHTS)))
        self.refused(result, WEIGHTS)
        del self.hub.cuts[WEIGHTS]
        self.hub.requests.clear()
        self.pulled(self.pull(), self.files)
        (_, _, path, headers), = self.hub.asked("GET", "store")
        self.assertEqual(headers["Range"], "bytes=700000-")
        self.assertTrue(path.endswith(WEIGHTS))

    def test_a_connection_that_breaks_and_comes_back(self):
        class Cuts(dict):
            def __setitem__(self, name, value):  # the server's "nothing from now on"
                self.pop(name, None)

        self.hub.cuts = Cuts({WEIGHTS: 700_000})
        self.pulled(self.pull(), self.files)
        ranges = [r[3].get("Range") for r in self.hub.asked("GET", "store", WEIGHTS)]
        self.assertEqual(ranges, [None, "bytes=700000-"])

    def test_a_server_without_ranges(self):
        self.leave_half()
        self.hub.ranges = False
        self.pulled(self.pull(), self.files)

    def leave_half(self, data=None):
        os.makedirs(self.at("blobs"))
        with open(self.blob(WEIGHTS, ".incomplete"), "wb") as file:
            file.write(self.files[WEIGHTS][:1_000_000] if data is None else data)

    def test_what_lies_there_already(self):
        self.leave_half(self.files[WEIGHTS])  # whole, not yet renamed
        self.pulled(self.pull(), self.files)
        self.assertEqual(self.hub.asked("GET", "store", WEIGHTS), [])

    def test_what_lies_there_is_wrong(self):
        self.leave_half(b"x" * 1000)
        result = self.quietly()
        self.refused(result, "SHA-256", WEIGHTS)
        self.assertFalse(os.path.exists(self.blob(WEIGHTS, ".incomplete")))
        self.pulled(self.pull(), self.files)

    def test_what_lies_there_is_too_long(self):
        self.leave_half(b"x" * 5_000_000)
        self.pulled(self.pull(), self.files)

    def test_another_range_than_asked(self):
        self.leave_half()
        self.hub.content_range = "bytes 5-9/10"
        self.refused(self.quietly(), "asked for the bytes from 1000000", WEIGHTS)

    def test_interrupt_keeps_what_is_there(self):
        self.hub.cuts[WEIGHTS], self.hub.hangs = 900_000, True
        process = self.start("--pull", NAME, stderr=subprocess.PIPE)
        self.assertTrue(self.hub.was_cut.wait(SECONDS))
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=SECONDS)[1].decode()
        self.assertEqual(process.returncode, 130, err)
        self.assertIn("goes on from here", err)
        n = os.stat(self.blob(WEIGHTS, ".incomplete")).st_size
        self.assertLessEqual(n, 900_000)
        self.hub.cuts, self.hub.hangs = {}, False
        self.pulled(self.pull(), self.files)
        if n:
            headers = self.hub.asked("GET", "store", WEIGHTS)[-1][3]
            self.assertEqual(headers["Range"], f"bytes={n}-")

    def test_two_at_once(self):
        lock = os.path.join(self.home, "hub", ".locks", "models--org--tiny",
                            checksum(WEIGHTS, self.files[WEIGHTS]) + ".lock")
        os.makedirs(os.path.dirname(lock))
        with open(lock, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # as huggingface_hub does
            self.refused(self.quietly(), "another program", WEIGHTS)
        self.pulled(self.pull(), self.files)

    # --- what is refused

    def test_wrong_bytes(self):
        for name in (WEIGHTS, "config.json", "tokenizer.model"):
            data = self.files[name]
            self.hub.served = {name: b"?" + data[1:]}
            self.refused(self.quietly(), name, checksum(name, data),
                         "SHA-1" if name == "config.json" else "SHA-256")
            self.assertFalse(os.path.exists(self.blob(name)))
            self.assertFalse(os.path.exists(self.blob(name, ".incomplete")))
            shutil.rmtree(self.home)
        self.hub.served = {}
        self.pulled(self.pull(), self.files)

    def test_wrong_lengths(self):
        self.hub.served = {WEIGHTS: self.files[WEIGHTS] + b"x"}
        self.refused(self.quietly(), "more than", WEIGHTS)
        shutil.rmtree(self.home)
        self.hub.served = {WEIGHTS: self.files[WEIGHTS][:500]}
        self.refused(self.quietly(), "ended after 500", WEIGHTS)
        for size in ("", "-1", "x", "1e6", "99999999999999999999"):
            self.hub.sizes = {WEIGHTS: size or " "}
            self.refused(self.quietly(), WEIGHTS)

    def test_checksums_that_are_none(self):
        for text in ("../../../x", "", "abc", "A" * 64, "a" * 63, "a" * 64 + "/x", "a" * 64 + '"b'):
            self.hub.checksums = {WEIGHTS: text or " "}
            self.refused(self.quietly(), WEIGHTS, "checksum")

    def test_hostile_names(self):
        for name in ("/etc/passwd.json", "../x.json", "a/../../x.json", "..", "", "a//b.json",
                     "a\nb.json", "a\\..\\b.json", "x" * 300 + ".json", "\x7f.json", "./x.json",
                     "a\0b.json", None, 7):
            self.hub.listed = [*self.files, name]
            self.refused(self.quietly())
        self.hub.listed = [f"{i}.json" for i in range(10_001)] + [WEIGHTS]
        self.refused(self.quietly(), "10000")
        self.hub.listed = None
        for commit in ("../../x", "", "main", "A" * 40, "a" * 41, None):
            self.hub.commit = commit
            self.refused(self.quietly(), "sha")
        self.assertEqual(sorted(os.listdir(self.dir)), ["good.png"])

    def test_a_link_in_the_way(self):
        os.makedirs(self.at("blobs"))
        target = os.path.join(self.dir, self.write("mine", b"keep me"))
        os.symlink(target, self.blob(WEIGHTS, ".incomplete"))
        self.refused(self.quietly(), ".incomplete")
        with open(target, "rb") as file:
            self.assertEqual(file.read(), b"keep me")

    def test_statuses(self):
        for status, words in ((401, ("401", "check HF_TOKEN")), (403, ("403", "conditions")),
                              (404, ("404",)), (429, ("429",)), (500, ("500",)), (204, ("204",))):
            self.hub.status = status
            self.refused(self.quietly(), *words)
        self.hub.status = 401
        self.refused(self.quietly(env={"HF_TOKEN": ""}), "wants HF_TOKEN")
        self.hub.error_headers = {"X_Error_Code": "GatedRepo"}
        self.refused(self.quietly(env={"HF_TOKEN": ""}), "401", "conditions")
        self.hub.status, self.hub.error_headers = None, {}
        result = self.pull(name="org/absent")
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertIn("not found", result.err)

    def test_no_network(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            for url in (f"http://127.0.0.1:{unused.getsockname()[1]}", "http://no-such-host.invalid"):
                self.refused(self.quietly(env={"HF_ENDPOINT": url}))

    def test_endpoints(self):
        self.refused(self.quietly(env={"HF_ENDPOINT": "ftp://127.0.0.1"}), "HF_ENDPOINT")
        self.refused(self.quietly(env={"HF_ENDPOINT": "127.0.0.1"}), "HF_ENDPOINT")
        self.pulled(self.pull(env={"HF_ENDPOINT": self.hub.url + "//"}), self.files)

    def test_models_without_weights_of_ours(self):
        for files, word in (({"pytorch_model.bin": b"x"}, "llava-hf/llava-1.5-7b-hf"),
                            ({"model.gguf": b"x"}, "GGUF"), ({}, "no weights")):
            self.hub.models[NAME] = {"config.json": b"{}", **files}
            self.refused(self.quietly(), word)
        self.assertEqual(self.hub.asked("HEAD"), [])

    def test_an_index_that_lies(self):
        del self.hub.models[NAME][WEIGHTS]
        self.hub.models[NAME]["model-1.safetensors"] = b"x"
        for name in ("gone.safetensors", "config.json", "../x.safetensors", 5):
            self.hub.models[NAME]["model.safetensors.index.json"] = json.dumps(
                {"weight_map": {"norm.weight": name}}).encode()
            self.refused(self.quietly(), "norm.weight")
        self.hub.models[NAME]["model.safetensors.index.json"] = b'{"weight_map": {}}'
        self.refused(self.quietly(), "weight_map")

    def test_names(self):
        for name in ("..", "a/b/c", "/x", "a/..", "a b", "https://huggingface.co/a/b", "-x/y"):
            result = self.run_describe(f"--pull={name}")
            self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertEqual(self.run_describe("--pull", "").status, 2)
        self.assertEqual(self.hub.requests, [])

    def test_disks(self):
        self.hub.sizes[WEIGHTS] = str(1 << 50)
        self.refused(self.quietly(), "too full", "1125899906.8 MB")
        self.assertEqual(self.hub.asked("GET", "store", WEIGHTS), [])
        self.hub.sizes = {}

        def limit():  # a write fails half-way, as on a full disk
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

        process = self.start("-q", "--pull", NAME, stderr=subprocess.PIPE, preexec_fn=limit)
        err = process.communicate(timeout=SECONDS)[1].decode()
        self.assertEqual((process.returncode, err.count("\n")), (1, 1), err)
        self.assertIn("cannot write", err)
        self.pulled(self.pull(), self.files)
        self.assertEqual(self.hub.asked("GET", "store", WEIGHTS)[-1][3]["Range"], "bytes=500000-")

    def test_a_cache_that_cannot_be_written(self):
        self.home = os.path.join(self.dir, "good.png")
        self.env["HF_HOME"] = self.home
        result = self.quietly()
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertIn("good.png", result.err)
        self.assertTrue(stat.S_ISREG(os.stat(self.home).st_mode))


if __name__ == "__main__":
    unittest.main()
