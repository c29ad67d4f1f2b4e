"""The architecture of a model, as `config.json` or GGUF metadata states it."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.families.checks import check_size, types_checked
from jllama.families.gguf import gguf_fields
from jllama.families.hf import hf_fields
from jllama.families.rope_check import check_rope
from jllama.files.json_files import read_object
from jllama.layers.mlp import ACTIVATIONS
from jllama.layers.rope import Rope

MAX_LAYERS = 10_000  # ten times the deepest that anyone trained: a damaged header must not exhaust memory


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer."""

    window: int | None = None  # positions that a token sees, itself included; None: all
    rope: Rope | None = Rope()  # None: without positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama-family architecture: the field names and defaults of Hugging Face's `config.json`.

    Frozen and hashable, so that it can be a static argument of `jax.jit`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope()
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    layer_kinds: tuple[LayerKind, ...] = ()  # repeats; none: all as `sliding_window` and `rope`

    def __post_init__(self) -> None:
        _check(self)

    @property
    def context_length(self) -> int:
        """How many tokens the model can attend to: more than it was trained for with dynamic RoPE."""
        stretch = self.rope.factor if self.rope.rope_type == "dynamic" else 1.0
        return int(self.max_position_embeddings * stretch)

    def kind_of(self, layer: int) -> LayerKind:
        """The kind of a layer, counted from 0."""
        if not self.layer_kinds:
            return LayerKind(self.sliding_window, self.rope)
        return self.layer_kinds[layer % len(self.layer_kinds)]

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> "ModelConfig":
        """Reads a `config.json` (its path, or its content).

        Raises:
          JllamaError: unreadable, not JSON, a model type, key or value that is not supported.
        """
        keys = dict(source) if isinstance(source, Mapping) else read_object(Path(source))
        with types_checked("config.json"):
            return cls(**hf_fields(keys))

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        tensors: Collection[str],
        frequency_factors: tuple[float, ...] | None = None,
    ) -> "ModelConfig":
        """Reads GGUF metadata (keys `llama.*`, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

        Args:
          metadata: plain Python values by key.
          tensors: the names of the file's tensors; biases and an output matrix show only there.
          frequency_factors: the content of the tensor `rope_freqs.weight`, if there is one.

        Raises:
          JllamaError: an architecture, key or value that is not supported, or a key that is missing.
        """
        architecture = str(metadata.get("general.architecture"))
        if metadata.get("general.type") == "adapter":
            raise JllamaError(
                "the GGUF file is a LoRA adapter, not a whole model; merge it into its base model with "
                "llama-export-lora and give the result"
            )
        with types_checked("GGUF metadata"):
            return cls(**gguf_fields(metadata, architecture, tensors, frequency_factors))


def _check(c: ModelConfig) -> None:
    """Refuses sizes that no model has, each by name."""
    for field in dataclasses.fields(c):
        value = getattr(c, field.name)
        if field.type is int:
            check_size(field.name, value)
        if field.type is bool and type(value) is not bool:
            raise JllamaError(f"config: {field.name}={value!r} must be true or false")
    if c.num_hidden_layers > MAX_LAYERS:
        raise JllamaError(f"config: num_hidden_layers={c.num_hidden_layers} is absurd (over {MAX_LAYERS})")
    if c.num_attention_heads % c.num_key_value_heads:
        raise JllamaError(
            f"config: num_attention_heads={c.num_attention_heads} is no multiple of "
            f"num_key_value_heads={c.num_key_value_heads}"
        )
    if c.head_dim % 2:
        raise JllamaError(f"config: head_dim={c.head_dim} must be even: RoPE rotates pairs")
    for rope in (c.rope, *(kind.rope for kind in c.layer_kinds if kind.rope is not None)):
        check_rope(rope, c.head_dim, c.max_position_embeddings)
    if type(c.rms_norm_eps) not in (int, float) or not 0 <= c.rms_norm_eps < 1:
        raise JllamaError(f"config: rms_norm_eps={c.rms_norm_eps!r} must be a number from 0 to 1")
    if c.hidden_act not in ACTIVATIONS:
        raise JllamaError(
            f"config: hidden_act={c.hidden_act!r} is not supported; use {', '.join(ACTIVATIONS)}"
        )
    for window in (c.sliding_window, *(kind.window for kind in c.layer_kinds)):
        if window is not None:
            check_size("sliding_window", window, "below 2^31, or null")
