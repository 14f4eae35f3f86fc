"""ChatThaw: what is asked of the engine and what comes back."""

import asyncio
import copy
import gc
import json
import threading
import uuid
import warnings
from typing import Any

import pytest
from chats import counter, open_descriptors, tiny_chat, words
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel, Field, ValidationError
from thaw_vllm import APIConnectionError, APITimeoutError, ContextLengthError
from thaw_vllm.langgraph import ChatThaw
from thaw_vllm.langgraph._chunks import ChunkReader
from thaw_vllm.langgraph._messages import message_of, to_json, usage_of
from thaw_vllm.langgraph._tools import response_format_of
from typing_extensions import TypedDict


@pytest.fixture
def chat():
    return tiny_chat()


def request(chat: ChatThaw, *messages: Any, stop=None, stream=False, **kwargs: Any) -> dict[str, Any]:
    return chat._request(list(messages) or [HumanMessage("hi")], stop, kwargs, stream=stream)[0]


# -- construction


def test_fields_of_thaw_vllm_are_taken():
    fields = {"enforce_eager": False, "gpu_memory_utilization": 0.3, "worker_gpu_memory_utilization": 0.5}
    with pytest.warns(UserWarning, match="without effect here") as caught:
        chat = ChatThaw(model="default", tensor_parallel_size=2, enable_auto_fork=False, **fields)
    assert len(caught) == 1
    for name in (*fields, "tensor_parallel_size", "enable_auto_fork"):
        assert name in str(caught[0].message)
    assert (chat.temperature, chat.max_tokens, chat.top_p) == (0.7, 256, 1.0)
    assert (chat.fork_window_ms, chat.fork_min_prefix_tokens) == (2.0, 500)


def test_a_plain_object_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChatThaw(model="default", temperature=0.1, workers=2, extra_llm_kwargs={"max_model_len": 100})


def test_what_is_the_engine_s_means_nothing_to_a_server():
    with pytest.warns(UserWarning, match="fork_window_ms, workers"):
        ChatThaw(model="x", base_url="http://127.0.0.1:9", workers=2, fork_window_ms=1.0)


@pytest.mark.parametrize("base_url", [None, "http://127.0.0.1:9"])
def test_default_values_are_not_warned_of(base_url):
    chat = ChatThaw(model="x", base_url=base_url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChatThaw(**{name: getattr(chat, name) for name in ChatThaw.model_fields})
        cooler = chat.configurable_fields(temperature=ConfigurableField(id="t"))
        assert cooler.prepare({"configurable": {"t": 0.5}})[0].temperature == 0.5


@pytest.mark.parametrize("key", ["se\ncret", "se\rcret", "sécret", "se\0cret"])
def test_a_key_that_no_header_can_hold_is_not_printed(key):
    with pytest.raises(ValueError, match="api_key must be printable ASCII") as caught:
        ChatThaw(model="x", base_url="http://127.0.0.1:9", api_key=key)
    assert "cret" not in str(caught.value) and "cret" not in repr(caught.value)


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="temprature"):
        ChatThaw(model="default", temprature=0)


def test_a_flag_that_is_none_is_said_when_the_engine_starts():
    with pytest.raises(ValueError, match="no-such-flag"):
        tiny_chat(extra_pool_kwargs={"no_such_flag": 1}).invoke("hi")


def test_vllm_s_names_become_flags():
    chat = tiny_chat(extra_llm_kwargs={"max_model_len": 500, "kv_cache_dtype": "auto", "dtype": "float32"})
    settings = chat._engine.engine.settings
    assert settings["max_model_len"] == 500 and settings["dtype"] == "f32" and "kv_dtype" not in settings


def test_names_that_other_integrations_have():
    chat = ChatThaw(
        model_name="default", max_completion_tokens=5, request_timeout=3, stop_sequences=["x"], api_key="k"
    )
    assert (chat.model, chat.max_tokens, chat.timeout, chat.stop) == ("default", 5, 3, ["x"])
    assert "k" not in repr(chat.api_key)


def test_what_it_says_of_itself():
    chat = ChatThaw(model="default")
    assert chat._llm_type == "chat-thaw"
    assert chat.profile["structured_output"] and chat.profile["tool_calling"]
    assert chat._get_ls_params(stop=["a"], model="other") == {
        "ls_provider": "thaw",
        "ls_model_type": "chat",
        "ls_model_name": "other",
        "ls_temperature": 0.7,
        "ls_max_tokens": 256,
        "ls_stop": ["a"],
    }
    expected = ("model", "fork_window_ms", "fork_min_prefix_tokens", "workers", "tensor_parallel_size")
    assert set(expected) <= set(chat._identifying_params)


