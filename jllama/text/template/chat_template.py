"""Chat templates: a list of messages in, the prompt's text out."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from jllama.errors import JllamaError
from jllama.text.template.meter import TemplateRefused, metering
from jllama.text.template.sandbox import SandboxedTemplates, TemplateRaised
from jllama.text.template.traced_text import OWN, Traced, concatenate, trace_data

Message = Mapping[str, Any]
MAX_DEPTH = 100  # of lists and dictionaries in messages and tools
MAX_ITEMS = 1 << 20
# Templates make special tokens of them, `'<|' + message.role + '|>'`: they are the program's, not a user's.
ROLES = frozenset(
    "system user assistant tool function developer ipython environment documents context observation".split()
)


class ChatTemplate:
    """A compiled template, rendered as transformers' `apply_chat_template` renders it.

    Args:
        source: the jinja2 text.
        bos_token, eos_token: texts of the special tokens, as the template's variables; None leaves
            the variable undefined, which prints nothing.
        tokens: further variables of that kind, such as `unk_token`.

    Raises:
        JllamaError: the source is no template, or asks for what the sandbox refuses.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        **tokens: str,
    ):
        self.source = source
        named = {"bos_token": bos_token, "eos_token": eos_token, **tokens}
        self._variables = {name: Traced(text, OWN) for name, text in named.items() if text is not None}
        try:
            self._template = SandboxedTemplates().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise JllamaError(
                f"the chat template does not compile: line {error.lineno}: {error.message}",
                "Use plain text with --nochat_template; in a chat, another --transcript.",
            ) from error
        except Exception as error:
            raise JllamaError(f"the chat template is refused: {_reason(error)}") from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt for `messages`, special tokens as their texts.

        Raises:
            JllamaError: the template refused the messages (its own words follow), failed on them,
                or used far more time or memory than they call for; or they are not plain data.
        """
        return str.__str__(self.trace(messages, add_generation_prompt, tools, **extra))

    def trace(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> Traced:
        """Like `render`, and each character of the prompt knows whether the template wrote it."""
        given = {"messages": messages, "tools": tools, "documents": None, **extra}
        variables = {name: trace_data(plain_data(value, name)) for name, value in given.items()}
        variables["messages"] = [_with_own_role(message) for message in variables["messages"] or ()]
        variables["add_generation_prompt"] = bool(add_generation_prompt)
        with metering(variables):
            try:
                return concatenate([self._template.render({**self._variables, **variables})])
            except TemplateRaised as error:
                raise JllamaError(f"the chat template says: {error.message}") from error
            except Exception as error:
                raise JllamaError(f"the chat template is refused: {_reason(error)}") from error


def _with_own_role(message: Any) -> Any:
    role = message.get("role") if isinstance(message, dict) else None
    return {**message, "role": Traced(role, OWN)} if isinstance(role, str) and role in ROLES else message


def plain_data(value: Any, name: str) -> Any:
    """A copy of `value` in plain Python types, so that a template meets no object with methods.

    Raises:
        JllamaError: something in it is not text, number, truth value, None, list or mapping, or it nests
            deeper or holds more than any conversation.
    """
    return _PlainCopy(name).copy(value)


class _PlainCopy:
    """Counts what it copies: lists that hold each other twice grow as powers of two."""

    def __init__(self, name: str):
        self._name, self._left = name, MAX_ITEMS

    def copy(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise JllamaError(
                f"{self._name} holds lists or dictionaries that nest deeper than {MAX_DEPTH} or themselves, "
                f"or more than {MAX_ITEMS} items"
            )
        if value is None or type(value) in (str, int, float, bool, Traced):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, Mapping):
            return {self._key(key): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, depth + 1) for item in value]
        raise self._unknown(value)

    def _key(self, key: Any) -> Any:
        if isinstance(key, Mapping | list | tuple):
            raise self._unknown(key)
        return self.copy(key)

    def _unknown(self, value: Any) -> JllamaError:
        return JllamaError(
            f"{self._name} must be plain data (texts, numbers, lists, dictionaries with texts as keys), "
            f"not {type(value).__name__}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, TemplateRefused):
        return str(error)
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, jinja2.UndefinedError):
        return f"it wants what the messages do not have: {error}"
    return f"{type(error).__name__}: {error}"
