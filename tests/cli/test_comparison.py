"""`compare_cpu.py` part by part: which sides there are, what they are asked, and what is made of it."""

import contextlib
import ctypes
import dataclasses
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.checkpoint.formats.gguf import read_gguf_header
from jllama.checkpoint.formats.stored import Reader
from jllama.checkpoint.layout import parts
from jllama.checkpoint.reading import read_config
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from tests.support.checkpoint_files import KEYS
from tests.support.programs import bounds_of, defaults_of, flags_of, program_module

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.append(SCRIPTS)
try:
    from cpu_comparison import files, jllama_side, llama_bench_side, process, read_side, side

    compare_cpu = program_module("compare_cpu", "")
finally:
    sys.path.remove(SCRIPTS)

USUAL = dict(model="tinyllama-1.1b", formats=["F32", "BF16", "Q8_0", "Q4_0"], repeats=5, tokens=48)
USUAL |= dict(tests=["decode1", "decode8", "prefill512"], directory="/tmp/jllama-compare", threads=[])
USUAL |= dict(tree=None, read=False, peer_python=sys.executable, llama_bench=None, json=False)
USUAL |= dict(transformers_python=None, model_sha256=None)


@pytest.fixture
def given(monkeypatch):
    """Sets flags."""
    return lambda **changes: monkeypatch.setattr(compare_cpu, "FLAGS", flags_of(**USUAL | changes))


def test_what_holds_where_nothing_is_typed():
    assert defaults_of("compare_cpu") == USUAL
    assert bounds_of("compare_cpu") == {"repeats": (2, None), "tokens": (2, 512)}


@pytest.mark.parametrize(
    ("test", "count"), [("decode1", 1), ("decode256", 256), ("prefill1", 1), ("prefill512", 512)]
)
def test_rows_or_tokens_of_a_test(test, count):
    assert compare_cpu.count_of(test) == count


@pytest.mark.parametrize("test", ["decode0", "decode257", "prefill513", "decode", "xdecode1", "decode1000"])
def test_what_is_no_test(test):
    with pytest.raises(JllamaError, match=rf"^--tests: '{test}' is no test; write decode1 to decode256"):
        compare_cpu.count_of(test)


@pytest.mark.parametrize("threads", ["1", "256", "0", "257", "-1", "1.5"])
def test_threads_that_a_machine_may_have(given, monkeypatch, threads):
    monkeypatch.setattr(compare_cpu, "check_python", lambda *_: None)
    given(threads=["4", threads])
    if threads in ("1", "256"):
        return compare_cpu.check_request()
    with pytest.raises(JllamaError, match=f"--threads: '{threads}' is no number from 1 to 256"):
        compare_cpu.check_request()


