"""A stream's events -> LangChain's chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from thaw_vllm.langgraph._messages import chunk_of, metadata_of, usage_of

Json = dict[str, Any]


class ChunkReader:
    """Holds back how a reply ended until its usage is there too: both are in the one last chunk."""

    def __init__(self) -> None:
        self._answer: Json = {}
        self._choice: Json = {}
        self._usage: Json | None = None

    def read(self, event: Json) -> Iterator[ChatGenerationChunk]:
        self._answer.update({name: value for name, value in event.items() if value is not None})
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or []:
            if choice.get("finish_reason") is not None:
                self._choice = {key: value for key, value in choice.items() if key != "logprobs"}
            message = chunk_of(choice.get("delta") or {})
            logprobs = choice.get("logprobs")
            if message.content or message.additional_kwargs or message.tool_call_chunks or logprobs:
                info = {"logprobs": logprobs} if logprobs else None
                yield ChatGenerationChunk(message=message, generation_info=info)

    def end(self) -> Iterator[ChatGenerationChunk]:
        """The last chunk, empty but for what is known of the reply."""
        message = AIMessageChunk(
            content="",
            usage_metadata=usage_of(self._usage),
            response_metadata=metadata_of(self._answer, self._choice),
            chunk_position="last",
        )
        info = {"finish_reason": self._choice.get("finish_reason")}
        yield ChatGenerationChunk(message=message, generation_info=info)
