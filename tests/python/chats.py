"""Chats on the tests' models, and what tells whether they shared."""

import os
import pathlib
import re
import time
from typing import Any

import pytest
from conftest import BUILD
from thaw_vllm.langgraph import ChatThaw


def real_model() -> pathlib.Path:
    """The default model's file."""
    cache = os.environ.get("THAW_CACHE_DIR", pathlib.Path.home() / ".cache" / "thaw")
    path = pathlib.Path(cache) / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.fail(f"{path} is missing; `make model` fetches it")
    return path


TINY = BUILD / "testdata" / "tiny-q4_1.gguf"
# Small enough for many engines at once on a small machine.
SMALL: dict[str, Any] = {"kv_bytes": "64MiB", "arena_bytes": "16MiB", "threads": 1}


def tiny_chat(**fields: Any) -> ChatThaw:
    """A chat in process on the tiny model; all of the same engine fields share one engine."""
    fields = {"temperature": 0, "max_tokens": 8, "extra_llm_kwargs": SMALL, **fields}
    return ChatThaw(model=str(TINY), **fields)


def counter(chat: ChatThaw, name: str) -> int:
    """A counter of the engine or server behind a chat, summed over its workers."""
    text = chat._client.call("GET", "/metrics")
    return sum(int(float(value)) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


def prefilled(chat: ChatThaw) -> int:
    return counter(chat, "thaw_tokens_prefilled_total")


def prompt_tokens(chat: ChatThaw, messages: list[Any]) -> list[int]:
    from langchain_core.messages import convert_to_messages
    from thaw_vllm.langgraph._messages import to_json

    body = {"messages": to_json(convert_to_messages(messages))}
    return list(chat._client.call("POST", "/tokenize", body)["tokens"])


def distinct_tokens(prompts: list[list[int]]) -> int:
    """Nodes of the prompts' trie: what must be computed where everything common is shared."""
    return len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))})


def words(seed: str, count: int) -> str:
    """A text of that many words that no other seed gives."""
    return " ".join(f"{seed}{number * 7919 % 1009}" for number in range(count))


def tasks_come_down_to(count: int) -> bool:
    """A thread that has ended may be listed for a moment longer."""
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > count:
        if time.monotonic() > deadline:
            return False
    return True


def open_descriptors() -> set[str]:
    found = set()
    for path in pathlib.Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{path.name}:{path.readlink()}")
        except FileNotFoundError:
            continue
    return found
