"""What a chat template in use makes of tokens: which are special in it, and which of them end a turn."""

from jllama.errors import JllamaError
from jllama.text.special_tokens import END_OF_TURN, SpecialTokens, special_texts
from jllama.text.template.chat_template import ChatTemplate
from jllama.text.vocabulary import Vocabulary

ANSWER = "\ufffc"
TURN = ({"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER})


def turn_tokens(template: ChatTemplate, vocabulary: Vocabulary) -> frozenset[str]:
    """Those that are ordinary tokens of this vocabulary, but special while the template is in use."""
    found = special_texts(
        vocabulary.ids,
        lambda text: vocabulary.token_bytes(vocabulary.ids[text]),
        added=vocabulary.added,
        templates=[template.source],
        by_name=False,
    )
    return frozenset(found - vocabulary.specials.keys())


def turn_ends(template: ChatTemplate, specials: SpecialTokens) -> tuple[str, ...]:
    """Their texts: well-known ones that its source holds, and whatever it writes right behind an answer."""
    known = [text for text in END_OF_TURN if text in template.source and text in specials.by_text]
    try:
        _, answer, behind = template.trace(TURN, add_generation_prompt=False).rpartition(ANSWER)
    except JllamaError:  # it takes other messages
        return tuple(known)
    follows = specials.leading(behind) if answer else None
    return tuple(dict.fromkeys([*known, *([follows.text] if follows else [])]))