@pytest.mark.parametrize(
    ("flags", "tried"),
    [
        ({}, [("peer_python", sys.executable, "llama_cpp, numpy")]),
        (dict(tree=str(Path(SCRIPTS).parent)), []),
        (dict(llama_bench="/bin/true", tests=["decode1", "prefill512"]), []),
        (
            dict(peer_python="p", transformers_python="t"),
            [
                ("peer_python", "p", "llama_cpp, numpy"),
                ("transformers_python", "t", "torch, transformers, gguf"),
            ],
        ),
    ],
)
def test_each_side_that_is_asked_for_is_tried_first(given, monkeypatch, flags, tried):
    seen = []
    monkeypatch.setattr(compare_cpu, "check_python", lambda *python: seen.append(python))
    given(**flags)
    compare_cpu.check_request()
    assert seen == tried


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(formats=["F32", "F33"]), "--formats: 'F33' is none of F32, F16, BF16, Q8_0"),
        (dict(formats=[]), "nothing to compare: give --formats=F32 and --tests=decode1, for instance"),
        (dict(tests=[]), "nothing to compare: give --formats=F32 and --tests=decode1, for instance"),
        (dict(tests=["decode1", "x"]), "--tests: 'x' is no test"),
        (dict(tree=SCRIPTS), f"--tree={SCRIPTS} is no checkout of jllama"),
        (dict(llama_bench="/no/such"), "--llama_bench=/no/such is no program"),
        (
            dict(llama_bench="/bin/true", tests=["decode2", "decode1", "prefill2", "decode8"]),
            "--llama_bench decodes one row: leave out decode2, decode8 of --tests",
        ),
        (dict(peer_python="/no/such"), "--peer_python=/no/such: No such file or directory"),
        (
            dict(tree=str(Path(SCRIPTS).parent), transformers_python="/no/such"),
            "--transformers_python=/no/such: ",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused_first(given, flags, words):
    given(**flags)
    with pytest.raises(JllamaError) as error:
        compare_cpu.check_request()
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("code", [0, 1])
def test_a_python_is_tried_by_its_imports(monkeypatch, code):
    def run(command, **how):
        assert (command, how["text"], how["capture_output"]) == (["p", "-c", "import a, b"], True, True)
        return SimpleNamespace(returncode=code, stderr="Traceback\nno a\n")

    monkeypatch.setattr(compare_cpu.subprocess, "run", run)
    if not code:
        return compare_cpu.check_python("x", "p", "a, b")
    with pytest.raises(JllamaError, match=r"^--x=p can't import a, b \(no a\): --help says what it needs$"):
        compare_cpu.check_python("x", "p", "a, b")


class Side:
    """Notes what it is made of and asked; answers from a list."""

    def __init__(self, *made, tree=None):
        self.made, self.asked, self.closed = (*made, tree), [], False
        self.seconds = []

    def ask(self, request):
        self.asked.append(request)
        return self.seconds.pop(0) if self.seconds else 0.0

    def close(self):
        self.closed = True


OURS = (sys.executable, "jllama", "file", 3, None)


@pytest.mark.parametrize(
    ("kind", "flags", "others"),
    [
        ("Q4_0", {}, {"llama.cpp": (sys.executable, "llama", "file", 3, None)}),
        ("F32", dict(tree="/t"), {"tree": (sys.executable, "jllama", "file", 3, Path("/t"))}),
        ("F32", dict(llama_bench="b"), {"llama.cpp": (sys.executable, "llama_bench", "file", 3, "b", None)}),
        (
            "BF16",
            dict(tree="/t", llama_bench="b", transformers_python="p", read=True),
            {
                "tree": (sys.executable, "jllama", "file", 3, Path("/t")),
                "llama.cpp": (sys.executable, "llama_bench", "file", 3, "b", None),
                "transformers": ("p", "transformers", "file", 3, None),
                "a plain read": (sys.executable, "read", "file", 3, None),
            },
        ),
        (
            "Q8_0",
            dict(transformers_python="p", peer_python="q"),
            {"llama.cpp": ("q", "llama", "file", 3, None)},
        ),
    ],
)
def test_which_sides_there_are(given, monkeypatch, kind, flags, others):
    monkeypatch.setattr(compare_cpu, "Side", Side)
    given(**flags)
    sides = compare_cpu.start(kind, "file", 3)
    assert {name: side.made for name, side in sides.items()} == {"jllama": OURS, **others}
    assert list(sides) == ["jllama", *others]
    assert all(side.asked == [{"test": "ready"}] for side in sides.values())


def compared(given, capsys, test, **flags):
    given(repeats=3, tokens=9, model="m", **flags)
    sides = {name: Side() for name in ("jllama", "llama.cpp", "a plain read")}
    sides["jllama"].seconds = [50.0, 1.0, 2.0, 4.0]  # the first turn is no measurement
    sides["llama.cpp"].seconds = [70.0, 3.0, 1.0, 4.0]
    sides["a plain read"].seconds = [9.0, 1.0, 1.0, 1.0]
    compare_cpu.compare("F32", test, 3, sides)
    return sides, capsys.readouterr().out.splitlines()


def test_medians_and_ratios_of_the_turns(given, capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 7.0, 9.0))
    sides, lines = compared(given, capsys, "decode8", json=True)
    row = dict(model="m", format="F32", test="decode8", threads=3, peer="llama.cpp", jllama=4.0, load=0.5)
    row |= dict(theirs=8 / 3, ratio=1.5, lowest=0.5, highest=3.0)
    assert json.loads(lines[0]) == row
    read = row | dict(peer="a plain read", theirs=8.0, ratio=0.5, lowest=0.25, highest=1.0)
    assert [json.loads(line) for line in lines[1:]] == [read]
    assert all(side.asked == [{"test": "decode8", "tokens": 9}] * 4 for side in sides.values())


