"""Saved conversations: what may be replaced, what a full disk costs, what a file may claim."""

import dataclasses
import hashlib
import json
import os
import re
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import jllama
from jllama.chat.archive import archive, document
from jllama.chat.archive import cache as archive_cache
from jllama.chat.conversation import Conversation
from jllama.errors import JllamaError
from jllama.layers.cache import KVCache
from jllama.settings import GenerationSettings
from tests.support.tiny_checkpoint import END, TEMPLATE, write_tiny_model

SHORT = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def model(instruct):
    return instruct


@pytest.fixture
def talk(model):
    conversation = Conversation(model, max_seq_len=128)
    for text in ("Hello", "Who?"):
        "".join(conversation.ask(text, SHORT))
    return conversation


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.json"


def loaded(model, path, **changes):
    """A fresh conversation that has read the file, and what it remarked."""
    conversation = Conversation(model, **{"max_seq_len": 128, **changes})
    return conversation, archive.load(conversation, path)[1]


# Writing.


@pytest.mark.parametrize(
    "text",
    [
        "# jllama\n",
        '{"format": "jllama checkpoint 1"}',
        '["jllama conversation 1"]',
        '"jllama conversation 1"',
        '{"note": {"format": "jllama conversation 1"}}',
        '{"format": "jllama conversation 1", ',
        "",
        "[" * 100_000,
        "9" * 5000,
        "\udcff",
    ],
    ids=range(10),
)
def test_only_what_says_that_it_is_a_conversation_is_replaced(talk, path, text):
    data = text.encode("utf-8", "surrogateescape")
    path.write_bytes(data)
    with pytest.raises(JllamaError, match="exists and is no conversation: give another name"):
        archive.save(talk, SHORT, path)
    assert path.read_bytes() == data
    path.write_text(json.dumps({"more": "x" * 200, "format": document.FORMAT}))
    assert archive.save(talk, SHORT, path) == [path]


