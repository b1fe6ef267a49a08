#!/usr/bin/env python3
"""Measures what a folder run is held to, with the demo model on the CPU, and prints a line for each.

    tests/speed/folders.py [PART...]      of: speed memory question; without any, all

BUILD     a build folder (build)
SCRATCH   where pictures and captions lie for the time being (the temporary folder)
ROUNDS    of `speed` (5)

speed     500 pictures in one run against a shell loop of one `describe` a picture. Both are timed by
          turns, the loop over 100 of the pictures; other programs slow both, so the ratio counts
memory    what a run over 5,000 pictures holds after 500 and at most after that
question  time to the first token of a second question about a picture, as a share of the first's
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(HERE, "..", "..", "build")))
DESCRIBE = os.path.join(BUILD, "bin", "describe")
ROUNDS = int(os.environ.get("ROUNDS", "5"))
N, N_LOOP, N_SOAK = 500, 100, 5000


def draw(folder):
    if not os.path.isdir(folder):
        subprocess.run([sys.executable, os.path.join(HERE, "pictures.py"), folder, str(N)], check=True)
    return sorted(os.path.join(folder, name) for name in os.listdir(folder))


def speed(scratch):
    pictures = draw(os.path.join(scratch, "pictures"))
    output = os.path.join(scratch, "captions.jsonl")
    loop = f'for picture in "$@"; do {DESCRIBE} -q "$picture" >/dev/null || exit 1; done'
    ratios = []
    for i in range(ROUNDS):
        some = pictures[i * N_LOOP % N:][:N_LOOP]
        begin = time.perf_counter()
        subprocess.run(["sh", "-c", loop, "-", *some], check=True)
        middle = time.perf_counter()
        subprocess.run([DESCRIBE, "-q", "--output", output, os.path.dirname(pictures[0])], check=True)
        end = time.perf_counter()
        os.remove(output)
        alone, together = N_LOOP / (middle - begin), N / (end - middle)
        ratios.append(together / alone)
        print(f"  one at a time {alone:.2f}, one run {together:.2f} pictures/s: {ratios[-1]:.2f} times",
              flush=True)
    print(f"speed      {statistics.median(ratios):.2f} times the pictures/s of a loop, median of "
          f"{min(ratios):.2f} to {max(ratios):.2f} (bar: 2)")


def resident_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))


def memory(scratch):
    pictures = draw(os.path.join(scratch, "pictures"))
    folder, output = os.path.join(scratch, "soak"), os.path.join(scratch, "soak.csv")
    os.makedirs(folder)
    for i in range(N_SOAK):
        os.link(pictures[i % N], os.path.join(folder, f"{i:05}.jpg"))
    process = subprocess.Popen([DESCRIBE, "-q", "--output", output, folder])
    seen, n_done = [], 0
    while process.poll() is None:
        time.sleep(0.25)
        try:
            with open(output, "rb") as file:
                n_done = file.read().count(b"\r\n") - 1
            seen.append((n_done, resident_kib(process.pid)))
        except (OSError, AttributeError):
            continue  # not begun, or ended
    if process.returncode != 0:
        sys.exit(f"describe: exit status {process.returncode}")
    early = max(kib for n, kib in seen if n <= 500)
    late = max(kib for n, kib in seen if n > 500)
    print(f"memory     {early / 1024:.1f} MiB at most in the first 500 of {N_SOAK} pictures, "
          f"{late / 1024:.1f} MiB after them ({(late - early) / early:+.1%})")


def question(_):
    result = subprocess.run([os.path.join(BUILD, "tests", "test_pipeline_reuse")], check=True,
                            capture_output=True, text=True)
    shares = re.findall(r"second question: .*\((\d+)%\)", result.stdout)
    print(f"question   first token of a second question after {' and '.join(shares)}% of the first "
          "one's time, in the same conversation and in a new one (bar: 15)")


def main():
    parts = {"speed": speed, "memory": memory, "question": question}
    for name in sys.argv[1:]:
        if name not in parts:
            sys.exit(__doc__)
    scratch = tempfile.mkdtemp(prefix="llava-folders-", dir=os.environ.get("SCRATCH"))
    try:
        for name in sys.argv[1:] or parts:
            parts[name](scratch)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
