"""Sampling parameters, whatever object they come in, as the plain fields that workers take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FIELDS = (
    "n", "best_of", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "max_tokens", "min_tokens", "stop", "seed", "logprobs", "ignore_eos",
)  # fmt: skip


def sampling_fields(params: Any) -> dict[str, Any]:
    """The forwarded fields of a SamplingParams, or of any object or mapping with such names.

    None, and what JSON cannot hold, is left out.
    """
    if params is None:
        return {}
    found: dict[str, Any] = {}
    for name in FIELDS:
        value = params.get(name) if isinstance(params, Mapping) else getattr(params, name, None)
        if isinstance(value, set | tuple):
            value = list(value)
        if value is None:
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        found[name] = value
    return found


def num_choices(params: Any) -> int:
    """`n` of the parameters."""
    return int(sampling_fields(params).get("n", 1))
