"""The settings that /set changes: those of an answer, and a few of the chat's own."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from jllama.chat.overflow import check_policy
from jllama.cli import constraints
from jllama.cli.terminal.state import Chat
from jllama.errors import JllamaError, nearest
from jllama.grammar.constraint import matcher_for
from jllama.settings import CONSTRAINTS, GenerationSettings

_FIELDS = {field.name: field for field in dataclasses.fields(GenerationSettings)}
_OWN = ("on_overflow", "stats", "markdown")
NAMES = (*_FIELDS, *_OWN)


def listing(chat: Chat) -> str:
    """All settings, a line each."""
    return "\n".join(f"  {name}={value(chat, name)}" for name in NAMES)


def value(chat: Chat, name: str) -> str:
    """A setting as it is typed."""
    if name == "on_overflow":
        return chat.conversation.on_overflow
    if name in _OWN:
        return "on" if {"stats": chat.show_stats, "markdown": chat.screen.markdown}[name] else "off"
    held = getattr(chat.settings, name)
    if name == "logit_bias":
        return ",".join(f"{token}={bias}" for token, bias in held.items())
    if name in ("stop", "choice"):
        nothing = "none" if name == "choice" else ""
        return json.dumps(list(held), ensure_ascii=False) if held else nothing
    if isinstance(held, bool):
        return "on" if held else "off"
    return "none" if held is None else str(held)


def change(chat: Chat, argument: str) -> str:
    """Carries out `KEY=VALUE` (or `KEY VALUE`); returns the key.

    Raises:
      JllamaError: there is no such key, or it does not take that value; nothing is changed.
    """
    name, text = _split(argument)
    if name not in NAMES:
        raise JllamaError(f"no setting {name[:40]!r}{nearest(name, NAMES)}; /set lists them")
    if name == "on_overflow":
        chat.conversation.on_overflow = check_policy(text)
    elif name == "stats":
        chat.show_stats = _switch(name, text)
    elif name == "markdown":
        chat.screen.markdown = _switch(name, text)
    else:
        given = _parsed(name, text)
        held = chat.settings.constraint
        if name in CONSTRAINTS and given and held and held[0] != name:
            off = "off" if held[0] == "json_object" else "none"
            raise JllamaError(f"{held[0]} holds already: /set {held[0]}={off} first")
        settings = dataclasses.replace(chat.settings, **{name: given})
        if name in CONSTRAINTS and given:
            model = chat.conversation.model
            matcher_for(model.need_tokenizer(), model.config.vocab_size, settings)  # refuses what can't be
        chat.settings = settings
    return name


def _split(argument: str) -> tuple[str, str]:
    name, equals, text = argument.partition("=")
    if not equals or " " in name.strip():
        name, _, text = argument.partition(" ")
        if not text.strip():
            raise JllamaError("give a value: /set KEY=VALUE; /set lists the settings")
    return name.strip().removeprefix("--"), text.strip()


def _parsed(name: str, text: str) -> Any:
    parsers: dict[str, Callable[[str, str], Any]] = {
        "logit_bias": _logit_bias,
        "stop": _texts,
        "choice": _choices,
        "json_object": _switch,
        "json_schema": _constraint,
        "regex": _text,
        "grammar": _constraint,
        "stop_token_ids": _token_ids,
        "ignore_eos": _switch,
        "seed": _seed,
    }
    if name in parsers:
        return parsers[name](name, text)
    return _number(name, text, type(_FIELDS[name].default))


def _number(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise JllamaError(f"{name}={text[:40]} must be {whole}") from None


def _seed(name: str, text: str) -> int | None:
    return None if text.lower() in ("none", "") else _number(name, text, int)


def _token_ids(name: str, text: str) -> tuple[int, ...]:
    """Numbers with blanks or commas between them, maybe in brackets, as the list of settings shows them."""
    words = text.strip("()[]").replace(",", " ").split()
    return tuple(_number(name, word, int) for word in words if text != "none")


def _switch(name: str, text: str) -> bool:
    words = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    if text.lower() not in words:
        raise JllamaError(f"{name}={text[:40]} must be on or off")
    return words[text.lower()]


def _text(name: str, text: str) -> str | None:
    return None if text in ("none", "") else text


def _constraint(name: str, text: str) -> str | None:
    """Itself, or the name of a file that holds it, as the flags take it."""
    is_file = name == "json_schema" or text.lower().endswith(constraints.GRAMMARS)
    given = _text(name, text)
    return constraints.read({name: given})[name] if given and is_file else given


def _choices(name: str, text: str) -> tuple[str, ...]:
    return () if text in ("none", "") else _texts(name, text)


def _texts(name: str, text: str) -> tuple[str, ...]:
    r"""One text in which `\n` is a line's end, or a JSON list of several."""
    if text.startswith("["):
        try:
            return tuple(json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise JllamaError(f'{name} must be one text or a JSON list such as ["\\n\\n", "User:"]') from None
    return (text.replace("\\n", "\n"),) if text else ()


def _logit_bias(name: str, text: str) -> dict[int, float]:
    try:
        pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
        return {int(token): float(bias) for token, bias in pairs}
    except ValueError:
        raise JllamaError(f"{name}={text[:40]}: give TOKEN_ID=VALUE,… such as 42=-1.5") from None
