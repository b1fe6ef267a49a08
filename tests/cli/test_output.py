"""What comes out, where, and what happens when nobody takes it."""

import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import time
import unittest

from cli import DESCRIBE, MODEL, SECONDS, Case


def read_npy(path):
    """(dtype, shape) of a .npy file whose data has exactly the size they ask for."""
    with open(path, "rb") as file:
        data = file.read()
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    n, = struct.unpack("<H", data[8:10])
    header = eval(data[10:10 + n].decode("latin-1"), {"__builtins__": {}})
    assert not header["fortran_order"]
    count = 1
    for dim in header["shape"]:
        count *= dim
    assert len(data) == 10 + n + count * int(header["descr"][-1]), path
    return header["descr"], header["shape"]


class Terminal:
    """describe under a terminal of its own."""

    def __init__(self, case, *args):
        try:
            self.master, slave = pty.openpty()
        except OSError as error:
            case.skipTest(f"no terminals here: {error}")
        self.process = case.start(*args, stdin=slave, stdout=slave, stderr=slave,
                                  start_new_session=True, preexec_fn=lambda: take_terminal(slave))
        os.close(slave)
        self.text = ""

    def wait_for(self, word, after=0):
        end = time.monotonic() + SECONDS
        while word not in self.text[after:]:
            if not self.more(end - time.monotonic()):
                raise AssertionError(f"no {word!r} in {self.text!r}")
        return len(self.text)

    def more(self, seconds):
        if not select.select([self.master], [], [], max(0, seconds))[0]:
            return False
        try:
            data = os.read(self.master, 4096)
        except OSError:  # Linux: the other side is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def type(self, text):
        os.write(self.master, text.encode())

    def finish(self):
        while self.more(SECONDS):
            pass
        status = self.process.wait(SECONDS)
        os.close(self.master)
        return status


def take_terminal(slave):
    import fcntl
    import termios
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


