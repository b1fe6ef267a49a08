"""The API as clients see it."""

import http.client
import json
import os
import re
import tempfile
import unittest

from web import SECONDS, SOURCE, Case, data_uri, picture_uri, png, user

QUESTION = "Describe this image."
BEACH = "The picture shows a crab, a palm tree, a sailboat and a sun at the beach."


class Chat(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.beach = picture_uri("beach.png")

    def test_answer(self):
        answer = self.server.chat(user(QUESTION, self.beach))
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        value = answer.json
        self.assertEqual(value["object"], "chat.completion")
        self.assertRegex(value["id"], r"^chatcmpl-[0-9a-f]{24}$")
        choice, = value["choices"]
        self.assertEqual(choice["message"], {"role": "assistant", "content": BEACH, "refusal": None})
        self.assertEqual((choice["index"], choice["finish_reason"], choice["logprobs"]), (0, "stop", None))
        self.assertEqual(value["model"], "demo-model")

    def test_usage_counts_pictures(self):
        text_only = self.server.chat(user(QUESTION), max_tokens=1).json["usage"]
        value = self.server.chat(user(QUESTION, self.beach), max_tokens=4).json
        usage, image = value["usage"], value["images"][0]
        self.assertEqual(image, {"width": 640, "height": 480, "tiles": 1, "tile_size": 208,
                                 "tokens": 169})
        self.assertEqual(usage["completion_tokens"], 4)
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + 4)
        self.assertEqual(usage["prompt_tokens_details"]["image_tokens"], 169)
        self.assertGreaterEqual(usage["prompt_tokens"], text_only["prompt_tokens"] + 169)
        self.assertEqual(sorted(value["timings"]), ["decode_ms", "encode_ms", "first_token_ms",
                                                    "prefill_ms", "queue_ms"])

    def test_stream_is_the_answer(self):
        answer = self.server.chat(user(QUESTION, self.beach), stream=True,
                                  stream_options={"include_usage": True})
        self.assertEqual(answer.headers["Content-Type"], "text/event-stream; charset=utf-8")
        first, *middle, finish, last = answer.events
        self.assertEqual(first["choices"][0]["delta"], {"role": "assistant", "content": ""})
        text = "".join(event["choices"][0]["delta"]["content"] for event in middle)
        self.assertEqual(text, BEACH)
        self.assertGreater(len(middle), 5)
        self.assertEqual(finish["choices"][0], {"index": 0, "delta": {}, "logprobs": None,
                                                "finish_reason": "stop"})
        self.assertEqual(finish["images"][0]["tokens"], 169)
        self.assertIn("first_token_ms", finish["timings"])
        self.assertEqual(last["choices"], [])
        self.assertEqual(last["usage"]["prompt_tokens_details"]["image_tokens"], 169)
        self.assertEqual((last["timings"], last["images"]), (finish["timings"], finish["images"]))
        for event in (first, *middle, finish):
            self.assertIsNone(event["usage"])
            self.assertEqual(event["object"], "chat.completion.chunk")
            self.assertEqual(event["id"], last["id"])

    def test_stream_without_usage(self):
        events = self.server.chat(user(QUESTION, self.beach), stream=True, max_tokens=2).events
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "length")
        self.assertTrue(all("usage" not in event for event in events))

    def test_length(self):
        choice = self.server.chat(user(QUESTION, self.beach), max_completion_tokens=3).json["choices"][0]
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(choice["message"]["content"], "The picture shows")

    def test_stop(self):
        for stop in (" palm", [" palm", "sun"]):
            choice = self.server.chat(user(QUESTION, self.beach), stop=stop).json["choices"][0]
            self.assertEqual(choice["finish_reason"], "stop")
            self.assertEqual(choice["message"]["content"], BEACH[:BEACH.index(" palm")])

    def test_choices_and_seed(self):
        def draw(**fields):
            value = self.server.chat(user(QUESTION, self.beach), temperature=2, max_tokens=16,
                                     **fields).json
            return [choice["message"]["content"] for choice in value["choices"]]

        four = draw(n=4, seed=7)
        self.assertEqual(len(four), 4)
        self.assertEqual(four, draw(n=4, seed=7))
        self.assertEqual(four[1:3], draw(n=2, seed=8))
        self.assertGreater(len(set(four)), 1)

    def test_choices_in_a_stream(self):
        events = self.server.chat(user(QUESTION, self.beach), n=3, stream=True, max_tokens=5,
                                  stream_options={"include_usage": True}).events
        texts = ["", "", ""]
        for event in events[:-1]:
            choice, = event["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
        self.assertEqual(texts, ["The picture shows a cra"[:len(texts[0])]] * 3)
        self.assertEqual(events[-1]["usage"]["completion_tokens"], 15)

    def test_logprobs(self):
        value = self.server.chat(user(QUESTION, self.beach), logprobs=True, top_logprobs=3,
                                 max_tokens=4).json
        content = value["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 4)
        text = b"".join(bytes(token["bytes"]) for token in content).decode().strip()
        self.assertEqual(text, value["choices"][0]["message"]["content"])
        for token in content:
            self.assertLessEqual(token["logprob"], 0)
            tops = [top["logprob"] for top in token["top_logprobs"]]
            self.assertEqual(len(tops), 3)
            self.assertEqual(tops, sorted(tops, reverse=True))
            self.assertEqual(token["token"], token["top_logprobs"][0]["token"])
        events = self.server.chat(user(QUESTION, self.beach), logprobs=True, top_logprobs=3,
                                  max_tokens=4, stream=True).events
        streamed = [token for event in events
                    for token in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
        self.assertEqual([token["bytes"] for token in streamed], [token["bytes"] for token in content])

    def test_json(self):
        schema = {"type": "object", "required": ["caption", "indoors", "n"], "additionalProperties": False,
                  "properties": {"caption": {"type": "string", "maxLength": 40},
                                 "indoors": {"type": "boolean"}, "n": {"type": "integer"}}}
        for stream in (False, True):
            answer = self.server.chat(user("Describe this image as JSON.", self.beach), stream=stream,
                                      max_tokens=120, response_format={
                                          "type": "json_schema",
                                          "json_schema": {"name": "card", "strict": True, "schema": schema}})
            text = (answer.json["choices"][0]["message"]["content"] if not stream else
                    "".join(event["choices"][0]["delta"].get("content", "") for event in answer.events))
            card = json.loads(text)
            self.assertEqual(list(card), ["caption", "indoors", "n"])
            self.assertIs(type(card["indoors"]), bool)
        text = self.server.text(user("JSON, please.", self.beach), max_tokens=60,
                                response_format={"type": "json_object"})
        self.assertIsInstance(json.loads(text), dict)

    def test_conversation(self):
        text = self.server.text({"role": "system", "content": "You are helpful."},
                                {"role": "developer", "content": "You are brief."},
                                user(QUESTION, self.beach),
                                {"role": "assistant", "content": BEACH, "name": "me", "refusal": None},
                                user("Is there a crab?"))
        self.assertIn("crab", text)

    def test_pictures_of_every_turn(self):
        value = self.server.chat(user("What is this?", picture_uri("beach.png")),
                                 {"role": "assistant", "content": "A beach."},
                                 user("And these?", data_uri(png(30, 20)), data_uri(png(20, 30))),
                                 max_tokens=2).json
        self.assertEqual([(i["width"], i["height"]) for i in value["images"]],
                         [(640, 480), (30, 20), (20, 30)])

    def test_same_picture_is_encoded_once(self):
        uri = data_uri(png(71, 53, (3, 200, 77)))
        before = self.server.metric("images_encoded_total")
        first = self.server.text(user(QUESTION, uri), max_tokens=8)
        self.assertEqual(self.server.metric("images_encoded_total"), before + 1)
        self.assertEqual(self.server.text(user(QUESTION, uri), max_tokens=8), first)
        self.assertEqual(self.server.metric("images_encoded_total"), before + 1)

    def test_ignored_fields(self):
        answer = self.server.chat(user("Hi"), max_tokens=1, user="me", metadata={"a": "b"}, store=True,
                                  service_tier="auto", parallel_tool_calls=False, tools=[],
                                  tool_choice="none", logit_bias={}, modalities=["text"], stop=None)
        self.assertEqual(answer.status, 200, answer.body)

    def test_one_connection_many_requests(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=SECONDS)
        self.addCleanup(connection.close)
        for stream in (True, False, True, False):
            connection.request("POST", "/v1/chat/completions", json.dumps(
                {"messages": [user("Hello")], "stream": stream, "max_tokens": 2}),
                {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            response.read()
            self.assertFalse(response.will_close)


class Rest(Case):
    def test_models(self):
        listed, = self.server.get("/v1/models").json["data"]
        self.assertEqual((listed["id"], listed["object"], listed["max_model_len"]),
                         ("demo-model", "model", 2048))
        self.assertEqual(self.server.get("/v1/models/demo-model").json, listed)
        self.check_error(self.server.get("/v1/models/another"), 404, "model_not_found")

    def test_wrong_model(self):
        self.check_error(self.server.chat(user("Hi"), model="gpt-4o"), 404, "model_not_found", "model")
        self.assertEqual(self.server.chat(user("Hi"), model="demo-model", max_tokens=1).status, 200)

    def test_tokenize(self):
        value = self.server.post("/v1/tokenize", {"prompt": "a crab at the beach",
                                                  "return_token_strs": True}).json
        self.assertEqual(value["count"], len(value["tokens"]))
        self.assertEqual("".join(value["token_strs"]).strip(), "a crab at the beach")
        self.assertEqual(self.server.post("/v1/tokenize", {"prompt": ""}).json["tokens"], [])
        self.check_error(self.server.post("/v1/tokenize", {}), 400, "missing_parameter", "prompt")
        self.check_error(self.server.post("/v1/tokenize", {"prompt": 1}), 400, "invalid_type", "prompt")
        self.check_error(self.server.post("/v1/tokenize", {"prompt": "", "x": 1}), 400,
                         "unknown_parameter", "x")

    def test_health(self):
        answer = self.server.get("/health")
        self.assertEqual((answer.status, answer.json), (200, {"status": "ok"}))

    def test_metrics(self):
        self.server.text(user("Hi"), max_tokens=3)
        self.server.wait_for(lambda: self.server.metric("chat_requests") == 0)  # it is counted when it has ended
        text = self.server.get("/metrics").body.decode()
        for name in ("requests_total{path=\"/v1/chat/completions\",status=\"200\"}", "queue_length",
                     "running", "time_to_first_token_seconds_bucket{le=\"+Inf\"}", "kv_blocks_used",
                     "inter_token_seconds_sum", "cached_tokens_total", "image_encode_seconds_total",
                     "images_cached_total"):
            self.assertIn("image_chat_" + name, text)
        for line in text.splitlines():
            self.assertRegex(line, r'^(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [-+.0-9e]+)$')

    def test_openapi_names_every_field(self):
        api = self.server.get("/openapi.json").json
        self.assertEqual(api["openapi"], "3.1.0")
        with open(os.path.join(SOURCE, "apps", "image_chat", "chat_request.c")) as file:
            table = re.findall(r'^    \{"(\w+)", FIELD_(\w+),', file.read(), re.M)
        listed = api["components"]["schemas"]["ChatCompletionRequest"]["properties"]
        known = {name for name, kind in table if kind != "REFUSED"}
        self.assertTrue(set(listed) <= known, set(listed) - known)
        for path, operations in api["paths"].items():
            for method in operations:
                answer = self.server.request(method.upper(), path.replace("{model}", "demo-model"))
                self.assertNotIn(answer.status, (404, 405), path)
        for ref in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(api)):
            self.assertIn(ref, api["components"]["schemas"])

    def test_pages(self):
        for path, kind in (("/", "text/html"), ("/docs", "text/html"), ("/docs/docs.js", "text/javascript"),
                           ("/docs/docs.css", "text/css")):
            answer = self.server.get(path)
            self.assertEqual(answer.status, 200, path)
            self.assertTrue(answer.headers["Content-Type"].startswith(kind))
            self.assertEqual(answer.headers["X-Content-Type-Options"], "nosniff")
            self.assertEqual(answer.headers["Referrer-Policy"], "no-referrer")
            self.assertIn("default-src 'self'", answer.headers["Content-Security-Policy"])
            self.assertNotRegex(answer.body.decode(), r"""(src|href)=["'](https?:)?//""")
            etag = answer.headers["ETag"]
            self.assertRegex(etag, r'^"[0-9a-f]{32}"$')
            again = self.server.get(path, {"If-None-Match": etag})
            self.assertEqual((again.status, again.body), (304, b""))
            head = self.server.request("HEAD", path)
            self.assertEqual((head.status, head.body, head.headers["Content-Length"]),
                             (200, b"", str(len(answer.body))))

    def test_wrong_paths_and_methods(self):
        for path in ("/nothing", "/v1", "/v1/models/", "/docs/nothing", "/web/index.html", "/../etc/passwd",
                     "/docs/../../etc/passwd", "/%2e%2e/etc/passwd", "/openapi.json/"):
            self.check_error(self.server.get(path), 404, "not_found")
        for method, path, allow in (("GET", "/v1/chat/completions", "POST"), ("POST", "/v1/models", "GET, HEAD"),
                                    ("DELETE", "/", "GET, HEAD"), ("PUT", "/health", "GET, HEAD")):
            answer = self.server.request(method, path)
            self.check_error(answer, 405)
            self.assertEqual(answer.headers["Allow"], allow)

    def test_request_ids(self):
        first, second = (self.server.get("/health").headers["X-Request-Id"] for _ in range(2))
        self.assertNotEqual(first, second)


class Loading(Case):
    def test_while_it_loads(self):
        """A model whose configuration does not end: the server is there, and says that it is not ready."""
        with tempfile.TemporaryDirectory() as folder:
            os.mkfifo(os.path.join(folder, "config.json"))
            server = self.start("--model", folder, wait=False)
            health = server.get("/health")
            self.assertEqual((health.status, health.json), (503, {"status": "loading"}))
            for answer in (server.chat(user("Hi")), server.get("/v1/models"), server.post("/v1/tokenize", {"prompt": ""})):
                self.check_error(answer, 503, "loading")
                self.assertEqual(answer.headers["Retry-After"], "1")
            for path in ("/", "/docs", "/openapi.json"):
                self.assertEqual(server.get(path).status, 200)
            self.assertEqual(server.metric("ready"), 0)
            self.assertEqual(server.stop(), 0)

    def test_not_a_model(self):
        server = self.start("--model", os.path.join(SOURCE, "tests"), wait=False)
        self.assertEqual(server.process.wait(SECONDS), 3)
        self.assertIn("cannot load", server.log)

    def test_address_in_use(self):
        with self.assertRaisesRegex(AssertionError, "ended with 1: .*cannot listen"):
            self.start("--server-port", str(self.server.port))


if __name__ == "__main__":
    unittest.main()
