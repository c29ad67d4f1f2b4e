"""Text to token ids and back, for every tokenizer a Llama-family checkpoint comes with."""

import contextlib
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.files.errors import file_errors
from jllama.text import tokenizer_files
from jllama.text.content_parts import settle_parts
from jllama.text.detokenizer import Detokenizer, StreamDecoder
from jllama.text.special_tokens import SpecialTokens
from jllama.text.splice import Splices
from jllama.text.surrogates import without_surrogates
from jllama.text.template.chat_template import ChatTemplate, Message, plain_data
from jllama.text.template.traced_text import Traced, blotted
from jllama.text.turn_ends import turn_ends, turn_tokens
from jllama.text.vocabularies import gguf
from jllama.text.vocabulary import ADVICE, Settings, Vocabulary


class Tokenizer:
    """One model's tokenizer.

    Attributes:
        vocab_size: the highest token id plus one.
        base_vocab_size: the size without tokens that were added to the finished vocabulary, some of which
            the model may not know.
        bos_id: the token that begins a text, if the model has one.
        eos_ids: every token that ends an answer: those of config.json, generation_config.json,
            tokenizer_config.json or of the GGUF (eos, eot, eom), tokens such as `<|endoftext|>`,
            and the end-of-turn token that the chat template writes.
        chat_templates: the sources of the chat templates, by name.
    """

    def __init__(self, vocabulary: Vocabulary, settings: Settings):
        self._vocabulary = vocabulary
        self._settings = settings
        self._specials = SpecialTokens(vocabulary.specials.values())
        self._detokenizer = Detokenizer(
            vocabulary.token_bytes,
            skipped=[special.id for special in vocabulary.specials.values()],
            drop_blanks=vocabulary.drop_blanks,
        )
        self.vocab_size, self.base_vocab_size = vocabulary.size, vocabulary.base_size
        self.bos_id = settings.bos_id
        self.chat_templates = settings.templates
        self._compiled: dict[str, ChatTemplate] = {}
        self._readers: dict[Set[str], Tokenizer] = {}

    @classmethod
    def from_dir(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory: tokenizer.json, else tokenizer.model, else tekken.json.

        Raises:
            JllamaError: no tokenizer there, or one that is broken or of a kind not supported.
        """
        return cls(*_read(tokenizer_files.read_vocabulary, Path(path), f"the tokenizer in {path}"))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer in a GGUF's metadata, given as plain Python values.

        Raises:
            JllamaError: no tokenizer there, or one of a kind not supported.
        """
        return cls(*_read(gguf.read_vocabulary, fields, "the GGUF file's tokenizer"))

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        ends: tuple[str, ...] = ()
        with contextlib.suppress(JllamaError):  # a broken template does not stop plain text
            ends = self.turn_ends(self.chat_template) if self.chat_template else ()
        return self._settings.eos_ids | {self._specials.by_text[text].id for text in ends}

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The default template, compiled; None for a base model.

        Raises:
            JllamaError: it does not compile.
        """
        return self._template(None) if self.chat_templates.get("default") else None

    def template_for_tools(self) -> ChatTemplate | None:
        """The template of conversations with tools: the one named `tool_use`, else the default one."""
        return self._template(None, tools=True) if self.chat_templates.get("default") else None

    def compile_template(self, source: str) -> ChatTemplate:
        """A template of the caller's own, with this model's special tokens as its variables.

        Raises:
            JllamaError: it does not compile.
        """
        return ChatTemplate(source, **self._settings.variables)

    def turn_ends(self, template: ChatTemplate) -> tuple[str, ...]:
        """The texts of the special tokens that end a turn in this template."""
        return turn_ends(template, self._reader(template)._specials)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens: `decode` leaves them out."""
        return frozenset(special.id for special in self._specials.by_text.values())

    def special_id(self, text: str | None) -> int | None:
        """The id of the special token that is spelt so, if there is one."""
        special = self._specials.by_text.get(text or "")
        return special.id if special else None

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        begins: bool = True,
    ) -> list[int]:
        """The ids of `text`.

        Args:
            add_special: put around it what the tokenizer says (often a BOS before), but never a
                second BOS.
            parse_special: read "<|im_end|>" as that token; otherwise it is text like any other.
            begins: False for the rest of a text: some tokenizers put a blank before a first word.
        """
        text = without_surrogates(text)
        ids = self._encode_parts(self._specials.split(text) if parse_special else [text], begins)
        if not add_special:
            return ids
        prefix, suffix = list(self._settings.prefix), list(self._settings.suffix)
        begun = prefix and ids[: len(prefix)] == prefix
        ended = suffix and ids[-len(suffix) :] == suffix
        return ([] if begun else prefix) + ids + ([] if ended else suffix)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | ChatTemplate | None = None,
        **extra: Any,
    ) -> list[int]:
        """The ids of a conversation, by the chat template, to which nothing is added.

        Special tokens count where the template writes them; in the messages they are text. A content
        may be a list of text parts, which are joined unless the template goes through them. A message
        with `token_ids` (an answer as it was generated) keeps these where the template writes its
        content as it is, behind the words that ask for an answer.

        Args:
            template: the name of one of the model's templates, or a ChatTemplate; None takes the
                default one, or the one named `tool_use` where there are tools.

        Raises:
            JllamaError: there is no such template, or it does not take these messages.
        """
        chosen = template if isinstance(template, ChatTemplate) else self._template(template, tools)
        reader = self._reader(chosen)
        rendered = reader._render(chosen, add_generation_prompt, list(messages), tools, extra)
        ids = reader._encode_parts(rendered)
        while self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            del ids[0]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 show as U+FFFD, and ids that name no token as nothing.

        Raises:
            JllamaError: they are no whole numbers.
        """
        return self._detokenizer.decode(_whole_numbers(ids), skip_special)

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        """What one id stands for: maybe a part of a character; nothing for an unknown or a special one.

        Raises:
            JllamaError: it is no whole number.
        """
        return self._detokenizer.bytes_of(_whole_numbers([token])[0], skip_special)

    def stream(self, prompt_ids: Iterable[int] = (), shown: Collection[int] = ()) -> StreamDecoder:
        """A decoder for ids that come one by one, continuing the text of `prompt_ids`.

        Special tokens are no text, but for those in `shown`.
        """
        return StreamDecoder(self._detokenizer, prompt_ids, shown=shown)

    def _reader(self, template: ChatTemplate) -> "Tokenizer":
        """This tokenizer, or one for which the turn tokens that the template writes are special, too."""
        if not (new := turn_tokens(template, self._vocabulary)):
            return self
        if new not in self._readers:
            self._readers[new] = Tokenizer(self._vocabulary.remake(new), self._settings)
        return self._readers[new]

    def _render(
        self, template: ChatTemplate, add_generation_prompt: bool, *given: Any
    ) -> Iterator[str | int]:
        """The prompt as plain stretches and special ids, none of them out of what was `given`."""
        messages, tools, extra = plain_data(given, "the conversation")

        def render(messages: Sequence[Message], asks: bool = add_generation_prompt) -> Traced:
            return template.trace(messages, asks, tools, **extra)

        for stretch in Splices(settle_parts(messages, render)).render(render, add_generation_prompt):
            if isinstance(stretch, Traced):
                yield from self._specials.split(blotted(stretch))
            else:
                yield from stretch

    def _encode_parts(self, parts: Iterable[str | int], begins: bool = True) -> list[int]:
        ids: list[int] = []
        for at, part in enumerate(parts):
            ids += [part] if isinstance(part, int) else self._vocabulary.encode(part, begins and at == 0)
        return ids

    def _template(self, name: str | None, tools: Any = None) -> ChatTemplate:
        templates = self.chat_templates
        if name is None:
            name = "tool_use" if tools and "tool_use" in templates else "default"
        if name not in templates:
            have = ", ".join(templates) or "none"
            raise JllamaError(
                f"the model has no chat template {name!r} (it has: {have}).",
                "Use plain text with --nochat_template; in a chat, another --transcript.",
            )
        source = templates[name]
        if source not in self._compiled:
            self._compiled[source] = self.compile_template(source)
        return self._compiled[source]


def _whole_numbers(ids: Iterable[int]) -> list[int]:
    try:
        return [operator.index(token) for token in ids]
    except TypeError:
        raise JllamaError("token ids must be whole numbers, in a list") from None


def _read(read: Callable[[Any], tuple[Vocabulary, Settings]], source: Any, name: str) -> tuple:
    """Files that are well-formed but hold something else than they should end up here."""
    with file_errors(name, ADVICE):
        return read(source)
