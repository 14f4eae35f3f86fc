"""POST /v1/forks: branches answer what they would have answered alone, and the trunk is computed once."""

import random
import threading

import openai
from conftest import real_model

TRUNK = 700


def tokens(count: int, seed: int) -> list[int]:
    return [random.Random(seed * 7919 + i).randrange(20, 250) for i in range(count)]


def computed(usage: dict) -> int:
    return usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


def branches() -> list[dict]:
    return [
        {"prompt": [30, *tokens(12, 1)], "temperature": 0},
        {"prompt": [31, *tokens(30, 2)], "seed": 7, "max_tokens": 20},
        {"prompt": [32, *tokens(5, 3)], "seed": 8, "logprobs": 2},
        {"prompt": [33, *tokens(9, 4)], "seed": 9, "n": 2},
    ]


def test_one_trunk_and_the_answers_of_calls_alone(serve):
    server = serve()
    trunk = tokens(TRUNK, 5)
    defaults = {"max_tokens": 12, "ignore_eos": True}
    status, answer = server.post("/v1/forks", {"trunk": {"prompt": trunk}, "forks": branches(), **defaults})
    assert status == 200, answer
    suffixes = sum(len(branch["prompt"]) for branch in branches())
    assert computed(answer["usage"]) == TRUNK + suffixes
    assert server.wait_idle()["thaw_tokens_prefilled_total"] == TRUNK + suffixes
    alone = serve()  # nothing is cached there
    for number, branch in enumerate(branches()):
        _, reply = alone.post(
            "/v1/completions",
            {**defaults, **branch, "prompt": trunk + branch["prompt"], "cache_salt": str(number)},
        )
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert answer["data"][number]["branch"] == number
        assert answer["data"][number]["choices"] == reply["choices"]


def test_chats_in_one_stream(serve):
    server = serve(model=real_model())
    trunk = {"messages": [{"role": "system", "content": "You answer in one word. " * 30}]}
    forks = [
        {"label": word, "messages": [{"role": "user", "content": f"Name one {word}."}]}
        for word in ("colour", "fruit", "river")
    ]
    body = {"trunk": trunk, "forks": forks, "max_tokens": 8, "temperature": 0}
    _, whole = server.post("/v1/forks", body)
    stream = server.stream("/v1/forks", {**body, "stream": True, "stream_options": {"include_usage": True}})
    texts = dict.fromkeys(range(3), "")
    total = None
    for chunk in stream:
        if chunk.get("object") == "forks.usage":
            total = chunk["usage"]
            continue
        assert forks[chunk["branch"]]["label"] == chunk["label"]
        for choice in chunk["choices"]:
            texts[chunk["branch"]] += choice["delta"].get("content") or ""
    assert stream.done and total["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert [texts[i] for i in range(3)] == [d["choices"][0]["message"]["content"] for d in whole["data"]]
    # The trunk once, and each question with the call for its reply.
    longest = max(d["usage"]["prompt_tokens"] for d in whole["data"])
    assert computed(whole["usage"]) < longest + 3 * 20
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    for fork, data in zip(forks, whole["data"], strict=True):
        alone = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=trunk["messages"] + fork["messages"],
            max_tokens=8,
            temperature=0,
            extra_body={"cache_salt": fork["label"]},
        )
        assert alone.choices[0].message.content == data["choices"][0]["message"]["content"]


def test_from_a_running_stream_at_a_token(serve):
    server = serve(model=real_model())
    ask = {
        "messages": [{"role": "user", "content": "Count from one to a hundred."}],
        "max_tokens": 200,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }
    seen: list[int] = []
    ids: list[str] = []
    there = threading.Event()

    def read():
        for chunk in server.stream("/v1/chat/completions", ask):
            ids.append(chunk["id"])
            for choice in chunk["choices"]:
                seen.extend(choice.get("token_ids") or [])
            if len(seen) >= 24:
                there.set()

    reading = threading.Thread(target=read)
    reading.start()
    assert there.wait(timeout=60)
    status, answer = server.post(
        "/v1/forks",
        {
            "trunk": {"response_id": ids[0], "token": 20},
            "max_tokens": 12,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "forks": [{}, {"temperature": 1, "seed": 4}],
        },
    )
    reading.join(timeout=120)
    assert status == 200, answer
    # Greedy goes the same way as the stream did; the stream was not disturbed.
    assert answer["data"][0]["choices"][0]["token_ids"] == seen[20:32]
    assert len(seen) == 200
    # What both have in common was there but for the block that was being written.
    for data in answer["data"]:
        assert computed(data["usage"]) <= 20


def test_a_session_is_a_trunk(serve):
    server = serve(model=real_model())
    _, session = server.post("/v1/sessions", {"messages": [{"role": "system", "content": "Be short. " * 40}]})
    forks = [{"messages": [{"role": "user", "content": text}]} for text in ("Hello", "Goodbye")]
    _, answer = server.post(
        "/v1/forks",
        {"trunk": {"session_id": session["id"]}, "forks": forks, "max_tokens": 6, "temperature": 0},
    )
    for data in answer["data"]:
        assert data["usage"]["prompt_tokens_details"]["cached_tokens"] >= session["tokens"] - 16


def test_what_a_prompt_keeps_outlives_eviction(serve):
    server = serve("--kv-bytes", "4MiB", "--arena-bytes", "32MiB", "--prompt-cache-bytes", "16MiB")
    kept = tokens(640, 11)
    status, warm = server.post(
        "/v1/completions",
        {"prompt": kept, "prompt_cache_options": {"prewarm": True, "ttl": "30m"}, "prompt_cache_key": "k"},
    )
    assert status == 200 and warm["choices"][0]["text"] == ""
    assert warm["usage"]["prompt_tokens_details"]["cache_write_tokens"] == 640
    assert warm["usage"]["completion_tokens"] == 0
    while server.metrics()["thaw_prompt_cache_pins"] < 1:
        assert server.process.poll() is None
    evicted = 0
    for seed in range(100, 160):
        server.post("/v1/completions", {"prompt": tokens(800, seed), "max_tokens": 1})
        evicted = server.wait_idle()["thaw_kv_evicted_blocks_total"]
        if evicted > 400:
            break
    assert evicted > 400
    _, reply = server.post("/v1/completions", {"prompt": [*kept, 25], "max_tokens": 1})
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= 640
