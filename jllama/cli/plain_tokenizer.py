"""A vocabulary for weights that have none: bytes, and words of some letters as a trained one has them."""

import functools

from jllama.text.tokenizer import Tokenizer

BYTES = 256


@functools.cache
def plain_tokenizer(vocab_size: int) -> Tokenizer:
    """V tokens; the last one ends a text."""
    size = vocab_size - BYTES - 1
    words = [f"<0x{byte:02X}>" for byte in range(BYTES)] + [f"\u2581w{number:x}" for number in range(size)]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [*words, "</s>"],
            "tokenizer.ggml.scores": [0.0] * vocab_size,
            "tokenizer.ggml.token_type": [6] * BYTES + [1] * size + [3],
            "tokenizer.ggml.eos_token_id": vocab_size - 1,
        }
    )
