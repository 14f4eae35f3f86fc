"""Rounds of a ForkPool on processes that speak JSON lines."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from thaw_vllm._line_worker import LineWorker
from thaw_vllm._sampling import sampling_fields
from thaw_vllm.errors import ForkError, ForkPoolError, WorkerDead, WorkerProtocolError
from thaw_vllm.fork import ForkCompletionResult, ForkHandle, branch_result

_OUTSIDE_LLM_KWARGS = ("gpu_memory_utilization", "max_model_len", "enforce_eager", "dtype")


def _boot_fields(model: str, llm_kwargs: Mapping[str, Any], preload_weights: bool) -> dict[str, Any]:
    defaults = {
        "gpu_memory_utilization": float(os.environ.get("THAW_WORKER_GPU_MEMORY", "0.35")),
        "max_model_len": int(os.environ.get("THAW_WORKER_MAX_MODEL_LEN", "24576")),
        "enforce_eager": True,
        "dtype": "float16",
    }
    apart = {key: llm_kwargs.get(key, defaults[key]) for key in _OUTSIDE_LLM_KWARGS}
    rest = {key: value for key, value in llm_kwargs.items() if key not in _OUTSIDE_LLM_KWARGS}
    return {"model": model, "llm_kwargs": rest, "preload_weights": preload_weights, **apart}


def _kill_all(workers: list[LineWorker]) -> None:
    for worker in workers:
        worker.kill()


class LineChannel:
    """Workers of one command. run() by one thread at a time."""

    def __init__(
        self,
        command: Sequence[str],
        model: str,
        workers: int,
        llm_kwargs: Mapping[str, Any],
        preload_weights: bool,
        boot_timeout_s: float,
        reply_timeout_s: float,
        env: Mapping[str, str] | None,
    ):
        self._command = list(command)
        self._fields = _boot_fields(model, llm_kwargs, preload_weights)
        self._preload_weights = preload_weights
        self._boot_timeout_s = boot_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._env = dict(env or {})
        self._workers: list[LineWorker] = []
        self._closed = False
        # A pool that is dropped without close(), or lives at the interpreter's end, leaves nothing behind.
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)
        try:
            for index in range(workers):
                self._workers.append(LineWorker(index, self._command, self._env))
            with ThreadPoolExecutor(workers) as threads:
                booted = [
                    threads.submit(worker.boot, self._fields, boot_timeout_s) for worker in self._workers
                ]
            for future in booted:
                future.result()
        except BaseException:
            self._finalizer()
            raise

    def wants_trunk(self, llm: Any, prompts: list[str]) -> bool:
        """True: these workers share nothing with each other."""
        return True

    def slots(self) -> list[LineWorker]:
        """One for each worker; whose process has ended is dead."""
        for worker in self._workers:
            if not worker.is_running:
                worker.dead = True
        return list(self._workers)

    def close(self, timeout_s: float) -> None:
        """Asks all to end at once, and ends those that do not."""
        self._closed = True
        if self._workers:
            with ThreadPoolExecutor(len(self._workers)) as threads:
                list(threads.map(lambda worker: worker.shut_down(timeout_s), self._workers))
        self._finalizer()

    def run(
        self, handle: ForkHandle | None, prompts: list[str], params: Any, extra: Mapping[str, Any]
    ) -> list[ForkCompletionResult]:
        """A round: each worker hydrates, generates for its prompts (dealt in turn) and resets."""
        used = min(len(self._workers), len(prompts))
        results: list[ForkCompletionResult | None] = [None] * len(prompts)

        def serve(place: int) -> None:
            mine = list(range(place, len(prompts), used))
            for index, result in zip(
                mine, self._serve(place, handle, [prompts[i] for i in mine], params, extra)
            ):
                results[index] = result

        with ThreadPoolExecutor(used) as threads:
            for future in [threads.submit(serve, place) for place in range(used)]:
                future.result()
        return [result for result in results if result is not None]

    def _serve(
        self, place: int, handle: ForkHandle | None, prompts: list[str], params: Any, extra: Mapping[str, Any]
    ) -> list[ForkCompletionResult]:
        """The prompts of one worker: together, and where that fails one by one: each hurts itself only."""
        try:
            return self._attempt(place, handle, prompts, params, extra)
        except ForkPoolError as error:
            # Its own words about a single prompt are the answer; a death may have been the prompt before.
            if len(prompts) == 1 and not isinstance(error, WorkerDead):
                return [_failed(prompts[0], place, error)]
        results = []
        for prompt in prompts:
            try:
                results += self._attempt(place, handle, [prompt], params, extra)
            except ForkPoolError as error:
                results.append(_failed(prompt, place, error))
        return results

    def _attempt(
        self, place: int, handle: ForkHandle | None, prompts: list[str], params: Any, extra: Mapping[str, Any]
    ) -> list[ForkCompletionResult]:
        worker = self._living(place)
        started = time.monotonic()
        sampling = sampling_fields(params)
        try:
            if handle is not None:
                weights = None if self._preload_weights else handle.weights_path
                hydrate = {"weights_path": weights, "kv_path": handle.kv_path, **extra}
                worker.request("hydrate", hydrate, self._reply_timeout_s)
            generate = {"prompts": prompts, "sampling_params": sampling}
            reply = worker.request("generate", generate, self._reply_timeout_s)
        finally:
            if not worker.dead:
                self._reset(worker)
        outputs = reply.get("outputs")
        if not isinstance(outputs, list) or len(outputs) != len(prompts):
            count = len(outputs) if isinstance(outputs, list) else "no"
            raise WorkerProtocolError(f"worker {place} gave {count} outputs for {len(prompts)} prompts")
        elapsed = time.monotonic() - started
        return [
            branch_result(prompt, _choices(place, output), place, elapsed, "subprocess", output, sampling)
            for prompt, output in zip(prompts, outputs)
        ]

    def _reset(self, worker: LineWorker) -> None:
        """One that cannot forget a branch must not serve the next one."""
        try:
            worker.request("reset", {}, self._reply_timeout_s)
        except ForkPoolError:
            worker.kill()

    def _living(self, place: int) -> LineWorker:
        """The worker, or a new one in its place where it is dead."""
        worker = self._workers[place]
        if worker.is_running:
            return worker
        worker.kill()
        if self._closed:
            raise WorkerDead(f"worker {place}: the pool was closed")
        fresh = LineWorker(place, self._command, self._env)
        self._workers[place] = fresh  # so that close() sees it whatever happens next
        if self._closed:
            fresh.kill()
        fresh.boot(self._fields, self._boot_timeout_s)
        return fresh


def _choices(place: int, output: Any) -> list[tuple[str, list[int], str | None]]:
    """All choices of an output: those under "choices" where `n` is above 1, else itself."""
    if not isinstance(output, dict):
        raise WorkerProtocolError(f"worker {place} gave an output that is no object: {str(output)[:200]}")
    listed = output.get("choices")
    found = []
    for choice in listed if isinstance(listed, list) and listed else [output]:
        text = choice.get("text") if isinstance(choice, dict) else None
        token_ids = choice.get("token_ids") if isinstance(choice, dict) else None
        if not isinstance(text, str) or not isinstance(token_ids, list):
            raise WorkerProtocolError(
                f"worker {place} gave an output without text or token_ids: {str(choice)[:200]}"
            )
        reason = choice.get("finish_reason")
        found.append((text, [int(token) for token in token_ids], reason if isinstance(reason, str) else None))
    return found


def _failed(prompt: str, place: int, error: ForkError) -> ForkCompletionResult:
    return ForkCompletionResult(prompt, "", [], place, 0.0, "subprocess", error=error)
