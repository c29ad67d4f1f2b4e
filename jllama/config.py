"""The architecture of a model, as `config.json` or GGUF metadata states it."""

import contextlib
import dataclasses
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError, escaped
from jllama.families.gguf import gguf_fields
from jllama.families.rope import rope_from_hf
from jllama.families.rope_check import check_rope
from jllama.files.json_files import read_object
from jllama.layers.mlp import ACTIVATIONS
from jllama.layers.rope import Rope

MODEL_TYPES = ("llama", "mistral")
MAX_LAYERS = 10_000  # ten times the deepest that anyone trained: a damaged header must not exhaust memory

# Keys of config.json that do not change what inference computes. `use_sliding_window` is Qwen's: Hugging
# Face's Mistral slides whatever it says.
_NEUTRAL = frozenset(
    """_name_or_path architectures attention_dropout auto_map bad_words_ids bos_token_id
    chunk_size_feed_forward dtype eos_token_id hidden_dropout id2label initializer_range is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id max_length min_length
    model_type num_labels output_attentions output_hidden_states pad_token_id pretraining_tp
    problem_type return_dict rope_interleaved task_specific_params tokenizer_class torch_dtype
    torchscript transformers_version transformers.js_config unk_token_id unsloth_fixed
    unsloth_version use_bfloat16 use_cache use_return_dict use_sliding_window""".split()
)
# Keys that would change it, with the values that leave it alone.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "num_local_experts": (None, 0, 1),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "clip_qkv": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "use_qk_norm": (None, False),
    "qk_norm": (None, False),
    "no_rope_layers": (None, [], ()),
    "is_causal": (None, True),
    "tie_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
}


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

    def __post_init__(self) -> None:
        _check(self)

    @property
    def context_length(self) -> int:
        """How many tokens the model can attend to: more than it was trained for with dynamic RoPE."""
        stretch = self.rope.factor if self.rope.rope_type == "dynamic" else 1.0
        return int(self.max_position_embeddings * stretch)

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> "ModelConfig":
        """Reads a `config.json` (its path, or its content).

        Raises:
          JllamaError: unreadable, not JSON, a model type, key or value that is not supported.
        """
        keys = dict(source) if isinstance(source, Mapping) else read_object(Path(source))
        model_type = keys.get("model_type")
        if model_type not in MODEL_TYPES:
            raise JllamaError(
                f"model_type {model_type!r} is not supported; jllama runs {' and '.join(MODEL_TYPES)}"
            )
        refuse_unsupported(keys)
        with _types_checked("config.json"):
            return cls(**_hf_fields(keys))

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
        architecture = metadata.get("general.architecture")
        if metadata.get("general.type") == "adapter":
            raise JllamaError(
                "the GGUF file is a LoRA adapter, not a whole model; merge it into its base model with "
                "llama-export-lora and give the result"
            )
        if architecture not in MODEL_TYPES:
            raise JllamaError(
                f"GGUF architecture {architecture!r} is not supported; "
                f"jllama runs {' and '.join(MODEL_TYPES)}"
            )
        with _types_checked("GGUF metadata"):
            return cls(**gguf_fields(metadata, architecture, tensors, frequency_factors))


@contextlib.contextmanager
def _types_checked(source: str) -> Iterator[None]:
    """Arithmetic with a text or a huge number where a size should be is the file's mistake, not ours."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError) as error:
        raise JllamaError(f"{source} holds a value of the wrong type or size: {error}") from None


def refuse_unsupported(keys: Mapping[str, Any]) -> None:
    """Refuses keys of `config.json` that jllama would compute wrongly; warns of those it does not know."""
    for key, harmless in _UNSUPPORTED.items():
        if key in keys and keys[key] not in harmless:
            if key == "quantization_config":
                raise JllamaError(_quantized_by_others(keys[key]))
            raise JllamaError(f"config.json: {key}={keys[key]!r} is not supported")
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    read = fields | {
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "original_max_position_embeddings",
        "layer_types",
    }
    unknown = sorted(set(keys) - read - _NEUTRAL - set(_UNSUPPORTED))
    if unknown:
        warnings.warn(
            escaped(f"config.json: keys that jllama does not know: {', '.join(unknown)}"), stacklevel=3
        )


def _quantized_by_others(settings: Any) -> str:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    return (
        f"config.json: the weights are quantised by {method!r} (quantization_config), which jllama does not "
        "read; fetch the model's original weights, which --quantize=int8 or int4 makes small, or a GGUF of it"
    )


def _hf_fields(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig`, with the defaults that Hugging Face's own classes give."""
    mistral = keys["model_type"] == "mistral"

    def get(key: str, default: Any) -> Any:
        value = keys.get(key)
        return default if value is None else value

    hidden, heads = get("hidden_size", 4096), get("num_attention_heads", 32)
    implied_head_dim = hidden // heads if isinstance(heads, int) and heads > 0 else 0
    max_positions = get("max_position_embeddings", 131072 if mistral else 2048)
    _check_size("max_position_embeddings", max_positions)
    return dict(
        vocab_size=get("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=get("intermediate_size", 14336 if mistral else 11008),
        num_hidden_layers=get("num_hidden_layers", 32),
        num_attention_heads=heads,
        num_key_value_heads=get("num_key_value_heads", 8 if mistral else heads),
        head_dim=get("head_dim", implied_head_dim),
        max_position_embeddings=max_positions,
        rms_norm_eps=get("rms_norm_eps", 1e-6),
        rope=rope_from_hf(keys, max_positions),
        hidden_act=get("hidden_act", "silu"),
        tie_word_embeddings=get("tie_word_embeddings", False),
        attention_bias=get("attention_bias", False),
        mlp_bias=get("mlp_bias", False),
        sliding_window=_hf_window(keys, mistral),
    )


def _hf_window(keys: Mapping[str, Any], mistral: bool) -> int | None:
    """Mistral slides (4096 where the key is missing, as in its own class) unless the key is null."""
    kinds = set(keys.get("layer_types") or ())
    if not kinds <= {"full_attention", "sliding_attention"} or len(kinds) > 1:
        raise JllamaError(f"config.json: layer_types of kinds {sorted(kinds)} are not supported")
    window = keys.get("sliding_window", 4096 if mistral else None)
    if not mistral and window is not None:
        raise JllamaError("config.json: model_type llama has no sliding_window; use model_type mistral")
    return window


def _check(c: ModelConfig) -> None:
    """Refuses sizes that no model has, each by name."""
    for field in dataclasses.fields(c):
        value = getattr(c, field.name)
        if field.type is int:
            _check_size(field.name, value)
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
    check_rope(c.rope, c.head_dim, c.max_position_embeddings)
    if type(c.rms_norm_eps) not in (int, float) or not 0 <= c.rms_norm_eps < 1:
        raise JllamaError(f"config: rms_norm_eps={c.rms_norm_eps!r} must be a number from 0 to 1")
    if c.hidden_act not in ACTIVATIONS:
        raise JllamaError(
            f"config: hidden_act={c.hidden_act!r} is not supported; use {', '.join(ACTIVATIONS)}"
        )
    if c.sliding_window is not None:
        _check_size("sliding_window", c.sliding_window, "below 2^31, or null")


def _check_size(name: str, value: Any, otherwise: str = "below 2^31") -> None:
    """Sizes are int32 on the device."""
    if type(value) is not int or not 0 < value < 2**31:
        raise JllamaError(f"config: {name}={value!r} must be a positive whole number {otherwise}")
