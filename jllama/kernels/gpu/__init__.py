"""CUDA kernels for NVIDIA GPUs, compiled at first use. Each has its plain-JAX twin in `jllama.layers`.

Names are imported when they are first used: without a GPU none is, and they took a tenth of all modules'
time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jllama.kernels.gpu.batch import batch_refusal as batch_refusal
    from jllama.kernels.gpu.batch import batch_step as batch_step
    from jllama.kernels.gpu.chunk_attention import chunk_attend as chunk_attend
    from jllama.kernels.gpu.chunk_attention import chunk_refusal as chunk_refusal
    from jllama.kernels.gpu.chunk_attention import first_chunk_attend as first_chunk_attend
    from jllama.kernels.gpu.decode import decode_refusal as decode_refusal
    from jllama.kernels.gpu.decode import decode_step as decode_step
    from jllama.kernels.gpu.decode_attention import attention_refusal as attention_refusal
    from jllama.kernels.gpu.decode_attention import decode_attend as decode_attend
    from jllama.kernels.gpu.desk import Desk as Desk
    from jllama.kernels.gpu.desk import Line as Line
    from jllama.kernels.gpu.desk import desk_refusal as desk_refusal
    from jllama.kernels.gpu.desk import hear as hear
    from jllama.kernels.gpu.desk import tell as tell
    from jllama.kernels.gpu.exchange import Peers as Peers
    from jllama.kernels.gpu.family import decode_frequencies as decode_frequencies
    from jllama.kernels.gpu.peers import mailboxes as mailboxes
    from jllama.kernels.gpu.peers import peers_refusal as peers_refusal
    from jllama.kernels.gpu.prefill import prefill_attend as prefill_attend
    from jllama.kernels.gpu.prefill import prefill_refusal as prefill_refusal
    from jllama.kernels.gpu.sample import Rows as Rows
    from jllama.kernels.gpu.sample import sample_rows as sample_rows
    from jllama.kernels.gpu.sample import sampling_refusal as sampling_refusal
    from jllama.kernels.gpu.short_chunk import short_refusal as short_refusal
    from jllama.kernels.gpu.short_chunk import short_step as short_step

_NAMES = {
    "batch": "batch_refusal batch_step",
    "chunk_attention": "chunk_attend chunk_refusal first_chunk_attend",
    "decode": "decode_refusal decode_step",
    "decode_attention": "attention_refusal decode_attend",
    "desk": "Desk Line desk_refusal hear tell",
    "exchange": "Peers",
    "family": "decode_frequencies",
    "peers": "mailboxes peers_refusal",
    "prefill": "prefill_attend prefill_refusal",
    "sample": "Rows sample_rows sampling_refusal",
    "short_chunk": "short_refusal short_step",
}
_HOMES = {name: f"{__name__}.{home}" for home, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value
