"""Measures a server of OpenAI's API under load: jllama's, llama.cpp's, vLLM's or any other.

Prompts are random words; the seed decides them, their lengths, and when they are sent. A second run with the
same seed finds them in the server's cache.
"""

import asyncio
import json
import signal
import time
from collections.abc import Coroutine
from typing import Any

from absl import flags

from jllama.cli import command_line, interrupts
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError, escaped

flags.DEFINE_string("url", "http://127.0.0.1:8000", "The server's address.")
flags.DEFINE_string("api_key", "", "The key that it wants.")
flags.DEFINE_string("served_model", None, "The model's name there. Default: the first that it lists.")
flags.DEFINE_integer("requests", 64, "How many are measured.", lower_bound=1, upper_bound=1_000_000)
flags.DEFINE_integer(
    "concurrency", None, "Requests at once. Default: 16.", lower_bound=1, upper_bound=100_000
)
flags.DEFINE_float(
    "request_rate",
    None,
    "Instead of --concurrency: requests a second, at random moments (Poisson), however many run.",
    lower_bound=1e-3,
    upper_bound=1e5,
)
flags.DEFINE_string("prompt_tokens", "128", "Of each prompt, with its template: a number, or LOW-HIGH.")
flags.DEFINE_string("answer_tokens", "128", "Of each answer: a number, or LOW-HIGH.")
flags.DEFINE_integer(
    "seed", 0, "Of prompts, lengths and moments.", lower_bound=0, upper_bound=2**63 - 1, short_name="s"
)
flags.DEFINE_enum("endpoint", "chat", ["chat", "completions"], "Conversations, or texts to continue.")
flags.DEFINE_bool("stream", True, "Answers as streams; without, nothing is known but their ends.")
flags.DEFINE_bool("ignore_eos", True, "Answers of exactly --answer_tokens; not every server knows that.")
flags.DEFINE_float("temperature", 0.0, "0 always takes the most probable token.", lower_bound=0.0)
flags.DEFINE_integer(
    "idle_connections",
    0,
    "Others that are open meanwhile; one half says nothing, the other sends a byte a second.",
    lower_bound=0,
    upper_bound=100_000,
)
flags.DEFINE_integer(
    "warm_up", None, "Requests before, uncounted. Default: as many as run at once, up to 4.", lower_bound=0
)
flags.DEFINE_float("timeout", 600.0, "Seconds that an answer may take.", lower_bound=0.001)
flags.DEFINE_bool("json", False, "Print one JSON object.")

PLACES = ("url",)
HELP = {
    "Whom": ("url", "api_key", "served_model", "endpoint"),
    "What": (
        "requests",
        "concurrency",
        "request_rate",
        "prompt_tokens",
        "answer_tokens",
        "ignore_eos",
        "stream",
    ),
    "What is shown": ("json",),
}
MISSING = "jllama bench serve needs more packages: pip install 'jllama[server]'"
BUSY = 0.8  # of a core, above which the client may be what is slow
CUT_OFF: dict[int, int] = {signal.SIGINT: command_line.INTERRUPTED, signal.SIGTERM: interrupts.TERMINATED}


def main() -> int:
    """Asks and prints; what came before a Ctrl-C, too."""
    try:
        import h11  # noqa: F401
    except ModuleNotFoundError as error:
        raise JllamaError(f"{error}: {MISSING}") from None
    from jllama.cli.load.target import Target, allow_files

    if FLAGS.concurrency and FLAGS.request_rate:
        raise JllamaError("give --concurrency or --request_rate, not both")
    workload()  # wrong flags are told before the server is asked
    Target(FLAGS.url, FLAGS.api_key, FLAGS.timeout)
    at_once = FLAGS.requests if FLAGS.request_rate else min(FLAGS.concurrency or 16, FLAGS.requests)
    allow_files(FLAGS.idle_connections + at_once)
    report: dict[str, Any] = {}
    ended_by = until_signal(measure(report))
    if report:
        show(report)
    if ended_by is not None:
        return CUT_OFF[ended_by]
    return 0 if report["done"] and not report["not_sent"] else command_line.USER_ERROR


