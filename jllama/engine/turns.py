"""What a device makes of prompts: how much is read between two bursts, and what is worth a copy."""

from jllama.config import ModelConfig
from jllama.engine.scheduler import WORTH_COPYING
from jllama.kernels.target import Target

TURN_FLOPS, MOST_CHUNKS = 3 * 10**13, 8
WORTH_COPYING_ON_CPU = 16


def turn_tokens(config: ModelConfig, target: Target) -> int:
    """A chunk; on a GPU some 50 ms of work, of several GPUs each."""
    chunk = target.chunk_sizes[-1]
    if not target.on_gpu:
        return chunk
    c = config
    heads = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    weights = c.num_hidden_layers * c.hidden_size * (heads + 3 * c.intermediate_size)
    return chunk * min(max(TURN_FLOPS * target.devices // (2 * weights * chunk), 1), MOST_CHUNKS)


def worth_copying(target: Target) -> int:
    """How many tokens of a beginning are copied rather than read anew: fewer where each takes its time."""
    return WORTH_COPYING if target.on_gpu else WORTH_COPYING_ON_CPU
