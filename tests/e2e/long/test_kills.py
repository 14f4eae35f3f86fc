"""A hundred kills under load: no stream loses or doubles a token, and nothing is left behind."""

import os
import pathlib
import random
import signal
import threading
from os.path import commonprefix

from thaw_server import children, in_parallel, process_state

KILLS = 100


def descriptors(pid: int) -> int:
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


def shared_memory_files(pid: int) -> int:
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
    return sum("memfd:" in line for line in maps.splitlines())


def test_a_hundred_kills_under_load(serve):
    server = serve("--workers", "4", "--threads", "1")
    trunk = list(range(30, 230)) * 4
    bodies = [
        {
            "prompt": trunk + [40 + i],
            "max_tokens": 120,
            "temperature": i % 2,
            "seed": i,
            "ignore_eos": True,
        }
        for i in range(6)
    ]
    expected = [
        server.post("/v1/completions", {**body, "cache_salt": "reference"})[1]["choices"][0]["text"]
        for body in bodies
    ]
    pid = server.process.pid
    before = (descriptors(pid), shared_memory_files(pid))
    stop = threading.Event()
    rounds = 0
    failures: list[str] = []

    def load() -> None:
        nonlocal rounds
        while not stop.is_set():
            rounds += 1
            try:
                texts = in_parallel([lambda b=b: server.stream("/v1/completions", b).text() for b in bodies])
            except AssertionError as error:
                failures.append(f"round {rounds}: {error}")
                continue
            for i, (text, right) in enumerate(zip(texts, expected, strict=True)):
                if text != right:
                    alike = len(commonprefix([text, right]))
                    failures.append(
                        f"round {rounds}, {i}: {alike} of {len(right)} characters, then {text[alike:]!r}"
                    )

    thread = threading.Thread(target=load)
    thread.start()
    generator = random.Random(5)
    killed: set[int] = set()
    try:
        while len(killed) < KILLS:
            stop.wait(generator.uniform(0.05, 0.6))
            worker = generator.choice(server.pool()["workers"])
            # Under load a death may not have been noticed yet: nobody is killed twice.
            if worker["ready"] and worker["pid"] not in killed:
                os.kill(worker["pid"], signal.SIGKILL)
                killed.add(worker["pid"])
            assert thread.is_alive(), "the load ended early"
    finally:
        stop.set()
        thread.join(timeout=300)
    assert not failures, failures
    assert rounds > 5
    metrics = server.wait_idle()
    assert metrics["thaw_worker_deaths_total"] == KILLS
    assert metrics["thaw_requests_resumed_total"] > 0, "no stream was ever cut: the test proved nothing"
    assert descriptors(pid) <= before[0] + 4
    assert shared_memory_files(pid) == before[1]
    assert "Z" not in [process_state(child) for child in children(pid)]
