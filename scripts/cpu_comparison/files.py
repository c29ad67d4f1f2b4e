"""The GGUF files that `compare_cpu.py` gives to both sides: one model in several types of weights."""

from pathlib import Path
from typing import Any

import numpy as np

from cpu_comparison import k_types
from jllama.checkpoint.formats.gguf import read_gguf_fields, read_gguf_header
from jllama.checkpoint.formats.stored import Reader, Stored
from jllama.checkpoint.layout import parts
from jllama.checkpoint.reading import read_config
from jllama.cli import ready_made
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.known import family_of, of_architecture
from jllama.families.tensor_names import to_gguf
from jllama.hub.references import resolve

DISTINCT = 256  # random rows that a random matrix repeats: quantising a billion numbers takes minutes


def gguf_file(model: str, kind: str, directory: Path, sha256: str | None) -> Path:
    """The file of `model` with weights of `kind`, made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{Path(model).name.replace(':', '-')}-{kind}.gguf"
    if not path.exists():
        scratch = path.with_suffix(".part")
        try:
            _write(scratch, model, kind, sha256)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    return path


def _write(path: Path, model: str, kind: str, sha256: str | None) -> None:
    from gguf import GGUFWriter

    family, config, tensors = _random(model) if ready_made.is_shape(model) else _stored(model, sha256)
    writer = GGUFWriter(path, family.architectures[0], use_temp_file=True)
    _keys(writer, config)
    for name, shape, numbers in tensors:
        data, dtype = _encoded(numbers, _type_of(kind, name, shape, config.num_hidden_layers))
        if shape[0] != data.shape[0]:
            data = np.resize(data, (shape[0], *data.shape[1:]))
        writer.add_tensor(name, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _keys(writer: Any, c: ModelConfig) -> None:
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope.rope_theta)
    writer.add_rope_dimension_count(c.head_dim)
    windows = {kind.window for kind in c.layer_kinds} - {None}
    if windows:  # which layers slide, llama.cpp and jllama know of the architecture
        writer.add_sliding_window(windows.pop())


def _random(model: str):
    """A shape's; q and k rows need no turning, for they are random."""
    rng, path = np.random.default_rng(0), ready_made.shape(model)
    family = family_of(path)

    def tensors():
        for part in parts(config).values():
            rows = (min(part.shape[0], DISTINCT), *part.shape[1:])
            numbers = (
                rng.standard_normal(rows, np.float32) * 0.02
                if not part.is_norm
                else np.ones(rows, np.float32)
            )
            yield to_gguf(part.name, family), part.shape, numbers

    config = ModelConfig.from_hf(path)
    return family, config, tensors()


def _stored(model: str, sha256: str | None):
    files = resolve(model, sha256=sha256)
    if files.gguf is None:
        raise JllamaError(f"{model} is no GGUF file")
    path, reader = files.gguf, Reader()

    def tensors():
        for stored in read_gguf_header(path).tensors:
            reader.open(stored.path)
            raw = np.empty((_rows(stored), stored.nbytes // _rows(stored)), np.uint8)
            reader.read(stored, 0, raw)
            yield (
                stored.name,
                stored.shape,
                stored.encoding.numbers(raw).astype(np.float32).reshape(stored.shape),
            )

    return of_architecture(read_gguf_fields(path)["general.architecture"]), read_config(files), tensors()


def _rows(stored: Stored) -> int:
    return stored.shape[0] if len(stored.shape) > 1 else 1


def _type_of(kind: str, name: str, shape: tuple[int, ...], layers: int) -> str:
    """Norms stay float32, and a 4-bit model keeps its unembedding at 8 bits, as llama.cpp's own tool does."""
    if len(shape) == 1:
        return "F32"
    if kind in ("Q4_K_M", "Q5_K_M", "Q6_K"):
        return k_types.type_of(kind, name, shape, layers)
    return (
        "Q8_0" if kind.startswith(("Q4", "IQ4")) and name in ("output.weight", "token_embd.weight") else kind
    )


def _encoded(numbers: np.ndarray, kind: str):
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    dtype = GGMLQuantizationType[kind]
    own = {
        "Q4_K": k_types.q4_k, "Q5_K": k_types.q5_k, "Q6_K": k_types.q6_k, "IQ4_NL": k_types.iq4_nl
    }.get(kind)  # fmt: skip
    return (quantize(numbers, dtype) if own is None else own(numbers)), dtype
