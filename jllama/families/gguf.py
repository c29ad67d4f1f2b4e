"""GGUF metadata -> the fields of `ModelConfig`.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from collections.abc import Collection, Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.families.rope import rope_from_gguf

ARCHITECTURES = ("llama", "mistral")


def gguf_fields(
    metadata: Mapping[str, Any],
    architecture: str,
    tensors: Collection[str],
    frequency_factors: tuple[float, ...] | None,
) -> dict[str, Any]:
    """The fields of `ModelConfig`; see `ModelConfig.from_gguf`.

    Raises:
      JllamaError: a key that is missing, or a value that is not supported.
    """
    if architecture not in ARCHITECTURES:
        raise JllamaError(
            f"GGUF architecture {architecture!r} is not supported; jllama runs {' and '.join(ARCHITECTURES)}"
        )
    keys = _GgufKeys(metadata, architecture)
    hidden, heads = keys.need("embedding_length"), keys.need("attention.head_count")
    head_dim = keys.get("attention.key_length", hidden // heads if heads else 0)
    keys.allow_only({"attention.value_length": head_dim, "rope.dimension_count": head_dim, "expert_count": 0})
    words = keys.metadata.get("tokenizer.ggml.tokens")
    return dict(
        vocab_size=len(words) if words and isinstance(words, list) else keys.need("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.need("feed_forward_length"),
        num_hidden_layers=keys.need("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=keys.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=keys.need("context_length"),
        rms_norm_eps=keys.need("attention.layer_norm_rms_epsilon"),
        rope=rope_from_gguf(keys.get, keys.need("context_length"), frequency_factors),
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        sliding_window=keys.get("attention.sliding_window") or None,  # 0: none
    )


class _GgufKeys:
    """Metadata under an architecture's prefix."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata, self.prefix = metadata, architecture

    def get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        return self._of_all_layers(key, value) if isinstance(value, list) else value

    def _of_all_layers(self, key: str, values: list[Any]) -> Any:
        """A number for each layer stands for one number where all are equal."""
        layers = self.metadata.get(f"{self.prefix}.block_count")
        if len(values) != layers:
            raise JllamaError(
                f"GGUF: {self.prefix}.{key} has {len(values)} values for {layers} layers; download it again"
            )
        if any(value != values[0] for value in values):
            raise JllamaError(
                f"GGUF: {self.prefix}.{key} differs from layer to layer, which is not supported: {values}"
            )
        return values[0]

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise JllamaError(f"GGUF metadata lacks {self.prefix}.{key}; convert or download the file again")
        return value

    def allow_only(self, supported: Mapping[str, Any]) -> None:
        for key, only in supported.items():
            if self.get(key, only) != only:
                raise JllamaError(f"GGUF: {self.prefix}.{key}={self.get(key)} is not supported (only {only})")
