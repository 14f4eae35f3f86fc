"""A thaw server as a child process, and a small client that sees every byte of a stream."""

import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

HEALTHY_WITHIN_S = 60
SENT_BY_TESTS = (signal.SIGKILL, signal.SIGTERM)


def children(pid: int) -> list[int]:
    """Processes that any thread of `pid` has started, zombies too."""
    found = []
    for listing in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in listing.read_text().split()]
        except OSError:
            continue  # that thread has just ended
    return found


def process_state(pid: int) -> str:
    """One letter as in ps, such as S or Z; empty where there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


class ThawServer:
    """Runs `thaw serve` on a free port. stop() ends it and fails if a process of it is left."""

    def __init__(self, binary: pathlib.Path, model: pathlib.Path, flags=(), env=None):
        command = [str(binary), "serve", str(model), "--port", "0", *flags]
        if "--kv-bytes" not in flags:
            command += ["--kv-bytes", "256MiB"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        self.log: list[str] = []
        self.port = 0
        for line in self.process.stdout:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
            if found:
                self.port = int(found.group(1))
                break
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if not self.port:
            status = self.process.wait(timeout=10)
            self._reader.join(timeout=10)  # the last it said may not be read yet
            raise AssertionError(f"no port: exit {status}: {self.log}")

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip())

    def connect(self, timeout: float = 120) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str, headers=None):
        connection = self.connect()
        try:
            connection.request("GET", path, headers=headers or {})
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        finally:
            connection.close()

    def post(self, path: str, body, headers=None):
        """(status, parsed JSON) of a call that does not stream. `body`: object, or raw bytes."""
        connection = self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            text = reply.read().decode()
            return reply.status, json.loads(text) if text else None
        finally:
            connection.close()

    def stream(self, path: str, body: dict, headers=None) -> "Stream":
        return Stream(self, path, body, headers)

    def wait_healthy(self):
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while True:
            try:
                if self.get("/health")[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("not healthy:\n" + "\n".join(self.log))
            time.sleep(0.02)

    def metrics(self) -> dict[str, float]:
        """Every sample, summed over labels, by name."""
        totals: dict[str, float] = {}
        for line in self.get("/metrics")[1].splitlines():
            found = re.match(r"(\w+)(?:\{[^}]*\})? (\S+)$", line)
            if found:
                totals[found.group(1)] = totals.get(found.group(1), 0) + float(found.group(2))
        return totals

    def pool(self) -> dict:
        return json.loads(self.get("/admin/pool")[1])

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in self.pool()["workers"]]

    def wait_idle(self) -> dict[str, float]:
        """Metrics once nothing runs; the workers' last counters have arrived by then."""
        deadline = time.monotonic() + 60
        while True:
            metrics = self.metrics()
            if metrics.get("thaw_sequences_running", 0) + metrics.get("thaw_sequences_waiting", 0) == 0:
                return metrics
            if time.monotonic() > deadline:
                raise AssertionError(f"not idle: {metrics}")
            time.sleep(0.01)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM; returns the exit status. No process of the server may be left, nor may it have crashed."""
        if self.process.poll() is None:
            pids = children(self.process.pid)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("did not end after SIGTERM:\n" + "\n".join(self.log[-20:])) from None
            left = [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]
            assert not left, f"workers left behind: {left}"
        self.process.stdout.close()
        self._reader.join(timeout=5)
        status = self.process.returncode
        if status < 0 and -status not in SENT_BY_TESTS:
            raise AssertionError(f"died of {signal.Signals(-status).name}:\n" + "\n".join(self.log[-20:]))
        return status


class Stream:
    """One SSE request, read by hand: iterate over the parsed data frames."""

    def __init__(self, server: ThawServer, path: str, body: dict, headers=None):
        self.connection = server.connect()
        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        self.connection.request(
            "POST", path, data.encode(), {"Content-Type": "application/json", **(headers or {})}
        )
        self.reply = None
        self.usage: dict | None = None
        self.errors: list[dict] = []
        self.done = False

    def __iter__(self):
        if self.reply is None:
            self.reply = self.connection.getresponse()
            assert self.reply.status == 200, (self.reply.status, self.reply.read())
        for raw in self.reply:
            line = raw.decode().rstrip("\r\n")
            if not line.startswith("data:"):
                continue
            payload = line[5:].strip()
            if payload == "[DONE]":
                self.done = True
                continue
            frame = json.loads(payload)
            if "error" in frame:
                self.errors.append(frame["error"])
            if frame.get("usage"):
                self.usage = frame["usage"]
            yield frame

    def text(self) -> str:
        """Reads to the end; the joined text of choice 0. An error that the server sent is raised."""
        parts = []
        for frame in self:
            for choice in frame.get("choices", []):
                if choice["index"] == 0:
                    parts.append(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
        self.close()
        assert not self.errors, (self.errors, "".join(parts))
        return "".join(parts)

    def hang_up(self):
        """Drops the connection without a goodbye."""
        sock = self.connection.sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.connection.close()
        if self.reply is not None:
            self.reply.close()

    def close(self):
        self.connection.close()


def in_parallel(calls) -> list:
    """Runs the calls in threads of their own; their results in order. The first error is raised."""
    results: list = [None] * len(calls)
    errors: list[BaseException] = []

    def run(index, call):
        try:
            results[index] = call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    return results
