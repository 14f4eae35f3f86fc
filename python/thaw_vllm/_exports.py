"""The public names of forks, pools and snapshots, for type checkers; at run time __init__ imports lazily."""

from __future__ import annotations

from thaw_vllm import agentfs, recorder, rewind, sleep_mode
from thaw_vllm.errors import (
    BlockPoolTooSmallError,
    BlockShapeMismatchError,
    ForkBranchError,
    ForkError,
    ForkPoolError,
    HandleClosedError,
    ModelMismatchError,
    PrefixCachingDisabledError,
    UnfinishedRequestsError,
    WorkerBootTimeout,
    WorkerDead,
    WorkerProtocolError,
)
from thaw_vllm.fork import ForkCompletionResult, ForkHandle, checkout, checkpoint, fork, fork_completions
from thaw_vllm.fork_pool import ForkPool
from thaw_vllm.kv_snapshot import freeze_kv_cache, freeze_kv_cache_tp, restore_kv_cache, restore_kv_cache_tp
from thaw_vllm.llm import LLM
from thaw_vllm.loader import ThawModelLoader
from thaw_vllm.pool import EnginePool, EngineSlot
from thaw_vllm.rollouts import capture_rollouts
from thaw_vllm.sampling_params import SamplingParams
from thaw_vllm.server import create_pool_app
from thaw_vllm.snapshot import (
    freeze_model,
    freeze_model_pipelined,
    freeze_model_tp,
    load,
    restore_model,
    restore_model_from_ram,
    restore_model_pipelined,
    restore_model_tp,
)

__all__ = [
    "BlockPoolTooSmallError", "BlockShapeMismatchError", "EnginePool", "EngineSlot", "ForkBranchError",
    "ForkCompletionResult", "ForkError", "ForkHandle", "ForkPool", "ForkPoolError", "HandleClosedError",
    "LLM", "ModelMismatchError", "PrefixCachingDisabledError", "SamplingParams", "ThawModelLoader",
    "UnfinishedRequestsError", "WorkerBootTimeout", "WorkerDead", "WorkerProtocolError", "agentfs",
    "capture_rollouts", "checkout", "checkpoint", "create_pool_app", "fork", "fork_completions",
    "freeze_kv_cache", "freeze_kv_cache_tp", "freeze_model", "freeze_model_pipelined", "freeze_model_tp",
    "load", "recorder", "restore_kv_cache", "restore_kv_cache_tp", "restore_model",
    "restore_model_from_ram", "restore_model_pipelined", "restore_model_tp", "rewind", "sleep_mode",
]  # fmt: skip
