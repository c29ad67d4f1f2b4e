"""Fetches models from the Hugging Face hub: resumable, cached, by the user's own HF_* settings."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from jllama.errors import JllamaError
from jllama.files.gguf_files import part_names
from jllama.files.model_files import TOKENIZER_FILES
from jllama.machine.progress import shown

# Weights by their standard names only: many repositories carry them twice (*.bin, consolidated.*).
PATTERNS = (
    *("config.json", *TOKENIZER_FILES, "vocab.json", "merges.txt"),
    *("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"),
)
PATIENCE = 10  # seconds without an answer


def fetch(repository: str, gguf: str | None, progress: bool) -> Path:
    """The directory of a repository's snapshot, or one GGUF model of it, all parts of a split one.

    Raises:
      JllamaError: no such repository or file, no access, no network; a repository without safetensors.
    """
    with _explained(repository), _bars(shown(progress)):
        import huggingface_hub

        if gguf is not None:
            folder, slash, name = gguf.rpartition("/")
            files = [
                huggingface_hub.hf_hub_download(repository, folder + slash + part)
                for part in part_names(name)
            ]
            return Path(files[0])
        path = _snapshot(repository)
        if not any(path.glob("*.safetensors")):
            _explain_absence(repository)
    return path


def _snapshot(repository: str) -> Path:
    """The repository's files, or those that are cached if the hub does not answer."""
    from huggingface_hub import snapshot_download

    silent = _is_silent(repository)
    try:
        found = snapshot_download(repository, allow_patterns=list(PATTERNS), local_files_only=silent)
    except Exception:
        if silent:
            raise TimeoutError(f"no answer within {PATIENCE} s") from None
        raise
    return Path(found)


def _is_silent(repository: str) -> bool:
    """Whether the hub does not answer: `snapshot_download` itself would wait for it without end."""
    import huggingface_hub

    try:
        huggingface_hub.model_info(repository, timeout=PATIENCE)
    except Exception as error:
        return "Timeout" in type(error).__name__
    return False


def _explain_absence(repository: str) -> None:
    import huggingface_hub

    files = huggingface_hub.list_repo_files(repository)
    ggufs = [name for name in files if name.lower().endswith(".gguf")]
    if ggufs:
        choices = ", ".join(f"{repository}:{name}" for name in ggufs)
        raise JllamaError(f"{repository} holds GGUF files only; name one of them: {choices}")
    hint = "its .bin files are not read: convert them to safetensors"
    other = hint if any(name.endswith(".bin") for name in files) else "choose another repository"
    raise JllamaError(f"{repository} holds no safetensors weights; {other}")


@contextlib.contextmanager
def _bars(progress: bool) -> Iterator[None]:
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """The hub's client and its network layers raise dozens of types: each becomes one line and a way out."""
    try:
        yield
    except JllamaError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            place = error.filename or _cache()
            raise JllamaError(
                f"cannot write to {place}: {error.strerror}; free some space, or set HF_HOME to another place"
            ) from None
        reason = str(error).strip().splitlines() or [""]
        raise JllamaError(
            f"no local path {repository!r}, and the hub gave no such files "
            f"({type(error).__name__}: {reason[0][:200]}).",
            _way_out(type(error).__name__, repository),
        ) from None


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


def _way_out(kind: str, repository: str) -> str:
    if kind == "GatedRepoError":
        return f"Ask for access at https://huggingface.co/{repository} and set HF_TOKEN"
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return "Check the spelling; a private repository needs HF_TOKEN"
    if kind == "EntryNotFoundError":
        return "Check the file's name"
    return (
        f"Where there is a network: hf download {repository} --local-dir DIR; copy DIR here and give "
        "--model=DIR (HF_HUB_OFFLINE=1 uses only what is cached)"
    )
