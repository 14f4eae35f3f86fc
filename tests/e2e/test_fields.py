"""Fields of chat and text completions through the openai SDK, and their numbers against one another."""

import os
import signal
import threading

import openai
import pytest
from conftest import real_model
from thaw_server import in_parallel

MESSAGES = [{"role": "user", "content": "Say something."}]


def client_of(server, **options):
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, **options
    )


@pytest.fixture
def client(server):
    return client_of(server)


def model_of(client) -> str:
    return client.models.list().data[0].id


def scored_again(client, prompt, logprobs: int) -> None:
    """What decoding said of each token is what reading it says, to the last bit."""
    model = model_of(client)
    decoded = client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=64,
        temperature=1,
        seed=11,
        logprobs=logprobs,
        extra_body={"return_token_ids": True, "ignore_eos": True, "return_tokens_as_token_ids": True},
    ).choices[0]
    assert len(decoded.token_ids) == 64
    whole = decoded.prompt_token_ids + decoded.token_ids
    read = client.completions.create(
        model=model, prompt=whole, max_tokens=1, extra_body={"prompt_logprobs": logprobs}
    )
    assert read.usage.prompt_tokens_details.cached_tokens == 0
    scores = read.choices[0].prompt_logprobs[-64:]
    for i, token in enumerate(decoded.token_ids):
        assert scores[i][str(token)]["logprob"] == decoded.logprobs.token_logprobs[i]
        for name, logprob in decoded.logprobs.top_logprobs[i].items():
            assert scores[i][name.removeprefix("token_id:")]["logprob"] == logprob
    # The older way to ask: echo, nothing generated.
    echoed = client.completions.create(
        model=model,
        prompt=whole,
        max_tokens=0,
        echo=True,
        logprobs=logprobs,
        extra_body={"return_tokens_as_token_ids": True},
    ).choices[0]
    assert echoed.logprobs.tokens[-64:] == decoded.logprobs.tokens
    assert echoed.logprobs.token_logprobs[0] is None
    assert echoed.logprobs.token_logprobs[-64:] == decoded.logprobs.token_logprobs
    assert echoed.logprobs.top_logprobs[-64:] == decoded.logprobs.top_logprobs


def test_generated_tokens_are_scored_with_the_same_bits(client):
    scored_again(client, [30 + i % 90 for i in range(300)], 3)


def test_generated_tokens_of_the_real_model_too(serve):
    scored_again(client_of(serve(model=real_model())), "The capital of France is", 5)


def test_scores_survive_the_death_of_a_worker(serve):
    server = serve("--prefill-chunk-tokens", "16")
    prompt = [20 + i * 7 % 200 for i in range(3000)]
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "prompt_logprobs": 2, "ignore_eos": True}
    _, calm = server.post("/v1/completions", body)
    replies = []
    asking = threading.Thread(target=lambda: replies.append(server.post("/v1/completions", body)))
    asking.start()
    while server.metrics()["thaw_tokens_prefilled_total"] < 3200:
        assert asking.is_alive()
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    asking.join(timeout=60)
    status, stormy = replies[0]
    assert status == 200
    assert stormy["choices"][0]["prompt_logprobs"] == calm["choices"][0]["prompt_logprobs"]
    assert len(stormy["choices"][0]["prompt_logprobs"]) == 3000
    assert stormy["choices"][0]["text"] == calm["choices"][0]["text"]


def test_chat_logprobs_and_what_shapes_them(client):
    model = model_of(client)
    ask = {"model": model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    reply = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    entries = reply.choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)  # greedy
    # A token that is barred, or the only one that is not.
    ids = client.chat.completions.create(**ask, extra_body={"return_token_ids": True}).choices[0].token_ids
    barred = client.chat.completions.create(
        **ask, logit_bias={str(ids[0]): -100}, extra_body={"return_token_ids": True}
    )
    assert barred.choices[0].token_ids[0] != ids[0]
    only = client.chat.completions.create(
        **ask, extra_body={"allowed_token_ids": [40, 41], "return_token_ids": True, "ignore_eos": True}
    )
    assert set(only.choices[0].token_ids) <= {40, 41}


def test_bad_words_are_not_written(server, client):
    ask = {"model": model_of(client), "prompt": [50, 60, 70], "max_tokens": 24, "temperature": 0}
    extra = {"return_token_ids": True, "ignore_eos": True}
    plain = client.completions.create(**ask, extra_body=extra).choices[0].token_ids

    def word_of(token):
        text = server.post("/detokenize", {"tokens": [token]})[1]["prompt"]
        asked = {"prompt": text, "add_special_tokens": False}
        return text if server.post("/tokenize", asked)[1]["tokens"] == [token] else None

    token = next(token for token in plain if word_of(token))
    extra["bad_words"] = [word_of(token)]
    without = client.completions.create(**ask, extra_body=extra).choices[0].token_ids
    assert len(without) == 24 and token not in without


def test_best_of_is_the_best_of_n(client):
    ask = {"model": model_of(client), "prompt": [50, 60, 70], "max_tokens": 6, "seed": 3, "logprobs": 0}
    extra = {"ignore_eos": True}
    all_of_them = client.completions.create(**ask, n=4, extra_body=extra).choices
    best = client.completions.create(**ask, n=1, best_of=4, extra_body=extra)
    wanted = max(all_of_them, key=lambda choice: sum(choice.logprobs.token_logprobs))
    assert [choice.text for choice in best.choices] == [wanted.text]
    assert best.usage.completion_tokens == 4 * 6


def test_an_open_message_goes_on(serve):
    server = serve(model=real_model())
    client = client_of(server)
    model = model_of(client)
    opened = [*MESSAGES, {"role": "assistant", "content": "The colours of the rainbow are red,"}]
    reply = client.chat.completions.create(
        model=model,
        messages=opened,
        max_tokens=6,
        temperature=0,
        extra_body={"continue_final_message": True, "return_token_ids": True},
    )
    _, shown = server.post("/detokenize", {"tokens": reply.prompt_token_ids})
    assert shown["prompt"].endswith("The colours of the rainbow are red,")
    echoed = client.chat.completions.create(
        model=model,
        messages=opened,
        max_tokens=6,
        temperature=0,
        extra_body={"continue_final_message": True, "echo": True},
    )
    text = echoed.choices[0].message.content
    assert text == opened[-1]["content"] + reply.choices[0].message.content


def test_a_full_queue_says_when_to_come_back(serve):
    server = serve("--max-queued-requests", "1", "--max-num-seqs", "1")
    client = client_of(server)
    model = model_of(client)

    def long_call():
        return client.completions.create(
            model=model, prompt=[30] * 500, max_tokens=200, extra_body={"ignore_eos": True}
        )

    results = in_parallel([lambda: attempt(long_call) for _ in range(6)])
    refused = [error for error in results if isinstance(error, openai.RateLimitError)]
    assert refused
    for error in refused:
        assert int(error.response.headers["retry-after-ms"]) >= 20
        assert error.code == "rate_limit_exceeded"
    # A client that waits as it is told gets through.
    patient = openai.OpenAI(base_url=client.base_url, api_key="none", max_retries=20)
    calls = [
        lambda: patient.completions.create(model=model, prompt=[31] * 50, max_tokens=4) for _ in range(4)
    ]
    assert all(reply.choices for reply in in_parallel(calls))


def attempt(call):
    try:
        return call()
    except openai.APIStatusError as error:
        return error
