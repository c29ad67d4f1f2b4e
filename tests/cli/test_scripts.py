"""`generate.py` as a user runs it: what it prints where, and what each flag does."""

import json
import shutil
import subprocess
import sys

import pytest

from jllama.files.paths import cache_dir
from jllama.kernels import cpu
from tests.support.scripts_helpers import ROOT, environment, start
from tests.support.tiny_checkpoint import END, write_tiny_model

GENERATE = "generate.py"
END_ID = 256
SCRIPTS = (
    *("generate.py", "inspect_model.py", "make_random_checkpoint.py", "bench.py", "chat.py"),
    *("quantize.py", "perplexity.py"),
)
KEYS = (
    "text token_ids finish_reason stop_string stop_token seed prompt_tokens generated_tokens "
    "prefill_seconds decode_seconds prefill_tokens_per_second decode_tokens_per_second device dtype model"
).split()


@pytest.fixture(scope="module")
def base(base_dir):
    return base_dir


@pytest.fixture(scope="module")
def instruct(instruct_dir):
    return instruct_dir


@pytest.fixture(scope="module")
def generate(server, base):
    """Runs generate.py on the base model in float32, greedily, for 24 tokens unless told otherwise."""

    def run(*arguments, model=base, **env):
        common = [f"--model={model}", "--dtype=float32", "--max_new_tokens=24", "--ignore_eos"]
        prompt = [] if any(a.startswith("--prompt") for a in arguments) else ["--prompt=Once"]
        return server.run(GENERATE, *common, *prompt, *arguments, **env)

    return run


@pytest.fixture(scope="module")
def greedy(generate):
    """The report of a run without more flags."""
    return generate("--json").report


def test_stdout_holds_the_text_and_nothing_else(generate, greedy, base):
    report = greedy
    assert list(report) == KEYS
    assert (report["device"], report["dtype"], report["model"]) == ("cpu", "float32", str(base))
    assert (report["prompt_tokens"], report["generated_tokens"], report["finish_reason"]) == (4, 24, "length")
    assert len(report["token_ids"]) == 24
    assert min(report[name] for name in KEYS if name.endswith(("_seconds", "_per_second"))) > 0
    plain = generate()
    assert (plain.code, plain.out, plain.err) == (0, report["text"] + "\n", "")


def test_a_drawn_seed_is_reported_and_repeats_the_text(generate):
    first, second = (generate("--json", "--temperature=1").report for _ in range(2))
    assert first["seed"] != second["seed"]
    again = generate("--json", "--temperature=1", f"--seed={first['seed']}").report
    assert again["token_ids"] == first["token_ids"] != second["token_ids"]


def test_every_sampling_flag_arrives(generate, greedy):
    flags = ["--temperature=1.5", "--top_k=40", "--top_p=0.9", "--min_p=0.01", "--repetition_penalty=1.3"]
    flags += ["--presence_penalty=0.5", "--frequency_penalty=0.5", "--seed=5"]
    whole = generate("--json", *flags).report
    assert generate("--json", *flags).report["token_ids"] == whole["token_ids"]
    assert generate("--json", "--temperature=2", "--top_k=1").report["token_ids"] == greedy["token_ids"]
    biased = generate("--json", "--logit_bias=65=1000", "--logit_bias=66=-1").report
    assert set(biased["token_ids"]) == {65}


def test_stop_strings(generate, greedy):
    text = greedy["text"]
    stop = text[8:10]
    report = generate("--json", "--stop=never", f"--stop={stop}").report
    assert report["text"] == text[: text.index(stop)]
    assert (report["finish_reason"], report["stop_string"]) == ("stop", stop)


def test_end_of_text(generate):
    bias = f"--logit_bias={END_ID}=1000"
    report = generate("--json", bias, "--noignore_eos").report
    assert (report["text"], report["token_ids"], report["finish_reason"]) == ("", [END_ID], "stop")
    report = generate("--json", bias).report
    assert (report["text"], report["token_ids"], report["finish_reason"]) == ("", [END_ID] * 24, "length")


def test_an_instruct_model_gets_its_template_and_a_base_model_none(generate, greedy, instruct):
    rendered = f"[user]Once{END}[assistant]"
    template_tokens = len(rendered) - len(END) + 1
    report = generate("--json", model=instruct).report
    assert report["prompt_tokens"] == template_tokens
    assert generate("--json", "--chat_template", model=instruct).report["token_ids"] == report["token_ids"]
    plain = generate("--json", "--nochat_template", model=instruct).report
    assert plain["prompt_tokens"] == 4
    assert plain["token_ids"] == greedy["token_ids"]
    brief = generate("--json", "--system=Be brief", model=instruct).report
    assert brief["prompt_tokens"] == template_tokens + len("[system]Be brief") + 1


def test_prompts_from_files(generate, server, tmp_path):
    expected = generate("--json", "--prompt=Grüße 🙂").report
    file = tmp_path / "prompt.txt"
    file.write_text("Grüße 🙂", encoding="utf-8")
    assert generate("--json", f"--prompt_file={file}").report["token_ids"] == expected["token_ids"]
    assert expected["prompt_tokens"] == len("Grüße 🙂".encode())


