"""Records as figures: counts, rates, and how long things took."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

from jllama.cli.load.traffic import Record

PERCENTILES = (50, 90, 99)
DURATIONS = ("time_to_first_token", "time_per_token", "inter_chunk", "end_to_end")


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """Of the requests that were answered; rates over the time from the first one sent to the last end.

    Returns:
      Counts, rates per second, and distributions in seconds, which are None where nothing was measured.
    """
    done = [record for record in records if not record.failure]
    seconds = max(r.ended for r in done) - min(r.sent for r in records) if done else 0.0
    said, read = sum(r.completion_tokens for r in done), sum(r.prompt_tokens for r in done)
    cached = [r.cached_tokens for r in done if r.cached_tokens is not None]
    return {
        "done": len(done),
        "failed": len(records) - len(done),
        "failures": _kinds(records),
        "seconds": seconds,
        "requests_per_second": _rate(len(done), seconds),
        "completion_tokens": said,
        "completion_tokens_per_second": _rate(said, seconds),
        "prompt_tokens": read,
        "prompt_tokens_per_second": _rate(read, seconds),
        "cached_prompt_tokens": sum(cached) if cached else None,
        "prompt_lengths": _lengths([r.prompt_tokens for r in done]),
        "answer_lengths": _lengths([r.completion_tokens for r in done]),
        "chunks": sum(len(r.arrivals) for r in done),
        **{f"{name}_seconds": distribution(_durations(name, done)) for name in DURATIONS},
    }


def distribution(values: Iterable[float]) -> dict[str, float] | None:
    """Mean and percentiles; between two values a percentile lies on the line, as in NumPy. None: no value."""
    ordered = sorted(values)
    if not ordered:
        return None
    return {"mean": sum(ordered) / len(ordered)} | {f"p{p}": percentile(ordered, p) for p in PERCENTILES}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of ascending values, at least one."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _durations(name: str, records: Iterable[Record]) -> list[float]:
    if name == "end_to_end":
        return [r.ended - r.sent for r in records]
    if name == "time_to_first_token":
        return [r.arrivals[0] - r.sent for r in records if r.arrivals]
    if name == "inter_chunk":
        pairs = (zip(r.arrivals, r.arrivals[1:], strict=False) for r in records)
        return [after - before for each in pairs for before, after in each]
    several = (r for r in records if len(r.arrivals) > 1 and r.completion_tokens > 1)
    return [(r.arrivals[-1] - r.arrivals[0]) / (r.completion_tokens - 1) for r in several]


def _kinds(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The commonest first."""
    counts = collections.Counter(r.failure for r in records if r.failure)
    return [{"kind": kind, "count": count} for kind, count in counts.most_common()]


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _lengths(tokens: Sequence[int]) -> dict[str, float] | None:
    """In tokens, by the server's count."""
    if not tokens:
        return None
    return {"shortest": min(tokens), "mean": sum(tokens) / len(tokens), "longest": max(tokens)}
