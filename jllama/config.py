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
from jllama.layers.kind import LayerKind as LayerKind
from jllama.layers.mlp import ACTIVATIONS
from jllama.layers.rope import Rope

_OPTIONAL_FACTORS = ("attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping")
_FACTORS = ("embedding_multiplier", "residual_multiplier", "logits_scaling", *_OPTIONAL_FACTORS)
MAX_LAYERS = 10_000  # ten times the deepest that anyone trained: a damaged header must not exhaust memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An architecture: the field names of Hugging Face's `config.json`, each with the default of a Llama.

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
    attention_bias: bool = False  # of q, k and v
    attention_out_bias: bool | None = None  # of o; None: as `attention_bias`
    mlp_bias: bool = False
    sliding_window: int | None = None
    layer_kinds: tuple[LayerKind, ...] = ()  # repeats; none: all as `sliding_window` and `rope`
    norm_placement: str = "pre"  # attention and feed-forward: norms before them, behind (`post`), or `both`
    norm_offset: float = 0.0  # added to the norms' weights (Gemma: 1)
    qk_norm: str | None = None  # queries and keys are normalised: each `head` alone, or the `full` width
    attention_multiplier: float | None = None  # of the products of queries and keys; None: head_dim^-0.5
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what each half of a layer adds
    logits_scaling: float = 1.0  # the logits are divided by it

    def __post_init__(self) -> None:
        _check(self)

    @property
    def has_out_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self.attention_bias if self.attention_out_bias is None else self.attention_out_bias

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
        factors: Mapping[str, tuple[float, ...]] | None = None,
    ) -> "ModelConfig":
        """Reads GGUF metadata (keys `llama.*` and so on, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

        Args:
          metadata: plain Python values by key.
          tensors: the names of the file's tensors; biases and an output matrix show only there.
          factors: the content of the tensors `rope_freqs.weight`, `rope_factors_long.weight` and
            `rope_factors_short.weight`, of those that there are.

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
            return cls(**gguf_fields(metadata, architecture, tensors, factors or {}))


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
    _check_choices(c)
    _check_factors(c)
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


def _check_choices(c: ModelConfig) -> None:
    for name, allowed in (("norm_placement", ("pre", "post", "both")), ("qk_norm", (None, "head", "full"))):
        if getattr(c, name) not in allowed:
            raise JllamaError(f"config: {name}={getattr(c, name)!r} must be one of {allowed}")
    if c.attention_out_bias not in (None, True, False):
        raise JllamaError(f"config: attention_out_bias={c.attention_out_bias!r} must be true, false or null")


def _check_factors(c: ModelConfig) -> None:
    """Numbers that scores, logits or the residual stream are multiplied by."""
    for name in _FACTORS:
        value = getattr(c, name)
        if value is None and name in _OPTIONAL_FACTORS:
            continue
        if type(value) not in (int, float) or not 0 < value <= 1e6:
            raise JllamaError(f"config: {name}={value!r} must be a positive number, 1000000 at most")
    if type(c.norm_offset) not in (int, float) or not -1e6 <= c.norm_offset <= 1e6:
        raise JllamaError(f"config: norm_offset={c.norm_offset!r} must be a number")
