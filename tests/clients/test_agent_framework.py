"""Microsoft's Agent Framework on both endpoints: an agent with a tool, typed output, a fan-out of runs."""

import asyncio

import pydantic
import pytest
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient


class Verdict(pydantic.BaseModel):
    good: bool
    score: int


@pytest.fixture(params=[OpenAIChatCompletionClient, OpenAIChatClient])  # the second speaks /v1/responses
def agent(thaw, request):
    """agent(**fields) -> Agent of a client of its own."""

    def make(**fields):
        client = request.param(thaw.model, base_url=thaw.v1, api_key="none")
        options = {"max_tokens": 60, "temperature": 0}
        return client.as_agent(name="agent", default_options=options, **fields)

    return make


def test_an_agent_calls_its_tool(agent, weather):
    result = asyncio.run(agent(tools=[weather]).run("What is the weather in Bonn?"))
    assert len(weather.cities) == 1
    assert result.text


def test_output_has_its_type(agent):
    wanted = {"response_format": Verdict}
    result = asyncio.run(agent().run("Is bread good? Judge.", options=wanted))
    assert isinstance(result.value, Verdict)


def test_a_fan_out_is_one_trunk(thaw, agent):
    document = thaw.document("framework")

    async def fan_out():
        branch = agent(instructions=document)
        return await asyncio.gather(*(branch.run(topic) for topic in thaw.topics))

    with thaw.one_trunk(document):
        answers = asyncio.run(fan_out())
    assert all(answer.text for answer in answers)
