"""Calls and the engines of this process: what begins one, and what ends with it. The engines are fakes."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from processes import wait_until
from test_client import Calls, answer
from thaw_vllm import _client
from thaw_vllm._client import Client
from thaw_vllm._errors import APIConnectionError, ThawError

engines = pytest.importorskip("thaw_vllm._engines")


class FakeEngine:
    """Answers a connection's requests with the next of `answers`; with None it is silent."""

    made: list["FakeEngine"] = []
    answers: list[bytes | None] = []

    def __init__(self, model, *, settings, worker_binary):
        self.asked = threading.Semaphore(0)  # once for each request that came
        self.sockets: list[socket.socket] = []
        self.closed = False
        self.made.append(self)

    def connect(self) -> int:
        if self.closed:
            raise RuntimeError("the engine is closed")
        ours, theirs = socket.socketpair()
        self.sockets.append(ours)
        threading.Thread(target=self.serve, args=[ours], daemon=True).start()
        return theirs.detach()

    def serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while sock.recv(65536):
                reply = self.answers.pop(0)
                if reply is not None:
                    sock.sendall(reply)
                self.asked.release()

    def close(self, drain_s: float = 0.0) -> None:
        self.closed = True
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr(engines, "Engine", FakeEngine)
    FakeEngine.made, FakeEngine.answers = [], []
    yield engines.SharedEngine("model", {})
    for engine in FakeEngine.made:
        engine.close()


@pytest.fixture(params=["call", "async call", "stream", "async stream"])
def ask(shared, request):
    """ask() -> what one call by this way gives; all of one client."""
    calls = Calls(Client(engines.EngineUse(shared).endpoint), request.param.startswith("async"))
    if request.param.endswith("call"):
        return lambda: calls.call("POST", "/v1/x", {})
    return lambda: calls.stream("/v1/x", {})


class Asking:
    """A call of another thread."""

    def __init__(self, ask):
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.run, args=[ask])
        self.thread.start()

    def run(self, ask):
        try:
            ask()
        except Exception as error:
            self.error = error

    def outcome(self) -> Exception | None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.error


@pytest.mark.parametrize("idle", [False, True])
def test_a_call_ends_with_its_engine(shared, ask, idle):
    if idle:  # a connection that was used before is the one that is cut
        FakeEngine.answers.append(answer({}, "404 Not Found"))
        assert Asking(ask).outcome() is not None
        assert FakeEngine.made[0].asked.acquire(timeout=60)
    FakeEngine.answers.append(None)
    asking = Asking(ask)
    wait_until(lambda: FakeEngine.made)
    assert FakeEngine.made[0].asked.acquire(timeout=60)
    shared.stop()
    assert isinstance(asking.outcome(), APIConnectionError)
    assert len(FakeEngine.made) == 1 and not shared.has_started
    # A new call is of a new engine.
    FakeEngine.answers.append(answer({}, "404 Not Found"))
    assert Asking(ask).outcome().status == 404
    assert len(FakeEngine.made) == 2


def test_a_call_that_waits_to_try_again_ends_with_its_engine(shared, ask):
    full = answer({"error": {"message": "full"}}, "429 Too Many", "retry-after-ms: 200\r\n")
    FakeEngine.answers += [full] * 3
    asking = Asking(ask)
    wait_until(lambda: FakeEngine.made)
    assert FakeEngine.made[0].asked.acquire(timeout=60)
    shared.stop()
    assert isinstance(asking.outcome(), ThawError)
    assert len(FakeEngine.made) == 1


def test_closed_for_good(shared, ask):
    FakeEngine.answers.append(answer({}, "404 Not Found"))
    assert Asking(ask).outcome().status == 404
    shared.close()
    assert shared.is_closed and not shared.has_started
    error = Asking(ask).outcome()
    assert type(error) is RuntimeError and "was closed" in str(error)
    with pytest.raises(RuntimeError, match="was closed"):
        shared.start()
    assert len(FakeEngine.made) == 1


def test_the_engine_s_start_is_not_of_the_call_s_time(shared, ask, monkeypatch):
    late = [0.0]
    clock = time.monotonic

    class Slow(FakeEngine):
        def __init__(self, *args, **keywords):
            late[0] += 100_000
            super().__init__(*args, **keywords)

    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])
    monkeypatch.setattr(engines, "Engine", Slow)
    FakeEngine.answers.append(answer({}, "404 Not Found"))
    assert Asking(ask).outcome().status == 404


def test_the_handler_of_the_interpreter_s_end_is_registered_once_for_an_engine(shared, monkeypatch):
    registered = []
    monkeypatch.setattr(_client.atexit, "register", registered.append)
    monkeypatch.setattr(_client.atexit, "unregister", lambda handler: None)
    monkeypatch.setattr(_client, "_ends_calls_first", _client._ends_calls_first)  # so that it is put back
    client = Client(engines.EngineUse(shared).endpoint)

    def calls():
        for _ in range(50):
            FakeEngine.answers.append(answer({}))
            client.call("GET", "/v1/x")
            FakeEngine.answers.append(answer({}))
            asyncio.run(client.acall("GET", "/v1/x"))

    for count in (1, 2):
        thread = threading.Thread(target=calls, daemon=True)
        thread.start()
        thread.join(60)
        assert registered == [_client._end_calls_of_daemon_threads] * count
        shared.stop()
