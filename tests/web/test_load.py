"""Many clients at once, clients that go away, and the end under load.

$LV_SOAK_REQUESTS says how many requests the flat memory is shown over (default 360), $LV_STREAMS how
many streams are held open (default 500).
"""

import concurrent.futures
import json
import os
import random
import re
import resource
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import unittest

from overhead import measure
from web import LONG, PICTURES, SANITIZED, SECONDS, Case, Starting, data_uri, picture_uri, png, user


def read_until(connection, mark, seconds=SECONDS):
    connection.settimeout(seconds)
    data = b""
    while mark not in data:
        part = connection.recv(65536)
        if not part:
            raise AssertionError(f"ended before {mark}: {data[-500:]}")
        data += part
    return data


class Vanished(Case):
    def check_slot_free(self, went):
        self.server.wait_for(lambda: self.server.metric("chat_requests") == 0, 20)
        seconds = time.monotonic() - went
        self.assertEqual(self.server.metric("running"), 0)
        self.assertLess(seconds, 10 if SANITIZED else 3)

    def test_in_the_middle_of_a_stream(self):
        before = self.server.metric("generated_tokens_total")
        connection = self.server.send_chat(user("Tell me all."), seed=1, **LONG)
        read_until(connection, b'"content":"')
        connection.close()
        self.check_slot_free(time.monotonic())
        self.assertLess(self.server.metric("generated_tokens_total") - before, 1400)

    def test_while_nothing_is_written(self):
        """One that waits for a whole answer, one that is reset, one that only stops sending."""
        for how in ("close", "reset", "half"):
            connection = self.server.send_chat(user("Tell me all."), **{**LONG, "stream": False, "seed": 2})
            self.server.wait_for(lambda: self.server.metric("running") == 1)
            if how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if how == "half":
                connection.shutdown(socket.SHUT_WR)
            else:
                connection.close()
            self.check_slot_free(time.monotonic())
            connection.close()

    def test_within_one_step(self):
        """Of 16 answers made together, no pass more is made than the one under way when their client goes."""
        for stream in (True, False):
            passes = []
            for seed in range(15):
                connection = self.server.send_chat(user("Tell me all."), n=16, seed=seed, **{**LONG, "stream": stream})
                self.server.wait_for(lambda: self.server.metric("running") == 16)
                time.sleep(0.05)  # a pass of theirs is under way
                before = self.server.metric("passes_total")
                connection.close()
                self.server.wait_for(lambda: self.server.metric("running") == 0)
                passes.append(self.server.metric("passes_total") - before)
            print(f"passes after the client went (stream: {stream}):", *(f"{n:.0f}" for n in sorted(passes)))
            self.assertLessEqual(sorted(passes)[len(passes) // 2], 1, passes)

    def test_at_once(self):
        """Clients that are gone before anything is done for them leave nothing behind."""
        def ask(i):
            self.server.send_chat(user(f"Gone {i}"), max_tokens=100, temperature=2, stream=i % 2 == 0).close()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(1000)))
        self.server.wait_for(lambda: self.server.metric("chat_requests") == 0, 20)
        self.server.wait_for(lambda: self.server.metric("connections") == 1, 20)
        self.assertEqual(self.server.metric("kv_blocks_used"), 0)

    def test_in_the_queue(self):
        server = self.start("--max-batch-size", "1")
        first = server.send_chat(user("Tell me all."), seed=1, **LONG)
        read_until(first, b'"content":"')
        waiting = [server.send_chat(user("Hi"), stream=i % 2 == 0) for i in range(6)]
        server.wait_for(lambda: server.metric("chat_requests") == 7)
        for connection in waiting:
            connection.close()
        server.wait_for(lambda: server.metric("chat_requests") == 1)
        first.close()
        server.wait_for(lambda: server.metric("chat_requests") == 0)

    def test_one_of_several_choices_each(self):
        connection = self.server.send_chat(user("Tell me all."), n=8, seed=1, **LONG)
        read_until(connection, b'"index":7')
        connection.close()
        self.check_slot_free(time.monotonic())

    def test_the_others_go_on(self):
        want = self.server.text(user("Describe this image.", picture_uri("beach.png")))
        for i in range(8):
            connection = self.server.send_chat(user("Tell me all."), seed=i, **LONG)
            threading.Timer(0.01 * i, connection.close).start()
            self.assertEqual(self.server.text(user("Describe this image.", picture_uri("beach.png"))), want)


