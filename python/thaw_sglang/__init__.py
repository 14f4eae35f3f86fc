"""SGLang's weights in `.thaw` files. SGLang itself (extra `sglang`) is needed for freeze() and load() only.

The five functions on a torch module are those of thaw_common.snapshot.
"""

from __future__ import annotations

import importlib
from typing import Any

_SNAPSHOT = (
    "freeze_model", "freeze_model_pipelined", "restore_model", "restore_model_from_ram",
    "restore_model_pipelined",
)  # fmt: skip
_NAMES = {
    **{name: "thaw_common.snapshot" for name in _SNAPSHOT},
    "ThawSGLangFreezeLoader": "thaw_sglang.loader",
    "ThawSGLangModelLoader": "thaw_sglang.loader",
    "freeze": "thaw_sglang.engine",
    "load": "thaw_sglang.engine",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'thaw_sglang' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
