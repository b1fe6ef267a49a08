"""An installation works from elsewhere, without the source tree."""

import os
import subprocess
import unittest

from cli import SECONDS, Case


class Install(Case):
    def test_install(self):
        prefix = os.path.join(self.dir, "a prefix")
        subprocess.run(["cmake", "--install", os.environ["LV_BUILD"], "--prefix", prefix],
                       check=True, stdout=subprocess.DEVNULL)
        moved = os.path.join(self.dir, "moved")
        os.rename(prefix, moved)
        describe = os.path.join(moved, "bin", "describe")
        result = subprocess.run([describe, "-v", "--max-tokens", "1", "good.png"], cwd=self.dir,
                                env={**os.environ, "LLAVA_MODEL": ""}, capture_output=True,
                                timeout=SECONDS)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(os.path.join(moved, "share", "llava.c", "demo-model"), result.stderr.decode())


if __name__ == "__main__":
    unittest.main()
