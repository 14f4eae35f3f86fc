"""Tools, forced calls and structured output in the words of the request."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

Json = dict[str, Any]


def tool_choice_of(choice: str | bool | Mapping[str, Any] | None, tools: Sequence[Json]) -> Any:
    """What a caller of bind_tools() chose -> the request's tool_choice; None: left out.

    Raises ValueError for a tool that is not bound.
    """
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
    if isinstance(schema, dict) and schema.get("type") in ("json_schema", "json_object", "text"):
        return schema
    if isinstance(schema, dict) and "schema" in schema and "name" in schema:
        return {"type": "json_schema", "json_schema": schema}
    function = convert_to_openai_tool(_titled(schema))["function"]
    body: Json = {"name": function["name"], "schema": function.get("parameters") or {"type": "object"}}
    if function.get("description"):
        body["description"] = function["description"]
    if strict is not None:
        body["strict"] = strict
    return {"type": "json_schema", "json_schema": body}


def _titled(schema: Any) -> Any:
    """A JSON schema needs no title, but LangChain asks for one."""
    if (
        isinstance(schema, dict)
        and "title" not in schema
        and "name" not in schema
        and "function" not in schema
    ):
        return {"title": "output", **schema}
    return schema


def structured_parser(schema: Any, method: str) -> BaseOutputParser[Any]:
    """What reads the message that `method` gives. ``schema`` may be None with "json_mode"."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method != "function_calling":
        return cast(
            BaseOutputParser[Any],
            PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser(),
        )
    if is_class:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    name = convert_to_openai_tool(_titled(schema))["function"]["name"]
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


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
