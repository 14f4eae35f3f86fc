"""vLLM's model loader `load_format="thaw"`: parameters from a `.thaw` file.

vLLM finds register() by the entry point `vllm.general_plugins`; without vLLM it does nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from thaw_common.cloud import resolve_snapshot_path
from thaw_common.snapshot import restore_model_pipelined
from thaw_common.util import rank_snapshot_path as _rank_snapshot_path

__all__ = ["ThawModelLoader", "_rank_snapshot_path", "register"]

LOAD_FORMAT = "thaw"


class ThawModelLoader:
    """Fills a model's parameters, by their order, from the snapshot that `model_loader_extra_config` names.

    ValueError without {"snapshot": path}. In vLLM it is a BaseModelLoader (register()).
    """

    def __init__(self, load_config: Any):
        extra = getattr(load_config, "model_loader_extra_config", None) or {}
        snapshot = extra.get("snapshot") if isinstance(extra, dict) else None
        if not snapshot:
            raise ValueError(
                'load_format="thaw" needs model_loader_extra_config={"snapshot": "weights.thaw"}'
            )
        self.load_config = load_config
        self.snapshot = os.fspath(snapshot)

    def download_model(self, model_config: Any) -> None:
        """Brings a snapshot in S3 to this machine; FileNotFoundError without one."""
        path = self._path()
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file")

    def load_weights(self, model: Any, model_config: Any = None) -> dict[str, Any]:
        """Restores this rank's parameters; statistics of restore_model_pipelined()."""
        return restore_model_pipelined(model, self._path())

    def _path(self) -> str:
        return resolve_snapshot_path(str(_rank_snapshot_path(self.snapshot, _rank())))


def _rank() -> int:
    """Of this process in its tensor-parallel group; 0 without vLLM."""
    try:
        parallel = importlib.import_module("vllm.distributed")
        return int(parallel.get_tensor_model_parallel_rank())
    except (ImportError, AttributeError, AssertionError):
        return 0


def register() -> None:
    """Makes load_format="thaw" known to vLLM, where that is installed. May be called again."""
    try:
        loaders: Any = importlib.import_module("vllm.model_executor.model_loader")
        base: Any = importlib.import_module("vllm.model_executor.model_loader.base_loader").BaseModelLoader
    except ImportError:
        return
    kind = type("ThawModelLoader", (ThawModelLoader, base), {"__doc__": ThawModelLoader.__doc__})
    loaders.register_model_loader(LOAD_FORMAT)(kind)
