"""The models whose settings come with jllama: their flagfiles, and the references that these hold."""

from pathlib import Path


def directory() -> Path:
    """`configs/` of an installation, or of the checkout that this package stands in."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The ready-made models, such as `smollm2`."""
    return sorted(path.stem for path in directory().glob("*.cfg") if _value(path, "model"))


def flagfile(name: str) -> Path | None:
    """The flagfile of a ready-made model; None if there is none, or a file of that name is here."""
    return directory() / f"{name}.cfg" if name in names() and not Path(name).exists() else None


def reference(name: str) -> tuple[str, str | None] | None:
    """What a ready-made model's name stands for: a reference and, maybe, the SHA-256 of its file."""
    file = flagfile(name)
    model = file and _value(file, "model")
    return (model, _value(file, "model_sha256")) if file and model else None


def named(reference: str) -> str | None:
    """The ready-made model whose reference it is."""
    return next((name for name in names() if _value(directory() / f"{name}.cfg", "model") == reference), None)


def _value(file: Path, flag: str) -> str | None:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.partition("=")[2] for line in lines if line.startswith(f"--{flag}=")), None)
