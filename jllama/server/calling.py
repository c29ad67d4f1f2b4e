"""What the answer to a request must be like: calls of its tools, JSON, a text that matches."""

from collections.abc import Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.grammar.constraint import matcher_for
from jllama.grammar.source import lark_text
from jllama.server.protocol.drawing import drawn_id
from jllama.server.protocol.errors import ApiError, unmatched
from jllama.server.protocol.tools import ToolUse
from jllama.server.reasoning import CLOSE
from jllama.server.service import Service
from jllama.settings import GenerationSettings, build_settings
from jllama.tools.grammar import arguments_schema, behind_thoughts, calls_grammar, json_rule
from jllama.tools.parser import CallParser

Asked = tuple[Mapping[str, Any], str | None]  # fields of `GenerationSettings`, and the parameter that asks


class Calling:
    """The rules of one answer, and who reads its calls."""

    def __init__(self, service: Service, use: ToolUse, asked: Asked, opened: bool = False) -> None:
        """Decides how they are kept.

        Args:
          service: has the model.
          use: the request's tools.
          asked: what an answer without calls must match.
          opened: the answer begins amid thoughts, which may be anything.

        Raises:
          ApiError: 400: they can't be kept together.
        """
        self._fields, self._param = asked
        self._use, self._special_id = use, service.tokenizer.special_id
        self._service = service
        self._format = service.manner.format if use.offered else None
        # A grammar holds the calls to their schemas; then they may be told as they come.
        self._sure = bool(use.offered) and (use.enforced or bool(self._fields))
        self._grammar = self._lark(opened) if self._sure or (opened and self._fields) else None

    def blamed(self, error: JllamaError) -> ApiError:
        """What a client is told where the engine does not take the request: of which schema."""
        if not self._grammar:
            return unmatched(error, self._constrained_by)
        for at, tool in enumerate(self._use.tools):
            if self._sure and tool in self._use.callable:
                why = self._refusal({"json_schema": arguments_schema(tool)})
                before, is_schema, rest = str(why or "").partition("json_schema")
                if is_schema and not before:
                    return ApiError(400, f"tools[{at}]: {tool.name}'s schema{rest}", param=f"tools[{at}]")
        own = self._refusal(self._fields) if self._fields else None
        return unmatched(own, self._param) if own else unmatched(error, self._constrained_by)

    def _refusal(self, fields: Mapping[str, Any]) -> JllamaError | None:
        """Why that can't be matched by itself."""
        try:
            must = build_settings(GenerationSettings(), **fields)
            matcher_for(self._service.tokenizer, self._service.vocab_size, must)
        except JllamaError as error:
            return error
        return None

    @property
    def _constrained_by(self) -> str | None:
        """The parameter that is to blame if a grammar can't be used."""
        return "tools" if self._sure and not (self._fields and not self._use.enforced) else self._param

    @property
    def shown(self) -> tuple[int, ...]:
        """Special tokens that a reader of calls has to see."""
        return self._format.special_ids(self._special_id) if self._format else ()

    def settings(self, settings: GenerationSettings) -> GenerationSettings:
        """These, and what the answer must match.

        Raises:
          ApiError: 400: it can't be matched.
        """
        fields = {"grammar": self._grammar} if self._grammar else self._fields
        return constrained(settings, fields, self._constrained_by)

    def parser(self) -> CallParser | None:
        """Reads the calls of one choice; None: there are none."""
        if self._format is None:
            return None
        names = [tool.name for tool in self._use.offered]
        return CallParser(
            self._format, names, lambda: f"call_{drawn_id()}", sure=self._sure, must=self._use.required
        )

    def _lark(self, opened: bool) -> str:
        answer = self._body() if self._fields and not self._use.required else None
        if not self._sure:
            grammar = f"start: answer\nanswer: {answer}"
        else:
            assert self._format is not None
            if answer is not None and self._format.bare:
                words = f"{self._param} can't hold beside tools: this model writes calls as plain JSON too"
                raise ApiError(400, words, param=self._param)
            rules: Any = dict(required=self._use.required, parallel=self._use.several, answer=answer)
            grammar = calls_grammar(self._format, self._use.callable, self._special_id, **rules)
        return behind_thoughts(grammar, CLOSE, self._special_id) if opened else grammar

    def _body(self) -> str:
        """What an answer must match, as the body of a rule in Lark."""
        ((name, value),) = self._fields.items()
        if name in ("json_schema", "json_object"):
            schema = {"type": "object"} if name == "json_object" else value
            if isinstance(schema, dict):
                return json_rule(schema)
        if name == "choice":
            return " | ".join(map(lark_text, value))
        if name == "regex":
            return "/" + value.replace("\\/", "/").replace("/", "\\/") + "/"
        words = f"{self._param}: a grammar of your own can't hold beside tools or behind thoughts"
        raise ApiError(400, words, param=self._param)


def constrained(
    settings: GenerationSettings, fields: Mapping[str, Any], param: str | None
) -> GenerationSettings:
    """The settings with what an answer must match.

    Raises:
      ApiError: 400: that is no schema, or nothing that can be matched; `param` is to blame.
    """
    if not fields:
        return settings
    try:
        return build_settings(settings, **fields)
    except JllamaError as error:
        raise ApiError(400, str(error), param=param) from None


NO_RULES: Asked = ({}, None)
