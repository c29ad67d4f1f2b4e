"""The small random checkpoints of the goldens: name -> content of `config.json`. NumPy is not even needed."""

from typing import Any

BASE: dict[str, Any] = dict(
    model_type="llama",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    hidden_act="silu",
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
LENGTH = 96  # tokens of each prompt: beyond the 32 and 64 positions below


def _keys(**changes: Any) -> dict[str, Any]:
    return BASE | changes


def _rope(kind: str, theta: float = 10000.0, **settings: Any) -> dict[str, Any]:
    wide = dict(num_hidden_layers=1, hidden_size=64, num_key_value_heads=4, head_dim=32)
    return _keys(rope_parameters={"rope_type": kind, "rope_theta": theta, **settings}, **wide)


_YARN = dict(factor=4.0, original_max_position_embeddings=16)
_LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)

SMALL_MODELS: dict[str, dict[str, Any]] = {
    "mha": _keys(num_key_value_heads=4),
    "gqa2": _keys(),
    "gqa3": _keys(hidden_size=72, num_attention_heads=6, num_key_value_heads=2),
    "gqa4": _keys(num_attention_heads=8, num_key_value_heads=2),
    "gqa8": _keys(num_attention_heads=8, num_key_value_heads=1),
    "attention_bias": _keys(attention_bias=True),
    "mlp_bias": _keys(mlp_bias=True),
    "all_biases_tied": _keys(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "tied": _keys(tie_word_embeddings=True),
    "head_dim_26": _keys(head_dim=26),
    "head_dim_6": _keys(hidden_size=40, head_dim=6, num_key_value_heads=1),
    "gelu": _keys(hidden_act="gelu"),
    "gelu_pytorch_tanh": _keys(hidden_act="gelu_pytorch_tanh"),
    "relu": _keys(hidden_act="relu"),
    "large_epsilon": _keys(rms_norm_eps=0.1),
    "mistral_window": _keys(model_type="mistral", sliding_window=7),
    "mistral_no_window": _keys(model_type="mistral", sliding_window=None),
    "rope_theta": _rope("default", theta=500.0),
    "linear": _rope("linear", factor=4.0),
    "dynamic": _rope("dynamic", factor=2.0),
    "llama3": _rope("llama3", theta=500000.0, factor=8.0, **_LLAMA3),
    "yarn": _rope("yarn", **_YARN),
    "yarn_mscale": _rope("yarn", **_YARN, mscale=0.7, mscale_all_dim=1.3),
    "yarn_attention_factor": _rope("yarn", **_YARN, attention_factor=1.4),
    "yarn_no_truncate": _rope("yarn", **_YARN, truncate=False),
    "yarn_betas": _rope("yarn", **_YARN, beta_fast=2.0, beta_slow=0.5),
}
