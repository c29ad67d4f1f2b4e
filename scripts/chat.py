"""Talks with a model: `python scripts/chat.py --flagfile=configs/smollm2.cfg`. There, /help lists commands.

Without a terminal, or with --message or --json, it answers each --message, or each line of standard input,
and ends.
"""

import sys
from typing import Any

import command_line
from absl import flags
from command_line import FLAGS

from jllama.errors import JllamaError

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
flags.DEFINE_bool("markdown", True, "Show Markdown as styles, where the terminal can.")
command_line.define_answer_flags()
command_line.define_model_flags()
command_line.define_quantize_flag()
command_line.define_sampling_flags()


def main() -> int:
    """A conversation at the terminal, or the answers alone."""
    settings = command_line.sampling_settings()
    interactive = (
        not FLAGS.message and not FLAGS.json and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    )
    model = command_line.load_model()
    conversation = _conversation(model)
    if FLAGS.load:
        settings = _load(conversation, FLAGS.load)
    if not interactive:
        import chat_batch

        return chat_batch.run(conversation, settings, FLAGS.message, as_json=FLAGS.json, stats=FLAGS.stats)
    import chat_loop

    return chat_loop.run(
        conversation, settings, banner=_banner(model), stats=FLAGS.stats, markdown=FLAGS.markdown
    )


def _conversation(model: Any) -> Any:
    from jllama.conversation import Conversation

    return Conversation(
        model,
        system=FLAGS.system,
        transcript=FLAGS.transcript,
        max_seq_len=FLAGS.max_seq_len,
        on_overflow=FLAGS.on_overflow,
    )


def _load(conversation: Any, path: str) -> Any:
    from jllama import archive

    settings, remarks = archive.load(conversation, path)
    for remark in remarks:
        command_line.say(f"warning: {remark}")
    return settings


def _banner(model: Any) -> str:
    from jllama.runtime import describe_device

    kind = "" if model.tokenizer.chat_template is not None else " · a base model: it continues a transcript"
    return (
        f"{model.name} · {model.dtype} · {describe_device()}{kind}\n/help lists the commands, Ctrl-D leaves"
    )


def _is_terminal(stream: Any) -> bool:
    if stream is None:
        raise JllamaError("standard input is closed: give --message")
    return stream.isatty()


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
