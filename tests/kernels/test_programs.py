"""Programs under keys of our own: what is in a key, what is read again, and what is not."""

import dataclasses
import functools
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.kernels.programs import key, program, shelf, store
from jllama.kernels.programs.key import UntoldError, of_arrays, told
from jllama.kernels.programs.program import Program, compiled_anew
from jllama.kernels.target import Target
from jllama.machine import devices
from jllama.machine.native import kept

COMPILED = []


def tiny(**fields):
    sizes = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2)
    return ModelConfig(**sizes | dict(num_attention_heads=2, num_key_value_heads=1, head_dim=4) | fields)


def scaled(factor, x, y, *, how="add"):
    return (x * factor + y if how == "add" else x * factor - y), x


def made(static=1, **options):
    return Program(scaled, static, static_argnums=0, static_argnames="how", donate_argnums=2, **options)


def arrays(*shape, dtype=np.float32):
    return np.ones(shape, dtype), jnp.full(shape, 2, dtype)


@pytest.fixture
def keeping(monkeypatch, tmp_path):
    """Programs are kept in an empty cache. Called, it is as if a process began: what was written is there."""
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "keeps_programs", lambda: True)
    monkeypatch.setattr(program, "surroundings", lambda: "here")

    def compiled(lowered):
        COMPILED.append("anew")
        return compiled_anew(lowered)

    monkeypatch.setattr(program, "compiled_anew", compiled)

    def begin():
        for thread in threading.enumerate():
            if thread.name == "jllama program":
                thread.join()
        COMPILED.clear()
        monkeypatch.setattr(program, "SHELF", shelf.Shelf())

    begin()
    yield begin
    begin()


def files():
    return sorted(store.directory().glob("*.program"))


# Keys.


def closing_over(value, default=1):
    def function(x, y=default):
        return x, y, value

    return function


@dataclasses.dataclass
class Pair:
    one: object
    other: object = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
    one: object
    other: int = dataclasses.field(default=2, metadata=dict(static=True))


class Strange:
    pass


DIFFERENT = [
    *(None, True, 1, 1.0, -0.0, 0.0, float("nan"), "1", b"1", 1 + 0j, (1,), [1], (), ((1,),), (1, 1)),
    *({"a": 1}, {"a": "1"}, {"b": 1}, {"a": 1, "b": 2}, np.dtype("int8"), np.dtype("int16"), "int8", int),
    *(Pair(1), Pair("1"), Pair(1, 3), Pair(Pair(1)), Target("cpu"), Target("cpu", False), Target("gpu")),
    *(closing_over(1), closing_over(2), closing_over(1, 2), closing_over(closing_over(1)), closing_over),
    *(functools.partial(closing_over, 1), functools.partial(closing_over, value=1)),
    *(jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("a"), tiny(), tiny(rms_norm_eps=1.0000001e-5)),
]


def test_what_differs_is_told_differently():
    words = [told(value) for value in DIFFERENT]
    assert len(set(words)) == len(words)
    assert told([Pair(closing_over(1)), tiny()]) == told([Pair(closing_over(1)), tiny()])


@pytest.mark.parametrize(
    "value", [Strange(), np.ones(2), {1}, 1j * np.float32(1), np.int32(1), os.environ, threading.Lock(), len]
)
@pytest.mark.parametrize("inside", [lambda v: v, lambda v: [Pair(v)], closing_over, lambda v: {"a": v}])
def test_what_may_hold_more_than_is_told_has_no_key(value, inside):
    with pytest.raises(UntoldError):
        told(inside(value))


def test_arrays_differ_by_structure_shape_and_dtype_alone():
    x = np.ones((2, 3), np.float32)
    others = [x[:1], x[0], x.astype(np.int32), [x], (x,), {"a": x}, [x, x], jnp.asarray(1.0), Tree(x)]
    seen = [of_arrays(tree) for tree in (x, *others, Tree(x, 3), None)]
    assert len(set(seen)) == len(seen) == len({str(each) for each in seen})
    for same in (x + 1, jnp.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), jax.device_put(x)):
        assert of_arrays(same) == seen[0]


