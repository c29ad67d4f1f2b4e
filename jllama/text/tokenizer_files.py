"""The tokenizer in a Hugging Face directory."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from jllama.errors import JllamaError
from jllama.files.errors import file_errors
from jllama.files.json_files import read_object
from jllama.files.paths import check_file, check_no_other_kind
from jllama.text.special_tokens import Special
from jllama.text.template.sandbox import MAX_SOURCE_CHARS
from jllama.text.vocabularies import ranked
from jllama.text.vocabularies.spm import SpmModel, settle_types
from jllama.text.vocabularies.spm_file import read_model
from jllama.text.vocabularies.tokenizer_json import read_json_vocabulary, vocabulary_of
from jllama.text.vocabulary import Settings, Vocabulary, ending_ids

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token")


@dataclass(frozen=True)
class Directory:
    """The JSON files of one directory; a missing one is an empty one."""

    path: Path
    defaults: Mapping[str, str] = field(default_factory=dict)  # of tokenizer_config.json
    _read: dict[str, dict[str, Any]] = field(default_factory=dict)

    def json(self, name: str) -> dict[str, Any]:
        if name not in self._read:
            path = self.path / name
            self._read[name] = read_object(path) if os.path.lexists(path) else {}
        return self._read[name]

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json, completed by special_tokens_map.json."""
        given = {**self.json("special_tokens_map.json"), **self.json("tokenizer_config.json")}
        return {**self.defaults, **given}

    @cached_property
    def templates(self) -> dict[str, str]:
        return _templates(self)

    def token_text(self, name: str) -> str | None:
        """The text of a named token; None where there is none.

        Raises:
          JllamaError: it is neither a text nor an object with one.
        """
        token = self.config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text is None or isinstance(text, str):
            return text
        raise JllamaError(
            f"{self.path / 'tokenizer_config.json'}: {name}={token!r} must be a text; correct it there"
        )


def read_vocabulary(path: Path) -> tuple[Vocabulary, Settings]:
    """The vocabulary of tokenizer.json, else of tokenizer.model or tekken.json, and its settings.

    Raises:
        JllamaError: none of them is there, or a file is broken or of a kind not supported.
    """
    directory = Directory(path)
    if (path / "tokenizer.json").is_file():
        return _from_json(directory)
    if (path / ranked.TIKTOKEN).is_file():
        is_table = ranked.is_tiktoken(path / ranked.TIKTOKEN)
        return _from_tiktoken(directory) if is_table else _from_spm(directory)
    if (path / ranked.TEKKEN).is_file():
        return _from_ranks(directory, ranked.read_tekken(path / ranked.TEKKEN), "<s>", "</s>")
    for name in ("tokenizer.json", "tokenizer.model", "tekken.json"):
        check_no_other_kind(path / name)
    raise JllamaError(
        f"{path} has no tokenizer: neither tokenizer.json nor tokenizer.model nor tekken.json is there.",
        "Copy one of them from the place the model came from.",
    )


def _from_json(directory: Directory) -> tuple[Vocabulary, Settings]:
    bos = _bos_id(directory, {}, None)
    vocabulary, affixes = read_json_vocabulary(
        directory.path / "tokenizer.json",
        _ending_texts(directory),
        _eos_ids(directory) | ({bos} if bos is not None else set()),
        directory.templates.values(),
    )
    return vocabulary, _settings(directory, vocabulary, affixes)


def _from_tiktoken(directory: Directory) -> tuple[Vocabulary, Settings]:
    added = {at: text for at, text in _added_tokens(directory).items() if text}
    file = directory.path / ranked.TIKTOKEN
    inner = ranked.read_tiktoken(file, directory.json("config.json"), added)
    return _from_ranks(directory, inner, "<|begin_of_text|>", "<|end_of_text|>")


def _from_ranks(
    directory: Directory, inner: tokenizers.Tokenizer, bos: str, eos: str
) -> tuple[Vocabulary, Settings]:
    """Of a file that names no roles: `bos` and `eos` have them unless files beside it say otherwise."""
    directory = replace(directory, defaults={"bos_token": bos, "eos_token": eos})
    named = _ending_texts(directory)
    vocabulary = vocabulary_of(inner, named, _eos_ids(directory), directory.templates.values())
    begins = _bos_id(directory, vocabulary.ids, None)
    return vocabulary, _settings(directory, vocabulary, (() if begins is None else (begins,), ()))


