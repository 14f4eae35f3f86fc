"""openai on both endpoints: tools, parsed output and fan-outs."""

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


def test_a_tool_goes_round_in_responses(thaw, client):
    """The second call has nothing but the result: the server knows the rest."""
    tool = {
        "type": "function",
        "name": "weather",
        "description": Weather.__doc__,
        "parameters": Weather.model_json_schema(),
        "strict": True,
    }
    fields = {"model": thaw.model, "tools": [tool], "max_output_tokens": 80, "temperature": 0}
    called = client.responses.create(input="What is the weather in Bonn?", **fields)
    (call,) = (item for item in called.output if item.type == "function_call")
    Weather.model_validate_json(call.arguments)
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": json.dumps({"weather": "rain"}),
    }
    answer = client.responses.create(previous_response_id=called.id, input=[result], **fields)
    assert answer.output_text
    # All but the block that the call ended in was there.
    had = called.usage.input_tokens + called.usage.output_tokens
    assert answer.usage.input_tokens_details.cached_tokens > had - 2 * 16


def test_responses_are_parsed(thaw, client):
    fields = {"model": thaw.model, "input": "Is bread good? Judge.", "text_format": Verdict}
    assert isinstance(client.responses.parse(**fields, max_output_tokens=60).output_parsed, Verdict)
    with client.responses.stream(**fields, max_output_tokens=60) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_response().output_parsed, Verdict)
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds


@pytest.mark.parametrize("by_id", [False, True])
def test_a_fan_out_of_responses_is_one_trunk(thaw, by_id):
    """Of calls that repeat the trunk, and of calls that go on with one response."""
    document = thaw.document("responses")

    async def fan_out():
        async with openai.AsyncOpenAI(base_url=thaw.v1, api_key="none") as client:
            fields = {"model": thaw.model, "max_output_tokens": 8}
            used = []
            if by_id:
                first = await client.responses.create(input=document, **fields)
                used.append(first.usage)
                fields["previous_response_id"] = first.id
            else:
                fields["instructions"] = document
            calls = (client.responses.create(input=topic, **fields) for topic in thaw.topics)
            used += [reply.usage for reply in await asyncio.gather(*calls)]
            return used

    with thaw.one_trunk(document) as usages:
        used = asyncio.run(fan_out())
        tokens = [(usage.input_tokens, usage.input_tokens_details.cached_tokens) for usage in used]
        usages += tokens[-4:]
        if by_id:  # the trunk is the first call's, the branches had it
            (first, cached) = tokens[0]
            usages[0] = (usages[0][0] + first - cached, usages[0][1])
