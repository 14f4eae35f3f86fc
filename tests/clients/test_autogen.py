"""AutoGen: an assistant with a tool, typed output, a fan-out of calls."""

import asyncio

import pydantic
import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import SystemMessage, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient


class Verdict(pydantic.BaseModel):
    good: bool
    score: int


@pytest.fixture
def client(thaw):
    return OpenAIChatCompletionClient(
        model=thaw.model,
        base_url=thaw.v1,
        api_key="none",
        max_tokens=60,
        temperature=0,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "structured_output": True,
            "family": "unknown",
        },
    )


def user(text: str) -> UserMessage:
    return UserMessage(content=text, source="user")


def test_an_assistant_calls_its_tool(client, weather):
    assistant = AssistantAgent("assistant", model_client=client, tools=[weather], reflect_on_tool_use=True)
    result = asyncio.run(assistant.run(task="What is the weather in Bonn?"))
    assert len(weather.cities) == 1
    assert result.messages[-1].content


def test_output_has_its_type(client):
    result = asyncio.run(client.create([user("Is bread good? Judge.")], json_output=Verdict))
    Verdict.model_validate_json(result.content)


def test_a_fan_out_is_one_trunk(thaw, client):
    document = thaw.document("autogen")

    async def fan_out():
        calls = (client.create([SystemMessage(content=document), user(topic)]) for topic in thaw.topics)
        return await asyncio.gather(*calls)

    with thaw.one_trunk(document):
        answers = asyncio.run(fan_out())
    assert all(answer.content for answer in answers)
