"""Which tensors make which leaf of `Params`: the one place that knows both."""

import dataclasses
import math
from typing import Any

from jllama.config import ModelConfig
from jllama.families.tensor_names import EMBED, HEAD, NORM
from jllama.layers.attention import Attention
from jllama.layers.mlp import MLP
from jllama.model import Block, Params

ALL = slice(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A tensor of the checkpoint and the place in the leaf that its rows fill, in order."""

    name: str
    shape: tuple[int, ...]
    place: tuple[Any, ...] = ()  # an index of the leaf's array
    rotary: bool = False  # RoPE turns its rows
    rows: tuple[int, int] | None = None  # those that are taken, from and up to; None: all
    columns: tuple[int, int] | None = None  # likewise

    @property
    def width(self) -> int:
        """How many numbers are taken of each row."""
        first, last = self.columns or (0, math.prod(self.shape[1:]))
        return last - first

    @property
    def height(self) -> int:
        """How many rows are taken."""
        first, last = self.rows or (0, self.shape[0])
        return last - first

    @property
    def is_norm(self) -> bool:
        """Whether it is the weight of a norm."""
        return self.name.endswith("norm.weight")

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias."""
        return self.name.endswith(".bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """An array of `Params`: its shape, and the tensors that it is made of."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with, and so may be quantised: no norm and no bias."""
        first = self.parts[0]
        return len(self.shape) > 1 and not first.is_norm and not first.is_bias


def layout(config: ModelConfig) -> Any:
    """`Params` with a `Leaf` for each array."""
    c = config
    table = (c.vocab_size, c.hidden_size)
    return Params(
        embed_tokens=_whole(EMBED, *table),
        layers=tuple(_block(c, f"layers.{i}") for i in range(c.num_hidden_layers)),
        norm=_whole(NORM, c.hidden_size),
        lm_head=None if c.tie_word_embeddings else _whole(HEAD, *table),
    )


def parts(config: ModelConfig) -> dict[str, Part]:
    """Every tensor that a checkpoint of this configuration holds, by name."""
    import jax

    return {part.name: part for leaf in jax.tree.leaves(layout(config)) for part in leaf.parts}


def _whole(name: str, *shape: int) -> Any:
    return Leaf(shape=shape, parts=(Part(name=name, shape=shape),))


def _block(c: ModelConfig, at: str) -> Block:
    def norm(name: str, where: str) -> Any:
        return _whole(f"{at}.{name}.weight", c.hidden_size) if c.norm_placement in (where, "both") else None

    return Block(
        attention=_attention(c, f"{at}.self_attn"),
        mlp=_mlp(c, f"{at}.mlp"),
        attn_norm=norm("attn_norm", "pre"),
        attn_post_norm=norm("attn_post_norm", "post"),
        ffn_norm=norm("ffn_norm", "pre"),
        ffn_post_norm=norm("ffn_post_norm", "post"),
    )


def _attention(c: ModelConfig, at: str) -> Attention:
    D, NH = c.hidden_size, c.num_attention_heads * c.head_dim
    return Attention(
        qkv_proj=_qkv(c, at, "weight", D),
        o_proj=_whole(f"{at}.o_proj.weight", D, NH),
        qkv_bias=_qkv(c, at, "bias") if c.attention_bias else None,
        o_bias=_whole(f"{at}.o_proj.bias", D) if c.has_out_bias else None,
        q_norm=_head_norm(c, f"{at}.q_norm.weight", c.num_attention_heads // c.num_key_value_heads),
        k_norm=_head_norm(c, f"{at}.k_norm.weight"),
    )


def _head_norm(c: ModelConfig, name: str, *groups: int) -> Any:
    """`[H]` for every head alike, or the width of all heads as `[K, (G,) H]`."""
    shape = (c.head_dim,) if c.qk_norm == "head" else (c.num_key_value_heads, *groups, c.head_dim)
    part = Part(name=name, shape=(math.prod(shape),))
    return None if c.qk_norm is None else Leaf(shape=shape, parts=(part,))


def _qkv(c: ModelConfig, at: str, kind: str, *columns: int) -> Any:
    """Interleaved per key-value head: G query heads, their key, their value."""
    K, H = c.num_key_value_heads, c.head_dim
    G = c.num_attention_heads // K
    rows, kv_rows = (K * G * H, *columns), (K * H, *columns)
    return Leaf(
        shape=(K, G + 2, H, *columns),
        parts=(
            Part(name=f"{at}.q_proj.{kind}", shape=rows, place=(ALL, slice(0, G)), rotary=True),
            Part(name=f"{at}.k_proj.{kind}", shape=kv_rows, place=(ALL, G), rotary=True),
            Part(name=f"{at}.v_proj.{kind}", shape=kv_rows, place=(ALL, G + 1)),
        ),
    )


def _mlp(c: ModelConfig, at: str) -> MLP:
    D, F = c.hidden_size, c.intermediate_size
    return MLP(
        gate_up_proj=_gate_up(at, "weight", F, D),
        down_proj=_whole(f"{at}.down_proj.weight", D, F),
        gate_up_bias=_gate_up(at, "bias", F) if c.mlp_bias else None,
        down_bias=_whole(f"{at}.down_proj.bias", D) if c.mlp_bias else None,
    )


def _gate_up(at: str, kind: str, *shape: int) -> Any:
    return Leaf(
        shape=(2, *shape),
        parts=(
            Part(name=f"{at}.gate_proj.{kind}", shape=shape, place=(0,)),
            Part(name=f"{at}.up_proj.{kind}", shape=shape, place=(1,)),
        ),
    )
