"""Comparing and measuring lists of messages, whoever's classes they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def _field(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, dict) else getattr(message, name, None)


def message_key(message: Any) -> str:
    """Equal for messages that a model would read alike: role, content, name and tool calls.

    ``message`` is a LangChain message, a dict of OpenAI's form, or a (role, content) pair.
    """
    if isinstance(message, (tuple, list)):
        role, content = message
        fields = [role, content, None, None, None]
    else:
        role = _field(message, "type") or _field(message, "role")
        names = ("content", "name", "tool_calls", "tool_call_id")
        fields = [role, *(_field(message, name) or None for name in names)]
    return json.dumps(fields, sort_keys=True, default=str)


def common_prefix_length(message_lists: Sequence[Sequence[Any]]) -> int:
    """How many messages all lists begin with; 0 for no lists."""
    if not message_lists:
        return 0
    first = [message_key(message) for message in message_lists[0]]
    length = min(len(messages) for messages in message_lists)
    for messages in message_lists[1:]:
        for position in range(length):
            if message_key(messages[position]) != first[position]:
                length = position
                break
    return length


def approximate_token_count(messages: Sequence[Any]) -> int:
    """Tokens of the messages' texts, a token counted as four characters."""
    count = 0
    for message in messages:
        content = message[1] if isinstance(message, (tuple, list)) else _field(message, "content")
        if isinstance(content, str):
            count += len(content)
        elif isinstance(content, list):
            for part in content:
                count += len(part) if isinstance(part, str) else len(str(part.get("text") or ""))
    return count // 4
