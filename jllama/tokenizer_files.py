"""The tokenizer in a Hugging Face directory."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from jllama.detokenizer import from_decoder_json
from jllama.errors import JllamaError
from jllama.special_tokens import Special
from jllama.spm import SpmModel, read_model
from jllama.vocabulary import Settings, Vocabulary, ending_ids

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token")


@dataclass(frozen=True)
class Directory:
    """The JSON files of one directory; a missing one is an empty one."""

    path: Path

    def json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise JllamaError(f"{self.path / name} is not readable JSON: {error}") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json, completed by special_tokens_map.json."""
        config = self.json("tokenizer_config.json")
        names = self.json("special_tokens_map.json")
        if not isinstance(config, dict) or not isinstance(names, dict):
            raise JllamaError(f"{self.path}: tokenizer_config.json is no JSON object; fetch it again")
        return {**names, **config}

    def token_text(self, name: str) -> str | None:
        token = self.config.get(name)
        return token.get("content") if isinstance(token, dict) else token


def read_vocabulary(path: Path) -> tuple[Vocabulary, Settings]:
    """The vocabulary of tokenizer.json, else of tokenizer.model, and its settings.

    Raises:
        JllamaError: neither file is there, or a file is broken or of a kind not supported.
    """
    directory = Directory(path)
    if (path / "tokenizer.json").is_file():
        return _from_json(directory)
    if (path / "tokenizer.model").is_file():
        return _from_spm(directory)
    raise JllamaError(
        f"{path} has no tokenizer: neither tokenizer.json nor tokenizer.model is there.\n"
        "Copy one of them from the place the model came from."
    )


def _from_json(directory: Directory) -> tuple[Vocabulary, Settings]:
    file = directory.path / "tokenizer.json"
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise JllamaError(f"{file} is no tokenizer that can be read: {error}") from error
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    state = inner.decoder.__getstate__() if inner.decoder else None
    to_bytes, drop_blanks = from_decoder_json(state and state.decode())
    added = inner.get_added_tokens_decoder()
    # Of an added token the library may tell a normalised name, "▁<s>".
    texts = {at: token.content for at, token in added.items()}
    vocabulary = Vocabulary(
        encode=JsonEncoder(inner),
        token_bytes=lambda token: to_bytes(texts.get(token) or inner.id_to_token(token) or ""),
        drop_blanks=drop_blanks,
        size=max([inner.get_vocab_size(), *(token + 1 for token in added)]),
        ids=_Lookup(inner),
        specials=_specials(added, _ending_texts(directory)),
    )
    demoted = [t for t in added.values() if t.content in vocabulary.specials and not t.special]
    inner.add_special_tokens(demoted)
    return vocabulary, _settings(directory, vocabulary, _affixes(inner))


class JsonEncoder:
    """A tokenizer.json on plain text: what its special tokens spell stays text."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner

    def __call__(self, text: str, first: bool) -> list[int]:
        inner = self._inner if first else self._later
        return inner.encode(text, add_special_tokens=False).ids

    @cached_property
    def _later(self) -> tokenizers.Tokenizer:
        """For stretches after a special token, where `prepend_scheme: first` puts no blank."""
        inner = self._inner
        if inner.pre_tokenizer is None or b'"first"' not in inner.pre_tokenizer.__getstate__():
            return inner
        state = json.loads(inner.to_str())
        for part in _parts(state["pre_tokenizer"]):
            if part.get("prepend_scheme") == "first":
                part["prepend_scheme"] = "never"
        later = tokenizers.Tokenizer.from_str(json.dumps(state))
        later.encode_special_tokens = True
        return later


def _parts(pre_tokenizer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield pre_tokenizer
    for inner in pre_tokenizer.get("pretokenizers", ()):
        yield from _parts(inner)


class _Lookup(Mapping[str, int]):
    """Text to id without copying a vocabulary of a hundred thousand entries."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner

    def __getitem__(self, text: str) -> int:
        token = self._inner.token_to_id(text)
        if token is None:
            raise KeyError(text)
        return token

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner.get_vocab())

    def __len__(self) -> int:
        return self._inner.get_vocab_size()


