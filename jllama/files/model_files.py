"""The files that a model is made of, and which of them make its tokenizer."""

import dataclasses
from pathlib import Path

TOKENIZER_GGUF = "tokenizer.gguf"  # in a directory that `quantize.py` wrote from a GGUF file
# All that a tokenizer is made of, besides config.json: what the hub is asked for and what a copy takes along.
TOKENIZER_FILES = (
    *("tokenizer*", "tekken.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"),
    *("chat_template*", "additional_chat_templates/*"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where a model lies: a directory in Hugging Face's layout, or a GGUF file."""

    description: str  # the reference, for messages
    directory: Path | None = None
    gguf: Path | None = None

    @property
    def config_path(self) -> Path:
        """`config.json` of a directory."""
        assert self.directory is not None, f"{self.description} is a GGUF file"
        return self.directory / "config.json"

    @property
    def tokenizer_gguf(self) -> Path | None:
        """A GGUF file whose metadata hold the tokenizer; None where other files do."""
        if self.directory is not None and (self.directory / TOKENIZER_GGUF).is_file():
            return self.directory / TOKENIZER_GGUF
        return self.gguf
