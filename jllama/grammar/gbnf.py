"""llama.cpp's grammars as Lark by the library's converter; what it stumbles over is first said otherwise."""

import re
from collections.abc import Callable

from jllama.errors import JllamaError
from jllama.grammar.library import library

# A comment, a literal, a class of characters, a count, a name, any character; a bracket between two counts.
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<literal>"(?:[^"\\]|\\.)*")|(?P<class>\[(?:[^\]\\]|\\.)*\])"""
    r"""|(?P<token>!?<[^<>"\n]*>|!)|(?P<count>\{[^}\n]*\})|(?P<name>[A-Za-z0-9_-]+)|(?P<any>\.)"""
    r"""|(?P<close>(?<=[*+?}])[ \t]*\)(?=[ \t]*[*+?{]))""",
    re.DOTALL,
)
_BOUNDS = re.compile(r"\{(?:\s*(?P<least>\d*)\s*,)?\s*(?P<most>\d+)\s*\}", re.ASCII)
_CODE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_NUMBERED = re.compile(r"\b[Rr][Uu][Ll][Ee]([0-9]+)\b")
# What the converter takes for a terminal: its longest match would be the only one, where llama.cpp tries all.
_TERMINAL = re.compile(r'"(?:[^"\\]|\\.)*"|/(?:[^/\\]|\\.)*/|\bRULE(?P<number>[0-9]+)\b', re.DOTALL)
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def gbnf_to_lark(text: str) -> str:
    """The same grammar in the library's syntax.

    Raises:
      JllamaError: it is no GBNF; says where.
    """
    library()
    from llguidance.gbnf_to_lark import gbnf_to_lark as converted

    names: dict[str, str] = {"root": "root"}
    try:
        lark = converted(_TOKEN.sub(lambda found: _plainer(found, names), text))
        return _TERMINAL.sub(lambda found: f"rule{found[1]}" if found[1] else found[0], lark)
    except JllamaError:
        raise
    except RecursionError:
        raise JllamaError("grammar can't be used: its brackets nest too deep") from None
    except Exception as error:  # the library raises no class of its own for half of them
        own = {new: name for name, new in names.items()}
        words = _NUMBERED.sub(lambda found: own.get(f"rule{found[1]}", found[0]), str(error))
        raise JllamaError(f"grammar can't be used: {words}") from None


def _plainer(found: re.Match[str], names: dict[str, str]) -> str:
    """A token that means the same: rules by number, since names that differ in case or `-` would collide;
    codes of characters as characters; `.` with line ends.
    """
    kind, token = found.lastgroup, found[0]
    if kind == "comment":
        return ""
    if kind == "name":
        return names.setdefault(token, f"rule{len(names)}")
    if kind == "any":
        return '(. | "\\n")'
    if kind == "token":
        raise _refused(found, "is about a single token, which is not supported: write the text that may come")
    if kind == "count":
        _check_count(found)
        return token.replace("{,", "{0,")
    if kind == "close":  # brackets around a single term get lost
        return ' "")'
    if kind == "literal":
        return _CODE.sub(lambda code: _decoded(code, _in_literal), token)
    if kind == "class":
        if "--" in token:
            raise _refused(found, "has - twice in a class: write it once, last")
        # Two of these have a meaning for the library.
        return (
            _CODE.sub(lambda code: _decoded(code, _in_class), token)
            .replace("&", "\\x26")
            .replace("~", "\\x7e")
        )
    return token


def _check_count(found: re.Match[str]) -> None:
    """The library's words about these would be about its own grammar."""
    bounds = _BOUNDS.fullmatch(found[0])
    if bounds and int(bounds["most"]) < int(bounds["least"] or 0):
        raise _refused(found, "ends before it begins: write the smaller number first")
    if bounds and int(bounds["most"]) == 0:
        raise _refused(found, "lets nothing come: leave it out, and what it counts")


def _refused(found: re.Match[str], words: str) -> JllamaError:
    line = found.string.count("\n", 0, found.start()) + 1
    return JllamaError(f"grammar can't be used: {found[0][:40]} in line {line} {words}")


def _decoded(code: re.Match[str], write: Callable[[str], str]) -> str:
    if len(code[1]) == 1:
        return code[0]
    number = int(code[1][1:], 16)
    if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        raise JllamaError(f"grammar can't be used: {code[0]} is no character")
    return write(chr(number))


def _in_literal(letter: str) -> str:
    return _SHORT.get(letter, letter)


def _in_class(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 0x100 else letter
