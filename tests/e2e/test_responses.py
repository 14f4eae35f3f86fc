"""/v1/responses on the real binary, through the openai client: events, tools, the store, the KV."""

import json
import time

import openai
import pydantic
import pytest
from conftest import BUILD, real_model
from thaw_server import ThawServer, in_parallel

PATH = "/v1/responses"
CHAT = "/v1/chat/completions"
LONG = "The water that the trunk has carried goes on from there. " * 60
GREEDY = {"temperature": 0, "max_output_tokens": 24, "extra_body": {"ignore_eos": True}}
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Verdict(pydantic.BaseModel):
    good: bool
    score: int = pydantic.Field(ge=0, le=10)


def client_of(server, key="none"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(server):
    return client_of(server)


@pytest.fixture
def model(client):
    return client.models.list().data[0].id


def cached(response) -> int:
    return response.usage.input_tokens_details.cached_tokens


def test_tokens_are_counted_as_a_response_reads_them(client, model):
    first = client.responses.create(model=model, input="Say hello.", max_output_tokens=8)
    for more in ({"instructions": "Be brief."}, {"tools": [TOOL]}, {"previous_response_id": first.id}):
        asked = {"model": model, "input": "Rome", **more}
        counted = client.responses.input_tokens.count(**asked)
        assert counted.object == "response.input_tokens"
        answered = client.responses.create(**asked, max_output_tokens=1)
        assert counted.input_tokens == answered.usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        client.responses.input_tokens.count(model=model, input="Rome", previous_response_id="resp_none")


def test_a_response_is_what_the_chat_answers(server, client, model):
    """Greedy and drawn, whole and streamed: the same tokens as /v1/chat/completions, bit for bit."""
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say something."}]
    for sampling in ({"temperature": 0}, {"temperature": 1, "seed": 3}):
        extra = {"ignore_eos": True, "return_token_ids": True, **sampling}
        _, chat = server.post(
            CHAT, {"messages": messages, "max_tokens": 24, "logprobs": True, "top_logprobs": 2, **extra}
        )
        choice = chat["choices"][0]
        response = client.responses.create(
            model=model,
            instructions="Be short.",
            input="Say something.",
            max_output_tokens=24,
            top_logprobs=2,
            include=["message.output_text.logprobs"],
            extra_body={**extra, "cache_salt": "cold"},
        )
        assert response.output_text == choice["message"]["content"]
        assert response.model_extra["token_ids"] == choice["token_ids"]
        assert response.model_extra["prompt_token_ids"] == chat["prompt_token_ids"]
        ours = [entry.model_dump() for entry in response.output[0].content[0].logprobs]
        assert ours == choice["logprobs"]["content"]
        assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
        assert (response.usage.input_tokens, response.usage.output_tokens) == (
            chat["usage"]["prompt_tokens"],
            chat["usage"]["completion_tokens"],
        )
        events = list(
            client.responses.create(
                model=model,
                instructions="Be short.",
                input=messages[1:],
                max_output_tokens=24,
                stream=True,
                extra_body=extra,
            )
        )
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.model_extra["token_ids"] == choice["token_ids"]
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == choice["message"]["content"]


def test_the_stream_helper_puts_it_together(client, model):
    with client.responses.stream(model=model, input="Go on.", max_output_tokens=200, temperature=0) as stream:
        types = [event.type for event in stream]
        last = types[-1]
        if last == "response.completed":
            assert stream.get_final_response().output_text
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert set(types[4:-4]) == {"response.output_text.delta"}


def test_instructions_are_of_one_turn(client, model):
    first = client.responses.create(model=model, instructions=LONG, input="One?", **GREEDY)
    second = client.responses.create(model=model, input="Two?", previous_response_id=first.id, **GREEDY)
    assert second.usage.input_tokens < first.usage.input_tokens
    assert second.instructions is None and first.instructions == LONG


def test_the_store(client, model):
    response = client.responses.create(
        model=model, input=[{"role": "user", "content": "Keep this."}], metadata={"a": "b"}, **GREEDY
    )
    assert client.responses.retrieve(response.id).model_dump() == response.model_dump()
    items = client.responses.input_items.list(response.id).data
    assert [item.type for item in items] == ["message"] and items[0].content[0].text == "Keep this."
    by_reference = client.responses.create(
        model=model,
        input=[
            {"role": "user", "content": "Keep this."},
            {"type": "item_reference", "id": response.output[0].id},
            {"role": "user", "content": "And?"},
        ],
        **GREEDY,
    )
    by_id = client.responses.create(model=model, input="And?", previous_response_id=response.id, **GREEDY)
    by_items = client.responses.create(
        model=model,
        input=[
            {"role": "user", "content": "Keep this."},
            *[item.model_dump(exclude_none=True) for item in response.output],
            {"role": "user", "content": "And?"},
        ],
        **GREEDY,
    )
    assert by_reference.output_text == by_items.output_text
    assert by_id.usage.total_tokens > 24
    client.responses.delete(response.id)
    for gone in (
        lambda: client.responses.retrieve(response.id),
        lambda: client.responses.delete(response.id),
        lambda: client.responses.create(model=model, input="x", previous_response_id=response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            gone()
    unstored = client.responses.create(model=model, input="x", store=False, **GREEDY)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_the_store_forgets_the_oldest(serve):
    client = client_of(serve("--max-responses", "2"))
    name = client.models.list().data[0].id
    ids = [client.responses.create(model=name, input="x", max_output_tokens=2).id for _ in range(3)]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(ids[0])
    assert client.responses.retrieve(ids[2]).id == ids[2]


def test_tenants_see_their_own(serve):
    server = serve("--api-key", "anna:k-anna", "--api-key", "berta:k-berta")
    anna, berta = client_of(server, "k-anna"), client_of(server, "k-berta")
    name = anna.models.list().data[0].id
    response = anna.responses.create(model=name, input="Mine.", max_output_tokens=2)
    assert anna.responses.retrieve(response.id).id == response.id
    for theirs in (
        lambda: berta.responses.retrieve(response.id),
        lambda: berta.responses.cancel(response.id),
        lambda: berta.responses.create(model=name, input="x", previous_response_id=response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            theirs()


def finished(client, response):
    deadline = time.monotonic() + 60
    while response.status in ("queued", "in_progress") and time.monotonic() < deadline:
        response = client.responses.retrieve(response.id)
    return response


def test_background(client, model):
    begun = client.responses.create(model=model, input="Go on.", background=True, **GREEDY)
    assert begun.status == "queued" and begun.background
    done = finished(client, begun)
    now = client.responses.create(model=model, input="Go on.", **GREEDY)
    assert done.status == "incomplete" and done.output_text == now.output_text
    events = list(client.responses.retrieve(begun.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == now.output_text
    rest = list(client.responses.retrieve(begun.id, stream=True, starting_after=4))
    assert [event.sequence_number for event in rest] == list(range(5, len(events)))

    stream = client.responses.create(model=model, input="Go on.", background=True, stream=True, **GREEDY)
    streamed = [event for event in stream]
    assert "response.queued" in [event.type for event in streamed]
    assert streamed[-1].response.output_text == now.output_text


def test_a_background_response_is_cancelled(server, client, model):
    begun = client.responses.create(
        model=model,
        input="Go on.",
        background=True,
        max_output_tokens=1500,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    for event in client.responses.retrieve(begun.id, stream=True):
        if event.type == "response.output_text.delta":
            break
    cancelled = client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled" and cancelled.output_text
    assert client.responses.retrieve(begun.id).status == "cancelled"
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert server.wait_idle()["thaw_tokens_decoded_total"] < 1500
    whole = client.responses.create(model=model, input="x", max_output_tokens=2)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(whole.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "temperature": 9}, "temperature"),
        ({"input": "x", "text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x " * 20000}, "input"),
    ],
)
def test_bad_input_is_named(client, model, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=model, **fields)
    assert refused.value.param == param


def test_what_is_too_long_is_truncated_where_it_may_be(client, model):
    items = [{"role": "user", "content": f"{i}: " + "word " * 400} for i in range(40)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=model, input=items, max_output_tokens=4)
    assert refused.value.code == "context_length_exceeded"
    response = client.responses.create(model=model, input=items, max_output_tokens=4, truncation="auto")
    assert response.truncation == "auto" and 400 < response.usage.input_tokens < 40 * 400


@pytest.fixture(scope="module")
def real_server(image_cache):
    server = ThawServer(BUILD / "bin" / "thaw", real_model(), (), image_cache)
    server.wait_healthy()
    yield server
    server.stop()


def test_a_conversation_goes_on_with_its_kv(real_server):
    """Nothing of the turns before is computed again, the generated tokens included."""
    client = client_of(real_server)
    name = client.models.list().data[0].id
    previous, ids = None, []
    for turn in range(3):
        response = client.responses.create(
            model=name,
            instructions=LONG,
            input=f"And then, {turn}?",
            previous_response_id=previous,
            temperature=1,
            max_output_tokens=24,
            extra_body={"seed": turn, "return_token_ids": True},
        )
        prompt, generated = response.model_extra["prompt_token_ids"], response.model_extra["token_ids"]
        # The prompt is the line of ids so far, as the model wrote it, and the new turn.
        assert prompt[: len(ids)] == ids
        if ids:
            # The last tokens of a reply were drawn, and not read yet.
            assert cached(response) >= len(ids) - 2 > 200
        ids = prompt + generated
        details = response.usage.input_tokens_details
        assert details.cached_tokens + details.cache_write_tokens == response.usage.input_tokens
        # The same ids from nothing give the same bits.
        raw = {"prompt": prompt, "cache_salt": f"cold-{turn}", "max_tokens": 24, "temperature": 1}
        status, alone = real_server.post("/v1/completions", {**raw, "seed": turn, "return_token_ids": True})
        assert status == 200 and alone["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert alone["choices"][0]["token_ids"] == generated
        previous = response.id


def test_branches_of_one_response_are_one_trunk(real_server):
    client = client_of(real_server)
    fields = {"model": client.models.list().data[0].id, "temperature": 0, "max_output_tokens": 12}
    trunk = client.responses.create(instructions=LONG, input="Begin.", **fields)
    before = real_server.wait_idle()

    def branch(number: int):
        return client.responses.create(
            instructions=LONG, input=f"{number}: why?", previous_response_id=trunk.id, **fields
        )

    replies = in_parallel([lambda i=i: branch(i) for i in range(6)])
    cost = real_server.wait_idle()["thaw_tokens_prefilled_total"] - before["thaw_tokens_prefilled_total"]
    assert cost < 6 * 30, "the branches computed their trunk again"
    assert all(cached(reply) > trunk.usage.input_tokens > 200 for reply in replies)
    # The same by one call, with the response as its trunk.
    body = {
        "trunk": {"response_id": trunk.id},
        "forks": [{"messages": [{"role": "user", "content": f"{i}: why?"}]} for i in range(6)],
        "temperature": 0,
        "max_tokens": 12,
    }
    status, forked = real_server.post("/v1/forks", body)
    assert status == 200, forked
    texts = [branch["choices"][0]["message"]["content"] for branch in forked["data"]]
    assert texts == [reply.output_text for reply in replies]


def test_tools_go_round(real_server):
    """A call, its output, the answer: as the chat has it, token by token."""
    client = client_of(real_server)
    name = client.models.list().data[0].id
    fields = {"model": name, "temperature": 0, "max_output_tokens": 60}
    question = "What is the weather in Rome?"
    first = client.responses.create(input=question, tools=[TOOL], tool_choice="required", **fields)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "weather" and set(json.loads(call.arguments)) == {"city"} and call.call_id
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 21 degrees."}
    second = client.responses.create(
        input=[output], tools=[TOOL], tool_choice="none", previous_response_id=first.id, **fields
    )
    nested = {"type": "function", "function": {key: value for key, value in TOOL.items() if key != "type"}}
    messages = [{"role": "user", "content": question}]
    body = {"model": name, "temperature": 0, "max_tokens": 60, "tools": [nested], "cache_salt": "cold"}
    _, chat = real_server.post(CHAT, {**body, "messages": messages, "tool_choice": "required"})
    message = chat["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == call.arguments
    messages += [
        message,
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": output["output"]},
    ]
    _, chat = real_server.post(CHAT, {**body, "messages": messages, "tool_choice": "none"})
    assert second.output_text == chat["choices"][0]["message"]["content"]

    with client.responses.stream(input=question, tools=[TOOL], tool_choice="required", **fields) as stream:
        events = list(stream)
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == call.arguments
    assert events[-1].response.output[0].parsed_arguments == json.loads(call.arguments)


def test_a_conversation_is_the_chats(real_server):
    """The same messages by both endpoints give the same text, turn after turn."""
    client = client_of(real_server)
    name = client.models.list().data[0].id
    previous, messages = None, [{"role": "system", "content": "Answer in one sentence."}]
    for turn, question in enumerate(["Who are you?", "What can you do?"]):
        response = client.responses.create(
            model=name,
            instructions="Answer in one sentence.",
            input=question,
            previous_response_id=previous,
            temperature=0,
            max_output_tokens=48,
        )
        messages.append({"role": "user", "content": question})
        body = {
            "model": name,
            "messages": messages,
            "temperature": 0,
            "max_tokens": 48,
            "cache_salt": f"cold-{turn}",
        }
        _, chat = real_server.post(CHAT, body)
        assert response.output_text == chat["choices"][0]["message"]["content"]
        assert response.usage.input_tokens == chat["usage"]["prompt_tokens"]
        messages.append({"role": "assistant", "content": response.output_text})
        previous = response.id
    assert cached(response) > 40


def test_parse_gives_the_model(real_server):
    client = client_of(real_server)
    name = client.models.list().data[0].id
    parsed = client.responses.parse(
        model=name, input="Is water wet?", text_format=Verdict, max_output_tokens=120, temperature=1
    )
    assert isinstance(parsed.output_parsed, Verdict)
    free = client.responses.create(
        model=name,
        input="Give me JSON.",
        text={"format": {"type": "json_object"}},
        max_output_tokens=200,
        temperature=0,
    )
    if free.status == "completed":
        assert isinstance(json.loads(free.output_text), dict)
