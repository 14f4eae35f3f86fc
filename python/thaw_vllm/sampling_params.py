"""Sampling parameters with vLLM's names and defaults."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass
class SamplingParams:
    """How the next token is chosen, and when to stop.

    `max_tokens` counts generated tokens (None: what fits the context); `logprobs` is how many of the
    likeliest tokens are told beside the chosen one, 0 to 20; `seed` makes answers repeatable. `temperature`
    0 is greedy. ValueError where a value cannot be. What this engine does not have is refused, not ignored.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    structured_outputs: Any = None
    guided_decoding: Any = None
    output_kind: Any = None
    extra_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, right: str) -> None:
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {right}")

        require(isinstance(self.n, int) and self.n >= 1, "n", "at least 1")
        require(self.best_of is None or self.best_of >= self.n, "best_of", "at least n")
        require(0 <= self.temperature <= 2, "temperature", "from 0 to 2")
        require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        require(self.top_k >= -1, "top_k", "at least 1, or 0 or -1 for all tokens")
        require(0 <= self.min_p <= 1, "min_p", "from 0 to 1")
        require(-2 <= self.presence_penalty <= 2, "presence_penalty", "from -2 to 2")
        require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "from -2 to 2")
        require(0 < self.repetition_penalty <= 10, "repetition_penalty", "above 0 and at most 10")
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1")
        require(self.min_tokens >= 0, "min_tokens", "at least 0")
        most = self.max_tokens
        require(most is None or self.min_tokens <= most, "min_tokens", f"at most max_tokens ({most})")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 20, name, "from 0 to 20")
        require(self.detokenize, "detokenize", "True: texts are always made")

    @property
    def all_stop(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def clone(self) -> SamplingParams:
        """A copy that shares nothing."""
        return copy.deepcopy(self)

    @classmethod
    def from_optional(cls, **fields: Any) -> SamplingParams:
        """With the defaults for what is None."""
        return cls(**{key: value for key, value in fields.items() if value is not None})


def request_fields(params: SamplingParams) -> dict[str, Any]:
    """The same as fields of a completion request (docs/http.md)."""
    fields: dict[str, Any] = {
        "n": params.n,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": max(params.top_k, 0),
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "ignore_eos": params.ignore_eos,
        "min_tokens": params.min_tokens,
        "skip_special_tokens": params.skip_special_tokens,
        "include_stop_str_in_output": params.include_stop_str_in_output,
    }
    optional = {
        "best_of": params.best_of,
        "seed": params.seed,
        "stop": params.all_stop or None,
        "stop_token_ids": list(params.stop_token_ids or []) or None,
        "bad_words": list(params.bad_words or []) or None,
        "logprobs": params.logprobs,
        "prompt_logprobs": params.prompt_logprobs,
        "truncate_prompt_tokens": params.truncate_prompt_tokens,
        "allowed_token_ids": list(params.allowed_token_ids or []) or None,
        "logit_bias": {str(key): value for key, value in (params.logit_bias or {}).items()} or None,
        "max_tokens": params.max_tokens,
    }
    fields |= {key: value for key, value in optional.items() if value is not None}
    form = params.structured_outputs if params.structured_outputs is not None else params.guided_decoding
    if form is not None:
        given = form if isinstance(form, Mapping) else vars(form)
        fields["structured_outputs"] = {key: value for key, value in given.items() if value is not None}
    fields |= dict(params.extra_args or {})
    return fields


def as_sampling_params(params: Any) -> SamplingParams:
    """Ours from None, a mapping, or any object with such attributes, as another engine's."""
    if isinstance(params, SamplingParams):
        return params
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    if params is None:
        return SamplingParams()
    if isinstance(params, Mapping):
        unknown = sorted(set(params) - set(names))
        if unknown:
            raise ValueError(f"no sampling parameters: {', '.join(map(str, unknown))}")
        return SamplingParams(**params)
    found = {name: getattr(params, name) for name in names if getattr(params, name, None) is not None}
    return SamplingParams(**found)
