"""Directories that hold something else than a model that jllama reads: what it is, what to fetch."""

from collections.abc import Iterable
from pathlib import Path

FOREIGN_WEIGHTS = ("adapter_model", "consolidated")  # how such files' names begin
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Endings of tensors that only other kinds of weights have.
_SIGNS = {
    (
        ".qweight",
        ".qzeros",
        ".g_idx",
    ): "the weights are quantised by AWQ or GPTQ; fetch the original or a GGUF",
    (".weight_packed", ".weight_scale", ".absmax", ".biases"): (
        "the weights are quantised by another program; fetch the original or a GGUF"
    ),
    (".lora_A.weight", ".lora_B.weight", ".lora_a", ".lora_b"): (
        "this is an adapter (LoRA), not a whole model; merge it into its base model"
    ),
}


def foreign_tensors(names: Iterable[str]) -> str | None:
    """What kind of weights the names of tensors that no model has tell of, and the way out."""
    for name in names:
        for endings, what in _SIGNS.items():
            if name.endswith(endings):
                return what
    return None


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that may be a model's in Hugging Face's layout, sorted."""
    found = directory.glob("*.safetensors")
    return sorted(path for path in found if not path.name.startswith(FOREIGN_WEIGHTS))


def foreign_layout(directory: Path) -> str | None:
    """What a directory without a model holds instead, and the way out; None if it is nothing known."""
    if any((directory / name).is_file() for name in _ADAPTER):
        return (
            "is an adapter (PEFT, LoRA), not a whole model; merge it into its base model "
            "(PEFT's merge_and_unload, then save_pretrained) and give that directory"
        )
    if any(directory.glob("consolidated*.safetensors")):
        return (
            "holds Mistral's own layout (consolidated.safetensors), not Hugging Face's; fetch the "
            "repository's model*.safetensors with config.json instead"
        )
    if any(directory.glob("consolidated*.pth")):
        return (
            "holds Meta's own layout (consolidated.*.pth), not Hugging Face's; fetch the model in Hugging "
            "Face's layout, or convert it with transformers' convert_llama_weights_to_hf.py"
        )
    snapshots = sorted(path.name for path in directory.glob("snapshots/*"))
    if snapshots:
        return f"is the root of a hub cache; give a directory in its snapshots/: {', '.join(snapshots[:9])}"
    return None
