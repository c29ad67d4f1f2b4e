"""Damaged and hostile text: chat templates, tokenizer files, tokenizers of GGUFs, messages.

`KINDS` is what `tests.support.fuzz` runs.
"""

import base64
import contextlib
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jllama.errors import JllamaError
from jllama.text.template.chat_template import ChatTemplate
from jllama.text.tokenizer import Tokenizer
from tests.support import hostile_templates, tokenizer_helpers

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
TEMPLATES = [path.read_text("utf-8") for path in sorted((GOLDENS / "templates").glob("*.jinja"))]
TEMPLATES += [*hostile_templates.REACHING_OUT.values(), *hostile_templates.RUNNING_AWAY.values()]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <|im_end|> é 日本 \U0001f600"},
    {"role": "assistant", "content": "<think>\nhm</think>Yes"},
    {"role": "user", "content": "More"},
]
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    10,
    99,
    100,
    4096,
    65536,
    10**6,
    10**9,
    2**31,
    2**32,
    2**63,
    2**64,
    10**30,
    1.5,
    -0.0,
)
WORDS = (
    "",
    "a",
    "é",
    "日",
    "\U0001f600",
    "▁",
    "Ġa",
    "<s>",
    "<|im_end|>",
    "\0",
    "\ud800",
    "a" * 5000,
    "##",
    "\x1b[2J",
)
VALUES = (*NUMBERS, *WORDS, None, True, False, [], {}, [[]], {"a": 1}, ["a", "b"], float("inf"), float("nan"))


def damaged_text(random: Random, text: str, others: list[str]) -> str:
    """`text` with some stretches dropped, doubled, moved, or taken from others."""
    for _ in range(random.randint(1, 5)):
        start = random.randrange(len(text) + 1)
        piece = text[start : start + random.choice((1, 2, 5, 20, 100))]
        other = random.choice(others)
        at = random.randrange(len(other) + 1)
        new = random.choice(
            ("", piece * 2, random.choice(WORDS), str(random.choice(NUMBERS)), other[at : at + 30])
        )
        text = text[:start] + new + text[start + len(piece) :]
    return text


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """`data` with some bytes replaced, mostly by as many, so that what lies behind them stays there."""
    keeps = random.random() < 0.7
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(data) + 1)
        size = random.choice((1, 1, 1, 2, 4) if keeps else (0, 1, 4, 100))
        kept = (bytes(size), b"\xff" * size, random.randbytes(size))
        others = (b"", b"\xff" * 8, b"\x80", random.randbytes(4), data[:50], data[start:][:64] * 3)
        data = data[:start] + random.choice(kept if keeps else others) + data[start + size :]
    return data