class Output(Case):
    def test_answers_alone_on_standard_output(self):
        result = self.run_describe("--max-tokens", "2", "good.png", env={"LLAVA_MODEL": ""})
        self.assertEqual(result.status, 0, result.err)
        self.assertEqual(result.out.count("\n"), 1)
        notices = [line for line in result.errors if "demo model" in line]
        self.assertEqual(len(notices), 1, result.err)
        self.assertIn("--model", notices[0])
        self.assertNotIn("\r", result.err)
        self.assertNotIn("\033", result.err)

    def test_json(self):
        result = self.describe("--json", "-p", "What is it?", "good.png", "good.png")
        self.assertEqual((result.status, result.err), (0, ""))
        lines = result.out.splitlines()
        self.assertEqual(len(lines), 2)
        for line in map(json.loads, lines):
            self.assertEqual(line["source"], "good.png")
            self.assertIn(line["finish_reason"], ("stop", "length"))
            self.assertEqual((line["images"][0]["width"], line["images"][0]["height"]), (48, 32))
            self.assertGreaterEqual(line["images"][0]["tiles"], 1)
            usage = line["usage"]
            self.assertGreater(usage["prompt_tokens"], usage["image_tokens"])
            self.assertIn(usage["completion_tokens"], (1, 2))
            self.assertTrue(all(ms >= 0 for ms in line["timings_ms"].values()))
        self.assertEqual(*(json.loads(line)["text"] for line in lines))

    def test_sampling(self):
        def answer(*args):
            result = self.run_describe("-q", "--max-tokens", "12", *args, "good.png")
            self.assertEqual((result.status, result.err), (0, ""))
            return result.out

        greedy = answer()
        self.assertEqual(greedy, answer("--temperature", "0"))
        self.assertEqual(greedy, answer("--temperature", "1", "--top-k", "1"))
        hot = ("--temperature", "10", "--seed")
        self.assertEqual(answer(*hot, "7"), answer(*hot, "7"))
        self.assertNotEqual(answer(*hot, "7"), answer(*hot, "8"))

    def test_ignore_eos(self):
        for prompt in ("a", "b", "c"):
            answer, = self.objects(self.describe("--json", "--max-tokens", "150", "--ignore-eos", "-p",
                                                 prompt, "good.png", env={"LLAVA_MODEL": ""}))
            self.assertEqual((answer["finish_reason"], answer["usage"]["completion_tokens"]),
                             ("length", 150))

    def test_stop(self):
        whole = self.run_describe("-q", "good.png").out.strip()
        cut = self.run_describe("-q", "--stop", whole[2:5], "good.png").out.strip()
        self.assertEqual(cut, whole[:whole.index(whole[2:5])].strip())

    def test_device_that_auto_took(self):
        for args in ((), ("--device", "auto")):
            result = self.run_describe("--max-tokens", "2", *args, "good.png")
            taken = [line for line in result.errors if line.startswith("describe: on ")]
            self.assertEqual(len(taken), 1, result.err)
            self.assertRegex(taken[0], r"on (CUDA, .+|CPU, .+; no GPU: .+)$")
        for args in (("--device", "cpu"), ("-q",), ("-v",)):
            result = self.run_describe("--max-tokens", "2", *args, "good.png")
            self.assertEqual(result.status, 0, result.err)
            self.assertNotIn("describe: on ", result.err)

    def test_verbose(self):
        result = self.run_describe("-v", "--max-tokens", "2", "good.png")
        self.assertEqual(result.status, 0)
        for word in ("device", "model", "memory", "tokens/s", "48 x 32", "read prompt", "cache"):
            self.assertIn(word, result.err)

    def test_memory_for_keys_and_values(self):
        def cache(*args):
            result = self.run_describe("-v", "--max-tokens", "2", *args, "good.png")
            self.assertEqual(result.status, 0, result.err)
            return re.search(r"cache +(\d+) tokens in (\d+) MB", result.err).groups()

        tokens, megabytes = map(int, cache("--kv-memory", "64M"))
        self.assertTrue(60 <= megabytes <= 68, megabytes)
        self.assertEqual(int(cache("--kv-memory", "32M")[0]), tokens // 2 // 64 * 64)
        self.assertGreater(int(cache("--kv-memory", "32M", "--quant-policy", "8")[0]), tokens)
        self.assertGreater(int(cache("--cache-max-entry-count", "0.5")[0]), 0)
        result = self.describe("--kv-memory", "1K", "good.png")
        self.assertEqual((result.status, len(result.errors)), (3, 1), result.err)
        self.assertIn("less than one block", result.err)
        result = self.run_describe("-q", "--kv-memory", f"{megabytes * 1024 * 1024 // tokens * 1024}",
                                   "--max-tokens", "100000", "good.png", "--session-len", "50000")
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
        self.assertIn("the cache has", result.err)

    def test_dump_tensors(self):
        result = self.describe("--json", "--dump-tensors", "dump", "good.png")
        self.assertEqual((result.status, result.err), (0, ""))
        image = self.objects(result)[0]["images"][0]
        side, n_tiles, n_tokens = image["tile_size"], image["tiles"], image["tokens"]
        found = {name: read_npy(os.path.join(self.dir, "dump", name + ".npy")) for name in
                 ("pixels", "pixel_values", "vision_features", "image_embeds", "input_ids",
                  "logits")}
        self.assertEqual(found["pixels"], ("|u1", (n_tiles, side, side, 3)))
        self.assertEqual(found["pixel_values"], ("<f4", (n_tiles, 3, side, side)))
        self.assertEqual(found["vision_features"][1][0], n_tiles)
        self.assertEqual(found["image_embeds"][1][0], n_tokens)
        self.assertIn(found["input_ids"][0], ("<i4", "<i8"))
        self.assertEqual((found["logits"][0], len(found["logits"][1])), ("<f4", 1))

    def test_nobody_reads(self):
        with open("/dev/full", "wb") as full:
            for args in (["--help"], ["--version"], ["-q", "good.png", "good.png"]):
                result = self.run_describe(*args, stdout=full)
                self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)
                self.assertIn("standard output", result.err)
        reader, writer = os.pipe()
        os.close(reader)
        result = self.describe("good.png", "good.png", stdout=writer)
        os.close(writer)
        self.assertEqual((result.status, len(result.errors)), (1, 1), result.err)

    def test_closed_descriptors(self):
        def closing(redirection):
            return subprocess.run(["sh", "-c", f'exec "$0" -q --max-tokens 1 good.png {redirection}',
                                   DESCRIBE], cwd=self.dir, timeout=SECONDS,
                                  env={**os.environ, "LLAVA_MODEL": MODEL},
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        self.assertEqual(closing(">&-").returncode, 1)
        self.assertEqual(closing("<&-").returncode, 0)
        result = closing("2>&-")
        self.assertEqual(result.returncode, 0)
        self.assertGreater(len(result.stdout), 0)

    def test_interrupted(self):
        # While it waits for a picture: what is finished is kept.
        process = self.start("-q", "--max-tokens", "1", "good.png", "-", stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(5), 130)
        self.assertTrue(first.startswith(b"good.png: "), first)
        self.assertEqual(process.stdout.read(), b"")
        process.stdin.close()
        process.stdout.close()
        # While a server does not answer.
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            url = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
            process = self.start("-q", url, env={"no_proxy": "*"})
            server.settimeout(SECONDS)
            with server.accept()[0]:
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(5), 130)

    def test_terminal(self):
        os.rename(os.path.join(self.dir, "good.png"), os.path.join(self.dir, "g\033[7mood.png"))
        args = ("--max-tokens", "3", "g\033[7mood.png", "g\033[7mood.png", "missing.png")
        for quiet in ((), ("-q",)):
            terminal = Terminal(self, *quiet, *args)
            self.assertEqual(terminal.finish(), 1)
            self.assertNotIn("\033[7m", terminal.text)
            self.assertIn("describe: missing.png: No such file", terminal.text)
            rows = terminal.text.replace("\033[K", "").replace("\r", "\n").split("\n")
            answers = [row for row in rows if row.startswith("g\ufffd[7mood.png: ")
                       and not row.endswith((": reading", ": looking"))]
            self.assertEqual(len(answers), 2, terminal.text)
            self.assertEqual("looking" in terminal.text, not quiet)

    def test_interrupt_on_a_terminal(self):
        terminal = Terminal(self, "-q", "-")
        time.sleep(0.3)
        terminal.type("\x03")
        self.assertEqual(terminal.finish(), 130)


