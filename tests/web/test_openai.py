"""The official openai client, of npm, against the server. Skipped where npm cannot bring it."""

import os
import shutil
import subprocess
import sys
import unittest

from web import PICTURES, SECONDS, SOURCE, Case

FOLDER = os.path.join(os.environ["LV_BUILD"], "tests", "openai")
FILES = ("package.json", "package-lock.json", "client.mjs")


def install():
    """A reason why the client cannot be had, or None."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "node and npm are not here"
    os.makedirs(FOLDER, exist_ok=True)
    wanted = open(os.path.join(SOURCE, "tests", "web", "openai", "package-lock.json")).read()
    stamp = os.path.join(FOLDER, "installed")
    for name in FILES:
        shutil.copy(os.path.join(SOURCE, "tests", "web", "openai", name), FOLDER)
    if os.path.exists(stamp) and open(stamp).read() == wanted:
        return None
    done = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
                          cwd=FOLDER, capture_output=True, timeout=300)
    if done.returncode != 0:
        return "npm cannot install the openai client: " + done.stderr.decode().strip()[-500:]
    with open(stamp, "w") as file:
        file.write(wanted)
    return None


class Client(Case):
    args = ("--api-key", "k")
    key = "k"

    def test_official_client(self):
        done = subprocess.run(["node", "client.mjs", f"http://127.0.0.1:{self.server.port}", "k", PICTURES],
                              cwd=FOLDER, capture_output=True, timeout=2 * SECONDS)
        self.assertEqual(done.returncode, 0, done.stdout.decode() + done.stderr.decode())
        self.assertEqual(done.stdout.count(b"ok "), 8)


if __name__ == "__main__":
    reason = install()
    if reason:
        print("skipped:", reason)
        sys.exit(77)
    unittest.main()