@pytest.fixture
def around(monkeypatch):
    """What surrounds programs, found anew at each call; sources are read once."""
    digest = key.sources(key.PACKAGE, float("inf"))
    monkeypatch.setattr(key, "sources", lambda *_: digest)
    monkeypatch.setattr(key, "load", lambda: "no kernels")
    return key._all_surroundings.__wrapped__


def test_nothing_is_kept_without_a_part_of_the_kernels(monkeypatch):
    """The next process may compile it, and would run the program that this one made without."""
    monkeypatch.setattr(key, "_all_surroundings", lambda: "here")
    assert key.surroundings() == "here"
    monkeypatch.setattr(key, "broken", lambda: True)
    with pytest.raises(UntoldError):
        key.surroundings()


CHANGES = {
    "sources": lambda patch: patch.setattr(key, "sources", lambda *_: "others"),
    "Python": lambda patch: patch.setattr(key, "sys", SimpleNamespace(version="4")),
    "jaxlib": lambda patch: patch.setattr(key, "version", lambda name: "9" * (name == "jaxlib")),
    "processor": lambda patch: patch.setattr(key, "processor", lambda: "flags: few"),
    "cores": lambda patch: patch.setattr(key.os, "cpu_count", lambda: 77),
    "threads": lambda patch: patch.setattr(key, "threads", lambda: 77),
    "system": lambda patch: patch.setattr(key.platform, "platform", lambda: "another"),
    "devices": lambda patch: patch.setattr(key.jax, "devices", lambda: [key.jax.local_devices()[0]] * 2),
    "XLA_FLAGS": lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
    "JLLAMA_ISA": lambda patch: patch.setenv("JLLAMA_ISA", "avx2"),
    "JLLAMA_KERNELS": lambda patch: patch.setenv("JLLAMA_KERNELS", "0"),
    "library": lambda patch: patch.setattr(key, "load", lambda: SimpleNamespace(_name="/x/cpu-1-2.so")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_surrounds_a_program_is_in_its_key(around, monkeypatch, change):
    before = around()
    assert around() == before
    CHANGES[change](monkeypatch)
    assert around() != before


def test_so_are_settings_of_jax_but_not_where_caches_are(around, monkeypatch):
    before = around()
    monkeypatch.setenv("JLLAMA_CACHE", "/elsewhere")
    assert around() == before
    with pytest.MonkeyPatch.context() as patch:
        values = {**jax.config.values, "jax_default_matmul_precision": "float32"}
        patch.setattr(key, "jax", SimpleNamespace(config=SimpleNamespace(values=values), devices=jax.devices))
        assert around() != before
    values = {**jax.config.values, "jax_compilation_cache_dir": "/elsewhere"}
    monkeypatch.setattr(
        key, "jax", SimpleNamespace(config=SimpleNamespace(values=values), devices=jax.devices)
    )
    assert around() == before


def test_sources_are_known_by_content_and_place(tmp_path):
    def digest(**texts):
        for path in tmp_path.rglob("*.py"):
            path.unlink()
        for name, text in texts.items():
            place = tmp_path.joinpath(*name.split("_")).with_suffix(".py")
            place.parent.mkdir(exist_ok=True)
            place.write_text(text)
        return key.sources(tmp_path, float("inf"))

    contents = [
        dict(a="1"),
        dict(a="2"),
        dict(b="1"),
        dict(a="1", b=""),
        dict(a="", b="1"),
        dict(c_a="1"),
        {},
    ]
    digests = [digest(**texts) for texts in contents]
    assert len(set(digests)) == len(digests)
    assert digest(a="1") == digests[0]


def test_sources_that_changed_when_the_process_had_begun_may_not_be_what_runs(tmp_path):
    (tmp_path / "a.py").write_text("1")
    os.utime(tmp_path / "a.py", (1000, 1000))
    assert key.sources(tmp_path, 1001.5) == key.sources(tmp_path, 5000)
    for began in (0.0, 999, 1000.5):
        with pytest.raises(UntoldError, match=r"a\.py changed"):
            key.sources(tmp_path, began)


# Programs.


def test_what_one_process_compiled_the_next_one_does_not(keeping):
    x, y = arrays(3)
    (first, _), donated = made()(4.0, x, y), y
    assert COMPILED == ["anew"]
    assert donated.is_deleted()
    keeping()
    run = made()
    for _ in range(2):
        x, y = arrays(3)
        again, unchanged = run(4.0, x, y)
        np.testing.assert_array_equal(again, first)
        np.testing.assert_array_equal(unchanged, x)
        assert y.is_deleted()
    assert COMPILED == []
    assert len(files()) == 1
    assert files()[0].stat().st_mode & 0o077 == 0


def test_each_that_differs_is_another_one(keeping):
    def run(function=scaled, factor=4.0, given=None, how=None, **options):
        jitted = dict(static_argnums=0, static_argnames="how") | options
        named = {"how": how} if how else {}
        return Program(function, 1, **jitted)(factor, *(given or arrays(3)), **named)[0]

    def more(scale):
        def scaled(factor, x, y, *, how="add"):
            return x * factor * scale + y, x

        return scaled

    ways = [
        (dict(), 6.0),
        (dict(factor=5.0), 7.0),
        (dict(factor=4), 6),
        (dict(how="take"), 2.0),
        (dict(how="add"), 6.0),
        (dict(given=arrays(4)), 6.0),
        (dict(given=arrays(3, dtype=np.int32), factor=4), 6),
        (dict(function=more(1)), 6.0),
        (dict(function=more(2)), 10.0),
        (dict(inline=True), 6.0),
    ]
    for _ in range(2):
        for way, value in ways:
            np.testing.assert_array_equal(run(**way), np.full(way.get("given", arrays(3))[0].shape, value))
        keeping()
        assert len(files()) == len(ways)


def test_what_has_no_key_is_compiled_as_ever(keeping):
    strange = Program(functools.partial(scaled, how=Strange()), 1, static_argnums=0)
    np.testing.assert_array_equal(strange(4.0, *arrays(2))[0], [2.0, 2.0])
    strange.prepare(4.0, *arrays(2))
    assert files() == []


def test_nothing_is_kept_where_programs_are_not(keeping, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "keeps_programs", lambda: False)
    run = made()
    np.testing.assert_array_equal(run(4.0, *arrays(2))[0], [6.0, 6.0])
    run.prepare(4.0, *arrays(2))
    shelf.expect("anything")
    assert not (tmp_path / "cache").exists()


def test_what_was_prepared_from_shapes_runs(keeping):
    shapes = [jax.ShapeDtypeStruct((3,), np.float32)] * 2
    made().prepare(4.0, *shapes)
    keeping()
    run = made()
    run.prepare(4.0, *shapes)
    np.testing.assert_array_equal(run(4.0, *arrays(3))[0], [6.0] * 3)
    assert COMPILED == []


def damaged_by(damage):
    def change(path, other):
        path.write_bytes(damage(path.read_bytes()))

    return change


DAMAGES = {
    "nothing": damaged_by(lambda data: b""),
    "cut": damaged_by(lambda data: data[:-1]),
    "begun": damaged_by(lambda data: data[:20]),
    "longer": damaged_by(lambda data: data + b"1"),
    "a bit": damaged_by(lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
    "the digest": damaged_by(
        lambda data: data[: len(store.MAGIC)] + bytes(32) + data[len(store.MAGIC) + 32 :]
    ),
    "an older form": damaged_by(lambda data: data.replace(b"program 1", b"program 0")),
    "another thing": damaged_by(lambda data: store._sealed(b"no pickle")),
    "another program": lambda path, other: path.write_bytes(other.read_bytes()),
    "a directory": lambda path, other: (path.unlink(), path.mkdir()),
    "too large": lambda path, other: os.truncate(path, store.LARGEST + 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_entry_that_is_damaged_or_foreign_is_made_anew(keeping, damage):
    made()(4.0, *arrays(3))
    keeping()
    (path,) = files()
    made()(5.0, *arrays(3))
    keeping()
    (other,) = set(files()) - {path}
    sound = path.read_bytes()
    DAMAGES[damage](path, other)
    np.testing.assert_array_equal(made()(4.0, *arrays(3))[0], [6.0] * 3)
    assert COMPILED == ["anew"]
    keeping()
    if damage == "a directory":  # nobody of ours made it
        return
    assert store._unsealed(path.read_bytes()) is not None
    assert abs(len(path.read_bytes()) - len(sound)) < 100
    made()(4.0, *arrays(3))
    assert COMPILED == []


def test_a_program_of_another_structure_is_not_taken_whatever_its_key_says(keeping, monkeypatch):
    monkeypatch.setattr(program, "of_arrays", lambda tree: "arrays")
    added = Program(lambda x: jax.tree.leaves(x)[0] + 1)
    added([np.ones(2, np.float32)])
    keeping()
    np.testing.assert_array_equal(Program(added._parts[0])({"a": np.ones(2, np.float32)}), [2.0, 2.0])


def test_a_disk_that_takes_nothing_costs_nothing(keeping, monkeypatch):
    def put(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store, "_put", put)
    np.testing.assert_array_equal(made()(4.0, *arrays(3))[0], [6.0] * 3)
    keeping()
    assert files() == []
    np.testing.assert_array_equal(made()(4.0, *arrays(3))[0], [6.0] * 3)
    assert COMPILED == ["anew"]


def test_a_full_disk_leaves_no_half_file(keeping, monkeypatch):
    made()(4.0, *arrays(3))
    keeping()
    monkeypatch.setattr(store.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    made()(5.0, *arrays(3))
    keeping()
    assert [path.suffix for path in store.directory().iterdir() if path.suffix != store.ORDER] == [".program"]


def test_a_directory_that_others_can_write_to_is_refused(keeping):
    place = store.directory()
    place.chmod(0o777)
    with pytest.raises(JllamaError, match="others can write to the cache directory"):
        made()(4.0, *arrays(3))
    place.chmod(0o700)


def test_a_program_is_not_written_if_it_is_too_large(keeping, monkeypatch):
    monkeypatch.setattr(store, "LARGEST", 100)
    made()(4.0, *arrays(3))
    keeping()
    assert files() == []


def test_several_processes_write_the_same_program_at_once(keeping):
    """Whoever reads meanwhile finds a whole one or none."""
    compiled = made()._program((4.0, *arrays(3)), {})
    seen = []

    def work():
        store.write("a key", compiled)
        seen.append(store.read("a key"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in seen:
        np.testing.assert_array_equal(found(*arrays(3))[0], [6.0] * 3)
    assert len([path for path in store.directory().iterdir() if path.name.startswith("writing-")]) == 0


class Lowered:
    """Whose programs JAX's own cache has, unless they are asked for with an option that no entry has."""

    def __init__(self, held):
        self.held, self.asked = held, []

    def compile(self, options=None):
        self.asked.append(options)
        if self.held and options is None:
            jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        return f"program {len(self.asked)}"


def test_what_jax_s_own_cache_held_is_compiled_here(keeping):
    """XLA can't write down again what it has read."""
    program._listening.cache_clear()  # another test may have silenced all who listen to JAX
    new, held = Lowered(False), Lowered(True)
    assert (compiled_anew(new), new.asked) == ("program 1", [None])
    assert compiled_anew(held) == "program 2"
    assert held.asked[0] is None
    assert list(held.asked[1]) == [program.NO_EFFECT]
    lowered = jax.jit(lambda x: x + 1).lower(np.ones(2, np.float32))
    np.testing.assert_array_equal(lowered.compile(held.asked[1])(np.ones(2, np.float32)), [2.0, 2.0])


def test_old_programs_go(keeping, monkeypatch):
    place = store.directory()
    ages = {"old.program": kept.UNUSED + 60, "old.order": kept.UNUSED + 60, "a.program": 50, "b.program": 40}
    ages |= {"c.order": 30, "writing-1": 7200, "writing-2": 60, "something": kept.UNUSED * 2}
    for name, age in ages.items():
        (place / name).write_bytes(b"1234")
        os.utime(place / name, (store.time.time() - age,) * 2)
    store.sweep(place)
    stays = {"a.program", "b.program", "c.order", "writing-2", "something"}
    assert {path.name for path in place.iterdir()} == stays
    monkeypatch.setattr(store, "MOST", 2)
    store.sweep(place)
    assert {path.name for path in place.iterdir()} == stays - {"a.program"}
    monkeypatch.setattr(store, "MOST_BYTES", 7)
    store.sweep(place)
    assert {path.name for path in place.iterdir()} == stays - {"a.program", "b.program"}


def test_a_program_in_use_does_not_go(keeping):
    made()(4.0, *arrays(3))
    keeping()
    os.utime(files()[0], (1000, 1000))
    made()(4.0, *arrays(3))
    assert files()[0].stat().st_mtime > 10_000


# What a start will ask for.


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """The keys that are read, in order; what is read is the key."""
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    read = []
    monkeypatch.setattr(store, "read", lambda key: read.append(key) or f"program {key}")
    return read


def test_the_next_start_loads_what_the_last_one_asked_for(reads):
    first = shelf.Shelf()
    first.load("a start")
    for name in "abc":
        assert first.take(name) == f"program {name}"
    del reads[:]
    second = shelf.Shelf()
    second.load("a start")
    assert reads == ["a", "b", "c"]
    assert [second.take(name) for name in "bca"] == ["program b", "program c", "program a"]
    assert reads == ["a", "b", "c"]
    other = shelf.Shelf()
    other.load("another start")
    assert reads == ["a", "b", "c"]


def test_what_was_asked_for_before_is_not_loaded_again(reads):
    store.write_order("a start", ["a", "b"])
    one = shelf.Shelf()
    assert one.take("b") == "program b"
    one.load("a start")
    assert reads == ["b", "a"]


def test_an_order_has_what_was_asked_for_last_and_stays_if_there_is_nothing_new(reads, monkeypatch):
    store.write_order("a start", ["a", "b", "c"])
    written = []
    monkeypatch.setattr(store, "write_order", lambda key, keys: written.append((key, keys)))
    one = shelf.Shelf()
    one.load("a start")
    one.take("b")
    assert written == []
    one.take("d")
    assert written == [("a start", ["b", "d", "a", "c"])]
    for name in "efghijklm":
        one.take(name)
    assert len(written[-1][1]) == shelf.MOST
    assert written[-1][1] == list("bdefghij")
    assert len(written) == 1 + 6


def test_whoever_asks_waits_for_the_thread_that_is_at_it(reads, monkeypatch):
    begun, go_on, found = threading.Event(), threading.Event(), []

    def read(key):
        begun.set()
        go_on.wait()
        reads.append(key)
        return "program"

    monkeypatch.setattr(store, "read", read)
    store.write_order("a start", ["a"])
    one = shelf.Shelf()
    loading = threading.Thread(target=one.load, args=("a start",))
    loading.start()
    begun.wait()
    asking = threading.Thread(target=lambda: found.append(one.take("a")))
    asking.start()
    go_on.set()
    asking.join()
    loading.join()
    assert (found, reads) == (["program"], ["a"])


def test_an_order_that_is_damaged_is_none(reads):
    store.write_order("a start", ["a"])
    (path,) = Path(store.directory()).glob("*.order")
    path.write_bytes(path.read_bytes()[:-2])
    assert store.read_order("a start") == []
    one = shelf.Shelf()
    one.load("a start")
    one.take("b")
    assert store.read_order("a start") == ["b"]


def test_a_start_is_known_by_its_values_and_what_surrounds_it(monkeypatch):
    loaded = []
    monkeypatch.setattr(devices, "keeps_programs", lambda: True)
    monkeypatch.setattr(shelf, "surroundings", lambda: "here")
    monkeypatch.setattr(shelf.SHELF, "load", loaded.append)
    monkeypatch.setattr(threading, "Thread", lambda target, **_: SimpleNamespace(start=target))
    shelf.expect(tiny(), "float32")
    shelf.expect(tiny(), "float32")
    shelf.expect(tiny(vocab_size=40), "float32")
    shelf.expect(Strange())
    monkeypatch.setattr(shelf, "surroundings", lambda: "there")
    shelf.expect(tiny(), "float32")
    assert len(loaded) == 4
    assert len(set(loaded)) == 3
