"""Trunks in S3 below the spill directory: prefilled by one server, restored by another."""

import threading
import time

import pytest
import s3_server
from conftest import BUILD, tiny_model
from s3_server import Fault
from test_kv_files import BLOCK, PROMPT, SPILL, ask
from thaw_server import ThawServer

URL = "s3://trunks/kv"
# A request waits for S3 as long as its prefill would take. Before any is measured a token counts for
# a millisecond: seconds, and S3 answers in time on any machine.
LONG = PROMPT * 32


@pytest.fixture(scope="module")
def s3():
    server = s3_server.S3Server()
    server.make_bucket("trunks")
    yield server
    server.stop()


@pytest.fixture
def proxy(s3):
    for key in s3.keys("trunks"):
        s3.request("DELETE", f"/trunks/{key}")
    made = s3_server.Proxy(s3)
    yield made
    made.stop()


@pytest.fixture
def environment(proxy, image_cache):
    return {
        **s3_server.clean_environment(),
        **s3_server.CREDENTIALS,
        "AWS_ENDPOINT_URL": proxy.url,
        "THAW_CACHE_DIR": image_cache["THAW_CACHE_DIR"],
        "THAW_S3_TIMEOUT": "5",
    }


def flags(folder) -> tuple[str, ...]:
    return ("--spill-dir", str(folder), "--spill-s3", URL + "/", *SPILL)


def tier(server: ThawServer) -> dict[str, float]:
    """The metrics of S3, without what all have in common in their names."""
    found = {}
    for line in server.get("/metrics")[1].splitlines():
        if line.startswith("thaw_tier_") and 'tier="s3"' in line:
            name, value = line.split('{tier="s3"} ')
            found[name.removeprefix("thaw_tier_")] = float(value)
    return found


def wait_for(condition, server: ThawServer):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, (tier(server), server.log[-20:])
        time.sleep(0.05)


def prefill_once(serve, environment, folder, prompt=PROMPT) -> tuple[str, int]:
    """A server that computes the prompt's KV and ends: (answer, prompt tokens)."""
    server = serve(*flags(folder), env=environment)
    text, prompt_tokens, cached = ask(server, prompt)
    assert cached == 0
    server.stop()
    return text, prompt_tokens


def test_what_one_server_prefilled_another_restores(serve, s3, environment, tmp_path):
    expected, prompt_tokens = prefill_once(serve, environment, tmp_path / "a", LONG)
    (key,) = s3.keys("trunks")
    assert key.startswith("kv/") and key.endswith(".thawkv")
    assert s3.get("trunks", key) == next((tmp_path / "a").glob("*.thawkv")).read_bytes()

    server = serve(*flags(tmp_path / "b"), env=environment)
    wait_for(lambda: tier(server)["trunks"] == 1, server)
    text, _, cached = ask(server, LONG)
    assert text == expected
    assert cached >= prompt_tokens - BLOCK
    metrics = tier(server)
    assert metrics["hits_total"] == 1 and metrics["restored_bytes_total"] > 0
    assert metrics["writes_total"] == 0 and metrics["failures_total"] == 0
    assert metrics["crossover_tokens"] > 0
    assert (tmp_path / "b" / key.rsplit("/")[-1]).exists(), "it is a file here now"


def test_s3_that_fails_costs_nobody_anything(serve, proxy, environment, tmp_path):
    expected, _ = prefill_once(serve, environment, tmp_path / "a")
    proxy.rule = lambda request: Fault(status=500)
    server = serve(*flags(tmp_path / "b"), env=environment)
    assert ask(server, PROMPT)[::2] == (expected, 0)
    wait_for(lambda: tier(server)["failures_total"] > 0, server)
    assert ask(server, PROMPT)[0] == expected
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 25
    assert list((tmp_path / "b").glob("*.thawkv")), "the disk has it"
    proxy.rule = lambda request: None
    # The next one puts what this one could not.
    before = len([request for request in proxy.requests if request.method == "PUT"])
    again = serve(*flags(tmp_path / "b"), "--drain-timeout", "20", env=environment)
    assert ask(again, PROMPT)[0] == expected
    assert before == len([request for request in proxy.requests if request.method == "PUT"]), "S3 had it"


def test_s3_that_hangs_is_not_waited_for(serve, proxy, environment, tmp_path):
    prompt = PROMPT * 8
    expected, _ = prefill_once(serve, environment, tmp_path / "a", prompt)
    # S3's own patience is longer than this test: nothing but the pool ends the wait.
    server = serve(*flags(tmp_path / "b"), env={**environment, "THAW_S3_TIMEOUT": "600"})
    wait_for(lambda: tier(server)["trunks"] == 1, server)
    held, let_go = [], threading.Event()

    def hold(request):
        if request.method == "GET" and ".thawkv" in request.path:
            held.append(request)
            let_go.wait(timeout=100)

    proxy.rule = hold
    began = time.monotonic()
    try:
        text, _, cached = ask(server, prompt)
        # Its prefill is taken for a second or two; what lies in files is waited for 30.
        assert time.monotonic() - began < 20
        assert (text, cached) == (expected, 0)
        assert held, "it was worth waiting for"
        assert tier(server)["hits_total"] == tier(server)["failures_total"] == 0
    finally:
        let_go.set()
    # What comes later is there for the next one.
    wait_for(lambda: tier(server)["hits_total"] == 1, server)
    assert list((tmp_path / "b").glob("*.thawkv"))


def test_damage_in_s3_is_a_prefill(serve, s3, environment, tmp_path):
    expected, _ = prefill_once(serve, environment, tmp_path / "a")
    (key,) = s3.keys("trunks")
    data = bytearray(s3.get("trunks", key))
    data[3 * 4096 + 7] ^= 4
    s3.put("trunks", key, bytes(data))
    server = serve(*flags(tmp_path / "b"), env=environment)
    wait_for(lambda: tier(server)["trunks"] == 1, server)
    assert ask(server, PROMPT)[::2] == (expected, 0)
    wait_for(lambda: s3.keys("trunks") == [], server)
    assert tier(server)["refused_total"] == 1


def test_another_tenant_finds_nothing(serve, environment, tmp_path):
    keys = ("--api-key", "anna:a-key", "--api-key", "berta:b-key")
    first = serve(*flags(tmp_path / "a"), *keys, env=environment)
    anna, berta = {"Authorization": "Bearer a-key"}, {"Authorization": "Bearer b-key"}
    ask(first, LONG, anna)
    first.stop()
    server = serve(*flags(tmp_path / "b"), *keys, env=environment)
    wait_for(lambda: tier(server)["trunks"] == 1, server)
    assert ask(server, LONG, berta)[2] == 0
    server.stop()
    # Another server for her who finds it: once a prefill was measured, S3 may not be worth the wait.
    server = serve(*flags(tmp_path / "c"), *keys, env=environment)
    wait_for(lambda: tier(server)["trunks"] == 2, server)  # hers and the other's
    assert ask(server, LONG, anna)[2] > 0


def test_what_cannot_be_is_said_at_the_start(environment, tmp_path):
    def refusal(*arguments, **changed) -> str:
        with pytest.raises(AssertionError) as raised:
            ThawServer(BUILD / "bin" / "thaw", tiny_model(), arguments, {**environment, **changed})
        return str(raised.value)

    assert "--spill-dir" in refusal("--spill-s3", URL)
    assert "no S3 URL" in refusal("--spill-s3", "/tmp/x", "--spill-dir", str(tmp_path))
    no_key = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    line = refusal("--spill-s3", URL, "--spill-dir", str(tmp_path), **no_key)
    assert "--spill-s3: S3: no credentials" in line
