"""LangChain and LangGraph on both endpoints: agents, output by schema and by call, a fan-out of agents."""

import asyncio
import operator
import typing

import pydantic
import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send


class Verdict(pydantic.BaseModel):
    """A judgement."""

    good: bool
    score: int = pydantic.Field(ge=0, le=10)


@pytest.fixture(params=["chat", "responses"])
def chat(thaw, request):
    return ChatOpenAI(
        model=thaw.model,
        base_url=thaw.v1,
        api_key="none",
        temperature=0,
        max_tokens=80,
        use_responses_api=request.param == "responses",
    )


def test_an_agent_calls_its_tool(chat, weather):
    agent = create_agent(chat, tools=[weather])
    messages = agent.invoke({"messages": [("user", "What is the weather in Bonn?")]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert len(weather.cities) == 1 and messages[-1].text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_output_is_structured(chat, method):
    structured = chat.with_structured_output(Verdict, method=method)
    assert isinstance(structured.invoke("Is bread good? Judge."), Verdict)


@pytest.fixture(scope="module")
def loop():
    """ChatOpenAI's chats keep one client, which belongs to the loop of its first call."""
    with asyncio.Runner() as runner:
        yield runner


class State(typing.TypedDict):
    topics: list[str]
    answers: typing.Annotated[list, operator.add]


def test_a_fan_out_of_agents_is_one_trunk(thaw, chat, loop):
    document = thaw.document("langchain")
    agent = create_agent(chat, tools=[], system_prompt=document)

    async def review(branch: dict) -> dict:
        reply = await agent.ainvoke({"messages": [("user", branch["topic"])]})
        return {"answers": [reply["messages"][-1]]}

    graph = StateGraph(State)
    graph.add_node("review", review)
    graph.add_conditional_edges(START, lambda state: [Send("review", {"topic": t}) for t in state["topics"]])
    graph.add_edge("review", END)
    compiled = graph.compile()
    with thaw.one_trunk(document) as usages:
        state = loop.run(compiled.ainvoke({"topics": list(thaw.topics), "answers": []}))
        for answer in state["answers"]:
            usage = answer.usage_metadata
            usages.append((usage["input_tokens"], usage["input_token_details"]["cache_read"]))
