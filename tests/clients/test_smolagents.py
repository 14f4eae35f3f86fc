"""smolagents: an agent that calls tools, output by a schema, a fan-out from threads."""

import concurrent.futures
import json

import pytest
import smolagents

SCHEMA = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}, "score": {"type": "integer", "minimum": 0, "maximum": 10}},
    "required": ["good", "score"],
    "additionalProperties": False,
}


@pytest.fixture
def model(thaw):
    return smolagents.OpenAIModel(thaw.model, api_base=thaw.v1, api_key="none", max_tokens=80, temperature=0)


def message(role: str, text: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def test_an_agent_calls_its_tools(model, weather):
    """Every step is a forced call. Whether or not the model finds `final_answer`, after the last one
    the agent asks for an answer in words."""
    tool = smolagents.tool(weather)
    agent = smolagents.ToolCallingAgent(tools=[tool], model=model, max_steps=2, verbosity_level=0)
    result = agent.run("What is the weather in Bonn?", return_full_result=True)
    calls = [call for step in result.steps for call in step.get("tool_calls") or []]
    assert calls and {call["function"]["name"] for call in calls} <= {"weather", "final_answer"}
    assert result.output is not None


def test_output_follows_a_schema(model):
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}}
    reply = model.generate([message("user", "Is bread good? Judge.")], response_format=wanted)
    assert set(json.loads(reply.content)) == {"good", "score"}


def test_a_fan_out_is_one_trunk(thaw, model):
    document = thaw.document("smolagents")

    def branch(topic: str):
        return model.generate([message("system", document), message("user", topic)])

    with thaw.one_trunk(document) as usages, concurrent.futures.ThreadPoolExecutor(4) as threads:
        for reply in threads.map(branch, thaw.topics):
            usage = reply.raw.usage
            usages.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
