"""Talks with a model. There, /help lists commands. Without a model's name it is SmolLM2.

Without a terminal, or with --message or --json, it answers each message, or each line of standard input,
and ends. Sampling flags that are not given follow the model's generation_config.json, or else are
--temperature=0.7 --top_p=0.95.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from jllama.chat.generation_config import SAMPLING, conversation_sampling
from jllama.cli import command_line, flag_groups, flagfiles, streams
from jllama.cli.command_line import FLAGS
from jllama.errors import JllamaError
from jllama.files.paths import expanded

flags.DEFINE_string(
    "transcript",
    None,
    r"How the model reads the conversation: a format such as 'User: {user}\nAI: {ai}\n' or a jinja template. "
    "Default: the model's chat template; that format if it has none.",
)
flags.DEFINE_enum(
    "on_overflow", "drop_oldest", ["drop_oldest", "stop"], "What to do when the context is full."
)
flags.DEFINE_multi_string("message", [], "Answer this message and end. Repeatable: one conversation.")
flags.DEFINE_string("load", None, "Go on with a conversation that /save wrote.")
flags.DEFINE_string(
    "tools", None, "A Python file: the model may call its functions, and you are asked before one runs."
)
flags.DEFINE_bool("allow_tools", False, "Run what the model calls without asking.")
flags.DEFINE_bool("markdown", True, "Show Markdown as styles, where the terminal can.")
flag_groups.define_answer_flags()
flag_groups.define_model_flags()
flag_groups.define_quantize_flag()
flag_groups.define_parallel_flags()
flag_groups.define_sampling_flags()
for name in SAMPLING:
    FLAGS.set_default(name, None)  # the model's own

PLACES = ("model", "message")
DEFAULT_MODEL = "smollm2"
HELP = {
    "What runs": ("model", "dtype", "device", "quantize", "tensor_parallel"),
    "The conversation": ("system", "message", "load", "max_seq_len", "transcript", "tools"),
    "The answers": ("max_new_tokens", "temperature", "top_p", "seed", "stats"),
}


def main() -> int:
    """A conversation at the terminal, or the answers alone."""
    command_line.sampling_settings()  # refuses what is wrong before the model is loaded
    command_line.template_variables()
    if FLAGS.load == "":
        raise JllamaError("--load= names no file: give one that /save wrote")
    interactive = (
        not FLAGS.message and not FLAGS.json and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    )
    functions = _functions(interactive)
    model = command_line.load_model()
    conversation, settings = _conversation(model, functions), _settings(model)
    conversation.progress = streams.prompt_bar()
    if FLAGS.load:
        settings = _load(conversation, settings)
    if not interactive:
        from jllama.cli.terminal import batch

        return batch.run(conversation, settings, FLAGS.message, as_json=FLAGS.json, stats=FLAGS.stats)
    from jllama.cli.terminal import loop
    from jllama.cli.terminal.screen import Screen
    from jllama.cli.terminal.state import Chat
    from jllama.cli.terminal.tool_calls import ToolRunner

    screen = Screen(markdown=FLAGS.markdown)
    runner = ToolRunner(conversation.toolbox, screen, unasked=FLAGS.allow_tools) if functions else None
    chat = Chat(conversation, settings, screen, file=FLAGS.load or "", tools=runner)
    chat.show_stats = FLAGS.stats
    return loop.run(chat, _banner(model))


def _functions(interactive: bool) -> list[Callable[..., Any]]:
    """Those of the file that --tools names; it is run, and its type hints are read, before the model is."""
    if FLAGS.tools is None:
        if FLAGS.allow_tools:
            raise JllamaError("--allow_tools: there are none; --tools=FILE.py gives some")
        return []
    if not (interactive or FLAGS.allow_tools):
        raise JllamaError(
            "--tools: without a terminal nobody can be asked before one runs; --allow_tools runs them unasked"
        )
    from jllama.tools.functions import Toolbox
    from jllama.tools.python_file import load_functions

    functions = load_functions(expanded(FLAGS.tools))
    Toolbox(functions)  # refuses hints that can't be told
    return functions


def _conversation(model: Any, functions: list[Callable[..., Any]]) -> Any:
    from jllama.chat.conversation import Conversation

    return Conversation(
        model,
        system=FLAGS.system,
        transcript=FLAGS.transcript,
        max_seq_len=FLAGS.max_seq_len,
        on_overflow=FLAGS.on_overflow,
        chat_template_kwargs=command_line.template_variables(),
        tools=functions,
    )


def _settings(model: Any) -> Any:
    """The sampling flags, the model's own values where they say nothing."""
    sampling, remarks = conversation_sampling(model.generation_config)
    for remark in remarks:
        command_line.say(f"warning: {remark}")
    return command_line.sampling_settings(sampling)


def _load(conversation: Any, given: Any) -> Any:
    """The settings saved with a conversation, but for what was typed: that wins, and is said.

    A flagfile's values describe the model, and give way to the conversation's.

    Args:
      conversation: as the flags want it; gets the saved branches.
      given: the settings that the flags make.

    Raises:
      JllamaError: the file can't be read, or the model takes no system message.
    """
    from jllama.chat.archive import archive

    own = {"transcript": conversation.transcript, "on_overflow": conversation.on_overflow}
    settings, remarks = archive.load(conversation, FLAGS.load)
    for remark in remarks:
        command_line.say(*f"warning: {remark}".split("\n"))
    typed = flagfiles.typed_names(FLAGS, sys.argv[1:], PLACES)
    for name in typed & own.keys():
        setattr(conversation, name, own[name])
    if "system" in typed:
        conversation.set_system(FLAGS.system)
    changes = {name: getattr(given, name) for name in dataclasses.asdict(given) if name in typed}
    winners = ", ".join(f"--{name}" for name in sorted(typed & {*changes, *own, "system"}))
    if winners:
        command_line.say(f"note: {winners}: as typed, not as saved in {FLAGS.load}")
    return dataclasses.replace(settings, **changes)


def _banner(model: Any) -> str:
    from jllama.machine.devices import describe_device

    has_template = model.need_tokenizer().chat_template is not None
    kind = "" if has_template else " · a base model: it continues a transcript (--system, --transcript)"
    place = describe_device(model.params)
    return f"{model.name} · {model.dtype} · {place}{kind}\n/help lists the commands, Ctrl-D leaves"


def _is_terminal(stream: Any) -> bool:
    if stream is None:
        raise JllamaError("standard input is closed: give --message")
    return stream.isatty()
