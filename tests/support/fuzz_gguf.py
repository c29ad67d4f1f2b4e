"""A tiny GGUF file, written field by field so that each can be given another type, value or length."""

import functools
import random
import struct
from typing import Any

import numpy as np

from .fuzz_damage import ODD

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}
_D, _F, _HEADS, _H = 32, 48, 2, 16
Field = tuple[str, int, Any]  # key, type, value; of an array, (type, values)
Tensor = tuple[str, list[int], int, int, bytes]  # name, shape, ggml's type, offset, content


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(value)
    if kind == ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(_value(inner, item) for item in values)
    return struct.pack("<" + _CODES[kind], value)


def written(
    fields: list[Field], tensors: list[Tensor], *, version: int = 3, counts: tuple[int, int] = (0, 0)
) -> bytes:
    """The file; `counts` are added to the numbers of tensors and fields that it states."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors) + counts[0], len(fields) + counts[1])
    head += b"".join(
        _text(key) + struct.pack("<I", kind) + _value(kind, value) for key, kind, value in fields
    )
    for name, shape, kind, offset, _ in tensors:
        head += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + b"".join(content for *_, content in tensors)


@functools.cache
def _fields() -> tuple[Field, ...]:
    from tokenizers import pre_tokenizers

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<|end|>"]
    numbers = {"context_length": 64, "embedding_length": _D, "block_count": 1, "feed_forward_length": _F}
    numbers |= {"attention.head_count": _HEADS, "attention.head_count_kv": _HEADS, "rope.dimension_count": _H}
    return (
        ("general.architecture", STRING, "llama"),
        *((f"llama.{key}", U32, value) for key, value in numbers.items()),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.freq_base", F32, 10000.0),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, words)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 257 + [3])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["h e"])),
        ("tokenizer.ggml.eos_token_id", U32, 257),
    )


@functools.cache
def _tensors() -> tuple[Tensor, ...]:
    rng, at, vocab = np.random.default_rng(0), "blk.0.", 258
    shapes = {
        "token_embd": (vocab, _D),
        "output_norm": (_D,),
        "output": (vocab, _D),
        "rope_freqs": (_H // 2,),
    }
    shapes |= {
        at + "attn_norm": (_D,),
        at + "ffn_norm": (_D,),
        at + "ffn_gate": (_F, _D),
        at + "ffn_up": (_F, _D),
    }
    shapes |= {at + "ffn_down": (_D, _F)} | {
        f"{at}attn_{name}": (_D, _D) for name in ("q", "k", "v", "output")
    }
    tensors, offset = [], 0
    for name, shape in shapes.items():
        flat = "norm" in name or name == "rope_freqs"
        numbers = np.ones(shape, np.float32) if flat else rng.standard_normal(shape, np.float32) * 0.2
        content = numbers.tobytes() + bytes(-numbers.nbytes % 32)
        tensors.append((f"{name}.weight", list(shape), 0, offset, content))
        offset += len(content)
    return tuple(tensors)


@functools.cache
def tiny_gguf() -> tuple[bytes, int]:
    """The sound file, and how many bytes stand before its numbers."""
    data = written(list(_fields()), list(_tensors()))
    return data, len(data) - sum(len(content) for *_, content in _tensors())


@functools.cache
def split_gguf() -> dict[str, bytes]:
    """The same in three parts."""
    parts, tensors = {}, _tensors()
    for number in range(3):
        own, offset = [], 0
        for name, shape, kind, _, content in tensors[number::3]:
            own.append((name, shape, kind, offset, content))
            offset += len(content)
        split = [
            ("split.no", U16, number),
            ("split.count", U16, 3),
            ("split.tensors.count", I32, len(tensors)),
        ]
        fields = [*(_fields() if number == 0 else ()), *split]
        parts[f"m-0000{number + 1}-of-00003.gguf"] = written(fields, own)
    return parts


_MORE: tuple[Field, ...] = (
    ("general.alignment", U32, 32),
    ("general.type", STRING, "model"),
    ("llama.attention.key_length", U32, _H),
    ("llama.attention.value_length", U32, _H),
    ("llama.attention.sliding_window", U32, 4),
    ("llama.vocab_size", U32, 258),
    ("llama.expert_count", U32, 0),
    ("llama.rope.scaling.type", STRING, "yarn"),
    ("llama.rope.scaling.factor", F32, 4.0),
    ("llama.rope.scaling.original_context_length", U32, 16),
    ("llama.rope.scaling.yarn_beta_fast", F32, 32.0),
    ("split.count", U16, 1),
    ("tokenizer.ggml.add_bos_token", BOOL, True),
    ("tokenizer.ggml.bos_token_id", U32, 256),
    ("tokenizer.chat_template", STRING, "{{ messages[0].content }}"),
)


def damaged_gguf(rng: random.Random) -> bytes:
    """The file with some fields, tensor entries or counts changed."""
    fields = [*_fields(), *rng.sample(_MORE, rng.randint(0, 4))]
    tensors, options = list(_tensors()), {}
    for _ in range(rng.randint(1, 3)):
        action = rng.randrange(8)
        if action < 5:
            _change_field(rng, fields)
        elif action < 7:
            _change_tensor(rng, tensors)
        else:
            options = {"counts": (rng.choice((0, 1, -1, 2**40)), rng.choice((0, 1, -1, 2**40)))}
    return written(fields, tensors, **options)


def _change_field(rng: random.Random, fields: list[Field]) -> None:
    at = rng.randrange(len(fields))
    key, kind, value = fields[at]
    action = rng.randrange(4)
    if action == 0:
        del fields[at]
    elif action == 1:
        fields.insert(rng.randrange(len(fields)), (rng.choice(fields)[0], kind, value))
    elif action == 2 and kind == ARRAY:
        inner, values = value
        short = values[: rng.randrange(len(values) + 1)]
        fields[at] = (
            key,
            kind,
            rng.choice([(inner, short), (inner, values * 2), _odd_array(rng, len(values))]),
        )
    else:
        fields[at] = (key, *_odd_value(rng))


def _odd_value(rng: random.Random) -> tuple[int, Any]:
    """A random type with a value that fits it."""
    kind = rng.choice([*_CODES, STRING, ARRAY])
    if kind == STRING:
        return kind, rng.choice(("", "x", "llama", "linear", "none", "\ud800", "a\0b", "x" * 1000))
    if kind == ARRAY:
        return kind, _odd_array(rng, rng.choice((0, 1, 2, 258, 5000)))
    return kind, _number(rng, kind)


def _odd_array(rng: random.Random, length: int) -> tuple[int, list[Any]]:
    inner = rng.choice([*_CODES, STRING, ARRAY])
    if inner == ARRAY:
        return inner, [(U8, [])] * length
    return inner, ["x"] * length if inner == STRING else [_number(rng, inner) for _ in range(min(length, 9))]


def _number(rng: random.Random, kind: int) -> Any:
    """An odd number as far as the type holds it."""
    while True:
        number = rng.choice([*(odd for odd in ODD if type(odd) in (bool, int, float)), 16, 32, 258])
        try:
            struct.pack("<" + _CODES[kind], number)
        except (struct.error, OverflowError):
            continue
        return number


def _change_tensor(rng: random.Random, tensors: list[Tensor]) -> None:
    at = rng.randrange(len(tensors))
    name, shape, kind, offset, content = tensors[at]
    action = rng.randrange(6)
    if action == 0:
        tensors[at] = (name, shape, rng.choice((1, 2, 3, 8, 12, 28, 30, 99, 2**32 - 1)), offset, content)
    elif action == 1:
        other = [rng.choice((0, 1, 4, 16, 32, 2**40, 2**63, 2**64 - 1)) for _ in range(rng.randint(0, 5))]
        tensors[at] = (name, rng.choice([shape[::-1], other]), kind, offset, content)
    elif action == 2:
        tensors[at] = (
            name,
            shape,
            kind,
            rng.choice((0, 1, offset + 32, max(offset - 32, 0), 2**63)),
            content,
        )
    elif action == 3:
        tensors[at] = (rng.choice((rng.choice(tensors)[0], "", "x" * 500, "layers.0.norm")), *tensors[at][1:])
    elif action == 4:
        del tensors[at]
    else:
        odd = struct.pack("<f", rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e-45, 3e38)))
        tensors[at] = (name, shape, kind, offset, odd * (len(content) // 4))
