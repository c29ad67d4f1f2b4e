"""`/v1/chat/completions`: what a conversation's request may hold."""

from typing import Annotated, Any

from msgspec import Meta

from jllama.server.protocol import constraints
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.sampling import Sampled

REFUSED = constraints.REFUSED | {
    "functions": "it is called tools now",
    "function_call": "it is called tool_choice now",
    "modalities": "the model reads and writes text alone",
    "audio": "the model reads and writes text alone",
    "prediction": "leave it out; answers do not get faster by it",
    "web_search_options": "the server searches nothing",
    "reasoning_effort": 'give what the model\'s template knows, as {"chat_template_kwargs": …}',
    "verbosity": "ask for it in a message",
    "echo": "an answer never repeats its prompt here; /v1/completions can",
    "best_of": "ask for n answers and choose one",
}


class ChatRequest(Sampled, kw_only=True):
    """The body of a request."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    return_token_ids: bool = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """The one of the two names of it that was given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
          ApiError: 400.
        """
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            words = "max_tokens and max_completion_tokens are two names of one limit: give one of them"
            raise ApiError(400, words, param="max_tokens")
        if self.limit == 0:
            raise ApiError(400, "max_tokens: an answer has at least one token", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
        if self.return_token_ids and not self.logprobs:
            raise ApiError(400, "return_token_ids needs logprobs=true", param="return_token_ids")

    @property
    def likeliest(self) -> int | None:
        """Tokens told beside each one; None: log-probabilities are not told."""
        return (self.top_logprobs or 0) if self.logprobs else None
