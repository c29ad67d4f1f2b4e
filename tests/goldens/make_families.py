"""Remakes `families.json`, `families.npz`, `family_defaults.json`: small models of all families, logits.

    pip install torch transformers safetensors
    python tests/goldens/make_families.py [--check]

Of each model: `config.json` and the tensors' names and shapes as `save_pretrained` writes them; fp32 logits
of every sixth position, of a short text's last one, and the greedy continuation. The weights follow from
the names (`checkpoint_generator.named_tensors`).
`--check` compares what another version of transformers does with what
is there, and keeps its configurations as `older` beside the first. Made with transformers 5.24.0
and torch 2.13.0; checked with 4.57.3.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.support.checkpoint_generator import named_tensors, random_tokens  # noqa: E402
from tests.support.family_models import BASE, FAMILY_MODELS, LENGTH  # noqa: E402

NEW = 24  # greedy tokens
SHORT = 20  # tokens of a text that no embedding stretches


def build(kind: str, changes: dict):
    config_class = getattr(transformers, kind + "Config")
    model_class = getattr(transformers, kind.removesuffix("Text") + "ForCausalLM")
    settings = BASE | changes
    if transformers.__version__ < "5":
        settings = as_version_4(settings)
    config = config_class(**settings, attn_implementation="eager")
    return model_class(config).float().eval()


def as_version_4(settings: dict) -> dict:
    """One rotary embedding beside the keys of its base; Gemma 3's local one has a base alone."""
    settings = dict(settings)
    rope = settings.pop("rope_parameters", None)
    if rope is None:
        return settings
    full = dict(rope.get("full_attention", rope))
    if rope.get("sliding_attention", full)["rope_theta"] != full["rope_theta"]:
        settings["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    settings |= {key: full.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in full}
    if "original_max_position_embeddings" in settings:  # Phi-3: three keys, and that is checked
        full["type"] = full.pop("rope_type")
    return settings | dict(rope_scaling={key: value for key, value in full.items() if value is not None})


def saved(model) -> tuple[dict, dict[str, list[int]]]:
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        config = json.loads(Path(directory, "config.json").read_text())
        with safe_open(Path(directory, "model.safetensors"), framework="np") as file:
            return config, {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


@torch.no_grad()
def run(model, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    weights = {name: torch.from_numpy(tensor) for name, tensor in named_tensors(shapes).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    ids = torch.from_numpy(random_tokens(BASE["vocab_size"], LENGTH))[None]
    logits = model(ids).logits[0].numpy()
    short = model(ids[:, :SHORT]).logits[0, -1].numpy()
    for _ in range(NEW):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return {
        "short": short,
        "logits": logits[5::6].astype(np.float32),
        "greedy": ids[0, LENGTH:].numpy().astype(np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    known = json.loads((HERE / "families.json").read_text()) if check else {}
    before = np.load(HERE / "families.npz") if check else {}
    models, arrays = {}, {}
    for name, (kind, changes) in FAMILY_MODELS.items():
        if not hasattr(transformers, kind + "Config"):
            print(f"{name}: transformers {transformers.__version__} has no {kind}Config")
            continue
        model = build(kind, changes)
        config, shapes = saved(model)
        made = run(model, shapes)
        if check:
            theirs, span = before[f"{name}.logits"], np.ptp(before[f"{name}.logits"])
            print(f"{name}: {np.abs(made['logits'] - theirs).max() / span:.1e} of the range from the goldens")
            known[name]["older"] = config
            continue
        models[name] = {"config": config, "shapes": shapes}
        arrays |= {f"{name}.{key}": value for key, value in made.items()}
        print(f"{name}: {len(shapes)} tensors, logits from {made['logits'].min():.2f}")
    (HERE / "families.json").write_text(json.dumps(models or known, sort_keys=True) + "\n")
    if not check:
        kinds = sorted({kind for kind, _ in FAMILY_MODELS.values()})
        defaults = [
            json.loads(getattr(transformers, kind + "Config")().to_json_string(False)) for kind in kinds
        ]
        (HERE / "family_defaults.json").write_text(json.dumps(defaults, sort_keys=True) + "\n")
        np.savez_compressed(HERE / "families.npz", **arrays)


if __name__ == "__main__":
    main()