class Chat(Case):
    def chat(self, script, *args):
        return self.run_describe("--chat", "--max-tokens", "2", *args, stdin=script.encode())

    def test_script(self):
        result = self.chat("What is it?\n\n/image good.png\nAnd this?\n/help\n/quit\nnot read\n",
                           "-q", "good.png")
        self.assertEqual(result.status, 0, result.err)
        self.assertEqual(result.out.count("\n"), 2)
        self.assertIn("/reset", result.err)

    def test_reset_starts_anew(self):
        result = self.chat("What is it?\n/reset\n/image good.png\nWhat is it?\n", "-q", "good.png")
        self.assertEqual(result.status, 0, result.err)
        self.assertEqual(*result.out.splitlines())

    def test_first_question_on_the_command_line(self):
        result = self.chat("", "-q", "-p", "What is it?", "good.png")
        self.assertEqual((result.status, result.out.count("\n")), (0, 1))

    def test_mistakes_go_on(self):
        result = self.chat("/image missing.png\n/nonsense\n/image\nStill there?\n", "good.png")
        self.assertEqual((result.status, result.out.count("\n")), (1, 1))
        for word in ("missing.png", "/nonsense", "/image wants"):
            self.assertIn(word, result.err)

    def test_full_conversation(self):
        question = "What is it? " * 40
        result = self.chat((question + "\n") * 60 + "/reset\nHello?\n", "-q", "good.png")
        self.assertEqual(result.status, 1, result.err[-500:])
        self.assertLess(result.out.count("\n"), 60)
        self.assertGreater(result.out.count("\n"), 1)
        self.assertTrue(any("token" in line for line in result.errors), result.err[-500:])

    def test_terminal(self):
        terminal = Terminal(self, "--chat", "--max-tokens", "2", "good.png")
        at = terminal.wait_for("> ")
        terminal.type("half a quest\x03")  # the line is dropped, the chat goes on
        at = terminal.wait_for("\n> ", at)
        terminal.type("What is it?\n")
        at = terminal.wait_for("\n> ", at)
        terminal.type("\x04")
        self.assertEqual(terminal.finish(), 0)

    def test_interrupt_stops_the_answer(self):
        terminal = Terminal(self, "--chat", "-q", "--max-tokens", "100000", "--session-len", "20000",
                            "-p", "Talk without end.", "good.png")
        terminal.wait_for(" ")
        terminal.more(0.3)
        terminal.type("\x03")  # the answer ends, the chat goes on
        begin = time.monotonic()
        terminal.type("/help\n")
        terminal.wait_for("/reset")
        self.assertLess(time.monotonic() - begin, 10)
        terminal.type("/quit\n")
        self.assertEqual(terminal.finish(), 0)


if __name__ == "__main__":
    unittest.main()