@pytest.mark.parametrize(
    "field", [{"device": "cuda"}, {"extra_llm_kwargs": {"dtype": "f32"}}, {"extra_pool_kwargs": {"isa": "x"}}]
)
def test_the_cache_knows_engines_apart(field):
    assert ChatThaw(model="default")._get_llm_string() != ChatThaw(model="default", **field)._get_llm_string()


def test_copies_work(chat):
    said = chat.invoke("hello").content
    for other in (copy.copy(chat), copy.deepcopy(chat), chat.model_copy(update={"max_tokens": 8})):
        assert other.invoke("hello").content == said


# -- requests


def test_the_call_goes_over_the_object():
    chat = tiny_chat(stop=["a"], seed=1, model_kwargs={"top_k": 5}, extra_body={"min_tokens": 1})
    body = request(chat)
    assert (body["stop"], body["seed"], body["top_k"], body["min_tokens"]) == (["a"], 1, 5, 1)
    assert "model" not in body and "stream" not in body
    body = request(chat, stop=["b"], seed=2, top_k=6, max_completion_tokens=3, extra_body={"min_tokens": 2})
    assert (body["stop"], body["seed"], body["top_k"], body["min_tokens"]) == (["b"], 2, 6, 2)
    assert body["max_tokens"] == 3 and "max_completion_tokens" not in body
    assert request(chat, model="other")["model"] == "other"
    assert request(chat, stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in request(chat, stream=True, stream_usage=False)
    with pytest.raises(ValueError, match="n is 2"):
        request(chat, stream=True, n=2)


def test_the_last_word_on_max_tokens_counts():
    chat = ChatThaw(model="default", max_tokens=7, model_kwargs={"max_completion_tokens": 100})
    assert request(chat)["max_tokens"] == 100
    for call in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"extra_body": {"max_tokens": 5}}):
        body = request(chat, **call)
        assert body["max_tokens"] == 5 and "max_completion_tokens" not in body
    # None takes a field out of the object's, for the server's default.
    assert request(ChatThaw(model="default", model_kwargs={"top_p": None}))["top_p"] is None


def test_timeout_and_retries_are_those_of_the_moment():
    class Calls:
        def call(self, method, path, body, **more):
            seen.append((more["timeout_s"], more["max_retries"]))
            return {"choices": [], "tokens": [], "count": 0}

    seen: list[Any] = []
    chat = ChatThaw(model="default", timeout=3, max_retries=4)
    chat._client = Calls()
    copied = chat.model_copy(update={"timeout": 5, "max_retries": 6})
    chat.timeout = 7
    for one in (chat, copied):
        one._generate([HumanMessage("x")])
        one.get_token_ids("x")
        one.get_num_tokens_from_messages([])
    assert seen == [(7, 4)] * 3 + [(5, 6)] * 3
    chat._generate([HumanMessage("x")], timeout=9)
    assert seen[-1] == (9, 4)


def test_messages():
    call = {"name": "f", "args": {"a": "ü"}, "id": "c1", "type": "tool_call"}
    thought = {"type": "reasoning", "reasoning": "hm"}
    cached = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    messages = to_json(
        [
            SystemMessage("s"),
            HumanMessage(["a", cached], name="ann"),
            AIMessage(
                [thought, {"type": "tool_use", "id": "c1", "name": "f", "input": {}}], tool_calls=[call]
            ),
            ToolMessage([{"type": "text", "text": "r"}], tool_call_id="c1"),
            AIMessage("done", additional_kwargs={"reasoning_content": "so"}),
        ]
    )
    assert messages[0] == {"role": "system", "content": "s"}
    assert messages[1]["name"] == "ann"
    assert messages[1]["content"][0] == {"type": "text", "text": "a"}
    assert messages[1]["content"][1]["prompt_cache_breakpoint"] == {"mode": "explicit"}
    assert messages[2]["content"] is None and messages[2]["reasoning_content"] == "hm"
    assert json.loads(messages[2]["tool_calls"][0]["function"]["arguments"]) == {"a": "ü"}
    assert messages[3] == {"role": "tool", "content": [{"type": "text", "text": "r"}], "tool_call_id": "c1"}
    assert messages[4]["reasoning_content"] == "so"


# -- answers


