"""What LLM.generate() returns: vLLM's names."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Logprob:
    """Natural logarithm of a token's probability, before temperature; `rank` from 1, where it is known."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclasses.dataclass
class CompletionOutput:
    """One continuation. `token_ids` has the token that stopped it; `finish_reason` is "stop" or "length"."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None

    def finished(self) -> bool:
        """True: what generate() returns is whole."""
        return self.finish_reason is not None


@dataclasses.dataclass
class RequestOutput:
    """One prompt with its `n` continuations. `num_cached_tokens` of it were not computed: they were there."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = True
    num_cached_tokens: int | None = None
    metrics: Any = None
    lora_request: Any = None
