"""thaw: one prefill of a shared context, exact branches.

Everything is imported when it is first used: this import takes milliseconds and needs neither LangChain nor
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from thaw_vllm import _names

if TYPE_CHECKING:
    from thaw_vllm._core import Engine as Engine
    from thaw_vllm._errors import (
        APIConnectionError as APIConnectionError,
    )
    from thaw_vllm._errors import (
        APIStatusError as APIStatusError,
    )
    from thaw_vllm._errors import (
        APITimeoutError as APITimeoutError,
    )
    from thaw_vllm._errors import (
        AuthenticationError as AuthenticationError,
    )
    from thaw_vllm._errors import (
        BadRequestError as BadRequestError,
    )
    from thaw_vllm._errors import (
        ContextLengthError as ContextLengthError,
    )
    from thaw_vllm._errors import (
        NotFoundError as NotFoundError,
    )
    from thaw_vllm._errors import (
        RateLimitError as RateLimitError,
    )
    from thaw_vllm._errors import (
        ThawError as ThawError,
    )
    from thaw_vllm._errors import (
        UnavailableError as UnavailableError,
    )
    from thaw_vllm._exports import *  # noqa: F403

    __version__: str

# Public name -> module that has it; _names has those of engines, forks, pools and snapshots.
_HOMES = {
    "APIConnectionError": "thaw_vllm._errors",
    "APIStatusError": "thaw_vllm._errors",
    "APITimeoutError": "thaw_vllm._errors",
    "AuthenticationError": "thaw_vllm._errors",
    "BadRequestError": "thaw_vllm._errors",
    "ContextLengthError": "thaw_vllm._errors",
    "Engine": "thaw_vllm._core",
    "NotFoundError": "thaw_vllm._errors",
    "RateLimitError": "thaw_vllm._errors",
    "ThawError": "thaw_vllm._errors",
    "UnavailableError": "thaw_vllm._errors",
}
_HOMES |= _names.NAMES
_MODULES = ("langgraph", *_names.MODULES)

__all__ = ["__version__", *sorted({*_HOMES, *_names.MODULES})]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("thaw_vllm._core").version
    if name in _MODULES:
        return importlib.import_module(f"thaw_vllm.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'thaw_vllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