class Pings(Case):
    args = ("--max-batch-size", "1", "--ping-interval", "1")

    def test_a_waiting_stream_is_kept_alive(self):
        """Its head comes with the first ping; what fails later is told in the stream."""
        slow = [self.server.send_chat(user("Tell me all."), seed=i, **LONG) for i in range(40)]
        self.server.wait_for(lambda: self.server.metric("chat_requests") == 40)
        waiting = self.server.send_chat(user("?", data_uri(b"no picture")), stream=True)
        good = self.server.send_chat(user("Hi"), stream=True, max_tokens=2)
        data = read_until(good, b": ping\n\n")
        self.assertTrue(data.startswith(b"HTTP/1.1 200 "))
        for connection in slow:
            connection.close()
        data += read_until(good, b"[DONE]")
        self.assertIn(b'"finish_reason":"length"', data)
        data = read_until(waiting, b"\r\n\r\n")
        self.assertRegex(data, b"^HTTP/1.1 (400|200) ")
        if b"[DONE]" not in data and b" 200 " in data[:20]:
            data += read_until(waiting, b"[DONE]")
            self.assertIn(b'data: {"error":', data)
        good.close()
        waiting.close()


WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local bodies, i, n = {}, 0, 0
for line in io.lines(os.getenv("WRK_BODIES")) do bodies[#bodies + 1] = line end
request = function() i = i % #bodies + 1; return wrk.format(nil, nil, nil, bodies[i]) end
done = function(summary, latency)
  local e = summary.errors
  print(string.format("wrk: %d requests, p50 %.1f ms, p99 %.1f ms, errors %d", summary.requests, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Wrk(Case):
    args = ("-q",)

    @unittest.skipUnless(shutil.which("wrk"), "wrk is not installed (apt: wrk)")
    def test_load(self):
        """Pages, then chat with pictures from many connections: nothing fails."""
        chats = [{"messages": [user("Describe this image.", picture_uri(name))], "max_tokens": 8, "stream": i % 2 == 0}
                 for i, name in enumerate(sorted(os.listdir(PICTURES))[:8])]
        with tempfile.TemporaryDirectory() as folder:
            script, bodies = os.path.join(folder, "chat.lua"), os.path.join(folder, "bodies")
            with open(script, "w") as file:
                file.write(WRK)
            with open(bodies, "w") as file:
                file.writelines(json.dumps(chat) + "\n" for chat in chats)
            for what in (["/"], ["/health"], ["/v1/chat/completions", "-s", script]):
                done = subprocess.run(["wrk", "-t2", *(("-c16", "-d20s") if SANITIZED else ("-c64", "-d3s")), "--timeout", str(SECONDS), *what[1:],
                                       f"http://127.0.0.1:{self.server.port}{what[0]}"], capture_output=True, text=True,
                                      env={**os.environ, "WRK_BODIES": bodies}, timeout=2 * SECONDS)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertNotIn("Non-2xx", done.stdout)
                self.assertNotIn("Socket errors", done.stdout)
                print(what[0], re.search(r"Requests/sec: +(\S+)", done.stdout).group(1), "a second;",
                      *re.findall(r"wrk: .*", done.stdout))
                if len(what) > 1:
                    self.assertRegex(done.stdout, r"wrk: [1-9]\d* requests, .* errors 0")
        self.server.wait_for(lambda: self.server.metric("chat_requests") == 0)


class SlowReader(Case):
    def test_others_are_not_held_up(self):
        connection = self.server.send_chat(user("Tell me all."), n=4, seed=3, **{**LONG, "max_tokens": 200})
        start = time.monotonic()
        for _ in range(5):
            self.server.text(user("Hi"), max_tokens=2)
        self.assertLess(time.monotonic() - start, 60 if SANITIZED else 10)
        data = read_until(connection, b"[DONE]")
        connection.close()
        self.assertEqual(data.count(b'"finish_reason":"'), 4)


class Clients64(Case):
    def test_mixed_pictures(self):
        """Each of 64 clients gets the answer that it gets alone."""
        questions = []
        for name in sorted(os.listdir(PICTURES))[:8]:
            for text in ("Describe this image.", "What is in the picture?", "Is there a cat?"):
                questions.append((user(text, picture_uri(name)),))
        for i in range(8):
            questions.append((user("Describe this image.", data_uri(png(20 + i, 50 - i, (30 * i, 99, 7)))),))
            questions.append((user(f"Say {i} words."),))
        alone = [self.server.text(*question, max_tokens=40) for question in questions]
        rng = random.Random(5)
        work = [rng.randrange(len(questions)) for _ in range(64 * 3)]

        def ask(i):
            if rng.random() < 0.5:
                return self.server.text(*questions[i], max_tokens=40)
            events = self.server.chat(*questions[i], max_tokens=40, stream=True).events
            return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            got = list(pool.map(ask, work))
        wrong = [(i, alone[i], answer) for i, answer in zip(work, got) if answer != alone[i]]
        self.assertEqual(wrong, [])


class Overhead(Case):
    @unittest.skipIf(SANITIZED, "a sanitizer takes its own time")
    def test_time_to_the_first_word(self):
        """What the server adds to what the engine took: 2 ms at the median, from a quiet machine far less."""
        for message in (user("Hello"), user("What?", picture_uri("beach.png"))):
            ms = measure(self.server, message, 60)
            print(f"over the engine: median {statistics.median(ms):.2f} ms")
            self.assertLess(statistics.median(ms), 2)


class Streams(Starting):
    def test_many_open_streams(self):
        n_streams = int(os.environ.get("LV_STREAMS", "60" if SANITIZED else "500"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        server = self.start("-q", "--ping-interval", "1")
        for i in range(16):  # every slot has been used: what is the model's is there
            server.text(user(f"{i}?"), max_tokens=2)
        before = server.rss_mb()
        selector = selectors.DefaultSelector()
        for i in range(n_streams):
            connection = server.send_chat(user("Tell me."), seed=i, stream=True, temperature=2, max_tokens=40)
            selector.register(connection, selectors.EVENT_READ, bytearray())
        peak, done = 0, 0
        end = time.monotonic() + 2 * SECONDS
        while done < n_streams and time.monotonic() < end:
            for key, _ in selector.select(1):
                part = key.fileobj.recv(65536)
                key.data.extend(part)
                if not part or b"[DONE]" in key.data[-40:]:
                    self.assertTrue(key.data.startswith(b"HTTP/1.1 200 "), key.data[:200])
                    self.assertIn(b'"finish_reason":"', key.data)
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    done += 1
            peak = max(peak, server.rss_mb())
        print(f"{n_streams} streams: {before:.0f} MB before, {peak:.0f} MB at most")
        self.assertEqual(done, n_streams)
        if not SANITIZED:
            self.assertLess(peak - before, 150)


class Soak(Starting):
    @unittest.skipIf(SANITIZED, "AddressSanitizer keeps freed memory")
    def test_flat_memory(self):
        n = int(os.environ.get("LV_SOAK_REQUESTS", "360"))
        server = self.start("-q", "--image-cache", "4M", "--kv-memory", "48M")

        def ask(i):
            kind = i % 6
            shade = i // 24 if i % 24 < 2 else i % 10  # most pictures have been seen before
            picture = data_uri(png(20 + shade % 250, 300 - shade % 250, (shade % 256, shade // 256, 7)))
            if kind == 0:
                return server.chat(user("What?", picture), max_tokens=4).status
            if kind == 1:
                return server.chat(user("What?", picture), max_tokens=4, stream=True).status
            if kind == 2:
                return server.chat(user("What?", data_uri(b"no picture %d" % i)), max_tokens=4).status
            if kind == 3:
                return server.chat(user(f"Number {i}"), max_tokens=4, n=2, logprobs=True, top_logprobs=3).status
            if kind == 4:
                connection = server.send_chat(user(f"Gone {i}"), max_tokens=100, temperature=2, stream=True)
                connection.close()
                return 200
            return server.chat(user("What?"), max_tokens=3, response_format={"type": "json_object"}).status

        rss = []
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for part in range(6):
                statuses = set(pool.map(ask, range(part * n // 6, (part + 1) * n // 6)))
                self.assertLessEqual(statuses, {200, 400})
                rss.append(server.rss_mb())
        print(f"{n} requests: RSS in MB after each sixth:", " ".join(f"{mb:.1f}" for mb in rss))
        server.wait_for(lambda: server.metric("chat_requests") == 0, 20)
        self.assertLess(rss[-1] - rss[1], 12)


class End(Starting):
    def load(self, server, n, **more):
        return [server.send_chat(user(f"{i}?"), **{**LONG, "seed": i, **more}) for i in range(n)]

    def test_sigterm_drains(self):
        """What was asked is answered to its end; what comes later is not taken."""
        server = self.start("--drain-timeout", "120")
        idle = server.connect()
        connections = self.load(server, 12, max_tokens=300)
        server.wait_for(lambda: server.metric("chat_requests") == 12)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: "ending" in server.log)
        with self.assertRaises(OSError):
            server.connect()
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = idle.recv(4096)
        self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
        self.assertIn(b"draining", answer)
        for connection in connections:
            data = read_until(connection, b"[DONE]")
            self.assertIn(b'"finish_reason":"', data)
            connection.close()
        idle.close()
        self.assertEqual(server.process.wait(SECONDS), 0)

    def test_sigterm_deadline(self):
        """What does not end in time is told so."""
        server = self.start("--drain-timeout", "0", "--max-batch-size", "2")
        first, = self.load(server, 1)
        read_until(first, b'"content":"')  # before others ask: which is served first is not said
        streams = [first, *self.load(server, 3)]
        wholes = self.load(server, 4, stream=False)
        server.wait_for(lambda: server.metric("chat_requests") == 8)
        start = time.monotonic()
        self.assertEqual(server.stop(), 0)
        self.assertLess(time.monotonic() - start, 30 if SANITIZED else 5)
        data = b""
        while part := first.recv(65536):
            data += part
        self.assertIn(b'"code":"shutting_down"', data)
        for connection in wholes:
            self.assertTrue(connection.recv(4096).startswith(b"HTTP/1.1 503 "))
        for connection in streams + wholes:
            connection.close()

    def test_sigint(self):
        server = self.start()
        self.assertEqual(server.stop(signal.SIGINT), 0)
        server = self.start()
        connections = self.load(server, 3)
        server.wait_for(lambda: server.metric("chat_requests") == 3)
        server.process.send_signal(signal.SIGINT)
        server.wait_for(lambda: "ending" in server.log)
        start = time.monotonic()
        self.assertEqual(server.stop(signal.SIGINT), 130)
        self.assertLess(time.monotonic() - start, 5)
        for connection in connections:
            connection.close()

    def test_sigterm_amid_what_is_no_http(self):
        """Connections that come, say something and go while the server ends do not make it crash."""
        def disturb(server, seed):
            rng = random.Random(seed)
            while server.process.poll() is None:
                try:
                    with server.connect() as connection:
                        connection.sendall(rng.randbytes(rng.randrange(1, 200)) + b"\r\n\r\n")
                except OSError:
                    pass

        for _ in range(5 if SANITIZED else 30):
            server = self.start("-q")
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                for seed in range(4):
                    pool.submit(disturb, server, seed)
                time.sleep(0.05)
                self.assertEqual(server.stop(), 0)

    def test_signal_while_loading(self):
        for _ in range(5):
            server = self.start(wait=False)
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
