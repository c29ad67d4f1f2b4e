"""CUDA kernels for NVIDIA GPUs, compiled at first use. Each has its plain-JAX twin in `jllama.layers`."""

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
