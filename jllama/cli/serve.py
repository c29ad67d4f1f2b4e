"""Serves a model over HTTP, as OpenAI's API and as a chat page for the browser.

Answers are drawn as the flags say, else as the model's generation_config.json does, else at temperature 1;
whatever a request says wins.
"""

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from jllama.cli import command_line, flag_groups, ready_made, streams
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError
from jllama.machine.open_files import raise_limit
from jllama.settings import CHOICES, build_settings

flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; 0.0.0.0: all of this machine's.")
flags.DEFINE_integer("port", 8000, "The port; 0: any free one.", lower_bound=0, upper_bound=65535)
flags.DEFINE_integer("slots", 16, "Answers that are decoded at once.", lower_bound=1, upper_bound=1024)
flags.DEFINE_integer(
    "max_queue", 1024, "Requests that may wait for a slot.", lower_bound=1, upper_bound=100_000
)
flags.DEFINE_integer(
    "max_seq_len",
    None,
    "Tokens of a prompt and its answer together. Default: the model's context, at most 2048.",
    lower_bound=2,
)
flags.DEFINE_multi_string("alias", [], "The model's name for clients. Repeatable: more names.")
flags.DEFINE_multi_string("api_key", [], "A key that clients must give. Repeatable.")
flags.DEFINE_string("api_key_file", None, "A file with such keys, one a line.")
flags.DEFINE_multi_string(
    "cors_origin", [], "A web page's origin that may ask from a browser; *: any. Repeatable."
)
flags.DEFINE_multi_string(
    "allowed_host", [], "A name that the server goes by, beside addresses and localhost; *: any. Repeatable."
)
flags.DEFINE_float(
    "grace_seconds", 30.0, "Time for running answers after SIGTERM or Ctrl-C.", lower_bound=0.0
)
flags.DEFINE_bool("warm_up", True, "Compile all programs before the first request.")
flag_groups.define_model_flags()
flag_groups.define_quantize_flag()
flag_groups.define_parallel_flags()
flag_groups.define_choice_flags()
for name in CHOICES:
    FLAGS.set_default(name, None)  # the model's own

PLACES = ("model",)
HELP = {
    "What runs": ("model", "dtype", "device", "quantize", "tensor_parallel"),
    "Where": ("host", "port", "alias", "api_key", "api_key_file"),
    "How many": ("slots", "max_seq_len", "max_queue"),
}
NAMES = (  # what each flag holds, and how to say that
    ("alias", r"\S(.*\S)?", "a name"),
    ("allowed_host", r"[^\s:/]+|\*", "a name alone, such as llm.example.org, or *"),
    ("cors_origin", r"[a-z][a-z0-9+.-]*://[^\s/]+|null|\*", "an origin such as https://page.example, or *"),
)
MISSING = "jllama serve needs more packages: pip install 'jllama[server]'"


def main() -> int:
    """Loads the model and serves it until a signal comes."""
    try:
        from jllama.server import run
    except ModuleNotFoundError as error:
        raise JllamaError(f"{error}: {MISSING}") from None
    keys, connections = _keys(), raise_limit()
    _check_flags()
    with run.bind(FLAGS.host, FLAGS.port) as bound:  # before the model is loaded, which takes longer
        ended_by = _serve(bound, command_line.load_model(), keys, connections)
    return command_line.INTERRUPTED if ended_by == signal.SIGINT else 0


def _check_flags() -> None:
    """What would only show when a request came."""
    build_settings(**_choices())
    for flag, pattern, wanted in NAMES:
        for value in FLAGS[flag].value or ():
            if not re.fullmatch(pattern, value):
                raise JllamaError(f"--{flag}={value}: give {wanted}")


def _choices() -> dict[str, Any]:
    """How answers are drawn, as far as flags say it."""
    return {name: FLAGS[name].value for name in CHOICES if FLAGS[name].value is not None}


def _serve(bound: socket.socket, model: Any, keys: tuple[str, ...], connections: float) -> int | None:
    """Returns the signal that ended it."""
    from jllama.batching.engine import Engine
    from jllama.server import run
    from jllama.server.app import create_app

    with Engine(model, slots=FLAGS.slots, max_seq_len=FLAGS.max_seq_len, max_queue=FLAGS.max_queue) as engine:
        if FLAGS.warm_up:
            say("preparing the model's programs, which takes longest at its first start")
            engine.warm_up()
        server = run.Server(create_app(engine, _options(model, keys)), FLAGS.grace_seconds)
        say(*_banner(engine, run.listen(bound)), *_warnings(connections, open_to_all=not keys))
        server.serve_on(bound)
    return server.signal


def _options(model: Any, keys: tuple[str, ...]) -> Any:
    from jllama.server.service import Options

    return Options(
        names=tuple(FLAGS.alias) or _names(),
        sampling=_sampling(model),
        keys=keys,
        hosts=(FLAGS.host, *FLAGS.allowed_host),
        origins=tuple(FLAGS.cors_origin),
    )


def _names() -> tuple[str, ...]:
    """A ready-made model's short name before its reference; a path without its directories."""
    reference = FLAGS.model
    ready = ready_made.named(reference)
    if ready:
        return (ready, reference)
    path = Path(reference)
    return (path.resolve().name if path.exists() else reference,)


def _keys() -> tuple[str, ...]:
    found = list(FLAGS.api_key)
    if FLAGS.api_key_file is not None:
        lines = streams.read_text(FLAGS.api_key_file).splitlines()
        found += [line.strip() for line in lines if line.strip()]
        if not found:
            raise JllamaError(f"{FLAGS.api_key_file} holds no key: write one a line")
    if any(not key.strip() for key in found):
        raise JllamaError("--api_key= is empty: give a key, or leave the flag out")
    return tuple(found)


def _sampling(model: Any) -> dict[str, Any]:
    """What a request leaves open: the flags, else what the model's makers say, else OpenAI's defaults."""
    from jllama.chat.generation_config import conversation_sampling

    own, remarks = conversation_sampling(model.generation_config, {"temperature": 1.0})
    for remark in remarks:
        say(f"warning: {remark}")
    return {**own, **_choices()}


def _banner(engine: Any, url: str) -> list[str]:
    from jllama.checkpoint.memory import held_on_each
    from jllama.machine.devices import describe_device

    model, slots = engine.model, FLAGS.slots
    room = dict(batch=slots, max_len=engine.max_seq_len, dtype=model.dtype)
    devices, weights, cache = held_on_each(model.config, model.params, **room)
    each = f"on each of {devices} devices: " * (devices > 1)
    return [
        f"{model.name} · {model.dtype} · {describe_device(model.params)}",
        f"{each}weights {weights / 2**30:.2f} GiB, cache {cache / 2**30:.2f} GiB: {slots} slots of "
        f"{engine.max_seq_len} tokens",
        f"{url} is the chat page, {url}/v1 the API; Ctrl-C ends it",
    ]


def _warnings(connections: float, open_to_all: bool) -> Iterator[str]:
    """What may surprise later; `connections`: how many the system allows."""
    if open_to_all and FLAGS.host not in ("127.0.0.1", "::1", "localhost"):
        yield "warning: whoever reaches this machine can use it: --api_key=KEY closes it"
    if connections < FLAGS.slots + FLAGS.max_queue:
        yield (
            f"warning: the system's limit of open files leaves {connections:.0f} connections, fewer than "
            "slots and queue hold: raise `ulimit -Hn`"
        )
