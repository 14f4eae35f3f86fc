#!/usr/bin/env python3
"""How fast `thaw serve` starts on the default model, what it takes, and how fast a killed worker is back.

Cold: an empty image cache, the model in the page cache. Warm: the image that an earlier start packed.
Memory is the sum over server and worker of Pss, in which a page that both map counts once, read again
and again until the first answer has come; the KV cache's pages are part of it, as far as they are used.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from machine import describe_machine
from servers import ROOT, end

BINARY = ROOT / "build" / "release" / "bin" / "thaw"
PROMPT = {"prompt": [i % 40000 for i in range(1000)], "max_tokens": 16, "temperature": 0}


def default_model() -> pathlib.Path:
    cache = pathlib.Path(os.environ.get("THAW_CACHE_DIR") or pathlib.Path.home() / ".cache" / "thaw")
    return cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def children(pid: int) -> list[int]:
    found = []
    for listing in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in listing.read_text().split()]
        except OSError:
            continue  # that thread has just ended
    return found


def pss_bytes(pid: int) -> int:
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it has just ended
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else 0


class Server:
    """`thaw serve`, with the times at which its lines came."""

    def __init__(self, cache: str, *flags: str, model: str | None = None):
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(BINARY), "serve", model or str(default_model()), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "THAW_CACHE_DIR": cache},
        )
        self.lines: list[tuple[float, str]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = ""
        for line in self.process.stdout:
            if found := re.search(r"(http://\S+)/v1\b", line):
                self.url = found[1]
                break
        if not self.url:
            raise RuntimeError("thaw serve did not name its address")
        while self.get("/health") != 200:
            time.sleep(0.001)
        self.healthy_s = time.perf_counter() - self.started

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append((time.perf_counter(), line.rstrip()))

    def get(self, path: str, body: dict | None = None) -> int:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status
        except urllib.error.HTTPError as refused:
            return refused.code

    def wait_for(self, pattern: str) -> tuple[float, re.Match]:
        """The first line that matches, and when it came."""
        deadline = time.perf_counter() + 60
        while time.perf_counter() < deadline:
            for at, line in list(self.lines):
                if found := re.search(pattern, line):
                    return at, found
            time.sleep(0.0005)
        raise RuntimeError(f"no line matches {pattern}")

    def end(self) -> None:
        end(self.process)
        self.reader.join(timeout=5)


def wait_for_image(cache: str) -> None:
    while not list((pathlib.Path(cache) / "images").glob("*.thawimg")):
        time.sleep(0.01)


def measure_start(runs: int, warm: bool) -> dict:
    seconds = []
    with tempfile.TemporaryDirectory() as shared:
        for index in range(runs + warm):
            with tempfile.TemporaryDirectory() as own:
                cache = shared if warm else own
                server = Server(cache)
                origin = server.wait_for(r"image=(\w+) key=")[1][1]
                wait_for_image(cache)
                server.end()
            if index >= warm:
                seconds.append(server.healthy_s)
                assert origin == ("mapped" if warm else "packed"), origin
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "all_s": seconds}


def measure_memory(warm: bool) -> dict:
    """Peak of the summed Pss from the start to the end of a first request."""
    with tempfile.TemporaryDirectory() as cache:
        if warm:
            server = Server(cache)
            wait_for_image(cache)
            server.end()
        peak = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.is_set():
                own = children(os.getpid())
                pids = own + [worker for pid in own for worker in children(pid)]
                peak = max(peak, sum(pss_bytes(pid) for pid in pids))
                time.sleep(0.001)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            server = Server(cache)
            server.get("/v1/completions", PROMPT)
        finally:
            done.set()
            watcher.join()
        after = {
            "server_mb": pss_bytes(server.process.pid) / 1e6,
            "worker_mb": sum(pss_bytes(pid) for pid in children(server.process.pid)) / 1e6,
        }
        server.end()
    return {"peak_pss_mb": peak / 1e6, "pss_after_first_request": after}


def measure_respawn(runs: int) -> dict:
    """Kill to spawn is the pool's back-off, spawn to ready what a new worker costs."""
    ready, boot, weights = [], [], []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(runs):
            server = Server(cache)
            (worker,) = children(server.process.pid)
            os.kill(worker, signal.SIGKILL)
            spawned = server.wait_for(r"generation=1 pid=\d+ spawned")[0]
            at, found = server.wait_for(
                r"worker=0 ready generation=1 .* weights_ms=([\d.]+) boot_ms=([\d.]+)"
            )
            ready.append(1000 * (at - spawned))
            weights.append(float(found[1]))
            boot.append(float(found[2]))
            server.end()
    return {
        "spawn_to_ready_ms": statistics.median(ready),
        "boot_ms": statistics.median(boot),
        "weights_mapped_ms": statistics.median(weights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    default_model().read_bytes()  # into the page cache
    results = {
        "cold": measure_start(args.runs, warm=False),
        "warm": measure_start(args.runs, warm=True),
        "memory_cold": measure_memory(warm=False),
        "memory_warm": measure_memory(warm=True),
        "respawn": measure_respawn(args.runs),
    }
    for name in ("cold", "warm"):
        result = results[name]
        print(f"{name:>5} start to healthy: median {result['median_s']:.3f} s, best {result['min_s']:.3f} s")
    for name in ("memory_cold", "memory_warm"):
        print(f"{name}: peak {results[name]['peak_pss_mb']:.0f} MB")
    respawn = results["respawn"]
    print(
        f"respawn: spawned to ready {respawn['spawn_to_ready_ms']:.1f} ms, of which boot "
        f"{respawn['boot_ms']:.1f} ms, weights {respawn['weights_mapped_ms']:.2f} ms"
    )
    if args.output:
        document = {"machine": describe_machine(), "command": sys.argv, "results": results}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(document, indent=1) + "\n")
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
