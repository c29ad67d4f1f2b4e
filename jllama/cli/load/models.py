"""Under which name a server knows its model."""

import msgspec

from jllama.cli.load.prompts import refused
from jllama.cli.load.reply import RequestError, UnreachableError, message_of
from jllama.cli.load.target import Target
from jllama.errors import JllamaError, nearest


async def served_model(target: Target, wanted: str | None) -> str:
    """The name for requests: the one that is wanted, else the first that the server lists.

    Raises:
      JllamaError: there is no server, it wants another key, or does not know the model.
    """
    try:
        status, body = await target.ask("GET", "/v1/models")
    except UnreachableError as error:
        words = "start a server, as in jllama serve smollm2, or say where it is by --url"
        raise JllamaError(f"{error}: {words}") from None
    except RequestError as error:
        raise refused(error) from None
    if status in (401, 403):
        raise refused(RequestError(f"HTTP {status}: {message_of(body)}"))
    names = _names(body) if status == 200 else []
    if wanted is None and not names:
        raise JllamaError(
            f"{target.url}/v1/models lists no model: give --served_model=NAME, or another --url"
        )
    if wanted is not None and names and wanted not in names:
        there = ", ".join(names[:10])
        raise JllamaError(f"--served_model={wanted}: unknown there{nearest(wanted, names)}; there is {there}")
    return wanted or names[0]


def _names(body: bytes) -> list[str]:
    """Of a list of models; none if it is no such list."""
    try:
        return [str(each["id"]) for each in msgspec.json.decode(body)["data"]]
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError):
        return []
