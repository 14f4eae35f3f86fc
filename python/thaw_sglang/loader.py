"""Loaders that SGLang takes as `load_format`. ImportError with a hint where SGLang is not installed."""

from __future__ import annotations

import importlib
import json
from typing import Any

from thaw_common.snapshot import freeze_model_pipelined, restore_model_pipelined
from thaw_common.util import rank_snapshot_path

try:
    _base: Any = importlib.import_module("sglang.srt.model_loader.loader")
except ImportError as error:
    raise ImportError('SGLang is not installed: pip install "thaw-vllm[sglang]"') from error


def _snapshot_of(load_config: Any) -> str:
    extra: Any = getattr(load_config, "model_loader_extra_config", None) or {}
    if isinstance(extra, str):
        extra = json.loads(extra)
    if not extra.get("snapshot"):
        raise ValueError('model_loader_extra_config must be {"snapshot": "weights.thaw"}')
    return str(extra["snapshot"])


def _rank() -> int:
    try:
        return int(importlib.import_module("sglang.srt.distributed").get_tensor_model_parallel_rank())
    except (ImportError, AttributeError, AssertionError):
        return 0


class _Loader(_base.DefaultModelLoader):  # type: ignore[misc]
    """SGLang's own loader, to make the module; the snapshot is ours."""

    def __init__(self, load_config: Any):
        self.snapshot_path = _snapshot_of(load_config)
        load_config.load_format = "auto"
        load_config.model_loader_extra_config = {}
        super().__init__(load_config)

    def download_model(self, model_config: Any) -> None:
        """Nothing: the snapshot is here, or is fetched when it is read."""

    def _rank_path(self) -> str:
        return str(rank_snapshot_path(self.snapshot_path, _rank()))


class ThawSGLangFreezeLoader(_Loader):
    """Loads as SGLang does, then writes the parameters."""

    def load_model(self, *, model_config: Any, **kwargs: Any) -> Any:
        """The module; {"snapshot": path} is there afterwards."""
        model = super().load_model(model_config=model_config, **kwargs)
        freeze_model_pipelined(model, self._rank_path())
        return model


class ThawSGLangModelLoader(_Loader):
    """Makes the module with SGLang's dummy weights and fills its parameters from the snapshot."""

    def __init__(self, load_config: Any):
        super().__init__(load_config)
        load_config.load_format = "dummy"
        self._dummy = _base.DummyModelLoader(load_config)

    def load_model(self, *, model_config: Any, **kwargs: Any) -> Any:
        """The module."""
        model = self._dummy.load_model(model_config=model_config, **kwargs)
        restore_model_pipelined(model, self._rank_path())
        return model
