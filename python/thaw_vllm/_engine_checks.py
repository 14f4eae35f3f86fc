"""What forks need of an engine: asked of `llm` by the names that vLLM's objects have, and, for its KV,
by those of thaw_vllm.LLM (`save_kv`, `load_kv`, `save_weights`)."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from thaw_vllm._handle_files import HandleFiles
from thaw_vllm.errors import (
    BlockPoolTooSmallError,
    BlockShapeMismatchError,
    ForkError,
    ModelMismatchError,
    PrefixCachingDisabledError,
    UnfinishedRequestsError,
)


def _look(llm: Any, *names: str) -> Any:
    found = llm
    for name in names:
        found = getattr(found, name, None)
        if found is None:
            return None
    return found


def model_id(llm: Any) -> str:
    """The model's name as the engine was given it."""
    name = _look(llm, "llm_engine", "vllm_config", "model_config", "model")
    if not isinstance(name, str) or not name:
        raise ForkError(
            f"{type(llm).__name__} does not say its model (llm_engine.vllm_config.model_config.model)"
        )
    return name


def tensor_parallel_size(llm: Any) -> int:
    """Ranks of the engine; 1 where it does not say."""
    return int(_look(llm, "llm_engine", "vllm_config", "parallel_config", "tensor_parallel_size") or 1)


def check_model(llm: Any, wanted: str) -> None:
    """ModelMismatchError unless the engine's model is `wanted`. Paths are compared by their last part."""
    ours = model_id(llm)
    if ours != wanted and os.path.basename(ours) != os.path.basename(wanted):
        raise ModelMismatchError(f"the handle is of {wanted}, the engine runs {ours}")


def check_idle(llm: Any) -> None:
    """UnfinishedRequestsError while the engine generates."""
    busy = _look(llm, "llm_engine", "has_unfinished_requests")
    if callable(busy) and busy():
        raise UnfinishedRequestsError(
            "the engine has unfinished requests; wait until generate() has returned"
        )


def check_prefix_caching(llm: Any) -> None:
    """PrefixCachingDisabledError where the engine says that it keeps no prefixes."""
    enabled = _look(llm, "llm_engine", "vllm_config", "cache_config", "enable_prefix_caching")
    if enabled is False:
        raise PrefixCachingDisabledError(
            "the engine has enable_prefix_caching=False: it keeps no KV to share"
        )


def check_capacity(llm: Any, num_blocks: int) -> None:
    """BlockPoolTooSmallError where the engine says that it has fewer blocks."""
    total = _look(llm, "llm_engine", "vllm_config", "cache_config", "num_gpu_blocks")
    if isinstance(total, int) and num_blocks > total:
        raise BlockPoolTooSmallError(f"the handle holds {num_blocks} blocks, the engine has {total}")


def check_layout(llm: Any, handle: HandleFiles) -> None:
    """BlockShapeMismatchError unless the blocks are of this engine's kind and shape."""
    kv = handle.kv
    if kv is None:
        raise ForkError(f"{handle.path} is a description only: its KV did not travel along")
    if kv.num_blocks == 0:
        return
    if _has_kv(llm) and not kv.is_ours:
        raise BlockShapeMismatchError(
            f"{handle.path} holds KV of another engine (layout {kv.layout or 'slabs'}), whose numbers are "
            "not those that computing the prompt gives; generate() with its prefix_token_ids computes them"
        )
    shape = getattr(llm, "kv_block_shape", None)
    ours = shape() if callable(shape) else None
    if ours is not None and ours != (kv.num_layers, list(kv.block_shape)):
        raise BlockShapeMismatchError(
            f"the handle has {kv.num_layers} layers of blocks {list(kv.block_shape)}, "
            f"the engine {ours[0]} of {ours[1]}"
        )


def _has_kv(llm: Any) -> bool:
    return callable(getattr(llm, "save_kv", None)) and callable(getattr(llm, "load_kv", None))


def _require_kv(llm: Any) -> None:
    if not _has_kv(llm):
        raise ForkError(
            f"{type(llm).__module__}.{type(llm).__name__} offers no KV to save and load; thaw_vllm.LLM does"
        )


def trunk_tokens(llm: Any, prompt: str | None, token_ids: Sequence[int] | None) -> list[int]:
    """The tokens to fork at: as given, else those of the engine's last answer. ForkError without any."""
    if token_ids is not None:
        return [int(token) for token in token_ids]
    if prompt is not None:
        return [int(token) for token in llm.get_tokenizer().encode(prompt)]
    last = getattr(llm, "last_token_ids", None)
    _require_kv(llm)
    return list(last() if callable(last) else [])


def decode(llm: Any, token_ids: Sequence[int]) -> str:
    """The text of some tokens."""
    return str(llm.get_tokenizer().decode(list(token_ids))) if token_ids else ""


def save_kv(llm: Any, path: pathlib.Path, token_ids: Sequence[int]) -> dict[str, Any]:
    """{num_blocks, total_bytes, elapsed_s, block_ids} of what was written."""
    _require_kv(llm)
    stats: dict[str, Any] = llm.save_kv(path, token_ids)
    return stats


def load_kv(llm: Any, path: pathlib.Path) -> dict[str, Any]:
    """{num_blocks, total_bytes, elapsed_s} of what was restored."""
    _require_kv(llm)
    stats: dict[str, Any] = llm.load_kv(path)
    return stats


def save_weights(llm: Any, path: pathlib.Path) -> dict[str, Any]:
    """Statistics of the .thaw file written."""
    save = getattr(llm, "save_weights", None)
    if not callable(save):
        raise ForkError(f"{type(llm).__name__} cannot write its weights; thaw_vllm.LLM can")
    stats: dict[str, Any] = save(path)
    return stats


def model_source(llm: Any) -> str:
    """What a process of its own loads the same model from."""
    return str(getattr(llm, "model_source", None) or model_id(llm))


def worker_settings(llm: Any) -> dict[str, Any]:
    """Settings that a worker on the same model needs so that it answers with the same bits."""
    settings = getattr(llm, "worker_settings", None)
    return dict(settings()) if callable(settings) else {}
