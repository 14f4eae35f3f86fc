"""A coalescer for engines other than ours: calls that arrive together and begin alike become one fork.

ChatThaw does not need it, since thaw's own coalescer stands behind each of its calls.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from thaw_vllm.langgraph._message_utils import approximate_token_count, common_prefix_length

T = TypeVar("T")
Messages = Sequence[Any]
Sampling = dict[str, Any]

ForkCallable = Callable[[list[Any], list[list[Any]], Sampling], "Awaitable[list[str]] | list[str]"]
SingleCallable = Callable[[list[Any], Sampling], "Awaitable[str] | str"]
BatchSingleCallable = Callable[[list[list[Any]], Sampling], "Awaitable[list[str]] | list[str]"]
TokenCounter = Callable[[list[Any]], int]


@dataclass
class _Call:
    messages: list[Any]
    sampling: Sampling
    answer: asyncio.Future[str]


@dataclass
class _Window:
    """The calls of one event loop that wait for the window to close."""

    calls: list[_Call] = field(default_factory=list)
    rounds: set[asyncio.Task[None]] = field(default_factory=set)


class ForkCoalescer:
    """Collects calls for ``window_ms`` after the first and sends them on together.

    Calls with equal sampling parameters that begin with the same whole messages, of at least
    ``min_prefix_tokens`` tokens by ``token_counter``, go to ``fork_callable(prefix, suffix_lists,
    sampling)``; others that are several to ``batch_single_callable(message_lists, sampling)``, if there is
    one; the rest one by one to ``single_callable(messages, sampling)``. Callables may be coroutine functions.
    An error of a fork or a batch is that of its calls, one of a single call is its own; a list of another
    length than the calls is a RuntimeError for them. Safe for several event loops; each has windows of its
    own.
    """

    def __init__(
        self,
        *,
        fork_callable: ForkCallable,
        single_callable: SingleCallable,
        batch_single_callable: BatchSingleCallable | None = None,
        window_ms: float = 2.0,
        min_prefix_tokens: int = 500,
        token_counter: TokenCounter | None = None,
    ) -> None:
        if window_ms < 0:
            raise ValueError(f"window_ms is {window_ms}; it must be at least 0")
        self._fork = fork_callable
        self._single = single_callable
        self._batch = batch_single_callable
        self._window_s = window_ms / 1000
        self._min_prefix_tokens = min_prefix_tokens
        self._count_tokens = token_counter or approximate_token_count
        self._lock = threading.Lock()
        self._windows: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Window] = (
            weakref.WeakKeyDictionary()
        )

    async def submit(self, messages: Messages, sampling_params: Sampling | None = None) -> str:
        """The text that the callables answer these messages with."""
        loop = asyncio.get_running_loop()
        with self._lock:
            window = self._windows.setdefault(loop, _Window())
        call = _Call(list(messages), dict(sampling_params or {}), loop.create_future())
        window.calls.append(call)
        if len(window.calls) == 1:
            loop.call_later(self._window_s, self._flush, window)
        return await call.answer

    def _flush(self, window: _Window) -> None:
        calls, window.calls = window.calls, []
        groups: dict[str, list[_Call]] = {}
        for call in calls:
            if not call.answer.done():  # cancelled ones are
                key = json.dumps(call.sampling, sort_keys=True, default=str)
                groups.setdefault(key, []).append(call)
        for group in groups.values():
            task = asyncio.ensure_future(self._run(group))
            window.rounds.add(task)
            task.add_done_callback(window.rounds.discard)

    async def _run(self, calls: list[_Call]) -> None:
        sampling = calls[0].sampling
        lists = [call.messages for call in calls]
        shared = common_prefix_length(lists)
        prefix = lists[0][:shared]
        if len(calls) > 1 and prefix and self._count_tokens(prefix) >= self._min_prefix_tokens:
            await _answer_all(calls, lambda: self._fork(prefix, [one[shared:] for one in lists], sampling))
        elif len(calls) > 1 and self._batch is not None:
            batch = self._batch
            await _answer_all(calls, lambda: batch(lists, sampling))
        else:
            await asyncio.gather(*(self._answer_one(call) for call in calls))

    async def _answer_one(self, call: _Call) -> None:
        await _answer_all([call], lambda: self._call_single(call))

    async def _call_single(self, call: _Call) -> list[str]:
        return [await _value(self._single(call.messages, call.sampling))]


async def _value(result: Awaitable[T] | T) -> T:
    return await result if inspect.isawaitable(result) else result


async def _answer_all(calls: list[_Call], ask: Callable[[], Awaitable[list[str]] | list[str]]) -> None:
    try:
        texts = await _value(ask())
        if len(texts) != len(calls):
            raise RuntimeError(f"{len(calls)} calls were answered with {len(texts)} texts")
    except BaseException as error:
        for call in calls:
            if not call.answer.done():
                call.answer.set_exception(error)
        if not isinstance(error, Exception):
            raise
        return
    for call, text in zip(calls, texts, strict=True):
        if not call.answer.done():
            call.answer.set_result(text)
