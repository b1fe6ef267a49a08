"""What the server's tests share: starting image-chat, asking it, and pictures made from nothing.

$IMAGE_CHAT and $DESCRIBE name the programs, $LV_SOURCE the source tree. The demo model answers. Only
loopback addresses are used.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest
import zlib

IMAGE_CHAT = os.environ["IMAGE_CHAT"]
SOURCE = os.environ["LV_SOURCE"]
PICTURES = os.path.join(SOURCE, "assets", "pictures")
SANITIZED = os.environ.get("LV_SANITIZE", "") not in ("", "OFF")
SECONDS = 240 if SANITIZED else 120  # for one answer
# Random letters, till the session is full.
LONG = {"max_tokens": 1500, "temperature": 2, "stream": True, "response_format": {
    "type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 6000}}}}
SIGNS = ("AddressSanitizer", "LeakSanitizer", "runtime error:", "ThreadSanitizer")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_head(width, height):
    return (b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))


def png(width=48, height=32, colour=(200, 30, 30)):
    rows = (b"\0" + bytes(colour) * width) * height
    return png_head(width, height) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def data_uri(data, kind="image/png"):
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def picture_uri(name):
    with open(os.path.join(PICTURES, name), "rb") as file:
        return data_uri(file.read())


def user(text, *urls):
    if not urls:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [{"type": "text", "text": text}]
            + [{"type": "image_url", "image_url": {"url": url}} for url in urls]}


class Answer:
    def __init__(self, response, body):
        self.status = response.status
        self.headers = response.headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        """The data of a stream's events, without the last, which must be [DONE]."""
        events = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        assert events[-1] == "[DONE]", self.body[-300:]
        return [json.loads(event) for event in events[:-1]]


class Server:
    """A running image-chat. `key` is sent along with every request."""

    def __init__(self, *args, key=None, env=None, wait=True):
        self.key = key
        self.last_log = None
        self.log_file = tempfile.NamedTemporaryFile("w+b", prefix="image-chat-", suffix=".log")
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **(env or {})}
        environment.pop("LLAVA_MODEL", None)
        self.process = subprocess.Popen(
            [IMAGE_CHAT, "--server-port", "0", *args], stderr=self.log_file, stdin=subprocess.DEVNULL,
            env=environment)
        try:
            said = self.wait_for(lambda: re.search(r"listening on http://\S+:(\d+)", self.log))
            self.port = int(said.group(1))
            if wait:
                self.wait_for(lambda: self.get("/health").status == 200)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def log(self):
        if self.last_log is not None:
            return self.last_log
        with open(self.log_file.name, "rb") as file:
            return file.read().decode("utf-8", "replace")

    def wait_for(self, condition, seconds=SECONDS):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"image-chat ended with {self.process.returncode}: {self.log}")
            time.sleep(0.01)
        raise AssertionError(f"not seen within {seconds} s: {self.log[-3000:]}")

    def stop(self, signal_number=signal.SIGTERM, seconds=SECONDS):
        """Its exit status; a sanitizer's complaint in the log is an error."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"still running {seconds} s after the signal: {self.log[-3000:]}")
        self.last_log = self.log
        self.log_file.close()
        for sign in SIGNS:
            if sign in self.log:
                raise AssertionError(self.log[-20000:])
        if status < 0 and -status != signal_number:
            raise AssertionError(f"killed by signal {-status}: {self.log[-3000:]}")
        return status

    def headers(self, more):
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {**key, **(more or {})}

    def request(self, method, path, body=None, headers=None, timeout=SECONDS):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, self.headers(headers))
            response = connection.getresponse()
            return Answer(response, response.read())

    def get(self, path, headers=None):
        return self.request("GET", path, None, headers)

    def post(self, path, value, headers=None):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})

    def chat(self, *messages, **fields):
        return self.post("/v1/chat/completions",
                         {"messages": list(messages), "temperature": 0, **fields})

    def text(self, *messages, **fields):
        answer = self.chat(*messages, **fields)
        if answer.status != 200:
            raise AssertionError(f"{answer.status}: {answer.body[:500]}")
        return answer.json["choices"][0]["message"]["content"]

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)

    def send_chat(self, *messages, **fields):
        """A connection on which a request has been sent, and nothing read."""
        body = json.dumps({"messages": list(messages), "temperature": 0, **fields}).encode()
        connection = self.connect()
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}"
                           f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                           .encode() + body)
        return connection

    def metric(self, name):
        body = self.get("/metrics").body.decode()
        found = re.search(rf"^image_chat_{re.escape(name)} (\S+)$", body, re.M)
        return float(found.group(1)) if found else None

    def rss_mb(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024


class Starting(unittest.TestCase):
    """Tests that start servers of their own."""

    def start(self, *args, **more):
        server = Server(*args, **more)
        self.addCleanup(server.stop)
        return server


class Case(Starting):
    """A test class with one server for all its tests, started with `args`."""

    maxDiff = None
    args = ()
    key = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.args, key=cls.key)

    @classmethod
    def tearDownClass(cls):
        try:
            if cls.server.get("/metrics").status == 200:  # no key is wanted
                cls.server.wait_for(lambda: cls.server.metric("connections") == 1, 20)
        finally:
            status = cls.server.stop()
        if status != 0:
            raise AssertionError(f"exit status {status}: {cls.server.log[-3000:]}")

    def check_error(self, answer, status, code=None, param=None):
        self.assertEqual(answer.status, status, answer.body[:500])
        error = answer.json["error"]
        self.assertEqual(sorted(error), ["code", "message", "param", "type"])
        self.assertTrue(error["message"])
        if code:
            self.assertEqual(error["code"], code, error)
        if param:
            self.assertEqual(error["param"], param, error)
        return error
