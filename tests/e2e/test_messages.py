"""Anthropic's own client on POST /v1/messages: the real server on the real model."""

import concurrent.futures
import json

import anthropic
import pydantic
import pytest
from conftest import BUILD, real_model
from thaw_server import ThawServer

MODEL = "SmolLM2-135M-Instruct.Q4_1"
QUESTION = [{"role": "user", "content": "What will the weather be in Paris in the next 3 days?"}]
WEATHER = {
    "name": "weather",
    "description": "What the weather is in a city.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 24},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CLOCK = {"name": "clock", "description": "Tells the time.", "input_schema": {"type": "object"}}


class Verdict(pydantic.BaseModel):
    good: bool
    score: int = pydantic.Field(ge=0, le=10)


class Answer(pydantic.BaseModel):
    """Without bounds: the client takes them out of the schema and checks them afterwards."""

    good: bool
    score: int


@pytest.fixture(scope="module")
def messages_server(image_cache):
    flags = ("--api-key", "a:one", "--api-key", "b:two", "--kv-bytes", "512MiB")
    server = ThawServer(BUILD / "bin" / "thaw", real_model(), flags, image_cache)
    server.wait_healthy()
    yield server
    server.stop()


def client_of(server, **options) -> anthropic.Anthropic:
    options = {"api_key": "one", "max_retries": 0, **options}
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", **options)


@pytest.fixture
def client(messages_server):
    return client_of(messages_server)


def sampled(temperature: float = 0, **extra) -> dict:
    """Fields that this client has no arguments for."""
    return {"extra_body": {"temperature": temperature, **extra}}


def ask(client, temperature: float = 0, seed: int = 1, **fields):
    fields = {"model": MODEL, "messages": QUESTION, "max_tokens": 200, **fields}
    return client.messages.create(**fields, **sampled(temperature, seed=seed))


def input_of(usage) -> int:
    """All of the prompt, as the client's reference counts it."""
    return usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens


def test_a_message_is_the_same_text_as_a_chat(messages_server, client):
    system = "You are brief."
    turns = [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another?"},
    ]
    message = ask(client, system=system, messages=turns, max_tokens=24)
    chat = {
        "messages": [{"role": "system", "content": system}, *turns],
        "max_tokens": 24,
        "temperature": 0,
    }
    status, reply = messages_server.post("/v1/chat/completions", chat, {"Authorization": "Bearer one"})
    assert status == 200
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == reply["choices"][0]["message"]["content"]
    assert input_of(message.usage) == reply["usage"]["prompt_tokens"]
    assert message.usage.output_tokens == reply["usage"]["completion_tokens"]
    assert (
        message.stop_reason
        == {"stop": "end_turn", "length": "max_tokens"}[reply["choices"][0]["finish_reason"]]
    )
    assert message._request_id == message.id


def test_a_stream_is_the_whole_message(client):
    whole = ask(client, max_tokens=32)
    with client.messages.stream(model=MODEL, messages=QUESTION, max_tokens=32, **sampled()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert input_of(final.usage) == input_of(whole.usage)
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_stop_sequence_is_named(client):
    text = ask(client, max_tokens=40).content[0].text
    stop = text[10:14]
    stopped = ask(client, max_tokens=40, stop_sequences=["never said", stop])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == stop
    assert "".join(block.text for block in stopped.content) == text[: text.index(stop)]


def test_a_beginning_is_gone_on_with(client):
    text = ask(client, max_tokens=24).content[0].text
    begun = [*QUESTION, {"role": "assistant", "content": text[:20]}]
    rest = ask(client, messages=begun, max_tokens=24).content[0].text
    assert rest and not rest.startswith(text[:20])


def test_tools_go_round(client):
    """A forced call, its result, a reply; streamed and whole."""
    fields = {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "tool", "name": "weather"}}
    called = ask(client, **fields)
    (call,) = called.content
    assert called.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "weather"
    assert set(call.input) == {"city", "days"} and 1 <= call.input["days"] <= 7
    with client.messages.stream(
        model=MODEL, messages=QUESTION, max_tokens=200, **sampled(), **fields
    ) as stream:
        fragments = [event.partial_json for event in stream if event.type == "input_json"]
        streamed = stream.get_final_message()
    assert streamed.content[0].input == call.input and len(fragments) > 1
    assert json.loads("".join(fragments)) == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain, 12 degrees."}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    answer = ask(client, messages=turns, tools=[WEATHER, CLOCK], max_tokens=24)
    assert answer.content[0].type == "text" and answer.stop_reason in ("end_turn", "max_tokens")


def test_any_tool_at_any_temperature(client):
    for seed in range(4):
        called = ask(
            client,
            tools=[WEATHER, CLOCK],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            temperature=1,
            seed=seed,
        )
        (call,) = called.content
        assert call.name in ("weather", "clock") and isinstance(call.input, dict)
    free = ask(client, tools=[WEATHER], tool_choice={"type": "none"}, max_tokens=8)
    assert free.content[0].type == "text"


def test_a_schema_holds(client):
    question = [{"role": "user", "content": "Is bread good? Judge."}]
    schema = Verdict.model_json_schema() | {"additionalProperties": False}
    reply = ask(
        client,
        messages=question,
        temperature=1,
        max_tokens=60,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    Verdict.model_validate_json(reply.content[0].text)
    # Greedy: drawn at 1, digits of a number without bounds may well not end within the limit.
    parsed = client.messages.parse(
        model=MODEL, messages=question, max_tokens=60, output_format=Answer, **sampled()
    )
    assert isinstance(parsed.parsed_output, Answer)


def test_cache_control_is_kept_and_read(messages_server, client):
    document = "The harbour of the town has two piers and a lighthouse. " * 12
    mark = {"type": "ephemeral", "ttl": "1h"}
    system = [
        {"type": "text", "text": "Answer from the document."},
        {"type": "text", "text": document, "cache_control": mark},
    ]
    fields = {"system": system, "max_tokens": 4}
    first = ask(client, messages=[{"role": "user", "content": "How many piers?"}], **fields).usage
    assert first.cache_creation_input_tokens > 100 > first.cache_read_input_tokens
    assert first.cache_creation.ephemeral_1h_input_tokens == first.cache_creation_input_tokens
    assert 0 < first.input_tokens < 30
    second = ask(client, messages=[{"role": "user", "content": "A lighthouse?"}], **fields).usage
    assert second.cache_read_input_tokens >= first.cache_creation_input_tokens
    assert second.cache_creation_input_tokens == 0
    assert messages_server.metrics()["thaw_prompt_cache_pins"] >= 1
    # Nothing but the cache: as the reference's own way to fill it.
    warmed = ask(client, messages=[{"role": "user", "content": "More? " * 40}], max_tokens=0, system=system)
    assert warmed.content == [] and warmed.usage.output_tokens == 0


def test_counts_are_those_of_the_answer(client):
    fields = {"model": MODEL, "messages": QUESTION, "system": "Be brief.", "tools": [WEATHER]}
    counted = client.messages.count_tokens(**fields).input_tokens
    assert counted == input_of(client.messages.create(max_tokens=1, **fields).usage)
    assert counted > client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens


def test_errors_are_the_clients_own(messages_server, client):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        ask(client, model="no-such-model")
    assert unknown.value.type == "not_found_error" and unknown.value.request_id
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(client, temperature=7)
    assert refused.value.type == "invalid_request_error" and "7" in refused.value.api_message
    image = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    with pytest.raises(anthropic.BadRequestError) as no_eyes:
        ask(client, messages=[{"role": "user", "content": [image]}])
    assert no_eyes.value.error_code == "unsupported"
    with pytest.raises(anthropic.BadRequestError):
        ask(client, messages=[{"role": "user", "content": "word " * 20000}])
    with pytest.raises(anthropic.AuthenticationError) as stranger:
        ask(client_of(messages_server, api_key="three"))
    assert stranger.value.type == "authentication_error"


def test_keys_are_tenants_in_either_header(messages_server):
    turns = [{"role": "user", "content": "Only this tenant has said so. " * 20}]
    read = []
    for headers in (
        {"x-api-key": "one"},
        {"x-api-key": "two"},
        {"Authorization": "Bearer one"},
    ):
        body = {"messages": turns, "max_tokens": 1}
        status, reply = messages_server.post("/v1/messages", body, headers)
        assert status == 200
        read.append(reply["usage"]["cache_read_input_tokens"])
    # What the template itself writes may be there already.
    assert max(read[:2]) < 50 and read[2] > 100


def test_a_fan_out_computes_its_trunk_once(messages_server, client):
    document = "One line of a shared document that all four branches read. " * 20

    def branch(topic: str):
        return ask(client, system=document, max_tokens=8, messages=[{"role": "user", "content": topic}])

    before = messages_server.wait_idle()["thaw_tokens_prefilled_total"]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(branch, ("security", "names", "tests", "speed")))
    prefilled = messages_server.wait_idle()["thaw_tokens_prefilled_total"] - before
    usages = [answer.usage for answer in answers]
    prompt = input_of(usages[0])
    assert prefilled == sum(input_of(usage) - usage.cache_read_input_tokens for usage in usages)
    assert prefilled < prompt + 4 * 40, "the document was prefilled more than once"


def test_models_are_listed_as_the_client_reads_them(client):
    (model,) = client.models.list().data
    assert model.id == MODEL and model.type == "model" and model.max_input_tokens > 1000
    assert client.models.retrieve(MODEL).display_name == MODEL
