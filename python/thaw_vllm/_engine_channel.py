"""Rounds of a ForkPool on an engine of its own with several workers, placed by thaw's coalescer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from thaw_vllm.errors import ForkError, ForkPoolError, WorkerBootTimeout
from thaw_vllm.fork import ForkCompletionResult, ForkHandle, branch_result
from thaw_vllm.llm import LLM

#: A shorter trunk is computed again sooner than it is written and read.
MIN_TRUNK_TOKENS = 512
_MAX_BOOT_TIMEOUT_S = 3600.0


@dataclasses.dataclass
class EngineSlot:
    """A worker process; `boot_s` is that of the whole pool, which boots at once."""

    id: int
    pid: int
    boot_s: float
    busy: bool
    dead: bool


class EngineChannel:
    """One engine; run() by one thread at a time."""

    def __init__(
        self,
        model: str,
        workers: int,
        llm_kwargs: Mapping[str, Any],
        boot_timeout_s: float,
        reply_timeout_s: float,
    ):
        started = time.monotonic()
        settings = {
            "workers": workers,
            "boot_timeout": min(boot_timeout_s, _MAX_BOOT_TIMEOUT_S),
            **llm_kwargs,
        }
        try:
            self._llm = LLM(model, timeout_s=reply_timeout_s, **settings)
        except TimeoutError as error:
            raise WorkerBootTimeout(
                f"the workers were not ready within {boot_timeout_s:g} s: {error}"
            ) from error
        self._boot_s = time.monotonic() - started
        self._hydrated: str | None = None

    def wants_trunk(self, llm: Any, prompts: list[str]) -> bool:
        """True where the engine holds a long beginning of these prompts, and can give it away."""
        last = getattr(llm, "last_token_ids", None)
        if not callable(last) or not callable(getattr(llm, "save_kv", None)):
            return False
        held = last()
        if len(held) < MIN_TRUNK_TOKENS:
            return False
        ours = self._llm.get_tokenizer().encode(prompts[0])
        common = next((i for i, (a, b) in enumerate(zip(held, ours)) if a != b), min(len(held), len(ours)))
        return common >= MIN_TRUNK_TOKENS

    def slots(self) -> list[EngineSlot]:
        """The workers as the engine tells of them."""
        found = []
        for worker in self._llm.status()["workers"]:
            stats = worker.get("stats") or {}
            busy = int(stats.get("running", 0)) + int(stats.get("waiting", 0)) > 0
            pid = int(worker.get("pid") or 0)
            found.append(EngineSlot(int(worker["worker"]), pid, self._boot_s, busy, not worker.get("ready")))
        return found

    def run(
        self, handle: ForkHandle | None, prompts: list[str], params: Any, extra: Mapping[str, Any]
    ) -> list[ForkCompletionResult]:
        """All branches at once."""
        started = time.monotonic()
        if handle is not None and (not handle.handle_id or handle.handle_id != self._hydrated):
            self._llm.drop_kv()
            handle.hydrate(self._llm)
            self._hydrated = handle.handle_id or None
        outcomes = self._llm.generate_each(prompts, params)
        elapsed = time.monotonic() - started
        workers = int(self._llm.settings.get("workers", 1))
        index = 0 if workers == 1 else -1
        results = []
        for prompt, outcome in zip(prompts, outcomes):
            if isinstance(outcome, Exception):
                error = outcome if isinstance(outcome, ForkError) else ForkPoolError(str(outcome))
                error.__cause__ = outcome if error is not outcome else None
                results.append(
                    ForkCompletionResult(prompt, "", [], index, elapsed, "subprocess", error=error)
                )
                continue
            choices = [(one.text, one.token_ids, one.finish_reason) for one in outcome.outputs]
            results.append(branch_result(prompt, choices, index, elapsed, "subprocess", outcome, params))
        return results

    def close(self, timeout_s: float) -> None:
        """Ends the engine and its workers."""
        self._llm.close()