def _ending_texts(directory: Directory) -> set[str]:
    return {text for text in map(directory.token_text, ("bos_token", "eos_token")) if text}


def _specials(added: Mapping[int, tokenizers.AddedToken], also: set[str]) -> dict[str, Special]:
    return {
        token.content: Special(
            text=token.content,
            id=at,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
        )
        for at, token in added.items()
        if token.special or token.content in also
    }


def _affixes(inner: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text."""
    plain = inner.encode("a", add_special_tokens=False).ids
    whole = inner.encode("a", add_special_tokens=True).ids
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return tuple(whole[:at]), tuple(whole[at + len(plain) :])
    return (), ()


def _from_spm(directory: Directory) -> tuple[Vocabulary, Settings]:
    model = read_model(directory.path / "tokenizer.model")
    # transformers' `legacy: false` puts no blank after a special token.
    every = directory.config.get("legacy") is not False
    vocabulary = replace(model, every_stretch=every).vocabulary(_extra_tokens(directory, model))
    bos = (model.bos_id,) if model.bos_id is not None else ()
    return vocabulary, _settings(directory, vocabulary, (bos, ()), model)


def _extra_tokens(directory: Directory, model: SpmModel) -> dict[str, Special]:
    """Tokens beyond the model's: added_tokens.json and tokenizer_config.json name them."""
    texts = {int(at): text for text, at in directory.json("added_tokens.json").items()}
    for at, token in directory.config.get("added_tokens_decoder", {}).items():
        texts[int(at)] = token["content"]
    return {text: Special(text=text, id=at) for at, text in texts.items() if at >= len(model.pieces)}


def _settings(
    directory: Directory,
    vocabulary: Vocabulary,
    affixes: tuple[tuple[int, ...], tuple[int, ...]],
    model: SpmModel | None = None,
) -> Settings:
    named = {name: directory.token_text(name) for name in TOKEN_NAMES}
    templates = _templates(directory)
    bos = _bos_id(directory, vocabulary, model)
    eos = vocabulary.ids.get(named["eos_token"] or "", model.eos_id if model else None)
    ends = {eos, *_eos_ids(directory), *ending_ids(vocabulary, templates)}
    prefix, suffix = affixes
    if isinstance(add := directory.config.get("add_bos_token"), bool):
        prefix = (bos,) if add and bos is not None else ()
    if isinstance(add := directory.config.get("add_eos_token"), bool):
        suffix = (eos,) if add and eos is not None else ()
    return Settings(
        bos_id=bos,
        eos_ids=frozenset(end for end in ends if end is not None),
        prefix=prefix,
        suffix=suffix,
        templates=templates,
        variables={name: text for name, text in named.items() if text is not None},
    )


def _bos_id(directory: Directory, vocabulary: Vocabulary, model: SpmModel | None) -> int | None:
    if "bos_token" in directory.config:
        return vocabulary.ids.get(directory.token_text("bos_token") or "")
    if model:
        return model.bos_id
    given = directory.json("config.json").get("bos_token_id")
    return given if isinstance(given, int) else None


def _eos_ids(directory: Directory) -> set[int]:
    """The `eos_token_id` of config.json and generation_config.json, each an id or a list."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        given = directory.json(name).get("eos_token_id")
        found.update(given if isinstance(given, list) else [] if given is None else [given])
    return found


def _templates(directory: Directory) -> dict[str, str]:
    """By name; the files in the directory win over tokenizer_config.json."""
    given = directory.config.get("chat_template") or {}
    if isinstance(given, str):
        given = {"default": given}
    elif isinstance(given, list):
        given = {entry["name"]: entry["template"] for entry in given}
    files = {"default": directory.path / "chat_template.jinja"}
    more = directory.path / "additional_chat_templates"
    files |= {file.stem: file for file in sorted(more.glob("*.jinja"))}
    read = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
    return {**given, **read}
