"""openai: tools, parsed output and a fan-out."""

import asyncio
import json

import openai
import pydantic
import pytest


class Verdict(pydantic.BaseModel):
    good: bool
    score: int = pydantic.Field(ge=0, le=10)


class Weather(pydantic.BaseModel):
    """Tells the weather in a city."""

    city: str = pydantic.Field(max_length=24)


@pytest.fixture
def client(thaw):
    return openai.OpenAI(base_url=thaw.v1, api_key="none", max_retries=0)


def test_a_tool_goes_round(thaw, client):
    messages = [{"role": "user", "content": "What is the weather in Bonn?"}]
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    fields = {"model": thaw.model, "tools": tools, "max_tokens": 80, "temperature": 0}
    called = client.chat.completions.create(messages=messages, **fields).choices[0]
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    Weather.model_validate_json(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"weather": "rain"})}
    messages += [called.message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(messages=messages, **fields).choices[0]
    assert answer.message.content and answer.message.tool_calls is None


def test_output_is_parsed(thaw, client):
    question = [{"role": "user", "content": "Is bread good? Judge."}]
    fields = {"model": thaw.model, "messages": question, "response_format": Verdict, "max_tokens": 60}
    assert isinstance(client.chat.completions.parse(**fields).choices[0].message.parsed, Verdict)
    with client.chat.completions.stream(**fields) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Verdict)


def test_a_fan_out_is_one_trunk(thaw):
    document = thaw.document("openai")

    async def branch(client, topic: str):
        messages = [{"role": "system", "content": document}, {"role": "user", "content": topic}]
        return await client.chat.completions.create(model=thaw.model, messages=messages, max_tokens=8)

    async def fan_out():
        async with openai.AsyncOpenAI(base_url=thaw.v1, api_key="none") as client:
            return await asyncio.gather(*(branch(client, topic) for topic in thaw.topics))

    with thaw.one_trunk(document) as usages:
        for reply in asyncio.run(fan_out()):
            cached = reply.usage.prompt_tokens_details.cached_tokens
            usages.append((reply.usage.prompt_tokens, cached))
