"""anthropic: its tool runner, parsed output and a fan-out."""

import asyncio

import anthropic
import pydantic
import pytest


class Verdict(pydantic.BaseModel):
    """Without bounds: the client takes them out of the schema and checks them afterwards."""

    good: bool
    score: int


@pytest.fixture
def client(thaw):
    return anthropic.Anthropic(base_url=thaw.url, api_key="none", max_retries=0)


def test_the_tool_runner_goes_round(thaw, client, weather):
    turns = list(
        client.beta.messages.tool_runner(
            model=thaw.model,
            max_tokens=60,
            tools=[anthropic.beta_tool(weather)],
            messages=[{"role": "user", "content": "What is the weather in Bonn?"}],
        )
    )
    assert [turn.stop_reason == "tool_use" for turn in turns] == [True, False]
    assert len(weather.cities) == 1
    assert turns[-1].content[0].type == "text"


def test_output_is_parsed(thaw, client):
    question = [{"role": "user", "content": "Is bread good? Judge."}]
    parsed = client.messages.parse(model=thaw.model, messages=question, max_tokens=60, output_format=Verdict)
    assert isinstance(parsed.parsed_output, Verdict)


def test_a_fan_out_is_one_trunk(thaw):
    document = thaw.document("anthropic")

    async def branch(client, topic: str):
        messages = [{"role": "user", "content": topic}]
        return await client.messages.create(
            model=thaw.model, system=document, messages=messages, max_tokens=8
        )

    async def fan_out():
        async with anthropic.AsyncAnthropic(base_url=thaw.url, api_key="none") as client:
            return await asyncio.gather(*(branch(client, topic) for topic in thaw.topics))

    with thaw.one_trunk(document) as usages:
        for reply in asyncio.run(fan_out()):
            read = reply.usage.cache_read_input_tokens
            usages.append((reply.usage.input_tokens + read, read))
