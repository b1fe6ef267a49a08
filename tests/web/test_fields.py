"""Every field at and past its bounds, and fuzzed requests: each gets the right status.

$LV_FUZZ_BODIES says how many fuzzed bodies are sent (default 1000).
"""

import copy
import http.client
import json
import math
import os
import random
import unittest

from web import SECONDS, Case, data_uri, png, user

PICTURE = data_uri(png(8, 6))
LARGE = data_uri(b"P6\n24 24\n255\n" + random.Random(2).randbytes(3 * 24 * 24))
GOOD = {"messages": [user("Hi")], "max_tokens": 1, "temperature": 0}


class Fields(Case):
    def ask(self, **fields):
        return self.server.post("/v1/chat/completions", {**copy.deepcopy(GOOD), **fields})

    def refuse(self, status=400, code=None, param=None, **fields):
        return self.check_error(self.ask(**fields), status, code, param)

    def accept(self, **fields):
        answer = self.ask(**fields)
        self.assertEqual(answer.status, 200, (fields, answer.body[:300]))

    def test_numbers_at_and_past_their_bounds(self):
        """The bounds are those that /openapi.json tells."""
        api = self.server.get("/openapi.json").json
        fields = api["components"]["schemas"]["ChatCompletionRequest"]["properties"]
        bounded = {name: field for name, field in fields.items() if "minimum" in field}
        self.assertEqual(len(bounded), 11)
        for name, field in bounded.items():
            low, high = field["minimum"], field["maximum"]
            more = {"logprobs": True} if name == "top_logprobs" else {}
            if name in ("max_tokens", "max_completion_tokens"):
                more = {"max_tokens": None, "stop": [" "]}
            whole = "integer" in field["type"]
            for value in (low, high, None, field.get("default")):
                self.accept(**{**more, name: value})
            past = (low - 1, high + 1, 2**53, -2**63) if whole else (
                low - 1e-3, math.nextafter(high, math.inf), 1e308, -1e308)
            for value in past:
                self.refuse(code="invalid_value", param=name, **{**more, name: value})
            for value in ("1", True, [], {}, *([1.5, 1.0] if whole else [])):
                self.refuse(code="invalid_type", param=name, **{**more, name: value})

    def test_kinds(self):
        for name in ("stream", "logprobs"):
            for value in (1, 0, "true", [], {}):
                self.refuse(code="invalid_type", param=name, **{name: value})
        for value in (1, True, [], {}):
            self.refuse(code="invalid_type", param="model", model=value)
        for value in (1.5, "1", True, []):
            self.refuse(code="invalid_type", param="seed", seed=value)
        for seed in (0, -1, 2**63 - 1, -2**63):
            self.accept(seed=seed)
        for text in (b"18446744073709551616", b"1e999", b"NaN", b"Infinity", b"01", b"1.", b"+1"):
            body = json.dumps(GOOD).encode()[:-1] + b', "seed": ' + text + b"}"
            self.check_error(self.server.post("/v1/chat/completions", body), 400, "invalid_json")

    def test_stop(self):
        self.accept(stop="x" * 1024)
        self.accept(stop=["x" * 1024] * 32)
        self.accept(stop=[])
        self.refuse(code="invalid_value", param="stop", stop="x" * 1025)
        self.refuse(code="invalid_value", param="stop", stop=["x"] * 33)
        self.refuse(code="invalid_value", param="stop", stop="")
        self.refuse(code="invalid_value", param="stop", stop=["a", ""])
        for value in (1, {}, [1], [None], [["a"]], False):
            self.refuse(code="invalid_type", param="stop", stop=value)

    def test_fields_that_need_one_another(self):
        self.refuse(param="top_logprobs", top_logprobs=1)
        self.refuse(param="stream_options", stream_options={"include_usage": True})
        self.refuse(param="stream_options.nonsense", stream=True, stream_options={"nonsense": 1})
        self.refuse(param="stream_options.include_usage", stream=True,
                    stream_options={"include_usage": 1})
        self.refuse(param="stream_options", stream=True, stream_options=[])
        self.refuse(param="max_completion_tokens", max_tokens=1, max_completion_tokens=2)
        self.accept(max_tokens=1, max_completion_tokens=1)

    def test_response_format(self):
        where = "response_format"
        for value in ("json_object", 1, []):
            self.refuse(param=where, response_format=value)
        self.refuse(param=where + ".type", response_format={})
        self.refuse(param=where + ".type", response_format={"type": "xml"})
        self.refuse(param=where + ".kind", response_format={"type": "text", "kind": 1})
        self.refuse(param=where + ".json_schema", response_format={"type": "json_schema"})
        self.refuse(param=where + ".json_schema", response_format={"type": "text", "json_schema": {}})

        def schema(value, **more):
            return {"type": "json_schema", "json_schema": {"name": "x", "schema": value, **more}}

        for bad in ({"type": "string", "pattern": "a+"}, {"type": "nonsense"}, {"$ref": "#/nowhere"},
                    {"enum": []}, {"minItems": -1, "type": "array"}):
            self.refuse(code="invalid_json_schema", response_format=schema(bad))
        self.refuse(param=where + ".json_schema.schema", response_format=schema([]))
        self.refuse(param=where + ".json_schema.name", response_format=schema({}, name="x" * 65))
        self.refuse(param=where + ".json_schema.strict", response_format=schema({}, strict="yes"))
        self.refuse(param=where + ".json_schema.other", response_format=schema({}, other=1))
        self.accept(response_format={"type": "text"})
        self.accept(response_format=schema({"type": "null"}), max_tokens=8)

    def test_unknown_and_unsupported(self):
        for name in ("nonsense", "prompt", "max_new_tokens", "Temperature", ""):
            error = self.refuse(code="unknown_parameter", **{name: None})
            self.assertIn(name, error["param"] or "")
        tool = {"type": "function", "function": {"name": "f"}}
        for name, value in (("tools", [tool]), ("tool_choice", "required"), ("functions", [{"name": "f"}]),
                            ("function_call", {"name": "f"}), ("audio", {"voice": "x"}),
                            ("logit_bias", {"1": 1}), ("prediction", {"type": "content"}),
                            ("reasoning_effort", "high"), ("verbosity", "low"),
                            ("web_search_options", {"x": 1}), ("modalities", ["text", "audio"]),
                            ("modalities", "text")):
            self.refuse(code="unsupported_parameter", param=name, **{name: value})

    def test_messages(self):
        def refuse(messages, param, status=400, code=None):
            self.refuse(status, code, param, messages=messages)

        for value in ("Hi", {}, 1):
            refuse(value, "messages")
        refuse([], "messages")
        refuse(None, "messages", code="missing_parameter")
        refuse([user("Hi")] * 4097, "messages")
        refuse(["Hi"], "messages[0]")
        refuse([{}], "messages[0].role")
        refuse([{"role": "user"}], "messages[0].content")
        for role in ("tool", "function", "", "User", 1, []):
            refuse([{"role": role, "content": "Hi"}], "messages[0].role")
        for content in (None, 1, {}, True):
            refuse([{"role": "user", "content": content}], "messages[0].content")
        refuse([{"role": "user", "content": []}], "messages[0].content")
        refuse([user("Hi"), {"role": "assistant", "content": "Ho"}], "messages[1].role")
        refuse([user("Hi"), {"role": "system", "content": "x"}, user("Hi")], "messages[1].role")
        refuse([{"role": "system", "content": "x"}] * 17 + [user("Hi")], "messages[16]")
        refuse([{"role": "user", "content": "Hi", "x": 1}], "messages[0].x", code="unknown_parameter")
        refuse([{"role": "assistant", "content": "Hi", "tool_calls": [{}]}, user("Hi")],
               "messages[0].tool_calls", code="unsupported_parameter")
        refuse([user("x" * ((4 << 20) + 1))], "messages[0].content", 413)

    def test_parts(self):
        def refuse(part, param, status=400, code=None):
            self.refuse(status, code, "messages[0].content[0]" + param,
                        messages=[{"role": "user", "content": [part]}])

        for part in ("Hi", 1, None, [], {}, {"type": 1}):
            refuse(part, "")
        for kind in ("input_audio", "file", "image", "refusal", ""):
            refuse({"type": kind}, ".type", code="unsupported_content")
        refuse({"type": "text"}, ".text")
        refuse({"type": "text", "text": 1}, ".text")
        refuse({"type": "text", "text": "x", "x": 1}, ".x")
        refuse({"type": "image_url"}, ".image_url")
        refuse({"type": "image_url", "image_url": PICTURE}, ".image_url")
        refuse({"type": "image_url", "image_url": {}}, ".image_url.url")
        refuse({"type": "image_url", "image_url": {"url": 1}}, ".image_url.url")
        refuse({"type": "image_url", "image_url": {"url": PICTURE, "x": 1}}, ".image_url.x")
        refuse({"type": "image_url", "image_url": {"url": PICTURE, "detail": "max"}}, ".image_url.detail")
        picture = {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}
        self.accept(messages=[{"role": "user", "content": [picture]}])
        for role in ("system", "assistant"):
            self.refuse(messages=[{"role": role, "content": [picture]}, user("Hi")],
                        param="messages[0].content[0]")
        self.accept(messages=[user("Hi", *[PICTURE] * 8)])
        self.refuse(413, "too_many_images", messages=[user("Hi", *[PICTURE] * 17)])

    def test_too_long_for_the_session(self):
        self.refuse(413, "context_length_exceeded", messages=[user("crab " * 5000)])
        self.refuse(413, "context_length_exceeded", stream=True, messages=[user("crab " * 5000)])

    def test_bodies(self):
        post = self.server.post
        for body in (b"", b"{", b"[]", b"1", b'"x"', b"null", b"\xff{}", b'{"a":1,"a":2}', b"{}{}",
                     b'{"messages":"\\ud800"}', b'{"messages":"\\u0000"}', b"[" * 100000,
                     b'{"a":' * 100000, b'{"messages": [' + b"1," * 200000 + b"1]}"):
            self.check_error(post("/v1/chat/completions", body), 400, "invalid_json")
        self.check_error(post("/v1/chat/completions", b"{}"), 400, "missing_parameter", "messages")
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                     "application/jsonp", ""):
            self.check_error(post("/v1/chat/completions", GOOD, {"Content-Type": kind}), 415)
        self.check_error(post("/v1/chat/completions", GOOD, {"Content-Encoding": "gzip"}), 415)
        for kind in ("application/json; charset=utf-8", "Application/JSON"):
            self.assertEqual(post("/v1/chat/completions", GOOD, {"Content-Type": kind}).status, 200)

    def test_long_uris(self):
        """Long ones are read beside the JSON, and only where pictures stand."""
        self.accept(messages=[user("Hi", LARGE, PICTURE, LARGE)])
        self.refuse(413, "context_length_exceeded", messages=[user(LARGE)])  # a text, and all of it
        self.refuse(code="invalid_image", messages=[user("Hi", LARGE[:-2] + "*=")])
        self.refuse(code="invalid_image", messages=[user("Hi", LARGE + "\u00e9")])
        self.refuse(code="invalid_image", messages=[user("Hi", LARGE + "\n")])
        self.refuse(code="invalid_image", messages=[user("Hi", "data:\x7f1", LARGE)])
        self.accept(metadata={"url": LARGE})
        self.refuse(code="unknown_parameter", param="url", url=LARGE)
        self.refuse(code="invalid_json_schema", response_format={"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"properties": {"url": {"const": {"url": LARGE}}}}}})
        text = self.server.post("/v1/tokenize", {"prompt": json.dumps({"url": LARGE}),
                                                 "return_token_strs": True}).json["token_strs"]
        self.assertEqual("".join(text).strip(), json.dumps({"url": LARGE}))

    def test_texts_come_back_whole(self):
        for text in ("\u2028\x7f\x1b[31m\"\\/\b\f\n\r\t", "\U0001f980 \u00e9\u0301 \ufeff", "</s><s>USER:"):
            self.assertEqual(self.server.chat(user(text), max_tokens=1).status, 200)
            body = self.ask(**{"x" + text[:8]: 1}).json
            self.assertEqual(body["error"]["param"], "x" + text[:8])


# --- fuzzing -------------------------------------------------------------------------------------

SEED = {
    "model": "demo-model",
    "messages": [{"role": "system", "content": "Be brief."}, user("What?", PICTURE, LARGE),
                 {"role": "assistant", "content": [{"type": "text", "text": "A"}]}, user("More?")],
    "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 2, "seed": 1,
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1, "stop": ["x"],
    "logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": {
        "type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}},
    "user": "u",
}
VALUES = [None, True, False, 0, 1, -1, 3, 2**31, -2**31, 2**53, 2**63 - 1, -2**63, 0.5, 1e300, -1e-300,
          "", "x", "user", "text", "x" * 3000, "\x00", "\U0001f600", "data:", "data:;base64,", PICTURE, LARGE,
          "data:image/png;base64,AAAA", "file:///etc/passwd", "http://127.0.0.1/", "json_object", [], {},
          [[]], [{}], {"x": {}}, {"type": "text", "text": "t"}, [1, 2, 3]]


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], (*path, i))


def change(rng, value):
    """One place of the value changed, removed, doubled or renamed."""
    path = rng.choice([p for p in places(value) if p])
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    kind = rng.randrange(5)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(rng.choice(VALUES)))
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(["x", "type", "role", "content", "url", "n", "\u00e9"])] = parent.pop(path[-1])
    else:
        parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))


