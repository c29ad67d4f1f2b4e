"""`GET /metrics` in Prometheus' format, under vLLM's names: its boards need no more than another prefix."""

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.engine import Engine
from jllama.batching.stream import Stream

PREFIX = "jllama:"
REASONS = ("stop", "length", "abort", "error")
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5, 10, 20, 40, 80, 160, 320)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """What became of the requests, each choice of one by itself."""

    def __init__(self, model: str, engine: Engine) -> None:
        """All at zero.

        Args:
          model: the label of each.
          engine: tells what goes on at a moment.
        """
        self.registry = CollectorRegistry()
        self._model = model
        self.registry.register(Moment(model, engine))
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generated = self._counter("generation_tokens", "Tokens of answers.")
        self._counter("num_preemptions", "Answers that were taken off their slot: none ever is.")
        ends = Counter(
            PREFIX + "request_success", "Answers.", ["model_name", "finished_reason"], registry=self.registry
        )
        self._success = {reason: ends.labels(model, reason) for reason in REASONS}
        self._first = self._seconds("time_to_first_token_seconds", "From a request to its first token.")
        self._whole = self._seconds("e2e_request_latency_seconds", "From a request to its last token.")
        self._queue = self._seconds("request_queue_time_seconds", "Waiting for a slot.")
        self._prefill = self._seconds("request_prefill_time_seconds", "Reading the prompt.")
        self._decode = self._seconds("request_decode_time_seconds", "From the first token to the last.")
        self._between = self._seconds("inter_token_latency_seconds", "Between two tokens, a request's mean.")
        self._read = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self._said = self._histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)

    def ended(self, stream: Stream, reason: str) -> None:
        """Takes in an answer, with whatever came of it."""
        result = stream.answer.result
        self._success[reason].inc()
        self._generated.inc(result.generated_tokens)
        if not result.generated_tokens:
            return
        self._prompt.inc(result.prompt_tokens)
        self._first.observe(result.prefill_seconds)
        self._whole.observe(result.prefill_seconds + result.decode_seconds)
        self._queue.observe(stream.queued_seconds)
        self._prefill.observe(result.prefill_seconds - stream.queued_seconds)
        self._decode.observe(result.decode_seconds)
        self._read.observe(result.prompt_tokens)
        self._said.observe(result.generated_tokens)
        if result.generated_tokens > 1:
            self._between.observe(result.decode_seconds / (result.generated_tokens - 1))

    def _counter(self, name: str, words: str) -> Any:
        made = Counter(PREFIX + name, words, ["model_name"], registry=self.registry)
        return made.labels(self._model)

    def _seconds(self, name: str, words: str) -> Any:
        return self._histogram(name, words, SECONDS)

    def _histogram(self, name: str, words: str, buckets: Sequence[float]) -> Any:
        made = Histogram(PREFIX + name, words, ["model_name"], buckets=buckets, registry=self.registry)
        return made.labels(self._model)


class Moment(Collector):
    """What the engine tells whenever somebody asks."""

    def __init__(self, model: str, engine: Engine) -> None:
        self._model, self._engine = model, engine

    def collect(self) -> Iterator[Metric]:
        """One number each."""
        stats = self._engine.stats
        gauges = (
            ("num_requests_running", "Answers that have a slot.", stats.running),
            ("num_requests_waiting", "Answers that wait for one.", stats.waiting),
            ("kv_cache_usage_perc", "Share of the slots' positions in use, from 0 to 1.", stats.used),
        )
        counters = (
            ("prefix_cache_queries", "Tokens of prompts that were looked for.", stats.asked_tokens),
            ("prefix_cache_hits", "Of them: those that were there already.", stats.reused_tokens),
        )
        families = ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters))
        for family, values in families:
            for name, words, value in values:
                made = family(PREFIX + name, words, labels=["model_name"])
                made.add_metric([self._model], value)
                yield made


async def metrics(request: Request) -> Response:
    """All of them as text."""
    found: Metrics = request.app.state.service.metrics
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
