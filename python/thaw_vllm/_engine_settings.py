"""vLLM's engine arguments -> flags of `thaw serve`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of vLLM, without a counterpart here: memory is sized by bytes, prefixes are always cached, ...
_MEANINGLESS = frozenset(
    {
        "block_size",
        "disable_custom_all_reduce",
        "disable_log_requests",
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enable_sleep_mode",
        "enforce_eager",
        "gpu_memory_utilization",
        "load_format",
        "max_num_batched_tokens",
        "swap_space",
        "tokenizer",
        "tokenizer_mode",
        "trust_remote_code",
        "worker_gpu_memory_utilization",
    }
)
_RENAMED = {
    "kv_cache_dtype": "kv_dtype",
    "tensor_parallel_size": "tensor_parallel",
    "pool_workers": "workers",
}
_DTYPES = {
    "auto": None,
    "half": "f16",
    "float16": "f16",
    "bfloat16": "bf16",
    "float": "f32",
    "float32": "f32",
}


def engine_settings(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings for Engine, and the arguments that mean nothing here.

    ``arguments`` may have vLLM's names and those of thaw's flags (with underscores). Whether a name is a flag
    at all the engine says when it starts.
    """
    settings: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _MEANINGLESS:
            ignored.append(name)
            continue
        flag = _RENAMED.get(name, name)
        if flag in ("dtype", "kv_dtype"):
            value = _DTYPES.get(str(value), value)
        if flag == "tensor_parallel" and int(value) == 1:
            continue
        if value is not None:
            settings[flag] = value
    return settings, sorted(ignored)
