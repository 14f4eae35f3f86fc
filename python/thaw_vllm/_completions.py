"""Choices of /v1/completions, with token ids for tokens -> vLLM's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from thaw_vllm.outputs import CompletionOutput, Logprob


def completion_of(choice: Mapping[str, Any], text_of: Callable[[int], str]) -> CompletionOutput:
    """One choice; `text_of` is what a token is alone."""
    told = choice.get("logprobs")
    logprobs = None
    cumulative = None
    if told:
        logprobs = []
        cumulative = 0.0
        top = told.get("top_logprobs") or [None] * len(told["tokens"])
        for token, logprob, others in zip(told["tokens"], told["token_logprobs"], top):
            cumulative += logprob or 0.0
            logprobs.append(_place(_token_id(token), logprob, others or {}, text_of))
    return CompletionOutput(
        choice["index"],
        choice["text"],
        list(choice.get("token_ids") or []),
        cumulative,
        logprobs,
        choice.get("finish_reason"),
        choice.get("stop_reason"),
    )


def prompt_logprobs_of(told: Any) -> list[dict[int, Logprob] | None] | None:
    """None where they were not asked for; of the first token there are none."""
    if told is None:
        return None
    return [
        None
        if place is None
        else {
            int(token): Logprob(entry["logprob"], entry.get("rank"), entry.get("decoded_token"))
            for token, entry in place.items()
        }
        for place in told
    ]


def _place(
    token_id: int, logprob: float, others: Mapping[str, float], text_of: Callable[[int], str]
) -> dict[int, Logprob]:
    ranked = sorted(others.items(), key=lambda item: -item[1])
    place = {}
    for rank, (name, value) in enumerate(ranked):
        other = _token_id(name)
        place[other] = Logprob(value, rank + 1, text_of(other))
    if token_id not in place:
        place[token_id] = Logprob(logprob, None, text_of(token_id))
    return place


def _token_id(name: str) -> int:
    return int(name.rpartition(":")[2])
