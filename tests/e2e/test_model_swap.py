"""Several models behind one server: slots change hands under load, and every answer is the right model's."""

import contextlib
import json
import os
import random
import shutil
import signal
import time

import pytest
from conftest import tiny_model
from thaw_server import in_parallel

LLAMA, QWEN, SMOL = "q4_1", "qwen3-q8_0", "smollm3-mixed"


def several(serve, *flags, others=(QWEN,), **kwargs):
    """A server of LLAMA and of `others`, each called by its kind."""
    registered = [flag for kind in others for flag in ("--register", f"{kind}={tiny_model(kind)}")]
    return serve(
        "--served-model-name",
        LLAMA,
        *registered,
        "--kv-bytes",
        "64MiB",
        "--arena-bytes",
        "16MiB",
        *flags,
        **kwargs,
    )


def ask(server, model, prompt, max_tokens=12, **fields):
    status, reply = server.post(
        "/v1/completions",
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **fields,
        },
    )
    assert status == 200, reply
    return reply


def text(server, model, prompt, max_tokens=12, **fields):
    return ask(server, model, prompt, max_tokens, **fields)["choices"][0]["text"]


def prompt_of(number: int) -> list[int]:
    """Token ids that every tiny model has; the same first part for all, so much could be shared wrongly."""
    rng = random.Random(number % 10)
    return [7 + i % 50 for i in range(64)] + [rng.randrange(5, 100) for _ in range(8)]


@pytest.fixture(scope="module")
def alone(image_cache):
    """What each model answers on a server of its own: {(model, prompt, length): text}."""
    from conftest import BUILD
    from thaw_server import ThawServer

    known = {}
    for kind in (LLAMA, QWEN, SMOL):
        server = ThawServer(BUILD / "bin" / "thaw", tiny_model(kind), [], image_cache)
        try:
            server.wait_healthy()
            for number in range(10):
                for length in (2, 12, 40):
                    known[kind, number, length] = text(server, kind_name(kind), prompt_of(number), length)
        finally:
            server.stop()
    return known


def kind_name(kind):
    return f"tiny-{kind}"


def test_models_answer_as_they_do_alone(serve, alone):
    server = several(serve, others=(QWEN, SMOL))
    listed = json.loads(server.get("/v1/models")[1])["data"]
    assert [model["id"] for model in listed] == [LLAMA, QWEN, SMOL]
    assert [model["family"] for model in listed] == ["llama", "qwen3", "smollm3"]
    for number in range(4):
        for kind in (LLAMA, QWEN, SMOL):
            assert text(server, kind, prompt_of(number)) == alone[kind, number, 12]
    fingerprints = {ask(server, kind, [5, 6])["system_fingerprint"] for kind in (LLAMA, QWEN, SMOL)}
    assert len(fingerprints) == 3 and all(fingerprints), "each names its own weights"
    assert text(server, "", prompt_of(0)) == alone[LLAMA, 0, 12], "who names none gets the first"
    status, reply = server.post("/v1/completions", {"model": "other", "prompt": "a"})
    assert status == 404 and reply["error"]["code"] == "model_not_found"


def test_no_kv_of_other_weights_is_ever_hit(serve, alone):
    """The same token ids to both, again and again: what is cached is each model's own."""
    server = several(serve)
    prompt = prompt_of(3)
    for _ in range(2):
        for kind in (LLAMA, QWEN):
            first = ask(server, kind, prompt)
            assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "a new slot knows nothing"
            again = ask(server, kind, prompt)
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 48, "but learns"
            assert [reply["choices"][0]["text"] for reply in (first, again)] == [alone[kind, 3, 12]] * 2
    # With a slot for each nothing is swapped, and still nothing is shared.
    both = several(serve, "--pool-size", "2")
    for kind in (LLAMA, QWEN):
        reply = ask(both, kind, prompt)
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert reply["choices"][0]["text"] == alone[kind, 3, 12]


