"""In which sizes a prompt is cut: a GPU has short ones where its kernels take them."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jllama.config import ModelConfig
from jllama.kernels import gpu
from jllama.kernels.target import SHORT_SIZES, Target
from jllama.layers.cache import KVCache
from jllama.model import Params

_FOUND: dict[int, dict[Any, Any]] = {}  # of each `Params` that lives: what was asked, what was found


def short_refusal(
    config: ModelConfig, params: Params, tokens: Any, cache: KVCache, target: Target
) -> str | None:
    """Why a chunk's tokens are not the rows of a batch's products, where the last logits alone are wanted."""
    if not (target.on_gpu and target.kernels) or tokens.shape[1] == 1:
        return "no chunk on a GPU"
    if target.mesh is not None:
        return "the model lies on several devices"
    return gpu.short_refusal(config, params, cache, tokens)


def chunk_sizes(config: ModelConfig, params: Params, cache: KVCache, target: Target) -> tuple[int, ...]:
    """The sizes, in tokens, that prompts are cut into; rising."""
    known = [size for size in SHORT_SIZES if _is_short(config, params, cache, (1, size), target)]
    if known and _is_short(config, params, cache, (1, target.chunk_sizes[0]), target):
        known = known[:1]  # the shortest; the other would take as long as `chunk_sizes[0]`
    return (*known, *target.chunk_sizes)


def _is_short(
    config: ModelConfig, params: Params, cache: KVCache, shape: tuple[int, int], target: Target
) -> bool:
    if not target.on_gpu:
        return False

    def find() -> bool:
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
        return short_refusal(config, params, tokens, cache, target) is None

    return _remembered(params, (config, cache.keys[0].dtype, shape, target), find)


def _remembered(params: Params, question: Any, find: Callable[[], Any]) -> Any:
    """What `find` gives, which looks at all weights: asked once for each `question` of these parameters."""
    if id(params) not in _FOUND:
        _FOUND[id(params)] = {}
        weakref.finalize(params, _FOUND.pop, id(params), None)
    found = _FOUND[id(params)]
    if question not in found:
        found[question] = find()
    return found[question]
