"""OpenAI's Agents SDK on both endpoints: an agent with a tool, one with an output type, a fan-out of runs."""

import asyncio

import agents
import openai
import pydantic
import pytest

agents.set_tracing_disabled(True)


class Verdict(pydantic.BaseModel):
    good: bool
    score: int


MODELS = [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel]  # the second is its default


@pytest.fixture(params=MODELS)
def agent(thaw, request):
    """agent(**fields) -> Agent of a model of its own. `stop`: strings that end replies; to this client a
    response that reaches `max_tokens` is an error."""

    def make(stop=None, **fields) -> agents.Agent:
        client = openai.AsyncOpenAI(base_url=thaw.v1, api_key="none", max_retries=0)
        model = request.param(model=thaw.model, openai_client=client)
        settings = agents.ModelSettings(max_tokens=60, temperature=0, extra_body={"stop": stop})
        fields = {"instructions": "Be brief.", **fields}
        return agents.Agent(name="agent", model=model, model_settings=settings, **fields)

    return make


def test_an_agent_calls_its_tool(agent, weather):
    called = agent(tools=[agents.function_tool(weather)])
    result = asyncio.run(agents.Runner.run(called, "What is the weather in Bonn?"))
    assert len(weather.cities) == 1
    assert result.final_output


def test_output_has_its_type(agent):
    result = asyncio.run(agents.Runner.run(agent(output_type=Verdict), "Is bread good? Judge."))
    assert isinstance(result.final_output, Verdict)


def test_a_fan_out_is_one_trunk(thaw, agent):
    document = thaw.document("agents")
    branch = agent([" "], instructions=document)

    async def fan_out():
        return await asyncio.gather(*(agents.Runner.run(branch, topic) for topic in thaw.topics))

    with thaw.one_trunk(document) as usages:
        for result in asyncio.run(fan_out()):
            usage = result.context_wrapper.usage
            usages.append((usage.input_tokens, usage.input_tokens_details.cached_tokens))
