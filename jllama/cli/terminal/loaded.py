"""What model the chat has, in words."""

import math

import jax

from jllama.chat.conversation import Conversation
from jllama.checkpoint.memory import held_on_each
from jllama.config import ModelConfig
from jllama.layers.qtensor import QTensor
from jllama.loading import Model
from jllama.machine.devices import describe_device

MIB = 2**20


def loaded(conversation: Conversation) -> str:
    """Name, family, size, precision, context, memory and device, a line each."""
    model = conversation.model
    config, size = model.config, conversation.max_seq_len
    devices, weights, cache = held_on_each(config, model.params, batch=1, max_len=size, dtype=model.dtype)
    each = f"on each of {devices} devices: " * (devices > 1)
    lines = {
        "model": model.name,
        "family": f"{_family(config)}, {config.num_hidden_layers} layers of {config.hidden_size}",
        "parameters": f"{model.parameters:,}",
        "dtype": model.dtype,
        "quantised": quantisation(model),
        "context": f"{size:,} tokens, {conversation.context_used:,} in use (the model: "
        f"{config.context_length:,})",
        "memory": f"{each}weights {weights / MIB:,.0f} MiB, cache {cache / MIB:,.0f} MiB a branch that "
        "goes on",
        "device": describe_device(model.params),
    }
    return "\n".join(f"  {name:<11} {text}" for name, text in lines.items())


def quantisation(model: Model) -> str:
    """Which part of the weights is stored in how many bits, such as `4 bit 79%, 8 bit 21%`."""
    counts: dict[str, int] = {}
    for leaf in jax.tree.leaves(model.params, is_leaf=lambda leaf: isinstance(leaf, QTensor)):
        kind = f"{leaf.bits} bit" if isinstance(leaf, QTensor) else model.dtype
        counts[kind] = counts.get(kind, 0) + math.prod(leaf.shape)
    if set(counts) == {model.dtype}:
        return "no"
    shares = {kind: 100 * count / sum(counts.values()) for kind, count in sorted(counts.items())}
    return ", ".join(f"{kind} {share:.0f}%" for kind, share in shares.items() if share >= 0.5)


def _family(config: ModelConfig) -> str:
    window = config.sliding_window
    return "llama" if window is None else f"mistral (a window of {window:,})"
