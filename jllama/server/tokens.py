"""`POST /tokenize`, `/detokenize` and `/apply-template`: texts and token ids, without the model."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jllama.server.bodies import body_of
from jllama.server.conversation import encoded
from jllama.server.json_response import json_response
from jllama.server.protocol.parsing import parse
from jllama.server.protocol.tokens import DetokenizeRequest, TemplateRequest, TokenizeRequest
from jllama.server.protocol.tools import tool_use
from jllama.server.scores import spelled
from jllama.server.service import Service


async def tokenize(request: Request) -> Response:
    """The token ids of a text or a conversation."""
    return await _answered(request, _tokenized)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    return await _answered(request, _detokenized)


async def apply_template(request: Request) -> Response:
    """A conversation as the model reads it: as text, and as token ids, which tell special tokens for sure."""
    return await _answered(request, _templated)


async def _answered(request: Request, work: Callable[[Service, bytes], Any]) -> Response:
    service: Service = request.app.state.service
    body = await body_of(request, service.options.largest_body)
    return json_response(await service.in_thread(work, service, body))


def _tokenized(service: Service, body: bytes) -> dict[str, Any]:
    given = parse(body, TokenizeRequest)
    given.check()
    service.check_model(given.model)
    if given.prompt is None:
        ids = _prompt(service, given)
    else:
        ids = service.tokenizer.encode(
            given.prompt, add_special=given.add_special_tokens, parse_special=given.parse_special
        )
    told = [spelled(service.tokenizer, token) for token in ids] if given.return_token_strs else None
    return {
        "count": len(ids),
        "max_model_len": service.engine.max_seq_len,
        "tokens": ids,
        "token_strs": told,
    }


def _detokenized(service: Service, body: bytes) -> dict[str, Any]:
    given = parse(body, DetokenizeRequest)
    service.check_model(given.model)
    return {"prompt": service.tokenizer.decode(given.tokens, skip_special=given.skip_special_tokens)}


def _templated(service: Service, body: bytes) -> dict[str, Any]:
    given = parse(body, TemplateRequest)
    service.check_model(given.model)
    ids = _prompt(service, given)
    return {"prompt": service.tokenizer.decode(ids, skip_special=False), "tokens": ids}


def _prompt(service: Service, given: TemplateRequest) -> list[int]:
    asking, beginning = encoded(service, given, tool_use(given.tools, given.tool_choice, None))
    return asking + beginning
