"""Tools: how models write calls, how those are read, enforced and run. No model and no jax here."""