def test_a_prompt_is_not_compared_with_a_read(given, capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 7.0, 9.0))
    sides, lines = compared(given, capsys, "prefill16")
    assert lines == [
        "F32    prefill16    3 threads, jllama      8.0 tok/s, llama.cpp      5.3 tok/s: "
        "1.50 x (0.50 to 3.00), load 0.5"
    ]
    assert sides["a plain read"].asked == []


def test_every_format_and_number_of_threads_is_compared(given, monkeypatch, capsys, tmp_path):
    made, seen = [], []

    def start(kind, path, threads):
        made.append(Side())
        seen.append((kind, path, threads))
        return {"jllama": made[-1]}

    monkeypatch.setattr(compare_cpu, "check_request", lambda: seen.append("checked"))
    monkeypatch.setattr(compare_cpu, "start", start)
    monkeypatch.setattr(compare_cpu, "compare", lambda *given: seen.append(given[:3]))
    monkeypatch.setattr(files, "gguf_file", lambda *given: given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 6})
    given(formats=["F32"], tests=["decode1", "prefill8"], threads=["2"], directory=str(tmp_path), model="m")
    compare_cpu.main()
    file = ("m", "F32", tmp_path, None)
    assert seen == ["checked", ("F32", file, 2), ("F32", "decode1", 2), ("F32", "prefill8", 2)]
    assert capsys.readouterr().err.startswith("the sides take turns; quote the ratios")
    given(formats=["F32", "BF16"], tests=["decode1"], directory=str(tmp_path))
    compare_cpu.main()
    assert [each[2] for each in seen[5:]] == [3] * 4  # the cores that this process may use
    assert all(side.closed for side in made)


# The sides' own processes.


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_a_side_runs_its_own_tree_on_so_many_threads(monkeypatch, tmp_path, before):
    started = []
    if before is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", before)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: started.append((command, how)))
    monkeypatch.chdir(tmp_path)
    process.Side("~/python", "read", Path("file"), 7, "more", tree=tmp_path / "tree")
    ((command, how),) = started
    python = str(Path("~/python").expanduser())
    assert command == [python, "-m", "cpu_comparison.read_side", str(tmp_path / "file"), "7", "more"]
    paths = [str(tmp_path / "tree" / "scripts"), str(tmp_path / "tree"), *filter(None, [before])]
    assert how["env"]["PYTHONPATH"].split(os.pathsep) == paths
    assert (how["env"]["JLLAMA_THREADS"], how["cwd"], how["text"]) == ("7", tmp_path / "tree", True)
    assert how["env"]["PATH"] == os.environ["PATH"]
    assert process.command_of("python3") == "python3"


def asked(written, lines):
    one = process.Side.__new__(process.Side)
    waited = []
    one.name = "read"
    one.process = SimpleNamespace(stdin=written, stdout=iter(lines), wait=waited.append)
    return one, waited


def test_a_side_is_asked_for_a_line_and_answers_one():
    written = io.StringIO()
    one, waited = asked(written, ["a remark\n", "seconds 2.5\n", "seconds 3\n"])
    assert (one.ask({"test": "x"}), one.ask({"test": "y"})) == (2.5, 3.0)
    assert [json.loads(line) for line in written.getvalue().splitlines()] == [{"test": "x"}, {"test": "y"}]
    with pytest.raises(JllamaError, match="the side read ended; its message, if any, stands above"):
        one.ask({"test": "z"})
    one.close()
    assert (written.closed, waited) == (True, [30])

    def gone(text):
        raise BrokenPipeError

    with pytest.raises(JllamaError, match="the side read ended"):
        asked(SimpleNamespace(write=gone), [])[0].ask({})