@pytest.mark.parametrize("mark", [b"", "\ufeff".encode()], ids=["plain", "with a byte order mark"])
def test_a_file_and_standard_input_give_the_same_tokens(generate, server, base, tmp_path, mark):
    text = "One\r\ntwo\r\n"
    file = tmp_path / "prompt.txt"
    file.write_bytes(mark + text.encode())
    assert generate("--json", f"--prompt_file={file}").report["prompt_tokens"] == len(text)
    flags = [f"--model={base}", "--dtype=float32", "--max_new_tokens=1", "--json", "--prompt_file=-"]
    piped = start(GENERATE, *flags, env=server.env, stdin=file.read_bytes())
    assert piped.report["prompt_tokens"] == len(text)


def test_what_is_piped_in_and_not_read_is_said(generate, server, base):
    flags = [f"--model={base}", "--dtype=float32", "--max_new_tokens=1", "--prompt=x"]
    assert "note: standard input is not read" in start(GENERATE, *flags, env=server.env, stdin=b"text").err
    assert "standard input" not in start(GENERATE, *flags, env=server.env, stdin=b"").err


def test_statistics_and_banner_go_to_stderr(generate, base):
    outcome = generate("--stats", "--verbose", "--seed=3")
    assert outcome.out == generate().out
    banner, statistics = outcome.err.splitlines()
    assert banner.startswith(
        f"{base} · float32 · cpu · jllama 0.1.0 · jax "
    )  # no kernel's threads: none runs
    assert "prompt 4 tokens in" in statistics
    assert "answer 24 tokens in" in statistics
    assert "length · seed 3 ·" in statistics


def test_max_seq_len_ends_the_answer(generate, greedy):
    report = generate("--json", "--max_seq_len=12").report
    assert (report["generated_tokens"], report["finish_reason"]) == (8, "length")
    assert report["token_ids"] == greedy["token_ids"][:8]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types(generate, dtype):
    report = generate("--json", f"--dtype={dtype}", "--max_new_tokens=1").report
    assert (report["dtype"], report["generated_tokens"]) == (dtype, 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, server):
    outcome = server.run(script, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "--model" in outcome.out or "--config" in outcome.out
    assert "python scripts/" in outcome.out.splitlines()[0]
    assert server.run(script, "-h").out == outcome.out


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda path: path.stem)
def test_flagfiles_parse(config, server):
    for script in ["bench.py"] if config.stem == "bench" else ["generate.py", "chat.py"]:
        outcome = server.run(script, f"--flagfile={config}", "--help")
        assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_output_is_utf_8_under_any_locale(locale, base, server):
    flags = [f"--model={base}", "--dtype=float32", "--prompt=x", "--max_new_tokens=2", "--stats"]
    outcome = start(GENERATE, *flags, env=server.env | dict(PYTHONCOERCECLOCALE="0") | locale)
    assert outcome.code == 0, outcome.err
    assert " · " in outcome.err


def test_the_second_start_compiles_nothing_and_traces_nothing(instruct, tmp_path):
    cpu.refusal()  # compiles the kernels where that has not been done yet
    shutil.copytree(cache_dir("kernels"), tmp_path / "cache" / "kernels")

    def programs(*arguments):
        counter, script = ROOT / "tests" / "support" / "count_compilations.py", ROOT / "scripts" / GENERATE
        done = subprocess.run(
            [sys.executable, str(counter), str(script), f"--model={instruct}", "--ignore_eos", *arguments],
            env=environment(tmp_path / "cache", JLLAMA_KERNELS="1"),
            capture_output=True,
            check=True,
        )
        return json.loads(done.stderr.splitlines()[-1])

    first = programs("--prompt=Hello", "--max_new_tokens=40")
    assert first["compiled"] == first["programs"] > 2
    again = programs("--prompt=Good morning", "--max_new_tokens=50", "--temperature=0.7", "--top_p=0.9")
    assert again == {"programs": 0, "compiled": 0}


def test_half_written_programs_are_replaced(tmp_path):
    model = write_tiny_model(tmp_path / "model", num_hidden_layers=1)

    def run(**limits):
        flags = [f"--model={model}", "--prompt=x", "--max_new_tokens=3", "--temperature=0"]
        outcome = start(GENERATE, *flags, env=environment(tmp_path / "cache"), warnings="default", **limits)
        assert outcome.code == 0
        return outcome

    full = run(file_blocks=2)
    assert "warning: Error writing persistent compilation cache entry for 'jit_run'" in full.err
    assert not list((tmp_path / "cache" / "xla").glob("jit_run-*"))
    run()
    shutil.rmtree(tmp_path / "cache" / "programs")  # which come before JAX's own
    for program in (tmp_path / "cache" / "xla").glob("jit_run-*"):
        program.write_bytes(program.read_bytes()[:1000])
    assert run().err.startswith("warning: Error reading persistent compilation cache entry")
    again = run()
    assert (again.out, again.err) == (full.out, "")
