"""Refuses what cannot fit, before anything big is allocated."""

from collections.abc import Iterable
from pathlib import Path

from jllama import sharding
from jllama.checkpoint.formats.saved import is_saved
from jllama.checkpoint.leaves.automatic import kept_bytes
from jllama.checkpoint.leaves.choose import kernel_layout
from jllama.checkpoint.shards import device_share
from jllama.checkpoint.sizes import cache_bytes, parameter_bytes
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.files.model_files import ModelFiles
from jllama.model import Params

GIB = 2**30
_FULL = 0.9  # of a device's memory; a cache and what programs need find room beside the weights
# Weights of each mode as a part of bfloat16's, scales included.
_SHARE = {"int8": 0.51, "int4": 0.33}


def available_bytes() -> int | None:
    """What the device still has to give; None where nobody tells."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    kib = fields.get("MemAvailable", "").split()
    return int(kib[0]) * 1024 if kib else None


def weight_bytes(files: ModelFiles, config: ModelConfig, dtype: str, quantize: str, devices: int = 1) -> int:
    """What the weights take of each of the devices that hold them together."""
    needed = parameter_bytes(config, dtype)
    if is_saved(files):
        assert files.directory is not None
        needed = _size(files.directory.glob("*.safetensors"))
    elif quantize in _SHARE:
        needed = int(parameter_bytes(config, "bfloat16") * _SHARE[quantize])
    elif quantize == "auto" and files.gguf is not None:
        layout = kernel_layout(None) if devices == 1 else "rows"
        return kept_bytes(files, config, dtype, layout, devices)
    return needed if devices == 1 else int(needed * device_share(config, devices))


def held_on_each(
    config: ModelConfig, params: Params, *, batch: int, max_len: int, dtype: str
) -> tuple[int, int, int]:
    """How many devices hold a model, and the bytes that its weights and a cache take of each of them."""
    devices = sharding.devices_under(params)
    cache = cache_bytes(config, batch=batch, max_len=max_len, dtype=dtype)
    return devices, sharding.bytes_on_each(params), cache // devices


def check_weights(
    files: ModelFiles, config: ModelConfig, dtype: str, quantize: str, devices: int = 1
) -> None:
    """Refuses weights that a device has no room for.

    Raises:
      JllamaError: says what is needed, what there is and what to change.
    """
    needed = weight_bytes(files, config, dtype, quantize, devices) * _in_one_memory(devices)
    _check(needed, f"the weights need {{}} in {dtype}", "use --dtype=bfloat16, --quantize=int8 or int4")


def devices_for(files: ModelFiles, config: ModelConfig, dtype: str, quantize: str) -> int:
    """What `tensor_parallel="auto"` means: 1, or as many GPUs as there are and the model's sizes allow."""
    import jax

    there = len(jax.devices())
    if jax.process_count() == 1:
        room = available_bytes()
        fits = room is None or weight_bytes(files, config, dtype, quantize) < room * _FULL
        if fits or jax.devices()[0].platform == "cpu":
            return 1
    allowed = [n for n in range(1, there + 1) if sharding.refusal(config, n) is None]
    return max(n for n in allowed if n % jax.process_count() == 0 or n == 1)


def _in_one_memory(devices: int) -> int:
    """How many of the devices have the same memory: on a CPU all."""
    import jax

    return devices if jax.devices()[0].platform == "cpu" else 1


def check_cache(
    config: ModelConfig,
    dtype: str,
    *,
    batch: int,
    max_len: int,
    advice: str = "use a smaller --max_seq_len or batch, or --dtype=bfloat16",
    devices: int = 1,
) -> None:
    """Refuses a cache that the device has no room for; `advice`: what to change; `devices` hold it together.

    Raises:
      JllamaError: as `check_weights`.
    """
    needed = cache_bytes(config, batch=batch, max_len=max_len, dtype=dtype)
    needed = needed * _in_one_memory(devices) // devices
    _check(
        needed,
        f"a cache of {max_len} positions for {batch} row{'s' if batch > 1 else ''} needs {{}}",
        advice,
    )


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def _check(needed: int, what: str, advice: str) -> None:
    there = available_bytes()
    if there is not None and needed > there:
        need = what.format(f"{needed / GIB:.2f} GiB")
        raise JllamaError(f"{need} and the device has {there / GIB:.2f} GiB left: {advice}")
