"""What an answer must match: `response_format`, and the fields of vLLM and llama.cpp that say more."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.parsing import convert

OLD = 'give {"structured_outputs": …}, as vLLM has it'
REFUSED = {f"guided_{name}": OLD for name in ("json", "regex", "choice", "grammar", "decoding_backend")}
Schema = dict[str, Any] | bool


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A schema with a name for people; it is enforced whether it is `strict` or not."""

    schema: Schema
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct, forbid_unknown_fields=True, tag="text"):
    """Any text."""

    def constraint(self) -> dict[str, Any]:
        """As fields of `GenerationSettings`."""
        return {}


class JsonObject(msgspec.Struct, forbid_unknown_fields=True, tag="json_object"):
    """A JSON object, of a schema if there is one (llama.cpp)."""

    schema: Schema | None = None

    def constraint(self) -> dict[str, Any]:
        """As fields of `GenerationSettings`."""
        return {"json_object": True} if self.schema is None else {"json_schema": self.schema}


class JsonOfSchema(msgspec.Struct, forbid_unknown_fields=True, tag="json_schema"):
    """JSON of a schema, as `/v1/chat/completions` writes it."""

    json_schema: JsonSchema

    def constraint(self) -> dict[str, Any]:
        """As fields of `GenerationSettings`."""
        return {"json_schema": self.json_schema.schema}


class FlatJsonOfSchema(JsonSchema, kw_only=True, tag="json_schema"):
    """JSON of a schema, as `/v1/responses` writes it."""

    def constraint(self) -> dict[str, Any]:
        """As fields of `GenerationSettings`."""
        return {"json_schema": self.schema}


ResponseFormat = Text | JsonObject | JsonOfSchema
TextFormat = Text | JsonObject | FlatJsonOfSchema


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """As vLLM has it: one of them."""

    json: Schema | str | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1)] | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None

    def constraint(self) -> dict[str, Any]:
        """As fields of `GenerationSettings`.

        Raises:
          ApiError: 400: there is none of them, or more.
        """
        names = {"json": "json_schema"}
        given = {
            names.get(name, name): value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            words = f"structured_outputs: give one of {', '.join(self.__struct_fields__)}"
            raise ApiError(400, words, param="structured_outputs")
        return given


def constraint_of(
    response_format: dict[str, Any] | None,
    structured_outputs: dict[str, Any] | None,
    grammar: str | None,
    json_schema: Schema | None,
) -> tuple[dict[str, Any], str | None]:
    """What a request asks for, as fields of `GenerationSettings`, and the parameter that does.

    Raises:
      ApiError: 400: something of it is unknown, or two of them are given.
    """
    found: dict[str, dict[str, Any]] = {}
    if response_format is not None:
        found["response_format"] = format_of(response_format, ResponseFormat, "response_format")
    if structured_outputs is not None:
        read = convert(structured_outputs, StructuredOutputs, "structured_outputs")
        found["structured_outputs"] = read.constraint()
    found |= {"grammar": {"grammar": grammar}} if grammar is not None else {}
    found |= {"json_schema": {"json_schema": json_schema}} if json_schema is not None else {}
    asked = [name for name, fields in found.items() if fields]
    if len(asked) > 1:
        raise ApiError(400, f"{' and '.join(asked)} can't hold at once: give one of them", param=asked[1])
    return (found[asked[0]], asked[0]) if asked else ({}, None)


def format_of(given: dict[str, Any], kind: Any, where: str) -> dict[str, Any]:
    """A format as fields of `GenerationSettings`.

    Raises:
      ApiError: 400, with the place of what is wrong.
    """
    present = {name: value for name, value in given.items() if value is not None}
    return convert(present, kind, where).constraint()
