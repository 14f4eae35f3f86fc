"""`llm.llm_engine`, with what scripts read of vLLM's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class ModelConfig:
    """`model` is its name, `max_model_len` in tokens."""

    model: str
    _max_model_len: Callable[[], int]
    _vocab_size: Callable[[], int]
    dtype: str = "auto"
    seed: int | None = None
    tokenizer: str = ""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together."""
        return self._max_model_len()

    def get_vocab_size(self) -> int:
        """Tokens that the model knows."""
        return self._vocab_size()


@dataclasses.dataclass
class ParallelConfig:
    """GPUs that the model is spread over, and processes that hold it."""

    tensor_parallel_size: int = 1
    world_size: int = 1


@dataclasses.dataclass
class CacheConfig:
    """`num_gpu_blocks` is that of the engine's memory, be it a GPU's or not."""

    enable_prefix_caching: bool
    _num_blocks: Callable[[], int]
    block_size: int = 16

    @property
    def num_gpu_blocks(self) -> int:
        """Blocks of a worker's KV cache."""
        return self._num_blocks()


@dataclasses.dataclass
class VllmConfig:
    """The settings by the names of vLLM's."""

    model_config: ModelConfig
    parallel_config: ParallelConfig
    cache_config: CacheConfig


class LLMEngine:
    """What is behind an LLM."""

    def __init__(self, config: VllmConfig, running: Callable[[], int]):
        self.vllm_config = config
        self.model_config = config.model_config
        self.parallel_config = config.parallel_config
        self.cache_config = config.cache_config
        self._running = running

    def has_unfinished_requests(self) -> bool:
        """True while a call of this LLM generates."""
        return self._running() > 0

    def get_num_unfinished_requests(self) -> int:
        """Prompts that are being completed."""
        return self._running()

    @property
    def engine_core(self) -> Any:
        """Itself: there is nothing in between."""
        return self
