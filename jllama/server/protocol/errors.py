"""What a client is told when something is wrong: one shape for all of it."""

from collections.abc import Mapping
from typing import Any

from jllama.errors import EngineFailedError, JllamaError, PromptTooLongError, QueueFullError, escaped

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
RETRY_AFTER = "1"  # seconds: about as long as a short answer takes
INTERNAL = "the server made a mistake; its log says which"


class ApiError(Exception):
    """An answer that is an error: `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Made where the mistake is seen.

        Args:
          status: of HTTP.
          message: what is wrong and how to mend it; may quote what came from outside.
          param: the parameter that is to blame.
          code: a word for programs.
          headers: more of them, such as `Retry-After`.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, escaped(message), param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(self.status, "invalid_request_error")
        code = self.code or (None if self.status == 400 else str(self.status))
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}


def translated(error: BaseException) -> ApiError:
    """What a client is told of an exception; one that nobody foresaw is told apart by its status, 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        words = "too many requests wait already: try again later"
        return ApiError(429, words, code="queue_full", headers={"Retry-After": RETRY_AFTER})
    if isinstance(error, EngineFailedError):
        return ApiError(503, str(error), code="engine_failed")
    if isinstance(error, PromptTooLongError):
        return too_long(error, None)
    if isinstance(error, JllamaError):
        return ApiError(400, str(error), param=_blamed(str(error)))
    return ApiError(500, INTERNAL)


def too_long(error: PromptTooLongError, param: str | None) -> ApiError:
    """A prompt leaves no room for an answer; `param` holds it."""
    whose = "the model's" if error.final else "this server's"
    larger = "" if error.final else ", or start the server with a larger --max_seq_len"
    words = f"{whose} context has {error.limit} tokens, and the prompt has {error.prompt_tokens}: shorten it"
    return ApiError(400, words + larger, param=param, code="context_length_exceeded")


def unmatched(error: JllamaError, param: str | None) -> ApiError:
    """A request that the engine does not take; `param` says what its answer must match, if anything does.

    What can't be matched is told in the words of who would match it.
    """
    told = translated(error)
    return ApiError(told.status, told.message, param=told.param or param, code=told.code)


def failed(error: BaseException) -> BaseException:
    """An error of the engine, where its request was good: it is not the client's mistake."""
    if isinstance(error, JllamaError) and not isinstance(error, EngineFailedError):
        return ApiError(500, str(error), code="engine_error")
    return error


def _blamed(message: str) -> str | None:
    """The setting that a message of `GenerationSettings` begins with, as in `top_k=-3 must be …`."""
    name = message.partition("=")[0]
    return name if name.isidentifier() else None
