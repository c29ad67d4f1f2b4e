"""Continues or answers one prompt. The text goes to standard output, and nothing else does."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from jllama.cli import answers, command_line, flag_groups, flagfiles, interrupts, prompts, streams
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError
from jllama.files.paths import expanded

flags.DEFINE_string(
    "prompt",
    None,
    "What to continue or answer. Of this and --prompt_file the one given last counts.",
    short_name="p",
)
flags.DEFINE_string(
    "prompt_file",
    None,
    "Read the prompt from this UTF-8 file, line ends as they are; - for standard input.",
)
flags.DEFINE_string(
    "prompts_file",
    None,
    "Answer every line of this JSONL file, together: objects with prompt, messages or token_ids, maybe an id "
    "and settings. Needs --output.",
)
flags.DEFINE_string(
    "output",
    None,
    "Where the answers to --prompts_file go, a JSON object a line. What is there is not done again, but for "
    "errors.",
)
flags.DEFINE_integer("slots", 16, "Texts of --prompts_file at once.", lower_bound=1, upper_bound=1024)
flags.DEFINE_bool(
    "chat_template", None, "Put the prompt into the chat template. Default: if the model has one."
)
flag_groups.define_answer_flags()
flag_groups.define_model_flags()
flag_groups.define_quantize_flag()
flag_groups.define_parallel_flags()
flag_groups.define_sampling_flags()

PLACES = ("model", "prompt")
HELP = {
    "What runs": ("model", "dtype", "device", "quantize", "tensor_parallel"),
    "The prompt": ("prompt", "prompt_file", "prompts_file", "system", "chat_template"),
    "The answer": ("max_new_tokens", "temperature", "top_p", "seed", "stop", "stats", "json"),
}


def main() -> int:
    """Text goes to stdout and nothing else does."""
    check_file_flags()
    settings = command_line.sampling_settings()
    words = dict(
        chat=FLAGS.chat_template,
        system=FLAGS.system,
        chat_template_kwargs=command_line.template_variables(),
    )
    if FLAGS.prompts_file is not None:
        return answer_file(settings, words)
    prompt = read_prompt()
    model = command_line.load_model()
    preparation = command_line.count_compile_seconds()
    from jllama.machine.devices import describe_device
    from jllama.session import Session, room_for
    from jllama.text.prompt import encode_prompt

    tokenizer = model.need_tokenizer()
    ids = encode_prompt(tokenizer, prompt, **words)
    session = Session(model, max_seq_len=FLAGS.max_seq_len or room_for(model, len(ids), settings))
    pieces = session.stream(ids, settings, progress=streams.prompt_bar())
    prepared: list[float] = []
    code = show(_noting(pieces, preparation, prepared))
    report = {
        **summary(session.result),
        "device": describe_device(model.params),
        "dtype": model.dtype,
        "model": model.name,
    }
    if FLAGS.json:
        print(json.dumps(report, ensure_ascii=False), flush=True)
    if FLAGS.stats:
        say(statistics(report, (prepared or [sum(preparation)])[0]))
    return code


def answer_file(settings: Any, words: dict[str, Any]) -> int:
    """All requests of `--prompts_file` into `--output`; 1 if some could not be answered."""
    model = (FLAGS.model or "").rstrip("/").rpartition("/")[2]
    common = [model, FLAGS.dtype, FLAGS.quantize, words]
    requests = prompts.read_requests(FLAGS.prompts_file, settings, common)
    with answers.own(expanded(FLAGS.output)) as output:  # refuses another file before the model is loaded
        left = output.left({request.id: request.mark for request in requests})
        todo = [request for request in requests if request.id in left]
        try:
            if todo:
                sizes = dict(max_seq_len=FLAGS.max_seq_len, slots=FLAGS.slots)
                prompts.run(command_line.load_model(), todo, output, words, **sizes)
        except (KeyboardInterrupt, SystemExit):
            say(f"ended early: {output.count} answers are in {FLAGS.output}; the same command goes on")
            raise
    kept = len(requests) - len(todo)
    say(f"{output.answered} answers written to {FLAGS.output}" + (f", {kept} were there" if kept else ""))
    if output.failed:
        say(f"{output.failed} requests could not be answered: their lines hold the `error`")
    return 1 if output.failed else 0


def check_file_flags() -> None:
    """Refuses flags beside `--prompts_file` that it leaves no use for, and those that need it.

    Raises:
      JllamaError: says which to drop.
    """
    if FLAGS.prompts_file is None:
        if FLAGS.output:
            raise JllamaError(
                "--output takes the answers to --prompts_file, and there is none; the answer to one prompt "
                "goes to standard output: > FILE keeps it"
            )
        return
    if not FLAGS.output:
        raise JllamaError("--prompts_file needs --output=FILE for the answers")
    # A model's own flagfile may hold a prompt to try, which is no mistake of who typed the command.
    if flagfiles.RIVALS & flagfiles.typed_names(FLAGS, sys.argv[1:], PLACES):
        raise JllamaError("--prompts_file brings the prompts: drop it, or the prompt beside it")


def show(pieces: Iterator[str]) -> int:
    """Streams the text, unless all is to come in one object; Ctrl-C ends it, with what came."""
    text = ""
    try:
        for text in pieces:
            if not FLAGS.json:
                print(text, end="", flush=True)
            interrupts.check()
    except KeyboardInterrupt:
        return command_line.INTERRUPTED
    finally:
        if text and not FLAGS.json:
            print(flush=True)
    return 0


def _noting(pieces: Iterator[str], seconds: Sequence[float], prepared: list[float]) -> Iterator[str]:
    """The same pieces; `prepared` gets the sum of the seconds at the first, which are the prompt's: the
    program of the steps is made ready behind it.
    """
    for piece in pieces:
        if not prepared:
            prepared.append(sum(seconds))
        yield piece


def read_prompt() -> str:
    """The prompt of the flags.

    Raises:
      JllamaError: none is given, it is empty, or the file can't be read as UTF-8.
    """
    text = _prompt_text()
    if not text.strip():
        raise JllamaError("the prompt is empty: give a text")
    return text


def _prompt_text() -> str:
    if FLAGS.prompt_file is not None:
        return streams.read_text(FLAGS.prompt_file)
    if FLAGS.prompt is None:
        raise JllamaError(
            "no prompt: give it behind the model's name, or with --prompt or --prompt_file (-: stdin)"
        )
    if streams.holds_unread():
        say("note: standard input is not read; --prompt_file=- takes the prompt from there")
    return FLAGS.prompt


def summary(result: Any) -> dict[str, Any]:
    """What `--json` says of the answer."""
    names = (
        "text token_ids finish_reason stop_string stop_token seed prompt_tokens generated_tokens "
        "prefill_seconds decode_seconds prefill_tokens_per_second decode_tokens_per_second"
    ).split()
    return {name: getattr(result, name) for name in names}


def statistics(report: dict[str, Any], preparation: float) -> str:
    """The same for a person, and how long JAX took to trace and compile, or to load what it had compiled."""
    return (
        f"prompt {report['prompt_tokens']} tokens in {report['prefill_seconds']:.2f} s "
        f"({preparation:.2f} s of it preparing programs) · "
        f"answer {report['generated_tokens']} tokens in {report['decode_seconds']:.2f} s "
        f"({report['decode_tokens_per_second']:.1f} tok/s) · {report['finish_reason']} · "
        f"seed {report['seed']} · {report['model']} · {report['dtype']} · {report['device']}"
    )
