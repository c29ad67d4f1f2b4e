"""The parameters that chat and completions share, and the settings that they mean."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from jllama.errors import JllamaError
from jllama.server.protocol.constraints import constraint_of
from jllama.server.protocol.drawing import drawn_seed
from jllama.server.protocol.errors import ApiError, translated
from jllama.settings import CHOICES, GenerationSettings, build_settings

MOST_CHOICES, MOST_STOPS = 128, 64
UNLIMITED = 10_000_000  # tokens: the engine ends an answer where its slot does
Stop = Annotated[str, Meta(min_length=1, max_length=1000)]
Chance = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What else a stream tells."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampled(msgspec.Struct, kw_only=True):
    """How to answer. None is what the server was started with."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] = 1
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Chance | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Chance | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=MOST_STOPS)] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    logit_bias: dict[int, Bias] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    grammar: Annotated[str, Meta(min_length=1)] | None = None
    json_schema: dict[str, Any] | bool | None = None

    def constraint(self) -> tuple[dict[str, Any], str | None]:
        """What the answer must match, as fields of `GenerationSettings`, and the parameter that says so.

        Raises:
          ApiError: 400.
        """
        return constraint_of(self.response_format, self.structured_outputs, self.grammar, self.json_schema)

    @property
    def limit(self) -> int | None:
        """Tokens that an answer may have; None: as many as there is room for."""
        return self.max_tokens

    def settings(self, defaults: Mapping[str, Any], vocab_size: int) -> GenerationSettings:
        """What they mean, with a seed.

        Raises:
          ApiError: 400: a value is out of its range, or a token is unknown.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is for stream=true alone", param="stream_options")
        for name in ("logit_bias", "stop_token_ids"):
            check_tokens(getattr(self, name) or (), vocab_size, name)
        if self.limit is not None and self.min_tokens > self.limit:
            words = f"min_tokens={self.min_tokens} is more than the limit of {self.limit}"
            raise ApiError(400, words, param="min_tokens")
        try:
            return build_settings(**{**defaults, **self._given()})
        except JllamaError as error:
            raise translated(error) from None

    def _given(self) -> dict[str, Any]:
        choices = {name: getattr(self, name) for name in CHOICES if getattr(self, name) is not None}
        if "top_k" in choices:
            choices["top_k"] = max(choices["top_k"], 0)  # -1 is another word for all
        if "top_p" in choices:
            choices["top_p"] = max(choices["top_p"], 1e-9)  # 0 leaves the likeliest token
        return choices | dict(
            max_new_tokens=max(UNLIMITED if self.limit is None else self.limit, 1),
            seed=drawn_seed() if self.seed is None else self.seed,
            min_new_tokens=self.min_tokens,
            stop=self.stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            logit_bias=self.logit_bias,
        )


def check_tokens(tokens: Iterable[int], vocab_size: int, name: str) -> None:
    """Refuses ids that name no token of the model.

    Raises:
      ApiError: 400; `name` is the parameter.
    """
    unknown = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if unknown is not None:
        words = f"{name}: token {unknown} is unknown; they go from 0 to {vocab_size - 1}"
        raise ApiError(400, words, param=name)
