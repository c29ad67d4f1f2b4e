"""Checkpoint files -> `ModelConfig` and `Params`: headers are checked, then tensors stream to the device."""

from jllama.checkpoint.formats.gguf import read_gguf_fields as read_gguf_fields
from jllama.checkpoint.leaves.automatic import automatic_mode as automatic_mode
from jllama.checkpoint.reading import load_params as load_params
from jllama.checkpoint.reading import open_checkpoint as open_checkpoint
from jllama.checkpoint.reading import read_config as read_config
