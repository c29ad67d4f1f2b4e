"""Text <-> token ids. Nothing here imports jax."""
