"""A pool of engines that complete branches of one trunk.

Without `worker_cmd` the pool is an engine of its own with N worker processes behind thaw's coalescer: it
places branches, replaces workers that die, and loses no token of theirs. With `worker_cmd` workers are
any processes that speak JSON lines (docs/python_forkpool.md), such as those of another engine.
"""

from __future__ import annotations

import os
import pathlib
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from thaw_vllm.errors import ForkPoolError, WorkerBootTimeout, WorkerDead, WorkerProtocolError
from thaw_vllm.fork import ForkCompletionResult, ForkHandle, fork, settle

__all__ = [
    "ForkPool", "ForkPoolError", "WorkerBootTimeout", "WorkerDead", "WorkerProtocolError",
    "own_worker_command",
]  # fmt: skip


class Slot(Protocol):
    """A worker as `ForkPool.slots` shows it. `boot_s` in seconds."""

    id: int
    boot_s: float
    dead: bool
    busy: bool

    @property
    def pid(self) -> int: ...


class Channel(Protocol):
    """What a pool sends its rounds through."""

    def wants_trunk(self, llm: Any, prompts: list[str]) -> bool:
        """Whether the KV that `llm` holds is to be brought over for these prompts."""

    def slots(self) -> Sequence[Slot]: ...

    def run(
        self, handle: ForkHandle | None, prompts: list[str], params: Any, extra: Mapping[str, Any]
    ) -> list[ForkCompletionResult]: ...

    def close(self, timeout_s: float) -> None: ...


def own_worker_command() -> list[str]:
    """A command for `worker_cmd`: thaw's own engine as a worker that speaks JSON lines."""
    # This package, wherever this process found it. Not resolved: in a build tree files are links.
    where = str(pathlib.Path(__file__).parent.parent)
    start = f"import sys; sys.path.insert(0, {where!r}); from thaw_vllm.worker import main; main()"
    return [sys.executable, "-c", start]


class ForkPool:
    """Workers that stay loaded, and rounds of branches on them. Rounds of several threads run one by one."""

    def __init__(self, *, worker_cmd: list[str] | None = None, reply_timeout_s: float = 600.0):
        """`reply_timeout_s`: seconds that a worker gets for each request of a round."""
        if worker_cmd is not None and not worker_cmd:
            raise ValueError("worker_cmd is an empty list; it must be a command")
        if reply_timeout_s <= 0:
            raise ValueError(f"reply_timeout_s is {reply_timeout_s}; it must be above 0")
        self.worker_cmd = list(worker_cmd) if worker_cmd is not None else None
        self.reply_timeout_s = reply_timeout_s
        self.model: str | None = None
        self.worker_kwargs: dict[str, Any] = {}
        self.preload_weights = False
        self._channel: Channel | None = None
        self._lock = threading.Lock()  # of the channel's place
        self._round = threading.Lock()  # held while a round runs
        self._owner = os.getpid()

    def init_pool(
        self,
        model: str,
        workers: int = 1,
        *,
        preload_weights: bool = False,
        boot_timeout_s: float = 1800.0,
        env: Mapping[str, str] | None = None,
        **llm_kwargs: Any,
    ) -> None:
        """Starts the workers, all at once, and returns when they are ready.

        `preload_weights`: they load the weights now, and rounds bring KV only; thaw's own always do.
        `env` is their environment besides this process's. WorkerBootTimeout, WorkerDead, ForkPoolError;
        none is left running then. May be called again after close().
        """
        if workers < 1:
            raise ForkPoolError(f"workers is {workers}; it must be at least 1")
        with self._lock:
            if self._channel is not None:
                raise ForkPoolError("the pool is running; close() it before init_pool()")
            self._owner = os.getpid()
            if self.worker_cmd is None:
                from thaw_vllm._engine_channel import EngineChannel

                if env:
                    raise ForkPoolError(
                        "env is for workers of worker_cmd; thaw's own have this process's environment"
                    )
                self._channel = EngineChannel(
                    model, workers, llm_kwargs, boot_timeout_s, self.reply_timeout_s
                )
            else:
                from thaw_vllm._line_channel import LineChannel

                self._channel = LineChannel(
                    self.worker_cmd, model, workers, llm_kwargs, preload_weights, boot_timeout_s,
                    self.reply_timeout_s, env,
                )  # fmt: skip
            self.model, self.worker_kwargs = model, dict(llm_kwargs)
            self.preload_weights = preload_weights or self.worker_cmd is None

    def fork_completions(
        self,
        llm: Any,
        prompts: str | Sequence[str],
        sampling_params: Any,
        *,
        state_dir: str | os.PathLike[str] | None = None,
        handle: ForkHandle | None = None,
        extra_op_fields: Mapping[str, Any] | None = None,
        return_errors: bool = False,
    ) -> list[ForkCompletionResult]:
        """One result for each prompt, in order; with `n` above 1 its `choices` has all of them.

        The trunk's KV comes from `handle`, else from `llm`, forked once (into `state_dir` where it is
        given; `llm` may be None, then the workers compute the trunk). A worker that dies is replaced and
        its prompts run again once. A branch that fails is a ForkBranchError whose `results` has what
        the others said; with `return_errors` it is a result with `error` set.
        """
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        if os.getpid() != self._owner:
            raise ForkPoolError("the pool is of the process that this one was forked from; make a new one")
        with self._round:
            channel = self._channel
            if channel is None:
                raise ForkPoolError("the pool has no workers; call init_pool() first")
            if not listed:
                return []
            extra = dict(extra_op_fields or {})
            if handle is not None or llm is None or not channel.wants_trunk(llm, listed):
                results = channel.run(handle, listed, sampling_params, extra)
            else:
                weights = not self.preload_weights
                with fork(llm, include_weights=weights, state_dir=state_dir) as forked:
                    results = channel.run(forked, listed, sampling_params, extra)
        if len(results) != len(listed):
            raise WorkerProtocolError(f"{len(results)} results came back for {len(listed)} prompts")
        return settle(results, return_errors)

    @property
    def slots(self) -> Sequence[Slot]:
        """The workers: id, pid, boot_s, dead, busy."""
        channel = self._channel
        return channel.slots() if channel is not None else []

    def status(self) -> dict[str, Any]:
        """{model, closed, workers: [{id, pid, boot_s, busy, dead}]}"""
        keys = ("id", "pid", "boot_s", "busy", "dead")
        workers = [{key: getattr(slot, key) for key in keys} for slot in self.slots]
        return {"model": self.model, "closed": self._channel is None, "workers": workers}

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends the workers within that time, whatever they do; a round that runs fails then.

        init_pool() may follow. May be called twice.
        """
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None and os.getpid() == self._owner:
            channel.close(timeout_s)

    def __enter__(self) -> ForkPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
