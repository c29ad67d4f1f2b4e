"""GGUF files: hostile headers, split models, files known by their magic."""

import re
import struct

import gguf
import numpy as np
import pytest

from jllama.checkpoint import load_params, open_checkpoint, read_config, read_gguf_fields
from jllama.checkpoint.formats.gguf import USUAL, _encoding
from jllama.checkpoint.formats.stored import PLAIN
from jllama.errors import JllamaError
from jllama.families.tensor_names import from_hf, to_gguf
from jllama.files.gguf_files import part_names
from jllama.hub.references import resolve
from tests.support.checkpoint_files import KEYS, finish, gguf_writer, write_gguf
from tests.support.checkpoint_generator import random_tensors

U8, STRING, ARRAY = 0, 8, 9


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(KEYS)


def load(path):
    files = resolve(str(path))
    return load_params(files, read_config(files), "float32")


def refused(path, words):
    with pytest.raises(JllamaError, match=words):
        load(path)


def sparse_header(path, *, fields=1, tensors=0, content=b"", size=2**28):
    """A header that goes on in `size` zeros, which take no room on the disk."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + content)
        file.truncate(file.tell() + size)
    return path


def array(inner, count):
    return struct.pack("<Q1sIIQ", 1, b"x", ARRAY, inner, count)


BOMBS = {
    "numbers": dict(content=array(U8, 250_000_000)),
    "empty texts": dict(content=array(STRING, 30_000_000)),
    "empty arrays": dict(content=array(ARRAY, 20_000_000)),
    "a text": dict(content=struct.pack("<Q1sIQ", 1, b"x", STRING, 2**27)),
    "fields": dict(fields=2**32),
    "tensors": dict(fields=0, tensors=2**32),
    "small tensors": dict(
        fields=0,
        tensors=600,
        content=b"".join(struct.pack("<Q3sIIQ", 3, b"%03d" % n, 0, 0, 0) for n in range(600)),
    ),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_header_that_asks_for_more_than_any_model_is_refused_early(tmp_path, bomb, monkeypatch):
    """The limits, made small, hold whatever a header asks for: what goes beyond is not built."""
    monkeypatch.setattr("jllama.files.gguf_header.MAX_VALUES", 10_000)
    with pytest.raises(JllamaError, match=r"asks for more than any model's|twice"):
        read_gguf_fields(sparse_header(tmp_path / "m.gguf", **bomb))


def test_names_that_stand_there_twice(tmp_path, tensors):
    path = write_gguf(tmp_path / "m.gguf", KEYS, tensors)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"blk.1.ffn_gate.weight", b"blk.0.ffn_gate.weight"))
    refused(path, r"holds blk\.0\.ffn_gate\.weight twice")
    writer = gguf_writer(path, KEYS)
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("embed_tokens.weight", tensors["model.embed_tokens.weight"])
    finish(writer)
    refused(path, r"holds both token_embd\.weight and embed_tokens\.weight")
    field = struct.pack("<Q1sIB", 1, b"x", U8, 1)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * field)
    with pytest.raises(JllamaError, match="metadata hold x twice"):
        read_gguf_fields(path)


@pytest.mark.parametrize(("shift", "words"), [(-32, "overlaps the tensor before"), (32, "lies behind a gap")])
def test_tensors_that_overlap_or_leave_a_gap(tmp_path, tensors, shift, words):
    path = write_gguf(tmp_path / "m.gguf", KEYS, tensors)
    data = bytearray(path.read_bytes()) + bytes(64)
    name = b"blk.0.ffn_down.weight"
    place = data.index(name) + len(name) + 4 + 16 + 4  # behind the axes' number, two axes and the type
    (offset,) = struct.unpack_from("<Q", data, place)
    struct.pack_into("<Q", data, place, offset + shift)
    path.write_bytes(data)
    refused(path, f"{name.decode()} .*{words}|gap|overlaps")


@pytest.mark.parametrize("alignment", [0, 3, 2**31 + 1])
def test_alignments_that_make_no_sense(tmp_path, tensors, alignment):
    writer = gguf_writer(tmp_path / "m.gguf", KEYS)
    writer.add_uint32("general.alignment", alignment)
    finish(writer)
    refused(tmp_path / "m.gguf", f"alignment={alignment} makes no sense")


def write_split(path, tensors, *, architecture="llama"):
    """Parts of seven tensors each, as llama.cpp's tools write them."""
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=7)
    for field in gguf_writer(path.with_suffix(".one"), KEYS).kv_data[0].items():
        writer.kv_data[0].setdefault(*field)
    for name, tensor in tensors.items():
        writer.add_tensor(to_gguf(str(from_hf(name))), np.ascontiguousarray(tensor))
    finish(writer)
    return sorted(path.parent.glob(f"{path.stem}-*.gguf"))


