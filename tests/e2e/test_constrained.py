"""Grammars over HTTP, on the tiny model: what it says means nothing, and yet it has to be of the form."""

import os
import re
import signal

import pytest
from constrained import check_schemas, of_format, of_schema
from random_schemas import random_schemas
from thaw_server import in_parallel

WORDS = of_format({"type": "regex", "pattern": "([a-m]{2,7}[0-9]{1,3} )*"})
LONG = {"prompt": list(range(30, 130)), "max_tokens": 300, "temperature": 1.0, "seed": 5, "ignore_eos": True}


def test_answers_of_random_schemas_validate(server):
    ends = check_schemas(server, random_schemas(40, seed=1), max_tokens=1500)
    assert ends["stop"] >= 38, ends
    metrics = server.wait_idle()
    # Some of them are the same.
    found = metrics["thaw_grammar_cache_hits_total"]
    assert metrics["thaw_grammars_compiled_total"] + found == 40 and found < 20
    assert metrics["thaw_grammar_masks_total"] > 200


def test_a_grammar_is_compiled_once(server):
    body = {"prompt": "x", "max_tokens": 40, **of_schema({"type": "boolean"})}
    for _ in range(3):
        assert server.post("/v1/completions", body)[0] == 200
    metrics = server.wait_idle()
    assert metrics["thaw_grammars_compiled_total"] == 1
    assert metrics["thaw_grammar_cache_hits_total"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_document_that_does_not_compile_is_a_400(server, stream):
    for wanted in (
        {"type": "regex", "pattern": "(a"},
        {"type": "json_schema", "json_schema": {"type": "no such type"}},
        {"type": "no_such_format"},
    ):
        body = {"prompt": "x", "max_tokens": 4, "stream": stream, **of_format(wanted)}
        status, reply = server.post("/v1/completions", body)
        assert status == 400, (wanted, reply)
        assert reply["error"]["type"] == "invalid_request_error"
    assert server.wait_idle()["thaw_worker_deaths_total"] == 0


def test_constrained_and_free_streams_share_a_batch(server):
    def text(body: dict, salt: str) -> str:
        return server.stream("/v1/completions", {**body, "cache_salt": salt}).text()

    bodies = [{**LONG, "seed": i, **(WORDS if i % 2 else {})} for i in range(8)]
    alone = [text(body, f"alone-{i}") for i, body in enumerate(bodies)]
    together = in_parallel([lambda b=body: text(b, "together") for body in bodies])
    assert together == alone
    for i, answer in enumerate(alone):
        assert bool(re.fullmatch("([a-m]{2,7}[0-9]{1,3} )*[a-m]{0,7}[0-9]{0,3}", answer)) == bool(i % 2), (
            answer
        )


def test_choices_differ_and_all_fit(server):
    body = {
        "prompt": "pick: ",
        "n": 6,
        "max_tokens": 60,
        "temperature": 1.0,
        "seed": 3,
        **of_format({"type": "regex", "pattern": "[a-z]{3}-[0-9]{2,4}"}),
    }
    status, reply = server.post("/v1/completions", body)
    assert status == 200, reply
    texts = [choice["text"] for choice in reply["choices"]]
    assert all(re.fullmatch("[a-z]{3}-[0-9]{2,4}", text) for text in texts), texts
    assert len(set(texts)) > 2


def test_a_killed_worker_goes_on_in_the_grammar(server):
    body = {**LONG, **WORDS}
    expected = server.stream("/v1/completions", {**body, "cache_salt": "reference"}).text()
    stream = server.stream("/v1/completions", body)
    frames = iter(stream)
    texts = []
    while len(texts) < 20:
        texts += [choice["text"] for choice in next(frames).get("choices", [])]
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    for frame in frames:
        texts += [choice["text"] for choice in frame.get("choices", [])]
    assert "".join(texts) == expected
    assert not stream.errors
    assert server.wait_idle()["thaw_worker_deaths_total"] == 1


def test_a_hostile_schema_stalls_nobody(server):
    body = {**LONG, "max_tokens": 200}
    expected = server.stream("/v1/completions", {**body, "cache_salt": "reference"}).text()
    pattern = "((a{1,90}){1,90}b?){1,90}"

    def hostile(i: int):
        wanted = {"type": "regex", "pattern": pattern + str(i)}
        return server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, **of_format(wanted)})

    results = in_parallel(
        [lambda i=i: hostile(i) for i in range(4)] + [lambda: server.stream("/v1/completions", body).text()]
    )
    assert results[-1] == expected
    assert all(status in (200, 400) for status, _ in results[:-1]), results[:-1]
