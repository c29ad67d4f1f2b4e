"""The containers that weights lie in: safetensors, GGUF, and directories of our own."""
