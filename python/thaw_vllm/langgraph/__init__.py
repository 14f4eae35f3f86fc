"""thaw for LangChain and LangGraph. ChatThaw and fork_fanout need the extra: thaw-vllm[langgraph]."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from thaw_vllm.langgraph.coalescer import (
    BatchSingleCallable,
    ForkCallable,
    ForkCoalescer,
    SingleCallable,
    TokenCounter,
)

if TYPE_CHECKING:
    from thaw_vllm.langgraph.chat_model import ChatThaw
    from thaw_vllm.langgraph.fanout import fork_fanout

__all__ = ["BatchSingleCallable", "ForkCallable", "ForkCoalescer", "SingleCallable", "TokenCounter"]

# Importing LangChain takes a good part of a second: whoever does not use it should not wait.
_HOMES = {"ChatThaw": "chat_model", "fork_fanout": "fanout"}
if importlib.util.find_spec("langchain_core") is not None:
    __all__ += ["ChatThaw", "fork_fanout"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'thaw_vllm.langgraph' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"thaw_vllm.langgraph.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "langchain_core":
            raise
        raise ImportError(f"{name} needs langchain-core: pip install thaw-vllm[langgraph]") from error
    globals()[name] = value
    return value
