"""What the chat says about itself, as plain text."""

from jllama.chat.branches import TreeNode, Turn
from jllama.chat.conversation import Conversation
from jllama.tools.definitions import Call

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS |= dict.fromkeys(range(0x7F, 0xA0), "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """The text with control characters made visible: a model must not steer the terminal."""
    return text.translate(_CONTROLS)


def one_line(text: str, width: int = 72) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def shortened(text: str, most: int = 1000) -> str:
    """The beginning of a text, its lines as they are."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def call(made: Call) -> str:
    """A call of a tool, as it would be written."""
    return f"{made.name}({shortened(made.arguments)})"


def statistics(conversation: Conversation) -> str:
    """Of the last answer, in one line."""
    result = conversation.result
    new = result.prompt_tokens - result.reused_tokens
    return (
        f"read {new} tokens at {result.prefill_tokens_per_second:.0f} tok/s, reused {result.reused_tokens}"
        f" · wrote {result.generated_tokens} at {result.decode_tokens_per_second:.1f} tok/s"
        f" · context {conversation.context_used} of {conversation.max_seq_len} · {reason(conversation)}"
    )


def reason(conversation: Conversation) -> str:
    """Why the last answer ended."""
    result = conversation.result
    if result.finish_reason == "length":
        full = result.prompt_tokens + result.generated_tokens >= conversation.max_seq_len
        return "the context is full" if full else "max_new_tokens reached"
    if result.stop_string is not None and result.stop_string not in conversation.transcript.turn_ends:
        return f"stopped at {result.stop_string!r}"
    return {"stop": "complete", "interrupted": "interrupted"}[result.finish_reason]


def dropped(count: int) -> str:
    """Said when turns leave the context."""
    which = "turn no longer fits" if count == 1 else f"{count} turns no longer fit"
    return f"context full: the oldest {which}, the model does not see that any more"


def count(number: int, noun: str) -> str:
    """`1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def turns(number: int) -> str:
    """`1 turn`, `2 turns`."""
    return count(number, "turn")


def unsaved(count: int) -> str:
    """What would be lost; nothing if nothing would."""
    return f"{turns(count)} {'is' if count == 1 else 'are'} not saved (/save FILE): " if count else ""


def tokens(conversation: Conversation, last: int = 20) -> str:
    """How many tokens each message has."""
    encode = conversation.model.need_tokenizer().encode
    lines = [f"context {conversation.context_used} of {conversation.max_seq_len} tokens"]
    if conversation.branch.system:
        lines.append(f"system {len(encode(conversation.branch.system, add_special=False)):>6}")
    numbered = list(enumerate(conversation.branch.turns, 1))
    if len(numbered) > last:
        lines.append(f"… the last {last} of {len(numbered)} turns:")
    for number, (question, answer) in numbered[-last:]:
        ids = answer.token_ids
        written = len(encode(answer.content, add_special=False)) if ids is None else len(ids)
        lines.append(
            f"{number:>3}  message {len(encode(question.content, add_special=False)):>6}  answer {written:>6}"
        )
    return "\n".join(lines)


def history(conversation: Conversation) -> str:
    """The system message and every turn, a line each."""
    system = conversation.branch.system
    lines = [f"system: {one_line(system)}"] if system else []
    for number, turn in enumerate(conversation.branch.turns, 1):
        gone = " (no longer in the context)" if number <= conversation.branch.dropped else ""
        lines += [f"{number:>3}  {one_line(turn[0].content)}{gone}", f"     ↳ {one_line(turn[1].content)}"]
    return "\n".join(lines)


def tree(conversation: Conversation) -> str:
    """The branches, their common past once."""
    return "\n".join(_tree_lines(conversation.tree(), conversation.current, 1, "")) or "nothing was said yet"


def _tree_lines(node: TreeNode, current: str, number: int, indent: str) -> list[str]:
    lines = [f"{indent}{number + at:>3}  {_turn_line(turn)}" for at, turn in enumerate(node.turns)]
    number += len(node.turns)
    lines += [f"{indent}  ◆  {name}{'  ← here' if name == current else ''}" for name in node.ends]
    for child in node.children:
        is_last = child is node.children[-1]
        below = _tree_lines(child, current, number, "")
        first, rest = ("└─", "  ") if is_last else ("├─", "│ ")
        lines += [f"{indent}{first if not at else rest}{line}" for at, line in enumerate(below)]
    return lines


def _turn_line(turn: Turn) -> str:
    return f"{one_line(turn[0].content, 40)}  ↳ {one_line(turn[1].content, 40)}"
