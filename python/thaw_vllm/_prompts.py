"""What generate() takes for a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def as_prompts(prompts: Any) -> list[str | list[int]]:
    """Texts and lists of token ids, of everything that generate() takes. TypeError else."""

    def is_ids(value: Any) -> bool:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(isinstance(i, int) for i in value)
        )

    def one(value: Any) -> str | list[int]:
        if isinstance(value, Mapping):
            found = value.get("prompt_token_ids", value.get("prompt"))
            if found is not None and not isinstance(found, Mapping):
                return one(found)
        elif isinstance(value, str):
            return value
        elif is_ids(value) and len(value) > 0:
            return [int(token) for token in value]
        raise TypeError(
            f"a prompt is a text, token ids or an object with one of them, not {str(value)[:200]}"
        )

    if isinstance(prompts, str | Mapping) or (is_ids(prompts) and len(prompts) > 0):
        return [one(prompts)]
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a text, token ids, or a list of them, not {type(prompts).__name__}")
    return [one(value) for value in prompts]
