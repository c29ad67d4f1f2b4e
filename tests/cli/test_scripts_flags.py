"""Command lines that are wrong: refused before jax is imported, so at once."""

import subprocess
import sys

import pytest

from tests.support.scripts_helpers import ScriptServer, assert_explained, command, environment, start

GENERATE, INSPECT, MAKE = "generate.py", "inspect_model.py", "make_random_checkpoint.py"


@pytest.fixture(scope="module")
def without_jax(tmp_path_factory):
    """Runs scripts where importing jax fails: what is refused there is refused at once.

    What they import before that is there already: each would need 0.12 s for it.
    """
    place = tmp_path_factory.mktemp("without_jax")
    (place / "jax").mkdir()
    (place / "jax" / "__init__.py").write_text("raise RuntimeError('jax was imported')")
    paths = f"{place}:{environment(place)['PYTHONPATH']}"
    server = ScriptServer(
        place, ["jllama.cli.main", "jllama.cli.answers", "jllama.loading"], PYTHONPATH=paths
    )
    yield server
    server.close()


FLAGS = {
    "unknown flag": (GENERATE, "--promt=x", "Unknown command line flag 'promt'. Did you mean"),
    "unknown no-flag": (GENERATE, "--nomax_new_tokens", "Unknown command line flag 'nomax_new_tokens'"),
    "no value": (GENERATE, "--prompt", "Missing value for flag --prompt"),
    "no value, then a flag": (
        GENERATE,
        "--prompt --stats",
        "missing value for flag --prompt; if it is '--stats'",
    ),
    "no flagfile, but a flag": (GENERATE, "--flagfile --stats", "missing value for flag --flagfile"),
    "no value, then a file": (GENERATE, "--prompt --flagfile=x", "missing value for flag --prompt"),
    "a value like a flag": (GENERATE, "--prompt=--stats --stop --x", "no model: give --model"),
    "no whole number": (GENERATE, "--seed", "Missing value for flag --seed"),
    "no flagfile": (GENERATE, "--flagfile", "--flagfile with no argument"),
    "a switch with a value": (GENERATE, "--nostats=1", "--nostats=1 does not take an argument"),
    "chat: no message": ("chat.py", "--message", "Missing value for flag --message"),
    "chat: nothing to load": ("chat.py", "--model=x --load=", "--load= names no file"),
    "chat: generate's flag": ("chat.py", "--prompt=hi", "Unknown command line flag 'prompt'"),
    "quantize: no output": ("quantize.py", "--model=x --output", "Missing value for flag --output"),
    "a word": (GENERATE, "--prompt=x Hello", "no such model: 'Hello'"),
    "three words": (GENERATE, "a b c", "unexpected argument 'c'; expected MODEL PROMPT"),
    "no prompt": (GENERATE, "", "--prompt or --prompt_file"),
    "empty prompt": (GENERATE, "--prompt=", "the prompt is empty"),
    "blank prompt": (GENERATE, "--prompt_file=-", "the prompt is empty"),
    "no model": (GENERATE, "--prompt=x", "no model: give --model"),
    "empty model": (GENERATE, "--prompt=x --model=", "no model: give --model"),
    "prompt file": (GENERATE, "--prompt_file=/no/such", "cannot read /no/such: No such file"),
    "prompt in no home": (GENERATE, "--prompt_file=~nobody-here/x", "there is no such home directory"),
    "prompt without end": (GENERATE, "--prompt_file=/dev/zero", "/dev/zero holds more than 256 MiB"),
    "prompt directory": (GENERATE, "--prompt_file=/", "cannot read /: Is a directory"),
    "no such flagfile": (GENERATE, "--flagfile=/no/such.cfg", "cannot read /no/such.cfg: No such file"),
    "flagfile of bytes": (GENERATE, f"--flagfile={sys.executable}", "is not UTF-8"),
    "no such path": (GENERATE, "--prompt=x --model=/no/such", "no such model: '/no/such'|OWNER/NAME"),
    "no such name": (GENERATE, "--prompt=x --model=nosuch", "no such model: 'nosuch'; give a directory"),
    "foreign file": (GENERATE, "--prompt=x --model=README.md", "README.md is no GGUF file"),
    "no config": (GENERATE, "--prompt=x --model=docs", "docs holds neither config.json nor a .gguf"),
    "malformed wheel": (GENERATE, "--prompt=x --model=pypi:x", "malformed; write pypi:NAME==VERSION"),
    "hub id, offline": (GENERATE, "--prompt=x --model=no/such", "no local path 'no/such'|hf download"),
    "temperature": (GENERATE, "--temperature=-1", "temperature=-1.0 must be a number from 0 to 100"),
    "temperature nan": (GENERATE, "--temperature=nan", "temperature=nan must be a number from 0"),
    "temperature inf": (GENERATE, "--temperature=inf", "temperature=inf must be a number from 0"),
    "temperature text": (GENERATE, "--temperature=hot", "--temperature=hot"),
    "top_k": (GENERATE, "--top_k=-1", "top_k=-1 must be a whole number from 0"),
    "top_p": (GENERATE, "--top_p=0", "top_p=0.0 must be a number from"),
    "top_p above": (GENERATE, "--top_p=1.5", "top_p=1.5 must be a number from"),
    "min_p": (GENERATE, "--min_p=2", "min_p=2.0 must be a number from 0 to 1"),
    "repetition": (GENERATE, "--repetition_penalty=0", "repetition_penalty=0.0 must be"),
    "presence": (GENERATE, "--presence_penalty=1e9", "presence_penalty=1000000000.0 must be"),
    "frequency": (GENERATE, "--frequency_penalty=nan", "frequency_penalty=nan must be"),
    "bias": (GENERATE, "--logit_bias=many", "--logit_bias=many: give TOKEN_ID=VALUE"),
    "bias nan": (GENERATE, "--logit_bias=1=nan", "logit_bias of token 1 is nan; it must be a number from"),
    "no tokens": (GENERATE, "--max_new_tokens=0", "max_new_tokens=0 must be a whole number from 1"),
    "absurd": (GENERATE, f"--max_new_tokens={10**30}", "max_new_tokens=1000"),
    "a fraction": (GENERATE, "--max_new_tokens=1.5", "--max_new_tokens=1.5"),
    "max_seq_len": (GENERATE, "--max_seq_len=-5", "--max_seq_len=-5"),
    "max_seq_len 0": (GENERATE, "--max_seq_len=0", "--max_seq_len=0"),
    "seed": (GENERATE, "--seed=-1", "seed=-1 must be a whole number from 0"),
    "seed beyond": (GENERATE, f"--seed={2**63}", "must be a whole number from 0 to 2^63 - 1"),
    "stop": (GENERATE, "--stop=", "a stop string is empty"),
    "dtype": (GENERATE, "--dtype=int8", "--dtype=int8|float32|bfloat16|float16"),
    "device": (GENERATE, "--device=tpu", "--device=tpu|auto|cpu|gpu"),
    "inspect: no model": (INSPECT, "", "no model: give --model"),
    "inspect: no such": (INSPECT, "--model=nosuch", "no such model: 'nosuch'"),
    "inspect: sampling": (INSPECT, "--model=x --temperature=7", "Unknown command line flag 'temperature'"),
    "inspect: batch": (INSPECT, "--model=x --batch=0", "--batch=0"),
    "inspect: positions": (INSPECT, "--model=x --max_seq_len=0", "--max_seq_len=0"),
    "make: nothing given": (MAKE, "", "give both --config=config.json and --output=DIR"),
    "make: shard size": (MAKE, "--config=x --output=y --shard_size=many", "--shard_size=many: give a size"),
    "make: absurd shards": (MAKE, f"--config=x --output=y --shard_size={10**400}", "give a size such as 2GB"),
    "make: scale": (MAKE, "--config=x --output=y --scale=-1", "--scale=-1"),
    "make: scale nan": (MAKE, "--config=x --output=y --scale=nan", "--scale=nan: give a number"),
    "bench: no tests": ("bench.py", "--model=x --tests=", "nothing to measure: give --tests=tg128"),
    "bench: no such test": ("bench.py", "--model=x --tests=foo", "--tests: 'foo' is no test; write pp512"),
    "bench: absurd test": ("bench.py", f"--model=x --tests=pp{10**22}", "is no test; write pp512"),
    "bench: absurd batch": (
        "bench.py",
        f"--model=x --batch_sizes={10**22}",
        "a whole number from 1 to 99999",
    ),
    "bench: absurd seed": ("bench.py", f"--model=x --seed={10**22}", f"--seed={10**22}"),
    "perplexity: quantize": ("perplexity.py", "--quantize=int4", "Unknown command line flag 'quantize'"),
    "perplexity: no text": ("perplexity.py", "--text=/no/such", "cannot read /no/such: No such file"),
    "bench: profile": ("bench.py", "--model=x --profile=/dev/null/x", "cannot use /dev/null/x"),
}


