"""An SGLang engine that writes its weights to a `.thaw` file, or starts from one."""

from __future__ import annotations

import importlib
import os
from typing import Any

from thaw_common.cloud import is_remote, resolve_snapshot_path

PathLike = str | os.PathLike[str]


def _sglang() -> Any:
    try:
        return importlib.import_module("sglang")
    except ImportError as error:
        raise ImportError('SGLang is not installed: pip install "thaw-vllm[sglang]"') from error


def _start(model: str, loader: str, snapshot: str, engine_kwargs: dict[str, Any]) -> Any:
    sglang = _sglang()
    kind = getattr(importlib.import_module("thaw_sglang.loader"), loader)
    config = {"snapshot": snapshot}
    return sglang.Engine(
        model_path=model, load_format=kind, model_loader_extra_config=config, **engine_kwargs
    )


def freeze(model: str, output: PathLike, **engine_kwargs: Any) -> str:
    """Starts an engine on `model`, writes its weights to `output` (s3:// too) and ends it. The path."""
    target = os.fspath(output)
    engine = _start(model, "ThawSGLangFreezeLoader", target, engine_kwargs)
    engine.shutdown()
    return target


def load(model: str, snapshot: PathLike, **engine_kwargs: Any) -> Any:
    """An sglang.Engine whose weights come from a file. FileNotFoundError; ImportError without SGLang."""
    path = resolve_snapshot_path(snapshot)
    if not is_remote(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{snapshot}: no such file")
    return _start(model, "ThawSGLangModelLoader", path, engine_kwargs)
