"""Figures for people."""

from typing import Any

from jllama.errors import escaped

ROWS = {
    "time_to_first_token": "time to first token",
    "time_per_token": "time per token after it",
    "inter_chunk": "between two chunks",
    "end_to_end": "whole answer",
}
COLUMNS = ("mean", "p50", "p90", "p99")
MOST_KINDS = 10


def as_text(report: dict[str, Any]) -> str:
    """What was asked, what came, and a table of how long it took."""
    parts = [_asked(report), _came(report)]
    if report["done"]:
        parts += [_rates(report), "", *_table(report), "", _client(report)]
    return "\n".join([*parts, *_crowd(report), *_failures(report)])


def _asked(report: dict[str, Any]) -> str:
    rate = report["request_rate"]
    many = f"{report['concurrency']} at once" if rate is None else f"{rate:g} a second"
    how = "streamed" if report["streamed"] else "not streamed"
    parts = [f"{report['model']} at {report['url']}", report["endpoint"], how, many]
    return escaped(" · ".join([*parts, f"seed {report['seed']}", report["date"]]))


def _came(report: dict[str, Any]) -> str:
    parts = [f"{report['done']} requests done", f"{report['failed']} failed"]
    parts += [f"{report[name]} {name.replace('_', ' ')}" for name in ("cut_off", "not_sent") if report[name]]
    return f"{', '.join(parts)}, in {report['seconds']:,.2f} s"


def _rates(report: dict[str, Any]) -> str:
    prompts, answers = _length(report["prompt_lengths"]), _length(report["answer_lengths"])
    cached = report["cached_prompt_tokens"]
    known = f", {cached:,} of them cached" if cached else ""
    rates = [
        f"{report['completion_tokens_per_second']:,.1f} tok/s",
        f"{report['requests_per_second']:,.2f} requests/s",
        f"prompts {report['prompt_tokens_per_second']:,.1f} tok/s",
    ]
    lengths = f"prompts of {prompts}{known}, answers of {answers}, by the server's count"
    return f"{' · '.join(rates)}\n{lengths}"


def _length(lengths: dict[str, float]) -> str:
    if lengths["shortest"] == lengths["longest"]:
        return f"{lengths['shortest']:,} tokens"
    return f"{lengths['shortest']:,} to {lengths['longest']:,} tokens (mean {lengths['mean']:,.1f})"


def _table(report: dict[str, Any]) -> list[str]:
    """In milliseconds; what was not measured has no row."""
    lines = ["ms".ljust(24) + "".join(column.rjust(11) for column in COLUMNS)]
    for name, words in ROWS.items():
        found = report[f"{name}_seconds"]
        if found is not None:
            lines.append(words.ljust(24) + "".join(f"{found[c] * 1e3:11,.2f}" for c in COLUMNS))
    return lines


def _client(report: dict[str, Any]) -> str:
    """Whether the figures are the server's at all."""
    client = report["client"]
    each = client["cpu_microseconds_per_chunk"]
    each = "" if each is None else f", {each:,.0f} µs a chunk"
    return f"the client itself took {client['cpu_share']:.0%} of a core{each}"


def _crowd(report: dict[str, Any]) -> list[str]:
    crowd = report["idle_connections"]
    if not crowd["wanted"]:
        return []
    counts = f"{crowd['open']} of {crowd['wanted']} open at the end"
    return [
        f"idle or slow connections: {counts}, closed by the server and opened again {crowd['closed']} times"
    ]


def _failures(report: dict[str, Any]) -> list[str]:
    kinds = report["failures"]
    lines = [f"failed, {each['count']} ×: {escaped(each['kind'])}" for each in kinds[:MOST_KINDS]]
    more = len(kinds) - MOST_KINDS
    return [*lines, f"and {more} other kinds: --json lists all"] if more > 0 else lines
