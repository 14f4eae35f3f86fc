"""The client of a thaw engine in this process, or of a thaw server: blocking and async, one pool for both.

A connection is a bare socket, which belongs to no thread and to no event loop; what is open can be used by
whoever calls next. A call that is given up (an exception, a cancelled task, a closed stream) ends its
connection, which is how the engine learns that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from typing import Any, TypeVar, cast

from thaw_vllm._errors import APIConnectionError, APIStatusError, ThawError, error_of
from thaw_vllm._transport import Endpoint, await_ready, wait_ready
from thaw_vllm._wire import READ_BYTES, Ended, EventParser, Exchange, NeedsMore, Tls

DEFAULT_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 10.0
_MAX_IDLE = 64
_FIRST_DELAY_S = 0.25
_MAX_DELAY_S = 120.0  # what a server may ask for
_LAST_WORDS_S = 1.0
_ENDS = "the interpreter ends"

Json = dict[str, Any]
T = TypeVar("T")


class _Connection:
    """A socket and what was said on it.

    What has to wait is a generator: it yields whether it waits to write (True) or to read, and goes on when
    the socket is ready. _run() and _arun() drive it, so that blocking and async callers share all the rest.
    """

    def __init__(self, sock: socket.socket, tls: Tls | None) -> None:
        self.sock = sock
        self.tls = tls
        self.exchange = Exchange()
        self.is_cut = False
        self.on_loop = False  # its call runs on an event loop

    def is_stale(self) -> bool:
        """Whether the other side has closed it, or said what nobody asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def receive(self) -> bytes | None:
        """What has come; empty at the end, None where nothing has."""
        self.check_cut()
        if self in _in_use:
            _in_use[self] = threading.current_thread()  # streams may go from thread to thread
        try:
            return self.sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise APIConnectionError(f"the connection failed: {error}") from error

    def send(self, data: bytes) -> bytes:
        """Sends what there is room for; the rest is returned."""
        try:
            return data[self.sock.send(data) :] if data else data
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            raise APIConnectionError(f"the connection failed: {error}") from error

    @contextlib.contextmanager
    def ends_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if isinstance(error, APIConnectionError) and self.exchange.began:
                error._is_final = True
            self.end()
            raise

    def request(
        self, endpoint: Endpoint, method: str, path: str, body: Json | None
    ) -> Generator[bool, None, None]:
        """Sends the request and reads the answer's head."""
        _enter(self)
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = [("host", endpoint.host), *endpoint.headers]
        if body is not None:
            headers += [("content-type", "application/json"), ("content-length", str(len(data)))]
        sent = self.exchange.request(method, endpoint.prefix + path, headers, data)
        yield from self._write(sent if self.tls is None else self.tls.encrypt(sent))
        yield from self.part(head=True)

    def part(self, head: bool = False) -> Generator[bool, None, bytes | None]:
        """The next bytes of the body; None at its end. With ``head``, empty once the head is there."""
        while True:
            part = self.exchange.next_part()
            if isinstance(part, NeedsMore):
                self._feed((yield from self._read()))
            elif isinstance(part, Ended):
                return None
            elif part is None:
                if head:
                    return b""
            else:
                return part

    def body(self) -> Generator[bool, None, bytes]:
        """The whole body."""
        parts: list[bytes] = []
        while (part := (yield from self.part())) is not None:
            parts.append(part)
        return b"".join(parts)

    def handshake(self) -> Generator[bool, None, None]:
        if self.tls is None:
            return
        while not self.tls.handshake():
            yield from self._write(self.tls.pending())
            self.tls.feed((yield from self._read()))
        yield from self._write(self.tls.pending())

    def _read(self) -> Generator[bool, None, bytes]:
        while (data := self.receive()) is None:
            yield False
        return data

    def _write(self, data: bytes) -> Generator[bool, None, None]:
        while data := self.send(data):
            yield True

    def _feed(self, data: bytes) -> None:
        if self.tls is None:
            return self.exchange.feed(data)
        self.tls.feed(data)
        while (plain := self.tls.decrypt()) is not None:
            self.exchange.feed(plain)
            if not plain:
                return None
        return None

    def end(self) -> None:
        _in_use.pop(self, None)
        self.cut()
        self.sock.close()

    def cut(self) -> None:
        """Whoever waits for the socket, here or there, learns now that it is at its end. A forked child that
        holds it too changes nothing in that."""
        self.is_cut = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def check_cut(self) -> None:
        """For what came before the cut."""
        if self.is_cut:
            raise APIConnectionError(_ENDS)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_in_use: dict[_Connection, threading.Thread] = {}  # by whom


