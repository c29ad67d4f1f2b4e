"""`GET /metrics` in Prometheus' format, under vLLM's names: its boards need no more than another prefix."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream

PREFIX = "jllama:"
REASONS = ("stop", "length", "abort", "error")
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5, 10, 20, 40, 80, 160, 320)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """What became of the requests, each choice of one by itself."""

    def __init__(self, model: str) -> None:
        """All at zero. Args: `model`: the label of each."""
        self.registry = CollectorRegistry()
        self._model = model
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generated = self._counter("generation_tokens", "Tokens of answers.")
        self._queries = self._counter("prefix_cache_queries", "Tokens of prompts that were looked for.")
        self._hits = self._counter("prefix_cache_hits", "Of them: those that were there already.")
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
        self._queries.inc(result.prompt_tokens)
        self._hits.inc(result.reused_tokens)
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


async def metrics(request: Request) -> Response:
    """All of them as text."""
    found: Metrics = request.app.state.service.metrics
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
