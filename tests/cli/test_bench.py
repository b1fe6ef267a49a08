"""llava-bench: what it is asked for it measures, and its synthetic models answer."""

import json
import os
import subprocess
import unittest

from cli import SECONDS, SOURCE, Case

BENCH = os.environ["BENCH"]


class Bench(Case):
    def bench(self, *args, status=0):
        done = subprocess.run([BENCH, *args], cwd=self.dir, capture_output=True, text=True,
                              timeout=SECONDS)
        self.assertEqual(done.returncode, status, done.stderr)
        return done

    def stages(self, *args):
        report = json.loads(self.bench("--synthetic", "demo", "--device", "cpu", "--json",
                                       *args).stdout)
        return [(s["stage"], s["detail"]) for s in report["stages"]], report

    def test_lists(self):
        rows, report = self.stages("--stages", "prefill,decode", "--prompts", "5,70",
                                   "--contexts", "3,65", "--batches", "1,3", "--kv", "f32,i8",
                                   "--decode-tokens", "3")
        self.assertEqual(rows[:2], [("prefill", "5 tokens"), ("prefill", "70 tokens")])
        self.assertEqual(rows[2:], [("decode", f"batch {b}, context {c}, {kv} KV")
                                    for kv in ("f32", "i8") for b in (1, 3) for c in (3, 65)])
        for stage in report["stages"]:
            self.assertGreater(stage["ms"], 0)
            self.assertGreater(stage["share"], 0)

    def test_whole_way(self):
        rows, report = self.stages("--stages", "load,preprocess,encode,answer")
        self.assertEqual([name for name, _ in rows],
                         ["load", "preprocess", "encode", "first token", "answer"])
        self.assertGreater(report["weight_bytes_per_token"], 0)

    def test_too_large(self):
        rows, report = self.stages("--stages", "decode", "--contexts", "65536", "--batches", "256",
                                   "--kv", "f32", "--decode-tokens", "1")
        self.assertEqual(len(rows), 1)
        self.assertIn("does not fit", report["stages"][0]["note"])

    def test_kept_models_answer(self):
        tokenizer = os.path.join(SOURCE, "tests", "golden", "tokenizer", "small.model")
        for kind in ([], ["--dense"]):
            done = self.bench("--synthetic", "demo", "--write", "model", "--tokenizer", tokenizer,
                              *kind)
            self.assertEqual(done.stdout, "")
            done = self.run_describe("--device", "cpu", "--model", "model", "-n", "40", "--json",
                                     "good.png")
            answer, = self.objects(done)
            self.assertEqual((answer["finish_reason"], answer["usage"]["completion_tokens"]),
                             ("length", 40))

    def test_refusals(self):
        for args, words in ((["--synthetic", "demo", "--stages", "dance"], "--stages dance"),
                            (["--synthetic", "demo", "--kv", "f16,f8"], "--kv f8"),
                            (["-m", "x", "--dense"], "go with --synthetic"),
                            (["--synthetic", "demo", "--batches", "1,,2"], "expected a whole number"),
                            (["--synthetic", "demo", "--batches", "257"], "from 1 to 256"),
                            (["--synthetic", "demo", "--tiles", "1," * 16 + "1"], "more than 16"),
                            (["--synthetic", "demo", "--device", "gpu"], "cuda:N"),
                            (["--synth", "demo"], "did you mean --synthetic?"),
                            (["--synthetic", "demo", "-m", "x"], "one of --synthetic and --model"),
                            (["x"], "x: no such option"),
                            ([], "one of --synthetic and --model")):
            done = self.bench(*args, status=2)
            self.assertEqual((done.stdout, done.stderr.count("\n")), ("", 1), done.stderr)
            self.assertIn(words, done.stderr)
        self.assertIn("llava-1.6-7b", self.bench("--synthetic", "llava-9", status=1).stderr)


if __name__ == "__main__":
    unittest.main()
