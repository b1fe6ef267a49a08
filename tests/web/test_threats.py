"""The threats that a server of this kind meets, and what it does about each.

threat                                  shown by
pictures by URL reach inside (SSRF)     Urls, UrlsOff, PublicUrls; unit core_fetch, chat_guard
local files through the API             UrlsOff.test_no_file_is_read, Urls.test_other_schemes
decompression bombs                     Pictures.test_bombs, test_too_many_bytes; unit preprocess_images
bugs of decoders                        fuzz_image under ASan + UBSan; Pictures.test_no_picture
tiny and extreme pictures               Pictures.test_tiny_and_extreme
truncated pictures                      Pictures.test_truncated; unit preprocess_images
malicious checkpoints                   unit core_safetensors, core_checkpoint; fuzz_checkpoint; cli_checkpoints
cache poisoning                         Pictures.test_the_cache_tells_pictures_apart; unit pipeline_reuse
abuse of parameters                     test_fields.py: every field at and past its bounds, fuzzed bodies
DNS rebinding, hostile pages            Origins, Keys
slow and flooding clients               Slow, Flood; test_load.py
errors that tell too much               Urls.test_what_failed_is_not_told, Keys.test_secrets_stay_out_of_the_log;
                                        unit chat_errors
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from web import IMAGE_CHAT, LONG, PICTURES, SECONDS, Case, Starting, chunk, data_uri, png, png_head, user

INSIDE = """127.0.0.1 localhost 127.1 127.0.0.1.nip.example [::1] [::] 0.0.0.0 0 2130706433 0x7f000001
0x7f.0.0.1 0177.0.0.1 127.000.000.001 [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1]
[64:ff9b::127.0.0.1] [2002:7f00:1::1] 127.0.0.1.""".split()


class Listener:
    """A server that must not be talked to: counts those who connect."""

    def __init__(self):
        self.socket = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = self.socket.getsockname()[1]
        self.n = 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                self.socket.accept()[0].close()
                self.n += 1
            except OSError:
                return

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Urls(Case):
    args = ("--allow-url-fetch", "--fetch-timeout", "5")

    def setUp(self):
        self.listener = Listener()
        self.addCleanup(self.listener.close)

    def test_addresses_inside(self):
        """Loopback in every spelling; what is none resolves nowhere."""
        for host in INSIDE:
            url = f"http://{host}:{self.listener.port}/picture.png"
            self.check_error(self.server.chat(user("?", url)), 400)
        for address in ("10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1",
                        "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "224.0.0.1", "255.255.255.255"):
            start = time.monotonic()
            self.check_error(self.server.chat(user("?", f"http://{address}/latest/meta-data")), 400,
                             "image_fetch_failed")
            self.assertLess(time.monotonic() - start, 4, "it was not even to be dialled")
        self.assertEqual(self.listener.n, 0)

    def test_other_schemes(self):
        """Where libcurl is the one parser, no other one can be fooled about the scheme or the host."""
        port = self.listener.port
        for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "dict://127.0.0.1/",
                    "/etc/passwd", "etc/passwd", "", " http://127.0.0.1/", "HTTPS:127.0.0.1", "javascript:1",
                    "blob:x", "http:/127.0.0.1/x", "//127.0.0.1/x"):
            self.check_error(self.server.chat(user("?", url)), 400, "invalid_image_url")
        for url in (f"http://example.invalid@127.0.0.1:{port}/", f"http://127.0.0.1:{port}\\@example.invalid/",
                    f"http://127.0.0.1:{port}#@example.invalid/", "http://", "http:///x", "http://[::1",
                    f"http://example.invalid:80@127.0.0.1:{port}/", "http://a b/", "http://127.0.0.1:99999/",
                    f"http://%6c%6fcalhost:{port}/",
                    "http://" + "a" * 9000 + "/"):
            self.check_error(self.server.chat(user("?", url)), 400)
        self.assertEqual(self.listener.n, 0)

    def test_proxy_of_the_environment_is_not_used(self):
        proxy = f"http://127.0.0.1:{self.listener.port}"
        server = self.start("--allow-url-fetch", env={"http_proxy": proxy, "https_proxy": proxy,
                                                      "all_proxy": proxy, "ALL_PROXY": proxy})
        self.check_error(server.chat(user("?", "http://10.1.2.3/x.png")), 400, "image_fetch_failed")
        self.assertEqual(self.listener.n, 0)

    def test_what_failed_is_not_told(self):
        error = self.check_error(self.server.chat(user("?", f"http://127.0.0.1:{self.listener.port}/")), 400)
        self.assertEqual(error["message"], "A picture's URL could not be fetched.")
        self.assertIn("not one that may be fetched from", self.server.log)


class UrlsOff(Case):
    def test_no_url_is_fetched(self):
        listener = Listener()
        self.addCleanup(listener.close)
        for host in ("127.0.0.1", "localhost", "example.invalid"):
            self.check_error(self.server.chat(user("?", f"http://{host}:{listener.port}/x.png")), 400,
                             "url_fetch_disabled")
        self.assertEqual(listener.n, 0)

    def test_no_file_is_read(self):
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            file.write(png())
            file.flush()
            for url in (file.name, "file://" + file.name, os.path.relpath(file.name), "-", "file:" + file.name):
                self.check_error(self.server.chat(user("?", url)), 400, "invalid_image_url")


def answer_names(turns, asked):
    """A DNS server on 127.0.0.1: for each A of a name the next of its addresses, to be forgotten at once."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    while True:
        query, client = server.recvfrom(512)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12:at + 5]
        name, is_a = ".".join(labels), question[-4:] == b"\0\1\0\1"
        addresses = turns.get(name, []) if is_a else []
        if is_a:
            asked.append(name)
        now = addresses.pop(0) if len(addresses) > 1 else (addresses or [[]])[0]
        records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) for address in now)
        server.sendto(query[:2] + b"\x81\x80\0\1" + len(now).to_bytes(2, "big") + bytes(4) + question + records, client)


