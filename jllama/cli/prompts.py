"""A file of requests: answered together, a line each, and gone on with where an earlier run ended."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from jllama.cli import interrupts, streams
from jllama.cli.answers import Output
from jllama.errors import JllamaError, about
from jllama.settings import GenerationSettings, build_settings

ASKS = ("prompt", "messages", "token_ids")  # one of these a line
SCORES = ("logprobs", "prompt_logprobs")  # of `Engine.submit`


@dataclasses.dataclass(frozen=True)
class Request:
    """A line of the file."""

    where: str  # file and line, for messages
    id: str | int  # the line's own, or its number
    prompt: Any
    settings: GenerationSettings
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    mark: str = ""  # 12 hex digits of all that the answer depends on


def read_requests(name: str, settings: GenerationSettings, common: Any = None) -> list[Request]:
    """Every line of a JSONL file.

    Each is an object with one of `prompt` (a text), `messages` or `token_ids`, maybe an `id`, `logprobs` or
    `prompt_logprobs`, and any field of `GenerationSettings` that is to differ from `settings`. Empty lines
    are passed over.

    Args:
      name: the file, `-` for standard input.
      settings: of lines that say nothing else.
      common: what else all answers depend on, such as the model.

    Raises:
      JllamaError: names the line that is not such an object.
    """
    lines = enumerate(streams.read_text(name).splitlines(), 1)
    each = (_request(f"{name}, line {at}", at, line, settings) for at, line in lines if line.strip())
    requests = [dataclasses.replace(request, mark=_mark(request, common)) for request in each]
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
    own = {name: value for name, value in given.items() if name not in (*ASKS, *SCORES, "id")}
    scores = {name: given[name] for name in SCORES if given.get(name) is not None}
    id_ = given.get("id", number)
    if type(id_) not in (str, int):
        raise JllamaError(f"{where}: its id must be a text or a whole number")
    with about(where):
        return Request(where, id_, given[asked[0]], build_settings(settings, **own), scores)


def _mark(request: Request, common: Any) -> str:
    """Settings that are as they are by themselves are left out: there may be more of them one day."""
    plain = dataclasses.asdict(GenerationSettings())
    chosen = dataclasses.asdict(request.settings).items()
    settings = {name: str(value) for name, value in chosen if value != plain[name]}
    asked = json.dumps([request.prompt, settings, request.scores, common], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


def run(
    model: Any,
    requests: Sequence[Request],
    output: Output,
    words: dict[str, Any],
    *,
    max_seq_len: int | None,
    slots: int,
) -> None:
    """Answers requests; each is a line of `output` as soon as it can be.

    One that can't be answered is a line with `error`, and the others go on.

    Args:
      model: from `jllama.load`.
      requests: from `read_requests`, those that have no answer there.
      output: takes the answers.
      words: `chat`, `system` and `chat_template_kwargs` as in `jllama.generate`.
      max_seq_len: as there.
      slots: how many at once.

    Raises:
      KeyboardInterrupt, SystemExit: what came is there.
    """
    from jllama.batching.calls import room_for_all
    from jllama.batching.engine import Engine
    from jllama.machine.progress import Bar

    ids = [_encoded(model, request, words, max_seq_len) for request in requests]
    pairs = list(zip(requests, ids, strict=True))
    sound = [(each, request.settings) for request, each in pairs if not isinstance(each, Refused)]
    with contextlib.ExitStack() as stack:
        engine = None
        if sound:
            length = max_seq_len or room_for_all(model, sound)
            sizes: Any = dict(slots=min(slots, len(sound)), max_seq_len=length, max_queue=len(sound))
            engine = stack.enter_context(Engine(model, **sizes))
        bar = stack.enter_context(Bar("answering", len(requests)))
        answers = [_submitted(engine, request, each) for request, each in pairs]
        _write(output, zip(requests, answers, strict=True), bar)


@dataclasses.dataclass(frozen=True)
class Refused:
    """In the place of an answer: it can't come."""

    error: JllamaError
    ended = True

    def result(self) -> Any:
        raise self.error


def _encoded(
    model: Any, request: Request, words: dict[str, Any], max_seq_len: int | None
) -> list[int] | Refused:
    """The token ids of its prompt; what its answer must match is compiled on the way, and kept."""
    from jllama.engine.scheduler import check_fits
    from jllama.grammar.constraint import matcher_for
    from jllama.text.prompt import encode_prompt

    tokenizer, context = model.need_tokenizer(), model.config.context_length
    try:
        matcher_for(tokenizer, model.config.vocab_size, request.settings)
        ids = encode_prompt(tokenizer, request.prompt, **words)
        check_fits(len(ids), max_seq_len or context, "shorten it, or raise --max_seq_len", context)
    except JllamaError as error:
        return Refused(error)
    return ids


def _submitted(engine: Any, request: Request, ids: list[int] | Refused) -> Any:
    if isinstance(ids, Refused):
        return ids
    try:
        return engine.submit(ids, request.settings, **request.scores)
    except JllamaError as error:
        return Refused(error)


def _write(output: Output, answers: Iterator[tuple[Request, Any]], bar: Any) -> None:
    """In order; where it is interrupted, also those behind that had come whole."""
    try:
        for request, answer in answers:
            output.write(request.id, request.mark, _report(request, answer))
            bar.advance(1)
            interrupts.check()
    except (KeyboardInterrupt, SystemExit):
        for request, answer in answers:
            if answer.ended:
                output.write(request.id, request.mark, _report(request, answer))
        raise


def _report(request: Request, answer: Any) -> dict[str, Any]:
    try:
        return dict(answer.result().summary())
    except JllamaError as error:
        return {"error": f"{request.where}: {error}"}
