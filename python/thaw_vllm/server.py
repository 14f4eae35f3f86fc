"""ASGI applications over thaw's engine: the endpoints of docs/http.md, for uvicorn and its kin."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
from collections.abc import Sequence

from thaw_vllm import _asgi
from thaw_vllm._asgi import Message, Receive, Send
from thaw_vllm.llm import LLM
from thaw_vllm.pool import EnginePool

PathLike = str | os.PathLike[str]


class EngineApp:
    """Passes all requests on to an engine."""

    def __init__(self, llm: LLM):
        self._llm = llm

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _asgi.run_lifespan(receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not supported; http is")
        body = await _asgi.read_body(receive)
        if body is None:
            return await _asgi.reply_error(send, 413, f"more than {_asgi.MAX_BODY_BYTES} bytes")
        await self._answer(scope, body, receive, send)

    async def _answer(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        await _asgi.forward(self._llm._client.endpoint, scope, body, receive, send)


class PoolApp(EngineApp):
    """The same of an EnginePool, whose names stay in step with what is registered over HTTP."""

    def __init__(self, pool: EnginePool, snapshot_dirs: Sequence[PathLike]):
        super().__init__(pool.engine)
        self._pool = pool
        self._allowed = [pathlib.Path(folder).resolve() for folder in snapshot_dirs]

    async def _answer(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path == "/admin/snapshots" and method == "POST":
            return await self._register(body, send)
        if path.startswith("/admin/snapshots/") and method == "DELETE":
            name = path.removeprefix("/admin/snapshots/")
            try:
                await asyncio.to_thread(self._pool.unregister, name)
            except (ValueError, RuntimeError) as error:
                return await _asgi.reply_error(send, 400, str(error))
            return await _asgi.reply_json(send, 200, {"status": "unregistered", "model": name})
        if path == "/admin/snapshots" and method == "GET":
            return await _asgi.reply_json(send, 200, {"snapshots": dict(self._pool.snapshots)})
        await super()._answer(scope, body, receive, send)

    async def _register(self, body: bytes, send: Send) -> None:
        try:
            fields = json.loads(body)
            name, path = (
                fields.get("name") or fields.get("model"),
                fields.get("path") or fields.get("snapshot"),
            )
        except (ValueError, AttributeError):
            return await _asgi.reply_error(send, 422, "the body is no JSON object")
        if not isinstance(name, str) or not isinstance(path, str) or not name or not path:
            return await _asgi.reply_error(send, 400, "name (or model) and path (or snapshot) are needed")
        resolved = pathlib.Path(path).resolve()
        if not any(resolved.is_relative_to(folder) for folder in self._allowed):
            return await _asgi.reply_error(
                send, 403, f"{path} lies in none of the directories of snapshot_dirs"
            )
        try:
            await asyncio.to_thread(self._pool.register, name, resolved)
        except FileNotFoundError as error:
            return await _asgi.reply_error(send, 404, str(error))
        except (ValueError, RuntimeError) as error:
            return await _asgi.reply_error(send, 400, str(error))
        await _asgi.reply_json(send, 200, {"status": "registered", "model": name, "snapshot": path})


def create_pool_app(pool: EnginePool, *, snapshot_dirs: Sequence[PathLike] = ()) -> PoolApp:
    """An ASGI application over a pool that runs: `uvicorn.run(create_pool_app(pool))`.

    All endpoints of `thaw serve`. Models may be registered over HTTP from `snapshot_dirs` only. There is
    no authentication: put it in front.
    """
    return PoolApp(pool, snapshot_dirs)


def create_app(llm: LLM, model_name: str | None = None) -> EngineApp:
    """An ASGI application over one engine. `model_name` is accepted: the engine knows its models' names."""
    return EngineApp(llm)
