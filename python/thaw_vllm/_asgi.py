"""An ASGI application that passes requests on to an engine of this process, byte for byte, streams too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import h11

from thaw_vllm._transport import Endpoint

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 32 << 20
_CONNECT_TIMEOUT_S = 30.0
_READ_BYTES = 1 << 16
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"host", b"expect")
)


async def reply_json(send: Send, status: int, body: Any) -> None:
    """A whole answer."""
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def reply_error(send: Send, status: int, message: str) -> None:
    """As the engine's own errors."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    await reply_json(send, status, {"error": {"message": message, "type": kind, "param": None, "code": None}})


async def read_body(receive: Receive) -> bytes | None:
    """None where it is longer than MAX_BODY_BYTES, or the client hung up."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def run_lifespan(receive: Receive, send: Send) -> None:
    """The server's start and end; the engine has both of its own."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


async def forward(endpoint: Endpoint, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
    """Sends the request on and the answer back. A client that hangs up ends the engine's request."""
    try:
        sock = await endpoint.aconnect(_CONNECT_TIMEOUT_S)
    except (OSError, RuntimeError) as error:
        return await reply_error(send, 503, f"the engine is not there: {error}")
    answer = asyncio.create_task(_exchange(sock, endpoint, scope, body, send))
    gone = asyncio.create_task(_hung_up(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            answer.result()
    finally:
        for task in (answer, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        sock.close()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _request(endpoint: Endpoint, scope: Message, body: bytes) -> h11.Request:
    target = endpoint.prefix.encode() + (scope.get("raw_path") or scope["path"].encode()).split(b"?")[0]
    if scope.get("query_string"):
        target += b"?" + scope["query_string"]
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _HOP_BY_HOP]
    headers = [item for item in headers if item[0].lower() != b"content-length"]
    names = {name.lower() for name, _ in headers}
    headers += [(n.encode(), v.encode()) for n, v in endpoint.headers if n.encode() not in names]
    headers += [(b"host", endpoint.host.encode()), (b"connection", b"close")]
    if body or scope["method"] in ("POST", "PUT", "PATCH"):
        headers.append((b"content-length", str(len(body)).encode()))
    return h11.Request(method=scope["method"], target=target, headers=headers)


async def _exchange(sock: socket.socket, endpoint: Endpoint, scope: Message, body: bytes, send: Send) -> None:
    loop = asyncio.get_running_loop()
    http = h11.Connection(h11.CLIENT)
    data = http.send(_request(endpoint, scope, body)) or b""
    if body:
        data += http.send(h11.Data(data=body)) or b""
    await loop.sock_sendall(sock, data + (http.send(h11.EndOfMessage()) or b""))
    began = False
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError:
            event = h11.ConnectionClosed()
        if event is h11.NEED_DATA:
            http.receive_data(await loop.sock_recv(sock, _READ_BYTES))
        elif isinstance(event, h11.Response):
            began = True
            kept = [(n, v) for n, v in event.headers if n.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": event.status_code, "headers": kept})
        elif isinstance(event, h11.Data):
            await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
        elif isinstance(event, h11.EndOfMessage):
            await send({"type": "http.response.body", "body": b""})
            return
        elif isinstance(event, h11.ConnectionClosed):
            if began:
                raise ConnectionError("the engine ended in the middle of an answer")
            await reply_error(send, 503, "the engine ended before it answered")
            return
