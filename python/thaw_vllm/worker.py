"""thaw's engine as a worker of ForkPool(worker_cmd=...): `python -m thaw_vllm.worker`.

JSON lines on stdin and stdout (docs/python_forkpool.md). Whatever else is printed goes to stderr. It ends
with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any, TextIO

from thaw_vllm.errors import ForkError
from thaw_vllm.llm import LLM
from thaw_vllm.outputs import CompletionOutput

#: What parents send where nobody asked for it; of another engine's.
_DEFAULTS = {"dtype": "float16", "max_model_len": 24576}


class Worker:
    """One engine, loaded at boot or for the first handle."""

    def __init__(self) -> None:
        self._llm: LLM | None = None
        self._boot: dict[str, Any] = {}
        self._is_from_handle = False

    def boot(self, request: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        self._boot = request
        if request.get("preload_weights", True):
            self._load(str(request["model"]))
        return {"status": "ready", "boot_s": time.monotonic() - started, "pid": os.getpid()}

    def hydrate(self, request: dict[str, Any]) -> dict[str, Any]:
        from thaw_vllm.kv_snapshot import restore_kv_cache

        started = time.monotonic()
        if self._llm is None:
            self._load_for(request.get("weights_path"))
        loaded = time.monotonic()
        kv: dict[str, Any] | None = None
        try:
            if request.get("kv_path"):
                kv = restore_kv_cache(self._engine(), request["kv_path"])
        except ForkError as error:
            if not self._is_from_handle:
                raise
            # The same model in another file: the same answers, but KV is bound to the file's digest.
            kv = {"num_blocks": 0, "total_bytes": 0, "elapsed_s": 0.0, "refused": str(error)}
        times = {"weights_s": loaded - started, "kv_s": time.monotonic() - loaded}
        return {"status": "ok", **times, "weights": None, "kv": kv, "reset_degraded_count": 0}

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        outputs = []
        for found in self._engine().generate(request["prompts"], request.get("sampling_params") or {}):
            choices = [_output(one) for one in found.outputs]
            outputs.append({**choices[0], "choices": choices} if len(choices) > 1 else choices[0])
        return {"status": "ok", "gen_s": time.monotonic() - started, "outputs": outputs}

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._llm is not None:
            self._llm.reset_prefix_cache()
        return {"status": "ok"}

    def shutdown(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._llm is not None:
            self._llm.close()
        return {"status": "ok"}

    def _load_for(self, weights: Any) -> None:
        """The model where it is on this machine, else the handle's weights."""
        try:
            self._load(str(self._boot["model"]))
        except (ValueError, OSError, RuntimeError):
            if not weights:
                raise
            self._load(str(weights))
            self._is_from_handle = True

    def _engine(self) -> LLM:
        if self._llm is None:
            self._load(str(self._boot["model"]))
        assert self._llm is not None
        return self._llm

    def _load(self, model: str) -> None:
        settings = dict(self._boot.get("llm_kwargs") or {})
        for name, default in _DEFAULTS.items():
            if self._boot.get(name) not in (None, default):
                settings[name] = self._boot[name]
        self._llm = LLM(model, **settings)


def _output(one: CompletionOutput) -> dict[str, Any]:
    return {"text": one.text, "token_ids": one.token_ids, "finish_reason": one.finish_reason}


def _answer(worker: Worker, line: str) -> tuple[str, dict[str, Any]]:
    op = ""
    try:
        request = json.loads(line)
        op = str(request.get("op"))
        if op not in ("boot", "hydrate", "generate", "reset", "shutdown"):
            raise ValueError(f"op is {op!r}; boot, hydrate, generate, reset and shutdown are known")
        answer: dict[str, Any] = getattr(worker, op)(request)
    except Exception as error:
        name, trace = type(error).__name__, traceback.format_exc()
        return op, {"status": "error", "type": name, "message": str(error), "traceback": trace}
    return op, answer


def serve(requests: TextIO, answers: TextIO) -> int:
    """Answers line by line until shutdown or the end of `requests`; the exit status."""
    worker = Worker()
    for line in requests:
        op, answer = _answer(worker, line)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if op == "boot" and answer["status"] == "error":
            return 3
        if op == "shutdown":
            return 0
    return 0


def main() -> None:
    """Keeps the real stdout for answers: what libraries print would be taken for one."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.exit(serve(sys.stdin, answers))


if __name__ == "__main__":
    main()
