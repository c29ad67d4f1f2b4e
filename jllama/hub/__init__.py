"""A model reference -> files on this machine."""
