"""LangChain's messages <-> OpenAI's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

Json = dict[str, Any]

# Blocks of an assistant's content that are no text: calls stand in tool_calls too.
_CALL_BLOCKS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "server_tool_call", "function_call"}
)
_THOUGHT_BLOCKS = {"reasoning": "reasoning", "thinking": "thinking"}


def to_json(messages: Iterable[BaseMessage]) -> list[Json]:
    """Raises ValueError for a message that no chat has."""
    return [_message_json(message) for message in messages]


def _message_json(message: BaseMessage) -> Json:
    content, thoughts = _content_json(message)
    body: Json = {"role": _role(message), "content": content}
    if message.name:
        body["name"] = message.name
    if isinstance(message, AIMessage):
        calls = _calls_json(message)
        if calls:
            body["tool_calls"] = calls
            body["content"] = content or None
        thought = message.additional_kwargs.get("reasoning_content") or thoughts
        if thought:
            body["reasoning_content"] = thought
    elif isinstance(message, ToolMessage):
        body["tool_call_id"] = message.tool_call_id
    elif isinstance(message, FunctionMessage):
        body["name"] = message.name
    return body


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return str(message.additional_kwargs.get("__openai_role__", "system"))
    if isinstance(message, ToolMessage):
        return "tool"
    if isinstance(message, FunctionMessage):
        return "function"
    raise ValueError(f"a message of type {type(message).__name__} cannot be sent to a chat model")


def _content_json(message: BaseMessage) -> tuple[str | list[Json], str]:
    """What to send as content, and thoughts that stood in it."""
    if isinstance(message.content, str):
        return message.content, ""
    parts: list[Json] = []
    thoughts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            parts.append({"type": "text", "text": block})
            continue
        kind = block.get("type", "text")
        if kind in _THOUGHT_BLOCKS:
            thoughts.append(str(block.get(_THOUGHT_BLOCKS[kind]) or ""))
        elif kind not in _CALL_BLOCKS:
            parts.append(_part_json(block))
    if not parts:
        return "", "".join(thoughts)
    return parts, "".join(thoughts)


def _part_json(block: Json) -> Json:
    if block.get("type", "text") not in ("text", "input_text", "output_text"):
        return block  # the server says what it thinks of it
    part: Json = {"type": "text", "text": str(block.get("text") or "")}
    if "prompt_cache_breakpoint" in block:
        part["prompt_cache_breakpoint"] = block["prompt_cache_breakpoint"]
    elif "cache_control" in block:  # Anthropic's word for the same
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
    return part


def _calls_json(message: AIMessage) -> list[Json]:
    calls = [
        _call_json(call.get("id"), call["name"], json.dumps(call["args"], ensure_ascii=False))
        for call in message.tool_calls
    ]
    calls += [
        _call_json(call.get("id"), call.get("name") or "", call.get("args") or "")
        for call in message.invalid_tool_calls
    ]
    return calls or list(message.additional_kwargs.get("tool_calls", []))


def _call_json(call_id: str | None, name: str, arguments: str) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def usage_of(usage: Json | None) -> UsageMetadata | None:
    """cache_read: prompt tokens that were not computed. cache_creation: those that were."""
    if not usage:
        return None
    prompt = usage.get("prompt_tokens") or 0
    completion = usage.get("completion_tokens") or 0
    details = usage.get("prompt_tokens_details") or {}
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    return UsageMetadata(
        input_tokens=prompt,
        output_tokens=completion,
        total_tokens=usage.get("total_tokens") or prompt + completion,
        input_token_details=InputTokenDetails(
            cache_read=details.get("cached_tokens") or 0,
            cache_creation=details.get("cache_write_tokens") or 0,
        ),
        output_token_details=OutputTokenDetails(**({} if reasoning is None else {"reasoning": reasoning})),
    )


def metadata_of(answer: Json, choice: Json) -> Json:
    """response_metadata of the message that a choice is."""
    metadata: Json = {
        "model_provider": "thaw",
        "model_name": answer.get("model"),
        "finish_reason": choice.get("finish_reason"),
        "system_fingerprint": answer.get("system_fingerprint"),
        "id": answer.get("id"),
    }
    if choice.get("logprobs") is not None:
        metadata["logprobs"] = choice["logprobs"]
    if choice.get("stop_reason") is not None:
        metadata["stop_reason"] = choice["stop_reason"]
    if choice.get("token_ids") is not None:
        metadata["token_ids"] = choice["token_ids"]
    if answer.get("thaw") is not None:
        metadata["thaw"] = answer["thaw"]
    return metadata


def message_of(answer: Json, choice: Json, usage: UsageMetadata | None) -> AIMessage:
    """The message that a choice of a whole answer is."""
    body = choice["message"]
    calls = []
    broken = []
    for call in body.get("tool_calls") or []:
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
            if not isinstance(arguments, dict):
                raise ValueError("arguments are no object")
            calls.append(tool_call(name=function["name"], args=arguments, id=call.get("id")))
        except ValueError as error:
            broken.append(
                invalid_tool_call(
                    name=function["name"], args=function["arguments"], id=call.get("id"), error=str(error)
                )
            )
    return AIMessage(
        content=body.get("content") or "",
        additional_kwargs=_thoughts(body),
        tool_calls=calls,
        invalid_tool_calls=broken,
        usage_metadata=usage,
        response_metadata=metadata_of(answer, choice),
    )


def chunk_of(delta: Json) -> AIMessageChunk:
    """The part of a message that a delta of a stream is."""
    return AIMessageChunk(
        content=delta.get("content") or "",
        additional_kwargs=_thoughts(delta),
        tool_call_chunks=[
            tool_call_chunk(
                name=(call.get("function") or {}).get("name"),
                args=(call.get("function") or {}).get("arguments"),
                id=call.get("id"),
                index=call.get("index"),
            )
            for call in delta.get("tool_calls") or []
        ],
    )


def _thoughts(body: Json) -> Json:
    thoughts = body.get("reasoning_content") or body.get("reasoning")
    return {"reasoning_content": thoughts} if thoughts else {}
