"""What all scripts share: flags, and one way to end. Nothing here imports jax before the flags are read."""

import contextlib
import errno
import gc
import json
import os
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from absl import flags

from jllama.cli import constraints, flagfiles, help, interrupts, parallel, ready_made, streams
from jllama.cli.streams import say
from jllama.errors import JllamaError, escaped
from jllama.machine import devices

FLAGS = flags.FLAGS


# When garbage is looked for. As Python has it, after 700 new objects, it looks through traces all the time.
GARBAGE = (50_000, 20, 100)
INTERRUPTED, USER_ERROR, PIPE_CLOSED = interrupts.EXIT_CODE, 2, 141


def sampling_settings(defaults: Mapping[str, Any] | None = None) -> Any:
    """The sampling flags as `GenerationSettings`; `defaults` stand in for flags that have no value.

    Raises:
      JllamaError: a value is out of range.
    """
    from jllama.settings import GenerationSettings, build_settings

    names = GenerationSettings.__dataclass_fields__
    given = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    given |= {"stop": tuple(FLAGS.stop), "logit_bias": _logit_bias(FLAGS.logit_bias)}
    given |= constraints.read(given)
    return build_settings(**{**(defaults or {}), **given})


def _logit_bias(pairs: list[str]) -> dict[int, float]:
    try:
        return {int(token): float(value) for token, value in (pair.split("=", 1) for pair in pairs)}
    except ValueError:
        raise JllamaError(f"--logit_bias={' '.join(pairs)}: give TOKEN_ID=VALUE, such as 42=-1.5") from None


def template_variables() -> dict[str, Any] | None:
    """What `--chat_template_kwargs` gives to the chat template.

    Raises:
      JllamaError: it is no JSON object.
    """
    given = FLAGS.chat_template_kwargs
    if given is None:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(variables := json.loads(given), dict):
            return variables
    raise JllamaError(
        f"--chat_template_kwargs={given[:80]}: give a JSON object, '{{\"enable_thinking\": false}}'"
    )


def load_model(quantize: str | None = None, *, tokenizer: bool = True) -> Any:
    """The model that the flags name; says on stderr what it is if `--verbose`.

    Args:
      quantize: instead of what `--quantize` says.
      tokenizer: False loads the weights alone.

    Raises:
      JllamaError: no model is named, or it can't be loaded.
    """
    if not FLAGS.model:
        raise JllamaError("no model: give --model=REFERENCE, or smollm2 as a word")
    ready_made.check(FLAGS.model)
    parallel.join_processes()
    with _nothing_is_garbage(), parallel.telling():
        from jllama.loading import load

        model = load(
            FLAGS.model,
            dtype=FLAGS.dtype,
            device=FLAGS.device,
            quantize=quantize or FLAGS.quantize,
            sha256=FLAGS.model_sha256,
            tokenizer=tokenizer,
            progress=True,
            tensor_parallel=parallel.devices(),
        )
    parallel.follow(model.config, model.params, model.dtype)
    from jllama import kernels
    from jllama.kernels.target import target_of

    reason = kernels.notice(model.config, model.params, model.dtype, target_of(model.params))
    if reason:
        say(f"note: slower than it could be: {reason}")
    if FLAGS.verbose:
        say(banner(model))
    return model


@contextlib.contextmanager
def _nothing_is_garbage() -> Iterator[None]:
    """What comes while a model is loaded stays, modules above all: looking for garbage in it was a twentieth
    of a start, and would take as much again in each later search.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def banner(model: Any) -> str:
    """Model, devices, dtype and versions, in one line; of a CPU whose kernel runs the model the instruction
    set and the threads, too.
    """
    import jax

    from jllama import __version__, kernels
    from jllama.kernels.cpu.build import describe
    from jllama.kernels.target import target_of
    from jllama.machine.devices import describe_device

    place, target = describe_device(model.params), target_of(model.params)
    held = model.config, model.params, model.dtype
    if target.platform == "cpu" and kernels.decode_refusal(*held, target) is None:
        place += f" · {describe()}"
    return (
        f"{model.name} · {model.dtype} · {place} · "
        f"jllama {__version__} · jax {jax.__version__} · context {model.config.context_length}"
    )


def count_compile_seconds() -> list[float]:
    """A list that grows with the seconds of each compilation from now on."""
    import jax

    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def run(program: ModuleType) -> None:
    """Parses the flags, runs `program.main` and exits.

    The code is 0, 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM.
    """
    interrupts.catch()
    devices.own_process()
    gc.set_threshold(*GARBAGE)
    code = _guarded(program)
    if code in (INTERRUPTED, interrupts.TERMINATED):
        interrupts.leave(code)
    streams.settle()
    interrupts.end(code)


def _guarded(program: ModuleType) -> int:
    try:
        streams.prepare()
        if not _wants_help(program):
            _note_what_is_hidden()
            parallel.prepare()
            _choose_threads()
            code = program.main() or 0
            sys.stdout.flush()
            return code
        return 0
    except JllamaError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except parallel.Followed:
        return 0
    except SystemExit:
        return interrupts.TERMINATED
    except BrokenPipeError:
        return PIPE_CLOSED
    except Exception as error:
        parallel.settle()
        message = explanation(error)
        if message is None:
            raise
        return _fail(escaped(message))


def _wants_help(program: ModuleType) -> bool:
    """Parses the command line; prints the help if that is what it asks for.

    Raises:
      JllamaError: a flag that is unknown or malformed, or a word too many.
    """
    flags.DEFINE_bool("help", False, "Explain the flags that matter.", short_name="h")
    flags.DEFINE_bool("helpfull", False, "Explain all flags.")
    asked = {"-h", "--help", "--helpfull"} & {*sys.argv}
    default = "" if asked else getattr(program, "DEFAULT_MODEL", "")
    flagfiles.parse(FLAGS, sys.argv, program.PLACES, default)
    if FLAGS.help or FLAGS.helpfull:
        print(help.text(program, FLAGS, help.called_as(sys.argv), FLAGS.helpfull), flush=True)
    return FLAGS.help or FLAGS.helpfull


def _note_what_is_hidden() -> None:
    if "model" in FLAGS and ready_made.hidden(FLAGS.model):
        say(f"note: {FLAGS.model} is what has that name in this directory, not the ready-made model")


def _choose_threads() -> None:
    if "threads" in FLAGS and FLAGS.threads is not None:
        os.environ["JLLAMA_THREADS"] = str(FLAGS.threads)  # read when the kernels are loaded


def explanation(error: Exception) -> str | None:
    """What to tell the user of an error that no code of ours foresaw; None: a bug, to be shown whole."""
    if isinstance(error, MemoryError):
        return _out_of_memory()
    if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory allocating" in str(error):
        return f"{_out_of_memory()} ({str(error).splitlines()[0][-120:]})"
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
            return f"cannot write the output: {error.strerror}"
        return f"cannot use {error.filename or 'a file'}: {error.strerror}"
    return None


def _out_of_memory() -> str:
    shorter = "a smaller --max_seq_len, " if "max_seq_len" in FLAGS else ""
    return f"out of memory: choose {shorter}--dtype=bfloat16 or a smaller model"


def _fail(message: str) -> int:
    if sys.stderr is not None:
        say(*f"error: {message}".split("\n"))
    return USER_ERROR
