"""The command line itself: nothing here loads a model."""

import unittest

from cli import Case


class Options(Case):
    def refused(self, *args, naming):
        result = self.run_describe(*args)
        self.assertEqual(result.status, 2, result.err)
        self.assertEqual(result.out, "")
        self.assertEqual(len(result.errors), 1, result.err)
        self.assertTrue(result.err.startswith("describe: "), result.err)
        self.assertIn(naming, result.err)

    def test_help_and_version(self):
        result = self.run_describe("--help")
        self.assertEqual((result.status, result.err), (0, ""))
        for word in ("usage:", "--prompt", "--json", "Examples", "Exit status"):
            self.assertIn(word, result.out)
        self.assertLessEqual(max(map(len, result.out.splitlines())), 100)
        result = self.run_describe("--version")
        self.assertRegex(result.out, r"^describe \d+\.\d+\.\d+")

    def test_no_picture(self):
        self.refused(naming="no picture")

    def test_unknown_options(self):
        self.refused("--promt", "x", "good.png", naming="--prompt")
        self.refused("--max-token=3", "good.png", naming="--max-tokens")
        self.refused("--zzzzzzzzzz", "good.png", naming="--help")
        self.refused("-x", "good.png", naming="-x")

    def test_values(self):
        for value in ("0", "-1", "abc", "", "1.5", "nan", "99999999999", "3x", "0x10", " 3"):
            self.refused("--max-tokens", value, "good.png", naming="from 1 to 1000000")
        for value in ("nan", "inf", "-0.1", "warm", "11"):
            self.refused("--temperature", value, "good.png", naming="from 0 to 10")
        for value in ("-1", "1.5", "18446744073709551616", "x"):
            self.refused("--seed", value, "good.png", naming="18446744073709551615")
        self.refused("--top-p", "1.1", "good.png", naming="from 0 to 1")
        self.refused("--top-k", "-1", "good.png", naming="whole number")
        self.refused("--repetition-penalty", "0", "good.png", naming="from 0.01")
        self.refused("--threads", "0", "good.png", naming="--threads")
        for value in ("0", "9", "two"):
            self.refused("--tp", value, "good.png", naming="from 1 to 8")
        self.refused("--tp", "2", "--server", "http://127.0.0.1:1", "good.png", naming="--server")
        self.refused("--session-len", "15", "good.png", naming="from 16")
        self.refused("--device", "gpu", "good.png", naming="cuda:N")
        self.refused("--device", "cuda:", "good.png", naming="cuda:N")
        for value in ("linear:", "linear:0.5", "yarn:", "cubic:2", "linear:nan", "linear:2x"):
            self.refused("--rope-scaling", value, "good.png", naming="linear:2")
        for value in ("4", "08", "8x", ""):
            self.refused("--quant-policy", value, "good.png", naming="0 or 8")
        for value in ("0", "-1", "8X", "8GB", "1.3K", "K", "99999999999999999999", "16777216000G", ""):
            self.refused("--kv-memory", value, "good.png", naming="as in 500M")
        for value in ("1", "500M", "8g", "1.5G"):
            self.refused("--kv-memory", value, naming="no picture")
        for value in ("0", "1", "2", "half"):
            self.refused("--cache-max-entry-count", value, "good.png", naming="from 0.001 to 0.99")
        for value in ("0", "257", "x"):
            self.refused("--max-batch-size", value, "good.png", naming="from 1 to 256")

    def test_values_that_are_not_there(self):
        self.refused("good.png", "--prompt", naming="TEXT")
        self.refused("good.png", "-p", naming="TEXT")
        for option in ("--model", "--device", "--files-from", "--dump-tensors"):
            self.refused(option, "", "good.png", naming=option)
        self.refused("--json=yes", "good.png", naming="no value")

    def test_options_that_do_not_go_together(self):
        self.refused("-", "-", naming="standard input")
        self.refused("--files-from", "-", "-", naming="standard input")
        self.refused("--chat", "-", naming="standard input")
        self.refused("--chat", "--json", naming="--json")
        self.refused("--json-schema", "s.json", "--ignore-eos", "good.png", naming="--ignore-eos")
        self.refused("-0", "good.png", naming="--files-from")
        self.refused("-q", "-v", "good.png", naming="opposites")
        self.refused("--dump-tensors", "d", "good.png", "good.png", naming="--together")
        self.refused("--files-from", "missing.txt", naming="missing.txt")
        self.refused("--dump-tensors", "good.png/x", "good.png", naming="good.png/x")


if __name__ == "__main__":
    unittest.main()
