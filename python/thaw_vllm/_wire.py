"""HTTP/1.1 as bytes in and bytes out, plain or TLS; and server-sent events. No socket, no loop."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any

import h11

from thaw_vllm._errors import APIConnectionError

READ_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 17


class Tls:
    """TLS over bytes: what comes from the socket goes in, what is for the socket comes out."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def handshake(self) -> bool:
        """True once it is done; until then send pending() and feed what comes."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise APIConnectionError(f"TLS failed: {error}") from error
        return True

    def pending(self) -> bytes:
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        sent = 0
        try:
            while sent < len(data):
                sent += self._object.write(data[sent:])
        except ssl.SSLError as error:
            raise APIConnectionError(f"TLS failed: {error}") from error
        return self._outgoing.read()

    def feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def decrypt(self) -> bytes | None:
        """Plain bytes; empty at the end, None where more must come first."""
        try:
            return self._object.read(READ_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            raise APIConnectionError(f"TLS failed: {error}") from error


class Exchange:
    """The requests of one connection, one after another."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.began = False  # a byte of the answer has come

    def request(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """The bytes to send."""
        self.status = 0
        self.headers = {}
        self.began = False
        http = self._http
        head = http.send(h11.Request(method=method, target=target, headers=headers))
        data = http.send(h11.Data(data=body)) if body else b""
        return (head or b"") + (data or b"") + (http.send(h11.EndOfMessage()) or b"")

    def feed(self, data: bytes) -> None:
        if data:
            self.began = True
        self._http.receive_data(data)

    def next_part(self) -> bytes | None | Ended | NeedsMore:
        """Bytes of the body, None for the head, or what Ended and NeedsMore say."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise APIConnectionError(f"the answer ended too soon or is no HTTP: {error}") from error
        if event is h11.NEED_DATA:
            return NeedsMore()
        if isinstance(event, h11.Response):
            self.status = event.status_code
            self.headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
            return None
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return Ended()
        if isinstance(event, h11.InformationalResponse):
            return self.next_part()
        raise APIConnectionError("the connection ended before the answer was complete")

    def reusable(self) -> bool:
        """Whether another request can follow; makes ready for it."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True


class Ended:
    """The answer is complete."""


class NeedsMore:
    """More bytes must come first."""


class EventParser:
    """Server-sent events -> the JSON of their data. Comments are dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self.done = False  # "[DONE]" has come

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                text = b"\n".join(self._data)
                self._data = []
                if text == b"[DONE]":
                    self.done = True
                    return
                yield json.loads(text)
