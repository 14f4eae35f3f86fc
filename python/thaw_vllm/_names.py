"""Where each public name of the package lives. `__init__` imports a module when one of its names is used."""

from __future__ import annotations

#: name -> module. Both `from thaw_vllm import NAME` and the module's own path work.
NAMES: dict[str, str] = {
    "BlockPoolTooSmallError": "thaw_vllm.errors",
    "BlockShapeMismatchError": "thaw_vllm.errors",
    "EnginePool": "thaw_vllm.pool",
    "EngineSlot": "thaw_vllm.pool",
    "ForkBranchError": "thaw_vllm.errors",
    "ForkCompletionResult": "thaw_vllm.fork",
    "ForkError": "thaw_vllm.errors",
    "ForkHandle": "thaw_vllm.fork",
    "ForkPool": "thaw_vllm.fork_pool",
    "ForkPoolError": "thaw_vllm.errors",
    "HandleClosedError": "thaw_vllm.errors",
    "LLM": "thaw_vllm.llm",
    "ModelMismatchError": "thaw_vllm.errors",
    "PrefixCachingDisabledError": "thaw_vllm.errors",
    "SamplingParams": "thaw_vllm.sampling_params",
    "ThawModelLoader": "thaw_vllm.loader",
    "UnfinishedRequestsError": "thaw_vllm.errors",
    "WorkerBootTimeout": "thaw_vllm.errors",
    "WorkerDead": "thaw_vllm.errors",
    "WorkerProtocolError": "thaw_vllm.errors",
    "capture_rollouts": "thaw_vllm.rollouts",
    "checkout": "thaw_vllm.fork",
    "checkpoint": "thaw_vllm.fork",
    "create_pool_app": "thaw_vllm.server",
    "fork_completions": "thaw_vllm.fork",
    "freeze_kv_cache": "thaw_vllm.kv_snapshot",
    "freeze_kv_cache_tp": "thaw_vllm.kv_snapshot",
    "freeze_model": "thaw_vllm.snapshot",
    "freeze_model_pipelined": "thaw_vllm.snapshot",
    "freeze_model_tp": "thaw_vllm.snapshot",
    "load": "thaw_vllm.snapshot",
    "restore_kv_cache": "thaw_vllm.kv_snapshot",
    "restore_kv_cache_tp": "thaw_vllm.kv_snapshot",
    "restore_model": "thaw_vllm.snapshot",
    "restore_model_from_ram": "thaw_vllm.snapshot",
    "restore_model_pipelined": "thaw_vllm.snapshot",
    "restore_model_tp": "thaw_vllm.snapshot",
}

#: Submodules that are attributes of the package too. `fork` is function and module at once.
MODULES = ("agentfs", "fork", "recorder", "rewind", "sleep_mode")
