"""All families, and which of them a file belongs to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.families.exaone import EXAONE4
from jllama.families.family import Family
from jllama.families.gemma import GEMMA, GEMMA2, GEMMA3
from jllama.families.granite import GRANITE
from jllama.families.llama import LLAMA, SEED_OSS
from jllama.families.mistral import MINISTRAL3, MISTRAL
from jllama.families.olmo import OLMO2, OLMO3
from jllama.families.phi import PHI3
from jllama.families.qwen import QWEN2, QWEN3
from jllama.families.smollm import SMOLLM3
from jllama.files.json_files import read_object

FAMILIES: tuple[Family, ...] = (
    *(LLAMA, MISTRAL, MINISTRAL3, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, SMOLLM3, OLMO2, OLMO3),
    *(GRANITE, SEED_OSS, EXAONE4),
)
_BY_TYPE = {name: family for family in FAMILIES for name in family.model_types}
_BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}
# Models of pictures and text, whose configuration holds that of the text: its type where it states none.
_TEXT_OF = {"gemma3": "gemma3_text", "mistral3": "mistral"}


def text_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the language model: those of `text_config` in the files of a model that also sees.

    Raises:
      JllamaError: there is no such object.
    """
    outer = keys.get("model_type")
    if not isinstance(outer, str) or outer not in _TEXT_OF:
        return dict(keys)
    text = keys.get("text_config")
    if not isinstance(text, Mapping):
        raise JllamaError(f"config.json: model_type {outer} without a text_config; download it again")
    shared = {key: keys[key] for key in ("quantization_config",) if key in keys}
    tied = keys.get("tie_word_embeddings")  # the whole model's, which rules over its text part's
    ruled = {} if tied is None else {"tie_word_embeddings": tied}
    return {"model_type": _TEXT_OF[outer], **shared, **text, **ruled}


def tie_left_open(keys: Mapping[str, Any]) -> bool:
    """Whether the tensors themselves say if the embeddings are tied.

    The key of a whole model that sees is true by default, whatever its text part says, and transformers
    ties nothing that has an output matrix of its own.
    """
    text = keys.get("text_config")
    if not isinstance(text, Mapping) or keys.get("model_type") not in _TEXT_OF:
        return False
    outer, inner = keys.get("tie_word_embeddings", True), text.get("tie_word_embeddings", False)
    return outer in (None, True) and inner in (None, False)


def of_model_type(model_type: Any) -> Family:
    """The family of a `config.json`.

    Raises:
      JllamaError: jllama does not run it.
    """
    if not isinstance(model_type, str) or model_type not in _BY_TYPE:
        raise JllamaError(
            f"model_type {model_type!r} is not supported; jllama runs {', '.join(sorted(_BY_TYPE))}"
        )
    return _BY_TYPE[model_type]


def family_of(config_path: Path) -> Family:
    """The family of a directory in Hugging Face's layout.

    Raises:
      JllamaError: its `config.json` can't be read, or jllama does not run the family.
    """
    return of_model_type(text_keys(read_object(config_path)).get("model_type"))


def of_architecture(architecture: Any) -> Family:
    """The family of a GGUF file.

    Raises:
      JllamaError: jllama does not run it.
    """
    if not isinstance(architecture, str) or architecture not in _BY_ARCHITECTURE:
        known = ", ".join(sorted(_BY_ARCHITECTURE))
        raise JllamaError(f"GGUF architecture {architecture!r} is not supported; jllama runs {known}")
    return _BY_ARCHITECTURE[architecture]
