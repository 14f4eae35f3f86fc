"""The real model: a history of 4,000 tokens survives its server, and every token after it is the same."""

import pathlib
import signal
import time

import pytest
from conftest import BUILD, real_model
from thaw_server import ThawServer

TOKENS = 4000
BLOCK = 16
SAMPLING = {"temperature": 1.0, "seed": 77, "max_tokens": 48, "logprobs": 1}


def ask(server: ThawServer) -> tuple[object, dict]:
    prompt = [(i * 104729) % 40000 + 100 for i in range(TOKENS)]
    status, answer = server.post("/v1/completions", {"prompt": prompt, **SAMPLING})
    assert status == 200, answer
    choice = answer["choices"][0]
    return (choice["text"], choice["logprobs"]["token_logprobs"]), answer["usage"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_prefill_after_a_restart_and_the_same_tokens(serve, image_cache, tmp_path, how):
    folder = tmp_path / "spill"
    flags = ("--spill-dir", str(folder), "--kv-bytes", "256MiB")
    first = ThawServer(BUILD / "bin" / "thaw", real_model(), flags, image_cache)
    first.wait_healthy()
    expected, usage = ask(first)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    if how == signal.SIGKILL:
        assert ask(first)[0] == expected
        deadline = time.monotonic() + 60
        while not list(folder.glob("*.thawkv")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pids = first.worker_pids()
        first.process.kill()
        first.process.wait()
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    first.stop()
    second = serve(*flags, model=real_model())
    answer, usage = ask(second)
    assert answer == expected
    assert usage["prompt_tokens_details"]["cached_tokens"] >= TOKENS - BLOCK
    assert second.wait_idle()["thaw_tokens_prefilled_total"] <= BLOCK