def test_a_side_answers_each_request(monkeypatch, capsys):
    requests = [dict(test="ready"), dict(test="decode8", tokens=5), dict(test="prefill64", tokens=5)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, requests)) + "\n"))
    side.answer(lambda rows, count: rows * 100.0 + count, lambda count: count + 0.5)
    assert capsys.readouterr().out.splitlines() == ["seconds 0.0", "seconds 805.0", "seconds 64.5"]


def test_seconds_of_llama_bench(monkeypatch):
    def run(command, *, stdout, stderr, check):
        assert (stdout, stderr, check) == (subprocess.PIPE, subprocess.DEVNULL, True)
        assert command[:9] == ["b", "-m", "f", "-t", "3", "-r", "1", "-o", "json"]
        tokens = {"-p": int(command[10]), "-n": int(command[12])}
        assert command[9::2] == ["-p", "-n"]
        return SimpleNamespace(stdout=json.dumps([{"avg_ns": 1e9 * (tokens["-p"] + 2 * tokens["-n"])}]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["side", "f", "3", "b"])
    told = []
    monkeypatch.setattr(llama_bench_side, "answer", lambda *both: told.extend(both))
    llama_bench_side.main()
    decode, prefill = told
    assert (decode(1, 5), prefill(64)) == (2.0, 64.0)  # of a step, of a prompt


def test_seconds_of_our_own_side(monkeypatch):
    seen = []
    monkeypatch.setattr(jllama_side.measure, "empty_slots", lambda *given: given)
    monkeypatch.setattr(
        jllama_side.measure, "generation_seconds", lambda slots, test, rng: seen.append((slots, test)) or 10.0
    )
    monkeypatch.setattr(
        jllama_side.measure, "prompt_seconds", lambda slots, test, rng: seen.append((slots, test)) or 7.0
    )
    assert (jllama_side.decode("c", "p", 8, 5), jllama_side.prefill("c", "p", 64)) == (2.0, 7.0)
    kinds = [(slots, test.kind, test.count, test.batch, test.depth) for slots, test in seen]
    assert kinds == [(("c", "p", 8, 1024), "tg", 5, 8, 0), (("c", "p", 1, 1024), "pp", 64, 1, 0)]


@pytest.mark.parametrize(
    ("name", "dtype"), [("m-F32", "float32"), ("m-Q8_0", "bfloat16"), ("F32-x", "bfloat16")]
)
def test_our_own_side_loads_its_file_and_answers(monkeypatch, name, dtype):
    order, told = [], []
    monkeypatch.setattr(sys, "argv", ["side", f"/d/{name}.gguf", "3"])
    monkeypatch.setattr(jllama_side.devices, "configure", lambda device: order.append(device))
    monkeypatch.setattr(jllama_side, "resolve", lambda path: order.append(path) or "files")
    monkeypatch.setattr(jllama_side, "read_config", lambda files: f"config of {files}")
    monkeypatch.setattr(
        jllama_side, "load_params", lambda *what, **how: order.append((*what, how)) or "params"
    )
    monkeypatch.setattr(jllama_side, "answer", lambda *both: told.extend(both))
    monkeypatch.setattr(jllama_side, "decode", lambda *given: given)
    monkeypatch.setattr(jllama_side, "prefill", lambda *given: given)
    jllama_side.main()
    how = dict(progress=False, quantize="auto")
    assert order == ["cpu", f"/d/{name}.gguf", ("files", "config of files", dtype, how)]
    decode, prefill = told
    assert decode(8, 5) == ("config of files", "params", 8, 5)
    assert prefill(64) == ("config of files", "params", 64)


def side_with(monkeypatch, name, **modules):
    """A side of another library, on what stands for that here."""
    for module, made in modules.items():
        monkeypatch.setitem(sys.modules, module.replace("__", "."), made)
    monkeypatch.setattr(sys, "argv", ["side", "/d/m-F32.gguf", "3"])
    try:
        return importlib.import_module(f"cpu_comparison.{name}")
    finally:
        sys.modules.pop(f"cpu_comparison.{name}", None)


class Llama:
    """llama.cpp as far as a side calls it: of each row the token behind the last one is the likeliest."""

    VOCAB = 20

    def __init__(self):
        self.decoded, self.freed, self.cleared, self.asked, self.code = [], 0, [], [], 0

    def __getattr__(self, name):
        return lambda *given: name.removeprefix("llama_")

    def llama_model_load_from_file(self, path, settings):
        assert (path, settings) == (b"/d/m-F32.gguf", "model_default_params")
        return "model"

    def llama_vocab_n_tokens(self, vocab):
        return self.VOCAB

    def llama_context_default_params(self):
        return SimpleNamespace()

    def llama_init_from_model(self, model, settings):
        assert (settings.n_batch, settings.n_ubatch) == (512, 512)
        assert (settings.n_threads, settings.n_threads_batch) == (3, 3)
        self.asked.append((settings.n_ctx, settings.n_seq_max))
        return f"{settings.n_seq_max} rows"

    def llama_get_memory(self, context):
        return f"memory of {context}"

    def llama_memory_clear(self, memory, data):
        self.cleared.append((memory, data))

    def llama_batch_init(self, count, width, sequences):
        assert (width, sequences) == (0, 1)
        names = ("token", "n_seq_id", "pos", "logits")
        return SimpleNamespace(
            seq_id=[[None] for _ in range(count)], **{each: [None] * count for each in names}
        )

    def llama_decode(self, context, batch):
        assert (batch.n_tokens, set(batch.n_seq_id)) == (len(batch.token), {1})
        rows = zip(batch.token, batch.pos, (each[0] for each in batch.seq_id), batch.logits, strict=True)
        self.decoded.append([(*numbers, bool(last)) for *numbers, last in rows])
        return self.code

    def llama_batch_free(self, batch):
        self.freed += 1

    def llama_get_logits_ith(self, context, place):
        logits = [0.0] * self.VOCAB
        logits[self.decoded[-1][place][0] + 1] = 1.0
        return ctypes.cast((ctypes.c_float * self.VOCAB)(*logits), ctypes.POINTER(ctypes.c_float))


def test_llama_cpp_s_side_decodes_rows_and_reads_prompts(monkeypatch):
    library, told = Llama(), []
    made = side_with(monkeypatch, "llama_side", llama_cpp=library)
    monkeypatch.setattr(made, "answer", lambda *both: told.extend(both))
    clock = iter([1.0, 7.0, 10.0, 14.0, 20.0, 25.0, 30.0, 32.0])
    monkeypatch.setattr(made.time, "perf_counter", lambda: next(clock))
    made.main()
    decode, prefill = told
    assert decode(2, 3) == 2.0  # 6 seconds of three steps
    both = [[(token, at, row, True) for row in range(2)] for at, token in enumerate((1, 2, 3, 4))]
    assert library.decoded == both
    library.decoded.clear()
    assert decode(1, 2) == 2.0
    assert library.decoded == [[(1, 0, 0, True)], [(2, 1, 0, True)], [(3, 2, 0, True)]]
    library.decoded.clear()
    assert prefill(4) == 5.0
    assert library.decoded == [[(0, 0, 0, False), (7, 1, 0, False), (14, 2, 0, False), (1, 3, 0, True)]]
    assert library.asked == [(2048, 2), (1024, 1)]  # a context for each number of rows
    assert library.cleared == [(f"memory of {rows} rows", True) for rows in (2, 1, 1)]
    assert library.freed == 8
    library.code = 1
    with pytest.raises(SystemExit, match="llama_decode failed"):
        prefill(4)


def test_transformers_side_decodes_rows_and_reads_prompts(monkeypatch):
    """NumPy stands for torch."""
    seen, told, threads = [], [], []

    class Model:
        config = SimpleNamespace(vocab_size=20)

        def eval(self):
            seen.append("eval")

        def __call__(self, tokens, past_key_values, use_cache, logits_to_keep):
            assert (use_cache, logits_to_keep) == (True, 1)
            seen.append((tokens.tolist(), past_key_values))
            logits = np.eye(20)[(tokens[:, -1:] + 1) % 20]
            return SimpleNamespace(logits=logits, past_key_values=(past_key_values or 0) + tokens.shape[1])

    def load(directory, gguf_file, dtype):
        seen.append((str(directory), gguf_file, dtype))
        return Model()

    torch = SimpleNamespace(Tensor=np.ndarray, ones=np.ones, arange=np.arange, long=np.int64)
    torch.float32, torch.bfloat16, torch.inference_mode = "f32", "bf16", contextlib.nullcontext
    torch.set_num_threads = threads.append
    transformers = SimpleNamespace(AutoModelForCausalLM=SimpleNamespace(from_pretrained=load))
    logging = SimpleNamespace(disable_progress_bar=lambda: None)
    modules = dict(
        torch=torch, transformers=transformers, transformers__utils=SimpleNamespace(logging=logging)
    )
    made = side_with(monkeypatch, "transformers_side", **modules)
    monkeypatch.setattr(made, "answer", lambda *both: told.extend(both))
    clock = iter([1.0, 7.0, 10.0, 14.0])
    monkeypatch.setattr(made.time, "perf_counter", lambda: next(clock))
    made.main()
    assert (seen, threads) == ([("/d", "m-F32.gguf", "f32"), "eval"], [3])
    decode, prefill = told
    assert decode(2, 3) == 2.0
    assert seen[2:] == [([[token]] * 2, read) for token, read in ((1, None), (2, 1), (3, 2), (4, 3))]
    assert prefill(4) == 4.0
    assert seen[-1] == ([[0, 7, 14, 1]], None)
    made.Peer(Path("/d/m-BF16.gguf"), 2)
    assert seen[-2] == ("/d", "m-BF16.gguf", "bf16")


@pytest.mark.parametrize(("head", "size"), [(True, 70), (False, 90)])
def test_bytes_that_a_step_reads(monkeypatch, head, size):
    stored = [SimpleNamespace(name="token_embd.weight", nbytes=40), SimpleNamespace(name="a", nbytes=50)]
    stored += [SimpleNamespace(name="output.weight", nbytes=20)] if head else []
    monkeypatch.setattr(read_side, "read_gguf_header", lambda path: SimpleNamespace(tensors=stored))
    assert read_side.weight_bytes(Path("x")) == size


def test_all_bytes_are_looked_at():
    memory = read_side.Memory(1000, 3)
    looked = []
    assert memory.find(memory.pieces[0].ctypes.data, 2, memory.size) is None  # it is not there
    memory.find = lambda *given: looked.append(given)
    assert memory.seconds(8, 2) >= 0
    assert sorted(looked) == sorted([(piece.ctypes.data, 2, 333) for piece in memory.pieces] * 2)
    assert all(piece.shape == (333,) and (piece == 1).all() for piece in memory.pieces)


# The files.


@pytest.mark.parametrize(
    ("kind", "name", "shape", "stored"),
    [
        ("Q4_0", "blk.0.attn_norm.weight", (64,), "F32"),
        ("Q4_0", "blk.0.attn_q.weight", (64, 64), "Q4_0"),
        ("Q4_0", "output.weight", (64, 64), "Q8_0"),
        ("Q4_1", "token_embd.weight", (64, 64), "Q8_0"),
        ("Q5_0", "output.weight", (64, 64), "Q5_0"),
        ("BF16", "token_embd.weight", (64, 64), "BF16"),
        ("Q4_K_M", "output.weight", (64, 256), "Q6_K"),
        ("Q4_K_M", "blk.1.ffn_up.weight", (64, 256), "Q4_K"),
    ],
)
def test_how_a_tensor_of_a_file_is_stored(kind, name, shape, stored):
    assert files._type_of(kind, name, shape, 8) == stored


def test_numbers_are_stored_in_their_type():
    numbers = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    widths = {"F32": (2, 256), "Q8_0": (2, 272), "Q4_K": (2, 144), "Q6_K": (2, 210)}
    for kind, shape in widths.items():
        data, dtype = files._encoded(numbers, kind)
        assert (data.shape, dtype.name) == (shape, kind)


@pytest.mark.parametrize(("shape", "rows"), [((7,), 1), ((7, 3), 7), ((7, 3, 2), 7)])
def test_rows_of_a_stored_tensor(shape, rows):
    assert files._rows(SimpleNamespace(shape=shape)) == rows


def test_a_file_is_made_once_and_whole(monkeypatch, tmp_path):
    seen = []

    def write(path, model, kind, sha256):
        seen.append((path.name, model, kind, sha256))
        path.write_text("half")
        if kind == "F16":
            raise JllamaError("no")

    monkeypatch.setattr(files, "_write", write)
    place = tmp_path / "new"
    for _ in range(2):
        path = files.gguf_file("pypi:a==1/b:c", "F32", place, "digest")
        assert (path, path.read_text()) == (place / "b-c-F32.gguf", "half")
    assert seen == [("b-c-F32.part", "pypi:a==1/b:c", "F32", "digest")]
    with pytest.raises(JllamaError):
        files.gguf_file("x", "F16", place, None)
    assert os.listdir(place) == ["b-c-F32.gguf"]


def test_a_shape_s_file_is_that_shape_and_converts_to_other_types(monkeypatch, tmp_path):
    keys = KEYS | dict(hidden_size=128, intermediate_size=96, head_dim=64, rope_theta=5e4)
    keys |= dict(rms_norm_eps=2**-13)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(keys))
    shapes = SimpleNamespace(is_shape=lambda name: name == "tiny", shape=lambda name: path)
    monkeypatch.setattr(files, "ready_made", shapes)
    monkeypatch.setattr(files, "DISTINCT", 16)  # rows that are repeated
    made = files.gguf_file("tiny", "F32", tmp_path / "out", None)
    wanted = ModelConfig.from_hf(path)
    config = read_config(resolve(str(made)))
    assert config == dataclasses.replace(wanted, tie_word_embeddings=config.tie_word_embeddings)
    plain = {stored.name: stored for stored in read_gguf_header(made).tensors}
    assert len(plain) == len(parts(wanted))
    assert {stored.encoding.name for stored in plain.values()} == {"F32"}
    monkeypatch.setattr(shapes, "is_shape", lambda name: False)
    small = files.gguf_file(str(made), "Q8_0", tmp_path / "out", None)
    assert small.name == f"{made.name}-Q8_0.gguf"
    reader = Reader()
    for stored in read_gguf_header(small).tensors:
        before = plain[stored.name]
        kind = "F32" if len(before.shape) == 1 else "Q8_0"
        assert (stored.shape, stored.encoding.name) == (before.shape, kind)
        numbers = []
        for each in (before, stored):
            reader.open(each.path)
            raw = np.empty((files._rows(each), each.nbytes // files._rows(each)), np.uint8)
            reader.read(each, 0, raw)
            numbers.append(each.encoding.numbers(raw).astype(np.float32).reshape(each.shape))
        assert np.abs(numbers[0] - numbers[1]).max() <= np.abs(numbers[0]).max() / 200
        if len(before.shape) == 2:
            assert (numbers[0][:16] == numbers[0][16:32]).all()
            assert 0.015 < numbers[0].std() < 0.025
    (tmp_path / "dir").mkdir()
    with pytest.raises(JllamaError):
        files.gguf_file(str(tmp_path / "dir"), "Q8_0", tmp_path / "out", None)
    assert sorted(os.listdir(tmp_path / "out")) == sorted([made.name, small.name])