class PublicUrls(Starting):
    """In a network namespace of its own, where this host has an address of the public Internet."""

    def test_picture_and_redirects(self):
        self.inside("fetch")

    def test_names_that_change_their_address(self):
        self.inside("rebind")

    def inside(self, what):
        """Runs a method of this class where lo has a public address and names are asked of 127.0.0.1."""
        if os.environ.get("LV_IN_NAMESPACE"):
            return getattr(self, what)()
        if not shutil.which("unshare") or not shutil.which("ip") or subprocess.run(
                ["unshare", "-n", "-m", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
            self.skipTest("no network namespace can be made here (needs unshare and ip, as root)")
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
                               ("nsswitch.conf", "hosts: files dns\n")):
                with open(os.path.join(folder, name), "w") as file:
                    file.write(text)
            mounts = " && ".join(f"mount --bind {folder}/{name} /etc/{name}" for name in os.listdir(folder)
                                 if os.path.exists(f"/etc/{name}"))
            command = (f"{mounts or 'true'} && ip link set lo up && ip address add 8.8.4.4/32 dev lo && exec "
                       f"{sys.executable} -B {__file__} {self.id().removeprefix('__main__.')}")
            done = subprocess.run(["unshare", "-n", "-m", "sh", "-c", command], capture_output=True,
                                  env={**os.environ, "LV_IN_NAMESPACE": "1"}, timeout=SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr.decode()[-3000:])

    def rebind(self):
        """The address that was looked at is the one that is dialled, whatever the name means a moment later."""
        reached, asked = [], []
        picture = png(31, 17)

        def serve(listener):
            while True:
                client, _ = listener.accept()
                with client:
                    reached.append(listener.getsockname()[0])
                    client.recv(4096)
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture)

        for address in ("8.8.4.4", "127.0.0.1"):
            threading.Thread(target=serve, args=(socket.create_server((address, 8000)),), daemon=True).start()
        names = {"turning.example": [["8.8.4.4"], ["127.0.0.1"]], "inside.example": [["127.0.0.1"]],
                 "both.example": [["127.0.0.1", "8.8.4.4"]], "metadata.example": [["169.254.169.254"]]}
        threading.Thread(target=answer_names, args=(names, asked), daemon=True).start()
        server = self.start("--allow-url-fetch", "--fetch-timeout", "3")

        def ask(name):
            return server.chat(user("?", f"http://{name}:8000/x.png"), max_tokens=1)

        answer = ask("turning.example")
        self.assertEqual(answer.status, 200, (answer.body, server.log))
        self.assertEqual((reached, asked), (["8.8.4.4"], ["turning.example"]))
        for name in ("turning.example", "inside.example", "metadata.example"):
            self.assertEqual(ask(name).json["error"]["code"], "image_fetch_failed", name)
        ask("both.example")
        self.assertNotIn("127.0.0.1", reached)

    def fetch(self):
        seen = []
        answers = {"/ok": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(png(31, 17)) + png(31, 17),
                   "/big": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx",
                   "/text": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                   "/to-ok": b"HTTP/1.1 302 Found\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n",
                   "/inside": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:8001/ok\r\nContent-Length: 0\r\n\r\n",
                   "/file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
                   "/4": b"HTTP/1.1 302 Found\r\nLocation: /3\r\nContent-Length: 0\r\n\r\n",
                   "/3": b"HTTP/1.1 302 Found\r\nLocation: /2\r\nContent-Length: 0\r\n\r\n",
                   "/2": b"HTTP/1.1 302 Found\r\nLocation: /to-ok\r\nContent-Length: 0\r\n\r\n"}

        def serve(listener):
            while True:
                client, _ = listener.accept()
                with client:
                    path = client.recv(4096).split(b" ")[1].decode()
                    seen.append((listener.getsockname(), path))
                    if path == "/slow":
                        threading.Event().wait(30)
                    client.sendall(answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))

        for address in (("8.8.4.4", 8000), ("127.0.0.1", 8001)):
            threading.Thread(target=serve, args=(socket.create_server(address),), daemon=True).start()
        server = self.start("--allow-url-fetch", "--fetch-timeout", "2")

        def ask(path):
            return server.chat(user("?", "http://8.8.4.4:8000" + path), max_tokens=1)

        for path in ("/ok", "/to-ok", "/2"):
            answer = ask(path)
            self.assertEqual(answer.status, 200, (path, answer.body, server.log))
            self.assertEqual(answer.json["images"][0]["width"], 31)
        codes = {path: (answer.status, answer.json["error"]["code"]) for path in (
            "/big", "/text", "/inside", "/file", "/4", "/nothing") for answer in [ask(path)]}
        failed = (400, "image_fetch_failed")
        self.assertEqual(codes, {"/big": (413, "image_too_large"), "/text": (400, "invalid_image"),
                                 "/inside": failed, "/file": failed, "/4": failed, "/nothing": failed})
        self.assertFalse([address for address, _ in seen if address[0] == "127.0.0.1"])
        start = time.monotonic()
        self.assertEqual(ask("/slow").status, 400)
        self.assertLess(time.monotonic() - start, 10)


