"""Sockets to an engine in this process or to a server, and waiting for them with or without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from thaw_vllm._errors import APIConnectionError, APITimeoutError

Address = tuple[int, int, int, str, Any]  # as getaddrinfo() gives it


def wait_ready(sock: socket.socket, deadline: float, *, write: bool = False) -> None:
    """Blocks until the socket can be read or written. ``deadline`` is of time.monotonic()."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT if write else select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise APITimeoutError("no answer in time")


async def await_ready(sock: socket.socket, deadline: float, *, write: bool = False) -> None:
    """The same on the running loop, which has forgotten the socket afterwards, however it ends."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    fd = sock.fileno()
    (loop.add_writer if write else loop.add_reader)(fd, _settle, ready, True)
    timer = loop.call_later(max(0.0, deadline - time.monotonic()), _settle, ready, False)
    try:
        if not await ready:
            raise APITimeoutError("no answer in time")
    finally:
        timer.cancel()
        (loop.remove_writer if write else loop.remove_reader)(fd)


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


class Endpoint:
    """Where connections come from."""

    host = "thaw"
    prefix = ""  # before "/v1/..."
    headers: tuple[tuple[str, str], ...] = ()
    tls: ssl.SSLContext | None = None
    tls_host = ""

    def start(self) -> Endpoint:
        """What a call connects to, however often: the endpoint itself, or the engine that runs now."""
        return self

    async def astart(self) -> Endpoint:
        """The same without blocking the loop."""
        return self

    @property
    def has_ended(self) -> bool:
        """Whether nothing will ever answer here again."""
        return False

    def connect(self, timeout_s: float) -> socket.socket:
        """A connected socket that does not block. Raises APIConnectionError, APITimeoutError."""
        raise NotImplementedError

    async def aconnect(self, timeout_s: float) -> socket.socket:
        """The same without blocking the loop."""
        raise NotImplementedError


class RunningEngine(Endpoint):
    """An engine of this process, from its start to its end. ``connect_fd`` gives a connected descriptor,
    within a tenth of a millisecond, or raises RuntimeError."""

    def __init__(self, connect_fd: Callable[[], int], has_ended: Callable[[], bool]) -> None:
        self._connect_fd = connect_fd
        self._has_ended = has_ended

    @property
    def has_ended(self) -> bool:
        return self._has_ended()

    def connect(self, timeout_s: float) -> socket.socket:
        try:
            sock = socket.socket(fileno=self._connect_fd())
        except TimeoutError as error:
            raise APITimeoutError(str(error)) from error
        except (RuntimeError, OSError) as error:
            raise APIConnectionError(f"the engine does not answer: {error}") from error
        sock.setblocking(False)
        return sock

    async def aconnect(self, timeout_s: float) -> socket.socket:
        return self.connect(timeout_s)


class EngineEndpoint(Endpoint):
    """The engine of this process that runs now. ``start`` gives it, and starts one where there is none, which
    no timeout bounds; ``has_started`` says whether there is one."""

    def __init__(self, start: Callable[[], RunningEngine], has_started: Callable[[], bool]) -> None:
        self._start = start
        self._has_started = has_started

    def start(self) -> Endpoint:
        return self._start()

    async def astart(self) -> Endpoint:
        if self._has_started():
            return self._start()
        return await asyncio.get_running_loop().run_in_executor(None, self._start)

    def connect(self, timeout_s: float) -> socket.socket:
        return self.start().connect(timeout_s)

    async def aconnect(self, timeout_s: float) -> socket.socket:
        return await (await self.astart()).aconnect(timeout_s)


class HttpEndpoint(Endpoint):
    """A server. ``base_url`` is "http://host:port" or "https://...", with or without "/v1". ValueError for
    another, and for an ``api_key`` that no header may hold; whitespace around it is dropped."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        url = urllib.parse.urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url is {base_url!r}; it must be like http://127.0.0.1:8000/v1")
        self.host = url.netloc.rpartition("@")[2]
        self.prefix = url.path.rstrip("/").removesuffix("/v1")
        if key := (api_key or "").strip():
            if not (key.isascii() and key.isprintable()):
                raise ValueError("api_key must be printable ASCII; it holds another character")
            self.headers = (("authorization", f"Bearer {key}"),)
        if url.scheme == "https":
            self.tls = ssl.create_default_context()
            self.tls_host = url.hostname
        self._name = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)

    def connect(self, timeout_s: float) -> socket.socket:
        deadline = time.monotonic() + timeout_s
        try:
            addresses = socket.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise APIConnectionError(f"cannot find {self._name}: {error}") from error
        failure: Exception | None = None
        for address in addresses:
            sock = None
            try:
                sock = _begin_connect(address)
                wait_ready(sock, deadline, write=True)
                return _connected(sock, self.host)
            except BaseException as error:
                if sock is not None:
                    sock.close()
                if not isinstance(error, APIConnectionError):
                    raise
                failure = error
        raise failure or APIConnectionError(f"{self._name} has no address")

    async def aconnect(self, timeout_s: float) -> socket.socket:
        deadline = time.monotonic() + timeout_s
        failure: Exception | None = None
        for address in await self._aresolve():
            sock = None
            try:
                sock = _begin_connect(address)
                await await_ready(sock, deadline, write=True)
                return _connected(sock, self.host)
            except BaseException as error:
                if sock is not None:
                    sock.close()
                if not isinstance(error, APIConnectionError):
                    raise
                failure = error
        raise failure or APIConnectionError(f"{self._name} has no address")

    async def _aresolve(self) -> Sequence[Address]:
        with contextlib.suppress(OSError):  # no thread for what is an address already
            numeric = socket.AI_NUMERICHOST
            return socket.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM, flags=numeric)
        try:
            loop = asyncio.get_running_loop()
            return await loop.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise APIConnectionError(f"cannot find {self._name}: {error}") from error


def _begin_connect(address: Address) -> socket.socket:
    family, kind, protocol, _, where = address
    try:
        sock = socket.socket(family, kind, protocol)
    except OSError as error:  # no IPv6 here, say
        raise APIConnectionError(f"cannot connect to {where[0]}:{where[1]}: {error}") from error
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex(where)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise APIConnectionError(f"cannot connect to {where[0]}:{where[1]}: {os.strerror(code)}")
    return sock


def _connected(sock: socket.socket, host: str) -> socket.socket:
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code != 0:
        raise APIConnectionError(f"cannot connect to {host}: {os.strerror(code)}")
    return sock
