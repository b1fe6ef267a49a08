"""An installation works from elsewhere, without the source tree: programs, and the library."""

import os
import shutil
import subprocess
import unittest

from cli import SECONDS, SOURCE, Case

EXAMPLE = os.path.join(SOURCE, "apps", "example")
PICTURE = os.path.join(SOURCE, "assets", "pictures", "park.png")


class Install(Case):
    def setUp(self):
        super().setUp()
        prefix = os.path.join(self.dir, "a prefix")
        subprocess.run(["cmake", "--install", os.environ["LV_BUILD"], "--prefix", prefix],
                       check=True, stdout=subprocess.DEVNULL)
        self.prefix = os.path.join(self.dir, "moved")
        os.rename(prefix, self.prefix)

    def run_in_it(self, *args, **env):
        result = subprocess.run(args, cwd=self.dir, capture_output=True, timeout=SECONDS,
                                env={**os.environ, "LLAVA_MODEL": "", **env})
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def find(self, name):
        for folder, _, names in os.walk(self.prefix):
            if name in names:
                return folder
        self.fail(f"{name} is not installed")

    def test_programs(self):
        result = self.run_in_it(os.path.join(self.prefix, "bin", "describe"), "-v",
                                "--max-tokens", "1", "good.png")
        self.assertIn(os.path.join(self.prefix, "share", "llava.c", "demo-model"),
                      result.stderr.decode())

    def check_example(self, program):
        result = self.run_in_it(program, PICTURE, LD_LIBRARY_PATH=self.find("libllava.so"))
        lines = result.stdout.decode().splitlines()
        self.assertRegex(lines[0], "^The picture shows .*house")
        self.assertRegex(lines[1], "^[0-9]+ tokens, finish: stop, model: ")
        # Of the installation: the library looks beside itself.
        self.assertIn(os.path.join(self.prefix, "share", "llava.c", "demo-model"), lines[1])

    @unittest.skipIf(os.environ["LV_SANITIZE"], "a sanitizer's library wants it in the program too")
    @unittest.skipUnless(shutil.which("pkg-config"), "no pkg-config")
    def test_library_by_pkg_config(self):
        flags = self.run_in_it("pkg-config", "--cflags", "--libs", "llava",
                               PKG_CONFIG_PATH=self.find("llava.pc")).stdout.decode().split()
        program = os.path.join(self.dir, "by-pkg-config")
        self.run_in_it("cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
                       os.path.join(EXAMPLE, "example.c"), *flags, "-o", program)
        self.check_example(program)

    @unittest.skipIf(os.environ["LV_SANITIZE"], "a sanitizer's library wants it in the program too")
    def test_library_by_cmake(self):
        build = os.path.join(self.dir, "example build")
        self.run_in_it("cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={self.prefix}")
        self.run_in_it("cmake", "--build", build)
        self.check_example(os.path.join(build, "example"))

    def test_what_can_be_seen(self):
        """The library's functions are those of its headers."""
        if not shutil.which("nm"):
            self.skipTest("no nm")
        seen = self.run_in_it("nm", "-D", "--defined-only", "--format=just-symbols",
                              os.path.join(self.find("libllava.so"), "libllava.so"))
        names = {name.split("@")[0] for name in seen.stdout.decode().split()} - {"LLAVA_0"}
        headers = "".join(open(os.path.join(SOURCE, "pipeline", name), encoding="utf-8").read()
                          for name in ("llava.h", "model.h"))
        declared = {line.split("(")[0].split()[-1].lstrip("*") for line in headers.splitlines()
                    if "(" in line and not line.startswith((" ", "//", "#", "typedef"))}
        more = {"lv_error", "lv_status_name", "lv_grammar_compile", "lv_grammar_free"}
        self.assertEqual(names, declared | more)


if __name__ == "__main__":
    unittest.main()