class Client:
    """Calls to one endpoint. Safe for threads, event loops and forks.

    ``timeout_s`` bounds a whole call, and in streams each wait for the next event. It does not bound the
    start of an engine of this process, after which it begins, nor the system's search for a server's address.
    ``max_retries`` is for answers 429 and 503 and for connections that end before an answer began: after the
    time that the server asks for, else after 0.25 s, 0.5 s, ... Calls may have their own of both. A call is
    of the engine that it began in, and fails where that ends, even if another runs by then.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout_s: float = DEFAULT_TIMEOUT_S, max_retries: int = 2
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        _clients.add(self)

    # -- whole answers

    def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        timeout_s: float | None = None,
        max_retries: int | None = None,
    ) -> Any:
        """The answer's JSON, or its text where it is no JSON. Raises ThawError's kin."""
        place = self.endpoint.start()
        retries = self.max_retries if max_retries is None else max_retries
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        for attempt in range(retries + 1):
            try:
                return self._call_once(place, method, path, body, deadline)
            except (APIStatusError, APIConnectionError) as error:
                time.sleep(self._delay_or_raise(place, error, attempt, retries, deadline))
        raise AssertionError("the last attempt raises")

    async def acall(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        timeout_s: float | None = None,
        max_retries: int | None = None,
    ) -> Any:
        """call() on the running event loop."""
        place = await self.endpoint.astart()
        retries = self.max_retries if max_retries is None else max_retries
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        for attempt in range(retries + 1):
            try:
                return await self._acall_once(place, method, path, body, deadline)
            except (APIStatusError, APIConnectionError) as error:
                await asyncio.sleep(self._delay_or_raise(place, error, attempt, retries, deadline))
        raise AssertionError("the last attempt raises")

    # -- streams

    def stream(
        self, path: str, body: Json, *, timeout_s: float | None = None, max_retries: int | None = None
    ) -> Generator[Json, None, None]:
        """The events of a streamed answer. Retries end with the first event. Closing the iterator
        cancels the request. Raises as call() does; APIStatusError with status 0 for an error within."""
        place = self.endpoint.start()
        retries = self.max_retries if max_retries is None else max_retries
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        for attempt in range(retries + 1):
            deadline = time.monotonic() + wait_s
            began = False
            try:
                for event in self._stream_once(place, path, body, wait_s):
                    began = True
                    yield event
                return
            except (APIStatusError, APIConnectionError) as error:
                if began:
                    raise
                time.sleep(self._delay_or_raise(place, error, attempt, retries, deadline))

    async def astream(
        self, path: str, body: Json, *, timeout_s: float | None = None, max_retries: int | None = None
    ) -> AsyncGenerator[Json, None]:
        """stream() on the running event loop."""
        place = await self.endpoint.astart()
        retries = self.max_retries if max_retries is None else max_retries
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        for attempt in range(retries + 1):
            deadline = time.monotonic() + wait_s
            began = False
            try:
                async with contextlib.aclosing(self._astream_once(place, path, body, wait_s)) as events:
                    async for event in events:
                        began = True
                        yield event
                return
            except (APIStatusError, APIConnectionError) as error:
                if began:
                    raise
                await asyncio.sleep(self._delay_or_raise(place, error, attempt, retries, deadline))

    def close(self) -> None:
        """Ends idle connections; calls that run go on. The client stays usable."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.end()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Client:
        return self

    # -- one attempt

    def _call_once(self, place: Endpoint, method: str, path: str, body: Json | None, deadline: float) -> Any:
        used = self._begin(place, method, path, body, deadline)
        with self._kept(used):
            with used.ends_on_error():
                whole = _run(used.body(), used, deadline)
            return self._answer(used.exchange, whole)

    async def _acall_once(
        self, place: Endpoint, method: str, path: str, body: Json | None, deadline: float
    ) -> Any:
        used = await self._abegin(place, method, path, body, deadline)
        with self._kept(used):
            with used.ends_on_error():
                whole = await _arun(used.body(), used, deadline)
            return self._answer(used.exchange, whole)

    def _stream_once(
        self, place: Endpoint, path: str, body: Json, wait_s: float
    ) -> Generator[Json, None, None]:
        used = self._begin(place, "POST", path, body, time.monotonic() + wait_s)
        with self._kept(used):
            answer = _StreamedAnswer()
            while (part := _run(used.part(), used, time.monotonic() + wait_s)) is not None:
                yield from self._events(used, answer, part)
            self._end_of_stream(used.exchange, answer)

    async def _astream_once(
        self, place: Endpoint, path: str, body: Json, wait_s: float
    ) -> AsyncGenerator[Json, None]:
        used = await self._abegin(place, "POST", path, body, time.monotonic() + wait_s)
        with self._kept(used):
            answer = _StreamedAnswer()
            while (part := await _arun(used.part(), used, time.monotonic() + wait_s)) is not None:
                for event in self._events(used, answer, part):
                    yield event
            self._end_of_stream(used.exchange, answer)

    # -- what answers mean

    def _answer(self, exchange: Exchange, body: bytes) -> Any:
        value = _parse(body)
        if 200 <= exchange.status < 300:
            return value
        error = error_of(exchange.status, value, _retry_after_s(exchange.headers))
        error._is_final = exchange.headers.get("x-should-retry") == "false"
        raise error

    def _events(self, used: _Connection, answer: _StreamedAnswer, part: bytes) -> Iterator[Json]:
        if used.exchange.status != 200:
            answer.refusal.append(part)
            return
        for event in answer.parser.feed(part):
            used.check_cut()
            if "error" in event and event.get("branch") is None:
                raise error_of(0, event)
            yield event

    def _end_of_stream(self, exchange: Exchange, answer: _StreamedAnswer) -> None:
        if exchange.status != 200:
            self._answer(exchange, b"".join(answer.refusal))
        if not answer.parser.done:
            raise APIConnectionError("the stream ended before it was complete")

    def _delay_or_raise(
        self, place: Endpoint, error: ThawError, attempt: int, retries: int, deadline: float
    ) -> float:
        """Seconds to wait before the next attempt; raises ``error`` where there is none."""
        delay = _FIRST_DELAY_S * 2.0**attempt
        if isinstance(error, APIStatusError):
            if error.status not in (429, 503):
                raise error
            delay = delay if error.retry_after_s is None else error.retry_after_s
        too_late = delay > _MAX_DELAY_S or time.monotonic() + delay > deadline
        if attempt >= retries or too_late or error._is_final or place.has_ended or _interpreter_ends.is_set():
            raise error
        return delay

    # -- connections

    def _begin(
        self, place: Endpoint, method: str, path: str, body: Json | None, deadline: float
    ) -> _Connection:
        """A connection on which the request was sent and its answer begins."""
        connection = self._take_idle()
        if connection is not None:
            try:
                with connection.ends_on_error():
                    _run(connection.request(self.endpoint, method, path, body), connection, deadline)
                return connection
            except APIConnectionError:
                if connection.exchange.began:
                    raise  # else it had been idle for too long
        sock = place.connect(_left(deadline, CONNECT_TIMEOUT_S))
        connection = _Connection(sock, self._new_tls())
        with connection.ends_on_error():
            _run(connection.handshake(), connection, deadline)
            _run(connection.request(self.endpoint, method, path, body), connection, deadline)
        return connection

    async def _abegin(
        self, place: Endpoint, method: str, path: str, body: Json | None, deadline: float
    ) -> _Connection:
        connection = self._take_idle()
        if connection is not None:
            try:
                with connection.ends_on_error():
                    await _arun(connection.request(self.endpoint, method, path, body), connection, deadline)
                return connection
            except APIConnectionError:
                if connection.exchange.began:
                    raise
        sock = await place.aconnect(_left(deadline, CONNECT_TIMEOUT_S))
        connection = _Connection(sock, self._new_tls())
        with connection.ends_on_error():
            await _arun(connection.handshake(), connection, deadline)
            await _arun(connection.request(self.endpoint, method, path, body), connection, deadline)
        return connection

    @contextlib.contextmanager
    def _kept(self, connection: _Connection) -> Iterator[None]:
        """The connection is kept if the answer was read to its end, and ended if not."""
        done = False
        try:
            yield
            done = True
        except APIStatusError:
            done = True
            raise
        finally:
            self._give_back(connection, done)

    def _take_idle(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not connection.is_stale():
                return connection
            connection.end()

    def _give_back(self, connection: _Connection, done: bool) -> None:
        _in_use.pop(connection, None)
        if done and connection.exchange.reusable():
            with self._lock:
                if len(self._idle) < _MAX_IDLE:
                    self._idle.append(connection)
                    return
        connection.end()

    def _new_tls(self) -> Tls | None:
        endpoint = self.endpoint
        return None if endpoint.tls is None else Tls(endpoint.tls, endpoint.tls_host)


class _StreamedAnswer:
    def __init__(self) -> None:
        self.parser = EventParser()
        self.refusal: list[bytes] = []  # the body where the status is no 200


def _run(steps: Generator[bool, None, T], connection: _Connection, deadline: float) -> T:
    """Drives steps of the connection to their end, and waits where they do."""
    connection.on_loop = False
    while True:
        try:
            write = next(steps)
        except StopIteration as end:
            return cast("T", end.value)
        wait_ready(connection.sock, deadline, write=write)


async def _arun(steps: Generator[bool, None, T], connection: _Connection, deadline: float) -> T:
    connection.on_loop = True
    while True:
        try:
            write = next(steps)
        except StopIteration as end:
            return cast("T", end.value)
        await await_ready(connection.sock, deadline, write=write)


def _left(deadline: float, most: float) -> float:
    return max(0.001, min(most, deadline - time.monotonic()))


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """None: the server says nothing."""
    with contextlib.suppress(KeyError, ValueError):
        return float(headers["retry-after-ms"]) / 1000
    with contextlib.suppress(KeyError, ValueError):
        return float(headers["retry-after"])
    return None


_interpreter_ends = threading.Event()
_ends_calls_first = False  # _end_calls_of_daemon_threads() is what runs first at the interpreter's end


def note_new_engine() -> None:
    """What is registered last runs first, and an engine that had ended before would be started again."""
    global _ends_calls_first
    _ends_calls_first = False


def _enter(connection: _Connection) -> None:
    """The connection is in use, by this thread. Raises where that would be cut right away."""
    thread = threading.current_thread()
    _in_use[connection] = thread
    if not thread.daemon:
        return
    if _interpreter_ends.is_set():
        raise APIConnectionError(_ENDS)
    global _ends_calls_first
    if not _ends_calls_first:  # not each time: what is unregistered keeps its place in the list
        _ends_calls_first = True
        atexit.unregister(_end_calls_of_daemon_threads)
        atexit.register(_end_calls_of_daemon_threads)


def _end_calls_of_daemon_threads() -> None:
    """Calls that run at the interpreter's end fail, and their threads get a moment to end of themselves.

    Python unwinds the thread that wants to go on after that, through whatever it is in. In pydantic-core, of
    which LangChain's messages are made, that aborts the process: "FATAL: exception not rethrown".
    """
    _interpreter_ends.set()
    cut = {connection: thread for connection, thread in _in_use.copy().items() if thread.daemon}
    deadline = time.monotonic() + _LAST_WORDS_S
    for connection in cut:
        connection.cut()
    for connection, thread in cut.items():
        while connection in _in_use and time.monotonic() < deadline:
            time.sleep(0.001)
        if not connection.on_loop:  # a loop's thread goes on
            with contextlib.suppress(AssertionError, RuntimeError):  # a thread that Python did not start
                thread.join(max(0.0, deadline - time.monotonic()))


def _after_fork() -> None:
    """In the child: the connections are the parent's."""
    _in_use.clear()
    for client in list(_clients):
        client._lock = threading.Lock()
        idle, client._idle = client._idle, []
        for connection in idle:
            connection.sock.close()


os.register_at_fork(after_in_child=_after_fork)
