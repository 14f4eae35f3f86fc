"""Structured output: which schema is sent, and what is made of replies that are whole and that are not."""

from typing import Any

import pytest
from chats import tiny_chat
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessageChunk, HumanMessage
from pydantic import BaseModel, Field
from thaw_vllm.langgraph import ChatThaw
from thaw_vllm.langgraph._tools import response_format_of, structured_parser
from typing_extensions import TypedDict


class Review(BaseModel):
    """A review."""

    verdict: str
    issues: list[str]


class ReviewDict(TypedDict):
    """A review."""

    verdict: str
    issues: list[str]


class Node(BaseModel):
    """A node."""

    tag: int = Field(ge=0, le=9)
    kids: list["Node"] = Field(max_length=2)


SCHEMA = {**Review.model_json_schema(), "title": "Review"}
WHOLE = '{"verdict": "approve", "issues": ["a"]}'
CUT = '{"verdict": "approve", "issues": ["unchecked le'


class Server:
    """A client whose server answers everything with one reply."""

    def __init__(self, content: str | None, finish_reason: str, arguments: str | None = None) -> None:
        function = {"name": "Review", "arguments": arguments}
        calls = [{"id": "c", "type": "function", "function": function}] if arguments is not None else None
        message = {"role": "assistant", "content": content, "tool_calls": calls}
        choice = {"index": 0, "finish_reason": finish_reason, "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 7}
        self.answer = {"id": "i", "model": "m", "choices": [choice], "usage": usage}

    def call(self, method: str, path: str, body: Any, **more: Any) -> Any:
        return self.answer


def chat(*reply: Any) -> ChatThaw:
    made = ChatThaw(model="m", base_url="http://127.0.0.1:9")
    if reply:
        made._client = Server(*reply)
    return made


# -- replies


@pytest.mark.parametrize("schema", [Review, ReviewDict, SCHEMA, None])
@pytest.mark.parametrize("reply", [CUT, WHOLE])
def test_a_reply_that_max_tokens_cut_is_none(schema, reply):
    method = "json_schema" if schema else "json_mode"
    with pytest.raises(OutputParserException, match="max_tokens cut the reply after 7 tokens"):
        chat(reply, "length").with_structured_output(schema, method=method).invoke("x")
    told = chat(reply, "length").with_structured_output(schema, method=method, include_raw=True).invoke("x")
    assert told["parsed"] is None and "max_tokens" in str(told["parsing_error"])
    assert told["raw"].content == reply


@pytest.mark.parametrize("schema", [Review, ReviewDict, SCHEMA])
def test_a_reply_that_a_stop_sequence_cut_is_none(schema):
    with pytest.raises(OutputParserException, match="is no JSON"):
        chat(CUT, "stop").with_structured_output(schema).invoke("x")


@pytest.mark.parametrize("schema", [Review, ReviewDict, SCHEMA])
@pytest.mark.parametrize(
    "reply, message",
    [
        ((None, "length", CUT), "max_tokens cut the reply"),
        ((None, "length", WHOLE), "max_tokens cut the reply"),
        (("<tool", "length"), "max_tokens cut the reply"),
        ((None, "stop", CUT), "arguments of Review are no JSON object"),
    ],
)
def test_a_call_that_was_cut_is_none(schema, reply, message):
    with pytest.raises(OutputParserException, match=message):
        chat(*reply).with_structured_output(schema, method="function_calling").invoke("x")
    bound = chat(*reply).with_structured_output(schema, method="function_calling", include_raw=True)
    told = bound.invoke("x")
    assert told["parsed"] is None and message in str(told["parsing_error"])


@pytest.mark.parametrize("method, reply", [
    ("json_schema", (WHOLE, "stop")), ("json_mode", (WHOLE, "stop")),
    ("function_calling", (None, "tool_calls", WHOLE)),
])  # fmt: skip
def test_whole_replies(method, reply):
    assert chat(*reply).with_structured_output(Review, method=method).invoke("x") == Review(
        verdict="approve", issues=["a"]
    )
    values = chat(*reply).with_structured_output(SCHEMA, method=method).invoke("x")
    assert values == {"verdict": "approve", "issues": ["a"]}


def test_streams_give_what_there_is():
    parts = [AIMessageChunk('{"verdict": "ap'), AIMessageChunk('prove", "issues": ["a')]
    last = AIMessageChunk("", response_metadata={"finish_reason": "length"}, chunk_position="last")
    assert list(structured_parser(SCHEMA, "json_schema").transform(iter([*parts, last]))) == [
        {"verdict": "ap"},
        {"verdict": "approve", "issues": ["a"]},
    ]
    call = {"name": "Review", "args": CUT, "id": "c", "index": 0, "type": "tool_call_chunk"}
    called = AIMessageChunk("", tool_call_chunks=[call])
    (values,) = structured_parser(SCHEMA, "function_calling").transform(iter([called, last]))
    assert values == {"verdict": "approve", "issues": ["unchecked le"]}


# -- schemas

OBJECT = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
REFERRED = {"$ref": "#/$defs/A", "$defs": {"A": OBJECT}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}},
        {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"enum": ["a", "b"]},
        REFERRED,
    ],
)
def test_a_json_schema_is_sent_as_it_is(schema):
    assert response_format_of(schema)["json_schema"] == {"name": "output", "schema": schema}
    named = {"title": "A name", "description": "What it is.", **schema}
    assert response_format_of(named, strict=True)["json_schema"] == {
        "name": "A name", "description": "What it is.", "schema": named, "strict": True,
    }  # fmt: skip


def test_a_pydantic_class_keeps_its_recursion():
    sent = response_format_of(Node)["json_schema"]
    assert sent["name"] == "Node"
    assert sent["schema"]["$ref"] == "#/$defs/Node"
    assert sent["schema"]["$defs"]["Node"]["properties"]["kids"]["items"] == {"$ref": "#/$defs/Node"}


def test_what_is_no_json_schema_is_converted():
    sent = response_format_of(ReviewDict)["json_schema"]
    assert (sent["name"], sent["description"]) == ("ReviewDict", "A review.")
    assert sorted(sent["schema"]["properties"]) == ["issues", "verdict"]
    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    assert response_format_of(tool)["json_schema"]["schema"] == tool["parameters"]
    for form in ({"type": "json_object"}, {"type": "structural_tag", "format": {"type": "any_text"}}):
        assert response_format_of(form) == form


@pytest.mark.parametrize("schema, kind", [
    ({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2}, list),
    ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, bool | None),
    ({"enum": ["a", "b"]}, str),
    (REFERRED, dict),
])  # fmt: skip
def test_the_engine_keeps_to_them(schema, kind):
    assert isinstance(tiny_chat(max_tokens=200).with_structured_output(schema).invoke("hello"), kind)


def test_the_engine_keeps_to_recursion():
    node = tiny_chat(max_tokens=2000, temperature=1.0, seed=3).with_structured_output(Node).invoke("hello")
    assert isinstance(node, Node)


# -- arguments


@pytest.mark.parametrize("method", ["function_calling", "json_mode"])
def test_tools_go_with_a_schema_only(method):
    with pytest.raises(ValueError, match=f"not with '{method}'"):
        chat().with_structured_output(Review, method=method, tools=[Node])
    assert chat().with_structured_output(Review, tools=[Node]).first.kwargs["tools"]


def test_a_class_may_be_bound_as_response_format():
    bound = chat().bind(response_format=Review)
    body, _ = chat()._request([HumanMessage("x")], None, bound.kwargs, stream=False)
    assert body["response_format"] == response_format_of(Review)
