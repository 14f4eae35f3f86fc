"""An engine put to sleep, its weights in a file, and woken from it.

Bytes are those of the engine's processes: of its GPUs where it runs on some, else of host memory.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

from thaw_common.cloud import resolve_snapshot_path
from thaw_common.format import KIND_WEIGHTS, read_container

from thaw_vllm.errors import ForkError

PathLike = str | os.PathLike[str]
Stats = dict[str, Any]


class SleepModeUnavailableError(RuntimeError):
    """The engine has no sleep() and wake_up(), or cannot sleep now."""


def _memory_bytes(llm: Any) -> int:
    """What the engine's processes hold; 0 while it sleeps."""
    if getattr(llm, "is_sleeping", lambda: False)():
        return 0
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        workers = llm.status()["workers"]
    except Exception:
        return 0
    for worker in workers:
        try:
            statm = pathlib.Path(f"/proc/{int(worker['pid'])}/statm").read_text().split()
        except (OSError, KeyError, ValueError, TypeError):
            continue
        total += int(statm[1]) * page
    return total


def _require(llm: Any) -> None:
    for name in ("sleep", "wake_up"):
        if not callable(getattr(llm, name, None)):
            raise SleepModeUnavailableError(f"{type(llm).__name__} has no {name}()")


def sleep(llm: Any, path: PathLike, *, level: int = 2, strict: bool = True) -> Stats:
    """Writes the weights to `path`, a .thaw file, then gives the engine's memory back.

    The statistics of freeze_model_tp(), and sleep_path, sleep_level, gpu_bytes_before_sleep,
    gpu_bytes_after_sleep, gpu_bytes_freed, freed_gpu_memory (bool). Where the engine refuses to sleep:
    SleepModeUnavailableError, or with `strict=False` the reason as sleep_error.
    """
    from thaw_vllm.snapshot import freeze_model_tp

    _require(llm)
    stats = freeze_model_tp(llm, path)
    before = _memory_bytes(llm)
    refusal = None
    try:
        llm.sleep(level=level)
    except Exception as error:
        if strict:
            raise SleepModeUnavailableError(f"the engine cannot sleep: {error}") from error
        refusal = f"{type(error).__name__}: {error}"
    after = _memory_bytes(llm)
    told: Stats = {
        **stats,
        "sleep_path": os.fspath(path),
        "sleep_level": level,
        "gpu_bytes_before_sleep": before,
        "gpu_bytes_after_sleep": after,
        "gpu_bytes_freed": max(0, before - after),
        "freed_gpu_memory": after < before,
    }
    return told if refusal is None else {**told, "sleep_error": refusal}


def wake_up(llm: Any, path: PathLike, *, chunk_size_mb: int = 64) -> Stats:
    """Starts the engine from the file that sleep() wrote, whose checksums are compared.

    Statistics of the weights, and wake_path, gpu_bytes_before_wake, gpu_bytes_after_wake,
    gpu_bytes_populated, vllm_wake_up_called (bool). FileNotFoundError.
    """
    _require(llm)
    before = _memory_bytes(llm)
    if callable(getattr(llm, "save_weights", None)):
        stats = restart_from(llm, path)
    else:
        from thaw_vllm.snapshot import restore_model_tp

        llm.wake_up()
        stats = restore_model_tp(llm, path, chunk_size_mb)
    after = _memory_bytes(llm)
    return {
        **stats,
        "wake_path": os.fspath(path),
        "gpu_bytes_before_wake": before,
        "gpu_bytes_after_wake": after,
        "gpu_bytes_populated": max(0, after - before),
        "vllm_wake_up_called": True,
    }


def restart_from(llm: Any, path: PathLike) -> Stats:
    """Starts thaw's LLM from a .thaw file; the statistics of its weights."""
    started = time.monotonic()
    local = resolve_snapshot_path(path)
    with open(local, "rb") as f:
        regions = [region for region in read_container(f).regions if region.kind == KIND_WEIGHTS]
    if not llm.is_sleeping():
        llm.sleep()
    try:
        llm.wake_up(snapshot=local)
    except (ValueError, OSError):
        raise
    except RuntimeError as error:
        raise ForkError(f"the engine does not start from {path}: {error}") from error
    elapsed = max(time.monotonic() - started, 1e-9)
    total = sum(region.size for region in regions)
    stats = {
        "num_regions": len(regions),
        "total_bytes": total,
        "elapsed_s": elapsed,
        "throughput_gb_s": total / elapsed / 1e9,
        "backend": "thaw",
    }
    return {**stats, "per_rank": [dict(stats)]}
