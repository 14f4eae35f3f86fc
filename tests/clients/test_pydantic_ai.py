"""Pydantic AI on both endpoints: an agent with a tool, output by tool and by schema, a fan-out of runs."""

import asyncio

import pydantic
import pytest
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Verdict(pydantic.BaseModel):
    good: bool
    score: int = pydantic.Field(ge=0, le=10)


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])  # the second is what "openai:..." means
def agent(thaw, request):
    """agent(**fields) -> Agent."""
    provider = OpenAIProvider(base_url=thaw.v1, api_key="none")
    model = request.param(thaw.model, provider=provider)
    return lambda **fields: Agent(model, model_settings={"max_tokens": 60, "temperature": 0}, **fields)


def test_an_agent_calls_its_tool(agent, weather):
    result = asyncio.run(agent(tools=[weather]).run("What is the weather in Bonn?"))
    assert len(weather.cities) == 1
    assert result.output


def test_output_has_its_type(agent):
    for wanted in (Verdict, NativeOutput(Verdict)):  # a call of a tool, and a schema
        result = asyncio.run(agent(output_type=wanted).run("Is bread good? Judge."))
        assert isinstance(result.output, Verdict)


def test_a_fan_out_is_one_trunk(thaw, agent):
    document = thaw.document("pydantic")
    branch = agent(system_prompt=document)

    async def fan_out():
        return await asyncio.gather(*(branch.run(topic) for topic in thaw.topics))

    with thaw.one_trunk(document) as usages:
        for result in asyncio.run(fan_out()):
            usages.append((result.usage.input_tokens, result.usage.cache_read_tokens))
