"""With what a chat begins: the model's own sampling, flags, a saved conversation; and with which prompt."""

import json

import pytest

import jllama
from jllama.chat.archive import archive
from jllama.chat.conversation import Conversation
from jllama.chat.generation_config import FALLBACK, conversation_sampling
from jllama.settings import GenerationSettings
from tests.support.scripts_helpers import ROOT

GREEDY = GenerationSettings(max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def model(instruct_dir):
    return instruct_dir


@pytest.fixture
def answer(server, model):
    """The token ids of a chat's answer, and what was said on stderr."""

    def run(*flags, seed=1):
        shared = (f"--model={model}", "--dtype=float32", "--json", "--ignore_eos", "--max_new_tokens=12")
        done = server.run("chat.py", *shared, f"--seed={seed}", *flags, "--message=Hello")
        assert done.code == 0, done.err
        return json.loads(done.out)["token_ids"], done.err

    return run


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, FALLBACK),
        ({"eos_token_id": 2, "_from_model_config": True}, FALLBACK),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.9, "top_k": 50}, {"temperature": 0.9, "top_k": 50}),
        ({"top_p": 0.6}, {"temperature": 1.0, "top_p": 0.6}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        (
            {"do_sample": False, "top_p": 0.5, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
        ),
        ({"repetition_penalty": 1.1}, {**FALLBACK, "repetition_penalty": 1.1}),
        ({"do_sample": None, "temperature": None, "min_p": None}, FALLBACK),
    ],
)
def test_a_conversation_is_sampled_as_the_checkpoint_says(given, wanted):
    assert conversation_sampling(given) == (wanted, [])


@pytest.mark.parametrize("bad", [{"top_k": -1}, {"top_k": "many"}, {"temperature": 1e9}, {"top_p": [0.9]}])
def test_values_that_can_not_be_used_are_left_out_and_said(bad):
    settings, (remark,) = conversation_sampling({"do_sample": True, "min_p": 0.1, **bad})
    assert settings == {"temperature": 1.0, "min_p": 0.1}
    assert remark.startswith("generation_config.json: ")


def test_a_chat_draws_unless_the_model_or_a_flag_says_otherwise(answer, model, server):
    drawn = [answer(seed=seed)[0] for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    greedy = answer("--temperature=0")[0]
    assert answer("--temperature=0", seed=2)[0] == greedy
    file = model / "generation_config.json"
    file.write_text(json.dumps({"do_sample": False, "top_k": -1}))
    try:
        ids, said = answer(seed=2)
        assert ids == greedy
        assert said.count("warning: generation_config.json: top_k=-1") == 1
        file.write_text(json.dumps({"do_sample": True, "temperature": 100.0, "top_k": 1}))
        assert answer(seed=2) == (greedy, "")
    finally:
        file.unlink()
    flags = (
        f"--model={model}",
        "--dtype=float32",
        "--json",
        "--ignore_eos",
        "--max_new_tokens=12",
        "--prompt=Hello",
    )
    assert [server.run("generate.py", *flags, f"--seed={seed}").report["token_ids"] for seed in (1, 2)] == [
        greedy
    ] * 2


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A conversation with settings, a transcript and a policy of its own."""
    talk = Conversation(
        jllama.load(model, dtype="float32"),
        transcript="U: {user}\nA: {ai}\n",
        on_overflow="stop",
        system="Old.",
    )
    "".join(talk.ask("Hi", GREEDY))
    path = tmp_path_factory.mktemp("saved") / "talk.json"
    archive.save(talk, GREEDY, path)
    return path


def test_a_saved_conversation_goes_on_with_its_own_settings(answer, saved, tmp_path):
    flagfile = tmp_path / "model.cfg"
    flagfile.write_text("--temperature=50\n--system=New.\n")
    load = f"--load={saved}"
    assert answer(load) == answer(load, f"--flagfile={flagfile}") != answer(load, "--temperature=50")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--temperature=50"], "--temperature"),
        (["--system", "New."], "--system"),
        (["--transcript={user} - {ai}!"], "--transcript"),
        (
            ["--noignore_eos", "--logit_bias=97=1000", "--on_overflow=drop_oldest"],
            "--ignore_eos, --logit_bias, --on_overflow",
        ),
    ],
)
def test_flags_that_were_typed_win_over_what_was_saved(answer, saved, flags, names):
    ids, said = answer(f"--load={saved}", *flags, seed=3)
    wins = f"{', '.join(sorted({*names.split(', '), *TYPED}))}: as typed, not as saved in {saved}"
    assert said == f"note: {wins}\n"
    assert ids != answer(f"--load={saved}", seed=3)[0]


TYPED = ["--ignore_eos", "--max_new_tokens", "--seed"]  # by `answer` itself


# One prompt.


@pytest.mark.parametrize("flagfile", sorted(path.name for path in (ROOT / "configs").glob("*.cfg")))
def test_of_two_prompts_the_one_given_last_is_read(server, flagfile, tmp_path):
    config, file = f"--flagfile=configs/{flagfile}", "--prompt_file=/no/such"
    has_prompt = "--prompt=" in (ROOT / "configs" / flagfile).read_text()
    for flags, reads_the_file in (
        ([config, file], True),
        ([config, "--prompt=x", "--prompt_file", "/no/such"], True),
        ([config, file, "--prompt", "x"], False),
        ([file, config], not has_prompt),
    ):
        if flagfile != "bench.cfg":  # has flags of bench.py alone
            done = server.run("generate.py", *flags, "--model=nosuch")
            assert ("cannot read /no/such" in done.err) is reads_the_file, done.err
            assert ("no such model" in done.err) is not reads_the_file


def test_a_flag_without_its_value_does_not_take_the_next_line(server, tmp_path):
    for text in (
        "--prompt\n--stats\n",
        "--prompt\n--transcript={user}{ai}\n",
        "--seed\n--nostats\n--prompt=x\n",
    ):
        (tmp_path / "bad.cfg").write_text(text)
        done = server.run("generate.py", f"--flagfile={tmp_path}/bad.cfg", "--model=nosuch")
        assert (done.code, "missing value for flag --" in done.err) == (2, True)
    (tmp_path / "good.cfg").write_text("--prompt\n- a list\n--seed\n5\n")
    done = server.run("generate.py", f"--flagfile={tmp_path}/good.cfg", "--model=nosuch")
    assert "no such model" in done.err
