"""The KV cache of an engine, to and from `.thawkv` files (kvsnap/FORMAT.md)."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from thaw_common.cloud import resolve_snapshot_path

from thaw_vllm import _engine_checks as checks
from thaw_vllm._handle_files import kv_metadata, open_kv
from thaw_vllm.errors import BlockShapeMismatchError, ForkError

PathLike = str | os.PathLike[str]
Stats = dict[str, Any]


def freeze_kv_cache(llm: Any, path: PathLike) -> Stats:
    """Writes the KV of the engine's last prompt and reply, in whole blocks, and a .meta file beside it.

    {num_blocks, total_bytes, elapsed_s (seconds), block_ids}. The errors of fork().
    """
    checks.check_idle(llm)
    checks.check_prefix_caching(llm)
    return checks.save_kv(llm, pathlib.Path(path), checks.trunk_tokens(llm, None, None))


def restore_kv_cache(llm: Any, path: PathLike) -> Stats:
    """Gives the engine the KV of a file that freeze_kv_cache(), fork() or `thaw freeze` wrote.

    {num_blocks, total_bytes, elapsed_s}. FileNotFoundError; BlockShapeMismatchError for another
    engine's KV; ForkError for KV of other weights or kernels, and for what is damaged.
    """
    local = pathlib.Path(resolve_snapshot_path(path))
    if not local.exists():
        raise FileNotFoundError(f"{path}: no such file")
    checks.check_prefix_caching(llm)
    try:
        metadata = kv_metadata(local)
    except ValueError as error:
        raise ForkError(f"{path}: {error}") from None
    if metadata is None:
        described = open_kv(local.parent, local.name)[0]
        if described is not None and described.num_blocks == 0:
            return {"num_blocks": 0, "total_bytes": 0, "elapsed_s": 0.0}
        raise BlockShapeMismatchError(f"{path} holds KV of another engine, whose numbers are not this one's")
    return checks.load_kv(llm, local)


def _tp(llm: Any, stats: Stats) -> Stats:
    ranks = checks.tensor_parallel_size(llm)
    return {**stats, "tensor_parallel_size": ranks, "per_rank": [dict(stats)]}


def freeze_kv_cache_tp(llm: Any, path: PathLike) -> Stats:
    """freeze_kv_cache(), and tensor_parallel_size, per_rank: one file holds the KV of all ranks."""
    return _tp(llm, freeze_kv_cache(llm, path))


def restore_kv_cache_tp(llm: Any, path: PathLike) -> Stats:
    """restore_kv_cache(), and tensor_parallel_size, per_rank."""
    return _tp(llm, restore_kv_cache(llm, path))


def _get_engine_core(llm: Any) -> Any:
    """What lies behind an engine: its `llm_engine.engine_core`, else its `llm_engine`."""
    engine = getattr(llm, "llm_engine", None)
    return getattr(engine, "engine_core", engine)
