"""Tool calls and structured output on the real model, through the openai SDK and LangChain."""

import json
import typing

import openai
import pydantic
import pytest
from conftest import BUILD, real_model
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from thaw_server import ThawServer

FORCED_CALLS = 10
MODEL = "SmolLM2-135M-Instruct.Q4_1"


class Weather(pydantic.BaseModel):
    """What the weather is in a city."""

    city: str = pydantic.Field(max_length=24)
    unit: typing.Literal["celsius", "fahrenheit"]
    days: int = pydantic.Field(ge=1, le=7)


class Verdict(pydantic.BaseModel):
    good: bool
    score: int = pydantic.Field(ge=0, le=10)


TOOL = openai.pydantic_function_tool(Weather, name="weather")
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Tells the time."}}
QUESTION = [{"role": "user", "content": "What will the weather be in Paris in the next 3 days?"}]


@pytest.fixture(scope="module")
def tool_server(image_cache):
    server = ThawServer(BUILD / "bin" / "thaw", real_model(), (), image_cache)
    server.wait_healthy()
    yield server
    server.stop()


@pytest.fixture
def client(tool_server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{tool_server.port}/v1", api_key="none", max_retries=0)


def ask(client, **fields):
    fields = {"model": MODEL, "messages": QUESTION, "max_tokens": 200, "seed": 1, **fields}
    return client.chat.completions.create(**fields).choices[0]


def forced_calls(client, count: int):
    """Any schema holds at any temperature."""
    for seed in range(count):
        choice = ask(client, tools=[TOOL, CLOCK], tool_choice="required", temperature=1, seed=seed)
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.id.startswith("call_") and call.type == "function"
        if call.function.name == "weather":
            Weather.model_validate_json(call.function.arguments)
        else:
            assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {})


def test_forced_calls_always_parse(client):
    forced_calls(client, FORCED_CALLS)


def test_named_none_and_parallel(client):
    named = {"type": "function", "function": {"name": "clock"}}
    assert ask(client, tools=[TOOL, CLOCK], tool_choice=named).message.tool_calls[0].function.name == "clock"
    free = ask(client, tools=[TOOL], tool_choice="none", max_tokens=8)
    assert free.message.tool_calls is None and free.message.content
    several = ask(client, tools=[CLOCK], tool_choice="required", parallel_tool_calls=True, max_tokens=120)
    assert {call.function.name for call in several.message.tool_calls} == {"clock"}


def test_streamed_calls_are_the_whole_ones(client):
    fields = {"tools": [TOOL], "tool_choice": "required", "temperature": 1}
    whole = ask(client, **fields).message.tool_calls[0]
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, max_tokens=200, seed=1, **fields
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    streamed = final.message.tool_calls[0]
    assert streamed.function.arguments == whole.function.arguments
    assert isinstance(streamed.function.parsed_arguments, Weather)
    kinds = [event.type for event in events]
    assert kinds.count("tool_calls.function.arguments.delta") > 1
    assert kinds.count("tool_calls.function.arguments.done") == 1


def test_schemas_parse_into_models(client):
    verdict = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Is bread good? Judge."}],
        response_format=Verdict,
        temperature=1,
        max_tokens=60,
    ).choices[0]
    assert isinstance(verdict.message.parsed, Verdict) and verdict.finish_reason == "stop"
    anything = ask(client, response_format={"type": "json_object"}, max_tokens=300, temperature=0)
    if anything.finish_reason == "stop":
        assert isinstance(json.loads(anything.message.content), dict)
    assert anything.message.content.startswith("{")


def test_a_call_or_the_schema(client):
    """What LangChain's create_agent sends for a structured response."""
    schema = {"name": "verdict", "schema": Verdict.model_json_schema()}
    for seed in range(4):
        choice = ask(
            client,
            tools=[CLOCK],
            response_format={"type": "json_schema", "json_schema": schema},
            temperature=1,
            seed=seed,
        )
        if choice.message.tool_calls:
            assert choice.message.tool_calls[0].function.name == "clock"
        else:
            Verdict.model_validate_json(choice.message.content)


def test_other_forms(client):
    def form(**extra):
        return ask(client, extra_body=extra, temperature=1, max_tokens=40).message.content

    assert form(structured_outputs={"choice": ["red", "green"]}) in ("red", "green")
    assert form(guided_regex="[0-9]{3}-[ab]+c").count("-") == 1
    assert form(guided_grammar='root ::= "<" ("x" | "yy") ">"') in ("<x>", "<yy>")


def test_wrong_forms_are_refused(client):
    for extra in (
        {"guided_regex": "(((", "guided_choice": ["a"]},
        {"guided_regex": "(["},
        {"guided_grammar": "no rules here"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
    ):
        with pytest.raises(openai.BadRequestError):
            ask(client, extra_body=extra)


def test_an_agents_loop(tool_server):
    """Eager: the model, which has never seen a tool, calls one, reads its result and answers."""
    chat = ChatOpenAI(
        model=MODEL,
        base_url=f"http://127.0.0.1:{tool_server.port}/v1",
        api_key="none",
        max_tokens=120,
        extra_body={"thaw": {"tool_auto": "eager"}},
    ).bind_tools([TOOL])
    messages = [HumanMessage("What is the weather in Paris?")]
    called = chat.invoke(messages)
    (call,) = called.tool_calls
    Weather.model_validate(call["args"])
    answer = chat.invoke([*messages, called, ToolMessage("Sunny.", tool_call_id=call["id"])])
    assert answer.text
    streamed = None
    for chunk in chat.stream(messages):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["name"] == "weather"
    Weather.model_validate(streamed.tool_calls[0]["args"])


def test_a_fan_out_of_calls_shares_its_trunk(client):
    trunk = [{"role": "system", "content": "Rules of the house. " * 60}]
    usages = []
    for city in ("Rome", "Oslo", "Lima"):
        reply = client.chat.completions.create(
            model=MODEL,
            messages=[*trunk, {"role": "user", "content": f"Weather in {city}?"}],
            tools=[TOOL],
            tool_choice="required",
            max_tokens=120,
        )
        usages.append(reply.usage)
    assert all(usage.prompt_tokens_details.cached_tokens > 200 for usage in usages[1:])
