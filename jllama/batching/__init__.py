"""Many texts at once, on one engine."""