def test_an_answer_has_usage_and_metadata(chat):
    trunk = words(uuid.uuid4().hex[:6], 40)
    first = chat.invoke(trunk, logprobs=True, top_logprobs=1)
    again = chat.invoke(trunk, logprobs=True, top_logprobs=1)
    usage = again.usage_metadata
    assert first.usage_metadata["input_token_details"] == {
        "cache_read": first.usage_metadata["input_tokens"]
        - first.usage_metadata["input_token_details"]["cache_creation"],
        "cache_creation": first.usage_metadata["input_token_details"]["cache_creation"],
    }
    assert usage["input_token_details"]["cache_read"] > usage["input_tokens"] - 20
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    metadata = again.response_metadata
    assert metadata["model_provider"] == "thaw" and metadata["model_name"].startswith("tiny")
    assert metadata["finish_reason"] in ("length", "stop")
    assert metadata["system_fingerprint"].startswith("thaw-")
    assert len(metadata["logprobs"]["content"]) == usage["output_tokens"]
    assert first.content == again.content


def test_n_choices(chat):
    result = chat.generate([[HumanMessage("hello")]], n=3, temperature=1.0, seed=5)
    texts = [generation.text for generation in result.generations[0]]
    assert len(texts) == 3
    assert 3 <= result.llm_output["token_usage"]["completion_tokens"] <= 24


def test_streams_say_what_calls_say(chat):
    whole = chat.invoke("hello")
    chunks = list(chat.stream("hello"))
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    joined = sum(chunks[1:], chunks[0])
    assert joined.content == whole.content
    assert joined.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert joined.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]
    assert [chunk for chunk in chunks if chunk.chunk_position == "last"] == [chunks[-1]]
    assert [chunk for chunk in chunks if chunk.usage_metadata] == [chunks[-1]]
    assert len(chunks) > 3


async def test_async_streams_do_too(chat):
    whole = await chat.ainvoke("hello")
    text = "".join([chunk.content async for chunk in chat.astream("hello")])
    assert text == whole.content


def test_a_stream_s_logprobs_are_all_there(chat):
    chunks = list(chat.stream("hello", logprobs=True))
    joined = sum(chunks[1:], chunks[0])
    whole = chat.invoke("hello", logprobs=True)
    assert joined.response_metadata["logprobs"]["content"] == whole.response_metadata["logprobs"]["content"]


def test_reasoning_is_surfaced():
    answer = {"id": "i", "model": "m", "usage": None}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "4", "reasoning_content": "2+2", "reasoning": "2+2"},
    }
    message = message_of(answer, choice, None)
    assert message.additional_kwargs["reasoning_content"] == "2+2"
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    reader = ChunkReader()
    chunks = []
    for delta in ({"reasoning_content": "2"}, {"reasoning_content": "+2"}, {"content": "4"}):
        chunks += [c.message for c in reader.read({"choices": [{"index": 0, "delta": delta}]})]
    joined = sum(chunks[1:], chunks[0])
    assert joined.additional_kwargs["reasoning_content"] == "2+2" and joined.content == "4"


def test_output_version_v1():
    message = tiny_chat(output_version="v1").invoke("hello")
    assert isinstance(message.content, list) and message.content[0]["type"] == "text"


def test_broken_arguments_are_an_invalid_call():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    body = {"role": "assistant", "content": None, "tool_calls": [call]}
    message = message_of({}, {"index": 0, "finish_reason": "length", "message": body}, None)
    assert message.content == "" and not message.tool_calls
    assert message.invalid_tool_calls[0]["args"] == '{"a": '


def test_usage_of_nothing():
    assert usage_of(None) is None


# -- tools and structured output


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return city


@tool
def clock() -> str:
    """The time."""
    return "now"


@pytest.mark.parametrize(
    "choice, sent",
    [
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("clock", {"type": "function", "function": {"name": "clock"}}),
        ({"type": "tool", "name": "clock"}, {"type": "function", "function": {"name": "clock"}}),
        ({"type": "any"}, "required"),
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
    ],
)
def test_tool_choice(choice, sent):
    bound = ChatThaw(model="default").bind_tools([weather, clock], tool_choice=choice, strict=True)
    assert bound.kwargs["tool_choice"] == sent
    assert bound.kwargs["tools"][0]["function"]["strict"] is True


def test_no_tool_choice_is_left_out():
    bound = ChatThaw(model="default").bind_tools([weather], parallel_tool_calls=False)
    assert "tool_choice" not in bound.kwargs and bound.kwargs["parallel_tool_calls"] is False


def test_a_tool_that_is_not_bound():
    with pytest.raises(ValueError, match="'rain'; bound are weather"):
        ChatThaw(model="default").bind_tools([weather], tool_choice="rain")


