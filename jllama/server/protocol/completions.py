"""`/v1/completions`: what a request to continue a text may hold."""

from typing import Annotated

from msgspec import Meta

from jllama.server.protocol import constraints
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.sampling import Sampled, check_tokens
from jllama.text.tokenizer import Tokenizer

MOST_PROMPTS = 1024
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
REFUSED = constraints.REFUSED | {
    "suffix": "a text is continued at its end alone",
    "best_of": "ask for n answers and choose one",
    "tools": "use /v1/chat/completions",
    "prompt_logprobs": "echo=true with logprobs tells them",
    "max_completion_tokens": "it is called max_tokens here",
    "messages": "use /v1/chat/completions, or give a prompt",
}


class CompletionRequest(Sampled, kw_only=True):
    """The body of a request."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool = False

    @property
    def limit(self) -> int | None:
        """16, as in OpenAI's own, where nothing is said."""
        return 16 if self.max_tokens is None else self.max_tokens

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
          ApiError: 400.
        """
        if self.limit == 0 and not self.echo:
            raise ApiError(400, "max_tokens: 0 needs echo=true", param="max_tokens")

    def prompts(self, tokenizer: Tokenizer, vocab_size: int) -> list[list[int]]:
        """The token ids of each prompt; a text's special tokens are spelled out.

        Raises:
          ApiError: 400: there is none, it is empty, or a token is unknown.
        """
        found = [tokenizer.encode(one) if isinstance(one, str) else one for one in _several(self.prompt)]
        for ids in found:
            if not ids:
                raise ApiError(400, "prompt is empty: give at least one token", param="prompt")
            check_tokens(ids, vocab_size, "prompt")
        return found


def _several(prompt: str | list) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt or len(prompt) > MOST_PROMPTS:
        raise ApiError(400, f"prompt: give from 1 to {MOST_PROMPTS} of them", param="prompt")
    kinds = {type(one) for one in prompt}
    if len(kinds) > 1:
        raise ApiError(400, "prompt: a list holds texts, token ids or lists of token ids", param="prompt")
    return [prompt] if kinds == {int} else prompt