def test_special_files_are_neither_read_nor_replaced(talk, tmp_path):
    os.mkfifo(tmp_path / "talk.json")
    for act in (lambda path: archive.save(talk, SHORT, path), lambda path: archive.load(talk, path)):
        with pytest.raises(JllamaError, match=r"talk\.json is a FIFO, not a file: give the name of a file"):
            act(tmp_path / "talk.json")
        with pytest.raises(JllamaError, match="is a directory, not a file"):
            act(tmp_path)
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(JllamaError, match="loop is a link that leads to itself"):
        archive.save(talk, SHORT, tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()
    os.mkfifo(tmp_path / "other.json.safetensors")
    with pytest.raises(JllamaError, match="is no saved cache"):
        archive.save(talk, SHORT, tmp_path / "other.json", cache=True)
    for name in ("n" * 5000, "a\0b"):
        with pytest.raises(JllamaError, match="cannot use"):
            archive.save(talk, SHORT, tmp_path / name)


def test_a_save_that_is_refused_does_not_end_the_answer_that_is_being_read(talk, path):
    archive.cache_path(path).write_text("no cache")
    pieces = talk.ask("And?", SHORT)
    assert next(pieces)
    with pytest.raises(JllamaError, match="is no saved cache"):
        archive.save(talk, SHORT, path, cache=True)
    assert "".join(pieces)
    assert (talk.turns, talk.result.generated_tokens) == (3, 6)


def test_a_full_disk_is_one_error_and_both_old_files_stay(talk, path, monkeypatch):
    archive.save(talk, SHORT, path, cache=True)
    files = (path, archive.cache_path(path))
    before = [file.read_bytes() for file in files]
    "".join(talk.ask("More", SHORT))

    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device")

    for place, name in ((archive_cache, "save_file"), (archive, "write_document"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(JllamaError, match=r"cannot write .*talk.json: I/O error: No space left"):
                archive.save(talk, SHORT, path, cache=True)
        assert [file.read_bytes() for file in files] == before
        assert len(os.listdir(path.parent)) == 2
    assert talk.turns == 3


def test_what_could_not_be_read_again_is_not_written(talk, path, monkeypatch):
    archive.save(talk, SHORT, path)
    before = path.read_bytes()
    monkeypatch.setattr(document, "MAX_BYTES", len(before))
    assert archive.load(talk, path) == (SHORT, [])
    "".join(talk.ask("More", SHORT))
    with pytest.raises(JllamaError, match="undo turns or clear branches"):
        archive.save(talk, SHORT, path)
    assert path.read_bytes() == before


def test_a_cache_that_no_longer_fits_goes_with_the_next_save(talk, path):
    _, cache = archive.save(talk, SHORT, path, cache=True)
    archive.save(talk, SHORT, path)
    assert not cache.exists()
    save_file({"x": np.zeros(1)}, cache, metadata={"format": "pt"})  # no cache of ours
    archive.save(talk, SHORT, path)
    assert cache.exists()


def test_an_answer_that_is_being_read_ends_where_its_cache_is_saved(talk, model, path):
    stream = talk.ask("More", dataclasses.replace(SHORT, max_new_tokens=40, ignore_eos=True))
    next(stream)
    archive.save(talk, SHORT, path, cache=True)
    assert (talk.turns, next(stream, None)) == (3, None)
    again, remarks = loaded(model, path)
    assert (again.messages, again.context_used, remarks) == (talk.messages, talk.context_used, [])


def test_what_was_left_out_and_what_happens_next_time_are_kept(talk, model, path):
    talk.branch.dropped, talk.on_overflow = 1, "stop"
    archive.save(talk, SHORT, path)
    again, _ = loaded(model, path)
    assert (again.branch.dropped, again.on_overflow) == (1, "stop")


def test_the_transcript_and_the_settings_are_kept(model, path):
    talk = Conversation(model, max_seq_len=128, transcript="Q {user}\\nA {ai}\\n", system="Be kind.")
    "".join(talk.ask("Hello", SHORT))
    settings = dataclasses.replace(SHORT, stop=("a",), logit_bias={3: 1.5}, seed=4)
    archive.save(talk, settings, path)
    again = Conversation(model, max_seq_len=128)
    assert archive.load(again, path) == (settings, [])
    assert (again.transcript.source, again.transcript.stops) == (talk.transcript.source, ("\nQ",))
    assert again.branch.system == "Be kind."
    assert json.loads(path.read_text())["model"] == model.name


def test_files_are_readable_by_the_user_alone(talk, path):
    for file in archive.save(talk, SHORT, path, cache=True):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_blank_answer_at_the_limit_is_kept(model, path):
    """Nothing visible came, but the model did write: that is a turn, in the file too."""
    talk = Conversation(model, max_seq_len=128)
    newline = model.tokenizer.encode("\n")[0]
    settings = GenerationSettings(max_new_tokens=3, logit_bias={newline: 1000.0}, ignore_eos=True)
    assert "".join(talk.ask("Hello", settings)) == ""
    assert (talk.turns, talk.result.finish_reason) == (1, "length")
    archive.save(talk, settings, path)
    again, remarks = loaded(model, path)
    assert (again.messages, remarks) == (talk.messages, [])
    assert again.messages[1].token_ids == (newline,) * 3


# Reading.


def rewritten(path, change):
    """Changes the document of a saved conversation."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


FILE = """{
 "format": "jllama conversation 1",
 "model": "some/place",
 "written_by": "a later version",
 "settings": {"max_new_tokens": 6, "temperature": 0.5, "stop": ["\\udcff"],
  "logit_bias": {"5": -1}, "seed": null},
 "transcript": null,
 "on_overflow": "stop",
 "current": "other",
 "branches": {
  "main": {"system": null, "dropped": 0, "messages": [0, 1]},
  "other": {"system": "Be \\ud800 kind.", "dropped": 1, "messages": [0, 1, 2, 3], "colour": "blue"}
 },
 "messages": [
  {"role": "user", "content": "Hello"},
  {"role": "assistant", "content": "ab", "token_ids": [97, 98]},
  {"role": "user", "content": "Who?"},
  {"role": "assistant", "content": "c", "token_ids": null, "colour": "blue"}
 ],
 "cache_sha256": null
}"""


def test_a_file_of_this_format_goes_on_loading(model, path):
    path.write_text(FILE)
    talk = Conversation(model, max_seq_len=128)
    settings, _ = archive.load(talk, path)
    assert settings == GenerationSettings(
        max_new_tokens=6, temperature=0.5, stop=("\udcff",), logit_bias={5: -1.0}
    )
    assert (talk.current, talk.on_overflow, talk.transcript.source) == ("other", "stop", None)
    assert [message.content for message in talk.messages] == ["Hello", "ab", "Who?", "c"]
    assert (talk.branch.system, talk.branch.dropped) == ("Be \ud800 kind.", 1)
    assert talk.branches["main"].messages == talk.messages[:2]
    archive.save(talk, settings, path)
    again, _ = loaded(model, path)
    assert again.messages == talk.messages


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda d: d["messages"][2].update(content=5), r"`\$\.messages\[2\]\.content`"),
        (lambda d: d["messages"][2].pop("content"), r"`content` - at `\$\.messages\[2\]`"),
        (lambda d: d["messages"][1].update(token_ids=[1, "2"]), r"`\$\.messages\[1\]\.token_ids\[1\]`"),
        (lambda d: d["branches"]["main"].update(dropped=-1), r"`\$\.branches\[\.\.\.\]\.dropped`"),
        (lambda d: d.update(current=None), r"`\$\.current`"),
        (lambda d: d.pop("branches"), "`branches`"),
        (lambda d: d["settings"].update(stop="end"), "stop should be a JSON list"),
        (lambda d: d["settings"].update(top_p=2), "settings: top_p=2 must be"),
        (lambda d: d["branches"].update({f"b{n}": d["branches"]["main"] for n in range(100)}), "branches`"),
        (lambda d: d["branches"].update({"\ud800": d["branches"]["main"]}), "branch name"),
        (lambda d: d["messages"][0].update({"\ud800": 1}), "no Unicode text"),
    ],
)
def test_the_field_that_is_damaged_is_named(talk, path, change, place):
    archive.save(talk, SHORT, path)
    rewritten(path, change)
    with pytest.raises(JllamaError, match=rf"talk\.json is damaged or no saved conversation: .*{place}"):
        archive.load(talk, path)


LONG = "x" * 10**6
DAMAGE = {
    "a bias beyond float": lambda d: d["settings"].update(logit_bias={"5": 10**400}),
    "a bias that is text": lambda d: d["settings"].update(logit_bias={"5": "1"}),
    "a bias that is true": lambda d: d["settings"].update(logit_bias={"5": True}),
    "biases in a list": lambda d: d["settings"].update(logit_bias=[5]),
    "a huge temperature": lambda d: d["settings"].update(temperature=10**400),
    "a huge seed": lambda d: d["settings"].update(seed=10**400),
    "a setting of text": lambda d: d["settings"].update(top_k=LONG),
    "settings with long names": lambda d: d["settings"].update({LONG: 1}),
    "message number -1": lambda d: d["branches"]["main"]["messages"].__setitem__(1, -1),
    "one message too many": lambda d: d["branches"]["main"].update(messages=[0, 1] * 3),
    "message true": lambda d: d["branches"]["main"]["messages"].__setitem__(1, True),
    "dropped true": lambda d: d["branches"]["main"].update(dropped=True),
    "a turn dropped that is not there": lambda d: d["branches"]["main"].update(dropped=3),
    "a long role": lambda d: d["messages"][0].update(role=LONG),
    "a list as role": lambda d: d["messages"][0].update(role=[1]),
    "a long branch": lambda d: d.update(current=LONG),
    "a long policy": lambda d: d.update(on_overflow=LONG),
    "a fraction as id": lambda d: d["messages"][1].update(token_ids=[1.0]),
    "a failing transcript": lambda d: d.update(transcript="{{ raise_exception('never') }}"),
    "a transcript that fails on answers": lambda d: d.update(
        transcript="{% for m in messages %}{{ raise_exception('no') if m.role == 'assistant' }}{% endfor %}"
    ),
    "a transcript that needs a system message": lambda d: d.update(
        transcript="{{ messages[3].content }}{{ 1 // 0 }}"
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_short_line_and_changes_nothing(talk, path, kind):
    archive.save(talk, SHORT, path)
    rewritten(path, DAMAGE[kind])
    branches, transcript = talk.branches, talk.transcript
    with pytest.raises(JllamaError) as caught:
        archive.load(talk, path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert talk.branches is branches
    assert talk.transcript is transcript


def test_biases_of_tokens_that_the_model_lacks_are_left_out(talk, model, path):
    archive.save(talk, dataclasses.replace(SHORT, logit_bias={5: 1.0, 258: 1.0, 10**18: 2.0, -1: 3.0}), path)
    settings, (remark,) = archive.load(talk, path)
    assert "the logit_bias of 3 tokens" in remark
    assert settings.logit_bias == {5: 1.0}
    assert "".join(talk.ask("Go on", settings)) is not None


def test_a_template_that_takes_no_system_message_is_a_remark(talk, tmp_path, path):
    talk.set_system("Be kind.")
    archive.save(talk, SHORT, path)
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    model = jllama.load(write_tiny_model(tmp_path / "other", template=refuses), dtype="float32")
    again, (remark,) = loaded(model, path)
    assert "/system - removes it" in remark
    again.set_system(None)
    assert "".join(again.ask("Go on", SHORT)) is not None


def cache_with(path, **changes):
    """Changes tensors of the saved cache, and lets the document agree that this is its cache."""
    file = archive.cache_path(path)
    with safetensors.safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    for name, change in changes.items():
        tensors[name.replace("_", ".")] = change(tensors.get(name.replace("_", ".")))
    kept = {name: array for name, array in tensors.items() if array is not None}
    save_file(kept, file, metadata=metadata)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewritten(path, lambda data: data.update(cache_sha256=digest))


def test_a_question_with_token_ids_is_no_changed_answer(talk, model, path):
    archive.save(talk, SHORT, path)
    rewritten(path, lambda d: d["messages"][0].update(token_ids=[5]))
    again, remarks = loaded(model, path)
    assert (again.messages, remarks) == (talk.messages, [])
    rewritten(path, lambda d: d["messages"][1].update(content="mine"))
    _, (remark,) = loaded(model, path)
    assert remark.startswith("the text of 1 answer was changed or comes from")


DIGITS = '"logit_bias": {"%s": 1}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"logit_bias": {"x": 1}', "logit_bias names 'x', which is no token id"),
        (DIGITS % ("9" * 5000), "logit_bias names '9999"),
        ('"logit_bias": {"5": %s}' % ("9" * 5000), "a number in it has thousands of digits"),
    ],
    ids=["no number", "a long id", "a long bias"],
)
def test_damaged_numbers_are_explained_in_our_words(talk, path, text, words):
    archive.save(talk, SHORT, path)
    path.write_text(path.read_text().replace('"logit_bias": {}', text))
    with pytest.raises(JllamaError, match=words) as caught:
        archive.load(talk, path)
    assert "int" not in str(caught.value).removeprefix(str(path))


def first(value):
    def change(array):
        array = array.copy()
        array.flat[0] = value
        return array

    return change


CACHES = {
    "ids of another kind": dict(ids=lambda a: a.astype(np.int64)),
    "ids with an axis more": dict(ids=lambda a: a[None]),
    "no ids": dict(ids=lambda a: a[:0]),
    "a negative id": dict(ids=first(-1)),
    "an id that the model lacks": dict(ids=first(258)),
    "more ids than rows": dict(ids=lambda a: np.concatenate([a, a])),
    "one row for all": dict(keys_0=lambda a: a[:, :, :1]),
    "one head for all": dict(keys_1=lambda a: a[:, :1]),
    "one number for all": dict(values_0=lambda a: a[..., :1]),
    "a batch of two": dict(values_1=lambda a: np.concatenate([a, a])),
    "an axis less": dict(values_1=lambda a: a[0]),
    "another dtype": dict(keys_0=lambda a: a.astype(np.float16)),
    "integers": dict(keys_0=lambda a: a.astype(np.int32)),
    "no number": dict(values_0=first(np.nan)),
    "infinite": dict(keys_1=first(-np.inf)),
    "a layer missing": dict(keys_1=lambda a: None),
    "a layer more": dict(keys_2=lambda a: np.zeros((1,), np.float32)),
}


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_of_the_wrong_kind_or_shape_is_not_used(talk, model, path, kind):
    archive.save(talk, SHORT, path, cache=True)
    cache_with(path, **CACHES[kind])
    again, (remark,) = loaded(model, path)
    assert "the saved cache is not used: " in remark
    assert ("holds 0 tokens and max_seq_len is" in remark) == (kind == "no ids")
    assert len(remark) < 400 + len(str(path))
    assert (again.context_used, again.messages) == (0, talk.messages)
    assert "".join(again.ask("Go on", SHORT)) == "".join(talk.ask("Go on", SHORT))


def test_an_unchanged_cache_is_used_after_the_same_treatment(talk, model, path):
    archive.save(talk, SHORT, path, cache=True)
    cache_with(path)
    again, remarks = loaded(model, path)
    assert (again.context_used, remarks) == (talk.context_used, [])


def test_a_cache_that_does_not_fit_or_is_no_file_is_not_used(talk, model, path, monkeypatch):
    archive.save(talk, SHORT, path, cache=True)
    for size in (16, talk.context_used - 1):
        assert f"max_seq_len is {size}" in loaded(model, path, max_seq_len=size)[1][0]
    assert loaded(model, path, max_seq_len=talk.context_used)[1] == []
    monkeypatch.setattr(
        archive_cache, "check_cache", lambda *_, **__: (_ for _ in ()).throw(JllamaError("no room"))
    )
    assert "no room" in loaded(model, path)[1][0]
    file = archive.cache_path(path)
    file.unlink()
    os.mkfifo(file)
    assert "is not a file" in loaded(model, path)[1][0]
    file.unlink()
    os.symlink("/dev/zero", file)
    assert "is not a file" in loaded(model, path)[1][0]
    file.unlink()
    file.touch()
    os.truncate(file, 2**40)  # sparse: hashing it would take an hour
    assert "is damaged" in loaded(model, path)[1][0]


def test_a_cache_with_another_bit_is_not_used(talk, model, path):
    """Its last number is as good as the one that was saved: only the hash tells."""
    _, file = archive.save(talk, SHORT, path, cache=True)
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)
    again, (remark,) = loaded(model, path)
    assert "is damaged, or of another conversation" in remark
    assert again.context_used == 0


def test_an_answer_may_hold_the_end_token_itself(talk, model, path):
    """With ignore_eos the model's own end tokens stay in its answer."""
    end = model.tokenizer.encode(END, parse_special=True)
    settings = GenerationSettings(max_new_tokens=3, logit_bias={end[0]: 1000.0}, ignore_eos=True)
    "".join(talk.ask("End", settings))
    archive.save(talk, settings, path)
    again, remarks = loaded(model, path)
    assert (again.messages, remarks) == (talk.messages, [])


def test_a_template_that_only_takes_questions_is_no_failing_one(talk, model, path):
    archive.save(talk, SHORT, path)
    source = "{{ raise_exception('ask') if messages[-1].role != 'user' }}{{ messages[-1].content }}"
    rewritten(path, lambda d: d.update(transcript=source))
    again, _ = loaded(model, path)
    assert again.transcript.source == source


@pytest.mark.parametrize(
    "error", [OSError("odd"), safetensors.SafetensorError("odd"), ValueError("odd"), IndexError("odd")]
)
def test_whatever_is_wrong_with_a_saved_cache_is_a_remark(talk, model, path, monkeypatch, error):
    archive.save(talk, SHORT, path, cache=True)

    def read(*_):
        raise error

    monkeypatch.setattr(archive_cache, "_read", read)
    again, (remark,) = loaded(model, path)
    how = "cannot read {}: odd" if isinstance(error, OSError) else "{} is damaged: odd"
    assert remark == f"the saved cache is not used: {how.format(archive.cache_path(path))}"
    assert (again.context_used, again.messages) == (0, talk.messages)


@pytest.mark.parametrize(
    ("name", "shown"), [("m" * 80 + "n", "m" * 80), ("a\x1b[2J", r"'a\\x1b\[2J'"), (None, "unknown")]
)
def test_the_model_that_a_cache_names_is_shown_cut_and_escaped(talk, model, path, monkeypatch, name, shown):
    archive.save(talk, SHORT, path, cache=True)
    metadata = {"fingerprint": "another"} | ({} if name is None else {"model": name})
    monkeypatch.setattr(archive_cache, "_metadata", lambda path: metadata)
    assert re.search(rf"another model, dtype or version of jllama \({shown}\)$", loaded(model, path)[1][0])


@pytest.mark.parametrize("held", ["2", "a\x1b[2J"])
def test_a_cache_of_another_number_of_devices_is_not_used(talk, model, path, monkeypatch, held):
    archive.save(talk, SHORT, path, cache=True)
    kept = archive_cache._metadata(archive.cache_path(path))
    assert kept["devices"] == "1"
    monkeypatch.setattr(archive_cache, "_metadata", lambda path: kept | {"devices": held})
    again, (remark,) = loaded(model, path)
    shown = held if held.isprintable() else repr(held)
    assert remark.endswith(f".safetensors was computed with tensor_parallel={shown}, and here it is 1")
    assert (again.context_used, again.messages) == (0, talk.messages)
    monkeypatch.setattr(archive_cache, "_metadata", lambda path: {"fingerprint": kept["fingerprint"]})
    assert loaded(model, path)[1] == []  # files of before do not say it


def test_several_processes_save_no_cache_and_use_none(talk, model, path, monkeypatch):
    archive.save(talk, SHORT, path, cache=True)
    kept = path.read_text()
    monkeypatch.setattr("jllama.engine.leading.followed", lambda: True)
    words = "^a chat of several processes saves no cache: save without it$"
    with pytest.raises(JllamaError, match=words):
        archive.save(talk, SHORT, path, cache=True)
    assert path.read_text() == kept
    words = "the saved cache is not used: a chat of several processes reads its conversation anew"
    assert loaded(model, path)[1] == [words]


def test_behind_the_rows_that_were_saved_there_are_zeros():
    """What stands there is masked, but not a number times nought would be none."""
    np.full((1, 2, 8, 4), np.nan, np.float32)  # NumPy hands out this memory again
    saved = np.ones((1, 2, 3, 4), np.float32)
    rows = np.asarray(archive_cache._padded(saved, np.zeros((1, 2, 8, 4), np.float32)))
    np.testing.assert_array_equal(rows, np.pad(saved, [(0, 0), (0, 0), (0, 5), (0, 0)]))


@pytest.mark.parametrize(("cache", "ids"), [(None, [5]), ("cache", [])])
def test_a_cache_that_holds_nothing_is_none_to_save(tmp_path, cache, ids):
    session = SimpleNamespace(snapshot=lambda: cache, ids=ids)
    talk = SimpleNamespace(branch=SimpleNamespace(session=session))
    with pytest.raises(JllamaError, match="there is no cache yet: ask something first"):
        archive_cache.write(talk, tmp_path / "c")


def test_a_cache_of_the_whole_context_may_be_read_again(model, tmp_path):
    """The largest there can be, with its ids and its header."""
    length = model.config.context_length
    whole = KVCache.empty(model.config, batch=1, max_len=length, dtype=model.dtype)
    tensors = {name: np.asarray(array) for name, array in archive_cache._named(whole).items()}
    save_file(tensors | {"ids": np.zeros((length,), np.int32)}, tmp_path / "c", metadata={"model": "m" * 100})
    assert archive_cache._most_bytes(model) >= (tmp_path / "c").stat().st_size
