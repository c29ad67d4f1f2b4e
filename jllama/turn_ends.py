"""Which special tokens end a turn where a chat template writes it."""

from jllama.chat_template import ChatTemplate
from jllama.errors import JllamaError
from jllama.special_tokens import END_OF_TURN, SpecialTokens

ANSWER = "\ufffc"
TURN = ({"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER})


def turn_ends(template: ChatTemplate, specials: SpecialTokens) -> tuple[str, ...]:
    """Their texts: well-known ones that its source holds, and whatever it writes right behind an answer."""
    known = [text for text in END_OF_TURN if text in template.source and text in specials.by_text]
    try:
        _, answer, behind = template.trace(TURN, add_generation_prompt=False).rpartition(ANSWER)
    except JllamaError:  # it takes other messages
        return tuple(known)
    follows = specials.leading(behind) if answer else None
    return tuple(dict.fromkeys([*known, *([follows.text] if follows else [])]))
