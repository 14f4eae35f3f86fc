"""Engines of this process: one for all who ask for the same model with the same settings."""

from __future__ import annotations

import json
import os
import pathlib
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from thaw_vllm import _client
from thaw_vllm._core import Engine
from thaw_vllm._transport import EngineEndpoint, RunningEngine


def worker_binary() -> str:
    """Path of the `thaw` binary that this package carries."""
    # Not resolved: in a build tree this module is a link.
    return str(pathlib.Path(__file__).parent / "bin" / "thaw")


class SharedEngine:
    """An engine that starts when it is first connected to. ``settings`` are flags of `thaw serve` without
    dashes in front ("kv_bytes": "512MiB"). Safe for threads and forks: a child of the process starts an
    engine of its own when it needs one.
    """

    def __init__(self, model: str, settings: Mapping[str, Any]) -> None:
        self.model = model
        self.settings = dict(settings)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._closed = False
        self._uses: weakref.WeakSet[EngineUse] = weakref.WeakSet()

    @property
    def has_started(self) -> bool:
        return self._engine is not None

    @property
    def is_closed(self) -> bool:
        return self._closed

    def runs(self, engine: Engine) -> bool:
        """Whether this is still the engine."""
        return self._engine is engine

    def start(self) -> Engine:
        """The engine, started if need be: that takes as long as the model takes to load.

        Raises ValueError, OSError or RuntimeError where it cannot be, and RuntimeError after close().
        """
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    if self._closed:
                        raise RuntimeError("the engine was closed; make another")
                    engine = Engine(self.model, settings=self.settings, worker_binary=worker_binary())
                    self._engine = engine
                    _client.note_new_engine()
        return engine

    def stop(self, drain_s: float = 0.0) -> None:
        """Ends the engine; who connects again starts another."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close(drain_s)

    def close(self) -> None:
        """Ends the engine for good."""
        self._closed = True
        self.stop()


class EngineUse:
    """One who uses a SharedEngine. An engine whose users are all closed ends; users that are just forgotten
    leave it running, since the next one with these settings is likely to come soon."""

    def __init__(self, engine: SharedEngine) -> None:
        self.engine = engine
        self.endpoint = EngineEndpoint(self.start, lambda: engine.has_started)

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineUse:
        return self

    def start(self) -> RunningEngine:
        """The engine that runs now, started if need be. Raises what SharedEngine.start() raises."""
        with _lock:
            self.engine._uses.add(self)
        engine = self.engine.start()
        return RunningEngine(engine.connect, lambda: not self.engine.runs(engine))

    def close(self) -> None:
        """This use ends, and with the last one the engine. Starting again is a new use."""
        with _lock:
            self.engine._uses.discard(self)
            last = not self.engine._uses
        if last:
            self.engine.stop()


_lock = threading.RLock()  # garbage collection may come here from anywhere
_shared: dict[str, SharedEngine] = {}


def use_engine(model: str, settings: Mapping[str, Any]) -> EngineUse:
    """A use of the process's engine for that model and these settings. Does not start it."""
    key = json.dumps([model, dict(settings)], sort_keys=True, default=str)
    with _lock:
        engine = _shared.setdefault(key, SharedEngine(model, settings))
        use = EngineUse(engine)
        engine._uses.add(use)
        return use


def _after_fork() -> None:
    """In the child: engines are the parent's, whose descriptors _core has closed; locks may be held by
    threads that are not here."""
    global _lock
    _lock = threading.RLock()
    for engine in _shared.values():
        engine._lock = threading.Lock()
        engine._engine = None


os.register_at_fork(after_in_child=_after_fork)