def workload(model: str = "") -> Any:
    """What the flags ask for.

    Raises:
      JllamaError: a length is none.
    """
    from jllama.cli.load.workload import Workload, parse_range

    names = ("endpoint", "ignore_eos", "temperature", "requests", "request_rate", "seed")
    given: dict[str, Any] = {name: FLAGS[name].value for name in names}
    return Workload(
        model=model,
        streamed=FLAGS.stream,
        concurrency=None if FLAGS.request_rate else FLAGS.concurrency or 16,
        prompt_tokens=parse_range(FLAGS.prompt_tokens, "--prompt_tokens"),
        answer_tokens=parse_range(FLAGS.answer_tokens, "--answer_tokens"),
        **given,
    )


async def measure(report: dict[str, Any]) -> None:
    """Fills the report, also if it is cancelled once requests were sent.

    Raises:
      JllamaError: the server can't be asked.
    """
    from jllama.cli.load.idle import Crowd
    from jllama.cli.load.models import served_model
    from jllama.cli.load.prompts import calibrated
    from jllama.cli.load.target import opened
    from jllama.cli.load.traffic import Traffic

    async with opened(FLAGS.url, FLAGS.api_key, FLAGS.timeout) as target:
        work = workload(await served_model(target, FLAGS.served_model))
        say(f"{work.model} at {target.url}: counting the tokens of words, warming up …")
        traffic = Traffic(target, work, await calibrated(target, work))
        await traffic.warm_up(warm_up_count(work))
        crowd = Crowd(target, FLAGS.idle_connections)
        async with crowd.around():
            say(f"{work.requests} requests …")
            cpu, clock = time.process_time(), time.perf_counter()
            try:
                await traffic.run()
            finally:
                used = time.process_time() - cpu, time.perf_counter() - clock
                report |= asked(target.url, work) | came(traffic, crowd, *used)


def warm_up_count(work: Any) -> int:
    """As the flag says, else one for each that runs at once, but few."""
    return FLAGS.warm_up if FLAGS.warm_up is not None else min(work.concurrency or 4, work.requests, 4)


def asked(url: str, work: Any) -> dict[str, Any]:
    """What a figure means nothing without."""
    from jllama import __version__

    names = "model endpoint streamed ignore_eos temperature requests concurrency request_rate seed".split()
    about = {name: getattr(work, name) for name in names}
    lengths = {name: list(getattr(work, name)) for name in ("prompt_tokens", "answer_tokens")}
    return {"url": url, **about, "asked": lengths, "date": time.strftime("%Y-%m-%d"), "jllama": __version__}


def came(traffic: Any, crowd: Any, cpu_seconds: float, seconds: float) -> dict[str, Any]:
    """What came of it, and what that cost this process."""
    from jllama.cli.load.figures import figures

    found = figures(traffic.records)
    chunks = sum(len(record.arrivals) for record in traffic.records)
    each = cpu_seconds / chunks * 1e6 if chunks else None
    client = {"cpu_seconds": cpu_seconds, "cpu_share": cpu_seconds / max(seconds, 1e-9)}
    return {
        **found,
        "cut_off": traffic.sent - len(traffic.records),
        "not_sent": traffic.work.requests - traffic.sent,
        "client": client | {"cpu_microseconds_per_chunk": each},
        "idle_connections": {"wanted": crowd.count, "open": crowd.open, "closed": crowd.closed},
    }


def show(report: dict[str, Any]) -> None:
    """The report on stdout; on stderr what is wrong with it."""
    from jllama.cli.load.report import as_text

    print(json.dumps(report, indent=1) if FLAGS.json else as_text(report), flush=True)
    if report["client"]["cpu_share"] > BUSY:
        say("note: the client took most of a core: the server may be faster than these figures")
    if not report["done"] and report["failed"]:
        say(f"error: no request was answered: {escaped(report['failures'][0]['kind'])}")
    elif report["not_sent"] and not report["cut_off"]:
        say(f"error: the server went away: {report['not_sent']} requests were not sent")


def until_signal(work: Coroutine[Any, Any, None]) -> int | None:
    """Runs it; Ctrl-C or SIGTERM cancels it. Returns the signal that did."""
    ended_by: list[int] = []

    async def guarded() -> None:
        task = asyncio.current_task()
        assert task is not None

        def cancel(number: int) -> None:
            ended_by.append(number)
            task.cancel()

        for number in CUT_OFF:
            asyncio.get_running_loop().add_signal_handler(number, cancel, number)
        try:
            await work
        except asyncio.CancelledError:
            if not ended_by:
                raise

    asyncio.run(guarded())
    interrupts.catch()  # the loop has taken its own handlers back
    return ended_by[0] if ended_by else None