def _ending_texts(directory: Directory) -> set[str]:
    return {text for text in map(directory.token_text, ("bos_token", "eos_token")) if text}


def _from_spm(directory: Directory) -> tuple[Vocabulary, Settings]:
    model = read_model(directory.path / "tokenizer.model")
    # transformers' `legacy: false` puts no blank after a special token.
    every = directory.config.get("legacy") is not False
    ids = {*_eos_ids(directory), model.bos_id, model.eos_id}
    named = {*_ending_texts(directory), *(piece for at, piece in enumerate(model.pieces) if at in ids)}
    templates = directory.templates.values()
    # SentencePiece takes its user-defined symbols out of any text; a template in use makes some special.
    types = settle_types(model.pieces, model.types, named=named, templates=templates, by_name=False)
    model = replace(model, every_stretch=every, types=types)
    vocabulary = model.vocabulary(_extra_tokens(directory, model))
    bos = (model.bos_id,) if model.bos_id is not None else ()
    return vocabulary, _settings(directory, vocabulary, (bos, ()), model)


def _added_tokens(directory: Directory) -> dict[int, str]:
    """Tokens that added_tokens.json and tokenizer_config.json name, by id."""
    texts = {int(at): text for text, at in directory.json("added_tokens.json").items()}
    for at, token in directory.config.get("added_tokens_decoder", {}).items():
        texts[int(at)] = token["content"]
    return texts


def _extra_tokens(directory: Directory, model: SpmModel) -> dict[str, Special]:
    """Tokens beyond the model's."""
    texts = _added_tokens(directory)
    return {text: Special(text=text, id=at) for at, text in texts.items() if at >= len(model.pieces)}


def _settings(
    directory: Directory,
    vocabulary: Vocabulary,
    affixes: tuple[tuple[int, ...], tuple[int, ...]],
    model: SpmModel | None = None,
) -> Settings:
    named = {name: directory.token_text(name) for name in TOKEN_NAMES}
    templates = directory.templates
    bos = _bos_id(directory, vocabulary.ids, model)
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


def _bos_id(directory: Directory, ids: Mapping[str, int], model: SpmModel | None) -> int | None:
    if "bos_token" in directory.config:
        return ids.get(directory.token_text("bos_token") or "")
    if model:
        return model.bos_id
    given = directory.json("config.json").get("bos_token_id")
    return given if type(given) is int else None


def _eos_ids(directory: Directory) -> set[int]:
    """The `eos_token_id` of config.json and generation_config.json, each an id or a list."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        given = directory.json(name).get("eos_token_id")
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if not all(type(token) is int for token in ids):
            raise JllamaError(
                f"{directory.path / name}: eos_token_id={given!r} must be a token id (a whole number) or a "
                "list of them; correct it there"
            )
        found.update(ids)
    return found


def _templates(directory: Directory) -> dict[str, str]:
    """By name; the files in the directory win over tokenizer_config.json."""
    given = _given_templates(directory)
    files = {"default": directory.path / "chat_template.jinja"}
    more = directory.path / "additional_chat_templates"
    files |= {file.stem: file for file in sorted(more.glob("*.jinja"))}
    return {**given, **{name: _template(file) for name, file in files.items() if os.path.lexists(file)}}


def _given_templates(directory: Directory) -> dict[str, str]:
    """Those of tokenizer_config.json: one text, or several with names."""
    given = named = directory.config.get("chat_template")
    if given in (None, ""):
        return {}
    if isinstance(given, str):
        named = {"default": given}
    elif isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        named = {entry.get("name"): entry.get("template") for entry in given}
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in (*named, *named.values())):
        raise JllamaError(
            f"{directory.path / 'tokenizer_config.json'}: chat_template is {given!r:.40}, not a text (or a "
            "list of texts with names); correct it there"
        )
    return named


def _template(file: Path) -> str:
    """The text of a template; of one that is too long to be compiled, enough to say so."""
    with file_errors(file):
        check_file(file)
        with file.open(encoding="utf-8") as source:
            return source.read(MAX_SOURCE_CHARS + 1)
