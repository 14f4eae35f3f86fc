"""Packed weights are kept, mapped by all, counted once; what is damaged is packed again."""

import os
import pathlib
import re
import signal
import time

import pytest
from conftest import real_model
from thaw_server import in_parallel

PROMPT = {"prompt": list(range(30, 90)), "max_tokens": 24, "temperature": 0, "ignore_eos": True}
KV_BYTES = 64 << 20


@pytest.fixture
def cache(tmp_path):
    """An image cache of this test's own."""
    return {**os.environ, "THAW_CACHE_DIR": str(tmp_path)}


def images(cache) -> list[pathlib.Path]:
    return list((pathlib.Path(cache["THAW_CACHE_DIR"]) / "images").glob("*.thawimg"))


def wait_until(condition):
    """What `condition` gives once that is true."""
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.01)
    return value


def wait_for_image(cache) -> pathlib.Path:
    """The one image, once the server has published it."""
    (image,) = wait_until(lambda: images(cache))
    return image


def origin(server) -> str:
    """Where the server says its weights came from."""
    pattern = re.compile(r"image=(\w+) key=")
    return wait_until(lambda: next((m[1] for line in server.log if (m := pattern.search(line))), None))


def answer(server) -> dict:
    status, reply = server.post("/v1/completions", PROMPT)
    assert status == 200, reply
    return {"text": reply["choices"][0]["text"], "fingerprint": reply["system_fingerprint"]}


def peak_bytes(pid: int) -> int:
    """The most that was ever resident of a process, shared pages included."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def mapped_share(pid: int, path: pathlib.Path) -> dict[str, int]:
    """Rss and Pss of a process's mappings of `path`, in bytes."""
    sums = {"Rss": 0, "Pss": 0}
    inside = False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name = line.split(":")[0]
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and name in sums:
            sums[name] += int(line.split()[1]) * 1024
    return sums


def test_the_second_start_maps_what_the_first_packed(serve, cache):
    first = serve(env=cache)
    expected = answer(first)
    assert origin(first) == "packed"
    image = wait_for_image(cache)
    second = serve(env=cache)
    assert origin(second) == "mapped"
    assert answer(second) == expected
    in_memory = serve("--image-cache-bytes", "0", env=cache)
    assert origin(in_memory) == "memory"
    assert answer(in_memory) == expected
    verified = serve("--verify-weights", env=cache)
    assert origin(verified) == "mapped"
    assert images(cache) == [image]


def test_a_damaged_image_is_never_served(serve, cache):
    expected = answer(serve(env=cache))
    image = wait_for_image(cache)
    good = image.read_bytes()
    for bad in (good[: len(good) // 2], good[:5000] + b"\xff" + good[5001:], b""):
        image.unlink()
        image.write_bytes(bad)
        server = serve(env=cache)
        assert origin(server) == "packed"
        assert any("is packed again" in line for line in server.log)
        assert answer(server) == expected
        wait_until(lambda: image.exists() and image.read_bytes() == good)
        server.stop()


def test_an_image_may_vanish_under_a_server(serve, cache):
    server = serve(env=cache)
    expected = answer(server)
    wait_for_image(cache).unlink()
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    assert answer(server) == expected
    assert server.pool()["workers"][0]["generation"] == 1


def test_a_cache_that_cannot_be_written_is_a_warning(serve, tmp_path):
    (tmp_path / "file").write_text("no folder")
    server = serve(env={**os.environ, "THAW_CACHE_DIR": str(tmp_path / "file")})
    assert origin(server) == "memory"
    assert any("warning" in line and "the image is not kept" in line for line in server.log)
    answer(server)


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_memory_of_the_default_model(serve, cache, start):
    """Each process's peak, added up (so pages that both map count twice), stays below 400 MB and
    the KV cache that was asked for."""
    if start == "warm":
        serve(model=real_model(), env=cache)
        wait_for_image(cache)
    server = serve("--kv-bytes", str(KV_BYTES), model=real_model(), env=cache)
    assert origin(server) == ("mapped" if start == "warm" else "packed")
    body = {**PROMPT, "prompt": [i % 40000 for i in range(1500)]}
    in_parallel([lambda seed=i: server.post("/v1/completions", {**body, "seed": seed}) for i in range(8)])
    peaks = [peak_bytes(pid) for pid in [server.process.pid, *server.worker_pids()]]
    assert sum(peaks) < 400_000_000 + KV_BYTES, peaks


def test_workers_share_one_copy_of_the_weights(serve, cache):
    server = serve("--workers", "2", "--threads", "1", model=real_model(), env=cache)
    image = wait_for_image(cache)
    size = image.stat().st_size
    for worker in (0, 1):
        server.post("/v1/completions", {**PROMPT, "thaw": {"worker": worker}})
    shares = [mapped_share(pid, image) for pid in [server.process.pid, *server.worker_pids()]]
    assert min(share["Rss"] for share in shares[1:]) > size // 2, shares
    assert sum(share["Pss"] for share in shares) <= size * 1.01, shares
