"""LlamaIndex on both endpoints: an agent with a tool, structured prediction, a fan-out of chats."""

import asyncio

import pydantic
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike


class Verdict(pydantic.BaseModel):
    """A judgement."""

    good: bool
    score: int = pydantic.Field(ge=0, le=10)


@pytest.fixture
def llm(thaw):
    """llm(**fields) -> OpenAILike on the chat endpoint."""

    def make(**fields) -> OpenAILike:
        fields = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 4096, **fields}
        return OpenAILike(
            model=thaw.model, api_base=thaw.v1, api_key="none", max_tokens=60, temperature=0, **fields
        )

    return make


@pytest.fixture
def responses(thaw):
    """By a name that it knows: it asks no other models for calls."""
    fields = {"model": thaw.alias, "api_base": thaw.v1, "api_key": "none", "context_window": 4096}
    return OpenAIResponses(max_output_tokens=60, temperature=0, **fields)


@pytest.fixture(params=["chat", "responses"])
def either(llm, responses, request):
    return llm() if request.param == "chat" else responses


def test_an_agent_calls_its_tool(either, weather):
    async def run():
        agent = FunctionAgent(tools=[weather], llm=either, allow_parallel_tool_calls=False)
        return await agent.run("What is the weather in Bonn?")

    answer = asyncio.run(run())
    assert len(weather.cities) == 1
    assert str(answer)


@pytest.mark.parametrize("by_schema", [False, True])
def test_output_is_predicted(llm, by_schema):
    model = llm(should_use_structured_outputs=by_schema)
    verdict = model.structured_predict(Verdict, PromptTemplate("Is {thing} good? Judge."), thing="bread")
    assert isinstance(verdict, Verdict)


def test_output_of_responses_is_predicted(responses):
    verdict = responses.structured_predict(Verdict, PromptTemplate("Is {thing} good? Judge."), thing="bread")
    assert isinstance(verdict, Verdict)


def test_a_fan_out_is_one_trunk(thaw, either):
    document = thaw.document("llama")

    async def branch(model, topic: str):
        return await model.achat([ChatMessage(role="system", content=document), ChatMessage(content=topic)])

    async def fan_out():
        return await asyncio.gather(*(branch(either, topic) for topic in thaw.topics))

    with thaw.one_trunk(document) as usages:
        for reply in asyncio.run(fan_out()):
            usage = reply.raw.usage
            if isinstance(either, OpenAIResponses):
                usages.append((usage.input_tokens, usage.input_tokens_details.cached_tokens))
            else:
                usages.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
