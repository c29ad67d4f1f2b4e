"""Conversations: turns, branches, what happens when the context is full."""
