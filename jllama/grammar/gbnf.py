"""llama.cpp's grammars as Lark."""

from jllama.errors import JllamaError
from jllama.grammar.library import library


def gbnf_to_lark(text: str) -> str:
    """The same grammar in the library's syntax, by its own converter.

    Raises:
      JllamaError: it is no GBNF; says where.
    """
    library()
    from llguidance.gbnf_to_lark import gbnf_to_lark as converted

    try:
        return converted(text)
    except RecursionError:
        raise JllamaError("grammar can't be used: its brackets nest too deep") from None
    except Exception as error:  # the library raises no class of its own for half of them
        raise JllamaError(f"grammar can't be used: {error}") from None
