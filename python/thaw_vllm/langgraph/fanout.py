"""fork_fanout: one trunk, several branches, as one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages

from thaw_vllm._errors import error_of
from thaw_vllm.langgraph._messages import to_json
from thaw_vllm.langgraph._overflow import as_overflow
from thaw_vllm.langgraph.chat_model import ChatThaw


async def fork_fanout(
    llm: ChatThaw,
    parent_messages: Sequence[Any],
    suffix_message_lists: Sequence[Sequence[Any]],
    *,
    stop: list[str] | None = None,
    **sampling_overrides: Any,
) -> list[str]:
    """The texts that ``parent_messages`` followed by each of the suffixes are answered with, in their order.

    The trunk is computed once, all branches are placed together, and each is answered bit for bit as if it
    had been called alone. ``sampling_overrides`` are fields of a request (temperature, max_tokens, seed,
    ...). The first branch that failed is raised; ValueError where a suffix or the trunk has no message.
    """
    if not suffix_message_lists:
        return []
    trunk = _json(parent_messages)
    forks = [{"messages": _json(suffix)} for suffix in suffix_message_lists]
    if not trunk or not all(fork["messages"] for fork in forks):
        raise ValueError("fork_fanout needs at least one message in the trunk and in each suffix")
    body = {**llm._fields(sampling_overrides, stop), "trunk": {"messages": trunk}, "forks": forks}
    texts: list[str] = [""] * len(forks)
    with as_overflow():
        answer = await llm._client.acall("POST", "/v1/forks", body, **llm._patience(sampling_overrides))
        for branch in answer["data"]:
            if "error" in branch:
                raise error_of(0, branch)
            texts[branch["branch"]] = branch["choices"][0]["message"]["content"] or ""
    return texts


def _json(messages: Sequence[Any]) -> list[dict[str, Any]]:
    converted: list[BaseMessage] = convert_to_messages(list(messages))
    return to_json(converted)