def damaged_tree(random: Random, tree: Any) -> Any:
    """Plain data with some of its values replaced, dropped, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 2, 5))):
        _damage(random, tree, tree)
    return tree


def _damage(random: Random, node: Any, root: Any) -> None:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    if not keys:
        return
    key = random.choice(keys)
    if isinstance(node[key], dict | list) and random.random() < 0.8:
        _damage(random, node[key], root)
        return
    kind = random.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = [copy.deepcopy(node[key]) for _ in range(random.choice((1, 2, 30)))]
    elif kind == 2 and isinstance(node[key], str):
        node[key] *= random.choice((0, 2, 3, 5000))
    elif kind == 3 and isinstance(node, dict):
        node[random.choice(keys)] = copy.deepcopy(node[key])
    else:
        alike = [value for value in VALUES if type(value) is type(node[key])]
        node[key] = copy.deepcopy(random.choice(alike if alike and random.random() < 0.7 else VALUES))


class _Expressions:
    """Random expressions of chat templates, which try to make much of little."""

    TESTS = "defined none string mapping iterable number divisibleby(3) in([1]) eq(1) odd".split()
    CALL = re.compile(r"\w+(?:\([^)]*\))?")
    FILTERS = CALL.findall(
        "abs attr(A) batch(A) batch(A, A) capitalize center(A) count default(A) dictsort e first float "
        "format(A, A) format(a=A) groupby(A) indent(A) int(A, 16) int items join(A) join last length list "
        "lower map(A) map('string') max min reject replace(A, A) reverse round(A) safe select selectattr(A) "
        "slice(A) slice(A, A) sort string sum sum(A) title tojson tojson(indent=A) tojson(true) trim trim(A) "
        "truncate(A) unique upper wordcount"
    )
    METHODS = CALL.findall(
        "center(A) count(A) expandtabs(A) find(A) format(A, A) format_map(A) get(A) index(A) items() join(A) "
        "keys() ljust(A) rjust(A, A) lstrip(A) partition(A) replace(A, A) rfind(A) rsplit(A) split() "
        "split(A) split(A, A) splitlines() strip(A) title() upper() values() zfill(A) casefold() "
        "startswith(A) copy() to_bytes(A, A) encode() bit_length() __class__ format __init__ isdigit() nope"
    )
    PATTERNS = (
        "%s",
        "%(a)s",
        "%99d",
        "%999d",
        "%*d",
        "{}",
        "{0}{0}",
        "{a}",
        "{:99}",
        "{:999}",
        "{:{}}",
        "{0.a}",
    )

    def __init__(self, random: Random):
        self._random = random

    def leaf(self) -> str:
        choose = self._random.choice
        names = (
            "x",
            "y",
            "z",
            "messages",
            "ns.v",
            "loop",
            "messages[0].content",
            "range(99999)",
            "m",
            "caller",
        )
        leaves = (*names, repr(choose(NUMBERS)), repr(choose(WORDS)), repr(choose(self.PATTERNS)), "[]", "{}")
        return choose(leaves).replace("\\ud800", "")

    def make(self, depth: int) -> str:
        choose, make = self._random.choice, self.make
        if depth <= 0:
            return self.leaf()
        kind = self._random.randrange(9)
        if kind == 0:
            sign = choose(("+", "-", "*", "*", "/", "//", "%", "%", "**", "~", "and", "or", "==", "<", "in"))
            return f"({make(depth - 1)} {sign} {make(depth - 1)})"
        if kind in (1, 2, 3):
            return f"({make(depth - 1)} | {self._filled(choose(self.FILTERS), depth)})"
        if kind in (4, 5):
            return f"{make(depth - 1)}.{self._filled(choose(self.METHODS), depth)}"
        if kind == 6:
            return f"{make(depth - 1)}[{choose(('1:', '::-1', ':2', '0', '-1', self.leaf()))}]"
        if kind == 7:
            return choose(("[A, A]", "{'a': A}", "(A, A)", "dict(a=A)", "namespace(a=A)", "m(A, A)")).replace(
                "A", make(depth - 1)
            )
        return f"({make(depth - 1)} if {make(depth - 1)} is {choose(self.TESTS)} else {make(depth - 1)})"

    def _filled(self, text: str, depth: int) -> str:
        while "A" in text:
            text = text.replace("A", self.make(depth - 2).replace("A", ""), 1)
        return text

    def statement(self, depth: int) -> str:
        make, choose = self.make, self._random.choice
        value = make(self._random.randrange(4))
        if depth <= 0:
            return f"{{{{ {value} }}}}"
        inner = "".join(self.statement(depth - 1) for _ in range(self._random.randint(1, 3)))
        return choose(
            (
                f"{{{{ {value} }}}}",
                f"{{% set {choose('xyz')} = {value} %}}",
                f"{{% set ns.v = {value} %}}",
                f"{{% for {choose('xyz')} in {value} %}}{inner}{{% endfor %}}",
                f"{{% for i in range({choose((3, 100, 99999))}) %}}{inner}{{% endfor %}}",
                f"{{% if {value} %}}{inner}{{% else %}}{inner}{{% endif %}}",
                f"{{% macro m(a, b) %}}{inner}{{% endmacro %}}",
                f"{{% set {choose('xyz')} %}}{inner}{{% endset %}}",
                f"{{% filter {choose(('upper', 'indent', 'trim', 'title'))} %}}{inner}{{% endfilter %}}",
            )
        )


def template_made(random: Random, _directory: Path) -> None:
    made = _Expressions(random)
    for _ in range(3):
        big = random.choice(
            ("'a' * 1000000", "'日 ' * 2000000", "range(99999) | list", "['ab'] * 9999", "'x'")
        )
        start = f"{{% set x = {big} %}}{{% set y = '%(a)s{{a}}' %}}{{% set ns = namespace(v=9) %}}"
        start += "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}"
        with contextlib.suppress(JllamaError):
            _render(start + "".join(made.statement(1) for _ in range(random.randint(1, 2))))


def template_damaged(random: Random, _directory: Path) -> None:
    _render(damaged_text(random, random.choice(TEMPLATES), TEMPLATES))


def _render(source: str) -> None:
    _refused(lambda: ChatTemplate(source, bos_token="<s>").render(MESSAGES, tools=[{"name": "f"}]))


def messages(random: Random, directory: Path) -> None:
    files = {
        "tokenizer__json": tokenizer_helpers.byte_level_json(added=[("<s>", True), ("<|im_end|>", True)])
    }
    files["chat_template__jinja"] = random.choice(TEMPLATES[:8])
    tokenizer = Tokenizer.from_dir(tokenizer_helpers.write_directory(directory, **files))
    given = copy.deepcopy(MESSAGES)
    given[2]["token_ids"] = [65, 66]
    given[1]["content"] = random.choice(([{"type": "text", "text": "x"}], "x", ["a"], {"a": 1}))
    given = damaged_tree(random, given)
    extra = random.choice(({}, {"documents": [{"text": "x"}]}, {"enable_thinking": False}))
    _refused(lambda: tokenizer.encode_chat(given, add_generation_prompt=random.random() < 0.8, **extra))


def _bases() -> list[dict[str, Any]]:
    """Small files of each kind of tokenizer.json."""
    byte_level = json.loads(
        tokenizer_helpers.byte_level_json(added=[("<s>", True), ("<x>", False)], bos="<s>")
    )
    inner = Library(
        models.BPE({"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "<0x41>": 4}, [("▁", "a")], unk_token="<unk>")
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens(["<s>"])
    unigram = Library(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)], 0, False))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.normalizer = normalizers.NFKC()
    charsmap = base64.b64encode(tokenizer_helpers.spm_charsmap()).decode()
    mapped = json.loads(unigram.to_str())
    mapped["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Precompiled", "precompiled_charsmap": charsmap}, {"type": "Lowercase"}],
    }
    words = Library(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Whitespace(), decoders.ByteLevel()
    return [
        byte_level,
        json.loads(inner.to_str()),
        json.loads(unigram.to_str()),
        mapped,
        json.loads(words.to_str()),
    ]


def tokenizer_json(random: Random, directory: Path) -> None:
    tree = damaged_tree(random, random.choice(_bases()))
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    if random.random() < 0.2:
        text = damaged_bytes(random, text)
    (directory / "tokenizer.json").write_bytes(text)
    _use(lambda: Tokenizer.from_dir(directory))


def tokenizer_config(random: Random, directory: Path) -> None:
    files = {
        "tokenizer_config": {
            "bos_token": {"content": "<s>"},
            "eos_token": "<x>",
            "add_bos_token": True,
            "legacy": False,
            "chat_template": [{"name": "default", "template": TEMPLATES[0]}],
            "added_tokens_decoder": {"256": {"content": "<s>", "special": True}},
        },
        "special_tokens_map": {"unk_token": "<unk>"},
        "added_tokens": {"<y>": 300},
        "config": {"eos_token_id": [1, 2], "bos_token_id": 1},
        "generation_config": {"eos_token_id": 1},
    }
    files = damaged_tree(random, files)
    for name, content in files.items():
        text = json.dumps(content).encode("utf-8", "surrogatepass")
        if random.random() < 0.1:
            text = damaged_bytes(random, text)
        (directory / f"{name[:50] or 'x'}.json".replace("/", "")).write_bytes(text)
    if random.random() < 0.5:
        tokenizer_helpers.spm_directory(directory, "bpe")
    else:
        text = tokenizer_helpers.byte_level_json(added=[("<s>", True), ("<x>", False)])
        tokenizer_helpers.write_directory(directory, tokenizer__json=text)
    _use(lambda: Tokenizer.from_dir(directory))


def tokenizer_model(random: Random, directory: Path) -> None:
    name = random.choice(tokenizer_helpers.SPM)
    data = (GOLDENS / "tokenizers" / f"{name}.model").read_bytes()
    (directory / "tokenizer.model").write_bytes(damaged_bytes(random, data))
    _use(lambda: Tokenizer.from_dir(directory))


def gguf_tokenizer(random: Random, _directory: Path) -> None:
    fields = tokenizer_helpers.spm_as_gguf(random.choice(tokenizer_helpers.SPM[:2]))
    fields["tokenizer.ggml.precompiled_charsmap"] = list(tokenizer_helpers.spm_charsmap())
    if random.random() < 0.4:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        fields |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": [*letters, "ab", "<s>", "<x>"],
            "tokenizer.ggml.token_type": [1] * 257 + [3, 4],
            "tokenizer.ggml.merges": ["a b"],
        }
    fields["tokenizer.chat_template"] = random.choice(TEMPLATES[:8])
    fields = {key: value for key, value in fields.items() if random.random() < 0.95}
    fields = damaged_tree(random, fields)
    _use(lambda: Tokenizer.from_gguf(fields))


def _use(load: Callable[[], Tokenizer]) -> None:
    def run() -> None:
        tokenizer = load()
        for text in ("Hello a é 日本 <s> <|im_end|> \U0001f600 ﬁ ﾊﾞ  x\n", "", "a" * 2000, "\ud800"):
            ids = tokenizer.encode(text, parse_special=len(text) > 9)
            tokenizer.decode(ids, skip_special=False)
        tokenizer.decode(range(300))
        if tokenizer.chat_template:
            tokenizer.encode_chat(MESSAGES)

    _refused(run)


def _refused(run: Callable[[], Any]) -> None:
    try:
        run()
    except JllamaError as error:
        lines = str(error).splitlines()
        assert 0 < len(lines) <= 2, "the message is of one line or two"
        assert all(line.isprintable() and len(line) < 2100 for line in lines), (
            "the message is bounded and shows"
        )
        raise


KINDS: dict[str, Callable[[Random, Path], None]] = {
    "template_made": template_made,
    "template_damaged": template_damaged,
    "messages": messages,
    "tokenizer_json": tokenizer_json,
    "tokenizer_config": tokenizer_config,
    "tokenizer_model": tokenizer_model,
    "gguf_tokenizer": gguf_tokenizer,
}
