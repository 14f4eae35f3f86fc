"""Branches that share a trunk cost one trunk prefill, however they arrive.

Prompts are token ids, so every count is exact. Each case checks that the server's counter and the usage of
the answers agree: the trunk once plus the suffixes. With token prompts the last prompt token is always
computed, so a prompt whose every token is alive costs 1.
"""

import os
import random
import signal
import threading
import time

import pytest
from thaw_server import in_parallel

TRUNK_TOKENS = 2000
SUFFIX_TOKENS = 20
MAX_TOKENS = 8


def tokens(count: int, seed: int) -> list[int]:
    return [random.Random(seed * 7919 + i).randrange(20, 250) for i in range(count)]


def completion(prompt: list[int], **extra) -> dict:
    return {
        "prompt": prompt,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        **extra,
    }


def family(seed: int, count: int, trunk_tokens: int = TRUNK_TOKENS) -> list[list[int]]:
    """Prompts with one trunk whose suffixes differ in their first token."""
    trunk = tokens(trunk_tokens, seed)
    return [trunk + [20 + i] + tokens(SUFFIX_TOKENS - 1, seed * 100 + i) for i in range(count)]


def run_streams(server, bodies: list[dict], spread_s: float = 0.0) -> list:
    def call(index: int, body: dict):
        time.sleep(spread_s * index / max(1, len(bodies) - 1))
        stream = server.stream("/v1/completions", body)
        text = stream.text()
        assert not stream.errors and stream.done
        return text, stream.usage

    return in_parallel([lambda i=i, b=b: call(i, b) for i, b in enumerate(bodies)])


def counted(server, before: dict) -> int:
    return int(server.wait_idle()["thaw_tokens_prefilled_total"] - before["thaw_tokens_prefilled_total"])


def check_cost(server, bodies: list[dict], expected: int, spread_s: float = 0.0) -> None:
    before = server.wait_idle()
    results = run_streams(server, bodies, spread_s)
    computed = sum(u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"] for _, u in results)
    assert counted(server, before) == expected
    assert computed == expected


@pytest.mark.parametrize("spread_s", [0.0, 0.025])
def test_one_family(server, spread_s):
    bodies = [completion(prompt) for prompt in family(1, 8)]
    check_cost(server, bodies, TRUNK_TOKENS + 8 * SUFFIX_TOKENS, spread_s)


def test_a_stranger_among_them(server):
    bodies = [completion(prompt) for prompt in family(2, 8)]
    bodies.insert(3, completion([251, *tokens(299, 3)]))
    check_cost(server, bodies, TRUNK_TOKENS + 8 * SUFFIX_TOKENS + 300)


def test_two_families(server):
    bodies = [completion(prompt) for prompt in family(4, 4)]
    bodies += [completion([252, *prompt]) for prompt in family(5, 4)]
    random.Random(1).shuffle(bodies)
    check_cost(server, bodies, 2 * TRUNK_TOKENS + 1 + 8 * SUFFIX_TOKENS)


def test_nested_trunks(server):
    outer = tokens(TRUNK_TOKENS, 6)
    inner = [[20 + k, *tokens(199, 60 + k)] for k in range(2)]
    bodies = [completion(outer + inner[i % 2] + [20 + i, *tokens(9, 70 + i)]) for i in range(8)]
    check_cost(server, bodies, TRUNK_TOKENS + 2 * 200 + 8 * 10, spread_s=0.01)


def test_salts_share_within_and_never_across(server):
    bodies = [completion(prompt, cache_salt="ab"[i % 2]) for i, prompt in enumerate(family(7, 8))]
    check_cost(server, bodies, 2 * TRUNK_TOKENS + 8 * SUFFIX_TOKENS)


def test_the_next_round_finds_the_trunk(server):
    prompts = family(8, 8)
    check_cost(server, [completion(p) for p in prompts[:4]], TRUNK_TOKENS + 4 * SUFFIX_TOKENS)
    check_cost(server, [completion(p) for p in prompts[4:]], 4 * SUFFIX_TOKENS)


def test_a_straggler_in_the_middle_of_the_trunk(serve):
    server = serve("--prefill-chunk-tokens", "16", "--threads", "1")
    prompts = family(9, 2, trunk_tokens=6000)
    before = server.wait_idle()
    leader = threading.Thread(target=lambda: run_streams(server, [completion(prompts[0])]))
    leader.start()
    deadline = time.monotonic() + 30
    while not 0 < server.metrics()["thaw_tokens_prefilled_total"] < 5000:
        assert time.monotonic() < deadline
    run_streams(server, [completion(prompts[1])])
    leader.join(timeout=60)
    assert counted(server, before) == 6000 + 2 * SUFFIX_TOKENS
    assert server.metrics()["thaw_trunk_waits_total"] >= 1, "the straggler came too late to wait"


def test_the_first_request_is_cancelled(serve):
    server = serve("--prefill-chunk-tokens", "16", "--threads", "1")
    prompts = family(10, 4, trunk_tokens=6000)
    before = server.wait_idle()
    first = server.stream("/v1/completions", completion(prompts[0], max_tokens=200))
    deadline = time.monotonic() + 30
    while server.metrics()["thaw_tokens_prefilled_total"] == before["thaw_tokens_prefilled_total"]:
        assert time.monotonic() < deadline
    others = [threading.Thread(target=lambda p=p: run_streams(server, [completion(p)])) for p in prompts[1:]]
    for thread in others:
        thread.start()
    while server.metrics()["thaw_trunk_waits_total"] < 3:
        assert time.monotonic() < deadline
    first.hang_up()
    for thread in others:
        thread.join(timeout=60)
    # The cancelled branch may have computed its own suffix before the hang-up was seen, or not.
    cost = counted(server, before)
    assert 6000 + 3 * SUFFIX_TOKENS <= cost <= 6000 + 4 * SUFFIX_TOKENS


def test_its_worker_is_killed(serve):
    """All waiters go on as one trunk again; tokens computed again are counted apart."""
    server = serve("--prefill-chunk-tokens", "16", "--threads", "1")
    prompts = family(11, 4, trunk_tokens=6000)
    before = server.wait_idle()
    threads = [threading.Thread(target=lambda p=p: run_streams(server, [completion(p)])) for p in prompts]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while server.metrics()["thaw_tokens_prefilled_total"] < 1000:
        assert time.monotonic() < deadline
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    metrics = server.wait_idle()
    assert metrics["thaw_worker_deaths_total"] == 1
    # Published blocks are found again in the KV pool: what is lost is at most the unpublished tail.
    cost = metrics["thaw_tokens_prefilled_total"] - before["thaw_tokens_prefilled_total"]
    assert cost <= 6000 + 4 * SUFFIX_TOKENS + 64, cost


def test_a_published_trunk_survives_its_worker(server):
    prompts = family(12, 8)
    alone = [text for text, _ in run_streams(server, [completion(p) for p in prompts[:2]])]
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.wait_healthy()
    before = server.wait_idle()
    results = run_streams(server, [completion(p) for p in prompts])
    cost = counted(server, before)
    assert cost <= 8 * (SUFFIX_TOKENS + 16), f"the trunk was prefilled again: {cost}"
    assert [text for text, _ in results[:2]] == alone
    assert server.pool()["workers"][0]["adopted_blocks"] >= TRUNK_TOKENS // 16
