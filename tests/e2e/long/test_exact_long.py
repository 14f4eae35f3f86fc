"""The real model over HTTP: every way to the same answer gives the same answer."""

import os
import signal

import pytest
from conftest import real_model
from thaw_server import in_parallel

TOPICS = (
    "the history of the steam engine",
    "how bread is made",
    "a function that reverses a list",
    "the tides",
    "why the sky is blue",
    "chess openings",
    "the water cycle",
    "sorting algorithms",
)
SAMPLING = ({"temperature": 0}, {"temperature": 1.0, "seed": 1234})


def trunk_text() -> str:
    line = "Notes from the archive, entry {}: the keeper wrote down the weather, the ships and the prices.\n"
    return "".join(line.format(i) for i in range(80))


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "seeded"])
def test_exact_over_every_path(serve, sampling):
    server = serve("--workers", "2", "--threads", "1", "--kv-bytes", "1GiB", model=real_model())
    trunk = trunk_text()
    bodies = [
        {
            "messages": [
                {"role": "system", "content": trunk},
                {"role": "user", "content": f"Tell me about {topic}."},
            ],
            "max_tokens": 64,
            "logprobs": True,
            **sampling,
        }
        for topic in TOPICS
    ]

    def answer(body: dict, salt: str, worker: int):
        status, reply = server.post(
            "/v1/chat/completions", {**body, "cache_salt": salt, "thaw": {"worker": worker}}
        )
        assert status == 200, reply
        choice = reply["choices"][0]
        marks = [(entry["token"], entry["logprob"]) for entry in choice["logprobs"]["content"]]
        return choice["message"]["content"], marks

    def together(salt: str, worker: int):
        return in_parallel([lambda b=body: answer(b, salt, worker) for body in bodies])

    cold = [answer(body, f"cold-{i}", 0) for i, body in enumerate(bodies)]
    assert len({text for text, _ in cold}) > 4, "answers hardly differ: a weak test"
    assert together("batch", 0) == cold
    assert [answer(body, "batch", 0) for body in bodies] == cold  # all of it cached

    restores = server.wait_idle()["thaw_kv_restores_total"]
    assert together("batch", 1) == cold
    assert server.wait_idle()["thaw_kv_restores_total"] > restores, "no snapshot was restored"

    pids = {worker["worker"]: worker["pid"] for worker in server.pool()["workers"]}
    os.kill(pids[0], signal.SIGKILL)
    server.wait_healthy()
    assert together("batch", 0) == cold  # in the successor, on the blocks it adopted
