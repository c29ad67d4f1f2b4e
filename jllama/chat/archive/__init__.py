"""Conversations on disk, their KV caches included."""