class Pictures(Case):
    args = ("--max-image-bytes", "1M", "--max-pixels", "4000000")

    def ask(self, data, **more):
        return self.server.chat(user("?", data_uri(data)), max_tokens=1, **more)

    def test_bombs(self):
        """Huge pictures in few bytes: refused by their head, before memory is taken."""
        before = self.server.rss_mb()
        rows = b"x\x9c" + b"\0" * 100
        for data in (png_head(32000, 32000) + chunk(b"IDAT", rows) + chunk(b"IEND", b""),
                     png_head(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", rows) + chunk(b"IEND", b""),
                     png(2001, 2000), b"P6\n100000 100000\n255\n" + b"x" * 100,
                     b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0" * 100,
                     b"BM" + b"\0" * 16 + (60000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + b"\0" * 24):
            for stream in (False, True):
                answer = self.ask(data, stream=stream)
                self.assertIn(answer.status, (400, 413), answer.body)
        self.check_error(self.ask(png(2001, 2000)), 413, "image_too_large")
        self.assertEqual(self.ask(png(2000, 2000)).status, 200)
        self.assertLess(self.server.rss_mb() - before, 200)

    def test_too_many_bytes(self):
        noise = random.Random(1).randbytes(1 << 20)
        self.check_error(self.ask(noise + b"x"), 413, "image_too_large")
        self.check_error(self.ask(noise), 400, "invalid_image")

    def test_tiny_and_extreme(self):
        for width, height in ((1, 1), (1, 1000), (1000, 1), (2, 1), (1, 4096), (3, 3000)):
            answer = self.ask(png(width, height))
            self.assertEqual(answer.status, 200, (width, height, answer.body))
            image, = answer.json["images"]
            self.assertEqual((image["width"], image["height"]), (width, height))

    def test_truncated(self):
        with open(os.path.join(PICTURES, "beach.png"), "rb") as file:
            data = file.read()
        for n in (0, 1, 8, 20, 33, 60, len(data) // 2, len(data) - 20):
            self.check_error(self.ask(data[:n]), 400, "invalid_image")

    def test_no_picture(self):
        for data in (b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\x7fELF" * 100):
            self.check_error(self.ask(data), 400, "invalid_image")

    def test_strict_base64(self):
        good = data_uri(png(3, 3))
        for url in (good + "=", good + "A", good[:-1], good.replace(",", ", "), good + "\n",
                    good.replace("base64", "base65"), good.replace(";base64", ""), "data:", "data:,",
                    good.replace("iVBO", "iVB-"), good.replace("iVBO", "iVB_"), good.replace("iVBO", "%69VBO"),
                    "data:;base64,", "data:;base64,=", "data:;base64,AAA=A", "data:;base64,AB=="):
            self.check_error(self.server.chat(user("?", url)), 400, "invalid_image")
        for url in (good, good.replace("data:image/png", "DATA:"), good.replace("image/png", "text/html")):
            self.assertEqual(self.server.chat(user("?", url), max_tokens=1).status, 200)

    def test_the_cache_tells_pictures_apart(self):
        """One pixel's difference is another picture, and the same pixels are the same one."""
        plain = bytearray((9, 9, 9) * 64 * 64)
        other = bytearray(plain)
        other[3 * 64 * 32] ^= 1

        def ask(pixels):
            before = self.server.metric("images_encoded_total")
            self.ask(b"P6\n64 64\n255\n" + bytes(pixels))
            return self.server.metric("images_encoded_total") - before

        self.assertEqual([ask(plain), ask(other), ask(plain), ask(other)], [1, 1, 0, 0])


class Origins(Case):
    args = ("--allow-origin", "https://page.example", "--allow-host", "chat.example")

    def test_dns_rebinding(self):
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
                     "localhost.", "1", "2130706433", "0x7f000001"):
            for path in ("/", "/health", "/v1/models", "/metrics", "/docs"):
                self.check_error(self.server.get(path, {"Host": host}), 403, "host_not_allowed")
            answer = self.server.post("/v1/chat/completions", {"messages": [user("Hi")]}, {"Host": host})
            self.check_error(answer, 403, "host_not_allowed")
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{self.server.port}", "[::1]:80",
                     "chat.example", "192.168.1.5:23333"):
            self.assertEqual(self.server.get("/health", {"Host": host}).status, 200, host)

    def test_malformed_host(self):
        for lines in ("", "Host: \r\n", "Host: a\r\nHost: localhost\r\n", "Host: localhost\r\nHost: a\r\n",
                      "Host: localhost:x\r\n", "Host: [::1\r\n", "Host: localhost/..\r\n"):
            with self.server.connect() as connection:
                connection.sendall(f"GET /v1/models HTTP/1.1\r\n{lines}\r\n".encode())
                self.assertRegex(connection.recv(1000), rb"^HTTP/1.1 (400|403) ")

    def test_hostile_pages(self):
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "https://page.example.evil.example",
                       "http://page.example", "https://page.example:444", "file://"):
            for answer in (self.server.get("/v1/models", {"Origin": origin}),
                           self.server.post("/v1/chat/completions", {"messages": [user("Hi")]},
                                            {"Origin": origin})):
                self.check_error(answer, 403, "origin_not_allowed")
                self.assertIsNone(answer.headers["Access-Control-Allow-Origin"])
            answer = self.server.request("OPTIONS", "/v1/chat/completions", None, {
                "Origin": origin, "Access-Control-Request-Method": "POST"})
            self.assertEqual(answer.status, 403)

    def test_forms_cannot_ask(self):
        """What a page may send without asking first (a form, a beacon) is no JSON."""
        body = json.dumps({"messages": [user("Hi")]}).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            self.check_error(self.server.post("/v1/chat/completions", body, {"Content-Type": kind}), 415)

    def test_own_and_allowed_pages(self):
        own = f"http://127.0.0.1:{self.server.port}"
        self.assertEqual(self.server.get("/v1/models", {"Origin": own}).status, 200)
        answer = self.server.get("/v1/models", {"Origin": "https://page.example"})
        self.assertEqual(answer.headers["Access-Control-Allow-Origin"], "https://page.example")
        self.assertEqual(answer.headers["Vary"], "Origin")
        answer = self.server.request("OPTIONS", "/v1/chat/completions", None, {
            "Origin": "https://page.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type"})
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertEqual(answer.headers["Access-Control-Allow-Headers"], "authorization, content-type")

    def test_no_wildcard(self):
        for origin in ("*", "page.example", "https://*.example", "https://page.example/", "null"):
            done = subprocess.run([IMAGE_CHAT, "--allow-origin", origin], capture_output=True)
            self.assertEqual(done.returncode, 2)
            self.assertIn(b"--allow-origin", done.stderr)

    def test_wrong_command_lines(self):
        for args, words in ((["x"], "x: no such option"), (["--", "x"], "x: no such option"),
                            (["--server-prt=1"], "did you mean --server-port?"),
                            (["-qx"], "-x: no such option"), (["-p70000"], "from 0 to 65535"),
                            (["-p"], "-p wants PORT"), (["--quiet=1"], "no value"),
                            (["--api-key", ""], "the KEY is empty"),
                            (["--max-pixels", "1.3K"], "from 1 to"),
                            (["--kv-memory", "63K"], "from 65536"),
                            (["--max-body-bytes", "2G"], "from 1024 to 1073741824"),
                            (["--device", "gpu"], "cuda:N"), (["--quant-policy", "4"], "0 or 8"),
                            (["--allow-host", "a"] * 65, "--allow-host: more than 64")):
            done = subprocess.run([IMAGE_CHAT, *args], capture_output=True, text=True, timeout=20)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), args)
            self.assertIn(words, done.stderr)


