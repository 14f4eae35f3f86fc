"""The clients that people use, against the real server: openai, LangChain, LangGraph, the demo, curl."""

import asyncio
import json
import subprocess
import sys

import openai
import pytest
from conftest import BUILD, ROOT, real_model
from langchain_openai import ChatOpenAI


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def model_of(client) -> str:
    return client.models.list().data[0].id


MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say something."}]


def test_openai_chat_streams_what_it_answers(client):
    model = model_of(client)
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=24, temperature=0)
    assert whole.choices[0].message.content and whole.object == "chat.completion"
    assert whole.usage.prompt_tokens_details.cached_tokens == 0
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_openai_choices_are_forks(client):
    model = model_of(client)
    reply = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12, n=3, seed=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) > 1
    again = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12, n=3, seed=5)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.message.content for choice in again.choices] == texts


def test_openai_errors_are_typed(client):
    model = model_of(client)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature" and "-1" in refused.value.message
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=model, prompt=[30] * 20000)
    assert too_long.value.code == "context_length_exceeded"
    assert client.completions.create(model=model, prompt=[30] * 20, max_tokens=2).choices


def test_a_stop_string_ends_the_text(client):
    model = model_of(client)
    arguments = {"model": model, "prompt": "abc", "max_tokens": 60, "temperature": 0}
    text = client.completions.create(**arguments).choices[0].text
    stop = text[10:14]
    stopped = client.completions.create(**arguments, stop=stop).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_langchain_fan_out(server):
    chat = ChatOpenAI(
        model=json.loads(server.get("/v1/models")[1])["data"][0]["id"],
        base_url=f"http://127.0.0.1:{server.port}/v1",
        api_key="none",
        temperature=0,
        max_tokens=8,
        stream_usage=True,
    )
    document = "One line of a shared document. " * 20

    async def branch(topic: str):
        merged = None
        async for chunk in chat.astream([("system", document), ("user", topic)]):
            merged = chunk if merged is None else merged + chunk
        return merged

    async def fan_out():
        return await asyncio.gather(*(branch(f"{i}: a topic") for i in range(8)))

    before = server.wait_idle()["thaw_tokens_prefilled_total"]
    answers = asyncio.run(fan_out())
    prefilled = server.wait_idle()["thaw_tokens_prefilled_total"] - before
    usages = [answer.usage_metadata for answer in answers]
    prompt = usages[0]["input_tokens"]
    assert all(answer.text for answer in answers)
    assert prefilled == sum(u["input_tokens"] - u["input_token_details"]["cache_read"] for u in usages)
    assert prefilled < prompt + 8 * 40, "the document was prefilled more than once"


def test_explain_says_where_branches_part(server):
    shared = "A document that both have in common, long enough to be worth it. " * 10
    for name in ("alpha", "omega"):
        body = {
            "messages": [
                {"role": "system", "content": f"You are {name}."},
                {"role": "user", "content": shared},
            ],
            "max_tokens": 1,
            "thaw": {"explain": True},
        }
        status, reply = server.post("/v1/chat/completions", body)
        assert status == 200
    parted = reply["thaw"]["parted"]
    assert parted["text_here"].startswith("omega"[:1]) or "omega" in parted["text_here"]
    assert "alpha" in parted["text_before"] + parted["text_other"]
    assert parted["identical_tokens_after"] > 100 and parted["advice"]
    result = subprocess.run(
        [str(BUILD / "bin" / "thaw"), "explain", "--url", f"http://127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    assert "advice: " in result.stdout and "at token" in result.stdout


def test_keys_are_tenants(serve):
    server = serve("--api-key", "a:one", "--api-key", "b:two")
    body = {"prompt": list(range(30, 130)), "max_tokens": 1, "temperature": 0}
    assert server.post("/v1/completions", body)[0] == 401
    assert server.post("/v1/completions", body, {"Authorization": "Bearer wrong"})[0] == 401
    cached = []
    for key in ("one", "two", "one"):
        status, reply = server.post("/v1/completions", body, {"Authorization": f"Bearer {key}"})
        assert status == 200
        cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached == [0, 0, 99]


def test_the_demo_prefills_its_context_once(serve, tmp_path):
    server = serve("--kv-bytes", "1GiB", model=real_model())
    output = tmp_path / "rounds.json"
    command = [sys.executable, str(ROOT / "demos" / "pr_review_langgraph.py"), "--mode", "thaw"]
    command += ["--base-url", f"http://127.0.0.1:{server.port}/v1", "--max-tokens", "8"]
    result = subprocess.run([*command, "--json", str(output)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (fan_out,) = json.loads(output.read_text())
    prompts = [branch["prompt_tokens"] for branch in fan_out["branches"]]
    assert len(prompts) == 4 and min(prompts) > 2000
    assert fan_out["prefilled_tokens"] < max(prompts) + 4 * 60
    assert "thaw" in result.stdout
