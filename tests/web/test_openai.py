"""The official openai client, and a validator of /openapi.json and of the answers by it, both of npm. Skipped where
npm cannot bring them."""

import os
import shutil
import subprocess
import sys
import unittest

from web import PICTURES, SECONDS, SOURCE, Case

FOLDER = os.path.join(os.environ["LV_BUILD"], "tests", "openai")
FILES = ("package.json", "package-lock.json", "client.mjs", "openapi.mjs")


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
    try:
        done = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1",
                               "--fetch-timeout=60000"], cwd=FOLDER, capture_output=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "npm cannot install the openai client within 300 s"
    if done.returncode != 0:
        return "npm cannot install the openai client: " + done.stderr.decode().strip()[-500:]
    with open(stamp, "w") as file:
        file.write(wanted)
    return None


class Client(Case):
    args = ("--api-key", "k")
    key = "k"

    def run_script(self, name, n_parts):
        done = subprocess.run(["node", name, f"http://127.0.0.1:{self.server.port}", "k", PICTURES],
                              cwd=FOLDER, capture_output=True, timeout=2 * SECONDS)
        self.assertEqual(done.returncode, 0, done.stdout.decode() + done.stderr.decode())
        self.assertEqual(done.stdout.count(b"ok "), n_parts)

    def test_official_client(self):
        self.run_script("client.mjs", 8)

    def test_openapi_is_what_is_served(self):
        self.run_script("openapi.mjs", 3)


if __name__ == "__main__":
    reason = install()
    if reason:
        print("skipped:", reason)
        sys.exit(77)
    unittest.main()
