"""Measures what the server adds to the time to the first byte of an answer: from the request's last byte
sent to the first word received, less what the engine says it took from submission to that word.

    IMAGE_CHAT=build/bin/image-chat LV_SOURCE=. python3 tests/web/overhead.py [REQUESTS]
"""

import json
import re
import statistics
import sys
import time

from web import Server, picture_uri, user


def measure(server, message, n):
    overheads = []
    for _ in range(n + 5):
        body = json.dumps({"messages": [message], "temperature": 0, "max_tokens": 2, "stream": True}).encode()
        with server.connect() as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: "
                               b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            start, data = time.perf_counter(), b""
            while not re.search(rb'"delta":\{"content":"[^"]', data):
                data += connection.recv(65536)
            first_ms = (time.perf_counter() - start) * 1e3
            while b"[DONE]" not in data:
                data += connection.recv(65536)
        engine_ms = float(re.search(rb'"first_token_ms":([0-9.]+)', data).group(1))
        overheads.append(first_ms - engine_ms)
    return sorted(overheads[5:])


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    server = Server("-q")
    for name, message in (("text", user("Hello")), ("picture", user("What?", picture_uri("beach.png")))):
        ms = measure(server, message, n)
        print(f"{name:8} {n} requests: median {statistics.median(ms):.2f} ms, 95% {ms[int(0.95 * n)]:.2f} ms, "
              f"most {ms[-1]:.2f} ms over the engine")
    server.stop()


if __name__ == "__main__":
    main()
