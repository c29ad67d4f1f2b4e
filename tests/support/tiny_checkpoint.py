"""A complete model of a few kilobytes: random weights, a byte-level tokenizer, a chat template if wanted."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.support.checkpoint_files import write_directory
from tests.support.checkpoint_generator import random_tensors
from tests.support.small_models import BASE

END = "<|end|>"
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CONTEXT = 256
KEYS: dict[str, Any] = BASE | dict(
    vocab_size=258, hidden_size=32, intermediate_size=48, head_dim=8, max_position_embeddings=CONTEXT
)


def write_tiny_model(directory: Path, *, template: str | None = None, **changes: Any) -> Path:
    """A directory in Hugging Face's layout; `changes` go into its config.json."""
    write_directory(directory, KEYS | changes, random_tensors(KEYS | changes))
    byte_characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: at for at, text in enumerate(byte_characters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": END} | ({"chat_template": template} if template else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
