"""A file of requests: answered together, a line each, and gone on with where an earlier run ended."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jllama.cli import streams
from jllama.errors import JllamaError
from jllama.files.errors import file_errors
from jllama.files.paths import expanded
from jllama.settings import GenerationSettings, build_settings

ASKS = ("prompt", "messages", "token_ids")  # one of these a line
BEGINS = b'{"id": '  # an answer


@dataclasses.dataclass(frozen=True)
class Request:
    """A line of the file."""

    where: str  # file and line, for messages
    id: str | int  # the line's own, or its number
    prompt: Any
    settings: GenerationSettings


def read_requests(name: str, settings: GenerationSettings) -> list[Request]:
    """Every line of a JSONL file, `-` for standard input.

    Each is an object with one of `prompt` (a text), `messages` or `token_ids`, maybe an `id`, and any field
    of `GenerationSettings` that is to differ from `settings`. Empty lines are passed over.

    Raises:
      JllamaError: names the line that is not such an object.
    """
    lines = enumerate(streams.read_text(name).splitlines(), 1)
    requests = [_request(f"{name}, line {at}", at, line, settings) for at, line in lines if line.strip()]
    seen: set[str | int] = set()
    for request in requests:
        if request.id in seen:
            raise JllamaError(f"{name}: the id {request.id!r} stands there twice; give each line its own")
        seen.add(request.id)
    if not requests:
        raise JllamaError(f'{name} holds no request: one JSON object a line, such as {{"prompt": "Hello"}}')
    return requests


def _request(where: str, number: int, line: str, settings: GenerationSettings) -> Request:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise JllamaError(f"{where} is no JSON ({error}): one object a line") from None
    asked = [name for name in ASKS if isinstance(given, dict) and name in given]
    if len(asked) != 1:
        raise JllamaError(f"{where} must be an object with one of {', '.join(ASKS)}")
    own = {name: value for name, value in given.items() if name not in (*ASKS, "id")}
    id_ = given.get("id", number)
    if type(id_) not in (str, int):
        raise JllamaError(f"{where}: its id must be a text or a whole number")
    try:
        return Request(where, id_, given[asked[0]], build_settings(settings, **own))
    except JllamaError as error:
        raise JllamaError(f"{where}: {error}") from None


def finished(path: Path) -> set[str | int]:
    """The ids whose answers a file holds; a last line that was cut is taken off.

    Raises:
      JllamaError: the file can't be read or written, or was not written by such a run.
    """
    with file_errors(path):
        data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    rest = data[len(whole) :]
    try:
        ids = {json.loads(line)["id"] for line in whole.splitlines()}
        if not rest.startswith(BEGINS[: len(rest)]):
            raise ValueError("no answer begins so")
    except (ValueError, KeyError, TypeError):
        advice = "give another --output"
        raise JllamaError(f"{path} holds other things than answers of such a run: {advice}") from None
    if rest:
        with file_errors(path), path.open("r+b") as file:
            file.truncate(len(whole))
    return ids


def run(
    model: Any,
    requests: Sequence[Request],
    output: str,
    words: dict[str, Any],
    *,
    max_seq_len: int | None,
    slots: int,
) -> int:
    """Answers requests; each answer is a line behind what `output` holds as soon as it can be.

    Args:
      model: from `jllama.load`.
      requests: from `read_requests`, those that have no answer there.
      output: the file to go on with.
      words: `chat`, `system` and `chat_template_kwargs` as in `jllama.generate`.
      max_seq_len: as there.
      slots: how many at once.

    Returns:
      How many were answered now.

    Raises:
      JllamaError: names the line whose prompt or constraint can't be used; nothing is answered then.
      KeyboardInterrupt: what came is there.
    """
    from jllama.batching.calls import room_for_all
    from jllama.batching.engine import Engine
    from jllama.machine.progress import Bar

    path = expanded(output)
    ids = [_checked(model, request, words) for request in requests]
    if not requests:
        return 0
    asked = [(each, request.settings) for each, request in zip(ids, requests, strict=True)]
    length = max_seq_len or room_for_all(model, asked)
    with (
        file_errors(path),
        path.open("a", encoding="utf-8") as file,
        Engine(model, slots=min(slots, len(requests)), max_seq_len=length, max_queue=len(requests)) as engine,
        Bar("answering", len(requests)) as bar,
    ):
        answers = [_submitted(engine, request, each) for request, each in zip(requests, ids, strict=True)]
        return _write(file, zip(requests, answers, strict=True), bar)


def _checked(model: Any, request: Request, words: dict[str, Any]) -> Any:
    """The token ids of its prompt; what its answer must match is compiled on the way, and kept."""
    from jllama.grammar.constraint import matcher_for
    from jllama.text.prompt import encode_prompt

    tokenizer = model.need_tokenizer()
    with _named(request):
        matcher_for(tokenizer, model.config.vocab_size, request.settings)
        return encode_prompt(tokenizer, request.prompt, **words)


def _submitted(engine: Any, request: Request, ids: Any) -> Any:
    with _named(request):
        return engine.submit(ids, request.settings)


@contextlib.contextmanager
def _named(request: Request) -> Iterator[None]:
    """An error says which line it is about."""
    try:
        yield
    except JllamaError as error:
        raise JllamaError(f"{request.where}: {error.args[0]}", *error.args[1:]) from None


def _write(file: IO[str], answers: Iterator[tuple[Request, Any]], bar: Any) -> int:
    """In order; where it is interrupted, also those behind that had come whole."""
    written = 0
    try:
        for request, answer in answers:
            file.write(_line(request, answer))
            file.flush()
            written += 1
            bar.advance(1)
    except KeyboardInterrupt:
        for request, answer in answers:
            if answer.ended:
                file.write(_line(request, answer))
        raise
    return written


def _line(request: Request, answer: Any) -> str:
    try:
        report = answer.result().summary()
    except JllamaError as error:
        report = {"error": str(error)}
    return json.dumps({"id": request.id, **report}, ensure_ascii=False) + "\n"
