"""Strands on both endpoints: an agent with a tool, typed output, a fan-out of agents. It always streams."""

import asyncio

import pydantic
import pytest
import strands
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel


class Verdict(pydantic.BaseModel):
    """A judgement."""

    good: bool
    score: int = pydantic.Field(ge=0, le=10)


@pytest.fixture(params=[OpenAIModel, OpenAIResponsesModel])
def agent(thaw, request):
    """agent(**fields) -> Agent with a model of its own. `stop`: strings that end replies; one that reaches
    `max_tokens` is an error to this client."""

    def make(stop=None, **fields) -> strands.Agent:
        limit = "max_tokens" if request.param is OpenAIModel else "max_output_tokens"
        model = request.param(
            client_args={"api_key": "none", "base_url": thaw.v1},
            model_id=thaw.model,
            params={limit: 60, "temperature": 0, "extra_body": {"stop": stop}},
        )
        return strands.Agent(model=model, callback_handler=None, **fields)

    return make


def test_an_agent_calls_its_tool(agent, weather):
    result = agent(tools=[strands.tool(weather)])("What is the weather in Bonn?")
    assert len(weather.cities) == 1
    assert str(result)


def test_output_has_its_type(agent):
    result = agent()("Is bread good? Judge.", structured_output_model=Verdict)
    assert isinstance(result.structured_output, Verdict)


def test_a_fan_out_is_one_trunk(thaw, agent):
    document = thaw.document("strands")

    async def fan_out():
        branches = (agent([" "], system_prompt=document).invoke_async(topic) for topic in thaw.topics)
        return await asyncio.gather(*branches)

    with thaw.one_trunk(document) as usages:
        for result in asyncio.run(fan_out()):
            usage = result.metrics.accumulated_usage
            usages.append((usage["inputTokens"], usage.get("cacheReadInputTokens", 0)))
