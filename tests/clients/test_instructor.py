"""instructor: a response model by a named tool, by schema, in parts and by /v1/responses, and a fan-out."""

import asyncio

import instructor
import openai
import pydantic
import pytest


class Verdict(pydantic.BaseModel):
    """A judgement."""

    good: bool
    score: int = pydantic.Field(ge=0, le=10)


QUESTION = [{"role": "user", "content": "Is bread good? Judge."}]


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_output_is_the_response_model(thaw, mode):
    client = instructor.from_openai(openai.OpenAI(base_url=thaw.v1, api_key="none"), mode=mode)
    fields = {"model": thaw.model, "messages": QUESTION, "max_tokens": 80, "max_retries": 0}
    assert isinstance(client.chat.completions.create(response_model=Verdict, **fields), Verdict)
    parts = list(client.chat.completions.create_partial(response_model=Verdict, **fields))
    assert len(parts) > 1 and parts[-1].score is not None


def test_output_of_responses_is_the_response_model(thaw):
    raw = openai.OpenAI(base_url=thaw.v1, api_key="none")
    client = instructor.from_openai(raw, mode=instructor.Mode.RESPONSES_TOOLS)
    fields = {"model": thaw.model, "input": QUESTION, "max_output_tokens": 80, "max_retries": 0}
    assert isinstance(client.responses.create(response_model=Verdict, **fields), Verdict)


def test_a_fan_out_is_one_trunk(thaw):
    document = thaw.document("instructor")

    async def branch(client, topic: str):
        messages = [{"role": "system", "content": document}, {"role": "user", "content": topic}]
        return await client.chat.completions.create_with_completion(
            model=thaw.model, messages=messages, response_model=Verdict, max_tokens=80, max_retries=0
        )

    async def fan_out():
        raw = openai.AsyncOpenAI(base_url=thaw.v1, api_key="none")
        client = instructor.from_openai(raw, mode=instructor.Mode.JSON_SCHEMA)
        return await asyncio.gather(*(branch(client, topic) for topic in thaw.topics))

    with thaw.one_trunk(document) as usages:
        for verdict, completion in asyncio.run(fan_out()):
            assert isinstance(verdict, Verdict)
            usage = completion.usage
            usages.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
