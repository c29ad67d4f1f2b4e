"""The architecture of a model, as `config.json` or GGUF metadata states it."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.families.checks import types_checked
from jllama.families.config_check import check_config
from jllama.families.gguf import gguf_fields
from jllama.families.hf import hf_fields
from jllama.files.json_files import read_object
from jllama.layers.kind import LayerKind as LayerKind
from jllama.layers.kind import ScoreRule
from jllama.layers.rope import Rope


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
        check_config(self)

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

    def score_rule(self, kind: LayerKind) -> ScoreRule:
        """How a layer's queries and keys become scores."""
        return ScoreRule(kind.window, self.attention_multiplier, self.attn_logit_softcapping)

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> "ModelConfig":
        """Reads a `config.json` (its path, or its content).

        Raises:
          JllamaError: unreadable, not JSON, a model type, key or value that is not supported.
        """
        if not isinstance(source, str | os.PathLike | Mapping):
            kind = type(source).__name__
            raise JllamaError(f"a configuration is read from a path or a dictionary, not from {kind}")
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
