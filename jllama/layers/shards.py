"""What a device knows of those that hold a model together with it, each a part of every layer.

Under `jax.shard_map` each of them runs the same functions on arrays of its own. Where a sum goes over what
lies on all of them, `Shards` adds it up.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

AXIS = "tp"  # of the mesh


def _static():
    return dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards:
    """Devices along a mesh axis. Only inside of `jax.shard_map`.

    A pytree, so that what replaces `total` may bring arrays along.
    """

    count: int = _static()
    axis: str = dataclasses.field(default=AXIS, metadata=dict(static=True))

    def parts_dtype(self, dtype: Any, count: int) -> Any:
        """In which each device's part of so many sums is best rounded; `dtype` is the run dtype."""
        return jnp.float32

    def total(self, part: Array) -> Array:
        """The sum of all devices' parts, the same bits on each of them."""
        with jax.named_scope("all_reduce"):
            return jax.lax.psum(part, self.axis)

    def gathered(self, part: Array) -> Array:
        """All devices' `[..., n]` behind one another: `[..., count * n]`."""
        with jax.named_scope("all_gather"):
            return jax.lax.all_gather(part, self.axis, axis=part.ndim - 1, tiled=True)

    def largest_and_sum(self, value: Array, index: Array, total: Array) -> tuple[Array, Array, Array]:
        """Of all logits the first of the largest and the sum.

        One sum of what each device puts into a row of its own: a number plus zeros is that number.

        Args:
          value: float32 `[B]`, this device's largest.
          index: int32 `[B]`, where it stands among this device's; each has as many.
          total: float32 `[B]`, the sum of this device's.

        Returns:
          which device's is the largest and where it stands there, int32 `[B]` each; the sum, float32 `[B]`.
        """
        mine = jnp.stack([value, index.astype(jnp.float32), total])  # an index below 2^24 is exact
        rows = jnp.zeros((self.count, *mine.shape), jnp.float32)
        at = jax.lax.axis_index(self.axis)
        values, indices, totals = jnp.unstack(self.total(rows.at[at].set(mine)), axis=1)
        first = jnp.argmax(values, axis=0)  # of equal ones that with the lower ids
        index = jnp.take_along_axis(indices, first[None, :], axis=0)[0]
        return first, index.astype(jnp.int32), jnp.sum(totals, axis=0)
