"""Shows what a model, or a config.json alone, is made of, and the memory that it takes."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from jllama.cli import flag_groups, ready_made
from jllama.cli.command_line import FLAGS
from jllama.cli.numbers import positive
from jllama.errors import JllamaError, escaped

flags.DEFINE_string(
    "model",
    None,
    "A model reference, a directory with only a config.json, that file, or a ready-made shape.",
    short_name="m",
)
flag_groups.define_sha256_flag()
flags.DEFINE_bool("tensors", True, "List every tensor.")
flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")
flags.DEFINE_integer("max_seq_len", None, "Positions of the planned cache. Default: the model's context.")
flags.DEFINE_integer("batch", 1, "Rows of the planned cache.", lower_bound=1, upper_bound=2**20)
flags.DEFINE_string("tensor_parallel", "1", "Also plans what each of so many devices takes.")
flag_groups.define_quantize_flag()

PLACES = ("model",)
HELP = {"What is shown": ("model", "tensors", "batch", "max_seq_len", "tensor_parallel", "quantize", "json")}
MIB = 2**20


def main() -> None:
    """Reads headers only: no weights, no device."""
    if not FLAGS.model:
        raise JllamaError("no model: give --model=REFERENCE, --model=config.json or smollm2 as a word")
    if FLAGS.max_seq_len is not None and FLAGS.max_seq_len < 1:
        raise JllamaError(f"--max_seq_len={FLAGS.max_seq_len} must be at least 1")
    devices = positive(FLAGS.tensor_parallel, "--tensor_parallel", ": no device is looked at here")
    alike = devices if FLAGS.quantize == "auto" else 1
    config, tensors, source, kept = read_model(FLAGS.model, FLAGS.model_sha256, alike)
    report = describe(config, tensors, FLAGS.max_seq_len or config.context_length, FLAGS.batch)
    report["parameter_bytes"] |= {} if kept is None else {"auto": kept[0]}
    report["parameter_bytes"] |= quantized(config, FLAGS.quantize, 1)
    if devices > 1:
        stored = kept[1] if kept is not None and FLAGS.quantize == "auto" else None
        report["each_device"] = each_device(config, report["kv_cache"], devices, FLAGS.quantize, stored)
    report = {"model": FLAGS.model, "tensors_from": source, **report}
    print(json.dumps(report, indent=2) if FLAGS.json else as_text(report, FLAGS.tensors))


def read_model(
    reference: str, sha256: str | None, devices: int
) -> tuple[Any, list[dict[str, Any]], str, tuple[int, int] | None]:
    """Configuration, tensors, whether these come from the files or follow from the configuration, and
    `kept_size`.

    Raises:
      JllamaError: the reference, the configuration or a header is not sound; what is kept can't be cut.
    """
    if reference.endswith(".json") or ready_made.is_shape(reference):
        from jllama.config import ModelConfig
        from jllama.families.known import family_of

        shape = ready_made.shape(reference)
        config = ModelConfig.from_hf(shape)
        return config, planned_tensors(config, family_of(shape)), "config.json", None
    ready_made.check(reference)
    from jllama.hub.references import resolve

    files = resolve(reference, sha256=sha256)
    # A wrong reference is refused before jax is imported.
    from jllama.checkpoint import open_checkpoint, read_config
    from jllama.families.known import family_of

    config = read_config(files)
    if files.directory is not None and not any(files.directory.glob("*.safetensors*")):
        return config, planned_tensors(config, family_of(files.config_path)), "config.json", None
    stored = open_checkpoint(files).tensors.values()
    tensors = [tensor(s.name, s.shape, s.encoding.name, s.nbytes) for s in stored]
    return config, tensors, "files", kept_size(files, config, devices)


def kept_size(files: Any, config: Any, devices: int) -> tuple[int, int] | None:
    """Bytes of a GGUF file's weights under `--quantize=auto`, the rest in bfloat16: all of them, and those of
    each of several devices; None: nothing is kept.

    Raises:
      JllamaError: they can't be cut for so many.
    """
    from jllama.checkpoint.leaves.automatic import kept_bytes

    if files.gguf is None:
        return None
    try:
        whole = kept_bytes(files, config, "bfloat16")
    except JllamaError:  # a file that doesn't fit its configuration is shown all the same
        return None
    return whole, whole if devices == 1 else kept_bytes(files, config, "bfloat16", devices=devices)


def planned_tensors(config: Any, family: Any) -> list[dict[str, Any]]:
    """The tensors that a checkpoint of this configuration would hold."""
    from jllama.checkpoint.layout import parts
    from jllama.families.tensor_names import to_hf

    return [tensor(to_hf(part.name, family), part.shape, None, None) for part in parts(config).values()]


def tensor(name: str, shape: tuple[int, ...], dtype: str | None, nbytes: int | None) -> dict[str, Any]:
    """One row of the listing."""
    return dict(name=name, shape=list(shape), dtype=dtype, bytes=nbytes)


def describe(config: Any, tensors: list[dict[str, Any]], max_seq_len: int, batch: int) -> dict[str, Any]:
    """Everything that is printed, as plain values."""
    from jllama.checkpoint.sizes import DTYPE_BYTES, cache_bytes, parameter_bytes, parameter_count

    cache = {d: cache_bytes(config, batch=batch, max_len=max_seq_len, dtype=d) for d in DTYPE_BYTES}
    return {
        "config": dataclasses.asdict(config),
        "tensors": tensors,
        "parameters": parameter_count(config),
        "parameter_bytes": {dtype: parameter_bytes(config, dtype) for dtype in DTYPE_BYTES},
        "kv_cache": {"batch": batch, "max_seq_len": max_seq_len, "bytes": cache},
    }


def quantized(config: Any, storage: str, devices: int) -> dict[str, int]:
    """Bytes of the weights on each of several devices, if `storage` quantises them; else nothing."""
    from jllama.layers.quantization import SCHEMES

    if storage not in SCHEMES:
        return {}
    from jllama.checkpoint.leaves.choose import quantized_bytes

    return {storage: quantized_bytes(config, storage, devices)}


def each_device(
    config: Any, cache: dict[str, Any], devices: int, storage: str, kept: int | None
) -> dict[str, Any]:
    """Bytes of weights and cache that each of several devices takes, in bfloat16 or as `storage` says.

    Args:
      config: the checkpoint's.
      cache: its `batch` and `max_seq_len`.
      devices: how many there are.
      storage: what `--quantize` says.
      kept: bytes that each device takes of a GGUF file's weights kept as they are; None: they are not.

    Raises:
      JllamaError: the model's sizes can't be cut for so many.
    """
    from jllama import sharding
    from jllama.checkpoint.leaves.choose import cut_blocks
    from jllama.checkpoint.shards import device_share
    from jllama.checkpoint.sizes import cache_bytes, parameter_bytes

    sharding.check(config, devices, cut_blocks(storage, config))
    wide = sharding.widened(config, devices)
    room = dict(batch=cache["batch"], max_len=cache["max_seq_len"], dtype="bfloat16")
    whole = round(parameter_bytes(config, "bfloat16") * device_share(config, devices))
    weights = quantized(config, storage, devices).get(storage, whole) if kept is None else kept
    places = cache_bytes(wide, **room) // devices
    as_stored = "bfloat16" if storage == "none" or (storage == "auto" and kept is None) else storage
    sizes = dict(weights=weights, kv_cache=places, together=weights + places)
    return dict(devices=devices, stored=as_stored, **sizes)


def as_text(report: dict[str, Any], with_tensors: bool) -> str:
    """The report for a person."""
    lines = [f"{report['model']}", "", "configuration"]
    rope = report["config"].pop("rope")
    layers, kinds = report["config"]["num_hidden_layers"], report["config"]["layer_kinds"]
    if kinds:
        del report["config"]["sliding_window"]  # of models whose layers are all alike
    repeated = f"; repeated over {layers} layers" if 0 < len(kinds) < layers else ""
    report["config"]["layer_kinds"] = kinds_text(kinds) + repeated
    settings = report["config"] | {name: rope[name] for name in rope if rope[name] is not None}
    lines += [f"  {name:<32} {shortened(value)}" for name, value in settings.items()]
    if with_tensors:
        lines += ["", f"{len(report['tensors'])} tensors, as the {report['tensors_from']} state them"]
        lines += [tensor_line(entry) for entry in report["tensors"]]
    lines += ["", f"parameters   {report['parameters']:,}"]
    lines += [f"  {dtype:<10} {mib(size)}" for dtype, size in report["parameter_bytes"].items()]
    plan = report["kv_cache"]
    lines += ["", f"KV cache     batch {plan['batch']} × {plan['max_seq_len']:,} positions"]
    lines += [f"  {dtype:<10} {mib(size)}" for dtype, size in plan["bytes"].items()]
    if each := report.get("each_device"):
        kind = "" if each["stored"] == "bfloat16" else f", weights {each['stored']}"
        kind += " as GPUs keep them (CPUs together: bfloat16)" if each["stored"] == "auto" else ""
        lines += ["", f"each of {each['devices']} devices, in bfloat16{kind}"]
        lines += [f"  {name:<10} {mib(each[name])}" for name in ("weights", "kv_cache", "together")]
    return "\n".join(lines)


def kinds_text(kinds: Sequence[dict[str, Any]]) -> str:
    """Kinds of layers in order, runs of equal ones together; what differs between their rotations."""
    groups = [(len(list(run)), kind) for kind, run in itertools.groupby(kinds)]
    return "; ".join(f"{count} × {kind_text(kind)}" for count, kind in groups) or "all alike"


def kind_text(kind: dict[str, Any]) -> str:
    """What a layer sees and how it rotates."""
    rope, window = kind["rope"], kind["window"]
    sees = "sees everything" if window is None else f"sees {window} positions"
    turns = f"{rope['rope_type']} rotation of base {rope['rope_theta']:g}" if rope else "without positions"
    return f"{sees}, {turns}"


def tensor_line(entry: dict[str, Any]) -> str:
    """Name, shape, and, where a file holds it, type and bytes."""
    shape = " × ".join(map(str, entry["shape"]))
    held = "" if entry["dtype"] is None else f"{entry['dtype']:<6} {entry['bytes']:>15,} bytes"
    return f"  {escaped(entry['name']):<52} {shape:<16} {held}".rstrip()


def shortened(value: Any) -> str:
    """A long list by its ends."""
    is_long = isinstance(value, tuple | list) and len(value) > 4
    return f"{value[0]} … {value[-1]} ({len(value)} numbers)" if is_long else str(value)


def mib(size: int) -> str:
    """`4,196.35 MiB`."""
    return f"{size / MIB:>14,.2f} MiB"
