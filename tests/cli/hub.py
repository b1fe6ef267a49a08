"""A hub on loopback: the few answers of huggingface.co that downloading a model needs, and faults.

Two servers, as the real one has: the hub itself, and the one where the bytes of large files lie, to
which the hub redirects.
"""

import hashlib
import http.server
import json
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def is_large(name):
    return name.endswith((".safetensors", ".model"))


def checksum(name, data):
    """What names a file's blob: SHA-256 of a large one, git's SHA-1 of a small one."""
    if is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and a small body in one packet: no wait for its acknowledgement

    def setup(self):
        super().setup()
        self.hub = self.server.hub
        self.is_store = self.server is self.hub.store

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.hub
        hub.requests.append((self.command, "store" if self.is_store else "hub", self.path,
                             dict(self.headers)))
        parts = self.path.strip("/").split("/")
        if self.path.startswith("/api/models/"):
            model = "/".join(parts[2:-2])
            if hub.status or model not in hub.models:
                self.answer(hub.status or 404, **hub.error_headers)
            else:
                names = hub.listed or list(hub.models[model])
                self.answer(200, json.dumps({"sha": hub.commit, "siblings": [
                    {"rfilename": name} for name in names]}).encode())
            return
        moved = parts[0] == "moved"  # where a redirect inside the hub leads
        model, name = "/".join(parts[moved:moved + 2]), parts[-1]
        if hub.status or name not in hub.models.get(model, {}):
            self.answer(hub.status or 404)
            return
        data = hub.models[model][name]
        etag = f'"{hub.checksums.get(name) or checksum(name, data)}"'
        if self.is_store:
            self.send_file(name, data, etag)
        elif is_large(name):
            self.answer(302, Location=hub.store_url + self.path,
                        ETag='"of-the-redirect"', X_Linked_Etag=etag, X_Repo_Commit=hub.commit,
                        X_Linked_Size=hub.sizes.get(name, str(len(data))))
        elif name == "config.json" and not moved:
            self.answer(307, Location="/moved" + self.path)
        else:
            self.send_file(name, data, "W/" + etag)

    def send_file(self, name, data, etag):
        hub, first = self.hub, 0
        wanted = self.headers.get("Range")
        if wanted and hub.ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = hub.served.get(name, data)[first:]
        headers = {"ETag": etag}
        if first:
            headers["Content_Range"] = hub.content_range or f"bytes {first}-{len(data) - 1}/{len(data)}"
        n = hub.cuts.get(name)
        if n is None or self.command == "HEAD":
            self.answer(206 if first else 200, body, **headers)
            return
        if n == 0:  # no answer at all
            self.close_connection = True
            return
        self.answer(206 if first else 200, body[:n], len(body), **headers)
        self.wfile.flush()
        hub.was_cut.set()
        if hub.hangs:
            time.sleep(60)
        hub.cuts[name] = 0
        self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args):  # clients that go away are part of the game
        pass


class Hub:
    """models: {"org/name": {file: bytes}}. The rest are faults; requests is what was asked."""

    def __init__(self):
        self.models, self.requests = {}, []
        self.commit, self.status, self.listed = COMMIT, None, None
        self.error_headers = {}
        self.checksums, self.sizes = {}, {}  # what the hub says of a file instead of the truth
        self.served, self.cuts = {}, {}  # other bytes for a file; after how many it breaks off
        self.ranges, self.content_range, self.hangs = True, None, False
        self.was_cut = threading.Event()
        self.front, self.store = self.serve(), self.serve()
        self.url = f"http://127.0.0.1:{self.front.server_port}"
        self.store_url = f"http://127.0.0.1:{self.store.server_port}"

    def serve(self):
        server = Server(("127.0.0.1", 0), Handler)
        server.hub = self
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def close(self):
        for server in (self.front, self.store):
            server.shutdown()
            server.server_close()

    def asked(self, command, where="", ending=""):
        return [r for r in self.requests
                if r[0] == command and r[1].startswith(where) and r[2].endswith(ending)]
