"""Several models behind one engine, each in a slot while it is used."""

from __future__ import annotations

import asyncio
import os
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

from thaw_common.cloud import is_remote, resolve_snapshot_path

from thaw_vllm.llm import LLM

PathLike = str | os.PathLike[str]


class EngineSlot:
    """A place for a model. `llm` is the engine, asked for the model that is here; `lock` is held while it is
    acquired."""

    def __init__(self, index: int):
        self.id = index
        self.llm: LLM | None = None
        self.model_name: str | None = None
        self.snapshot_path: str | None = None
        self.lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"EngineSlot(id={self.id}, model_name={self.model_name!r}, busy={self.lock.locked()})"


class EnginePool:
    """Slots for registered models, which the engine swaps in and out. For one event loop at a time."""

    def __init__(self) -> None:
        self.slots: list[EngineSlot] = []
        self.snapshots: dict[str, str] = {}
        self.base_model: str | None = None
        self.tp_size = 1
        self._llm: LLM | None = None
        self._waiting: set[asyncio.Event] = set()

    def init_pool(
        self, model: str, pool_size: int = 1, tensor_parallel_size: int = 1, **llm_kwargs: Any
    ) -> None:
        """Starts the engine with `model`, and `pool_size` slots. `llm_kwargs` are LLM's."""
        if self._llm is not None:
            raise RuntimeError("the pool is running; close() it first")
        if pool_size < 1:
            raise ValueError(f"pool_size is {pool_size}; it must be at least 1")
        settings = {"pool_size": pool_size, "snapshot_dir": ["/"], **llm_kwargs}
        self._llm = LLM(model, tensor_parallel_size=tensor_parallel_size, **settings)
        self.base_model, self.tp_size = model, tensor_parallel_size
        self.snapshots = dict(self.engine.status()["registered_models"])
        self.slots = [EngineSlot(index) for index in range(pool_size)]

    @property
    def engine(self) -> LLM:
        """The engine of all slots. RuntimeError before init_pool()."""
        if self._llm is None:
            raise RuntimeError("the pool has no engine; call init_pool() first")
        return self._llm

    def register(self, name: str, path: PathLike) -> None:
        """Makes a model known: a .thaw file (s3:// too), a GGUF file or a directory. FileNotFoundError."""
        local = pathlib.Path(resolve_snapshot_path(path))
        if not local.exists():
            raise FileNotFoundError(f"{path}: no such file")
        if name in self.snapshots:
            self.unregister(name)  # a new file under an old name is a new model
        self.engine._call("POST", "/admin/snapshots", {"name": name, "path": str(local.resolve())})
        self.snapshots[name] = os.fspath(path) if is_remote(path) else str(local)

    def unregister(self, name: str) -> None:
        """Forgets a model; one that is not known is no error."""
        if name not in self.snapshots:
            return
        self.engine._call("DELETE", f"/admin/snapshots/{urllib.parse.quote(name, safe='')}")
        for slot in self.slots:
            if slot.model_name == name:
                slot.model_name = None  # what has this name next is another model
        self.snapshots.pop(name, None)

    async def acquire(self, name: str) -> EngineSlot:
        """A slot for this model, which is the caller's until release(): one that has it, else any idle one.

        Waits while none is idle. ValueError for a name that is not registered, RuntimeError where the pool
        is closed, both also where that happens meanwhile.
        """
        while True:
            _ = self.engine  # RuntimeError where there is none any more
            self._known(name)
            slot = self._idle(name)
            if slot is not None:
                await slot.lock.acquire()
                try:
                    self._place(slot, name)
                except BaseException:
                    self.release(slot)
                    raise
                return slot
            freed = asyncio.Event()
            self._waiting.add(freed)
            try:
                await freed.wait()
            finally:
                self._waiting.discard(freed)

    def release(self, slot: EngineSlot) -> None:
        """Gives a slot back. RuntimeError for one that nobody has."""
        if not slot.lock.locked():
            raise RuntimeError(f"slot {slot.id} was not acquired")
        slot.lock.release()
        self._wake()

    def preload(self, name: str, slot_id: int | None = None) -> dict[str, Any]:
        """Loads a model into an idle slot and waits: {model, slot_id, throughput_gb_s, elapsed_s}.

        ValueError for a name or slot that is not there; RuntimeError where no slot is idle.
        """
        self._known(name)
        if slot_id is not None and not 0 <= slot_id < len(self.slots):
            raise ValueError(f"slot_id is {slot_id}; there are slots 0 to {len(self.slots) - 1}")
        wanted = self._idle(name) if slot_id is None else self.slots[slot_id]
        if wanted is None or wanted.lock.locked():
            raise RuntimeError(f"no idle slot for {name}")
        told = self.engine._call("POST", "/admin/preload", {"model": name})
        self._place(wanted, name)
        return {"model": name, "slot_id": wanted.id, **{k: told[k] for k in ("throughput_gb_s", "elapsed_s")}}

    def status(self) -> dict[str, Any]:
        """{base_model, tensor_parallel_size, pool_size, registered_models, slots: [{id, model, busy}]}"""
        slots = [{"id": s.id, "model": s.model_name, "busy": s.lock.locked()} for s in self.slots]
        return {
            "base_model": self.base_model,
            "tensor_parallel_size": self.tp_size,
            "pool_size": len(self.slots),
            "registered_models": dict(self.snapshots),
            "slots": slots,
        }

    def close(self) -> None:
        """Ends the engine; who waits for a slot gets a RuntimeError. May be called twice."""
        llm, self._llm, self.slots = self._llm, None, []
        self._wake()
        if llm is not None:
            llm.close()

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wake(self) -> None:
        for freed in list(self._waiting):
            freed.set()

    def _known(self, name: str) -> None:
        if name not in self.snapshots:
            known = ", ".join(sorted(self.snapshots)) or "none"
            raise ValueError(f"{name!r} is not registered; {known} are")

    def _idle(self, name: str) -> EngineSlot | None:
        idle: Sequence[EngineSlot] = [slot for slot in self.slots if not slot.lock.locked()]
        same = [slot for slot in idle if slot.model_name == name]
        empty = [slot for slot in idle if slot.model_name is None]
        return next(iter([*same, *empty, *idle]), None)

    def _place(self, slot: EngineSlot, name: str) -> None:
        if slot.model_name != name:
            slot.llm = self.engine.of_model(name)
            slot.model_name, slot.snapshot_path = name, self.snapshots[name]
