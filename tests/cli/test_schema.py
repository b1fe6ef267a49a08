"""--json-schema: whatever the model would say, the answer is JSON of the schema."""

import json
import os
import unittest

from cli import SOURCE, Case

DEMO = os.path.join(SOURCE, "assets", "demo-model")
CARD = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "description": "one sentence"},
        "things": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
        "count": {"type": "integer"},
        "background": {"enum": ["beach", "park", None]},
        "sure": {"type": "boolean"},
    },
    "required": ["caption", "things", "count", "background", "sure"],
    "additionalProperties": False,
}


class Schema(Case):
    def setUp(self):
        super().setUp()
        self.write("card.json", json.dumps(CARD).encode())

    def check_card(self, text):
        card = json.loads(text)
        self.assertEqual(list(card), list(CARD["properties"]))
        self.assertIsInstance(card["caption"], str)
        self.assertLessEqual(len(card["things"]), 3)
        self.assertTrue(all(len(thing) <= 20 for thing in card["things"]))
        self.assertIs(type(card["count"]), int)
        self.assertIn(card["background"], ["beach", "park", None])
        self.assertIsInstance(card["sure"], bool)

    def test_demo_model(self):
        beach = os.path.join(SOURCE, "assets", "pictures", "beach.png")
        result = self.run_describe("-q", "--json-schema", "card.json", "-m", DEMO, beach)
        self.assertEqual((result.status, result.err), (0, ""))
        self.check_card(result.out)

    def test_random_weights(self):
        for seed in range(3):
            result = self.run_describe("-q", "--json", "--json-schema", "card.json", "--max-tokens",
                                       "150", "-t", "1", "--seed", str(seed), "good.png", "good.png")
            self.assertEqual(result.status, 0, result.err)
            # Not splitlines(): random answers hold all sorts of Unicode's line ends.
            answers = [json.loads(line) for line in result.out.rstrip("\n").split("\n")]
            self.assertEqual(len(answers), 2)
            for answer in answers:
                self.check_card(answer["text"])
                self.assertIn(answer["finish_reason"], ("stop", "length"))

    def test_too_few_tokens(self):
        result = self.run_describe("--json-schema", "card.json", "--max-tokens", "5", "--json",
                                   "good.png")
        answer, = self.objects(result)
        self.assertEqual(answer["finish_reason"], "length")
        self.assertIn("cut after 5 tokens", result.err)

    def test_chat(self):
        result = self.run_describe("-q", "--chat", "--json-schema", "card.json", "--max-tokens", "200",
                                   "good.png", stdin=b"What is it?\nWhat else?\n")
        self.assertEqual(result.status, 0, result.err)
        lines = result.out.rstrip("\n").split("\n")
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.check_card(line)

    def test_bad_schemas(self):
        bad = {
            "open.json": (b'{"type":', "JSON"),
            "list.json": (b"[]", "object"),
            "empty.json": (b"", "JSON"),
            "large.json": (b" " * (1 << 20) + b"{}", "1048576"),
            "deep.json": (b'{"items":' * 5000 + b"{}" + b"}" * 5000, "nested"),
            "pattern.json": (b'{"properties":{"x":{"pattern":"a"}}}', "#/properties/x: pattern"),
            "never.json": (b'{"items":{"$ref":"#"},"minItems":1}', "nested"),
        }
        for name, (data, naming) in bad.items():
            self.write(name, data)
            self.check_refused(naming, "--json-schema", name, "good.png")
        self.check_refused("missing.json", "--json-schema", "missing.json", "good.png")
        self.check_refused("--stop", "--json-schema", "card.json", "--stop", "x", "good.png")

    def check_refused(self, naming, *args):
        result = self.run_describe(*args)
        self.assertEqual((result.status, result.out), (2, ""), result.err)
        self.assertEqual(len(result.errors), 1, result.err)
        self.assertIn(naming, result.err)


if __name__ == "__main__":
    unittest.main()