@pytest.mark.parametrize("slots", [1, 2])
def test_five_hundred_mixed_requests(serve, alone, slots):
    """Clients of all models at once, with a worker killed now and then; slots change hands as they come."""
    kinds = (LLAMA, QWEN, SMOL)
    server = several(
        serve, "--pool-size", str(slots), "--swap-quantum", "0.3", "--swap-grace", "0.05", others=kinds[1:]
    )
    waits: dict[str, float] = dict.fromkeys(kinds, 0.0)

    def client(seed: int):
        rng = random.Random(seed)
        for _ in range(25):
            kind, number, length = rng.choice(kinds), rng.randrange(10), rng.choice((2, 12, 40))
            began = time.monotonic()
            if rng.random() < 0.3:
                stream = server.stream(
                    "/v1/completions",
                    {
                        "model": kind,
                        "prompt": prompt_of(number),
                        "max_tokens": length,
                        "temperature": 0,
                        "ignore_eos": True,
                    },
                )
                got = stream.text()
                assert stream.done and not stream.errors, stream.errors
            else:
                got = text(server, kind, prompt_of(number), length)
            waits[kind] = max(waits[kind], time.monotonic() - began)
            assert got == alone[kind, number, length], (kind, number, length)

    def killer():
        for taken in (100, 200, 300):
            while sum(model["requests"] for model in server.pool()["models"]) < taken:
                time.sleep(0.01)
            pids = [worker["pid"] for worker in server.pool()["workers"] if worker["pid"]]
            for pid in pids[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    in_parallel([lambda seed=seed: client(seed) for seed in range(20)] + [killer])
    pool = server.pool()
    assert sum(model["requests"] for model in pool["models"]) == 500
    assert all(model["waiting"] == 0 for model in pool["models"])
    assert sum(slot["swaps"] for slot in pool["slots"]) >= 3, "slots changed hands"
    assert sum(model["loads"] for model in pool["models"]) == sum(slot["swaps"] for slot in pool["slots"])
    metrics = server.wait_idle()
    assert metrics["thaw_model_requests_total"] == 500
    assert metrics["thaw_model_swaps_total"] == sum(slot["swaps"] for slot in pool["slots"])
    assert max(waits.values()) < 100, f"a model starved: {waits}"


def test_a_long_answer_gives_way_and_goes_on(serve, alone):
    """It stops between two tokens and resumes with the same bits; meanwhile the other model is served."""
    server = several(serve, "--swap-quantum", "0.1", "--swap-grace", "0")
    length = 400
    long_text: list[str] = []

    def long_answer():
        long_text.append(text(server, LLAMA, prompt_of(1), length))

    def others():
        while server.pool()["requests_running"] == 0:
            time.sleep(0.002)
        for number in range(6):
            assert text(server, QWEN, prompt_of(number), 2) == alone[QWEN, number, 2]

    in_parallel([long_answer, others])
    undisturbed = serve("--kv-bytes", "64MiB")
    assert long_text[0] == text(undisturbed, "tiny-q4_1", prompt_of(1), length)


def test_operators_register_and_unregister(serve, tmp_path, alone):
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    shutil.copy(tiny_model(QWEN), allowed / "qwen.gguf")
    shutil.copy(tiny_model(SMOL), outside / "smol.gguf")
    (allowed / "link.gguf").symlink_to(outside / "smol.gguf")
    (allowed / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    server = serve("--snapshot-dir", str(allowed), "--kv-bytes", "64MiB")

    def register(name, path):
        status, reply = server.post("/admin/snapshots", {"name": name, "path": str(path)})
        return status, reply.get("error", {}).get("message", "")

    for path in (
        outside / "smol.gguf",
        allowed / "link.gguf",
        "../outside/smol.gguf",
        "/etc/passwd",
        "/nowhere",
    ):
        status, message = register("smol", path)
        assert (status, "not inside" in message) == (403, True), (path, message)
    assert register("x", allowed / "missing.gguf")[0] == 404
    status, message = register("x", allowed / "broken.gguf")
    assert status == 400 and "broken.gguf" in message
    assert register("tiny-q4_1", "qwen.gguf")[0] == 400, "the name is taken"
    assert register("qwen", "qwen.gguf") == (200, "")
    assert text(server, "qwen", prompt_of(2)) == alone[QWEN, 2, 12]
    assert text(server, "tiny-q4_1", prompt_of(2)) == alone[LLAMA, 2, 12]
    status, reply = server.post("/admin/preload", {"model": "qwen"})
    assert status == 200 and reply["status"] == "preloaded" and reply["elapsed_s"] > 0
    snapshots = json.loads(server.get("/admin/snapshots")[1])["snapshots"]
    assert snapshots["qwen"] == str(allowed.resolve() / "qwen.gguf")

    connection = server.connect()
    connection.request("DELETE", "/admin/snapshots/qwen")
    assert json.loads(connection.getresponse().read())["status"] == "unregistered"
    assert server.post("/v1/completions", {"model": "qwen", "prompt": "a"})[0] == 404
    # The same name for another model: nothing of the first one answers.
    shutil.copy(tiny_model(SMOL), allowed / "smol.gguf")
    deadline = time.monotonic() + 30
    while register("qwen", "smol.gguf")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert text(server, "qwen", prompt_of(2)) == alone[SMOL, 2, 12]


def test_what_cannot_be_served_is_refused_at_the_start(tmp_path, image_cache):
    import subprocess

    from conftest import BUILD

    def refusal(*flags):
        command = [str(BUILD / "bin" / "thaw"), "serve", str(tiny_model()), "--port", "0", *flags]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=image_cache)
        assert result.returncode == 1, result
        return result.stderr

    other = str(tiny_model(QWEN))
    assert "names two models a" in refusal("--register", f"a={other}", "--register", f"a={other}")
    assert "NAME=PATH" in refusal("--register", other)
    assert "served already" in refusal("--register", f"tiny-q4_1={other}")
    assert "--register a" in refusal("--register", f"a={tmp_path}/none.gguf")
    assert "must be a directory" in refusal("--snapshot-dir", f"{tmp_path}/none")
    assert "no key is that tenant's" in refusal("--admin-tenant", "ops")
    too_much = refusal("--register", f"a={other}", "--kv-bytes", "4TiB")
    assert "4096.0 GiB" in too_much or "4.0 TiB" in too_much


def test_a_worker_that_dies_while_its_slot_is_given_away(serve, alone):
    server = several(serve, "--swap-quantum", "0", "--swap-grace", "30")

    def long_answer():
        assert text(server, LLAMA, prompt_of(1), 40, n=4) == alone[LLAMA, 1, 40]

    def other():
        assert text(server, QWEN, prompt_of(1)) == alone[QWEN, 1, 12]

    def killer():
        deadline = time.monotonic() + 60
        while server.pool()["slots"][0]["state"] != "closing":
            if server.pool()["models"][1]["requests"] and not server.pool()["requests_running"]:
                return  # all was done before anybody could look
            assert time.monotonic() < deadline
        for worker in server.pool()["workers"]:
            with contextlib.suppress(ProcessLookupError, OSError):
                os.kill(worker["pid"], signal.SIGKILL)

    in_parallel([long_answer, other, killer])
