"""Each program runs once before the first request comes: none of them waits for a compiler then."""

from jllama.batching.engine import Engine
from jllama.engine.slots import PROMPT_SIZES
from jllama.kernels.target import target_of


def warm_up(engine: Engine) -> None:
    """Reads a prompt of each chunk's size, and decodes 1, 2, 4, … texts at once.

    Args:
      engine: nobody else asks it yet.
    """
    chunks = target_of(engine.model.params).chunk_sizes
    sizes = sorted({*chunks, *(size + 1 for size in PROMPT_SIZES if size <= chunks[-1])})
    for size in (size for size in sizes if size < engine.max_seq_len):
        engine.submit([0] * size, max_new_tokens=1).result()
    count, slots = 1, engine.slots
    while True:
        _together(engine, min(count, slots))
        if count >= slots:
            return
        count *= 2


def _together(engine: Engine, count: int) -> None:
    """Long enough that all of them are in one burst; prompts of one token share nothing."""
    vocabulary = engine.model.config.vocab_size
    options = dict(max_new_tokens=min(2 + count // 4, engine.max_seq_len - 1), ignore_eos=True)
    for stream in engine.submit_all([dict(prompt=[at % vocabulary], **options) for at in range(count)]):
        stream.result()