def test_a_split_model_loads_from_any_part_and_from_its_directory(tmp_path, tensors):
    parts = write_split(tmp_path / "m.gguf", tensors)
    assert [part.name for part in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for place in (*parts, tmp_path):
        files = resolve(str(place))
        assert files.gguf == parts[0]
        assert len(open_checkpoint(files).tensors) == len(tensors)
    np.testing.assert_array_equal(load(parts[2]).norm, tensors["model.norm.weight"])
    write_gguf(tmp_path / "other.gguf", KEYS, tensors)
    refused(tmp_path, r"name one of them: m-00001-of-00003\.gguf, other\.gguf")


@pytest.mark.parametrize("number", ["00000", "00004", "0001"])
def test_a_number_that_no_part_has_makes_no_part(number):
    name = f"m-{number}-of-00003.gguf"
    assert part_names(name) == [name]


@pytest.mark.parametrize("which", [(0, 1, 2), (1,), (0, 2)], ids=["all", "the second", "all but it"])
def test_parts_in_upper_case(tmp_path, tensors, which):
    parts = write_split(tmp_path / "m.gguf", tensors)
    for n in which:
        parts[n] = parts[n].rename(parts[n].with_name(parts[n].name.upper()))
    for place in (*parts, tmp_path):
        files = resolve(str(place))
        assert files.gguf == parts[0]
        assert len(open_checkpoint(files).tensors) == len(tensors)


@pytest.mark.parametrize("count", ["2", -1, 2.5, [1, 2], True])
def test_numbers_of_parts_that_make_no_sense(tmp_path, count):
    writer = gguf_writer(tmp_path / "m.gguf", KEYS)
    writer.add_key_value("split.count", count, gguf.GGUFValueType.get_type(count))
    finish(writer)
    refused(tmp_path / "m.gguf", rf"split\.count={re.escape(repr(count))} makes no sense; download it again")


def test_parts_that_are_missing_or_belong_to_others(tmp_path, tensors):
    first, second, third = write_split(tmp_path / "m.gguf", tensors)
    content = second.read_bytes()
    second.unlink()
    for place in (first, third, tmp_path):
        refused(place, r"3 parts of a split GGUF, .* lacks m-00002-of-00003\.gguf; download all parts")
    second.write_bytes(third.read_bytes())
    refused(first, r"m-00002-of-00003\.gguf does not belong to .*: its split\.no is 2, not 1")
    second.write_bytes(content)
    load(first)
    fewer = {name: tensors[name] for name in list(tensors)[:-1]}
    (tmp_path / "fewer").mkdir()
    second.write_bytes(write_split(tmp_path / "fewer" / "m.gguf", fewer)[1].read_bytes())
    refused(first, r"m-00002-of-00003\.gguf does not belong .*tensors\.count is 20, not 21")
    second.write_bytes(content)
    first.rename(tmp_path / "renamed.gguf")
    refused(tmp_path / "renamed.gguf", "a part of a split GGUF, but its name")
    refused(third, r"lacks m-00001-of-00003\.gguf")


@pytest.mark.parametrize("name", ["sha256-0a1b2c", "MODEL.GGUF", "model", "model.bin"])
def test_a_gguf_is_known_by_its_magic(tmp_path, tensors, name):
    path = write_gguf(tmp_path / "m.gguf", KEYS, tensors).rename(tmp_path / name)
    load(path)
    (tmp_path / "README.md").write_text("A model.")
    (tmp_path / "empty").touch()
    assert resolve(str(tmp_path)).gguf == path


@pytest.mark.parametrize("kind", USUAL)
def test_a_usual_type_is_the_one_that_the_library_knows_by_its_number(kind):
    name, block, size = USUAL[kind]
    known = gguf.GGMLQuantizationType(kind)
    assert (known.name, gguf.GGML_QUANT_SIZES[known]) == (name, (block, size))
    if name in PLAIN:
        return
    raw = np.arange(2 * size, dtype=np.uint8).reshape(2, size)
    raw[:, 1::2] &= 0x3F  # scales that are numbers
    np.testing.assert_array_equal(_encoding(kind).numbers(raw), gguf.dequantize(raw, known))
