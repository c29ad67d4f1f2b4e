"""The settings that come with jllama: flagfiles of models to try, and configurations to measure."""

from pathlib import Path

import jllama


def directory() -> Path:
    """`configs/` of an installation, or of the checkout that this package stands in."""
    package = Path(jllama.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The ready-made models, such as `smollm2`."""
    return sorted(path.stem for path in directory().glob("*.cfg") if _names_a_model(path))


def flagfile(name: str) -> Path | None:
    """The flagfile of a ready-made model; None if there is none, or a file of that name is here."""
    return directory() / f"{name}.cfg" if name in names() and not Path(name).exists() else None


def shape(name: str) -> Path:
    """The config.json of `tinyllama-1.1b` and the like; a path stays what it is."""
    found = directory() / "models" / f"{Path(name).name.removesuffix('.json')}.json"
    return found if not Path(name).exists() and found.is_file() else Path(name)


def _names_a_model(path: Path) -> bool:
    return any(line.startswith("--model=") for line in path.read_text(encoding="utf-8").splitlines())
