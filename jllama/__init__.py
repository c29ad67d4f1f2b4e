"""Llama-family models in JAX: pure functions over parameter pytrees and an immutable KV cache."""
