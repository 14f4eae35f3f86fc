"""Starts servers to be measured, each on a free port of loopback, and ends them by pid."""

import contextlib
import json
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_healthy(root_url: str, process: subprocess.Popen, within_s: float = 60) -> float:
    """Seconds until /health answers 200."""
    started = time.perf_counter()
    while time.perf_counter() - started < within_s:
        try:
            with urllib.request.urlopen(root_url + "/health", timeout=5) as reply:
                if reply.status == 200:
                    return time.perf_counter() - started
        except (OSError, urllib.error.URLError):
            pass
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        time.sleep(0.005)
    raise RuntimeError(f"not healthy within {within_s} s")


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def thaw_server(*flags: str):
    """Yields (root URL, model name) of `thaw serve` on the default model."""
    binary = ROOT / "build" / "release" / "bin" / "thaw"
    process = subprocess.Popen(
        [str(binary), "serve", "--port", "0", "--log-level", "warn", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        found = None
        for line in process.stdout:
            found = re.search(r"(http://\S+)/v1\b", line)
            if found:
                break
        if not found:
            raise RuntimeError("thaw serve did not name its address")
        wait_healthy(found[1], process)
        with urllib.request.urlopen(found[1] + "/v1/models", timeout=5) as reply:
            model = json.load(reply)["data"][0]["id"]
        yield found[1], model
    finally:
        end(process)


@contextlib.contextmanager
def llama_server(binary: pathlib.Path, model: pathlib.Path, slots: int, context: int):
    """Yields (root URL, model name) of llama.cpp's server with `slots` parallel slots."""
    port = free_port()
    command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", "2", "-np", str(slots), "-c", str(context)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_healthy(url, process)
        yield url, "default"
    finally:
        end(process)
