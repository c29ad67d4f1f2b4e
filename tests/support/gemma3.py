"""What the goldens of Gemma 3 270M are made of; imports neither jax nor torch."""

from pathlib import Path

NEW = 200  # greedy tokens
TEXT = Path(__file__).parents[1] / "goldens" / "text.txt"


def prompts() -> tuple[str, str, str]:
    """A sentence; scripts, runs of blanks and what only bytes spell; a text longer than the window of 512."""
    return (
        "The capital of France is",
        'def  greet(name):\n\n\t"""Says  hello: 你好, שלום, 🜁 ᚠ."""\n    print(',
        TEXT.read_text(encoding="utf-8"),
    )
