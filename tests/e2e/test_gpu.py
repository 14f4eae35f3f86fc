"""The server on a GPU: the same binary, the same promises. Skipped by name where there is none."""

import os
import signal
import subprocess
import time

import pytest
from conftest import BUILD, real_model, tiny_model
from thaw_server import ThawServer, in_parallel

GPU = ("--device", "cuda")
LONG = {"prompt": list(range(30, 200)), "max_tokens": 400, "temperature": 0, "ignore_eos": True}


def has_gpu() -> bool:
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout


@pytest.fixture(autouse=True)
def needs_gpu():
    if has_gpu():
        return
    if os.environ.get("THAW_REQUIRE_GPU") == "1":
        pytest.fail("needs a CUDA device, and there is none")
    pytest.skip("needs a CUDA device, and there is none")


def test_a_fork_round_costs_one_prefill_and_changes_no_token(serve):
    server = serve(*GPU, model=real_model())
    trunk = "A list of facts about rivers, bridges and the towns beside them. " * 40
    prompts = [f"{trunk}\nQuestion {i}: which bridge is number {i * 7}?\n" for i in range(4)]
    body = {"max_tokens": 48, "temperature": 0, "ignore_eos": True}
    alone = [
        server.stream("/v1/completions", {**body, "prompt": p, "cache_salt": f"alone {i}"}).text()
        for i, p in enumerate(prompts)
    ]
    before = server.wait_idle()["thaw_tokens_prefilled_total"]
    streams = [server.stream("/v1/completions", {**body, "prompt": p}) for p in prompts]
    assert in_parallel([stream.text for stream in streams]) == alone
    usages = [stream.usage for stream in streams]
    prompt_tokens = [usage["prompt_tokens"] for usage in usages]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    prefilled = server.wait_idle()["thaw_tokens_prefilled_total"] - before
    assert prefilled == sum(prompt_tokens) - sum(cached)
    assert prefilled < 1.3 * max(prompt_tokens), "the trunk was prefilled more than once"


def test_a_killed_worker_loses_and_doubles_nothing(serve):
    server = serve(*GPU, model=tiny_model("cuda-f32"))
    bodies = [LONG, {**LONG, "temperature": 1.0, "seed": 7}]
    expected = [
        server.stream("/v1/completions", {**body, "cache_salt": "reference"}).text() for body in bodies
    ]
    for kills in range(1, 4):
        streams = [server.stream("/v1/completions", body) for body in bodies]
        next(iter(streams[0]))
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        rest = [stream.text() for stream in streams]
        assert rest[1] == expected[1]
        assert expected[0].endswith(rest[0]), "its first frame was read already"
        assert not any(stream.errors for stream in streams)
        assert all(stream.usage["completion_tokens"] == LONG["max_tokens"] for stream in streams)
        assert server.wait_idle()["thaw_worker_deaths_total"] == kills


def test_a_small_pool_preempts_and_changes_nothing(serve):
    server = serve(*GPU, "--kv-bytes", "4MiB", model=tiny_model("cuda-f32"))
    blocks = server.wait_idle()["thaw_kv_blocks"]
    length = int(blocks * 16 / 3)  # three fit, eight are asked for
    bodies = [
        {**LONG, "prompt": [(7 * i + j) % 200 for j in range(length // 2)], "max_tokens": length // 3}
        for i in range(8)
    ]
    alone = [server.stream("/v1/completions", {**body, "cache_salt": "alone"}).text() for body in bodies]
    together = in_parallel([server.stream("/v1/completions", body).text for body in bodies])
    assert together == alone
    metrics = server.wait_idle()
    assert metrics["thaw_preemptions_total"] > 0
    assert metrics["thaw_worker_deaths_total"] == 0


def test_what_does_not_fit_is_503_with_the_numbers(image_cache):
    flags = (*GPU, "--kv-bytes", "2TiB")
    server = ThawServer(BUILD / "bin" / "thaw", tiny_model("cuda-f32"), flags, image_cache)
    try:
        deadline = time.monotonic() + 60
        message = ""
        while "are free" not in message and time.monotonic() < deadline:  # it tries more than once
            status, reply = server.post("/v1/completions", {**LONG, "max_tokens": 1})
            assert status == 503, reply
            message = reply["error"]["message"]
            time.sleep(0.05)
        assert "are free" in message, reply
        assert server.get("/health")[0] == 503
    finally:
        server.stop()
