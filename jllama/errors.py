"""The one exception that a user's mistake raises, and how text of files and servers goes into a message."""

import contextlib
from collections.abc import Iterable, Iterator

MOST = 2000  # characters of a line: a hostile file may hold names of any length


class JllamaError(Exception):
    """A mistake the user can mend: the message says what is wrong and what to do, in a line or two.

    Scripts print it to stderr and exit with code 2; a library caller catches it. Whatever a message quotes,
    its text is one bounded line without control characters (`escaped`).

    Args:
      message: what is wrong, with or without the way out.
      remedy: what to do, where that takes a line of its own.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(escaped(message), *([escaped(remedy)] if remedy else []))

    def __str__(self) -> str:
        return "\n".join(self.args)


class PromptTooLongError(JllamaError):
    """A prompt leaves no room for an answer.

    Args:
      prompt_tokens: how many it has.
      limit: positions for prompt and answer together.
      remedy: what to do, where the limit may be raised.
      context: the model's own limit; None: not known.
    """

    def __init__(self, prompt_tokens: int, limit: int, remedy: str, context: int | None = None) -> None:
        self.prompt_tokens, self.limit = prompt_tokens, limit
        self.final = context is not None and limit >= context  # no larger limit helps
        advice = "shorten it; the model's context is no longer" if self.final else remedy
        super().__init__(f"the prompt has {prompt_tokens} tokens and max_seq_len is {limit}: {advice}")


class QueueFullError(JllamaError):
    """More requests wait than the queue holds: it is worth trying again later."""


class EngineFailedError(JllamaError):
    """The thread of an engine has died: nothing that waits for it comes any more."""


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """A mistake inside begins with what it is about; it stays of its kind."""
    try:
        yield
    except JllamaError as error:
        error.args = (escaped(f"{what}: {error.args[0]}"), *error.args[1:])
        raise


def escaped(text: str) -> str:
    """Text from anywhere as one line of at most `MOST` characters that can't steer a terminal.

    Line ends, control, bidirectional and other invisible characters become escapes, as in `repr`; letters of
    all scripts stay. Of a long text both ends stay: what a file is called, and what to do.
    """
    shown = _shortened(text)
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return _shortened(shown)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST // 2 - 3]} … {text[-MOST // 2 :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing."""
    import difflib  # late: few messages need it

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