def mangle(rng, body):
    """Bytes changed, cut out or repeated."""
    body = bytearray(body)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(body))
        kind = rng.randrange(4)
        if kind == 0:
            body[at] = rng.randrange(256)
        elif kind == 1:
            del body[at:at + rng.randrange(1, 30)]
        elif kind == 2:
            body[at:at] = body[at:at + rng.randrange(1, 30)]
        else:
            body[at:at] = rng.choice([b'"', b"{", b"}", b"[", b"]", b",", b"\\", b"\x00", b"1e9"])
        if not body:
            break
    return bytes(body)


class Fuzz(Case):
    args = ("-q",)

    def test_fuzzed_bodies(self):
        rng = random.Random(20240615)
        n_bodies = int(os.environ.get("LV_FUZZ_BODIES", "1000"))
        counts = {}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=SECONDS)
        self.addCleanup(connection.close)
        for i in range(n_bodies):
            value = copy.deepcopy(SEED)
            for _ in range(rng.choice([1, 1, 2, 5])):
                change(rng, value)
            body = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
            if i % 3 == 0:
                body = mangle(rng, body)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            counts[response.status] = counts.get(response.status, 0) + 1
            if response.status == 200:
                continue
            self.assertIn(response.status, (400, 404, 413), (body, text))
            error = json.loads(text)["error"]
            self.assertEqual(error["type"], "invalid_request_error", body)
            self.assertTrue(error["message"], body)
        print(f"{n_bodies} bodies:", dict(sorted(counts.items())))
        self.assertGreater(counts.get(400, 0), n_bodies // 3)
        self.assertEqual(self.server.get("/health").status, 200)
        for held in ("chat_requests", "held_body_bytes"):  # let go of once the answer is out
            self.server.wait_for(lambda held=held: self.server.metric(held) == 0, 20)
        self.assertEqual(self.server.metric("kv_blocks_used"), 0)


if __name__ == "__main__":
    unittest.main()