def test_forced_calls_are_calls_on_any_model(chat):
    bound = chat.bind_tools([weather, clock], tool_choice="clock")
    message = bound.invoke("what time is it?", max_tokens=200)
    assert [call["name"] for call in message.tool_calls] == ["clock"]
    chunks = list(bound.stream("what time is it?", max_tokens=200))
    streamed = sum(chunks[1:], chunks[0]).tool_calls
    assert [(call["name"], call["args"]) for call in streamed] == [("clock", message.tool_calls[0]["args"])]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=9)


class PersonDict(TypedDict):
    """A person."""

    age: int


SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat, method):
    bound = tiny_chat(max_tokens=300)
    person = bound.with_structured_output(Person, method=method).invoke("who?")
    assert isinstance(person, Person)
    result = bound.with_structured_output(Person, method=method, include_raw=True).invoke("who?")
    assert result["parsed"] == person and result["parsing_error"] is None
    assert isinstance(result["raw"], AIMessage)
    values = bound.with_structured_output(SCHEMA, method=method).invoke("well?")
    assert isinstance(values["ok"], bool)


def test_structured_output_that_was_cut(chat):
    cut = tiny_chat(max_tokens=2).with_structured_output(Person, include_raw=True).invoke("who?")
    assert cut["parsed"] is None and cut["parsing_error"] is not None


def test_structured_output_needs_to_know_of_what():
    chat = ChatThaw(model="default")
    with pytest.raises(ValueError, match="needs a schema"):
        chat.with_structured_output(None)
    with pytest.raises(ValueError, match="method is 'magic'"):
        chat.with_structured_output(Person, method="magic")
    assert response_format_of(PersonDict)["json_schema"]["name"] == "PersonDict"
    assert chat.with_structured_output(method="json_mode").first.kwargs["response_format"] == {
        "type": "json_object"
    }


def test_agents_ask_for_tools_and_a_form_at_once():
    form = {"type": "json_schema", "json_schema": {"name": "P", "schema": SCHEMA}}
    bound = ChatThaw(model="default").bind_tools([weather], response_format=form, strict=True)
    assert bound.kwargs["response_format"] == form


# -- tokens


def test_tokens_are_the_model_s(chat):
    assert chat.get_num_tokens("hello world") == len(chat.get_token_ids("hello world")) > 0
    messages = [HumanMessage("hello world")]
    usage = chat.invoke(messages).usage_metadata
    assert chat.get_num_tokens_from_messages(messages) == usage["input_tokens"]


# -- ends


def test_a_deadline_ends_the_request(chat):
    with pytest.raises(APITimeoutError):
        chat.invoke("hello", max_tokens=3000, ignore_eos=True, timeout=0.05)
    wait_until_idle(chat)


def test_a_closed_stream_ends_the_request(chat):
    stream = chat.stream("hello", max_tokens=3000, ignore_eos=True)
    next(stream)
    stream.close()
    wait_until_idle(chat)


async def test_a_cancelled_task_ends_the_request(chat):
    task = asyncio.create_task(chat.ainvoke("hello", max_tokens=3000, ignore_eos=True))
    while counter(chat, "thaw_requests_in_flight") == 0:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_until_idle(chat)


def wait_until_idle(chat: ChatThaw) -> None:
    done = threading.Event()
    for _ in range(1000):
        if counter(chat, "thaw_requests_in_flight") == 0 and counter(chat, "thaw_sequences_running") == 0:
            return
        done.wait(0.005)
    pytest.fail("the request still runs after 5 seconds")


def test_too_long_is_langchain_s_error(chat):
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError, match="max_tokens") as caught:
        chat.invoke("hello", max_tokens=10_000_000)
    assert isinstance(caught.value, ContextLengthError)
    with pytest.raises(ValueError, match="top_p"):
        chat.invoke("hello", top_p=7)


def test_nobody_at_the_url():
    chat = ChatThaw(model="default", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(APIConnectionError):
        chat.invoke("hello")


def test_one_object_on_several_loops(chat):
    said = [asyncio.run(chat.ainvoke("hello")).content for _ in range(3)]
    assert len(set(said)) == 1


def test_calls_leave_nothing(chat):
    async def several():
        await asyncio.gather(*(chat.ainvoke(f"hello {n}", max_tokens=1) for n in range(4)))

    chat.invoke("hello")
    asyncio.run(several())
    chat._client.close()  # idle connections stay open otherwise
    gc.collect()
    before = open_descriptors()
    for _ in range(25):
        chat.invoke("hello", max_tokens=1)
        list(chat.stream("hello", max_tokens=1))
    for _ in range(3):
        asyncio.run(several())
    chat._client.close()
    gc.collect()
    assert open_descriptors() == before
