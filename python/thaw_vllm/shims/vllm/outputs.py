"""As vLLM has it."""

from thaw_vllm.outputs import CompletionOutput, RequestOutput

__all__ = ["CompletionOutput", "RequestOutput"]
