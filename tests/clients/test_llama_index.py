"""LlamaIndex: an agent with a tool, structured prediction, a fan-out of chats."""

import asyncio

import pydantic
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
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


def test_an_agent_calls_its_tool(llm, weather):
    async def run():
        agent = FunctionAgent(tools=[weather], llm=llm(), allow_parallel_tool_calls=False)
        return await agent.run("What is the weather in Bonn?")

    answer = asyncio.run(run())
    assert len(weather.cities) == 1
    assert str(answer)


@pytest.mark.parametrize("by_schema", [False, True])
def test_output_is_predicted(llm, by_schema):
    model = llm(should_use_structured_outputs=by_schema)
    verdict = model.structured_predict(Verdict, PromptTemplate("Is {thing} good? Judge."), thing="bread")
    assert isinstance(verdict, Verdict)


def test_a_fan_out_is_one_trunk(thaw, llm):
    document = thaw.document("llama")

    async def branch(model, topic: str):
        return await model.achat([ChatMessage(role="system", content=document), ChatMessage(content=topic)])

    async def fan_out():
        model = llm()
        return await asyncio.gather(*(branch(model, topic) for topic in thaw.topics))

    with thaw.one_trunk(document) as usages:
        for reply in asyncio.run(fan_out()):
            usage = reply.raw.usage
            usages.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
