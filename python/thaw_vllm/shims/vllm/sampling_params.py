"""As vLLM has it."""

from thaw_vllm.sampling_params import SamplingParams

__all__ = ["SamplingParams"]
