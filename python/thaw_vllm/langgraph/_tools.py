"""Tools, forced calls and structured output in the words of the request."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import (
    BaseCumulativeTransformOutputParser,
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

Json = dict[str, Any]

_CHOICE_WORDS = ("auto", "none", "any")
_FORMATS = ("json_schema", "json_object", "text", "structural_tag")
# A dict with one of these is a tool of OpenAI's, Anthropic's or Amazon's form; JSON schemas have none.
_TOOL_KEYS = frozenset({"name", "function", "toolSpec"})


def tool_choice_of(choice: str | bool | Mapping[str, Any] | None, tools: Sequence[Json]) -> Any:
    """What a caller of bind_tools() chose -> the request's tool_choice; None: left out.

    Raises ValueError for a tool that is not bound.
    """
    if isinstance(choice, Mapping) and choice.get("type") in _CHOICE_WORDS:  # Anthropic's form
        choice = str(choice["type"])
    if choice is None or choice is False:
        return None
    if choice is True or choice in ("any", "required"):
        return "required"
    if choice in ("auto", "none"):
        return choice
    names = [tool["function"]["name"] for tool in tools if tool.get("type") == "function"]
    if isinstance(choice, str):
        name = choice
        choice = {"type": "function", "function": {"name": name}}
    elif choice.get("type") == "tool":  # Anthropic's form
        name = str(choice.get("name"))
        choice = {"type": "function", "function": {"name": name}}
    elif choice.get("type") == "function":
        name = str((choice.get("function") or choice).get("name"))
    else:
        return dict(choice)
    if name not in names:
        raise ValueError(f"tool_choice is {name!r}; bound are {', '.join(names) or 'no tools'}")
    return dict(choice)


def response_format_of(schema: Any, *, strict: bool | None = None) -> Json:
    """A pydantic class, TypedDict, JSON schema, or what is a response_format already -> a response_format."""
    if isinstance(schema, dict) and schema.get("type") in _FORMATS:
        return schema
    if isinstance(schema, dict) and "schema" in schema and "name" in schema:
        return {"type": "json_schema", "json_schema": schema}
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        schema = {"title": schema.__name__, **schema.model_json_schema()}
    if _is_json_schema(schema):
        # Not LangChain's way to make a tool of it, which drops recursion, and all that has no properties.
        named: Json = {
            "name": schema.get("title") or "output",
            "description": schema.get("description"),
            "parameters": schema,
        }
    else:
        named = convert_to_openai_tool(schema)["function"]
    body: Json = {"name": named["name"], "schema": named.get("parameters") or {"type": "object"}}
    if named.get("description"):
        body["description"] = named["description"]
    if strict is not None:
        body["strict"] = strict
    return {"type": "json_schema", "json_schema": body}


def _is_json_schema(schema: Any) -> bool:
    return isinstance(schema, dict) and not _TOOL_KEYS & schema.keys()


def _titled(schema: Any) -> Any:
    """A JSON schema needs no title, but LangChain asks for one."""
    return {"title": "output", **schema} if _is_json_schema(schema) else schema


class _Whole(BaseCumulativeTransformOutputParser[Any]):
    """Refuses a reply that was cut, of which LangChain's parsers make what can be made.

    Of a stream it lets through what there is, as they do. Raises OutputParserException.
    """

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            self._check(result[0])
        return super().parse_result(result, partial=partial)

    def _check(self, reply: Generation) -> None:
        message = getattr(reply, "message", None)
        if message is None:
            return
        if message.response_metadata.get("finish_reason") == "length":
            usage = message.usage_metadata
            count = f" after {usage['output_tokens']} tokens" if usage else ""
            raise OutputParserException(
                f"max_tokens cut the reply{count}: {reply.text}", llm_output=reply.text
            )
        for call in getattr(message, "invalid_tool_calls", []):
            raise OutputParserException(
                f"the arguments of {call['name']} are no JSON object ({call['error']}): {call['args']}",
                llm_output=call["args"],
            )


class _WholeJson(_Whole):
    def _check(self, reply: Generation) -> None:
        super()._check(reply)
        try:
            json.loads(reply.text)
        except ValueError as error:
            raise OutputParserException(
                f"the reply is no JSON ({error}): {reply.text}", llm_output=reply.text
            ) from error


class _JsonParser(_WholeJson, JsonOutputParser):
    pass


class _ObjectParser(_WholeJson, PydanticOutputParser[Any]):
    pass


class _CallParser(_Whole, JsonOutputKeyToolsParser):
    pass


class _ObjectCallParser(_Whole, PydanticToolsParser):
    pass


def structured_parser(schema: Any, method: str) -> BaseOutputParser[Any]:
    """What reads the message that `method` gives. ``schema`` may be None with "json_mode"."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method != "function_calling":
        return _ObjectParser(pydantic_object=schema) if is_class else _JsonParser()
    if is_class:
        return _ObjectCallParser(tools=[schema], first_tool_only=True)
    name = convert_to_openai_tool(_titled(schema))["function"]["name"]
    return _CallParser(key_name=name, first_tool_only=True)


def function_tool(schema: Any, strict: bool | None) -> Json:
    return convert_to_openai_tool(_titled(schema), strict=strict)


def parsed_by(
    model: Runnable[LanguageModelInput, Any], parser: BaseOutputParser[Any], *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """With ``include_raw`` a dict of "raw", "parsed" and "parsing_error", else what was parsed."""
    if not include_raw:
        return model | parser
    attempt = RunnablePassthrough.assign(
        parsed=operator.itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | attempt.with_fallbacks([failed], exception_key="parsing_error")
