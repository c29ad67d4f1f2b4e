"""A GGUF header by itself: each kind of value, where a file may end, and what refuses to be built."""

import struct
from pathlib import Path

import pytest

from jllama.errors import JllamaError
from jllama.files import gguf_header
from jllama.files.gguf_header import TensorInfo, parse_header

PATH = Path("x.gguf")


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def listed(kind, count, data):
    return struct.pack("<IQ", kind, count) + data


def header(*fields, tensors=(), version=3, magic=b"GGUF"):
    """Fields: name, kind, bytes. Tensors: name, shape with the fastest axis first, kind, offset."""
    data = magic + struct.pack("<IQQ", version, len(tensors), len(fields))
    for name, kind, value in fields:
        data += text(name) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        data += text(name) + axes + struct.pack("<IQ", kind, offset)
    return data


VALUES = [
    (0, struct.pack("<B", 255), 255),
    (1, struct.pack("<b", -1), -1),
    (2, struct.pack("<H", 65535), 65535),
    (3, struct.pack("<h", -2), -2),
    (4, struct.pack("<I", 2**32 - 1), 2**32 - 1),
    (5, struct.pack("<i", -3), -3),
    (6, struct.pack("<f", 0.5), 0.5),
    (7, b"\x01", True),
    (8, text("é"), "é"),
    (8, text(""), ""),
    (9, listed(8, 2, text("a") + text("")), ["a", ""]),
    (9, listed(4, 2, struct.pack("<2I", 1, 2)), [1, 2]),
    (9, listed(9, 2, listed(0, 1, b"\x05") + listed(8, 1, text("b"))), [[5], ["b"]]),
    (9, listed(6, 0, b""), []),
    (10, struct.pack("<Q", 2**64 - 1), 2**64 - 1),
    (11, struct.pack("<q", -4), -4),
    (12, struct.pack("<d", 0.1), 0.1),
]


@pytest.mark.parametrize("behind", [b"", b"weights"])
@pytest.mark.parametrize(("kind", "data", "value"), VALUES)
def test_the_last_value_may_end_the_file_and_no_byte_of_it_may_be_missing(kind, data, value, behind):
    whole = header(("a", 4, struct.pack("<I", 7)), ("b", kind, data))
    found = parse_header(PATH, whole + behind)
    assert (found.fields, found.tensors) == ({"a": 7, "b": value}, [])
    assert found.fields_end == found.end == len(whole)
    for size in range(24, len(whole)):
        with pytest.raises((JllamaError, struct.error)):
            parse_header(PATH, whole[:size])


def test_tensors_stand_behind_the_fields():
    tensors = [("t", (3, 2), 0, 0), ("u", (), 1, 64), ("v", (1, 2, 3, 4), 2, 128)]
    whole = header(("a", 7, b"\x00"), tensors=tensors)
    found = parse_header(PATH, whole)
    assert found.tensors == [TensorInfo(name, shape[::-1], kind, at) for name, shape, kind, at in tensors]
    assert (found.fields_end, found.end) == (len(header(("a", 7, b"\x00"))), len(whole))


ONE = ("a", 7, b"\x01")
NESTED, NINE = listed(0, 0, b""), []
for _ in range(8):
    NESTED, NINE = listed(9, 1, NESTED), [NINE]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(magic=b"GGML"), "is no GGUF file: it starts with b'GGML'"),
        (header(version=1), "has GGUF version 1; jllama reads 2 and 3"),
        (header(version=4), "has GGUF version 4"),
        (header(ONE, ONE), "its metadata hold a twice"),
        (header(tensors=[("t", (1,), 0, 0)] * 2), "it holds t twice"),
        (header(("a", 13, b"")), "hold a value of type 13 in a place for another"),
        (header(("a", 9, listed(13, 1, b""))), "hold a value of type 13 in a place for another"),
        (header(("a", 9, listed(9, 1, NESTED))), "hold a value of type 9 in a place for another"),
        (header(tensors=[("t", (1,) * 5, 0, 0)]), "t has 5 axes"),
        (header(("a", 9, listed(4, 2**40, b""))), "its header asks for more than any model's"),
        (header(("a", 9, listed(4, 99, b""))), "its header breaks off"),
        (header(("a", 8, struct.pack("<Q", 99))), "its header breaks off"),
        (header(("a", 8, b"\x01")), "its header breaks off"),
    ],
)
def test_what_makes_no_sense(data, words):
    with pytest.raises(JllamaError, match=words):
        parse_header(PATH, data)


def test_both_versions_and_as_many_nested_lists_as_may_be():
    assert parse_header(PATH, header(ONE, version=2)) == parse_header(PATH, header(ONE))
    assert parse_header(PATH, header(("a", 9, NESTED))).fields["a"] == NINE
    assert parse_header(PATH, header(tensors=[("t", (1,) * 4, 0, 0)])).tensors[0].shape == (1, 1, 1, 1)


def test_what_is_built_is_counted_before(monkeypatch):
    """A key is a text, and a field counts for 16 values beside what it holds."""
    whole = header(("a", 9, listed(0, 5, bytes(5))))
    spent = 2 + 1 + 1 + 16 + 2 + 5  # two counts, a key, its kind, the field, the list's head, its numbers
    monkeypatch.setattr(gguf_header, "MAX_VALUES", spent)
    assert parse_header(PATH, whole).fields == {"a": [0] * 5}
    monkeypatch.setattr(gguf_header, "MAX_VALUES", spent - 1)
    with pytest.raises(JllamaError, match="asks for more than any model's"):
        parse_header(PATH, whole)
    monkeypatch.setattr(gguf_header, "MAX_VALUES", 100)
    monkeypatch.setattr(gguf_header, "MAX_HEADER", len(whole))
    assert parse_header(PATH, whole + b"more").end == len(whole)
    monkeypatch.setattr(gguf_header, "MAX_HEADER", len(whole) - 1)
    with pytest.raises(JllamaError, match="asks for more than any model's"):
        parse_header(PATH, whole)
