"""Pure functions over their own parameter pytrees; they import jax only.

The letters of every shape in this code base (those of `jax.nn.dot_product_attention`, plus four):

    B batch            N query heads        D model width
    T new tokens       K key-value heads    F feed-forward width
    S cache length     G = N / K            V vocabulary
    H head width       L layers

A weight is stored `[out, in]`, as checkpoints have it: each output row is contiguous in memory, which is
what a matrix-vector product at the memory's speed needs.
"""
