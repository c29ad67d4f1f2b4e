"""What all routes share: the model, its engine, names and limits."""

import asyncio
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from jllama import __version__
from jllama.batching.engine import Engine
from jllama.errors import EngineFailedError, JllamaError
from jllama.server.metrics import Metrics
from jllama.server.protocol.errors import ApiError
from jllama.server.reading import Answers, Mailbox
from jllama.server.reasoning import marks_thoughts
from jllama.text.tokenizer import Tokenizer
from jllama.tools.manner import Manner

LOG = logging.getLogger("jllama.server")
READERS = 4  # threads that read bodies and encode prompts
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a server is set up. The defaults serve one user on one machine."""

    names: tuple[str, ...] = ("model",)  # of the model; the first one is its own, the others are aliases
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"temperature": 1.0})
    keys: tuple[str, ...] = ()  # that open it; none: it is open
    hosts: tuple[str, ...] = ()  # names in the Host header beside IP addresses and localhost; "*": any
    origins: tuple[str, ...] = ()  # web pages that may ask from a browser; "*": any
    largest_body: int = 16 << 20  # bytes
    heartbeat: float = 10.0  # seconds between a stream's comments


class Service:
    """One model behind one server."""

    def __init__(self, engine: Engine, options: Options) -> None:
        """The engine stays the caller's to close."""
        self.engine, self.options = engine, options
        self.tokenizer: Tokenizer = engine.model.need_tokenizer()
        self.vocab_size = engine.model.config.vocab_size
        self.created = int(time.time())
        self.fingerprint = _fingerprint(engine)
        self._manner: Manner | None = None
        self.has_thoughts = marks_thoughts(self.tokenizer.chat_templates.get("default", ""))
        self.metrics = Metrics(options.names[0], engine)
        self.stopping = self._reported = False
        self._live: set[Answers] = set()
        self._mailbox: Mailbox | None = None
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="jllama reader")

    @property
    def manner(self) -> Manner:
        """How the model's template has tools and calls.

        Raises:
          ApiError: 400: in no way that is known here.
        """
        if self._manner is None:
            template = self.tokenizer.template_for_tools()
            if template is None:
                raise ApiError(400, "tools: the model has no chat template", param="tools")
            try:
                self._manner = Manner.of(template)
            except JllamaError as error:
                raise ApiError(400, f"tools: {error}", param="tools", code="unsupported") from None
        return self._manner

    def in_thread(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """What may take its time, off the event loop."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def answers(self) -> Answers:
        """A new request's; `forget` it at its end. On the event loop."""
        if self.stopping:
            raise going_down()
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        made = Answers(self._mailbox, self.metrics.ended)
        self._live.add(made)
        return made

    def forget(self, answers: Answers) -> None:
        """Nobody reads them any more: what runs ends."""
        answers.cancel()
        answers.settle()
        self._live.discard(answers)

    @property
    def running(self) -> int:
        """Requests that are not forgotten."""
        return len(self._live)

    def end_all(self) -> None:
        """All readers get an error. On the event loop."""
        self.stopping = True
        for answers in [*self._live]:
            answers.fail(going_down())

    def check_count(self, count: int, param: str) -> None:
        """Refuses a request for more answers than ever find a place.

        Raises:
          ApiError: 400.
        """
        most = self.engine.stats.max_queue + self.engine.slots
        if count > most:
            raise ApiError(
                400, f"{param}: {count} answers are more than the server holds, {most}", param=param
            )

    def check_health(self) -> None:
        """Refuses where requests are not answered.

        Raises:
          ApiError: 503.
        """
        if self.stopping:
            raise going_down()
        if self.engine.error is not None:
            raise ApiError(503, f"the engine has failed: {self.engine.error}", code="engine_failed")

    def report(self, error: BaseException) -> None:
        """Writes to the log, once, what the engine died of."""
        if isinstance(error, EngineFailedError) and not self._reported:
            self._reported = True
            LOG.critical("the engine has failed; nothing is answered any more", exc_info=self.engine.error)

    def check_model(self, name: str | None) -> None:
        """Refuses a name that is not the model's.

        Raises:
          ApiError: 404.
        """
        if name is not None and name not in self.options.names:
            words = f"the model {name[:200]!r} does not exist; here is {', '.join(self.options.names)}"
            raise ApiError(404, words, param="model", code="model_not_found")

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def going_down() -> ApiError:
    """What whoever is there still is told."""
    return ApiError(503, "the server is shutting down", code="shutting_down")


def _fingerprint(engine: Engine) -> str:
    """The same for the same weights, settings of the model and version."""
    from jllama.chat.archive.fingerprint import fingerprint

    digest = hashlib.sha256(f"{__version__} {fingerprint(engine.model)}".encode())
    return f"fp_{digest.hexdigest()[:16]}"