@pytest.mark.parametrize(("script", "arguments", "words"), FLAGS.values(), ids=FLAGS)
def test_refused_before_jax_is_imported(script, arguments, words, without_jax):
    assert_explained(without_jax.run(script, *arguments.split()), words)


@pytest.mark.parametrize("script", ["generate.py", "inspect_model.py", "bench.py", "perplexity.py"])
def test_flagfiles_may_hold_flags_of_other_scripts(script, without_jax, tmp_path):
    inner, outer = tmp_path / "inner.cfg", tmp_path / "outer.cfg"
    inner.write_text(
        "--transcript={user}\n--noignore_eos\n--temperature=1\n--logit_bias=1=2\n--dtype=float16\n"
    )
    outer.write_text(f"--flagfile={inner}\n--quantize=int8\n")
    for flagfile in ([f"--flagfile={outer}"], ["--flagfile", str(outer)]):
        assert without_jax.run(script, *flagfile, "--help").code == 0
    inner.write_text("--transcript\nchatml\n--dtype\nfloat16\n")  # values on lines of their own
    assert without_jax.run(script, f"--flagfile={outer}", "--help").code == 0
    inner.write_text("--model\ntranscript\n--seed=1\n")  # a value that is another script's flag
    assert without_jax.run(script, f"--flagfile={inner}", "--help").code == 0
    inner.write_text("--top-p=2\n--no-ignore-eos\n--max-new-tokens\n64\n--temp=1\n")  # as hands type
    assert without_jax.run(script, f"--flagfile={inner}", "--help").code == 0
    inner.write_text("--temperatur=1\n")
    outcome = without_jax.run(script, f"--flagfile={outer}", "--help")
    assert_explained(outcome, "Unknown command line flag 'temperatur'")


def test_a_prompt_that_is_not_utf_8(without_jax, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("Grüße".encode("latin-1"))
    outcome = without_jax.run(GENERATE, f"--prompt_file={file}")
    assert_explained(outcome, "prompt.txt is not UTF-8 (byte 2): convert it")
    outcome = start(GENERATE, "--prompt_file=-", env=without_jax.env, stdin=b"\xff")
    assert_explained(outcome, "not UTF-8 (byte 0)")


@pytest.mark.parametrize(("script", "flag"), [(GENERATE, "--prompt_file=-"), ("perplexity.py", "--text=-")])
def test_a_closed_standard_input(script, flag, without_jax):
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *command(script, flag)]
    done = subprocess.run(line, env=without_jax.env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, b"error: standard input is closed\n")


def test_a_tilde_is_the_home_directory(without_jax, tmp_path):
    (tmp_path / "prompt.txt").touch()
    outcome = without_jax.run(GENERATE, "--prompt_file=~/prompt.txt", HOME=str(tmp_path))
    assert_explained(outcome, "the prompt is empty")
