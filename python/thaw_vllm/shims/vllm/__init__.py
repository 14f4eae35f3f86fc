"""`vllm` by name, thaw by engine: for scripts that say `from vllm import LLM, SamplingParams`.

Opt in with PYTHONPATH=$(python -m thaw_vllm.shims). It is never on the path by itself, so that it cannot
hide a real vLLM.
"""

from __future__ import annotations

from typing import Any

from thaw_vllm.llm import LLM
from thaw_vllm.outputs import CompletionOutput, RequestOutput
from thaw_vllm.sampling_params import SamplingParams

from .inputs import TextPrompt, TokensPrompt

__all__ = [
    "LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "TextPrompt", "TokensPrompt", "__version__",
]  # fmt: skip

#: The engine is thaw's.
__version__ = "0.0.0+thaw"


def __getattr__(name: str) -> Any:
    raise AttributeError(f"thaw's vllm shim has no {name!r}; it has {', '.join(__all__)}")
