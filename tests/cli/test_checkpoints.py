"""Checkpoints that lie: exit status 3 and one clear line, whatever is wrong with them."""

import json
import os
import pickle
import shutil
import struct
import unittest

from cli import MODEL, TINY, Case


class Checkpoints(Case):
    def setUp(self):
        super().setUp()
        self.model = os.path.join(self.dir, "model")
        os.mkdir(self.model)
        for name in os.listdir(MODEL):  # what a test changes, it replaces
            if os.path.isfile(os.path.join(MODEL, name)):
                os.symlink(os.path.join(MODEL, name), os.path.join(self.model, name))
        weights = sorted(n for n in os.listdir(MODEL) if n.endswith(".safetensors"))
        self.weights = weights[0]
        with open(os.path.join(MODEL, self.weights), "rb") as file:
            self.data = file.read()
        n, = struct.unpack("<Q", self.data[:8])
        self.header = json.loads(self.data[8:8 + n])
        self.body = self.data[8 + n:]
        self.name = next(name for name in self.header if name.endswith("norm.weight"))

    def replace(self, name, data):
        path = os.path.join(self.model, name)
        if os.path.lexists(path):
            os.unlink(path)
        with open(path, "wb") as file:
            file.write(data)

    def replace_header(self, header):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.replace(self.weights, struct.pack("<Q", len(text)) + text + self.body)

    def refused(self, *naming, args=()):
        result = self.describe("--model", "model", *args, "good.png")
        self.assertEqual((result.status, result.out), (3, ""), result.err)
        self.assertEqual(len(result.errors), 1, result.err)
        for word in naming:
            self.assertIn(word, result.err)

    def test_good_ones(self):
        self.assertEqual(self.describe("--model", "model", "good.png").status, 0)
        for policy in "08":
            result = self.describe("--model", "model", "--quant-policy", policy, "good.png")
            self.assertEqual((result.status, result.err), (0, ""))
        for args in (["hf16"], ["awq64"], ["rope_yarn"], ["orig16"],
                     ["orig15", "--vision-model", os.path.join(TINY, "orig15_clip")]):
            result = self.describe("--model", os.path.join(TINY, args[0]), *args[1:], "good.png")
            self.assertEqual((result.status, result.err), (0, ""))

    def test_tensor_parallelism(self):
        args = ("--device", "cpu", "--model", os.path.join(TINY, "hf15"), "-n", "16", "good.png")
        alone, together = self.describe(*args), self.describe("--tp", "2", *args)
        self.assertEqual((together.status, together.out), (0, alone.out), together.err)
        self.assertIn("device    2 x CPU", self.run_describe("-v", "--tp", "2", *args).err)
        self.refused("4 KV heads", "5 devices", args=("--device", "cpu", "--tp", "5"))
        result = self.describe("--device", "cuda:99", "--tp", "2", "good.png")
        self.assertEqual((result.status, len(result.errors)), (3, 1), result.err)
        self.assertIn("2 GPUs", result.err)

    def test_hub_name(self):
        at = os.path.join(self.dir, "hub", "models--org--name")
        os.makedirs(os.path.join(at, "refs"))
        os.makedirs(os.path.join(at, "snapshots"))
        os.symlink(self.model, os.path.join(at, "snapshots", "abc"))
        with open(os.path.join(at, "refs", "main"), "w", encoding="ascii") as file:
            file.write("abc")
        env = {"HF_HUB_CACHE": os.path.join(self.dir, "hub")}
        result = self.describe("--model", "org/name", "good.png", env=env)
        self.assertEqual((result.status, result.err), (0, ""))
        result = self.describe("--model", "org/other", "good.png", env=env)
        self.assertEqual((result.status, len(result.errors)), (3, 1), result.err)
        self.assertIn("org/other", result.err)

    def test_offsets(self):
        tensor = self.header[self.name]
        begin, end = tensor["data_offsets"]
        for lie in ([begin, end + (1 << 40)], [end, begin], [-8, end - begin - 8], [begin, end - 2],
                    [1 << 63, (1 << 63) + end - begin], [begin], [begin + 0.5, end], "0", None,
                    [(1 << 64) - 2, end - begin - 2]):
            tensor["data_offsets"] = lie
            self.replace_header(self.header)
            self.refused(self.weights)

    def test_header(self):
        for header in (b"", b"{", b"[]", b"null", b'{"a": NaN}', b"\xff\xfe", b"{}" * 3,
                       b'{"a":' * 5000, b'{"' + b"x" * 100000):
            self.replace_header(header)
            self.refused(self.weights)

    def test_header_length(self):
        for length in (0, 1, len(self.data), 1 << 31, 1 << 63, (1 << 64) - 1, (1 << 64) - 8):
            self.replace(self.weights, struct.pack("<Q", length) + self.data[8:])
            self.refused(self.weights)

    def test_truncated(self):
        for n in (0, 4, 8, 100, len(self.data) // 2, len(self.data) - 1):
            self.replace(self.weights, self.data[:n])
            self.refused(self.weights)

    def test_shapes_and_types(self):
        tensor = dict(self.header[self.name])
        for change in ({"shape": [tensor["shape"][0] // 2, 2]}, {"shape": [1 << 40, 1 << 40]},
                       {"shape": [-1]}, {"shape": "x"}, {"shape": [1] * 50}, {"dtype": "I64"},
                       {"dtype": "X9"}, {"dtype": 7}):
            self.replace_header({**self.header, self.name: {**tensor, **change}})
            self.refused(self.weights)

    def test_missing_tensor(self):
        del self.header[self.name]
        self.replace_header(self.header)
        self.refused(self.name.split(".")[-2])

    def test_config(self):
        with open(os.path.join(MODEL, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        text = config["text_config"]
        for key, value in (("hidden_size", 1 << 30), ("hidden_size", -384), ("hidden_size", 1.5),
                           ("num_hidden_layers", 1000000), ("num_attention_heads", 0),
                           ("vocab_size", 1), ("intermediate_size", 77), ("rms_norm_eps", "x")):
            self.replace("config.json",
                         json.dumps({**config, "text_config": {**text, key: value}}).encode())
            self.refused()
        for data in (b"", b"{", b"[1]", b"{}", b"\0" * 64, b'{"model_type": "bert"}'):
            self.replace("config.json", data)
            self.refused("config.json")
        os.unlink(os.path.join(self.model, "config.json"))
        self.refused("config.json")

    def test_tokenizer(self):
        self.replace("tokenizer.model", b"\x0a\xff nonsense" * 100)
        self.refused("tokenizer.model")
        os.unlink(os.path.join(self.model, "tokenizer.model"))
        self.refused("tokenizer.model")

    def test_missing_shard(self):
        os.unlink(os.path.join(self.model, self.weights))
        self.replace("model.safetensors.index.json", json.dumps(
            {"weight_map": {self.name: "model-00001-of-00002.safetensors"}}).encode())
        self.refused("model-00001-of-00002.safetensors")
        self.replace("model.safetensors.index.json", json.dumps(
            {"weight_map": {self.name: "../../../etc/passwd"}}).encode())
        self.refused()

    def test_pickle(self):
        os.unlink(os.path.join(self.model, self.weights))
        self.replace("pytorch_model.bin", pickle.dumps({"weight": [1.0]}))
        self.refused("safetensors")

    def test_no_model(self):
        for name in ("missing-folder/x", "model/config.json", "../..", "a" * 5000):
            result = self.describe("--model", name, "good.png")
            self.assertEqual((result.status, len(result.errors)), (3, 1), result.err)

    def test_options_that_the_model_refuses(self):
        shutil.rmtree(self.model)
        result = self.describe("--template", "no-such-template", "good.png")
        self.assertEqual((result.status, len(result.errors)), (3, 1), result.err)
        self.assertIn("vicuna_v1", result.err)
        result = self.describe("--device", "cuda:99", "good.png")
        self.assertEqual((result.status, len(result.errors)), (3, 1), result.err)


if __name__ == "__main__":
    unittest.main()
