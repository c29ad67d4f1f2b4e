"""Chat templates: Jinja in a sandbox, whose text knows who wrote it."""
