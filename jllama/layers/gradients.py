"""What `jax.grad` says about quantised weights: our words instead of JAX's.

JAX refuses integers with a TypeError before it calls the function that is to be differentiated. Of our code
only the flattening of the parameters runs before that, so it looks who asks.
"""

import dataclasses
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

import jax

from jllama.errors import JllamaError
from jllama.layers.qtensor import QTensor

# The functions of jax/_src/api.py (jax 0.10 to 0.12) that check what they differentiate with respect to.
_DIFFERENTIATE = ("value_and_grad_f", "jacfun")


def register_params(cls: type) -> type:
    """As `jax.tree_util.register_dataclass`; but the gradient of quantised weights is a `JllamaError`."""
    names = [field.name for field in dataclasses.fields(cls)]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def flatten(params: Any) -> tuple[tuple[Any, ...], None]:
        if _is_differentiated(sys._getframe(1)):
            _refuse_quantised(params)
        return tuple(getattr(params, name) for name in names), None

    def flatten_with_keys(params: Any) -> tuple[tuple[tuple[Any, Any], ...], None]:
        return tuple(zip(keys, flatten(params)[0], strict=True)), None

    def unflatten(_: None, children: Iterable[Any]) -> Any:
        return cls(**dict(zip(names, children, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _is_differentiated(frame: FrameType | None) -> bool:
    """Whether JAX looks at the dtypes of what it is asked to differentiate; `frame` called the flattening."""
    for _ in range(3):  # one or two functions of jax.tree, then the one that we look for
        if frame is None:
            return False
        if frame.f_code.co_name in _DIFFERENTIATE and frame.f_globals.get("__name__") == "jax._src.api":
            return not frame.f_locals.get("allow_int")
        frame = frame.f_back
    return False


def _refuse_quantised(params: Any) -> None:
    fields = [getattr(params, field.name) for field in dataclasses.fields(params)]
    leaves = jax.tree.leaves(fields, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    if any(isinstance(leaf, QTensor) for leaf in leaves):
        raise JllamaError(
            'quantised weights have no gradient: load the model with quantize="none" (--quantize=none)'
        )