class Keys(Case):
    args = ("--api-key", "first-key", "--api-key", "second-key")

    def test_gate(self):
        for path in ("/v1/models", "/v1/models/x", "/metrics", "/openapi.json", "/nothing", "/v1/chat/completions"):
            for key in (None, "", "first-ke", "first-key2", "First-key", "second-key\t x", "first-key,second-key"):
                answer = self.server.get(path, {"Authorization": f"Bearer {key}"} if key is not None else {})
                self.check_error(answer, 401)
                self.assertEqual(answer.headers["WWW-Authenticate"], "Bearer")
        self.check_error(self.server.get("/v1/models", {"Authorization": "Basic first-key"}), 401)
        for key in ("first-key", "second-key"):
            self.assertEqual(self.server.get("/v1/models", {"Authorization": f"bearer {key}"}).status, 200)
        for path in ("/", "/docs", "/docs/docs.js", "/health"):
            self.assertEqual(self.server.get(path).status, 200)

    def test_body_is_not_taken_from_strangers(self):
        answer = self.server.post("/v1/chat/completions", b"x" * (8 << 20))
        self.check_error(answer, 401)
        self.assertEqual(self.server.get("/health").status, 200)

    def test_keys_of_environment_and_file(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("# no\n from-file \n\n")
            file.flush()
            server = self.start("--api-key-file", file.name, env={"IMAGE_CHAT_API_KEY": "a, b"})
            for key, status in (("from-file", 200), ("a", 200), ("b", 200), ("c", 401), (" b", 401)):
                answer = server.get("/v1/models", {"Authorization": f"Bearer {key}"})
                self.assertEqual(answer.status, status, key)

    def test_secrets_stay_out_of_the_log(self):
        self.server.get("/v1/models?api_key=in-the-query", {"Authorization": "Bearer second-key"})
        self.server.post("/v1/chat/completions", {"messages": [user("a private matter")], "max_tokens": 1},
                         {"Authorization": "Bearer first-key"})
        self.server.get("/a%0aforged%1b[31m", {"Authorization": "Bearer first-key"})
        log = self.server.log
        for secret in ("first-key", "second-key", "in-the-query", "private"):
            self.assertNotIn(secret, log)
        self.assertIn('"GET /v1/models" 200', log)
        self.assertNotRegex(log, r"(?m)^forged|\x1b")

    def test_other_machines_need_a_key(self):
        for name in ("0.0.0.0", "::", "192.0.2.1"):
            done = subprocess.run([IMAGE_CHAT, "--server-name", name], capture_output=True,
                                  env={k: v for k, v in os.environ.items() if k != "IMAGE_CHAT_API_KEY"})
            self.assertEqual(done.returncode, 2)
            self.assertIn(b"--api-key", done.stderr)
        server = self.start("--server-name", "0.0.0.0", "--insecure")
        self.assertIn("--insecure", server.log)
        server = self.start("--server-name", "0.0.0.0", "--api-key", "x")
        self.check_error(server.get("/v1/models"), 401)
        self.check_error(server.get("/v1/models", {"Host": "evil.example"}), 403)


class Slow(Case):
    args = ("--header-timeout", "1", "--body-timeout", "1", "--idle-timeout", "2", "--max-connections", "64")

    def drip(self, head, n_connections=1):
        """Sends the head, then a byte every 0.1 s; how long that lasted and what came back."""
        start = time.monotonic()
        connections = [self.server.connect() for _ in range(n_connections)]
        for connection in connections:
            connection.sendall(head)
        got = []
        for connection in connections:
            with connection:
                connection.settimeout(0.1)
                data = b""
                while time.monotonic() - start < 20:
                    try:
                        part = connection.recv(4096)
                        data += part
                        if not part:
                            break
                    except socket.timeout:
                        try:
                            connection.sendall(b"x")
                        except OSError:
                            break
                    except ConnectionError:
                        break
                got.append(data)
        return time.monotonic() - start, got

    def test_slow_head(self):
        seconds, got = self.drip(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        self.assertLess(seconds, 5)
        self.assertTrue(got[0].startswith(b"HTTP/1.1 408 "), got)

    def test_slow_body(self):
        seconds, got = self.drip(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                                 b"application/json\r\nContent-Length: 100000\r\n\r\n{")
        self.assertLess(seconds, 5)
        self.assertTrue(got[0].startswith(b"HTTP/1.1 408 "), got)

    def test_silent_connections(self):
        seconds, _ = self.drip(b"")
        self.assertLess(seconds, 5)
        with self.server.connect() as connection:  # between two requests
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertIn(b"200 OK", connection.recv(4096))
            connection.settimeout(10)
            self.assertEqual(connection.recv(4096), b"")

    def test_many_slow_ones_do_not_shut_others_out(self):
        slow = [self.server.connect() for _ in range(64)]
        for connection in slow:
            connection.sendall(b"GET / HT")
        self.assertEqual(self.server.get("/health").status, 200)
        for connection in slow:
            connection.close()

    def test_endless_head(self):
        with self.server.connect() as connection:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: %s\r\n" % (b"a" * 1000) * 100 + b"\r\n")
                got = connection.recv(4096)
            except ConnectionError:
                got = b""
        self.assertRegex(got, rb"^(HTTP/1.1 431 |$)")
        self.assertEqual(self.server.get("/health").status, 200)

    def test_what_is_no_http(self):
        rng = random.Random(3)
        for _ in range(200):
            with self.server.connect() as connection:
                head = rng.choice([b"", b"GET / HTTP/1.1\r\n", b"POST /v1/chat/completions HTTP/1.1\r\n"
                                   b"Host: localhost\r\nContent-Length: -1\r\n"])
                try:
                    connection.sendall(head + rng.randbytes(rng.randrange(1, 200)) + b"\r\n\r\n")
                except ConnectionError:
                    pass
        self.assertEqual(self.server.get("/health").status, 200)


class Flood(Case):
    args = ("--max-batch-size", "1", "--max-queue", "2", "--max-body-bytes", "64K", "--max-requests", "8")

    def test_queue_full(self):
        slow = [self.server.send_chat(user("Hi"), **LONG)]
        self.server.wait_for(lambda: self.server.metric("running") == 1)
        slow += [self.server.send_chat(user("Hi"), seed=i, **LONG) for i in range(2)]
        self.server.wait_for(lambda: self.server.metric("queue_length") == 2)
        answers = [self.server.chat(user("Hi"), max_tokens=1) for _ in range(3)]
        for connection in slow:
            connection.close()
        for answer in answers:
            self.check_error(answer, 429, "queue_full")
            self.assertEqual(answer.headers["Retry-After"], "1")
        self.server.wait_for(lambda: self.server.metric("chat_requests") == 0)
        self.assertEqual(self.server.chat(user("Hi"), max_tokens=1).status, 200)

    def test_large_bodies(self):
        for n in ((64 << 10) + 1, 200 << 10):
            self.check_error(self.server.post("/v1/chat/completions", b"x" * n), 413, "body_too_large")
        with self.server.connect() as connection:  # told at once, without waiting for the rest
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                               b"application/json\r\nContent-Length: 99999999999\r\n\r\n")
            self.assertTrue(connection.recv(4096).startswith(b"HTTP/1.1 413 "))
        with self.server.connect() as connection:  # of unknown length
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                               b"application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
            self.assertTrue(connection.recv(4096).startswith(b"HTTP/1.1 413 "))
        with self.server.connect() as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                               b"text/plain\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
            self.assertTrue(connection.recv(4096).startswith(b"HTTP/1.1 415 "))


if __name__ == "__main__":
    unittest.main()
