"""llama.cpp's own llama-bench as a side of `compare_cpu.py`: `… llama_bench_side FILE THREADS PROGRAM`.

Requests come on standard input. Each starts the program anew, which warms up by itself.
"""

import json
import subprocess
import sys
from functools import partial

from cpu_comparison.side import answer


def seconds(file: str, threads: str, program: str, *test: str) -> float:
    """Seconds of one test, such as `-p 512 -n 0`."""
    command = [program, "-m", file, "-t", threads, "-r", "1", "-o", "json", *test]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    (row,) = json.loads(done.stdout)
    return row["avg_ns"] / 1e9


def main() -> None:
    """Answers; llama-bench decodes one row."""
    run = partial(seconds, *sys.argv[1:4])
    answer(
        lambda rows, count: run("-p", "0", "-n", str(count)) / count,
        lambda count: run("-p", str(count), "-n", "0"),
    )


if __name__ == "__main__":
    main()
