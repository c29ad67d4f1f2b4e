"""A conversation as the model reads it: by its chat template, or as a plain transcript of ours."""

import functools
import itertools
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jllama.answer import Result
from jllama.errors import JllamaError
from jllama.text.prompt import Variables, checked_variables
from jllama.text.template.chat_template import ChatTemplate
from jllama.text.tokenizer import Tokenizer
from jllama.tools.definitions import Tool
from jllama.tools.manner import Manner
from jllama.tools.parser import CallParser

PLAIN = "User: {user}\nAI: {ai}\n"


class Transcript:
    """Messages in, prompt ids out.

    Attributes:
      source: what was asked for: a format such as `PLAIN`, a jinja template, or None for the model's own.
      stops: texts that end an answer, because the user's next turn begins with them or they end a turn.
      turn_ends: those of `stops` that are special tokens.
      variables: a caller's own for the template.
    """

    def __init__(
        self, tokenizer: Tokenizer, source: str | None = None, variables: Variables | None = None
    ) -> None:
        r"""A base model without a template gets `PLAIN`. In a format, `\n` stands for a line's end.

        Raises:
          JllamaError: `source` is no text; the format lacks `{user}` or `{ai}`, the template does not
            compile, or variables come without a template.
        """
        if not isinstance(source, str | None):
            kind = type(source).__name__
            raise JllamaError(f"transcript must be a text such as {PLAIN!r}, or a jinja template, not {kind}")
        self.source = source
        self.variables = checked_variables(variables)
        self.stops: tuple[str, ...] = ()
        self.turn_ends: tuple[str, ...] = ()
        self._tokenizer = tokenizer
        self._template: ChatTemplate | None = None
        self._prefix: list[int] = []
        if source is not None and ("{{" in source or "{%" in source):
            self._template = tokenizer.compile_template(source)
        elif source is not None or tokenizer.chat_template is None:
            self._use_format(PLAIN if source is None else source)
        if self._template is not None:
            self.turn_ends = tokenizer.turn_ends(self._template)
            self.stops += self.turn_ends

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()) -> list[int]:
        """The prompt that asks for the next answer; `token_ids` of a message are used as they are.

        Args:
          messages: may hold calls and results.
          tools: the model is told of them.

        Raises:
          JllamaError: the template does not take these messages.
        """
        template, told = self._template, self.variables
        if tools or any("tool_calls" in message for message in messages):
            messages, more = self.manner.prepared(messages, tools)
            template, told = self._template_for_tools, told | more
        return self._prefix + self._tokenizer.encode_chat(messages, template=template, **told)

    @functools.cached_property
    def manner(self) -> Manner:
        """How the template has tools and calls.

        Raises:
          JllamaError: in no way that is known here.
        """
        return Manner.of(self._template_for_tools)

    @property
    def _template_for_tools(self) -> ChatTemplate:
        template = self._template or self._tokenizer.template_for_tools()
        assert template is not None  # without one it is a plain transcript, which is a template of ours
        return template

    def reader(self, tools: Sequence[Tool]) -> CallParser | None:
        """Takes calls out of an answer; None without tools."""
        names = [tool.name for tool in tools]
        return CallParser(self.manner.format, names, _drawn_id) if tools else None

    def shown(self, tools: Sequence[Tool]) -> tuple[int, ...]:
        """The special tokens that a reader of calls has to see."""
        return self.manner.format.special_ids(self._tokenizer.special_id) if tools else ()

    def _use_format(self, text: str) -> None:
        if self.variables:
            raise JllamaError("chat_template_kwargs need a chat template, and this transcript is a plain one")
        before, between, after = _parse(text)
        self._template = self._tokenizer.compile_template(_template_of(before, between, after))
        self._prefix = self._tokenizer.encode("")[:1] if self._tokenizer.bos_id is not None else []
        stop = (after + before).rstrip(" ")
        self.stops = (stop,) if stop else ()


def _drawn_id() -> str:
    """Nine letters: Mistral's templates take no other ids."""
    return secrets.token_hex(5)[:9]


def _parse(text: str) -> tuple[str, str, str]:
    """What stands before the user's text, between it and the answer, and behind the answer."""
    text = text.replace("\\n", "\n").replace("\\t", "\t")
    before, user, rest = text.partition("{user}")
    between, ai, after = rest.partition("{ai}")
    if not (user and ai) or "{user}" in between + after or "{ai}" in before + after:
        raise JllamaError(
            f"transcript {text!r}: give {{user}} and then {{ai}}, each once, as in {PLAIN!r}; "
            "or a jinja template"
        )
    return before, between, after


def _template_of(before: str, between: str, after: str) -> str:
    """The format as a jinja template. The blank before an answer is the model's to write."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    asks = f"{quoted(between.rstrip(' '))} if loop.last else {quoted(between)}"
    return (
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}"
        f"{{%- elif message.role == 'user' -%}}{{{{ {quoted(before)} + message.content + ({asks}) }}}}"
        f"{{%- else -%}}{{{{ message.content + {quoted(after)} }}}}"
        "{%- endif -%}{%- endfor -%}"
    )


def kept_ids(tokenizer: Tokenizer, prompt: Sequence[int], result: Result) -> tuple[int, ...]:
    """The ids of an answer as history: without the end-of-text token, and nothing beyond its text.

    A stop string or Ctrl-C may cut a token: what is left of that is tokenised.
    """
    ids = list(result.token_ids)
    ends = tokenizer.eos_ids | {tokenizer.special_id(result.stop_string), result.stop_token}
    while ids and result.finish_reason != "length" and ids[-1] in ends:
        ids.pop()
    is_cut = result.finish_reason == "interrupted" or result.stop_string is not None
    return _cut(tokenizer, prompt, ids, result.text) if is_cut else tuple(ids)


def is_cut(result: Result, stops: Collection[str]) -> bool:
    """Whether something else than the end of the model's turn ended the answer.

    Args:
      result: what became of it.
      stops: of the transcript: texts that end a turn.
    """
    by_stop_string = result.stop_string is not None and result.stop_string not in stops
    return result.finish_reason != "stop" or by_stop_string


def _cut(tokenizer: Tokenizer, prompt: Sequence[int], ids: list[int], text: str) -> tuple[int, ...]:
    """The longest run of `ids` whose text begins `text`, and the ids of the rest."""
    stream = tokenizer.stream(prompt)
    sizes = [0, *itertools.accumulate(len(stream.push(token)) for token in ids)]
    for count in range(len(ids), 0, -1):
        if sizes[count] > len(text):
            continue
        stream = tokenizer.stream(prompt)
        start = "".join(map(stream.push, ids[:count])) + stream.flush()
        if text.startswith(start):
            rest = text[len(start) :]
            return (*ids[:count], *tokenizer.encode(rest, add_special=False, begins=False))
    return tuple(tokenizer.encode(text, add_special=False, begins=False))
