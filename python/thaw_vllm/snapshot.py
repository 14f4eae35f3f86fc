"""Weights of a torch module's parameters (all names of thaw_common.snapshot are here), and of engines."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from thaw_common import snapshot as modules
from thaw_common.cloud import resolve_snapshot_path
from thaw_common.snapshot import *  # noqa: F403
from thaw_common.snapshot import freeze_model_pipelined, restore_model_pipelined
from thaw_common.util import rank_snapshot_path

from thaw_vllm.errors import ForkError

__all__ = ["freeze_model_tp", "load", "restore_model_tp"]
__all__ += modules.__all__

# vLLM takes functions for its workers, as freeze_model_tp() and restore_model_tp() give it, only where this
# is 1 when its processes start: so for those who import these, and not for all who have us as a plugin.
_FUNCTIONS_FOR_WORKERS = "VLLM_ALLOW_INSECURE_SERIALIZATION"
os.environ.setdefault(_FUNCTIONS_FOR_WORKERS, "1")

PathLike = str | os.PathLike[str]
Stats = dict[str, Any]


def load(model: str, snapshot: PathLike, kv_snapshot: PathLike | None = None, **kwargs: Any) -> Any:
    """An LLM whose weights come from a .thaw file (s3:// too), and whose cache starts with a .thawkv file.

    `model` is its name, and where it is on this machine it must be what was frozen. `kwargs` are
    LLM's. FileNotFoundError, ValueError where a file does not fit.
    """
    from thaw_vllm.kv_snapshot import restore_kv_cache
    from thaw_vllm.llm import LLM

    llm = LLM(model, snapshot=resolve_snapshot_path(snapshot), **kwargs)
    try:
        if kv_snapshot is not None:
            restore_kv_cache(llm, kv_snapshot)
    except BaseException:
        llm.close()
        raise
    return llm


def _ranks(llm: Any) -> int:
    from thaw_vllm._engine_checks import tensor_parallel_size

    return tensor_parallel_size(llm)


def _gather(per_rank: list[Stats]) -> Stats:
    """Totals of all ranks, which worked at the same time. Backends that differ are "mixed"."""
    backends = {str(stats.get("backend", "unknown")) for stats in per_rank}
    total = sum(int(stats["total_bytes"]) for stats in per_rank)
    elapsed = max(float(stats["elapsed_s"]) for stats in per_rank)
    return {
        "num_regions": sum(int(stats["num_regions"]) for stats in per_rank),
        "total_bytes": total,
        "elapsed_s": elapsed,
        "throughput_gb_s": total / elapsed / 1e9 if elapsed > 0 else 0.0,
        "backend": backends.pop() if len(backends) == 1 else "mixed",
        "tensor_parallel_size": len(per_rank),
        "per_rank": per_rank,
    }


def _worker_model(worker: Any) -> tuple[Any, int]:
    """(module, rank) of a vLLM worker."""
    return worker.model_runner.model, int(getattr(worker, "rank", 0))


def _freeze_in_worker(worker: Any, base_path: str, commit: str | None) -> Stats:
    model, rank = _worker_model(worker)
    return freeze_model_pipelined(model, str(rank_snapshot_path(base_path, rank)), commit)


def _restore_in_worker(worker: Any, base_path: str, chunk_size_mb: int) -> Stats:
    model, rank = _worker_model(worker)
    return restore_model_pipelined(model, str(rank_snapshot_path(base_path, rank)), chunk_size_mb)


def _by_rpc(llm: Any, function: Any, args: tuple[Any, ...]) -> Stats:
    rpc = getattr(llm, "collective_rpc", None)
    if not callable(rpc):
        raise ForkError(f"{type(llm).__name__} offers neither save_weights nor collective_rpc")
    try:
        answers: Iterable[Stats] = rpc(function, args=args)
    except TypeError as error:
        raise ForkError(
            f"vLLM takes no functions for its workers ({error}): {_FUNCTIONS_FOR_WORKERS}=1 must be set "
            "before it starts, as importing freeze_model_tp or restore_model_tp does"
        ) from error
    return _gather(list(answers))


def freeze_model_tp(llm: Any, base_path: PathLike, vllm_commit: str | None = None) -> Stats:
    """Writes an engine's weights, one file for each rank: weights.thaw, weights.rank1.thaw, ...

    Of thaw's LLM the whole model as one file that any number of ranks starts from. The statistics of
    freeze_model(), and tensor_parallel_size, per_rank.
    """
    save = getattr(llm, "save_weights", None)
    if callable(save):
        stats: Stats = save(base_path)
        return {**stats, "tensor_parallel_size": _ranks(llm), "per_rank": [dict(stats)]}
    return _by_rpc(llm, _freeze_in_worker, (os.fspath(base_path), vllm_commit))


def restore_model_tp(llm: Any, base_path: PathLike, chunk_size_mb: int = 64) -> Stats:
    """Gives an engine the weights of such files; checksums are compared.

    thaw's LLM starts anew from the file; what it had cached is gone.
    """
    wake = getattr(llm, "wake_up", None)
    if callable(getattr(llm, "save_weights", None)) and callable(wake):
        from thaw_vllm.sleep_mode import restart_from

        return {**restart_from(llm, base_path), "tensor_parallel_size": _ranks(llm)}
    return _by_rpc(llm, _restore_in_worker, (os.fspath(base_path), chunk_size_mb))
